"""Announces removals: before they happen, and when the node no longer reports the copy.

An Event on every cache that loses a copy, one for many nodes, on the LocalModelNode where no cache exists any more; and
a line in the log for every copy. What waits for pods is said too, once. Belongs to the controller's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from actors.manifest import StorageKey
from actors.messages import DesiredState, NodeName
from coordinator.plan.announcements import Announcement
from coordinator.plan.conditions import name_nodes, name_pods
from coordinator.plan.orphans import copies_of
from coordinator.plan.pods import Pod
from coordinator.plan.removals import Leaving
from coordinator.plan.snapshot import LOCAL_NODES, Ref, Snapshot

_log = logging.getLogger(__name__)

_Copy = tuple[NodeName, str, StorageKey]

_WHY = {
    "CacheDeleted": "its cache is deleted",
    "NodeGroupsChanged": "spec.nodeGroups no longer names a group of the node",
    "NotListed": "its LocalModelNode no longer lists it, and no cache of its URI is left",
    "OrphanExpired": "it has been an orphan for longer than --orphan-grace-seconds",
}


class Remover:
    """Remembers what was ordered until it is gone. A coordinator that starts anew announces what it orders itself."""

    def __init__(self, announce: Callable[[Iterable[Announcement]], None]) -> None:
        self._announce = announce
        self._ordered: dict[_Copy, tuple[Leaving, tuple[Ref, ...]]] = {}
        self._waiting: frozenset[_Copy] = frozenset()

    def act(self, snapshot: Snapshot, leaving: Sequence[Leaving], desired: Mapping[NodeName, DesiredState]) -> None:
        """Announces removals that are ordered for the first time, and copies that have gone since."""
        found = {(each.node, each.root, each.key): each for each in leaving}
        waiting = {copy: each for copy, each in found.items() if each.users and not each.forced}
        for copy, each in waiting.items():
            if copy not in self._waiting:
                pods = ", ".join(sorted(f"{pod.namespace}/{pod.name}" for pod in each.users or ()))
                _log.info("a removal waits for pods that use the copy", extra=_fields(each) | {"pods": pods})
        self._say_waiting(snapshot, [each for copy, each in waiting.items() if copy not in self._waiting])
        self._waiting = frozenset(waiting)
        ordered = {
            (node, order.root, order.key) for node, state in desired.items() for order in state.remove
        } & found.keys()
        new = [found[copy] for copy in sorted(ordered - self._ordered.keys())]
        for each in new:
            _log.info("removing a copy", extra=_fields(each))
            self._ordered[each.node, each.root, each.key] = each, _refs(snapshot, each)
        self._say("Removing", "{copies} {is_are} being removed: {why}", new)
        gone = [each for copy, (each, _) in self._ordered.items() if copy not in found and _is_gone(snapshot, copy)]
        for each in gone:
            _log.info("removed a copy", extra=_fields(each))
        self._say("Removed", "{copies} {has_have} gone: {why}", gone)
        for copy in [copy for copy in self._ordered if copy not in found]:
            if copy[0] not in snapshot.nodes or _answers(snapshot, copy[0]):  # wanted again, or gone
                del self._ordered[copy]

    def _say_waiting(self, snapshot: Snapshot, copies: Sequence[Leaving]) -> None:
        """Where no condition of a cache says so: that is one that exists on, or one that is gone."""
        alike: dict[tuple[Ref, str], dict[NodeName, Sequence[Pod]]] = {}
        for each in copies:
            for ref in _refs(snapshot, each) if each.reason != "CacheDeleted" or not each.caches else ():
                alike.setdefault((ref, each.reason), {})[each.node] = each.users or ()
        for (ref, why), users in alike.items():
            pods, _ = name_pods(ref.namespace, users)
            message = (
                f"the copy on {name_nodes(users)} is to be removed ({_WHY[why]}) and stays while pods use it:"
                f" {name_nodes(pods)}"
            )
            self._announce([Announcement(ref, True, "InUse", message)])

    def _say(self, reason: str, words: str, copies: Sequence[Leaving]) -> None:
        """One Event for all nodes of a cache that lose it at once."""
        alike: dict[tuple[Ref, str], list[NodeName]] = {}
        for each in copies:
            for ref in self._ordered[each.node, each.root, each.key][1]:
                alike.setdefault((ref, each.reason), []).append(each.node)
        for (ref, why), nodes in alike.items():
            one = len(nodes) == 1
            message = words.format(
                copies=f"the copy on {nodes[0]}" if one else f"{len(nodes)} copies on {name_nodes(nodes)}",
                is_are="is" if one else "are",
                has_have="has" if one else "have",
                why=_WHY[why],
            )
            if ref.resource == LOCAL_NODES:
                keys = ", ".join(sorted(each.key for each in copies if each.node in nodes))
                message = f"{keys}: {message}"
            self._announce([Announcement(ref, False, reason, message)])


def _refs(snapshot: Snapshot, each: Leaving) -> tuple[Ref, ...]:
    caches = tuple(snapshot.caches[key].ref for key in each.caches if key in snapshot.caches)
    local = snapshot.local_nodes.get(each.node)
    return caches or ((local.ref,) if local is not None else ())


def _answers(snapshot: Snapshot, node: NodeName) -> bool:
    view = snapshot.agent(node)
    return view.failure is None and view.report is not None


def _is_gone(snapshot: Snapshot, copy: _Copy) -> bool:
    """The node's agent answers, and reports the copy no more."""
    node, root, key = copy
    if not _answers(snapshot, node):
        return False
    return not any(m.key == key and m.root in ("", root) for m in copies_of(snapshot.agents[node].report))


def _fields(each: Leaving) -> dict[str, str]:
    cache = ", ".join(each.caches)
    return {"node": each.node, "root": each.root, "key": each.key, "cache": cache, "reason": each.reason}
