"""A committed copy between two readings: what is known of it, and which file is read next. Pure.

    committed ──► first pass, soon ──► as it was: checksums noted; the next pass when the interval is over
                        │    ▲
                        ▼    └──────── repaired
                     damaged: named, and not read again until it is repaired

A fill hashes what it wrote from the page cache, so a copy's first pass is the first time that its disk is read; it
begins when the pods that waited for the copy have had the disk to themselves for a while. That pass also notes a
checksum of every chunk, by which a later damage is traced to the chunk. The checksums decide only what is fetched
again; whether a file is right is decided by its digest alone.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Self, TypeVar

from actors.disk.documents import parsed
from actors.disk.marker import Marker
from actors.numbers import count, moment

Place = TypeVar("Place")

FIRST_PASS_S = 300.0
"""After a copy was committed, if passes are not closer together anyway."""

NAMED_FILES = 3
"""How many damaged files, or spots in a file, a message names before it counts the rest."""


@dataclass(slots=True)
class Record:
    """One committed copy. `next_file` is an index into its manifest: where a pass that has begun goes on.

    `verified_at`: when the last pass ended, in epoch seconds. `sums`: by path, one CRC-32 per chunk. `damage`: by path,
    what is wrong. `repaired` says what was, `repaired_at` when it was put right.
    """

    copy: str
    chunk_bytes: int
    next_file: int = 0
    verified_at: float | None = None
    sums: dict[str, list[int]] = field(default_factory=dict)
    damage: dict[str, str] = field(default_factory=dict)
    repaired: str | None = None
    repaired_at: float | None = None

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, content: bytes, marker: Marker) -> Self | None:
        """The record in `content`, if it is one of this very copy. Never raises for what it finds inside."""
        try:
            data = parsed(content)
            record = cls(
                copy=data["copy"],
                chunk_bytes=count(data["chunk_bytes"]),
                next_file=count(data["next_file"]),
                verified_at=moment(data["verified_at"]),
                sums={str(path): [count(each) for each in sums] for path, sums in data["sums"].items()},
                damage={str(path): str(wrong) for path, wrong in data["damage"].items()},
                repaired=None if data["repaired"] is None else str(data["repaired"]),
                repaired_at=moment(data["repaired_at"]),
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        known = {file.path for file in marker.manifest.files}
        sound = record.chunk_bytes > 0 and record.next_file >= 0 and record.damage.keys() <= known
        return record if sound and record.copy == copy_name(marker) else None

    @classmethod
    def fresh(cls, marker: Marker, chunk_bytes: int) -> Self:
        return cls(copy_name(marker), chunk_bytes)

    def due_since(self, marker: Marker, now: float, interval_s: float) -> float | None:
        """Since when its next file should be read; None: not yet. A time in the future is not believed."""
        last, pause_s = self.verified_at, interval_s
        if last is None:
            last, pause_s = marker.finished_at or 0.0, min(interval_s, FIRST_PASS_S)
        if last > now:
            return float("-inf")
        return last + pause_s if last + pause_s <= now or self.next_file else None

    def unread(self, marker: Marker) -> int | None:
        """The next file of the pass; None: only damaged ones are left. They are not read before they are repaired."""
        files = marker.manifest.files
        rest = range(self.next_file, len(files))
        return next((index for index in rest if files[index].path not in self.damage), None)

    def noted(self, marker: Marker, index: int, wrong: str | None, sums: list[int], now: float) -> None:
        """The file at `index` was read. After the last one the pass is over."""
        path = marker.manifest.files[index].path
        if wrong is not None:
            self.damage[path] = wrong
        else:
            self.sums[path] = sums
        self.next_file = index + 1
        if self.unread(marker) is None:
            self.next_file, self.verified_at = 0, now

    def mended(self, paths: Iterable[str], now: float) -> None:
        """These files are as they were committed."""
        fixed = {path: self.damage.pop(path) for path in paths if path in self.damage}
        if fixed:
            self.repaired, self.repaired_at = describe(fixed), now


def copy_name(marker: Marker) -> str:
    """Tells this copy from an earlier one of the same model in the same place."""
    return f"{marker.manifest.digest} {marker.finished_at}"


def is_same_copy(found: Marker | None, marker: Marker) -> bool:
    return found is not None and copy_name(found) == copy_name(marker)


def next_file(copies: Mapping[Place, tuple[Marker, Record]], now: float, interval_s: float) -> tuple[Place, int] | None:
    """The copy and the file to read now: of a pass that has begun; then of what was never read; then of the oldest."""
    best: tuple[tuple[bool, bool, float], Place, int] | None = None
    for place, (marker, record) in copies.items():
        due_since = record.due_since(marker, now, interval_s)
        if due_since is None or (index := record.unread(marker)) is None:
            continue
        order = (record.next_file == 0, record.verified_at is not None, due_since)
        if best is None or order < best[0]:
            best = order, place, index
    return None if best is None else best[1:]


class ChunkSums:
    """The CRC-32 of every chunk of a file, from its bytes in order."""

    def __init__(self, chunk_bytes: int) -> None:
        self._chunk_bytes = chunk_bytes
        self._position = 0
        self.sums: list[int] = []

    def update(self, data: memoryview) -> None:
        while data:
            within = self._position % self._chunk_bytes
            piece = data[: self._chunk_bytes - within]
            if within == 0:
                self.sums.append(0)
            self.sums[-1] = zlib.crc32(piece, self.sums[-1])
            self._position += len(piece)
            data = data[len(piece) :]


def differing(known: Sequence[int] | None, found: list[int], chunk_bytes: int, size: int) -> str:
    """Where a file of the right size is not what it was, for people."""
    wrong = [index for index, (was, now) in enumerate(zip(known or [], found, strict=False)) if was != now]
    if not wrong:
        return "is not what it was"
    spots = [f"{index * chunk_bytes}-{min((index + 1) * chunk_bytes, size) - 1}" for index in wrong[:NAMED_FILES]]
    more = f" and {len(wrong) - NAMED_FILES} more chunks" if len(wrong) > NAMED_FILES else ""
    return f"differs within bytes {', '.join(spots)}{more}"


def describe(damage: Mapping[str, str]) -> str:
    """`a.bin is missing; b.bin has 3 bytes, not 4; and 2 more files`."""
    named = [f"{path} {wrong}" for path, wrong in sorted(damage.items())[:NAMED_FILES]]
    more = len(damage) - NAMED_FILES
    return "; ".join([*named, *([f"and {more} more file{'s' if more > 1 else ''}"] if more > 0 else [])])
