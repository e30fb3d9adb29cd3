"""A fill by one node alone: every chunk from the origin, in file order, over as many connections as are worth having.

    chunks, in file order ──► workers: fetch → hash the file as far as it reaches
                                 ▲                        │
                                 └── wrong digest: the file once more

How many workers there are is for `actors.fill.concurrency` to say; the surplus waits. A file is hashed in order, by one
thread: where the network is faster, the others go on with the next file, and wait rather than fetch what would only
be hashed when the page cache has lost it again.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

from actors.chunks import Chunk, plan_chunks
from actors.errors import StoreError
from actors.fill import concurrency
from actors.fill.files import Files, Reached
from actors.fill.meter import Traffic
from actors.fill.origin_reader import Fetcher
from actors.fill.range_reader import RangeReader, RangesIgnored, Redirects
from actors.fill.workers import Workers

SMALLEST_CHUNK_BYTES = 4 << 20
"""Of a model too small to keep all connections busy; below, the round trips between two chunks would show."""
UNHASHED_BYTES = 32 << 20
"""Of a file of which so much waits to be hashed, no more is fetched. Still in the processor's cache, mostly."""
OPEN_FILES = 8
"""Fetched at the same time, where hashing is what takes long."""
_TICK_S = 0.05


class Alone:
    """Runs once. `run` belongs to one thread, `cancel` to any."""

    def __init__(
        self, files: Files, fetcher: Fetcher, traffic: Traffic, redirects: Redirects, check: Callable[[], None]
    ) -> None:
        """`check` is called before every chunk, and ends the fill by raising: the fence."""
        self._files = files
        self._fetcher = fetcher
        self._traffic = traffic
        self._check = check
        self._workers = Workers(fetcher, redirects, self._work, self.cancel)
        self._lock = threading.Condition()
        self._stop = self._workers.stopped
        self._over = threading.Event()
        self._busy = 0
        settings, manifest = fetcher.settings, files.manifest
        most = max(1, min(settings.connections, len(manifest.files) + manifest.total_bytes // (1 << 20)))
        self._most = most
        sample = traffic.sample()
        self._concurrency = replace(concurrency.start(most, sample.at), since=sample)
        self._chunk_bytes = _chunk_bytes(settings.chunk_bytes, manifest.total_bytes, most)
        self._whole: set[int] = set()
        self._again: deque[Chunk] = deque()
        self._plans = self._todo()
        self._open: list[tuple[int, Iterator[Chunk]]] = []
        self._held_back = False
        """A worker waits for a file to be hashed further."""

    def run(self) -> None:
        """Returns when every file is sealed, or soon after `cancel`. Raises the first error that cannot be helped."""
        self._keep_to_share()
        while True:
            error = self._workers.start(self._concurrency.workers)
            if error is not None and not len(self._workers):
                raise StoreError(f"there is no thread to fill with: {error}", reason="OutOfThreads") from error
            if self._over.wait(_TICK_S):
                break
            self._files.note_cost()
            with self._lock:
                before = self._concurrency
                self._keep_to_share()
                self._concurrency = concurrency.observe(self._concurrency, self._traffic.sample())
                if self._concurrency.workers > before.workers:
                    self._lock.notify_all()
        self._workers.join()

    def cancel(self) -> None:
        """`run` ends soon; transfers that wait for the network are cut."""
        self._stop.set()
        self._over.set()
        with self._lock:
            self._lock.notify_all()
        self._workers.stop()

    @property
    def connections(self) -> int:
        """How many are at work."""
        return self._concurrency.workers

    def _keep_to_share(self) -> None:
        """No more are at work than the node may have at the origin, which changes; one is, if only to wait."""
        allowed = self._fetcher.want(self._most)
        most = self._most if allowed is None else max(1, min(self._most, allowed))
        self._concurrency = concurrency.bounded(self._concurrency, most, self._traffic.sample())

    # --- which chunk is next ---

    def _todo(self) -> Iterator[tuple[int, Iterator[Chunk]]]:
        """The chunks missing of each file: one that is all there gives an empty chunk, to be hashed."""
        for index, file in enumerate(self._files.manifest.files):
            chunks = list(plan_chunks([file], self._chunk_bytes, {0: self._files.ranges(index)}))
            whole = [Chunk(index, chunk.start, chunk.stop) for chunk in chunks]
            yield index, iter(whole or [Chunk(index, file.size, file.size)])

    def _planned(self) -> Chunk | None:
        """The next chunk in file order, but of no file that is too far ahead of its hash. None: there is none now."""
        self._held_back = False
        for index, chunks in list(self._open):
            if self._files.unhashed(index) > UNHASHED_BYTES:
                self._held_back = True
            elif (chunk := next(chunks, None)) is not None:
                return chunk
            else:
                self._open.remove((index, chunks))
        following = next(self._plans, None) if len(self._open) < OPEN_FILES else None
        if following is None:
            return None
        self._open.append(following)
        return next(following[1])  # however much of it is there from before: whoever comes with it begins to hash

    def _hashed(self, index: int) -> None:
        """A block of the file was hashed: those who waited for that look again, once there is something to do."""
        if self._held_back and self._files.unhashed(index) <= UNHASHED_BYTES // 2:
            with self._lock:
                self._held_back = False
                self._lock.notify_all()

    def _next(self, number: int) -> Chunk | None:
        """Takes a chunk; None once there is nothing left, and nothing under way that could come back.

        A worker whose number is not wanted just now waits.
        """
        with self._lock:
            while not self._stop.is_set():
                if number >= self._concurrency.workers and not self._over.is_set():
                    self._lock.wait()
                    continue
                chunk = self._again.popleft() if self._again else self._planned()
                if chunk is not None:
                    if chunk.file in self._whole and chunk.size and not self._is_whole(chunk):
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
        return chunk.size == self._files.manifest.files[chunk.file].size

    # --- one worker ---

    def _work(self, reader: RangeReader, number: int) -> None:
        while (chunk := self._next(number)) is not None:
            try:
                self._check()
                if chunk.size:
                    self._fetch(reader, chunk)
                if self._files.advance(chunk.file, reader.buffer, self._stop, self._hashed) is Reached.WRONG:
                    with self._lock:
                        self._again.extend(self._chunks_of(chunk.file))
            finally:
                with self._lock:
                    self._busy -= 1
                    if not self._busy or self._again:
                        self._lock.notify_all()

    def _fetch(self, reader: RangeReader, chunk: Chunk) -> None:
        try:
            resumes = chunk.file not in self._whole
            self._fetcher.fetch(reader, chunk, self._stop, resumes=resumes, throttled=self._throttled)
        except RangesIgnored:  # this file comes in one piece, and once; other chunks of it are dropped
            with self._lock:
                if chunk.file not in self._whole:
                    self._whole.add(chunk.file)
                    self._again.extend(self._chunks_of(chunk.file))

    def _chunks_of(self, index: int) -> Iterator[Chunk]:
        file = self._files.manifest.files[index]
        if index in self._whole:
            return iter([Chunk(index, 0, file.size)])
        return (Chunk(index, each.start, each.stop) for each in plan_chunks([file], self._chunk_bytes))

    def _throttled(self, pause_s: float) -> None:
        with self._lock:
            self._concurrency = concurrency.throttled(self._concurrency, self._traffic.sample(), pause_s)


def _chunk_bytes(largest: int, total: int, workers: int) -> int:
    """Small enough that every worker has a few. A power of two less than `largest`: its multiples stay boundaries."""
    while largest >= 2 * SMALLEST_CHUNK_BYTES and not largest % 2 and total < 4 * workers * largest:
        largest //= 2
    return largest
