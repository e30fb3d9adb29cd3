"""What a cluster goes through in its life: workers rolled, coordinators rolled, Ray made again, kinds of others.

Copies stay, fills go on, nothing is read again but what was in flight, and what is said meanwhile is true and steady.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest

from actors.messages import NodeName
from coordinator.dev.laptop.cluster import SAMPLE_URI, LaptopCluster, LaptopOptions
from coordinator.dev.ports import free_ports
from coordinator.dev.trial.waiting import eventually
from coordinator.kube.interface import EVENTS
from coordinator.plan.snapshot import LOCAL_NODES
from tests.kit.laptop import Laptop, agent_pids
from tests.kit.nodes import same_bytes
from tests.kit.transitions import Said, watching

pytestmark = pytest.mark.e2e

MIB = 1 << 20
SIZE = SAMPLE_BYTES = 96 * MIB
IN_FLIGHT = 8 * MIB
"""Eight chunks of a MiB are read at a time, by all nodes together."""
LINK = {"LOCALMODEL_LINK": "25Mi"}
SLOW = {"path": "/_cdn/*", "latency_s": 3.0}
PATIENCE_S = 120.0
LEADS = ("--leader-elect", "--namespace", "kserve")
PORTS = ("metrics", "health", "webhook")
ADDRESS = ("LOCALMODEL_PEER_HOST", "LOCALMODEL_PEER_PORT")


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    cluster = LaptopCluster(tmp_path_factory.mktemp("laptop"), LaptopOptions(nodes=3, sample_bytes=SIZE))
    ports = free_ports(len(cluster.nodes))
    cluster.ray.nodes = {
        node: {
            **cluster.ray.nodes[node],
            **LINK,
            "LOCALMODEL_PEER_HOST": cluster.ray.hosts[node],
            "LOCALMODEL_PEER_PORT": str(port),
        }
        for node, port in zip(cluster.nodes, ports, strict=True)
    }
    with cluster:
        yield Laptop(cluster)


@pytest.fixture(autouse=True)
def clean(laptop: Laptop) -> Iterator[None]:
    yield
    laptop.clear(timeout_s=PATIENCE_S)


def done(laptop: Laptop, *nodes: str) -> int:
    return sum(int(laptop.detail(node, "sample").get("bytesDone", 0)) for node in nodes or laptop.cluster.nodes)


def begin(laptop: Laptop) -> int:
    """A fill is under way on every node. What the origin had given before it."""
    before = laptop.served()
    laptop.faults(SLOW)
    laptop.apply("sample", SAMPLE_URI)
    eventually(
        lambda: all(done(laptop, node) for node in laptop.cluster.nodes),
        timeout_s=PATIENCE_S,
        seen=lambda: laptop.explain("sample"),
    )
    return before


def inodes(laptop: Laptop) -> dict[Path, int]:
    """Of the files of every node's copy: others, where it was made again."""
    folders = [laptop.folder(node, SAMPLE_URI) for node in laptop.cluster.nodes]
    return {path: path.stat().st_ino for folder in folders for path in folder.rglob("*") if path.is_file()}


def answers(laptop: Laptop, node: NodeName) -> bool:
    return bool(laptop.kube.get(LOCAL_NODES, node).get("status", {}).get("agent", {}).get("ready"))


def until_answers(laptop: Laptop, *nodes: NodeName) -> None:
    """The agents of these nodes are well, or of all."""
    for node in nodes or laptop.cluster.nodes:
        eventually(partial(answers, laptop, node), timeout_s=PATIENCE_S, seen=lambda: laptop.explain("sample"))


def until_lost(laptop: Laptop, node: NodeName) -> None:
    eventually(lambda: not answers(laptop, node), timeout_s=PATIENCE_S, seen=lambda: laptop.explain("sample"))


def until_more(laptop: Laptop, *nodes: NodeName) -> None:
    """These nodes have more of the model than now, or all of it."""
    reached = done(laptop, *nodes)
    eventually(
        lambda: done(laptop, *nodes) > reached or done(laptop, *nodes) == len(nodes) * SIZE,
        timeout_s=PATIENCE_S,
        seen=lambda: laptop.explain("sample"),
    )


def move(laptop: Laptop, node: NodeName, to: Mapping[str, str]) -> dict[str, str]:
    """The Ray node of this node starts at that address from now on. The one that it has left."""
    ray = laptop.cluster.ray
    left = {name: ray.nodes[node][name] for name in ADDRESS}
    ray.hosts[node], ray.nodes[node] = to[ADDRESS[0]], {**ray.nodes[node], **to}
    return left


def check(laptop: Laptop, said: Said, sample: Path, before: int, lost: int) -> None:
    """The fill ends well, and costs no more than `lost` agents may, which were taken in the middle of it."""
    status = laptop.until_ready("sample", timeout_s=PATIENCE_S)
    again = laptop.served() - before - SIZE
    assert 0 <= again <= lost * IN_FLIGHT, f"{again} bytes were read again; only the chunks in flight should have been"
    counted = status["bytes"]["fromOrigin"]
    assert 0 <= laptop.served() - before - counted <= lost * IN_FLIGHT, "the count goes on, too"
    for node in laptop.cluster.nodes:
        assert same_bytes(laptop.folder(node, SAMPLE_URI), sample)
    assert said.ready == ["False", "True"]


def test_workers_rolled_node_by_node_in_a_fill(laptop: Laptop, sample: Path) -> None:
    """As the DaemonSet does it: one leaves in order, its successor joins at an address that is free, then the next.

    That is the address of the node before: peers ask it for one node and meet another, until they are told.
    """
    before, cluster = begin(laptop), laptop.cluster
    free = dict(zip(ADDRESS, ("127.0.0.250", str(free_ports(1)[0])), strict=True))
    with watching(laptop, "sample") as said:
        for node in cluster.nodes:
            assert done(laptop, node) < SIZE or node != cluster.nodes[0], "in the middle"
            cluster.ray.stop_node(node)
            until_lost(laptop, node)
            until_more(laptop, *(each for each in cluster.nodes if each != node))
            free = move(laptop, node, free)
            cluster.ray.start_node(node)
            until_answers(laptop, node)
        laptop.faults()
        check(laptop, said, sample, before, lost=len(cluster.nodes))
    assert said.degraded == [""], "a planned restart is no failure"
    for node in cluster.nodes:
        assert set(said.of_node[node]) - {None} == {"AgentRestarting"}
        detail = laptop.detail(node, "sample")
        assert not detail.get("wrongPeers")
        assert not detail.get("wrongReaders")


def test_the_coordinator_rolled_twice_in_a_fill(laptop: Laptop, sample: Path) -> None:
    """As a Deployment does it: the next one is ready, and follows, before the one before goes."""
    cluster = laptop.cluster
    cluster.children["coordinator"].stop()
    cluster.start_coordinator(extra=LEADS)
    before = begin(laptop)
    agents = {node: agent_pids(cluster, node) for node in cluster.nodes}
    with watching(laptop, "sample") as said:
        for ports in (free_ports(3), [cluster.ports[name] for name in PORTS]):
            old = cluster.children.pop("coordinator")
            cluster.ports |= dict(zip(PORTS, ports, strict=True))
            try:
                cluster.start_coordinator(extra=LEADS)
            finally:
                assert old.stop(grace_s=20) == 0
            until_more(laptop, *cluster.nodes)
        laptop.faults()
        check(laptop, said, sample, before, lost=0)
    assert {node: agent_pids(cluster, node) for node in cluster.nodes} == agents, "the agents were not disturbed"
    assert said.degraded == [""]
    assert said.agents == {node: [True] for node in cluster.nodes}
    events = [each for each in laptop.kube.list(EVENTS)[0] if each["involvedObject"]["name"] == "sample"]
    assert [each["reason"] for each in events if each["count"] > 1] == [], "nothing is said twice"


def test_all_of_ray_made_again_finds_every_copy(laptop: Laptop) -> None:
    """As when the RayCluster is deleted and created: another head, and nodes at addresses that others had."""
    laptop.apply("sample", SAMPLE_URI)
    laptop.until_ready("sample", timeout_s=PATIENCE_S)
    before, copies = laptop.served(), inodes(laptop)
    agents = {node: agent_pids(laptop.cluster, node) for node in laptop.cluster.nodes}
    ray = laptop.cluster.ray
    with watching(laptop, "sample") as said:
        laptop.cluster.children["coordinator"].kill()  # as Ray does to it when the head is lost
        for node in laptop.cluster.nodes:
            ray.kill_node(node)
        ray.kill_head()
        free = {name: ray.nodes[laptop.cluster.nodes[-1]][name] for name in ADDRESS}
        for node in laptop.cluster.nodes:
            free = move(laptop, node, free)
        ray.start_head()
        for node in laptop.cluster.nodes:
            ray.start_node(node)
        laptop.cluster.start_coordinator()
        eventually(lambda: all(agent_pids(laptop.cluster, node) for node in laptop.cluster.nodes), timeout_s=PATIENCE_S)
        until_answers(laptop)
        laptop.until_ready("sample", timeout_s=PATIENCE_S)
    assert (laptop.served(), inodes(laptop)) == (before, copies)
    assert said.ready == ["True"]
    assert said.degraded == [""]
    for node in laptop.cluster.nodes:
        assert agent_pids(laptop.cluster, node) not in ([], agents[node])


def test_two_pods_of_one_node_in_a_fill(laptop: Laptop, sample: Path) -> None:
    """The old one is given up by Ray and runs on: its successor has the disk alone."""
    cluster = laptop.cluster
    node, ray = cluster.nodes[1], cluster.ray
    usual = ray.nodes[node]
    ray.nodes[node] = {**usual, "LOCALMODEL_PEER_PORT": "0"}  # another pod, with an address of its own
    before = begin(laptop)
    try:
        with watching(laptop, "sample") as said:
            (old,) = agent_pids(cluster, node)
            ray.start_node(node, "successor")
            assert agent_pids(cluster, node) == [old]
            ray.freeze_node(node)
            eventually(lambda: len(agent_pids(cluster, node)) == 2, timeout_s=PATIENCE_S, seen=lambda: said)
            until_answers(laptop, node)
            laptop.faults()
            check(laptop, said, sample, before, lost=1)
            assert old in agent_pids(cluster, node), "it ran all the while"
        copies = inodes(laptop)
        ray.kill_node(node)
        eventually(lambda: old not in agent_pids(cluster, node), timeout_s=PATIENCE_S)
        ray.nodes[node] = usual
        ray.start_node(node)
        (first,) = agent_pids(cluster, node)
        ray.stop_node(node, "successor")
        eventually(lambda: agent_pids(cluster, node) not in ([], [first]), timeout_s=PATIENCE_S, seen=lambda: said)
        until_answers(laptop, node)
        assert inodes(laptop) == copies
        assert laptop.served() - before <= SIZE + IN_FLIGHT
    finally:
        ray.nodes[node] = usual
    assert said.degraded == [""]
