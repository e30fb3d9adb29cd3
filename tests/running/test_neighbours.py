"""KServe's own controller and agents are found where they run, and what to scale down is said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from coordinator.control.neighbours import AGENT, CONTROLLER, DAEMON_SETS, DEPLOYMENTS, LOCKS, Neighbours
from coordinator.dev.fake_kube import FakeKube
from coordinator.dev.trial.waiting import eventually
from coordinator.kube.interface import LEASES, Denied, Unreachable

NOW = 1_767_225_600.0  # 2026-01-01T00:00:00Z
OURS = {"labels": {"app.kubernetes.io/part-of": "localmodel"}}
STOP_CONTROLLER = "kubectl -n kserve scale deployment kserve-localmodel-controller-manager --replicas=0"
STOP_AGENTS = "kubectl -n kserve delete daemonset kserve-localmodelnode-agent"


def deployment(replicas: int | None = None, **metadata: Any) -> tuple[Any, Mapping[str, Any]]:
    spec = {} if replicas is None else {"replicas": replicas}
    return DEPLOYMENTS, {"metadata": {"name": CONTROLLER, **metadata}, "spec": spec}


def daemon_set(pods: int, **metadata: Any) -> tuple[Any, Mapping[str, Any]]:
    return DAEMON_SETS, {"metadata": {"name": AGENT, **metadata}, "status": {"desiredNumberScheduled": pods}}


def lease(name: str = LOCKS[0], **spec: Any) -> tuple[Any, Mapping[str, Any]]:
    held = {"holderIdentity": "pod_1", "leaseDurationSeconds": 15, "renewTime": "2025-12-31T23:59:50.000000Z", **spec}
    return LEASES, {"metadata": {"name": name}, "spec": held}


def standing(
    *objects: tuple[Any, Mapping[str, Any]], home: str = "localmodel", controller_stays: bool = False
) -> str | None:
    kube = FakeKube()
    for resource, body in objects:
        kube.create(resource, body, namespace="kserve")
    neighbours = Neighbours(kube, "kserve", home, clock=lambda: NOW, controller_stays=controller_stays)
    neighbours.look()
    return neighbours.standing


@pytest.mark.parametrize(
    ("objects", "says"),
    [
        ([deployment()], [STOP_CONTROLLER]),
        ([deployment(2)], [STOP_CONTROLLER]),
        ([daemon_set(3)], [STOP_AGENTS]),
        ([deployment(1), daemon_set(3)], [STOP_CONTROLLER, STOP_AGENTS]),
        ([deployment(0), daemon_set(3)], [STOP_AGENTS]),
        ([lease()], ["Lease kserve/kserve-local-model-manager-leader-lock is held by pod_1"]),
        ([lease(LOCKS[1])], ["Lease kserve/kserve-local-model-node-manager-leader-lock is held by pod_1"]),
    ],
)
def test_what_runs_is_said_with_what_to_do(objects: list[Any], says: list[str]) -> None:
    found = standing(*objects)
    assert found is not None
    assert [each for each in says if each not in found] == []
    assert (STOP_AGENTS in found) is (STOP_AGENTS in says)


@pytest.mark.parametrize(
    "objects",
    [
        [],
        [deployment(0)],
        [daemon_set(0)],
        [deployment(1, **OURS), daemon_set(3, **OURS)],
        [lease(holderIdentity="")],
        [lease(renewTime="2025-12-31T23:59:00.000000Z")],
        [lease(renewTime="junk")],
        [lease(leaseDurationSeconds="junk")],
    ],
    ids=["nothing", "scaled to zero", "no node", "ours by their names", "given back", "run out", "junk", "more junk"],
)
def test_what_does_not_run_is_no_neighbour(objects: list[Any]) -> None:
    assert standing(*objects) is None


def test_in_the_same_namespace_the_lease_is_the_coordinators_own() -> None:
    assert standing(lease(), home="kserve") is None


def test_what_may_not_be_read_is_taken_to_be_absent_and_what_cannot_be_asked_is_as_it_was() -> None:
    kube = FakeKube()
    resource, body = deployment(1)
    kube.create(resource, body, namespace="kserve")
    told: list[None] = []
    neighbours = Neighbours(kube, "kserve", "localmodel", changed=lambda: told.append(None), clock=lambda: NOW)
    neighbours.look()
    found = neighbours.standing
    kube.fail(Unreachable("nobody answers"))
    neighbours.look()
    assert (neighbours.standing, len(told)) == (found, 1)
    kube.fail(Denied("forbidden", status=403))
    neighbours.look()
    assert (neighbours.standing, len(told)) == (None, 2)


def test_until_a_look_has_been_answered_it_is_as_if_somebody_ran() -> None:
    kube = FakeKube()
    kube.fail(Unreachable("nobody answers"))
    told: list[None] = []
    neighbours = Neighbours(kube, "kserve", "localmodel", changed=lambda: told.append(None))
    neighbours.start()
    try:
        assert neighbours.standing is not None
        kube.fail(None)
        eventually(lambda: told)
        assert neighbours.standing is None
    finally:
        neighbours.stop()


def test_where_the_controller_is_to_stay_only_the_node_agent_is_in_the_way() -> None:
    assert standing(deployment(1), lease(), controller_stays=True) is None
    assert STOP_AGENTS in str(standing(deployment(1), daemon_set(3), controller_stays=True))
    assert LOCKS[1] in str(standing(lease(LOCKS[1]), controller_stays=True))
