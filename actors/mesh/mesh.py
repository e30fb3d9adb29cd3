"""One node's part in one cooperative fill: which chunk is next, from whom, and what peers that ask are told.

Only decides. No thread, socket or clock: the caller passes `now` (seconds, any zero) and does what `next` returns. The
node agent drives it with a lock and real sockets, `benchmarks/simulate/` by the thousand in virtual time.

    call `next` until it says Wait or Done; again after every event, and when the wait is over
        ReadOrigin(chunk)                → landed(chunk, …) or failed(chunk, …)
        AskPeer(chunk, peer)             → landed, failed or redirected
        Steal(owner)                     → stolen(owner, chunk or None)

    a peer asks for a chunk              asked → Answer;  DATA → send it → served
    a peer asks for work                 asked_for_work → chunk or None
    a peer tells what it has             heard;           ours to tell: news
    the coordinator names the members    join             (also at the start)

How the chunks spread: each has one owner, that alone reads it from the source, in ascending order, not far ahead of
what is seen anywhere, and not more than a few that nobody has yet taken. Everybody else takes random chunks from
neighbours. A node with nothing left to read takes unbegun chunks from slower owners. A member that is lost is replaced
by the next in order at once; one that is only unreachable from here, when nothing else moves. The source is the members
that held a committed copy at the start (seeds), else the origin.

How long a node waits is its own to say, whatever its peers claim and answer: `patience` and `takeover`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from actors.mesh import answers, asking, outcomes, reading, takeover
from actors.mesh.actions import (
    Action,
    Answer,
    AskPeer,
    Done,
    Elsewhere,
    Origin,
    Outcome,
    ReadOrigin,
    Release,
    Steal,
    Wait,
)
from actors.mesh.announcements import Cursor, News
from actors.mesh.invariants import broken
from actors.mesh.limits import Pace
from actors.mesh.membership import Membership
from actors.mesh.state import NEVER, State
from actors.messages import NodeName


class Mesh:
    """Not thread-safe: the caller holds one lock around every call. No call blocks; most take microseconds."""

    def __init__(
        self,
        me: NodeName,
        membership: Membership,
        pace: Pace,
        *,
        rng: random.Random,
        now: float,
        have: int = 0,
        begun: int = 0,
    ) -> None:
        """`have` is a bitmap of the chunks on the disk. Those in `begun` are there in part, and are read on here."""
        self.me = me
        self.pace = pace
        self.state = State(me, membership, pace, rng, now, have, begun)
        self.join(membership, now)

    @property
    def membership(self) -> Membership:
        return self.state.membership

    @property
    def have(self) -> int:
        """A bitmap of the chunks that have landed."""
        return self.state.have

    @property
    def origins(self) -> dict[int, Origin]:
        """By chunk, who read it and its digest; goes with every copy. Missing for what was on the disk before."""
        return self.state.origins

    @property
    def complete(self) -> bool:
        return self.state.have == self.state.all

    @property
    def reads(self) -> int:
        """How many chunks this node is to read at a time, if it is allowed to. 0: others read for it."""
        return self.state.source.reads if self.me in self.membership.owners else 0

    def check(self) -> None:
        """Raises AssertionError where an invariant does not hold; for tests, between any two calls."""
        if wrong := list(broken(self.state)):
            raise AssertionError(f"{self.me}: not so: {'; '.join(wrong)}")

    # --- what to do, and what became of it ---

    def next(self, now: float) -> Action:
        """What to begin now. Anything but Wait and Done takes a slot until its end is reported."""
        state = self.state
        state.until = NEVER
        if state.missing:
            action: Action | None = reading.read(state, now)
            if action is None and state.has_slot:
                action = asking.pull(state, now) or asking.inquire(state, now)
            action = action or reading.steal(state, now) or takeover.take_over(state, now)
            if action is not None:
                return action
        elif not state.transfers.flying:
            return Done()
        else:
            takeover.give_up(state, now)
        return Wait(state.until)

    def begin(self, now: float) -> tuple[list[ReadOrigin | AskPeer | Steal], float]:
        """All that is to be begun now, and when to call again if nothing happens before."""
        begun: list[ReadOrigin | AskPeer | Steal] = []
        while not isinstance(action := self.next(now), Wait | Done):
            begun.append(action)
        return begun, action.until if isinstance(action, Wait) else NEVER

    @property
    def flying(self) -> frozenset[int]:
        """The chunks that were begun and have not ended."""
        return frozenset(self.state.transfers.flying)

    def landed(self, chunk: int, origin: Origin, now: float, *, moved: bool = True) -> list[Release]:
        """The chunk is on the disk and has the digest it was announced with.

        Not `moved`: the peer that was asked named the digest alone, and bytes that have it were on this disk already.
        """
        return outcomes.landed(self.state, chunk, origin, now, moved=moved)

    def failed(self, chunk: int, outcome: Outcome, now: float, *, retry_at: float = 0.0) -> list[Release]:
        """The read or request brought nothing. CORRUPT: see `Standing.sent_wrong`."""
        return outcomes.failed(self.state, chunk, outcome, now, retry_at)

    def redirected(self, chunk: int, to: NodeName, now: float) -> list[Release]:
        """The owner says who reads the chunk in its place. Nobody else is believed, nor followed on and on."""
        return outcomes.redirected(self.state, chunk, to, now)

    def stolen(self, owner: NodeName, chunk: int | None, now: float, *, reached: bool = True) -> None:
        """The owner's answer to Steal: a chunk that this node reads now, or nothing to give."""
        outcomes.stolen(self.state, owner, chunk, now, reached=reached)

    def abandons(self, chunk: int) -> bool:
        """The request for it is to be broken off: since it began its peer was found to be in default."""
        transfers, standings = self.state.transfers, self.state.peers.standings
        action, began = transfers.flying.get(chunk), transfers.began.get(chunk, 0.0)
        peer = standings.get(action.peer) if isinstance(action, AskPeer) else None
        return peer is not None and peer.in_default and began <= peer.defaulted_at

    def arriving(self, chunk: int, share: float, now: float) -> None:
        """So much of a chunk has come from a peer, slowly: it is worth as much patience as that part of one."""
        if chunk in self.state.transfers.flying:
            self.state.patience.feed(share * self.state.patience.worth_s, now)

    # --- what peers ask and tell ---

    def asked(self, peer: NodeName, chunk: int, now: float) -> Answer | Elsewhere:
        """After DATA call `served`; after HOLD wait for a Release, or call `unhold`."""
        return answers.asked(self.state, peer, chunk, now)

    def served(self, peer: NodeName, chunk: int, now: float, *, ok: bool, moved: bool = True) -> bool:
        """A chunk promised with DATA went out, or did not. True: call `next`.

        Not `moved`: its digest went out, and the peer has bytes that have it.
        """
        return answers.served(self.state, peer, chunk, now, ok=ok, moved=moved)

    def unhold(self, peer: NodeName, chunk: int) -> Answer:
        """The held request was given up or timed out: what to answer. Without effect if it has been released."""
        return answers.unhold(self.state, peer, chunk)

    def asked_for_work(self, peer: NodeName, now: float) -> int | None:
        """A chunk of ours that we have not begun: `peer` reads it from now on. None: nothing to give."""
        return answers.asked_for_work(self.state, peer, now)

    def heard(self, peer: NodeName, chunks: int, now: float, *, whole: bool = False) -> bool:
        """A peer tells what it has: call it for empty news too, as a sign of life. True: call `next`."""
        state, peers = self.state, self.state.peers
        standing = peers.standings.get(peer) or peers.standing(peer)
        if standing.told(now):
            state.claims.taken_over.clear()
            state.look(now)
        standing.known = True
        chunks &= state.all & ~standing.spoiled
        if whole:
            standing.have = chunks
            state.look(now)
        else:
            standing.have |= chunks
            if standing.neighbour and standing.trusted(now) and peers.show(standing, chunks):
                state.patience.excuse(now)
        if state.claims.own and len(state.transfers.reading) < state.source.reads:
            return True
        return bool(chunks & state.missing) and state.has_slot

    def news(self, cursor: Cursor) -> News:
        """What to tell a peer that knows everything up to `cursor`."""
        return self.state.log.news(cursor, self.state.have)

    def urgent(self, cursor: Cursor) -> bool:
        """A chunk that nobody else may have has landed since `cursor`: tell it now, not with the next `Pace.news_s`."""
        return self.state.log.urgent(cursor)

    # --- what the world does ---

    def join(self, membership: Membership, now: float) -> None:
        """From now on these are the members. Chunks of those that left have new owners."""
        state = self.state
        earlier = state.membership if state.peers.standings else membership
        state.membership = membership
        here = membership.members.get(self.me)
        state.uploads.shared = len(membership.members) > 2
        if here is not None and here.seed:
            state.uploads.strangers = self.pace.slots
        state.source.reads = self.pace.reads_per_owner(len(membership.owners))
        for name in state.peers.leave(earlier, membership):
            state.source.forget(name)
        state.peers.meet(self.me, membership)
        state.claims.join(membership)
        for name, old in earlier.members.items():
            if name in membership.members and old.incarnation != membership.members[name].incarnation:
                self._leave_begun(earlier, name)
        state.patience.excuse(now)
        state.look(now)

    def _leave_begun(self, earlier: Membership, name: NodeName) -> None:
        """An owner has started again: what it was reading it reads on, unless it says that it does not."""
        wanted = self.state.wanted
        unread = [chunk for chunk in earlier.owned(name) if wanted >> chunk & 1]
        for chunk in unread[: self.pace.reads_per_owner(len(earlier.owners))]:
            self.state.claims.given.setdefault(chunk, name)

    def allow(self, reads: int | None) -> bool:
        """So many may be read from the origin at a time. None: any number. True: call `next`.

        A node that may read nothing gives all its chunks to those that ask for work; it ends the reads under way.
        """
        return self.state.source.allow(reads) and bool(self.state.claims.own)

    def quiet_origin(self, until: float) -> None:
        """Nobody may read the origin before: it asked for a pause (429, 503), or the governor did."""
        self.state.source.pause(until)

    def told_to_pause(self, peer: NodeName, pause_s: float, now: float) -> None:
        """A peer says that the origin asked for a pause. See `actors.mesh.pauses` for how far that is believed."""
        if peer in self.membership.members:
            self.state.source.told_to_pause(peer, pause_s, now)

    # --- what was here and is wrong ---

    def rejects(self, chunk: int, origin: Origin) -> bool:
        """This copy has been found wrong: do not take it, report STALE."""
        return self.state.withdrawn.rejects(chunk, origin)

    def withdraw(self, chunks: Iterable[int]) -> None:
        """They are wrong again: nobody gets them from here until `put_back`. The caller reads them from the origin."""
        for chunk in chunks:
            self.state.withdrawn.add(chunk, self.origins.pop(chunk, Origin(self.me, b"")))
            self.state.have &= ~(1 << chunk)
        self.state.log.restart()

    def put_back(self, chunk: int, origin: Origin) -> None:
        """A chunk that was withdrawn is on the disk again."""
        self.state.have |= 1 << chunk
        self.origins[chunk] = origin
        self.state.log.add(chunk, fresh=False)

    def settle(self, chunks: Iterable[int], now: float) -> dict[int, NodeName]:
        """The file is right now. By chunk, the reader whose bytes were not: each is quarantined.

        The peer that passed the chunk on says which member read it; a name of no member is nobody's.
        """
        blamed = self.state.withdrawn.settle(chunks, self.origins)
        blamed = {chunk: name for chunk, name in blamed.items() if name in self.membership.members}
        for name in set(blamed.values()) - {self.me}:
            self.state.peers.standing(name).lied(now, self.pace.quarantine_s)
        self.state.look(now)
        return blamed
