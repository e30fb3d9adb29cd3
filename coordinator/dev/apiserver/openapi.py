"""OpenAPI made from the schemas: v3 for `kubectl explain` and field validation, and the least v2 that parses."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.dev.apiserver.errors import Object
from coordinator.dev.apiserver.kinds import METADATA, Kind

_OBJECT_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"


def index(kinds: Sequence[Kind]) -> Object:
    """Where the document of each group and version is."""
    paths = sorted({_path(kind) for kind in kinds})
    return {"paths": {path: {"serverRelativeURL": f"/openapi/v3/{path}"} for path in paths}}


def document(path: str, kinds: Sequence[Kind]) -> Object | None:
    """The OpenAPI v3 document of one group and version (`api/v1`, `apis/<group>/<version>`)."""
    members = [kind for kind in kinds if _path(kind) == path]
    if not members:
        return None
    paths: Object = {}
    for kind in members:
        collection = f"/{path}/namespaces/{{namespace}}/{kind.plural}" if kind.namespaced else f"/{path}/{kind.plural}"
        paths[collection] = {verb: _operation(kind, action) for verb, action in (("get", "list"), ("post", "post"))}
        paths[f"{collection}/{{name}}"] = {verb: _operation(kind, verb) for verb in ("get", "put", "patch", "delete")}
    schemas = {_schema_name(kind): _schema(kind) for kind in members} | {_OBJECT_META: METADATA}
    return {"openapi": "3.0.0", "info": _INFO, "paths": paths, "components": {"schemas": schemas}}


def swagger() -> Object:
    """The v2 document, without paths."""
    return {"swagger": "2.0", "info": _INFO, "paths": {}, "definitions": {}}


_INFO: Object = {"title": "localmodel development API server", "version": "v1"}


def _path(kind: Kind) -> str:
    return f"apis/{kind.api_version}" if kind.group else f"api/{kind.version}"


def _gvk(kind: Kind) -> Object:
    return {"group": kind.group, "version": kind.version, "kind": kind.kind}


def _schema_name(kind: Kind) -> str:
    return ".".join([*reversed(kind.group.split(".")), kind.version, kind.kind]).removeprefix(".")


def _operation(kind: Kind, action: str) -> Object:
    reference = {"$ref": f"#/components/schemas/{_schema_name(kind)}"}
    names = ("dryRun", "fieldManager", "fieldValidation") if action in ("post", "put", "patch") else ()
    return {
        "operationId": f"{action}{kind.group.replace('.', '')}{kind.version}{kind.kind}",
        "parameters": [{"name": name, "in": "query", "schema": {"type": "string"}} for name in names],
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": reference}}}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": _gvk(kind),
    }


def _schema(kind: Kind) -> Object:
    properties: Object = {
        "apiVersion": {"type": "string", "description": "The version of this representation of the object."},
        "kind": {"type": "string", "description": "The resource this object represents."},
    } | dict(kind.schema.get("properties", {}))
    properties["metadata"] = {
        "description": "Standard object's metadata.",
        "allOf": [{"$ref": f"#/components/schemas/{_OBJECT_META}"}],
    }
    return {**kind.schema, "properties": properties, "x-kubernetes-group-version-kind": [_gvk(kind)]}
