"""How a pod gets at a model, as the samples show it: with KServe, and without. What status says leads to the folder.

A kubelet follows a volume of a pod to its claim, to the PersistentVolume, and mounts the subPath in its folder. That is
done here step by step, down to the mount, and every byte that the pod reads has to be the model's: a real node agent
has put it on the node's disk. No kubelet runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from actors.manifest import ModelSource, storage_key
from actors.messages import Phase
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.builders import a_node
from coordinator.kube.interface import CLAIMS, NODES, PODS, VOLUMES, Object, ResourceType
from coordinator.plan.services import INFERENCE_SERVICES
from coordinator.plan.snapshot import CACHES, NODE_GROUPS
from tests.kit.control_plane import Cluster, soon
from tests.kit.manifests import K8S, pick, read
from tests.kit.nodes import Node, until, wants
from tests.kit.pod_mounts import digests, inside_a_pod

pytestmark = pytest.mark.slow

SAMPLE_BYTES = 1 << 20
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


def read_in_a_pod(node: Node, sample: Path, uri: str, path: str) -> dict[str, str]:
    """The files that a pod finds in its mount of this folder of the node, once its agent has fetched the model."""
    repo = uri.removeprefix("hf://")
    with Origin({repo: sample}) as origin:
        agent = node.agent()
        agent.reconcile(wants(resolve(ModelSource(uri), SourceOptions({"HF_ENDPOINT": origin.hub_endpoint}))))
        until(agent, Phase.READY, key=storage_key(uri))
    return inside_a_pod(node.host_root, path)


def delete(cluster: Cluster, resource: ResourceType, name: str, namespace: str | None = None) -> None:
    cluster.admin.delete(resource, name, namespace=namespace)
    soon(lambda: cluster.is_gone(resource, name, namespace))


def test_a_pod_without_kserve_mounts_the_folder_that_status_names(workers: Cluster, node: Node, sample: Path) -> None:
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
    uri = cache["spec"]["sourceModelUri"]
    assert status["path"] == f"/models/models/{storage_key(uri)}"
    assert mount["readOnly"]
    assert read_in_a_pod(node, sample, uri, folder(workers, "default", claim, mount["subPath"])) == digests(sample)
    delete(workers, CACHES, cache["metadata"]["name"])


def test_a_service_of_kserve_mounts_the_folder_that_status_names(workers: Cluster, node: Node, sample: Path) -> None:
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
    assert read_in_a_pod(node, sample, uri, folder(workers, "default", claim, injected)) == digests(sample)
    assert status["inferenceServices"] == [{"namespace": "default", "name": service["metadata"]["name"]}]
    delete(workers, INFERENCE_SERVICES, service["metadata"]["name"], "default")
    delete(workers, CACHES, name)
