"""Which kinds a server knows, and under which paths. A custom kind is made from its CustomResourceDefinition."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from coordinator.dev.apiserver.errors import Object

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


METADATA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "finalizers": {"type": "array", "x-kubernetes-list-type": "set"},
        "ownerReferences": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["uid"],
            "items": {"type": "object"},
        },
    },
}
"""How ObjectMeta is merged."""


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

    `schema` None: nothing is defaulted, pruned or validated; `topology` is then the part of a schema that says which
    lists are merged by which key. `selectable` are the field paths, beyond metadata.name
    and metadata.namespace, that a fieldSelector may name.
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = False
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    singular: str = ""
    list_kind: str = ""
    status: bool = False
    custom: bool = False
    schema: Mapping[str, Any] | None = None
    columns: tuple[Column, ...] = ()
    selectable: tuple[str, ...] = ()
    topology: Mapping[str, Any] = field(default_factory=dict)

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def merging(self) -> Mapping[str, Any]:
        """The schema as far as merging goes; `metadata` included."""
        schema = self.schema if self.schema is not None else self.topology
        return {**schema, "properties": {**schema.get("properties", {}), "metadata": METADATA}}

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

    def of_object(self, value: Mapping[str, Any]) -> Kind | None:
        """By apiVersion and kind."""
        api_version, name = value.get("apiVersion"), value.get("kind")
        return next(
            (kind for kind in self._kinds.values() if kind.api_version == api_version and kind.kind == name), None
        )

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
