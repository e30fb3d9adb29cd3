"""The manifests of k8s/, as the tests of their schemas, their wiring and their RBAC read them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

K8S = Path(__file__).resolve().parents[2] / "k8s"
SAMPLES = sorted((K8S / "samples").glob("*.yaml"))
KUBECTL = shutil.which("kubectl")

Manifest = dict[str, Any]

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(*paths: Path) -> list[Manifest]:
    """Every document of `paths`."""
    return [document for path in paths for document in yaml.load_all(path.read_text(), Loader=_Loader) if document]


def kustomize(directory: Path) -> list[Manifest]:
    """What `kubectl apply -k` would send. Needs `KUBECTL`."""
    assert KUBECTL is not None
    rendered = subprocess.run([KUBECTL, "kustomize", str(directory)], capture_output=True, text=True, timeout=60)
    assert rendered.returncode == 0, rendered.stderr
    return [document for document in yaml.load_all(rendered.stdout, Loader=_Loader) if document]


def resources(directory: Path) -> list[Manifest]:
    """The documents a kustomization lists, before it changes them. Needs no `kubectl`."""
    (kustomization,) = read(directory / "kustomization.yaml")
    return read(*(directory / name for name in kustomization["resources"]))


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
