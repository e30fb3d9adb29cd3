"""LocalModelNodeGroup and LocalModelNode: nodes that hold models, what each should hold, and what it does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from coordinator.api.fields import (
    ApiModel,
    Bytes,
    LocalModelStorageSpec,
    ModelStatus,
    Quantity,
    Resource,
    Time,
    kubernetes_type,
    list_map,
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
    used: Quantity | None = Field(None, description="By the group's models, summed over the nodes that report.")
    available: Quantity | None = Field(None, description="For more models, summed over the nodes that report.")
    storage_limit_mode: Literal["Enforce", "Warn"] | None = Field(
        None, description="Whether a model that does not fit into storageLimit is not fetched, or is only warned of."
    )
    nodes_over_limit: Bytes | None = Field(
        None, description="On how many nodes the group's models take more than storageLimit."
    )


class LocalModelInfo(ApiModel):
    """One model that a node should hold."""

    source_model_uri: str = Field(description="Where the model comes from.")
    model_name: str = Field(description="Name of the cache.")
    namespace: str | None = Field(None, description="Namespace of the cache; absent of a cluster cache.")
    node_group: str | None = Field(None, description="The LocalModelNodeGroup that puts it on this node.")
    service_account_name: str | None = Field(None, description="As in the spec of the cache.")
    storage: LocalModelStorageSpec | None = None


class LocalModelNodeSpec(ApiModel):
    local_models: tuple[LocalModelInfo, ...] = Field(description="What this node should hold.")


class NodeModelDetail(ApiModel):
    """One model on this node, for people. Ours."""

    name: str = Field(description="The key of `modelStatus` this explains.")
    phase: str = Field(description="Pending, Downloading, Verifying, Ready, Failed, Damaged or Removing.")
    progress: str | None = Field(None, description='How far it is, for people, e.g. "41% of 15.3Gi".')
    bytes_total: Bytes | None = Field(None, description="Size of the copy.")
    bytes_done: Bytes | None = Field(None, description="Finished bytes, of earlier attempts too.")
    bytes_from_origin: Bytes | None = Field(None, description="Bytes read from the origin.")
    bytes_from_peers: Bytes | None = Field(None, description="Bytes read from other nodes.")
    bytes_from_other_zones: Bytes | None = Field(None, description="Those of `bytesFromPeers` that crossed a zone.")
    bytes_reused: Bytes | None = Field(None, description="Bytes that other copies on the node had.")
    rate_bytes_per_second: Bytes | None = Field(None, description="Absent when nothing moves.")
    eta: str | None = Field(None, description='Time left at this rate, e.g. "4m10s".')
    attempt: Bytes | None = Field(None, description="Number of the attempt, from 1.")
    reason: str | None = Field(None, description="Why it is not as it should be: docs/reasons.md.")
    message: str | None = Field(None, description="For people: the thing, the number, the cause, the next step.")
    retry_time: Time | None = Field(None, description="When it is tried again.")
    orphaned_since: Time | None = Field(
        None, description="Since when no node group of the cache selects the node, although nobody removed it from one."
    )
    removal_time: Time | None = Field(None, description="When the orphaned copy goes, if no pod uses it then.")
    digest: str | None = Field(None, description="Manifest digest of the copy that is there.")
    revision: str | None = Field(None, description="What the copy that is there is of.")
    verified: Mapping[str, int] | None = Field(None, description="Number of files by how each was checked.")
    started_at: Time | None = Field(None, description="When its fill began.")
    finished_at: Time | None = Field(None, description="When it was committed.")
    verified_at: Time | None = Field(None, description="When the whole copy was last read from the disk.")
    repaired: str | None = Field(None, description="What was damaged when the copy was last repaired.")
    repaired_at: Time | None = Field(None, description="When that was.")
    wrong_peers: Mapping[str, int] | None = Field(
        None, description="By node, chunks that came from it to this one with wrong bytes."
    )
    wrong_readers: Mapping[str, int] | None = Field(
        None, description="By node, chunks that this one found to be wrong since they were read from the origin."
    )


class NodeRootDetail(ApiModel):
    """One model root on this node's disk. Ours."""

    path: str = Field(description="As the PersistentVolume of the node group names it.")
    free: Bytes | None = Field(None, description="Bytes that are free on its filesystem.")
    used: Bytes | None = Field(None, description="Bytes of committed models.")
    reserved: Bytes | None = Field(None, description="Bytes that are promised to fills under way.")
    aside: Bytes | None = Field(None, description="Part of `used`: old copies that a pod may still have open.")
    junk: list[str] | None = Field(
        None, description="What was found there and is not ours: where it is now, and why it was set aside."
    )
    reason: str | None = Field(None, description="Why it cannot be used: docs/reasons.md.")
    message: str | None = Field(None, description="For people: the cause and the next step.")


class NodeAgentDetail(ApiModel):
    """The agent on this node. Ours."""

    ready: bool = Field(False, description="Whether it reports.")
    incarnation: str | None = Field(None, description="New for every start of the agent.")
    version: str | None = Field(None, description="Of localmodel on the node.")
    silent_since: Time | None = Field(None, description="When it last reported; absent while it does.")
    reason: str | None = Field(None, description="Why it does not report: docs/reasons.md.")
    message: str | None = Field(None, description="For people: the cause and the next step.")


class NodeSummary(ApiModel):
    """This node and all its models together, as `kubectl get` shows them. Ours."""

    ready: str | None = Field(None, description="Whether the node agent reports: True or False.")
    models: str | None = Field(None, description='Models that are there of those that should be, e.g. "3/4".')
    size: str | None = Field(None, description='What they take on its disks, e.g. "97.2Gi".')
    free: str | None = Field(None, description='What is free on its fullest disk, e.g. "3.1Gi".')
    rate: str | None = Field(None, description='What arrives, e.g. "1.2Gi/s"; absent when nothing does.')


class LocalModelNodeStatus(ApiModel):
    model_status: Mapping[str, ModelStatus] = Field(
        default_factory=dict, description="By cache name, or namespace/name of a namespaced cache."
    )
    # Ours.
    summary: NodeSummary | None = None
    models: tuple[NodeModelDetail, ...] = Field(
        (), json_schema_extra=list_map("name"), description="Each model that the node holds, or should."
    )
    roots: tuple[NodeRootDetail, ...] = Field(
        (), json_schema_extra=list_map("path"), description="The folders that hold models."
    )
    agent: NodeAgentDetail | None = None


class LocalModelNodeGroup(Resource):
    """Nodes that hold models, in which folder, and how much of it."""

    KIND = "LocalModelNodeGroup"
    PLURAL = "localmodelnodegroups"
    SHORT_NAMES = ("lmng",)

    spec: LocalModelNodeGroupSpec = Field(description="What is wanted.")
    status: LocalModelNodeGroupStatus = Field(
        LocalModelNodeGroupStatus(), description="What is. Written by the coordinator."
    )


class LocalModelNode(Resource):
    """What one node should hold and does hold. Named like the Kubernetes node."""

    KIND = "LocalModelNode"
    PLURAL = "localmodelnodes"
    SHORT_NAMES = ("lmn",)

    spec: LocalModelNodeSpec = Field(description="What is wanted.")
    status: LocalModelNodeStatus = Field(LocalModelNodeStatus(), description="What is. Written by the coordinator.")
