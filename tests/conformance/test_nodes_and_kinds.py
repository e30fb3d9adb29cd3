"""KServe's specs of which node events its controller acts on (P1–P7), and of kinds that are not there yet (L1, L2).

Upstream they are specs of a predicate; here what the predicate is for is looked at: what becomes of the objects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from coordinator.api import crds
from coordinator.dev.apiserver.server import ApiServer, write_kubeconfig
from coordinator.dev.laptop.cluster import CUSTOM_RESOURCE_DEFINITIONS
from coordinator.dev.trial.builders import CacheBuilder, a_cache, a_node, a_service
from coordinator.kube.interface import NAMESPACES, NODES, KubeError
from coordinator.plan.services import LLM_INFERENCE_SERVICES
from coordinator.plan.snapshot import CACHES, LOCAL_NODES
from tests.kit.conformance import Told
from tests.kit.control_plane import Cluster, coordinating, soon
from tests.kit.kserve import lenient_crd
from tests.kit.kube_servers import Capability, KubeServer

pytestmark = pytest.mark.slow


@pytest.fixture
def told(cluster: Cluster) -> Told:
    return Told(cluster)


def a_cache_on(told: Told, name: str) -> CacheBuilder:
    told.groups(f"{name}-gpu")
    cache = a_cache(f"{name}-iris", f"s3://mybucket/{name}").in_group(f"{name}-gpu")
    told.apply(cache)
    return cache


def a_node_of(told: Told, name: str, *conditions: Mapping[str, str]) -> None:
    node = a_node(f"{name}-node").in_pool(f"{name}-gpu")
    node.json["status"] = {"conditions": list(conditions)}
    told.cluster.create(NODES, node)


def report(told: Told, name: str, ready: bool) -> None:
    body = {"status": {"conditions": [condition(ready)]}}
    told.kube.patch(NODES, f"{name}-node", body, subresource="status")


def condition(ready: bool) -> Mapping[str, str]:
    return {"type": "Ready", "status": "True" if ready else "False"}


def word(told: Told, cache: CacheBuilder, name: str) -> str | None:
    found: str | None = (told.status(cache).get("nodeStatus") or {}).get(f"{name}-node")
    return found


def settled(told: Told, name: str) -> None:
    """Everything that was to be written before had its turn: a cache that is applied now has been acted upon."""
    marker = a_cache(f"{name}-settled", f"s3://mybucket/{name}-settled").in_group(f"{name}-gpu")
    told.apply(marker)
    soon(lambda: told.status(marker).get("conditions"))
    told.delete(marker)
    soon(lambda: told.cluster.is_gone(CACHES, marker.name))


@pytest.mark.parametrize(("name", "first"), [("p1", [condition(False)]), ("p2", [])])
def test_p1_p2_a_node_that_becomes_ready_is_acted_on(told: Told, name: str, first: list[Mapping[str, str]]) -> None:
    cache = a_cache_on(told, name)
    a_node_of(told, name, *first)
    report(told, name, True)
    soon(lambda: word(told, cache, name) == "NodeDownloaded")


@pytest.mark.parametrize("ready", [True, False], ids=["p3", "p5"])
def test_p3_p5_a_node_that_says_the_same_again_is_no_event(told: Told, ready: bool) -> None:
    name = "p3" if ready else "p5"
    cache = a_cache_on(told, name)
    a_node_of(told, name, condition(ready))
    soon(lambda: word(told, cache, name) is not None and told.cluster.find(LOCAL_NODES, f"{name}-node"))
    settled(told, name)
    before = told.kube.get(CACHES, cache.name)["metadata"]["resourceVersion"]
    told.kube.patch(NODES, f"{name}-node", {"metadata": {"labels": {"said": "again"}}})
    report(told, name, ready)
    settled(told, name)
    assert told.kube.get(CACHES, cache.name)["metadata"]["resourceVersion"] == before


def test_p4_a_node_that_is_no_longer_ready_keeps_its_entry_and_its_last_word(told: Told) -> None:
    cache = a_cache_on(told, "p4")
    a_node_of(told, "p4", condition(True))
    soon(lambda: word(told, cache, "p4") == "NodeDownloaded")
    report(told, "p4", False)
    settled(told, "p4")
    assert word(told, cache, "p4") == "NodeDownloaded"
    local = told.kube.get(LOCAL_NODES, "p4-node")
    assert [each["modelName"] for each in local["spec"]["localModels"]] == ["p4-iris"]


def test_p6_a_new_node_that_is_ready_is_acted_on(told: Told) -> None:
    cache = a_cache_on(told, "p6")
    soon(lambda: told.status(cache).get("copies") == {})
    a_node_of(told, "p6", condition(True))
    soon(lambda: told.status(cache).get("copies") == {"available": 1, "total": 1})


def test_p7_a_node_that_is_deleted_leaves_nothing_behind(told: Told) -> None:
    cache = a_cache_on(told, "p7")
    a_node_of(told, "p7", condition(True))
    soon(lambda: word(told, cache, "p7") == "NodeDownloaded")
    told.kube.delete(NODES, "p7-node")
    soon(lambda: told.cluster.is_gone(LOCAL_NODES, "p7-node"))
    soon(lambda: told.status(cache).get("copies") == {} and word(told, cache, "p7") is None)


def test_g4_a_namespace_that_is_deleted_leaves_no_volumes(server: KubeServer, told: Told) -> None:
    server.require(Capability.COLLECTS)
    team = told.cluster.namespace("g4-team")
    cache = a_cache_on(told, "g4")
    told.apply(a_service("g4-chat", team).using("g4-iris"))
    soon(partial(told.is_bound_by_name, "g4-iris-g4-gpu", team, f"g4-iris-g4-gpu-{team}"))
    told.kube.delete(NAMESPACES, team)
    soon(lambda: told.cluster.is_gone(NAMESPACES, team))
    soon(lambda: told.volume(f"g4-iris-g4-gpu-{team}") is None and not told.names(cache))


def test_l1_l2_works_without_llm_inference_services_and_acts_once_they_are_there(tmp_path: Path) -> None:
    with ApiServer(crds.load()) as server:
        write_kubeconfig(tmp_path / "kubeconfig", server.url)
        with coordinating(tmp_path / "kubeconfig") as cluster:
            told = Told(cluster)
            cache = a_cache_on(told, "l1")
            soon(lambda: told.status(cache).get("copies") == {})  # L1
            assert "llmInferenceServices" not in told.status(cache)

            told.kube.create(CUSTOM_RESOURCE_DEFINITIONS, lenient_crd(LLM_INFERENCE_SERVICES))
            soon(is_served(lambda: told.apply(a_service("l2-llm", llm=True).using("l1-iris"))))
            soon(lambda: told.names(cache, "llmInferenceServices") == ["default/l2-llm"])  # L2
            soon(partial(told.is_bound_by_name, "l1-iris-l1-gpu", "default", "l1-iris-l1-gpu-default"))


def is_served(apply: Callable[[], Any]) -> Callable[[], bool]:
    def applied() -> bool:
        try:
            apply()
        except KubeError:
            return False
        return True

    return applied
