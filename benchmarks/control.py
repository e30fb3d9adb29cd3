"""What deciding costs: the plan for a large cluster, and the loop with a thousand agents that all make progress.

    .venv/bin/python -m benchmarks.control [--nodes 1000] [--caches 200] [--groups 1] [--seconds 20]
    .venv/bin/python -m benchmarks.control --nodes 5000 --caches 1000 --groups 20 --seconds 0

The first part is pure: every cache on every node of its group (of one of `--groups`), best of three; "from scratch" is
without the memory of the plan before, as when a coordinator begins. The second is the real controller over an in-memory
API server, real informers and agents that report something new at every tick, watched for `--seconds` (0: left out).
Prints a table, then one JSON line per row, with the most memory that the process has had by then. Exits with 1 where a
plan with a memory, or a turn of the loop, takes more than a second, or an unchanged world is written to or takes more
than 0.2 s.

Takes: 2 min
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import resource
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from actors.manifest import Location, ManifestFile, ModelSource, Resolved, StorageKey, make_manifest, storage_key
from actors.messages import Company, DesiredState, ModelReport, NodeName, NodeReport, Phase, RootReport
from actors.sources.options import SourceOptions
from benchmarks.machine import machine
from coordinator.api.resources import LocalModelCache, StatusKey
from coordinator.collector import paused
from coordinator.control.controller import Controller
from coordinator.control.informers import Informers
from coordinator.control.metrics import Metrics
from coordinator.dev.fake_kube import FakeKube
from coordinator.fleet.interface import AgentView, following
from coordinator.kube.interface import NAMESPACES, NODES
from coordinator.plan.fold import Turn
from coordinator.plan.memory import Memory
from coordinator.plan.plan import Plan, Verb, Want, plan
from coordinator.plan.reading import read_cache, read_local_node, read_node, read_node_group
from coordinator.plan.snapshot import CACHES, LOCAL_NODES, NODE_GROUPS, Credentials, Ref, Resolution, Snapshot

GIB = 1 << 30
LIMIT_S, UNCHANGED_S = 1.0, 0.2
Json = dict[str, Any]
T = TypeVar("T")


def node_json(name: str, pool: str = "gpu") -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "uid": f"uid-{name}", "labels": {"pool": pool}},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }


def group_json(name: str = "gpu") -> Json:
    term = {"matchExpressions": [{"key": "pool", "operator": "In", "values": [name]}]}
    volume = {"local": {"path": "/models"}, "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}}}
    spec = {"storageLimit": "10Ti", "persistentVolumeSpec": volume, "persistentVolumeClaimSpec": {}}
    return {"metadata": {"name": name, "resourceVersion": "1"}, "spec": spec, **_kind("LocalModelNodeGroup")}


def cache_json(name: str, group: str = "gpu") -> Json:
    metadata = {"name": name, "uid": f"uid-{name}", "resourceVersion": "1", "generation": 1}
    metadata["finalizers"] = [LocalModelCache.FINALIZER]
    metadata["creationTimestamp"] = "2026-01-01T00:00:00Z"
    spec = {"sourceModelUri": f"hf://models/{name}", "modelSize": "1Gi", "nodeGroups": [group]}
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
    groups: int = 1

    def __post_init__(self) -> None:
        self.now = 1_700_000_000.0
        pools = ["gpu", *(f"pool-{number}" for number in range(1, self.groups))]
        pool_of = {name: pools[number % self.groups] for number, name in enumerate(self.nodes)}
        group_of = {name: pools[number % self.groups] for number, name in enumerate(self.caches)}
        self.caches_json = {name: cache_json(name, group) for name, group in group_of.items()}
        self.local_json: dict[str, Json] = {}
        self.groups_json = {name: group_json(name) for name in pools}
        self.nodes_read = {NodeName(name): read_node(node_json(name, pool)) for name, pool in pool_of.items()}
        sources = {name: ModelSource(f"hf://models/{name}") for name in self.caches}
        resolved = {name: resolved_source(source) for name, source in sources.items()}
        self.resolutions = {StatusKey(name): Resolution(each) for name, each in resolved.items()}
        models = {name: (storage_key(s.uri), s.selection, resolved[name].name) for name, s in sources.items()}
        in_pool = {pool: [models[name] for name, group in group_of.items() if group == pool] for pool in pools}
        self.models = {name: in_pool[pool] for name, pool in pool_of.items()}
        self._read: dict[int, tuple[str, Any]] = {}
        self.agents: dict[NodeName, AgentView] = {}
        self.companies: Mapping[str, Company] = {}

    def advance(self, done: int | None) -> None:
        """All agents report: everything Ready (None), or `done` bytes of everything and a little more on each node."""
        self.agents = {
            NodeName(name): report(name, self.models[name], None if done is None else done + index, self.now)
            for index, name in enumerate(self.nodes)
        }

    def snapshot(self) -> Snapshot:
        caches = [self._once(read_cache, raw) for raw in self.caches_json.values()]
        return Snapshot(
            owner="owner",
            caches={cache.key: cache for cache in caches},
            groups={name: self._once(read_node_group, raw) for name, raw in self.groups_json.items()},
            nodes=self.nodes_read,
            local_nodes={NodeName(name): self._once(read_local_node, raw) for name, raw in self.local_json.items()},
            agents=self.agents,
            resolutions=self.resolutions,
            companies=self.companies,
        )

    def _once(self, read: Callable[[Json], T], raw: Json) -> T:
        """Each version of an object is read once, as informers do."""
        version = raw["metadata"]["resourceVersion"]
        known = self._read.get(id(raw))
        if known is None or known[0] != version:
            known = self._read[id(raw)] = version, read(raw)
        found: T = known[1]
        return found

    def settle(self, memory: Memory | None = None) -> None:
        """Applies plans until there is nothing left to write."""
        for _ in range(5):
            made = plan(self.snapshot(), self.now, memory=memory)
            if not made.writes:
                return
            self.apply(made)
        raise AssertionError("the world does not come to rest")

    def apply(self, made: Plan) -> None:
        self.companies = made.companies
        for write in made.writes:
            if write.verb is Verb.CREATE:
                created = json.loads(json.dumps(write.body))
                created["metadata"] |= {"uid": f"uid-{write.ref.name}", "resourceVersion": "1"}
                self.local_json[write.ref.name] = created
                continue
            objects = {CACHES: self.caches_json, LOCAL_NODES: self.local_json, NODE_GROUPS: self.groups_json}
            target = objects[write.ref.resource][write.ref.name]
            merge(target, {k: v for k, v in write.body.items() if k != "metadata"})
            self.touch(target)

    @staticmethod
    def touch(target: Json) -> None:
        """It is another version now."""
        target["metadata"]["resourceVersion"] = str(int(target["metadata"]["resourceVersion"]) + 1)


def merge(target: Json, patch: Mapping[str, Any]) -> None:
    """RFC 7396, in place."""
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        elif isinstance(value, Mapping):
            merge(target.setdefault(name, {}), value)
        else:
            target[name] = value


def measure(
    name: str, world: World, turn: Turn | None, memory: Memory | None = None, change: Callable[[], None] | None = None
) -> Json:
    """Plan and fold of the world, changed before each: the best of three, as the machine is shared."""
    walls, cpus = [], []
    writes = 0
    for _ in range(3):
        if change is not None:
            change()
        snapshot = world.snapshot()
        gc.collect()
        wall, cpu = time.perf_counter(), time.process_time()
        with paused():
            made = plan(snapshot, world.now, turn, memory)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
        world.companies, writes = made.companies, len(made.writes)
    return {
        "case": name,
        "nodes": len(world.nodes),
        "caches": len(world.caches),
        "cells": sum(map(len, world.models.values())),
        "wall_s": round(min(walls), 3),
        "cpu_s": round(min(cpus), 3),
        "writes": writes,
        "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def plans(nodes: int, caches: int, groups: int) -> Iterator[Json]:
    world = World([f"n{number:04}" for number in range(nodes)], [f"m{number:03}" for number in range(caches)], groups)
    budget = Turn(frozenset(NodeName(name) for name in world.nodes[:25]), news=100)
    memory = Memory()
    done = itertools.count(GIB // 4, GIB // 100)

    def one_model() -> None:
        """One copy is read again and found well."""
        name = NodeName(world.nodes[-1])
        view = world.agents[name]
        assert view.report is not None
        first, *others = view.report.models
        models = (replace(first, verified_at=float(next(done))), *others)
        world.agents = {**world.agents, name: AgentView(replace(view.report, models=models), world.now)}

    def one_node() -> None:
        """One node is heard again, and everything in its report is another object."""
        name = world.nodes[-1]
        world.agents = {**world.agents, NodeName(name): report(name, world.models[name], None, world.now)}

    def one_cache() -> None:
        world.touch(world.caches_json[world.caches[-1]])

    world.advance(None)
    yield measure("from scratch: nothing exists yet", world, budget)
    world.settle(memory)
    yield measure("from scratch: all Ready", world, budget)
    yield measure("all Ready, unchanged", world, budget, memory)
    yield measure("one model of one node changes", world, budget, memory, one_model)
    yield measure("one node changes", world, budget, memory, one_node)
    yield measure("one cache changes", world, budget, memory, one_cache)
    yield measure("every copy was lost", world, budget, memory, lambda: world.advance(next(done)))
    world.settle(memory)
    yield measure("every copy progresses", world, budget, memory, lambda: world.advance(next(done)))


class Agents:
    """A fleet whose every agent has made progress, or is done, since it was last looked at."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.done: int | None = 0

    def sync(self, desired: Mapping[NodeName, DesiredState]) -> None: ...

    def views(self) -> Mapping[NodeName, AgentView]:
        if self.done is not None:
            self.done += 1 << 20
        before = self.world.agents
        self.world.advance(self.done)
        for name, view in before.items():  # as the real fleet does
            now = self.world.agents[name]
            assert now.report is not None
            self.world.agents[name] = AgentView(following(now.report, view.report), now.received_at)
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
    kube.create(NODE_GROUPS, world.groups_json["gpu"])
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
    parser.add_argument("--groups", type=int, default=1)
    parser.add_argument("--loop-caches", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    rows = []
    heads = f"{'case':34}{'nodes':>7}{'caches':>8}{'wall s':>9}{'CPU s':>8}{'max s':>8}{'MiB':>7}"
    print(f"{heads}{'writes':>8}{'a second':>10}")
    looped = loop(options.nodes, options.loop_caches, options.seconds) if options.seconds else iter(())
    for row in itertools.chain(plans(options.nodes, options.caches, options.groups), looped):
        rows.append({"benchmark": "control", **row, "limit_s": _limit_s(row), **machine()})
        shown = [row.get(name, "") for name in ("nodes", "caches", "wall_s", "cpu_s", "max_s", "rss_mib")]
        widths = (7, 8, 9, 8, 8, 7)
        line = "".join(f"{value:>{width}}" for value, width in zip(shown, widths, strict=True))
        print(f"{row['case']:34}{line}{row['writes']:>8}{row.get('writes_per_s', ''):>10}", flush=True)
    for row in rows:
        print(json.dumps(row))
    slow = any(row["limit_s"] is not None and row.get("max_s", row["wall_s"]) > row["limit_s"] for row in rows)
    return 1 if slow or any("unchanged" in row["case"] and row["writes"] for row in rows) else 0


def _limit_s(row: Json) -> float | None:
    """How long it may take; None: as long as it likes."""
    if row["case"].startswith("from scratch"):
        return None
    return UNCHANGED_S if row["case"].endswith("unchanged") and "max_s" not in row else LIMIT_S


if __name__ == "__main__":
    raise SystemExit(main())
