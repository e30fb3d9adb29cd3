"""The smaller pure parts of the development API server: history, ownership, tables, patches, protobuf."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.dev.apiserver import fields, jsonpath, patches, protobuf, requests, selectors, tables
from coordinator.dev.apiserver.builtins import BUILTINS, CRDS
from coordinator.dev.apiserver.errors import StatusError
from coordinator.dev.apiserver.fields import Writer
from coordinator.dev.apiserver.kinds import Catalogue
from coordinator.dev.apiserver.registry import Options, Registry
from coordinator.dev.apiserver.storage import Storage
from tests.kit import widgets

RESOURCE = ("g", "things")

# Storage


def a_thing(name: str, **rest: Any) -> dict[str, Any]:
    return {"apiVersion": "g/v1", "kind": "Thing", "metadata": {"name": name, "uid": f"uid-{name}"}, **rest}


def names(values: list[dict[str, Any]]) -> list[str]:
    return [value["metadata"]["name"] for value in values]


def test_a_past_list_is_what_it_was() -> None:
    storage = Storage(clock=lambda: 1.0)
    storage.put(RESOURCE, ("", "a"), a_thing("a"))
    version = int(storage.put(RESOURCE, ("", "b"), a_thing("b", spec=1))["metadata"]["resourceVersion"])
    storage.put(RESOURCE, ("", "b"), a_thing("b", spec=2))
    storage.put(RESOURCE, ("", "c"), a_thing("c"))
    storage.remove(RESOURCE, ("", "a"))
    past = storage.all_at(RESOURCE, "", version)
    assert (names(past), past[1]["spec"], names(storage.all(RESOURCE))) == (["a", "b"], 1, ["b", "c"])


def test_what_the_history_no_longer_holds_is_gone() -> None:
    storage = Storage(history=2, clock=lambda: 1.0)
    versions = [
        int(storage.put(RESOURCE, ("", "a"), a_thing("a", spec=n))["metadata"]["resourceVersion"]) for n in range(4)
    ]
    assert [change.version for change in storage.changes_since(versions[1])] == versions[2:]
    with pytest.raises(StatusError) as gone:
        storage.changes_since(versions[0])
    assert gone.value.code == 410


def test_a_journal_brings_back_objects_and_version(tmp_path: Path) -> None:
    first = Storage(journal=tmp_path / "journal", clock=lambda: 1.0)
    for name in ("a", "b"):
        first.put(RESOURCE, ("", name), a_thing(name))
    first.remove(RESOURCE, ("", "b"))
    first.close()
    second = Storage(journal=tmp_path / "journal", clock=lambda: 0.0)
    assert (second.all(RESOURCE), second.version) == (first.all(RESOURCE), first.version)
    second.close()
    assert len((tmp_path / "journal").read_text().splitlines()) == 2  # compacted: one object, and the version


# Ownership

SCHEMA = {
    "properties": {"spec": widgets.crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]}
}
ALICE, BOB = Writer("alice", "Apply", "g/v1"), Writer("bob", "Apply", "g/v1")

parts = st.lists(
    st.fixed_dictionaries({"name": st.sampled_from("abc")}, optional={"weight": st.integers(0, 3)}),
    max_size=3,
    unique_by=lambda part: part["name"],
)
specs = st.fixed_dictionaries(
    {},
    optional={
        "size": st.sampled_from(["1", "2"]),
        "tags": st.lists(st.sampled_from("xyz"), unique=True, max_size=3),
        "groups": st.lists(st.sampled_from("xyz"), max_size=2),
        "parts": parts,
        "parameters": st.dictionaries(st.sampled_from("kl"), st.sampled_from("12"), max_size=2),
    },
)


def apply(live: dict[str, Any], spec: dict[str, Any], writer: Writer) -> dict[str, Any]:
    intent = {"apiVersion": "g/v1", "kind": "Thing", "metadata": {"name": "a"}, "spec": spec}
    return fields.applied(live, intent, SCHEMA, writer, "now", force=True, last_applied=None)


def unordered(value: Any) -> Any:
    """The same, wherever the items of lists stand."""
    if isinstance(value, dict):
        return {key: unordered(item) for key, item in value.items() if item not in ({}, [])}
    return (
        sorted((unordered(item) for item in value), key=partial(json.dumps, sort_keys=True))
        if isinstance(value, list)
        else value
    )


@pytest.mark.slow
@given(specs, specs)
def test_the_only_applier_gets_exactly_what_it_applied_last(first: dict[str, Any], second: dict[str, Any]) -> None:
    once = apply(apply(a_thing("a"), first, ALICE), second, ALICE)
    assert unordered(once.get("spec", {})) == unordered(second)
    assert apply(once, second, ALICE) == once


@pytest.mark.slow
@given(specs, specs)
def test_what_one_applier_lets_go_another_keeps(first: dict[str, Any], second: dict[str, Any]) -> None:
    both = apply(apply(a_thing("a"), first, ALICE), second, BOB)
    left = apply(both, {}, ALICE)
    assert unordered(left.get("spec", {})) == unordered(apply(a_thing("a"), second, BOB).get("spec", {}))


def test_paths_are_shown_as_people_write_them() -> None:
    assert fields.dotted(("f:spec", "f:parts", 'k:{"name":"a"}', "f:weight")) == '.spec.parts[name="a"].weight'
    assert fields.dotted(("f:metadata", "f:finalizers", 'v:"x/y"')) == '.metadata.finalizers[="x/y"]'


# Tables


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-5, "<invalid>"),
        (-1, "0s"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (200, "3m20s"),
        (599, "9m59s"),
        (600, "10m"),
        (3 * 3600 - 1, "179m"),
        (3 * 3600, "3h"),
        (7 * 3600 + 300, "7h5m"),
        (8 * 3600, "8h"),
        (47 * 3600, "47h"),
        (48 * 3600, "2d"),
        (50 * 3600, "2d2h"),
        (8 * 86400, "8d"),
        (729 * 86400, "729d"),
        (731 * 86400, "2y1d"),
        (3000 * 86400, "8y"),
    ],
)
def test_a_duration_is_shown_as_kubectl_shows_it(seconds: int, expected: str) -> None:
    assert tables.human_duration(seconds) == expected
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert tables.age((now - timedelta(seconds=seconds)).isoformat(), now) == expected


VALUE = {
    "spec": {"a": 1, "groups": ["x", "y"], "weird.key": True},
    "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]},
}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (".spec.a", [1]),
        ("spec.a", [1]),
        ("{.spec.a}", [1]),
        (".spec.none", []),
        (".spec.a.b", []),
        (".spec.groups[0]", ["x"]),
        (".spec.groups[-1]", ["y"]),
        (".spec.groups[9]", []),
        (".spec.groups[*]", ["x", "y"]),
        (".spec['weird.key']", [True]),
        (r".spec.weird\.key", [True]),
        ('.status.conditions[?(@.type=="Ready")].status', ["True"]),
        ("$.status.conditions[?(@.type!='Ready')].status", ["False"]),
        (".spec[?()]", []),
    ],
)
def test_a_column_finds(path: str, expected: list[Any]) -> None:
    assert jsonpath.find(VALUE, path) == expected


# Kinds


def a_registry() -> Registry:
    return Registry(Storage(clock=lambda: 1.0), Catalogue(BUILTINS))


@pytest.mark.slow
def test_an_object_is_read_in_every_version_that_is_served() -> None:
    registry, crd = a_registry(), widgets.crd()
    versions = crd["spec"]["versions"]
    versions.append({**versions[0], "name": "v2", "storage": False, "selectableFields": [{"jsonPath": ".spec.color"}]})
    registry.create(CRDS, "", crd, Options())
    first, second = (registry.catalogue.find(widgets.GROUP, name, "widgets") for name in ("v1", "v2"))
    assert first is not None
    assert second is not None
    assert (first.selectable, second.selectable) == ((), ("spec.color",))
    created = registry.create(first, "", widgets.a_widget("a"), Options())
    assert registry.get(second, "", "a") == {**created, "apiVersion": f"{widgets.GROUP}/v2"}


BROKEN_SCHEMAS: dict[str, tuple[Any, str]] = {
    "not a schema": (3, "spec: Invalid value: 3: must be a schema"),
    "a list of nothing": ({"type": "array"}, "spec.items: Required value: must be specified"),
    "a default that does not fit": ({"type": "string", "default": 3}, 'spec.default: Invalid value: "integer"'),
    "a type that is none": ({"type": "nope"}, 'spec.type: Unsupported value: "nope"'),
    "no type": ({}, "spec.type: Required value: must not be empty for specified object fields"),
    "properties that are none": (
        {"type": "object", "properties": []},
        "spec.properties: Invalid value: []: is of the wrong type",
    ),
    "a pattern that is none": ({"type": "string", "pattern": "("}, "spec.pattern: Invalid value"),
    "a list with keys and none named": (
        {"type": "array", "x-kubernetes-list-type": "map"},
        "spec.x-kubernetes-list-map-keys: Required value",
    ),
    "a rule that is not CEL": (
        {"type": "object", "x-kubernetes-validations": [{"rule": "self.("}]},
        "spec.x-kubernetes-validations[0].rule",
    ),
}


@pytest.mark.parametrize(("broken", "expected"), BROKEN_SCHEMAS.values(), ids=BROKEN_SCHEMAS)
def test_a_definition_with_a_broken_schema_is_refused(broken: Any, expected: str) -> None:
    registry, crd = a_registry(), widgets.crd()
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] = broken
    with pytest.raises(StatusError) as wrong:
        registry.create(CRDS, "", crd, Options())
    assert wrong.value.code == 422
    assert expected.removeprefix("spec") in str(wrong.value)
    assert registry.catalogue.find(widgets.GROUP, "v1", "widgets") is None


# Patches, selectors, requests

NODE = next(kind for kind in BUILTINS if kind.plural == "nodes")


@pytest.mark.parametrize(
    ("value", "patch", "expected"),
    [
        (
            {"status": {"conditions": [{"type": "a"}]}},
            {"status": {"conditions": [{"type": "b"}]}},
            {"status": {"conditions": [{"type": "a"}, {"type": "b"}]}},
        ),
        (
            {"status": {"conditions": [{"type": "a"}]}},
            {"status": {"conditions": [{"$patch": "replace"}, {"type": "b"}]}},
            {"status": {"conditions": [{"type": "b"}]}},
        ),
        (
            {"status": {"conditions": [{"type": "a"}]}},
            {"status": {"conditions": [{"type": "a", "$patch": "delete"}]}},
            {"status": {"conditions": []}},
        ),
        ({"spec": {"a": 1, "b": 2}}, {"spec": {"$retainKeys": ["b"], "b": 3}}, {"spec": {"b": 3}}),
        ({"spec": {"a": 1}}, {"spec": {"$patch": "replace", "b": 2}}, {"spec": {"b": 2}}),
        ({"spec": {"a": 1}}, {"spec": {"$patch": "delete"}}, {}),
        (
            {"metadata": {"finalizers": ["a"]}},
            {"metadata": {"finalizers": ["b"]}},
            {"metadata": {"finalizers": ["a", "b"]}},
        ),
        (
            {"metadata": {"finalizers": ["a", "b"]}},
            {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}},
            {"metadata": {"finalizers": ["b"]}},
        ),
        (
            {"spec": {"taints": [{"key": "a"}]}},
            {"spec": {"taints": [{"key": "b"}]}},
            {"spec": {"taints": [{"key": "b"}]}},
        ),
        ({"spec": {"podCIDRs": ["a"]}}, {"spec": {"podCIDRs": ["b"]}}, {"spec": {"podCIDRs": ["b"]}}),
        (
            {"spec": {"taints": [{"key": "a"}]}},
            {"spec": {"$setElementOrder/taints": [{"key": "a"}], "x": None}},
            {"spec": {"taints": [{"key": "a"}]}},
        ),
    ],
)
def test_a_strategic_patch(value: dict[str, Any], patch: dict[str, Any], expected: dict[str, Any]) -> None:
    assert patches.patched(patches.STRATEGIC, value, patch, NODE.merging) == expected


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ({"op": "replace", "path": "/b", "value": 2}, {"a": [1], "b": 2}),
        ({"op": "replace", "path": "/a/7", "value": 2}, 422),
        ({"op": "replace", "path": "/b/c", "value": 2}, 422),
        ({"op": "remove", "path": "/b"}, 422),
        ({"op": "replace", "path": "", "value": 3}, 422),
        ({"op": "nope", "path": "/a"}, 422),
        ({"path": "/a"}, 422),
        (3, 400),
    ],
)
def test_a_json_patch(operation: Any, expected: Any) -> None:
    """As API servers apply one: a `replace` may name a field that is not there yet."""
    try:
        found: Any = patches.json_patched({"a": [1]}, [operation])
    except StatusError as error:
        found = error.code
    assert found == expected


@pytest.mark.parametrize("text", ["a b", "a in b", "a in (b", "=b", "a=b=c", "a notin"])
def test_what_is_no_label_selector_is_a_bad_request(text: str) -> None:
    with pytest.raises(StatusError) as wrong:
        selectors.label_selector(text)
    assert wrong.value.code == 400


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/api/v1/nodes", requests.Target("", "v1", "nodes")),
        ("/api/v1/namespaces", requests.Target("", "v1", "namespaces")),
        ("/api/v1/namespaces/a", requests.Target("", "v1", "namespaces", "", "a")),
        ("/api/v1/namespaces/a/status", requests.Target("", "v1", "namespaces", "", "a", "status")),
        ("/api/v1/namespaces/a/secrets", requests.Target("", "v1", "secrets", "a")),
        ("/apis/g/v1/things/a/status", requests.Target("g", "v1", "things", "", "a", "status")),
        ("/apis/g/v1/namespaces/n/things/a/status", requests.Target("g", "v1", "things", "n", "a", "status")),
        ("/apis/g/v1", None),
        ("/healthz", None),
        ("/apis/g/v1/a/b/c/d", None),
    ],
)
def test_a_path_names(path: str, expected: requests.Target | None) -> None:
    assert requests.target(path) == expected


# Protobuf


def _field(number: int, value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return bytes([number << 3 | 2, len(raw)]) + raw


def _envelope(kind: str, raw: bytes) -> bytes:
    return b"k8s\0" + _field(1, _field(1, "v1") + _field(2, kind)) + _field(2, raw)


def test_a_secret_that_kubectl_sends_is_read() -> None:
    meta = _field(1, "s") + _field(2, "") + _field(11, _field(1, "app") + _field(2, "x")) + _field(14, "a/b")
    raw = _field(1, meta) + _field(2, _field(1, "token") + _field(2, b"\xff\x00")) + _field(3, "Opaque") + b"\x28\x01"
    assert protobuf.decode(_envelope("Secret", raw)) == {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "s", "labels": {"app": "x"}, "finalizers": ["a/b"]},
        "data": {"token": "/wA="},
        "type": "Opaque",
        "immutable": True,
    }


@given(st.binary(max_size=40))
def test_broken_protobuf_is_the_clients_error(raw: bytes) -> None:
    with pytest.raises(StatusError) as wrong:
        requests.decode(b"k8s\0" + raw if raw[:1] != b"k" else raw, protobuf.MEDIA_TYPE)
    assert wrong.value.code == 415


def test_openapi_v2_says_that_patch_validates_fields() -> None:
    document = protobuf.openapi_v2(BUILTINS)
    assert document.startswith(_field(1, "2.0"))
    assert b"/api/v1/nodes/{name}" in document
    assert document.count(b"fieldValidation") == len(BUILTINS)
