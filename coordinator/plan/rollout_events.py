"""Events of a rollout, from the versions in a status before and after: each step is said once.

Resolved      there is a next version                  CutOver      more nodes serve it
Prefetched    every node has it, in place or beside    RolledOut    all nodes serve it
RolledBack    all nodes serve again what they kept     RolloutFailed    it needs a person
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Versions = list[Mapping[str, Any]]

_UNDER_WAY = ("Next", "Failed")


def steps(before: Versions, after: Versions, total: int, source: str) -> Iterator[tuple[str, str, bool]]:
    """Reason, message, and whether it is a warning. `total`: nodes that should hold the model; `source`: its URI."""
    known = {_key(each): each for each in before}
    for each in after:
        was, name = known.get(_key(each), {}), each.get("revision") or each.get("digest") or "the next version"
        nodes, beside = each.get("nodes", 0), each.get("beside", 0)
        state, earlier = each.get("state"), was.get("state")
        if state in _UNDER_WAY and earlier not in _UNDER_WAY and each.get("selection"):
            yield "Resolved", f"{source} at {name}: the next version", False
        if state == "Next" and nodes + beside == total > was.get("nodes", 0) + was.get("beside", 0) and beside:
            yield "Prefetched", f"{total}/{total} nodes have {name}", False
        if state in _UNDER_WAY and nodes > was.get("nodes", 0):
            yield "CutOver", f"{nodes}/{total} nodes serve {name}", False
        if state == "Failed" and earlier != "Failed":
            served = next((other for other in after if other.get("state") == "Current"), {})
            serving = served.get("revision") or served.get("digest") or "what was there"
            yield "RolloutFailed", f"{name}: {each.get('reason')}: {each.get('message')}; {serving} is served on", True
        if state == "Current" and before and earlier != "Current" and nodes == total:
            if earlier == "Previous" or was.get("kept"):
                yield "RolledBack", f"{nodes}/{total} nodes serve {name} again", False
            else:
                yield "RolledOut", f"{nodes}/{total} nodes serve {name}", False


def _key(entry: Mapping[str, Any]) -> str:
    return str(entry.get("digest") or entry.get("revision") or "")
