"""LocalModelCache and LocalModelNamespaceCache: a model that nodes should hold, and how far they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, NewType

from pydantic import ConfigDict, Field, JsonValue, WithJsonSchema

from coordinator.api.fields import (
    ApiModel,
    Bytes,
    Condition,
    LocalModelStorageSpec,
    NodeStatus,
    Quantity,
    Resource,
    Time,
    list_map,
)

StatusKey = NewType("StatusKey", str)
"""`name` of a LocalModelCache, or `namespace/name` of a LocalModelNamespaceCache (KServe's GetStatusKey)."""

ModelUri = Annotated[
    str,
    WithJsonSchema(
        {
            "type": "string",
            "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "StorageUri is immutable"}],
        }
    ),
]


Globs = Annotated[
    tuple[str, ...],
    WithJsonSchema({"type": "array", "maxItems": 500, "items": {"type": "string", "maxLength": 1024}}),
]
"""Each is tried on every file that a source lists."""

Digest = Annotated[str, WithJsonSchema({"type": "string", "pattern": "^sha256:[a-f0-9]{64}$"})]


IntOrPercent = Annotated[
    int | str,
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": "^([1-9][0-9]?|100)%$",
            "minimum": 1,
            "x-kubernetes-int-or-string": True,
        }
    ),
]
"""A number of at least 1, or a share of at least 1%, as in a Deployment."""

Refresh = Annotated[
    str,
    WithJsonSchema(
        {"type": "string", "maxLength": 32, "pattern": r"^(Never|([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?)$"}
    ),
]

KeptVersions = Annotated[int, WithJsonSchema({"type": "integer", "format": "int32", "minimum": 0, "maximum": 10})]

GroupNames = Annotated[
    tuple[str, ...],
    WithJsonSchema({"type": "array", "maxItems": 100, "items": {"type": "string", "maxLength": 253}}),
]


class RolloutSpec(ApiModel):
    """How a new version takes the place of the one in service: made ready on all nodes first, then node by node."""

    max_unavailable: IntOrPercent | None = Field(
        None,
        description="On how many nodes at once the model may be on its way from the old copy to the new one, or not be"
        " there, as a number or a share of the nodes, rounded down and at least 1. Default 25%.",
    )
    partition: GroupNames | None = Field(
        None,
        description="LocalModelNodeGroups whose nodes take a new version; those of the others have it ready beside the"
        " one that they go on serving. Absent: all.",
    )
    paused: bool | None = Field(
        None, description="No further node takes a new version; it is made ready on all of them all the same."
    )


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
    refresh: Refresh | None = Field(
        None,
        description="How often the source is asked whether the branch or tag of `revision` has moved, e.g. 1h: then the"
        " new version is rolled out. At least 1m. Never (default): only when the annotation"
        " localmodel.kserve.io/refresh gets another value.",
    )
    rollout: RolloutSpec | None = Field(
        None,
        description="A new version is made ready on all nodes and then takes the place of the old one node by node."
        " Absent: each node takes it as soon as it has it.",
    )
    keep_versions: KeptVersions | None = Field(
        None,
        description="How many versions that were replaced stay on each node, for a rollback that fetches nothing."
        " Default 1, where it shares at least half of its bytes with the newer one.",
    )


_SHARED_CLAIM_RULES: list[JsonValue] = [
    {"rule": "!(has(self.nodeGroups) && has(self.pvcRef))", "message": "nodeGroups and pvcRef are mutually exclusive"},
    {"rule": "has(self.nodeGroups) || has(self.pvcRef)", "message": "one of nodeGroups or pvcRef must be set"},
    {"rule": "has(self.pvcRef) == has(oldSelf.pvcRef)", "message": "pvcRef is immutable"},
]
ClaimName = Annotated[
    str,
    WithJsonSchema(
        {
            "type": "string",
            "minLength": 1,
            "maxLength": 253,
            "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
            "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "pvcRef is immutable"}],
        }
    ),
]


class LocalModelNamespaceCacheSpec(LocalModelCacheSpec):
    """As later KServe has it: copies on nodes, or one in a claim of the namespace."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-validations": _SHARED_CLAIM_RULES})

    node_groups: tuple[str, ...] = Field((), min_length=1, description="LocalModelNodeGroups whose nodes get a copy.")
    pvc_ref: ClaimName | None = Field(
        None, description="A claim of the namespace that holds the model, instead of node groups. Immutable."
    )


class NamespacedName(ApiModel):
    namespace: str | None = Field(None, description="Its namespace.")
    name: str | None = Field(None, description="Its name.")


class Copies(ApiModel):
    """Absent means 0, as in KServe."""

    available: int = Field(0, description="Nodes that hold the model. Absent: 0.")
    failed: int = Field(0, description="Nodes on which it failed. Absent: 0.")
    total: int = Field(0, description="Nodes that should hold it. Absent: 0.")


class CacheBytes(ApiModel):
    total: Bytes | None = Field(None, description="Size of one copy, measured at the source.")
    cached: Bytes | None = Field(None, description="Finished bytes, summed over nodes.")
    from_origin: Bytes | None = Field(None, description="Bytes read from the origin, summed over nodes.")
    from_peers: Bytes | None = Field(None, description="Bytes read from other nodes, summed over nodes.")
    from_other_zones: Bytes | None = Field(None, description="Those of `fromPeers` that crossed a zone.")
    reused: Bytes | None = Field(None, description="Bytes that other copies on the nodes had, summed over nodes.")
    amplification: str | None = Field(
        None, description='Bytes read from the origin, in copies of the model, e.g. "1.00".'
    )


class MountableClaim(ApiModel):
    """A PersistentVolumeClaim through which pods of its namespace mount the model. Ours."""

    namespace: str | None = Field(None, description="Its namespace.")
    name: str | None = Field(None, description="Its name.")
    node_group: str | None = Field(None, description="Whose nodes it leads to.")
    sub_path: str | None = Field(None, description="Where the model is in it: the subPath of a volumeMount.")
    phase: str | None = Field(None, description="Of the claim, as Kubernetes has it.")
    message: str | None = Field(None, description="Why it is not there.")


class ModelVersion(ApiModel):
    """One version of the model, and on how many nodes it is. Ours."""

    revision: str | None = Field(None, description="Its commit, or what spec names as long as that is not resolved.")
    digest: str | None = Field(None, description="Its manifest digest.")
    state: str = Field(
        description="Current: in service. Next: on its way. Failed: on its way, and a person is needed. Previous: kept"
        " for a rollback."
    )
    nodes: Bytes = Field(0, description="Nodes on which it is in place.")
    beside: Bytes = Field(0, description="Nodes on which it is complete beside the one in place.")
    selection: str | None = Field(None, description="Names the request that it answers, while it is Next.")
    kept: bool | None = Field(None, description="Set while it is Next, and had been in service before.")
    reason: str | None = Field(None, description="CamelCase: what keeps it from the nodes. docs/reasons.md.")
    message: str | None = Field(None, description="For people: what keeps it from the nodes.")


class RefreshStatus(ApiModel):
    """The last time that the source was asked for a newer version. Ours."""

    at: Time | None = Field(None, description="When it was asked.")
    request: str | None = Field(None, description="The annotation localmodel.kserve.io/refresh that was answered.")
    revision: str | None = Field(None, description="What it answered, where that cannot be rolled out.")
    reason: str | None = Field(None, description="CamelCase: why there is no newer version. docs/reasons.md.")
    message: str | None = Field(None, description="For people: why there is no newer version.")


class LocalModelCacheStatus(ApiModel):
    node_status: Mapping[str, NodeStatus] = Field(default_factory=dict, description="By node name.")
    copies: Copies | None = None
    inference_services: tuple[NamespacedName, ...] | None = Field(
        None, description="InferenceServices that use the model."
    )
    llm_inference_services: tuple[NamespacedName, ...] | None = Field(
        None, description="LLMInferenceServices that use the model."
    )
    # Ours.
    conditions: tuple[Condition, ...] = Field(
        (), json_schema_extra=list_map("type"), description="Ready, Progressing and Degraded, for `kubectl wait`."
    )
    observed_generation: Bytes | None = Field(None, description="The metadata.generation that this status is about.")
    revision: str | None = Field(None, description="The commit that `spec.revision` was resolved to.")
    selection: str | None = Field(None, description="Names the request (uri, revision, globs) that `revision` answers.")
    manifest_digest: str | None = Field(None, description="sha256 over every file's path, size and digest.")
    resolved_as: str | None = Field(
        None, description="Names the credentials in spec that the source was resolved with; not what they contain."
    )
    bytes: CacheBytes | None = Field(None, description="How much, and where it came from.")
    rate_bytes_per_second: Bytes | None = Field(None, description="Summed over nodes; absent when nothing moves.")
    eta: str | None = Field(None, description='Time left until the last node is done, e.g. "4m10s".')
    progress: str | None = Field(None, description='Finished share of all wanted bytes, e.g. "73%".')
    available: str | None = Field(None, description='Nodes that hold the model of those that should, e.g. "3/4".')
    size: str | None = Field(None, description='Size of one copy for people, e.g. "15.3Gi".')
    path: str | None = Field(None, description="The folder on each node that holds the model, once one does.")
    claims: tuple[MountableClaim, ...] | None = Field(
        None, description="How pods mount the model, in each namespace where a service uses it."
    )
    rate: str | None = Field(None, description='`rateBytesPerSecond` for people, e.g. "1.2Gi/s".')
    moved: str | None = Field(
        None, description='Where the bytes came from, for people, e.g. "origin 15.3Gi (1.00 times), peers 45.9Gi".'
    )
    versions: tuple[ModelVersion, ...] | None = Field(
        None, description="The versions on the nodes, the one in service first, and the one on its way."
    )
    rollout: str | None = Field(
        None,
        description='How far a new version is, for people, e.g. "2/4 on 1f2e3d4c5b6a"; absent while there is none.',
    )
    refresh: RefreshStatus | None = Field(None, description="When the source was last asked for a newer version.")
    short_revision: str | None = Field(None, description="`revision`, of a commit the first 12 digits.")
    started_at: Time | None = Field(None, description="When the first node began.")
    completed_at: Time | None = Field(None, description="When the last node was done; absent while one is not.")
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


class LocalModelCache(Resource):
    """A model that every node of some node groups should hold."""

    KIND = "LocalModelCache"
    PLURAL = "localmodelcaches"
    SHORT_NAMES = ("lmc",)

    FINALIZER: ClassVar[str] = "localmodel.kserve.io/finalizer"

    spec: LocalModelCacheSpec = Field(description="What is wanted.")
    status: LocalModelCacheStatus = Field(LocalModelCacheStatus(), description="What is. Written by the coordinator.")

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

    spec: LocalModelNamespaceCacheSpec
