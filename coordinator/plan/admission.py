"""What the API server may write to a cache, as KServe's webhook decides it. Pure: objects in, a verdict out.

    CREATE, UPDATE   a LocalModelCache whose URI another has              refused, 403
                     a LocalModelNamespaceCache of an unknown node group  refused, 404
                     of both node groups and a claim, or of neither       refused, 403
    UPDATE           of what is being deleted, or of finalizers and       allowed, whatever the others say
                     annotations of this project alone
    DELETE           while an InferenceService or LLMInferenceService uses it   refused, 403
                     in a namespace that is being deleted                 allowed

Messages and codes are KServe's, which clients and people know. Where it differs: a service that its status lists and
that no longer exists keeps nothing (KServe answers 404, which many clients of a deletion take for a success), and the
finalizers of caches that slipped in while no webhook answered can be written.
Requests that are allowed and will not work all the same are for `admission_warnings`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from actors.messages import NodeName
from actors.schemes import Schemes
from coordinator.api.resources import GROUP, VERSION, StatusKey
from coordinator.kube.interface import Object, ResourceType
from coordinator.kube.parts import mapping_of
from coordinator.plan.reading import read_cache, read_namespace_cache
from coordinator.plan.services import INFERENCE_SERVICES, LLM_INFERENCE_SERVICES, read_service
from coordinator.plan.shared_claim import held_by, precedence, shares_claim
from coordinator.plan.snapshot import CACHES, NODE_GROUPS, Cache, LocalNode, Node, NodeGroup

ANNOTATIONS = "localmodel.kserve.io/"
"""How this project's own begin."""


class Operation(StrEnum):
    CREATE = "CREATE"
    UPDATE = "UPDATE"
    DELETE = "DELETE"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a write is not made, as the `Status` that its client gets says it."""

    code: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Known:
    """The objects that are there already. `caches` are those of both kinds, `schemes` those that a source may have;
    None: any."""

    caches: Mapping[StatusKey, Cache] = field(default_factory=dict)
    groups: Mapping[str, NodeGroup] = field(default_factory=dict)
    nodes: Mapping[NodeName, Node] = field(default_factory=dict)
    local_nodes: Mapping[NodeName, LocalNode] = field(default_factory=dict)
    schemes: Schemes | None = None


@dataclass(frozen=True, slots=True)
class Write:
    """One write to a cache: `new` is what it would be (None: DELETE), `old` what it is (None: CREATE)."""

    operation: Operation
    resource: ResourceType
    new: Object | None
    old: Object | None

    @property
    def object(self) -> Object:
        """The object that is judged: the new one, or of a deletion the old one."""
        found = self.old if self.operation is Operation.DELETE else self.new
        return found or {}

    @property
    def passes(self) -> bool:
        """Whether nothing is checked: what is on its way out, and changes of finalizers or our annotations alone."""
        if self.operation is not Operation.UPDATE:
            return False
        new, old = self.object, self.old or {}
        if _metadata(new).get("deletionTimestamp"):
            return True
        return _marks(new) != _marks(old) and "spec" in old and new.get("spec") == old.get("spec")

    def parsed(self, schemes: Schemes | None = None) -> Cache:
        """The object that is judged, as `plan` would see it. One whose name is not made yet goes by its beginning."""
        read = read_cache if self.resource is CACHES else read_namespace_cache
        metadata = _metadata(self.object)
        name = metadata.get("name") or metadata.get("generateName")
        return read({**self.object, "metadata": {**metadata, "name": name}}, schemes)


@dataclass(frozen=True, slots=True)
class Consumer:
    """A service that the status of a cache lists."""

    resource: ResourceType
    name: str
    namespace: str


def refusal(write: Write, cache: Cache, known: Known) -> Refusal | None:
    """Why a CREATE or UPDATE is refused; None: it is not. `cache` is what is to be written."""
    if write.passes:
        return None
    if write.resource is CACHES:
        return _taken(cache, known)
    if (shape := _misshapen(write)) is not None:
        return Refusal(403, "Forbidden", shape)
    if write.operation is Operation.CREATE and cache.pvc_ref is not None:
        return _held(cache, known)
    for name in cache.node_groups:
        if name not in known.groups:
            return Refusal(404, "NotFound", f'{NODE_GROUPS.kind}.{GROUP} "{name}" not found')
    return None


def _taken(cache: Cache, known: Known) -> Refusal | None:
    """Of those that have the URI, the one whose name comes first is named, so that the answer is always the same."""
    others = (
        other.ref.name
        for other in known.caches.values()
        if other.ref.namespace is None and other.ref.name != cache.ref.name and other.source.uri == cache.source.uri
    )
    other = min(others, default=None)
    if other is None:
        return None
    return Refusal(403, "Forbidden", f"LocalModelCache {other} has the same StorageURI {cache.source.uri}")


def _misshapen(write: Write) -> str | None:
    """The fault in `nodeGroups` and `pvcRef`, in the words of later KServe, which its CRDs say, too."""
    spec, before = mapping_of(write.object.get("spec")), mapping_of((write.old or {}).get("spec"))
    groups, claim = spec.get("nodeGroups"), spec.get("pvcRef")
    if write.old is not None and before.get("pvcRef") != claim:
        return "pvcRef is immutable"
    if claim == "":
        return "pvcRef must not be empty"
    if groups and claim is not None:
        return "nodeGroups and pvcRef are mutually exclusive"
    return "one of nodeGroups or pvcRef must be set" if not groups and claim is None else None


def _held(cache: Cache, known: Known) -> Refusal | None:
    """Of those that have the model in the claim, the one that came first is named."""
    others = (other for other in known.caches.values() if other.deleted_at is None and shares_claim(other, cache))
    first = min((other for other in others if other.ref.name != cache.ref.name), key=precedence, default=None)
    return None if first is None else Refusal(403, "Forbidden", held_by(cache, first))


def consumers(old: Object) -> Iterator[Consumer]:
    """The services that the status of a cache lists, in its order, InferenceServices first."""
    status = mapping_of(old.get("status"))
    for name, resource in (
        ("inferenceServices", INFERENCE_SERVICES),
        ("llmInferenceServices", LLM_INFERENCE_SERVICES),
    ):
        for each in status.get(name) or ():
            service = mapping_of(each)
            if isinstance(service.get("name"), str) and isinstance(service.get("namespace"), str):
                yield Consumer(resource, service["name"], service["namespace"])


def deletion_refusal(
    write: Write, find: Callable[[Consumer], Object | None], is_terminating: Callable[[str], bool]
) -> Refusal | None:
    """Why a DELETE is refused; None: it is not.

    `find` returns a service as it is now, None where it is gone; `is_terminating` whether a namespace is being deleted,
    whose caches keep nobody waiting. Both are asked only as far as they matter, and what they raise is raised.
    """
    old = write.object
    name, namespace = str(_metadata(old).get("name", "")), _metadata(old).get("namespace")
    key = StatusKey(f"{namespace}/{name}" if namespace else name)
    for consumer in consumers(old):
        found = find(consumer)
        service = None if found is None else read_service(found, llm=consumer.resource is LLM_INFERENCE_SERVICES)
        if service is None or not (service.unreadable or key in {use.cache for use in service.uses}):
            continue
        if namespace and is_terminating(namespace):
            return None
        kind = consumer.resource.kind
        message = f"LocalModelCache {name} is being used by {kind} {consumer.name}"
        if namespace:
            user = f"{consumer.namespace}/{consumer.name}"
            message = f"LocalModelNamespaceCache {namespace}/{name} is being used by {kind} {user}"
        return Refusal(403, "Forbidden", message)
    return None


def undecodable(write: Write) -> Refusal | None:
    """400 for an object of another kind than the path is for, in the terms of KServe's decoder; None: it is one."""
    judged = [write.object]
    if write.operation is Operation.UPDATE and write.old is not None:
        judged.append(write.old)
    wanted = write.resource
    for found in judged:
        kind, version = found.get("kind"), found.get("apiVersion")
        metadata, spec = _metadata(found), found.get("spec", {})
        named = any(isinstance(metadata.get(name), str) and metadata[name] for name in ("name", "generateName"))
        if (kind, version) != (wanted.kind, wanted.api_version) or not named or not isinstance(spec, Mapping):
            message = f"unable to decode {version or '?'}, Kind={kind or '?'}: expected *{VERSION}.{wanted.kind}"
            return Refusal(400, "BadRequest", message)
    return None


def _marks(value: Object) -> object:
    """What controllers, and the commands of this project, write beside the spec."""
    meta = _metadata(value)
    annotations = mapping_of(meta.get("annotations"))
    return meta.get("finalizers"), {key: text for key, text in annotations.items() if key.startswith(ANNOTATIONS)}


def _metadata(value: Object) -> Mapping[str, Any]:
    return mapping_of(value.get("metadata"))
