"""Processes die in the middle of the main job; nothing is lost, nothing corrupt appears, and nobody has to help."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from coordinator.dev.cluster import SAMPLE_URI, LaptopCluster, LaptopOptions
from coordinator.snapshot import CACHES
from tests.laptop import Laptop, agent_pids, kill_agent
from tests.waiting import eventually

pytestmark = pytest.mark.e2e

SIZE = 48 * 1024**2
SLOW = {"path": "/_cdn/*", "latency_s": 0.7}


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    with LaptopCluster(tmp_path_factory.mktemp("laptop"), LaptopOptions(nodes=2, sample_bytes=SIZE)) as cluster:
        yield Laptop(cluster)


@pytest.fixture(autouse=True)
def clean(laptop: Laptop) -> Iterator[None]:
    yield
    laptop.faults()
    for cache in laptop.kube.list(CACHES)[0]:
        laptop.delete(cache["metadata"]["name"])


def served(laptop: Laptop) -> int:
    stats = laptop.cluster.origin_stats()
    assert stats is not None
    return int(stats["repos"]["localmodel/sample"]["bytes"])


def downloading(laptop: Laptop, node: str) -> bool:
    """Some of the model is on the node's disk, and not all."""
    detail = laptop.detail(node, "sample")
    return detail.get("phase") == "Downloading" and 0 < detail.get("bytesDone", 0) < SIZE


def test_an_agent_killed_in_the_middle_resumes(laptop: Laptop) -> None:
    before = served(laptop)
    laptop.faults(SLOW)
    laptop.apply("sample", SAMPLE_URI)
    eventually(lambda: downloading(laptop, "node-1"), seen=lambda: laptop.explain("sample"))
    first = agent_pids(laptop.cluster, laptop.cluster.nodes[0])
    kill_agent(laptop.cluster, laptop.cluster.nodes[0])
    laptop.faults()

    laptop.until_ready("sample")
    assert agent_pids(laptop.cluster, laptop.cluster.nodes[0]) != first
    again = served(laptop) - before - SIZE
    assert again < SIZE, f"{again} bytes were read again; only the ranges in flight should have been"


def test_a_coordinator_killed_in_the_middle_is_simply_restarted(laptop: Laptop) -> None:
    before = served(laptop)
    laptop.faults(SLOW)
    laptop.apply("sample", SAMPLE_URI)
    eventually(lambda: downloading(laptop, "node-1"), seen=lambda: laptop.explain("sample"))
    agents = {node: agent_pids(laptop.cluster, node) for node in laptop.cluster.nodes}
    laptop.cluster.children["coordinator"].kill()
    laptop.cluster.start_coordinator()

    laptop.until_ready("sample")
    assert {node: agent_pids(laptop.cluster, node) for node in laptop.cluster.nodes} == agents, (
        "the agents were not disturbed"
    )
    assert served(laptop) - before == SIZE, "nothing was read twice, by whomever"


def test_an_api_server_that_dies_and_comes_back_is_waited_for(laptop: Laptop) -> None:
    laptop.faults(SLOW)
    laptop.apply("sample", SAMPLE_URI)
    eventually(lambda: downloading(laptop, "node-1"), seen=lambda: laptop.explain("sample"))
    laptop.cluster.children["apiserver"].stop()
    laptop.faults()
    laptop.cluster.start_apiserver()

    laptop.until_ready("sample")
    assert laptop.cluster.children["coordinator"].running


def test_an_api_server_that_hangs_is_survived(laptop: Laptop) -> None:
    laptop.apply("sample", SAMPLE_URI)
    laptop.until_ready("sample")
    apiserver = laptop.cluster.children["apiserver"]
    apiserver.signal(signal.SIGSTOP)
    try:
        eventually(lambda: laptop.cluster.children["coordinator"].running, timeout_s=5)
    finally:
        apiserver.signal(signal.SIGCONT)
    laptop.delete("sample")
    laptop.apply("sample", SAMPLE_URI)
    laptop.until_ready("sample")


def test_a_node_that_loses_power_is_reported_and_filled_when_it_returns(laptop: Laptop) -> None:
    node = laptop.cluster.nodes[1]
    laptop.faults(SLOW)
    laptop.apply("sample", SAMPLE_URI)
    eventually(lambda: downloading(laptop, node), seen=lambda: laptop.explain("sample"))
    laptop.cluster.ray.kill_node(node)
    eventually(lambda: laptop.detail(node, "sample").get("reason"), seen=lambda: laptop.explain("sample"))
    laptop.faults()
    laptop.cluster.ray.start_node(node)

    laptop.until_ready("sample", timeout_s=90)


def test_sigterm_drains_the_coordinator(laptop: Laptop) -> None:
    laptop.apply("sample", SAMPLE_URI)
    laptop.until_ready("sample")
    assert laptop.cluster.children["coordinator"].stop(grace_s=20) == 0
    laptop.cluster.start_coordinator()
    laptop.until_ready("sample")
