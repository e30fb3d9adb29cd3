"""What deciding costs: the plan for a large cluster, and the loop with a thousand agents that all make progress.

    .venv/bin/python -m benchmarks.control [--nodes 1000] [--caches 200] [--seconds 20]

The first part is pure: every cache on every node (nodes × caches cells), best of three. The second is the real
controller over an in-memory API server, real informers and agents that report something new at every tick, watched for
`--seconds`. Prints a table, then one JSON line per row. Exits with 1 where a plan or a turn of the loop takes more than
a second, or an unchanged world is written to.

Takes: 2 min
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from actors.manifest import Location, ManifestFile, ModelSource, Resolved, StorageKey, make_manifest, storage_key
from actors.messages import Company, DesiredState, ModelReport, NodeName, NodeReport, Phase, RootReport
from actors.sources.options import SourceOptions
from benchmarks.machine import machine
from coordinator.api.resources import LocalModelCache, StatusKey
from coordinator.control.controller import Controller
from coordinator.control.informers import Informers
from coordinator.control.metrics import Metrics
from coordinator.dev.fake_kube import FakeKube
from coordinator.fleet.interface import AgentView
from coordinator.kube.interface import NAMESPACES, NODES
from coordinator.plan.fold import Turn
from coordinator.plan.plan import Plan, Verb, Want, plan
from coordinator.plan.reading import read_cache, read_local_node, read_node, read_node_group
from coordinator.plan.snapshot import CACHES, LOCAL_NODES, NODE_GROUPS, Credentials, Ref, Resolution, Snapshot

GIB = 1 << 30
LIMIT_S = 1.0
Json = dict[str, Any]


def node_json(name: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "uid": f"uid-{name}", "labels": {"pool": "gpu"}},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }


def group_json() -> Json:
    term = {"matchExpressions": [{"key": "pool", "operator": "In", "values": ["gpu"]}]}
    volume = {"local": {"path": "/models"}, "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}}}
    spec = {"storageLimit": "10Ti", "persistentVolumeSpec": volume, "persistentVolumeClaimSpec": {}}
    return {"metadata": {"name": "gpu", "resourceVersion": "1"}, "spec": spec, **_kind("LocalModelNodeGroup")}


def cache_json(name: str) -> Json:
    metadata = {"name": name, "uid": f"uid-{name}", "resourceVersion": "1", "generation": 1}
    metadata["finalizers"] = [LocalModelCache.FINALIZER]
    metadata["creationTimestamp"] = "2026-01-01T00:00:00Z"
    spec = {"sourceModelUri": f"hf://models/{name}", "modelSize": "1Gi", "nodeGroups": ["gpu"]}
    return {"metadata": metadata, "spec": spec, **_kind("LocalModelCache")}


def _kind(kind: str) -> Json:
    return {"apiVersion": "serving.kserve.io/v1alpha1", "kind": kind}


def resolved_source(source: ModelSource) -> Resolved:
    files = [ManifestFile(f"model-{number:05}.safetensors", GIB // 8) for number in range(8)]
    locations = tuple(Location(f"https://origin.test/{file.path}") for file in files)
    return Resolved(make_manifest(source, "c0ffee", files), locations)


def report(node: str, models: list[tuple[StorageKey, str, str]], done: int | None, now: float) -> AgentView:
    """Every model Ready, or with `done` bytes of it; every object new, as if it had just arrived."""
    reports = tuple(
        ModelReport(
            key=key,
            phase=Phase.READY if done is None else Phase.DOWNLOADING,
            selection=selection,
            resolved=name,
            bytes_total=GIB,
            bytes_done=GIB if done is None else done,
            bytes_from_origin=GIB // 4,
            rate_bytes_per_s=0.0 if done is None else 1e8 + done % 1000,
            attempt=1,
            revision="c0ffee" if done is None else None,
            verified={"sha256": 8} if done is None else {},
            started_at=now - 60,
            finished_at=now if done is None else None,
        )
        for key, selection, name in models
    )
    roots, known = (RootReport("/models", 100 * GIB, GIB),), frozenset(name for _, _, name in models)
    said = NodeReport(NodeName(node), "incarnation", "0.1.0", 1, reports, roots, known, peer_address=f"{node}:9090")
    return AgentView(said, now)


@dataclass
class World:
    """The objects of a cluster as JSON, and its agents; `apply` carries out a plan in place."""

    nodes: list[str]
    caches: list[str]

    def __post_init__(self) -> None:
        self.now = 1_700_000_000.0
        self.caches_json = {name: cache_json(name) for name in self.caches}
        self.local_json: dict[str, Json] = {}
        self.group_json = group_json()
        self.nodes_read = {NodeName(name): read_node(node_json(name)) for name in self.nodes}
        sources = {name: ModelSource(f"hf://models/{name}") for name in self.caches}
        resolved = {name: resolved_source(source) for name, source in sources.items()}
        self.resolutions = {StatusKey(name): Resolution(each) for name, each in resolved.items()}
        self.models = [(storage_key(s.uri), s.selection, resolved[name].name) for name, s in sources.items()]
        self.agents: Mapping[NodeName, AgentView] = {}
        self.companies: Mapping[str, Company] = {}

    def advance(self, done: int | None) -> None:
        """All agents report: everything Ready (None), or `done` bytes of everything and a little more on each node."""
        self.agents = {
            NodeName(name): report(name, self.models, None if done is None else done + index, self.now)
            for index, name in enumerate(self.nodes)
        }

    def snapshot(self) -> Snapshot:
        caches = [read_cache(raw) for raw in self.caches_json.values()]
        return Snapshot(
            owner="owner",
            caches={cache.key: cache for cache in caches},
            groups={"gpu": read_node_group(self.group_json)},
            nodes=self.nodes_read,
            local_nodes={NodeName(name): read_local_node(raw) for name, raw in self.local_json.items()},
            agents=self.agents,
            resolutions=self.resolutions,
            companies=self.companies,
        )

    def settle(self) -> None:
        """Applies plans until there is nothing left to write."""
        for _ in range(5):
            made = plan(self.snapshot(), self.now)
            if not made.writes:
                return
            self.apply(made)
        raise AssertionError("the world does not come to rest")

    def apply(self, made: Plan) -> None:
        self.companies = made.companies
        for write in made.writes:
            if write.verb is Verb.CREATE:
                created = json.loads(json.dumps(write.body))
                created["metadata"]["uid"] = f"uid-{write.ref.name}"
                self.local_json[write.ref.name] = created
                continue
            objects = {CACHES: self.caches_json, LOCAL_NODES: self.local_json, NODE_GROUPS: {"gpu": self.group_json}}
            merge(objects[write.ref.resource][write.ref.name], {k: v for k, v in write.body.items() if k != "metadata"})


def merge(target: Json, patch: Mapping[str, Any]) -> None:
    """RFC 7396, in place."""
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        elif isinstance(value, Mapping):
            merge(target.setdefault(name, {}), value)
        else:
            target[name] = value


def measure(name: str, world: World, turn: Turn | None) -> Json:
    """Plan and fold of the world as it is: the best of three, as the machine is shared."""
    snapshot = world.snapshot()
    gc.collect()
    walls, cpus = [], []
    made = plan(snapshot, world.now, turn)
    for _ in range(3):
        wall, cpu = time.perf_counter(), time.process_time()
        made = plan(snapshot, world.now, turn)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return {
        "case": name,
        "nodes": len(world.nodes),
        "caches": len(world.caches),
        "wall_s": round(min(walls), 3),
        "cpu_s": round(min(cpus), 3),
        "writes": len(made.writes),
    }


def plans(nodes: int, caches: int) -> Iterator[Json]:
    world = World([f"n{number:04}" for number in range(nodes)], [f"m{number:03}" for number in range(caches)])
    budget = Turn(frozenset(NodeName(name) for name in world.nodes[:25]), news=100)
    world.advance(None)
    yield measure("plan: nothing exists yet", world, budget)
    world.settle()
    yield measure("plan: all Ready, unchanged", world, budget)
    world.advance(GIB // 4)
    yield measure("plan: every copy was lost", world, budget)
    world.settle()
    world.advance(GIB // 2)
    yield measure("plan: every copy progresses", world, budget)


class Agents:
    """A fleet whose every agent has made progress, or is done, since it was last looked at."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.done: int | None = 0

    def sync(self, desired: Mapping[NodeName, DesiredState]) -> None: ...

    def views(self) -> Mapping[NodeName, AgentView]:
        if self.done is not None:
            self.done += 1 << 20
        self.world.advance(self.done)
        return self.world.agents

    def close(self, *, stop_agents: bool) -> None: ...


class Resolver:
    def __init__(self, world: World) -> None:
        self.world = world

    def want(self, wants: Mapping[StatusKey, Want], load_options: Callable[[Credentials], SourceOptions]) -> None: ...

    def resolutions(self) -> Mapping[StatusKey, Resolution]:
        return self.world.resolutions


class Silent:
    def event(self, ref: Ref, type_: str, reason: str, message: str) -> None: ...


def loop(nodes: int, caches: int, seconds: float) -> Iterator[Json]:
    """The real loop, with a tick every second. First everything progresses, then everything is Ready and stays so."""
    world = World([f"n{number:04}" for number in range(nodes)], [f"m{number:03}" for number in range(caches)])
    kube, agents = FakeKube(), Agents(world)
    kube.create(NAMESPACES, {"metadata": {"name": "kube-system"}})
    kube.create(NODE_GROUPS, world.group_json)
    for name in world.nodes:
        kube.create(NODES, node_json(name))
    for name in world.caches:
        kube.create(CACHES, cache_json(name))
    informers = Informers.over(kube, changed=lambda: controller.wake(), poisoned=lambda ref, error: None)
    controller = Controller(
        informers,
        kube,
        agents,
        Resolver(world),
        Silent(),
        Metrics("benchmark"),
        leading=lambda: True,
        load_options=lambda credentials: SourceOptions(),
    )
    informers.start()
    ticks: list[float] = []
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            started = time.perf_counter()
            controller.tick()
            ticks.append(time.perf_counter() - started)
            stop.wait(max(0.0, 1.0 - ticks[-1]))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        _wait(lambda: sum(verb == "create" and kind == "localmodelnodes" for verb, kind, _ in kube.writes) == nodes)
        _quiet(kube, per_second=30)
        yield _observe("loop: all progressing", kube, ticks, seconds, nodes, caches)
        agents.done = None
        _quiet(kube, per_second=0)
        yield _observe("loop: all Ready, unchanged", kube, ticks, seconds, nodes, caches)
    finally:
        stop.set()
        thread.join()
        informers.stop()
        kube.close()
        informers.stop(5.0)
        controller.close()


def _observe(name: str, kube: FakeKube, ticks: list[float], seconds: float, nodes: int, caches: int) -> Json:
    del kube.writes[:], ticks[:]
    cpu = time.process_time()
    time.sleep(seconds)
    writes, took = len(kube.writes), sorted(ticks)
    return {
        "case": name,
        "nodes": nodes,
        "caches": caches,
        "wall_s": round(statistics.median(took), 3),
        "max_s": round(took[-1], 3),
        "cpu_s": round((time.process_time() - cpu) / len(took), 3),
        "writes": writes,
        "writes_per_s": round(writes / seconds, 1),
    }


def _quiet(kube: FakeKube, per_second: float) -> None:
    """Returns once the news are written: no more writes than this for three seconds."""

    def settled() -> bool:
        before = len(kube.writes)
        time.sleep(3.0)
        return len(kube.writes) - before <= 3.0 * per_second

    _wait(settled)


def _wait(condition: Callable[[], bool], timeout_s: float = 180.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("gave up waiting")
        time.sleep(0.1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--caches", type=int, default=200)
    parser.add_argument("--loop-caches", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    rows = []
    print(f"{'case':32}{'nodes':>7}{'caches':>8}{'wall s':>9}{'CPU s':>8}{'max s':>8}{'writes':>8}{'writes/s':>10}")
    for row in (*plans(options.nodes, options.caches), *loop(options.nodes, options.loop_caches, options.seconds)):
        rows.append({"benchmark": "control", **row, "limit_s": LIMIT_S, **machine()})
        shown = [row.get(name, "") for name in ("nodes", "caches", "wall_s", "cpu_s", "max_s")]
        widths = (7, 8, 9, 8, 8)
        line = "".join(f"{value:>{width}}" for value, width in zip(shown, widths, strict=True))
        print(f"{row['case']:32}{line}{row['writes']:>8}{row.get('writes_per_s', ''):>10}", flush=True)
    for row in rows:
        print(json.dumps(row))
    slow = any(row.get("max_s", row["wall_s"]) > LIMIT_S for row in rows)
    return 1 if slow or any("unchanged" in row["case"] and row["writes"] for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
