"""Every overlay: it renders, everything in it is valid, and it changes what it is for and nothing else."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from coordinator.control.webhook_identity import SECRET, names_of
from coordinator.dev.laptop import envtest
from coordinator.dev.trial.waiting import eventually
from tests.kit.manifests import (
    K8S,
    KUBECTL,
    Manifest,
    containers,
    environment,
    kustomize,
    matches,
    pick,
    pod_templates,
)
from tests.packaging.test_manifests import KUBERAY, check, check_ray_cluster, identity, needs_kubectl

OVERLAYS = sorted(path.parent.name for path in (K8S / "overlays").glob("*/kustomization.yaml"))
ASSETS = envtest.assets()

pytestmark = [needs_kubectl, pytest.mark.slow]


@cache
def rendered_once(name: str) -> list[Manifest]:
    return kustomize(K8S / "base" if name == "base" else K8S / "overlays" / name)


def rendered(name: str) -> list[Manifest]:
    return deepcopy(rendered_once(name))


def test_the_overlays_are_those_that_are_described() -> None:
    text = (K8S / "README.md").read_text()
    assert {"gcs-ft", "kind", "kserve", "minimal", "peer-tls"} <= set(OVERLAYS)
    assert [name for name in OVERLAYS if f"`overlays/{name}/`" not in text] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", OVERLAYS)
def test_kubernetes_and_kuberay_accept_an_overlay(name: str) -> None:
    for manifest in rendered(name):
        if manifest["kind"] == "RayCluster":
            check_ray_cluster(manifest)
        elif "cert-manager.io" not in manifest["apiVersion"]:
            check(manifest)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", *OVERLAYS])
def test_the_pieces_of_an_overlay_find_each_other(name: str) -> None:
    manifests = rendered(name)
    cluster = pick(manifests, "RayCluster")
    home = cluster["metadata"]["namespace"]
    accounts = {(m["metadata"]["namespace"], m["metadata"]["name"]) for m in manifests if m["kind"] == "ServiceAccount"}
    for role, template in pod_templates(manifests):
        assert (home, template["spec"]["serviceAccountName"]) in accounts, role
        priority = template["spec"].get("priorityClassName")
        assert priority is None or pick(manifests, "PriorityClass")["metadata"]["name"] == priority
        for each in containers(template):
            address = environment(each).get("RAY_ADDRESS", f"localmodel-head-svc.{home}.svc:6379")
            assert address == f"localmodel-head-svc.{home}.svc:6379", f"{role}/{each['name']}"
    for kind in ("Deployment", "DaemonSet"):
        workload = pick(manifests, kind)
        assert matches(workload["spec"]["selector"], workload["spec"]["template"]), kind
    for binding in (m for m in manifests if m["kind"] in ("ClusterRoleBinding", "RoleBinding")):
        role = binding["roleRef"]
        pick(manifests, role["kind"], role["name"])
        for subject in binding["subjects"]:
            assert (subject["namespace"], subject["name"]) in accounts, identity(binding)
    (service,) = [m for m in manifests if m["kind"] == "Service" and m["metadata"]["name"] == "localmodel-metrics"]
    assert matches({"matchLabels": service["spec"]["selector"]}, pick(manifests, "Deployment")["spec"]["template"])


def test_kserves_names_selectors_and_namespace_are_taken_so_that_an_apply_replaces_its_own() -> None:
    manifests = rendered("kserve")
    for kind, name in {
        "Deployment": "kserve-localmodel-controller-manager",
        "DaemonSet": "kserve-localmodelnode-agent",
    }.items():
        workload = pick(manifests, kind)
        assert (workload["metadata"]["name"], workload["metadata"]["namespace"]) == (name, "kserve")
        assert workload["spec"]["selector"] == {
            "matchLabels": {"control-plane": name, "controller-tools.k8s.io": "1.0"}
        }
        assert workload["spec"]["template"]["spec"]["containers"][0]["name"] == "manager"
        assert workload["spec"]["template"]["spec"]["serviceAccountName"] == name
    assert {m["metadata"].get("namespace") for m in manifests} == {None, "kserve", "kserve-localmodel-jobs"}
    namespaces = [m["metadata"]["name"] for m in manifests if m["kind"] == "Namespace"]
    assert "kserve" not in namespaces, "deleting this overlay must not delete KServe"


def test_what_kserve_left_of_its_webhook_leads_to_the_coordinator() -> None:
    manifests = rendered("kserve")
    configuration = pick(manifests, "ValidatingWebhookConfiguration")
    assert configuration["metadata"]["name"] == "localmodelcache.serving.kserve.io"
    assert configuration["webhooks"][0]["name"] == "localmodelcache.kserve-webhook-server.validator"
    for webhook in configuration["webhooks"]:
        service = webhook["clientConfig"]["service"]
        assert (service["namespace"], service["name"]) == ("kserve", "localmodel-webhook-server-service")
    service = pick(manifests, "Service", "localmodel-webhook-server-service")
    template = pick(manifests, "Deployment")["spec"]["template"]
    assert service["metadata"]["namespace"] == "kserve"
    assert matches({"matchLabels": service["spec"]["selector"]}, template)
    assert template["metadata"]["labels"]["control-plane"] == "kserve-localmodel-controller-manager"  # KServe's Service
    (port,) = [each for each in template["spec"]["containers"][0]["ports"] if each["name"] == "webhook-server"]
    assert port["containerPort"] == 9443  # as KServe's Service names it


def test_with_cert_manager_the_certificate_and_whom_to_trust_are_its_own(tmp_path: Path) -> None:
    text = {"resources": [relative(tmp_path, "base")], "components": [relative(tmp_path, "components/cert-manager")]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(text))
    manifests = kustomize(tmp_path)
    certificate = pick(manifests, "Certificate")["spec"]
    assert certificate["secretName"] == SECRET
    assert names_of("localmodel")[0] in certificate["dnsNames"]
    issuer = pick(manifests, "Issuer")
    assert certificate["issuerRef"] == {"kind": "Issuer", "name": issuer["metadata"]["name"]}
    configuration = pick(manifests, "ValidatingWebhookConfiguration")
    name = pick(manifests, "Certificate")["metadata"]["name"]
    assert configuration["metadata"]["annotations"] == {"cert-manager.io/inject-ca-from": f"localmodel/{name}"}


def relative(folder: Path, name: str) -> str:
    """As kustomize wants it."""
    return os.path.relpath(K8S / name, folder)


def differences(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """Paths of what is not equal in two documents."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            yield from differences(one.get(key), other.get(key), f"{path}/{key}")
    elif one != other:
        yield path


def test_fault_tolerance_changes_the_ray_cluster_alone() -> None:
    before, after = ({identity(m): m for m in rendered(name)} for name in ("base", "gcs-ft"))
    assert list(differences(before, after)) == ["/RayCluster/localmodel/spec/gcsFaultToleranceOptions"]


def test_minimal_leaves_out_what_is_not_needed_and_keeps_all_that_is() -> None:
    before, after = ({identity(m): m for m in rendered(name)} for name in ("base", "minimal"))
    gone = {each.partition("/")[0] for each in before.keys() - after.keys()}
    assert gone == {"PriorityClass", "PodDisruptionBudget", "NetworkPolicy", "ClusterRole"}
    assert not after.keys() - before.keys()
    changed = {path.rsplit("/", 1)[-1] for each in after for path in differences(before[each], after[each])}
    assert changed == {"priorityClassName", "containers"}
    for (role, old), (_, new) in zip(pod_templates(rendered("base")), pod_templates(rendered("minimal")), strict=True):
        for was, now in zip(containers(old), containers(new), strict=True):
            assert {path.split("/")[1] for path in differences(was, now)} <= {"resources"}, role


def test_on_kind_images_are_those_of_the_machine_and_control_planes_hold_models() -> None:
    templates = dict(pod_templates(rendered("kind")))
    images = {each["image"].partition(":")[0] for template in templates.values() for each in containers(template)}
    assert images == {"localhost/localmodel", "localhost/localmodel-ray"}
    assert {"key": "node-role.kubernetes.io/control-plane", "operator": "Exists", "effect": "NoSchedule"} in templates[
        "agent"
    ]["spec"]["tolerations"]


# Against a real API server.


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[envtest.RealServer]:
    if ASSETS is None or KUBECTL is None:
        pytest.skip(
            "KUBEBUILDER_ASSETS does not name a folder with kube-apiserver and etcd, or kubectl is not installed"
        )
    with envtest.RealServer(ASSETS, tmp_path_factory.mktemp("server")) as running:
        for name in ("localmodel", "kserve", "kserve-localmodel-jobs"):
            assert kubectl(running, "create", "namespace", name).returncode == 0
        for files, stdin in ((["-f", str(K8S / "crds")], None), (["-f", "-"], yaml.safe_dump(KUBERAY))):
            done = kubectl(running, "apply", "--server-side", *files, stdin=stdin)
            assert done.returncode == 0, done.stderr
        eventually(lambda: kubectl(running, "get", "rayclusters,localmodelcaches", "-A").returncode == 0, timeout_s=30)
        yield running


def kubectl(server: envtest.RealServer, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    assert KUBECTL is not None
    command = [KUBECTL, "--kubeconfig", str(server.kubeconfig), *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["base", *OVERLAYS])
def test_a_real_api_server_accepts_an_overlay(server: envtest.RealServer, name: str) -> None:
    manifests = [m for m in rendered(name) if m["kind"] != "Namespace" and "cert-manager.io" not in m["apiVersion"]]
    done = kubectl(server, "apply", "--server-side", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump_all(manifests))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(manifests)


@pytest.mark.e2e
@pytest.mark.parametrize("mode", [[], ["--server-side", "--force-conflicts"]], ids=["client side", "server side"])
def test_an_apply_puts_back_nothing_that_decides_where_agents_run(server: envtest.RealServer, mode: list[str]) -> None:
    """KubeRay's own fields of the head, and a worker group that somebody added, stay as they are."""
    wanted = [pick(rendered("base"), "RayCluster"), pick(rendered("base"), "DaemonSet")]
    text = yaml.safe_dump_all(wanted)
    assert kubectl(server, "apply", *mode, "-f", "-", stdin=text).returncode == 0
    template = wanted[0]["spec"]["headGroupSpec"]["template"]
    group = {"groupName": "more", "replicas": 3, "minReplicas": 0, "maxReplicas": 9, "template": template}
    patch = yaml.safe_dump({"spec": {"workerGroupSpecs": [group]}})
    done = kubectl(
        server,
        "-n",
        "localmodel",
        "patch",
        "raycluster",
        "localmodel",
        "--type=merge",
        "--patch-file=/dev/stdin",
        stdin=patch,
    )
    assert done.returncode == 0, done.stderr
    wanted[1]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 50
    done = kubectl(server, "apply", *mode, "-f", "-", stdin=yaml.safe_dump_all(wanted))
    assert done.returncode == 0, done.stderr
    path = "jsonpath={.spec.workerGroupSpecs[0].replicas}"
    assert kubectl(server, "-n", "localmodel", "get", "raycluster", "localmodel", "-o", path).stdout == "3"
    assert kubectl(server, "-n", "localmodel", "delete", "raycluster,daemonset", "--all").returncode == 0
