"""One node's part in a fill that several nodes do together: what it has, what it tells, what it hands out.

                    ┌── asked, served, asked for work ──── peer port (`actors.peers.server`)
    Mesh ── lock ───┤
                    └── begin, landed, failed, heard, … ── the fill at work (`fill.cooperative`), while there is one

Every event takes the lock, tells the mesh, and answers the peers that waited for it. Nobody else has the mesh or the
lock, and nothing is called while the lock is held: a fill at work that has nothing to do waits for `changed`.

It outlives the attempts to fill: a node that is complete, or waits before it tries again, serves on from what is on its
disk. The folder is held open, so that committing the model, which renames it, disturbs nobody.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from actors.manifest import Manifest
from actors.mesh.actions import Answer, AskPeer, Elsewhere, Origin, Outcome, ReadOrigin, Release, Steal
from actors.mesh.announcements import NOTHING
from actors.mesh.limits import Pace
from actors.mesh.membership import Membership
from actors.mesh.mesh import Mesh
from actors.messages import Company, NodeName, Part
from actors.peers.content import Content
from actors.peers.gossip import SIGN_OF_LIFE_S, Frame, Kind
from actors.peers.held import Held, Waiting
from actors.peers.server import STUCK_S, Sending
from actors.peers.tokens import Tokens

BLOCK_BYTES = 1 << 20


class Swarm:
    """Any thread may call anything."""

    def __init__(
        self,
        me: NodeName,
        company: Company,
        manifest: Manifest,
        folder: Path,
        pace: Pace,
        *,
        have: int,
        rng: random.Random,
        begun: int = 0,
    ) -> None:
        """`folder` holds the files; `have` and `begun` are bitmaps of the chunks there, and in part. Raises OSError."""
        self.me = me
        self._content = Content(manifest, company.chunk_bytes, folder)
        self.grid = self._content.grid
        self.company = company
        self.pace = pace
        self.closed = False
        self.membership = Membership(company.fill, company.members, len(self.grid))
        self._lock = threading.Lock()
        self._mesh = Mesh(me, self.membership, pace, rng=rng, now=time.monotonic(), have=have, begun=begun)
        self._news = threading.Condition(self._lock)
        self.changed = threading.Event()
        """Set when something has happened that may let the fill at work go on, which clears it."""
        self._quiet_until = 0.0
        self._tokens = Tokens(company.token)
        self._held = Held()
        self._sending: list[int] = []

    @property
    def tokens(self) -> tuple[str, ...]:
        """Those that open this fill's port of a peer, the likelier first."""
        return self._tokens.known

    @property
    def part(self) -> Part:
        with self._lock:
            here, company = self.membership.members.get(self.me), self.company
        return Part(company.fill, company.name, company.chunk_bytes, here is not None and here.owns)

    def join(self, company: Company) -> None:
        """From now on these take part. The last token opens the port still: others may be a moment behind."""
        if company == self.company:
            return
        same = company.members == self.company.members
        membership = self.membership if same else Membership(company.fill, company.members, len(self.grid))
        with self._lock:
            self._tokens.renew(company.token)
            self.company, self.membership = company, membership
            if same:
                return
            self._mesh.join(membership, time.monotonic())
            self.changed.set()
            self._news.notify_all()

    def close(self) -> None:
        """Nothing is told or handed out any more."""
        with self._lock:
            self.closed = True
            self._news.notify_all()
            self._held.close()

    # --- the fill at work ---

    def begin(self) -> tuple[list[ReadOrigin | AskPeer | Steal], float]:
        """All that is to be begun now, and when to ask again if nothing happens before: seconds, on a monotonic clock.

        Each ends with `landed`, `failed`, `redirected` or `stolen`.
        """
        with self._lock:
            return self._mesh.begin(time.monotonic())

    def landed(self, chunk: int, origin: Origin, *, moved: bool = True) -> None:
        """The chunk is on the disk and right. Peers that waited for it get it; what we read is told at once.

        Not `moved`: it was on the disk before, and the peer that was asked said that it is this one.
        """
        with self._lock:
            self._release(self._mesh.landed(chunk, origin, time.monotonic(), moved=moved))
            if origin.reader == self.me:
                self._news.notify_all()

    def failed(self, chunk: int, outcome: Outcome, *, retry_at: float = 0.0) -> None:
        """The chunk did not come. `retry_at`: when the origin may be asked again."""
        with self._lock:
            self._failed(chunk, outcome, retry_at)

    def redirected(self, chunk: int, to: NodeName) -> None:
        """A peer names another that has the chunk, or reads it. One that is no member has nothing."""
        with self._lock:
            if to in self.membership.members:
                self._release(self._mesh.redirected(chunk, to, time.monotonic()))
            else:
                self._failed(chunk, Outcome.NOT_YET)

    def stolen(self, owner: NodeName, chunk: int | None, *, reached: bool) -> None:
        with self._lock:
            self._mesh.stolen(owner, chunk, time.monotonic(), reached=reached)

    def arriving(self, chunk: int, share: float) -> bool:
        """So much of a chunk has come, slowly. Whether the rest of it is to be waited for."""
        with self._lock:
            self._mesh.arriving(chunk, share, time.monotonic())
            return not self._mesh.abandons(chunk)

    def heard(self, peer: NodeName, chunks: int, *, whole: bool) -> bool:
        """A peer tells what it has. Whether something may be begun."""
        with self._lock:
            return self._mesh.heard(peer, chunks, time.monotonic(), whole=whole)

    def told_to_pause(self, peer: NodeName, pause_s: float) -> None:
        with self._lock:
            self._mesh.told_to_pause(peer, pause_s, time.monotonic())

    def allow(self, reads: int | None) -> None:
        """So many chunks may be read from the origin at a time; None: any number."""
        with self._lock:
            self._mesh.allow(reads)

    @property
    def reads(self) -> int:
        """How many chunks this node is to read at a time, if it is allowed to."""
        with self._lock:
            return self._mesh.reads

    def pause(self, pause_s: float) -> None:
        """The origin, or the coordinator, asked this node for a pause. Its neighbours are told, unless they know."""
        until = time.monotonic() + pause_s
        with self._lock:
            if until > self._quiet_until + 0.5:
                self._quiet_until = until
                self._mesh.quiet_origin(until)
                self._news.notify_all()

    def rejects(self, chunk: int, origin: Origin) -> bool:
        with self._lock:
            return self._mesh.rejects(chunk, origin)

    def withdraw(self, chunks: range) -> None:
        """Nobody gets these any more, and nobody is getting them: they may be written anew."""
        with self._lock:
            self._mesh.withdraw(chunks)
            deadline = time.monotonic() + STUCK_S
            while any(chunk in chunks for chunk in self._sending) and time.monotonic() < deadline:
                self._news.wait(0.1)

    def put_back(self, chunk: int, origin: Origin) -> None:
        with self._lock:
            self._mesh.put_back(chunk, origin)

    def settle(self, chunks: range) -> dict[int, NodeName]:
        """These are right now. By chunk, the reader whose bytes were not."""
        with self._lock:
            return self._mesh.settle(chunks, time.monotonic())

    def rest(self) -> None:
        """The fill is at work no more: what it had begun brings nothing."""
        with self._lock:
            for chunk in self._mesh.flying:
                self._failed(chunk, Outcome.NOT_YET)

    # --- with the lock held ---

    def _failed(self, chunk: int, outcome: Outcome, retry_at: float = 0.0) -> None:
        self._release(self._mesh.failed(chunk, outcome, time.monotonic(), retry_at=retry_at))

    def _release(self, releases: list[Release]) -> None:
        """Requests that were held are answered."""
        for each in releases:
            if not self._held.answer(each) and each.answer is Answer.DATA:
                self._mesh.served(each.peer, each.chunk, time.monotonic(), ok=False)

    # --- what peers ask: `actors.peers.server.Served` ---

    def admits(self, token: str) -> bool:
        return self._tokens.admit(token) and not self.closed

    def asked(self, peer: NodeName, chunk: int, buffer: bytearray) -> Sending | Answer | Elsewhere:
        if chunk >= len(self.grid):
            return Answer.NOT_YET
        with self._lock:
            answer = self._mesh.asked(peer, chunk, time.monotonic())
            held = self._held.add(peer, chunk) if answer is Answer.HOLD else None
        if held is not None:
            answer = self._hold(held)
        return self._open(peer, chunk, buffer) if answer is Answer.DATA else answer

    def served(self, peer: NodeName, chunk: int, *, ok: bool) -> None:
        self._ended(peer, chunk, ok=ok)

    def named(self, peer: NodeName, chunk: int) -> None:
        self._ended(peer, chunk, ok=True, moved=False)

    def _ended(self, peer: NodeName, chunk: int, *, ok: bool, moved: bool = True) -> None:
        with self._lock:
            if chunk in self._sending:
                self._sending.remove(chunk)
            if self._mesh.served(peer, chunk, time.monotonic(), ok=ok, moved=moved):
                self.changed.set()

    def asked_for_work(self, peer: NodeName) -> int | None:
        with self._lock:
            return self._mesh.asked_for_work(peer, time.monotonic())

    def told(self) -> Iterator[bytes]:
        """Urgent news at once, other news every `Pace.news_s`, and a sign of life when there is none for long."""
        cursor, quiet_until, told_at = NOTHING, 0.0, 0.0
        while True:
            with self._lock:
                while not self.closed and self._quiet_until == quiet_until and not self._mesh.urgent(cursor):
                    now = time.monotonic()
                    behind = self._mesh.news(cursor).cursor != cursor
                    due = told_at + (self.pace.news_s if behind else SIGN_OF_LIFE_S)
                    if now >= due:
                        break
                    self._news.wait(min(due - now, self.pace.news_s))
                if self.closed:
                    return
                news = self._mesh.news(cursor)
                quiet, quiet_until = self._quiet_until != quiet_until, self._quiet_until
            cursor, told_at = news.cursor, time.monotonic()
            yield Frame(Kind.WHOLE if news.whole else Kind.DELTA, news.chunks).encode()
            if quiet and quiet_until > told_at:
                yield Frame(Kind.QUIET, int((quiet_until - told_at) * 1000)).encode()

    def _hold(self, held: Waiting) -> Answer:
        held.answered.wait(self.pace.silence_s)
        with self._lock:
            if self._held.give_up(held):
                return self._mesh.unhold(held.peer, held.chunk)
        return held.answer

    def _open(self, peer: NodeName, chunk: int, buffer: bytearray) -> Sending | Answer:
        """A sending slot is taken: it is given back here if there is nothing to send."""
        place, descriptor = self.grid.chunks[chunk], -1
        try:
            descriptor = self._content.open(chunk)
            with self._lock:
                if not self._mesh.have >> chunk & 1:
                    raise OSError("it was withdrawn")
                self._sending.append(chunk)
                origin = self._mesh.origins.get(chunk)
            if origin is None:  # it was on the disk before: nobody has made a digest of this chunk
                origin = Origin(self.me, self._content.digest(chunk, descriptor, buffer))
                with self._lock:
                    origin = self._mesh.origins.setdefault(chunk, origin)
            return Sending(descriptor, place.start, place.size, origin)
        except OSError:  # not ours to report here
            if descriptor >= 0:
                os.close(descriptor)
            self.served(peer, chunk, ok=False)
            return Answer.NOT_YET
