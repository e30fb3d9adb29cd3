"""A whole laptop cluster: API server, Ray nodes, coordinator, agents, origin, all of them processes."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Self

from actors.messages import NodeName
from coordinator.dev.laptop.cluster import SAMPLE_URI, LaptopCluster, LaptopOptions, laptop_node
from coordinator.dev.origin.sample import write_sample
from coordinator.dev.trial.waiting import eventually
from coordinator.kube.interface import NODES
from coordinator.plan.snapshot import CACHES
from tests.killmatrix.trial import MIB, Fault, Outcome
from tests.kit.laptop import Laptop, kill_agent
from tests.kit.nodes import same_bytes

SIZE = 48 * MIB
LINK = {"LOCALMODEL_LINK": "25Mi"}
SLOW = {"path": "/_cdn/*", "latency_s": 0.7}
CACHE = "matrix"
IN_FLIGHT_MIB = 16
PATIENCE_S = 120.0


class Cluster:
    """A context manager: a laptop cluster that runs, for one fault after the other. `laptop` is there once it runs."""

    laptop: Laptop

    def __init__(self, work: Path) -> None:
        self.work = work
        self.rng = random.Random()
        self.sample = work / "sample"
        write_sample(self.sample, SIZE)
        self.cluster = LaptopCluster(work / "laptop", LaptopOptions(nodes=2, sample_bytes=SIZE))
        ray = self.cluster.ray
        ray.nodes = {node: {**environment, **LINK} for node, environment in ray.nodes.items()}

    def __enter__(self) -> Self:
        self.cluster.__enter__()
        self.laptop = Laptop(self.cluster)
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.__exit__()

    @property
    def served(self) -> int:
        return self.laptop.served()

    @property
    def node(self) -> NodeName:
        return self.rng.choice(self.cluster.nodes)

    def done(self) -> int:
        return sum(int(self.laptop.detail(node, CACHE).get("bytesDone", 0)) for node in self.cluster.nodes)

    def begin(self) -> None:
        self.laptop.faults(SLOW)
        self.laptop.apply(CACHE, SAMPLE_URI)

    def until_filled(self, part: float) -> None:
        if part >= 1.0:
            self.until_ready()
            return
        eventually(lambda: self.done() >= part * SIZE * len(self.cluster.nodes), timeout_s=PATIENCE_S, seen=self.seen)

    def until_ready(self) -> None:
        """The cache is Ready, and so is every node's copy: of a node that is not registered the cache says nothing."""

        def ready() -> bool:
            phases = {self.laptop.detail(node, CACHE).get("phase") for node in self.cluster.nodes}
            return self.laptop.condition(CACHE)["status"] == "True" and phases == {"Ready"}

        eventually(ready, timeout_s=PATIENCE_S, seen=self.seen)

    def until_reason(self, reason: str) -> None:
        def said() -> bool:
            conditions = [self.laptop.condition(CACHE, kind)["reason"] for kind in ("Ready", "Degraded", "Progressing")]
            details = [self.laptop.detail(node, CACHE).get("reason") for node in self.cluster.nodes]
            return reason in (*conditions, *details)

        eventually(said, timeout_s=PATIENCE_S, seen=self.seen)

    def count(self) -> int:
        """Nodes whose copy is not the origin's, file by file."""
        folders = [self.laptop.folder(node, SAMPLE_URI) for node in self.cluster.nodes]
        return sum(not same_bytes(folder, self.sample) for folder in folders)

    def end(self) -> None:
        """Everything runs, nothing of the trial is left."""
        self.laptop.faults()
        if self.laptop.exists(CACHE):
            self.laptop.delete(CACHE, timeout_s=60)
        folders = [self.laptop.folder(node, SAMPLE_URI) for node in self.cluster.nodes]
        eventually(lambda: not any(map(os.path.lexists, folders)), seen=lambda: folders)

    def seen(self) -> str:
        return self.laptop.explain(CACHE) if self.laptop.exists(CACHE) else json.dumps(self.laptop.kube.list(CACHES)[0])


@contextmanager
def coordinator_killed(cluster: Cluster) -> Iterator[None]:
    cluster.cluster.children["coordinator"].kill()
    cluster.cluster.start_coordinator()
    yield


def stopped(child: str, seconds: float) -> Callable[[Cluster], AbstractContextManager[None]]:
    @contextmanager
    def strikes(cluster: Cluster) -> Iterator[None]:
        process = cluster.cluster.children[child]
        process.signal(signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            process.signal(signal.SIGCONT)
        yield

    return strikes


@contextmanager
def apiserver_killed(cluster: Cluster) -> Iterator[None]:
    cluster.cluster.children["apiserver"].kill()
    time.sleep(cluster.rng.uniform(0, 3))
    cluster.cluster.start_apiserver()
    yield


@contextmanager
def origin_killed(cluster: Cluster) -> Iterator[None]:
    cluster.cluster.children["origin"].kill()
    time.sleep(cluster.rng.uniform(0, 3))
    cluster.cluster.start_origin()
    cluster.laptop.faults(SLOW)
    yield


@contextmanager
def agent_killed(cluster: Cluster) -> Iterator[None]:
    kill_agent(cluster.cluster, cluster.node)
    yield


@contextmanager
def node_lost(cluster: Cluster) -> Iterator[None]:
    node = cluster.node
    cluster.cluster.ray.kill_node(node)
    time.sleep(cluster.rng.uniform(0, 5))
    cluster.cluster.ray.start_node(node)
    yield


@contextmanager
def head_lost(cluster: Cluster) -> Iterator[None]:
    """Without GCS fault tolerance a new head knows nobody: all of Ray starts anew, and the coordinator with it."""
    ray = cluster.cluster.ray
    ray.kill_head()
    time.sleep(cluster.rng.uniform(0, 3))
    cluster.cluster.children["coordinator"].kill()
    for node in cluster.cluster.nodes:
        ray.kill_node(node)
    ray.start_head()
    for node in cluster.cluster.nodes:
        ray.start_node(node)
    cluster.cluster.start_coordinator()
    yield


@contextmanager
def node_object_deleted(cluster: Cluster) -> Iterator[None]:
    node = cluster.node
    cluster.laptop.kube.delete(NODES, node)
    time.sleep(cluster.rng.uniform(0, 3))
    cluster.laptop.kube.create(NODES, laptop_node(node))
    cluster.laptop.kube.patch(NODES, node, {"status": laptop_node(node)["status"]}, subresource="status")
    yield


@contextmanager
def cache_deleted(cluster: Cluster) -> Iterator[None]:
    cluster.laptop.delete(CACHE, timeout_s=60)
    cluster.laptop.apply(CACHE, SAMPLE_URI)
    yield


def _row(name: str, strikes: Callable[[Cluster], AbstractContextManager[None]], **more: object) -> Fault[Cluster]:
    return Fault("cluster", name, strikes, **more)  # type: ignore[arg-type]  # fields by name


FAULTS: list[Fault[Cluster]] = [
    _row("the coordinator is killed", coordinator_killed, twice_mib=4, short=True),
    _row("the coordinator is stopped for 20 s", stopped("coordinator", 20)),
    _row("the API server is killed", apiserver_killed, short=True),
    _row("the API server is stopped for 30 s", stopped("apiserver", 30)),
    _row("the origin is killed", origin_killed, twice_mib=IN_FLIGHT_MIB),
    _row("an agent's process is killed", agent_killed, twice_mib=IN_FLIGHT_MIB, short=True),
    _row("a Ray node is killed with all on it", node_lost, twice_mib=IN_FLIGHT_MIB),
    _row("the Ray head is killed", head_lost, twice_mib=2 * IN_FLIGHT_MIB),
    _row("a Node object is deleted and registered again", node_object_deleted, twice_mib=SIZE // MIB),
    _row("the cache is deleted and made again", cache_deleted, twice_mib=SIZE // MIB),
]


def run(fault: Fault[Cluster], seed: int, cluster: Cluster) -> Outcome:
    """One trial. Never raises but KeyboardInterrupt: what went wrong is in the outcome."""
    cluster.rng = rng = random.Random(f"{fault.name}/{seed}")
    outcome = Outcome(fault.party, fault.name, seed, twice_bound_bytes=fault.twice_mib * MIB)
    try:
        before = cluster.served
        cluster.begin()
        outcome.struck_at = round(rng.uniform(*fault.at), 3)
        cluster.until_filled(outcome.struck_at)
        began = time.monotonic()
        with fault.strikes(cluster):
            if fault.reason is not None:
                cluster.until_reason(fault.reason)
                outcome.reason, outcome.reason_s = fault.reason, round(time.monotonic() - began, 1)
        cluster.laptop.faults()
        cluster.until_ready()
        outcome.ready_s = round(time.monotonic() - began, 1)
        outcome.corrupt = cluster.count()
        served = cluster.served
        outcome.twice_bytes = max(0, served - (before if served >= before else 0) - SIZE)
    except (AssertionError, Exception) as error:  # noqa: BLE001  a row that fails is a row of the table
        outcome.error = f"{type(error).__name__}: {error}"[:2000]
    finally:
        cluster.end()
    return outcome
