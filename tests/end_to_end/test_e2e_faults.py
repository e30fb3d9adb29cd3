"""Processes die in the middle of the main job; nothing is lost, nothing corrupt appears, and nobody has to help."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from coordinator.dev.laptop.cluster import SAMPLE_URI, LaptopCluster, LaptopOptions
from coordinator.dev.trial.waiting import eventually
from tests.kit.laptop import Laptop, agent_pids, kill_agent

pytestmark = pytest.mark.e2e

SIZE = 48 * 1024**2
IN_FLIGHT = 8 << 20
"""Eight chunks are read at a time by all nodes together; with links of this speed they are of a MiB."""
LINK = {"LOCALMODEL_LINK": "25Mi"}
SLOW = {"path": "/_cdn/*", "latency_s": 0.7}


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    cluster = LaptopCluster(tmp_path_factory.mktemp("laptop"), LaptopOptions(nodes=2, sample_bytes=SIZE))
    cluster.ray.nodes = {node: {**environment, **LINK} for node, environment in cluster.ray.nodes.items()}
    with cluster:
        yield Laptop(cluster)


@pytest.fixture(autouse=True)
def clean(laptop: Laptop) -> Iterator[None]:
    yield
    laptop.clear()


def downloading(laptop: Laptop, node: str) -> bool:
    """Some of the model is on the node's disk, and not all."""
    detail = laptop.detail(node, "sample")
    return detail.get("phase") == "Downloading" and 0 < detail.get("bytesDone", 0) < SIZE


def test_an_agent_killed_in_the_middle_resumes(laptop: Laptop) -> None:
    before = laptop.served()
    laptop.faults(SLOW)
    laptop.apply("sample", SAMPLE_URI)
    eventually(lambda: downloading(laptop, "node-1"), seen=lambda: laptop.explain("sample"))
    first = agent_pids(laptop.cluster, laptop.cluster.nodes[0])
    kill_agent(laptop.cluster, laptop.cluster.nodes[0])
    laptop.faults()

    laptop.until_ready("sample")
    assert agent_pids(laptop.cluster, laptop.cluster.nodes[0]) != first
    again = laptop.served() - before - SIZE
    assert again < SIZE, f"{again} bytes were read again; only the ranges in flight should have been"


def test_a_coordinator_killed_in_the_middle_is_simply_restarted(laptop: Laptop) -> None:
    before = laptop.served()
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
    again = laptop.served() - before - SIZE
    assert 0 <= again <= 2 << 20, "two chunks at the most, while nobody said who is there"


def test_a_ray_head_that_is_lost_costs_no_agent_its_work_and_no_byte_but_those_in_flight(laptop: Laptop) -> None:
    """Without GCS fault tolerance Ray ends the coordinator, and a new head knows nobody: all of Ray starts anew."""
    before, ray = laptop.served(), laptop.cluster.ray
    laptop.faults(SLOW)
    laptop.apply("sample", SAMPLE_URI)
    eventually(lambda: downloading(laptop, "node-1"), seen=lambda: laptop.explain("sample"))
    ray.kill_head()
    reached = laptop.served()
    eventually(lambda: laptop.served() > reached, seen=lambda: "nobody reads on without a head")
    laptop.cluster.children["coordinator"].kill()
    for node in laptop.cluster.nodes:
        ray.kill_node(node)
    laptop.faults()
    ray.start_head()
    for node in laptop.cluster.nodes:
        ray.start_node(node)
    laptop.cluster.start_coordinator()

    laptop.until_ready("sample", timeout_s=90)
    again = laptop.served() - before - SIZE
    assert again <= IN_FLIGHT, f"{again} bytes were read again; only the chunks in flight should have been"


def test_a_node_that_comes_while_the_origin_is_gone_is_filled_from_those_that_hold_the_model(laptop: Laptop) -> None:
    early, late = laptop.cluster.nodes
    ray = laptop.cluster.ray
    usual = ray.nodes[late]
    ray.kill_node(late)
    laptop.apply("sample", SAMPLE_URI)
    eventually(lambda: laptop.detail(early, "sample").get("phase") == "Ready", seen=lambda: laptop.explain("sample"))
    pinned = laptop.status("sample")["revision"]
    laptop.cluster.children["origin"].kill()
    laptop.cluster.children["coordinator"].kill()
    laptop.cluster.start_coordinator()
    laptop.until_reason("sample", "NoRayNode", kind="Degraded")
    try:
        ray.nodes[late] = {**usual, "LOCALMODEL_RATE_LIMIT": "12Mi"}  # slow enough to be seen at it
        ray.start_node(late)
        said = laptop.until_reason("sample", "FillingFromPeers", kind="Degraded", timeout_s=60)["message"]
        assert said.startswith("origin unavailable since 20")
        assert pinned in said
        status = laptop.until_ready("sample", timeout_s=60)
    finally:
        ray.nodes[late] = usual
        laptop.cluster.start_origin()
    assert status["revision"] == pinned
    detail = laptop.detail(late, "sample")
    assert (detail["bytesFromOrigin"], detail["bytesFromPeers"]) == (0, SIZE)
    assert detail["digest"] == laptop.detail(early, "sample")["digest"]
    assert laptop.condition("sample", "Degraded")["status"] == "False"


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


def test_a_file_that_a_disk_has_lost_is_said_and_fetched_again_alone(laptop: Laptop) -> None:
    node = laptop.cluster.nodes[0]
    laptop.apply("sample", SAMPLE_URI)
    laptop.until_ready("sample")
    folder, before = laptop.folder(node, SAMPLE_URI), laptop.served()
    lost = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    size = lost.stat().st_size
    laptop.faults({"path": "/_cdn/*", "status": 503})
    folder.chmod(0o755)
    lost.unlink()
    kill_agent(laptop.cluster, node)

    said = laptop.until_reason("sample", "Damaged", timeout_s=60)["message"]
    assert f"{node}" in said
    assert f"{lost.name} is missing" in said
    laptop.faults()
    laptop.until_ready("sample")
    assert laptop.served() - before == size
    eventually(lambda: laptop.detail(node, "sample").get("repaired") == f"{lost.name} is missing")


def test_sigterm_drains_the_coordinator(laptop: Laptop) -> None:
    laptop.apply("sample", SAMPLE_URI)
    laptop.until_ready("sample")
    assert laptop.cluster.children["coordinator"].stop(grace_s=20) == 0
    laptop.cluster.start_coordinator()
    laptop.until_ready("sample")
