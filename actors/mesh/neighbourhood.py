"""The peers of one node: what each has told, and what those that can be counted on show together. Pure.

A peer gets a standing when it is a neighbour, or when it is first asked or told something. The standing goes with its
incarnation; but what it owed, it owes still when it comes back.
"""

from __future__ import annotations

from actors.mesh.membership import Membership
from actors.mesh.peer import Standing
from actors.messages import NodeName


class Neighbourhood:
    """`shown` is a bitmap of what trusted neighbours have; `shown_near` of what those of them in our zone have."""

    def __init__(self) -> None:
        self.standings: dict[NodeName, Standing] = {}
        self.neighbours: list[tuple[NodeName, Standing]] = []
        self.shown = 0
        self.shown_near = 0
        self.gone: dict[NodeName, Standing] = {}
        """Members that have left or started again."""

    def standing(self, name: NodeName) -> Standing:
        """That of the peer, which begins here if it had none."""
        peer = self.standings.get(name)
        if peer is None:
            peer = self.standings[name] = Standing()
            if name in self.gone:
                peer.inherit(self.gone.pop(name))
        return peer

    def is_stranger(self, name: NodeName) -> bool:
        """It is no neighbour."""
        peer = self.standings.get(name)
        return peer is None or not peer.neighbour

    def lost(self, now: float) -> frozenset[NodeName]:
        """Those that cannot be counted on."""
        return frozenset(name for name, peer in self.standings.items() if not peer.trusted(now))

    def spoilers(self, chunk: int) -> frozenset[NodeName]:
        """Those that have given the chunk with wrong bytes."""
        return frozenset(name for name, peer in self.standings.items() if peer.spoils(chunk))

    def look(self, now: float) -> None:
        """The chunks that are shown are worked out anew: whom we trust, or what they have, has changed."""
        self.shown = self.shown_near = 0
        for _, peer in self.neighbours:
            if peer.trusted(now):
                self.shown |= peer.have
                if peer.near:
                    self.shown_near |= peer.have

    def show(self, peer: Standing, chunks: int) -> bool:
        """A trusted neighbour has these, too. Whether one of them was shown by none before."""
        fresh = chunks & ~self.shown
        self.shown |= chunks
        if peer.near:
            self.shown_near |= chunks
        return bool(fresh)

    def leave(self, earlier: Membership, membership: Membership) -> list[NodeName]:
        """Those that are no members any more, or others by now: their standings are gone."""
        gone = []
        for name in list(self.standings):
            member, old = membership.members.get(name), earlier.members.get(name)
            if member is None or (old is not None and old.incarnation != member.incarnation):
                self.gone[name] = self.standings.pop(name)
                gone.append(name)
        return gone

    def meet(self, me: NodeName, membership: Membership) -> None:
        """From now on these are the neighbours. A seed has none: it only hands out."""
        here = membership.members.get(me)
        zone = here.zone if here else None
        beside = membership.neighbours(me) if here is not None and not here.seed else frozenset()
        for name, peer in self.standings.items():
            peer.neighbour = name in beside
        self.neighbours = []
        for name in sorted(beside):
            peer = self.standing(name)
            peer.neighbour = True
            peer.near = zone is None or membership.members[name].zone in (None, zone)
            self.neighbours.append((name, peer))
