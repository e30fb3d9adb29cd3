"""Whether an object may be stored: by the rules of all objects, of its kind, and of its schema."""

from __future__ import annotations

from coordinator.dev.apiserver import errors, metadata, rules, schema, special
from coordinator.dev.apiserver.builtins import NAMESPACES
from coordinator.dev.apiserver.errors import Cause, Object
from coordinator.dev.apiserver.kinds import Kind

_BLOCKING = frozenset(f"FieldValue{each}" for each in ("NotSupported", "Required", "TooLong", "TooMany", "TypeInvalid"))
"""A value with one of these is not shown to the rules, which could fail for that reason alone."""
_UNCHECKED = Cause(
    "FieldValueInvalid",
    "Invalid value: null: some validation rules were not checked because the object was invalid; "
    "correct the existing errors to complete validation",
    "<nil>",
)


def refuse_invalid(kind: Kind, value: Object, old: Object | None, subresource: str = "") -> None:
    meta = value["metadata"]
    causes: list[Cause] = list(metadata.metadata_causes(meta, label_name=kind is NAMESPACES))
    if old is not None:
        causes += metadata.update_causes(old["metadata"], meta)
    causes += special.causes(kind, value, old)
    causes += _status_causes(kind, value) if subresource == "status" else schema.validate(value, kind.schema)
    if not any(cause.reason in _BLOCKING for cause in causes):
        causes += rules.check(value, old, kind.schema)
    elif kind.custom and any(True for _ in rules.rules_of(kind.schema)):
        causes.append(_UNCHECKED)
    if causes:
        raise errors.invalid(kind.group, kind.kind, meta.get("name", ""), causes)


def check_preconditions(kind: Kind, old: Object, uid: str | None, resource_version: str | None) -> None:
    meta = old["metadata"]
    if uid and uid != meta["uid"]:
        why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {meta['uid']}"
        raise errors.conflict(kind.group, kind.plural, meta["name"], why)
    if resource_version and resource_version != meta["resourceVersion"]:
        why = "the object has been modified; please apply your changes to the latest version and try again"
        raise errors.conflict(kind.group, kind.plural, meta["name"], why)


def _status_causes(kind: Kind, value: Object) -> list[Cause]:
    """Of the status resource only the status is looked at, and messages name fields as seen from there."""
    known = kind.schema.get("properties", {}).get("status")
    if "status" not in value or not isinstance(known, dict):
        return []
    return [
        Cause(cause.reason, cause.message, f"status.{cause.field}" if cause.field else "status")
        for cause in schema.validate(value["status"], known)
    ]
