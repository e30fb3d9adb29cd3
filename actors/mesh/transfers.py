"""What a node has begun and not yet ended: reads of the source, and requests to peers. Pure."""

from __future__ import annotations

from actors.mesh.actions import AskPeer, ReadOrigin
from actors.messages import NodeName


class Transfers:
    """At most one for each chunk."""

    def __init__(self) -> None:
        self.flying: dict[int, AskPeer | ReadOrigin] = {}
        self.began: dict[int, float] = {}
        self.reading: set[int] = set()
        """Chunks that are read from the source: from the origin, or from a seed."""
        self.strange: set[int] = set()
        """Chunks that a member was asked for that is no neighbour."""

    def begin(self, action: AskPeer | ReadOrigin, now: float, *, stranger: bool) -> None:
        self.flying[action.chunk] = action
        self.began[action.chunk] = now
        if stranger:
            self.strange.add(action.chunk)

    def end(self, chunk: int) -> AskPeer | ReadOrigin:
        del self.began[chunk]
        self.reading.discard(chunk)
        self.strange.discard(chunk)
        return self.flying.pop(chunk)

    @property
    def requests(self) -> int:
        """How many requests to peers are under way, but for reads from seeds."""
        return len(self.flying) - len(self.reading)

    @property
    def origin_reads(self) -> int:
        """How many chunks are being read from the origin."""
        return sum(isinstance(self.flying[each], ReadOrigin) for each in self.reading)

    def asked(self) -> set[NodeName]:
        """The peers of which an answer is waited for."""
        return {action.peer for action in self.flying.values() if isinstance(action, AskPeer)}
