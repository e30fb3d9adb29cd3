"""The files of one fill: what of them is on the disk, hashed in order while it arrives, sealed when all is right.

    bytes written ──► ranges ──► hashed as far as the file reaches ──► its digest is right ──► sealed, on the disk
                                                                   └─► it is wrong: forgotten, to be fetched again

The thread that has brought a chunk hashes its file up to the first gap, from the page cache, one at a time per file: so
the digest costs no second pass and no thread of its own. A file is fsynced when its digest is right; small files are,
all together, at the end. Where the bytes come from is none of its business.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import Enum, auto

from actors.chunks import Chunk, Ranges
from actors.digest import Digester, algorithm_of, chunk_hash, how_verified
from actors.disk.bases import Base, Bases
from actors.disk.durable import start_writeback, sync_files
from actors.disk.filesystem import disk_errors
from actors.disk.ingest import COST_S, Ingest, is_immutable
from actors.disk.reuse import copy_range
from actors.errors import Cancelled, IntegrityError, LocalModelError, StoreError
from actors.manifest import Digest, Manifest

SMALL_FILE_BYTES = 1 << 20
"""Up to this size files are not fsynced one by one."""

_log = logging.getLogger(__name__)


class Reached(Enum):
    """How far hashing a file came."""

    GAP = auto()
    SEALED = auto()
    WRONG = auto()
    """Every byte was there and the digest is another: nothing of the file is left, it has to be fetched once more."""


@dataclass(slots=True)
class _File:
    """`ranges` is written; `digester` has read up to its position."""

    ranges: Ranges
    descriptor: int = -1
    digester: Digester | None = None
    hashing: bool = False
    refetched: bool = False
    sealed: Digest | None = None


class Files:
    """Any thread may call anything; two must not write the same chunk at the same time."""

    def __init__(self, ingest: Ingest, bases: Bases | None = None) -> None:
        """`bases`: what other copies may have of what is missing. Closed with the files."""
        self.manifest = ingest.manifest
        self.bases = bases or Bases(ingest.manifest, {})
        self._ingest = ingest
        self._lock = threading.Lock()
        done = ingest.journal.done
        self._files = [_File(done.get(index) or Ranges()) for index in range(len(self.manifest.files))]
        self.done = sum(file.ranges.total for file in self._files)
        """Bytes on the disk."""
        self.hashed = 0
        self.unsealed = len(self._files)
        """How many files are not sealed yet."""
        self._verified: Counter[str] = Counter()
        self._replaced: list[int] = []
        """Descriptors of files that are no longer in the ingest; others may still read from them."""

    @property
    def verified(self) -> Counter[str]:
        """Sealed files, by how they were checked."""
        with self._lock:
            return self._verified.copy()

    def ranges(self, index: int) -> Ranges:
        """The ranges that are there of a file. For one thread, before others write."""
        return self._files[index].ranges

    def each_done(self) -> list[int]:
        """Bytes on the disk of every file, in the order of the manifest."""
        with self._lock:
            return [file.ranges.total for file in self._files]

    def begun(self) -> list[int]:
        """The files that could be hashed at once, as far as they reach: those with a beginning, and empty ones."""
        sizes = [file.size for file in self.manifest.files]
        return [index for index, size in enumerate(sizes) if not size or self._files[index].ranges.frontier]

    def unhashed(self, index: int) -> int:
        """How many bytes of a file could be hashed and are not yet."""
        state = self._files[index]
        with self._lock:
            if state.sealed is not None:
                return 0
            return state.ranges.frontier - (state.digester.position if state.digester is not None else 0)

    def gaps(self, chunk: Chunk) -> list[Chunk]:
        """What of the chunk is not there."""
        with self._lock:
            found = list(self._files[chunk.file].ranges.gaps(chunk.stop))
        return [Chunk(chunk.file, max(start, chunk.start), stop) for start, stop in found if stop > chunk.start]

    # --- writing ---

    def write(self, index: int, position: int, block: memoryview) -> None:
        """The bytes are in the file; they count once `wrote` says so."""
        descriptor = self._descriptor(index)
        with disk_errors(f"writing {self.manifest.files[index].path}"):
            while block:
                count = os.pwrite(descriptor, block, position)
                block, position = block[count:], position + count

    def copy(self, chunk: Chunk, base: Base) -> bool:
        """Whether the chunk is in its file as it is in the base. It counts once `wrote` says so."""
        place = base.place(chunk)
        if place is None:
            return False
        with disk_errors(f"writing {self.manifest.files[chunk.file].path}"):
            return copy_range(base.descriptor, place, self._descriptor(chunk.file), chunk.start, chunk.size)

    def wrote(self, index: int, start: int, stop: int) -> None:
        """These bytes are there."""
        with self._lock:
            self.done += self._files[index].ranges.add(start, stop)

    def record(self, chunk: Chunk) -> None:
        """The chunk is remembered over a restart, and the disk begins to take it."""
        if self.manifest.files[chunk.file].size > SMALL_FILE_BYTES:
            start_writeback(self._descriptor(chunk.file), chunk.start, chunk.stop)
        with disk_errors("writing the journal"):
            self._ingest.record(chunk)

    def note_cost(self) -> bool:
        """Bytes that have come count over a restart, too. False: not yet; chunks that land together are noted once."""
        return self._ingest.note_cost(COST_S)

    def chunk_digest(self, chunk: Chunk, buffer: bytearray) -> bytes:
        """The BLAKE3 of a chunk that is there."""
        digest = chunk_hash()
        for block in self._blocks(self._descriptor(chunk.file), chunk.start, chunk.stop, buffer):
            digest.update(block)
        return digest.digest()

    # --- hashing ---

    def advance(
        self, index: int, buffer: bytearray, stop: threading.Event, each: Callable[[int], object] = lambda index: None
    ) -> Reached:
        """The file is hashed up to its first gap, unless another thread is at it; then SEALED or WRONG is said to that.

        `each` is called with the index after every block. Raises IntegrityError for a file that is wrong a second time,
        Cancelled soon after `stop` is set.
        """
        state, file = self._files[index], self.manifest.files[index]
        with self._lock:
            if state.hashing or state.sealed is not None:
                return Reached.GAP
            state.hashing = True
        digester = state.digester or Digester(algorithm_of(file.digest), file.size, file.checksum)
        state.digester = digester
        try:
            descriptor = self._descriptor(index)
            while digester.position < file.size:
                with self._lock:
                    frontier = state.ranges.frontier
                    if digester.position >= frontier:
                        state.hashing = False  # under the lock: whoever moves the frontier next takes over
                        return Reached.GAP
                for block in self._blocks(descriptor, digester.position, frontier, buffer):
                    digester.update(block)
                    with self._lock:
                        self.hashed += len(block)
                    each(index)
                    if stop.is_set():
                        raise Cancelled
        except BaseException:
            with self._lock:
                state.hashing = False
            raise
        return self._finish(index, digester)

    def _finish(self, index: int, digester: Digester) -> Reached:
        state, file = self._files[index], self.manifest.files[index]
        if (wrong := digester.mismatch(file.digest)) is not None:
            if self._replace(index):
                _log.warning("another copy's file is not what it was", extra={"path": file.path, "error": wrong})
                return Reached.WRONG
            self._forget(index)
            if state.refetched:
                raise IntegrityError(f"{file.path}: {wrong}, twice: the origin serves what it does not name")
            state.refetched = True
            return Reached.WRONG
        if file.size > SMALL_FILE_BYTES:
            with self._synced(file.path, [index]):
                os.fsync(state.descriptor)
            self.bases.share(index, state.descriptor)
        with self._lock:
            os.close(state.descriptor)
            state.descriptor, state.digester, state.sealed = -1, None, digester.digest()
            self.unsealed -= 1
            self._verified[how_verified(file)] += 1
        return Reached.SEALED

    @contextmanager
    def _synced(self, what: str, indices: Iterable[int]) -> Iterator[None]:
        """Once it ends these files are on the disk; if it fails they are gone, to be fetched into new ones.

        The kernel keeps what it could not write in the page cache as if it had been written: read back it is right, and
        the next fsync succeeds without it. https://lwn.net/Articles/752063/. Nor is it enough to write it again: ext4
        then takes the room that was promised to the file for zeros still.
        """
        try:
            with disk_errors(f"syncing {what}"):
                yield
        except LocalModelError:
            for index in indices:
                self._forget(index)
                with suppress(StoreError):
                    self._ingest.forget_file(index)
            raise

    def _replace(self, index: int) -> bool:
        """Whether the file is another copy's, too: then it is forgotten, and what is fetched goes into a new one."""
        state = self._files[index]
        if not is_immutable(os.fstat(self._descriptor(index))):
            return False
        self._ingest.forget_file(index)
        with self._lock:
            self._replaced.append(state.descriptor)
            state.descriptor = -1
        self._forget(index)
        return True

    def _forget(self, index: int) -> None:
        state = self._files[index]
        with disk_errors("writing the journal"):
            self._ingest.journal.forget(index)
        with self._lock:
            self.done -= state.ranges.total
            self.hashed -= state.ranges.total
            state.ranges, state.digester, state.hashing = Ranges(), None, False

    # --- the end ---

    def seal(self) -> Manifest:
        """The manifest with the digest of every file, all of which are on the disk. Only once all are sealed."""
        files = self.manifest.files
        small = [index for index, file in enumerate(files) if file.size <= SMALL_FILE_BYTES]
        with self._synced(f"{len(small)} small files", small), self._ingest.opened() as data:
            sync_files(data.here, [files[index].path for index in small], data.open)
        pairs = zip(self.manifest.files, self._files, strict=True)
        return replace(self.manifest, files=tuple(replace(file, digest=state.sealed) for file, state in pairs))

    def close(self) -> None:
        """No descriptor is left open. Nobody may be at work any more."""
        self.bases.close()
        while self._replaced:
            os.close(self._replaced.pop())
        for file in self._files:
            if file.descriptor >= 0:
                os.close(file.descriptor)
                file.descriptor = -1

    def _descriptor(self, index: int) -> int:
        file = self._files[index]
        with self._lock:
            if file.descriptor < 0:
                file.descriptor = self._ingest.open_file(index)
            return file.descriptor

    def _blocks(self, descriptor: int, position: int, stop: int, buffer: bytearray) -> Iterator[memoryview]:
        view = memoryview(buffer)
        while position < stop:
            with disk_errors("reading back what was written"):
                count = os.preadv(descriptor, [view[: stop - position]], position)
            if not count:
                raise StoreError(f"a file in {self._ingest.data} became shorter while it was filled")
            yield view[:count]
            position += count
