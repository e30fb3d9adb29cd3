"""An object of its kind, in its place, from what arrives: pruned, with defaults, and with what is said of the rest."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from coordinator.dev.apiserver import errors, metadata, schema
from coordinator.dev.apiserver.admission import Admission
from coordinator.dev.apiserver.errors import Object
from coordinator.dev.apiserver.kinds import METADATA, Kind


@dataclass(slots=True)
class Options:
    """The query parameters of a write. `warnings` is filled for the `Warning` headers of the answer."""

    dry_run: bool = False
    field_manager: str = "unknown"
    field_validation: str = "Warn"
    force: bool = False
    warnings: list[str] = field(default_factory=list)
    admission: Admission | None = None


def decode(
    kind: Kind,
    namespace: str,
    body: Any,
    options: Options,
    name: str = "",
    *,
    patched: bool = False,
    partial: bool = False,
) -> Object:
    """A copy of `body`, of this kind and in this place: pruned, not validated; with defaults unless `partial`.

    `patched`: the body is what a patch made of a stored object.
    """
    body = {} if body is None and not kind.custom else body
    if not isinstance(body, dict):
        raise errors.unreadable(kind.kind, "couldn't get version/kind; json parse error: it is not an object")
    value = _of_kind(kind, body, patched=patched)
    sent, unknown = schema.prune(value.get("metadata") or {}, METADATA, "metadata", root=False)
    complaints = [f'unknown field "{path}"' for path in unknown]
    wrong = schema.validate(sent, METADATA, "metadata")
    if wrong:
        raise errors.cannot_be_handled(kind.kind, kind.version, kind.kind, str(wrong[0]))
    meta = dict(sent)
    if name and meta.setdefault("name", name) != name:
        raise errors.bad_request(f"the name of the object ({meta['name']}) does not match the name on the URL ({name})")
    if kind.namespaced and (meta.get("namespace") or namespace) != namespace:
        raise errors.bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )
    if kind.namespaced:
        meta["namespace"] = namespace
    else:
        meta.pop("namespace", None)
    value["metadata"] = meta
    value, unknown = schema.prune(value, kind.schema)
    complaints += [f'unknown field "{path}"' for path in unknown]
    if unknown and partial:
        who = f"{namespace}/{meta.get('name', '')}; {kind.api_version}, Kind={kind.kind}"
        declared = ", ".join(f".{path}: field not declared in schema" for path in unknown)
        raise errors.internal(f"failed to create typed patch object ({who}): {declared}")
    if complaints and options.field_validation == "Strict":
        raise _strict(kind, complaints, body if patched else None)
    if options.field_validation == "Warn":
        options.warnings += complaints
    options.warnings += metadata.warnings(meta)
    return value if partial else complete(kind, value, patched=patched)


def complete(kind: Kind, value: Object, *, patched: bool = False) -> Object:
    """With defaults. A built-in kind must fit its schema already here: `special` expects it well-formed."""
    whole: Object = schema.default(value, kind.schema)
    if not kind.custom and (wrong := schema.validate(whole, kind.schema)):
        misread = [cause for cause in wrong if cause.reason == "FieldValueTypeInvalid"]
        if misread and patched:
            raise errors.invalid("", "", "", [errors.invalid_value("patch", json.dumps(value), str(misread[0]))])
        if misread:
            raise errors.cannot_be_handled(kind.kind, kind.version, kind.kind, str(misread[0]))
        raise errors.invalid(kind.group, kind.kind, whole["metadata"].get("name", ""), wrong)
    return whole


def _of_kind(kind: Kind, body: Object, *, patched: bool) -> Object:
    """A copy. Built-in kinds need not say what they are."""
    value = dict(body)
    if not kind.custom:
        value.setdefault("kind", kind.kind)
        value.setdefault("apiVersion", kind.api_version)
    if not value.get("kind"):
        raise errors.unreadable(kind.kind, f"Object 'Kind' is missing in '{json.dumps(body)}'")
    named, version = str(value["kind"]), str(value.get("apiVersion", ""))
    if kind.custom and (named != kind.kind or (patched and version != kind.api_version)):
        field, found, wanted = (
            ("kind", named, kind.kind) if named != kind.kind else ("apiVersion", version, kind.api_version)
        )
        cause = errors.invalid_value(field, found, f"must be {wanted}")
        group, name = version.rpartition("/")[0], (value.get("metadata") or {}).get("name", "")
        raise errors.invalid(group, named, name, [cause])
    if kind.custom and version != kind.api_version:
        why = f"does not match the expected API version ({kind.api_version})"
        raise errors.bad_request(f"the API version in the data ({version}) {why}")
    if (named, version) != (kind.kind, kind.api_version):
        raise errors.cannot_be_handled(named, version, kind.kind, "it is another kind")
    return value


def _strict(kind: Kind, complaints: Iterable[str], patched: Any) -> errors.StatusError:
    message = "strict decoding error: " + ", ".join(complaints)
    if patched is not None:
        return errors.invalid("", "", "", [errors.invalid_value("patch", errors.show(patched), message)])
    return errors.cannot_be_handled(kind.kind, kind.version, kind.kind, message)
