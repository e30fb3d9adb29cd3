"""InferenceServices and LLMInferenceServices, reduced to which caches they use. KServe's mutators write all of it.

    label       internal.serving.kserve.io/localmodel            the cache
                internal.serving.kserve.io/localmodel-namespace  its namespace, for a LocalModelNamespaceCache
    annotation  serving.kserve.io/nodegroup                      the node group whose volume the pods mount
                internal.serving.kserve.io/localmodel-pvc-name   the claim that they mount
                internal.serving.kserve.io/localmodel-lora       JSON: adapter → {cache, namespace, pvcName, …}

A service may name only caches of its own namespace and cluster caches; labels that say otherwise are forged. An
annotation for LoRA adapters that cannot be read counts as a use of every cache that the service could name, because
nobody knows which: it keeps, and makes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from coordinator.api.resources import GROUP, StatusKey
from coordinator.kube.interface import Object, ResourceType
from coordinator.kube.parts import mapping_of
from coordinator.plan.pods import CACHE_LABEL, NAMESPACE_LABEL

INFERENCE_SERVICES = ResourceType(GROUP, "v1beta1", "inferenceservices", "InferenceService", namespaced=True)
LLM_INFERENCE_SERVICES = ResourceType(GROUP, "v1alpha2", "llminferenceservices", "LLMInferenceService", namespaced=True)

GROUP_ANNOTATION = "serving.kserve.io/nodegroup"
CLAIM_ANNOTATION = "internal.serving.kserve.io/localmodel-pvc-name"
LORA_ANNOTATION = "internal.serving.kserve.io/localmodel-lora"


@dataclass(frozen=True, slots=True)
class Use:
    """One cache that a service uses: by which claim, if it says so."""

    cache: StatusKey
    claim: str | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """One that uses a cache. `group` is the node group that it asks for; `llm`: it is an LLMInferenceService.

    `unreadable`: what its LoRA adapters use cannot be told.
    """

    namespace: str
    name: str
    llm: bool
    uses: tuple[Use, ...]
    group: str | None = None
    unreadable: bool = False


def read_service(raw: Object, *, llm: bool = False) -> Service | None:
    """None for one that uses no cache. Raises ValueError only for an object without a name."""
    metadata = mapping_of(raw.get("metadata"))
    name, namespace = metadata.get("name"), metadata.get("namespace")
    if not isinstance(name, str) or not name or not isinstance(namespace, str):
        raise ValueError("the object has no metadata.name and namespace")
    labels, annotations = mapping_of(metadata.get("labels")), mapping_of(metadata.get("annotations"))
    uses = []
    key = _key(labels.get(CACHE_LABEL), labels.get(NAMESPACE_LABEL), namespace)
    if key is not None:
        uses.append(Use(key, _text(annotations.get(CLAIM_ANNOTATION))))
    adapters = _adapters(annotations.get(LORA_ANNOTATION))
    uses += _lora_uses(adapters or {}, namespace)
    if not uses and adapters is not None:
        return None
    return Service(
        namespace, name, llm, tuple(dict.fromkeys(uses)), _text(annotations.get(GROUP_ANNOTATION)), adapters is None
    )


def _adapters(text: object) -> Mapping[str, Any] | None:
    """None where the annotation is there and is not a JSON object of objects."""
    if text is None:
        return {}
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not all(isinstance(each, dict) for each in found.values()):
        return None
    return found


def _lora_uses(adapters: Mapping[str, Any], namespace: str) -> Iterator[Use]:
    for adapter in adapters.values():
        key = _key(adapter.get("cache"), adapter.get("namespace") or None, namespace)
        if key is not None:
            yield Use(key, _text(adapter.get("pvcName")))


def _key(cache: object, of_namespace: object, own: str) -> StatusKey | None:
    """The cache that is named; None for none, and for one of another namespace."""
    if not isinstance(cache, str) or not cache:
        return None
    if of_namespace is None:
        return StatusKey(cache)
    return StatusKey(f"{own}/{cache}") if of_namespace == own else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
