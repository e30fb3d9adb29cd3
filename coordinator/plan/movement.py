"""What moves, and how long it takes: every byte from the origin once, unless a node holds it. Pure.

    origin ──its rate, shared by the models that are read from it──┐
    seeds ───their links, shared by the models that they give──────┼──► a node is done when the slowest of these is
    the node's own link, which carries all that it takes───────────┘

Each zone gets each byte from outside once. Links and origins are as fast as earlier fills were seen to be. A model that
is under way takes its part of both until it is there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from urllib.parse import urlsplit

from actors.messages import NodeName
from actors.times import seconds_of
from coordinator.plan.fill_groups import ZONE_LABEL
from coordinator.plan.snapshot import Snapshot

SHORTEST_S = 5.0
"""A fill that took less says nothing of a link: times are written in whole seconds."""


@dataclass(slots=True)
class Fetch:
    """One model of `size` bytes from `origin`, for `nodes`; `seeds` hold it already. `arriving`: bytes that are still
    to come of one that is under way, by node."""

    size: int = 0
    nodes: list[NodeName] = field(default_factory=list)
    seeds: list[NodeName] = field(default_factory=list)
    arriving: dict[NodeName, int] = field(default_factory=dict)
    origin: str = ""

    @property
    def unread(self) -> int:
        """Bytes that the origin has still to give: those that no node holds."""
        if self.seeds or not (self.nodes or self.arriving):
            return 0
        held = sum(self.size - left for left in self.arriving.values())  # each has other chunks of it
        return max(0, self.size - held)


@dataclass(frozen=True, slots=True)
class Movement:
    """Bytes, and seconds for each node that fetches, from the first byte to the last. `links`: bytes per second, where
    they were measured; `origin_bytes_per_s`: of the slowest origin that is read."""

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
    fetches = list(fetches)
    origin = peers = zones = 0
    for fetch in fetches:
        whole = fetch.size * len(fetch.nodes)
        from_origin = min(fetch.unread, fetch.size) if fetch.nodes else 0
        origin += from_origin
        peers += whole - from_origin
        there = {_zone(after, node) for node in fetch.seeds}
        entered = {_zone(after, node) for node in fetch.nodes} - there
        zones += fetch.size * max(0, len(entered) - (0 if there else 1))
    links = _links(after)
    usual = median(links.values()) if links else link_bytes_per_s
    measured = _origin_rates(after)
    best = max(measured.values(), default=usual)
    rates = {each.origin: origin_bytes_per_s or measured.get(each.origin, best) for each in fetches}
    read = {each.origin for each in fetches if each.unread}
    slowest = min((rates[name] for name in read), default=origin_bytes_per_s or best)
    return Movement(origin, peers, zones, _seconds(fetches, links, usual, rates), links, slowest)


def _seconds(
    fetches: Sequence[Fetch], links: Mapping[NodeName, float], usual: float, rates: Mapping[str, float]
) -> dict[NodeName, float]:
    taken: dict[NodeName, int] = defaultdict(int)
    given: dict[NodeName, float] = defaultdict(float)
    for fetch in fetches:
        for node in fetch.nodes:
            taken[node] += fetch.size
        for node, left in fetch.arriving.items():
            taken[node] += left
        if fetch.nodes:
            for node in fetch.seeds:  # after that nodes have it from each other
                given[node] += fetch.size / len(fetch.seeds)
    ends = _read_ends(fetches, rates)
    found: dict[NodeName, float] = {}
    for number, fetch in enumerate(fetches):
        pushed = max((given[seed] / links.get(seed, usual) for seed in fetch.seeds), default=0.0)
        for node in fetch.nodes:
            own = taken[node] / links.get(node, usual)
            found[node] = max(found.get(node, 0.0), own, pushed, ends[number])
    return found


def _read_ends(fetches: Sequence[Fetch], rates: Mapping[str, float]) -> list[float]:
    """When the origin of each has given the last byte. Models that are read at the same time get equal parts."""
    ends = [0.0] * len(fetches)
    for origin, rate in rates.items():
        waiting = sorted((fetch.unread, number) for number, fetch in enumerate(fetches) if fetch.origin == origin)
        now, done = 0.0, 0
        for place, (count, number) in enumerate(waiting):
            now += (count - done) * (len(waiting) - place) / rate
            done = count
            ends[number] = now
    return ends


def origin_of(uri: str) -> str:
    """The hub, server or bucket of a source: each has a rate of its own."""
    parts = urlsplit(uri)
    return parts.scheme if parts.scheme == "hf" else f"{parts.scheme}://{parts.netloc}"


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


def _origin_rates(after: Snapshot) -> dict[str, float]:
    """The best that each origin was seen to give to all nodes together."""
    found: dict[str, float] = {}
    for cache in after.caches.values():
        began, ended = (seconds_of(cache.status.get(name)) for name in ("startedAt", "completedAt"))
        read = (cache.status.get("bytes") or {}).get("fromOrigin")
        if read and began is not None and ended is not None and ended - began >= SHORTEST_S:
            origin = origin_of(cache.source.uri)
            found[origin] = max(found.get(origin, 0.0), read / (ended - began))
    return found
