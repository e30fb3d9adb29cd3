"""Caches become Ready, pods read every byte of them by claim and by path, and deletion empties the disks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from actors.manifest import storage_key
from k8s.e2e import origin
from k8s.e2e.cluster import Cluster, Failed, Manifest
from k8s.e2e.install import K8S, Images
from k8s.e2e.origin import BUCKET_URI, CONFINED, HUB_URI, NAMESPACE
from k8s.e2e.stand_in import MODEL_BYTES

GROUP = "workers"
HUB_CACHE, BUCKET_CACHE, TEAM_CACHE = "e2e-hub", "e2e-bucket", "e2e-team"
_READER = """
import hashlib, json, pathlib, sys
here = pathlib.Path("/mnt/models")
files = [p for p in here.rglob("*") if p.is_file()]
print(json.dumps({str(p.relative_to(here)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}))
"""


def group(cluster: Cluster, runs: bool) -> str:
    """The sample node group; every labelled node has a LocalModelNode whose agent is ready."""
    nodes = [node["metadata"]["name"] for node in cluster.items("nodes", "-l", "kserve/localmodel=worker")]
    if runs and not nodes:
        raise Failed(
            "no Node has the label kserve/localmodel=worker: kubectl label node NODE... kserve/localmodel=worker"
        )
    cluster.apply(*yaml.safe_load_all((K8S / "samples" / "nodegroup.yaml").read_text()))
    if not runs:
        return "accepted; no coordinator runs here"

    def ready() -> object:
        agents = {
            each["metadata"]["name"]: (each.get("status") or {}).get("agent")
            for each in cluster.items("localmodelnodes")
        }
        return all((agents.get(name) or {}).get("ready") for name in nodes) or agents

    cluster.until(f"the agents of {len(nodes)} nodes are ready", ready)
    return f"{len(nodes)} nodes"


def serve(cluster: Cluster, images: Images) -> str:
    cluster.apply(*origin.manifests(images.ray), origin.SECRET)
    cluster.kubectl("-n", NAMESPACE, "rollout", "status", "deployment/origin", "--timeout=300s", timeout_s=310)
    return f"{HUB_URI} and {BUCKET_URI}"


def hub(cluster: Cluster) -> str:
    """From a hub, on every node, which is read about once for all."""
    before = origin.bytes_read(cluster)
    annotations = {"localmodel.kserve.io/claims": NAMESPACE}
    cluster.apply(cache(HUB_CACHE, HUB_URI, annotations=annotations))
    ready(cluster, HUB_CACHE)
    times = (origin.bytes_read(cluster) - before) / MODEL_BYTES
    if times > 1.5:
        raise Failed(f"the hub was read {times:.2f} times")
    return f"the hub was read {times:.2f} times"


def bucket(cluster: Cluster) -> str:
    cluster.apply(cache(BUCKET_CACHE, BUCKET_URI, storage={"key": "e2e"}))
    ready(cluster, BUCKET_CACHE)
    return "with credentials from a Secret"


def of_namespace(cluster: Cluster) -> str:
    """The same model for one namespace: nothing is fetched again."""
    before = origin.bytes_read(cluster)
    cluster.apply(cache(TEAM_CACHE, HUB_URI, namespace=NAMESPACE))
    ready(cluster, TEAM_CACHE, NAMESPACE)
    read = origin.bytes_read(cluster) - before
    if read > MODEL_BYTES // 10:
        raise Failed(f"{read} bytes were read of a model that is there")
    return f"{read} bytes were read"


def read_by_claim(cluster: Cluster, images: Images) -> str:
    """A pod with nothing but a claim: the scheduler brings it to a node that holds the model."""
    volume = {"persistentVolumeClaim": {"claimName": f"{HUB_CACHE}-{GROUP}", "readOnly": True}}
    mount = {"subPath": f"models/{storage_key(HUB_URI)}"}
    return _read(cluster, images, "by-claim", HUB_URI, volume, mount, {})


def read_by_path(cluster: Cluster, images: Images) -> str:
    """A pod that is scheduled by the path of the node: on each node that holds it."""
    return read_everywhere(cluster, images, BUCKET_CACHE, BUCKET_URI)


def read_everywhere(cluster: Cluster, images: Images, cache: str, uri: str) -> str:
    """Every byte of the model, by the path on each node that holds it."""
    holders = [name for name, said in status(cluster, cache)["nodeStatus"].items() if said == "NodeDownloaded"]
    volume = {"hostPath": {"path": f"/models/models/{storage_key(uri)}", "type": "Directory"}}
    for number, node in enumerate(holders):
        said = _read(cluster, images, f"by-path-{number}", uri, volume, {}, {"nodeName": node})
    return f"{said}, on {len(holders)} nodes"


def delete(cluster: Cluster, images: Images) -> str:
    """A cache is deleted: its copies are gone from the disks, and those of other caches are not."""
    (holder, *_) = status(cluster, BUCKET_CACHE)["nodeStatus"]
    cluster.delete("localmodelcache", BUCKET_CACHE)
    found = json.loads(
        _output(
            cluster,
            images,
            "after-deletion",
            "import json, os; print(json.dumps(os.listdir('/mnt/models/models')))",
            {"hostPath": {"path": "/models", "type": "Directory"}},
            {},
            {"nodeName": holder},
        )
    )
    if storage_key(BUCKET_URI) in found or storage_key(HUB_URI) not in found:
        raise Failed(f"on {holder} are the folders {', '.join(found)}")
    return f"gone from {holder}, where the other model stays"


def ready(cluster: Cluster, name: str, namespace: str | None = None) -> None:
    kind = "localmodelcache" if namespace is None else "localmodelnamespacecache"
    more = [] if namespace is None else ["-n", namespace]

    def seen() -> object:
        found = cluster.condition(kind, name, "Ready", *more)
        return found.get("status") == "True" or f"{found.get('reason')}: {found.get('message')}"

    cluster.until(f"{name} is Ready", seen)


def status(cluster: Cluster, name: str) -> dict[str, Any]:
    """Of a cluster-wide cache; {} where there is none."""
    return dict((cluster.find("localmodelcache", name) or {}).get("status") or {})


def cache(
    name: str, uri: str, *, namespace: str | None = None, annotations: Mapping[str, str] | None = None, **spec: Any
) -> Manifest:
    metadata: dict[str, Any] = {"name": name, "annotations": dict(annotations or {})}
    metadata |= {} if namespace is None else {"namespace": namespace}
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "LocalModelCache" if namespace is None else "LocalModelNamespaceCache",
        "metadata": metadata,
        "spec": {"sourceModelUri": uri, "modelSize": "100Mi", "nodeGroups": [GROUP], **spec},
    }


def _read(
    cluster: Cluster,
    images: Images,
    name: str,
    uri: str,
    volume: Mapping[str, Any],
    mount: Mapping[str, Any],
    spec: Mapping[str, Any],
) -> str:
    found = json.loads(_output(cluster, images, name, _READER, volume, mount, spec))
    wanted = origin.expected(uri)
    wrong = sorted(path for path, digest in wanted.items() if found.get(path) != digest)
    if wrong:
        raise Failed(f"{len(wrong)} of {len(wanted)} files are missing or wrong: {', '.join(wrong[:3])}")
    return f"{len(wanted)} files, every byte as at the origin"


def _output(
    cluster: Cluster,
    images: Images,
    name: str,
    program: str,
    volume: Mapping[str, Any],
    mount: Mapping[str, Any],
    spec: Mapping[str, Any],
) -> str:
    """What a pod of a uid of its own prints that has the volume at /mnt/models. It is gone afterwards."""
    container = {
        "name": "reader",
        "image": images.ray,
        "command": ["python3", "-c", program],
        "securityContext": CONFINED,
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
        "volumeMounts": [{"name": "model", "mountPath": "/mnt/models", "readOnly": True, **mount}],
    }
    security = {"runAsNonRoot": True, "runAsUser": 12345, "seccompProfile": {"type": "RuntimeDefault"}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "restartPolicy": "Never",
            "securityContext": security,
            "tolerations": [{"operator": "Exists"}],
            "containers": [container],
            "volumes": [{"name": "model", **volume}],
            **spec,
        },
    }
    cluster.delete("-n", NAMESPACE, "pod", name)
    cluster.apply(pod)

    def ended() -> object:
        phase = ((cluster.find("-n", NAMESPACE, "pod", name) or {}).get("status") or {}).get("phase")
        return phase in ("Succeeded", "Failed") or phase

    try:
        cluster.until(f"pod {name} has read it", ended)
        return cluster.kubectl("-n", NAMESPACE, "logs", name)
    finally:
        cluster.delete("-n", NAMESPACE, "pod", name)
