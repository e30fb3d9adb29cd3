"""The little that the server itself must know of a built-in kind: namespaces hold objects, CRDs serve kinds.

Every function is the identity for all other kinds.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping

from coordinator.dev.apiserver import errors, rules, schema, webhook_configurations
from coordinator.dev.apiserver.builtins import CRDS, MUTATING, NAMESPACES, VALIDATING
from coordinator.dev.apiserver.errors import Cause, Object
from coordinator.dev.apiserver.kinds import Kind

NAMESPACES_AT_START = ("default", "kube-system", "kube-public", "kube-node-lease")
CRD_FINALIZER = "customresourcecleanup.apiextensions.k8s.io"


def initialised(kind: Kind, value: Object, now: str) -> Object:
    """What the server makes of a new object: no status but its own, and a first generation where that counts."""
    meta = value["metadata"]
    if kind.status and kind.plural != "nodes":  # a kubelet registers its node with its status
        value = {key: item for key, item in value.items() if key != "status"}
    if kind.custom or kind in (CRDS, VALIDATING, MUTATING) or _is(kind, "pods"):
        value = {**value, "metadata": {**meta, "generation": 1}}
    if kind is NAMESPACES:
        labels = {**meta.get("labels", {}), "kubernetes.io/metadata.name": meta.get("name", "")}
        spec, status = {"finalizers": ["kubernetes"]}, {"phase": "Active"}
        return {**value, "metadata": {**meta, "labels": labels}, "spec": spec, "status": status}
    value = normalised(kind, value)
    if kind is CRDS:
        return {**value, "status": {"conditions": None, "acceptedNames": _NO_NAMES, "storedVersions": _stored(value)}}
    if _is(kind, "persistentvolumes", "persistentvolumeclaims", "pods"):
        return {**value, "status": {"phase": "Pending"}}
    return value


_NO_NAMES = {"plural": "", "kind": ""}


def _is(kind: Kind, *plurals: str) -> bool:
    """Whether it is one of these core kinds."""
    return kind.group == "" and kind.plural in plurals


def normalised(kind: Kind, value: Object) -> Object:
    """The form in which the kind is stored."""
    if kind in (VALIDATING, MUTATING):
        return webhook_configurations.defaulted(value, mutating=kind is MUTATING)
    if _is(kind, "pods") and isinstance(value.get("spec"), dict):
        return {**value, "spec": {"restartPolicy": "Always", "terminationGracePeriodSeconds": 30, **value["spec"]}}
    if _is(kind, "secrets"):
        plain = value.get("stringData") or {}
        data = {key: base64.b64encode(str(text).encode()).decode() for key, text in plain.items()}
        rest = {key: item for key, item in value.items() if key != "stringData"}
        known = {key: "" if item is None else item for key, item in (value.get("data") or {}).items()}
        return {"type": "Opaque", **rest} | ({"data": {**known, **data}} if known or data else {})
    if kind is CRDS and isinstance(value.get("spec"), dict) and isinstance(value["spec"].get("names"), dict):
        spec, names = value["spec"], value["spec"]["names"]
        named = str(names.get("kind", ""))
        names = {"singular": named.lower(), "listKind": named + "List", **names}
        return {**value, "spec": {"conversion": {"strategy": "None"}, **spec, "names": names}}
    return value


def kept(kind: Kind, old: Object, value: Object) -> Object:
    """`value` with what only the server changes as it was in `old`."""
    return {**value, "spec": old["spec"]} if kind is NAMESPACES else value


def conditional(kind: Kind) -> bool:
    """Whether a PUT must name the version that it replaces."""
    return kind.custom or kind.plural == "leases"


def shown_when_deleted(kind: Kind) -> bool:
    """Whether the answer to a deletion is the object, and not that it was a success."""
    return _is(kind, "pods", "persistentvolumes", "persistentvolumeclaims", "serviceaccounts", "services")


def counts_deletion(kind: Kind) -> bool:
    """Whether a deletion is a new generation with a grace period, however short."""
    return kind not in (CRDS, NAMESPACES)


def grace_s(kind: Kind, value: Object, asked_s: int | None) -> int:
    """How long a deleted object stays for a kubelet to end it: only a pod that is bound and not over has one."""
    spec, phase = value.get("spec") or {}, (value.get("status") or {}).get("phase")
    if not _is(kind, "pods") or not spec.get("nodeName") or phase in ("Succeeded", "Failed"):
        return 0
    own = spec.get("terminationGracePeriodSeconds", 30)
    grace = own if asked_s is None else asked_s
    return int(grace) if isinstance(grace, int) else 30


def establishing(crd: Object, now: str) -> Object | None:
    """What the server's own controller makes of a definition it has not looked at; None if it has."""
    if (crd.get("status") or {}).get("conditions") or crd["metadata"].get("deletionTimestamp"):
        return None
    meta = {**crd["metadata"], "finalizers": [*crd["metadata"].get("finalizers", ()), CRD_FINALIZER]}
    return {**crd, "metadata": meta, "status": _established(crd, now)}


def causes(kind: Kind, value: Object, old: Object | None) -> Iterator[Cause]:
    """The faults of an object, beyond those of metadata and schema."""
    if kind is CRDS:
        yield from _crd_causes(value)
    elif kind in (VALIDATING, MUTATING):
        yield from webhook_configurations.causes(value)
    elif _is(kind, "nodes"):
        yield from _taint_causes((value.get("spec") or {}).get("taints") or ())
    elif _is(kind, "pods") and not (value.get("spec") or {}).get("containers"):
        yield errors.required("spec.containers")
    elif _is(kind, "configmaps", "secrets"):
        yield from _data_causes(value, old)
    elif _is(kind, "events") and old is None:
        about = (value.get("involvedObject") or {}).get("namespace", "")
        if about and about != value["metadata"].get("namespace"):
            yield errors.invalid_value("involvedObject.namespace", about, "does not match event.namespace")
    elif kind.plural == "leases":
        spec = value.get("spec") or {}
        if isinstance(seconds := spec.get("leaseDurationSeconds"), int) and seconds <= 0:
            yield errors.invalid_value("spec.leaseDurationSeconds", seconds, "must be greater than 0")
        if isinstance(times := spec.get("leaseTransitions"), int) and times < 0:
            yield errors.invalid_value("spec.leaseTransitions", times, "must be greater than or equal to 0")


_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_DATA_KEY = re.compile(r"^[-._a-zA-Z0-9]{1,253}$")
_DATA_KEY_RULE = (
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or "
    "'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
)


def _taint_causes(taints: object) -> Iterator[Cause]:
    for index, taint in enumerate(taints if isinstance(taints, list) else ()):
        effect = taint.get("effect") if isinstance(taint, Mapping) else None
        if not effect:
            yield errors.required(f"metadata.taints[{index}].effect")
        elif effect not in _EFFECTS:
            yield errors.unsupported_value(f"metadata.taints[{index}].effect", effect, _EFFECTS)


def _data_causes(value: Object, old: Object | None) -> Iterator[Cause]:
    """Of a ConfigMap or Secret."""
    for key in value.get("data") or ():
        if not _DATA_KEY.match(key):
            yield errors.invalid_value(f"data[{key}]", key, _DATA_KEY_RULE)
    if old is None:
        return
    if value.get("type") != old.get("type"):
        yield errors.invalid_value("type", value.get("type"), "field is immutable")
    if old.get("immutable") and value.get("data") != old.get("data"):
        yield errors.forbidden_value("data", "field is immutable when `immutable` is set")


def refuse_delete(kind: Kind, name: str) -> None:
    """Raises StatusError 403 for the namespaces that must stay."""
    if kind is NAMESPACES and name in NAMESPACES_AT_START[:3]:
        raise errors.forbidden(kind.group, kind.plural, name, "this namespace may not be deleted")


def held(kind: Kind, value: Object) -> bool:
    """Whether something beside metadata.finalizers keeps a deleted object."""
    return kind is NAMESPACES and bool(value.get("spec", {}).get("finalizers"))


def terminating(kind: Kind, value: Object) -> Object:
    """A deleted object that is still held."""
    return {**value, "status": {"phase": "Terminating"}} if kind is NAMESPACES else value


def released(kind: Kind, value: Object) -> Object:
    """Without what `held` it."""
    return {**value, "spec": {}} if kind is NAMESPACES else value


def _established(crd: Object, now: str) -> Object:
    spec = crd.get("spec") or {}
    conditions = (("NamesAccepted", "NoConflicts", "no conflicts found"),
                  ("Established", "InitialNamesAccepted", "the initial names have been accepted"))  # fmt: skip
    return {
        "acceptedNames": spec.get("names", {}),
        "conditions": [
            {"type": kind, "status": "True", "lastTransitionTime": now, "reason": reason, "message": message}
            for kind, reason, message in conditions
        ],
        "storedVersions": _stored(crd),
    }


def _stored(crd: Object) -> list[object]:
    versions = (crd.get("spec") or {}).get("versions") or ()
    return [each.get("name") for each in versions if isinstance(each, dict) and each.get("storage")]


def _crd_causes(crd: Object) -> Iterator[Cause]:
    """What the schema of CustomResourceDefinitions does not say."""
    spec, name = crd["spec"], crd["metadata"].get("name")
    if name != f"{spec['names']['plural']}.{spec['group']}":
        yield errors.invalid_value("metadata.name", name, 'must be spec.names.plural+"."+spec.group')
    if not spec["group"]:
        yield errors.required("spec.group")
    for part in ("plural", "singular"):
        word = spec["names"].get(part, "")
        if word and not _DNS_1035.match(word):
            yield errors.invalid_value(f"spec.names.{part}", word, _DNS_1035_RULE)
    if sum(version["storage"] for version in spec["versions"]) != 1:
        yield errors.invalid_value(
            "spec.versions", spec["versions"], "must have exactly one version marked as storage version"
        )
        if not _stored(crd):
            yield errors.invalid_value("status.storedVersions", None, "must have at least one stored version")
    for index, version in enumerate(spec["versions"]):
        path = f"spec.versions[{index}].schema.openAPIV3Schema"
        known = (version.get("schema") or {}).get("openAPIV3Schema")
        if not isinstance(known, dict):
            yield errors.required(path)
            continue
        if len(spec["versions"]) == 1:
            path = "spec.validation.openAPIV3Schema"  # a schema that all versions share stands there inside a server
        if known.get("type") != "object":
            yield errors.invalid_value(f"{path}.type", known.get("type"), "must be object at the root")
        problems = [*schema.structural(known, path), *_metadata_causes(known, path)]
        yield from problems
        if problems:
            continue
        for place, rule in rules.rules_of(known):
            if why := rules.compiles(rule):
                yield errors.invalid_value(f"{path}{place}", rule, f"compilation failed: {why}")


def _metadata_causes(known: Mapping[str, object], path: str) -> Iterator[Cause]:
    """What a schema may say of metadata: that name and generateName are restricted, and nothing else."""
    properties = known.get("properties")
    found = properties.get("metadata") if isinstance(properties, Mapping) else None
    if not isinstance(found, Mapping):
        return
    inner = found.get("properties") or {}
    if found.keys() - {"type", "properties"} or inner.keys() - {"name", "generateName"}:
        why = "must not specify anything other than name and generateName, but metadata is implicitly specified"
        yield errors.forbidden_value(f"{path}.properties[metadata]", why)


_DNS_1035 = re.compile(r"^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$")
_DNS_1035_RULE = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, "
    "and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is "
    "'[a-z]([-a-z0-9]*[a-z0-9])?')"
)
