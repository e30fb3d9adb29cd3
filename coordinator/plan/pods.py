"""Pods, reduced to what tells which models they use.

KServe's pods carry the cache's name in a label and mount the claim `<cache>-<group>`; others mount a path that has the
storage key in it. A pod that has ended uses nothing; one that no node runs yet may be started anywhere, so it counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from actors.messages import NodeName
from actors.times import seconds_of
from coordinator.api.resources import StatusKey
from coordinator.kube.interface import Object
from coordinator.kube.parts import list_of, mapping_of

CACHE_LABEL = "internal.serving.kserve.io/localmodel"
NAMESPACE_LABEL = "internal.serving.kserve.io/localmodel-namespace"


@dataclass(frozen=True, slots=True)
class Pod:
    """One that has not ended. `labelled` is the cache that KServe gave it; `words` are the parts of all it mounts.

    `folders` are the hostPaths it mounts, none for pods of the coordinator's own namespace: they are the node agents.
    `created` is epoch seconds; 0 where it is not known. `daemon`: it belongs to a DaemonSet. `mounts` are its claims,
    each with a path within it that some container mounts; "": the whole of it, or what only the container knows.
    """

    namespace: str
    node: NodeName | None
    claims: frozenset[str] = frozenset()
    labelled: StatusKey | None = None
    words: frozenset[str] = frozenset()
    folders: frozenset[str] = frozenset()
    created: float = 0.0
    name: str = ""
    daemon: bool = False
    uid: str = field(default="", compare=False)
    mounts: frozenset[tuple[str, str]] = field(default=frozenset(), compare=False)

    def over(self, paths: Mapping[str, str]) -> Pod:
        """The same with what it mounts by way of claims, of which `paths` has the folder on the node."""
        mounted = [(paths[claim], inside) for claim, inside in self.mounts if claim in paths]
        whole = {path.rstrip("/") or "/" for path, inside in mounted if not inside}
        words = {word for path, inside in mounted for word in PurePosixPath(path, inside).parts if word != "/"}
        return replace(self, words=self.words | words, folders=self.folders | whole)


@dataclass(frozen=True, slots=True)
class Look:
    """The pods of one node as they were listed `at` (epoch seconds), or why they could not be."""

    at: float
    pods: tuple[Pod, ...] = ()
    failure: str | None = None


def read_pod(raw: Object, home: str = "") -> Pod | None:
    """None for one that has ended. Raises ValueError only for an object without a name.

    `home` is the coordinator's namespace. What has not the shape it should have is passed over; the rest counts.
    """
    metadata, spec = mapping_of(raw.get("metadata")), mapping_of(raw.get("spec"))
    if not metadata.get("name"):
        raise ValueError("the object has no metadata.name")
    if mapping_of(raw.get("status")).get("phase") in ("Succeeded", "Failed"):
        return None
    namespace = str(metadata.get("namespace") or "")
    labels = mapping_of(metadata.get("labels"))
    label, of_namespace = labels.get(CACHE_LABEL), labels.get(NAMESPACE_LABEL)
    volumes = [mapping_of(each) for each in list_of(spec.get("volumes"))]
    folders = {path.rstrip("/") or "/" for path in _texts(volumes, "hostPath", "path")}
    mounts = [
        mapping_of(mount)
        for kind in ("containers", "initContainers", "ephemeralContainers")
        for container in list_of(spec.get(kind))
        for mount in list_of(mapping_of(container).get("volumeMounts"))
    ]
    inside = [str(mount[name]) for mount in mounts for name in ("subPath", "subPathExpr") if mount.get(name)]
    claimed = {} if namespace == home else _claims_by_volume(volumes, metadata["name"])
    return Pod(
        namespace=namespace,
        node=NodeName(str(spec["nodeName"])) if spec.get("nodeName") else None,
        claims=frozenset(_texts(volumes, "persistentVolumeClaim", "claimName") + _ephemeral(volumes, metadata["name"])),
        labelled=StatusKey(f"{of_namespace}/{label}" if of_namespace else str(label)) if label else None,
        words=frozenset(word for path in (*folders, *inside) for word in PurePosixPath(path).parts if word != "/"),
        folders=frozenset() if namespace == home else frozenset(folders),
        created=seconds_of(metadata.get("creationTimestamp")) or 0.0,
        name=str(metadata["name"]),
        daemon=any(mapping_of(owner).get("kind") == "DaemonSet" for owner in list_of(metadata.get("ownerReferences"))),
        uid=str(metadata.get("uid") or ""),
        mounts=frozenset(
            (claimed[mount["name"]], str(mount.get("subPath") or ""))
            for mount in mounts
            if isinstance(mount.get("name"), str) and mount["name"] in claimed
        ),
    )


def _claims_by_volume(volumes: Iterable[Mapping[str, Any]], pod: object) -> dict[str, str]:
    """The PersistentVolumeClaim behind each of the pod's volumes that has one."""
    found = {}
    for volume in volumes:
        name, claim = volume.get("name"), mapping_of(volume.get("persistentVolumeClaim")).get("claimName")
        if isinstance(name, str) and isinstance(claim, str) and claim:
            found[name] = claim
        elif isinstance(name, str) and mapping_of(volume.get("ephemeral")):
            found[name] = f"{pod}-{name}"
    return found


def _ephemeral(volumes: Iterable[Mapping[str, Any]], pod: object) -> list[str]:
    """The claims that Kubernetes makes for the pod's own volumes, and the volumes that these name."""
    found = []
    for volume in volumes:
        if template := mapping_of(mapping_of(volume.get("ephemeral")).get("volumeClaimTemplate")):
            named = mapping_of(template.get("spec")).get("volumeName")
            found += [f"{pod}-{volume.get('name')}", *([named] if isinstance(named, str) else [])]
    return found


def _texts(volumes: Iterable[Mapping[str, Any]], kind: str, name: str) -> list[str]:
    found = (mapping_of(volume.get(kind)).get(name) for volume in volumes)
    return [value for value in found if isinstance(value, str) and value]
