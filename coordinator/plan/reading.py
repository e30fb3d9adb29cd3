"""Kubernetes objects as the values of a snapshot: each is read once, when an informer receives it.

Reading never loses an object that exists. What cannot be understood becomes a `problem` on the value, because an object
that silently vanished from the snapshot would look like a deletion, and a deletion empties disks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeGuard

from pydantic import ValidationError

from actors.errors import SourceUnsupported
from actors.manifest import ModelSource, storage_key
from actors.messages import NodeName
from actors.schemes import Schemes, check_form
from actors.sizes import parse_bytes
from actors.times import seconds_of
from coordinator.api.resources import (
    LocalModelCache,
    LocalModelCacheSpec,
    LocalModelNamespaceCache,
    LocalModelNamespaceCacheSpec,
    RolloutSpec,
    StatusKey,
)
from coordinator.kube.interface import NODES, Object, ResourceType
from coordinator.kube.node_selector import compile_selector
from coordinator.kube.parts import list_of, mapping_of
from coordinator.plan import written
from coordinator.plan.bindings import volume_path
from coordinator.plan.retries import RETRY, read_retries
from coordinator.plan.snapshot import (
    APART,
    CLAIMS_IN,
    DELETE_IN_USE,
    LOCAL_NODES,
    NODE_GROUPS,
    REFRESH,
    Cache,
    Credentials,
    LocalNode,
    Node,
    NodeGroup,
    Policy,
    Problem,
    Ref,
    resource_type,
)

FASTEST_REFRESH_S = 60.0
SLOWEST_REFRESH_S = 365 * 86400.0
_LONGEST_REQUEST = 100


def read_cache(raw: Object, schemes: Schemes | None = None) -> Cache:
    """Raises ValueError only for an object without a name. `schemes`: which may be read; None: any."""
    return _cache(raw, LocalModelCache, schemes)


def read_namespace_cache(raw: Object, schemes: Schemes | None = None) -> Cache:
    """As `read_cache`."""
    return _cache(raw, LocalModelNamespaceCache, schemes)


def _cache(raw: Object, model: type[LocalModelCache], schemes: Schemes | None) -> Cache:
    ref, metadata = _ref(raw, resource_type(model)), raw["metadata"]
    spec, size_bytes, problem = _spec(raw.get("spec"), model)
    source = ModelSource(spec.source_model_uri, spec.revision, spec.include or (), spec.exclude or ())
    try:
        (check_form if schemes is None else schemes.check)(source.uri)
    except SourceUnsupported as error:
        problem = problem or Problem(error.reason, f"spec.sourceModelUri: {error}")
    status = mapping_of(raw.get("status"))
    return Cache(
        ref=ref,
        key=StatusKey(f"{ref.namespace}/{ref.name}" if ref.namespace else ref.name),
        source=source,
        storage_key=storage_key(source.uri),
        node_groups=tuple(dict.fromkeys(spec.node_groups)),
        entry=_entry(ref, spec),
        status=written.read_fields(raw.get("status"), written.CACHE_STATUS),
        finalizer=model.FINALIZER,
        finalizers=_strings(metadata.get("finalizers")) or (),
        generation=written.count(metadata.get("generation")) or 0,
        created=seconds_of(metadata.get("creationTimestamp")) or 0.0,
        deleted_at=seconds_of(metadata.get("deletionTimestamp")),
        size_bytes=size_bytes,
        digest=spec.digest,
        priority=spec.priority or 0,
        pinned=bool(spec.pinned),
        delete_in_use=mapping_of(metadata.get("annotations")).get(DELETE_IN_USE) == "true",
        served=any(status.get(name) for name in ("inferenceServices", "llmInferenceServices")),
        unused_since=seconds_of(status.get("unusedSince")),
        credentials=_credentials(ref, spec),
        selection=source.selection,
        problem=problem,
        readable=isinstance(mapping_of(raw.get("spec")).get("sourceModelUri"), str),
        retries=read_retries(mapping_of(metadata.get("annotations")).get(RETRY)),
        pvc_ref=spec.pvc_ref if isinstance(spec, LocalModelNamespaceCacheSpec) else None,
        refresh_s=refresh_seconds(spec.refresh),
        refresh_request=_request(mapping_of(metadata.get("annotations")).get(REFRESH)),
        rollout=_rollout(spec.rollout),
        keep_versions=spec.keep_versions,
        claims_in=_claims_in(mapping_of(metadata.get("annotations")).get(CLAIMS_IN), ref.namespace),
    )


def _spec(raw: object, of: type[LocalModelCache]) -> tuple[LocalModelCacheSpec, int | None, Problem | None]:
    """The spec with its `modelSize` in bytes; of an invalid one what can be read, and what is wrong with it."""
    namespaced = of is LocalModelNamespaceCache
    try:
        spec = (LocalModelNamespaceCacheSpec if namespaced else LocalModelCacheSpec).model_validate(raw)
    except ValidationError as error:
        return _salvage(raw), None, Problem("InvalidObject", _first_error(error))
    try:
        return spec, parse_bytes(spec.model_size), None
    except ValueError as error:
        return spec, None, Problem("InvalidObject", f"spec.modelSize: {error}")


def _entry(ref: Ref, spec: LocalModelCacheSpec) -> dict[str, Any]:
    """Its line in `LocalModelNode.spec.localModels`, without the node group."""
    entry: dict[str, Any] = {"modelName": ref.name, "sourceModelUri": spec.source_model_uri}
    if ref.namespace:
        entry["namespace"] = ref.namespace
    if spec.service_account_name:
        entry["serviceAccountName"] = spec.service_account_name
    if spec.storage:
        entry["storage"] = spec.storage.model_dump(by_alias=True, exclude_none=True)
    return entry


def _credentials(ref: Ref, spec: LocalModelCacheSpec) -> Credentials:
    storage = spec.storage
    return Credentials(
        spec.service_account_name,
        storage.key if storage else None,
        tuple(sorted((storage.parameters or {}).items())) if storage else (),
        namespaced=ref.namespace is not None,
        namespace=ref.namespace,
    )


def _claims_in(annotation: object, of_cache: str | None) -> frozenset[str]:
    """The namespaces that are named; of a cache in a namespace no other than its own."""
    names = {name.strip() for name in annotation.split(",")} - {""} if isinstance(annotation, str) else set()
    return frozenset(names if of_cache is None else names & {of_cache})


def _salvage(spec: object) -> LocalModelCacheSpec:
    """What can still be read of an invalid spec, so that copies it already has are recognised and kept."""
    fields = mapping_of(spec)
    uri, groups, revision = fields.get("sourceModelUri"), fields.get("nodeGroups"), fields.get("revision")
    return LocalModelCacheSpec.model_construct(
        source_model_uri=uri if isinstance(uri, str) else "",
        model_size=0,
        node_groups=_strings(groups) or (),
        service_account_name=None,
        storage=None,
        revision=revision if isinstance(revision, str) else None,
        include=_strings(fields.get("include")),
        exclude=_strings(fields.get("exclude")),
        digest=None,
        priority=None,
        pinned=None,
        refresh=None,
        rollout=None,
        keep_versions=None,
    )


_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def refresh_seconds(text: str | None) -> float | None:
    """How often `spec.refresh` has the source asked: no more than once in `FASTEST_REFRESH_S`. None: never."""
    found = _DURATION.fullmatch(text) if text and text != "Never" else None
    if found is None:
        return None
    hours, minutes, seconds = (int(each or 0) for each in found.groups())
    return max(FASTEST_REFRESH_S, min(3600.0 * hours + 60 * minutes + seconds, SLOWEST_REFRESH_S))


def _request(annotation: object) -> str:
    return annotation[:_LONGEST_REQUEST] if isinstance(annotation, str) else ""


def _rollout(spec: RolloutSpec | None) -> Policy | None:
    if spec is None:
        return None
    groups = None if spec.partition is None else frozenset(spec.partition)
    wanted, paused = spec.max_unavailable, bool(spec.paused)
    number = str(wanted).removesuffix("%")
    if wanted is None or not number.isdecimal():
        return Policy(groups=groups, paused=paused)
    return Policy(int(number), isinstance(wanted, str) and wanted.endswith("%"), groups, paused)


def read_node_group(raw: Object) -> NodeGroup:
    """Raises ValueError only for an object without a name."""
    ref, spec = _ref(raw, NODE_GROUPS), mapping_of(raw.get("spec"))
    volume = mapping_of(spec.get("persistentVolumeSpec"))
    required = mapping_of(volume.get("nodeAffinity")).get("required")
    root, selector, limit_bytes, problem = None, None, None, None
    try:
        limit_bytes = parse_bytes(spec.get("storageLimit", ""))
    except ValueError as error:
        problem = Problem("NodeGroupInvalid", f"LocalModelNodeGroup {ref.name}: spec.storageLimit: {error}")
    try:
        selector = compile_selector(required) if required is not None else None
    except ValueError as error:
        field_name = "spec.persistentVolumeSpec.nodeAffinity.required"
        problem = Problem("NodeGroupInvalid", f"LocalModelNodeGroup {ref.name}: {field_name}: {error}")
    if problem is None and selector is None:
        problem = Problem(
            "NoNodeAffinity",
            f"LocalModelNodeGroup {ref.name} has no nodes: spec.persistentVolumeSpec.nodeAffinity.required is missing",
        )
    path = volume_path(volume)
    if path is not None and path.startswith("/") and ".." not in path.split("/"):
        root = path
    else:
        problem = problem or Problem(
            "NodeGroupInvalid",
            f"LocalModelNodeGroup {ref.name}: spec.persistentVolumeSpec has no absolute local.path or hostPath.path",
        )
    claim = mapping_of(spec.get("persistentVolumeClaimSpec"))
    annotations = written.words(mapping_of(raw["metadata"]).get("annotations")) or {}
    return NodeGroup(
        ref, root, selector, limit_bytes, mapping_of(raw.get("status")), problem, volume, claim, annotations
    )


_LEAVING = (
    "node.kubernetes.io/out-of-service",
    "ToBeDeletedByClusterAutoscaler",
    "karpenter.sh/disrupted",
    "karpenter.sh/disruption",
)
"""Taints of a Node that is being taken away."""
# https://kubernetes.io/docs/concepts/cluster-administration/node-shutdown/#non-graceful-node-shutdown


def read_node(raw: Object) -> Node:
    """Raises ValueError only for an object without a name."""
    ref = _ref(raw, NODES)
    standing = mapping_of(raw.get("status")).get("conditions")
    conditions = written.CONDITIONS(standing) or ()
    said = [c.get("status") for c in conditions if c.get("type") == "Ready"]
    kept = tuple(standing) if _are_objects(standing) else None
    labels = {k: v for k, v in mapping_of(raw["metadata"].get("labels")).items() if isinstance(v, str)}
    spec = mapping_of(raw.get("spec"))
    taints = [mapping_of(each).get("key") for each in list_of(spec.get("taints"))]
    return Node(
        name=NodeName(ref.name),
        uid=ref.uid,
        labels=labels,
        ready="True" in said,
        cordoned=spec.get("unschedulable") is True,
        conditions=kept,
        version=ref.version,
        heard="Unknown" not in said,
        leaving=next((key for key in _LEAVING if key in taints), ""),
    )


def read_local_node(raw: Object, *, follows: Schemes | None = None) -> LocalNode:
    """Raises ValueError only for an object without a name. `follows`: its lines are orders, of these schemes."""
    models = tuple(list_of(mapping_of(raw.get("spec")).get("localModels")))
    owners = raw["metadata"].get("ownerReferences")
    listed = {entry_key(entry): entry for entry in models if _is_entry(entry)}
    orders = listed if follows is not None else {}
    named = {key: entry for key, entry in orders.items() if entry.get("modelName") and APART not in key}
    return LocalNode(
        ref=_ref(raw, LOCAL_NODES),
        owners=tuple(owners) if _are_objects(owners) else (),
        models=models,
        status=written.read_fields(raw.get("status"), written.NODE_STATUS),
        listed=listed,
        orders={key: _order(entry, follows) for key, entry in named.items()},
    )


def _order(entry: Mapping[str, Any], schemes: Schemes | None) -> Cache:
    """The cache that a line of a node's list is about, as far as the line tells."""
    copied = ("sourceModelUri", "serviceAccountName", "storage")
    spec = {name: entry[name] for name in copied if entry.get(name) is not None}
    namespace, group = entry.get("namespace"), entry.get("nodeGroup")
    raw = {
        "metadata": {"name": entry["modelName"], "namespace": namespace or None},
        "spec": {**spec, "modelSize": 0, "nodeGroups": [group or "any"]},
    }
    cache = (read_namespace_cache if namespace else read_cache)(raw, schemes)
    return replace(cache, node_groups=(group,) if group else (), size_bytes=None)


def entry_key(entry: Mapping[str, Any]) -> StatusKey:
    """The status key of an entry of `spec.localModels` (KServe's GetStatusKey)."""
    namespace, name = entry.get("namespace"), entry.get("modelName", "")
    return StatusKey(f"{namespace}/{name}" if namespace else name)


def _ref(raw: Object, resource: ResourceType) -> Ref:
    metadata = raw.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    if not isinstance(metadata, Mapping) or not isinstance(name, str) or not name:
        raise ValueError("the object has no metadata.name")
    namespace = metadata.get("namespace") if resource.namespaced else None
    uid, version = (str(metadata.get(field) or "") for field in ("uid", "resourceVersion"))
    return Ref(resource, name, namespace, uid, version)


def _first_error(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    path = ".".join(["spec", *(str(part) for part in first["loc"])])
    return f"{path}: {first['msg']}"


def _are_objects(value: object) -> TypeGuard[list[Mapping[str, Any]]]:
    return isinstance(value, list) and all(isinstance(item, Mapping) for item in value)


def _is_entry(value: object) -> bool:
    names = ("modelName", "sourceModelUri", "namespace", "nodeGroup")
    return isinstance(value, Mapping) and all(isinstance(value.get(name, ""), str) for name in names)


def _strings(value: object) -> tuple[str, ...] | None:
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else None
