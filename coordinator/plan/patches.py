"""The smallest merge patch from what stands in an object to what should, and whether it can wait.

A patch names only fields we own, only where they differ, and removes with null (RFC 7396). A *material* change is one a
person or a program may be waiting for; the rest is progress (bytes, rate, ETA), which may be written a little later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

from coordinator.plan.written import CACHE_STATUS as CACHE_FIELDS
from coordinator.plan.written import NODE_STATUS as NODE_FIELDS

CACHE_STATUS = tuple(CACHE_FIELDS)
NODE_STATUS = tuple(NODE_FIELDS)
"""We own every field of both: `coordinator.api.resources` has them."""

GROUP_STATUS = ("used", "available", "storageLimitMode", "nodesOverLimit")

KSERVE_FIELDS = frozenset({"nodeStatus", "copies", "inferenceServices", "llmInferenceServices", "modelStatus"})
KSERVE_FIELDS_OF_GROUPS = frozenset({"used", "available"})
"""What is left of them on a cluster with KServe's own CRDs."""

_THERE = frozenset({"copies"})
"""Is there from the first write, also with nothing in it: KServe's clients wait for it."""

_PROGRESS = frozenset({"bytes", "moved", "rateBytesPerSecond", "rate", "eta", "progress", "summary", "models", "roots"})
_MATERIAL_OF_CONDITION = ("type", "status", "reason", "observedGeneration")


def status_patch(
    current: Mapping[str, Any],
    wanted: Mapping[str, Any],
    owned: Iterable[str],
    kserves: Set[str] = KSERVE_FIELDS,
    *,
    extensions: bool = True,
) -> dict[str, Any]:
    """What to merge into `status` so that the owned fields are as `wanted`; empty if they are.

    With `extensions` False the API server drops all but the fields that are `kserves`, so the others are not added; one
    that is there all the same is kept current, and goes with that where it is dropped.
    """
    patch: dict[str, Any] = {}
    for name in owned:
        if not extensions and name not in kserves and name not in current:
            continue
        now, then = current.get(name), wanted.get(name)
        if name in _THERE and now is None and then == {}:
            patch[name] = then
        elif now == then or (not now and not then and now != 0 and then != 0):  # absent, null and empty are one
            continue
        elif isinstance(now, Mapping) and isinstance(then, Mapping):
            patch[name] = _merge(now, then)
        else:
            patch[name] = then or None if not isinstance(then, int) else then
    return patch


def is_material(current: Mapping[str, Any], patch: Mapping[str, Any]) -> bool:
    """Whether `patch` of a status says more than progress."""
    for name, then in patch.items():
        if name in _PROGRESS:
            continue
        if name != "conditions" or _differ(current.get(name), then):
            return True
    return False


def _merge(now: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
    """Values are scalars or lists; a nested object does not occur in what we own."""
    patch: dict[str, Any] = {name: value for name, value in then.items() if now.get(name) != value or name not in now}
    patch.update((name, None) for name in now if name not in then)
    return patch


def _differ(now: Any, then: Any) -> bool:
    """Whether two lists of conditions say something else; the words of a message are not counted."""
    return _essence(now) != _essence(then)


def _essence(conditions: Any) -> list[tuple[Any, ...]]:
    known = conditions if isinstance(conditions, list) else ()
    return [tuple(c.get(name) for name in _MATERIAL_OF_CONDITION) for c in known if isinstance(c, Mapping)]
