"""The little that the server itself must know of a built-in kind: namespaces hold objects, CRDs serve kinds.

Every function is the identity for all other kinds.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator

from coordinator.dev.apiserver import errors, rules, schema
from coordinator.dev.apiserver.builtins import CRDS, NAMESPACES
from coordinator.dev.apiserver.errors import Cause, Object
from coordinator.dev.apiserver.kinds import Kind

NAMESPACES_AT_START = ("default", "kube-system", "kube-public", "kube-node-lease")
CRD_FINALIZER = "customresourcecleanup.apiextensions.k8s.io"


def initialised(kind: Kind, value: Object, now: str) -> Object:
    """What the server makes of a new object: no status but its own, and a first generation where that counts."""
    meta = value["metadata"]
    if kind.status and kind.plural != "nodes":  # a kubelet registers its node with its status
        value = {key: item for key, item in value.items() if key != "status"}
    if kind.custom or kind is CRDS:
        value = {**value, "metadata": {**meta, "generation": 1}}
    if kind is NAMESPACES:
        labels = {**meta.get("labels", {}), "kubernetes.io/metadata.name": meta.get("name", "")}
        spec, status = {"finalizers": ["kubernetes"]}, {"phase": "Active"}
        return {**value, "metadata": {**meta, "labels": labels}, "spec": spec, "status": status}
    value = normalised(kind, value)
    if kind is CRDS:
        return {**value, "status": _established(value, now)}
    if kind.group == "" and kind.plural in ("persistentvolumes", "persistentvolumeclaims", "pods"):
        return {**value, "status": {"phase": "Pending"}}
    return value


def normalised(kind: Kind, value: Object) -> Object:
    """The form in which the kind is stored."""
    if kind.group == "" and kind.plural == "secrets":
        plain = value.get("stringData") or {}
        data = {key: base64.b64encode(str(text).encode()).decode() for key, text in plain.items()}
        rest = {key: item for key, item in value.items() if key != "stringData"}
        return {"type": "Opaque", **rest} | ({"data": {**(value.get("data") or {}), **data}} if data else {})
    if kind is CRDS and isinstance(value.get("spec"), dict) and isinstance(value["spec"].get("names"), dict):
        spec, names = value["spec"], value["spec"]["names"]
        named = str(names.get("kind", ""))
        names = {"singular": named.lower(), "listKind": named + "List", **names}
        meta = value["metadata"]
        if not meta.get("deletionTimestamp") and CRD_FINALIZER not in meta.get("finalizers", ()):
            meta = {**meta, "finalizers": [*meta.get("finalizers", ()), CRD_FINALIZER]}
        return {**value, "metadata": meta, "spec": {"conversion": {"strategy": "None"}, **spec, "names": names}}
    return value


def causes(kind: Kind, value: Object, old: Object | None) -> Iterator[Cause]:
    """What is wrong with it, beyond metadata and schema."""
    if kind is CRDS:
        yield from _crd_causes(value)


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
        "storedVersions": [
            v.get("name") for v in spec.get("versions") or () if isinstance(v, dict) and v.get("storage")
        ],
    }


def _crd_causes(crd: Object) -> Iterator[Cause]:
    """What the schema of CustomResourceDefinitions does not say."""
    spec, name = crd["spec"], crd["metadata"].get("name")
    if name != f"{spec['names']['plural']}.{spec['group']}":
        yield errors.invalid_value("metadata.name", name, 'must be spec.names.plural+"."+spec.group')
    if sum(version["storage"] for version in spec["versions"]) != 1:
        yield errors.invalid_value("spec.versions", "", "must have exactly one version marked as storage version")
    for index, version in enumerate(spec["versions"]):
        path = f"spec.versions[{index}].schema.openAPIV3Schema"
        known = (version.get("schema") or {}).get("openAPIV3Schema")
        if not isinstance(known, dict):
            yield errors.required(path, "schemas are required")
            continue
        problems = list(schema.structural(known, path))
        yield from problems
        if problems:
            continue
        for place, rule in rules.rules_of(known):
            if why := rules.compiles(rule):
                yield errors.invalid_value(
                    f"{path}{place}.x-kubernetes-validations.rule", rule, f"compilation failed: {why}"
                )
