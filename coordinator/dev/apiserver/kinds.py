"""Which kinds a server knows, and under which paths. A custom kind is made from its CustomResourceDefinition."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from coordinator.dev.apiserver.errors import Object

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


_TEXT = {"type": "string"}
_TEXTS = {"type": "object", "additionalProperties": _TEXT}
_TIME = {"type": "string", "format": "date-time", "nullable": True}
METADATA: Mapping[str, Any] = {
    "type": "object",
    "description": "What every object carries.",
    "properties": {
        "name": _TEXT,
        "namespace": _TEXT,
        "generateName": _TEXT,
        "uid": _TEXT,
        "resourceVersion": _TEXT,
        "generation": {"type": "integer", "format": "int64"},
        "creationTimestamp": _TIME,
        "deletionTimestamp": _TIME,
        "deletionGracePeriodSeconds": {"type": "integer", "format": "int64", "nullable": True},
        "labels": {**_TEXTS, "nullable": True},
        "annotations": {**_TEXTS, "nullable": True},
        "finalizers": {"type": "array", "items": _TEXT, "x-kubernetes-list-type": "set", "nullable": True},
        "ownerReferences": {
            "type": "array",
            "nullable": True,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["uid"],
            "items": {
                "type": "object",
                "required": ["apiVersion", "kind", "name", "uid"],
                "properties": {
                    **dict.fromkeys(("apiVersion", "kind", "name", "uid"), _TEXT),
                    "controller": {"type": "boolean"},
                    "blockOwnerDeletion": {"type": "boolean"},
                },
            },
        },
        "managedFields": {
            "type": "array",
            "nullable": True,
            "items": {
                "type": "object",
                "required": ["manager", "operation", "apiVersion"],
                "properties": {
                    **dict.fromkeys(("manager", "operation", "apiVersion", "time", "fieldsType", "subresource"), _TEXT),
                    "fieldsV1": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                },
            },
        },
    },
}
"""ObjectMeta as a schema: it is the same for every kind."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `kubectl get`. `json_path` as in additionalPrinterColumns; priority > 0 only with `-o wide`."""

    name: str
    json_path: str
    type: str = "string"
    priority: int = 0
    description: str = ""
    format: str = ""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind in one version.

    `schema` says little for the built-in kinds and everything for custom ones. `selectable` are the field paths, beyond
    metadata.name and metadata.namespace, that a fieldSelector may name.
    """

    group: str
    version: str
    plural: str
    kind: str
    schema: Mapping[str, Any]
    namespaced: bool = False
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    singular: str = ""
    list_kind: str = ""
    status: bool = False
    custom: bool = False
    columns: tuple[Column, ...] = ()
    selectable: tuple[str, ...] = ()

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def merging(self) -> Mapping[str, Any]:
        """The schema with that of `metadata`, which is merged by rules of its own."""
        return {**self.schema, "properties": {**self.schema.get("properties", {}), "metadata": METADATA}}

    @property
    def resource(self) -> Resource:
        return (self.group, self.plural)


Resource = tuple[str, str]
"""Group and plural: what objects are stored under, whatever the version."""


class Catalogue:
    """The kinds being served. Customs come and go with their CustomResourceDefinitions."""

    def __init__(self, builtins: Iterable[Kind]) -> None:
        self._kinds = {(kind.group, kind.version, kind.plural): kind for kind in builtins}

    def find(self, group: str, version: str, plural: str) -> Kind | None:
        return self._kinds.get((group, version, plural))

    def any_version(self, resource: Resource) -> Kind | None:
        return next((kind for kind in self._kinds.values() if kind.resource == resource), None)

    def all(self) -> list[Kind]:
        return list(self._kinds.values())

    def serve(self, crd: Object) -> None:
        """From now on the served versions of `crd`, and no others, are known."""
        self.withdraw(crd)
        self._kinds |= {(kind.group, kind.version, kind.plural): kind for kind in kinds_of(crd)}

    def withdraw(self, crd: Object) -> None:
        resource = (crd["spec"]["group"], crd["spec"]["names"]["plural"])
        self._kinds = {key: kind for key, kind in self._kinds.items() if kind.resource != resource or not kind.custom}


def kinds_of(crd: Mapping[str, Any]) -> list[Kind]:
    """One kind per served version, the stored one first."""
    spec, names = crd["spec"], crd["spec"]["names"]
    versions = sorted((v for v in spec["versions"] if v.get("served")), key=lambda v: not v.get("storage"))
    return [
        Kind(
            group=spec["group"],
            version=version["name"],
            plural=names["plural"],
            kind=names["kind"],
            singular=names.get("singular") or names["kind"].lower(),
            list_kind=names.get("listKind") or names["kind"] + "List",
            namespaced=spec["scope"] == "Namespaced",
            short_names=tuple(names.get("shortNames", ())),
            categories=tuple(names.get("categories", ())),
            status="status" in version.get("subresources", {}),
            custom=True,
            schema=version.get("schema", {}).get("openAPIV3Schema", {"x-kubernetes-preserve-unknown-fields": True}),
            columns=tuple(_column(column) for column in version.get("additionalPrinterColumns", DEFAULT_COLUMNS)),
            selectable=tuple(each["jsonPath"].removeprefix(".") for each in version.get("selectableFields", ())),
        )
        for version in versions
    ]


DEFAULT_COLUMNS = ({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},)


def _column(column: Mapping[str, Any]) -> Column:
    return Column(
        name=column["name"],
        json_path=column["jsonPath"],
        type=column["type"],
        priority=column.get("priority", 0),
        description=column.get("description", ""),
        format=column.get("format", ""),
    )
