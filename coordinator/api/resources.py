"""The resources of `serving.kserve.io/v1alpha1` as pydantic models: the single source of `k8s/crds/`.

A strict superset of KServe's: every field of theirs with the same type, requiredness, enum and CEL rule; ours are
optional and say so. Reading is lenient (unknown fields are ignored, so that newer objects parse); writing goes through
merge patches of the fields we own, never through these models as a whole.

    fields   types of fields, KServe's words, `metadata`
    caches   LocalModelCache, LocalModelNamespaceCache
    nodes    LocalModelNodeGroup, LocalModelNode

Everything of these is imported from here.
"""

from __future__ import annotations

from coordinator.api.caches import (
    CacheBytes,
    ClaimName,
    Copies,
    Digest,
    Globs,
    GroupNames,
    IntOrPercent,
    KeptVersions,
    LocalModelCache,
    LocalModelCacheSpec,
    LocalModelCacheStatus,
    LocalModelNamespaceCache,
    LocalModelNamespaceCacheSpec,
    ModelUri,
    ModelVersion,
    MountableClaim,
    NamespacedName,
    Refresh,
    RefreshStatus,
    RolloutSpec,
    StatusKey,
)
from coordinator.api.fields import (
    GROUP,
    QUANTITY_PATTERN,
    QUANTITY_SCHEMA,
    VERSION,
    ApiModel,
    Bytes,
    CacheName,
    Condition,
    LocalModelStorageSpec,
    ModelStatus,
    NodeStatus,
    ObjectMeta,
    OwnerReference,
    Quantity,
    Resource,
    Time,
    kubernetes_type,
    list_map,
)
from coordinator.api.nodes import (
    LocalModelInfo,
    LocalModelNode,
    LocalModelNodeGroup,
    LocalModelNodeGroupSpec,
    LocalModelNodeGroupStatus,
    LocalModelNodeSpec,
    LocalModelNodeStatus,
    NodeAgentDetail,
    NodeModelDetail,
    NodeRootDetail,
    NodeSummary,
)

__all__ = [
    "GROUP",
    "QUANTITY_PATTERN",
    "QUANTITY_SCHEMA",
    "RESOURCES",
    "VERSION",
    "ApiModel",
    "Bytes",
    "CacheBytes",
    "CacheName",
    "ClaimName",
    "Condition",
    "Copies",
    "Digest",
    "Globs",
    "GroupNames",
    "IntOrPercent",
    "KeptVersions",
    "LocalModelCache",
    "LocalModelCacheSpec",
    "LocalModelCacheStatus",
    "LocalModelInfo",
    "LocalModelNamespaceCache",
    "LocalModelNamespaceCacheSpec",
    "LocalModelNode",
    "LocalModelNodeGroup",
    "LocalModelNodeGroupSpec",
    "LocalModelNodeGroupStatus",
    "LocalModelNodeSpec",
    "LocalModelNodeStatus",
    "LocalModelStorageSpec",
    "ModelStatus",
    "ModelUri",
    "ModelVersion",
    "MountableClaim",
    "NamespacedName",
    "NodeAgentDetail",
    "NodeModelDetail",
    "NodeRootDetail",
    "NodeStatus",
    "NodeSummary",
    "ObjectMeta",
    "OwnerReference",
    "Quantity",
    "Refresh",
    "RefreshStatus",
    "Resource",
    "RolloutSpec",
    "StatusKey",
    "Time",
    "kubernetes_type",
    "list_map",
]


RESOURCES: tuple[type[Resource], ...] = (LocalModelCache, LocalModelNamespaceCache, LocalModelNodeGroup, LocalModelNode)
