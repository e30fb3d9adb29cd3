"""The little protobuf that kubectl insists on: what `kubectl create` sends, and the OpenAPI v2 document it reads.

kubectl from 1.33 sends the kinds it has a `create` command for as protobuf only; kubectl before 1.28 looks in OpenAPI
v2, as protobuf only, whether the server can validate fields. Wire format by hand: a generated module for six messages
would be longer than this file. https://kubernetes.io/docs/reference/using-api/api-concepts/#protobuf-encoding
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from coordinator.dev.apiserver.errors import Object
from coordinator.dev.apiserver.kinds import Kind

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
OPENAPI_ASKED = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
OPENAPI_GIVEN = OPENAPI_ASKED.replace("@", ".")  # an @ is asked for, and refused in an answer
_MAGIC = b"k8s\0"

# Reading


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    read: Callable[[Any], Any]
    repeated: bool = False
    map_value: Callable[[Any], Any] | None = None


_Message = dict[int, _Field]


def _text(raw: bytes) -> str:
    return raw.decode()


def _bytes(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _strings(name: str) -> _Field:
    return _Field(name, _text, repeated=True)


def _map(name: str, value: Callable[[Any], Any] = _text) -> _Field:
    return _Field(name, _text, map_value=value)


def _message(fields: _Message) -> Callable[[bytes], Object]:
    return lambda raw: _object(raw, fields)


_META: _Message = {
    1: _Field("name", _text),
    2: _Field("generateName", _text),
    3: _Field("namespace", _text),
    11: _map("labels"),
    12: _map("annotations"),
    14: _strings("finalizers"),
}
_KINDS: dict[tuple[str, str], _Message] = {
    ("v1", "Namespace"): {},
    ("v1", "ConfigMap"): {2: _map("data"), 3: _map("binaryData", _bytes), 4: _Field("immutable", bool)},
    ("v1", "Secret"): {
        2: _map("data", _bytes),
        3: _Field("type", _text),
        4: _map("stringData"),
        5: _Field("immutable", bool),
    },
    ("v1", "ServiceAccount"): {4: _Field("automountServiceAccountToken", bool)},
}
_DELETE_OPTIONS: _Message = {
    1: _Field("gracePeriodSeconds", int),
    2: _Field("preconditions", _message({1: _Field("uid", _text), 2: _Field("resourceVersion", _text)})),
    3: _Field("orphanDependents", bool),
    4: _Field("propagationPolicy", _text),
    5: _strings("dryRun"),
}


def decode(body: bytes) -> Object:
    """The object in a Kubernetes protobuf envelope. Raises ValueError for a kind that is not in the tables above."""
    if not body.startswith(_MAGIC):
        raise ValueError("not a Kubernetes protobuf message")
    envelope = _object(
        body[len(_MAGIC) :],
        {
            1: _Field("type", _message({1: _Field("apiVersion", _text), 2: _Field("kind", _text)})),
            2: _Field("raw", bytes),
        },
    )
    header = envelope.get("type", {})
    api_version, kind = header.get("apiVersion", ""), header.get("kind", "")
    if kind == "DeleteOptions":
        return _object(envelope.get("raw", b""), _DELETE_OPTIONS)
    if (api_version, kind) not in _KINDS:
        raise ValueError(f"{api_version} {kind} is read as JSON or YAML only")
    fields = {1: _Field("metadata", _message(_META))} | _KINDS[api_version, kind]
    return {"apiVersion": api_version, "kind": kind, **_object(envelope.get("raw", b""), fields)}


def _object(raw: bytes, fields: _Message) -> Object:
    """The known fields of a message; empty strings, which mean absent, left out."""
    result: Object = {}
    for number, value in _wire(raw):
        field = fields.get(number)
        if field is None:
            continue
        if isinstance(value, int) is not (field.read in (int, bool)):
            raise ValueError(f"field {number} is of another type")
        if field.map_value is not None:
            entry = {key: item for key, item in _wire(value) if isinstance(item, bytes)}
            result.setdefault(field.name, {})[_text(entry.get(1, b""))] = field.map_value(entry.get(2, b""))
        elif field.repeated:
            result.setdefault(field.name, []).append(field.read(value))
        elif value != b"":
            result[field.name] = field.read(value)
    return result


def _wire(raw: bytes) -> Iterator[tuple[int, Any]]:
    """Field numbers and values: ints for varints, bytes for the rest. Raises ValueError for a truncated message."""
    position = 0
    while position < len(raw):
        tag, position = _varint(raw, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, position = _varint(raw, position)
            yield number, value
            continue
        if wire_type == 2:
            length, position = _varint(raw, position)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"unknown wire type {wire_type}")
        if position + length > len(raw):
            raise ValueError("truncated message")
        yield number, raw[position : position + length]
        position += length


def _varint(raw: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(raw) and shift < 64:
        byte = raw[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
    raise ValueError("truncated number")


# Writing


def openapi_v2(kinds: Sequence[Kind]) -> bytes:
    """A gnostic `openapi.v2.Document` that says of every kind that PATCH knows `fieldValidation` and `dryRun`."""
    info = _pack(2, _pack(1, "localmodel development API server") + _pack(2, "v1"))
    paths = b"".join(_pack(2, _pack(1, _path(kind)) + _pack(2, _pack(8, _operation(kind)))) for kind in kinds)
    return _pack(1, "2.0") + info + _pack(8, paths)


def _path(kind: Kind) -> str:
    root = f"/apis/{kind.api_version}" if kind.group else f"/api/{kind.version}"
    return (
        f"{root}/namespaces/{{namespace}}/{kind.plural}/{{name}}"
        if kind.namespaced
        else f"{root}/{kind.plural}/{{name}}"
    )


def _operation(kind: Kind) -> bytes:
    parameters = b"".join(
        _pack(8, _pack(1, _pack(2, _pack(3, _pack(2, "query") + _pack(4, name)))))
        for name in ("dryRun", "fieldManager", "fieldValidation")
    )
    gvk = json.dumps({"group": kind.group, "version": kind.version, "kind": kind.kind})
    return parameters + _pack(13, _pack(1, "x-kubernetes-group-version-kind") + _pack(2, _pack(2, gvk)))


def _pack(number: int, value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return _number(number << 3 | 2) + _number(len(raw)) + raw


def _number(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
