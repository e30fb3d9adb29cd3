"""PersistentVolumes and PersistentVolumeClaims, reduced to whose they are and what they are bound to.

Those that belong to a cache carry annotations that say so (MARKS), whoever made them: what KServe made is marked when
it is first seen to be what a cache wants. Nothing without a mark is ever deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from coordinator.api.resources import StatusKey
from coordinator.kube.interface import CLAIMS, VOLUMES, Object, ResourceType
from coordinator.kube.parts import mapping_of
from coordinator.plan.ref import Ref

CACHE_MARK = "localmodel.kserve.io/cache"
"""The status key of the cache: its name, or namespace/name."""
GROUP_MARK = "localmodel.kserve.io/node-group"
ROLE_MARK = "localmodel.kserve.io/volume"
MANAGED_BY = {"app.kubernetes.io/managed-by": "localmodel"}

ClaimName = tuple[str, str]
"""(namespace, name)"""


class Role(StrEnum):
    """What a volume is for. Nobody but KServe's own agent mounts one for downloads."""

    DOWNLOAD = "download"
    SERVING = "serving"


@dataclass(frozen=True, slots=True)
class Mark:
    """Whose it is, as its annotations say."""

    cache: StatusKey
    group: str
    role: Role

    def annotations(self) -> dict[str, str]:
        return {CACHE_MARK: self.cache, GROUP_MARK: self.group, ROLE_MARK: self.role.value}


@dataclass(frozen=True, slots=True, eq=False)
class Volume:
    """A PersistentVolume. `path` and `affinity` are what makes it the volume of a node group.

    `claim` and `claim_uid` are the claim that it is, or was, bound to; "" where no claim was bound yet.
    """

    ref: Ref
    mark: Mark | None
    owners: tuple[Mapping[str, Any], ...]
    phase: str
    path: str | None
    affinity: Mapping[str, Any]
    claim: ClaimName | None
    claim_uid: str
    deleting: bool


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """A PersistentVolumeClaim. `volume` is the PersistentVolume that it names, or got.

    `capacity` is what it has, else what it asks for: a Kubernetes quantity.
    """

    ref: Ref
    mark: Mark | None
    owners: tuple[Mapping[str, Any], ...]
    phase: str
    volume: str
    modes: frozenset[str]
    volume_mode: str
    capacity: str
    deleting: bool

    @property
    def key(self) -> ClaimName:
        return self.ref.namespace or "", self.ref.name


def read_volume(raw: Object) -> Volume:
    """Raises ValueError only for an object without a name."""
    spec, bound = mapping_of(raw.get("spec")), mapping_of(mapping_of(raw.get("spec")).get("claimRef"))
    namespace, name = bound.get("namespace"), bound.get("name")
    return Volume(
        ref=_ref(raw, VOLUMES),
        mark=_mark(raw),
        owners=_owners(raw),
        phase=_text(mapping_of(raw.get("status")).get("phase")),
        path=volume_path(spec),
        affinity=mapping_of(spec.get("nodeAffinity")),
        claim=(namespace, name) if isinstance(namespace, str) and isinstance(name, str) else None,
        claim_uid=_text(bound.get("uid")),
        deleting=mapping_of(raw.get("metadata")).get("deletionTimestamp") is not None,
    )


def read_claim(raw: Object) -> Claim:
    """As `read_volume`."""
    spec = mapping_of(raw.get("spec"))
    modes = spec.get("accessModes")
    requests = mapping_of(mapping_of(spec.get("resources")).get("requests"))
    capacity = mapping_of(mapping_of(raw.get("status")).get("capacity")) or requests
    return Claim(
        ref=_ref(raw, CLAIMS),
        mark=_mark(raw),
        owners=_owners(raw),
        phase=_text(mapping_of(raw.get("status")).get("phase")),
        volume=_text(spec.get("volumeName")),
        modes=frozenset(mode for mode in modes if isinstance(mode, str)) if isinstance(modes, list) else frozenset(),
        volume_mode=_text(spec.get("volumeMode")) or "Filesystem",
        capacity=str(capacity.get("storage") or ""),
        deleting=mapping_of(raw.get("metadata")).get("deletionTimestamp") is not None,
    )


def volume_path(spec: Mapping[str, Any]) -> str | None:
    """The folder of a local or hostPath volume, without a slash at its end."""
    path = mapping_of(spec.get("local")).get("path") or mapping_of(spec.get("hostPath")).get("path")
    return (path.rstrip("/") or "/") if isinstance(path, str) and path else None


def _mark(raw: Object) -> Mark | None:
    annotations = mapping_of(mapping_of(raw.get("metadata")).get("annotations"))
    cache, group, role = (annotations.get(name) for name in (CACHE_MARK, GROUP_MARK, ROLE_MARK))
    if not isinstance(cache, str) or not isinstance(group, str) or role not in tuple(Role):
        return None
    return Mark(StatusKey(cache), group, Role(role))


def _owners(raw: Object) -> tuple[Mapping[str, Any], ...]:
    found = mapping_of(raw.get("metadata")).get("ownerReferences")
    return tuple(each for each in found if _is_owner(each)) if isinstance(found, list) else ()


def _is_owner(each: object) -> bool:
    return isinstance(each, Mapping) and all(isinstance(each.get(name), str) for name in ("kind", "uid"))


def _ref(raw: Object, resource: ResourceType) -> Ref:
    metadata = mapping_of(raw.get("metadata"))
    name = metadata.get("name")
    if not isinstance(name, str) or not name:
        raise ValueError("the object has no metadata.name")
    namespace = metadata.get("namespace") if resource.namespaced else None
    return Ref(resource, name, namespace, _text(metadata.get("uid")), _text(metadata.get("resourceVersion")))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
