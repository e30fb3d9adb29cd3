"""Status as it is written: of one LocalModelNode from what its agent says, of one cache from its tally.

Plain dictionaries in KServe's and our field names, never with a null in them: what is absent is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.messages import NodeName, NodeReport, Phase, RootReport
from actors.times import rfc3339
from coordinator.api.resources import ModelStatus, NodeStatus, StatusKey
from coordinator.fleet.interface import AgentView
from coordinator.kube.quantity import format_bytes, format_duration, format_percent
from coordinator.plan.access import Access, asks_itself
from coordinator.plan.snapshot import LocalNode
from coordinator.plan.tally import Cell, Tally, remaining_seconds

SETTLE = 0.01
"""A byte count of a disk is written again when it has moved by more than this share: other programs write there too."""


def local_node_status(
    words: Mapping[StatusKey, ModelStatus],
    details: list[Mapping[str, Any]],
    view: AgentView,
    local: LocalNode | None,
    *,
    settling: bool = False,
) -> dict[str, Any]:
    """The whole status of one LocalModelNode. `settling`: as in `agent_detail`."""
    current = (local.status.get("roots") if local else None) or ()
    roots = list(current) if view.report is None else root_details(view.report, current)
    return {
        "modelStatus": words,
        "models": details,
        "roots": roots,
        "agent": agent_detail(view, local, settling=settling),
    }


def agent_detail(view: AgentView, local: LocalNode | None = None, *, settling: bool = False) -> Mapping[str, Any]:
    """`settling`: this coordinator has just begun to act, so what the last one knew of an agent still stands."""
    written = local.status.get("agent") if local is not None else None
    silent = view.report is None and view.failure is not None and view.failure.reason == "AgentStarting"
    if settling and silent and isinstance(written, Mapping) and written.get("ready") is True:
        return written
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
    if root.aside_bytes:
        detail["aside"] = settle(root.aside_bytes, known.get("aside"))
    if root.junk:
        detail["junk"] = list(root.junk)
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


def model_detail(key: StatusKey, cell: Cell) -> dict[str, Any]:
    word, failure, retry_at, report = cell
    detail: dict[str, Any] = {"name": key, "phase": _PHASES[word]}
    if report is not None:
        under_way = report.phase in (Phase.DOWNLOADING, Phase.VERIFYING)
        if word is NodeStatus.DOWNLOADING or (report.earlier is not None and under_way):
            detail["phase"] = report.phase.value if word is NodeStatus.DOWNLOADING else _PHASES[word]
            if (left := remaining_seconds(report)) is not None:
                detail["rateBytesPerSecond"] = int(report.rate_bytes_per_s)
                detail["eta"] = format_duration(left)
        detail["bytesTotal"] = report.bytes_total
        detail["bytesDone"] = report.bytes_done
        detail["bytesFromOrigin"] = report.bytes_from_origin
        detail["bytesFromPeers"] = report.bytes_from_peers
        detail["bytesFromOtherZones"] = report.bytes_from_other_zones
        if report.attempt:
            detail["attempt"] = report.attempt
        held = report if report.earlier is None else report.earlier
        if report.earlier is not None and not under_way:
            detail["bytesTotal"] = detail["bytesDone"] = report.earlier.bytes_total
        if held.manifest_digest:
            detail["digest"] = held.manifest_digest
        if held.revision:
            detail["revision"] = held.revision
        if report.verified:
            detail["verified"] = dict(report.verified)
        if report.started_at is not None:
            detail["startedAt"] = rfc3339(report.started_at)
        if report.finished_at is not None:
            detail["finishedAt"] = rfc3339(report.finished_at)
        if report.damage is not None and word is NodeStatus.ERROR:
            detail["phase"] = "Damaged"
        if report.verified_at is not None:
            detail["verifiedAt"] = rfc3339(report.verified_at)
        if report.repaired is not None and report.repaired_at is not None:
            detail["repaired"], detail["repairedAt"] = report.repaired, rfc3339(report.repaired_at)
        if report.wrong_peers:
            detail["wrongPeers"] = dict(report.wrong_peers)
        if report.wrong_readers:
            detail["wrongReaders"] = dict(report.wrong_readers)
    if failure is not None:
        detail["reason"], detail["message"] = failure.reason, failure.message
        if retry_at is not None and not failure.final:
            detail["retryTime"] = rfc3339(retry_at)
    return detail


def cache_numbers(tally: Tally) -> dict[str, Any]:
    """The status of a cache except its conditions. A value of None means that the field is absent."""
    cache, source, written = tally.cache, tally.source, tally.cache.status
    same = written.get("selection") == cache.selection  # what was written answers the present spec
    kept = same or tally.earlier > 0  # what it says is still what is there
    measured = tally.available > tally.unmeasured and not tally.earlier
    answered = same or measured or source.resolved is not None or source.total_bytes is not None
    if asks_itself(cache):
        kept = kept and Access.of(cache, source).proof is not None
        answered = source.answered or (same and kept)
    if any(failure.reason == "SourceConflict" for _, failure, _ in tally.troubles):
        answered = same and kept
    written_bytes = written.get("bytes") if kept else None
    size = tally.size_bytes or (written_bytes or {}).get("total")
    cached = tally.bytes_cached + tally.unmeasured * (size or 0)
    done = tally.total > 0 and tally.available == tally.total
    copies = {"available": tally.available, "failed": tally.failed, "total": tally.total}
    started = rfc3339(tally.started_at) if tally.started_at is not None else None
    if kept and isinstance(was := written.get("startedAt"), str):
        started = min(was, started) if started else was
    completed = None
    if done:
        finished = rfc3339(tally.finished_at) if tally.finished_at is not None else None
        completed = finished if tally.unmeasured == 0 else (kept and written.get("completedAt")) or finished
    moved = {
        "total": size,
        "cached": cached,
        "fromOrigin": tally.bytes_from_origin,
        "fromPeers": tally.bytes_from_peers,
        "fromOtherZones": tally.bytes_from_other_zones,
    }
    if size:
        moved["amplification"] = f"{tally.bytes_from_origin / size:.2f}"
    return {
        "nodeStatus": tally.node_status,
        "copies": {name: count for name, count in copies.items() if count},  # as KServe: absent means 0
        "observedGeneration": cache.generation,
        **_identity(tally, answered=answered, kept=kept),
        "bytes": moved if size is not None else None,
        "rateBytesPerSecond": int(tally.rate) or None,
        "eta": format_duration(tally.seconds_left) if tally.seconds_left is not None else None,
        "progress": format_percent(cached, size * tally.total) if size is not None and tally.total else None,
        "available": f"{tally.available}/{tally.total}",
        "size": format_bytes(size) if size is not None else None,
        "startedAt": started,
        "completedAt": completed or None,
        "credentialsOnNodes": source.carries_options or None,
        "wrongPeers": _at_least(tally.wrong_peers, written.get("wrongPeers") if kept else None),
        "wrongReaders": _at_least(tally.wrong_readers, written.get("wrongReaders") if kept else None),
    }


def _identity(tally: Tally, *, answered: bool, kept: bool) -> dict[str, str | None]:
    """Which content the rest of the status is about: that of earlier copies until no node holds one any more."""
    cache, source, written = tally.cache, tally.source, tally.cache.status
    names = ("selection", "revision", "manifestDigest", "resolvedAs")
    if kept and (tally.earlier or not answered):
        return {name: written.get(name) for name in names}
    before = {name: written.get(name) if kept else None for name in names}
    asks = answered and asks_itself(cache)
    return {
        "selection": cache.selection if answered else None,
        "revision": source.revision or tally.revision or before["revision"],
        "manifestDigest": tally.manifest_digest or source.manifest_digest or before["manifestDigest"],
        "resolvedAs": (cache.credentials.name if source.answered else before["resolvedAs"]) if asks else None,
    }


def _at_least(counts: Mapping[NodeName, int], written: Mapping[str, int] | None) -> dict[str, int] | None:
    """No count falls below what was written: agents that have not been heard yet are missing from `counts`."""
    known = written or {}
    return {**known, **{name: max(count, known.get(name, 0)) for name, count in counts.items()}} or None
