"""The last resort against an object that makes every plan raise: it is found, named and left out, and the others go on.

    plan raises FAILURES times in a row ──► which objects need to be left out for it not to raise? (by halves)
                                        ──► they are left out until they change, and said to be

Reading parses whatever it can (see `snapshot`, `written`), so this should never be needed. An object that is left out
is not taken for deleted: `Snapshot.left_out` names it, and nothing is removed because of it. Belongs to the
controller's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from coordinator.control.metrics import Metrics
from coordinator.kube.interface import NODES
from coordinator.plan.announcements import Announcement
from coordinator.plan.snapshot import Node, Ref, Snapshot

_log = logging.getLogger(__name__)

FAILURES = 3
"""How often in a row a plan must raise: one that raises once was made from a snapshot that is gone."""
MOST = 10
"""How many objects are looked for at a time. Each costs as many plans as the number of objects has binary digits."""


class _Item(NamedTuple):
    """One object of the snapshot: in which of its mappings, and under which key."""

    kind: str
    key: str


class Quarantine:
    """Remembers what is left out, and the version at which it was."""

    def __init__(self, announce: Callable[[Iterable[Announcement]], None], metrics: Metrics) -> None:
        self._announce = announce
        self._metrics = metrics
        self._left_out: dict[_Item, str] = {}
        self._failures = 0

    def clean(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot without what is left out. What has changed since, or is gone, is no longer left out."""
        if not self._left_out:
            return snapshot
        self._left_out = {
            item: version for item, version in self._left_out.items() if _version(snapshot, item) == version
        }
        self._metrics.left_out(len(self._left_out))
        return _without(snapshot, self._left_out)

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self, snapshot: Snapshot, attempt: Callable[[Snapshot], object], error: Exception) -> bool:
        """Whether the plan, `attempt`, no longer raises because something more is left out from now on."""
        self._failures += 1
        if self._failures % FAILURES:
            return False
        found = _culprits(snapshot, attempt)
        for item in found:
            version = _version(snapshot, item)
            if version is not None:
                self._left_out[item] = version
            message = (
                f"every plan failed with this object ({type(error).__name__}), so it is left out until it changes; the"
                " coordinator's log has the error: it is a bug, please report it"
            )
            fields = {"kind": item.kind, "object": item.key, "error": repr(error)}
            _log.error("an object is left out: no plan can be made with it", extra=fields)
            if item.kind != "pods":
                self._announce([Announcement(_ref(snapshot, item), True, "LeftOut", message)])
        self._metrics.left_out(len(self._left_out))
        return bool(found)


def _culprits(snapshot: Snapshot, attempt: Callable[[Snapshot], object]) -> list[_Item]:
    """The fewest objects, among the last of all that do it, without which a plan can be made; none if none do."""
    items = [
        _Item(kind, key)
        for kind in ("pods", "agents", "local_nodes", "caches", "groups", "nodes")
        for key in _objects(snapshot, kind)
    ]

    def raises(without: Iterable[_Item]) -> bool:
        try:
            attempt(_without(snapshot, without))
        except Exception:  # noqa: BLE001 - whatever it is, the question is whether
            return True
        return False

    found: list[_Item] = []
    while len(found) < MOST:
        if not raises(found):
            return found
        if raises([*found, *items]):
            return []  # it is none of the objects
        low, high = 0, len(items)  # without the first `high` no plan raises, without the first `low` each does
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if raises([*found, *items[:middle]]) else (low, middle)
        found.append(items[high - 1])
        items = items[: high - 1]
    return found if not raises(found) else []


def _objects(snapshot: Snapshot, kind: str) -> Iterable[str]:
    if kind == "pods":
        return ["pods"] if snapshot.pods is not None or snapshot.looks else []
    found: Mapping[str, Any] = getattr(snapshot, kind)
    return sorted(found)


def _without(snapshot: Snapshot, left_out: Iterable[_Item]) -> Snapshot:
    by_kind: dict[str, set[str]] = {}
    for item in left_out:
        by_kind.setdefault(item.kind, set()).add(item.key)
    changes: dict[str, Any] = {}
    for kind, keys in by_kind.items():
        if kind == "pods":
            changes |= {"pods": None, "looks": {}, "looked_at": frozenset()}
        else:
            changes[kind] = {key: value for key, value in getattr(snapshot, kind).items() if key not in keys}
    names = frozenset((item.kind, item.key) for item in left_out)
    return replace(snapshot, left_out=snapshot.left_out | names, **changes)


def _version(snapshot: Snapshot, item: _Item) -> str | None:
    """What changes when the object does; None if it is gone. Of a node, which has no version here, all that is read."""
    if item.kind == "pods":
        return "" if snapshot.pods is not None or snapshot.looks else None
    found = getattr(snapshot, item.kind).get(item.key)
    if found is None:
        return None
    if item.kind == "agents":
        return found.report.incarnation if found.report is not None else ""
    if isinstance(found, Node):
        return repr((found.uid, sorted(found.labels.items()), found.ready))
    return str(found.ref.version)


def _ref(snapshot: Snapshot, item: _Item) -> Ref:
    """The object as an Event names it: of what an agent reports, its node."""
    if item.kind in ("caches", "groups", "local_nodes"):
        ref: Ref = getattr(snapshot, item.kind)[item.key].ref
        return ref
    return Ref(NODES, item.key, uid=next((n.uid for n in snapshot.nodes.values() if n.name == item.key), ""))
