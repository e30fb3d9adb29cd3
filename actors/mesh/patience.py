"""For how long a node waits for its peers, whatever they claim and answer. Pure.

There is one clock. Only chunks that land set it back: a chunk that this node read itself to now, one from a peer by a
few times a normal read, so that a peer that gives one now and then does not keep us. Mere words, announcements and
memberships, count once for every chunk that came.
"""

from __future__ import annotations

from collections import deque

NOW = float("inf")
"""To be worth so much patience sets the clock to now."""
PATIENCE = 4.0
"""Times a normal read of ours, or `Pace.takeover_s`: for so long nothing may come from peers that can be reached."""
NORMAL_READS = 8
"""The slowest of so many of our last reads is a normal one."""


class Patience:
    """Times are those of the caller's clock."""

    def __init__(self, takeover_s: float, now: float) -> None:
        self._takeover_s = takeover_s
        self.fed_at = now
        """What has landed makes up for all waiting until then."""
        self._excused_at = now  # something else than a chunk has come then
        self._excused_until = now  # it counts up to here
        self._read_s: deque[float] = deque(maxlen=NORMAL_READS)

    @property
    def knows_reads(self) -> bool:
        """This node has read a chunk from the origin, so that it knows how long that takes."""
        return bool(self._read_s)

    @property
    def limit_s(self) -> float:
        """A read of so long, where ours took less, is slow because of its reader and not because of the origin."""
        return max(self._takeover_s, PATIENCE * max(self._read_s, default=self._takeover_s))

    @property
    def worth_s(self) -> float:
        """How much patience a chunk from a peer is worth."""
        return max(self._takeover_s / 10, PATIENCE * max(self._read_s, default=0.0))

    @property
    def idle_since(self) -> float:
        """Since when nothing moves."""
        return max(self.fed_at, min(self._excused_at, self._excused_until))

    def feed(self, seconds: float, now: float) -> None:
        """Something has come that is worth so much patience."""
        self.fed_at = min(now, self.fed_at + seconds)
        self._excused_until = self.fed_at + self.limit_s

    def excuse(self, now: float) -> None:
        """Something was said that lets us hope."""
        self._excused_at = now

    def read(self, seconds: float, now: float, *, for_others: bool) -> None:
        """A chunk came from the origin after so long. One that is read in place of others ends no starving."""
        self._read_s.append(seconds)
        if for_others and now >= self.fed_at + self.limit_s:
            self.fed_at = now - self.limit_s
        else:
            self.feed(NOW, now)
