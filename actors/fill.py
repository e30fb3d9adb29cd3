"""One attempt to fill one ingest: every chunk fetched once, every file hashed in order while it arrives.

    chunks, in file order ──► workers: fetch → pwrite → journal → hash the file as far as it reaches ──► sealed files
                                 ▲                                                      │
                                 └─────────── wrong digest: the file once more ◄────────┘

A worker that has brought a chunk hashes its file up to the first gap, from the page cache; one worker at a time per
file, so the digest costs no second pass and no thread of its own. A file is fsynced when its digest is right; small
files are, all together, at the end. How many workers there are is for `actors.concurrency` to say; the surplus waits.

`Fill.read` is the seam to where bytes come from: today a location of the origin.
"""

from __future__ import annotations

import math
import os
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from actors import concurrency
from actors.chunks import Chunk, Ranges, plan_chunks
from actors.digest import Digester, algorithm_of
from actors.durable import start_writeback, sync_files
from actors.errors import Failure, IntegrityError, SourceChanged, SourceError, SourceThrottled, StoreError
from actors.manifest import Digest, Manifest, ManifestFile, Resolved
from actors.retry import RateLimit, RateMeter, RetryPolicy
from actors.store import Ingest, disk_errors
from actors.transfer import RangeReader, RangesIgnored, Redirects


@dataclass(frozen=True, slots=True)
class FillSettings:
    """How one model is filled. A chunk is tried `tries` times in a row without a byte of progress.

    `connections` is the most there may be, `chunk_bytes` the largest piece that one request brings.
    """

    connections: int = 32
    chunk_bytes: int = 16 << 20
    stall_timeout_s: float = 30.0
    tries: int = 5
    retry: RetryPolicy = field(default_factory=lambda: RetryPolicy(0.5, 30.0))
    patience_s: float = 60.0
    """An origin that asks for a longer pause ends the attempt."""


SMALLEST_CHUNK_BYTES = 4 << 20
"""Of a model too small to keep all connections busy; below, the round trips between two chunks would show."""
SMALL_FILE_BYTES = 1 << 20
"""Up to this size files are not fsynced one by one."""
_TICK_S = 0.05


@dataclass(frozen=True, slots=True)
class Progress:
    """`done`: bytes on the disk; `hashed`: those of them that were hashed; `trouble`: why nothing comes just now."""

    done: int
    hashed: int
    from_origin: int
    rate_bytes_per_s: float
    verified: Counter[str]
    trouble: Failure | None = None
    retry_at: float | None = None


class Cancelled(Exception):
    """The fill was told to end. What it has stays in the ingest."""


@dataclass(slots=True)
class _File:
    """One file under way. `ranges` is written; `digester` has read up to its position. `file.digest` set: sealed."""

    ranges: Ranges
    descriptor: int = -1
    digester: Digester | None = None
    hashing: bool = False
    refetched: bool = False
    whole: bool = False
    sealed: Digest | None = None


class Fill:
    """Runs once. `run` belongs to one thread; everything else may be called by any."""

    def __init__(
        self,
        ingest: Ingest,
        resolved: Resolved,
        settings: FillSettings,
        *,
        limit: RateLimit | None = None,
        check: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        """`check` is called before every chunk, and ends the fill by raising: the fence."""
        self._ingest = ingest
        self._resolved = resolved
        self._settings = settings
        self._limit = limit or RateLimit(None)
        self._check = check
        self._clock = clock
        self._rng = rng or random.Random()
        self._redirects = Redirects(clock)
        self._lock = threading.Condition()
        self._stop = threading.Event()
        self._readers: list[RangeReader] = []
        self._error: BaseException | None = None
        self._meter = RateMeter()
        self._quiet_until = 0.0
        self._trouble: tuple[Failure, float] | None = None
        self._busy = 0
        self._over = threading.Event()
        self._requests = 0
        self._latency_s = math.inf
        total, files = ingest.manifest.total_bytes, len(ingest.manifest.files)
        most = max(1, min(settings.connections, files + total // (1 << 20)))
        self._concurrency = concurrency.start(most, time.monotonic())
        self._chunk_bytes = _chunk_bytes(settings.chunk_bytes, total, most)
        self._again: deque[Chunk] = deque()
        done = ingest.journal.done
        self._files = [_File(done.get(index) or Ranges()) for index in range(len(ingest.manifest.files))]
        self._done = sum(file.ranges.total for file in self._files)
        self._hashed = 0
        self._from_origin = 0
        self._verified: Counter[str] = Counter()
        self._plan = self._todo()

    @property
    def manifest(self) -> Manifest:
        return self._ingest.manifest

    def run(self) -> Manifest:
        """The manifest with the digest of every file, once all are verified and on the disk.

        Raises Cancelled, or the first LocalModelError that could not be helped; the ingest can be continued after both.
        """
        workers: list[threading.Thread] = []
        while True:
            for number in range(len(workers), self._concurrency.workers):
                workers.append(threading.Thread(target=self._work, args=(number,), name=f"fill-{number}", daemon=True))
                workers[-1].start()
            if self._over.wait(_TICK_S):
                break
            with self._lock:
                before, self._concurrency = self._concurrency, concurrency.observe(self._concurrency, self._sample())
                if self._concurrency.workers > before.workers:
                    self._lock.notify_all()
        for worker in workers:
            worker.join()
        for file in self._files:
            if file.descriptor >= 0:
                os.close(file.descriptor)
                file.descriptor = -1
        if self._error is not None:
            raise self._error
        if self._stop.is_set():
            raise Cancelled
        self._sync_small_files()
        files = (
            replace(file, digest=state.sealed) for file, state in zip(self.manifest.files, self._files, strict=True)
        )
        return replace(self.manifest, files=tuple(files))

    def cancel(self) -> None:
        """`run` ends soon; transfers that wait for the network are cut."""
        self._stop.set()
        self._over.set()
        with self._lock:
            self._lock.notify_all()
            readers = list(self._readers)
        for reader in readers:
            reader.abort()

    def renew(self, resolved: Resolved) -> None:
        """From the next request on read from these locations. The manifest must be the same."""
        self._resolved = resolved

    def progress(self) -> Progress:
        with self._lock:
            trouble, retry_at = self._trouble or (None, None)
            rate = self._meter.rate()
            return Progress(self._done, self._hashed, self._from_origin, rate, self._verified.copy(), trouble, retry_at)

    def read(self, reader: RangeReader, resolved: Resolved, chunk: Chunk) -> Iterator[memoryview]:
        """The bytes of a chunk, in order, from wherever they are. Raises the SourceError family."""
        location = resolved.locations[chunk.file]
        size = self.manifest.files[chunk.file].size
        return reader.blocks(location, resolved.storage_options, size, chunk.start, chunk.stop)

    # --- which chunk is next ---

    def _todo(self) -> Iterator[Chunk]:
        """What is missing, in file order. A file that misses nothing gives an empty chunk: it is still to be hashed."""
        for index, file in enumerate(self.manifest.files):
            chunks = list(plan_chunks([file], self._chunk_bytes, {0: self._files[index].ranges}))
            for chunk in chunks:
                yield Chunk(index, chunk.start, chunk.stop)
            if not chunks:
                yield Chunk(index, file.size, file.size)

    def _next(self, number: int) -> Chunk | None:
        """Takes a chunk; None once there is nothing left, and nothing under way that could come back.

        A worker whose number is not wanted just now waits.
        """
        with self._lock:
            while not self._stop.is_set():
                if number >= self._concurrency.workers and not self._over.is_set():
                    self._lock.wait()
                    continue
                chunk = self._again.popleft() if self._again else next(self._plan, None)
                if chunk is not None:
                    if self._files[chunk.file].whole and chunk.size and not self._is_whole(chunk):
                        continue
                    self._busy += 1
                    return chunk
                if not self._busy:
                    self._over.set()
                    self._lock.notify_all()
                    return None
                self._lock.wait()
        return None

    def _is_whole(self, chunk: Chunk) -> bool:
        return chunk.size == self.manifest.files[chunk.file].size

    # --- one worker ---

    def _work(self, number: int) -> None:
        reader = RangeReader(stall_timeout_s=self._settings.stall_timeout_s, redirects=self._redirects)
        with self._lock:
            self._readers.append(reader)
        try:
            while (chunk := self._next(number)) is not None:
                try:
                    self._check()
                    if chunk.size:
                        self._fetch(reader, chunk)
                    self._advance(chunk.file, reader.buffer)
                finally:
                    with self._lock:
                        self._busy -= 1
                        if not self._busy or self._again:
                            self._lock.notify_all()
        except BaseException as error:  # noqa: BLE001  it is raised again, by `run`
            with self._lock:
                cancelled = self._stop.is_set() or isinstance(error, Cancelled)
                if self._error is None and not cancelled:
                    self._error = error
            self.cancel()
        finally:
            reader.close()

    def _fetch(self, reader: RangeReader, chunk: Chunk) -> None:
        """The chunk is written and journaled; of one that fails, what came of it."""
        position, failures = chunk.start, 0
        descriptor = self._descriptor(chunk.file)
        try:
            while position < chunk.stop:
                self._keep_quiet()
                began, began_at, resolved = position, time.monotonic(), self._resolved
                try:
                    for block in self.read(reader, resolved, Chunk(chunk.file, position, chunk.stop)):
                        with disk_errors(f"writing {self.manifest.files[chunk.file].path}"):
                            _write(descriptor, block, position)
                        if position == began:
                            self._latency_s = min(self._latency_s, time.monotonic() - began_at)
                        self._wrote(chunk.file, position, len(block))
                        position += len(block)
                        pause_s = self._limit.spend(len(block))
                        if self._stop.wait(pause_s) if pause_s else self._stop.is_set():
                            raise Cancelled
                except RangesIgnored:
                    self._fetch_whole(chunk)
                    return
                except SourceError as error:
                    if self._stop.is_set():
                        raise Cancelled from error
                    if self._files[chunk.file].whole:  # nothing but the beginning can be asked for
                        position, failures = chunk.start, failures + 1
                    else:
                        failures = 1 if position > began else failures + 1
                    self._endure(error, failures, renewed=resolved is not self._resolved)
        finally:
            if position > chunk.start:
                if self.manifest.files[chunk.file].size > SMALL_FILE_BYTES:
                    start_writeback(descriptor, chunk.start, position)
                with disk_errors("writing the journal"):
                    self._ingest.journal.record(Chunk(chunk.file, chunk.start, position))

    def _fetch_whole(self, chunk: Chunk) -> None:
        """The server knows no ranges: this file comes in one piece, and once. Other chunks of it are dropped."""
        with self._lock:
            if not self._files[chunk.file].whole:
                self._files[chunk.file].whole = True
                self._again.append(Chunk(chunk.file, 0, self.manifest.files[chunk.file].size))

    def _endure(self, error: SourceError, failures: int, *, renewed: bool) -> None:
        """Returns when the chunk may be tried again; raises `error` when that is not for this attempt to do."""
        if renewed:
            return
        if not error.retryable or isinstance(error, SourceChanged) or failures >= self._settings.tries:
            raise error
        delay_s = self._settings.retry.delay_s(error, failures, self._rng)
        if delay_s > max(self._settings.patience_s, self._settings.retry.max_s):
            raise error
        with self._lock:
            self._trouble = (error.failure(), self._clock() + delay_s)
            if isinstance(error, SourceThrottled):
                self._concurrency = concurrency.throttled(self._concurrency, self._sample(), delay_s)
            if error.retry_after_s is not None:  # all of us are meant, not only this chunk
                self._quiet_until = max(self._quiet_until, time.monotonic() + error.retry_after_s)
        if self._stop.wait(delay_s):
            raise Cancelled

    def _keep_quiet(self) -> None:
        while (left_s := self._quiet_until - time.monotonic()) > 0:
            if self._stop.wait(left_s):
                raise Cancelled

    def _wrote(self, index: int, position: int, count: int) -> None:
        with self._lock:
            self._done += self._files[index].ranges.add(position, position + count)
            self._from_origin += count
            self._requests += not position % self._chunk_bytes
            self._meter.add(count)
            if self._trouble is not None and self._clock() >= self._trouble[1]:
                self._trouble = None

    def _sample(self) -> concurrency.Sample:
        latency_s = self._latency_s if math.isfinite(self._latency_s) else 0.0
        return concurrency.Sample(time.monotonic(), self._from_origin, self._requests, latency_s)

    def _descriptor(self, index: int) -> int:
        file = self._files[index]
        with self._lock:
            if file.descriptor < 0:
                file.descriptor = self._ingest.open_file(index)
            return file.descriptor

    # --- hashing ---

    def _advance(self, index: int, buffer: bytearray) -> None:
        """The file is hashed up to its first gap, unless somebody else is at it; sealed or started over at its end."""
        state, file = self._files[index], self.manifest.files[index]
        with self._lock:
            if state.hashing or state.sealed is not None:
                return
            state.hashing = True
        descriptor = self._descriptor(index)
        digester = state.digester or Digester(algorithm_of(file.digest), file.size)
        state.digester = digester
        while True:
            with self._lock:
                frontier = state.ranges.frontier
                if digester.position == frontier < file.size:
                    state.hashing = False  # under the lock: whoever moves the frontier next takes over
                    return
            if digester.position == file.size:
                break
            self._hash(digester, descriptor, frontier, buffer)
        self._finish(index, file, digester.digest())

    def _hash(self, digester: Digester, descriptor: int, frontier: int, buffer: bytearray) -> None:
        view = memoryview(buffer)
        while digester.position < frontier:
            if self._stop.is_set():
                raise Cancelled
            with disk_errors("reading back what was written"):
                count = os.preadv(descriptor, [view[: frontier - digester.position]], digester.position)
            if not count:
                raise StoreError(f"a file in {self._ingest.data} became shorter while it was filled")
            digester.update(view[:count])
            with self._lock:
                self._hashed += count

    def _finish(self, index: int, file: ManifestFile, digest: Digest) -> None:
        """All of the file is there: it is sealed, or its bytes are wrong and it is fetched once more."""
        state = self._files[index]
        if file.digest is not None and digest != file.digest:
            self._forget(index)
            if state.refetched:
                raise IntegrityError(
                    f"{file.path}: expected {file.digest}, got {digest}, twice: the origin serves what it does not name"
                )
            state.refetched = True
            with self._lock:
                self._again.extend(replace(chunk, file=index) for chunk in self._chunks_of(index))
            return
        if file.size > SMALL_FILE_BYTES:
            with disk_errors(f"syncing {file.path}"):
                os.fsync(state.descriptor)
        with self._lock:
            os.close(state.descriptor)
            state.descriptor, state.digester, state.sealed = -1, None, digest
            self._verified["size" if file.digest is None else algorithm_of(file.digest)] += 1

    def _forget(self, index: int) -> None:
        state = self._files[index]
        with disk_errors("writing the journal"):
            self._ingest.journal.forget(index)
        with self._lock:
            self._done -= state.ranges.total
            self._hashed -= state.ranges.total
            state.ranges, state.digester, state.hashing = Ranges(), None, False

    def _chunks_of(self, index: int) -> Iterator[Chunk]:
        file = self.manifest.files[index]
        if self._files[index].whole:
            return iter([Chunk(index, 0, file.size)])
        return plan_chunks([file], self._chunk_bytes)

    def _sync_small_files(self) -> None:
        small = [file for file in self.manifest.files if file.size <= SMALL_FILE_BYTES]
        with disk_errors(f"syncing {len(small)} small files"):
            sync_files(self._ingest.data, [self._ingest.data / file.path for file in small])


def _chunk_bytes(largest: int, total: int, workers: int) -> int:
    """Small enough that every worker has a few. A power of two less than `largest`: its multiples stay boundaries."""
    while largest >= 2 * SMALLEST_CHUNK_BYTES and not largest % 2 and total < 4 * workers * largest:
        largest //= 2
    return largest


def verified_how(manifest: Manifest) -> dict[str, str]:
    """By path, how a fill of this manifest, as the origin gave it, is checked."""
    return {file.path: "size" if file.digest is None else algorithm_of(file.digest) for file in manifest.files}


def _write(descriptor: int, block: memoryview, position: int) -> None:
    while block:
        count = os.pwrite(descriptor, block, position)
        block, position = block[count:], position + count
