"""What a pod says about the models it uses, however it is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from actors.messages import NodeName
from coordinator.dev.trial.builders import a_pod
from coordinator.plan.pods import Pod, read_pod

KEY = "0123456789abcdef"


def read(raw: Mapping[str, Any], home: str = "") -> Pod:
    pod = read_pod(raw, home)
    assert pod is not None
    return pod


def with_spec(**spec: Any) -> Mapping[str, Any]:
    return {"metadata": {"name": "p", "namespace": "a"}, "spec": spec}


def test_where_it_runs_and_what_it_claims() -> None:
    pod = read(a_pod(namespace="a").on("n1").claiming("one").claiming("two").json)
    assert pod == Pod("a", NodeName("n1"), frozenset({"one", "two"}), name="server")


def test_one_that_no_node_runs_yet_counts() -> None:
    assert read(a_pod().claiming("one").with_status(phase="Pending").json).node is None


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_one_that_has_ended_is_none(phase: str) -> None:
    assert read_pod(a_pod().claiming("one").ended(phase).json) is None


def test_one_that_is_being_deleted_counts_until_it_is_gone() -> None:
    pod = a_pod().claiming("one").with_metadata(deletionTimestamp="2026-01-01T00:00:00Z")
    assert read(pod.json).claims == {"one"}


@pytest.mark.parametrize("kind", ["containers", "initContainers", "ephemeralContainers"])
@pytest.mark.parametrize("name", ["subPath", "subPathExpr"])
def test_the_key_is_found_in_the_mounts_of_every_container(kind: str, name: str) -> None:
    pod = read(with_spec(**{kind: [{"volumeMounts": [{"name": "v", name: f"models/{KEY}/onnx"}]}]}))
    assert KEY in pod.words


def test_the_key_is_found_in_a_path_of_the_host() -> None:
    pod = read(a_pod().mounting(f"/models/models/{KEY}/").json)
    assert KEY in pod.words
    assert pod.folders == {f"/models/models/{KEY}"}


def test_the_node_agents_mount_the_folder_and_use_no_model_by_that() -> None:
    agent = a_pod(namespace="localmodel").mounting("/models")
    assert read(agent.json, home="localmodel").folders == frozenset()
    assert read(agent.json, home="elsewhere").folders == {"/models"}


@pytest.mark.parametrize(
    ("labels", "cache"),
    [
        ({}, None),
        ({"localmodel": "llama"}, "llama"),
        ({"localmodel": "llama", "localmodel_namespace": "team"}, "team/llama"),
    ],
    ids=["none", "a cluster cache", "a namespace cache"],
)
def test_kserves_labels_name_the_cache(labels: dict[str, str], cache: str | None) -> None:
    assert read(a_pod().labelled(**labels).json).labelled == cache


JUNK: dict[str, Mapping[str, Any]] = {
    "no spec": {"metadata": {"name": "p"}},
    "a spec that is none": {"metadata": {"name": "p"}, "spec": "x", "status": []},
    "volumes that are none": with_spec(volumes="x", containers=7),
    "volumes of nothing": with_spec(volumes=[None, 3, {"hostPath": "x"}, {"persistentVolumeClaim": {"claimName": 7}}]),
    "containers of nothing": with_spec(
        containers=[None, {"volumeMounts": "x"}, {"volumeMounts": [None, {"subPath": 7}]}]
    ),
}


@pytest.mark.parametrize("case", JUNK)
def test_what_has_not_its_shape_is_passed_over_and_the_pod_still_counts(case: str) -> None:
    pod = read(JUNK[case])
    assert (pod.claims, pod.folders) == (frozenset(), frozenset())


def test_the_rest_of_a_pod_with_junk_in_it_counts() -> None:
    assert read(with_spec(volumes=[None, {"persistentVolumeClaim": {"claimName": "one"}}])).claims == {"one"}


def test_an_object_without_a_name_is_refused() -> None:
    with_no_name: Mapping[str, Any] = {"metadata": {}}
    with pytest.raises(ValueError, match=r"no metadata\.name"):
        read_pod(with_no_name)
