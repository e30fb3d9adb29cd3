"""The manifests of k8s/, as the tests of their schemas, their wiring and their RBAC read them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

K8S = Path(__file__).resolve().parents[2] / "k8s"
SAMPLES = sorted((K8S / "samples").glob("*.yaml"))
_TOOLS = os.pathsep.join([os.environ.get("PATH", ""), os.environ.get("KUBEBUILDER_ASSETS", "")])
KUBECTL = shutil.which("kubectl", path=_TOOLS)
HELM = shutil.which("helm", path=_TOOLS)
_LIBRARY = (
    [sys.executable, str(Path(__file__).with_name("helm.py"))] if importlib.util.find_spec("helm_python") else None
)
HELM_COMMAND = [HELM] if HELM else _LIBRARY
"""The command that renders and checks charts: Helm, or its library; None where neither is installed."""

KUSTOMIZE = [tool, "build"] if (tool := shutil.which("kustomize", path=_TOOLS)) else [KUBECTL or "", "kustomize"]
"""The command that renders a kustomization; of no use where neither program is installed."""

KUBERNETES_OF_HELM = "1.34.0"
"""A helm that was built from source takes its Kubernetes for an ancient one unless it is told."""

Manifest = dict[str, Any]

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(*paths: Path) -> list[Manifest]:
    """Every document of `paths`."""
    return [document for path in paths for document in yaml.load_all(path.read_text(), Loader=_Loader) if document]


def kustomize(directory: Path) -> list[Manifest]:
    """What `kubectl apply -k` would send. Needs `KUSTOMIZE`."""
    rendered = subprocess.run([*KUSTOMIZE, str(directory)], capture_output=True, text=True, timeout=60)
    assert rendered.returncode == 0, rendered.stderr
    return [document for document in yaml.load_all(rendered.stdout, Loader=_Loader) if document]


def resources(directory: Path) -> list[Manifest]:
    """The documents a kustomization lists, before it changes them. Needs no `kubectl`."""
    (kustomization,) = read(directory / "kustomization.yaml")
    return read(*(directory / name for name in kustomization["resources"]))


def helm_template(
    chart: Path, *arguments: str, release: str = "localmodel", namespace: str = "localmodel"
) -> list[Manifest]:
    """What `helm install` would send. Needs `HELM_COMMAND`."""
    assert HELM_COMMAND is not None
    command = [*HELM_COMMAND, "template", release, str(chart), "--namespace", namespace, *arguments]
    command += ["--kube-version", KUBERNETES_OF_HELM] if HELM else []
    rendered = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert rendered.returncode == 0, rendered.stderr
    return [document for document in yaml.load_all(rendered.stdout, Loader=_Loader) if document]


def pick(manifests: Iterable[Manifest], kind: str, name: str | None = None) -> Manifest:
    """The one object of that kind (and name)."""
    (found,) = [m for m in manifests if m["kind"] == kind and name in (None, m["metadata"]["name"])]
    return found


def pod_templates(manifests: Iterable[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Every pod template with a name for it, KubeRay's groups included."""
    for manifest in manifests:
        spec = manifest.get("spec", {})
        match manifest["kind"]:
            case "Deployment":
                yield "coordinator", spec["template"]
            case "RayCluster":
                yield "ray-head", spec["headGroupSpec"]["template"]
            case "DaemonSet":
                yield "agent", spec["template"]


def containers(template: Manifest) -> list[Manifest]:
    return [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]


def environment(container: Mapping[str, Any]) -> dict[str, Any]:
    """Variable → literal value, or the mapping it comes from."""
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container.get("env", ())}


def matches(selector: Mapping[str, Any], template: Manifest) -> bool:
    """Whether a `matchLabels` selector chooses the pods of `template`."""
    labels = template["metadata"]["labels"]
    return all(labels.get(key) == value for key, value in selector["matchLabels"].items())
