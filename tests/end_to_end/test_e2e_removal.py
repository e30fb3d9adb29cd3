"""What removes a copy, by real processes: an accident under a running pod, put right again; a deletion that waits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.dev.laptop.cluster import NODE_GROUP, SAMPLE_URI, LaptopCluster, LaptopOptions
from coordinator.dev.trial.builders import a_pod
from coordinator.dev.trial.waiting import eventually
from coordinator.kube.interface import EVENTS, NAMESPACES, NODES, PODS
from coordinator.plan.snapshot import CACHES, NODE_GROUPS
from tests.kit.laptop import Laptop

pytestmark = pytest.mark.e2e

TEAM = "team"
LABEL = "kserve/localmodel"


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    options = LaptopOptions(nodes=2, sample_bytes=8 * 1024**2)
    with LaptopCluster(tmp_path_factory.mktemp("laptop"), options) as cluster:
        laptop = Laptop(cluster)
        laptop.kube.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": TEAM}})
        laptop.apply("sample", SAMPLE_URI)
        laptop.until_ready("sample")
        node = cluster.nodes[0]
        pod = a_pod(namespace=TEAM).on(node).claiming(f"sample-{NODE_GROUP}").json
        body = {"metadata": {"name": "server", "namespace": TEAM}, "spec": pod["spec"], "kind": "Pod"}
        laptop.kube.create(PODS, {"apiVersion": "v1", **body}, namespace=TEAM)
        yield laptop


def said(laptop: Laptop, reason: str) -> list[str]:
    events = laptop.kube.list(EVENTS)[0]
    return [e["message"] for e in events if e["involvedObject"]["name"] == "sample" and e["reason"] == reason]


def inodes(folder: Path) -> dict[str, int]:
    """What would change if the copy were another."""
    return {path.name: path.stat().st_ino for path in folder.rglob("*") if path.is_file()}


def relabel(laptop: Laptop, node: str, value: str | None) -> None:
    laptop.kube.patch(NODES, node, {"metadata": {"labels": {LABEL: value}}})


def test_a_label_that_is_removed_under_a_pod_costs_nothing(laptop: Laptop) -> None:
    node = laptop.cluster.nodes[0]
    folder = laptop.folder(node, SAMPLE_URI)
    before, read = inodes(folder), laptop.cluster.origin_stats()
    relabel(laptop, node, None)
    message = laptop.until_reason("sample", "Orphaned", "Degraded")["message"]
    for word in (str(node), NODE_GROUP, "labels"):
        assert word in message
    assert laptop.condition("sample")["status"] == "True", "the others hold it"
    eventually(lambda: laptop.detail(node, "sample").get("reason") == "Orphaned", seen=lambda: laptop.explain("sample"))
    assert {"orphanedSince", "removalTime"} <= laptop.detail(node, "sample").keys()
    eventually(lambda: said(laptop, "Orphaned"))
    assert laptop.status("sample")["copies"] == {"available": 2, "total": 2}
    assert inodes(folder) == before

    relabel(laptop, node, "worker")
    laptop.until_reason("sample", "AsExpected", "Degraded")
    laptop.until_ready("sample")
    eventually(lambda: "orphanedSince" not in laptop.detail(node, "sample"), seen=lambda: laptop.explain("sample"))
    assert inodes(folder) == before
    assert laptop.cluster.origin_stats() == read, "nothing is fetched"


def test_a_typo_in_the_selector_of_all_nodes_costs_nothing(laptop: Laptop) -> None:
    folders = [laptop.folder(node, SAMPLE_URI) for node in laptop.cluster.nodes]
    before, read = [inodes(folder) for folder in folders], laptop.cluster.origin_stats()
    group = laptop.kube.get(NODE_GROUPS, NODE_GROUP)
    volume = group["spec"]["persistentVolumeSpec"]
    typo = {
        "nodeAffinity": {
            "required": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": LABEL, "operator": "In", "values": ["wroker"]}]}]
            }
        }
    }
    laptop.kube.patch(NODE_GROUPS, NODE_GROUP, {"spec": {"persistentVolumeSpec": typo}})
    message = laptop.until_reason("sample", "NoMatchingNodes", "Degraded")["message"]
    assert "2 copies on" in message
    assert [inodes(folder) for folder in folders] == before
    laptop.kube.patch(NODE_GROUPS, NODE_GROUP, {"spec": {"persistentVolumeSpec": volume}})
    laptop.until_ready("sample")
    assert [inodes(folder) for folder in folders] == before
    assert laptop.cluster.origin_stats() == read, "nothing is fetched"


def test_a_deletion_waits_for_the_pod_that_uses_the_copy(laptop: Laptop) -> None:
    first, second = (laptop.folder(node, SAMPLE_URI) for node in laptop.cluster.nodes)
    laptop.kube.delete(CACHES, "sample")
    message = laptop.until_reason("sample", "InUse")["message"]
    for word in (f"{TEAM}/server", str(laptop.cluster.nodes[0]), "delete-in-use"):
        assert word in message
    eventually(lambda: not second.exists(), seen=lambda: laptop.explain("sample"))
    assert first.exists()
    # What a kubelet does once the containers have ended: until then a pod that is bound to a node stays.
    laptop.kubectl("delete", "pod", "server", "-n", TEAM, "--force", "--grace-period=0")
    eventually(lambda: not laptop.exists("sample"), seen=lambda: laptop.explain("sample"))
    assert not first.exists()
    assert said(laptop, "Removing")
    assert said(laptop, "Removed")
