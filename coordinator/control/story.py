"""What the coordinator has decided, as lines of a log: each decision once, when it is made, and none in a quiet world.

    placed, withdrawn    which nodes are to hold a model from now on, and which no longer are, with why
    retrying             a node begins another attempt, with what ended the last one
    by an Event's name   what became visible in status and was announced: Resolved, Downloading, Ready, Evicted, …

The messages are constant, so that they can be searched for; names and numbers are fields. The last plan's orders are
compared with those of this one, so a coordinator that begins to act says once how much there is, and then what changes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from actors.manifest import StorageKey
from actors.messages import DesiredModel, DesiredState, NodeName, NodeReport
from coordinator.plan.access import forsaken
from coordinator.plan.announcements import Announcement
from coordinator.plan.conditions import name_nodes
from coordinator.plan.plan import Plan
from coordinator.plan.snapshot import Snapshot

_log = logging.getLogger(__name__)

_Held = frozenset[tuple[str, StorageKey]]


class Story:
    """Belongs to the controller's loop alone."""

    def __init__(self) -> None:
        self._held: Mapping[NodeName, _Held] | None = None
        self._reports: dict[NodeName, NodeReport] = {}
        self._sets: dict[int, tuple[tuple[DesiredModel, ...], _Held]] = {}

    def begin(self) -> None:
        """What comes next is the first plan of this coordinator, or of its next turn."""
        self._held, self._reports = None, {}

    def announced(self, event: Announcement) -> None:
        ref = event.ref
        fields = {"kind": ref.resource.kind, "namespace": ref.namespace, "object": ref.name, "text": event.message}
        _log.log(
            logging.WARNING if event.warning else logging.INFO,
            event.reason,
            extra={name: value for name, value in fields.items() if value is not None},
        )

    def planned(self, snapshot: Snapshot, made: Plan) -> None:
        held = self._held_by(made.desired)
        if self._held is None:
            copies = sum(len(each) for each in held.values())
            _log.info("first plan", extra={"caches": len(snapshot.caches), "nodes": len(held), "copies": copies})
        elif held != self._held:
            self._tell_moves(snapshot, self._held, held)
        self._held = held
        for node, view in snapshot.agents.items():
            if view.report is not None and view.report is not self._reports.get(node):
                self._tell_retries(snapshot, node, view.report)
                self._reports[node] = view.report

    def _held_by(self, desired: Mapping[NodeName, DesiredState]) -> dict[NodeName, _Held]:
        """By node, what it is to hold and where. Nodes that want the same share one value, and it is that of before."""
        sets: dict[int, tuple[tuple[DesiredModel, ...], _Held]] = {}
        held = {}
        for node, state in desired.items():
            models = state.models
            known = sets.get(id(models)) or self._sets.get(id(models))
            if known is None or known[0] is not models:
                known = models, frozenset((model.root, model.key) for model in models)
            sets[id(models)] = known
            held[node] = known[1]
        self._sets = sets
        return held

    def _tell_moves(
        self, snapshot: Snapshot, before: Mapping[NodeName, _Held], after: Mapping[NodeName, _Held]
    ) -> None:
        placed: dict[StorageKey, list[NodeName]] = {}
        withdrawn: dict[tuple[StorageKey, str], list[NodeName]] = {}
        for node in {**before, **after}:
            was, now = before.get(node, frozenset()), after.get(node, frozenset())
            if was is now or was == now:
                continue
            for _, key in now - was:
                placed.setdefault(key, []).append(node)
            for _, key in was - now:
                withdrawn.setdefault((key, _why(snapshot, node, key)), []).append(node)
        for key, nodes in sorted(placed.items()):
            _log.info("placed", extra=_fields(snapshot, key, nodes))
        for (key, why), nodes in sorted(withdrawn.items()):
            _log.info("withdrawn", extra={**_fields(snapshot, key, nodes), "why": why})

    def _tell_retries(self, snapshot: Snapshot, node: NodeName, report: NodeReport) -> None:
        before = self._reports.get(node)
        known = {model.key: model for model in before.models} if before is not None else {}
        for model in report.models:
            was = known.get(model.key)
            if was is None or model.attempt < 2 or model.attempt == was.attempt:
                continue
            failure = was.failure
            fields = {"attempt": model.attempt, "reason": failure.reason if failure else None}
            _log.info("retrying", extra={**_fields(snapshot, model.key, [node]), **fields})


def _why(snapshot: Snapshot, node: NodeName, key: StorageKey) -> str:
    if node not in snapshot.nodes:
        return "the node is gone"
    if not any(cache.storage_key == key and cache.deleted_at is None for cache in snapshot.caches.values()):
        return "no cache wants it any more"
    if key in forsaken(snapshot.caches.values(), snapshot.resolutions):
        return "no cache is left that may read its source"
    return "no node group of its caches selects the node, or names its folder, any more"


def _fields(snapshot: Snapshot, key: StorageKey, nodes: list[NodeName]) -> dict[str, object]:
    caches = sorted(cache.key for cache in snapshot.caches.values() if cache.storage_key == key)
    return {"key": key, "caches": caches, "nodes": name_nodes(nodes), "count": len(nodes)}
