"""A fill in company: carries out what the mesh decides, over real sockets.

swarm.mesh ──next──► jobs ──► workers: read a chunk from the origin │ ask a peer for it │ ask an owner for work
    ▲                                      │ landed, failed, redirected, stolen
    └──────────────────────────────────────┘      then: hash the file as far as it reaches
neighbours' news ──heard──► mesh                  one thread each, for as long as something is missing
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from actors.chunks import Chunk
from actors.digest import ChunkHash, chunk_hash
from actors.disk.ingest import COST_S
from actors.errors import SourceChanged, SourceError
from actors.fill.files import Files, Reached
from actors.fill.meter import Traffic
from actors.fill.origin_quota import NotOurTurn
from actors.fill.origin_reader import Fetcher
from actors.fill.peer_reader import Copied, PeerReader
from actors.fill.range_reader import RangeReader, RangesIgnored, Redirects
from actors.fill.workers import Workers, started
from actors.mesh.actions import AskPeer, Elsewhere, Origin, Outcome, ReadOrigin, Steal
from actors.messages import NodeName
from actors.peers.client import Asker
from actors.peers.gossip import Frame, Kind
from actors.peers.swarm import Swarm
from actors.retry import Backoff

HASHERS = 4
"""Workers beyond those that wait for the network: hashing must not keep slots empty."""
STUCK_S = 15.0
"""The origin fails, and no chunk has come from anywhere for so long: the attempt ends with the origin's error."""
RELISTEN_S = (0.05, 3.0)
SHORT_S = 0.5
"""How soon a thread that could not be started is tried again."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Hash:
    """Hash the file at this index as far as it reaches."""

    file: int


_Job = ReadOrigin | AskPeer | Steal | _Hash


class Together:
    """Runs once. `run` belongs to one thread, `cancel` to any."""

    def __init__(
        self,
        files: Files,
        fetcher: Fetcher,
        traffic: Traffic,
        redirects: Redirects,
        check: Callable[[], None],
        swarm: Swarm,
        asker: Asker,
        rng: random.Random,
    ) -> None:
        """`check` is called before every chunk, and ends the fill by raising: the fence."""
        self._files = files
        self._fetcher = fetcher
        self._traffic = traffic
        self._check = check
        self._swarm = swarm
        self._asker = asker
        self._rng = rng
        self._workers = Workers(fetcher, redirects, self._work, self.cancel)
        self._stop = self._workers.stopped
        self._peers = PeerReader(files, fetcher, traffic, swarm, asker, self._stop)
        self._most = swarm.pace.slots + swarm.pace.origin_reads + HASHERS
        self._lock = threading.Lock()
        self._work_left = threading.Condition(self._lock)
        self._jobs: deque[_Job] = deque(map(_Hash, files.begun()))
        self._idle = 0
        self._until = 0.0
        self._listening: dict[NodeName, threading.Thread] = {}
        self._landed_at = time.monotonic()
        self._origin_error: SourceError | None = None

    def run(self) -> None:
        """Returns when every file is sealed, or soon after `cancel`. Raises the first error that cannot be helped.

        RangesIgnored: this origin gives nothing but whole files, so that there is nothing to share out.
        """
        while self._files.unsealed and not self._stop.is_set():
            self._keep_to_share()
            self._begin()
            self._listen_to_neighbours()
            longest_s = 1.0 if self._files.note_cost() else COST_S
            error, now = self._origin_error, time.monotonic()
            if error is not None and now > self._landed_at + STUCK_S:
                self._workers.fail(error)
                break
            self._swarm.changed.wait(min(longest_s, max(0.0, self._until - now)))
            self._swarm.changed.clear()
        self.cancel()
        try:
            self._workers.join()
        finally:
            for thread in self._listening.values():
                thread.join()
            self._swarm.rest()

    def cancel(self) -> None:
        """`run` ends soon; transfers that wait for the network are cut."""
        self._stop.set()
        self._swarm.changed.set()
        with self._lock:
            self._work_left.notify_all()
        self._asker.close()
        self._workers.stop()

    def _keep_to_share(self) -> None:
        """The swarm knows what this node may read, and when nobody may."""
        self._swarm.allow(self._fetcher.want(self._swarm.reads))
        if pause_s := self._fetcher.pause_s:
            self._swarm.pause(pause_s)

    # --- what is next ---

    def _pump(self) -> None:
        """All that can begin now does, and `run` looks again as soon as there may be more."""
        if self._begin():
            self._swarm.changed.set()

    def _begin(self) -> bool:
        """All that can begin now is a job, and has a worker. Whether to look again sooner than was known before."""
        with self._lock:
            if self._stop.is_set():
                return False
            begun, until = self._swarm.begin()
            self._jobs.extend(begun)
            for _ in range(min(len(self._jobs), self._idle)):
                self._work_left.notify()
            missing = max(0, len(self._jobs) - self._idle)
            if self._workers.start(min(self._most, len(self._workers) + missing)) is not None:
                until = min(until, time.monotonic() + SHORT_S)
            sooner, self._until = until < self._until, until
            return sooner

    def _take(self) -> _Job | None:
        with self._lock:
            while not self._stop.is_set():
                if self._jobs:
                    return self._jobs.popleft()
                self._idle += 1
                self._work_left.wait()
                self._idle -= 1
        return None

    # --- one worker ---

    def _work(self, reader: RangeReader, _number: int) -> None:
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

    def _read(self, reader: RangeReader, number: int) -> None:
        """The chunk, or what is missing of it, from the origin."""
        chunk = self._swarm.grid.chunks[number]
        gaps, digest = self._files.gaps(chunk), chunk_hash()
        try:
            for gap in gaps:
                self._fetch(reader, gap, digest, turn_s=self._swarm.pace.takeover_s)
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

    def _fetch(self, reader: RangeReader, chunk: Chunk, digest: ChunkHash, *, turn_s: float | None = None) -> None:
        pause = self._swarm.pause
        self._fetcher.fetch(reader, chunk, self._stop, turn_s=turn_s, each=digest.update, throttled=pause)

    def _failed(self, number: int, outcome: Outcome, retry_at: float = 0.0) -> None:
        self._swarm.failed(number, outcome, retry_at=retry_at)
        self._pump()

    def _let_go(self, number: int) -> None:
        """Others may read the chunk sooner than we, or have done so: as if it had not been begun."""
        self._keep_to_share()
        self._failed(number, Outcome.ORIGIN)

    def _origin_failed(self, number: int, error: SourceError) -> None:
        """Others may have the chunk, or read it: the fill goes on for a while. Not if the source has changed."""
        if isinstance(error, SourceChanged):
            raise error
        retry = self._fetcher.settings.retry
        delay_s = max(retry.max_s * self._rng.uniform(0.5, 1.0), error.retry_after_s or 0.0)
        self._traffic.troubled(error.failure(), delay_s)
        self._origin_error = error
        self._failed(number, Outcome.ORIGIN, time.monotonic() + delay_s)

    def _ask(self, reader: RangeReader, number: int, peer: NodeName) -> None:
        """The chunk from a peer, if it gives it and it is right."""
        came = self._peers.ask(number, peer, reader.buffer)
        if isinstance(came, Copied):
            self._landed(number, came.origin, reader, moved=False)
        elif isinstance(came, Origin):
            self._landed(number, came, reader)
        elif isinstance(came, Elsewhere):
            self._swarm.redirected(number, came.peer)
            self._pump()
        else:
            self._failed(number, came)

    def _landed(self, number: int, origin: Origin, reader: RangeReader, *, moved: bool = True) -> None:
        self._swarm.landed(number, origin, moved=moved)
        self._landed_at, self._origin_error = time.monotonic(), None
        self._pump()
        self._advance(self._swarm.grid.chunks[number].file, reader)

    def _steal(self, owner: NodeName) -> None:
        chunk, reached = self._peers.ask_for_work(owner)
        self._swarm.stolen(owner, chunk, reached=reached)
        self._pump()

    def _advance(self, index: int, reader: RangeReader) -> None:
        """The file is hashed as far as it reaches. One that is complete and wrong is read anew."""
        reached = self._files.advance(index, reader.buffer, self._stop)
        if reached is Reached.WRONG:
            self._read_alone(reader, index)
        elif reached is Reached.SEALED and not self._files.unsealed:
            self._swarm.changed.set()

    def _read_alone(self, reader: RangeReader, index: int) -> None:
        """All of a file from the origin: then it is known who read it wrong.

        Not shared out again: who makes up chunks together with their digests could do so as fast as they are asked for.
        """
        chunks, path = self._swarm.grid.of_file(index), self._files.manifest.files[index].path
        self._swarm.withdraw(chunks)
        for number in chunks:
            chunk, digest = self._swarm.grid.chunks[number], chunk_hash()
            self._fetch(reader, chunk, digest)
            self._swarm.put_back(number, Origin(self._swarm.me, digest.digest()))
        self._advance(index, reader)  # raises if it is wrong again: then it is the origin's fault, and no reader's
        blamed = self._swarm.settle(chunks)
        self._pump()
        for number, name in blamed.items():
            self._traffic.wrong_reader(name)
            _log.warning("a node read wrong bytes", extra={"peer": name, "chunk": number, "file": path})

    # --- news ---

    def _listen_to_neighbours(self) -> None:
        """Every neighbour of ours is listened to."""
        for name in self._swarm.membership.neighbours(self._swarm.me):
            thread = self._listening.get(name)
            if thread is None or not thread.is_alive():
                thread = threading.Thread(target=self._listen, args=(name,), name=f"news-{name}", daemon=True)
                if (error := started(thread)) is None:
                    self._listening[name] = thread
                else:  # it is tried again within a second
                    _log.warning("cannot listen to a neighbour now", extra={"peer": name, "error": str(error)})

    def _listen(self, name: NodeName) -> None:
        """Until it is no neighbour any more, or the fill is over."""
        patience = Backoff(self._rng, first_s=RELISTEN_S[0], max_s=RELISTEN_S[1])
        while not self._stop.is_set() and name in self._swarm.membership.neighbours(self._swarm.me):
            try:
                for frame in self._asker.listen(self._swarm.membership.members[name], len(self._swarm.grid)):
                    patience.reset()
                    self._heard(name, frame)
            except OSError as error:
                _log.debug("a neighbour is silent", extra={"peer": name, "error": str(error)})
            self._stop.wait(patience.next_s())

    def _heard(self, name: NodeName, frame: Frame) -> None:
        if frame.kind is Kind.QUIET:
            self._swarm.told_to_pause(name, frame.value / 1000)
        elif self._swarm.heard(name, frame.value, whole=frame.kind is Kind.WHOLE):
            self._pump()
