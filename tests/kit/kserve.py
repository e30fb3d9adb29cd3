"""KServe's kinds beside ours, as lenient CustomResourceDefinitions: what is read of them is their metadata alone."""

from __future__ import annotations

from typing import Any

from coordinator.dev.trial.builders import Builder
from coordinator.kube.interface import ResourceType
from coordinator.plan.services import INFERENCE_SERVICES, LLM_INFERENCE_SERVICES
from coordinator.plan.storage_containers import STORAGE_CONTAINERS


def consumer_crds() -> list[dict[str, Any]]:
    return [lenient_crd(each) for each in (INFERENCE_SERVICES, LLM_INFERENCE_SERVICES, STORAGE_CONTAINERS)]


def lenient_crd(resource: ResourceType) -> dict[str, Any]:
    """One that accepts any spec and status."""
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    fields = {"spec": anything, "status": anything, "disabled": {"type": "boolean"}}
    schema = {"type": "object", "properties": fields}
    version = {"name": resource.version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{resource.plural}.{resource.group}"},
        "spec": {
            "group": resource.group,
            "names": {"kind": resource.kind, "plural": resource.plural},
            "scope": "Namespaced" if resource.namespaced else "Cluster",
            "versions": [{**version, "subresources": {"status": {}}}],
        },
    }


def as_sent(built: Builder) -> dict[str, Any]:
    """The object without what an API server gives it."""
    given = ("uid", "resourceVersion", "generation", "creationTimestamp", "finalizers")
    metadata = {name: value for name, value in built.json["metadata"].items() if name not in given}
    return {**built.json, "metadata": metadata}
