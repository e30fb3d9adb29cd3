"""k8s/: every object is valid where it goes, the pieces name each other rightly, nothing may do more than it needs."""

from __future__ import annotations

import argparse
import json
import shutil
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from actors.agent.settings import AgentSettings
from coordinator.api import crds
from coordinator.api.resources import RESOURCES, Resource
from coordinator.cli import ray_node, settings
from coordinator.control.admission import path_of
from coordinator.control.webhook_identity import CONFIGURATIONS, SERVICE
from coordinator.fleet.interface import NODE_LABEL
from coordinator.kube.node_selector import compile_selector
from coordinator.plan.eviction import Policy
from coordinator.plan.services import INFERENCE_SERVICES
from coordinator.plan.snapshot import CACHES, NAMESPACE_CACHES
from tests.kit.crd_tables import read_table
from tests.kit.manifests import (
    K8S,
    KUSTOMIZE,
    SAMPLES,
    Manifest,
    containers,
    environment,
    kustomize,
    matches,
    pick,
    pod_templates,
    read,
    resources,
)
from tests.kit.openapi import problems, schema_of

KUBERAY = read_table("rayclusters")
KUBERNETES = ("1.27", "1.34")
KINDS = {resource.KIND: resource for resource in RESOURCES}
BASE = resources(K8S / "base")

needs_kubectl = pytest.mark.skipif(not KUSTOMIZE[0], reason="neither kubectl nor kustomize is installed")


def identity(manifest: Manifest) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def check(manifest: Manifest) -> None:
    """Raises for anything Kubernetes, old or new, or our CRDs would refuse or drop."""
    resource = KINDS.get(manifest["kind"])
    if manifest["kind"] == "InferenceService":  # KServe's, of which only what names the model matters here
        assert manifest["apiVersion"] == INFERENCE_SERVICES.api_version
        assert manifest["spec"]["predictor"]["model"]["storageUri"]
    elif resource is None:
        for release in KUBERNETES:
            kubernetes_validate.validate(manifest, release, strict=True)
    else:
        crd = next(each for each in crds.load() if each["spec"]["names"]["kind"] == manifest["kind"])
        assert problems(manifest, schema_of(crd)) == []
        assert ("namespace" in manifest["metadata"]) == resource.NAMESPACED
        resource.model_validate(manifest)


@pytest.mark.slow
@pytest.mark.parametrize("manifest", [m for m in BASE if m["kind"] != "RayCluster"], ids=identity)
def test_kubernetes_accepts_the_base(manifest: Manifest) -> None:
    check(manifest)


def check_ray_cluster(cluster: Manifest) -> None:
    """Raises for anything KubeRay would refuse or drop, and Kubernetes in the pod templates."""
    assert problems(cluster, schema_of(KUBERAY)) == []
    for _, template in pod_templates([cluster]):
        metadata = {"name": "pod", **template.get("metadata", {})}
        check({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})


@pytest.mark.slow
def test_kuberay_accepts_the_ray_cluster() -> None:
    cluster = pick(BASE, "RayCluster")
    check_ray_cluster(cluster)
    cluster = deepcopy(cluster)
    cluster["spec"]["headGroupSpec"]["tolerance"] = "a word that KubeRay does not know"
    assert problems(cluster, schema_of(KUBERAY)) != []


@pytest.mark.slow
@needs_kubectl
def test_the_overlay_for_tls_mounts_what_it_names_to_the_agents_and_nobody_else() -> None:
    templates = dict(pod_templates(kustomize(K8S / "overlays" / "peer-tls")))
    (agent,) = templates["agent"]["spec"]["containers"]
    variables = {name: value for name, value in environment(agent).items() if isinstance(value, str)}
    files = AgentSettings.from_env(variables).peer_tls
    assert files is not None
    mounts = {Path(mount["mountPath"]): mount["name"] for mount in agent["volumeMounts"] if "subPath" not in mount}
    assert {mounts[path.parent] for path in (files.certificate, files.key, files.authority)} == {"peer-tls"}
    secrets = [volume["secret"]["secretName"] for volume in templates["agent"]["spec"]["volumes"] if "secret" in volume]
    assert secrets == ["localmodel", "localmodel-peers"]
    others = dict(pod_templates(kustomize(K8S / "base")))
    assert {name: templates[name] == others[name] for name in others} == {
        "coordinator": True,
        "ray-head": True,
        "agent": False,
    }


@pytest.mark.slow
@needs_kubectl
def test_kustomize_fills_in_images_and_changes_nothing_else() -> None:
    rendered = kustomize(K8S / "base")
    assert sorted(map(identity, rendered)) == sorted(map(identity, BASE))
    release = version("localmodel")
    names = {"localmodel": f"ghcr.io/localmodel/localmodel:{release}"}
    names["localmodel-ray"] = f"ghcr.io/localmodel/localmodel-ray:{release}"
    before, after = dict(pod_templates(BASE)), dict(pod_templates(rendered))
    for name, template in after.items():
        images = [names[container["image"]] for container in containers(before[name])]
        assert [container["image"] for container in containers(template)] == images


@pytest.mark.slow
@needs_kubectl
def test_the_eviction_component_adds_its_role_and_its_flags_to_the_base(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    overlay = tmp_path / "k8s" / "overlay"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text("resources: [../base]\ncomponents: [../components/eviction]\n")
    plain, rendered = kustomize(K8S / "base"), kustomize(overlay)
    added = {identity(m) for m in rendered} - {identity(m) for m in plain}
    assert added == {f"{kind}/localmodel-coordinator-eviction" for kind in ("ClusterRole", "ClusterRoleBinding")}
    for manifest in rendered:
        if identity(manifest) in added:
            check(manifest)
    (process, *_) = pick(rendered, "Deployment")["spec"]["template"]["spec"]["containers"]
    parsed = settings.parse(process["args"][1:], {"POD_NAMESPACE": "localmodel"})
    assert (process["args"][0], parsed.eviction) == ("run", Policy(settings.EVICTION_IDLE_S))


@pytest.mark.slow
@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_a_sample_says_what_it_shows_and_is_valid(path: Path) -> None:
    assert path.read_text().startswith("# "), "opens with what it shows"
    for manifest in read(path):
        check(manifest)


def test_samples_can_be_applied_together() -> None:
    samples = read(*SAMPLES)
    groups = {m["metadata"]["name"] for m in samples if m["kind"] == "LocalModelNodeGroup"}
    caches = [m for m in samples if m["kind"] in ("LocalModelCache", "LocalModelNamespaceCache")]
    for cache in caches:
        assert set(cache["spec"]["nodeGroups"]) <= groups, cache["metadata"]["name"]
    uris = [cache["spec"]["sourceModelUri"] for cache in caches]
    assert len(uris) == len(set(uris)), "two caches of one URI share a folder"
    assert {uri.partition(":")[0] for uri in uris} == {"hf", "s3", "https"}


def test_credentials_of_samples_are_where_the_coordinator_may_read_them() -> None:
    samples = read(*SAMPLES)
    jobs = settings.Settings().job_namespace
    kept = {(m["kind"], m["metadata"]["name"]) for m in samples if m["metadata"].get("namespace") == jobs}
    for cache in (m["spec"] for m in samples if m["kind"] == "LocalModelCache"):
        if "serviceAccountName" in cache:
            assert ("ServiceAccount", cache["serviceAccountName"]) in kept
        if "storage" in cache:
            (secret,) = [m for m in samples if m["kind"] == "Secret" and m["metadata"]["name"] == "storage-config"]
            assert cache["storage"]["key"] in secret["stringData"]
            assert ("Secret", "storage-config") in kept


# How the pieces are wired.


def coordinator() -> Manifest:
    return dict(pod_templates(BASE))["coordinator"]


def agent() -> Manifest:
    return dict(pod_templates(BASE))["agent"]


def container(template: Manifest, name: str) -> Manifest:
    (found,) = [each for each in containers(template) if each["name"] == name]
    return found


def test_the_coordinator_is_started_with_flags_it_has_on_the_ports_it_declares() -> None:
    process = container(coordinator(), "coordinator")
    command, *flags = process["args"]
    parsed = settings.parse(flags, {"POD_NAMESPACE": "localmodel", "RAY_ADDRESS": "head:6379"})
    ports = {port["name"]: f":{port['containerPort']}" for port in process["ports"]}
    assert command == "run"
    assert parsed.leader_elect
    assert (parsed.metrics_addr, parsed.health_probe_addr) == (ports["metrics"], ports["probes"])
    assert f":{parsed.webhook_port}" == ports["webhook-server"]
    assert (parsed.namespace, parsed.ray_address) == ("localmodel", "head:6379")
    for probe, path in {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}.items():
        assert process[probe]["httpGet"] == {"path": path, "port": "probes"}
    for name, port in (("localmodel-metrics", "metrics"), (SERVICE, "webhook-server")):
        service = pick(BASE, "Service", name)["spec"]
        assert service["selector"].items() <= coordinator()["metadata"]["labels"].items()
        assert [each["targetPort"] for each in service["ports"]] == [port]


def test_the_webhooks_point_to_paths_that_are_served_and_let_go_what_is_on_its_way_out() -> None:
    configuration = pick(BASE, "ValidatingWebhookConfiguration")
    assert configuration["metadata"]["name"] in CONFIGURATIONS
    asked = set()
    for webhook in configuration["webhooks"]:
        assert webhook["clientConfig"]["service"].items() >= {"namespace": "localmodel", "name": SERVICE}.items()
        (rule,) = webhook["rules"]
        (plural,) = rule["resources"]
        resource = CACHES if plural == CACHES.plural else NAMESPACE_CACHES
        assert webhook["clientConfig"]["service"]["path"] == path_of(resource)
        assert (rule["apiGroups"], rule["apiVersions"]) == ([resource.group], [resource.version])
        assert webhook["admissionReviewVersions"] == ["v1", "v1beta1"]
        if "UPDATE" in rule["operations"]:
            assert "deletionTimestamp" in webhook["matchConditions"][0]["expression"]
        if plural == NAMESPACE_CACHES.plural and "DELETE" in rule["operations"]:
            assert webhook["failurePolicy"] == "Ignore"
        asked |= {(plural, operation) for operation in rule["operations"]}
    both = (CACHES.plural, NAMESPACE_CACHES.plural)
    assert asked == {(plural, operation) for plural in both for operation in ("CREATE", "UPDATE", "DELETE")}


def test_driver_and_its_ray_node_share_processes_session_folder_store_and_cluster() -> None:
    driver, ray_node = container(coordinator(), "coordinator"), container(coordinator(), "ray")
    assert coordinator()["spec"]["shareProcessNamespace"] is True
    for path in ("/tmp", "/dev/shm"):
        shared = [[m["name"] for m in each["volumeMounts"] if m["mountPath"] == path] for each in (driver, ray_node)]
        assert shared[0] == shared[1] != []
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        assert environment(driver)[name] == environment(ray_node)[name]


@pytest.mark.parametrize(
    ("role", "name"), [("coordinator", "coordinator"), ("coordinator", "ray"), ("agent", "ray-worker")]
)
def test_everything_of_ours_joins_the_ray_cluster_of_the_base(role: str, name: str) -> None:
    cluster, given = pick(BASE, "RayCluster"), environment(container(dict(pod_templates(BASE))[role], name))
    assert given["RAY_ADDRESS"] == f"{cluster['metadata']['name']}-head-svc.{cluster['metadata']['namespace']}.svc:6379"
    assert given["RAY_AUTH_MODE"] == cluster["spec"]["authOptions"]["mode"] == "token"


def test_the_ray_cluster_is_its_head_alone_so_that_no_apply_puts_a_number_of_workers_back() -> None:
    spec = pick(BASE, "RayCluster")["spec"]
    assert "workerGroupSpecs" not in spec
    assert spec["rayVersion"] == version("ray")
    assert spec["enableInTreeAutoscaling"] is False
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize(("role", "name"), [("coordinator", "ray"), ("agent", "ray-worker")])
def test_a_ray_node_is_started_with_flags_it_has_takes_no_work_and_leaves_within_its_grace(
    role: str, name: str
) -> None:
    template = dict(pod_templates(BASE))[role]
    process = container(template, name)
    parser = argparse.ArgumentParser()
    ray_node.add_arguments(parser)
    given = parser.parse_args(process["args"])
    assert {"--num-cpus=0", "--num-gpus=0", "--disable-usage-stats"} <= set(given.ray)
    assert given.drain_seconds < template["spec"]["terminationGracePeriodSeconds"]
    (port,) = process["ports"]
    assert given.health_probe_addr == f":{port['containerPort']}"
    probes = {kind: process[kind]["httpGet"] for kind in ("livenessProbe", "readinessProbe") if kind in process}
    assert probes["livenessProbe"] == {"path": "/healthz", "port": port["name"]}
    assert probes.get("readinessProbe", {"path": "/readyz", "port": port["name"]})["path"] == "/readyz"
    for probe in ("livenessProbe", "readinessProbe"):
        assert process.get(probe, {"timeoutSeconds": 5})["timeoutSeconds"] > ray_node.CONNECT_TIMEOUT_S


def test_rays_token_is_a_file_and_in_no_environment() -> None:
    """KubeRay adds RAY_AUTH_TOKEN from its Secret to every Ray container that has no variable of that name."""
    name = pick(BASE, "RayCluster")["metadata"]["name"]
    for role, template in pod_templates(BASE):
        (volume,) = [each for each in template["spec"]["volumes"] if "secret" in each]
        secret = volume["secret"]
        assert (secret["secretName"], secret["defaultMode"]) == (name, 0o400), role
        assert secret["items"] == [{"key": "auth_token", "path": "auth_token"}], role
        for each in template["spec"]["containers"]:
            given = environment(each)
            (mount,) = [m for m in each["volumeMounts"] if m["name"] == volume["name"]]
            assert given["RAY_AUTH_TOKEN_PATH"] == f"{mount['mountPath']}/auth_token", role
            assert mount["readOnly"], role
            assert given.get("RAY_AUTH_TOKEN", "") == "", role
            assert ("RAY_AUTH_TOKEN" in given) == (role == "ray-head"), "which KubeRay makes"


def test_there_is_one_agent_per_node_labelled_with_its_name_and_rolled_node_by_node() -> None:
    update = pick(BASE, "DaemonSet")["spec"]["updateStrategy"]
    assert update == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}, "and no surge: one per node"
    given = environment(container(agent(), "ray-worker"))
    assert given["NODE_NAME"]["fieldRef"]["fieldPath"] == "spec.nodeName"
    assert json.loads(given["RAY_OVERRIDE_LABELS"]) == {NODE_LABEL: "$(NODE_NAME)"}
    assert list(given).index("NODE_NAME") < list(given).index("RAY_OVERRIDE_LABELS"), "defined before it is used"
    assert agent()["spec"]["terminationGracePeriodSeconds"] >= int(given["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]) + 30


def test_agents_run_where_the_sample_group_is_and_mount_its_path() -> None:
    volume = pick(read(*SAMPLES), "LocalModelNodeGroup")["spec"]["persistentVolumeSpec"]
    selector = compile_selector(volume["nodeAffinity"]["required"])
    assert selector.matches("any", agent()["spec"]["nodeSelector"])
    assert not selector.matches("any", {})
    (host,) = [v["hostPath"] for v in agent()["spec"]["volumes"] if "hostPath" in v]
    (mount,) = [m["mountPath"] for m in container(agent(), "ray-worker")["volumeMounts"] if m["name"] == "models"]
    roots = environment(container(agent(), "ray-worker"))["LOCALMODEL_ROOTS"]
    assert volume["local"]["path"] == host["path"] == mount == roots


def test_only_pods_of_ours_reach_ray() -> None:
    policy = pick(BASE, "NetworkPolicy", "localmodel")["spec"]
    for name, template in pod_templates(BASE):
        assert matches(policy["podSelector"], template), name
    ((rule,),) = [each["from"] for each in policy["ingress"]]
    assert rule == {"podSelector": policy["podSelector"]}
    open_to_all = pick(BASE, "NetworkPolicy", "localmodel-metrics")["spec"]
    chosen = [name for name, template in pod_templates(BASE) if matches(open_to_all["podSelector"], template)]
    assert chosen == ["coordinator"]
    assert open_to_all["ingress"] == [{"ports": [{"port": 8080, "protocol": "TCP"}]}]
    webhooks = pick(BASE, "NetworkPolicy", "localmodel-webhooks")["spec"]
    assert webhooks["ingress"] == [{"ports": [{"port": 9443, "protocol": "TCP"}]}]


def test_a_pod_disruption_budget_lets_every_drain_go_on() -> None:
    budget = pick(BASE, "PodDisruptionBudget")["spec"]
    assert matches(budget["selector"], coordinator())
    assert (budget["maxUnavailable"], "minAvailable" in budget) == (1, False)


def test_replicas_of_the_coordinator_prefer_different_nodes() -> None:
    (term,) = coordinator()["spec"]["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert term["podAffinityTerm"]["topologyKey"] == "kubernetes.io/hostname"
    assert matches(term["podAffinityTerm"]["labelSelector"], coordinator())


def test_what_brings_models_comes_before_the_pods_that_use_them() -> None:
    (name,) = {m["metadata"]["name"] for m in BASE if m["kind"] == "PriorityClass"}
    assert {template["spec"]["priorityClassName"] for _, template in pod_templates(BASE)} == {name}
    assert pick(BASE, "PriorityClass")["globalDefault"] is False


def test_roles_for_people_aggregate_and_none_of_them_may_write_a_status() -> None:
    roles = {m["metadata"]["name"]: m for m in BASE if m["kind"] == "ClusterRole"}
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    aggregated = {
        name: {key.removeprefix(prefix) for key in role["metadata"].get("labels", {}) if key.startswith(prefix)}
        for name, role in roles.items()
    }
    assert aggregated["localmodel-view"] == {"view", "edit", "admin"}
    assert aggregated["localmodel-edit"] == {"edit", "admin"}
    assert aggregated["localmodel-admin"] == aggregated["localmodel-coordinator"] == set()
    for name in ("localmodel-view", "localmodel-edit", "localmodel-admin"):
        for rule in roles[name]["rules"]:
            assert not [each for each in rule["resources"] if "/" in each or each == "*"], name
            writes = set(rule["verbs"]) - {"get", "list", "watch"}
            assert not writes or name != "localmodel-view"
            assert not writes or name != "localmodel-edit" or rule["resources"] == ["localmodelnamespacecaches"]


# What the pods may do on their nodes: Pod Security "restricted", but for the model disk.


def everything_that_runs() -> list[Any]:
    return [
        pytest.param(template, each, id=f"{name}-{each['name']}")
        for name, template in pod_templates(BASE)
        for each in containers(template)
    ]


@pytest.mark.parametrize(("template", "process"), everything_that_runs())
def test_a_container_is_confined(template: Manifest, process: Manifest) -> None:
    root = process["name"] == "own-models"
    security = {**template["spec"]["securityContext"], **process["securityContext"]}
    assert security["runAsNonRoot"] is not root
    assert security["runAsUser"] == (0 if root else 1000)
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"], **({"add": ["CHOWN", "DAC_READ_SEARCH"]} if root else {})}
    assert "privileged" not in security
    assert set(process["resources"]["requests"]) == {"cpu", "memory"}
    assert "memory" in process["resources"]["limits"]


@pytest.mark.parametrize(("name", "template"), list(pod_templates(BASE)))
def test_a_pod_shares_nothing_with_its_host_but_the_model_disk(name: str, template: Manifest) -> None:
    spec = template["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    host_paths = [volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume]
    assert host_paths == (["/models"] if name == "agent" else [])
    assert spec["enableServiceLinks"] is False
    if name != "coordinator":
        assert spec["automountServiceAccountToken"] is False, "Ray runs whatever it is sent"


def test_every_object_is_in_a_namespace_of_the_base_or_in_none() -> None:
    namespaces = {m["metadata"]["name"] for m in BASE if m["kind"] == "Namespace"}
    cluster_scoped = {"Namespace", "ClusterRole", "ClusterRoleBinding", "PriorityClass"}
    cluster_scoped |= {"ValidatingWebhookConfiguration"}
    for manifest in BASE:
        if manifest["kind"] in cluster_scoped:
            assert "namespace" not in manifest["metadata"]
        else:
            assert manifest["metadata"]["namespace"] in namespaces, identity(manifest)


def kinds_of(manifests: list[Manifest]) -> set[type[Resource]]:
    return {KINDS[manifest["kind"]] for manifest in manifests if manifest["kind"] in KINDS}


def test_there_is_a_sample_of_every_kind_that_people_write() -> None:
    assert {kind.KIND for kind in kinds_of(read(*SAMPLES))} == set(KINDS) - {"LocalModelNode"}
