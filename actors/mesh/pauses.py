"""Pauses that peers say the origin asked for: heeded for a moment, until we have asked the origin ourselves. Pure.

    said ──► heeded, up to what is left of an allowance ──► over ──► we ask the origin: it pauses us, or it answers

Only what the origin or the coordinator tells this node is a fact, and is told to others. A peer's word costs nothing:
all peers together hold us up for no longer than the allowance, which grows again slowly, and with a peer its word goes.
"""

from __future__ import annotations

from actors.messages import NodeName

REFILL_PER_S = 1 / 12
"""How fast the allowance grows: peers that never stop saying so slow us down by a twelfth."""


class Pauses:
    """`most_s` is the whole allowance. Times are those of the caller's clock."""

    def __init__(self, most_s: float, now: float) -> None:
        self._most_s = most_s
        self._left_s, self._as_of = most_s, now
        self._said: dict[NodeName, float] = {}
        self.until = now
        """Nobody may read the origin before, by what peers say."""

    def say(self, peer: NodeName, pause_s: float, now: float) -> None:
        """A peer says that nobody may read for so long from now on."""
        begins = max(now, self.until)
        self._left_s = min(self._most_s, self._left_s + (now - self._as_of) * REFILL_PER_S)
        self._as_of = now
        ends = min(now + pause_s, begins + self._left_s)
        if ends > begins:
            self._left_s -= ends - begins
            self._said[peer] = self.until = ends

    def forget(self, peer: NodeName) -> None:
        """It is gone, or another one now: what it said does not hold."""
        if self._said.pop(peer, None) is not None:
            self.until = max(self._said.values(), default=0.0)
