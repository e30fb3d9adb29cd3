"""The fold: what every agent reports becomes what every cache is.

    Phase        Pending               Downloading, Verifying   Ready            Failed
    NodeStatus   NodeDownloadPending   NodeDownloading          NodeDownloaded   NodeDownloadError

A damaged copy is NodeDownloadError, and NodeDownloading while it is repaired, both with the reason `Damaged`.

Status is rebuilt from the reports each time. It is read back in two cases only, where nobody can be asked: an agent
that is silent, and a node that is NotReady. What a single node is to a single cache is judged in `cells`.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.manifest import StorageKey
from actors.messages import ModelReport, NodeName, Phase
from actors.times import rfc3339
from coordinator.api.resources import ModelStatus, NodeStatus, StatusKey
from coordinator.fleet.interface import AgentView
from coordinator.plan.access import Access, asks_itself, discreet
from coordinator.plan.cells import Request, beside, judge, overlay_not_ready
from coordinator.plan.cells import explained as explained
from coordinator.plan.orphans import orphaned_since, strays
from coordinator.plan.placement import Members, Placement, Slot
from coordinator.plan.snapshot import Cache, LocalNode, Node, Snapshot
from coordinator.plan.status import agent_detail, local_node_status, model_detail
from coordinator.plan.tally import Cell, SourceState, Tally, is_earlier

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
SETTLING_S = 15.0
"""For so long a coordinator that begins to act does not say of agents that it has not heard yet that they start."""
_ABOUT_OTHERS = frozenset({"Evicted", "InsufficientStorage"})
"""Failures of which an agent tells what other model is the reason."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What there is budget to write: progress of these nodes, and news of this many others."""

    progress: Container[NodeName]
    news: int


@dataclass(frozen=True, slots=True)
class Fold:
    """`caches`: a tally for every cache not deleted. `nodes`: the wanted status of LocalModelNodes.

    A node is left out of `nodes` where there is nothing to write or no budget for it. `missing` names what each node
    lacks, by the caches that decide the content; `failed` holds the reports of failures among them. `foreign`: copies
    that none of those who want the model may take for their own.
    """

    nodes: dict[NodeName, Mapping[str, Any]]
    caches: Mapping[StatusKey, Tally]
    missing: dict[NodeName, Sequence[Cache]]
    failed: list[tuple[Cache, ModelReport]]
    foreign: dict[NodeName, frozenset[StorageKey]] = field(default_factory=dict)


class _Lane:
    """A slot with everything its cells need, looked up once for all nodes of a placement.

    `before` is what the cache's status says of each node. `uris`: which a reader of the cache may know of; None: all.
    """

    __slots__ = ("asks", "before", "cache", "key", "owned", "request", "root", "slot", "storage_key", "tally", "uris")

    def __init__(self, slot: Slot, tally: Tally, request: Request, uris: Container[str] | None) -> None:
        self.slot = slot
        self.cache = slot.cache
        self.key = slot.cache.key
        self.storage_key = slot.cache.storage_key
        self.root = slot.root
        self.owned = slot.owner is slot.cache
        self.tally = tally
        self.request = request
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


@dataclass(slots=True)
class _Row:
    """One node: a cell for each of its lanes, and KServe's word for each model.

    `behind`: in which folder of an earlier path a copy of the cache was left. `barred`: the caches that were not shown
    to have a right to what is there. `missing`, `failed`, `foreign`: as in `Fold`.
    """

    cells: list[Cell] = field(default_factory=list)
    words: dict[StatusKey, ModelStatus] = field(default_factory=dict)
    behind: dict[StatusKey, str] = field(default_factory=dict)
    barred: list[_Lane] = field(default_factory=list)
    missing: list[Cache] = field(default_factory=list)
    failed: list[tuple[Cache, ModelReport]] = field(default_factory=list)


def fold(
    snapshot: Snapshot,
    members: Members,
    sources: Mapping[StatusKey, SourceState],
    turn: Turn | None = None,
    now: float = 0.0,
) -> Fold:
    """Every report, once. `sources` has an entry for every cache that is not being deleted; `turn` None: no budget."""
    folded = Fold({}, {key: Tally(snapshot.caches[key], source) for key, source in sources.items()}, {}, [], {})
    lanes_of = _lanes(snapshot, members, sources, folded.caches)
    news = turn.news if turn else len(members.placements)
    settling = now < snapshot.acting_since + SETTLING_S
    for name, placement in sorted(members.placements.items(), key=_name):
        lanes, node, local = lanes_of[placement], snapshot.nodes[name], snapshot.local_nodes.get(name)
        view = explained(snapshot.agent(name), node)
        row = _row(lanes, placement, node, view)
        _add(folded, name, lanes, row)
        if any(lane.asks for lane in lanes):
            folded.foreign[name] = _foreign(lanes, row.cells, view.models)
        written = local.status if local else {}
        agent = agent_detail(view, local, settling=settling)
        if row.words != written.get("modelStatus") or agent != written.get("agent"):
            wanted, news = news > 0, news - 1
        else:
            wanted = turn is None or name in turn.progress
        if wanted:
            details: list[Mapping[str, Any]] = [
                model_detail(lane.key, cell) | _times_of_orphan(snapshot, lane, local, now, lane.key in row.behind)
                for lane, cell in zip(lanes, row.cells, strict=True)
            ]
            folded.nodes[name] = local_node_status(row.words, details, view, local, settling=settling)
    return folded


def _lanes(
    snapshot: Snapshot,
    members: Members,
    sources: Mapping[StatusKey, SourceState],
    tallies: Mapping[StatusKey, Tally],
) -> dict[Placement, list[_Lane]]:
    uris: dict[str, set[str]] = {}
    for cache in snapshot.caches.values():
        if cache.ref.namespace is not None:
            uris.setdefault(cache.ref.namespace, set()).add(cache.source.uri)

    def lane(slot: Slot) -> _Lane:
        cache, own = slot.cache, sources[slot.cache.key]
        shares = not asks_itself(cache) and own.resolved is None and own.failure is None
        source = sources[slot.owner.key] if shares else own
        namespace = cache.ref.namespace
        request = Request(slot, source, Access.of(cache, own))
        return _Lane(slot, tallies[cache.key], request, None if namespace is None else uris[namespace])

    return {placement: [lane(slot) for slot in placement.slots] for placement in members.by_placement}


def _row(lanes: Sequence[_Lane], placement: Placement, node: Node, view: AgentView) -> _Row:
    """What the node is to each cache. Measured: its loop runs nodes × caches times, so it is written out in one piece
    and makes no objects that it does not need, which is why it has so many branches.
    """
    row, name, report_of = _Row(), node.name, view.models.get
    broken = {root.path: root.failure for root in view.report.roots if root.failure} if view.report else {}
    lying = strays(view.report, [root.path for root in placement.roots])
    for lane in lanes:
        report = report_of(lane.storage_key)
        if report is not None and report.root and report.root != lane.root is not None:
            report = None  # another folder's, which an earlier path of the group has left there
        cell = judge(lane.request, view, report, view.report is None and lane.held(name))
        failure = cell[1]
        if failure is not None:
            if cell[2] is not None and failure.reason in FINAL:
                cell = cell[0], failure, None, cell[3]
            if lane.uris is not None and failure.reason in _ABOUT_OTHERS:
                cell = cell[0], discreet(failure, lane.uris), cell[2], cell[3]
        if not node.ready:
            cell = overlay_not_ready(cell, view, lane.before.get(name, ""))
        if broken and cell[0] is NodeStatus.PENDING and cell[1] is None:  # nothing can start in that folder
            cell = NodeStatus.PENDING, broken.get(lane.root or ""), None, cell[3]
        if lane.asks and report is not None and cell[3] is None:
            row.barred.append(lane)
        if lying and lane.root is not None:
            earlier = next((root for root in lying.get(lane.storage_key, ()) if root != lane.root), None)
            if earlier is not None:
                row.behind[lane.key] = earlier
                cell = beside(cell, earlier, lane.root)
        row.cells.append(cell)
        row.words[lane.key] = _WORDS[cell[0]]
        if lane.owned and (cell[0] is not NodeStatus.DOWNLOADED or is_earlier(cell[3])):
            row.missing.append(lane.cache)
            if report is not None and report.failure is not None:
                row.failed.append((lane.cache, report))
    return row


_WORDS = {
    NodeStatus.DOWNLOADED: ModelStatus.DOWNLOADED,
    NodeStatus.DOWNLOADING: ModelStatus.DOWNLOADING,
    NodeStatus.ERROR: ModelStatus.ERROR,
    NodeStatus.PENDING: ModelStatus.PENDING,
    NodeStatus.NOT_READY: ModelStatus.PENDING,
}


def _add(folded: Fold, name: NodeName, lanes: Sequence[_Lane], row: _Row) -> None:
    for lane, cell in zip(lanes, row.cells, strict=True):
        lane.tally.add(name, cell)
        if lane.slot.orphan is not None:
            lane.tally.orphans.append((name, lane.slot.orphan))
    for lane in lanes if row.behind else ():
        if lane.key in row.behind:
            lane.tally.strays.append((name, row.behind[lane.key]))
    for lane in row.barred:
        lane.tally.barred = True
    folded.missing[name] = row.missing
    folded.failed.extend(row.failed)


def _times_of_orphan(
    snapshot: Snapshot, lane: _Lane, local: LocalNode | None, now: float, beside: bool
) -> dict[str, Any]:
    slot = lane.slot
    if slot.orphan is None and not beside:
        return {}
    since = orphaned_since(local, slot.cache.key, now)
    times = {"orphanedSince": rfc3339(since)}
    if snapshot.orphan_grace_s is not None and not slot.cache.pinned:
        times["removalTime"] = rfc3339(since + snapshot.orphan_grace_s)
    return times


def _name(item: tuple[NodeName, Placement]) -> str:
    return item[0]


def _foreign(
    lanes: Sequence[_Lane], cells: Sequence[Cell], reports: Mapping[StorageKey, ModelReport]
) -> frozenset[StorageKey]:
    """Copies left here for a cache that is gone, where the remaining caches have read other content at the source."""
    shown = {lane.storage_key for lane, cell in zip(lanes, cells, strict=True) if cell[3] is not None}
    return frozenset(
        lane.storage_key
        for lane in lanes
        if lane.owned and lane.asks and lane.request.access.source.answered and lane.storage_key not in shown
        if (report := reports.get(lane.storage_key)) is not None and report.phase is Phase.READY
    )
