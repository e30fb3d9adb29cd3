"""Every error an API server gives, as the `Status` object that clients parse, in Kubernetes' own words.

https://kubernetes.io/docs/reference/using-api/api-concepts/ and apimachinery's `pkg/api/errors`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
"""A Kubernetes object as JSON."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One thing wrong with one field. `reason` is one of field.ErrorType's, e.g. `FieldValueInvalid`."""

    reason: str
    message: str
    field: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


def show(value: object) -> str:
    """`value` as Go prints it in a field error: strings quoted, the rest as JSON."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def invalid_value(field: str, value: object, detail: str) -> Cause:
    return Cause("FieldValueInvalid", f"Invalid value: {show(value)}: {detail}", field)


def required(field: str, detail: str = "") -> Cause:
    return Cause("FieldValueRequired", "Required value" + (f": {detail}" if detail else ""), field)


def unsupported_value(field: str, value: object, supported: Sequence[object]) -> Cause:
    listed = ", ".join(show(each) for each in supported)
    return Cause("FieldValueNotSupported", f"Unsupported value: {show(value)}: supported values: {listed}", field)


def forbidden_value(field: str, detail: str) -> Cause:
    return Cause("FieldValueForbidden", f"Forbidden: {detail}", field)


class StatusError(Exception):
    """An answer other than success. `status` is the object the client gets."""

    def __init__(self, code: int, reason: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.warnings: list[str] = []
        self.status: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            **({"reason": reason} if reason else {}),
            **({"details": dict(details)} if details is not None else {}),
            "code": code,
        }


def bad_request(message: str) -> StatusError:
    return StatusError(400, "BadRequest", message)


def unreadable(kind: str, why: str) -> StatusError:
    """400: the body is not even an object of some kind."""
    return bad_request(f"the object provided is unrecognized (must be of type {kind}): {why}")


def cannot_be_handled(found: str, version: str, kind: str, why: str) -> StatusError:
    """400: the body is an object, but cannot be read as one of this kind."""
    return bad_request(f'{found} in version "{version}" cannot be handled as a {kind}: {why}')


def internal(message: str) -> StatusError:
    """500 without a reason, as a real server gives for a few mistakes of the client's."""
    return StatusError(500, "", message)


def not_acceptable() -> StatusError:
    return StatusError(406, "NotAcceptable", f"only the following media types are accepted: {', '.join(MEDIA_TYPES)}")


def path_not_found() -> StatusError:
    return StatusError(404, "NotFound", "the server could not find the requested resource", {})


def rejected() -> StatusError:
    """422 for a JSON patch that does not fit."""
    return StatusError(422, "Invalid", "the server rejected our request due to an error in our request", {})


MEDIA_TYPES = ("application/json", "application/yaml", "application/vnd.kubernetes.protobuf")


def not_found(group: str, plural: str, name: str) -> StatusError:
    return StatusError(
        404, "NotFound", f'{_qualified(plural, group)} "{name}" not found', _details(group, plural, name)
    )


def already_exists(group: str, plural: str, name: str) -> StatusError:
    message = f'{_qualified(plural, group)} "{name}" already exists'
    return StatusError(409, "AlreadyExists", message, _details(group, plural, name))


def conflict(group: str, plural: str, name: str, why: str) -> StatusError:
    message = f'Operation cannot be fulfilled on {_qualified(plural, group)} "{name}": {why}'
    return StatusError(409, "Conflict", message, _details(group, plural, name))


def apply_conflict(message: str, causes: Sequence[Cause]) -> StatusError:
    return StatusError(409, "Conflict", message, {"causes": [_cause(cause) for cause in causes]})


def forbidden(group: str, plural: str, name: str, why: str) -> StatusError:
    message = f'{_qualified(plural, group)} "{name}" is forbidden: {why}'
    return StatusError(403, "Forbidden", message, _details(group, plural, name))


def invalid(group: str, kind: str, name: str, causes: Sequence[Cause]) -> StatusError:
    """422 that lists every cause."""
    text = str(causes[0]) if len(causes) == 1 else "[" + ", ".join(map(str, causes)) + "]"
    details = _details(group, kind, name) | {"causes": [_cause(cause) for cause in causes]}
    return StatusError(422, "Invalid", f'{_qualified(kind, group)} "{name}" is invalid: {text}', details)


def expired(message: str) -> StatusError:
    """410: that resourceVersion is no longer in the history."""
    return StatusError(410, "Expired", message)


def too_large_resource_version(wanted: int, current: int) -> StatusError:
    """504: a resourceVersion from the future, perhaps of another server's life."""
    message = f"Too large resource version: {wanted}, current: {current}"
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    return StatusError(504, "Timeout", f"Timeout: {message}", {"causes": [cause], "retryAfterSeconds": 1})


def method_not_allowed() -> StatusError:
    return StatusError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")


def unsupported_media_type(supported: Sequence[str] = MEDIA_TYPES) -> StatusError:
    listed = ", ".join(supported)
    message = f"the body of the request was in an unknown format - accepted media types include: {listed}"
    return StatusError(415, "UnsupportedMediaType", message)


def _qualified(name: str, group: str) -> str:
    return f"{name}.{group}" if group else name


def _details(group: str, kind: str, name: str) -> Object:
    return {key: value for key, value in (("name", name), ("group", group), ("kind", kind)) if value}


def _cause(cause: Cause) -> Object:
    return {"reason": cause.reason, "message": cause.message, "field": cause.field}
