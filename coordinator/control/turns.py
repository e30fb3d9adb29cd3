"""The order in which sources are resolved: first come, first served, but nobody has all workers.

    offered ──► waits ──► taken, if its author and its place have less than their share ──► done
                              └──► lost: it does not come back; its share stays taken, the worker is replaced

An author is a namespace, or all that is cluster-wide; a place is who is asked: a host, or a store with its credentials.
So 100 caches whose origin hangs hold the share of one origin, and those of one namespace the share of one namespace.
What has failed before waits behind what has not.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Turn(Generic[T]):
    """One job. `since`: when it was taken, by the clock of its `Turns`; None: it waits."""

    job: T
    author: str
    place: Hashable
    rank: tuple[int, int]
    since: float | None = None
    lost: bool = field(default=False)


class Turns(Generic[T]):
    """Any thread. `workers` is how many take turns at most; an author or a place may be given a part of them."""

    def __init__(self, workers: int, clock: Callable[[], float]) -> None:
        self.of_cluster = max(1, workers - max(1, workers // 4))
        self.of_namespace = max(1, workers // 4)
        self.of_place = max(1, workers // 2)
        self._clock = clock
        self._changed = threading.Condition()
        self._numbers = count()
        self._waiting: list[Turn[T]] = []
        self._taken: list[Turn[T]] = []
        self._authors: Counter[str] = Counter()
        self._places: Counter[Hashable] = Counter()
        self._closed = False

    def offer(self, job: T, author: str, place: Hashable, failures: int) -> None:
        """`author`: a namespace, "" for what is cluster-wide."""
        with self._changed:
            self._waiting.append(Turn(job, author, place, (min(failures, 10), next(self._numbers))))
            self._changed.notify()

    def take(self) -> Turn[T] | None:
        """Waits for the next that may be taken; None once closed."""
        with self._changed:
            while True:
                if self._closed:
                    return None
                turn = min(filter(self._may, self._waiting), key=lambda turn: turn.rank, default=None)
                if turn is not None:
                    self._waiting.remove(turn)
                    self._taken.append(turn)
                    self._authors[turn.author] += 1
                    self._places[turn.place] += 1
                    turn.since = self._clock()
                    return turn
                self._changed.wait()

    def done(self, turn: Turn[T]) -> None:
        with self._changed:
            self._taken.remove(turn)
            self._authors -= Counter((turn.author,))  # keeps what is above 0
            self._places -= Counter((turn.place,))
            self._changed.notify_all()

    def overdue(self, limit_s: float, most_lost: int) -> list[Turn[T]]:
        """Those that have taken longer than that, and are lost from now on; at most so many at a time."""
        with self._changed:
            now, lost = self._clock(), sum(turn.lost for turn in self._taken)
            found = [t for t in self._taken if not t.lost and t.since is not None and now - t.since > limit_s]
            for turn in found[: max(0, most_lost - lost)]:
                turn.lost = True
            return [turn for turn in found if turn.lost]

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _may(self, turn: Turn[T]) -> bool:
        of_author = self.of_namespace if turn.author else self.of_cluster
        return self._authors[turn.author] < of_author and self._places[turn.place] < self.of_place
