"""The fold: what agents report becomes KServe's words and our numbers, per node and per cache.

    Phase         Pending               Downloading, Verifying   Ready            Failed
    NodeStatus    NodeDownloadPending   NodeDownloading          NodeDownloaded   NodeDownloadError
    ModelStatus   ModelDownloadPending  ModelDownloading         ModelDownloaded  ModelDownloadError

Status is for reading, never for deciding: it is rebuilt from the reports each time. It is read back in one case only,
when an agent is silent: a node that held the model then still does. All of it is pure, and this is the hot loop of a
large cluster (nodes × caches), so it makes plain dictionaries, and few of them.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

from actors.errors import Failure
from actors.messages import ModelReport, NodeName, NodeReport, Phase, RootReport
from coordinator.api import ModelStatus, NodeStatus, StatusKey
from coordinator.fleet import AgentView
from coordinator.members import Members, Slot
from coordinator.quantity import format_bytes, format_duration, format_percent
from coordinator.snapshot import Cache, LocalNode, Resolution, Snapshot

NODE_NOT_READY = Failure("NodeNotReady", "the Kubernetes node is not ready")
NO_REASON = Failure("DownloadFailed", "the node agent gave no reason")
STARTING = AgentView(failure=Failure("AgentStarting", "the node agent has not reported yet"))

MODEL_STATUS = {
    NodeStatus.NOT_READY: ModelStatus.PENDING,
    NodeStatus.PENDING: ModelStatus.PENDING,
    NodeStatus.DOWNLOADING: ModelStatus.DOWNLOADING,
    NodeStatus.DOWNLOADED: ModelStatus.DOWNLOADED,
    NodeStatus.ERROR: ModelStatus.ERROR,
}

SETTLE = 0.01
"""A byte count of a disk is written again when it has moved by more than this share: other programs write there too."""


@dataclass(frozen=True, slots=True)
class SourceState:
    """What is known of a cache's source. Neither `resolved` nor `failure`: it is being resolved, or need not be."""

    resolved: str | None = None
    total_bytes: int | None = None
    revision: str | None = None
    manifest_digest: str | None = None
    failure: Failure | None = None
    retry_at: float | None = None


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
        total_bytes=manifest.total_bytes,
        revision=manifest.revision,
        manifest_digest=digest,
        failure=failure,
    )


def _mismatch(cache: Cache, found: str) -> Failure:
    return Failure("DigestMismatch", f"{found}, spec.digest wants {cache.digest}", retryable=False)


class Cell(NamedTuple):
    """One cache on one node. `report` is None where no (usable) report of this model exists."""

    word: NodeStatus
    failure: Failure | None = None
    retry_at: float | None = None
    report: ModelReport | None = None


def judge(slot: Slot, view: AgentView, report: ModelReport | None, source: SourceState, held: bool) -> Cell:
    """What one node is to one cache. `held`: the last written status had the model Downloaded there."""
    if slot.conflict is not None:
        return Cell(NodeStatus.ERROR, slot.conflict)
    cache = slot.cache
    if report is not None and report.selection != cache.selection:
        report = None  # an earlier request's copy, about to be replaced
    if report is not None and report.phase is Phase.READY:
        if cache.digest and report.manifest_digest and report.manifest_digest != cache.digest:
            return Cell(NodeStatus.ERROR, _mismatch(cache, f"the copy has {report.manifest_digest}"), None, report)
        return Cell(NodeStatus.DOWNLOADED, view.failure, None, report)
    if view.failure is not None:  # nobody to ask: what was there still is
        word = NodeStatus.DOWNLOADED if held and report is None else NodeStatus.PENDING
        return Cell(word, view.failure, None, report)
    if report is not None:
        phase = report.phase
        if phase is Phase.DOWNLOADING or phase is Phase.VERIFYING:
            return Cell(NodeStatus.DOWNLOADING, report.failure, report.retry_at, report)
        if phase is Phase.FAILED:
            return Cell(NodeStatus.ERROR, report.failure or NO_REASON, report.retry_at, report)
        if phase is Phase.PENDING and report.failure is not None:
            return Cell(NodeStatus.PENDING, report.failure, report.retry_at, report)
    if source.failure is not None:
        return Cell(NodeStatus.ERROR, source.failure, source.retry_at, report)
    return Cell(NodeStatus.PENDING, None, None, report)


def overlay_not_ready(cell: Cell, view: AgentView, before: str) -> Cell:
    """The same on a node that Kubernetes calls NotReady. `before`: this node's entry in the cache's status.

    As KServe: only a node without an entry becomes NodeNotReady; the others keep theirs while nobody reports.
    """
    if cell.word is NodeStatus.DOWNLOADED:
        return cell
    if before in ("", NodeStatus.NOT_READY):
        return Cell(NodeStatus.NOT_READY, NODE_NOT_READY, None, cell.report)
    if view.failure is None:
        return cell
    return cell._replace(word=_WORDS.get(before, NodeStatus.PENDING))


_WORDS = {word.value: word for word in NodeStatus}


@dataclass(slots=True)
class Tally:
    """What all nodes together say of one cache. Filled by `fold`, then only read."""

    cache: Cache
    source: SourceState
    node_status: dict[str, NodeStatus] = field(default_factory=dict)
    available: int = 0
    failed: int = 0
    downloading: int = 0
    bytes_total: int = 0
    bytes_cached: int = 0
    bytes_from_origin: int = 0
    bytes_from_peers: int = 0
    rate: float = 0.0
    seconds_left: float | None = None
    unmeasured: int = 0
    revision: str | None = None
    manifest_digest: str | None = None
    started_at: float | None = None
    finished_at: float | None = None
    troubles: list[tuple[NodeName, Failure, float | None]] = field(default_factory=list)

    @property
    def total(self) -> int:
        return len(self.node_status)

    def add(self, node: NodeName, cell: Cell) -> None:
        word, failure, retry_at, report = cell
        self.node_status[node] = word
        held = word is NodeStatus.DOWNLOADED
        if held:
            self.available += 1
        else:
            if word is NodeStatus.ERROR:
                self.failed += 1
            elif word is NodeStatus.DOWNLOADING:
                self.downloading += 1
            if failure is not None:
                self.troubles.append((node, failure, retry_at))
        if report is None:
            self.unmeasured += held
            return
        self.bytes_from_origin += report.bytes_from_origin
        self.bytes_from_peers += report.bytes_from_peers
        started = report.started_at
        if started is not None and (self.started_at is None or started < self.started_at):
            self.started_at = started
        if report.bytes_total > self.bytes_total:
            self.bytes_total = report.bytes_total
        if held:
            self.bytes_cached += report.bytes_total
            if self.manifest_digest is None:
                self.manifest_digest, self.revision = report.manifest_digest, report.revision
            finished = report.finished_at
            if finished is not None and (self.finished_at is None or finished > self.finished_at):
                self.finished_at = finished
            return
        self.bytes_cached += report.bytes_done
        left = remaining_seconds(report) if word is NodeStatus.DOWNLOADING else None
        if left is not None:
            self.rate += report.rate_bytes_per_s
            if self.seconds_left is None or left > self.seconds_left:
                self.seconds_left = left


def remaining_seconds(report: ModelReport) -> float | None:
    if report.rate_bytes_per_s < 1:
        return None
    return max(0, report.bytes_total - report.bytes_done) / report.rate_bytes_per_s


@dataclass(frozen=True, slots=True)
class Fold:
    """`caches`: a tally for every cache not deleted. `nodes`: the wanted status of LocalModelNodes.

    A node is left out of `nodes` where nothing material has changed and it is not its turn. `missing` names what each
    node does not hold, by the caches that decide the content, with what its agent last said of it.
    """

    nodes: Mapping[NodeName, Mapping[str, Any]]
    caches: Mapping[StatusKey, Tally]
    missing: Mapping[NodeName, Sequence[tuple[Cache, ModelReport | None]]]


def fold(
    snapshot: Snapshot,
    members: Members,
    sources: Mapping[StatusKey, SourceState],
    turn: Container[NodeName] | None = None,
) -> Fold:
    """Every report, once. `sources` has an entry for every cache that is not being deleted.

    `turn` names the nodes whose progress is wanted in detail this time; None: all.
    """
    tallies = {key: Tally(snapshot.caches[key], source) for key, source in sources.items()}
    before = {key: _mapping(tally.cache.status.get("nodeStatus")) for key, tally in tallies.items()}
    nodes: dict[NodeName, Mapping[str, Any]] = {}
    missing: dict[NodeName, list[tuple[Cache, ModelReport | None]]] = {}
    for name in sorted(members.placements):
        placement, node = members.placements[name], snapshot.nodes[name]
        view, local = snapshot.agents.get(name, STARTING), snapshot.local_nodes.get(name)
        reports = {report.key: report for report in view.report.models} if view.report else {}
        cells: list[Cell] = []
        words: dict[StatusKey, ModelStatus] = {}
        lacking = missing[name] = []
        for slot in placement.slots:
            key = slot.cache.key
            report = reports.get(slot.cache.storage_key)
            held = view.report is None and _held(slot.cache, before[key].get(name, ""))
            cell = judge(slot, view, report, sources[slot.owner.key], held)
            if not node.ready:
                cell = overlay_not_ready(cell, view, before[key].get(name, ""))
            tallies[key].add(name, cell)
            words[key] = MODEL_STATUS[cell.word]
            cells.append(cell)
            if cell.word is not NodeStatus.DOWNLOADED and slot.owner is slot.cache:
                lacking.append((slot.cache, report))
        agent = agent_detail(view)
        written = local.status if local else {}
        material = words != written.get("modelStatus") or agent != written.get("agent")
        if material or turn is None or name in turn:
            details = [_detail(key, cell) for key, cell in zip(words, cells, strict=True)]
            nodes[name] = local_node_status(words, details, view, local)
    return Fold(nodes, tallies, missing)


def _held(cache: Cache, before: str) -> bool:
    """The cache's last written status has the node as holding what it asks for now.

    Not the LocalModelNode's: that may be of an earlier cache of the same name, with another URI.
    """
    return before == NodeStatus.DOWNLOADED and cache.status.get("selection") in (None, cache.selection)


def local_node_status(
    words: Mapping[StatusKey, ModelStatus], details: list[Mapping[str, Any]], view: AgentView, local: LocalNode | None
) -> dict[str, Any]:
    """The whole status of one LocalModelNode."""
    current = (local.status.get("roots") if local else None) or ()
    roots = list(current) if view.report is None else root_details(view.report, current)
    return {"modelStatus": words, "models": details, "roots": roots, "agent": agent_detail(view)}


def agent_detail(view: AgentView) -> dict[str, Any]:
    agent: dict[str, Any] = {"ready": view.failure is None}
    if view.report is not None:
        agent |= {"incarnation": view.report.incarnation, "version": view.report.version}
    if view.failure is not None:
        agent |= {"reason": view.failure.reason, "message": view.failure.message}
    return agent


def root_details(report: NodeReport, current: Any) -> list[Mapping[str, Any]]:
    """One entry per root. Numbers that moved by less than SETTLE keep their written value."""
    known = {root.get("path"): root for root in current if isinstance(root, Mapping)}
    return [_root_detail(root, known.get(root.path, {})) for root in report.roots]


def _root_detail(root: RootReport, known: Mapping[str, Any]) -> Mapping[str, Any]:
    detail: dict[str, Any] = {
        "path": root.path,
        "free": settle(root.free_bytes, known.get("free")),
        "used": settle(root.used_bytes, known.get("used")),
        "reserved": settle(root.reserved_bytes, known.get("reserved")),
    }
    if root.failure is not None:
        detail |= {"reason": root.failure.reason, "message": root.failure.message}
    return detail


def settle(new: int, written: object) -> int:
    """`written` as long as `new` is within SETTLE of it and both are nothing or both something; else `new`."""
    if not isinstance(written, int) or bool(new) != bool(written):
        return new
    return written if abs(new - written) <= SETTLE * max(new, written) else new


_PHASES = {
    NodeStatus.NOT_READY: "Pending",
    NodeStatus.PENDING: "Pending",
    NodeStatus.DOWNLOADING: "Downloading",
    NodeStatus.DOWNLOADED: "Ready",
    NodeStatus.ERROR: "Failed",
}


def _detail(key: StatusKey, cell: Cell) -> Mapping[str, Any]:
    word, failure, retry_at, report = cell
    detail: dict[str, Any] = {"name": key, "phase": _PHASES[word]}
    if report is not None:
        if word is NodeStatus.DOWNLOADING:
            detail["phase"] = report.phase.value
            if (left := remaining_seconds(report)) is not None:
                detail["rateBytesPerSecond"] = int(report.rate_bytes_per_s)
                detail["eta"] = format_duration(left)
        detail["bytesTotal"] = report.bytes_total
        detail["bytesDone"] = report.bytes_done
        detail["bytesFromOrigin"] = report.bytes_from_origin
        detail["bytesFromPeers"] = report.bytes_from_peers
        if report.attempt:
            detail["attempt"] = report.attempt
        if report.manifest_digest:
            detail["digest"] = report.manifest_digest
        if report.revision:
            detail["revision"] = report.revision
        if report.verified:
            detail["verified"] = dict(report.verified)
        if report.started_at is not None:
            detail["startedAt"] = rfc3339(report.started_at)
        if report.finished_at is not None:
            detail["finishedAt"] = rfc3339(report.finished_at)
    if failure is not None:
        detail["reason"], detail["message"] = failure.reason, failure.message
        if retry_at is not None:
            detail["retryTime"] = rfc3339(retry_at)
    return detail


def cache_numbers(tally: Tally) -> dict[str, Any]:
    """The status of a cache except its conditions. A value of None means that the field is absent."""
    cache, source, written = tally.cache, tally.source, tally.cache.status
    same = written.get("selection") == cache.selection  # what was written answers the present spec
    answered = source.total_bytes is not None or tally.available > tally.unmeasured or same
    written_bytes = written.get("bytes") if same else None
    size = source.total_bytes or tally.bytes_total or (written_bytes or {}).get("total")
    cached = tally.bytes_cached + tally.unmeasured * (size or 0)
    done = tally.total > 0 and tally.available == tally.total
    copies = {"available": tally.available, "failed": tally.failed, "total": tally.total}
    started = rfc3339(tally.started_at) if tally.started_at is not None else None
    if same and isinstance(was := written.get("startedAt"), str):
        started = min(was, started) if started else was
    completed = None
    if done:
        finished = rfc3339(tally.finished_at) if tally.finished_at is not None else None
        completed = finished if tally.unmeasured == 0 else (same and written.get("completedAt")) or finished
    moved = {
        "total": size,
        "cached": cached,
        "fromOrigin": tally.bytes_from_origin,
        "fromPeers": tally.bytes_from_peers,
    }
    return {
        "nodeStatus": tally.node_status,
        "copies": {name: count for name, count in copies.items() if count},  # as KServe: absent means 0
        "observedGeneration": cache.generation,
        "selection": cache.selection if answered else None,
        "revision": source.revision or tally.revision or (written.get("revision") if same else None),
        "manifestDigest": tally.manifest_digest
        or source.manifest_digest
        or (written.get("manifestDigest") if same else None),
        "bytes": moved if size is not None else None,
        "rateBytesPerSecond": int(tally.rate) or None,
        "eta": format_duration(tally.seconds_left) if tally.seconds_left is not None else None,
        "progress": format_percent(cached, size * tally.total) if size is not None and tally.total else None,
        "available": f"{tally.available}/{tally.total}",
        "size": format_bytes(size) if size is not None else None,
        "startedAt": started,
        "completedAt": completed or None,
    }


@lru_cache(maxsize=65536)
def rfc3339(seconds: float) -> str:
    """Whole seconds, UTC, as Kubernetes writes `metav1.Time`."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
