"""Requests of peers that wait for their chunk to land."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from actors.mesh.actions import Answer, Release
from actors.messages import NodeName


@dataclass(slots=True, eq=False)
class Waiting:
    """One of them. `answer` is what it is told once `answered` is set."""

    peer: NodeName
    chunk: int
    answer: Answer = Answer.NOT_YET
    answered: threading.Event = field(default_factory=threading.Event)


class Held:
    """The caller holds one lock around every call."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[NodeName, int], list[Waiting]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, peer: NodeName, chunk: int) -> Waiting:
        waiting = Waiting(peer, chunk)
        self._waiting.setdefault((peer, chunk), []).append(waiting)
        return waiting

    def answer(self, release: Release) -> bool:
        """The one that has waited for longest is answered. False: none waits any more."""
        key = release.peer, release.chunk
        if not (several := self._waiting.get(key)):
            return False
        first = several.pop(0)
        if not several:
            del self._waiting[key]
        first.answer = release.answer
        first.answered.set()
        return True

    def give_up(self, waiting: Waiting) -> bool:
        """It waits no longer. False: it has been answered."""
        several = self._waiting.get((waiting.peer, waiting.chunk), [])
        if waiting not in several:
            return False
        several.remove(waiting)
        if not several:
            del self._waiting[waiting.peer, waiting.chunk]
        return True

    def close(self) -> None:
        """Nobody is left waiting."""
        for several in self._waiting.values():
            for each in several:
                each.answered.set()
