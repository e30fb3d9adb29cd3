"""The kinds every API server has, as plain stored objects: no schema, no defaults, no controllers behind them.

Enough of each for `kubectl get` and `describe` to be useful, and merge keys where clients send strategic patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coordinator.dev.apiserver.kinds import Column, Kind

AGE = Column("Age", ".metadata.creationTimestamp", "date")

EVENT_SELECTABLE = (
    "involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid",
    "involvedObject.apiVersion", "involvedObject.resourceVersion", "involvedObject.fieldPath",
    "reason", "reportingComponent", "source", "type",
)  # fmt: skip

_MERGE_KEYS = {
    "status.conditions": "type",
    "status.addresses": "type",
    "spec.containers": "name",
    "spec.containers.env": "name",
    "spec.containers.ports": "containerPort",
    "spec.containers.volumeMounts": "mountPath",
    "spec.initContainers": "name",
    "spec.volumes": "name",
    "spec.ports": "port",
    "secrets": "name",
    "imagePullSecrets": "name",
}
"""Lists that a strategic merge patch merges by a key; all others, a node's taints among them, are replaced."""
# https://kubernetes.io/docs/tasks/manage-kubernetes-objects/update-api-object-kubectl-patch/


def _opaque(**properties: Any) -> dict[str, Any]:
    """An object of which only these properties are known."""
    return {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": properties}


def _lenient(merge_keys: Mapping[str, str]) -> dict[str, Any]:
    """A schema that wants spec and status to be objects and knows the merge keys; the rest may be anything."""
    root = _opaque(spec=_opaque(), status=_opaque())
    for path, key in merge_keys.items():
        *parents, name = path.split(".")
        node = root
        for part in parents:
            node = node["properties"][part]
            node = node.get("items", node)
        node["properties"][name] = {"type": "array", "x-kubernetes-patch-merge-key": key, "items": _opaque()}
    return root


_LENIENT = _lenient(_MERGE_KEYS)
_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}, "nullable": True}
_BASE64 = {
    "type": "object",
    "additionalProperties": {"type": "string", "format": "byte", "nullable": True},
    "nullable": True,
}
_TIME = {"type": "string", "format": "date-time", "nullable": True}
_MICRO_TIME = {"type": "string", "format": "micro-time", "nullable": True}
_COUNT = {"type": "integer", "nullable": True}
_LEASE = _opaque(
    spec=_opaque(
        holderIdentity={"type": "string", "nullable": True},
        leaseDurationSeconds=_COUNT,
        leaseTransitions=_COUNT,
        acquireTime=_MICRO_TIME,
        renewTime=_MICRO_TIME,
    )
)
_EVENT = _opaque(
    involvedObject=_opaque(), count=_COUNT, firstTimestamp=_TIME, lastTimestamp=_TIME, eventTime=_MICRO_TIME
)
"""What a client may get wrong, and a real server refuses to read."""


def _kind(plural: str, kind: str, *, group: str = "", version: str = "v1", **rest: object) -> Kind:
    lower = kind.lower()
    return Kind(group, version, plural, kind, singular=lower, list_kind=kind + "List", **{"schema": _LENIENT, **rest})  # type: ignore[arg-type]  # passed on by name


_NAMES = _opaque(plural={"type": "string"}, kind={"type": "string"}) | {"required": ["plural", "kind"]}
_TEXT = {"type": "string"}
_COLUMN = _opaque(name=_TEXT, type=_TEXT, jsonPath=_TEXT, priority={"type": "integer"})
_VERSION = _opaque(
    name=_TEXT,
    served={"type": "boolean"},
    storage={"type": "boolean"},
    schema=_opaque(),
    subresources=_opaque(),
    additionalPrinterColumns={"type": "array", "items": _COLUMN | {"required": ["name", "type", "jsonPath"]}},
    selectableFields={"type": "array", "items": _opaque(jsonPath=_TEXT) | {"required": ["jsonPath"]}},
)
_CRD_SPEC = _opaque(
    group={"type": "string"},
    scope={"type": "string", "enum": ["Cluster", "Namespaced"]},
    names=_NAMES,
    versions={"type": "array", "minItems": 1, "items": _VERSION | {"required": ["name", "served", "storage"]}},
)
_CRD = _opaque(spec=_CRD_SPEC | {"required": ["group", "scope", "names", "versions"]}) | {"required": ["spec"]}

CRDS = _kind(
    "customresourcedefinitions",
    "CustomResourceDefinition",
    group="apiextensions.k8s.io",
    short_names=("crd", "crds"),
    schema=_CRD,
    categories=("api-extensions",),
    status=True,
    columns=(Column("Created At", ".metadata.creationTimestamp", "string", format="date-time"),),
)

NAMESPACES = _kind(
    "namespaces",
    "Namespace",
    short_names=("ns",),
    status=True,
    selectable=("status.phase",),
    columns=(Column("Status", ".status.phase"), AGE),
)

VALIDATING, MUTATING = (
    _kind(
        f"{word.lower()}webhookconfigurations",
        f"{word}WebhookConfiguration",
        group="admissionregistration.k8s.io",
        categories=("api-extensions",),
        schema={**_opaque(webhooks={"type": "array", "x-kubernetes-patch-merge-key": "name", "items": _opaque()})},
        columns=(Column("Webhooks", "webhook-count", "integer"), AGE),
    )
    for word in ("Validating", "Mutating")
)

BUILTINS = (
    NAMESPACES,
    CRDS,
    VALIDATING,
    MUTATING,
    _kind(
        "nodes",
        "Node",
        short_names=("no",),
        status=True,
        selectable=("spec.unschedulable",),
        columns=(
            Column("Status", "node-status"),
            Column("Roles", "node-roles"),
            AGE,
            Column("Version", ".status.nodeInfo.kubeletVersion"),
            Column("Internal-IP", '.status.addresses[?(@.type=="InternalIP")].address', priority=1),
        ),
    ),
    _kind(
        "events",
        "Event",
        namespaced=True,
        short_names=("ev",),
        schema=_EVENT,
        selectable=EVENT_SELECTABLE,
        columns=(
            Column("Last Seen", "event-last-seen", "date"),
            Column("Type", ".type"),
            Column("Reason", ".reason"),
            Column("Object", "event-object"),
            Column("Count", ".count", "integer", priority=1),
            Column("Message", ".message"),
        ),
    ),
    _kind(
        "configmaps",
        "ConfigMap",
        namespaced=True,
        short_names=("cm",),
        schema=_opaque(data=_STRINGS, binaryData=_BASE64),
        columns=(Column("Data", "data-count"), AGE),
    ),
    _kind(
        "secrets",
        "Secret",
        namespaced=True,
        schema=_opaque(data=_BASE64, stringData=_STRINGS),
        selectable=("type",),
        columns=(Column("Type", ".type"), Column("Data", "data-count"), AGE),
    ),
    _kind("serviceaccounts", "ServiceAccount", namespaced=True, short_names=("sa",), columns=(AGE,)),
    _kind(
        "services",
        "Service",
        namespaced=True,
        short_names=("svc",),
        status=True,
        selectable=("spec.clusterIP", "spec.type"),
        columns=(Column("Type", ".spec.type"), Column("Cluster-IP", ".spec.clusterIP"), AGE),
    ),
    _kind(
        "persistentvolumes",
        "PersistentVolume",
        short_names=("pv",),
        status=True,
        columns=(
            Column("Capacity", ".spec.capacity.storage"),
            Column("Access Modes", ".spec.accessModes"),
            Column("Reclaim Policy", ".spec.persistentVolumeReclaimPolicy"),
            Column("Status", ".status.phase"),
            Column("Claim", ".spec.claimRef.name"),
            Column("StorageClass", ".spec.storageClassName"),
            AGE,
        ),
    ),
    _kind(
        "persistentvolumeclaims",
        "PersistentVolumeClaim",
        namespaced=True,
        short_names=("pvc",),
        status=True,
        columns=(
            Column("Status", ".status.phase"),
            Column("Volume", ".spec.volumeName"),
            Column("Capacity", ".status.capacity.storage"),
            Column("StorageClass", ".spec.storageClassName"),
            AGE,
        ),
    ),
    _kind(
        "pods",
        "Pod",
        namespaced=True,
        short_names=("po",),
        categories=("all",),
        status=True,
        selectable=("spec.nodeName", "spec.restartPolicy", "spec.serviceAccountName", "status.phase", "status.podIP"),
        columns=(Column("Status", ".status.phase"), AGE, Column("Node", ".spec.nodeName", priority=1)),
    ),
    _kind(
        "leases",
        "Lease",
        group="coordination.k8s.io",
        namespaced=True,
        schema=_LEASE,
        columns=(Column("Holder", ".spec.holderIdentity"), AGE),
    ),
    _kind("jobs", "Job", group="batch", namespaced=True, status=True, columns=(AGE,)),
    *(
        _kind(plural, kind, group=group, namespaced=not kind.startswith("Cluster"), columns=(AGE,))
        for group, plural, kind in (
            ("apps", "deployments", "Deployment"),
            ("apps", "daemonsets", "DaemonSet"),
            ("", "podtemplates", "PodTemplate"),
            ("networking.k8s.io", "networkpolicies", "NetworkPolicy"),
            ("rbac.authorization.k8s.io", "clusterroles", "ClusterRole"),
            ("rbac.authorization.k8s.io", "clusterrolebindings", "ClusterRoleBinding"),
            ("rbac.authorization.k8s.io", "roles", "Role"),
            ("rbac.authorization.k8s.io", "rolebindings", "RoleBinding"),
        )
    ),  # what an operator's manifests hold: stored, and nobody acts on it
)
