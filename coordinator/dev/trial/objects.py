"""Kubernetes objects in one line: `a_cache("llama").in_group("gpu")`, `a_node("n1").ready()`.

A builder makes the JSON an API server would hold (`.json`), so that what is under test reads it as it reads real ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from actors.manifest import ModelSource
from coordinator.api.resources import LocalModelCache, LocalModelNamespaceCache, StatusKey


class Builder:
    """Wraps the JSON of one object; every method changes it and returns the builder."""

    def __init__(self, kind: str, name: str, api_version: str = "serving.kserve.io/v1alpha1") -> None:
        self.json: dict[str, Any] = {
            "apiVersion": api_version,
            "kind": kind,
            "metadata": {"name": name, "uid": f"uid-{name}", "resourceVersion": "1", "generation": 1},
        }

    @property
    def name(self) -> str:
        return str(self.json["metadata"]["name"])

    def with_metadata(self, **metadata: Any) -> Self:
        self.json["metadata"].update(metadata)
        return self

    def with_spec(self, **spec: Any) -> Self:
        self.json.setdefault("spec", {}).update(spec)
        return self

    def with_status(self, **status: Any) -> Self:
        self.json.setdefault("status", {}).update(status)
        return self


class CacheBuilder(Builder):
    def __init__(self, name: str, uri: str, namespace: str | None) -> None:
        super().__init__("LocalModelNamespaceCache" if namespace else "LocalModelCache", name)
        model = LocalModelNamespaceCache if namespace else LocalModelCache
        self.namespace = namespace
        self.with_metadata(creationTimestamp="2026-01-01T00:00:00Z", finalizers=[model.FINALIZER])
        if namespace:
            self.with_metadata(namespace=namespace)
        self.with_spec(sourceModelUri=uri, modelSize="1Gi", nodeGroups=["gpu"])

    @property
    def key(self) -> StatusKey:
        return StatusKey(f"{self.namespace}/{self.name}" if self.namespace else self.name)

    @property
    def uri(self) -> str:
        return str(self.json["spec"]["sourceModelUri"])

    @property
    def source(self) -> ModelSource:
        spec = self.json["spec"]
        return ModelSource(
            spec["sourceModelUri"], spec.get("revision"), tuple(spec.get("include", ())), tuple(spec.get("exclude", ()))
        )

    def in_group(self, *groups: str) -> Self:
        return self.with_spec(nodeGroups=list(groups))

    def created(self, timestamp: str) -> Self:
        return self.with_metadata(creationTimestamp=timestamp)

    def deleted(self, timestamp: str = "2026-06-01T00:00:00Z") -> Self:
        return self.with_metadata(deletionTimestamp=timestamp)

    def without_finalizer(self) -> Self:
        return self.with_metadata(finalizers=[])


def a_cache(name: str = "llama", uri: str | None = None) -> CacheBuilder:
    """A LocalModelCache in the group `gpu`, with its finalizer."""
    return CacheBuilder(name, uri or f"hf://models/{name}", None)


def a_namespace_cache(namespace: str, name: str = "llama", uri: str | None = None) -> CacheBuilder:
    """A LocalModelNamespaceCache in the group `gpu`, with its finalizer."""
    return CacheBuilder(name, uri or f"hf://models/{name}", namespace)


class GroupBuilder(Builder):
    def __init__(self, name: str) -> None:
        super().__init__("LocalModelNodeGroup", name)
        self.with_spec(storageLimit="100Gi", persistentVolumeClaimSpec={})
        self.json["spec"]["persistentVolumeSpec"] = {"local": {"path": "/models"}}
        self.labelled("pool", name)

    @property
    def volume(self) -> dict[str, Any]:
        volume: dict[str, Any] = self.json["spec"]["persistentVolumeSpec"]
        return volume

    def labelled(self, label: str, *values: str) -> Self:
        """Members are the nodes whose `label` has one of the values."""
        return self.selecting({"matchExpressions": [{"key": label, "operator": "In", "values": list(values)}]})

    def selecting(self, *terms: Mapping[str, Any]) -> Self:
        self.volume["nodeAffinity"] = {"required": {"nodeSelectorTerms": list(terms)}}
        return self

    def without_affinity(self) -> Self:
        del self.volume["nodeAffinity"]
        return self

    def at(self, path: str) -> Self:
        self.volume["local"] = {"path": path}
        return self


def a_group(name: str = "gpu") -> GroupBuilder:
    """A LocalModelNodeGroup at `/models`, whose members are the nodes labelled `pool=<name>`."""
    return GroupBuilder(name)


class NodeBuilder(Builder):
    def __init__(self, name: str) -> None:
        super().__init__("Node", name, "v1")
        self.with_metadata(labels={"kubernetes.io/hostname": name}).in_pool("gpu").ready()

    def in_pool(self, pool: str) -> Self:
        return self.labelled(pool=pool)

    def labelled(self, **labels: str) -> Self:
        self.json["metadata"]["labels"].update(labels)
        return self

    def ready(self, ready: bool = True) -> Self:
        return self.with_status(conditions=[{"type": "Ready", "status": "True" if ready else "False"}])

    def not_ready(self) -> Self:
        return self.ready(False)


def a_node(name: str) -> NodeBuilder:
    """A ready Node labelled `pool=gpu`."""
    return NodeBuilder(name)


class PodBuilder(Builder):
    def __init__(self, name: str, namespace: str) -> None:
        super().__init__("Pod", name, "v1")
        self.with_metadata(namespace=namespace, labels={})
        self.with_spec(volumes=[], containers=[{"name": "main", "image": "main", "volumeMounts": []}])
        self.with_status(phase="Running")

    def on(self, node: str) -> Self:
        return self.with_spec(nodeName=node)

    def claiming(self, claim: str, sub_path: str | None = None) -> Self:
        return self._mounting({"persistentVolumeClaim": {"claimName": claim}}, sub_path)

    def mounting(self, path: str, sub_path: str | None = None) -> Self:
        """A path of the host."""
        return self._mounting({"hostPath": {"path": path}}, sub_path)

    def created(self, timestamp: str) -> Self:
        return self.with_metadata(creationTimestamp=timestamp)

    def labelled(self, **labels: str) -> Self:
        """KServe's labels, named without their prefix."""
        prefix = "internal.serving.kserve.io/"
        self.json["metadata"]["labels"].update({prefix + name.replace("_", "-"): v for name, v in labels.items()})
        return self

    def ended(self, phase: str = "Succeeded") -> Self:
        return self.with_status(phase=phase)

    def _mounting(self, volume: Mapping[str, Any], sub_path: str | None) -> Self:
        volumes = self.json["spec"]["volumes"]
        volumes.append({"name": f"v{len(volumes)}", **volume})
        mount = {"name": volumes[-1]["name"], "mountPath": f"/mnt/{len(volumes)}", "readOnly": True}
        self.json["spec"]["containers"][0]["volumeMounts"].append(mount | ({"subPath": sub_path} if sub_path else {}))
        return self


def a_pod(name: str = "server", namespace: str = "default") -> PodBuilder:
    """A running pod that no node runs yet, and that mounts nothing."""
    return PodBuilder(name, namespace)


class ServiceBuilder(Builder):
    def __init__(self, name: str, namespace: str, *, llm: bool) -> None:
        kind, version = ("LLMInferenceService", "v1alpha2") if llm else ("InferenceService", "v1beta1")
        super().__init__(kind, name, f"serving.kserve.io/{version}")
        self.llm = llm
        self.with_metadata(namespace=namespace, labels={}, annotations={})
        self.with_spec(predictor={})

    def using(self, cache: str, namespace: str | None = None) -> Self:
        """As KServe's mutator writes it: a cluster cache, or one of `namespace`."""
        prefix = "internal.serving.kserve.io/localmodel"
        self.json["metadata"]["labels"] |= {prefix: cache} | ({f"{prefix}-namespace": namespace} if namespace else {})
        return self

    def in_group(self, group: str) -> Self:
        return self.annotated("serving.kserve.io/nodegroup", group)

    def annotated(self, name: str, value: str) -> Self:
        self.json["metadata"]["annotations"][name] = value
        return self


def a_service(name: str = "chat", namespace: str = "default", *, llm: bool = False) -> ServiceBuilder:
    """An InferenceService, or an LLMInferenceService, that uses no cache."""
    return ServiceBuilder(name, namespace, llm=llm)


class LocalNodeBuilder(Builder):
    def __init__(self, name: str) -> None:
        super().__init__("LocalModelNode", name)
        self.json["spec"] = {"localModels": []}
        self.json["status"] = {}

    def owned(self) -> Self:
        owner = {"apiVersion": "v1", "kind": "Node", "name": self.name, "uid": f"uid-{self.name}"}
        return self.with_metadata(ownerReferences=[owner])

    def listing(self, *caches: CacheBuilder, group: str = "gpu") -> Self:
        for cache in caches:
            entry = {"modelName": cache.name, "sourceModelUri": cache.uri, "nodeGroup": group}
            if cache.namespace:
                entry["namespace"] = cache.namespace
            self.json["spec"]["localModels"].append(entry)
        return self

    def downloaded(self, *caches: CacheBuilder) -> Self:
        self.json["status"].setdefault("modelStatus", {}).update({cache.key: "ModelDownloaded" for cache in caches})
        return self


def a_local_node(name: str) -> LocalNodeBuilder:
    """An empty LocalModelNode without an owner, as KServe creates them."""
    return LocalNodeBuilder(name)
