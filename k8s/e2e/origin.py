"""The origin of the models, in a namespace of its own: `stand_in`, from a ConfigMap, run by the agents' image."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coordinator.dev.origin.sample import REPO, write_sample
from k8s.e2e.cluster import Cluster, Manifest
from k8s.e2e.stand_in import (
    BUCKET_PORT,
    HUB_PORT,
    MODEL_BYTES,
    OBJECTS,
    SLOW_FILE,
    SLOW_PORT,
    slow_content,
)

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "localmodel-e2e"
HOST = f"origin.{NAMESPACE}.svc"
HUB_URI, BUCKET_URI = f"hf://{REPO}", "s3://bucket/ranker"
SLOW_URI = f"http://{HOST}:{SLOW_PORT}/files/{SLOW_FILE}"
_DEV = ROOT / "coordinator" / "dev"
_SOURCES = {
    "dev/__init__.py": _DEV / "__init__.py",
    "dev/laptop/__init__.py": _DEV / "laptop" / "__init__.py",
    "dev/laptop/runfolder.py": _DEV / "laptop" / "runfolder.py",
    **{f"dev/origin/{path.name}": path for path in sorted((_DEV / "origin").glob("*.py"))},
    "bucket.py": ROOT / "tests" / "kit" / "s3_server.py",
    "main.py": Path(__file__).with_name("stand_in.py"),
}


def expected(uri: str) -> Mapping[str, str]:
    """The SHA-256 of every file of the model, by its path."""
    if uri == BUCKET_URI:
        return {key.removeprefix("ranker/"): hashlib.sha256(content).hexdigest() for key, content in OBJECTS.items()}
    if uri == SLOW_URI:
        return {SLOW_FILE: hashlib.sha256(slow_content()).hexdigest()}
    with tempfile.TemporaryDirectory() as folder:
        sample = Path(folder) / "sample"
        write_sample(sample, MODEL_BYTES)
        files = [path for path in sample.rglob("*") if path.is_file()]
        return {str(path.relative_to(sample)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def bytes_read(cluster: Cluster, port: int = HUB_PORT) -> int:
    """Payload that the hub, or the server at another port, has sent so far, as it counts itself."""
    service = f"/api/v1/namespaces/{NAMESPACE}/services/origin:{port}/proxy/_stats"
    return int(json.loads(cluster.kubectl("get", "--raw", service))["bytes"])


def manifests(image: str) -> list[Manifest]:
    labels = {"app": "origin"}
    keys = {path: path.replace("/", ".") for path in _SOURCES}
    container: dict[str, Any] = {
        "name": "origin",
        "image": image,
        "command": ["python3", "/stand-in/main.py"],
        "env": [{"name": "TMPDIR", "value": "/tmp"}],
        "ports": [{"containerPort": port} for port in (HUB_PORT, BUCKET_PORT, SLOW_PORT)],
        "readinessProbe": {"httpGet": {"path": "/_stats", "port": HUB_PORT}, "periodSeconds": 2},
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": CONFINED,
        "volumeMounts": [{"name": "sources", "mountPath": "/stand-in"}, {"name": "tmp", "mountPath": "/tmp"}],
    }
    items = [{"key": key, "path": path} for path, key in keys.items()]
    template = {
        "metadata": {"labels": labels},
        "spec": {
            "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
            "volumes": [
                {"name": "sources", "configMap": {"name": "origin", "items": items}},
                {"name": "tmp", "emptyDir": {}},
            ],
        },
    }
    ports = [{"name": f"p{port}", "port": port} for port in (HUB_PORT, BUCKET_PORT, SLOW_PORT)]
    here = {"name": "origin", "namespace": NAMESPACE}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": here,
            "data": {keys[path]: source.read_text() for path, source in _SOURCES.items()},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": here,
            "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template},
        },
        {"apiVersion": "v1", "kind": "Service", "metadata": here, "spec": {"selector": labels, "ports": ports}},
    ]


CONFINED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
SECRET: Manifest = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "storage-config", "namespace": "kserve-localmodel-jobs"},
    "stringData": {
        "e2e": json.dumps(
            {
                "type": "s3",
                "endpoint_url": f"http://{HOST}:{BUCKET_PORT}",
                "access_key_id": "key",
                "secret_access_key": "secret",
                "region": "us-east-1",
            }
        )
    },
}
