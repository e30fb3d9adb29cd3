"""When a planned write may be sent: who was written lately, who is refused, and how many writes a second are left.

    first   finalizers, creations, specs     at once
    then    material status                  at once
    last    progress                         once per object per `progress_interval_s`, and from a quarter of the budget

One budget bounds everything, so that a thousand nodes that move at the same moment cost the API server no more than
`writes_per_s`. What does not fit is not queued: the next plan contains it again, or something newer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import nsmallest

from actors.messages import NodeName
from coordinator.plan.fold import Turn
from coordinator.plan.plan import Verb, Write
from coordinator.plan.snapshot import LOCAL_NODES, Ref

PROGRESS_SHARE = 0.25
LAG_S = 10.0
"""How long to wait for the informer to show a write. A patch that changed nothing is never shown."""
MAX_REFUSED_S = 600.0

_Id = tuple[str, str | None, str]


@dataclass(slots=True)
class _Memory:
    """The memory of one object. `version` is the one its last write was made from."""

    version: str = ""
    written_at: float = 0.0
    progress_at: float = 0.0
    refused: int = 0
    not_before: float = 0.0


@dataclass(slots=True)
class Pace:
    """Belongs to the controller's loop alone. An object never has two writes in flight."""

    writes_per_s: float
    progress_interval_s: float
    _tokens: float = field(init=False)
    _progress_tokens: float = field(init=False)
    _filled_at: float | None = None
    _objects: dict[_Id, _Memory] = field(default_factory=dict)
    _in_flight: set[_Id] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._tokens = self.writes_per_s
        self._progress_tokens = self.writes_per_s * PROGRESS_SHARE

    def turn(self, nodes: Iterable[NodeName], now: float) -> Turn:
        """What there is budget for now. Progress: of the LocalModelNodes that have waited longest."""
        self._refill(now)
        waiting = []
        for name in nodes:
            memory = self._objects.get((LOCAL_NODES.plural, None, name))
            since = memory.progress_at if memory else 0.0
            if now >= since + self.progress_interval_s:
                waiting.append((since, name))
        progress = nsmallest(int(self._progress_tokens), waiting)
        return Turn(frozenset(name for _, name in progress), news=int(self._tokens))

    def admit(self, writes: Iterable[Write], now: float) -> list[Write]:
        """Those to send now, in order; they count as started."""
        self._refill(now)
        admitted = []
        for write in sorted(writes, key=self._order):
            memory = self._objects.get(_id(write.ref)) or _Memory()
            if not self._is_due(write, memory, now):
                continue
            if self._tokens < 1:
                break
            if not write.material and self._progress_tokens < 1:
                continue
            self._tokens -= 1
            self._progress_tokens -= not write.material
            self._objects[_id(write.ref)] = memory
            memory.version, memory.written_at = write.ref.version, now
            if write.verb is Verb.PATCH_STATUS or not write.material:
                memory.progress_at = now
            self._in_flight.add(_id(write.ref))
            admitted.append(write)
        return admitted

    def finished(self, ref: Ref) -> None:
        """The write was answered, or lost; the next plan decides again."""
        self._in_flight.discard(_id(ref))
        if memory := self._objects.get(_id(ref)):
            memory.refused = 0

    def refused(self, ref: Ref, now: float) -> float:
        """The API server will not have this write; seconds until it is tried again."""
        self._in_flight.discard(_id(ref))
        memory = self._objects.setdefault(_id(ref), _Memory())
        memory.refused += 1
        memory.version, memory.written_at = "", 0.0
        delay = min(MAX_REFUSED_S, 5.0 * float(1 << min(memory.refused - 1, 16)))
        memory.not_before = now + delay
        return delay

    def forget(self, ref: Ref) -> None:
        """The write never happened (no answer): it may be sent again at once."""
        self._in_flight.discard(_id(ref))
        self._objects.pop(_id(ref), None)

    def keep(self, refs: Iterable[Ref], now: float) -> None:
        """Forgets objects that are gone; not those just created, which are not seen yet, nor those refused lately."""
        alive = {_id(ref) for ref in refs} | self._in_flight
        self._objects = {
            key: memory
            for key, memory in self._objects.items()
            if key in alive or now < max(memory.written_at, memory.not_before) + LAG_S
        }

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    def _is_due(self, write: Write, memory: _Memory, now: float) -> bool:
        if _id(write.ref) in self._in_flight or now < memory.not_before:
            return False
        if memory.written_at and memory.version == write.ref.version and now < memory.written_at + LAG_S:
            return False  # made from the same version as the last one: the informer has not caught up
        return write.material or now >= memory.progress_at + self.progress_interval_s

    def _order(self, write: Write) -> tuple[bool, bool, float]:
        memory = self._objects.get(_id(write.ref))
        return not write.material, write.verb is Verb.PATCH_STATUS, memory.progress_at if memory else 0.0

    def _refill(self, now: float) -> None:
        elapsed = now - self._filled_at if self._filled_at is not None else 0.0
        self._filled_at = now
        self._tokens = min(self.writes_per_s, self._tokens + max(0.0, elapsed) * self.writes_per_s)
        share = self.writes_per_s * PROGRESS_SHARE
        self._progress_tokens = min(share, self._progress_tokens + max(0.0, elapsed) * share)


def _id(ref: Ref) -> _Id:
    return ref.resource.plural, ref.namespace, ref.name
