"""KServe's own Python SDK, in an environment of its own, against a laptop cluster: create, wait, get, delete."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.dev.laptop.cluster import NODE_GROUP, SAMPLE_URI, LaptopCluster, LaptopOptions
from coordinator.kube.interface import NAMESPACES
from tests.kit.laptop import Laptop

pytestmark = pytest.mark.e2e

PACKAGES = ("kserve==0.21.0", "kubernetes==33.1.0")
"""The SDK names no upper bound, and fails in itself with the models of kubernetes 37."""

PROGRAM = """
import json, sys
from kubernetes.client import ApiException, V1ObjectMeta
from kserve import KServeClient
from kserve.models import V1alpha1LocalModelCache, V1alpha1LocalModelCacheSpec
from kserve.models import V1alpha1LocalModelNamespaceCache, V1alpha1LocalModelNamespaceCacheSpec
from kserve.models import V1alpha1LocalModelNodeGroup, V1alpha1LocalModelNodeGroupSpec

kubeconfig, uri, nodes, group = json.loads(sys.argv[1])
client = KServeClient(config_file=kubeconfig)
kind = {"api_version": "serving.kserve.io/v1alpha1"}
volume = {"accessModes": ["ReadWriteOnce"], "storageClassName": "local", "resources": {"requests": {"storage": "1Gi"}}}
more = V1alpha1LocalModelNodeGroupSpec(
    storage_limit="1Gi",
    persistent_volume_claim_spec=volume,
    persistent_volume_spec={
        "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "local": {"path": "/models"},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "no/such-label", "operator": "Exists"}]}]}},
    },
)
client.create_local_model_node_group(
    V1alpha1LocalModelNodeGroup(kind="LocalModelNodeGroup", metadata=V1ObjectMeta(name="more"), spec=more, **kind))
assert client.get_local_model_node_group("more")["spec"]["storageLimit"] == "1Gi"
client.delete_local_model_node_group("more")

spec = V1alpha1LocalModelCacheSpec(source_model_uri=uri, model_size="1Gi", node_groups=[group])
cache = V1alpha1LocalModelCache(kind="LocalModelCache", metadata=V1ObjectMeta(name="by-sdk"), spec=spec, **kind)
client.create_local_model_cache(cache)
client.wait_local_model_cache_ready("by-sdk", nodes, timeout_seconds=120, polling_interval=1)
status = client.get_local_model_cache("by-sdk")["status"]
assert status["nodeStatus"] == {node: "NodeDownloaded" for node in nodes}, status
assert (status["copies"]["total"], status["copies"]["available"]) == (len(nodes), len(nodes)), status

spec = V1alpha1LocalModelNamespaceCacheSpec(source_model_uri=uri, model_size="1Gi", node_groups=[group])
meta = V1ObjectMeta(name="by-sdk", namespace="team")
client.create_local_model_namespace_cache(
    V1alpha1LocalModelNamespaceCache(kind="LocalModelNamespaceCache", metadata=meta, spec=spec, **kind))
client.wait_local_model_namespace_cache_ready("by-sdk", "team", nodes, timeout_seconds=120, polling_interval=1)
assert client.get_local_model_namespace_cache("by-sdk", "team")["spec"]["sourceModelUri"] == uri
client.delete_local_model_namespace_cache("by-sdk", "team")
client.delete_local_model_cache("by-sdk")
print("done")
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an environment with the SDK. What we have installed ourselves lies below it, and is not installed again."""
    folder = tmp_path_factory.mktemp("sdk") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, capture_output=True)
    (own,) = folder.glob("lib/python3*/site-packages")
    (own / "below.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    pip: list[str | Path] = [folder / "bin/python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    pip += ["--no-compile", *PACKAGES]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        pytest.skip(f"KServe's SDK cannot be installed here: {done.stderr.strip()[-200:]}")
    return folder / "bin/python"


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    with LaptopCluster(tmp_path_factory.mktemp("l"), LaptopOptions(nodes=2, sample_bytes=8 << 20)) as cluster:
        yield Laptop(cluster)


@pytest.mark.timeout(900)
def test_the_sdk_creates_waits_gets_and_deletes(python: Path, laptop: Laptop) -> None:
    laptop.kube.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}})
    told = [str(laptop.cluster.kubeconfig), SAMPLE_URI, list(laptop.cluster.nodes), NODE_GROUP]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [python, "-c", PROGRAM, json.dumps(told)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["done"]), done.stderr[-3000:]
