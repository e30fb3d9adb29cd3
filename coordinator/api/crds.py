"""The CustomResourceDefinitions: generated from `coordinator.api.resources`, kept in `k8s/crds/`, loaded from there.

    resources.py (pydantic) ── JSON schema ── structural() ── CRD ──► k8s/crds/*.yaml ──► wheel: crds_data/

`python -m coordinator.api.crds --write DIR | --check DIR`. What apiextensions/v1 calls a structural schema has no
`$ref`, no `null` and says every type once, so pydantic's output is inlined and thinned here. Fields that are
Kubernetes' own types are expanded from the schemas in `kubernetes-validate`; only the generator needs that package.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from coordinator.api.resources import (
    GROUP,
    QUANTITY_SCHEMA,
    RESOURCES,
    VERSION,
    LocalModelCache,
    LocalModelNamespaceCache,
    LocalModelNode,
    LocalModelNodeGroup,
    Resource,
)

Schema = dict[str, Any]

KUBERNETES_VERSION = "1.34.0"
"""The Kubernetes whose PersistentVolumeSpec is expanded: the one KServe 0.20 builds its own CRDs with."""

GENERATED = "Generated from coordinator/api/resources.py by `make generate`. Do not edit."
ANNOTATIONS = {"localmodel/generated-from": "coordinator/api/resources.py"}

KUBERNETES_DEFAULTS: Mapping[str, Mapping[str, str | bool]] = {
    "AzureDiskVolumeSource": {"fsType": "ext4", "readOnly": False},
    "ISCSIPersistentVolumeSource": {"iscsiInterface": "default"},
    "RBDPersistentVolumeSource": {"keyring": "/etc/ceph/keyring", "pool": "rbd", "user": "admin"},
    "ScaleIOPersistentVolumeSource": {"fsType": "xfs", "storageMode": "ThinProvisioned"},
}
"""Defaults of core/v1 that the bundled JSON schemas leave out and controller-gen writes into KServe's CRDs."""


def _column(name: str, path: str, *, kind: str = "string", wide: bool = False, about: str = "") -> Schema:
    column: Schema = {"name": name, "type": kind, "jsonPath": path}
    if about:
        column["description"] = about
    if wide:
        column["priority"] = 1
    return column


_AGE = _column("Age", ".metadata.creationTimestamp", kind="date", about="How long the object exists.")
_READY = _column("Ready", '.status.conditions[?(@.type=="Ready")].status', about="True, False, or nothing yet.")
_REASON = _column("Reason", '.status.conditions[?(@.type=="Ready")].reason', about="Of Ready: docs/reasons.md.")
_CACHE_COLUMNS = (
    _READY,
    _column("Available", ".status.available", about="Nodes that hold the model / nodes that should."),
    _column("Progress", ".status.progress", about="Finished share of all wanted bytes."),
    _column("ETA", ".status.eta", about="Time left until the last node is done."),
    _REASON,
    _AGE,
    _column("Size", ".status.size", wide=True, about="Of one copy, measured at the source."),
    _column("Rate", ".status.rate", wide=True, about="Summed over nodes."),
    _column("Revision", ".status.shortRevision", wide=True, about="What the source was resolved to."),
    _column("Rollout", ".status.rollout", wide=True, about="How far a new version is; nothing while there is none."),
    _column("Source", ".spec.sourceModelUri", wide=True, about="Where the model comes from."),
    _column("NodeGroups", ".spec.nodeGroups", wide=True, about="Whose nodes get a copy."),
)
"""Without the wide ones they fit 80 columns with a name of 13 characters and the longest reasons."""
COLUMNS: Mapping[type[Resource], Sequence[Schema]] = {
    LocalModelCache: _CACHE_COLUMNS,
    LocalModelNamespaceCache: _CACHE_COLUMNS,
    LocalModelNodeGroup: (
        _column("Limit/Node", ".spec.storageLimit", about="Space for models on each node."),
        _column("Total-Used", ".status.used", about="By models, on all nodes that report."),
        _column("Total-Free", ".status.available", about="For more models, on all nodes that report."),
        _AGE,
        _column("Path", ".spec.persistentVolumeSpec.local.path", wide=True, about="Of the models on each node."),
    ),
    LocalModelNode: (
        _column("Ready", ".status.summary.ready", about="Whether the node agent reports: True or False."),
        _column("Reason", ".status.agent.reason", about="Why it does not: docs/reasons.md."),
        _column("Models", ".status.summary.models", about="Models that are there / models that should be."),
        _column("Size", ".status.summary.size", about="What they take on the node's disks."),
        _column("Rate", ".status.summary.rate", about="What arrives."),
        _column("Silent", ".status.agent.silentSince", kind="date", about="Since the last report of the node agent."),
        _AGE,
        _column("Free", ".status.summary.free", wide=True, about="On the fullest of its disks."),
        _column("Version", ".status.agent.version", wide=True, about="Of localmodel on the node."),
        _column("Message", ".status.agent.message", wide=True, about="Why the node agent does not report."),
    ),
}

WITHOUT_STATUS_SUBRESOURCE = frozenset({LocalModelNodeGroup})
"""KServe's has none. With one, whoever writes `status` through the main resource would be ignored without a word."""


def generate() -> dict[str, str]:
    """File name → YAML text of every CRD, ending in a newline. The same input gives the same bytes."""
    return {f"{resource.PLURAL}.yaml": _render(definition(resource)) for resource in RESOURCES}


def load() -> list[Schema]:
    """The committed CRDs, from the wheel's own copy or else from the repository."""
    here = Path(__file__).resolve().parent
    packaged, repository = here / "crds_data", here.parents[1] / "k8s" / "crds"
    directory = packaged if packaged.is_dir() else repository
    texts = [(directory / f"{resource.PLURAL}.yaml").read_text() for resource in RESOURCES]
    return [yaml.load(text, Loader=_LOADER) for text in texts]  # noqa: S506  a safe one, either way


def definition(resource: type[Resource]) -> Schema:
    """The CustomResourceDefinition of one kind."""
    models = resource.model_json_schema(by_alias=True)
    root = structural(models, models.get("$defs", {}))
    properties = root["properties"]
    schema = {
        "type": "object",
        **({"description": root["description"]} if "description" in root else {}),
        "properties": {
            "apiVersion": {"type": "string", "description": f"{GROUP}/{VERSION}"},
            "kind": {"type": "string", "description": "What the object is, in one word."},
            "metadata": {"type": "object"},  # an API server allows no word more: it describes metadata itself
            "spec": properties["spec"],
            "status": properties["status"],
        },
    }
    version: Schema = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": list(COLUMNS[resource]),
        "schema": {"openAPIV3Schema": schema},
    }
    if resource not in WITHOUT_STATUS_SUBRESOURCE:
        version["subresources"] = {"status": {}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{resource.PLURAL}.{GROUP}", "annotations": dict(ANNOTATIONS)},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": resource.KIND,
                "listKind": f"{resource.KIND}List",
                "plural": resource.PLURAL,
                "singular": resource.KIND.lower(),
                "shortNames": list(resource.SHORT_NAMES),
            },
            "scope": "Namespaced" if resource.NAMESPACED else "Cluster",
            "versions": [version],
        },
    }


def structural(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> Schema:
    """`schema` as apiextensions/v1 accepts it: references inlined, Optional is just optional, no title.

    Defaults are dropped: they are what a reader assumes, and KServe's CRDs have none of them.
    """
    rest = {key: value for key, value in schema.items() if key not in {"title", "default", "$defs"}}
    if reference := rest.pop("$ref", None):
        return structural({**defs[_name(reference)], **rest}, defs)
    if kubernetes_type := rest.pop("x-kubernetes-type", None):
        return {**rest, **_kubernetes(kubernetes_type)}
    options = [option for option in rest.get("anyOf", ()) if option != {"type": "null"}]
    if len(options) == 1:
        del rest["anyOf"]
        return structural({**options[0], **rest}, defs)
    if "description" in rest:
        rest["description"] = " ".join(rest["description"].split())
    return _descend(rest, lambda child: structural(child, defs))


def _kubernetes(name: str) -> Schema:
    """The structural schema of one of Kubernetes' own types, such as `core.v1.PersistentVolumeSpec`.

    Of each description there is the first sentence: whole ones would make the object too large for `kubectl apply`.
    """
    import kubernetes_validate  # the generator's dependency only

    bundled = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / f"v{KUBERNETES_VERSION}-local"
    defs = json.loads((bundled / "_definitions.json").read_text())["$defs"]

    def expand(schema: Mapping[str, Any]) -> Schema:
        rest = dict(schema)
        if "description" in rest:
            rest["description"] = _first_sentence(rest["description"])
        if reference := rest.pop("$ref", None):
            type_name = _name(reference).rpartition(".")[2]
            if type_name == "Quantity":
                return {**QUANTITY_SCHEMA, **({"description": rest["description"]} if "description" in rest else {})}
            expanded = expand({**defs[_name(reference)], **rest})
            for field, default in KUBERNETES_DEFAULTS.get(type_name, {}).items():
                expanded["properties"][field]["default"] = default
            return expanded
        if isinstance(rest.get("type"), list):  # the bundled schemas accept null wherever a Go pointer or slice does
            (rest["type"],) = set(rest["type"]) - {"null"}
        return _descend(rest, expand)

    return expand(defs[f"io.k8s.api.{name}"])


def _descend(schema: Schema, transform: Callable[[Mapping[str, Any]], Schema]) -> Schema:
    """`schema` with `transform` applied to each schema directly inside it."""
    if "properties" in schema:
        schema["properties"] = {name: transform(child) for name, child in schema["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), Mapping):
            schema[key] = transform(schema[key])
    return schema


def _name(reference: str) -> str:
    return reference.rpartition("/")[2]


def _first_sentence(text: str) -> str:
    words = " ".join(text.split())
    return re.split(r"(?<=[a-z)`\"])\. ", words, maxsplit=1)[0].rstrip(".") + "."


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Ten times as fast, where PyYAML was built with it."""


class _Dumper(yaml.SafeDumper):
    """Writes a value that occurs twice twice, without YAML anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _render(document: Schema) -> str:
    body = yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
    return f"# {GENERATED}\n---\n{body}"


def stale(directory: Path, wanted: Mapping[str, str]) -> list[str]:
    """Names of the files in `directory` that differ from `wanted`, are missing, or should not be there."""
    found = {path.name: path.read_text() for path in directory.glob("*.yaml")}
    return sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))


def main(argv: Iterable[str] | None = None) -> int:
    """0 when written or up to date, 1 when `--check` found a difference."""
    parser = argparse.ArgumentParser(
        prog="python -m coordinator.api.crds", description="CRDs from coordinator/api/resources.py"
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", type=Path, metavar="DIR", help="write the CRDs into DIR")
    action.add_argument("--check", type=Path, metavar="DIR", help="exit 1 if DIR is not what --write would leave")
    arguments = parser.parse_args(None if argv is None else list(argv))
    wanted = generate()
    if arguments.check is not None:
        names = stale(arguments.check, wanted)
        for name in names:
            print(f"{arguments.check / name} is stale: run `make generate`", file=sys.stderr)  # noqa: T201 (a command)
        return 1 if names else 0
    arguments.write.mkdir(parents=True, exist_ok=True)
    for name in stale(arguments.write, wanted):
        path = arguments.write / name
        if name in wanted:
            path.write_text(wanted[name])
        else:
            path.unlink()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
