"""The seam to the Kubernetes API: plain dicts in and out, errors of our own, a timeout on every call.

`Kube` is what the rest knows; the real one is `HttpKube`. Nothing here knows a client, so that what decides may name a
kind without one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

Object = Mapping[str, Any]
"""A Kubernetes object as JSON. Never mutated."""

Objects = list[Object]
"""Named here because inside the classes below `list` is a verb."""


@dataclass(frozen=True, slots=True)
class ResourceType:
    """How the API server is asked for a kind. `group` "" is the core group."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = False

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path. A namespaced kind without `namespace` names all namespaces."""
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        if namespace is not None and self.namespaced:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/".join(parts)


NODES = ResourceType("", "v1", "nodes", "Node")
NAMESPACES = ResourceType("", "v1", "namespaces", "Namespace")
EVENTS = ResourceType("", "v1", "events", "Event", namespaced=True)
SECRETS = ResourceType("", "v1", "secrets", "Secret", namespaced=True)
SERVICE_ACCOUNTS = ResourceType("", "v1", "serviceaccounts", "ServiceAccount", namespaced=True)
CONFIG_MAPS = ResourceType("", "v1", "configmaps", "ConfigMap", namespaced=True)
PODS = ResourceType("", "v1", "pods", "Pod", namespaced=True)
CLAIMS = ResourceType("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", namespaced=True)
VOLUMES = ResourceType("", "v1", "persistentvolumes", "PersistentVolume")
LEASES = ResourceType("coordination.k8s.io", "v1", "leases", "Lease", namespaced=True)


class KubeError(Exception):
    """Base. `status` is the HTTP status, 0 if there was no answer."""

    def __init__(self, message: str, *, status: int = 0, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class Unreachable(KubeError):
    """No answer: refused, reset, timed out, TLS, or a 5xx/429 that asks to come back."""


class NotFound(KubeError):
    """404: the object, or the kind itself."""


class Conflict(KubeError):
    """409: `resourceVersion` is stale, or the object exists already."""


class Gone(KubeError):
    """410: the resourceVersion is too old to watch from; list again."""


class Denied(KubeError):
    """401 or 403: credentials or RBAC."""


class Invalid(KubeError):
    """400 or 422: the API server's validation refused the object."""


class EventType(StrEnum):
    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"


class PatchType(StrEnum):
    MERGE = "application/merge-patch+json"
    JSON = "application/json-patch+json"
    APPLY = "application/apply-patch+yaml"


@dataclass(frozen=True, slots=True)
class WatchEvent:
    type: EventType
    object: Object


class Kube(Protocol):
    """The calls that are made of an API server. Every call raises KubeError only, and returns within its timeout."""

    def list(
        self, resource: ResourceType, *, namespace: str | None = None, field_selector: str | None = None
    ) -> tuple[Objects, str]:
        """All objects (pages followed) and the resourceVersion to watch from."""

    def watch(self, resource: ResourceType, resource_version: str, *, timeout_s: float) -> Iterator[WatchEvent]:
        """Events after `resource_version`, bookmarks included; ends normally after about `timeout_s`. Raises Gone."""

    def get(self, resource: ResourceType, name: str, *, namespace: str | None = None) -> Object: ...

    def create(self, resource: ResourceType, body: Object, *, namespace: str | None = None) -> Object: ...

    def replace(self, resource: ResourceType, name: str, body: Object, *, namespace: str | None = None) -> Object: ...

    def patch(
        self,
        resource: ResourceType,
        name: str,
        body: Object | Sequence[Object],
        *,
        namespace: str | None = None,
        subresource: str | None = None,
        patch_type: PatchType = PatchType.MERGE,
    ) -> Object:
        """A merge patch that carries `metadata.resourceVersion` raises Conflict when somebody was faster."""

    def delete(
        self,
        resource: ResourceType,
        name: str,
        *,
        namespace: str | None = None,
        uid: str = "",
        version: str = "",
        foreground: bool = False,
    ) -> None:
        """Raises Conflict where the object is another than `uid`, or newer than the resourceVersion `version`.

        `foreground`: it stays, marked, until what it owns is gone.
        """

    def server_version(self) -> str:
        """The cheapest call that proves the API server answers."""
