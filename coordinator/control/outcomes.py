"""Counters and histograms of what came of fills: they outlast the copies and caches they are about.

    bytes         how much more each node has read of each model since it was last heard of, by where from
    first byte    from the start of a fill until its first byte had arrived, or it failed without one
    fill          from the start of a fill until the copy was committed, or an attempt failed
    ready         from when a cache became not Ready until it was, or was deleted

A coordinator that begins to act begins with what its predecessor wrote into the LocalModelNodes, so that no byte counts
twice. Of a copy that nothing is written of, what came before it began does not count. Times are as fine as a turn of
the loop; node clocks that differ from this one's never make a time negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from actors.manifest import StorageKey
from actors.messages import ModelReport, NodeName, NodeReport, Phase
from actors.times import seconds_of
from actors.transferred import CAMEL
from coordinator.api.resources import StatusKey
from coordinator.plan.snapshot import Snapshot

PLACES = {"bytes_from_origin": "origin", "bytes_from_peers": "peers", "bytes_reused": "disk"}
"""The numbers of a report, and what they are called in the metrics."""


class Counting(Protocol):
    def moved(self, location: str, count: int) -> None: ...

    def first_byte(self, outcome: str, seconds: float) -> None: ...

    def filled(self, outcome: str, seconds: float) -> None: ...

    def became_ready(self, outcome: str, seconds: float) -> None: ...


class _Seen(NamedTuple):
    """One model on one node, as last heard of. `failed` is the last attempt that did."""

    numbers: tuple[int, ...]
    ready: bool
    failed: int


class Outcomes:
    """Belongs to the controller's loop alone."""

    def __init__(self, metrics: Counting) -> None:
        self._metrics = metrics
        self._models: dict[NodeName, dict[StorageKey, _Seen]] = {}
        self._reports: dict[NodeName, NodeReport] = {}
        self._waiting: dict[StatusKey, float] = {}

    def begin(self) -> None:
        """Nothing from before is compared with the next observation."""
        self._models, self._reports, self._waiting = {}, {}, {}

    def observe(self, snapshot: Snapshot, now: float) -> None:
        written: dict[StorageKey, list[StatusKey]] = {}
        for cache in snapshot.caches.values():
            written.setdefault(cache.storage_key, []).append(cache.key)
        for node, view in snapshot.agents.items():
            report = view.report
            if report is None or report is self._reports.get(node):
                continue
            known = self._models.get(node, {})
            self._models[node] = {
                model.key: self._heard(model, known.get(model.key) or _before(snapshot, node, model, written), now)
                for model in report.models
            }
            self._reports[node] = report
        for gone in self._models.keys() - snapshot.agents.keys():
            del self._models[gone], self._reports[gone]
        self._see_caches(snapshot, now)

    def _heard(self, model: ModelReport, before: _Seen, now: float) -> _Seen:
        numbers = _numbers(model)
        for location, old, new in zip(PLACES.values(), before.numbers, numbers, strict=True):
            if new != old:  # a smaller number is that of another fill, which began at 0
                self._metrics.moved(location, new - old if new > old else new)
        ready = model.phase is Phase.READY
        under_way = model.phase in (Phase.DOWNLOADING, Phase.VERIFYING)
        failed = before.failed
        if model.started_at is not None:
            ended = min(now, model.finished_at) if ready and model.finished_at is not None else now
            seconds = max(0.0, ended - model.started_at)
            first = any(numbers) and not any(before.numbers) and not before.ready
            if first and (ready or under_way):
                self._metrics.first_byte("arrived", seconds)
            if ready and not before.ready:
                self._metrics.filled("ready", seconds)
            if not ready and not under_way and model.failure is not None and model.attempt > failed:
                failed = model.attempt
                self._metrics.filled("failed", seconds)
                if not any(numbers):
                    self._metrics.first_byte("failed", seconds)
        return _Seen(numbers, ready, failed)

    def _see_caches(self, snapshot: Snapshot, now: float) -> None:
        for key, cache in snapshot.caches.items():
            standing = _ready_condition(cache.status)
            if cache.deleted_at is None and standing is not None:
                ready, since = standing
                if not ready:
                    self._waiting[key] = since
                elif key in self._waiting:
                    self._metrics.became_ready("ready", max(0.0, since - self._waiting.pop(key)))
        for key in [key for key in self._waiting if key not in snapshot.caches]:
            self._metrics.became_ready("deleted", max(0.0, now - self._waiting.pop(key)))


def _before(
    snapshot: Snapshot, node: NodeName, model: ModelReport, written: Mapping[StorageKey, list[StatusKey]]
) -> _Seen:
    """Of a model that is heard of for the first time: what the LocalModelNode says of it, which was counted then."""
    committed = model.phase is Phase.READY
    old = committed and (model.finished_at or 0.0) < snapshot.acting_since
    local = snapshot.local_nodes.get(node)
    details = (local.status.get("models") if local is not None else None) or ()
    keys = written.get(model.key, ())
    detail = next((each for each in details if each.get("name") in keys), None)
    if detail is not None:
        numbers = tuple(int(detail.get(CAMEL[name]) or 0) for name in PLACES)
        failed = int(detail.get("attempt") or 0) if detail.get("reason") else 0
        return _Seen(numbers, detail.get("phase") == "Ready", failed)
    return _Seen(_numbers(model) if old else (0,) * len(PLACES), old, 0)


def _numbers(model: ModelReport) -> tuple[int, ...]:
    return tuple(getattr(model, name) for name in PLACES)


def _ready_condition(status: Mapping[str, Any]) -> tuple[bool, float] | None:
    """Whether it is True, and since when (epoch seconds), as it was last written."""
    for each in status.get("conditions") or ():
        if each.get("type") == "Ready" and (since := seconds_of(each.get("lastTransitionTime") or "")) is not None:
            return each.get("status") == "True", since
    return None
