"""Structural schemas: prune what is unknown, fill in defaults, say everything that is wrong.

https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/ is the contract;
the messages are those of kube-openapi's validation, because people and scripts know them.
"""

from __future__ import annotations

import base64
import binascii
import copy
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

from coordinator.dev.apiserver.errors import Cause, invalid_value, required, show, unsupported_value

Schema = Mapping[str, Any]

_IMPLICIT = ("apiVersion", "kind", "metadata")
_INTEGER_BITS = {"int32": 32, "int64": 64}


_TYPES = ("array", "boolean", "integer", "number", "object", "string")


def structural(schema: Any, path: str) -> Iterator[Cause]:
    """Why `schema` is not a structural schema, as far as the functions below rely on it."""
    if not isinstance(schema, Mapping):
        yield invalid_value(path, schema, "must be a schema")
        return
    free = schema.get("x-kubernetes-int-or-string") or schema.get("x-kubernetes-preserve-unknown-fields")
    kind = schema.get("type")
    if not kind and not free:
        yield required(f"{path}.type", "must not be empty for specified object fields")
    elif kind and kind not in _TYPES:
        yield unsupported_value(f"{path}.type", kind, _TYPES)
    if kind == "array" and "items" not in schema:
        yield required(f"{path}.items", "must be specified")
    for name, types in _KEYWORDS.items():
        if name in schema and not isinstance(schema[name], types):
            yield invalid_value(f"{path}.{name}", schema[name], "is of the wrong type")
            return
    try:
        re.compile(_as_python(schema.get("pattern", "")))
    except re.error as error:
        why = f"must be a valid regular expression, but isn't: {error}"
        yield invalid_value(f"{path}.pattern", schema["pattern"], why)
    for name, child in schema.get("properties", {}).items():
        if path or name != "metadata":
            yield from structural(child, f"{path}.properties[{name}]")
    for name in ("items", "additionalProperties"):
        if name in schema and schema[name] is not True:
            yield from structural(schema[name], f"{path}.{name}")
    if schema.get("x-kubernetes-list-type") == "map" and not schema.get("x-kubernetes-list-map-keys"):
        yield required(f"{path}.x-kubernetes-list-map-keys", "must not be empty if x-kubernetes-list-type is map")
    if "default" in schema:
        for cause in validate(schema["default"], {key: item for key, item in schema.items() if key != "default"}):
            yield Cause(cause.reason, cause.message, f"{path}.default{cause.field and '.'}{cause.field}")


_KEYWORDS = {
    "properties": Mapping,
    "required": list,
    "enum": list,
    "pattern": str,
    "anyOf": list,
    "oneOf": list,
    "allOf": list,
    "not": Mapping,
    "x-kubernetes-validations": list,
    "x-kubernetes-list-map-keys": list,
}


def prune(value: Any, schema: Schema, path: str = "", *, root: bool = True) -> tuple[Any, list[str]]:
    """`value` without the fields `schema` does not know, and the paths of those."""
    unknown: list[str] = []
    pruned = _prune(value, schema, path, root, unknown)
    return pruned, unknown


def _prune(value: Any, schema: Schema, path: str, root: bool, unknown: list[str]) -> Any:
    if isinstance(value, list):
        items = schema.get("items", _OPAQUE)
        return [_prune(item, items, f"{path}[{index}]", False, unknown) for index, item in enumerate(value)]
    if not isinstance(value, dict) or schema is _OPAQUE:
        return value
    properties, additional = schema.get("properties", {}), schema.get("additionalProperties")
    preserve = schema.get("x-kubernetes-preserve-unknown-fields", False)
    embedded = root or schema.get("x-kubernetes-embedded-resource", False)
    result = {}
    for key, item in value.items():
        child = f"{path}.{key}" if path else key
        if embedded and key in _IMPLICIT:
            result[key] = item
        elif key in properties:
            result[key] = _prune(item, properties[key], child, False, unknown)
        elif isinstance(additional, Mapping):
            result[key] = _prune(item, additional, child, False, unknown)
        elif preserve or additional is True:
            result[key] = item
        else:
            unknown.append(child)
    return result


_OPAQUE: Schema = {"x-kubernetes-preserve-unknown-fields": True}


def default(value: Any, schema: Schema) -> Any:
    """`value` with every absent field that has a default. A null that is not allowed is absent."""
    if isinstance(value, list):
        items = schema.get("items", {})
        return [default(item, items) for item in value]
    if not isinstance(value, dict):
        return value
    properties, additional = schema.get("properties", {}), schema.get("additionalProperties")
    result = {
        key: item for key, item in value.items() if item is not None or _may_be_null(properties.get(key, additional))
    }
    for key, child in properties.items():
        if key not in result and "default" in child:
            result[key] = copy.deepcopy(child["default"])
        if key in result:
            result[key] = default(result[key], child)
    if isinstance(additional, Mapping):
        result |= {key: default(item, additional) for key, item in result.items() if key not in properties}
    return result


def _may_be_null(schema: object) -> bool:
    """Also where nothing is known of a value."""
    return not isinstance(schema, Mapping) or not schema or bool(schema.get("nullable"))


def merge_keys(schema: Schema) -> tuple[str, ...]:
    """What tells the items of this list apart when lists are merged; () for a list that is replaced as a whole."""
    if schema.get("x-kubernetes-list-type") == "map":
        return tuple(schema["x-kubernetes-list-map-keys"])
    key = schema.get("x-kubernetes-patch-merge-key")
    return (key,) if key else ()


def is_set(schema: Schema) -> bool:
    """Whether this is a list whose items are told apart by their value."""
    return bool(schema.get("x-kubernetes-list-type") == "set")


def validate(value: Any, schema: Schema, path: str = "") -> list[Cause]:
    """Everything about `value` that `schema` refuses, in field order. CEL rules are `rules.check`."""
    return list(_validate(value, schema, path))


def _validate(value: Any, schema: Schema, path: str) -> Iterator[Cause]:
    if value is None and schema.get("nullable"):
        return
    wrong = _wrong_type(value, schema)
    if wrong is not None:
        kind = type_name(value)
        message = f"Invalid value: {show(kind)}: {path} in body must be of type {wrong}: {show(kind)}"
        yield Cause("FieldValueTypeInvalid", message, path)
        return
    yield from _combined(value, schema, path)
    if "enum" in schema and value not in schema["enum"]:
        yield unsupported_value(path, value, schema["enum"])
    if isinstance(value, str):
        yield from _validate_string(value, schema, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _validate_number(value, schema, path)
    elif isinstance(value, list):
        yield from _validate_list(value, schema, path)
    elif isinstance(value, dict):
        yield from _validate_object(value, schema, path)


def _combined(value: Any, schema: Schema, path: str) -> Iterator[Cause]:
    def passes(each: Schema) -> bool:
        return not validate(value, each, path)

    if schema.get("x-kubernetes-int-or-string"):
        schema = {key: item for key, item in schema.items() if key != "anyOf"}  # `_wrong_type` has seen to it
    if "anyOf" in schema and not any(map(passes, schema["anyOf"])):
        yield invalid_value(path, "", f'"{path}" must validate at least one schema (anyOf)')
    if "oneOf" in schema and sum(map(passes, schema["oneOf"])) != 1:
        yield invalid_value(path, "", f'"{path}" must validate one and only one schema (oneOf)')
    if "not" in schema and passes(schema["not"]):
        yield invalid_value(path, "", f'"{path}" must not validate the schema (not)')
    for each in schema.get("allOf", ()):
        yield from _validate(value, each, path)


def _validate_string(value: str, schema: Schema, path: str) -> Iterator[Cause]:
    longest, shortest, pattern = schema.get("maxLength"), schema.get("minLength"), schema.get("pattern")
    if longest is not None and len(value) > longest:
        yield Cause("FieldValueTooLong", f"Too long: may not be more than {longest} bytes", path)
    if shortest is not None and len(value) < shortest:
        yield invalid_value(path, value, f"{path} in body should be at least {shortest} chars long")
    if pattern is not None and re.search(_as_python(pattern), value) is None:
        yield invalid_value(path, value, f"{path} in body should match '{pattern}'")
    if schema.get("format") in _FORMATS and not _FORMATS[schema["format"]](value):
        message = f"Invalid value: {show(value)}: {path} in body must be of type {schema['format']}: {show(value)}"
        yield Cause("FieldValueTypeInvalid", message, path)


def _validate_number(value: float, schema: Schema, path: str) -> Iterator[Cause]:
    least, most, step = schema.get("minimum"), schema.get("maximum"), schema.get("multipleOf")
    if least is not None and (value < least or (schema.get("exclusiveMinimum") and value == least)):
        than = "than" if schema.get("exclusiveMinimum") else "than or equal to"
        yield invalid_value(path, value, f"{path} in body should be greater {than} {least}")
    if most is not None and (value > most or (schema.get("exclusiveMaximum") and value == most)):
        than = "than" if schema.get("exclusiveMaximum") else "than or equal to"
        yield invalid_value(path, value, f"{path} in body should be less {than} {most}")
    if step is not None and value % step:
        yield invalid_value(path, value, f"{path} in body should be a multiple of {step}")
    bits = _INTEGER_BITS.get(schema.get("format", ""))
    if bits is not None and not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
        yield invalid_value(path, value, f"{path} in body must be of type {schema['format']}: {show(value)}")


def _validate_list(value: list[Any], schema: Schema, path: str) -> Iterator[Cause]:
    fewest, most = schema.get("minItems"), schema.get("maxItems")
    if fewest is not None and len(value) < fewest:
        yield invalid_value(path, len(value), f"{path} in body should have at least {fewest} items")
    if most is not None and len(value) > most:
        yield Cause("FieldValueTooMany", f"Too many: {len(value)}: must have at most {most} items", path)
    items = schema.get("items", {})
    for index, item in enumerate(value):
        yield from _validate(item, items, f"{path}[{index}]")
    if schema.get("x-kubernetes-list-type") in ("set", "map"):
        keys = merge_keys(schema)
        seen: list[Any] = []
        for index, item in enumerate(value):
            identity = {key: item.get(key) for key in keys} if keys and isinstance(item, dict) else item
            if identity in seen:
                yield Cause("FieldValueDuplicate", f"Duplicate value: {show(identity)}", f"{path}[{index}]")
            seen.append(identity)


def _validate_object(value: dict[str, Any], schema: Schema, path: str) -> Iterator[Cause]:
    fewest, most = schema.get("minProperties"), schema.get("maxProperties")
    if fewest is not None and len(value) < fewest:
        yield invalid_value(path, len(value), f"{path} in body should have at least {fewest} properties")
    if most is not None and len(value) > most:
        yield Cause("FieldValueTooMany", f"Too many: {len(value)}: must have at most {most} items", path)
    for key in schema.get("required", ()):
        if key not in value:
            yield required(f"{path}.{key}" if path else key)
    properties, additional = schema.get("properties", {}), schema.get("additionalProperties")
    for key, item in value.items():
        child = properties.get(key, additional)
        if isinstance(child, Mapping) and not (not path and key == "metadata"):
            yield from _validate(item, child, f"{path}.{key}" if path else key)


def _wrong_type(value: Any, schema: Schema) -> str | None:
    """The type that was wanted; None if `value` has it."""
    if schema.get("x-kubernetes-int-or-string"):
        return None if type_name(value) in ("integer", "string") else "integer,string"
    wanted = schema.get("type")
    if wanted is None:
        return None
    found = type_name(value)
    fits = found == wanted or (wanted == "number" and found == "integer")
    fits = fits or (wanted == "integer" and isinstance(value, float) and value.is_integer())
    return None if fits else wanted


def type_name(value: object) -> str:
    """The JSON schema word for it."""
    if isinstance(value, bool):
        return "boolean"
    for types, name in (
        ((int,), "integer"),
        ((float,), "number"),
        ((str,), "string"),
        ((list,), "array"),
        ((dict,), "object"),
    ):
        if isinstance(value, types):
            return name
    return "null"


def _as_python(pattern: str) -> str:
    """A Go regular expression as Python's."""
    return pattern.replace(r"\z", r"\Z")


def _is_time(value: str, pattern: str = r"") -> bool:
    if not re.match(pattern, value):
        return False
    try:
        datetime.fromisoformat(value.upper())
    except ValueError:
        return False
    return True


def _is_base64(value: str) -> bool:
    try:
        base64.b64decode(value, validate=True)
    except binascii.Error:
        return False
    return True


_DATE, _CLOCK, _ZONE = r"^\d{4}-\d\d-\d\d", r"[Tt]\d\d:\d\d:\d\d", r"([Zz]|[+-]\d\d:\d\d)$"
_FORMATS: Mapping[str, Callable[[str], bool]] = {
    "date": _is_time,
    "date-time": lambda value: _is_time(value, rf"{_DATE}{_CLOCK}(\.\d+)?{_ZONE}"),
    "micro-time": lambda value: _is_time(value, rf"{_DATE}{_CLOCK}\.\d{{6}}{_ZONE}"),
    "byte": _is_base64,
}
"""`micro-time` and `byte` are those of the built-in kinds: custom ones may name any format, and most mean nothing."""
