"""What one node knows in one fill, and the questions that all its decisions ask of that. Pure.

    chunks      here (`have`), missing, or under way (`transfers`); or taken back (`withdrawn`)
    claims      which of them are ours to read from the source
    peers       what others have, and which of them can be counted on
    source      how much of it we may read, and when
    patience    for how long nothing has come
    uploads     what others get from here

`actors.mesh.mesh` tells it what happens; `reading`, `asking` and `takeover` decide by it what is next.
"""

from __future__ import annotations

import random

from actors.mesh import bitmap
from actors.mesh.actions import AskPeer, Origin, ReadOrigin
from actors.mesh.announcements import Log
from actors.mesh.claims import Claims
from actors.mesh.limits import Pace, Width
from actors.mesh.membership import Membership
from actors.mesh.neighbourhood import Neighbourhood
from actors.mesh.patience import Patience
from actors.mesh.peer import Backoff
from actors.mesh.source import Source
from actors.mesh.transfers import Transfers
from actors.mesh.uploads import Serving
from actors.mesh.withdrawn import Withdrawn
from actors.messages import NodeName

NEVER = float("inf")


class State:
    """See `Mesh` for what it is made from. Times are those of the caller's clock."""

    def __init__(
        self, me: NodeName, membership: Membership, pace: Pace, rng: random.Random, now: float, have: int, begun: int
    ) -> None:
        self.me, self.membership, self.pace, self.rng = me, membership, pace, rng
        self.all = bitmap.full(membership.chunks)
        self.have = have
        """A bitmap of the chunks that have landed."""
        self.missing = self.all & ~have
        """A bitmap of the chunks that are neither here nor under way."""
        self.origins: dict[int, Origin] = {}
        """By chunk, who read it and its digest; goes with every copy. Missing for what was on the disk before."""
        self.unpassed = 0
        """A bitmap of the chunks that were read here and that nobody has taken yet."""
        self.withdrawn = Withdrawn()
        self.transfers = Transfers()
        self.peers = Neighbourhood()
        self.claims = Claims(me, membership, begun)
        self.patience = Patience(pace.takeover_s, now)
        self.source = Source(pace.takeover_s, now)
        self.uploads = Serving(pace)
        self.width = Width(pace.slots, pace.aim_s)
        self.log = Log(rng)
        self.settled_at = now + pace.settle_s
        """Until then neighbours may still say what they have before the source is read."""
        self.pull_after = now
        self.inquiry, self.theft = Backoff(now), Backoff(now)
        self.stealing: NodeName | None = None
        """The peer that was asked for work: it may have given us a chunk that we do not know of yet."""
        self.until = now
        """Nothing is to be begun before, unless something happens."""

    # --- questions ---

    @property
    def wanted(self) -> int:
        """The chunks that are neither here, nor under way, nor shown by a peer that can be counted on."""
        return self.missing & ~self.peers.shown

    @property
    def horizon(self) -> int:
        """No chunk from here on is begun yet."""
        if not self.peers.neighbours:
            return self.membership.chunks
        return (self.peers.shown | self.have).bit_count() + self.pace.window

    @property
    def unknown(self) -> int:
        """The chunks that nobody shows, and somebody may have begun."""
        wanted = self.wanted
        return wanted & bitmap.full(self.horizon) if wanted else 0

    @property
    def may_read(self) -> bool:
        return self.source.allowed > 0 or bool(self.membership.seeds)

    @property
    def is_alone(self) -> bool:
        return len(self.membership.members) == 1

    @property
    def has_slot(self) -> bool:
        """One more peer may be asked."""
        return self.transfers.requests < int(self.width)

    def is_full(self, now: float) -> bool:
        """As much has been read here as may wait for somebody to take it, and there is somebody who may."""
        if self.unpassed.bit_count() + len(self.transfers.reading) < self.pace.unpassed:
            return False
        return any(
            peer.known and peer.waited_for and peer.trusted(now) and peer.have != self.all
            for _, peer in self.peers.neighbours
        )

    # --- changes ---

    def begin(self, action: AskPeer | ReadOrigin, now: float) -> AskPeer | ReadOrigin:
        """The action takes its chunk, and a slot, until `end`."""
        self.missing &= ~(1 << action.chunk)
        stranger = False
        if isinstance(action, AskPeer):
            peer = self.peers.standing(action.peer)
            peer.asked(now, self.patience.fed_at)
            peer.asking += 1
            stranger = not peer.neighbour
        self.transfers.begin(action, now, stranger=stranger)
        return action

    def end(self, chunk: int) -> AskPeer | ReadOrigin:
        """The transfer that was under way for the chunk, which is missing from now on."""
        action = self.transfers.end(chunk)
        self.missing |= 1 << chunk
        if isinstance(action, AskPeer):
            peer = self.peers.standing(action.peer)
            peer.asking = max(0, peer.asking - 1)  # it may be another by now
        return action

    def look(self, now: float) -> None:
        """The chunks shown and read here are worked out anew: a peer is trusted, or has, other than before."""
        self.peers.look(now)
        self.claim()

    def release(self, now: float) -> bool:
        """Whether peers in quarantine that have what is missing here are counted on again."""
        seeds = self.membership.seeds
        found = [
            peer
            for name, peer in self.peers.standings.items()
            if (peer.have & self.missing or (name in seeds and self.missing & ~peer.spoiled)) and peer.release(now)
        ]
        if found:
            self.patience.excuse(now)
            self.look(now)
        return bool(found)

    def claim(self) -> None:
        self.claims.renew(self.wanted)

    def answered(self, name: NodeName, now: float) -> None:
        """The peer lives: what would have been read in its place is its own again."""
        peer = self.peers.standings.get(name)
        if peer is not None and peer.silent:
            peer.alive()
            self.claims.taken_over.clear()
            self.look(now)

    def asks(self, name: NodeName, now: float) -> None:
        """The peer asks us for something. One that is no member yet has no standing."""
        peer = self.peers.standings.get(name)
        if peer is not None:
            peer.asks(now)

    def later(self, when: float) -> None:
        """Nothing now, and not before then."""
        self.until = min(self.until, when)
