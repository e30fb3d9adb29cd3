"""The three patches that name what changes: JSON (RFC 6902), merge (RFC 7386) and strategic merge.

Server-side apply, which names what is owned, is in `fields`. All are pure: the object goes in, a new one comes out.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import jsonpatch

from coordinator.dev.apiserver.errors import Object, bad_request, internal, rejected
from coordinator.dev.apiserver.schema import Schema, is_set, merge_keys

JSON = "application/json-patch+json"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"


def patched(content_type: str, value: Object, patch: Any, schema: Schema) -> Object:
    """`value` after `patch`. Raises StatusError 400 or 422 for a patch that is malformed or does not fit."""
    if content_type == JSON:
        return json_patched(value, patch)
    if not isinstance(patch, dict):
        raise bad_request("a merge patch must be a JSON object")
    if content_type == MERGE:
        merged: Object = merge_patched(value, patch)
        return merged
    try:
        return strategic_patched(value, patch, schema)
    except (AttributeError, TypeError, KeyError) as error:  # not the types that the directives ask for
        raise bad_request(f"error applying strategic patch: {error}") from error


def json_patched(value: Object, patch: Any) -> Object:
    if not isinstance(patch, list) or not all(isinstance(operation, dict) for operation in patch):
        raise bad_request("error decoding patch: it must be a list of operations")
    result: Any = copy.deepcopy(value)
    try:
        for operation in patch:
            result = jsonpatch.JsonPatch([_lenient(operation, result)]).apply(result, in_place=True)
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as error:
        raise rejected() from error
    except (TypeError, AttributeError, KeyError) as error:
        raise bad_request(f"error decoding patch: {error}") from error
    if not isinstance(result, dict):
        raise rejected()
    return result


def _lenient(operation: Mapping[str, Any], value: Any) -> Mapping[str, Any]:
    """RFC 6902 wants the target of a `replace` to exist; API servers take one for a field that is not there."""
    if operation.get("op") != "replace":
        return operation
    parent, key = jsonpatch.JsonPointer(operation["path"]).to_last(value)
    return (
        {**operation, "op": "add"} if isinstance(parent, dict) and key is not None and key not in parent else operation
    )


def merge_patched(value: Any, patch: Any) -> Any:
    """RFC 7386: null removes, objects merge, everything else replaces."""
    if not isinstance(patch, Mapping):
        return copy.deepcopy(patch)
    result = dict(value) if isinstance(value, Mapping) else {}
    for key, item in patch.items():
        if item is None:
            result.pop(key, None)
        else:
            result[key] = merge_patched(result.get(key), item)
    return result


def strategic_patched(value: Any, patch: Mapping[str, Any], schema: Schema) -> Object:
    """A merge patch that merges lists by key, and knows `$patch`, `$deleteFromPrimitiveList` and `$retainKeys`."""
    if patch.get("$patch") == "replace":
        return {key: item for key, item in patch.items() if key != "$patch"}
    result = dict(value) if isinstance(value, Mapping) else {}
    if "$retainKeys" in patch:
        result = {key: item for key, item in result.items() if key in patch["$retainKeys"]}
    properties = schema.get("properties", {})
    for key, item in patch.items():
        child = properties.get(key, {})
        if key.startswith("$deleteFromPrimitiveList/"):
            field = key.partition("/")[2]
            result[field] = [each for each in result.get(field, []) if each not in item]
        elif key.startswith("$"):
            continue
        elif item is None:
            result.pop(key, None)
        elif isinstance(item, Mapping):
            if item.get("$patch") == "delete":
                result.pop(key, None)
            else:
                result[key] = strategic_patched(result.get(key), item, child)
        elif isinstance(item, list):
            result[key] = _merged_list(result.get(key) or [], item, child)
        else:
            result[key] = item
    return result


def _merged_list(value: list[Any], patch: list[Any], schema: Schema) -> list[Any]:
    keys = merge_keys(schema)
    if is_set(schema):
        return value + [item for item in patch if item not in value]
    if not keys or {"$patch": "replace"} in patch:
        return [item for item in patch if item != {"$patch": "replace"}]
    key = keys[0]
    result = list(value)
    for item in patch:
        if not isinstance(item, Mapping) or key not in item:
            raise internal(f"map: {item} does not contain declared merge key: {key}")
        index = next((i for i, each in enumerate(result) if each.get(key) == item[key]), None)
        if item.get("$patch") == "delete":
            result = [each for each in result if each.get(key) != item[key]]
        elif index is None:
            result.append(strategic_patched({}, item, schema.get("items", {})))
        else:
            result[index] = strategic_patched(result[index], item, schema.get("items", {}))
    return result
