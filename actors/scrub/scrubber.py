"""Reads committed copies again, slowly, in one thread of its own, and says which files are not what they were.

The next file to be read, and what follows, are decided in `scrub.record`. Here is the disk: it is read around the page
cache where the filesystem can do that, so that the disk is verified, and what pods have in memory stays there; at idle
I/O priority; at a bounded pace. The record of a copy is kept in one file per model beside the models, and survives the
process: a damage at once, how far a pass is now and then.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import mmap
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from actors.digest import Digester, algorithm_of
from actors.disk.filesystem import OUR_OWN
from actors.disk.handles import Folder
from actors.disk.marker import Marker, misfit
from actors.disk.store import Store
from actors.errors import LocalModelError, StoreError
from actors.manifest import ManifestFile
from actors.messages import Place
from actors.rates import RateLimit
from actors.scrub.record import ChunkSums, Record, describe, differing, is_same_copy, next_file
from actors.service import Service

BLOCK_BYTES = 1 << 20
IDLE_S = 1.0
RETRY_S = 60.0
SAVE_S = 30.0
"""How much of a pass may be lost with the process."""

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_IOPRIO_WHO_PROCESS, _IOPRIO_IDLE = 1, 3 << 13

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Copy:
    marker: Marker
    store: Store
    record: Record
    saved_at: float = 0.0
    changed: bool = False


class Scrubber:
    """Any thread may call anything. `found` is called, from the scrubber's thread, when a damage was found."""

    def __init__(
        self,
        *,
        bytes_per_s: float | None,
        interval_s: float,
        chunk_bytes: int,
        clock: Callable[[], float] = time.time,
        found: Callable[[], None] = lambda: None,
    ) -> None:
        """`bytes_per_s` None: nothing is read, and damage is only what `blame` names."""
        self._interval_s = interval_s
        self._chunk_bytes = chunk_bytes
        self._clock = clock
        self._found = found
        self._limit = RateLimit(bytes_per_s)
        self._lock = threading.Lock()
        self._saving = threading.Lock()
        self._copies: dict[Place, _Copy] = {}
        self._stop = threading.Event()
        self._service = Service("scrub", self._run, self._stop) if bytes_per_s is not None else None
        self.keep()

    def keep(self) -> None:
        """It reads, also if there was no thread to be had for that before."""
        if self._service is not None:
            self._service.start()

    def close(self, timeout_s: float = 10.0) -> None:
        self._stop.set()
        if self._service is not None:
            self._service.join(timeout_s)
        with self._lock:
            changed = [(place, copy) for place, copy in self._copies.items() if copy.changed]
        for place, copy in changed:
            self._save(place, copy)

    # --- what the agent tells it ---

    def watch(self, place: Place, marker: Marker, store: Store) -> None:
        """The copy is there; what is known of it from before is taken up again."""
        record = None
        content = store.scrub_notes.read(place.key)
        if content is not None:  # else the next pass finds again what it said
            record = Record.from_json(content, marker)
        with self._lock:
            self._copies[place] = _Copy(marker, store, record or Record.fresh(marker, self._chunk_bytes))

    def forget(self, place: Place) -> None:
        """The copy is no longer there."""
        with self._lock:
            copy = self._copies.pop(place, None)
        if copy is not None:
            with self._saving, suppress(StoreError):  # of another copy it is not believed
                copy.store.scrub_notes.forget(place.key)

    def blame(self, place: Place, marker: Marker, damage: Mapping[str, str]) -> None:
        """These files of this very copy are not what they were."""
        with self._lock:
            copy = self._copies.get(place)
            if copy is None or copy.marker is not marker or damage.items() <= copy.record.damage.items():
                return
            copy.record.damage.update(damage)
        self._save(place, copy)
        _log.warning("damaged", extra={"key": place.key, "root": place.root, "damage": describe(damage)})
        self._found()

    def mended(self, place: Place, paths: Iterable[str]) -> None:
        """These files are what they were again."""
        with self._lock:
            copy = self._copies.get(place)
            if copy is None:
                return
            copy.record.mended(paths, self._clock())
        self._save(place, copy)
        _log.info("repaired", extra={"key": place.key, "root": place.root, "damage": copy.record.repaired})

    # --- what it tells the agent ---

    def damage(self, place: Place) -> dict[str, str]:
        with self._lock:
            copy = self._copies.get(place)
            return dict(copy.record.damage) if copy is not None else {}

    def record(self, place: Place) -> Record | None:
        """As it is now. The checksums are not copied: they may only be looked up."""
        with self._lock:
            copy = self._copies.get(place)
            return replace(copy.record, damage=dict(copy.record.damage)) if copy is not None else None

    # --- its own thread ---

    def _run(self) -> None:
        be_idle()
        buffer = mmap.mmap(-1, BLOCK_BYTES)  # aligned to a page, as reading around the page cache wants it
        while not self._stop.is_set():
            with self._lock:
                copies = {place: (copy.marker, copy.record) for place, copy in self._copies.items()}
                turn = next_file(copies, self._clock(), self._interval_s)
                copy = self._copies[turn[0]] if turn is not None else None
            if turn is None or copy is None:
                self._stop.wait(IDLE_S)
                continue
            place, index = turn
            try:
                wrong, sums = self._examine(place, copy, index, buffer)
            except _Stopped:
                return
            except (OSError, LocalModelError) as error:  # of this process, not of the disk
                _log.warning("cannot scrub now", extra={"key": place.key, "error": str(error)})
                self._stop.wait(RETRY_S)
                continue
            if wrong is not None and not is_same_copy(copy.store.marker(place.key), copy.marker):
                self._stop.wait(IDLE_S)  # it is on its way out, and not damaged
                continue
            with self._lock:
                if self._copies.get(place) is not copy:
                    continue
                copy.record.noted(copy.marker, index, wrong, sums, self._clock())
                copy.changed = True
                news = wrong is not None or not copy.record.next_file
            if news or time.monotonic() > copy.saved_at + SAVE_S:
                self._save(place, copy)
            if wrong is not None:
                named = describe({copy.marker.manifest.files[index].path: wrong})
                _log.warning("damaged", extra={"key": place.key, "root": place.root, "damage": named})
                self._found()

    def _examine(self, place: Place, copy: _Copy, index: int, buffer: mmap.mmap) -> tuple[str | None, list[int]]:
        file, record = copy.marker.manifest.files[index], copy.record

        def pace(count: int) -> None:
            if self._stop.wait(self._limit.spend(count)):
                raise _Stopped

        try:
            opened = copy.store.opened(place.key)
        except OSError as error:
            if error.errno in OUR_OWN:
                raise
            return f"cannot be reached: {error.strerror}", []
        with opened as folder:
            return examine(folder, file, record.sums.get(file.path), record.chunk_bytes, buffer, pace)

    def _save(self, place: Place, copy: _Copy) -> None:
        """Holds no lock that a report needs: at idle priority, writing may take its time."""
        try:
            copy.store.check_fence()
            with self._saving:
                with self._lock:
                    if self._copies.get(place) is not copy:
                        return
                    content, copy.saved_at, copy.changed = copy.record.to_json(), time.monotonic(), False
                copy.store.scrub_notes.write(place.key, content)
        except StoreError as error:
            if error.reason == "Fenced":
                self._stop.set()  # the agent that has taken over reads on
            else:
                _log.warning("cannot remember what was scrubbed", extra={"key": place.key, "error": str(error)})


class _Stopped(Exception):
    pass


def examine(
    folder: Folder | Path,
    file: ManifestFile,
    known: Sequence[int] | None,
    chunk_bytes: int,
    buffer: mmap.mmap,
    pace: Callable[[int], None] = lambda count: None,
) -> tuple[str | None, list[int]]:
    """The fault of the file in the model's folder, or None; and a checksum of each chunk.

    `pace` hears what was read. A path is that of the file itself.

    `known` are the checksums of when it was right. Raises OSError for what is not the disk's fault.
    """
    if isinstance(folder, Path):
        with Folder.at(folder.parent) as parent:
            return examine(parent, replace(file, path=folder.name), known, chunk_bytes, buffer, pace)
    wrong = misfit(folder, file)
    if wrong is not None:
        return wrong, []
    digester, sums = Digester(algorithm_of(file.digest), file.size), ChunkSums(chunk_bytes)
    try:
        for block in blocks(folder.open(file.path), buffer):
            digester.update(block)
            sums.update(block)
            pace(len(block))
    except OSError as error:
        if error.errno in OUR_OWN:
            raise
        return f"cannot be read at byte {digester.position}: {error.strerror}", []
    if digester.digest() == file.digest:
        return None, sums.sums
    return differing(known, sums.sums, chunk_bytes, file.size), []


def blocks(file: int | Path, buffer: mmap.mmap) -> Iterator[memoryview]:
    """The bytes of a regular file, open already, as the disk has them, leaving the page cache as it was if possible.

    A block is valid until the next one is asked for. `buffer` is aligned to a page. The file is closed at the end.
    """
    descriptor = file if isinstance(file, int) else os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    direct = _set_direct(descriptor, wanted=True)
    try:
        position = 0
        with memoryview(buffer) as view:
            while True:
                try:
                    count = os.preadv(descriptor, [view], position)
                except OSError as error:
                    if not direct or error.errno != errno.EINVAL:
                        raise
                    direct = _set_direct(descriptor, wanted=False)  # the end of a file, or a filesystem that cannot
                    continue
                if not count:
                    return
                with view[:count] as block:
                    yield block
                if not direct:
                    os.posix_fadvise(descriptor, position, count, os.POSIX_FADV_DONTNEED)
                position += count
    finally:
        os.close(descriptor)


def _set_direct(descriptor: int, *, wanted: bool) -> bool:
    """Whether the descriptor reads around the page cache from now on."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT)
    except OSError:
        return False
    return wanted


def be_idle() -> None:
    """The calling thread gets the disk when nobody else wants it, where the scheduler knows of such a thing."""
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(number, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_IDLE)
