"""The charts: what they render is what the kustomizations render, valid, and refused where a value is wrong."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from coordinator.api import crds
from coordinator.cli import settings
from coordinator.dev.laptop import envtest
from coordinator.dev.trial.waiting import eventually
from coordinator.plan.eviction import Policy
from tests.kit.manifests import (
    HELM,
    HELM_COMMAND,
    K8S,
    Manifest,
    containers,
    environment,
    helm_template,
    kustomize,
    pick,
    pod_templates,
    read,
)
from tests.packaging.test_manifests import KUBERAY, check, identity, needs_kubectl
from tests.packaging.test_overlays import kubectl

CHART, CRDS = K8S / "charts" / "localmodel", K8S / "charts" / "localmodel-crds"
CHOICES = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))
HELMS_OWN = ("app.kubernetes.io/instance", "app.kubernetes.io/managed-by", "app.kubernetes.io/version", "helm.sh/chart")
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
ASSETS = envtest.assets()

WITHOUT_A_VALUE = {"cert-manager"}
"""Components that the chart cannot choose yet: with Helm its Certificate is applied beside the chart."""

pytestmark = pytest.mark.slow
needs_helm = pytest.mark.skipif(
    HELM_COMMAND is None, reason="neither helm nor its library (helm-python-sdk) is installed"
)


def chart(*arguments: str, namespace: str = "localmodel") -> list[Manifest]:
    return helm_template(CHART, *arguments, namespace=namespace)


def comparable(manifests: list[Manifest]) -> dict[str, Manifest]:
    """By identity, without what only one of the two ways of installing adds to metadata."""
    found = {}
    for manifest in deepcopy(manifests):
        metadata = manifest["metadata"]
        labels = {key: value for key, value in metadata.pop("labels", {}).items() if key not in HELMS_OWN}
        metadata.pop("annotations", None)
        found[f"{metadata.get('namespace', '')}/{identity(manifest)}"] = {**manifest, "labels": labels}
    return found


def of_kustomize(choice: str, folder: Path) -> list[Manifest]:
    if (K8S / "overlays" / choice).is_dir():
        return kustomize(K8S / "overlays" / choice)
    if choice == "base":
        return kustomize(K8S / "base")
    overlay = folder / "k8s" / "overlays" / "test"
    subprocess.run(["cp", "-r", str(K8S), str(folder / "k8s")], check=True)
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text(f"resources: [../../base]\ncomponents: [../../components/{choice}]\n")
    return kustomize(overlay)


@needs_helm
@needs_kubectl
@pytest.mark.parametrize("choice", ["base", *CHOICES])
def test_chart_and_kustomization_render_the_same_for_the_same_choice(choice: str, tmp_path: Path) -> None:
    arguments = [] if choice == "base" else ["--values", str(CHART / "ci" / f"{choice}-values.yaml")]
    namespace = "kserve" if choice == "kserve" else "localmodel"
    ours, helms = of_kustomize(choice, tmp_path), chart(*arguments, namespace=namespace)
    wanted, found = comparable(ours), comparable(helms)
    wanted.pop("/Namespace/localmodel", None)  # `helm install --create-namespace` makes it
    assert sorted(found) == sorted(wanted)
    for name, manifest in wanted.items():
        assert found[name] == manifest, name


def test_there_are_values_for_every_overlay_and_component() -> None:
    others = {
        path.parent.name for kind in ("overlays", "components") for path in (K8S / kind).glob("*/kustomization.yaml")
    }
    assert set(CHOICES) >= others - WITHOUT_A_VALUE


@needs_helm
@pytest.mark.parametrize("choice", CHOICES)
def test_kubernetes_accepts_what_the_chart_renders(choice: str) -> None:
    for manifest in chart("--values", str(CHART / "ci" / f"{choice}-values.yaml")):
        if manifest["apiVersion"].partition("/")[0] not in ("ray.io", "monitoring.coreos.com", "cert-manager.io"):
            check(manifest)


@needs_helm
@pytest.mark.parametrize("path", [CHART, CRDS], ids=lambda path: path.name)
def test_helm_finds_nothing_to_complain_of(path: Path) -> None:
    assert HELM_COMMAND is not None
    done = subprocess.run([*HELM_COMMAND, "lint", "--strict", str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


# One value, one effect.


@needs_helm
def test_one_prefix_points_every_image_at_a_mirror() -> None:
    manifests = chart("--set", "imagePrefix=mirror.example:5000/ml/", "--set", "image.tag=9.9.9")
    images = {each["image"] for _, template in pod_templates(manifests) for each in containers(template)}
    assert images == {"mirror.example:5000/ml/localmodel:9.9.9", "mirror.example:5000/ml/localmodel-ray:9.9.9"}


@needs_helm
def test_pull_secrets_and_pull_policy_reach_every_pod() -> None:
    manifests = chart("--set", "imagePullSecrets[0].name=regcred", "--set", "image.pullPolicy=Always")
    for role, template in pod_templates(manifests):
        assert template["spec"]["imagePullSecrets"] == [{"name": "regcred"}], role
        assert {each["imagePullPolicy"] for each in containers(template)} == {"Always"}, role


@needs_helm
def test_another_release_in_another_namespace_is_wired_to_itself() -> None:
    manifests = helm_template(CHART, release="eu", namespace="models")
    assert pick(manifests, "RayCluster")["metadata"]["name"] == "eu-localmodel"
    for role, template in pod_templates(manifests):
        (token,) = [each["secret"]["secretName"] for each in template["spec"]["volumes"] if each["name"] == "ray-token"]
        assert token == "eu-localmodel", role
        for each in containers(template):
            if (address := environment(each).get("RAY_ADDRESS")) is not None:
                assert address == "eu-localmodel-head-svc.models.svc:6379"
    for manifest in manifests:
        for subject in manifest.get("subjects", ()):
            assert subject["namespace"] == "models"
            pick(manifests, "ServiceAccount", subject["name"])
        if "roleRef" in manifest:
            pick(manifests, manifest["roleRef"]["kind"], manifest["roleRef"]["name"])


@needs_helm
def test_the_coordinator_gets_flags_that_it_has() -> None:
    values = [
        "eviction.policy=dry-run",
        "eviction.idleSeconds=60",
        "jobNamespace.name=jobs",
        "coordinator.extraArgs={--tick-seconds=2}",
    ]
    (process, _) = pick(chart(*(part for each in values for part in ("--set", each))), "Deployment")["spec"][
        "template"
    ]["spec"]["containers"]
    parsed = settings.parse(process["args"][1:], {"POD_NAMESPACE": "localmodel"})
    assert parsed.eviction == Policy(60, dry_run=True)
    assert (parsed.job_namespace, parsed.tick_s) == ("jobs", 2)


@needs_helm
def test_another_folder_for_models_is_one_name_everywhere() -> None:
    template = dict(pod_templates(chart("--set", "agent.modelsPath=/mnt/nvme")))["agent"]
    assert template["spec"]["volumes"][0]["hostPath"]["path"] == "/mnt/nvme"
    for each in containers(template):
        assert {m["mountPath"] for m in each["volumeMounts"] if m["name"] == "models"} == {"/mnt/nvme"}
    assert environment(template["spec"]["containers"][0])["LOCALMODEL_ROOTS"] == "/mnt/nvme"
    assert template["spec"]["initContainers"][0]["command"][2:] == [
        "actors.disk.ownership",
        "/mnt/nvme",
        "1000",
        "1000",
    ]


@needs_helm
def test_a_priority_class_that_is_there_is_used_and_none_is_made() -> None:
    manifests = chart("--set", "priorityClass.name=system-node-critical")
    assert not [m for m in manifests if m["kind"] == "PriorityClass"]
    assert {t["spec"]["priorityClassName"] for _, t in pod_templates(manifests)} == {"system-node-critical"}


# Values that are wrong.


@pytest.mark.parametrize(
    "wrong",
    [
        {"imageprefix": "x"},
        {"coordinator": {"replicas": -1}},
        {"coordinator": {"replicas": "two"}},
        {"coordinator": {"extraArgs": ["allow-origins"]}},
        {"coordinator": {"resources": {"cpu": "1"}}},
        {"agent": {"modelsPath": "models"}},
        {"agent": {"modelsPath": "/models'); import x"}},
        {"agent": {"maxUnavailable": 0}},
        {"agent": {"replicas": 3}},
        {"eviction": {"policy": "sometimes"}},
        {"jobNamespace": {"name": "Jobs"}},
        {"image": {"pullPolicy": "Sometimes"}},
        {"priorityClass": {"value": 2000000000}},
        {"peerTLS": {"enabled": "yes"}},
        {"monitoring": {"servicemonitor": True}},
    ],
    ids=json.dumps,
)
def test_a_wrong_value_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(merged(VALUES, wrong), SCHEMA)


def merged(one: Any, other: Any) -> Any:
    if isinstance(one, dict) and isinstance(other, dict):
        return {key: merged(one.get(key), other[key]) if key in other else one[key] for key in {**one, **other}}
    return other


def test_the_defaults_are_valid_and_the_schema_knows_exactly_their_names() -> None:
    jsonschema.validate(VALUES, SCHEMA)
    schema = {key: each for key, each in SCHEMA["properties"].items() if key != "global"}
    assert names(VALUES, SCHEMA["properties"]) == names_of_schema(schema)


def names(values: dict[str, Any], schema: dict[str, Any], path: str = "") -> set[str]:
    found = set()
    for key, value in values.items():
        found.add(path + key)
        inner = schema[key].get("properties")
        if isinstance(value, dict) and inner and key != "resources":
            found |= names(value, inner, f"{path}{key}.")
    return found


def names_of_schema(schema: dict[str, Any], path: str = "") -> set[str]:
    found = set()
    for key, each in schema.items():
        found.add(path + key)
        if "properties" in each and key != "resources":
            found |= names_of_schema(each["properties"], f"{path}{key}.")
    return found


# The kinds, the documents, the versions.


@needs_helm
def test_the_chart_of_the_kinds_has_them_all_unchanged_and_keeps_them() -> None:
    rendered = {m["metadata"]["name"]: m for m in helm_template(CRDS)}
    wanted = {crd["metadata"]["name"]: crd for crd in crds.load()}
    assert rendered.keys() == wanted.keys()
    for name, crd in wanted.items():
        assert rendered[name]["spec"] == crd["spec"]
        assert rendered[name]["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    for manifest in helm_template(CRDS, "--set", "keep=false"):
        assert "helm.sh/resource-policy" not in manifest["metadata"]["annotations"]


def test_what_charts_link_to_is_there() -> None:
    for path in (K8S / "charts").glob("*/files/*"):
        assert path.is_symlink(), f"{path} would be a second source of truth"
        assert path.resolve(strict=True).is_relative_to(K8S)


def documents() -> Any:
    spec = importlib.util.spec_from_file_location("document", K8S / "charts" / "document.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readmes_are_made_from_the_values_and_every_value_is_described() -> None:
    done = subprocess.run(
        [sys.executable, str(K8S / "charts" / "document.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for path in (CHART, CRDS):
        described = list(documents().rows((path / "values.yaml").read_text()))
        assert [name for name, _, said in described if not said] == []


def test_rows_follow_comments_and_nesting() -> None:
    text = "# -- First,\n# in two lines.\na: 1\nb:\n  # -- Inner.\n  c: [x]\n# -- Whole.\nd:\n  e: 2\n"
    assert list(documents().rows(text)) == [
        ("a", "1", "First, in two lines."),
        ("b.c", '["x"]', "Inner."),
        ("d", '{"e": 2}', "Whole."),
    ]


def test_charts_images_and_package_have_one_version() -> None:
    (release,) = re.findall(r'^version = "(.+)"$', (K8S.parent / "pyproject.toml").read_text(), re.MULTILINE)
    for path in (CHART, CRDS):
        (about,) = read(path / "Chart.yaml")
        assert (about["version"], about["appVersion"]) == (release, release), path.name
    assert f":{release}\n" in (CHART / "Chart.yaml").read_text(), "Artifact Hub's list of images"
    (base,) = read(K8S / "base" / "kustomization.yaml")
    assert {image["newTag"] for image in base["images"]} == {release}
    cluster = pick(read(K8S / "base" / "raycluster.yaml"), "RayCluster")
    assert f"rayVersion: {cluster['spec']['rayVersion']}" in (CHART / "templates" / "raycluster.yaml").read_text()


# Against a real API server.


@pytest.fixture
def server(tmp_path: Path) -> Iterator[envtest.RealServer]:
    if ASSETS is None:
        pytest.skip("KUBEBUILDER_ASSETS does not name a folder with kube-apiserver and etcd")
    with envtest.RealServer(ASSETS, tmp_path / "server") as running:
        done = kubectl(running, "apply", "--server-side", "-f", "-", stdin=yaml.safe_dump(KUBERAY))
        assert done.returncode == 0, done.stderr
        eventually(lambda: kubectl(running, "get", "rayclusters", "-A").returncode == 0, timeout_s=30)
        yield running


@pytest.mark.skipif(HELM is None, reason="helm is not installed")
@needs_kubectl
@pytest.mark.e2e
def test_install_upgrade_rollback_and_uninstall_keep_the_caches(server: envtest.RealServer, tmp_path: Path) -> None:
    def helm(*arguments: str) -> None:
        assert HELM is not None
        command = [HELM, "--kubeconfig", str(server.kubeconfig), "--namespace", "localmodel", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr

    def get(*arguments: str) -> str:
        done = kubectl(server, "get", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    older = tmp_path / "older"
    subprocess.run(["cp", "-rL", str(CRDS), str(older)], check=True)
    short = older / "files" / "localmodelcaches.yaml"
    short.write_text(short.read_text().replace("- lmc\n", "- old\n"))
    helm("install", "localmodel-crds", str(older), "--create-namespace")
    quiet = "--set=webhook.enabled=false"  # no pod runs here, so nobody would answer it
    helm("install", "localmodel", str(CHART), quiet)
    eventually(lambda: kubectl(server, "get", "localmodelcaches").returncode == 0, timeout_s=30)
    for sample in ("nodegroup", "hf-public"):
        done = kubectl(server, "apply", "-f", str(K8S / "samples" / f"{sample}.yaml"))
        assert done.returncode == 0, done.stderr
    caches = get("localmodelcaches", "-o", "jsonpath={.items[*].metadata.uid}")
    assert caches

    helm("upgrade", "localmodel-crds", str(CRDS))
    names_now = "jsonpath={.spec.names.shortNames}"
    assert get("crd", "localmodelcaches.serving.kserve.io", "-o", names_now) == '["lmc"]', "kinds are upgraded"

    group = {
        "groupName": "more",
        "replicas": 3,
        "minReplicas": 0,
        "maxReplicas": 9,
        "template": {"spec": {"containers": []}},
    }
    patch = [
        "patch",
        "raycluster",
        "localmodel",
        "--type=merge",
        "-p",
        json.dumps({"spec": {"workerGroupSpecs": [group]}}),
    ]
    assert kubectl(server, "-n", "localmodel", *patch).returncode == 0
    helm(
        "upgrade",
        "localmodel",
        str(CHART),
        "--set",
        "coordinator.replicas=2",
        "--set",
        "head.resources.limits.memory=3Gi",
    )
    assert get("-n", "localmodel", "deployment", "-o", "jsonpath={.items[*].spec.replicas}") == "2"
    number = ("-n", "localmodel", "raycluster", "localmodel", "-o", "jsonpath={.spec.workerGroupSpecs[0].replicas}")
    assert get(*number) == "3", "what somebody else set stays"
    helm("rollback", "localmodel", "1")
    assert get("-n", "localmodel", "deployment", "-o", "jsonpath={.items[*].spec.replicas}") == "1"
    assert get(*number) == "3"

    helm("uninstall", "localmodel")
    helm("uninstall", "localmodel-crds")
    assert get("-n", "localmodel", "deployment,daemonset,raycluster", "-o", "name") == ""
    assert get("localmodelcaches", "-o", "jsonpath={.items[*].metadata.uid}") == caches
    assert get("namespace", "kserve-localmodel-jobs", "-o", "name"), "with the credentials in it"
