"""The generated CRDs: up to date, structural, and a strict superset of KServe's."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from coordinator.api import crds
from coordinator.api.resources import (
    RESOURCES,
    LocalModelCache,
    LocalModelNamespaceCache,
    LocalModelNode,
    ModelStatus,
    NodeStatus,
    Resource,
)
from tests.kit import crd_tables
from tests.kit.crd_tables import read_table
from tests.kit.openapi import problems, schema_of

REPOSITORY = Path(__file__).resolve().parents[2]
CRDS = REPOSITORY / "k8s" / "crds"

each_kind = pytest.mark.parametrize("resource", RESOURCES, ids=lambda resource: resource.KIND)


def ours(resource: type[Resource]) -> dict[str, Any]:
    return next(crd for crd in crds.load() if crd["spec"]["names"]["plural"] == resource.PLURAL)


def kserves(resource: type[Resource]) -> dict[str, Any]:
    return read_table(resource.PLURAL)


# What is committed.


@pytest.mark.slow
def test_committed_crds_are_what_the_models_generate() -> None:
    assert crds.stale(CRDS, crds.generate()) == []


@pytest.mark.slow
def test_check_names_the_stale_file_and_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert crds.main(["--write", str(tmp_path)]) == 0
    assert crds.main(["--check", str(tmp_path)]) == 0
    (tmp_path / "localmodelnodes.yaml").write_text("edited: by hand\n")
    (tmp_path / "leftover.yaml").write_text("of: a renamed kind\n")
    capsys.readouterr()

    assert crds.main(["--check", str(tmp_path)]) == 1
    complaint = capsys.readouterr().err
    assert "localmodelnodes.yaml is stale: run `make generate`" in complaint
    assert "leftover.yaml is stale" in complaint
    assert "localmodelcaches.yaml" not in complaint

    assert crds.main(["--write", str(tmp_path)]) == 0
    assert crds.stale(tmp_path, crds.generate()) == []


@pytest.mark.slow
def test_load_prefers_what_the_wheel_carries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from_repository = crds.load()
    package = tmp_path / "coordinator"
    package.mkdir()
    crds.main(["--write", str(package / "crds_data")])
    monkeypatch.setattr(crds, "__file__", str(package / "crds.py"))
    assert crds.load() == from_repository


# What an API server demands of a structural schema.


def subschemas(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from subschemas(child, f"{path}.{name}")
    if "items" in schema:
        yield from subschemas(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), Mapping):
        yield from subschemas(schema["additionalProperties"], f"{path}{{}}")


@pytest.mark.slow
@each_kind
def test_every_schema_is_structural(resource: type[Resource]) -> None:
    known = {
        "type", "format", "enum", "pattern", "description", "default", "minItems", "maxItems", "minLength", "maxLength",
        "minimum", "maximum",
        "properties", "required", "items", "additionalProperties", "anyOf",
        "x-kubernetes-int-or-string", "x-kubernetes-list-type", "x-kubernetes-list-map-keys",
        "x-kubernetes-map-type", "x-kubernetes-validations",
    }  # fmt: skip
    for path, schema in subschemas(schema_of(ours(resource))):
        assert set(schema) <= known, f"{path}: {set(schema) - known}"
        if schema.get("x-kubernetes-int-or-string"):
            assert schema["anyOf"] == [{"type": "integer"}, {"type": "string"}], path
            assert "type" not in schema, path
        else:
            assert isinstance(schema.get("type"), str), f"{path} has no type"
            assert "anyOf" not in schema, path
        assert not ("properties" in schema and "additionalProperties" in schema), path
        for key in schema.get("x-kubernetes-list-map-keys", ()):
            assert key in schema["items"]["required"], f"{path}: list key {key} may be absent"
    Draft202012Validator.check_schema(schema_of(ours(resource)))


@each_kind
def test_every_column_points_at_a_field(resource: type[Resource]) -> None:
    crd = ours(resource)
    schema = schema_of(crd)
    for column in crd["spec"]["versions"][0]["additionalPrinterColumns"]:
        path = re.sub(r"\[\?.*?\]", "[]", column["jsonPath"])
        fields = {name for name, _ in subschemas(schema)} | {".metadata.creationTimestamp"}
        assert path in fields, column


_OF_CACHES = "READY AVAILABLE PROGRESS ETA REASON AGE | SIZE RATE REVISION ROLLOUT SOURCE NODEGROUPS"
COLUMNS = {
    "LocalModelCache": _OF_CACHES,
    "LocalModelNamespaceCache": _OF_CACHES,
    "LocalModelNodeGroup": "LIMIT/NODE TOTAL-USED TOTAL-FREE AGE | PATH",
    "LocalModelNode": "READY REASON MODELS SIZE RATE SILENT AGE | FREE VERSION MESSAGE",
}


@pytest.mark.slow
@each_kind
def test_kubectl_get_shows_these_columns_and_more_when_wide(resource: type[Resource]) -> None:
    columns = ours(resource)["spec"]["versions"][0]["additionalPrinterColumns"]
    usual = [column["name"].upper() for column in columns if column.get("priority", 0) == 0]
    wide = [column["name"].upper() for column in columns if column.get("priority", 0) == 1]
    assert f"{' '.join(usual)} | {' '.join(wide)}" == COLUMNS[resource.KIND]


@pytest.mark.slow
@each_kind
def test_kubectl_explain_describes_every_field(resource: type[Resource]) -> None:
    """But metadata, which an API server describes itself, and lets no definition say anything of."""
    silent = [path for path, schema in fields(schema_of(ours(resource))) if not schema.get("description", "").strip()]
    assert silent == [".metadata"]
    assert schema_of(ours(resource))["properties"]["metadata"] == {"type": "object"}


@each_kind
def test_a_definition_is_small_enough_for_kubectl_apply(resource: type[Resource]) -> None:
    assert len(json.dumps(ours(resource))) < 200_000, "kubectl keeps it in an annotation of at most 262144 bytes"


def fields(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Everything that `kubectl explain` has a line for."""
    for name, child in schema.get("properties", {}).items():
        yield f"{path}.{name}", child
        yield from fields(child, f"{path}.{name}")
    for inner in (schema.get("items"), schema.get("additionalProperties")):
        if isinstance(inner, Mapping):
            yield from fields(inner, f"{path}[]")


# What KServe promises.


def test_the_tables_are_what_upstream_says() -> None:
    """Each stands for a CRD and is made from it again; where upstream's files are beside the checkout, from those."""
    tables = {file.stem: file.read_text() for file in crd_tables.TABLES.glob("*.tsv")}
    assert tables.keys() == {*(resource.PLURAL for resource in RESOURCES), "rayclusters"}
    assert {plural: crd_tables.table(read_table(plural)) for plural in tables} == tables
    for crd in crd_tables.documents(crd_tables.UPSTREAM):
        assert crd_tables.table(crd) == tables[crd["spec"]["names"]["plural"]]


def missing(theirs: Any, mine: Any, path: str = "") -> list[str]:
    """Each way in which `mine` is not KServe's schema `theirs` exactly; extra optional fields are allowed."""
    nested = {"properties", "items", "additionalProperties", "required", "description"}
    found = [
        f"{path}: {key} is {mine.get(key)!r}, KServe has {theirs.get(key)!r}"
        for key in sorted((theirs.keys() | mine.keys()) - nested)
        if theirs.get(key) != mine.get(key)
    ]
    if sorted(theirs.get("required", ())) != sorted(mine.get("required", ())):
        found.append(f"{path}: required is {mine.get('required')}, KServe has {theirs.get('required')}")
    for name, child in theirs.get("properties", {}).items():
        if name in mine.get("properties", {}):
            found += missing(child, mine["properties"][name], f"{path}.{name}")
        else:
            found.append(f"{path}.{name} is missing")
    for key in ("items", "additionalProperties"):
        if isinstance(theirs.get(key), Mapping) and isinstance(mine.get(key), Mapping):
            found += missing(theirs[key], mine[key], f"{path}{key}")
        elif theirs.get(key) != mine.get(key):
            found.append(f"{path}: {key} differs")
    return found


@pytest.mark.slow
@each_kind
def test_every_field_of_kserve_is_here_with_the_same_rules(resource: type[Resource]) -> None:
    mine = copy.deepcopy(schema_of(ours(resource)))
    if resource is LocalModelNamespaceCache:  # of later KServe: node groups, or a claim
        spec = mine["properties"]["spec"]
        assert [rule["message"] for rule in spec.pop("x-kubernetes-validations")] == [
            "nodeGroups and pvcRef are mutually exclusive",
            "one of nodeGroups or pvcRef must be set",
            "pvcRef is immutable",
        ]
        spec["required"].append("nodeGroups")
    assert missing(schema_of(kserves(resource)), mine) == []


@pytest.mark.slow
@each_kind
def test_names_scope_and_subresources_are_kserves(resource: type[Resource]) -> None:
    mine, theirs = ours(resource)["spec"], kserves(resource)["spec"]
    mine = copy.deepcopy(mine)
    del mine["names"]["shortNames"]
    assert {key: mine[key] for key in ("group", "names", "scope")} == {
        key: theirs[key] for key in ("group", "names", "scope")
    }
    for key in ("name", "served", "storage", "subresources"):
        assert mine["versions"][0].get(key) == theirs["versions"][0].get(key), key


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda spec: spec["modelSize"].pop("pattern"), ".spec.modelSize: pattern"),
        (lambda spec: spec["sourceModelUri"].pop("x-kubernetes-validations"), "x-kubernetes-validations"),
        (lambda spec: spec.pop("storage"), ".spec.storage is missing"),
        (lambda spec: spec["nodeGroups"].update(minItems=2), "minItems is 2"),
        (lambda spec: spec["nodeGroups"].update({"x-kubernetes-list-type": "set"}), "x-kubernetes-list-type is 'set'"),
    ],
)
def test_the_comparison_sees_a_rule_that_was_lost(change: Any, complaint: str) -> None:
    mine = copy.deepcopy(schema_of(ours(LocalModelCache)))
    change(mine["properties"]["spec"]["properties"])
    (found,) = missing(schema_of(kserves(LocalModelCache)), mine)
    assert complaint in found


def test_the_status_words_are_exactly_kserves() -> None:
    status = schema_of(kserves(LocalModelCache))["properties"]["status"]["properties"]
    assert [word.value for word in NodeStatus] == status["nodeStatus"]["additionalProperties"]["enum"]
    words = schema_of(kserves(LocalModelNode))["properties"]["status"]["properties"]["modelStatus"][
        "additionalProperties"
    ]["enum"]
    assert [word.value for word in ModelStatus] == words


@pytest.mark.slow
def test_both_caches_have_one_schema_but_for_the_claim_of_a_namespace() -> None:
    cluster, namespaced = (schema_of(ours(kind))["properties"] for kind in (LocalModelCache, LocalModelNamespaceCache))
    assert cluster["status"] == namespaced["status"]
    fields = dict(namespaced["spec"]["properties"])
    assert "pvcRef" in fields
    del fields["pvcRef"]
    assert cluster["spec"]["properties"] == fields


# Objects as KServe's documentation and end-to-end tests write them.

KSERVE_OBJECTS = {
    "LocalModelNodeGroup": """
        apiVersion: serving.kserve.io/v1alpha1
        kind: LocalModelNodeGroup
        metadata: {name: workers}
        spec:
          storageLimit: 1.7T
          persistentVolumeClaimSpec:
            accessModes: [ReadWriteOnce]
            resources: {requests: {storage: 1700G}}
            storageClassName: local-storage
            volumeMode: Filesystem
            volumeName: models
          persistentVolumeSpec:
            accessModes: [ReadWriteOnce]
            volumeMode: Filesystem
            capacity: {storage: 1700G}
            local: {path: /models}
            persistentVolumeReclaimPolicy: Delete
            storageClassName: local-storage
            nodeAffinity:
              required:
                nodeSelectorTerms:
                - matchExpressions:
                  - {key: kserve/localmodel, operator: In, values: [worker]}
        """,
    "LocalModelCache": """
        apiVersion: serving.kserve.io/v1alpha1
        kind: LocalModelCache
        metadata: {name: qwen}
        spec:
          sourceModelUri: hf://Qwen/Qwen2-0.5B-Instruct
          modelSize: 10Gi
          nodeGroups: [workers]
          storage: {key: hf, parameters: {region: eu}}
        status:
          copies: {available: 1, total: 2}
          inferenceServices: [{name: chat, namespace: default}]
          nodeStatus: {node-1: NodeDownloaded, node-2: ""}
        """,
    "LocalModelNamespaceCache": """
        apiVersion: serving.kserve.io/v1alpha1
        kind: LocalModelNamespaceCache
        metadata: {name: qwen, namespace: team-a}
        spec:
          sourceModelUri: hf://Qwen/Qwen2-0.5B-Instruct
          modelSize: 10737418240
          nodeGroups: [workers, workers]
          serviceAccountName: reader
        """,
    "LocalModelNode": """
        apiVersion: serving.kserve.io/v1alpha1
        kind: LocalModelNode
        metadata: {name: node-1}
        spec:
          localModels:
          - {modelName: qwen, sourceModelUri: "hf://Qwen/Qwen2-0.5B-Instruct", nodeGroup: workers}
          - {modelName: qwen, namespace: team-a, sourceModelUri: "hf://Qwen/Qwen2-0.5B-Instruct"}
        status:
          modelStatus: {qwen: ModelDownloaded, team-a/qwen: ModelDownloading}
        """,
}


@pytest.mark.slow
@each_kind
def test_kserves_manifests_are_valid_and_parse(resource: type[Resource]) -> None:
    manifest = yaml.safe_load(KSERVE_OBJECTS[resource.KIND])
    assert problems(manifest, schema_of(ours(resource))) == []
    assert resource.model_validate(manifest).metadata.name == manifest["metadata"]["name"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ({"modelSize": "10 GB"}, "spec.modelSize"),
        ({"nodeGroups": []}, "spec.nodeGroups"),
        ({"sourceModelUri": None}, "spec.sourceModelUri"),
        ({"digest": "md5:00"}, "spec.digest"),
        ({"unheardOf": 1}, "unheardOf"),
    ],
)
def test_a_bad_cache_is_refused(spec: Mapping[str, Any], complaint: str) -> None:
    manifest = yaml.safe_load(KSERVE_OBJECTS["LocalModelCache"])
    manifest["spec"].update(spec)
    (found,) = problems(manifest, schema_of(ours(LocalModelCache)))
    assert complaint in found
