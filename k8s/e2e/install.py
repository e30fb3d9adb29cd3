"""Installing by chart and by kustomize, upgrading, going back, and leaving nothing behind.

On a cluster without a kubelet only the objects are looked at: no pod runs, so nothing is waited for that one would do.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from k8s.e2e.cluster import Cluster, Failed
from k8s.e2e.origin import HOST, ROOT
from k8s.e2e.stand_in import HUB_PORT

K8S = ROOT / "k8s"
HOME = "localmodel"
CHART, CRDS = str(K8S / "charts" / "localmodel"), str(K8S / "charts" / "localmodel-crds")
KINDS = ("localmodelcaches", "localmodelnamespacecaches", "localmodelnodegroups", "localmodelnodes")
OBJECTS = ("deployment/localmodel-coordinator", "daemonset/localmodel-agent", "raycluster/localmodel")
ALLOWED = f"--allow-origins={HOST}"
HUB = f"http://{HOST}:{HUB_PORT}"
AGENTS = "daemonset/localmodel-agent"


@dataclass(frozen=True, slots=True)
class Images:
    """Where the images are: `prefix` + `localmodel` and `localmodel-ray`, both with the `tag`."""

    prefix: str
    tag: str

    @property
    def ray(self) -> str:
        return f"{self.prefix}localmodel-ray:{self.tag}"


def by_chart(cluster: Cluster, images: Images, runs: bool) -> str:
    """Installed, upgraded, rolled back and uninstalled; the kinds stay throughout."""
    try:
        cluster.helm("upgrade", "--install", "localmodel-crds", CRDS, "--namespace", HOME, "--create-namespace")
        _established(cluster)
        chosen = [f"imagePrefix={images.prefix}", f"image.tag={images.tag}", f"coordinator.extraArgs[0]={ALLOWED}"]
        chosen += ["coordinator.env[0].name=HF_ENDPOINT", f"coordinator.env[0].value={HUB}"]
        chosen += [] if runs else ["webhook.enabled=false"]
        values = [part for each in chosen for part in ("--set", each)]
        cluster.helm("install", "localmodel", CHART, "--namespace", HOME, *values)
        cluster.kubectl("label", "--overwrite", "namespace", HOME, "pod-security.kubernetes.io/enforce=privileged")
        _installed(cluster, runs)
        cluster.helm("upgrade", "localmodel", CHART, "--namespace", HOME, *values, "--set", "coordinator.replicas=2")
        _replicas(cluster, 2, runs)
        cluster.helm("rollback", "localmodel", "1", "--namespace", HOME)
        _replicas(cluster, 1, runs)
        cluster.helm("uninstall", "localmodel", "--namespace", HOME)
        gone(cluster)
        _established(cluster)
    finally:
        for release in ("localmodel", "localmodel-crds"):
            cluster.helm("uninstall", release, "--namespace", HOME, "--ignore-not-found")
    return "installed, upgraded, rolled back, uninstalled; the kinds stayed"


def by_kustomize(cluster: Cluster, images: Images, runs: bool) -> str:
    """Installed, with the origin allowed, and left there for the steps that follow."""
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(K8S / "crds"))
    _established(cluster)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kustomization.yaml").write_text(overlay(images, Path(folder)))
        cluster.kubectl("apply", "--server-side", "--force-conflicts", "-k", folder)
    _installed(cluster, runs)
    return "every pod is ready" if runs else "objects only: no pod runs here"


def uninstall(cluster: Cluster, runs: bool) -> str:
    """As docs/install.md has it: caches, groups, then what runs; no LocalModelNode and no label is left."""
    for kind in ("localmodelcaches", "localmodelnodegroups"):
        cluster.delete(kind, "--all")
    cluster.delete("localmodelnamespacecaches", "--all", "--all-namespaces")
    cluster.delete("-k", str(K8S / "base"), wait=runs)
    cluster.delete("localmodelnodes", "--all")
    gone(cluster)
    left = [each["metadata"]["name"] for each in cluster.items("localmodelnodes")]
    if left:
        raise Failed(f"LocalModelNodes are left: {', '.join(left)}")
    marked = [
        node["metadata"]["name"]
        for node in cluster.items("nodes")
        if any("caches.localmodel.kserve.io/" in label for label in node["metadata"].get("labels") or {})
    ]
    if marked:
        raise Failed(f"Nodes still say which models they hold: {', '.join(marked)}")
    return "nothing is left but the kinds"


def gone(cluster: Cluster) -> None:
    def left() -> object:
        found = [name for name in OBJECTS if cluster.find("-n", HOME, name) is not None]
        return found or True

    cluster.until("nothing of it runs", left)


def rolled_out(cluster: Cluster, what: str) -> None:
    cluster.kubectl("-n", HOME, "rollout", "status", what, "--timeout=600s", timeout_s=610)


def _established(cluster: Cluster) -> None:
    """The API server serves the kinds. A new definition has null for conditions, at which `kubectl wait` ends."""

    def served() -> object:
        definitions = {kind: cluster.condition("crd", f"{kind}.serving.kserve.io", "Established") for kind in KINDS}
        return [kind for kind, found in definitions.items() if found.get("status") != "True"] or True

    cluster.until("the kinds are served", served, within_s=60.0)


def _installed(cluster: Cluster, runs: bool) -> None:
    missing = [name for name in OBJECTS if cluster.find("-n", HOME, name) is None]
    if missing:
        raise Failed(f"not there: {', '.join(missing)}")
    if runs:
        rolled_out(cluster, "deployment/localmodel-coordinator")
        rolled_out(cluster, AGENTS)


def _replicas(cluster: Cluster, wanted: int, runs: bool) -> None:
    found = (cluster.find("-n", HOME, OBJECTS[0]) or {}).get("spec", {}).get("replicas")
    if found != wanted:
        raise Failed(f"the Deployment has {found} replicas, not {wanted}")
    if runs:
        rolled_out(cluster, OBJECTS[0])


def overlay(images: Images, folder: Path) -> str:
    """JSON is YAML."""
    container = "/spec/template/spec/containers/0"
    patch = [
        {"op": "add", "path": f"{container}/args/-", "value": ALLOWED},
        {"op": "add", "path": f"{container}/env/-", "value": {"name": "HF_ENDPOINT", "value": HUB}},
    ]
    named: list[Mapping[str, str]] = [
        {"name": f"ghcr.io/localmodel/{name}", "newName": f"{images.prefix}{name}", "newTag": images.tag}
        for name in ("localmodel", "localmodel-ray")
    ]
    return json.dumps(
        {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [os.path.relpath(K8S / "base", folder.resolve())],
            "components": [os.path.relpath(K8S / "components" / "placement", folder.resolve())],
            "images": named,
            "patches": [
                {"target": {"kind": "Deployment", "name": "localmodel-coordinator"}, "patch": json.dumps(patch)}
            ],
        }
    )
