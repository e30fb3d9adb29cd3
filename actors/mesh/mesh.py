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

How long a node waits is its own to say, whatever its peers claim and answer. There is one clock, and only chunks that
land set it back: a chunk of our own read to now, one from a peer by a few times a normal read, so that a peer that
gives one now and then does not keep us. When the clock has run for as long as our patience, the peers that were asked
meanwhile and have delivered nothing are in default: their claims and their ownership count for nothing until they
deliver. Where even that leaves nothing to do, the node reads what it lacks itself, one chunk at a time.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable

from actors.mesh import bitmap
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
from actors.mesh.announcements import Cursor, Log, News
from actors.mesh.limits import Pace, Width
from actors.mesh.membership import Membership
from actors.mesh.pauses import Pauses
from actors.mesh.peer import BUSY_S, Backoff, Standing
from actors.mesh.uploads import Serving
from actors.messages import NodeName

INFINITE = float("inf")
PATIENCE = 4.0
"""Times a normal read of ours, or `Pace.takeover_s`: for so long nothing may come from peers that can be reached."""
NORMAL_READS = 8
"""The slowest of so many of our last reads is a normal one."""
GIVEN_AT_ONCE = 2
"""Chunks that a peer is given to read at a time, by a node that could read them itself."""


class Mesh:
    """Not thread-safe: the caller holds one lock around every call. No call blocks; most take microseconds."""

    membership: Membership

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
        self.have = have
        """A bitmap of the chunks that have landed."""
        self.origins: dict[int, Origin] = {}
        """By chunk, who read it and its digest; goes with every copy. Missing for what was on the disk before."""
        self._rng = rng
        self._all = bitmap.full(membership.chunks)
        self._missing = self._all & ~have  # and not under way
        self._flying: dict[int, AskPeer | ReadOrigin] = {}
        self._began: dict[int, float] = {}
        self._reading: set[int] = set()  # those of them that are read from the source
        self._strange: set[int] = set()  # those of them that a member that is no neighbour was asked for
        self._peers: dict[NodeName, Standing] = {}
        self._neighbours: list[tuple[NodeName, Standing]] = []
        self._shown = 0  # what trusted neighbours have
        self._shown_near = 0
        self._own: deque[int] = deque()  # what we are to read and nobody shows, in ascending order
        self._stolen: set[int] = set(bitmap.members(begun))
        self._taken_over: set[int] = set()
        self._given: dict[int, NodeName] = {}
        self._unpassed = 0
        self._doubted: dict[int, Origin] = {}
        self._origin_after = now
        self._allowed = INFINITE  # reads of the origin at a time
        self._settled_at = now + pace.settle_s
        self._pull_after = now
        self._inquiry = Backoff(now)
        self._theft = Backoff(now)
        self._stealing: NodeName | None = None  # from whom; he may have given us a chunk that we do not know of yet
        self._fed_at = now  # for so long what has landed makes up for
        self._excused_at = now  # something else than a chunk has come then
        self._excused_until = now  # it counts up to here
        self._read_s: deque[float] = deque(maxlen=NORMAL_READS)
        self._pauses = Pauses(pace.takeover_s, now)
        self._gone: dict[NodeName, Standing] = {}  # members that have left or started again
        self._until = now
        self._serving = Serving(pace)
        self._width = Width(pace.slots, pace.aim_s)
        self._log = Log(rng)
        self.join(membership, now)

    @property
    def complete(self) -> bool:
        return self.have == self._all

    # --- what to do ---

    def next(self, now: float) -> Action:
        """What to begin now. Anything but Wait and Done takes a slot until its end is reported."""
        self._until = INFINITE
        if self._missing:
            action = self._read(now)
            if action is None and len(self._flying) - len(self._reading) < int(self._width):
                action = self._pull(now) or self._inquire(now)
            action = action or self._steal(now) or self._take_over(now)
            if action is not None:
                return action
        elif not self._flying:
            return Done()
        else:
            self._give_up(now)
        return Wait(self._until)

    def landed(self, chunk: int, origin: Origin, now: float) -> list[Release]:
        """The chunk is on the disk and has the digest it was announced with."""
        read, began = chunk in self._reading, self._began[chunk]
        action = self._end(chunk)
        bit = 1 << chunk
        self._missing &= ~bit
        self.have |= bit
        self.origins[chunk] = origin
        self._log.add(chunk, fresh=read)
        self._given.pop(chunk, None)
        if read:
            self._unpassed |= bit
        if isinstance(action, AskPeer):
            self._feed(self._worth_s, now)
            self._alive(action.peer, now)
            if self._standing(action.peer).delivered():
                self._taken_over.clear()
                self._look(now)
            if self._standing(action.peer).have & bit:
                self._width.took(now - began)
        else:
            self._read_s.append(now - began)
            if chunk not in self._taken_over or now < self._fed_at + self._patience_s:
                self._feed(INFINITE, now)
            else:  # what we read for others ends no starving
                self._fed_at = now - self._patience_s
        return self._serving.arrived(chunk, now)

    def failed(self, chunk: int, outcome: Outcome, now: float, *, retry_at: float = 0.0) -> list[Release]:
        """The read or request brought nothing. CORRUPT quarantines the peer that was asked."""
        read, began = chunk in self._reading, self._began[chunk]
        action = self._end(chunk)
        if read:
            self._own.appendleft(chunk)
        if not isinstance(action, AskPeer):
            self._origin_after = max(self._origin_after, retry_at)
            if retry_at > now:
                self._pardon()
                self._look(now)
            return self._serving.lost(chunk)
        peer = self._standing(action.peer)
        if peer.in_default and began > peer.defaulted_at:  # it was tried
            peer.default(now, self.pace.quarantine_s)
        if outcome is Outcome.UNREACHABLE:
            peer.unreachable(now, self._rng)
            self._look(now)
        elif outcome is Outcome.CORRUPT:
            peer.lied(now, self.pace.quarantine_s)
            self._look(now)
        else:
            self._alive(action.peer, now)
            if outcome is Outcome.BUSY:
                peer.busy(now, self._rng)
            elif peer.have >> chunk & 1:  # what we knew of it is not so any more
                peer.have &= ~(1 << chunk)
                self._look(now)
            else:
                self._inquiry.miss(now, self._rng)
            if outcome is Outcome.NOT_YET and peer.known and self._given.get(chunk) == action.peer:
                del self._given[chunk]  # it does not read it
        if not read and not self._shown >> chunk & 1:
            self._claim()  # it may be ours to read by now
        return self._serving.lost(chunk)

    def redirected(self, chunk: int, to: NodeName, now: float) -> list[Release]:
        """The owner says who reads the chunk in its place. Nobody else is believed, nor followed on and on."""
        action = self._end(chunk)
        if isinstance(action, AskPeer):
            self._alive(action.peer, now)
            if self._reader(chunk) == action.peer and to != action.peer:
                if chunk in self._given:
                    self._inquiry.miss(now, self._rng)
                self._given[chunk] = to
                if to == self.me:  # its answer to our Steal was lost
                    del self._given[chunk]
                    self._stolen.add(chunk)
            else:
                self._standing(action.peer).busy(now, self._rng)
                self._inquiry.miss(now, self._rng)
        self._claim()
        return self._serving.lost(chunk)

    def stolen(self, owner: NodeName, chunk: int | None, now: float, *, reached: bool = True) -> None:
        """The owner's answer to Steal: a chunk that this node reads now, or nothing to give."""
        self._stealing = None
        if not reached:
            self._standing(owner).unreachable(now, self._rng)
            self._look(now)
        else:
            self._alive(owner, now)
        if chunk is None or not self._may_take(owner, chunk):
            self._theft.miss(now, self._rng)
            return
        self._theft.hit(now)
        self._given.pop(chunk, None)
        self._stolen.add(chunk)
        self._own.appendleft(chunk)

    def _may_take(self, owner: NodeName, chunk: int) -> bool:
        """We lack what it gives us. It may pass on what others gave it, but not without end: they may be reading it."""
        if not 0 <= chunk < self.membership.chunks or not (self._missing & ~self._shown) >> chunk & 1:
            return False
        if self._reader(chunk) == owner:
            return True
        self._standing(owner).gifts += 1
        return self._standing(owner).gifts <= self.pace.unpassed

    def abandons(self, chunk: int) -> bool:
        """The request for it is to be broken off: since it began its peer was found to be in default. Any thread."""
        action, began = self._flying.get(chunk), self._began.get(chunk, 0.0)
        peer = self._peers.get(action.peer) if isinstance(action, AskPeer) else None
        return peer is not None and peer.in_default and began <= peer.defaulted_at

    def arriving(self, chunk: int, share: float, now: float) -> None:
        """So much of a chunk has come from a peer, slowly: it is worth as much patience as that part of one."""
        if chunk in self._flying:
            self._feed(share * self._worth_s, now)

    def rejects(self, chunk: int, origin: Origin) -> bool:
        """This copy has been found wrong: do not take it, report STALE."""
        return self._doubted.get(chunk) == origin

    # --- what peers ask and tell ---

    def asked(self, peer: NodeName, chunk: int, now: float) -> Answer | Elsewhere:
        """After DATA call `served`; after HOLD wait for a Release, or call `unhold`."""
        self._asks(peer, now)
        here, flying = bool(self.have >> chunk & 1), self._flying.get(chunk)
        coming = flying is not None and flying != AskPeer(chunk, peer)  # or each would wait for the other
        if not here and not coming:
            reader = self._given.get(chunk)
            if reader is not None and reader not in (peer, self.me) and not self._standing(reader).in_default:
                return Elsewhere(reader)
            if chunk in self._stolen or peer == self._stealing:
                return Answer.BUSY  # we shall read it, or may: its owner must not take it back
        return self._serving.asked(peer, chunk, now, here=here, coming=coming, stranger=self._is_stranger(peer))

    def served(self, peer: NodeName, chunk: int, now: float, *, ok: bool) -> bool:
        """A chunk promised with DATA went out, or did not. True: call `next`."""
        self._serving.sent(peer, chunk, now, ok=ok)
        taker = self._peers.get(peer)
        if ok and taker is not None:
            taker.waited_for = True
        if not ok or not self._unpassed >> chunk & 1:
            return False
        self._unpassed &= ~(1 << chunk)
        return bool(self._own)

    def unhold(self, peer: NodeName, chunk: int) -> Answer:
        """The held request was given up or timed out: what to answer. Without effect if it has been released.

        Not NOT_YET while the chunk is on its way, or an owner would take for idle whoever reads it from a slow origin.
        """
        self._serving.unhold(peer, chunk)
        return Answer.BUSY if chunk in self._flying else Answer.NOT_YET

    def asked_for_work(self, peer: NodeName, now: float) -> int | None:
        """A chunk of ours that we have not begun: `peer` reads it from now on. None: nothing to give."""
        self._asks(peer, now)
        self._drop_shown()
        if not self._own or peer not in self.membership.members or self._own[0] >= self._horizon():
            return None
        unread = self._missing & ~self._shown
        if self._allowed and sum(who == peer and unread >> c & 1 for c, who in self._given.items()) >= GIVEN_AT_ONCE:
            return None
        if not self._reading and len(self._own) == 1 and self._may_read:
            return None
        chunk = self._own.popleft()
        self._stolen.discard(chunk)
        self._taken_over.discard(chunk)
        self._given[chunk] = peer
        return chunk

    def heard(self, peer: NodeName, chunks: int, now: float, *, whole: bool = False) -> bool:
        """A peer tells what it has: call it for empty news too, as a sign of life. True: call `next`."""
        standing = self._peers.get(peer) or self._standing(peer)
        if standing.told(now):
            self._taken_over.clear()
            self._look(now)
        standing.known = True
        chunks &= self._all
        if whole:
            standing.have = chunks
            self._look(now)
        else:
            standing.have |= chunks
            if standing.neighbour and standing.trusted(now):
                if chunks & ~self._shown:
                    self._shown |= chunks
                    self._excused_at = now
                if standing.near:
                    self._shown_near |= chunks
        if self._own and len(self._reading) < self._reads:
            return True
        return bool(chunks & self._missing) and len(self._flying) - len(self._reading) < int(self._width)

    def news(self, cursor: Cursor) -> News:
        """What to tell a peer that knows everything up to `cursor`."""
        return self._log.news(cursor, self.have)

    def urgent(self, cursor: Cursor) -> bool:
        """A chunk that nobody else may have has landed since `cursor`: tell it now, not with the next `Pace.news_s`."""
        return self._log.urgent(cursor)

    # --- what the world does ---

    def join(self, membership: Membership, now: float) -> None:
        """From now on these are the members. Chunks of those that left have new owners."""
        earlier = self.membership if self._peers else membership
        before = earlier.members
        self.membership = membership
        here = membership.members.get(self.me)
        self._serving.shared = len(membership.members) > 2
        zone = here.zone if here else None
        self._reads = self.pace.reads_per_owner(len(membership.owners))
        if here is not None and here.seed:
            self._serving.strangers = self.pace.slots
        for name in list(self._peers):
            member, old = membership.members.get(name), before.get(name)
            if member is None or (old is not None and old.incarnation != member.incarnation):
                self._gone[name] = self._peers.pop(name)
                self._pauses.forget(name)
        beside = membership.neighbours(self.me) if here is not None and not here.seed else frozenset()
        for name, peer in self._peers.items():
            peer.neighbour = name in beside
        self._neighbours = []
        for name in sorted(beside):
            peer = self._standing(name)
            peer.neighbour = True
            peer.near = zone is None or membership.members[name].zone in (None, zone)
            self._neighbours.append((name, peer))
        self._given = {chunk: name for chunk, name in self._given.items() if name in membership.members}
        for name, old in before.items():
            if name in membership.members and old.incarnation != membership.members[name].incarnation:
                self._leave_begun(earlier, name)
        self._excused_at = now
        self._look(now)

    def _leave_begun(self, earlier: Membership, name: NodeName) -> None:
        """An owner has started again: what it was reading it reads on, unless it says that it does not."""
        unread = [chunk for chunk in earlier.owned(name) if (self._missing & ~self._shown) >> chunk & 1]
        for chunk in unread[: self.pace.reads_per_owner(len(earlier.owners))]:
            self._given.setdefault(chunk, name)

    @property
    def reads(self) -> int:
        """How many chunks this node is to read at a time, if it is allowed to. 0: others read for it."""
        return self._reads if self.me in self.membership.owners else 0

    def allow(self, reads: int | None) -> bool:
        """So many may be read from the origin at a time. None: any number. True: call `next`.

        Who may read nothing gives all its chunks to those that ask for work; what is being read is read to its end.
        """
        more = INFINITE if reads is None else reads
        raised, self._allowed = more > self._allowed, more
        return raised and bool(self._own)

    def quiet_origin(self, until: float) -> None:
        """Nobody may read the origin before: it asked for a pause (429, 503), or the governor did."""
        self._origin_after = max(self._origin_after, until)

    def told_to_pause(self, peer: NodeName, pause_s: float, now: float) -> None:
        """A peer says that the origin asked for a pause. See `actors.mesh.pauses` for how far that is believed."""
        if peer in self.membership.members:
            self._pauses.say(peer, pause_s, now)

    @property
    def _paused_until(self) -> float:
        return max(self._origin_after, self._pauses.until)

    def withdraw(self, chunks: Iterable[int]) -> None:
        """They are wrong again: nobody gets them from here until `put_back`. The caller reads them from the origin."""
        for chunk in chunks:
            self._doubted[chunk] = self.origins.pop(chunk, Origin(self.me, b""))
            self.have &= ~(1 << chunk)
        self._log.restart()

    def put_back(self, chunk: int, origin: Origin) -> None:
        """A chunk that was withdrawn is on the disk again."""
        self.have |= 1 << chunk
        self.origins[chunk] = origin
        self._log.add(chunk, fresh=False)

    def settle(self, chunks: Iterable[int], now: float) -> dict[int, NodeName]:
        """The file is right now. By chunk, the reader whose bytes were not: each is quarantined.

        Who it was is on the word of whoever passed the chunk on; a name of no member is nobody's.
        """
        blamed: dict[int, NodeName] = {}
        for chunk in chunks:
            doubted, now_right = self._doubted.pop(chunk, None), self.origins.get(chunk)
            if doubted is None or now_right is None or not doubted.digest:  # without a digest nobody vouched for it
                continue
            if doubted.digest != now_right.digest and doubted.reader in self.membership.members:
                blamed[chunk] = doubted.reader
        for name in set(blamed.values()) - {self.me}:
            self._standing(name).lied(now, self.pace.quarantine_s)
        self._look(now)
        return blamed

    # --- reading from the source ---

    def _read(self, now: float) -> Action | None:
        if not self._own or len(self._reading) >= self._reads:
            return None
        if now < self._paused_until:
            return self._later(self._paused_until)
        if now < self._settled_at and not all(peer.known or peer.silent for _, peer in self._neighbours):
            return self._later(self._settled_at)
        if self._is_full(now):
            return None
        self._drop_shown()
        if not self._own or self._own[0] >= self._horizon():
            return None
        return self._read_one(self._own[0], now)

    def _read_one(self, chunk: int, now: float) -> Action | None:
        """From a seed, or, where there is none to be reached, from the origin."""
        action: AskPeer | ReadOrigin = ReadOrigin(chunk)
        seeds = [(name, self._standing(name)) for name in self.membership.seeds if name != self.me]
        trusted = [(name, peer) for name, peer in seeds if peer.trusted(now)]
        ready = [(name, peer) for name, peer in trusted if peer.ready(now)]
        if ready:
            near = [name for name, peer in ready if peer.near] or [name for name, _ in ready]
            action = AskPeer(chunk, self._rng.choice(near))
        elif trusted:
            return self._later(min(peer.not_before for _, peer in trusted))
        elif seeds and now < self._idle_since + self.pace.takeover_s:
            return self._later(self._idle_since + self.pace.takeover_s)
        elif sum(isinstance(self._flying[each], ReadOrigin) for each in self._reading) >= self._allowed:
            return None
        if self._own and self._own[0] == chunk:
            self._own.popleft()
        self._reading.add(chunk)
        return self._begin(action, now)

    @property
    def _may_read(self) -> bool:
        return self._allowed > 0 or bool(self.membership.seeds)

    def _is_full(self, now: float) -> bool:
        """We have read as much as may wait for somebody to take it, and there is somebody who may."""
        if self._unpassed.bit_count() + len(self._reading) < self.pace.unpassed:
            return False
        return any(
            peer.known and peer.waited_for and peer.trusted(now) and peer.have != self._all
            for _, peer in self._neighbours
        )

    def _horizon(self) -> int:
        """No chunk from here on is begun yet."""
        if not self._neighbours:
            return self.membership.chunks
        return (self._shown | self.have).bit_count() + self.pace.window

    def _drop_shown(self) -> None:
        """What a neighbour shows, or is here or on its way, is not ours to read."""
        wanted = self._missing & ~self._shown
        while self._own and not wanted >> self._own[0] & 1:
            self._own.popleft()

    # --- taking from peers ---

    def _pull(self, now: float) -> Action | None:
        """A random chunk that a neighbour has. Sequential order, or the rarest first, is slower."""
        available = self._shown_near & self._missing or self._shown & self._missing
        if not available:
            return self._try_again(now)
        if now < self._pull_after:
            return self._later(self._pull_after)
        most = self.pace.slots - self._serving.shared  # see `Serving`: it would be busy, and not be asked for a while
        for _ in range(3):
            chunk = bitmap.pick(available, self._rng)
            holders = [
                each
                for each in self._neighbours
                if each[1].have >> chunk & 1
                and each[1].not_before <= now
                and each[1].asking < most
                and not each[1].in_default
            ]
            if holders:
                near = [each for each in holders if each[1].near] or holders
                return self._begin(AskPeer(chunk, near[int(self._rng.random() * len(near))][0]), now)
            available &= ~(1 << chunk)
            if not available:
                break
        self._pull_after = now + self._rng.uniform(*BUSY_S)
        return self._later(self._pull_after)

    def _try_again(self, now: float) -> Action | None:
        """A chunk that only a peer in default claims to have: if it delivers, it is counted on again."""
        for name, peer in self._neighbours:
            if not peer.in_default or not peer.have & self._missing:
                continue
            if peer.not_before <= now:
                return self._begin(AskPeer(bitmap.pick(peer.have & self._missing, self._rng), name), now)
            self._later(peer.not_before)
        return None

    def _inquire(self, now: float) -> Action | None:
        """Ask the owner of a chunk that no neighbour shows."""
        if len(self.membership.members) == 1:
            return None
        if now < self._inquiry.after:
            return self._later(self._inquiry.after)
        unknown = self._unknown()
        if unknown and len(self._strange) < self.pace.strangers:
            chunk = bitmap.pick(unknown, self._rng)
            owner = self._reader(chunk)
            if owner != self.me and self._standing(owner).ready(now):
                return self._begin(AskPeer(chunk, owner), now)
        self._inquiry.miss(now, self._rng)
        return self._later(self._inquiry.after)

    def _steal(self, now: float) -> Action | None:
        """We have nothing left to read: ask an owner of what nobody shows for a chunk it has not begun."""
        if self._own or self._reading or self._stealing or not self._may_read or self._is_full(now):
            return None
        if now < max(self._theft.after, self._paused_until):
            return self._later(max(self._theft.after, self._paused_until))
        unknown = self._unknown()
        if unknown:
            owner = self._reader(bitmap.pick(unknown, self._rng))
            if owner != self.me and self._standing(owner).trusted(now):
                self._stealing = owner
                return Steal(owner)
        self._theft.miss(now, self._rng)
        return self._later(self._theft.after)

    @property
    def _patience_s(self) -> float:
        """A read of so long, where ours took less, is slow because of its reader and not because of the origin."""
        return max(self.pace.takeover_s, PATIENCE * max(self._read_s, default=self.pace.takeover_s))

    @property
    def _worth_s(self) -> float:
        """How much patience a chunk from a peer is worth."""
        return max(self.pace.takeover_s / 10, PATIENCE * max(self._read_s, default=0.0))

    @property
    def _idle_since(self) -> float:
        """Since when nothing moves. What is only said, news or memberships, counts once for every chunk that came."""
        return max(self._fed_at, min(self._excused_at, self._excused_until))

    def _feed(self, seconds: float, now: float) -> None:
        """Something has come that is worth so much patience."""
        self._fed_at = min(now, self._fed_at + seconds)
        self._excused_until = self._fed_at + self._patience_s

    def _take_over(self, now: float) -> Action | None:
        """Nothing moves: act for those that cannot be reached, and at last for those that can but do not deliver."""
        if self._reading_origin or not self._may_read or len(self.membership.members) == 1:
            return None
        if now < self._origin_after:
            self._feed(INFINITE, now)
        if now < self._paused_until:
            return self._later(self._paused_until)
        full = self._is_full(now)  # nobody reaches us, maybe
        if now < (due := self._idle_since + self.pace.takeover_s * (2 if full else 1)):
            return self._later(due)
        for _, peer in self._neighbours if full else ():
            peer.waited_for = False
        self._give_up(now)
        lost = frozenset(name for name, peer in self._peers.items() if not peer.trusted(now))
        unknown = self._missing & ~self._shown
        chunks = self._acted_for(unknown, lost, now) if unknown else self._claimed_only(lost, now)
        if not chunks:
            return None
        self._taken_over.update(chunks)
        for chunk in chunks:
            self._given.pop(chunk, None)
        self._claim()
        return self._read_one(chunks[0], now)

    def _acted_for(self, unknown: int, lost: frozenset[NodeName], now: float) -> list[int]:
        """What nobody shows: all that is ours without those that are lost, else one chunk, after those before us."""
        mine = [chunk for chunk in self.membership.without(lost).owned(self.me) if unknown >> chunk & 1]
        mine = [chunk for chunk in mine if self._given.get(chunk, self.me) in lost | {self.me}]
        if mine:
            return mine
        chunk = bitmap.pick(unknown, self._rng)
        order = self.membership.order(chunk)
        able = [name for name in order if name not in lost]
        rank = able.index(self.me) if self.me in able else len(able)
        rank += self._given.get(chunk) in able  # it comes before all of them
        begun_s = 0.0 if order[0] in able else self.pace.takeover_s  # who acts for the owner begins only then
        if now - self._idle_since < begun_s + rank * self._patience_s:
            self._later(now + self.pace.silence_s)
            return []
        return [chunk]

    def _claimed_only(self, lost: frozenset[NodeName], now: float) -> list[int]:
        """Everything is said to be somewhere, and nothing comes: one chunk. At first, to know what a normal read is."""
        if self._read_s and now < (due := self._idle_since + self._patience_s):
            self._later(due)
            return []
        mine = [chunk for chunk in self.membership.without(lost).owned(self.me) if self._missing >> chunk & 1]
        if mine:
            return mine[:1]
        if now < (due := self._idle_since + 2 * self._patience_s):  # those whose it is come first
            self._later(due)
            return []
        return [bitmap.pick(self._missing, self._rng)] if self._missing else []

    def _give_up(self, now: float) -> None:
        """We have waited for long enough: whoever was asked meanwhile, and delivered nothing, is in default."""
        if not self._may_read or self._reading_origin or now < self._paused_until:
            return
        patience_s = self._patience_s
        if now < (due := self._idle_since + patience_s):
            self._later(due)
            return
        asked = {action.peer for action in self._flying.values() if isinstance(action, AskPeer)}
        owing = [
            (name, peer, peer.owes_since)
            for name, peer in self._peers.items()
            if peer.owes_since is not None
            and not peer.in_default
            and (name in asked or peer.asked_at >= now - patience_s)
        ]
        lacking = self._all & ~self.have
        claiming = [each for each in owing if each[1].have & lacking or each[0] in self.membership.seeds]
        found = False
        if not claiming and now < (due := self._idle_since + 2 * patience_s):
            self._later(due)  # an owner may wait for the same as we, and acts for whoever that is by now
            return
        for _, peer, since in claiming or owing:
            if now >= since + patience_s / 2:
                peer.default(now, self.pace.quarantine_s)
                found = True
            else:
                self._later(since + patience_s / 2)
        if found:
            for _, peer, _ in owing:
                peer.owes_since = None
            self._look(now)
            lost = frozenset(name for name, peer in self._peers.items() if not peer.trusted(now))
            unknown = self._missing & ~self._shown
            self._taken_over.update(c for c in self.membership.without(lost).owned(self.me) if unknown >> c & 1)
            self._claim()

    def _pardon(self) -> None:
        """The origin fails us, too: whoever owes us chunks may not be to blame, and what it was to read is its own."""
        for peer in self._peers.values():
            peer.pardon()
        self._taken_over.clear()

    @property
    def _reading_origin(self) -> bool:
        return any(isinstance(self._flying[each], ReadOrigin) for each in self._reading)

    # --- state ---

    def _begin(self, action: AskPeer | ReadOrigin, now: float) -> AskPeer | ReadOrigin:
        self._flying[action.chunk] = action
        self._began[action.chunk] = now
        self._missing &= ~(1 << action.chunk)
        if isinstance(action, AskPeer):
            peer = self._standing(action.peer)
            peer.asked(now, self._fed_at)
            peer.asking += 1
            if self._is_stranger(action.peer):
                self._strange.add(action.chunk)
        return action

    def _end(self, chunk: int) -> AskPeer | ReadOrigin:
        action = self._flying.pop(chunk)
        del self._began[chunk]
        self._missing |= 1 << chunk
        self._reading.discard(chunk)
        self._strange.discard(chunk)
        if isinstance(action, AskPeer):
            peer = self._standing(action.peer)
            peer.asking = max(0, peer.asking - 1)  # it may be another by now
        return action

    def _standing(self, name: NodeName) -> Standing:
        peer = self._peers.get(name)
        if peer is None:
            peer = self._peers[name] = Standing()
            if name in self._gone:
                peer.inherit(self._gone.pop(name))
        return peer

    def _is_stranger(self, name: NodeName) -> bool:
        peer = self._peers.get(name)
        return peer is None or not peer.neighbour

    def _asks(self, name: NodeName, now: float) -> None:
        peer = self._peers.get(name)
        if peer is not None:  # who is not a member yet has no standing
            peer.asks(now)

    def _alive(self, name: NodeName, now: float) -> None:
        """What we would have read in its place is its own again."""
        peer = self._peers.get(name)
        if peer is not None and peer.silent:
            peer.alive()
            self._taken_over.clear()
            self._look(now)

    def _look(self, now: float) -> None:
        """Whom we trust, or what they have, has changed: what they show, and what we read, is worked out anew."""
        self._shown = self._shown_near = 0
        for _, peer in self._neighbours:
            if peer.trusted(now):
                self._shown |= peer.have
                if peer.near:
                    self._shown_near |= peer.have
        self._claim()

    def _claim(self) -> None:
        wanted = self._missing & ~self._shown
        mine = self._stolen.union(self._taken_over, self.membership.owned(self.me))
        self._own = deque(sorted(chunk for chunk in mine if wanted >> chunk & 1 and chunk not in self._given))

    def _reader(self, chunk: int) -> NodeName:
        """Who reads the chunk from the source, as far as we know."""
        return self._given.get(chunk) or self.membership.owner[chunk]

    def _unknown(self) -> int:
        """What nobody shows, and somebody may have begun."""
        unknown = self._missing & ~self._shown
        return unknown & bitmap.full(self._horizon()) if unknown else 0

    def _later(self, when: float) -> Action | None:
        """Nothing now, and not before then."""
        self._until = min(self._until, when)
        return None
