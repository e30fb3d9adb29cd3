"""The status of a LocalModelNode as it is written, from what its agent says.

Plain dictionaries in KServe's and our field names, never with a null in them: what is absent is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from actors.messages import ModelReport, NodeReport, Phase, RootReport
from actors.sizes import format_bytes
from actors.times import rfc3339
from actors.transferred import AMOUNTS, CAMEL
from coordinator.api.resources import ModelStatus, NodeStatus, StatusKey
from coordinator.fleet.interface import AgentView
from coordinator.kube.quantity import format_duration, format_percent
from coordinator.plan.snapshot import LocalNode
from coordinator.plan.tally import Cell, remaining_seconds

SETTLE = 0.01
"""A byte count of a disk is written again when it has moved by more than this share: other programs write there too."""


def local_node_status(
    words: Mapping[StatusKey, ModelStatus],
    details: Sequence[Mapping[str, Any]],
    view: AgentView,
    local: LocalNode | None,
    *,
    settling: bool = False,
) -> dict[str, Any]:
    """The whole status of one LocalModelNode. `settling`: as in `agent_detail`."""
    current = (local.status.get("roots") if local else None) or ()
    roots = list(current) if view.report is None else root_details(view.report, current)
    agent = agent_detail(view, local, settling=settling)
    return {
        "modelStatus": words,
        "summary": node_summary(agent, details, roots),
        "models": details,
        "roots": roots,
        "agent": agent,
    }


def node_summary(
    agent: Mapping[str, Any], details: Sequence[Mapping[str, Any]], roots: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """One node as `kubectl get` shows it, its agent in the words of a condition."""
    disks = [root for root in roots if not root.get("reason")]
    there = sum(detail["phase"] == "Ready" for detail in details)
    rate = sum(detail.get("rateBytesPerSecond") or 0 for detail in details)
    summary = {"ready": str(agent["ready"]), "models": f"{there}/{len(details)}"}
    if disks:
        summary["size"] = format_bytes(sum(root.get("used") or 0 for root in disks))
        summary["free"] = format_bytes(min(root.get("free") or 0 for root in disks))
    return summary | ({"rate": f"{format_bytes(rate)}/s"} if rate else {})


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
        before = written.get("silentSince") if isinstance(written, Mapping) else None
        since = before if view.received_at is None else rfc3339(view.received_at)
        agent |= {"silentSince": since} if since else {}
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
    """The details of one model on one node; nothing that is zero or unknown, but for the bytes that every copy has."""
    word, failure, retry_at, report = cell
    detail: dict[str, Any] = {"name": key, "phase": _PHASES[word]}
    if report is not None:
        detail |= _reported(word, report)
    if failure is not None:
        detail["reason"], detail["message"] = failure.reason, failure.message
        if retry_at is not None and not failure.final:
            detail["retryTime"] = rfc3339(retry_at)
    return detail


def _reported(word: NodeStatus, report: ModelReport) -> dict[str, Any]:
    """What the agent says. Of an earlier copy that is served, that copy, beside what is under way."""
    held = report.earlier or report
    detail: dict[str, Any] = {}
    under_way = report.phase in (Phase.DOWNLOADING, Phase.VERIFYING)
    if word is NodeStatus.DOWNLOADING:
        detail["phase"] = report.phase.value
    if report.damage is not None and word is NodeStatus.ERROR:
        detail["phase"] = "Damaged"
    if word is NodeStatus.DOWNLOADING or (report.earlier is not None and under_way):
        left = remaining_seconds(report)
        if left is not None:
            detail["rateBytesPerSecond"], detail["eta"] = int(report.rate_bytes_per_s), format_duration(left)
    at_rest = report.earlier if not under_way else None
    detail["bytesTotal"] = at_rest.bytes_total if at_rest is not None else report.bytes_total
    detail["bytesDone"] = at_rest.bytes_total if at_rest is not None else report.bytes_done
    if report.bytes_total and word is not NodeStatus.DOWNLOADED:
        share = format_percent(report.bytes_done, report.bytes_total)
        detail["progress"] = f"{share} of {format_bytes(report.bytes_total)}"
    for name in AMOUNTS:
        detail[CAMEL[name]] = getattr(report, name)
    known = ("attempt", report.attempt), ("digest", held.manifest_digest), ("revision", held.revision)
    detail.update((name, value) for name, value in known if value)
    if report.verified:
        detail["verified"] = dict(report.verified)
    if report.wrong_peers or report.wrong_readers:
        detail |= {name: counts for name, counts in report.by_node.items() if counts}
    times = ("startedAt", report.started_at), ("finishedAt", report.finished_at), ("verifiedAt", report.verified_at)
    detail.update((name, rfc3339(at)) for name, at in times if at is not None)
    if report.repaired is not None and report.repaired_at is not None:
        detail["repaired"], detail["repairedAt"] = report.repaired, rfc3339(report.repaired_at)
    return detail
