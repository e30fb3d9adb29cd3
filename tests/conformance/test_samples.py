"""How a pod gets at a model, as the samples show it: with KServe, and without. What status says leads to the folder.

A kubelet follows a volume of a pod to its claim, to the PersistentVolume, and mounts the subPath in its folder. That is
done here step by step, and has to end where the node's agent puts the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pytest

from actors.manifest import storage_key
from coordinator.dev.trial.builders import a_node
from coordinator.kube.interface import CLAIMS, NODES, PODS, VOLUMES, Object, ResourceType
from coordinator.plan.services import INFERENCE_SERVICES
from coordinator.plan.snapshot import CACHES, NODE_GROUPS
from tests.kit.control_plane import Cluster, soon
from tests.kit.manifests import K8S, pick, read

pytestmark = pytest.mark.slow

SAMPLES = K8S / "samples"
KINDS = {"LocalModelCache": CACHES, "Pod": PODS, "LocalModelNodeGroup": NODE_GROUPS}


@pytest.fixture
def workers(cluster: Cluster) -> Iterator[Cluster]:
    """The sample's node group, and one node of it."""
    (group,) = read(SAMPLES / "nodegroup.yaml")
    cluster.admin.create(NODE_GROUPS, group)
    cluster.create(NODES, a_node("sample-node").labelled(**{"kserve/localmodel": "worker"}))
    yield cluster
    cluster.admin.delete(NODES, "sample-node")
    cluster.admin.delete(NODE_GROUPS, group["metadata"]["name"])


def applied(cluster: Cluster, *manifests: dict[str, Any]) -> None:
    for manifest in manifests:
        cluster.admin.create(KINDS[manifest["kind"]], manifest, namespace=manifest["metadata"].get("namespace"))


def until_mountable(cluster: Cluster, name: str) -> dict[str, Any]:
    """The status of a cache that is Ready and has a claim."""

    def status() -> dict[str, Any]:
        found: dict[str, Any] = dict((cluster.find(CACHES, name) or {}).get("status", {}))
        return found if found.get("claims") and found.get("path") else {}

    soon(lambda: cluster.ready(CACHES, name) and status())
    return status()


def folder(cluster: Cluster, namespace: str, claim: str, sub_path: str) -> str:
    """What a kubelet mounts: a folder of the node."""
    bound: Object = cluster.admin.get(CLAIMS, claim, namespace=namespace)
    volume = cluster.admin.get(VOLUMES, bound["spec"]["volumeName"])
    return str(PurePosixPath(volume["spec"]["local"]["path"], sub_path))


def delete(cluster: Cluster, resource: ResourceType, name: str, namespace: str | None = None) -> None:
    cluster.admin.delete(resource, name, namespace=namespace)
    soon(lambda: cluster.is_gone(resource, name, namespace))


def test_a_pod_without_kserve_mounts_the_folder_that_status_names(workers: Cluster) -> None:
    manifests = read(SAMPLES / "pod.yaml")
    cache, pod = pick(manifests, "LocalModelCache"), pick(manifests, "Pod")
    applied(workers, cache)
    status = until_mountable(workers, cache["metadata"]["name"])

    (mount,) = pod["spec"]["containers"][0]["volumeMounts"]
    (volume,) = pod["spec"]["volumes"]
    claim = volume["persistentVolumeClaim"]["claimName"]
    assert [(each["namespace"], each["name"], each["subPath"]) for each in status["claims"]] == [
        ("default", claim, mount["subPath"])
    ]
    assert folder(workers, "default", claim, mount["subPath"]) == status["path"]
    assert status["path"] == f"/models/models/{storage_key(cache['spec']['sourceModelUri'])}"
    delete(workers, CACHES, cache["metadata"]["name"])


def test_a_service_of_kserve_mounts_the_folder_that_status_names(workers: Cluster) -> None:
    (cache,), (service,) = read(SAMPLES / "hf-public.yaml"), read(SAMPLES / "inferenceservice.yaml")
    uri = cache["spec"]["sourceModelUri"]
    assert service["spec"]["predictor"]["model"]["storageUri"] == uri
    applied(workers, cache)
    name, claim = cache["metadata"]["name"], f"{cache['metadata']['name']}-{cache['spec']['nodeGroups'][0]}"
    prefix = "internal.serving.kserve.io/localmodel"  # as KServe's webhook mutates it
    annotations = {f"{prefix}-sourceuri": uri, f"{prefix}-pvc-name": claim}
    metadata = {**service["metadata"], "labels": {prefix: name}, "annotations": annotations}
    workers.admin.create(INFERENCE_SERVICES, {**service, "metadata": metadata}, namespace="default")

    status = until_mountable(workers, name)
    injected = f"models/{storage_key(uri)}"  # the subPath that KServe's webhook gives to pods
    assert folder(workers, "default", claim, injected) == status["path"]
    assert status["inferenceServices"] == [{"namespace": "default", "name": service["metadata"]["name"]}]
    delete(workers, INFERENCE_SERVICES, service["metadata"]["name"], "default")
    delete(workers, CACHES, name)
