"""Events of a rollout, from the versions in a status before and after: each step is said once.

Resolved      there is a next version                  CutOver      more nodes serve it
Prefetched    every node has it, in place or beside    RolledOut    all nodes serve it
RolledBack    all nodes serve again what they kept     RolloutFailed    it needs a person
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

Versions = list[Mapping[str, Any]]

_UNDER_WAY = ("Next", "Failed")


class Said(NamedTuple):
    """An Event that a step is worth."""

    reason: str
    message: str
    warning: bool = False


def steps(before: Versions, after: Versions, total: int, source: str) -> Iterator[Said]:
    """An Event for each step from one look to the next. `total`: nodes that should hold it; `source`: its URI."""
    known = {_key(each): each for each in before}
    for each in after:
        was, name = known.get(_key(each), {}), each.get("revision") or each.get("digest") or "the next version"
        nodes, beside = each.get("nodes", 0), each.get("beside", 0)
        state, earlier = each.get("state"), was.get("state")
        if state in _UNDER_WAY and earlier not in _UNDER_WAY and each.get("selection"):
            yield Said(reason="Resolved", message=f"{source} at {name}: the next version")
        if state == "Next" and nodes + beside == total > was.get("nodes", 0) + was.get("beside", 0) and beside:
            yield Said(reason="Prefetched", message=f"{total}/{total} nodes have {name}")
        if state in _UNDER_WAY and nodes > was.get("nodes", 0):
            yield Said(reason="CutOver", message=f"{nodes}/{total} nodes serve {name}")
        if state == "Failed" and earlier != "Failed":
            served = next((other for other in after if other.get("state") == "Current"), {})
            serving = served.get("revision") or served.get("digest") or "what was there"
            yield Said(
                reason="RolloutFailed",
                message=f"{name}: {each.get('reason')}: {each.get('message')}; {serving} is served on",
                warning=True,
            )
        if state == "Current" and before and earlier != "Current" and nodes == total:
            if earlier == "Previous" or was.get("kept"):
                yield Said(reason="RolledBack", message=f"{nodes}/{total} nodes serve {name} again")
            else:
                yield Said(reason="RolledOut", message=f"{nodes}/{total} nodes serve {name}")


def _key(entry: Mapping[str, Any]) -> str:
    return str(entry.get("digest") or entry.get("revision") or "")
