"""Objects against the OpenAPI v3 schema of a CustomResourceDefinition, as strictly as `kubectl --validate=strict`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator


def schema_of(crd: Mapping[str, Any], version: str | None = None) -> dict[str, Any]:
    """The schema of `version`, or of the one that is stored."""
    for candidate in crd["spec"]["versions"]:
        if candidate["name"] == version or (version is None and candidate["storage"]):
            schema = candidate["schema"]["openAPIV3Schema"]
            assert isinstance(schema, dict)
            return schema
    raise KeyError(f"{crd['metadata']['name']} has no version {version}")


def problems(instance: Mapping[str, Any], schema: Mapping[str, Any]) -> list[str]:
    """What is wrong with `instance`, one line each; unknown fields count, `metadata` is not looked into."""
    validator = Draft202012Validator(_closed(schema))
    found = sorted(validator.iter_errors(instance), key=lambda error: list(map(str, error.path)))
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in found]


def _closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """`schema` with fields it does not name forbidden, where an API server would prune them."""
    closed = dict(schema)
    if "properties" in closed:
        closed["properties"] = {name: _closed(child) for name, child in closed["properties"].items()}
        if not closed.get("x-kubernetes-preserve-unknown-fields"):
            closed.setdefault("additionalProperties", False)
    if isinstance(closed.get("additionalProperties"), Mapping):
        closed["additionalProperties"] = _closed(closed["additionalProperties"])
    if "items" in closed:
        closed["items"] = _closed(closed["items"])
    return closed
