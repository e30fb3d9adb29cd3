"""A fill in company: carries out what the mesh decides, over real sockets.

    swarm.mesh ──next──► jobs ──► workers: read a chunk from the origin │ ask a peer for it │ ask an owner for work
        ▲                                      │ landed, failed, redirected, stolen
        └──────────────────────────────────────┘      then: hash the file as far as it reaches
    neighbours' news ──heard──► mesh                  one thread each, for as long as something is missing

A chunk from a peer counts once its bytes have the digest that whoever read it from the origin made of them. Bytes that
were there before are never written over, because they may have been hashed already.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from actors.digest import chunk_hash
from actors.errors import Cancelled, SourceChanged, SourceError
from actors.fill.files import Files, Reached
from actors.fill.meter import Traffic
from actors.fill.origin_quota import NotOurTurn
from actors.fill.origin_reader import Fetcher
from actors.fill.range_reader import RangeReader, RangesIgnored, Redirects
from actors.mesh.actions import AskPeer, Done, Origin, Outcome, ReadOrigin, Steal, Wait
from actors.mesh.membership import Member
from actors.messages import NodeName
from actors.peers.client import Asker, Reply
from actors.peers.gossip import Frame, Kind
from actors.peers.swarm import Swarm
from actors.peers.wire import DIGEST, READER, SLOWEST_BYTES_PER_S

HASHERS = 4
"""Workers beyond those that wait for the network: hashing must not keep slots empty."""
STUCK_S = 15.0
"""The origin fails, and no chunk has come from anywhere for so long: the attempt ends with the origin's error."""
ARRIVING_S = 1.0
"""How often the mesh hears of a chunk that comes slowly from a peer."""
RELISTEN_S = (0.05, 3.0)
SHORT_S = 0.5
"""How soon a thread that could not be started is tried again."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Hash:
    """Hash the file at this index as far as it reaches."""

    file: int


_Job = ReadOrigin | AskPeer | Steal | _Hash
_OUTCOMES = {503: Outcome.BUSY, 401: Outcome.BUSY, 403: Outcome.BUSY, 404: Outcome.NOT_YET, 425: Outcome.NOT_YET}
"""By status. A token that is not accepted is one that the peer has not heard of yet."""


class Together:
    """Runs once. `run` belongs to one thread, `cancel` to any. Methods with `_locked` hold the swarm's lock."""

    def __init__(
        self,
        files: Files,
        fetcher: Fetcher,
        traffic: Traffic,
        redirects: Redirects,
        check: Callable[[], None],
        swarm: Swarm,
        rng: random.Random,
    ) -> None:
        """`check` is called before every chunk, and ends the fill by raising: the fence."""
        self._files = files
        self._fetcher = fetcher
        self._traffic = traffic
        self._redirects = redirects
        self._check = check
        self._swarm = swarm
        self._mesh = swarm.mesh
        self._rng = rng
        self._asker = Asker(swarm.me, swarm.company.fill, lambda: swarm.tokens, swarm.pace.silence_s, swarm.tls)
        self._stop = threading.Event()
        self._wake = threading.Condition(swarm.lock)
        self._work = threading.Condition(swarm.lock)
        self._jobs: deque[_Job] = deque(map(_Hash, files.begun()))
        self._idle = 0
        self._most = swarm.pace.slots + swarm.pace.origin_reads + HASHERS
        self._threads: list[threading.Thread] = []
        self._listening: dict[NodeName, threading.Thread] = {}
        self._readers: list[RangeReader] = []
        self._flying: set[int] = set()
        self._until = 0.0
        self._landed_at = time.monotonic()
        self._origin_error: SourceError | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Returns when every file is sealed, or soon after `cancel`. Raises the first error that cannot be helped.

        RangesIgnored: this origin gives nothing but whole files, so that there is nothing to share out.
        """
        self._fetcher.throttled = self._throttled
        with self._swarm.lock:
            self._swarm.poke = self._pump
            while self._files.unsealed and not self._stop.is_set():
                self._keep_to_share_locked()
                now = time.monotonic()
                if now >= self._until:
                    self._pump()
                self._listen_locked()
                if self._origin_error is not None and now > self._landed_at + STUCK_S:
                    self._error = self._origin_error
                    break
                self._wake.wait(min(1.0, max(0.0, self._until - time.monotonic())))
        self.cancel()
        for thread in [*self._threads, *self._listening.values()]:
            thread.join()
        with self._swarm.lock:
            self._swarm.poke = lambda: None
            for number in list(self._flying):
                self._failed_locked(number, Outcome.NOT_YET)
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        """`run` ends soon; transfers that wait for the network are cut."""
        self._stop.set()
        with self._swarm.lock:
            self._wake.notify_all()
            self._work.notify_all()
            readers = list(self._readers)
        self._asker.close()
        for reader in readers:
            reader.abort()

    def _keep_to_share_locked(self) -> None:
        """The mesh knows what this node may read, and when nobody may."""
        more = self._mesh.allow(self._fetcher.want(self._mesh.reads))
        if pause_s := self._fetcher.pause_s:
            self._swarm.quiet(pause_s)
        if more:
            self._until = 0.0

    # --- what is next; with the swarm's lock held ---

    def _pump(self) -> None:
        """All that can begin now does."""
        if self._stop.is_set():
            return
        before = self._until
        while True:
            action = self._mesh.next(time.monotonic())
            if isinstance(action, Wait | Done):
                self._until = action.until if isinstance(action, Wait) else float("inf")
                break
            if not isinstance(action, Steal):
                self._flying.add(action.chunk)
            self._jobs.append(action)
        for _ in range(min(len(self._jobs), self._idle)):
            self._work.notify()
        missing = len(self._jobs) - self._idle
        for number in range(len(self._threads), min(self._most, len(self._threads) + max(0, missing))):
            thread = threading.Thread(target=self._worker, name=f"fill-{number}", daemon=True)
            if not _started(thread):
                self._until = min(self._until, time.monotonic() + SHORT_S)
                break
            self._threads.append(thread)
        if self._until < before:
            self._wake.notify()

    def _take(self) -> _Job | None:
        with self._swarm.lock:
            while not self._stop.is_set():
                if self._jobs:
                    return self._jobs.popleft()
                self._idle += 1
                self._work.wait()
                self._idle -= 1
        return None

    def _failed_locked(self, number: int, outcome: Outcome, retry_at: float = 0.0) -> None:
        self._flying.discard(number)
        self._swarm.release(self._mesh.failed(number, outcome, time.monotonic(), retry_at=retry_at))

    # --- one worker ---

    def _worker(self) -> None:
        reader = self._fetcher.reader(self._redirects)
        with self._swarm.lock:
            self._readers.append(reader)
        try:
            while (job := self._take()) is not None:
                self._check()
                match job:
                    case ReadOrigin(number):
                        self._read(reader, number)
                    case AskPeer(number, peer):
                        self._ask(reader, number, peer)
                    case Steal(owner):
                        self._steal(owner)
                    case _Hash(file):
                        self._advance(file, reader)
        except BaseException as error:  # noqa: BLE001  it is raised again, by `run`
            with self._swarm.lock:
                cancelled = self._stop.is_set() or isinstance(error, Cancelled)
                if self._error is None and not cancelled:
                    self._error = error
            self.cancel()
        finally:
            reader.close()

    def _read(self, reader: RangeReader, number: int) -> None:
        """The chunk, or what is missing of it, from the origin."""
        chunk = self._swarm.grid.chunks[number]
        gaps, digest = self._files.gaps(chunk), chunk_hash()
        try:
            for gap in gaps:
                self._fetcher.fetch(reader, gap, self._stop, turn_s=self._swarm.pace.takeover_s, each=digest.update)
        except RangesIgnored:
            raise
        except NotOurTurn:
            self._let_go(number)
            return
        except SourceError as error:
            self._origin_failed(number, error)
            return
        made = digest.digest() if gaps == [chunk] else self._files.chunk_digest(chunk, reader.buffer)
        self._landed(number, Origin(self._swarm.me, made), reader)

    def _let_go(self, number: int) -> None:
        """Others may read the chunk sooner than we, or have done so: as if it had not been begun."""
        with self._swarm.lock:
            self._keep_to_share_locked()
            self._failed_locked(number, Outcome.ORIGIN)
            self._pump()

    def _origin_failed(self, number: int, error: SourceError) -> None:
        """Others may have the chunk, or read it: the fill goes on for a while. Not if the source has changed."""
        if isinstance(error, SourceChanged):
            raise error
        retry = self._fetcher.settings.retry
        delay_s = max(retry.max_s * self._rng.uniform(0.5, 1.0), error.retry_after_s or 0.0)
        self._traffic.troubled(error.failure(), delay_s)
        with self._swarm.lock:
            self._origin_error = error
            self._failed_locked(number, Outcome.ORIGIN, time.monotonic() + delay_s)
            self._pump()

    def _ask(self, reader: RangeReader, number: int, peer: NodeName) -> None:
        """The chunk from a peer, if it gives it and it is right."""
        outcome = Outcome.UNREACHABLE
        member = self._swarm.membership.members.get(peer)
        try:
            if member is not None:
                patience_s = self._swarm.pace.silence_s + 1.0  # it may hold the request for as long as `silence_s`
                with self._asker.ask(member, "GET", f"chunks/{number}", timeout_s=patience_s) as reply:
                    if reply.status == 307:
                        self._redirected(number, NodeName(reply.head.fields.get(READER.lower(), "")))
                        return
                    got = self._receive(reply, number, member, reader.buffer) if reply.status == 200 else None
                    if isinstance(got, Origin):
                        self._landed(number, got, reader)
                        return
                    outcome = got or _OUTCOMES.get(reply.status, Outcome.UNREACHABLE)
        except OSError as error:
            if self._stop.is_set():
                raise Cancelled from error
        if outcome is Outcome.CORRUPT:
            self._traffic.wrong_peer(peer)
            _log.warning("a peer sent wrong bytes", extra={"peer": peer, "chunk": number})
        with self._swarm.lock:
            self._failed_locked(number, outcome)
            self._pump()

    def _receive(self, reply: Reply, number: int, peer: Member, buffer: bytearray) -> Origin | Outcome:
        """The chunk is written and has the digest it came with; or why it is not good."""
        chunk = self._swarm.grid.chunks[number]
        origin = _origin(reply)
        if origin is None or reply.left != chunk.size:
            return Outcome.CORRUPT
        with self._swarm.lock:
            stale = self._mesh.rejects(number, origin)
        gaps, digest, view = self._files.gaps(chunk), chunk_hash(), memoryview(buffer)
        here = self._swarm.membership.members.get(self._swarm.me)
        far = here is not None and peer.zone != here.zone and None not in (peer.zone, here.zone)
        position, began = chunk.start, time.monotonic()
        told_at, told = began, chunk.start
        while count := reply.read_into(view):
            block = view[:count]
            digest.update(block)
            for gap in gaps:
                start, stop = max(gap.start, position), min(gap.stop, position + count)
                if start < stop and not stale:
                    self._files.write(chunk.file, start, block[start - position : stop - position])
            position += count
            self._traffic.peer(count, far=far)
            self._fetcher.spend(count, self._stop)
            now = time.monotonic()
            if now < told_at + ARRIVING_S:
                continue
            if now > began + self._swarm.pace.takeover_s and position - chunk.start < SLOWEST_BYTES_PER_S * (
                now - began
            ):
                return Outcome.UNREACHABLE
            with self._swarm.lock:
                self._mesh.arriving(number, (position - told) / chunk.size, now)
                if self._mesh.abandons(number):
                    return Outcome.UNREACHABLE
            told_at, told = now, position
        if stale:  # all of it was read, so that its sender is rid of it
            return Outcome.STALE
        if digest.digest() != origin.digest:
            return Outcome.CORRUPT
        for gap in gaps:
            self._files.wrote(gap.file, gap.start, gap.stop)
        self._files.record(chunk)
        if gaps != [chunk]:  # what was there before decides what the peers get from us
            made = self._files.chunk_digest(chunk, buffer)
            return origin if made == origin.digest else Origin(self._swarm.me, made)
        return origin

    def _landed(self, number: int, origin: Origin, reader: RangeReader) -> None:
        with self._swarm.lock:
            self._flying.discard(number)
            self._landed_at, self._origin_error = time.monotonic(), None
            self._swarm.release(self._mesh.landed(number, origin, self._landed_at))
            if origin.reader == self._swarm.me:
                self._swarm.told_anew()
            self._pump()
        self._advance(self._swarm.grid.chunks[number].file, reader)

    def _redirected(self, number: int, reader: NodeName) -> None:
        with self._swarm.lock:
            if reader in self._swarm.membership.members:
                self._flying.discard(number)
                self._swarm.release(self._mesh.redirected(number, reader, time.monotonic()))
            else:
                self._failed_locked(number, Outcome.NOT_YET)
            self._pump()

    def _steal(self, owner: NodeName) -> None:
        chunk, reached = None, False
        member = self._swarm.membership.members.get(owner)
        try:
            if member is not None:
                with self._asker.ask(member, "POST", "work") as reply:
                    text = reply.read(16)
                    chunk = int(text) if reply.status == 200 and text.isdigit() else None
                    reached = True
        except OSError as error:
            if self._stop.is_set():
                raise Cancelled from error
        with self._swarm.lock:
            self._mesh.stolen(owner, chunk, time.monotonic(), reached=reached)
            self._pump()

    def _advance(self, index: int, reader: RangeReader) -> None:
        """The file is hashed as far as it reaches. One that is complete and wrong is read anew."""
        reached = self._files.advance(index, reader.buffer, self._stop)
        if reached is Reached.WRONG:
            self._read_alone(reader, index)
        elif reached is Reached.SEALED and not self._files.unsealed:
            with self._swarm.lock:
                self._wake.notify()

    def _read_alone(self, reader: RangeReader, index: int) -> None:
        """All of a file from the origin: then it is known who read it wrong.

        Not shared out again: who makes up chunks together with their digests could do so as fast as they are asked for.
        """
        chunks, path = self._swarm.grid.of_file(index), self._files.manifest.files[index].path
        self._swarm.withdraw(chunks)
        for number in chunks:
            chunk, digest = self._swarm.grid.chunks[number], chunk_hash()
            self._fetcher.fetch(reader, chunk, self._stop, each=digest.update)
            with self._swarm.lock:
                self._mesh.put_back(number, Origin(self._swarm.me, digest.digest()))
        self._advance(index, reader)  # raises if it is wrong again: then it is the origin's fault, and no reader's
        with self._swarm.lock:
            blamed = self._mesh.settle(chunks, time.monotonic())
            self._pump()
        for number, name in blamed.items():
            self._traffic.wrong_reader(name)
            _log.warning("a node read wrong bytes", extra={"peer": name, "chunk": number, "file": path})

    def _throttled(self, pause_s: float) -> None:
        with self._swarm.lock:
            self._swarm.quiet(pause_s)

    # --- news ---

    def _listen_locked(self) -> None:
        """Every neighbour of ours is listened to."""
        for name in self._swarm.membership.neighbours(self._swarm.me):
            thread = self._listening.get(name)
            if thread is None or not thread.is_alive():
                thread = threading.Thread(target=self._listen, args=(name,), name=f"news-{name}", daemon=True)
                if _started(thread):  # else it is tried again within a second
                    self._listening[name] = thread

    def _listen(self, name: NodeName) -> None:
        """Until it is no neighbour any more, or the fill is over."""
        pause_s = RELISTEN_S[0]
        while not self._stop.is_set() and name in self._swarm.membership.neighbours(self._swarm.me):
            try:
                for frame in self._asker.listen(self._swarm.membership.members[name], len(self._swarm.grid)):
                    pause_s = RELISTEN_S[0]
                    self._heard(name, frame)
            except OSError as error:
                _log.debug("a neighbour is silent", extra={"peer": name, "error": str(error)})
            self._stop.wait(pause_s * self._rng.uniform(0.5, 1.0))
            pause_s = min(RELISTEN_S[1], pause_s * 2)

    def _heard(self, name: NodeName, frame: Frame) -> None:
        with self._swarm.lock:
            if frame.kind is Kind.QUIET:
                self._mesh.told_to_pause(name, frame.value / 1000, time.monotonic())
            elif self._mesh.heard(name, frame.value, time.monotonic(), whole=frame.kind is Kind.WHOLE):
                self._pump()


def _started(thread: threading.Thread) -> bool:
    """Not while the process has no thread left: what runs goes on, and more is tried a little later."""
    try:
        thread.start()
    except (RuntimeError, MemoryError) as error:
        _log.warning("cannot start a thread now", extra={"which": thread.name, "error": str(error)})
        return False
    return True


def _origin(reply: Reply) -> Origin | None:
    """Whose bytes the peer says these are."""
    fields = reply.head.fields
    try:
        return Origin(NodeName(fields[READER.lower()]), bytes.fromhex(fields[DIGEST.lower()]))
    except (KeyError, ValueError):
        return None
