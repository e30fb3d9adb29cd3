"""What the coordinator observed, as values: the whole input of `plan`.

    Kubernetes object ──read_*──► Cache, NodeGroup, Node, LocalNode      once, when an informer receives it
    all of them + agents + resolutions  ──►  Snapshot                    every tick

Reading never loses an object that exists. What cannot be understood becomes a `problem` on the value, because an object
that silently vanished from the snapshot would look like a deletion, and a deletion empties disks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

from pydantic import ValidationError

from actors.errors import Failure, SourceUnsupported
from actors.manifest import Manifest, ModelSource, OriginName, Resolved, StorageKey, storage_key
from actors.messages import Company, NodeName
from actors.schemes import Schemes, check_form
from actors.times import seconds_of
from coordinator.api.resources import (
    GROUP,
    VERSION,
    LocalModelCache,
    LocalModelCacheSpec,
    LocalModelNamespaceCache,
    LocalModelNode,
    LocalModelNodeGroup,
    Resource,
    StatusKey,
)
from coordinator.fleet.interface import AgentView
from coordinator.kube.interface import NODES, Object, ResourceType
from coordinator.kube.node_selector import NodeSelector, compile_selector
from coordinator.kube.quantity import parse_bytes
from coordinator.plan import written
from coordinator.plan.origin_budget import Budgets
from coordinator.plan.pods import Look, Pod

ORPHAN_GRACE_S = 7 * 86400.0
DELETE_IN_USE = "localmodel.kserve.io/delete-in-use"
"""Annotation of a cache; "true": when it is deleted, its copies go also from under pods that use them."""


def resource_type(model: type[Resource]) -> ResourceType:
    return ResourceType(GROUP, VERSION, model.PLURAL, model.KIND, model.NAMESPACED)


CACHES = resource_type(LocalModelCache)
NAMESPACE_CACHES = resource_type(LocalModelNamespaceCache)
NODE_GROUPS = resource_type(LocalModelNodeGroup)
LOCAL_NODES = resource_type(LocalModelNode)


@dataclass(frozen=True, slots=True)
class Ref:
    """An object as a write and an Event name it."""

    resource: ResourceType
    name: str
    namespace: str | None = None
    uid: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an object cannot be used as it stands. CamelCase reason; the message names the field."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Credentials:
    """Which credentials a cache names; what they contain is read when the source is resolved."""

    service_account: str | None = None
    storage_key: str | None = None
    parameters: tuple[tuple[str, str], ...] = ()
    namespaced: bool = False
    """Of a cache in a namespace, whose author the coordinator does not speak for."""
    namespace: str | None = None

    @property
    def name(self) -> str:
        """Tells these from others in the same namespace, and nothing else of them."""
        return hashlib.sha256(repr(astuple(self)[:-1]).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, eq=False)
class Cache:
    """A LocalModelCache or LocalModelNamespaceCache. `status` is as it stands in the object.

    `entry` is its line in `LocalModelNode.spec.localModels`, without the node group. `created` is epoch seconds, and so
    is `unused_since`, as it was last written. `served`: its status lists services that KServe ties to it.
    `delete_in_use`: its deletion does not wait for pods. `contested`: others of its URI ask with credentials of their
    own, so that a copy need not be what the coordinator's own would have been given (see `access`). `readable`: it says
    what its URI is, if only that it is empty.
    """

    ref: Ref
    key: StatusKey
    source: ModelSource
    storage_key: StorageKey
    node_groups: tuple[str, ...]
    entry: Mapping[str, Any]
    status: Mapping[str, Any]
    finalizer: str
    finalizers: tuple[str, ...] = ()
    generation: int = 0
    created: float = 0.0
    deleted_at: float | None = None
    size_bytes: int | None = None
    digest: str | None = None
    priority: int = 0
    pinned: bool = False
    delete_in_use: bool = False
    served: bool = False
    unused_since: float | None = None
    credentials: Credentials = Credentials()
    selection: str = ""
    problem: Problem | None = None
    contested: bool = False
    readable: bool = True

    @property
    def age_order(self) -> tuple[float, str]:
        """Sorts the oldest first; the oldest of those with one URI owns the folder."""
        return self.created, self.key


@dataclass(frozen=True, slots=True, eq=False)
class NodeGroup:
    """A LocalModelNodeGroup. `root` and `selector` are None where `problem` says why."""

    ref: Ref
    root: str | None
    selector: NodeSelector | None
    limit_bytes: int | None
    status: Mapping[str, Any]
    problem: Problem | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A Kubernetes node. `cordoned`: no new pod is scheduled to it; it may be being drained."""

    name: NodeName
    uid: str
    labels: Mapping[str, str]
    ready: bool
    cordoned: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class LocalNode:
    """A LocalModelNode. `models` and `status` are as they stand in the object."""

    ref: Ref
    owners: tuple[Mapping[str, Any], ...]
    models: tuple[Mapping[str, Any], ...]
    status: Mapping[str, Any]
    listed: Mapping[StatusKey, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Resolution:
    """What the resolver knows of one source. `retry_at` (epoch seconds) is set while `failure` is.

    `failing_since` (epoch seconds): when the first of the failures in a row ended.
    """

    resolved: Resolved | None = None
    failure: Failure | None = None
    retry_at: float | None = None
    attempt: int = 0
    failing_since: float | None = None


@dataclass(frozen=True, slots=True)
class Governed:
    """What nodes were told of one origin: how many requests at a time, where it is any, and until when to be quiet.

    `quiet_until` is epoch seconds by the coordinator's clock; 0: nobody is.
    """

    shares: Mapping[NodeName, int]
    quiet_until: float = 0.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole world at one moment. `owner` is the uid of the namespace kube-system.

    `pruned` are the kinds (plurals) of which the API server prunes the status fields that KServe's own CRDs do not
    have. `companies`
    are those of the last plan, by fill, and `manifests` its manifests, by cache; `secret` is what the companies' tokens
    are made from; `acting_since` is when this coordinator began to act (epoch seconds). `budgets` are how much all
    nodes together may ask of an origin; `governed` is what the last plan made of them.

    `evict_idle_s` is how long nobody must have used what may be evicted; None: nothing is. `evict_dry_run`: nothing is
    either, and it is only said what would be. `pods` are those that have
    not ended; None: they are not watched, or cannot be at the moment. `looks` are the last lists of the pods of single
    nodes; those of the nodes in `looked_at` are of the last seconds, whatever the watch says.

    `left_out` are objects, by the name of their mapping here and their key in it, that exist and cannot be planned for.

    `orphan_grace_s` is how long a copy is kept that nobody wants any more but nobody deleted; None: for ever.
    """

    owner: str
    caches: Mapping[StatusKey, Cache] = field(default_factory=dict)
    groups: Mapping[str, NodeGroup] = field(default_factory=dict)
    nodes: Mapping[NodeName, Node] = field(default_factory=dict)
    local_nodes: Mapping[NodeName, LocalNode] = field(default_factory=dict)
    agents: Mapping[NodeName, AgentView] = field(default_factory=dict)
    resolutions: Mapping[StatusKey, Resolution] = field(default_factory=dict)
    pruned: frozenset[str] = frozenset()
    companies: Mapping[str, Company] = field(default_factory=dict)
    manifests: Mapping[StatusKey, Manifest] = field(default_factory=dict)
    secret: bytes = field(default=b"", repr=False)
    acting_since: float = 0.0
    evict_idle_s: float | None = None
    evict_dry_run: bool = False
    pods: Collection[Pod] | None = None
    looks: Mapping[NodeName, Look] = field(default_factory=dict)
    looked_at: frozenset[NodeName] = frozenset()
    orphan_grace_s: float | None = ORPHAN_GRACE_S
    left_out: frozenset[tuple[str, str]] = frozenset()
    budgets: Budgets = field(default_factory=Budgets)
    governed: Mapping[OriginName, Governed] = field(default_factory=dict)


def read_cache(raw: Object, schemes: Schemes | None = None) -> Cache:
    """Raises ValueError only for an object without a name. `schemes`: which may be read; None: any."""
    return _cache(raw, LocalModelCache, schemes)


def read_namespace_cache(raw: Object, schemes: Schemes | None = None) -> Cache:
    """As `read_cache`."""
    return _cache(raw, LocalModelNamespaceCache, schemes)


def _cache(raw: Object, model: type[LocalModelCache], schemes: Schemes | None) -> Cache:
    ref, metadata = _ref(raw, resource_type(model)), raw["metadata"]
    key = StatusKey(f"{ref.namespace}/{ref.name}" if ref.namespace else ref.name)
    problem, size_bytes = None, None
    try:
        spec = LocalModelCacheSpec.model_validate(raw.get("spec"))
        size_bytes = parse_bytes(spec.model_size)
    except ValidationError as error:
        problem, spec = Problem("InvalidObject", _first_error(error)), _salvage(raw.get("spec"))
    except ValueError as error:
        problem = Problem("InvalidObject", f"spec.modelSize: {error}")
    source = ModelSource(spec.source_model_uri, spec.revision, spec.include or (), spec.exclude or ())
    try:
        (check_form if schemes is None else schemes.check)(source.uri)
    except SourceUnsupported as error:
        problem = problem or Problem(error.reason, f"spec.sourceModelUri: {error}")
    storage = spec.storage
    entry: dict[str, Any] = {"modelName": ref.name, "sourceModelUri": source.uri}
    if ref.namespace:
        entry["namespace"] = ref.namespace
    if spec.service_account_name:
        entry["serviceAccountName"] = spec.service_account_name
    if storage:
        entry["storage"] = storage.model_dump(by_alias=True, exclude_none=True)
    return Cache(
        ref=ref,
        key=key,
        source=source,
        storage_key=storage_key(source.uri),
        node_groups=tuple(dict.fromkeys(spec.node_groups)),
        entry=entry,
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
        delete_in_use=_mapping(metadata.get("annotations")).get(DELETE_IN_USE) == "true",
        served=any(_mapping(raw.get("status")).get(name) for name in ("inferenceServices", "llmInferenceServices")),
        unused_since=seconds_of(_mapping(raw.get("status")).get("unusedSince")),
        credentials=Credentials(
            spec.service_account_name,
            storage.key if storage else None,
            tuple(sorted((storage.parameters or {}).items())) if storage else (),
            namespaced=ref.namespace is not None,
            namespace=ref.namespace,
        ),
        selection=source.selection,
        problem=problem,
        readable=isinstance(_mapping(raw.get("spec")).get("sourceModelUri"), str),
    )


def _salvage(spec: object) -> LocalModelCacheSpec:
    """What can still be read of an invalid spec, so that copies it already has are recognised and kept."""
    fields = _mapping(spec)
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
    )


def read_node_group(raw: Object) -> NodeGroup:
    """Raises ValueError only for an object without a name."""
    ref, spec = _ref(raw, NODE_GROUPS), _mapping(raw.get("spec"))
    volume = _mapping(spec.get("persistentVolumeSpec"))
    required = _mapping(volume.get("nodeAffinity")).get("required")
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
    path = _mapping(volume.get("local")).get("path") or _mapping(volume.get("hostPath")).get("path")
    if isinstance(path, str) and path.startswith("/") and ".." not in path.split("/"):
        root = path.rstrip("/") or "/"
    else:
        problem = problem or Problem(
            "NodeGroupInvalid",
            f"LocalModelNodeGroup {ref.name}: spec.persistentVolumeSpec has no absolute local.path or hostPath.path",
        )
    return NodeGroup(ref, root, selector, limit_bytes, _mapping(raw.get("status")), problem)


def read_node(raw: Object) -> Node:
    """Raises ValueError only for an object without a name."""
    ref = _ref(raw, NODES)
    conditions = written.CONDITIONS(_mapping(raw.get("status")).get("conditions")) or ()
    ready = any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)
    labels = {k: v for k, v in _mapping(raw["metadata"].get("labels")).items() if isinstance(v, str)}
    cordoned = _mapping(raw.get("spec")).get("unschedulable") is True
    return Node(NodeName(ref.name), ref.uid, labels, ready, cordoned)


def read_local_node(raw: Object) -> LocalNode:
    """Raises ValueError only for an object without a name."""
    entries = _mapping(raw.get("spec")).get("localModels")
    models = tuple(entries) if isinstance(entries, list) else ()
    owners = raw["metadata"].get("ownerReferences")
    return LocalNode(
        ref=_ref(raw, LOCAL_NODES),
        owners=tuple(owners) if _are_objects(owners) else (),
        models=models,
        status=written.read_fields(raw.get("status"), written.NODE_STATUS),
        listed={entry_key(entry): entry for entry in models if _is_entry(entry)},
    )


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


def _are_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, Mapping) for item in value)


def _is_entry(value: object) -> bool:
    names = ("modelName", "sourceModelUri", "namespace", "nodeGroup")
    return isinstance(value, Mapping) and all(isinstance(value.get(name, ""), str) for name in names)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _strings(value: object) -> tuple[str, ...] | None:
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else None
