"""Which chunks this node is to read from the source, and which node reads each of the others. Pure.

Every chunk has an owner, by `Membership`, and the owner reads it, except for

    stolen        an owner of something else let this node read it, or this node had begun it before it started again
    taken over    its reader is lost, or in default, and this node acts for it
    given         its owner let another node read it: by our own word, or by the owner's

`own` is what follows from that: the chunks that are to be read here, wanted, and not begun. A chunk that is wanted no
more stays in it until it comes to the front (`drop`), because that is cheaper than to look for it at every event.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from actors.mesh import bitmap
from actors.mesh.membership import Membership
from actors.messages import NodeName


class Claims:
    """The claims of the node `me`. `begun` is a bitmap of the chunks that it had begun before it started again."""

    def __init__(self, me: NodeName, membership: Membership, begun: int) -> None:
        self._me = me
        self.membership = membership
        self.own: deque[int] = deque()
        """The chunks to be read here next, in ascending order but for those that came back."""
        self.stolen: set[int] = set(bitmap.members(begun))
        self.taken_over: set[int] = set()
        self.given: dict[int, NodeName] = {}
        """By chunk, the node that reads it in its owner's place."""

    def reader(self, chunk: int) -> NodeName:
        """The node that reads the chunk from the source, as far as is known here."""
        return self.given.get(chunk) or self.membership.owner[chunk]

    def mine(self, wanted: int) -> set[int]:
        """Those of the wanted chunks that are to be read here."""
        claimed = self.stolen.union(self.taken_over, self.membership.owned(self._me))
        return {chunk for chunk in claimed if wanted >> chunk & 1 and chunk not in self.given}

    def renew(self, wanted: int) -> None:
        """`own` is worked out anew from these chunks, which are neither here, nor on their way, nor shown."""
        self.own = deque(sorted(self.mine(wanted)))

    def drop(self, wanted: int) -> None:
        """The first of `own`, if there is one, is wanted."""
        while self.own and not wanted >> self.own[0] & 1:
            self.own.popleft()

    def begun(self, chunk: int) -> None:
        """The chunk is being read here now."""
        if self.own and self.own[0] == chunk:
            self.own.popleft()

    def put_back(self, chunk: int) -> None:
        """The chunk, which is not in `own`, is the next to be read here."""
        self.own.appendleft(chunk)

    def landed(self, chunk: int) -> None:
        """Nobody needs to read the chunk for this node any more."""
        self.given.pop(chunk, None)

    def steal(self, chunk: int) -> None:
        """Its reader lets this node read the chunk."""
        self.given.pop(chunk, None)
        self.stolen.add(chunk)
        if chunk in self.own:  # this node was about to act for that reader
            self.own.remove(chunk)
        self.put_back(chunk)

    def give(self, peer: NodeName) -> int:
        """The first of `own`, which `peer` reads from now on."""
        chunk = self.own.popleft()
        self.stolen.discard(chunk)
        self.taken_over.discard(chunk)
        self.given[chunk] = peer
        return chunk

    def redirected(self, chunk: int, to: NodeName) -> None:
        """Its reader says that `to` reads the chunk. If that is this node, the answer to its Steal was lost."""
        if to == self._me:
            self.given.pop(chunk, None)
            self.stolen.add(chunk)
        else:
            self.given[chunk] = to

    def take_over(self, chunks: Iterable[int]) -> None:
        """This node acts for the readers of these chunks, whoever they are."""
        for chunk in chunks:
            self.taken_over.add(chunk)
            self.given.pop(chunk, None)

    def join(self, membership: Membership) -> None:
        """From now on these are the members. Chunks that one who left was given are their owners' again."""
        self.membership = membership
        self.given = {chunk: name for chunk, name in self.given.items() if name in membership.members}
