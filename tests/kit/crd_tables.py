"""What CRDs of others demand, as tables of our own in `tests/data/crds`: a row for each field, with what holds for it.

    .spec.modelSize     {"anyOf": [...], "pattern": "...", "x-kubernetes-int-or-string": true}
    .spec.nodeGroups    {"items": true, "minItems": 1, "type": "array"}         [] below it: each item
    .spec               {"required": ["modelSize", ...], "type": "object"}      {} below it: each value

The first row is what the CRD says of itself: group, names, scope, versions. Prose is left out, and so is what stands
below a pod template, which is Kubernetes' own and checked as such.

    .venv/bin/python -m tests.kit.crd_tables FOLDER …       # writes a table for each CRD in these folders of YAML
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

TABLES = Path(__file__).resolve().parents[1] / "data" / "crds"
UPSTREAM = tuple((Path(__file__).resolve().parents[3] / "shared" / "reference").glob("*-crds"))
"""Folders with the CRDs that the tables were made from, where a checkout has them beside it."""
ITSELF = "crd"
NESTED = ("properties", "items", "additionalProperties")
ANYTHING = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
Row = tuple[str, dict[str, Any]]


def rows_of(crd: Mapping[str, Any]) -> Iterator[Row]:
    """The table of a CRD: of the version that is stored."""
    spec = crd["spec"]
    (version,) = [each for each in spec["versions"] if each["storage"]]
    kept = {key: version[key] for key in ("name", "served", "storage", "subresources") if key in version}
    yield ITSELF, {key: spec[key] for key in ("group", "names", "scope")} | {"versions": [kept]}
    yield from _fields(version["schema"]["openAPIV3Schema"], "")


def _fields(schema: Mapping[str, Any], path: str) -> Iterator[Row]:
    if path.endswith(".template"):
        yield path, dict(ANYTHING)
        return
    facts = {key: value for key, value in schema.items() if key not in (*NESTED, "description")}
    if "required" in facts:
        facts["required"] = sorted(facts["required"])
    if "properties" in schema:
        facts["properties"] = True
    for key in ("items", "additionalProperties"):
        if key in schema:
            facts[key] = schema[key] if isinstance(schema[key], bool) else {}
    yield path, facts
    for name, child in sorted(schema.get("properties", {}).items()):
        yield from _fields(child, f"{path}.{name}")
    if isinstance(schema.get("items"), Mapping):
        yield from _fields(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), Mapping):
        yield from _fields(schema["additionalProperties"], f"{path}{{}}")


def crd_of(rows: Sequence[Row]) -> dict[str, Any]:
    """The CRD again: an API server accepts it, and it demands what the table says."""
    (_, itself), *fields = rows
    at: dict[str, dict[str, Any]] = {}
    for path, facts in fields:
        at[path] = schema = dict(facts)
        if schema.get("properties") is True:
            schema["properties"] = {}
        if path.endswith("[]"):
            at[path[:-2]]["items"] = schema
        elif path.endswith("{}"):
            at[path[:-2]]["additionalProperties"] = schema
        elif path:
            above, _, name = path.rpartition(".")
            at[above]["properties"][name] = schema
    names = itself["names"]
    versions = [{**version, "schema": {"openAPIV3Schema": at[""]}} for version in itself["versions"]]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names['plural']}.{itself['group']}"},
        "spec": {**itself, "versions": versions},
    }


def read_table(plural: str) -> dict[str, Any]:
    """The CRD of `tests/data/crds/<plural>.tsv`."""
    lines = (TABLES / f"{plural}.tsv").read_text().splitlines()
    return crd_of([(path, json.loads(facts)) for path, _, facts in (line.partition("\t") for line in lines)])


def table(crd: Mapping[str, Any]) -> str:
    """As it is committed."""
    return "".join(f"{path}\t{json.dumps(facts, sort_keys=True)}\n" for path, facts in rows_of(crd))


def documents(folders: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """The CRDs in these folders of YAML."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for file in (file for folder in folders for file in sorted(folder.glob("*.yaml"))):
        crd = yaml.load(file.read_text(), Loader=loader)
        assert isinstance(crd, dict)
        yield crd


def main(folders: Sequence[str]) -> None:
    TABLES.mkdir(parents=True, exist_ok=True)
    for crd in documents(map(Path, folders)):
        (TABLES / f"{crd['spec']['names']['plural']}.tsv").write_text(table(crd))


if __name__ == "__main__":
    main(sys.argv[1:])
