"""The fold: what every agent reports becomes what every cache is.

    Phase        Pending               Downloading, Verifying   Ready            Failed
    NodeStatus   NodeDownloadPending   NodeDownloading          NodeDownloaded   NodeDownloadError

A damaged copy is NodeDownloadError, and NodeDownloading while it is repaired, both with the reason `Damaged`.

Status is rebuilt from the reports each time. It is read back in two cases only, where nobody can be asked: an agent
that is silent, and a node that is NotReady. This is the hot loop of a large cluster (nodes × caches); its inner part
makes no objects that it does not need.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from actors.errors import Failure
from actors.manifest import StorageKey
from actors.messages import Earlier, ModelReport, NodeName, Phase
from actors.times import rfc3339
from coordinator.api.resources import ModelStatus, NodeStatus, StatusKey
from coordinator.fleet.interface import AgentView
from coordinator.plan.access import Access, asks_itself, discreet, of_report
from coordinator.plan.orphans import orphaned_since, strays
from coordinator.plan.placement import Members, Placement, Slot
from coordinator.plan.snapshot import Cache, LocalNode, Node, Resolution, Snapshot
from coordinator.plan.status import agent_detail, local_node_status, model_detail
from coordinator.plan.tally import Cell, SourceState, Tally, is_earlier

NODE_NOT_READY = Failure("NodeNotReady", "the Kubernetes node is not ready")
NO_REASON = Failure("DownloadFailed", "the node agent gave no reason")
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

    nodes: Mapping[NodeName, Mapping[str, Any]]
    caches: Mapping[StatusKey, Tally]
    missing: Mapping[NodeName, Sequence[Cache]]
    failed: Sequence[tuple[Cache, ModelReport]]
    foreign: Mapping[NodeName, frozenset[StorageKey]] = field(default_factory=dict)


def source_state(cache: Cache, resolution: Resolution | None) -> SourceState:
    """A resolution of other content than `spec.digest` names is a failure: nothing of it is to be downloaded."""
    if resolution is None:
        return SourceState()
    if resolution.resolved is None:
        return SourceState(failure=resolution.failure, retry_at=resolution.retry_at)
    manifest = resolution.resolved.manifest
    if manifest.source.selection != cache.selection:
        return SourceState()  # the answer to an earlier spec
    digest = manifest.digest
    failure = None
    if cache.digest and digest and digest != cache.digest:
        failure = _mismatch(cache, f"the source has {digest}")
    return SourceState(
        resolved=None if failure else resolution.resolved.name,
        total_bytes=None if manifest.packed else manifest.total_bytes,  # what it holds has another size
        revision=manifest.revision,
        manifest_digest=digest,
        failure=failure,
        retry_at=resolution.retry_at if resolution.resolved.unreadable else None,
        unreadable=resolution.resolved.unreadable,
        carries_options=resolution.resolved.carries_options,
        failing_since=resolution.failing_since,
        answered=resolution.resolved.unreadable is None,
    )


def _mismatch(cache: Cache, found: str) -> Failure:
    message = f"{found}, spec.digest wants {cache.digest}: correct it, or the source"
    return Failure("DigestMismatch", message, retryable=False)


def judge(
    slot: Slot,
    view: AgentView,
    report: ModelReport | None,
    source: SourceState,
    held: bool,
    access: Access | None = None,
) -> Cell:
    """What one node is to one cache. `held`: the last written status had the model Downloaded there.

    `access` None: it is worked out here, which is slower where there are many nodes.
    """
    cache, access = slot.cache, access or Access.of(slot.cache, source)
    if not access.granted or (report is not None and not _is_open(access, report)):
        return _barred(access, view)
    if slot.orphan is not None and (report is None or report.damage is None):
        known = report if report is not None and access.is_current(report) else None
        return NodeStatus.DOWNLOADED, Failure("Orphaned", slot.orphan), None, known
    if report is not None and (slot.conflict is not None or not access.is_current(report) or report.earlier):
        earlier = access.served(report)
        if earlier is not None:
            return _served(slot, view, report, source, earlier, access)
    if slot.conflict is not None:
        return NodeStatus.ERROR, slot.conflict, None, None
    if report is not None and not access.is_current(report):
        report = None  # an earlier request's copy, about to be replaced
    if report is not None and report.phase is Phase.READY:
        if cache.digest and report.manifest_digest and report.manifest_digest != cache.digest:
            return NodeStatus.ERROR, _mismatch(cache, f"the copy has {report.manifest_digest}"), None, report
        return NodeStatus.DOWNLOADED, view.failure, None, report
    if view.failure is not None:  # nobody to ask: what was there still is
        word = NodeStatus.DOWNLOADED if held and report is None else NodeStatus.PENDING
        return word, view.failure, None, report
    if report is not None:
        phase = report.phase
        if report.damage is not None:
            return _damaged(report, source)
        if phase is Phase.DOWNLOADING or phase is Phase.VERIFYING:
            return NodeStatus.DOWNLOADING, report.failure, report.retry_at, report
        if phase is Phase.FAILED:
            return NodeStatus.ERROR, report.failure or NO_REASON, report.retry_at, report
        if phase is Phase.PENDING and report.failure is not None:
            return NodeStatus.PENDING, report.failure, report.retry_at, report
    if source.failure is not None:
        return NodeStatus.ERROR, source.failure, source.retry_at, report
    return NodeStatus.PENDING, None, None, report


def _is_open(access: Access, report: ModelReport) -> bool:
    """Whether the cache may be told of it: of its own, and of what nothing is known of yet."""
    if not access.asks or access.permits(report):
        return True
    if report.earlier is not None and access.permits(report.earlier):
        return True
    unknown = report.phase is not Phase.READY and report.manifest_digest is None and report.revision is None
    return unknown and report.selection == access.cache.selection


_UNPROVEN = Failure(
    "Unproven",
    "the node holds a copy that a cache with credentials of its own may have brought from elsewhere; it is this cache's"
    " once its own source has been read and has the same",
)


def _barred(access: Access, view: AgentView) -> Cell:
    """Whatever the node holds or fetches, this cache has not been shown to have a right to it."""
    cache, source = access.cache, access.source
    if source.failure is not None:
        return NodeStatus.ERROR, source.failure, source.retry_at, None
    if not source.answered:
        return NodeStatus.PENDING, view.failure or (_UNPROVEN if cache.contested else None), None, None
    found = source.revision or source.manifest_digest or "other files"
    message = (
        f"the node holds other content of {cache.source.uri} for another cache; for this one the source has {found}."
        " One folder holds one of them: this one is fetched once no other cache wants what is there"
    )
    return NodeStatus.ERROR, Failure("SourceConflict", message, retryable=False), None, None


def _served(
    slot: Slot, view: AgentView, report: ModelReport, source: SourceState, earlier: Earlier, access: Access
) -> Cell:
    """What was asked for before is there and is served; why what is asked for now is not there."""
    if not access.is_current(report):  # what is under way, if anything, is for somebody else
        report = of_earlier(report)
    failure, retry_at = slot.conflict or view.failure or report.failure, None
    if failure is report.failure:
        retry_at = report.retry_at
    if failure is None and report.phase not in (Phase.DOWNLOADING, Phase.VERIFYING):
        failure, retry_at = source.failure, source.retry_at
    return NodeStatus.DOWNLOADED, failure, retry_at, replace(report, earlier=earlier)


def of_earlier(report: ModelReport) -> ModelReport:
    """Nothing but the copy that is there."""
    kept = report.earlier or of_report(report)
    return ModelReport(
        key=report.key,
        phase=Phase.PENDING,
        selection=report.selection,
        started_at=report.started_at if report.phase is Phase.READY else None,
        finished_at=kept.finished_at,
        bytes_from_origin=report.bytes_from_origin if report.phase is Phase.READY else 0,
        bytes_from_peers=report.bytes_from_peers if report.phase is Phase.READY else 0,
    )


def _damaged(report: ModelReport, source: SourceState) -> Cell:
    """Out of service until it is repaired, and `Damaged` whatever holds the repair up."""
    under_way = report.phase in (Phase.DOWNLOADING, Phase.VERIFYING)
    cause = report.failure or (None if under_way else source.failure)
    state = "being repaired" if under_way else "not repaired yet"
    message = f"{report.damage}; {state}" + (f": {cause.message}" if cause else "")
    retry_at = report.retry_at if report.failure else source.retry_at
    word = NodeStatus.DOWNLOADING if under_way else NodeStatus.ERROR
    return word, Failure("Damaged", message), retry_at, report


def overlay_not_ready(cell: Cell, view: AgentView, before: str) -> Cell:
    """The same on a node that Kubernetes calls NotReady. `before`: this node's entry in the cache's status.

    As KServe: only a node without an entry becomes NodeNotReady; the others keep theirs while nobody reports. What was
    Downloaded and is not any more (the request has changed) is Pending.
    """
    word, failure, retry_at, report = cell
    if word is NodeStatus.DOWNLOADED:
        return cell
    if before in ("", NodeStatus.NOT_READY):
        return NodeStatus.NOT_READY, NODE_NOT_READY, None, report
    if view.failure is None:
        return cell
    word = NodeStatus.PENDING if before == NodeStatus.DOWNLOADED else _WORDS.get(before, NodeStatus.PENDING)
    return word, failure, retry_at, report


_WORDS = {word.value: word for word in NodeStatus}


class _Lane:
    """A slot with everything its cells need, looked up once for all nodes of a placement."""

    __slots__ = ("access", "asks", "before", "cache", "key", "owned", "slot", "source", "storage_key", "tally")

    def __init__(
        self, slot: Slot, tallies: Mapping[StatusKey, Tally], sources: Mapping[StatusKey, SourceState]
    ) -> None:
        self.slot = slot
        self.cache = slot.cache
        self.key = slot.cache.key
        self.storage_key = slot.cache.storage_key
        self.owned = slot.owner is slot.cache
        own = sources[slot.cache.key]
        shares = not asks_itself(slot.cache) and own.resolved is None and own.failure is None
        self.source = sources[slot.owner.key] if shares else own
        self.access = Access.of(slot.cache, own)
        self.asks = self.access.asks
        self.tally = tallies[slot.cache.key]
        before = self.tally.cache.status.get("nodeStatus")
        self.before: Mapping[str, Any] = before if isinstance(before, Mapping) else {}


def fold(
    snapshot: Snapshot,
    members: Members,
    sources: Mapping[StatusKey, SourceState],
    turn: Turn | None = None,
    now: float = 0.0,
) -> Fold:
    """Every report, once. `sources` has an entry for every cache that is not being deleted; `turn` None: no budget."""
    tallies = {key: Tally(snapshot.caches[key], source) for key, source in sources.items()}
    lanes_of: dict[Placement, list[_Lane]] = {}
    nodes: dict[NodeName, Mapping[str, Any]] = {}
    missing: dict[NodeName, list[Cache]] = {}
    failed: list[tuple[Cache, ModelReport]] = []
    foreign: dict[NodeName, frozenset[StorageKey]] = {}
    news = turn.news if turn else len(members.placements)
    settling = now < snapshot.acting_since + SETTLING_S
    uris: dict[str, set[str]] = {}
    for cache in snapshot.caches.values():
        if cache.ref.namespace is not None:
            uris.setdefault(cache.ref.namespace, set()).add(cache.source.uri)
    for name, placement in sorted(members.placements.items(), key=_name):
        lanes = lanes_of.get(placement)
        if lanes is None:
            lanes = lanes_of[placement] = [_Lane(slot, tallies, sources) for slot in placement.slots]
        view, local = snapshot.agent(name), snapshot.local_nodes.get(name)
        node = snapshot.nodes[name]
        ready, view = node.ready, explained(view, node)
        reports = view.models
        broken = {root.path: root.failure for root in view.report.roots if root.failure} if view.report else {}
        cells: list[Cell] = []
        words: dict[StatusKey, ModelStatus] = {}
        lacking = missing[name] = []
        lying = strays(view.report, [root.path for root in placement.roots])
        behind: dict[StatusKey, str] = {}
        for lane in lanes:
            report = reports.get(lane.storage_key)
            if report is not None and report.root and report.root != lane.slot.root is not None:
                report = None  # another folder's, which an earlier path of the group has left there
            held = view.report is None and _held(lane.access, lane.before.get(name, ""))
            cell = judge(lane.slot, view, report, lane.source, held, lane.access)
            if cell[1] is not None and cell[2] is not None and cell[1].reason in FINAL:
                cell = cell[0], cell[1], None, cell[3]
            namespace = lane.cache.ref.namespace
            if namespace is not None and cell[1] is not None and cell[1].reason in _ABOUT_OTHERS:
                cell = cell[0], discreet(cell[1], uris[namespace]), cell[2], cell[3]
            if not ready:
                cell = overlay_not_ready(cell, view, lane.before.get(name, ""))
            if broken and cell[0] is NodeStatus.PENDING and cell[1] is None:  # nothing can start in that folder
                cell = NodeStatus.PENDING, broken.get(lane.slot.root or ""), None, cell[3]
            if lane.asks and report is not None and cell[3] is None:
                lane.tally.barred = True
            if lying and lane.slot.root is not None:
                earlier = next((root for root in lying.get(lane.storage_key, ()) if root != lane.slot.root), None)
                if earlier is not None:
                    behind[lane.key] = earlier
                    lane.tally.strays.append((name, earlier))
                    cell = _beside(cell, earlier, lane.slot.root)
            lane.tally.add(name, cell)
            if lane.slot.orphan is not None:
                lane.tally.orphans.append((name, lane.slot.orphan))
            cells.append(cell)
            word = cell[0]
            if word is NodeStatus.DOWNLOADED:
                words[lane.key] = ModelStatus.DOWNLOADED
                if not is_earlier(cell[3]):
                    continue
            elif word is NodeStatus.DOWNLOADING:
                words[lane.key] = ModelStatus.DOWNLOADING
            else:
                words[lane.key] = ModelStatus.ERROR if word is NodeStatus.ERROR else ModelStatus.PENDING
            if lane.owned:
                lacking.append(lane.cache)
                if report is not None and report.failure is not None:
                    failed.append((lane.cache, report))
        if any(lane.asks for lane in lanes):
            foreign[name] = _foreign(lanes, cells, reports)
        written = local.status if local else {}
        if words != written.get("modelStatus") or agent_detail(view, local, settling=settling) != written.get("agent"):
            wanted, news = news > 0, news - 1
        else:
            wanted = turn is None or name in turn.progress
        if wanted:
            details: list[Mapping[str, Any]] = [
                model_detail(lane.key, cell) | _times_of_orphan(snapshot, lane, local, now, lane.key in behind)
                for lane, cell in zip(lanes, cells, strict=True)
            ]
            nodes[name] = local_node_status(words, details, view, local, settling=settling)
    return Fold(nodes, tallies, missing, failed, foreign)


def _beside(cell: Cell, earlier: str, root: str) -> Cell:
    """The same of a node that has a copy in the folder of an earlier path, too."""
    word, failure, retry_at, report = cell
    stays = f"a copy stays in {earlier} for now, where the node group's path was before it was {root}"
    if failure is None:
        return word, Failure("Orphaned", stays) if word is NodeStatus.DOWNLOADED else None, retry_at, report
    stays += "; it is used again, and nothing is fetched, if that is put right"
    return word, replace(failure, message=f"{failure.message}; {stays}"), retry_at, report


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


def _held(access: Access, before: str) -> bool:
    """The cache's last written status has the node as holding it, or what it asked for before.

    Not the LocalModelNode's: that may be of an earlier cache of the same name, with another URI.
    """
    return before == NodeStatus.DOWNLOADED and (not access.asks or access.proof is not None)


def _foreign(
    lanes: Sequence[_Lane], cells: Sequence[Cell], reports: Mapping[StorageKey, ModelReport]
) -> frozenset[StorageKey]:
    """What was left here for a cache that is gone, where those that are left have read other content at the source."""
    shown = {lane.storage_key for lane, cell in zip(lanes, cells, strict=True) if cell[3] is not None}
    return frozenset(
        lane.storage_key
        for lane in lanes
        if lane.owned and lane.asks and lane.access.source.answered and lane.storage_key not in shown
        if (report := reports.get(lane.storage_key)) is not None and report.phase is Phase.READY
    )


def explained(view: AgentView, node: Node) -> AgentView:
    """The same with the Kubernetes node as the reason, where it is."""
    failure = view.failure
    if failure is None or failure.reason in ("AgentError", "RayUnavailable"):
        return view
    if not node.ready:
        message = f"node {node.name} is not ready: its kubelet does not report, or reports a problem"
        return replace(view, failure=Failure("NodeNotReady", message))
    if node.cordoned and failure.reason == "NoRayNode":
        message = f"node {node.name} is cordoned and has no Ray worker: it gets one after kubectl uncordon {node.name}"
        return replace(view, failure=Failure("NodeCordoned", message))
    return view
