"""Eviction by real processes: what the dry run says, what a pod prevents, and what happens once it is gone."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from actors.sizes import say_bytes
from coordinator.dev.laptop.cluster import NODE_GROUP, SAMPLE_URI, LaptopCluster, LaptopOptions
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.builders import a_pod
from coordinator.dev.trial.waiting import eventually
from coordinator.kube.interface import EVENTS, NAMESPACES, PODS
from coordinator.plan.snapshot import NODE_GROUPS
from tests.kit.laptop import Laptop

pytestmark = pytest.mark.e2e

OTHER_BYTES = 4 * 1024**2
TEAM = "team"


@pytest.fixture
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    options = LaptopOptions(nodes=1, sample_bytes=8 * 1024**2)
    with LaptopCluster(tmp_path_factory.mktemp("laptop"), options) as cluster:
        yield Laptop(cluster)


def restarted(laptop: Laptop, policy: str) -> None:
    """With another policy."""
    laptop.cluster.children.pop("coordinator").stop()
    laptop.cluster.start_coordinator(extra=[f"--eviction={policy}", "--eviction-idle-seconds=0.5"])


def said(laptop: Laptop, reason: str) -> list[str]:
    """The Events of that reason about the old model."""
    events = laptop.kube.list(EVENTS)[0]
    return [e["message"] for e in events if e["involvedObject"]["name"] == "old" and e["reason"] == reason]


def ticks_with_an_agent(laptop: Laptop) -> float:
    """How often the coordinator has planned since it was started, if it hears the agent."""
    with urllib.request.urlopen(laptop.cluster.metrics_url, timeout=10) as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    found = {(s.name, s.labels.get("state")): s.value for family in families for s in family.samples}
    return found["localmodel_tick_seconds_count", None] if found.get(("localmodel_agents", "Ready")) == 1 else 0.0


@pytest.fixture
def other(tmp_path: Path) -> Iterator[str]:
    """A model of OTHER_BYTES that shares nothing with the sample: no copy of that can be made into one of this."""
    (tmp_path / "other.bin").write_bytes(os.urandom(OTHER_BYTES))
    with Origin(files=tmp_path) as origin:
        yield f"{origin.url}/files/other.bin"


def test_a_model_that_nobody_uses_makes_room_for_another(laptop: Laptop, other: str) -> None:
    node = laptop.cluster.nodes[0]
    old, new = laptop.folder(node, SAMPLE_URI), laptop.folder(node, other)
    restarted(laptop, "dry-run")
    laptop.apply("old", SAMPLE_URI)
    size = laptop.until_ready("old")["bytes"]["total"]
    laptop.kube.patch(NODE_GROUPS, NODE_GROUP, {"spec": {"storageLimit": str(size + OTHER_BYTES // 2)}})
    idle = "--eviction-idle-seconds=0.5"  # it knows what the node has written of itself, a moment later
    planned = eventually(lambda: laptop.foresee("new", other, OTHER_BYTES, idle)["evicted"])
    laptop.apply("new", other)
    laptop.until_reason("new", "InsufficientStorage")
    eventually(lambda: said(laptop, "WouldEvict"), seen=lambda: laptop.explain("old"))
    (would,) = said(laptop, "WouldEvict")
    assert would.startswith(f"{node}: old ({say_bytes(size)}), unused since ")
    assert would.endswith(f"makes room for new, which needs {say_bytes(OTHER_BYTES, up=True)}")
    assert (old.exists(), new.exists()) == (True, False)

    laptop.kube.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": TEAM}})
    pod = a_pod(namespace=TEAM).on(node).claiming(f"old-{NODE_GROUP}").json
    body = {"metadata": {"name": "server", "namespace": TEAM}, "spec": pod["spec"], "apiVersion": "v1", "kind": "Pod"}
    laptop.kube.create(PODS, body, namespace=TEAM)
    eventually(lambda: "unusedSince" not in laptop.status("old"), seen=lambda: laptop.explain("old"))
    restarted(laptop, "lru")
    heard = eventually(lambda: ticks_with_an_agent(laptop))
    eventually(lambda: ticks_with_an_agent(laptop) >= heard + 6)
    assert laptop.condition("new")["reason"] == "InsufficientStorage"
    assert old.exists()

    # What a kubelet does once the containers have ended: until then a pod that is bound to a node stays.
    laptop.kubectl("delete", "pod", "server", "-n", TEAM, "--force", "--grace-period=0")
    laptop.until_ready("new")
    assert (old.exists(), new.exists()) == (False, True)
    laptop.until_reason("old", "Evicted")
    assert planned == [{"node": node, "caches": ["old"], "bytes": size, "forCaches": ["new"]}]
    eventually(lambda: said(laptop, "Evicted"), seen=lambda: laptop.explain("old"))
    for word in (str(node), say_bytes(size), other, "spec.pinned"):
        assert word in said(laptop, "Evicted")[0]

    laptop.delete("new")
    laptop.until_ready("old")
