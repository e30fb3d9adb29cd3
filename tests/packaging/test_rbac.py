"""The coordinator may do what it does, and nothing else: its real calls, recorded, against the roles in k8s/base."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from actors.errors import Failure
from actors.manifest import ModelSource, Resolved, storage_key
from actors.messages import DesiredState, ModelReport, NodeName, Phase, Removal
from actors.transport.answers import SourceOptions
from coordinator.api import crds
from coordinator.api.resources import LocalModelCache, LocalModelNamespaceCache, LocalModelNode, Resource
from coordinator.control.admission import Admission
from coordinator.control.controller import Controller
from coordinator.control.credentials import load_options
from coordinator.control.informers import Informers
from coordinator.control.kserve_config import ConfigReader
from coordinator.control.metrics import Metrics
from coordinator.control.resolver import Resolver
from coordinator.control.tls_contexts import TlsContexts
from coordinator.control.webhook_identity import CONFIGURATIONS, SECRET, SERVICE, WEBHOOKS, WebhookIdentity
from coordinator.dev.apiserver.server import ApiServer, write_kubeconfig
from coordinator.fleet.interface import AgentView
from coordinator.kube.config import load_config
from coordinator.kube.events import Recorder
from coordinator.kube.http import HttpKube
from coordinator.kube.interface import (
    CLAIMS,
    CONFIG_MAPS,
    EVENTS,
    NAMESPACES,
    NODES,
    PODS,
    SECRETS,
    SERVICE_ACCOUNTS,
    VOLUMES,
    NotFound,
    Object,
    ResourceType,
)
from coordinator.kube.leader import Leader
from coordinator.plan.eviction import Policy
from coordinator.plan.pods import read_pod
from coordinator.plan.services import INFERENCE_SERVICES, LLM_INFERENCE_SERVICES
from coordinator.plan.snapshot import CACHES, LOCAL_NODES, NAMESPACE_CACHES, NODE_GROUPS
from tests.kit.builders import (
    Builder,
    a_cache,
    a_group,
    a_local_node,
    a_namespace_cache,
    a_node,
    a_pod,
    a_report,
    a_resolution,
    a_service,
)
from tests.kit.builders import an_agent as an_agent_view
from tests.kit.kserve import as_sent, consumer_crds
from tests.kit.manifests import K8S, pick, resources
from tests.kit.openapi import problems, schema_of
from tests.kit.rbac import Grant, Request, denied, grants, unused
from tests.kit.recording_kube import RecordingKube
from tests.kit.waiting import eventually
from tests.kit.webhooks import a_review

BASE = resources(K8S / "base")
HOME, JOBS, TEAM, KSERVE = "localmodel", "kserve-localmodel-jobs", "team-a", "kserve"
GRANTED = grants(BASE, "localmodel-coordinator", HOME)
FOR_ADMISSION = {
    Grant("update", "serving.kserve.io", f"{plural}/finalizers")
    for plural in ("localmodelcaches", "localmodelnamespacecaches")
}
"""What no request needs, and an admission plugin asks for."""
FOR_EVICTION = grants(resources(K8S / "components" / "eviction"), "localmodel-coordinator", HOME)


class Agents:
    """A fleet whose agents hold what they should at once, and until they are ordered to remove it.

    They can be told to be silent.
    """

    def __init__(self) -> None:
        self.desired: Mapping[NodeName, DesiredState] = {}
        self.silent: Failure | None = None
        self.no_room_for = ""
        self.ordered: tuple[Removal, ...] = ()
        self.held: dict[NodeName, dict[str, ModelSource]] = {}

    def sync(self, desired: Mapping[NodeName, DesiredState]) -> None:
        self.desired = dict(desired)
        for node, state in desired.items():
            held = self.held.setdefault(node, {})
            held |= {model.key: model.source for model in state.models}
            for order in state.remove:
                if order.for_key is None:
                    held.pop(order.key, None)
        self.ordered = tuple(order for state in desired.values() for order in state.remove) or self.ordered

    def views(self) -> Mapping[NodeName, AgentView]:
        return {node: self._view(node) for node in self.desired}

    def _view(self, node: NodeName) -> AgentView:
        if self.silent is not None:
            return AgentView(failure=self.silent)
        return an_agent_view(node, *(self._report(source) for source in self.held[node].values()))

    def _report(self, source: ModelSource) -> ModelReport:
        if source.uri != self.no_room_for:
            return a_report(source)
        full = Failure("InsufficientStorage", "there is no room")
        return a_report(source, Phase.PENDING, failure=full, needed_bytes=1, lacking_bytes=1)

    def close(self, *, stop_agents: bool) -> None: ...


@dataclass
class Cluster:
    """A coordinator over a development API server; `admin` is the person, `recorded` the coordinator's own client."""

    admin: HttpKube
    recorded: RecordingKube
    agents: Agents
    admission: Admission
    identity: WebhookIdentity
    asked_with: dict[str, SourceOptions] = field(default_factory=dict)

    def create(self, resource: ResourceType, built: Builder, namespace: str | None = None) -> None:
        self.admin.create(resource, as_sent(built), namespace=namespace)

    def find(self, resource: ResourceType, name: str, namespace: str | None = None) -> Object | None:
        try:
            return self.admin.get(resource, name, namespace=namespace)
        except NotFound:
            return None

    def ready(self, resource: ResourceType, name: str, namespace: str | None = None) -> bool:
        status = (self.find(resource, name, namespace) or {}).get("status", {})
        return any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", ()))

    def is_gone(self, resource: ResourceType, name: str, namespace: str | None = None) -> bool:
        return self.find(resource, name, namespace) is None

    def is_owned(self, resource: ResourceType, name: str, namespace: str | None = None) -> bool:
        return bool((self.find(resource, name, namespace) or {"metadata": {}})["metadata"].get("ownerReferences"))

    def was_said(self, name: str, reason: str, times: int) -> bool:
        """Whether the Events about an object say `reason` that often."""
        found, _ = self.admin.list(EVENTS)
        about = [event for event in found if event["involvedObject"]["name"] == name and event["reason"] == reason]
        return sum(int(event["count"]) for event in about) == times

    def resolve(self, source: ModelSource, options: SourceOptions, *, pinned_revision: str | None = None) -> Resolved:
        self.asked_with[source.uri] = options
        resolved = a_resolution(source).resolved
        assert resolved is not None
        return resolved


def read_credentials(kube: RecordingKube, kind: str, name: str) -> Object | None:
    try:
        return kube.get(SECRETS if kind == "Secret" else SERVICE_ACCOUNTS, name, namespace=JOBS)
    except NotFound:
        return None


@contextmanager
def running_coordinator(folder: Path, eviction: Policy | None = None) -> Iterator[Cluster]:
    with ExitStack() as stack:
        server = stack.enter_context(ApiServer([*crds.load(), *consumer_crds()]))
        write_kubeconfig(folder / "kubeconfig", server.url)
        config = load_config(str(folder / "kubeconfig"))
        admin, client = HttpKube(config), HttpKube(config)
        stack.callback(admin.close)
        kube = RecordingKube(client)
        for name in (HOME, JOBS, TEAM, KSERVE):
            admin.create(NAMESPACES, {"metadata": {"name": name}})

        recorder = Recorder(kube)
        leader = Leader(kube, "coordinator-1", HOME)
        informers = Informers.over(
            kube,
            changed=lambda: controller.wake(),
            poisoned=lambda *poison: controller.poisoned(*poison),
            read_pod=partial(read_pod, home=HOME) if eviction is not None else None,
        )
        identity = WebhookIdentity(kube, HOME, TlsContexts(folder / "none"))
        cluster = Cluster(admin, kube, Agents(), Admission(informers, kube), identity)
        resolver = Resolver(cluster.resolve, workers=1)
        stack.callback(resolver.close, 5.0)
        controller = Controller(
            informers,
            kube,
            cluster.agents,
            resolver,
            recorder,
            Metrics("test"),
            leading=lambda: leader.leading,
            load_options=partial(
                load_options, read=partial(read_credentials, kube), namespace=JOBS, own=SourceOptions({})
            ),
            progress_interval_s=0.05,
            eviction=eviction,
            home=HOME,
            kserve=ConfigReader(kube, KSERVE),
        )
        stop = threading.Event()
        loop = threading.Thread(target=controller.run, args=(stop,), kwargs={"tick_s": 0.05})

        informers.start()
        stack.callback(informers.stop, 5.0)
        stack.callback(client.close)  # ends the watches under way
        stack.callback(recorder.close)
        leader.start()
        stack.callback(leader.release)
        loop.start()
        stack.callback(loop.join)
        stack.callback(stop.set)
        yield cluster


def a_life(cluster: Cluster) -> None:
    """Everything a coordinator meets: caches of both kinds, credentials, silent agents, lost nodes, deletion."""
    admin = cluster.admin
    for name, content in {"storage-config": {"s": '{"type": "s3"}'}, "token": {"HF_TOKEN": "hf_x"}}.items():
        admin.create(SECRETS, {"metadata": {"name": name}, "stringData": content}, namespace=JOBS)
    admin.create(SERVICE_ACCOUNTS, {"metadata": {"name": "reader"}, "secrets": [{"name": "token"}]}, namespace=JOBS)
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


def soon(fact: Callable[[], object]) -> None:
    eventually(fact, timeout_s=20.0, every_s=0.02)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> RecordingKube:
    with running_coordinator(tmp_path_factory.mktemp("rbac")) as cluster:
        a_life(cluster)
        reviews(cluster)
        a_certificate(cluster)
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
