"""Events: what a person would want to hear about, said once.

An Event belongs to the write that makes the transition visible in status, and is sent after that write succeeded. So it
is deduplicated by the object itself: a restarted coordinator, a second replica and a lost race say nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from actors.messages import NodeName
from actors.sizes import format_bytes, say_bytes
from coordinator.api.resources import NodeStatus, StatusKey
from coordinator.plan.conditions import WAITING, Verdict, name_nodes
from coordinator.plan.rollout_events import steps
from coordinator.plan.snapshot import Cache, NodeGroup, Ref

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


@dataclass(frozen=True, slots=True)
class Change:
    """A status that is about to be written, beside the one that stands in the object."""

    cache: Cache
    wanted: Mapping[str, Any]
    verdicts: tuple[Verdict, Verdict, Verdict]

    def was(self, condition: str) -> Mapping[str, Any]:
        known = self.cache.status.get("conditions") or ()
        return next((each for each in known if isinstance(each, Mapping) and each.get("type") == condition), {})

    @property
    def size_bytes(self) -> int | None:
        total = (self.wanted.get("bytes") or {}).get("total")
        return total if isinstance(total, int) else None

    def say(self, reason: str, message: str, *, warning: bool = False) -> Announcement:
        return Announcement(self.cache.ref, warning, reason, message)


def cache_events(
    cache: Cache, wanted: Mapping[str, Any], verdicts: tuple[Verdict, Verdict, Verdict], *, extensions: bool
) -> list[Announcement]:
    """The Events for all that is new in `wanted`, compared with the status that stands in `cache`.

    Without `extensions` nothing but KServe's own fields is kept, so nothing else could be said only once.
    """
    change = Change(cache, wanted, verdicts)
    rules = RULES if extensions else (_nodes_that_hold_it,)
    return [event for rule in rules for event in rule(change)]


def _resolved(change: Change) -> Iterator[Announcement]:
    wanted, before = change.wanted, change.cache.status
    if any(each.get("revision") == wanted.get("revision") for each in before.get("versions") or ()):
        return  # it was said when it was next
    if wanted.get("selection") and any(before.get(name) != wanted.get(name) for name in ("selection", "revision")):
        revision = f" at {wanted['revision']}" if wanted.get("revision") else ""
        size = f", {format_bytes(change.size_bytes)}" if change.size_bytes else ""
        yield change.say("Resolved", f"{change.cache.source.uri}{revision}{size}")


def _rollout(change: Change) -> Iterator[Announcement]:
    before, after = change.cache.status.get("versions") or [], change.wanted.get("versions") or []
    for each in steps(before, after, len(change.wanted["nodeStatus"]), change.cache.source.uri):
        yield change.say(each.reason, each.message, warning=each.warning)


def _size_differs(change: Change) -> Iterator[Announcement]:
    size, expected = change.size_bytes, change.cache.size_bytes
    if not size or not expected or size <= expected * SIZE_TOLERANCE or size == _written_size(change.cache.status):
        return
    message = f"the source has {say_bytes(size, up=True)}, spec.modelSize says {say_bytes(expected)}: correct it"
    yield change.say("ModelSizeMismatch", message, warning=True)


def _downloading(change: Change) -> Iterator[Announcement]:
    _, progressing, _ = change.verdicts
    if progressing.reason == "Downloading" != change.was("Progressing").get("reason"):
        yield change.say("Downloading", _begun(change.wanted))


def _begun(wanted: Mapping[str, Any]) -> str:
    """Without a rate and a time left: what the first second says of these, `describe` would show for an hour."""
    size = wanted.get("size")
    return f"{wanted['available']} nodes hold the model" + (f", {size} each" if size else "")


def _degraded(change: Change) -> Iterator[Announcement]:
    _, _, degraded = change.verdicts
    was = change.was("Degraded")
    if degraded.status and (was.get("status"), was.get("reason")) != ("True", degraded.reason):
        if degraded.reason in _OWN_REASON:
            yield change.say(degraded.reason, degraded.message, warning=True)
        else:
            yield change.say("DownloadFailed", f"{degraded.reason}: {degraded.message}", warning=True)


def _recovered(change: Change) -> Iterator[Announcement]:
    _, _, degraded = change.verdicts
    was = change.was("Degraded")
    if not degraded.status and was.get("status") == "True":
        yield change.say("Recovered", f"no longer {was.get('reason')}")


def _wrong_bytes(change: Change) -> Iterator[Announcement]:
    """The nodes that sent, or read, wrong chunks: said when it is first seen, and each time the number has doubled."""
    for field, message in _WRONG.items():
        known = change.cache.status.get(field) or {}
        for node, count in sorted((change.wanted.get(field) or {}).items()):
            if count.bit_length() > known.get(node, 0).bit_length():
                yield change.say("WrongBytes", message.format(node=node, chunks=_chunks(count)), warning=True)


def _nodes_that_hold_it(change: Change) -> Iterator[Announcement]:
    """One Event for each node that has come to hold the model, or one for all of them if they are many."""
    before = change.cache.status.get("nodeStatus")
    known = before if isinstance(before, Mapping) else {}
    done = [
        node
        for node, word in change.wanted["nodeStatus"].items()
        if word is NodeStatus.DOWNLOADED and known.get(node) != NodeStatus.DOWNLOADED
    ]
    if len(done) > NAMED_EVENTS:
        yield change.say("NodeDownloaded", f"{len(done)} more nodes hold the model: {name_nodes(done)}")
        return
    for node in sorted(done):
        yield change.say("NodeDownloaded", f"{node} holds the model")


def _ready(change: Change) -> Iterator[Announcement]:
    ready, _, _ = change.verdicts
    if ready.status and change.was("Ready").get("status") != "True":
        yield change.say("Ready", ready.message)


RULES: tuple[Callable[[Change], Iterator[Announcement]], ...] = (
    _resolved,
    _rollout,
    _size_differs,
    _downloading,
    _degraded,
    _recovered,
    _wrong_bytes,
    _nodes_that_hold_it,
    _ready,
)
"""In the order in which they are said."""

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
    """The copies that were damaged on this node and no longer are, also where nobody saw them damaged."""
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


def limit_events(group: NodeGroup, over: Collection[NodeName]) -> list[Announcement]:
    """What to say when there are others than before on which the group's models take more than its limit."""
    if not over or group.limit_bytes is None:
        return []
    message = (
        f"the models of group {group.ref.name} take more than the {format_bytes(group.limit_bytes)} that"
        f" spec.storageLimit allows on {name_nodes(over)}: raise it, or remove a model"
    )
    return [Announcement(group.ref, True, "StorageLimitExceeded", message)]
