"""CRDs without our status fields come and go: what is written then, what is said, and that nothing stays stale."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from actors.errors import Failure
from actors.messages import NodeName, Phase
from coordinator.api import crds
from coordinator.control import pruning
from coordinator.control.pruning import PROBE_S
from coordinator.dev.trial.builders import CacheBuilder, World, a_cache, a_group, a_node, a_report, a_world
from coordinator.kube.http import HttpKube
from coordinator.kube.interface import NODES, Object, ResourceType
from coordinator.plan.patches import CACHE_STATUS, KSERVE_FIELDS, NODE_STATUS
from coordinator.plan.snapshot import CACHES, LOCAL_NODES, NODE_GROUPS
from tests.kit.control_plane import Cluster, running_coordinator, soon
from tests.kit.crd_tables import read_table
from tests.running.test_controller import Rig

OURS = frozenset({*CACHE_STATUS, *NODE_STATUS} - KSERVE_FIELDS)


def a_full_world(*caches: CacheBuilder) -> World:
    return a_world(*caches, a_group(), a_node("n1")).reporting("n1", *(a_report(cache) for cache in caches))


def said(rig: Rig, reason: str) -> int:
    return len([event for event in rig.told.events if event[2] == reason])


@pytest.mark.slow
def test_pruned_fields_are_noticed_once_per_kind_and_tried_again_one_object_at_a_time() -> None:
    caches = [a_cache(name) for name in ("one", "two")]
    rig = Rig(a_full_world(*caches))
    rig.kube.prunes = OURS
    rig.tick(10)
    assert said(rig, "ExtensionFieldsPruned") == 2
    assert [cache.json["status"]["copies"] for cache in caches] == [{"available": 1, "total": 1}] * 2
    rig.writes()
    events = list(rig.told.events)
    rig.tick(int(10 * PROBE_S))
    writes = rig.writes()
    assert set(writes) == {("patch status", "one"), ("patch status", "n1")}
    assert len(writes) <= 2 * 10
    assert rig.told.events == events


@pytest.mark.slow
def test_when_the_fields_are_back_all_is_written_without_a_restart() -> None:
    caches = [a_cache(name) for name in ("one", "two")]
    rig = Rig(a_full_world(*caches))
    rig.kube.prunes = OURS
    rig.tick(10)
    rig.kube.prunes = frozenset()
    rig.tick(int(PROBE_S) + 15)
    for cache in caches:
        assert {c["type"]: c["status"] for c in cache.json["status"]["conditions"]}["Ready"] == "True"
    assert (said(rig, "ExtensionFieldsKept"), said(rig, "ExtensionFieldsPruned")) == (2, 2)
    rig.writes()
    rig.tick(100)
    assert rig.writes() == []


@pytest.mark.slow
def test_one_kind_may_be_pruned_and_another_not() -> None:
    cache = a_cache()
    rig = Rig(a_full_world(cache))
    rig.kube.prunes = frozenset(NODE_STATUS) - KSERVE_FIELDS
    rig.tick(20)
    assert said(rig, "ExtensionFieldsPruned") == 1
    assert cache.json["status"]["conditions"]
    rig.tick(200)
    assert (said(rig, "ExtensionFieldsPruned"), said(rig, "ExtensionFieldsKept")) == (1, 0)


@pytest.mark.parametrize("dropped", [True, False], ids=["by the write that mends it", "not at all"])
def test_what_still_stands_in_an_object_does_not_stay_stale(dropped: bool) -> None:
    """As after KServe's CRDs and ours again, where the store has kept what was written before."""
    seen, stale = a_cache("seen"), a_cache("stale")
    world = a_full_world(seen, stale)
    rig = Rig(world)
    rig.tick(10)
    before = deepcopy(stale.json["status"])
    assert {c["type"]: c["status"] for c in before["conditions"]}["Ready"] == "True"
    rig.kube.prunes = OURS
    broken = a_report(stale, Phase.FAILED, failure=Failure("SourceError", "reset"))
    world.reporting("n1", a_report(seen), broken)
    rig.tick(5)
    stale.json["status"] = before
    stale.json["metadata"]["resourceVersion"] = "1000"
    if not dropped:
        rig.kube.prunes = frozenset()
    rig.tick(int(PROBE_S) + 15)
    conditions = stale.json["status"].get("conditions", [])
    assert {c["type"]: c["status"] for c in conditions}.get("Ready") == (None if dropped else "False")
    assert stale.json["status"]["nodeStatus"] == {"n1": "NodeDownloadError"}


# --- against the development API server ---

CRDS = ResourceType("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", False)


def install(kube: HttpKube, definitions: Sequence[Object]) -> None:
    for crd in definitions:
        kube.patch(CRDS, crd["metadata"]["name"], {"spec": crd["spec"]})


def status(cluster: Cluster, resource: ResourceType, name: str) -> dict[str, Any]:
    return dict((cluster.find(resource, name) or {}).get("status", {}))


@pytest.mark.slow
def test_after_other_crds_and_ours_again_status_is_right_both_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "PROBE_S", 0.2)
    ours = crds.load()
    with running_coordinator(tmp_path) as cluster:
        cluster.create(NODE_GROUPS, a_group())
        cluster.create(NODES, a_node("n1"))
        cluster.create(CACHES, a_cache("first"))
        soon(partial(cluster.ready, CACHES, "first"))
        (first,) = cluster.agents.desired[NodeName("n1")].models
        for turn in ("second", "third"):
            kserves_and_ours(cluster, ours, turn)
            models = {model.key: model for model in cluster.agents.desired[NodeName("n1")].models}
            assert (models[first.key].source, models[first.key].root) == (first.source, first.root)
        assert cluster.agents.ordered == (), "and none is removed"


def kserves_and_ours(cluster: Cluster, ours: Sequence[Object], turn: str) -> None:
    install(cluster.admin, [read_table(crd["spec"]["names"]["plural"]) for crd in ours])
    cluster.create(CACHES, a_cache(turn))
    soon(lambda: status(cluster, CACHES, turn).get("copies") == {"available": 1, "total": 1})
    assert "conditions" not in status(cluster, CACHES, turn)
    cluster.agents.silent = Failure("AgentUnavailable", "the node agent does not answer")
    silent = f"{turn}-silent"
    cluster.create(CACHES, a_cache(silent))
    soon(lambda: "n1" in status(cluster, CACHES, silent).get("nodeStatus", {}))

    install(cluster.admin, ours)
    soon(lambda: status(cluster, CACHES, silent).get("conditions"))
    assert not cluster.ready(CACHES, silent)
    cluster.agents.silent = None
    for name in ("first", turn, silent):
        soon(partial(cluster.ready, CACHES, name))
    soon(lambda: status(cluster, LOCAL_NODES, "n1").get("agent", {}).get("ready"))
