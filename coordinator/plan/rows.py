"""One node in the fold: a cell for each cache that belongs there, judged again only where something has changed.

    the same lanes, node, models, roots and failure      the row of last time
    other lanes (a cache has changed)                    its cells move along, and those of new lanes are judged
    anything else                                        every cell is judged

A lane stays the same object from plan to plan while its cache, and what is known of its source, do. What a single cell
is, is decided in `cells`.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_, itemgetter
from typing import Any

from actors.errors import Failure
from actors.manifest import StorageKey
from actors.messages import ModelReport, NodeName, Phase, RootReport
from coordinator.api.resources import ModelStatus, NodeStatus, StatusKey
from coordinator.fleet.interface import AgentView
from coordinator.plan.access import discreet
from coordinator.plan.cells import Request, beside, judge, overlay_not_ready
from coordinator.plan.orphans import strays
from coordinator.plan.slots import Slot
from coordinator.plan.snapshot import Cache, Node
from coordinator.plan.tally import Cell, SourceState, is_earlier

FINAL = frozenset(
    {
        "DigestMismatch",
        "InvalidCABundle",
        "InvalidProxy",
        "InvalidURI",
        "NotSignable",
        "PackageMissing",
        "SchemeNotAllowed",
        "SourceConflict",
        "SourceUnsupported",
    }
)
"""Nothing but an edit, or another version of this software, ends these, so no next try is announced."""
_ABOUT_OTHERS = frozenset({"Evicted", "InsufficientStorage"})
"""Failures of which an agent tells what other model is the reason."""

WORDS = {
    NodeStatus.DOWNLOADED: ModelStatus.DOWNLOADED,
    NodeStatus.DOWNLOADING: ModelStatus.DOWNLOADING,
    NodeStatus.ERROR: ModelStatus.ERROR,
    NodeStatus.PENDING: ModelStatus.PENDING,
    NodeStatus.NOT_READY: ModelStatus.PENDING,
}
"""KServe's word for a model on a node, by its word for a node of a cache."""

_WORD = itemgetter(0)
_NOTHING: Cell = (NodeStatus.PENDING, None, None, None)


class Lane:
    """A slot with everything its cells need, looked up once for all nodes of a placement.

    `own` is what is known of the cache's source. `before` is what the cache's status says of each node. `uris`: which a
    reader of the cache may know of; None: all.
    """

    __slots__ = (
        "asks",
        "before",
        "cache",
        "key",
        "own",
        "owned",
        "plain",
        "request",
        "root",
        "selection",
        "silent",
        "slot",
        "storage_key",
        "uris",
    )

    def __init__(self, slot: Slot, own: SourceState, request: Request, uris: Container[str] | None) -> None:
        self.slot = slot
        self.cache = slot.cache
        self.key = slot.cache.key
        self.storage_key = slot.cache.storage_key
        self.selection = slot.cache.selection
        self.root = slot.root
        self.owned = slot.owner is slot.cache
        self.own = own
        self.request = request
        self.plain = request.plain and uris is None
        self.silent = request.source.failure is None
        self.asks = request.access.asks
        self.uris = uris
        before = slot.cache.status.get("nodeStatus")
        self.before: Mapping[str, Any] = before if isinstance(before, Mapping) else {}

    def held(self, name: NodeName) -> bool:
        """The cache's last written status has the node as holding it, or what it asked for before.

        Not the LocalModelNode's: that may be of an earlier cache of the same name, with another URI.
        """
        access = self.request.access
        return self.before.get(name) == NodeStatus.DOWNLOADED and (not access.asks or access.proof is not None)


class Lanes:
    """Those of one placement, in its order, whose roots are at `paths`."""

    def __init__(self, lanes: Sequence[Lane], paths: Sequence[str]) -> None:
        self.lanes = tuple(lanes)
        self.paths = tuple(paths)
        self.keys = tuple(lane.key for lane in lanes)
        self.asks = any(lane.asks for lane in lanes)
        self.orphans = any(lane.slot.orphan is not None for lane in lanes)


@dataclass(slots=True, eq=False)
class Row:
    """One node, as its agent was last heard: `failure`, `models` and `roots` are of that. Numbers are of lanes.

    `behind`: in which folder of an earlier path a copy of the cache was left. `barred`: the caches that were not shown
    to have a right to what is there. `lacking`: the lanes that decide the content of what is not there; `failed` has
    the reports of failures among them. `foreign`: as in `Fold`. `says`: the word of each cell.
    """

    of: Lanes
    node: Node
    failure: Failure | None
    models: Sequence[ModelReport] | None
    roots: Sequence[RootReport]
    cells: list[Cell]
    behind: dict[StatusKey, str] = field(default_factory=dict)
    barred: set[StatusKey] = field(default_factory=set)
    lacking: list[int] = field(default_factory=list)
    failed: list[tuple[int, ModelReport]] = field(default_factory=list)
    foreign: frozenset[StorageKey] = frozenset()
    says: tuple[NodeStatus, ...] = ()

    def is_of(self, node: Node, view: AgentView) -> bool:
        """Whether nothing is new of this node, whatever may be of its caches."""
        models, roots = _said(view)
        return self.node is node and self.failure is view.failure and self.models is models and self.roots is roots

    @property
    def missing(self) -> tuple[Cache, ...]:
        return tuple(self.of.lanes[number].cache for number in self.lacking)

    @property
    def failures(self) -> Iterable[tuple[Cache, ModelReport]]:
        return ((self.of.lanes[number].cache, report) for number, report in self.failed)

    def like(self, was: Row) -> Row:
        """The same, made of the same objects as the last row of the node where these say the same."""
        if self.says == was.says:
            self.says = was.says
        if len(self.cells) == len(was.cells) and all(map(is_, self.cells, was.cells)):
            self.cells = was.cells
        return self


def words(keys: Sequence[StatusKey], says: Sequence[NodeStatus]) -> dict[StatusKey, ModelStatus]:
    """KServe's word for each model on a node."""
    return {key: WORDS[word] for key, word in zip(keys, says, strict=True)}


def _said(view: AgentView) -> tuple[Sequence[ModelReport] | None, Sequence[RootReport]]:
    report = view.report
    return (report.models, report.roots) if report is not None else (None, ())


def row_of(of: Lanes, node: Node, view: AgentView) -> Row:
    """The row of a node, with every cell judged."""
    models, roots = _said(view)
    row = Row(of, node, view.failure, models, roots, [_NOTHING] * len(of.lanes))
    _judge(row, view, range(len(of.lanes)))
    return row


class Shift:
    """From some lanes to others of the same nodes. `kept`: the numbers, as they are now, of those that were there."""

    def __init__(self, before: Lanes, after: Lanes) -> None:
        was = {lane: number for number, lane in enumerate(before.lanes)}
        origins = [was.get(lane) for lane in after.lanes]
        self.after = after
        self._moved = {origin: number for number, origin in enumerate(origins) if origin is not None}
        self._picks = [-1 if origin is None else origin for origin in origins]
        numbers = {key: number for number, key in enumerate(before.keys)}
        self._renewed = [
            (number, numbers[key])
            for number, key in enumerate(after.keys)
            if origins[number] is None and key in numbers
        ]
        self._fresh = [number for number, origin in enumerate(origins) if origin is None]
        self._left = frozenset(before.keys[origin] for origin in self._moved)
        self.kept = [number for number, origin in enumerate(origins) if origin is not None]
        if before.paths != after.paths:
            self._fresh, self._moved, self._left = list(range(len(origins))), {}, frozenset()

    def cells(self, row: Row) -> list[Cell]:
        """Those of the row where they are now; anything for the lanes that are new."""
        return list(itemgetter(*self._picks, -1)(row.cells))[:-1] if self.kept else [_NOTHING] * len(self._picks)

    def moved(self, row: Row, view: AgentView) -> Row:
        """The row of the same node, of which nothing is new, with the lanes of now."""
        found = Row(
            of=self.after,
            node=row.node,
            failure=row.failure,
            models=row.models,
            roots=row.roots,
            cells=self.cells(row),
            behind={key: path for key, path in row.behind.items() if key in self._left},
            barred=row.barred & self._left,
            lacking=[self._moved[number] for number in row.lacking if number in self._moved],
            failed=[(self._moved[number], report) for number, report in row.failed if number in self._moved],
        )
        _judge(found, view, self._fresh)
        for number, origin in self._renewed:
            if is_equal(row.cells[origin], found.cells[number]):
                found.cells[number] = row.cells[origin]
        found.lacking.sort()
        found.failed.sort(key=itemgetter(0))
        return found.like(row)


def is_equal(was: Cell, now: Cell) -> bool:
    """Whether they say the same of the same report. Whether a failure is the source's is told by which object it is."""
    return was[0] is now[0] and was[1] is now[1] and was[2] == now[2] and was[3] is now[3]


def _judge(row: Row, view: AgentView, numbers: Iterable[int]) -> None:
    """Measured: this runs nodes × caches times where all have changed, so what nearly all copies of a large cluster are
    is written out here, as `cells.judge` would say it.
    """
    lanes, cells, report_of, failure = row.of.lanes, row.cells, view.models.get, view.failure
    usual = row.node.ready and not any(root.failure for root in row.roots) and not _lying(row, view)
    heard = failure is None
    ready, downloading, verifying = Phase.READY, Phase.DOWNLOADING, Phase.VERIFYING
    unusual = []
    for number in numbers:
        lane = lanes[number]
        report = report_of(lane.storage_key)
        if not usual or not lane.plain:
            unusual.append(number)
        elif report is None:
            if heard and lane.silent:
                cells[number] = _NOTHING
                if lane.owned:
                    row.lacking.append(number)
            else:
                unusual.append(number)
        elif report.selection != lane.selection or report.earlier is not None or report.root not in ("", lane.root):
            unusual.append(number)
        elif report.phase is ready:
            cells[number] = NodeStatus.DOWNLOADED, failure, None, report
        elif (
            heard
            and report.failure is None
            and report.damage is None
            and (report.phase is downloading or report.phase is verifying)
        ):
            cells[number] = NodeStatus.DOWNLOADING, None, report.retry_at, report
            if lane.owned:
                row.lacking.append(number)
        else:
            unusual.append(number)
    if unusual:
        _judge_fully(row, view, unusual)
    row.says = tuple(map(_WORD, cells))
    if row.of.asks:
        row.foreign = _foreign(row, view.models)


def _lying(row: Row, view: AgentView) -> Mapping[StorageKey, Sequence[str]]:
    return strays(view.report, row.of.paths)


def _judge_fully(row: Row, view: AgentView, numbers: Iterable[int]) -> None:
    node, report_of = row.node, view.models.get
    broken = {root.path: root.failure for root in row.roots if root.failure}
    lying = _lying(row, view)
    for number in numbers:
        lane = row.of.lanes[number]
        report = report_of(lane.storage_key)
        if report is not None and report.root and report.root != lane.root is not None:
            report = None  # another folder's, which an earlier path of the group has left there
        cell = _known_to(lane, judge(lane.request, view, report, view.report is None and lane.held(node.name)))
        if not node.ready:
            cell = overlay_not_ready(cell, view, lane.before.get(node.name, ""))
        if broken and cell[0] is NodeStatus.PENDING and cell[1] is None:  # nothing can start in that folder
            cell = NodeStatus.PENDING, broken.get(lane.root or ""), None, cell[3]
        if lane.asks and report is not None and cell[3] is None:
            row.barred.add(lane.key)
        if lying and lane.root is not None:
            earlier = next((root for root in lying.get(lane.storage_key, ()) if root != lane.root), None)
            if earlier is not None:
                row.behind[lane.key] = earlier
                cell = beside(cell, earlier, lane.root)
        row.cells[number] = cell
        if lane.owned and (cell[0] is not NodeStatus.DOWNLOADED or is_earlier(cell[3])):
            row.lacking.append(number)
            if report is not None and report.failure is not None:
                row.failed.append((number, report))
    row.lacking.sort()


def _known_to(lane: Lane, cell: Cell) -> Cell:
    """The same as readers of the cache may know it, and without a next try where there is none."""
    word, failure, retry_at, report = cell
    if failure is None:
        return cell
    if retry_at is not None and failure.reason in FINAL:
        retry_at = None
    if lane.uris is not None and failure.reason in _ABOUT_OTHERS:
        failure = discreet(failure, lane.uris)
    return word, failure, retry_at, report


def _foreign(row: Row, reports: Mapping[StorageKey, ModelReport]) -> frozenset[StorageKey]:
    """Copies left here for a cache that is gone, where the remaining caches have read other content at the source."""
    lanes = row.of.lanes
    shown = {lane.storage_key for lane, cell in zip(lanes, row.cells, strict=True) if cell[3] is not None}
    return frozenset(
        lane.storage_key
        for lane in lanes
        if lane.owned and lane.asks and lane.request.access.source.answered and lane.storage_key not in shown
        if (report := reports.get(lane.storage_key)) is not None and report.phase is Phase.READY
    )
