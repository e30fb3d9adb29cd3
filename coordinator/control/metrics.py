"""What Prometheus sees; the only module that imports `prometheus_client`.

Its own registry, nothing global. Cardinality is bounded by the number of caches and of their origins, plus constants,
and `MAX_NODES`: there is no series per node and model, however large the cluster (that detail is in
`LocalModelNode.status`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from actors.transferred import Transferred
from coordinator.plan.origin_budget import OriginUse

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_REASONS = 100
"""Reasons, and the names of origins, come from elsewhere; what exceeds this many is counted as `Other`."""

MAX_NODES = 500
"""A larger cluster shows the first of them by name: disks are worth a series each, but not without bound."""

_SLOW = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 10800.0, 43200.0)
_FAST = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0)


@dataclass(frozen=True, slots=True)
class CacheSample:
    """`nodes` counts nodes by KServe's node status. `bytes_total` is of one copy; the rest is summed over nodes."""

    name: str
    namespace: str = ""
    nodes: Mapping[str, int] = field(default_factory=dict)
    bytes_total: int = 0
    bytes_cached: int = 0
    rate_bytes_per_s: float = 0.0
    moved: Transferred = field(default_factory=Transferred)


@dataclass(frozen=True, slots=True)
class NodeSample:
    """The disks of one node: in models, promised to fills, and free; in bytes, summed over its folders."""

    name: str
    models: int = 0
    reserved: int = 0
    free: int = 0


class Metrics:
    """Every metric of one coordinator. Methods may be called from any thread."""

    def __init__(self, version: str, *, leader_lock: str = "") -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        build = Gauge("localmodel_build_info", "Always 1.", ["version"], registry=registry)
        build.labels(version).set(1)
        self._ticks = Histogram("localmodel_tick_seconds", "One turn of the loop.", buckets=_FAST, registry=registry)
        self._tick_errors = Counter("localmodel_tick_errors_total", "Turns that failed.", registry=registry)
        self._last_good = Gauge(
            "localmodel_last_good_tick_timestamp_seconds", "When a turn last succeeded.", registry=registry
        )
        self._left_out = Gauge(
            "localmodel_left_out_objects", "Objects no plan can be made with; see the Events.", registry=registry
        )
        self._requests = Counter(
            "localmodel_kube_requests_total",
            "Requests to the Kubernetes API; code 0: no answer.",
            ["verb", "code"],
            registry=registry,
        )
        self._request_seconds = Histogram(
            "localmodel_kube_request_seconds",
            "How long they took; watches, which are meant to last, are left out.",
            ["verb"],
            buckets=_FAST,
            registry=registry,
        )
        self._restarts = Counter(
            "localmodel_watch_restarts_total", "Watches that ended before their time.", registry=registry
        )
        # The name controller-runtime gives it, so that existing alerts find it.
        leader = Gauge("leader_election_master_status", "1 while leading.", ["name"], registry=registry)
        self._leader = leader.labels(leader_lock)
        self._resolves = Counter("localmodel_resolves_total", "Sources resolved.", ["outcome"], registry=registry)
        self._errors = Counter("localmodel_errors_total", "Failures.", ["reason"], registry=registry)
        self._pauses = Counter(
            "localmodel_origin_pauses_total", "Pauses that an origin asked for.", ["origin"], registry=registry
        )
        self._moved = Counter(
            "localmodel_read_bytes_total", "Read by nodes, by where from.", ["location"], registry=registry
        )
        for location in ("origin", "peers", "disk"):
            self._moved.labels(location)

        def times(name: str, text: str) -> Histogram:
            return Histogram(f"localmodel_{name}_seconds", text, ["outcome"], buckets=_SLOW, registry=registry)

        self._first_byte = times("first_byte", "Until a fill had its first byte, or failed without one.")
        self._fill = times("fill", "Until a node's fill was committed, or an attempt failed.")
        self._ready = times("ready", "Until a cache that was not Ready was, or was deleted.")
        self._reasons: set[str] = set()
        self._origins: set[str] = set()
        self._lock = threading.Lock()
        self._now = _Now()
        registry.register(self._now)

    def tick(self, seconds: float) -> None:
        self._ticks.observe(seconds)

    def tick_failed(self) -> None:
        self._tick_errors.inc()

    def tick_succeeded(self, now: float) -> None:
        self._last_good.set(now)

    def left_out(self, objects: int) -> None:
        self._left_out.set(objects)

    def kube_request(self, verb: str, code: int, seconds: float) -> None:
        """`HttpKube`'s `observe`."""
        self._requests.labels(verb, str(code)).inc()
        if verb != "watch":
            self._request_seconds.labels(verb).observe(seconds)

    def watch_restarted(self) -> None:
        self._restarts.inc()

    def leading(self, leading: bool) -> None:
        self._leader.set(1 if leading else 0)

    def resolved(self, outcome: str) -> None:
        """`outcome`: ok, or the reason of the failure."""
        self._resolves.labels(self._bounded(outcome, self._reasons)).inc()

    def failed(self, reason: str) -> None:
        self._errors.labels(self._bounded(reason, self._reasons)).inc()

    def paused(self, origin: str) -> None:
        self._pauses.labels(self._bounded(origin, self._origins)).inc()

    def moved(self, location: str, count: int) -> None:
        self._moved.labels(location).inc(count)

    def first_byte(self, outcome: str, seconds: float) -> None:
        self._first_byte.labels(outcome).observe(seconds)

    def filled(self, outcome: str, seconds: float) -> None:
        self._fill.labels(outcome).observe(seconds)

    def became_ready(self, outcome: str, seconds: float) -> None:
        self._ready.labels(outcome).observe(seconds)

    def show(
        self,
        caches: Sequence[CacheSample],
        agents: Mapping[str, int],
        origins: Sequence[OriginUse] = (),
        nodes: Sequence[NodeSample] = (),
    ) -> None:
        """From now on exactly these caches, origins and nodes, and this many agents by state, are exported."""
        self._now.caches, self._now.agents, self._now.origins, self._now.nodes = caches, agents, origins, nodes

    def render(self) -> bytes:
        """The text exposition, of `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def _bounded(self, name: str, known: set[str]) -> str:
        with self._lock:
            if name not in known and len(known) >= MAX_REASONS:
                return "Other"
            known.add(name)
            return name


class _Now(Collector):
    """Gauges made anew for every scrape, so that a deleted cache leaves no series behind."""

    caches: Sequence[CacheSample] = ()
    agents: Mapping[str, int] = {}
    origins: Sequence[OriginUse] = ()
    nodes: Sequence[NodeSample] = ()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        labels = ["namespace", "name"]
        nodes = GaugeMetricFamily("localmodel_cache_nodes", "Nodes by status.", labels=[*labels, "status"])
        total = GaugeMetricFamily("localmodel_cache_size_bytes", "Size of one copy.", labels=labels)
        cached = GaugeMetricFamily("localmodel_cache_cached_bytes", "Finished, over all nodes.", labels=labels)
        read = GaugeMetricFamily("localmodel_cache_read_bytes", "Read, by where from.", labels=[*labels, "location"])
        zones = GaugeMetricFamily(
            "localmodel_cache_cross_zone_bytes",
            "Read from nodes in another zone; part of those from peers.",
            labels=labels,
        )
        wrong = GaugeMetricFamily(
            "localmodel_cache_wrong_chunks",
            "Chunks with wrong bytes, by what went wrong: a node sent them so, or had read them so from the origin.",
            labels=[*labels, "when"],
        )
        rate = GaugeMetricFamily("localmodel_cache_rate_bytes_per_second", "Over all nodes.", labels=labels)
        times = GaugeMetricFamily(
            "localmodel_cache_origin_amplification",
            "Bytes read from the origin, in copies of the model.",
            labels=labels,
        )
        for cache in self.caches:
            key = [cache.namespace, cache.name]
            for status, count in cache.nodes.items():
                nodes.add_metric([*key, status], count)
            total.add_metric(key, cache.bytes_total)
            cached.add_metric(key, cache.bytes_cached)
            read.add_metric([*key, "origin"], cache.moved.bytes_from_origin)
            read.add_metric([*key, "peers"], cache.moved.bytes_from_peers)
            read.add_metric([*key, "disk"], cache.moved.bytes_reused)
            zones.add_metric(key, cache.moved.bytes_from_other_zones)
            wrong.add_metric([*key, "sent"], sum(cache.moved.wrong_peers.values()))
            wrong.add_metric([*key, "read"], sum(cache.moved.wrong_readers.values()))
            rate.add_metric(key, cache.rate_bytes_per_s)
            if cache.bytes_total:
                times.add_metric(key, cache.moved.bytes_from_origin / cache.bytes_total)
        agents = GaugeMetricFamily("localmodel_agents", "Node agents by state.", labels=["state"])
        for state, count in self.agents.items():
            agents.add_metric([state], count)
        caches = [nodes, total, cached, read, zones, wrong, rate, times]
        return [*caches, agents, self._of_nodes(), *self._of_origins()]

    def _of_nodes(self) -> GaugeMetricFamily:
        disks = GaugeMetricFamily("localmodel_node_disk_bytes", "Of the disks for models.", labels=["node", "use"])
        for node in sorted(self.nodes, key=lambda each: each.name)[:MAX_NODES]:
            disks.add_metric([node.name, "models"], node.models)
            disks.add_metric([node.name, "reserved"], node.reserved)
            disks.add_metric([node.name, "free"], node.free)
        return disks

    def _of_origins(self) -> Iterable[GaugeMetricFamily]:
        def gauge(name: str, text: str, value: Callable[[OriginUse], float | None]) -> GaugeMetricFamily:
            family = GaugeMetricFamily(f"localmodel_origin_{name}", text, labels=["origin"])
            for origin in self.origins:
                if (number := value(origin)) is not None:
                    family.add_metric([origin.origin], number)
            return family

        yield gauge("budget_requests", "What all nodes may ask at a time.", lambda origin: origin.budget.requests)
        yield gauge("budget_bytes_per_second", "If limited.", lambda origin: origin.budget.bytes_per_s)
        yield gauge("requests", "Under way, over all nodes.", lambda origin: origin.requests)
        yield gauge("wanted_requests", "Would be under way without the budget.", lambda origin: origin.wanted)
        yield gauge("nodes", "Nodes with a request under way.", lambda origin: origin.nodes)
        yield gauge("rate_bytes_per_second", "Over all nodes.", lambda origin: origin.rate_bytes_per_s)
        yield gauge("pause_seconds", "Left of the pause it asked for.", lambda origin: origin.pause_s)
