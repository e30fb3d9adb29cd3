"""Which bytes are there, and which are fetched next: sets of half-open ranges, and chunks cut from their gaps. Pure.

A chunk is what one request brings, and what the journal remembers: a part of one file, of a bounded size.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from actors.manifest import ManifestFile


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes `[start, stop)` of the file at index `file` of a manifest."""

    file: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


class Ranges:
    """A set of byte positions, kept as sorted, disjoint, non-touching half-open ranges. Not thread-safe."""

    __slots__ = ("_starts", "_stops", "total")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self.total = 0
        """How many positions are in the set."""
        for start, stop in ranges:
            self.add(start, stop)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._stops, strict=True)

    def add(self, start: int, stop: int) -> int:
        """`[start, stop)` is in the set. Returns how many of its positions are new. An empty range adds nothing."""
        if start >= stop:
            return 0
        before = self.total
        first = bisect_left(self._stops, start)  # the first range that ends at or after our start: it may touch us
        last = first
        while last < len(self._starts) and self._starts[last] <= stop:
            start, stop = min(start, self._starts[last]), max(stop, self._stops[last])
            self.total -= self._stops[last] - self._starts[last]
            last += 1
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]
        self.total += stop - start
        return self.total - before

    @property
    def frontier(self) -> int:
        """Every position below it is in the set, itself it is not."""
        return self._stops[0] if self._starts and self._starts[0] == 0 else 0

    def gaps(self, size: int) -> Iterator[tuple[int, int]]:
        """What of `[0, size)` is not in the set, in order."""
        position = 0
        for start, stop in self:
            if start >= size:
                break
            if position < start:
                yield position, start
            position = stop
        if position < size:
            yield position, size


def plan_chunks(
    files: Sequence[ManifestFile], chunk_bytes: int, done: Mapping[int, Ranges] | None = None
) -> Iterator[Chunk]:
    """Cover every byte of `files` not in `done` (by index) exactly once, in file order.

    No chunk spans two files, exceeds `chunk_bytes` or crosses a multiple of it, so that an interrupted plan and the one
    that continues it cut at the same places. An empty file yields none.
    """
    known = done or {}
    for index, file in enumerate(files):
        for start, stop in known.get(index, Ranges()).gaps(file.size):
            position = start
            while position < stop:
                end = min(stop, (position // chunk_bytes + 1) * chunk_bytes)
                yield Chunk(index, position, end)
                position = end


class Grid:
    """The chunks of a whole model, numbered in file order: what nodes that fill it together name them by."""

    def __init__(self, files: Sequence[ManifestFile], chunk_bytes: int) -> None:
        self.chunks = tuple(plan_chunks(files, chunk_bytes))
        self._first: dict[int, int] = {}
        self._after: dict[int, int] = {}
        for number, chunk in enumerate(self.chunks):
            self._first.setdefault(chunk.file, number)
            self._after[chunk.file] = number + 1

    def __len__(self) -> int:
        return len(self.chunks)

    def of_file(self, index: int) -> range:
        """The numbers of a file's chunks. An empty file has none."""
        return range(self._first.get(index, 0), self._after.get(index, 0))
