"""What moves, and how long it takes: every byte from the origin once, unless a node holds it. Pure.

Each zone gets each byte from outside once. A node is done when the origin has been read and its own link has carried
what it wants, whichever takes longer. Links are as fast as earlier fills were seen to be.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median

from actors.messages import NodeName
from actors.times import seconds_of
from coordinator.plan.fill_groups import ZONE_LABEL
from coordinator.plan.snapshot import Snapshot

SHORTEST_S = 5.0
"""A fill that took less says nothing of a link: times are written in whole seconds."""


@dataclass(slots=True)
class Fetch:
    """One model of `size` bytes, for `nodes`; `seeds` hold it already."""

    size: int = 0
    nodes: list[NodeName] = field(default_factory=list)
    seeds: list[NodeName] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Movement:
    """Bytes, and seconds from now for each node that fetches. `links`: bytes per second, where they were measured."""

    origin_bytes: int
    peer_bytes: int
    zone_bytes: int
    seconds: Mapping[NodeName, float]
    links: Mapping[NodeName, float]
    origin_bytes_per_s: float


def movement(
    after: Snapshot, fetches: Iterable[Fetch], link_bytes_per_s: float, origin_bytes_per_s: float | None
) -> Movement:
    """The rates are used where nothing was measured; that of the origin, if it is given, in any case."""
    origin = peers = zones = 0
    wanted: dict[NodeName, int] = defaultdict(int)
    for fetch in fetches:
        whole = fetch.size * len(fetch.nodes)
        from_origin = 0 if fetch.seeds or not fetch.nodes else fetch.size
        origin += from_origin
        peers += whole - from_origin
        there = {_zone(after, node) for node in fetch.seeds}
        entered = {_zone(after, node) for node in fetch.nodes} - there
        zones += fetch.size * max(0, len(entered) - (0 if there else 1))
        for node in fetch.nodes:
            wanted[node] += fetch.size
    links = _links(after)
    usual = median(links.values()) if links else link_bytes_per_s
    at_origin = origin_bytes_per_s or _origin_rate(after) or usual
    read_s = origin / at_origin
    seconds = {node: max(read_s, count / links.get(node, usual)) for node, count in wanted.items()}
    return Movement(origin, peers, zones, seconds, links, at_origin)


def _zone(after: Snapshot, node: NodeName) -> str | None:
    return after.nodes[node].labels.get(ZONE_LABEL) if node in after.nodes else None


def _links(after: Snapshot) -> dict[NodeName, float]:
    """The best that each node was seen to take, over a whole fill."""
    found: dict[NodeName, float] = {}
    for name, local in after.local_nodes.items():
        rates = [rate for detail in local.status.get("models") or () if (rate := _rate(detail)) is not None]
        if rates:
            found[name] = max(rates)
    return found


def _rate(detail: Mapping[str, object]) -> float | None:
    began, ended = seconds_of(detail.get("startedAt")), seconds_of(detail.get("finishedAt"))
    moved = sum(count for name in ("bytesFromOrigin", "bytesFromPeers") if isinstance(count := detail.get(name), int))
    if began is None or ended is None or ended - began < SHORTEST_S or not moved:
        return None
    return moved / (ended - began)


def _origin_rate(after: Snapshot) -> float | None:
    """The best that an origin was seen to give to all nodes together."""
    rates = []
    for cache in after.caches.values():
        began, ended = (seconds_of(cache.status.get(name)) for name in ("startedAt", "completedAt"))
        read = (cache.status.get("bytes") or {}).get("fromOrigin")
        if read and began is not None and ended is not None and ended - began >= SHORTEST_S:
            rates.append(read / (ended - began))
    return max(rates, default=None)
