"""Caches and their copies as rows, what is wrong first: what `localmodel status` shows.

    CacheRow   one cache: how far all its nodes are together
      CopyRow  one of its nodes

Order: what has failed, what cannot go on by itself, what is slow, what is under way, what waits, what is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from statistics import median

from actors.messages import NodeName
from actors.times import seconds_of
from coordinator.api.resources import NodeStatus, StatusKey
from coordinator.plan.conditions import WAITING
from coordinator.plan.snapshot import Cache
from coordinator.plan.versions import short_revision, written_versions
from coordinator.view.cluster import ClusterView, Detail, condition

SLOW = 0.5
"""A node is slow that is below this share of the median rate of those that fetch the same."""


class Rank(IntEnum):
    """How much a row wants to be looked at: smaller first."""

    FAILED = 0
    STUCK = 1
    SLOW = 2
    MOVING = 3
    WAITING = 4
    DONE = 5


@dataclass(frozen=True, slots=True)
class CopyRow:
    """One cache on one node. `slow_beside` is the median rate that it falls behind; None: it does not.

    `total` None: nobody knows the size yet.
    """

    key: StatusKey
    node: NodeName
    phase: str
    rank: Rank
    done: int = 0
    total: int | None = None
    rate: int = 0
    eta: str | None = None
    origin: int = 0
    peers: int = 0
    other_zones: int = 0
    attempt: int = 0
    reason: str | None = None
    message: str | None = None
    retry_at: float | None = None
    slow_beside: int | None = None
    revision: str | None = None

    @property
    def share(self) -> float | None:
        """In [0, 1]; None as long as the size is not known."""
        if self.total is None:
            return None
        return min(1.0, self.done / self.total) if self.total else 1.0

    @property
    def from_peers(self) -> float | None:
        """The share of what was read that came from peers; None if nothing was read."""
        read = self.origin + self.peers
        return self.peers / read if read else None


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One version: on how many nodes it is in place, and on how many ready beside that."""

    name: str
    state: str
    nodes: int
    beside: int


@dataclass(frozen=True, slots=True)
class CacheRow:
    """One cache. `ready` None: the coordinator has not said anything yet."""

    key: StatusKey
    rank: Rank
    ready: bool | None
    reason: str | None
    message: str | None
    uri: str
    groups: tuple[str, ...]
    available: int
    failed: int
    nodes: int
    size: int | None
    cached: int
    rate: int
    eta: str | None
    origin: int
    peers: int
    other_zones: int
    revision: str | None
    started: str | None
    completed: str | None
    deleting: bool
    copies: tuple[CopyRow, ...] = ()
    versions: tuple[VersionRow, ...] = ()

    @property
    def share(self) -> float | None:
        if self.size is None or not self.nodes:
            return None
        whole = self.size * self.nodes
        return min(1.0, self.cached / whole) if whole else 1.0

    @property
    def from_peers(self) -> float | None:
        read = self.origin + self.peers
        return self.peers / read if read else None


@dataclass(frozen=True, slots=True)
class Totals:
    """All rows together. `wanted` and `size` count what is measured."""

    caches: int
    ready: int
    copies: int
    available: int
    cached: int
    wanted: int
    size: int
    rate: int
    origin: int
    peers: int
    other_zones: int

    @property
    def amplification(self) -> float | None:
        """Bytes read from the origin, in copies of the models."""
        return self.origin / self.size if self.size else None


def rows(view: ClusterView, keys: Iterable[StatusKey] | None = None, node: NodeName | None = None) -> list[CacheRow]:
    """Of all caches or of these; with `node`, the copies on it and the caches that want one there."""
    wanted = view.caches.values() if keys is None else [view.caches[key] for key in keys]
    found = [_cache_row(view, cache, node) for cache in wanted]
    if node is not None:
        found = [row for row in found if row.copies]
    return sorted(found, key=lambda row: (row.rank, 1.0 if row.share is None else row.share, row.key))


def totals(found: Iterable[CacheRow]) -> Totals:
    each = list(found)
    measured = [row for row in each if row.size is not None]
    return Totals(
        caches=len(each),
        ready=sum(row.ready is True for row in each),
        copies=sum(row.nodes for row in each),
        available=sum(row.available for row in each),
        cached=sum(row.cached for row in measured),
        wanted=sum((row.size or 0) * row.nodes for row in measured),
        size=sum(row.size or 0 for row in measured),
        rate=sum(row.rate for row in each),
        origin=sum(row.origin for row in measured),
        peers=sum(row.peers for row in measured),
        other_zones=sum(row.other_zones for row in measured),
    )


def _cache_row(view: ClusterView, cache: Cache, node: NodeName | None) -> CacheRow:
    status = cache.status
    words, moved = status.get("nodeStatus") or {}, status.get("bytes") or {}
    copies = _copy_rows(view, cache, words)
    ready = condition(cache, "Ready")
    done = NodeStatus.DOWNLOADED
    available = sum(word == done for word in words.values())
    is_ready = ready["status"] == "True" if ready.get("status") else _ready_in_kserves_words(words, available)
    degraded = condition(cache, "Degraded")
    worst = min((copy.rank for copy in copies), default=Rank.WAITING)
    if is_ready:
        rank = Rank.STUCK if degraded.get("status") == "True" else Rank.DONE
    else:
        rank = min(worst, Rank.STUCK if degraded.get("status") == "True" else Rank.WAITING)
    said = degraded if is_ready and degraded.get("status") == "True" else ready
    return CacheRow(
        key=cache.key,
        rank=rank,
        ready=is_ready,
        reason=said.get("reason") or (cache.problem.reason if cache.problem else None),
        message=said.get("message") or (cache.problem.message if cache.problem else None),
        uri=cache.source.uri,
        groups=cache.node_groups,
        available=available,
        failed=sum(word == NodeStatus.ERROR for word in words.values()),
        nodes=len(words),
        size=moved.get("total"),
        cached=moved.get("cached") or 0,
        rate=status.get("rateBytesPerSecond") or 0,
        eta=status.get("eta"),
        origin=moved.get("fromOrigin") or 0,
        peers=moved.get("fromPeers") or 0,
        other_zones=moved.get("fromOtherZones") or 0,
        revision=status.get("revision"),
        started=status.get("startedAt"),
        completed=status.get("completedAt"),
        deleting=cache.deleted_at is not None,
        copies=tuple(copy for copy in copies if node in (None, copy.node)),
        versions=tuple(_version_rows(cache)),
    )


def _version_rows(cache: Cache) -> Iterator[VersionRow]:
    for each in written_versions(cache):
        name = short_revision(each.get("revision") or each.get("digest")) or "without a name"
        yield VersionRow(name, each.get("state") or "", each.get("nodes") or 0, each.get("beside") or 0)


def _ready_in_kserves_words(words: Mapping[str, str], available: int) -> bool | None:
    """Of a cluster whose CRDs know no conditions."""
    return available == len(words) if words else None


def _copy_rows(view: ClusterView, cache: Cache, words: Mapping[str, str]) -> list[CopyRow]:
    details = view.details(cache.key)
    size = (cache.status.get("bytes") or {}).get("total")
    names = {NodeName(name) for name in words} | set(details)
    found = [_copy_row(cache, name, words.get(name, ""), details.get(name), size) for name in names]
    rates = [row.rate for row in found if row.rate]
    usual = int(median(rates)) if len(rates) > 1 else 0
    found = [_marked(row, usual) for row in found]
    return sorted(found, key=lambda row: (row.rank, 1.0 if row.share is None else row.share, row.node))


def _marked(row: CopyRow, usual: int) -> CopyRow:
    """As it is, or SLOW: what holds up the others' end is not that it began later, but its rate."""
    if row.rank is not Rank.MOVING or not row.rate or row.rate >= SLOW * usual:
        return row
    return replace(row, rank=Rank.SLOW, slow_beside=usual)


_PHASES = {
    NodeStatus.ERROR: "Failed",
    NodeStatus.DOWNLOADED: "Ready",
    NodeStatus.DOWNLOADING: "Downloading",
}


def _copy_row(cache: Cache, node: NodeName, word: str, detail: Detail | None, size: int | None) -> CopyRow:
    if detail is None:  # KServe's words alone, or a node that has not been told yet
        phase = _PHASES.get(NodeStatus(word) if word in set(NodeStatus) else NodeStatus.EMPTY, "Pending")
        reason = {NodeStatus.NOT_READY: "NodeNotReady"}.get(NodeStatus(word)) if word in set(NodeStatus) else None
        done = size or 0 if phase == "Ready" else 0
        return CopyRow(cache.key, node, phase, _rank(phase, reason), done, size, reason=reason)
    phase, reason = detail.get("phase") or "Pending", detail.get("reason")
    total = detail.get("bytesTotal") or size
    return CopyRow(
        key=cache.key,
        node=node,
        phase=phase,
        rank=_rank(phase, reason),
        done=detail.get("bytesDone") or (total or 0 if phase == "Ready" else 0),
        total=total,
        rate=detail.get("rateBytesPerSecond") or 0,
        eta=detail.get("eta"),
        origin=detail.get("bytesFromOrigin") or 0,
        peers=detail.get("bytesFromPeers") or 0,
        other_zones=detail.get("bytesFromOtherZones") or 0,
        attempt=detail.get("attempt") or 0,
        reason=reason,
        message=detail.get("message"),
        retry_at=seconds_of(detail.get("retryTime")),
        revision=detail.get("revision"),
    )


def _rank(phase: str, reason: str | None) -> Rank:
    if phase in ("Failed", "Damaged"):
        return Rank.FAILED
    if phase == "Ready":
        return Rank.DONE if reason is None or reason in WAITING else Rank.STUCK
    if reason is not None and reason not in WAITING:
        return Rank.STUCK
    return Rank.MOVING if phase in ("Downloading", "Verifying", "Removing") else Rank.WAITING
