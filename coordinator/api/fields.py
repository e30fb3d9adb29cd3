"""The parts of the resources: types of fields, KServe's words, and the part of `metadata` that is read here."""

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

Bytes = Annotated[int, WithJsonSchema({"type": "integer", "format": "int64"})]
Time = Annotated[datetime, WithJsonSchema({"type": "string", "format": "date-time"})]


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

    key: str | None = Field(None, description="Entry of the Secret `storage-config` that holds the credentials.")
    parameters: Mapping[str, str] | None = Field(
        None, description="Overrides what the Secret says, such as the bucket's region or endpoint."
    )


class Condition(ApiModel):
    """One aspect of the state, as `kubectl wait` understands it (metav1.Condition)."""

    type: str = Field(description="Ready, Progressing or Degraded.")
    status: str = Field(description="True, False or Unknown.")
    reason: str = Field(description="CamelCase, for programs: docs/reasons.md.")
    message: str = Field("", description="For people: the thing, the number, the cause, the next step.")
    last_transition_time: Time = Field(description="When `status` last changed.")
    observed_generation: Bytes | None = Field(None, description="The metadata.generation that this is about.")


class Resource(ApiModel):
    """A whole object. Class attributes say how the API server knows its kind."""

    KIND: ClassVar[str]
    PLURAL: ClassVar[str]
    SHORT_NAMES: ClassVar[tuple[str, ...]]
    NAMESPACED: ClassVar[bool] = False

    metadata: ObjectMeta
