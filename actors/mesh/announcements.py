"""What a node has told its peers about its chunks, and what it has still to tell. Pure.

The chunks that have landed stand in a log in the order they came; a peer that knows the log up to a cursor is told the
rest. A node that starts again, or takes a chunk back, begins a new log, and tells everybody everything once.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from actors.mesh import bitmap

Cursor = tuple[int, int]
"""Which log, and how much of it. `NOTHING` for a peer that knows nothing."""

NOTHING: Cursor = (0, 0)


@dataclass(frozen=True, slots=True)
class News:
    """`chunks` is a bitmap of what has landed since the last news, or, if `whole`, of everything that is there."""

    cursor: Cursor
    chunks: int
    whole: bool


class Log:
    """The chunks of one node in the order they landed."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.restart()

    def restart(self) -> None:
        """Nothing that was told before holds any more."""
        self._name = self._rng.getrandbits(53) | 1
        self._chunks: list[int] = []
        self._fresh = 0

    def add(self, chunk: int, *, fresh: bool) -> None:
        """A chunk landed; fresh: from the source, so that nobody else may have it."""
        self._chunks.append(chunk)
        if fresh:
            self._fresh = len(self._chunks)

    def news(self, cursor: Cursor, have: int) -> News:
        now = (self._name, len(self._chunks))
        if cursor[0] != self._name:
            return News(now, have, whole=True)
        return News(now, bitmap.bitmap(self._chunks[cursor[1] :]), whole=False)

    def urgent(self, cursor: Cursor) -> bool:
        return cursor[0] != self._name or cursor[1] < self._fresh

    def behind(self, cursor: Cursor) -> bool:
        """There is something to tell."""
        return cursor != (self._name, len(self._chunks))
