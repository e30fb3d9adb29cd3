"""Damaged files of a committed copy become what they were: only what is wrong in them is fetched again.

    damaged file ── chunks whose checksum is right ──► ingest ◄── the other chunks, from the origin
                                                         │
                                         whole file verified, then renamed over the damaged one

A repair is a fill of just these files that finds most of them done. Chunks that are copied over are checked one by one,
and the whole by the digest it was committed with, so neither a wrong checksum nor a second damage can go unnoticed.
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from actors.chunks import Ranges, plan_chunks
from actors.disk.filesystem import disk_errors
from actors.disk.handles import Folder
from actors.disk.ingest import Ingest
from actors.disk.marker import Marker
from actors.manifest import Manifest, ManifestFile, Resolved
from actors.scrub.scrubber import examine


@dataclass(frozen=True)  # no slots: what follows from the paths is computed once
class Repair:
    """`paths` are what is damaged; `sums` the checksums of their chunks, where they are known."""

    marker: Marker
    paths: frozenset[str]
    sums: Mapping[str, Sequence[int]]
    chunk_bytes: int

    @cached_property
    def files(self) -> tuple[ManifestFile, ...]:
        """Each with the digest it was committed with."""
        return tuple(file for file in self.marker.manifest.files if file.path in self.paths)

    @cached_property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)

    def possible(self, source: Manifest) -> bool:
        """Whether the source still has these very files. Of one that it gives no digest of, that is seen afterwards."""
        theirs = {file.path: file for file in source.files}
        return all(
            (their := theirs.get(file.path)) is not None
            and their.size == file.size
            and their.digest in (None, file.digest)
            for file in self.files
        )

    def vouched(self, source: Manifest) -> bool:
        """Whether the source itself names the digests that were committed. Else it may give other content by now."""
        theirs = {file.path: file.digest for file in source.files}
        return all(theirs.get(file.path) == file.digest for file in self.files)

    def narrowed(self, resolved: Resolved) -> Resolved:
        """The damaged files alone. `possible` must hold."""
        where = {file.path: place for file, place in zip(resolved.manifest.files, resolved.locations, strict=True)}
        manifest = Manifest(self.marker.manifest.source, self.marker.manifest.revision, self.files)
        return replace(resolved, manifest=manifest, locations=tuple(where[file.path] for file in self.files))

    def examined(self, folder: Folder, buffer: mmap.mmap, check: Callable[[], None]) -> dict[str, str]:
        """By path, what is wrong with these files, now that every byte of them was read. `check` may raise meanwhile.

        Raises OSError for what is not the disk's fault.
        """
        found: dict[str, str] = {}
        for file in self.files:
            wrong, _ = examine(folder, file, self.sums.get(file.path), self.chunk_bytes, buffer, lambda _: check())
            check()
            if wrong is not None:
                found[file.path] = wrong
        return found

    def keep_good(self, ingest: Ingest, folder: Folder, check: Callable[[], None]) -> None:
        """The chunks that are still right in `folder` are done in the ingest. `check` may raise between two chunks."""
        for index, file in enumerate(ingest.manifest.files):
            sums = self.sums.get(file.path)
            if sums:
                self._keep_good(ingest, index, folder, sums, check)

    def _keep_good(
        self, ingest: Ingest, index: int, folder: Folder, sums: Sequence[int], check: Callable[[], None]
    ) -> None:
        file, done = ingest.manifest.files[index], ingest.journal.done.setdefault(index, Ranges())
        try:
            source = folder.open(file.path)
        except OSError:
            return  # all of it is fetched
        target = ingest.open_file(index)
        try:
            for chunk in list(plan_chunks([file], self.chunk_bytes, {0: done})):
                check()
                number, within = divmod(chunk.start, self.chunk_bytes)
                data = _read(source, chunk.start, chunk.size)
                if within == 0 and number < len(sums) and zlib.crc32(data) == sums[number] and len(data) == chunk.size:
                    with disk_errors(f"writing {file.path}"):
                        if os.pwrite(target, data, chunk.start) < chunk.size:
                            continue
                        ingest.journal.record(replace(chunk, file=index))
                    done.add(chunk.start, chunk.stop)
        finally:
            os.close(source)
            os.close(target)


def _read(descriptor: int, start: int, size: int) -> bytes:
    """What can be read of it; a disk that cannot read it has lost it."""
    try:
        return os.pread(descriptor, size, start)
    except OSError:
        return b""
