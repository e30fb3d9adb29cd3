"""What KServe's own specs say and look at, in one line each: groups with whole volumes, services, what was made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from coordinator.api import crds
from coordinator.dev.trial.builders import CacheBuilder, GroupBuilder, ServiceBuilder, a_group
from coordinator.kube.interface import CLAIMS, CONFIG_MAPS, VOLUMES, NotFound, Object, ResourceType
from coordinator.plan.services import INFERENCE_SERVICES, LLM_INFERENCE_SERVICES
from coordinator.plan.snapshot import CACHES, NAMESPACE_CACHES, NODE_GROUPS
from tests.kit.control_plane import JOBS, KSERVE, Cluster, soon
from tests.kit.kserve import consumer_crds
from tests.kit.kube_servers import KubeServer, running

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
CONFIG = "inferenceservice-config"


@contextmanager
def serving(which: str) -> Iterator[KubeServer]:
    """One that serves our kinds and KServe's."""
    with running(which) as server:
        for crd in (*crds.load(), *consumer_crds()):
            server.request("POST", CRDS, crd).ok()
        soon(lambda: server.request("GET", f"/apis/{CACHES.api_version}/{CACHES.plural}").status == 200)
        soon(lambda: server.request("GET", "/api/v1/namespaces/default").status == 200)
        soon(lambda: server.request("GET", "/api/v1/namespaces/kube-system").status == 200)
        yield server


def a_whole_group(name: str, path: str = "/models") -> GroupBuilder:
    """One whose volumes and claims a real API server accepts; its nodes are those labelled `pool=<name>`."""
    size = {"storage": "2Gi"}
    modes = {"accessModes": ["ReadWriteOnce"], "storageClassName": "standard", "volumeMode": "Filesystem"}
    group = a_group(name).at(path)
    group.volume.update({**modes, "capacity": size, "persistentVolumeReclaimPolicy": "Delete"})
    return group.with_spec(persistentVolumeClaimSpec={**modes, "resources": {"requests": size}})


class Told:
    """What a spec tells a cluster, and sees there."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.kube = cluster.admin

    def groups(self, *names: str) -> None:
        for name in names:
            self.cluster.create(NODE_GROUPS, a_whole_group(name))

    def apply(self, built: CacheBuilder | ServiceBuilder) -> None:
        namespace = built.json["metadata"].get("namespace")
        self.cluster.create(_resource(built), built, namespace)

    def delete(self, built: CacheBuilder | ServiceBuilder) -> None:
        self.kube.delete(_resource(built), built.name, namespace=built.json["metadata"].get("namespace"))

    def configured(self, local_model: Mapping[str, Any] | None) -> None:
        """KServe's ConfigMap says this of `localModel`; None: there is none."""
        if self.cluster.find(CONFIG_MAPS, CONFIG, KSERVE) is not None:
            self.kube.delete(CONFIG_MAPS, CONFIG, namespace=KSERVE)
        if local_model is not None:
            body = {"metadata": {"name": CONFIG}, "data": {"localModel": json.dumps(local_model)}}
            self.kube.create(CONFIG_MAPS, body, namespace=KSERVE)

    def status(self, cache: CacheBuilder) -> Mapping[str, Any]:
        found = self.cluster.find(_resource(cache), cache.name, cache.namespace) or {}
        status: Mapping[str, Any] = found.get("status", {})
        return status

    def names(self, cache: CacheBuilder, field: str = "inferenceServices") -> Sequence[str]:
        return [f"{each['namespace']}/{each['name']}" for each in self.status(cache).get(field, ())]

    def volume(self, name: str) -> Object | None:
        return self._alive(VOLUMES, name)

    def claim(self, name: str, namespace: str = JOBS) -> Object | None:
        return self._alive(CLAIMS, name, namespace)

    def is_bound_by_name(self, name: str, namespace: str, volume: str) -> bool:
        claim = self.claim(name, namespace)
        return claim is not None and claim["spec"].get("volumeName") == volume and self.volume(volume) is not None

    def _alive(self, resource: ResourceType, name: str, namespace: str | None = None) -> Object | None:
        """None for one that is gone. What Kubernetes' own controllers keep until nobody uses it is let go here."""
        found = self.cluster.find(resource, name, namespace)
        if found is None or not found["metadata"].get("deletionTimestamp"):
            return found
        with suppress(NotFound):
            self.kube.patch(resource, name, {"metadata": {"finalizers": None}}, namespace=namespace)
        return None


def _resource(built: CacheBuilder | ServiceBuilder) -> ResourceType:
    if isinstance(built, ServiceBuilder):
        return LLM_INFERENCE_SERVICES if built.llm else INFERENCE_SERVICES
    return NAMESPACE_CACHES if built.namespace else CACHES
