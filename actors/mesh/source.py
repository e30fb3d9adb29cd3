"""How much of the source this node may read: how many chunks at a time, and not before when. Pure."""

from __future__ import annotations

from actors.mesh.pauses import Pauses
from actors.messages import NodeName

ANY_NUMBER = float("inf")


class Source:
    """The origin, and the seeds that stand in for it. Times are those of the caller's clock."""

    def __init__(self, takeover_s: float, now: float) -> None:
        self.reads = 1
        """Chunks to be read at a time, if that is allowed."""
        self.allowed = ANY_NUMBER
        """Chunks that may be read from the origin at a time."""
        self.origin_after = now
        """Nobody may read the origin before: it, or the coordinator, said so to this node."""
        self._pauses = Pauses(takeover_s, now)

    @property
    def paused_until(self) -> float:
        return max(self.origin_after, self._pauses.until)

    def allow(self, reads: int | None) -> bool:
        """So many may be read from the origin at a time; None: any number. Whether that is more than before."""
        more = ANY_NUMBER if reads is None else reads
        raised, self.allowed = more > self.allowed, more
        return raised

    def pause(self, until: float) -> None:
        self.origin_after = max(self.origin_after, until)

    def told_to_pause(self, peer: NodeName, pause_s: float, now: float) -> None:
        self._pauses.say(peer, pause_s, now)

    def forget(self, peer: NodeName) -> None:
        """The peer is gone, and its word with it."""
        self._pauses.forget(peer)
