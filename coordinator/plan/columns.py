"""One cache in the fold: the tally of all its nodes, counted again only for blocks of nodes in which something changed.

    rows of one Lanes ──► blocks of BLOCK nodes or so ──► a part for each lane and block ──► parts of a cache, together

A part of the last fold stands while the lane, the nodes of the block and what their cells say are the same. So one node
that changes costs a block for each of its caches, and not all their nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple
from zlib import crc32

from actors.messages import NodeName
from coordinator.api.resources import NodeStatus, StatusKey
from coordinator.plan.rows import Lane, Lanes, Row, is_equal
from coordinator.plan.snapshot import Cache
from coordinator.plan.tally import Cell, SourceState, Tally, tally, together

BLOCK = 128

Blocks = Mapping[int, Sequence[NodeName]]
"""By number, the names in order. Which block a node is in follows from its name and from how many blocks there are."""


class _Parts(NamedTuple):
    """The tallies of one lane, by block."""

    blocks: Blocks
    tallies: Mapping[int, Tally]


@dataclass(frozen=True, slots=True)
class Counted:
    """The blocks, parts and tallies that the next fold begins with."""

    blocks: Mapping[Lanes, Blocks] = field(default_factory=dict)
    parts: Mapping[Lane, _Parts] = field(default_factory=dict)
    tallies: Mapping[StatusKey, Tally] = field(default_factory=dict)


class Changes:
    """The cells that do not say what they said in the last fold, found by comparing rows."""

    def __init__(self) -> None:
        self.cells: dict[Lanes, dict[NodeName, list[int]]] = {}
        self.caches: set[StatusKey] = set()

    def compare(self, was: Row, cells: Sequence[Cell], now: Row, numbers: Iterable[int]) -> None:
        """`cells` are those of `was`, in the order of `now`, as far as `numbers` go."""
        found = [number for number in numbers if not _say_the_same(cells[number], now.cells[number])]
        if found:
            self.cells.setdefault(now.of, {})[now.node.name] = found
        if was.behind or now.behind or was.barred or now.barred:
            self.caches |= was.behind.keys() | now.behind.keys() | was.barred | now.barred


def _say_the_same(was: Cell, now: Cell) -> bool:
    """To the tally of the cache: of a copy that is there, nothing else counts that is wrong on its node."""
    if is_equal(was, now):
        return True
    report = now[3]
    there = was[0] is now[0] is NodeStatus.DOWNLOADED and was[3] is report
    return there and (report is None or report.earlier is None)


def count(
    caches: Mapping[StatusKey, Cache],
    sources: Mapping[StatusKey, SourceState],
    rows: Mapping[NodeName, Row],
    last: Counted,
    changes: Changes,
) -> Counted:
    """A tally for every cache of `sources`, in their order."""
    blocks = _blocks(rows, last.blocks)
    parts: dict[Lane, _Parts] = {}
    again = set(changes.caches)
    for of, of_them in blocks.items():
        stale: dict[int, dict[int, Set[int]]] = {}
        unchanged = of_them is last.blocks.get(of) and of not in changes.cells
        if unchanged and all(map(last.parts.__contains__, of.lanes)):
            parts.update((lane, last.parts[lane]) for lane in of.lanes)
            continue
        cells = {block: [rows[name].cells for name in names] for block, names in of_them.items()}
        for number, lane in enumerate(of.lanes):
            known = last.parts.get(lane)
            kept: Mapping[int, Tally] = {}
            if known is not None:
                if id(known.blocks) not in stale:
                    stale[id(known.blocks)] = _stale(known.blocks, of_them, changes.cells.get(of, {}))
                due = stale[id(known.blocks)]
                kept = {
                    block: part
                    for block, part in known.tallies.items()
                    if block in of_them and (block not in due or (due[block] and number not in due[block]))
                }
                if len(kept) == len(of_them) == len(known.blocks):
                    parts[lane] = _Parts(of_them, known.tallies)
                    continue
            again.add(lane.key)
            parts[lane] = _Parts(of_them, _counted(caches[lane.key], sources[lane.key], number, of_them, cells, kept))
    again.update(lane.key for lane in last.parts.keys() - parts.keys())
    return Counted(blocks, parts, _tallies(caches, sources, rows, last.tallies, parts, again))


def _blocks(rows: Mapping[NodeName, Row], before: Mapping[Lanes, Blocks]) -> dict[Lanes, Blocks]:
    names: dict[Lanes, list[NodeName]] = {}
    for name, row in rows.items():
        names.setdefault(row.of, []).append(name)
    found: dict[Lanes, Blocks] = {}
    for of, of_them in names.items():
        mask = (1 << (len(of_them) // BLOCK).bit_length()) - 1
        blocks: dict[int, list[NodeName]] = {}
        for name in of_them:
            blocks.setdefault(crc32(name.encode()) & mask, []).append(name)
        was = before.get(of)
        found[of] = was if was == blocks else blocks
    return found


_ALL: Set[int] = frozenset()


def _stale(was: Blocks, blocks: Blocks, changed: Mapping[NodeName, Sequence[int]]) -> dict[int, Set[int]]:
    """The blocks of which something is to be counted again: lanes by number, or _ALL where the nodes are others."""
    found: dict[int, Set[int]] = {}
    for block, names in blocks.items():
        if was.get(block) != names:
            found[block] = _ALL
        elif changed:
            lanes = {number for name in names for number in changed.get(name, ())}
            if lanes:
                found[block] = lanes
    return found


def _counted(
    cache: Cache,
    source: SourceState,
    number: int,
    blocks: Blocks,
    cells: Mapping[int, Sequence[Sequence[Cell]]],
    kept: Mapping[int, Tally],
) -> dict[int, Tally]:
    found = {}
    for block, names in blocks.items():
        part = kept.get(block)
        if part is None:
            part = tally(cache, source, names, list(map(itemgetter(number), cells[block])))
        found[block] = part
    return found


def _tallies(
    caches: Mapping[StatusKey, Cache],
    sources: Mapping[StatusKey, SourceState],
    rows: Mapping[NodeName, Row],
    last: Mapping[StatusKey, Tally],
    parts: Mapping[Lane, _Parts],
    again: Set[StatusKey],
) -> dict[StatusKey, Tally]:
    found: dict[StatusKey, Tally] = {}
    lanes: dict[StatusKey, list[Lane]] | None = None
    odd: Sequence[tuple[NodeName, Row]] = ()
    for key, source in sources.items():
        was, cache = last.get(key), caches[key]
        if was is not None and was.cache is cache and was.source is source and key not in again:
            found[key] = was
            continue
        if lanes is None:
            lanes, odd = _by_cache(parts), [(name, row) for name, row in rows.items() if row.behind or row.barred]
        mine = lanes.get(key, ())
        made = found[key] = together(cache, source, (part for lane in mine for part in parts[lane].tallies.values()))
        made.barred = any(key in row.barred for _, row in odd)
        made.strays += ((name, row.behind[key]) for name, row in odd if key in row.behind)
        for lane in mine:
            if (orphan := lane.slot.orphan) is not None:
                made.orphans += ((name, orphan) for names in parts[lane].blocks.values() for name in names)
        made.orphans.sort(key=lambda each: each[0])
    return found


def _by_cache(parts: Iterable[Lane]) -> dict[StatusKey, list[Lane]]:
    found: dict[StatusKey, list[Lane]] = {}
    for lane in parts:
        found.setdefault(lane.key, []).append(lane)
    return found
