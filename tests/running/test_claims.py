"""What a pod has open by way of a claim, whatever the claim and the volume are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from actors.manifest import storage_key
from actors.messages import NodeName
from coordinator.control.claims import followed
from coordinator.control.looks import Looks
from coordinator.dev.fake_kube import FakeKube
from coordinator.dev.trial.builders import OWNER, PodBuilder, a_cache, a_group, a_node, a_pod, a_report, a_world, key_of
from coordinator.kube.interface import CLAIMS, PODS, VOLUMES, Denied, Kube, KubeError, Object
from coordinator.plan.pods import Look, read_pod
from coordinator.plan.snapshot import Snapshot
from coordinator.plan.usage import users_on
from tests.kit.delegating_kube import Call, DelegatingKube
from tests.running.test_controller import AtOnce

N1 = NodeName("n1")
CACHE = a_cache()
KEY = storage_key(CACHE.uri)


class CountingKube(DelegatingKube):
    """Lists the pods of a node, and counts what it is asked for by name. `refusal` is raised instead of an answer."""

    def __init__(self, *pods: Object, refusal: KubeError | None = None) -> None:
        super().__init__(FakeKube())
        self.asked: list[str] = []
        self.pods = pods
        self.refusal = refusal

    def through(self, call: Call) -> Any:
        if call.verb == "list":
            assert call.resource == PODS
            return list(self.pods), "1"
        if call.verb == "get":
            self.asked.append(call.name)
            if self.refusal is not None:
                raise self.refusal
        return super().through(call)


def bound(kube: Kube, claim: str, source: Mapping[str, Any]) -> None:
    kube.create(VOLUMES, {"metadata": {"name": "v"}, "spec": dict(source)})
    kube.create(CLAIMS, {"metadata": {"name": claim}, "spec": {"volumeName": "v"}}, namespace="default")


def local(path: str) -> Mapping[str, Any]:
    return {"local": {"path": path}}


def a_user(pod: PodBuilder | None = None) -> PodBuilder:
    return (pod or a_pod().claiming("mine")).on("n1").with_metadata(uid="u1")


def init_user() -> PodBuilder:
    pod = a_user()
    pod.json["spec"]["initContainers"] = pod.json["spec"].pop("containers")
    return pod


USES: dict[str, tuple[PodBuilder, Mapping[str, Any]]] = {
    "a local volume of the model": (a_user(), local(f"/models/models/{KEY}")),
    "a hostPath volume of the model": (a_user(), {"hostPath": {"path": f"/models/models/{KEY}/"}}),
    "a volume of a folder in the model": (a_user(), local(f"/models/models/{KEY}/onnx")),
    "a volume of the whole folder": (a_user(), local("/models")),
    "a volume of all models": (a_user(), local("/models/models")),
    "a volume of the whole folder, and the model in it": (
        a_user(a_pod().claiming("mine", sub_path=f"models/{KEY}")),
        local("/models"),
    ),
    "an init container": (init_user(), local(f"/models/models/{KEY}")),
}
USES_NOT: dict[str, tuple[PodBuilder, Mapping[str, Any]]] = {
    "a volume of another model": (a_user(), local("/models/models/0123456789abcdef")),
    "a volume of another folder": (a_user(), local("/data")),
    "a volume of the whole folder, and another model in it": (
        a_user(a_pod().claiming("mine", sub_path="models/0123456789abcdef")),
        local("/models"),
    ),
    "a volume of the network": (a_user(), {"csi": {"driver": "nfs", "volumeHandle": "/models"}}),
    "another claim": (a_user(a_pod().claiming("other")), local(f"/models/models/{KEY}")),
    "a pod that has ended": (a_user().ended(), local(f"/models/models/{KEY}")),
    "our own agents": (a_user(a_pod(namespace="localmodel").claiming("mine")), local("/models")),
}


def users(pod: PodBuilder, source: Mapping[str, Any]) -> list[str]:
    """The pods that use the model, as far as a look tells; no object but the claim and the volume says which it is."""
    kube = CountingKube()
    bound(kube, "mine", source)
    read = read_pod(pod.json, "localmodel")
    pods, _ = followed(kube, [read] if read is not None else [], {})
    snapshot = a_world(a_node("n1"), a_group()).reporting("n1", a_report(CACHE)).snapshot()
    object.__setattr__(snapshot, "looks", {N1: Look(0.0, pods)})
    found = users_on(snapshot, N1)
    assert found is not None
    return [user.name for user in found.get(key_of(CACHE), ())]


@pytest.mark.parametrize("case", USES)
def test_a_model_is_used_by_way_of(case: str) -> None:
    assert users(*USES[case]) == ["server"]


@pytest.mark.parametrize("case", USES_NOT)
def test_a_model_is_not_used_by_way_of(case: str) -> None:
    assert users(*USES_NOT[case]) == []


def test_a_claim_is_asked_for_once_while_its_pod_is_there() -> None:
    clock = [100.0]
    kube = CountingKube(a_user().json, a_user().with_metadata(name="second", uid="u2").json)
    bound(kube, "mine", local(f"/models/models/{KEY}"))
    looks = Looks(kube, AtOnce(), lambda: clock[0], lambda: None)
    for _ in range(3):
        looks.want([N1], clock[0])
        seen = looks.see(Snapshot(OWNER), clock[0]).looks[N1].pods
        assert all(KEY in pod.words for pod in seen)
        clock[0] += 60.0
    assert kube.asked == ["mine", "v"]
    kube.pods = (a_user().with_metadata(uid="u3").json,)
    looks.want([N1], clock[0])
    assert kube.asked == ["mine", "v"] * 2, "another pod may have another claim of that name"


def test_a_claim_that_is_not_bound_yet_is_asked_for_again() -> None:
    kube = CountingKube()
    kube.create(CLAIMS, {"metadata": {"name": "mine"}, "spec": {}}, namespace="default")
    pod = read_pod(a_user().json)
    assert pod is not None
    known: Any = {}
    for _ in range(2):
        _, known = followed(kube, [pod], known)
    assert kube.asked == ["mine", "mine"]


def test_where_claims_may_not_be_read_nobody_knows_who_uses_what() -> None:
    forbidden = Denied("persistentvolumeclaims is forbidden")
    looks = Looks(CountingKube(a_user().json, refusal=forbidden), AtOnce(), lambda: 100.0, lambda: None)
    looks.want([N1], 100.0)
    assert looks.see(Snapshot(OWNER), 100.0).looks[N1].failure == "persistentvolumeclaims is forbidden"
