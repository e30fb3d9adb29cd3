"""The owners of fields: `metadata.managedFields`, and server-side apply, which is decided by it.

A field is a path of steps as they are written in FieldsV1, and ownership is a set of such paths:

    f:spec  f:nodeGroups                      a leaf: scalar, atomic list, empty list or map
    f:status  f:conditions  k:{"type":"Ready"}    an item of a list with keys, besides the leaves within
    f:metadata  f:finalizers  v:"example.com/x"   an item of a set

https://kubernetes.io/docs/reference/using-api/server-side-apply/
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from coordinator.dev.apiserver.errors import Cause, Object, apply_conflict
from coordinator.dev.apiserver.schema import Schema, is_set, merge_keys

Path = tuple[str, ...]
Fields = frozenset[Path]

_UNOWNED = {("f:apiVersion",), ("f:kind",)} | {
    ("f:metadata", f"f:{name}")
    for name in (
        "name", "namespace", "generateName", "uid", "resourceVersion", "generation", "creationTimestamp",
        "deletionTimestamp", "deletionGracePeriodSeconds", "managedFields", "selfLink",
    )
}  # fmt: skip
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Writer:
    """A manager of fields, and how it writes. One entry of managedFields."""

    manager: str
    operation: str
    api_version: str
    subresource: str = ""

    def describe(self) -> str:
        name = json.dumps(self.manager) + (
            f" with subresource {json.dumps(self.subresource)}" if self.subresource else ""
        )
        return f"{name} using {self.api_version}" if self.operation == "Update" else name


Owners = dict[Writer, Fields]


def paths(value: Any, schema: Schema, prefix: Path = ()) -> Iterator[Path]:
    """Every field in `value`."""
    if prefix in _UNOWNED:
        return
    if isinstance(value, dict) and value and schema.get("x-kubernetes-map-type") != "atomic":
        for name, item in value.items():
            yield from paths(item, _property(schema, name), (*prefix, f"f:{name}"))
    elif isinstance(value, list) and value and (is_set(schema) or merge_keys(schema)):
        for item in value:
            step = _step(item, schema)
            yield (*prefix, step)
            if step.startswith("k:"):
                yield from paths(item, schema.get("items", {}), (*prefix, step))
    else:
        yield prefix


def updated(old: Object | None, new: Object, schema: Schema, writer: Writer, time: str) -> list[Object]:
    """managedFields after `writer` turned `old` into `new` by anything but apply."""
    before = frozenset(paths(old, schema)) if old is not None else frozenset()
    after = frozenset(paths(new, schema))
    changed = frozenset(
        path for path in after if path not in before or (_leaf(path) and _at(old, path) != _at(new, path))
    )
    owners, times = _owners(new)
    mine = owners.get(writer, frozenset())
    result = {other: (owned & after) - (changed if other != writer else frozenset()) for other, owned in owners.items()}
    result[writer] = (mine | changed) & after
    return _managed(result, owners, times, time)


def applied(
    live: Object, intent: Object, schema: Schema, writer: Writer, time: str, *, force: bool, last_applied: Object | None
) -> Object:
    """`live` after `writer` applied `intent`: its fields set, those it no longer applies and nobody owns removed.

    Raises StatusError 409 for fields that others own with another value, unless `force`. What `last_applied` set and
    nobody changed since is no conflict: it is how an object moves from client-side to server-side apply.
    """
    owners, times = _owners(live)
    wanted = frozenset(paths(intent, schema))
    clashes = [
        (other, path)
        for other, owned in sorted(owners.items(), key=lambda pair: pair[0].manager)
        if other != writer
        for path in sorted(owned & wanted)
        if _leaf(path) and _at(live, path) != _at(intent, path)
    ]
    mine_before = frozenset(paths(last_applied, schema)) if last_applied is not None else frozenset()
    serious = [
        (other, path)
        for other, path in clashes
        if path not in mine_before or _at(live, path) != _at(last_applied, path)
    ]
    if serious and not force:
        raise _conflict(serious)
    result = {other: owned - {path for each, path in clashes if each == other} for other, owned in owners.items()} | {
        writer: wanted
    }
    merged: Object = _merge(live, intent, schema)
    dropped = owners.get(writer, frozenset()) - wanted
    held = frozenset().union(*result.values())
    for path in sorted(dropped, key=len):  # an item before what is in it, by which it is found
        if not any(each[: len(path)] == path for each in held):
            merged = _without(merged, path, held)
    merged["metadata"]["managedFields"] = _managed(result, owners, times, time)
    return merged


def _conflict(clashes: list[tuple[Writer, Path]]) -> Exception:
    causes = [
        Cause("FieldManagerConflict", f"conflict with {writer.describe()}", dotted(path)) for writer, path in clashes
    ]
    if len(clashes) == 1:
        message = f"Apply failed with 1 conflict: conflict with {clashes[0][0].describe()}: {dotted(clashes[0][1])}"
        return apply_conflict(message, causes)
    lines: list[str] = []
    for writer in dict.fromkeys(writer for writer, _ in clashes):
        lines.append(f"conflicts with {writer.describe()}:")
        lines += [f"- {dotted(path)}" for each, path in clashes if each == writer]
    return apply_conflict(f"Apply failed with {len(clashes)} conflicts: " + "\n".join(lines), causes)


def dotted(path: Path) -> str:
    """`.spec.taints[key="gpu"]`, for people."""
    text = ""
    for step in path:
        kind, _, rest = step.partition(":")
        if kind == "f":
            text += f".{rest}"
        elif kind == "k":
            text += "[" + ",".join(f"{key}={json.dumps(item)}" for key, item in json.loads(rest).items()) + "]"
        else:
            text += f"[={rest}]"
    return text


# Values


def _merge(live: Any, intent: Any, schema: Schema) -> Any:
    if isinstance(intent, dict) and schema.get("x-kubernetes-map-type") != "atomic":
        result = dict(live) if isinstance(live, dict) else {}
        for name, item in intent.items():
            result[name] = _merge(result.get(name), item, _property(schema, name))
        return result
    if isinstance(intent, list) and isinstance(live, list) and (is_set(schema) or merge_keys(schema)):
        items = {_step(item, schema): item for item in live}
        for item in intent:
            step = _step(item, schema)
            items[step] = _merge(items.get(step), item, schema.get("items", {}))
        return list(items.values())
    return copy.deepcopy(intent)


def _at(value: Any, path: Path) -> Any:
    for step in path:
        value = _child(value, step)
    return value


def _child(value: Any, step: str) -> Any:
    kind, _, rest = step.partition(":")
    if kind == "f":
        return value.get(rest, _ABSENT) if isinstance(value, dict) else _ABSENT
    if not isinstance(value, list):
        return _ABSENT
    wanted = json.loads(rest)
    if kind == "v":
        return wanted if wanted in value else _ABSENT
    found = (each for each in value if isinstance(each, dict) and all(each.get(key) == wanted[key] for key in wanted))
    return next(found, _ABSENT)


def _without(value: Any, path: Path, held: Fields, done: Path = ()) -> Any:
    """`value` without what `path` names, and without the maps that this empties and nobody holds."""
    child = _child(value, path[0])
    if child is _ABSENT:
        return value
    here = (*done, path[0])
    if len(path) > 1:
        rest = _without(child, path[1:], held, here)
        emptied = isinstance(rest, dict | list) and not rest and path[0].startswith("f:") and here != ("f:metadata",)
        if not emptied or any(each[: len(here)] == here for each in held):
            return _replaced(value, path[0], child, rest)
    if isinstance(value, dict):
        return {name: item for name, item in value.items() if name != path[0][2:]}
    return [item for item in value if item != child]


def _replaced(value: Any, step: str, child: Any, new: Any) -> Any:
    if isinstance(value, dict):
        return {**value, step[2:]: new}
    return [new if item is child else item for item in value]


def _property(schema: Schema, name: str) -> Schema:
    found = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
    return found if isinstance(found, Mapping) else {}


def _step(item: Any, schema: Schema) -> str:
    keys = merge_keys(schema)
    if keys and isinstance(item, dict):
        properties = schema.get("items", {}).get("properties", {})
        identity = {key: item.get(key, properties.get(key, {}).get("default")) for key in sorted(keys)}
        return "k:" + json.dumps(identity, separators=(",", ":"))
    return "v:" + json.dumps(item, separators=(",", ":"))


def _leaf(path: Path) -> bool:
    return not path[-1].startswith("k:") if path else False


# metadata.managedFields


def _owners(value: Object) -> tuple[Owners, dict[Writer, str]]:
    owners: Owners = {}
    times: dict[Writer, str] = {}
    for entry in value["metadata"].get("managedFields") or ():
        writer = Writer(entry["manager"], entry["operation"], entry["apiVersion"], entry.get("subresource", ""))
        owners[writer] = frozenset(_flatten(entry.get("fieldsV1", {})))
        times[writer] = entry.get("time", "")
    return owners, times


def _managed(owners: Owners, before: Owners, times: Mapping[Writer, str], now: str) -> list[Object]:
    """The entries, those without fields left out. `time` moves only when an entry's fields grew or changed hands."""
    return [
        {
            "manager": writer.manager,
            "operation": writer.operation,
            "apiVersion": writer.api_version,
            "time": times[writer] if owned == before.get(writer) and times.get(writer) else now,
            "fieldsType": "FieldsV1",
            "fieldsV1": _nest(owned),
            **({"subresource": writer.subresource} if writer.subresource else {}),
        }
        for writer, owned in owners.items()
        if owned
    ]


def _flatten(tree: Mapping[str, Any], prefix: Path = ()) -> Iterator[Path]:
    for step, below in tree.items():
        if step == ".":
            yield prefix
        elif not below:
            yield (*prefix, step)
        else:
            yield from _flatten(below, (*prefix, step))


def _nest(owned: Iterable[Path]) -> Object:
    tree: Object = {}
    every = set(owned)
    inner = {path[:length] for path in every for length in range(1, len(path))}
    for path in sorted(every):
        node = tree
        for step in path:
            node = node.setdefault(step, {})
        if path in inner:
            node["."] = {}
    return tree
