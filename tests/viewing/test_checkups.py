"""What `localmodel doctor` finds: for each check a world that is well, and one for each thing that is not."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors.messages import NodeName, RootReport
from actors.times import rfc3339
from coordinator.api import crds
from coordinator.dev.trial.builders import GIB, NOW, World, a_cache, a_group, a_node, a_report, a_silent_agent, a_world
from coordinator.view.checkups import Check, Evidence, State, checks
from tests.kit.views import view_of

KSERVE = Path(__file__).resolve().parents[3] / "shared" / "reference" / "kserve-crds"
DEFINITIONS = {str(each["spec"]["names"]["plural"]): each for each in crds.load()}
RAY = {
    "metadata": {"name": "localmodel", "namespace": "localmodel"},
    "spec": {"rayVersion": "2.50.0"},
    "status": {"state": "ready"},
}


def a_healthy_world() -> World:
    cache = a_cache("llama")
    world = a_world(a_group(), cache, a_node("n1"), a_node("n2")).resolved(cache, GIB)
    for node, share in (("n1", GIB // 2), ("n2", GIB // 4)):
        report = replace(a_report(cache), bytes_from_origin=share, bytes_from_peers=GIB - share)
        world.reporting(node, report, roots=(RootReport("/models", 50 * GIB, GIB),))
    world.settle()
    return world


def evidence(world: World | None = None, **fields: Any) -> Evidence:
    healthy: dict[str, Any] = {
        "server": "https://api",
        "version": "v1.36.3",
        "view": view_of(world or a_healthy_world()),
        "allowed": {"list nodes": True},
        "crds": DEFINITIONS,
        "expected": DEFINITIONS,
        "clusters": [RAY],
        "leases": {NodeName("n1"): a_lease(NOW - 3), NodeName("n2"): a_lease(NOW - 9)},
        "leader": a_lease(NOW - 2),
        "own_version": "0.1.0",
        "own_ray": "2.50.0",
    }
    return Evidence(**{**healthy, **fields})


def a_lease(renewed: float) -> dict[str, Any]:
    return {"spec": {"renewTime": rfc3339(renewed)}}


def of(name: str, found: list[Check]) -> list[Check]:
    return [check for check in found if check.name == name]


def test_a_healthy_cluster_is_ok_in_every_line() -> None:
    found = checks(evidence())

    assert [(check.name, check.text) for check in found if check.state is not State.OK] == []
    assert [check.name for check in found] == [
        "API server", "your rights", "definitions", "KubeRay", "Ray", "coordinator", "node agents", "labels", "paths",
        "free space", "clocks", "peer ports",
    ]  # fmt: skip


def silent() -> World:
    world = a_healthy_world()
    world.agents["n2"] = a_silent_agent("NoRayNode")
    world.settle()
    return world


def from_the_future() -> World:
    """The agent of n2 has a clock that is fast."""
    world = a_healthy_world()
    report = world.agents["n2"].report
    assert report is not None
    world.reporting("n2", *(replace(each, finished_at=NOW + 90) for each in report.models), roots=report.roots)
    world.settle()
    return world


def no_ray() -> World:
    world = a_healthy_world()
    for node in ("n1", "n2"):
        world.agents[node] = a_silent_agent("RayUnavailable")
    world.settle()
    return world


def roots(root: RootReport) -> World:
    world = a_healthy_world()
    cache = a_cache("llama")
    report = replace(a_report(cache), bytes_from_origin=GIB // 2, bytes_from_peers=GIB // 2)
    world.reporting("n2", report, roots=(root,)).settle()
    return world


def mismatch() -> World:
    from actors.errors import Failure

    return roots(RootReport("/models", failure=Failure("PathMismatch", "/models is not mounted in the agent")))


def unlabelled() -> World:
    world = a_healthy_world().add(a_group("cpu"))
    world.settle()
    return world


def lost() -> World:
    world = a_healthy_world().add(a_node("n9").in_pool("none").labelled(**{"kserve/localmodel": "worker"}))
    world.settle()
    return world


def lonely() -> World:
    world = a_healthy_world()
    world.reporting("n2", a_report(a_cache("llama")), roots=(RootReport("/models", 50 * GIB, GIB),)).settle()
    return world


def unseen() -> World:
    return a_healthy_world().add(a_cache("new", "hf://a/new"))


@pytest.mark.parametrize(
    ("name", "world", "fields", "text", "step"),
    [
        ("your rights", None, {"allowed": {"list nodes": False}}, "you may not list nodes", "ClusterRole"),
        ("definitions", None, {"crds": {}}, "does not know localmodelcaches", "kubectl apply"),
        ("KubeRay", None, {"clusters": []}, "there is no RayCluster", "k8s/base"),
        (
            "KubeRay",
            None,
            {"clusters": [{**RAY, "status": {"state": "suspended", "reason": "quota"}}]},
            "RayCluster localmodel is suspended: quota",
            "describe raycluster localmodel",
        ),
        ("KubeRay", None, {"own_ray": "2.49.0"}, "has Ray 2.50.0, and this installation has 2.49.0", "one version"),
        ("Ray", no_ray, {}, "does not reach the Ray head", "--ray-address"),
        ("Ray", None, {"ray_address": "http://h", "ray_failure": "refused"}, "http://h: refused", "head"),
        ("coordinator", None, {"leader": a_lease(NOW - 300)}, "has not renewed its Lease for 5m", "log"),
        ("coordinator", unseen, {}, "has not looked at new yet", "log"),
        ("node agents", silent, {}, "n2 does not report (NoRayNode)", "describe daemonset"),
        ("versions", None, {"own_version": "0.2.0"}, "they have 0.1.0, and this installation has 0.2.0", "one version"),
        ("labels", unlabelled, {}, "group cpu selects none of 2 nodes", "nodeAffinity of LocalModelNodeGroup cpu"),
        ("labels", lost, {}, "n9 has the label kserve/localmodel and no group", "group"),
        ("labels", a_world, {}, "there is no LocalModelNodeGroup", "k8s/samples"),
        ("paths", mismatch, {}, "n2: /models is not mounted in the agent", "path"),
        (
            "free space",
            lambda: roots(RootReport("/models", GIB, 99 * GIB)),
            {},
            "n2 has 1Gi free on /models, beside 99Gi of models",
            "storageLimit",
        ),
        (
            "clocks",
            None,
            {"leases": {NodeName("n1"): a_lease(NOW + 40)}},
            "n1: ahead of this machine by up to 40s",
            "synchronise",
        ),
        (
            "clocks",
            None,
            {"leases": {NodeName("n1"): a_lease(NOW - 200)}},
            "n1: behind this machine by up to 3m20s",
            "synchronise",
        ),
        ("clocks", from_the_future, {"leases": {}}, "n2: ahead of this machine by up to 1m30s", "synchronise"),
        ("peer ports", lonely, {}, "n2 read all from the origin", "LOCALMODEL_PEER_PORT"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(name: str, world: Any, fields: Any, text: str, step: str) -> None:
    found = checks(evidence(world() if world else None, **fields))

    problems = [check for check in of(name, found) if check.state is State.PROBLEM]
    assert any(text in check.text and step in (check.next_step or "") for check in problems), of(name, found)


@pytest.mark.parametrize(
    ("name", "world", "fields"),
    [
        ("your rights", None, {"allowed": {"list nodes": None}}),
        ("KubeRay", None, {"clusters": None}),
        ("Ray", a_world, {}),
        ("coordinator", a_world, {"leader": None}),
        ("node agents", a_world, {}),
        ("paths", a_world, {}),
        ("free space", a_world, {}),
        ("clocks", None, {"leases": {}}),
        ("peer ports", a_world, {}),
    ],
)
def test_what_cannot_be_told_is_no_failure(name: str, world: Any, fields: Any) -> None:
    (check,) = of(name, checks(evidence(world() if world else None, **fields)))

    assert check.state is State.UNKNOWN


def test_an_old_lease_of_a_node_that_is_not_ready_says_nothing_of_its_clock() -> None:
    view = replace(view_of(a_healthy_world()), not_ready={NodeName("n1"): "kubelet stopped posting node status"})
    (check,) = of("clocks", checks(evidence(view=view, leases={NodeName("n1"): a_lease(NOW - 200)})))

    assert check.state is State.OK


def test_nodes_that_may_not_be_listed() -> None:
    (check,) = of("labels", checks(evidence(view=replace(view_of(a_healthy_world()), nodes=None))))

    assert check.state is State.UNKNOWN


@pytest.mark.skipif(not KSERVE.is_dir(), reason="KServe's own CRDs are not there")
def test_definitions_of_kserve_and_of_another_version_are_told_apart() -> None:
    theirs = {plural: yaml.safe_load((KSERVE / f"{plural}.yaml").read_text()) for plural in DEFINITIONS}
    older = deepcopy(DEFINITIONS)
    status = older["localmodelcaches"]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    del status["properties"]["moved"]

    (kserves,) = of("definitions", checks(evidence(crds=theirs)))
    (other,) = of("definitions", checks(evidence(crds=older)))

    assert "localmodelcaches" in kserves.text
    assert "KServe's own" in kserves.text
    assert other.text == "localmodelcaches: of another version of localmodel"
