"""What stands in a status, read back: each field is as we write it, or is not there. Anybody may have written it.

Numbers are whole and fit into 64 bits, times can be parsed, lists hold objects with a name. Junk within a mapping keeps
its key with an empty value, so that the next merge patch mends or removes it; other junk is left out, and written anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from actors.times import seconds_of
from coordinator.api.resources import LocalModelCacheStatus, LocalModelNodeStatus
from coordinator.kube.quantity import LARGEST

_Reader = Callable[[object], Any]
"""The value as it may be relied on; None: junk."""


def read_fields(status: object, fields: Mapping[str, _Reader]) -> dict[str, Any]:
    """The known fields of `status` that are not junk."""
    if not isinstance(status, Mapping):
        return {}
    read = ((name, fields[name](value)) for name, value in status.items() if name in fields)
    return {name: value for name, value in read if value is not None}


def text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST else None


def flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def time(value: object) -> str | None:
    return value if isinstance(value, str) and seconds_of(value) is not None else None


def words(value: object) -> dict[str, str] | None:
    return {name: text(word) or "" for name, word in value.items()} if isinstance(value, Mapping) else None


def texts(value: object) -> list[str] | None:
    return value if isinstance(value, list) and all(isinstance(each, str) for each in value) else None


def counts(value: object) -> dict[str, int] | None:
    return {name: count(number) or 0 for name, number in value.items()} if isinstance(value, Mapping) else None


def fields_of(**fields: _Reader) -> _Reader:
    """Reads an object of these fields; others keep their name, and are empty."""

    def read(value: object) -> dict[str, Any] | None:
        if not isinstance(value, Mapping):
            return None
        return {name: fields[name](item) if name in fields else None for name, item in value.items()}

    return read


def items_of(key: str, **fields: _Reader) -> _Reader:
    """Reads a list of objects with these fields, of which `key` is text and tells them apart. Others are left out."""
    readers = {key: text, **fields}

    def read(value: object) -> list[dict[str, Any]] | None:
        if not isinstance(value, list):
            return None
        items = [read_fields(item, readers) for item in value]
        known = {item[key]: item for item in items if key in item}
        return list(known.values())

    return read


def listed(**fields: _Reader) -> _Reader:
    """Reads a list of objects of these fields, whatever else is in them."""

    def read(value: object) -> list[dict[str, Any]] | None:
        return [read_fields(item, fields) for item in value] if isinstance(value, list) else None

    return read


def readers(model: type[BaseModel]) -> dict[str, _Reader]:
    """How each field of a resource is read back, by its name there: what the resource says of its type decides."""
    return {field.alias or name: _reader(field.annotation, _key(field)) for name, field in model.model_fields.items()}


def _key(field: FieldInfo) -> str | None:
    """Of a list that server-side apply merges by item, what tells the items apart."""
    extra = field.json_schema_extra
    keys = extra.get("x-kubernetes-list-map-keys") if isinstance(extra, dict) else None
    return str(keys[0]) if isinstance(keys, list) else None


def _reader(kind: Any, key: str | None = None) -> _Reader:
    """Raises TypeError for a type that no status has had so far: say here how it is read."""
    origin, of = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _reader(of[0], key)
    if origin in (Union, UnionType) and len(of) == 2 and of[1] is NoneType:
        return _reader(of[0], key)
    if origin is Mapping:
        return counts if of[1] is int else words
    if origin is list and of == (str,):
        return texts
    if origin is tuple:
        fields = readers(of[0])
        return items_of(key, **fields) if key is not None else listed(**fields)
    if isinstance(kind, type):
        if issubclass(kind, BaseModel):
            return fields_of(**readers(kind))
        for known, reader in _PLAIN:
            if issubclass(kind, known):
                return reader
    raise TypeError(f"no reader for {kind}")


_PLAIN: tuple[tuple[type, _Reader], ...] = ((bool, flag), (int, count), (str, text), (datetime, time))

CACHE_STATUS: Mapping[str, _Reader] = readers(LocalModelCacheStatus)
NODE_STATUS: Mapping[str, _Reader] = readers(LocalModelNodeStatus)
CONDITIONS = CACHE_STATUS["conditions"]
