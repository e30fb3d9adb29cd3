"""The coordinator may do what it does, and nothing else: its real calls, recorded, against the roles in k8s/base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from actors.errors import Failure
from actors.manifest import storage_key
from coordinator.api import crds
from coordinator.api.resources import LocalModelCache, LocalModelNamespaceCache, LocalModelNode, Resource
from coordinator.control import imports
from coordinator.control.neighbours import Neighbours
from coordinator.control.webhook_identity import CONFIGURATIONS, SECRET, SERVICE, WEBHOOKS
from coordinator.dev.trial.builders import (
    a_cache,
    a_group,
    a_local_node,
    a_namespace_cache,
    a_node,
    a_pod,
    a_service,
)
from coordinator.kube.interface import (
    CLAIMS,
    CONFIG_MAPS,
    NODES,
    PODS,
    SECRETS,
    SERVICE_ACCOUNTS,
    VOLUMES,
    Object,
    ResourceType,
)
from coordinator.plan.eviction import Policy
from coordinator.plan.jobs import JOBS as IMPORT_JOBS
from coordinator.plan.jobs import POD_TEMPLATES
from coordinator.plan.node_marks import CONDITION, label_of
from coordinator.plan.services import INFERENCE_SERVICES, LLM_INFERENCE_SERVICES
from coordinator.plan.snapshot import CACHES, LOCAL_NODES, NAMESPACE_CACHES, NODE_GROUPS, Ref
from tests.kit.control_plane import HOME, JOBS, KSERVE, TEAM, Cluster, running_coordinator, soon
from tests.kit.manifests import K8S, pick, read, resources
from tests.kit.openapi import problems, schema_of
from tests.kit.rbac import Grant, Request, denied, grants, unused
from tests.kit.recording_kube import RecordingKube
from tests.kit.webhooks import a_review

BASE = resources(K8S / "base")
GRANTED = grants(BASE, "localmodel-coordinator", HOME)
FOR_ADMISSION = {
    Grant("update", "serving.kserve.io", f"{plural}/finalizers")
    for plural in ("localmodelcaches", "localmodelnamespacecaches")
}
"""What no request needs, and an admission plugin asks for."""
FOR_IMPORTS = grants(resources(K8S / "components" / "imports"), "localmodel-coordinator", HOME)
FOR_EVICTION = grants(resources(K8S / "components" / "eviction"), "localmodel-coordinator", HOME)
FOR_PLACEMENT = grants(resources(K8S / "components" / "placement"), "localmodel-coordinator", HOME)


TOKEN = {"HF_TOKEN": "hf_x", "AWS_CA_BUNDLE_CONFIGMAP": "trusted"}


def a_life(cluster: Cluster) -> None:
    """Everything a coordinator meets: caches of both kinds, credentials, silent agents, lost nodes, deletion."""
    admin = cluster.admin
    for name, content in {"storage-config": {"s": '{"type": "s3"}'}, "token": TOKEN}.items():
        admin.create(SECRETS, {"metadata": {"name": name}, "stringData": content}, namespace=JOBS)
    admin.create(SERVICE_ACCOUNTS, {"metadata": {"name": "reader"}, "secrets": [{"name": "token"}]}, namespace=JOBS)
    bundle = {"metadata": {"name": "trusted"}, "data": {"cabundle.crt": "-----BEGIN CERTIFICATE-----"}}
    admin.create(CONFIG_MAPS, bundle, namespace=JOBS)
    cluster.create(NODE_GROUPS, a_group())
    cluster.create(NODES, a_node("n1"))
    cluster.create(NODES, a_node("n2"))
    cluster.create(LOCAL_NODES, a_local_node("long-gone"))  # of a node that no longer exists, and without an owner
    cluster.create(CACHES, a_cache("keyed", "s3://b/keyed").with_spec(storage={"key": "s"}))
    cluster.create(CACHES, a_cache("gated").with_spec(serviceAccountName="reader"))
    cluster.create(NAMESPACE_CACHES, a_namespace_cache(TEAM, "public"), TEAM)

    admin.create(CONFIG_MAPS, {"metadata": {"name": "inferenceservice-config"}, "data": {}}, namespace=KSERVE)
    cluster.create(INFERENCE_SERVICES, a_service("chat", TEAM).using("keyed"), TEAM)
    cluster.create(LLM_INFERENCE_SERVICES, a_service("llm", TEAM, llm=True).using("keyed"), TEAM)
    made_by_kserve = {"metadata": {"name": "gated-gpu-download"}, "spec": a_group().volume}
    admin.create(VOLUMES, made_by_kserve)
    claim = {"metadata": {"name": "gated-gpu"}, "spec": {"volumeName": "gated-gpu-download"}}
    admin.create(CLAIMS, claim, namespace=JOBS)

    caches = ((CACHES, "keyed", None), (CACHES, "gated", None), (NAMESPACE_CACHES, "public", TEAM))
    for cache in caches:
        soon(partial(cluster.ready, *cache))
    assert cluster.asked_with["hf://models/gated"].env["HF_TOKEN"] == "hf_x"
    soon(lambda: cluster.find(LOCAL_NODES, "long-gone") is None)
    soon(lambda: (cluster.find(NODE_GROUPS, "gpu") or {}).get("status", {}).get("used"))

    soon(lambda: cluster.find(CLAIMS, "keyed-gpu", TEAM))
    for made in ((VOLUMES, "gated-gpu-download", None), (CLAIMS, "gated-gpu", JOBS)):
        soon(partial(cluster.is_owned, *made))
    admin.delete(INFERENCE_SERVICES, "chat", namespace=TEAM)
    admin.delete(LLM_INFERENCE_SERVICES, "llm", namespace=TEAM)
    soon(lambda: cluster.is_gone(VOLUMES, f"keyed-gpu-{TEAM}"))

    for times in (1, 2):  # what is said again is counted: the second time patches the Event of the first
        cluster.agents.silent = Failure("AgentUnavailable", "the node agent does not answer")
        soon(partial(cluster.was_said, "n1", "AgentUnavailable", times))
        cluster.agents.silent = None
        soon(partial(cluster.was_said, "n1", "AgentReady", times + 1))

    admin.delete(NODES, "n2")
    soon(lambda: set((cluster.find(CACHES, "keyed") or {})["status"]["nodeStatus"]) == {"n1"})

    path = f"/models/models/{storage_key('hf://models/gated')}"
    admin.create(VOLUMES, {"metadata": {"name": "v"}, "spec": {"local": {"path": path}}})
    admin.create(CLAIMS, {"metadata": {"name": "own"}, "spec": {"volumeName": "v"}}, namespace=TEAM)
    cluster.create(PODS, a_pod(namespace=TEAM).on("n1").claiming("own"), TEAM)
    for resource, name, namespace in caches:
        admin.delete(resource, name, namespace=namespace)
    soon(lambda: cluster.was_said("gated", "InUse", 1))
    admin.patch(PODS, "server", {"status": {"phase": "Succeeded"}}, namespace=TEAM, subresource="status")
    for cache in caches:
        soon(partial(cluster.is_gone, *cache))


def reviews(cluster: Cluster) -> None:
    """What the API server asks: of a node group that nobody has seen, and of a deletion in a namespace."""
    users = {name: [{"namespace": TEAM, "name": "chat"}] for name in ("inferenceServices", "llmInferenceServices")}
    cache = a_namespace_cache(TEAM, "used").in_group("none").with_status(**users).json
    for operation, new, old in (("CREATE", cache, None), ("DELETE", None, cache)):
        asked = a_review(operation, new, old)
        answer = cluster.admission.review(NAMESPACE_CACHES, json.dumps(asked).encode())
        assert answer["response"]["allowed"] is (operation == "DELETE")
    resource = INFERENCE_SERVICES
    labels = {"internal.serving.kserve.io/localmodel": "used", "internal.serving.kserve.io/localmodel-namespace": TEAM}
    cluster.admin.create(resource, {**header(resource), "metadata": {"name": "chat", "labels": labels}}, namespace=TEAM)
    answer = cluster.admission.review(NAMESPACE_CACHES, json.dumps(a_review("DELETE", None, cache)).encode())
    assert answer["response"]["allowed"] is False


def a_look_around(cluster: Cluster) -> None:
    """For KServe's own controller, which is not there."""
    neighbours = Neighbours(cluster.recorded, KSERVE, HOME)
    neighbours.look()
    assert neighbours.standing is None


def a_certificate(cluster: Cluster) -> None:
    """Made, trusted, and made anew when it is damaged."""
    client = {"service": {"namespace": HOME, "name": SERVICE, "path": "/x"}}
    webhook = {"name": "a.b.c", "clientConfig": client, "sideEffects": "None", "admissionReviewVersions": ["v1"]}
    for name in CONFIGURATIONS:
        cluster.admin.create(WEBHOOKS, {**header(WEBHOOKS), "metadata": {"name": name}, "webhooks": [webhook]})
    cluster.identity.look()
    cluster.admin.patch(SECRETS, SECRET, {"data": {"tls.crt": None}}, namespace=HOME)
    cluster.identity.look()


def header(resource: ResourceType) -> Object:
    return {"apiVersion": resource.api_version, "kind": resource.kind}


def a_life_with_eviction(cluster: Cluster) -> None:
    """Its one eviction: a copy that no pod uses is in the way, and the pods of its node are looked at."""
    cluster.create(NODE_GROUPS, a_group())
    cluster.create(NODES, a_node("n1"))
    for name in ("old", "used"):
        cluster.create(CACHES, a_cache(name))
    cluster.create(PODS, a_pod(namespace=TEAM).on("n1").claiming("used-gpu"), TEAM)
    soon(lambda: (cluster.find(CACHES, "old") or {}).get("status", {}).get("unusedSince"))
    assert "unusedSince" not in (cluster.find(CACHES, "used") or {})["status"]
    cluster.create(CACHES, a_cache("new"))
    cluster.agents.no_room_for = "hf://models/new"
    soon(lambda: [order.for_uri for order in cluster.agents.ordered] == ["hf://models/new"])
    assert [order.key for order in cluster.agents.ordered] == [storage_key("hf://models/old")]


def a_life_with_marked_nodes(cluster: Cluster) -> None:
    """A model comes and goes; so do the label and the condition, beside what the kubelet and others wrote there."""

    def node() -> Object:
        return cluster.find(NODES, "n1") or {}

    def condition() -> str | None:
        return next((each["status"] for each in node()["status"]["conditions"] if each["type"] == CONDITION), None)

    label = label_of(Ref(CACHES, "llama"))
    cluster.create(NODE_GROUPS, a_group())
    cluster.create(NODES, a_node("n1"))
    cluster.create(CACHES, a_cache("llama"))
    soon(lambda: node()["metadata"]["labels"].get(label) == "ready" and condition() == "True")
    cluster.admin.delete(CACHES, "llama")
    soon(lambda: label not in node()["metadata"]["labels"])
    cluster.admin.delete(NODE_GROUPS, "gpu")
    soon(lambda: condition() is None)
    assert node()["metadata"]["labels"]["pool"] == "gpu"
    assert [each["type"] for each in node()["status"]["conditions"]] == ["Ready"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> RecordingKube:
    with running_coordinator(tmp_path_factory.mktemp("rbac")) as cluster:
        a_life(cluster)
        reviews(cluster)
        a_certificate(cluster)
        a_look_around(cluster)
    return cluster.recorded


@pytest.mark.slow
def test_every_call_is_granted(recorded: RecordingKube) -> None:
    assert denied(recorded.requests, GRANTED) == set()


def test_nothing_is_granted_that_is_not_called(recorded: RecordingKube) -> None:
    assert unused(recorded.requests, GRANTED) == FOR_ADMISSION


@pytest.mark.slow
def test_eviction_needs_no_more_than_its_component_grants_and_all_of_that(tmp_path: Path) -> None:
    with running_coordinator(tmp_path, Policy(idle_s=0.001)) as cluster:
        a_life_with_eviction(cluster)
    assert denied(cluster.recorded.requests, GRANTED | FOR_EVICTION) == set()
    assert unused(cluster.recorded.requests, FOR_EVICTION) == set()


@pytest.mark.slow
def test_nodes_are_marked_with_no_more_than_the_component_grants_and_all_of_that(tmp_path: Path) -> None:
    with running_coordinator(tmp_path, mark_nodes=True) as cluster:
        a_life_with_marked_nodes(cluster)
    assert denied(cluster.recorded.requests, GRANTED | FOR_PLACEMENT) == set()
    assert unused(cluster.recorded.requests, FOR_PLACEMENT) == set()


def a_life_with_an_import(cluster: Cluster) -> None:
    """Its one import: made, and gone with its cache."""
    (template,) = read(K8S / "base" / "import.yaml")
    cluster.admin.create(POD_TEMPLATES, template, namespace=HOME)
    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "2Gi"}}}
    cluster.admin.create(CLAIMS, {"metadata": {"name": "disk"}, "spec": claim}, namespace=TEAM)
    cache = a_namespace_cache(TEAM, "shared").with_spec(pvcRef="disk")
    del cache.json["spec"]["nodeGroups"]
    cluster.create(NAMESPACE_CACHES, cache, TEAM)
    soon(lambda: cluster.find(IMPORT_JOBS, "shared-import", TEAM))
    cluster.admin.delete(NAMESPACE_CACHES, "shared", namespace=TEAM)
    soon(lambda: cluster.is_gone(NAMESPACE_CACHES, "shared", TEAM))


@pytest.mark.slow
def test_imports_need_no_more_than_their_component_grants_and_all_of_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "AGAIN_S", 0.1)
    with running_coordinator(tmp_path) as cluster:
        a_life_with_an_import(cluster)
    assert denied(cluster.recorded.requests, GRANTED | FOR_IMPORTS) == set()
    assert unused(cluster.recorded.requests, FOR_IMPORTS) == set()


@pytest.mark.parametrize("model", [LocalModelCache, LocalModelNamespaceCache, LocalModelNode], ids=lambda m: m.KIND)
def test_every_status_field_that_is_written_is_in_the_crd(recorded: RecordingKube, model: type[Resource]) -> None:
    crd = next(each for each in crds.load() if each["spec"]["names"]["kind"] == model.KIND)
    schema = schema_of(crd)["properties"]["status"]
    written = [
        body["status"] for resource, body in recorded.patches if resource.kind == model.KIND and "status" in body
    ]
    assert written
    for status in written:
        assert problems(without_nulls(status), schema) == []


def without_nulls(patch: Any) -> Any:
    """What a merge patch sets; None only removes."""
    if isinstance(patch, Mapping):
        return {name: without_nulls(value) for name, value in patch.items() if value is not None}
    return patch


def test_ray_nodes_have_no_access_at_all() -> None:
    assert grants(BASE, "localmodel-ray", HOME) == set()
    assert pick(BASE, "ServiceAccount", "localmodel-ray")["automountServiceAccountToken"] is False


@pytest.mark.parametrize(
    ("request_", "grant", "covered"),
    [
        (Request("get", "", "pods", "a", "p"), Grant("get", "", "pods"), True),
        (Request("list", "", "pods"), Grant("list", "", "pods"), True),
        (Request("list", "", "pods"), Grant("list", "", "pods", "a"), False),
        (Request("get", "", "pods", "b", "p"), Grant("get", "", "pods", "a"), False),
        (Request("list", "", "pods", "a"), Grant("get", "", "pods"), False),
        (Request("get", "apps", "pods", "a", "p"), Grant("get", "", "pods"), False),
        (Request("patch", "", "pods/status", "a", "p"), Grant("patch", "", "pods"), False),
        (Request("get", "", "pods", "a", "p"), Grant("get", "", "pods", None, "q"), False),
        (Request("list", "", "pods", "a"), Grant("list", "", "pods", None, "p"), False),
    ],
    ids=[
        "a grant without a namespace covers every one",
        "a grant without a namespace covers all at once",
        "a Role does not cover all namespaces at once",
        "a Role does not cover another namespace",
        "another verb",
        "another group",
        "a resource does not cover its subresource",
        "another name",
        "a named grant does not cover a list",
    ],
)
def test_a_grant_covers(request_: Request, grant: Grant, covered: bool) -> None:
    assert grant.covers(request_) is covered
    assert (denied([request_], [grant]) == set()) is covered
    assert (unused([request_], [grant]) == set()) is covered


def test_a_role_that_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError):
        grants([m for m in BASE if m["kind"] != "ClusterRole"], "localmodel-coordinator", HOME)
