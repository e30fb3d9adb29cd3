"""One node's part in a fill that several nodes do together: what it has, what it tells, what it hands out.

                    ┌── asked, served, asked for work ── peer port (`actors.peers.server`)
    Mesh ── lock ───┤
                    └── next, landed, failed, heard ──── the fill at work (`fill.cooperative`), while there is one

It outlives the attempts to fill: a node that is complete, or waits before it tries again, serves on from what is on its
disk. The folder is held open, so that committing the model, which renames it, disturbs nobody.
"""

from __future__ import annotations

import hmac
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

from actors.chunks import Grid
from actors.digest import chunk_hash
from actors.disk.handles import Folder
from actors.manifest import Manifest
from actors.mesh.actions import Answer, Elsewhere, Origin, Release
from actors.mesh.announcements import NOTHING
from actors.mesh.limits import Pace
from actors.mesh.membership import Membership
from actors.mesh.mesh import Mesh
from actors.messages import Company, NodeName, Part
from actors.peers.gossip import SIGN_OF_LIFE_S, Frame, Kind
from actors.peers.server import STUCK_S, Sending
from actors.peers.tls import Tls

BLOCK_BYTES = 1 << 20


class _Held:
    """A request that waits for its chunk to land."""

    def __init__(self) -> None:
        self.answered = threading.Event()
        self.answer = Answer.NOT_YET


class Swarm:
    """Any thread may call anything; `mesh` only while holding `lock`."""

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
        tls: Tls | None = None,
    ) -> None:
        """`folder` holds the files; `have` and `begun` are bitmaps of the chunks there, and in part. Raises OSError."""
        self.me = me
        self.tls = tls
        self.grid = Grid(manifest.files, company.chunk_bytes)
        self.manifest = manifest
        self.company = company
        self.pace = pace
        self.lock = threading.Lock()
        self.closed = False
        self.poke: Callable[[], None] = lambda: None
        """Called with `lock` held when something has happened that may let the fill go on."""
        self.membership = Membership(company.fill, company.members, len(self.grid))
        self.mesh = Mesh(me, self.membership, pace, rng=rng, now=time.monotonic(), have=have, begun=begun)
        self._news = threading.Condition(self.lock)
        self._quiet_until = 0.0
        self._tokens = (company.token, company.token)
        self._held: dict[tuple[NodeName, int], list[_Held]] = {}
        self._sending: list[int] = []
        self._folder = Folder.at(folder)
        weakref.finalize(self, self._folder.close)  # not sooner: whoever sends from it holds on to us

    @property
    def tokens(self) -> tuple[str, ...]:
        """The present one, and the last: for peers that have not heard of the present one yet."""
        return tuple(dict.fromkeys(self._tokens))

    @property
    def part(self) -> Part:
        here = self.membership.members.get(self.me)
        return Part(
            self.company.fill,
            self.company.name,
            self.company.chunk_bytes,
            here is not None and here.owns,
        )

    def join(self, company: Company) -> None:
        """From now on these take part. The last token opens the port still: others may be a moment behind."""
        if company == self.company:
            return
        same = company.members == self.company.members
        membership = self.membership if same else Membership(company.fill, company.members, len(self.grid))
        with self.lock:
            if company.token != self._tokens[0]:
                self._tokens = (company.token, self._tokens[0])
            self.company, self.membership = company, membership
            if same:
                return
            self.mesh.join(membership, time.monotonic())
            self.poke()
            self._news.notify_all()

    def close(self) -> None:
        """Nothing is told or handed out any more."""
        with self.lock:
            self.closed = True
            self._news.notify_all()
            for waiting in self._held.values():
                for each in waiting:
                    each.answered.set()

    # --- what the fill at work reports; with the lock held ---

    def release(self, releases: list[Release]) -> None:
        """Those who waited are answered, and those who are told at once are told."""
        for each in releases:
            waiting = self._held.get((each.peer, each.chunk))
            if waiting:
                held = waiting.pop(0)
                held.answer = each.answer
                held.answered.set()
            elif each.answer is Answer.DATA:
                self.mesh.served(each.peer, each.chunk, time.monotonic(), ok=False)

    def told_anew(self) -> None:
        """Something has landed that nobody else may have."""
        self._news.notify_all()

    def quiet(self, pause_s: float) -> None:
        """The origin, or the coordinator, asked this node for a pause. Its neighbours are told, unless they know."""
        until = time.monotonic() + pause_s
        if until > self._quiet_until + 0.5:
            self._quiet_until = until
            self.mesh.quiet_origin(until)
            self._news.notify_all()

    def withdraw(self, chunks: range) -> None:
        """Nobody gets these any more, and nobody is getting them: they may be written anew."""
        with self.lock:
            self.mesh.withdraw(chunks)
            deadline = time.monotonic() + STUCK_S
            while any(chunk in chunks for chunk in self._sending) and time.monotonic() < deadline:
                self._news.wait(0.1)

    # --- what peers ask: `actors.peers.server.Served` ---

    def admits(self, token: str) -> bool:
        given = token.encode()
        current, previous = (hmac.compare_digest(given, each.encode()) for each in self._tokens)
        return (current or previous) and not self.closed

    def asked(self, peer: NodeName, chunk: int, buffer: bytearray) -> Sending | Answer | Elsewhere:
        if chunk >= len(self.grid):
            return Answer.NOT_YET
        with self.lock:
            answer = self.mesh.asked(peer, chunk, time.monotonic())
            if answer is Answer.HOLD:
                held = _Held()
                self._held.setdefault((peer, chunk), []).append(held)
        if answer is Answer.HOLD:
            answer = self._hold(peer, chunk, held)
        return self._open(peer, chunk, buffer) if answer is Answer.DATA else answer

    def served(self, peer: NodeName, chunk: int, *, ok: bool) -> None:
        with self.lock:
            if chunk in self._sending:
                self._sending.remove(chunk)
            if self.mesh.served(peer, chunk, time.monotonic(), ok=ok):
                self.poke()

    def asked_for_work(self, peer: NodeName) -> int | None:
        with self.lock:
            return self.mesh.asked_for_work(peer, time.monotonic())

    def told(self) -> Iterator[bytes]:
        """Urgent news at once, other news every `Pace.news_s`, and a sign of life when there is none for long."""
        cursor, quiet_until, told_at = NOTHING, 0.0, 0.0
        while True:
            with self.lock:
                while not self.closed and self._quiet_until == quiet_until and not self.mesh.urgent(cursor):
                    now = time.monotonic()
                    behind = self.mesh.news(cursor).cursor != cursor
                    due = told_at + (self.pace.news_s if behind else SIGN_OF_LIFE_S)
                    if now >= due:
                        break
                    self._news.wait(min(due - now, self.pace.news_s))
                if self.closed:
                    return
                news = self.mesh.news(cursor)
                quiet, quiet_until = self._quiet_until != quiet_until, self._quiet_until
            cursor, told_at = news.cursor, time.monotonic()
            yield Frame(Kind.WHOLE if news.whole else Kind.DELTA, news.chunks).encode()
            if quiet and quiet_until > told_at:
                yield Frame(Kind.QUIET, int((quiet_until - told_at) * 1000)).encode()

    def _hold(self, peer: NodeName, chunk: int, held: _Held) -> Answer:
        held.answered.wait(self.pace.silence_s)
        with self.lock:
            waiting = self._held.get((peer, chunk), [])
            if held in waiting:
                waiting.remove(held)
                held.answer = self.mesh.unhold(peer, chunk)
            if not waiting:
                self._held.pop((peer, chunk), None)
        return held.answer

    def _open(self, peer: NodeName, chunk: int, buffer: bytearray) -> Sending | Answer:
        """A sending slot is taken: it is given back here if there is nothing to send."""
        place = self.grid.chunks[chunk]
        file = self.manifest.files[place.file]
        descriptor = -1
        try:
            descriptor = self._folder.open(file.path)
            with self.lock:
                if not self.mesh.have >> chunk & 1:
                    raise OSError("it was withdrawn")
                self._sending.append(chunk)
                origin = self.mesh.origins.get(chunk)
            if origin is None:  # it was on the disk before: nobody has made a digest of this chunk
                origin = Origin(self.me, _digest(descriptor, place.start, place.stop, buffer))
                with self.lock:
                    origin = self.mesh.origins.setdefault(chunk, origin)
            return Sending(descriptor, place.start, place.size, origin)
        except OSError:  # the model was removed, or the disk is failing: not ours to report here
            if descriptor >= 0:
                os.close(descriptor)
            self.served(peer, chunk, ok=False)
            return Answer.NOT_YET


def _digest(descriptor: int, start: int, stop: int, buffer: bytearray) -> bytes:
    if not buffer:
        buffer.extend(bytes(BLOCK_BYTES))
    view, digest = memoryview(buffer), chunk_hash()
    while start < stop:
        count = os.preadv(descriptor, [view[: stop - start]], start)
        if not count:
            raise OSError("the file became shorter")
        digest.update(view[:count])
        start += count
    return digest.digest()
