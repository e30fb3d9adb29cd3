"""All that is known of one cache: of its source, on one node, and on all nodes together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter, itemgetter

from actors.errors import Failure
from actors.messages import Earlier, ModelReport, NodeName, Phase
from actors.transferred import Transferred, total
from coordinator.api.resources import NodeStatus
from coordinator.plan.content import ANY, Content
from coordinator.plan.snapshot import Cache


@dataclass(frozen=True, slots=True)
class SourceState:
    """All that is known of a cache's source. Neither `resolved` nor `failure`: it is being resolved, or need not be.

    `unreadable`: it cannot be asked, and `resolved` is what the nodes say that hold it; `failing_since` is of that.
    `answered`: what is said here is what it said itself, asked with the cache's own credentials. `content`: of a cache
    whose request may come to several, the one that is asked for (see `plan.versions`).
    """

    resolved: str | None = None
    total_bytes: int | None = None
    revision: str | None = None
    manifest_digest: str | None = None
    failure: Failure | None = None
    retry_at: float | None = None
    unreadable: Failure | None = None
    carries_options: bool = False
    failing_since: float | None = None
    answered: bool = False
    content: Content = ANY


Cell = tuple[NodeStatus, Failure | None, float | None, ModelReport | None]
"""One cache on one node: KServe's word, what is wrong, when it is tried again (epoch seconds), what the agent reports.

The report is None where there is no usable one. A plain tuple, because a large cluster has very many of them.
"""


Version = tuple[str, str | None, str | None]
"""Selection, revision and digest."""

NOTHING_MOVED = Transferred()

_WORD = itemgetter(0)
_BYTES_DONE, _BYTES_TOTAL = attrgetter("bytes_done"), attrgetter("bytes_total")
_STARTED_AT, _FINISHED_AT = attrgetter("started_at"), attrgetter("finished_at")
_REVISION = attrgetter("revision")
_VERSION: Callable[[ModelReport | Earlier], Version] = attrgetter("selection", "revision", "manifest_digest")


@dataclass
class Tally:
    """The sum of what nodes say of one cache: some of them (`tally`), or all (`together`). Made there, then only read.

    `earlier` counts those of the `available` that hold what the spec asked for before, and `prefetched` those of them
    that have beside it what is asked for now. `placed` counts the versions in place, `beside` those beside one.
    `coming` is the revision that is being fetched. `barred`: on some node is a copy that is not shown to be this
    cache's to take. `moved` is what has come over the network for it.
    `orphans`: the nodes that hold a copy and should not any more, each with the reason; they count like the others.
    `strays`: those with a copy in the folder of an earlier path, each with that folder; they do not count.
    `held_on` and `coming_on`: the first nodes, by name, whose revision and digest, or coming revision, stands here.
    """

    cache: Cache
    source: SourceState
    node_status: dict[str, NodeStatus] = field(default_factory=dict)
    available: int = 0
    failed: int = 0
    downloading: int = 0
    earlier: int = 0
    prefetched: int = 0
    placed: Counter[Version] = field(default_factory=Counter)
    beside: Counter[Version] = field(default_factory=Counter)
    barred: bool = False
    bytes_total: int = 0
    bytes_cached: int = 0
    rate: float = 0.0
    seconds_left: float | None = None
    unmeasured: int = 0
    revision: str | None = None
    manifest_digest: str | None = None
    held_on: NodeName | None = None
    coming: str | None = None
    coming_on: NodeName | None = None
    started_at: float | None = None
    finished_at: float | None = None
    moved: Transferred = NOTHING_MOVED
    troubles: list[tuple[NodeName, Failure, float | None]] = field(default_factory=list)
    orphans: list[tuple[NodeName, str]] = field(default_factory=list)
    strays: list[tuple[NodeName, str]] = field(default_factory=list)

    @cached_property
    def words(self) -> Mapping[NodeStatus, int]:
        """How many nodes there are of each word."""
        return Counter(self.node_status.values())

    @property
    def total(self) -> int:
        return len(self.node_status)

    @property
    def size_bytes(self) -> int:
        """Of one copy; 0 as long as it is not known."""
        return self.source.total_bytes or self.bytes_total

    def _count_other(self, node: NodeName, cell: Cell) -> None:
        """Neither a copy that is as it should be nor one that arrives without trouble."""
        word, failure, retry_at, report = cell
        held = word is NodeStatus.DOWNLOADED
        if held and report is None:
            self.available += 1
            self.unmeasured += 1
            self.earlier += self.cache.status.get("selection") not in (None, self.cache.selection)
            return
        if failure is not None:
            self.troubles.append((node, failure, retry_at))
        if held and report is not None and report.earlier is not None:
            self.available += 1
            self.earlier += 1
            self.prefetched += report.prefetched
            self._count_earlier(report, report.earlier)
            return
        if report is not None:
            self.bytes_cached += report.bytes_done
        if word is NodeStatus.ERROR:
            self.failed += 1
        elif word is NodeStatus.DOWNLOADING and report is not None:
            self._count_progress([report])

    def _count_earlier(self, report: ModelReport, earlier: Earlier) -> None:
        if report.phase in (Phase.DOWNLOADING, Phase.VERIFYING):
            self.bytes_cached += report.bytes_done
            self._count_progress([report])
        else:
            self.bytes_cached += earlier.bytes_total
            self.bytes_total = max(self.bytes_total, earlier.bytes_total)

    def _count_progress(self, reports: Sequence[ModelReport]) -> None:
        rates, most = self.rate, -math.inf if self.seconds_left is None else self.seconds_left
        for report in reports:
            rate = report.rate_bytes_per_s
            if rate >= 1:
                rates += rate
                left = (report.bytes_total - report.bytes_done) / rate
                if left > most:
                    most = max(left, 0.0)
        self.downloading += len(reports)
        self.rate, self.seconds_left = rates, None if most < 0 else most

    def _add(self, part: Tally) -> None:
        """All but the copies: what is known of the nodes of `part` too."""
        self.node_status.update(part.node_status)
        self.available += part.available
        self.failed += part.failed
        self.downloading += part.downloading
        self.earlier += part.earlier
        self.prefetched += part.prefetched
        self.placed.update(part.placed)
        self.beside.update(part.beside)
        self.unmeasured += part.unmeasured
        self.bytes_cached += part.bytes_cached
        self.rate += part.rate
        self.troubles += part.troubles
        if part.bytes_total > self.bytes_total:
            self.bytes_total = part.bytes_total
        self.seconds_left = _beyond(max, self.seconds_left, part.seconds_left)
        self.started_at = _beyond(min, self.started_at, part.started_at)
        self.finished_at = _beyond(max, self.finished_at, part.finished_at)
        if part.coming_on is not None and (self.coming_on is None or part.coming_on < self.coming_on):
            self.coming, self.coming_on = part.coming, part.coming_on
        if part.held_on is not None and (self.held_on is None or _rank(part) < _rank(self)):
            self.revision, self.manifest_digest, self.held_on = part.revision, part.manifest_digest, part.held_on


def _rank(known: Tally) -> tuple[bool, str]:
    return known.manifest_digest is None, known.held_on or ""


def _beyond(which: Callable[[float, float], float], one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return which(one, other)


def tally(cache: Cache, source: SourceState, nodes: Sequence[NodeName], cells: Sequence[Cell]) -> Tally:
    """The sum of these cells, one for each node and in the order of their names.

    Measured: a large cluster has very many cells, so what nearly all of them are is summed up by one pass for each
    number.
    """
    found = Tally(cache, source, dict(zip(nodes, map(_WORD, cells), strict=True)))
    ready, moving, others = [], [], []
    downloaded, downloading = NodeStatus.DOWNLOADED, NodeStatus.DOWNLOADING
    for number, (word, failure, _, report) in enumerate(cells):
        if report is None or report.earlier is not None:
            others.append(number)
        elif word is downloaded:
            ready.append(report)
        elif word is downloading and failure is None:
            moving.append(report)
        else:
            others.append(number)
    reports = ready + moving
    reports += (report for number in others if (report := cells[number][3]) is not None)
    if reports:
        found.placed.update(map(_VERSION, ready))
        found.placed.update(_VERSION(report.earlier) for report in reports if report.earlier is not None)
        found.beside.update(_VERSION(each) for report in reports if report.beside for each in report.beside)
        found.started_at = min([at for at in map(_STARTED_AT, reports) if at is not None], default=None)
        found.bytes_total = max(map(_BYTES_TOTAL, reports))
        found.moved = total(reports)
        if any(map(_REVISION, reports)):
            said = ((node, cell[3].revision) for node, cell in zip(nodes, cells, strict=True) if cell[3] is not None)
            found.coming_on, found.coming = next((each for each in said if each[1] is not None), (None, None))
    if ready:
        found.available = len(ready)
        found.bytes_cached = sum(map(_BYTES_TOTAL, ready))
        found.finished_at = max([at for at in map(_FINISHED_AT, ready) if at is not None], default=None)
        held = [(node, cell[3]) for node, cell in zip(nodes, cells, strict=True) if cell[0] is downloaded and cell[3]]
        whole = ((node, report) for node, report in held if report.earlier is None)
        found.held_on, first = min(whole, key=lambda each: (each[1].manifest_digest is None, each[0]))
        found.manifest_digest, found.revision = first.manifest_digest, first.revision
    if moving:
        found.bytes_cached += sum(map(_BYTES_DONE, moving))
        found._count_progress(moving)
    for number in others:
        found._count_other(nodes[number], cells[number])
    return found


def together(cache: Cache, source: SourceState, parts: Iterable[Tally]) -> Tally:
    """The sum of tallies of different nodes."""
    parts, found = list(parts), Tally(cache, source)
    for part in parts:
        found._add(part)
    found.moved = total(part.moved for part in parts)
    return found


def is_earlier(report: ModelReport | None) -> bool:
    """Whether what a node holds is not what the spec asks for now."""
    return report is not None and report.earlier is not None


def remaining_seconds(report: ModelReport) -> float | None:
    """None while nothing moves."""
    rate, left = report.rate_bytes_per_s, report.bytes_total - report.bytes_done
    if rate < 1:
        return None
    return left / rate if left > 0 else 0.0
