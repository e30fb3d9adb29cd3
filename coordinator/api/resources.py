"""The resources of `serving.kserve.io/v1alpha1` as pydantic models: the single source of `k8s/crds/`.

A strict superset of KServe's: every field of theirs with the same type, requiredness, enum and CEL rule; ours are
optional and say so. Reading is lenient (unknown fields are ignored, so that newer objects parse); writing goes through
merge patches of the fields we own, never through these models as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, NewType

from pydantic import BaseModel, ConfigDict, Field, JsonValue, WithJsonSchema
from pydantic.alias_generators import to_camel

GROUP = "serving.kserve.io"
VERSION = "v1alpha1"

CacheName = NewType("CacheName", str)
StatusKey = NewType("StatusKey", str)
"""`name` of a LocalModelCache, or `namespace/name` of a LocalModelNamespaceCache (KServe's GetStatusKey)."""

QUANTITY_PATTERN = (
    r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$"
)

QUANTITY_SCHEMA: Mapping[str, Any] = {
    "anyOf": [{"type": "integer"}, {"type": "string"}],
    "pattern": QUANTITY_PATTERN,
    "x-kubernetes-int-or-string": True,
}

Quantity = Annotated[int | str, WithJsonSchema(dict(QUANTITY_SCHEMA))]
"""A Kubernetes quantity as it stands in the object. `coordinator.kube.quantity` turns it into bytes."""

ModelUri = Annotated[
    str,
    WithJsonSchema(
        {
            "type": "string",
            "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "StorageUri is immutable"}],
        }
    ),
]

Bytes = Annotated[int, WithJsonSchema({"type": "integer", "format": "int64"})]
Time = Annotated[datetime, WithJsonSchema({"type": "string", "format": "date-time"})]


Globs = Annotated[
    tuple[str, ...],
    WithJsonSchema({"type": "array", "maxItems": 500, "items": {"type": "string", "maxLength": 1024}}),
]
"""Each is tried on every file that a source lists."""

Digest = Annotated[str, WithJsonSchema({"type": "string", "pattern": "^sha256:[a-f0-9]{64}$"})]


def list_map(key: str) -> dict[str, JsonValue]:
    """A list with one item per `key`, so that server-side apply merges items. Never for KServe's own lists."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


def kubernetes_type(name: str) -> WithJsonSchema:
    """The schema of Kubernetes' own type, e.g. `core.v1.PersistentVolumeSpec`; `coordinator.api.crds` expands it."""
    return WithJsonSchema({"x-kubernetes-type": name})


class ApiModel(BaseModel):
    """camelCase outside, snake_case inside; unknown fields are ignored."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


class NodeStatus(StrEnum):
    """How far a node is: KServe's words, closed, never a new one."""

    EMPTY = ""
    NOT_READY = "NodeNotReady"
    PENDING = "NodeDownloadPending"
    DOWNLOADING = "NodeDownloading"
    DOWNLOADED = "NodeDownloaded"
    ERROR = "NodeDownloadError"


class ModelStatus(StrEnum):
    """How far a model is: KServe's words, closed, never a new one."""

    EMPTY = ""
    PENDING = "ModelDownloadPending"
    DOWNLOADING = "ModelDownloading"
    DOWNLOADED = "ModelDownloaded"
    ERROR = "ModelDownloadError"


class OwnerReference(ApiModel):
    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool | None = None
    block_owner_deletion: bool | None = None


class ObjectMeta(ApiModel):
    """The part of `metadata` that is read here."""

    name: str
    namespace: str | None = None
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    finalizers: tuple[str, ...] = ()
    labels: Mapping[str, str] = Field(default_factory=dict)
    annotations: Mapping[str, str] = Field(default_factory=dict)
    owner_references: tuple[OwnerReference, ...] = ()


class LocalModelStorageSpec(ApiModel):
    """Which credentials to read the source with: a key of the Secret `storage-config`, and overrides."""

    key: str | None = None
    parameters: Mapping[str, str] | None = None


class LocalModelCacheSpec(ApiModel):
    source_model_uri: ModelUri = Field(description="Where the model comes from, e.g. hf://owner/repo. Immutable.")
    model_size: Quantity = Field(description="What the model is expected to need on each node.")
    node_groups: tuple[str, ...] = Field(min_length=1, description="LocalModelNodeGroups whose nodes get a copy.")
    service_account_name: str | None = Field(
        None, description="ServiceAccount in the job namespace whose secrets hold the credentials of the source."
    )
    storage: LocalModelStorageSpec | None = None
    # Ours, all optional.
    revision: str | None = Field(None, description="Branch, tag or commit; pinned to a commit when first resolved.")
    include: Globs | None = Field(None, description="Only files that match one of these globs.")
    exclude: Globs | None = Field(None, description="No file that matches one of these globs.")
    digest: Digest | None = Field(None, description="Expected manifest digest. Any other content is refused.")
    priority: Annotated[int, WithJsonSchema({"type": "integer", "format": "int32"})] | None = Field(
        None, description="Larger goes first where bandwidth or space is short. Default 0."
    )
    pinned: bool | None = Field(
        None,
        description="Never evicted, whatever the coordinator's policy; a copy goes only when the cache is deleted.",
    )


class NamespacedName(ApiModel):
    namespace: str | None = None
    name: str | None = None


class Copies(ApiModel):
    """Absent means 0, as in KServe."""

    available: int = 0
    failed: int = 0
    total: int = 0


class Condition(ApiModel):
    """One aspect of the state, as `kubectl wait` understands it (metav1.Condition)."""

    type: str
    status: str
    reason: str
    message: str = ""
    last_transition_time: Time
    observed_generation: Bytes | None = None


class CacheBytes(ApiModel):
    total: Bytes | None = Field(None, description="Size of one copy, measured at the source.")
    cached: Bytes | None = Field(None, description="Finished bytes, summed over nodes.")
    from_origin: Bytes | None = Field(None, description="Bytes read from the origin, summed over nodes.")
    from_peers: Bytes | None = Field(None, description="Bytes read from other nodes, summed over nodes.")
    from_other_zones: Bytes | None = Field(None, description="Those of `fromPeers` that crossed a zone.")
    amplification: str | None = Field(
        None, description='Bytes read from the origin, in copies of the model, e.g. "1.00".'
    )


class MountableClaim(ApiModel):
    """A PersistentVolumeClaim through which pods of its namespace mount the model. Ours."""

    namespace: str | None = None
    name: str | None = None
    node_group: str | None = Field(None, description="Whose nodes it leads to.")
    sub_path: str | None = Field(None, description="Where the model is in it: the subPath of a volumeMount.")
    phase: str | None = Field(None, description="Of the claim, as Kubernetes has it.")
    message: str | None = Field(None, description="Why it is not there.")


class LocalModelCacheStatus(ApiModel):
    node_status: Mapping[str, NodeStatus] = Field(default_factory=dict, description="By node name.")
    copies: Copies | None = None
    inference_services: tuple[NamespacedName, ...] | None = None
    llm_inference_services: tuple[NamespacedName, ...] | None = None
    # Ours.
    conditions: tuple[Condition, ...] = Field((), json_schema_extra=list_map("type"))
    observed_generation: Bytes | None = None
    revision: str | None = Field(None, description="The commit that `spec.revision` was resolved to.")
    selection: str | None = Field(None, description="Names the request (uri, revision, globs) that `revision` answers.")
    manifest_digest: str | None = Field(None, description="sha256 over every file's path, size and digest.")
    resolved_as: str | None = Field(
        None, description="Names the credentials in spec that the source was resolved with; not what they contain."
    )
    bytes: CacheBytes | None = None
    rate_bytes_per_second: Bytes | None = Field(None, description="Summed over nodes; absent when nothing moves.")
    eta: str | None = Field(None, description='Time left until the last node is done, e.g. "4m10s".')
    progress: str | None = Field(None, description='Finished share of all wanted bytes, e.g. "73%".')
    available: str | None = Field(None, description='Nodes that hold the model of those that should, e.g. "3/4".')
    size: str | None = Field(None, description='Size of one copy for people, e.g. "15.3Gi".')
    started_at: Time | None = None
    completed_at: Time | None = None
    path: str | None = Field(None, description="The folder on each node that holds the model, once one does.")
    claims: tuple[MountableClaim, ...] | None = Field(
        None, description="How pods mount the model, in each namespace where a service uses it."
    )
    unused_since: Time | None = Field(
        None, description="Since when no pod is seen to use the model; kept while an eviction policy is on."
    )
    credentials_on_nodes: bool | None = Field(
        None, description="Set while agents read with the source's own options in memory: it cannot be signed."
    )
    wrong_peers: Mapping[str, int] | None = Field(
        None, description="By node, chunks that other nodes got from it with wrong bytes, and got elsewhere."
    )
    wrong_readers: Mapping[str, int] | None = Field(
        None, description="By node, chunks that were wrong when it read them from the origin, and were read again."
    )


class LocalModelNodeGroupSpec(ApiModel):
    storage_limit: Quantity = Field(description="Space for models on each node of the group.")
    persistent_volume_spec: Annotated[Mapping[str, Any], kubernetes_type("core.v1.PersistentVolumeSpec")] = Field(
        description="The volume pods mount. Its path is the model root; its nodeAffinity selects the group's nodes."
    )
    persistent_volume_claim_spec: Annotated[Mapping[str, Any], kubernetes_type("core.v1.PersistentVolumeClaimSpec")] = (
        Field(description="The claim pods mount it through.")
    )


class LocalModelNodeGroupStatus(ApiModel):
    used: Quantity | None = Field(None, description="By models, summed over the nodes that report.")
    available: Quantity | None = Field(None, description="For more models, summed over the nodes that report.")


class LocalModelInfo(ApiModel):
    """One model that a node should hold."""

    source_model_uri: str
    model_name: str
    namespace: str | None = None
    node_group: str | None = None
    service_account_name: str | None = None
    storage: LocalModelStorageSpec | None = None


class LocalModelNodeSpec(ApiModel):
    local_models: tuple[LocalModelInfo, ...] = Field(description="What this node should hold.")


class NodeModelDetail(ApiModel):
    """One model on this node, for people. Ours."""

    name: str = Field(description="The key of `modelStatus` this explains.")
    phase: str
    bytes_total: Bytes | None = None
    bytes_done: Bytes | None = None
    bytes_from_origin: Bytes | None = None
    bytes_from_peers: Bytes | None = None
    bytes_from_other_zones: Bytes | None = Field(None, description="Those of `bytesFromPeers` that crossed a zone.")
    rate_bytes_per_second: Bytes | None = None
    eta: str | None = None
    attempt: Bytes | None = None
    reason: str | None = None
    message: str | None = None
    retry_time: Time | None = None
    orphaned_since: Time | None = Field(
        None, description="Since when no node group of the cache selects the node, although nobody removed it from one."
    )
    removal_time: Time | None = Field(None, description="When the orphaned copy goes, if no pod uses it then.")
    digest: str | None = None
    revision: str | None = None
    verified: Mapping[str, int] | None = Field(None, description="Number of files by how each was checked.")
    started_at: Time | None = None
    finished_at: Time | None = None
    verified_at: Time | None = Field(None, description="When the whole copy was last read from the disk.")
    repaired: str | None = Field(None, description="What was damaged when the copy was last repaired.")
    repaired_at: Time | None = None
    wrong_peers: Mapping[str, int] | None = Field(
        None, description="By node, chunks that came from it to this one with wrong bytes."
    )
    wrong_readers: Mapping[str, int] | None = Field(
        None, description="By node, chunks that this one found to be wrong since they were read from the origin."
    )


class NodeRootDetail(ApiModel):
    """One model root on this node's disk. Ours."""

    path: str
    free: Bytes | None = None
    used: Bytes | None = None
    reserved: Bytes | None = None
    aside: Bytes | None = None
    """Part of `used`: old copies that a pod may still have open."""
    junk: list[str] | None = None
    """What was found there and is not ours: where it is now, and why it was set aside."""
    reason: str | None = None
    message: str | None = None


class NodeAgentDetail(ApiModel):
    """The agent on this node. Ours."""

    ready: bool = False
    incarnation: str | None = None
    version: str | None = None
    reason: str | None = None
    message: str | None = None


class LocalModelNodeStatus(ApiModel):
    model_status: Mapping[str, ModelStatus] = Field(
        default_factory=dict, description="By cache name, or namespace/name of a namespaced cache."
    )
    # Ours.
    models: tuple[NodeModelDetail, ...] = Field((), json_schema_extra=list_map("name"))
    roots: tuple[NodeRootDetail, ...] = Field((), json_schema_extra=list_map("path"))
    agent: NodeAgentDetail | None = None


class Resource(ApiModel):
    """A whole object. Class attributes say how the API server knows its kind."""

    KIND: ClassVar[str]
    PLURAL: ClassVar[str]
    SHORT_NAMES: ClassVar[tuple[str, ...]]
    NAMESPACED: ClassVar[bool] = False

    metadata: ObjectMeta


class LocalModelCache(Resource):
    """A model that every node of some node groups should hold."""

    KIND = "LocalModelCache"
    PLURAL = "localmodelcaches"
    SHORT_NAMES = ("lmc",)

    FINALIZER: ClassVar[str] = "localmodel.kserve.io/finalizer"

    spec: LocalModelCacheSpec
    status: LocalModelCacheStatus = LocalModelCacheStatus()

    @property
    def status_key(self) -> StatusKey:
        namespace = self.metadata.namespace
        return StatusKey(f"{namespace}/{self.metadata.name}" if namespace else self.metadata.name)


class LocalModelNamespaceCache(LocalModelCache):
    """A LocalModelCache that only workloads of its namespace can use."""

    KIND = "LocalModelNamespaceCache"
    PLURAL = "localmodelnamespacecaches"
    SHORT_NAMES = ("lmnc",)
    NAMESPACED = True

    FINALIZER: ClassVar[str] = "localmodelnamespacecache.kserve.io/finalizer"


class LocalModelNodeGroup(Resource):
    """Nodes that hold models, in which folder, and how much of it."""

    KIND = "LocalModelNodeGroup"
    PLURAL = "localmodelnodegroups"
    SHORT_NAMES = ("lmng",)

    spec: LocalModelNodeGroupSpec
    status: LocalModelNodeGroupStatus = LocalModelNodeGroupStatus()


class LocalModelNode(Resource):
    """What one node should hold and does hold. Named like the Kubernetes node."""

    KIND = "LocalModelNode"
    PLURAL = "localmodelnodes"
    SHORT_NAMES = ("lmn",)

    spec: LocalModelNodeSpec
    status: LocalModelNodeStatus = LocalModelNodeStatus()


RESOURCES: tuple[type[Resource], ...] = (LocalModelCache, LocalModelNamespaceCache, LocalModelNodeGroup, LocalModelNode)
