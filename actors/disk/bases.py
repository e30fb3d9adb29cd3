"""Bases: files of other copies on the disk that a wanted file may have chunks in common with.

    a wanted file that no copy has ──► of each copy the file at its path, else those of its name, else of its size
    a chunk of it ──► what a base has at the same place: its digest goes with the request to a peer
                  ──► the peer's chunk has that digest: it is copied from the base, and no byte of it is sent

A base proves nothing: what was copied is read once more, and its file is hashed like every other.

The same place is as far from the beginning, or from the end: where the header of a file became longer (another chat
template in a GGUF file, a tensor more in a safetensors one) everything behind it moved by so many bytes.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from actors.chunks import Chunk
from actors.digest import digest_of
from actors.disk.ingest import LATE_FILE_BYTES
from actors.disk.reuse import Donor, Offer, deduplicate
from actors.manifest import Manifest, ManifestFile

MOST_BASES = 3
"""Of one file: each costs a read or two of the disk for every chunk that is asked for."""
MOST_MISSES = 16
"""A base in which so many chunks in a row were others is left alone."""

PIECE_BYTES = 1 << 20
"""So much of a file is compared at a time to be shared."""

_log = logging.getLogger(__name__)


def bases(manifest: Manifest, donors: Iterable[Donor], whole: Container[int] = ()) -> dict[int, tuple[Offer, ...]]:
    """By index of the wanted file, what it may have chunks in common with, in the order of the donors. Pure.

    Not of files that are `whole`. An archive has nothing in common with its files, and a small file is one chunk.
    """
    if manifest.packed:
        return {}
    wanted = {
        index: file for index, file in enumerate(manifest.files) if file.size > LATE_FILE_BYTES and index not in whole
    }
    found: dict[int, tuple[Offer, ...]] = {}
    for donor in donors if wanted else ():
        alike = [_known_by(trait, donor) for trait in (_path, _name, _size)]
        for index, file in wanted.items():
            traits = (known.get(trait(file), ()) for trait, known in zip((_path, _name, _size), alike, strict=True))
            paths = next(filter(None, traits), ())
            offers = (*found.get(index, ()), *(Offer(donor, path) for path in paths))[:MOST_BASES]
            if offers:
                found[index] = offers
    return found


def _path(file: ManifestFile) -> str | int:
    return file.path


def _name(file: ManifestFile) -> str | int:
    return file.path.rpartition("/")[2]


def _size(file: ManifestFile) -> str | int:
    return file.size


def _known_by(trait: Callable[[ManifestFile], str | int], donor: Donor) -> dict[str | int, list[str]]:
    """The sound files of the donor, by what they may have in common with others."""
    found: dict[str | int, list[str]] = {}
    for file in donor.manifest.files:
        if file.path not in donor.damaged:
            found.setdefault(trait(file), []).append(file.path)
    return found


@dataclass(slots=True, eq=False)
class Base:
    """One of them, as seen from its beginning or its end.

    `descriptor`: -1 where it is not open; `size`: of the file, and `wanted_size` of the one that is wanted. `digests`:
    those of what was read at the place of a chunk.
    """

    offer: Offer
    from_end: bool
    wanted_size: int
    descriptor: int = -1
    size: int = 0
    misses: int = 0
    digests: dict[Chunk, bytes] = field(default_factory=dict)

    def place(self, chunk: Chunk) -> int | None:
        """The position in the file at which the chunk would begin. None: it has no place there."""
        moved = self.size - self.wanted_size if self.from_end else 0
        same = self.from_end and not moved
        return None if same or chunk.start + moved < 0 or chunk.stop + moved > self.size else chunk.start + moved


def _deduplicated(base: Base, index: int, made: int) -> int:
    """How many bytes of the file are the base's now. Raises OSError."""
    total = misses = 0
    for start in range(0, base.wanted_size, PIECE_BYTES):
        piece = Chunk(index, start, min(start + PIECE_BYTES, base.wanted_size))
        place = base.place(piece)
        shared = 0 if place is None else deduplicate(base.descriptor, place, made, start, piece.size)
        misses = 0 if shared else misses + 1
        if misses == MOST_MISSES and not total:
            break
        total += shared
    return total


class Bases:
    """Those of one fill. Any thread; files that were opened stay so until `close`, when nobody is at work any more."""

    def __init__(self, manifest: Manifest, offered: Mapping[int, Iterable[Offer]]) -> None:
        self._bases = {
            index: [Base(offer, end, manifest.files[index].size) for offer in each for end in (False, True)]
            for index, each in offered.items()
        }
        self._lock = threading.Lock()

    def of(self, chunk: Chunk, buffer: bytearray) -> dict[bytes, Base]:
        """By digest, what bases have at the place of the chunk. Reads it; `buffer` is used."""
        found: dict[bytes, Base] = {}
        for base in self._bases.get(chunk.file, ()):
            try:
                if self._opened(base) and (place := base.place(chunk)) is not None:
                    known = base.digests.get(chunk)
                    digest = known or digest_of(base.descriptor, place, place + chunk.size, buffer)
                    base.digests[chunk] = digest
                    found.setdefault(digest, base)
            except OSError:
                self.drop(base)
        return found

    def compared(self, offered: Mapping[bytes, Base], digest: bytes) -> None:
        """The chunk that these were compared with has this digest."""
        with self._lock:
            for known, base in offered.items():
                base.misses = 0 if known == digest else base.misses + 1

    def drop(self, base: Base) -> None:
        """It is not what it was, or cannot be read: nothing is taken from it any more."""
        with self._lock:
            if base.misses < MOST_MISSES:
                _log.info("a copy cannot be used", extra={"copy": base.offer.donor.name, "path": base.offer.path})
            base.misses = MOST_MISSES

    def share(self, index: int, made: int) -> None:
        """The file at `index`, which is complete and open as `made`, takes no room for what is the same in a base.

        As far as the disk can do that: XFS and Btrfs. So what this node read from the origin costs no more room than
        what it copied.
        """
        for base in self._bases.get(index, ()):
            with suppress(OSError):  # another kind of disk, or another place within a block
                if self._opened(base) and _deduplicated(base, index, made):
                    return

    def close(self) -> None:
        for base in (base for several in self._bases.values() for base in several):
            if base.descriptor >= 0:
                os.close(base.descriptor)
                base.descriptor = -1

    def _opened(self, base: Base) -> bool:
        """Whether it can be read from. Raises OSError."""
        with self._lock:
            if base.misses >= MOST_MISSES:
                return False
            if base.descriptor < 0:
                with base.offer.donor.opened() as folder:
                    base.descriptor = folder.open(base.offer.path)
                base.size = os.fstat(base.descriptor).st_size
            return True
