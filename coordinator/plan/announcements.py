"""Events: what a person would want to hear about, said once.

An Event belongs to the write that makes the transition visible in status, and is sent after that write succeeded. So it
is deduplicated by the object itself: a restarted coordinator, a second replica and a lost race say nothing twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coordinator.api.resources import NodeStatus, StatusKey
from coordinator.kube.quantity import format_bytes, say_bytes
from coordinator.plan.conditions import WAITING, Verdict, name_nodes
from coordinator.plan.snapshot import Cache, Ref

NAMED_EVENTS = 10
"""Up to this many nodes that finish at once get an Event each; more share one."""

SIZE_TOLERANCE = 1.05
"""How far the measured size may exceed `spec.modelSize`, which people round."""

_OWN_REASON = frozenset(
    {
        "AgentDied",
        "AgentError",
        "AgentUnavailable",
        "Damaged",
        "DigestMismatch",
        "DuplicateSource",
        "FillingFromPeers",
        "InsufficientStorage",
        "InUse",
        "InvalidObject",
        "NoNodeAffinity",
        "NodeGroupInvalid",
        "NodeGroupNotFound",
        "NoMatchingNodes",
        "NoRayNode",
        "Orphaned",
        "PathMismatch",
        "RayUnavailable",
        "SourceConflict",
    }
)
"""Reasons that are Event reasons as they are; the others come as `DownloadFailed` with the reason in the message."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """An Event to record on `ref`."""

    ref: Ref
    warning: bool
    reason: str
    message: str


def cache_events(
    cache: Cache, wanted: Mapping[str, Any], verdicts: Sequence[Verdict], *, extensions: bool
) -> list[Announcement]:
    """What is new in `wanted`, compared with the status that stands in `cache`."""
    events: list[Announcement] = []

    def say(reason: str, message: str, *, warning: bool = False) -> None:
        events.append(Announcement(cache.ref, warning, reason, message))

    before, size = cache.status, (wanted.get("bytes") or {}).get("total")
    if extensions:
        known = {c.get("type"): c for c in before.get("conditions") or () if isinstance(c, Mapping)}
        ready, progressing, degraded = verdicts
        if wanted.get("selection") and any(before.get(f) != wanted.get(f) for f in ("selection", "revision")):
            revision = f" at {wanted['revision']}" if wanted.get("revision") else ""
            say("Resolved", f"{cache.source.uri}{revision}" + (f", {format_bytes(size)}" if size else ""))
        if size and cache.size_bytes and size > cache.size_bytes * SIZE_TOLERANCE and size != _written_size(before):
            expected = f"spec.modelSize says {say_bytes(cache.size_bytes)}: correct it"
            say("ModelSizeMismatch", f"the source has {say_bytes(size, up=True)}, {expected}", warning=True)
        if progressing.reason == "Downloading" != known.get("Progressing", {}).get("reason"):
            say("Downloading", progressing.message)
        was = known.get("Degraded", {})
        if degraded.status and (was.get("status"), was.get("reason")) != ("True", degraded.reason):
            if degraded.reason in _OWN_REASON:
                say(degraded.reason, degraded.message, warning=True)
            else:
                say("DownloadFailed", f"{degraded.reason}: {degraded.message}", warning=True)
        elif not degraded.status and was.get("status") == "True":
            say("Recovered", f"no longer {was.get('reason')}")
        events += wrong_bytes_events(cache, wanted)
    events += node_events(cache, wanted)
    if extensions and ready.status and known.get("Ready", {}).get("status") != "True":
        say("Ready", ready.message)
    return events


def node_events(cache: Cache, wanted: Mapping[str, Any]) -> list[Announcement]:
    """One Event for each node that has come to hold the model, or one for all of them if they are many."""
    before = cache.status.get("nodeStatus")
    known = before if isinstance(before, Mapping) else {}
    done = [
        node
        for node, word in wanted["nodeStatus"].items()
        if word is NodeStatus.DOWNLOADED and known.get(node) != NodeStatus.DOWNLOADED
    ]
    if len(done) > NAMED_EVENTS:
        return [
            Announcement(
                cache.ref, False, "NodeDownloaded", f"{len(done)} more nodes hold the model: {name_nodes(done)}"
            )
        ]
    return [Announcement(cache.ref, False, "NodeDownloaded", f"{node} holds the model") for node in sorted(done)]


def wrong_bytes_events(cache: Cache, wanted: Mapping[str, Any]) -> list[Announcement]:
    """Who sent, or read, chunks that were wrong: said when it is first seen, and each time the number has doubled."""
    return [
        Announcement(cache.ref, True, "WrongBytes", message.format(node=node, chunks=_chunks(count)))
        for field, message in _WRONG.items()
        for node, count in sorted((wanted.get(field) or {}).items())
        if count.bit_length() > (cache.status.get(field) or {}).get(node, 0).bit_length()
    ]


_WRONG = {
    "wrongPeers": (
        "{node} sent {chunks} with wrong bytes to other nodes, which got them elsewhere and leave it alone for a while;"
        " check its disk and memory"
    ),
    "wrongReaders": (
        "{node} read {chunks} wrong from the origin, and the files they belong to were read again;"
        " check its memory, and what is between it and the origin"
    ),
}


def _chunks(count: int) -> str:
    return f"{count} chunk{'s' if count > 1 else ''}"


def agent_events(ref: Ref, before: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[Announcement]:
    """The node agent came, or went. Starting up is neither."""
    was, now = before.get("agent"), wanted["agent"]
    was_ready = was.get("ready") if isinstance(was, Mapping) else None
    if now["ready"] and was_ready is not True:
        return [Announcement(ref, False, "AgentReady", "the node agent reports")]
    was_reason = was.get("reason") if isinstance(was, Mapping) else None
    if not now["ready"] and now["reason"] not in {was_reason, *WAITING}:
        return [Announcement(ref, True, now["reason"], now["message"])]
    return []


def repair_events(ref: Ref, before: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[Announcement]:
    """What was damaged on this node and is not any more, also where nobody saw it damaged."""
    known = {detail.get("name"): detail for detail in before.get("models") or () if isinstance(detail, Mapping)}
    return [
        Announcement(ref, True, "Repaired", f"{detail['name']}: {detail['repaired']}; it was fetched again")
        for detail in wanted.get("models") or ()
        if detail["name"] in known and detail.get("repairedAt") not in (None, known[detail["name"]].get("repairedAt"))
    ]


def eviction_events(
    node: str, caches: Mapping[StatusKey, Cache], before: Mapping[str, Any], wanted: Mapping[str, Any]
) -> list[Announcement]:
    """What has made room for another model on this node, said on the cache that lost its copy."""
    known = {detail.get("name"): detail for detail in before.get("models") or () if isinstance(detail, Mapping)}
    return [
        Announcement(caches[detail["name"]].ref, True, "Evicted", f"{node}: {detail['message']}")
        for detail in wanted.get("models") or ()
        if detail.get("reason") == "Evicted" and known.get(detail["name"], {}).get("reason") != "Evicted"
        if detail["name"] in caches
    ]


def _written_size(status: Mapping[str, Any]) -> object:
    written = status.get("bytes")
    return written.get("total") if isinstance(written, Mapping) else None
