"""What clients rely on in an API server, over HTTP: the same for the development one and a real one.

`tests/contracts/test_kubectl_contract.py` says the same of what a person does with kubectl.
"""

from __future__ import annotations

import copy
import json
import threading
import urllib.parse
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from kubernetes import client, watch

from coordinator.dev.laptop import envtest
from coordinator.dev.trial.waiting import eventually
from tests.kit import widgets
from tests.kit.kube_servers import NO_REAL_SERVER, SERVERS, Answer, Capability, KubeServer, running
from tests.kit.widgets import GADGETS, WIDGETS, a_widget, unique

CRD_PATH = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
NAMESPACES = "/api/v1/namespaces"
CONFIG_MAPS = f"{NAMESPACES}/default/configmaps"
MERGE, JSON_PATCH = "application/merge-patch+json", "application/json-patch+json"
APPLY, STRATEGIC = "application/apply-patch+yaml", "application/strategic-merge-patch+json"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[KubeServer]:
    with running(request.param) as server:
        for crd in widgets.CRDS:
            server.request("POST", CRD_PATH, crd).ok()
        for path in (WIDGETS, GADGETS):
            eventually(partial(has_status, server, path, 200), timeout_s=20)
        yield server


def has_status(server: KubeServer, path: str, status: int) -> bool:
    return server.request("GET", path).status == status


def create(server: KubeServer, name: str | None = None, **spec: Any) -> dict[str, Any]:
    created: dict[str, Any] = server.request("POST", WIDGETS, a_widget(name or unique(), **spec)).ok()
    return created


def read(server: KubeServer, value: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = server.request("GET", f"{WIDGETS}/{value['metadata']['name']}").ok()
    return found


def patch(server: KubeServer, value: dict[str, Any], body: Any, kind: str = MERGE, suffix: str = "") -> Answer:
    return server.request("PATCH", f"{WIDGETS}/{value['metadata']['name']}{suffix}", body, content_type=kind)


def apply(
    server: KubeServer, name: str, body: dict[str, Any], manager: str, *, force: bool = False, suffix: str = ""
) -> Answer:
    whole = {"apiVersion": widgets.API_VERSION, "kind": widgets.KIND, "metadata": {"name": name}, **body}
    query = f"?fieldManager={manager}" + ("&force=true" if force else "")
    return server.request("PATCH", f"{WIDGETS}/{name}{suffix}{query}", whole, content_type=APPLY)


def causes(answer: Answer) -> dict[str, str]:
    """By field, without the note that rules were not looked at because of the others."""
    assert answer.body["kind"] == "Status", answer.body
    found = {cause["field"]: cause["message"] for cause in answer.body["details"]["causes"]}
    return {field: message for field, message in found.items() if "rules were not checked" not in message}


def without(value: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key not in names}


def test_a_real_server_is_held_to_the_contract_too() -> None:
    """Skipped, once and with the reason, where there is none: then only the development server was tried."""
    if envtest.assets() is None:
        pytest.skip(NO_REAL_SERVER)
    assert "real" in SERVERS


# Objects


def test_a_created_object_has_what_the_server_gives_every_object(server: KubeServer) -> None:
    name = unique()
    created = create(server, name)
    meta = created["metadata"]
    assert (meta["name"], meta["generation"]) == (name, 1)
    assert len(meta["uid"]) == 36
    assert meta["creationTimestamp"].endswith("Z")
    assert meta["resourceVersion"].isdecimal()
    assert read(server, created) == created


def test_a_second_object_of_the_same_name_already_exists(server: KubeServer) -> None:
    created = create(server)
    answer = server.request("POST", WIDGETS, a_widget(created["metadata"]["name"]))
    assert (answer.status, answer.body["reason"]) == (409, "AlreadyExists")
    assert answer.body["message"] == f'widgets.{widgets.GROUP} "{created["metadata"]["name"]}" already exists'


def test_an_object_that_is_not_there_is_not_found(server: KubeServer) -> None:
    answer = server.request("GET", f"{WIDGETS}/no-such")
    assert (answer.status, answer.body["kind"], answer.body["reason"]) == (404, "Status", "NotFound")
    assert answer.body["message"] == f'widgets.{widgets.GROUP} "no-such" not found'


def test_a_path_without_a_resource_is_not_found(server: KubeServer) -> None:
    assert server.request("GET", f"/apis/{widgets.GROUP}/v1/nothings").status == 404
    assert server.request("GET", "/apis/no.such.group/v1/widgets").status == 404


def test_generate_name_makes_a_new_name(server: KubeServer) -> None:
    body = a_widget("") | {"metadata": {"generateName": "made-"}}
    names = {server.request("POST", WIDGETS, body).ok()["metadata"]["name"] for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("made-") and len(name) == len("made-") + 5 for name in names)


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("a" * 63, 201),
        ("b." + "a" * 251, 201),
        ("a" * 254, 422),
        ("Upper", 422),
        ("-dash", 422),
        ("dot.", 422),
        ("", 422),
    ],
)
def test_a_name_is_a_dns_subdomain_of_at_most_253_characters(server: KubeServer, name: str, status: int) -> None:
    answer = server.request("POST", WIDGETS, a_widget(name))
    assert answer.status == status, answer.body
    if status == 422:
        assert list(causes(answer)) == ["metadata.name"]


def test_a_label_value_is_checked(server: KubeServer) -> None:
    body = a_widget(unique())
    body["metadata"]["labels"] = {"a": "not a label"}
    answer = server.request("POST", WIDGETS, body)
    assert list(causes(answer)) == ["metadata.labels"]


def test_a_body_that_is_not_json_is_a_bad_request(server: KubeServer) -> None:
    answer = server.request("POST", WIDGETS, "{nonsense")
    assert (answer.status, answer.body["kind"], answer.body["reason"]) == (400, "Status", "BadRequest")


OTHERS: dict[str, tuple[dict[str, Any], int, str]] = {
    "another kind": ({"kind": "Gadget"}, 422, 'kind: Invalid value: "Gadget": must be Widget'),
    "no kind": ({"kind": ""}, 400, "Object 'Kind' is missing in"),
    "another group": ({"apiVersion": "v1"}, 400, "the API version in the data (v1) does not match the expected"),
    "no group": ({"apiVersion": ""}, 400, "the API version in the data () does not match the expected"),
}


@pytest.mark.parametrize(("change", "status", "message"), OTHERS.values(), ids=OTHERS)
def test_a_body_of_something_else_is_refused(
    server: KubeServer, change: dict[str, str], status: int, message: str
) -> None:
    answer = server.request("POST", WIDGETS, a_widget(unique()) | change)
    assert (answer.status, answer.body["reason"]) == (status, "Invalid" if status == 422 else "BadRequest")
    assert message in answer.body["message"]


@pytest.mark.parametrize(("body", "status"), [({}, 422), ({"kind": "Secret", "apiVersion": "v1"}, 400), ([], 400)])
def test_a_builtin_kind_need_not_be_named_but_not_be_another(server: KubeServer, body: Any, status: int) -> None:
    assert server.request("POST", CONFIG_MAPS, body).status == status
    named = {"metadata": {"name": unique()}}
    assert server.request("POST", CONFIG_MAPS, named).ok()["kind"] == "ConfigMap"


def test_a_patch_cannot_make_another_object_of_it(server: KubeServer) -> None:
    created = create(server)
    for change in ({"kind": "Gadget"}, {"apiVersion": "x/v1"}, {"metadata": {"uid": "z"}}):
        answer = patch(server, created, change)
        assert (answer.status, answer.body["reason"]) == (422, "Invalid"), change
    assert read(server, created) == created


def test_a_new_object_has_no_version_yet(server: KubeServer) -> None:
    body = a_widget(unique())
    body["metadata"]["resourceVersion"] = "5"
    answer = server.request("POST", WIDGETS, body)
    assert (answer.status, answer.body["message"]) == (
        500,
        "resourceVersion should not be set on objects to be created",
    )


OPTIONS = {
    "fieldValidation=Nope": ("POST", "fieldValidation"),
    "dryRun=some": ("POST", "dryRun"),
    f"fieldManager={'x' * 129}": ("POST", "fieldManager"),
    "propagationPolicy=Nope": ("DELETE", "propagationPolicy"),
    "orphanDependents=true&propagationPolicy=Orphan": ("DELETE", "propagationPolicy"),
    "resourceVersionMatch=Exact": ("GET", "resourceVersionMatch"),
    "resourceVersionMatch=Nope&resourceVersion=1": ("GET", "resourceVersionMatch"),
    "watch=true&resourceVersionMatch=NotOlderThan": ("GET", "resourceVersionMatch"),
    "watch=true&sendInitialEvents=true": ("GET", "resourceVersionMatch"),
}


@pytest.mark.parametrize("query", OPTIONS)
def test_parameters_that_make_no_sense_are_refused_by_name(server: KubeServer, query: str) -> None:
    method, field = OPTIONS[query]
    path = f"{WIDGETS}/{create(server)['metadata']['name']}" if method == "DELETE" else WIDGETS
    answer = server.request(method, f"{path}?{query}", a_widget(unique()) if method == "POST" else None)
    assert (answer.status, list(causes(answer))) == (422, [field])


@pytest.mark.parametrize("query", ["limit=x", "timeoutSeconds=x", "resourceVersion=x", "continue=x"])
def test_a_parameter_that_is_no_number_is_a_bad_request(server: KubeServer, query: str) -> None:
    assert server.request("GET", f"{WIDGETS}?{query}").status == 400


def test_a_body_larger_than_the_limit_is_refused(server: KubeServer) -> None:
    body = a_widget(unique(), anything={"much": "x" * 4 * 1024 * 1024})
    answer = server.request("POST", WIDGETS, body)
    assert (answer.status, answer.body["reason"]) == (413, "RequestEntityTooLarge")


def test_yaml_is_read_as_kubernetes_reads_it(server: KubeServer) -> None:
    name = unique()
    head = f"apiVersion: {widgets.API_VERSION}\nkind: Widget\nmetadata: {{name: {name}}}"
    text = f"{head}\nspec:\n  uri: 2026-01-02\n  size: 3Gi\n"
    created = server.request("POST", WIDGETS, text, content_type="application/yaml").ok()
    assert created["spec"]["uri"] == "2026-01-02"


# Updates


def test_an_update_of_a_stale_version_conflicts(server: KubeServer) -> None:
    first = create(server)
    patch(server, first, {"spec": {"size": "2Gi"}}).ok()
    answer = server.request("PUT", f"{WIDGETS}/{first['metadata']['name']}", first)
    assert (answer.status, answer.body["reason"]) == (409, "Conflict")
    assert (
        "the object has been modified; please apply your changes to the latest version and try again"
        in answer.body["message"]
    )


def test_a_patch_that_names_a_stale_version_conflicts(server: KubeServer) -> None:
    first = create(server)
    patch(server, first, {"spec": {"size": "2Gi"}}).ok()
    stale = {"metadata": {"resourceVersion": first["metadata"]["resourceVersion"]}, "spec": {"size": "3Gi"}}
    assert patch(server, first, stale).status == 409


def test_an_update_of_a_custom_object_must_name_its_version(server: KubeServer) -> None:
    created = create(server)
    created["metadata"].pop("resourceVersion")
    answer = server.request("PUT", f"{WIDGETS}/{created['metadata']['name']}", created)
    assert list(causes(answer)) == ["metadata.resourceVersion"]


def test_an_update_cannot_change_what_the_server_owns(server: KubeServer) -> None:
    created = create(server)
    wanted = copy.deepcopy(created)
    wanted["metadata"] |= {"generation": 99, "creationTimestamp": "2020-01-01T00:00:00Z"}
    updated = server.request("PUT", f"{WIDGETS}/{created['metadata']['name']}", wanted).ok()
    for key in ("generation", "creationTimestamp", "uid"):
        assert updated["metadata"][key] == created["metadata"][key]


def test_a_name_in_the_body_must_be_the_name_in_the_path(server: KubeServer) -> None:
    created = create(server)
    answer = server.request("PUT", f"{WIDGETS}/{created['metadata']['name']}", a_widget("another"))
    assert answer.status == 400


def test_only_a_change_of_spec_is_a_new_generation(server: KubeServer) -> None:
    created = create(server)
    labelled = patch(server, created, {"metadata": {"labels": {"a": "b"}}}).ok()
    reported = patch(server, created, {"status": {"phase": "x"}}, suffix="/status").ok()
    changed = patch(server, created, {"spec": {"size": "2Gi"}}).ok()
    generations = [value["metadata"]["generation"] for value in (created, labelled, reported, changed)]
    assert generations == [1, 1, 1, 2]


def test_a_write_that_changes_nothing_is_no_new_version(server: KubeServer) -> None:
    created = create(server)
    same = patch(server, created, {"spec": {"size": "1Gi"}}).ok()
    again = server.request("PUT", f"{WIDGETS}/{created['metadata']['name']}", same).ok()
    assert same["metadata"]["resourceVersion"] == created["metadata"]["resourceVersion"]
    assert again["metadata"]["resourceVersion"] == created["metadata"]["resourceVersion"]


def test_every_change_is_a_larger_version(server: KubeServer) -> None:
    created = create(server)
    changed = [patch(server, created, {"spec": {"size": size}}).ok() for size in ("2Gi", "3Gi")]
    versions = [int(value["metadata"]["resourceVersion"]) for value in (created, *changed)]
    assert versions == sorted(set(versions))


def test_a_merge_patch_removes_by_null_and_replaces_lists(server: KubeServer) -> None:
    created = create(server, tags=["a", "b"], parameters={"x": "1", "y": "2"})
    changed = patch(server, created, {"spec": {"tags": ["c"], "parameters": {"x": None, "z": "3"}}}).ok()
    assert changed["spec"]["tags"] == ["c"]
    assert changed["spec"]["parameters"] == {"y": "2", "z": "3"}


def test_a_json_patch_tests_and_replaces(server: KubeServer) -> None:
    created = create(server)
    steps = [
        {"op": "test", "path": "/spec/size", "value": "1Gi"},
        {"op": "replace", "path": "/spec/size", "value": "2Gi"},
    ]
    assert patch(server, created, steps, JSON_PATCH).ok()["spec"]["size"] == "2Gi"
    assert patch(server, created, steps, JSON_PATCH).status == 422


def test_a_custom_kind_knows_no_strategic_patch(server: KubeServer) -> None:
    answer = patch(server, create(server), {"spec": {"size": "2Gi"}}, STRATEGIC)
    assert (answer.status, answer.body["reason"]) == (415, "UnsupportedMediaType")


def test_a_dry_run_says_what_would_be_and_stores_nothing(server: KubeServer) -> None:
    name = unique()
    dry = server.request("POST", f"{WIDGETS}?dryRun=All", a_widget(name)).ok()
    assert dry["spec"]["color"] == "red"
    assert server.request("GET", f"{WIDGETS}/{name}").status == 404
    created = create(server, name)
    assert (
        server.request("PATCH", f"{WIDGETS}/{name}?dryRun=All", {"spec": {"size": "9Gi"}}, content_type=MERGE).ok()[
            "spec"
        ]["size"]
        == "9Gi"
    )
    assert server.request("DELETE", f"{WIDGETS}/{name}?dryRun=All").status == 200
    assert read(server, created) == created


# The status subresource


def test_status_is_dropped_at_creation(server: KubeServer) -> None:
    created = server.request("POST", WIDGETS, a_widget(unique()) | {"status": {"phase": "forged"}}).ok()
    assert "status" not in created


def test_the_main_resource_ignores_status_and_the_status_resource_ignores_the_rest(server: KubeServer) -> None:
    created = create(server)
    both = {"spec": {"size": "2Gi"}, "status": {"phase": "x"}, "metadata": {"labels": {"a": "b"}}}
    main = patch(server, created, both).ok()
    assert (main["spec"]["size"], "status" in main) == ("2Gi", False)
    other = {"spec": {"size": "3Gi"}, "status": {"phase": "y"}, "metadata": {"labels": {"a": "c"}}}
    status = patch(server, created, other, suffix="/status").ok()
    assert (status["spec"]["size"], status["status"]["phase"], status["metadata"]["labels"]) == ("2Gi", "y", {"a": "b"})
    put = server.request("PUT", f"{WIDGETS}/{created['metadata']['name']}", without(status, "status")).ok()
    assert put["status"] == {"phase": "y"}


def test_a_status_that_breaks_the_schema_is_refused(server: KubeServer) -> None:
    answer = patch(server, create(server), {"status": {"observed": "many"}}, suffix="/status")
    assert causes(answer) == {
        "status.observed": 'Invalid value: "string": observed in body must be of type integer: "string"'
    }


# Schemas


def wrong_type(path: str, wanted: str, found: str) -> dict[str, str]:
    return {path: f'Invalid value: "{found}": {path} in body must be of type {wanted}: "{found}"'}


NOT_A_COLOR = {"spec.color": 'Unsupported value: "blue": supported values: "red", "green"'}
NO_URI = {"spec.uri": "Required value"}
NO_GROUPS = {"spec.groups": "Invalid value: 0: spec.groups in body should have at least 1 items"}
NOT_A_SIZE = {"spec.size": "Invalid value: \"many\": spec.size in body should match '^[0-9]+(Ki|Mi|Gi)?$'"}
TOO_LARGE = {"spec.replicas": "Invalid value: 11: spec.replicas in body should be less than or equal to 10"}
TOO_SMALL = {"spec.replicas": "Invalid value: -1: spec.replicas in body should be greater than or equal to 0"}
TWICE = {"spec.parts[1]": 'Duplicate value: {"name":"a"}'}
REFUSED: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "a value outside an enum": ({"color": "blue"}, NOT_A_COLOR),
    "an absent required field": ({"uri": None}, NO_URI),
    "a bad quantity": ({"size": "many"}, NOT_A_SIZE),
    "a string for an integer": ({"replicas": "2"}, wrong_type("spec.replicas", "integer", "string")),
    "a number that is too large": ({"replicas": 11}, TOO_LARGE),
    "a number that is too small": ({"replicas": -1}, TOO_SMALL),
    "an empty list": ({"groups": []}, NO_GROUPS),
    "a list item of the wrong type": ({"groups": [3]}, wrong_type("spec.groups[0]", "string", "integer")),
    "the same item twice in a set": ({"tags": ["a", "a"]}, {"spec.tags[1]": 'Duplicate value: "a"'}),
    "the same key twice in a list with keys": ({"parts": [{"name": "a"}, {"name": "a"}]}, TWICE),
    "a map value of the wrong type": ({"parameters": {"a": 1}}, wrong_type("spec.parameters.a", "string", "integer")),
    "every field that is wrong, at once": (
        {"uri": None, "color": "blue", "groups": []},
        NO_URI | NOT_A_COLOR | NO_GROUPS,
    ),
}


@pytest.mark.parametrize(("spec", "expected"), REFUSED.values(), ids=REFUSED)
def test_the_schema_refuses(server: KubeServer, spec: dict[str, Any], expected: dict[str, str]) -> None:
    name = unique()
    answer = server.request("POST", WIDGETS, a_widget(name, **spec))
    assert (answer.status, answer.body["reason"]) == (422, "Invalid")
    assert causes(answer) == expected
    assert answer.body["message"].startswith(f'Widget.{widgets.GROUP} "{name}" is invalid: ')
    assert server.request("GET", f"{WIDGETS}/{name}").status == 404


def test_a_string_that_is_too_long_is_refused(server: KubeServer) -> None:
    answer = server.request("POST", WIDGETS, a_widget(unique(), note="x" * 21))
    assert answer.body["details"]["causes"][0]["reason"] == "FieldValueTooLong"


def test_rules_are_looked_at_only_where_the_schema_fits(server: KubeServer) -> None:
    breaks_a_rule: dict[str, Any] = {"replicas": 0, "tags": ["a"]}
    with_enum = server.request("POST", WIDGETS, a_widget(unique(), color="blue", **breaks_a_rule))
    assert [cause["message"].partition(": ")[2] for cause in with_enum.body["details"]["causes"]] == [
        '"blue": supported values: "red", "green"',
        "null: some validation rules were not checked because the object was invalid; correct the existing errors to "
        "complete validation",
    ]
    with_pattern = server.request("POST", WIDGETS, a_widget(unique(), size="many", **breaks_a_rule))
    assert set(causes(with_pattern)) == {"spec", "spec.size"}


def test_a_null_is_no_value_unless_the_schema_allows_it(server: KubeServer) -> None:
    body = a_widget(unique())
    body["spec"] |= {"color": None, "note": None, "parameters": None}
    assert server.request("POST", WIDGETS, body).ok()["spec"] == {
        "uri": "hf://a/b",
        "size": "1Gi",
        "color": "red",
        "note": None,
    }
    body["spec"]["uri"] = None
    assert causes(server.request("POST", WIDGETS, body)) == NO_URI


def test_a_rule_about_change_is_kept_at_every_update(server: KubeServer) -> None:
    created = create(server)
    answer = patch(server, created, {"spec": {"uri": "hf://other"}})
    (field, message), *_ = causes(answer).items()
    assert (answer.status, field, message) == (422, "spec.uri", 'Invalid value: "hf://other": uri is immutable')
    assert read(server, created) == created


def test_a_rule_may_compose_its_message(server: KubeServer) -> None:
    answer = server.request("POST", WIDGETS, a_widget(unique(), replicas=1, tags=["a", "b"]))
    (field, message), *_ = causes(answer).items()
    assert (field, message) == ("spec", "Invalid value: more tags than replicas: a")


def test_defaults_fill_what_is_absent_also_in_lists(server: KubeServer) -> None:
    created = create(server, parts=[{"name": "a"}, {"name": "b", "weight": 5}])
    assert created["spec"]["color"] == "red"
    assert created["spec"]["parts"] == [{"name": "a", "weight": 1}, {"name": "b", "weight": 5}]


def test_an_int_or_string_is_kept_as_it_was_written(server: KubeServer) -> None:
    assert create(server, size=5)["spec"]["size"] == 5
    assert create(server, size="5")["spec"]["size"] == "5"


def test_unknown_fields_are_pruned_except_where_the_schema_keeps_them(server: KubeServer) -> None:
    created = create(server, unknown=1, parts=[{"name": "a", "unknown": 1}], anything={"x": {"y": [1]}})
    assert "unknown" not in created["spec"]
    assert created["spec"]["parts"] == [{"name": "a", "weight": 1}]
    assert created["spec"]["anything"] == {"x": {"y": [1]}}


def test_unknown_fields_are_an_error_a_warning_or_nothing_as_asked(server: KubeServer) -> None:
    def ask(validation: str) -> Answer:
        return server.request("POST", f"{WIDGETS}?fieldValidation={validation}", a_widget(unique(), colour="red"))

    strict, warned, ignored = ask("Strict"), ask("Warn"), ask("Ignore")
    assert (strict.status, strict.body["reason"]) == (400, "BadRequest")
    assert 'strict decoding error: unknown field "spec.colour"' in strict.body["message"]
    assert (warned.status, warned.headers.get("Warning")) == (201, '299 - "unknown field \\"spec.colour\\""')
    assert (ignored.status, "Warning" in ignored.headers) == (201, False)


# Lists


def test_a_list_names_the_version_to_watch_from(server: KubeServer) -> None:
    created = create(server)
    listed = server.request("GET", WIDGETS).ok()
    assert (listed["kind"], listed["apiVersion"]) == ("WidgetList", widgets.API_VERSION)
    assert int(listed["metadata"]["resourceVersion"]) >= int(created["metadata"]["resourceVersion"])
    assert created["metadata"]["name"] in [item["metadata"]["name"] for item in listed["items"]]


def test_pages_of_a_list_are_of_one_version(server: KubeServer) -> None:
    mark = unique("page")
    for number in range(5):
        body = a_widget(f"{mark}-{number}")
        body["metadata"]["labels"] = {"page": mark}
        server.request("POST", WIDGETS, body).ok()
    first = server.request("GET", f"{WIDGETS}?labelSelector=page%3D{mark}&limit=2").ok()
    server.request("DELETE", f"{WIDGETS}/{mark}-3").ok()
    server.request("POST", WIDGETS, a_widget(f"{mark}-9")).ok()
    names, page = [], first
    while True:
        names += [item["metadata"]["name"] for item in page["items"]]
        assert page["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
        token = page["metadata"].get("continue")
        if not token:
            break
        page = server.request("GET", f"{WIDGETS}?labelSelector=page%3D{mark}&limit=2&continue={token}").ok()
    assert names == [f"{mark}-{number}" for number in range(5)]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("env=prod", {"a"}), ("env==prod", {"a"}), ("env!=prod", {"b", "c"}), ("env in (prod,dev)", {"a", "b"}),
        ("env notin (prod)", {"b", "c"}), ("env", {"a", "b"}), ("!env", {"c"}), ("env=prod,tier=gold", {"a"}),
        ("env=prod,tier!=gold", set()), ("tier in (gold, tin),env", {"a"}),
    ],
)  # fmt: skip
def test_label_selectors_choose(server: KubeServer, selector: str, expected: set[str]) -> None:
    namespace = _labelled(server)
    answer = server.request("GET", f"{NAMESPACES}/{namespace}/configmaps?labelSelector={_quoted(selector)}").ok()
    assert {item["metadata"]["name"] for item in answer["items"]} - {"kube-root-ca.crt"} == expected


def _labelled(server: KubeServer, done: dict[str, str] = {}) -> str:  # noqa: B006  # once per server
    if server.name not in done:
        done[server.name] = namespace = unique("labels")
        server.request("POST", NAMESPACES, {"metadata": {"name": namespace}}).ok()
        for name, labels in {"a": {"env": "prod", "tier": "gold"}, "b": {"env": "dev"}, "c": {"tier": "tin"}}.items():
            body = {"metadata": {"name": name, "labels": labels}}
            server.request("POST", f"{NAMESPACES}/{namespace}/configmaps", body).ok()
    return done[server.name]


def _quoted(text: str) -> str:
    return urllib.parse.quote(text, safe="")


def test_a_bad_selector_is_a_bad_request(server: KubeServer) -> None:
    assert server.request("GET", f"{WIDGETS}?labelSelector=a%20b%20c").status == 400
    assert server.request("GET", f"{WIDGETS}?fieldSelector=spec.nothing%3Dx").status == 400


def test_field_selectors_choose_by_name_and_events_by_what_they_are_about(server: KubeServer) -> None:
    created = create(server)
    name = created["metadata"]["name"]
    found = server.request("GET", f"{WIDGETS}?fieldSelector=metadata.name%3D{name}").ok()
    assert [item["metadata"]["name"] for item in found["items"]] == [name]
    about = {
        "kind": "Widget",
        "name": name,
        "apiVersion": widgets.API_VERSION,
        "uid": created["metadata"]["uid"],
        "namespace": "default",
    }
    event = {
        "metadata": {"name": unique()},
        "involvedObject": about,
        "reason": "Tested",
        "message": "m",
        "type": "Normal",
    }
    server.request("POST", f"{NAMESPACES}/default/events", event).ok()
    selector = f"involvedObject.kind%3DWidget%2CinvolvedObject.name%3D{name}%2Ctype%21%3DWarning"
    events = server.request("GET", f"/api/v1/events?fieldSelector={selector}").ok()["items"]
    assert [each["reason"] for each in events] == ["Tested"]


@pytest.mark.slow
def test_a_list_of_a_version_that_was_forgotten_is_gone(server: KubeServer) -> None:
    server.require(Capability.SHORT_HISTORY)
    for _ in range(2):
        create(server)
    old = create(server)["metadata"]["resourceVersion"]
    token = server.request("GET", f"{WIDGETS}?limit=1").ok()["metadata"]["continue"]
    _churn(server)
    for query in (f"resourceVersion={old}&resourceVersionMatch=Exact", f"limit=1&continue={token}"):
        answer = server.request("GET", f"{WIDGETS}?{query}")
        assert (answer.status, answer.body["reason"]) == (410, "Expired"), query


def _churn(server: KubeServer) -> None:
    created = create(server)
    for number in range(110):
        for value in ("a", "b"):
            patch(server, created, {"metadata": {"labels": {"churn": f"{value}{number}"}}}).ok()


# Watches


def test_a_watch_tells_what_happens_after_its_version(server: KubeServer) -> None:
    name = unique()
    start = server.request("GET", WIDGETS).ok()["metadata"]["resourceVersion"]
    created = create(server, name)
    patch(server, created, {"spec": {"size": "2Gi"}}).ok()
    server.request("DELETE", f"{WIDGETS}/{name}").ok()
    path = f"{WIDGETS}?watch=true&resourceVersion={start}&timeoutSeconds=5&fieldSelector=metadata.name%3D{name}"
    with server.watch(path) as events:
        seen = [next(events) for _ in range(3)]
    assert [event["type"] for event in seen] == ["ADDED", "MODIFIED", "DELETED"]
    assert [event["object"]["spec"]["size"] for event in seen] == ["1Gi", "2Gi", "2Gi"]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in seen]
    assert versions == sorted(set(versions))


def test_a_watch_is_told_of_a_change_while_it_waits(server: KubeServer) -> None:
    name = unique()
    start = server.request("GET", WIDGETS).ok()["metadata"]["resourceVersion"]
    path = f"{WIDGETS}?watch=true&resourceVersion={start}&timeoutSeconds=10&fieldSelector=metadata.name%3D{name}"
    with server.watch(path) as events:
        writer = threading.Timer(0.2, create, (server, name))
        writer.start()
        assert next(events)["object"]["metadata"]["name"] == name
        writer.join()


def test_a_watch_without_a_version_starts_with_what_there_is(server: KubeServer) -> None:
    created = create(server)
    path = f"{WIDGETS}?watch=true&timeoutSeconds=5&fieldSelector=metadata.name%3D{created['metadata']['name']}"
    with server.watch(path) as events:
        assert next(events) == {"type": "ADDED", "object": created}


@pytest.mark.slow
def test_a_watch_ends_after_its_timeout(server: KubeServer) -> None:
    start = server.request("GET", WIDGETS).ok()["metadata"]["resourceVersion"]
    path = f"{WIDGETS}?watch=true&resourceVersion={start}&timeoutSeconds=1&fieldSelector=metadata.name%3Dno-such"
    with server.watch(path) as events:
        assert list(events) == []


def test_an_object_comes_and_goes_as_it_matches_the_watched_labels(server: KubeServer) -> None:
    mark = unique("m")
    created = create(server)
    start = created["metadata"]["resourceVersion"]
    for labels in ({"m": mark}, {"m": mark, "n": "1"}, {"m": None}):
        patch(server, created, {"metadata": {"labels": labels}}).ok()
    path = f"{WIDGETS}?watch=true&resourceVersion={start}&timeoutSeconds=5&labelSelector=m%3D{mark}"
    with server.watch(path) as events:
        assert [next(events)["type"] for _ in range(3)] == ["ADDED", "MODIFIED", "DELETED"]


def test_a_bookmark_says_how_far_a_quiet_watch_has_seen(server: KubeServer) -> None:
    server.require(Capability.EAGER_BOOKMARKS)
    start = server.request("GET", WIDGETS).ok()["metadata"]["resourceVersion"]
    other = server.request("POST", CONFIG_MAPS, {"metadata": {"name": unique()}}).ok()
    path = f"{WIDGETS}?watch=true&resourceVersion={start}&timeoutSeconds=5&allowWatchBookmarks=true"
    with server.watch(path) as events:
        event = next(event for event in events)
    assert (event["type"], event["object"]["kind"]) == ("BOOKMARK", "Widget")
    assert int(event["object"]["metadata"]["resourceVersion"]) >= int(other["metadata"]["resourceVersion"])


@pytest.mark.slow
def test_a_watch_from_a_forgotten_version_is_told_410(server: KubeServer) -> None:
    server.require(Capability.SHORT_HISTORY)
    start = create(server)["metadata"]["resourceVersion"]
    _churn(server)
    with server.watch(f"{WIDGETS}?watch=true&resourceVersion={start}&timeoutSeconds=5") as events:
        (event,) = list(events)
    assert (event["type"], event["object"]["kind"], event["object"]["code"]) == ("ERROR", "Status", 410)
    assert event["object"]["reason"] == "Expired"


def test_initial_events_end_with_a_bookmark_that_says_so(server: KubeServer) -> None:
    created = create(server)
    query = (
        "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=5"
    )
    path = f"{WIDGETS}?{query}&fieldSelector=metadata.name%3D{created['metadata']['name']}"
    with server.watch(path) as events:
        added, bookmark = next(events), next(events)
    assert (added["type"], added["object"]["metadata"]["name"]) == ("ADDED", created["metadata"]["name"])
    assert (bookmark["type"], bookmark["object"]["metadata"]["annotations"]) == (
        "BOOKMARK",
        {"k8s.io/initial-events-end": "true"},
    )


# Deletion


def test_an_object_without_finalizers_is_gone_at_once(server: KubeServer) -> None:
    created = create(server)
    answer = server.request("DELETE", f"{WIDGETS}/{created['metadata']['name']}").ok()
    assert (answer["kind"], answer["status"], answer["details"]["uid"]) == (
        "Status",
        "Success",
        created["metadata"]["uid"],
    )
    assert server.request("GET", f"{WIDGETS}/{created['metadata']['name']}").status == 404


def test_a_finalizer_holds_a_deleted_object_until_it_is_taken_off(server: KubeServer) -> None:
    created = create(server)
    held = patch(server, created, {"metadata": {"finalizers": ["example.com/hold"]}}).ok()
    marked = server.request("DELETE", f"{WIDGETS}/{created['metadata']['name']}").ok()
    assert marked["metadata"]["deletionTimestamp"]
    assert marked["metadata"]["generation"] == held["metadata"]["generation"] + 1
    added = patch(server, created, {"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}})
    assert list(causes(added)) == ["metadata.finalizers"]
    patch(server, created, {"metadata": {"finalizers": None}}).ok()
    assert server.request("GET", f"{WIDGETS}/{created['metadata']['name']}").status == 404


def test_a_deletion_may_name_what_it_means(server: KubeServer) -> None:
    created = create(server)
    path = f"{WIDGETS}/{created['metadata']['name']}"
    for wrong in ({"uid": "00000000-0000-0000-0000-000000000000"}, {"resourceVersion": "1"}):
        answer = server.request("DELETE", path, {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": wrong})
        assert (answer.status, answer.body["reason"]) == (409, "Conflict")
    right = {"uid": created["metadata"]["uid"], "resourceVersion": created["metadata"]["resourceVersion"]}
    server.request("DELETE", path, {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": right}).ok()


def test_a_collection_is_deleted_by_selector(server: KubeServer) -> None:
    mark = unique("d")
    keep = create(server)
    for _ in range(3):
        patch(server, create(server), {"metadata": {"labels": {"d": mark}}}).ok()
    server.request("DELETE", f"{WIDGETS}?labelSelector=d%3D{mark}").ok()
    assert server.request("GET", f"{WIDGETS}?labelSelector=d%3D{mark}").ok()["items"] == []
    assert read(server, keep) == keep


def _owned(server: KubeServer, owner: dict[str, Any], name: str) -> str:
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
    }
    body = a_widget(name)
    body["metadata"]["ownerReferences"] = [reference | {"blockOwnerDeletion": True}]
    server.request("POST", WIDGETS, body).ok()
    return f"{WIDGETS}/{name}"


@pytest.mark.parametrize("policy", ["Background", "Foreground"])
def test_what_an_object_owns_goes_with_it(server: KubeServer, policy: str) -> None:
    server.require(Capability.COLLECTS)
    owner = create(server)
    child = _owned(server, owner, unique())
    grandchild = _owned(server, server.request("GET", child).ok(), unique())
    server.request("DELETE", f"{WIDGETS}/{owner['metadata']['name']}?propagationPolicy={policy}").ok()
    for path in (grandchild, child, f"{WIDGETS}/{owner['metadata']['name']}"):
        eventually(partial(has_status, server, path, 404), timeout_s=20)


def test_an_owner_deleted_in_the_foreground_waits_for_what_it_owns(server: KubeServer) -> None:
    server.require(Capability.COLLECTS)
    owner = create(server)
    child = _owned(server, owner, unique())
    server.request("PATCH", child, {"metadata": {"finalizers": ["example.com/hold"]}}, content_type=MERGE).ok()
    path = f"{WIDGETS}/{owner['metadata']['name']}"
    server.request("DELETE", f"{path}?propagationPolicy=Foreground").ok()
    eventually(lambda: "deletionTimestamp" in server.request("GET", child).ok()["metadata"])
    assert server.request("GET", path).ok()["metadata"]["finalizers"] == ["foregroundDeletion"]
    server.request("PATCH", child, {"metadata": {"finalizers": None}}, content_type=MERGE).ok()
    eventually(lambda: server.request("GET", path).status == 404, timeout_s=20)


def test_orphans_stay_and_forget_their_owner(server: KubeServer) -> None:
    server.require(Capability.COLLECTS)
    owner = create(server)
    child = _owned(server, owner, unique())
    server.request("DELETE", f"{WIDGETS}/{owner['metadata']['name']}?propagationPolicy=Orphan").ok()
    eventually(lambda: server.request("GET", f"{WIDGETS}/{owner['metadata']['name']}").status == 404, timeout_s=20)
    assert "ownerReferences" not in server.request("GET", child).ok()["metadata"]


def test_an_object_with_two_owners_outlives_the_first(server: KubeServer) -> None:
    server.require(Capability.COLLECTS)
    first, second = create(server), create(server)
    child = _owned(server, first, unique())
    reference = {
        "apiVersion": widgets.API_VERSION,
        "kind": "Widget",
        "name": second["metadata"]["name"],
        "uid": second["metadata"]["uid"],
    }
    step = [{"op": "add", "path": "/metadata/ownerReferences/-", "value": reference}]
    server.request("PATCH", child, step, content_type=JSON_PATCH).ok()
    server.request("DELETE", f"{WIDGETS}/{first['metadata']['name']}").ok()
    assert server.request("GET", child).status == 200
    server.request("DELETE", f"{WIDGETS}/{second['metadata']['name']}").ok()
    eventually(lambda: server.request("GET", child).status == 404, timeout_s=20)


# Namespaces and built-in kinds


def test_the_namespaces_of_every_cluster_are_there(server: KubeServer) -> None:
    def names() -> set[str]:
        return {item["metadata"]["name"] for item in server.request("GET", NAMESPACES).ok()["items"]}

    eventually(lambda: {"default", "kube-system", "kube-public", "kube-node-lease"} <= names(), timeout_s=20)
    assert server.request("GET", f"{NAMESPACES}/kube-system").ok()["metadata"]["uid"]


def test_an_object_needs_its_namespace(server: KubeServer) -> None:
    answer = server.request("POST", f"{NAMESPACES}/no-such/configmaps", {"metadata": {"name": "a"}})
    assert (answer.status, answer.body["message"]) == (404, 'namespaces "no-such" not found')


def test_a_namespace_takes_what_is_in_it_along(server: KubeServer) -> None:
    server.require(Capability.COLLECTS)
    name = unique("ns")
    gadgets = f"/apis/{widgets.API_VERSION}/namespaces/{name}/gadgets"
    server.request("POST", NAMESPACES, {"metadata": {"name": name}}).ok()
    server.request("POST", gadgets, a_widget("g", kind="Gadget")).ok()
    server.request("PATCH", f"{gadgets}/g", {"metadata": {"finalizers": ["example.com/hold"]}}, content_type=MERGE).ok()
    server.request("DELETE", f"{NAMESPACES}/{name}").ok()
    eventually(lambda: "deletionTimestamp" in server.request("GET", f"{gadgets}/g").ok()["metadata"])
    assert server.request("GET", f"{NAMESPACES}/{name}").ok()["status"]["phase"] == "Terminating"
    assert server.request("POST", gadgets, a_widget("h", kind="Gadget")).status == 403
    server.request("PATCH", f"{gadgets}/g", {"metadata": {"finalizers": None}}, content_type=MERGE).ok()
    eventually(lambda: server.request("GET", f"{NAMESPACES}/{name}").status == 404, timeout_s=20)


def test_lists_are_of_one_namespace_or_of_all(server: KubeServer) -> None:
    other, name = unique("ns"), unique()
    server.request("POST", NAMESPACES, {"metadata": {"name": other}}).ok()
    for namespace in ("default", other):
        server.request(
            "POST", f"/apis/{widgets.API_VERSION}/namespaces/{namespace}/gadgets", a_widget(name, kind="Gadget")
        ).ok()
    query = f"fieldSelector=metadata.name%3D{name}"
    everywhere = server.request("GET", f"/apis/{widgets.API_VERSION}/gadgets?{query}").ok()["items"]
    assert [item["metadata"]["namespace"] for item in everywhere] == ["default", other]
    here = server.request("GET", f"/apis/{widgets.API_VERSION}/namespaces/{other}/gadgets?{query}").ok()["items"]
    assert [item["metadata"]["namespace"] for item in here] == [other]


def test_a_node_is_registered_with_its_status_and_patched_by_merge_key(server: KubeServer) -> None:
    name = unique("node")
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}
    taint = {"key": "gpu", "value": "true", "effect": "NoSchedule"}
    body = {"metadata": {"name": name}, "spec": {"taints": [taint]}, "status": {"conditions": [ready]}}
    assert server.request("POST", "/api/v1/nodes", body).ok()["status"]["conditions"][0]["status"] == "True"
    pressure = {"type": "DiskPressure", "status": "False"}
    change = {"status": {"conditions": [{"type": "Ready", "status": "False"}, pressure]}}
    server.request("PATCH", f"/api/v1/nodes/{name}/status", change, content_type=STRATEGIC).ok()
    for wrong in ({"$patch": "delete", "key": "gpu"}, {"key": "x"}):
        refused = server.request(
            "PATCH", f"/api/v1/nodes/{name}", {"spec": {"taints": [wrong]}}, content_type=STRATEGIC
        )
        assert list(causes(refused)) == ["metadata.taints[0].effect"], "taints have no merge key: they are replaced"
    change = {"spec": {"taints": [{"key": "x", "effect": "NoExecute"}]}}
    node = server.request("PATCH", f"/api/v1/nodes/{name}", change, content_type=STRATEGIC).ok()
    conditions = {each["type"]: each for each in node["status"]["conditions"]}
    assert (conditions["Ready"]["status"], conditions["Ready"]["reason"]) == ("False", "KubeletReady")
    assert conditions["DiskPressure"]["status"] == "False"
    assert node["spec"]["taints"] == [{"key": "x", "effect": "NoExecute"}]


def a_pod(name: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}], **spec}}


def test_a_bound_pod_stays_until_its_kubelet_ends_it_or_it_is_forced(server: KubeServer) -> None:
    pods, name = f"{NAMESPACES}/default/pods", unique("pod")
    created = server.request("POST", pods, a_pod(name, nodeName="n")).ok()
    assert created["spec"]["terminationGracePeriodSeconds"] == 30
    for grace, expected in (({}, 30), ({"gracePeriodSeconds": 5}, 5), ({"gracePeriodSeconds": 60}, 5)):
        deleted = server.request("DELETE", f"{pods}/{name}", grace or None).ok()
        assert (deleted["kind"], deleted["metadata"]["deletionGracePeriodSeconds"]) == ("Pod", expected)
        meta = server.request("GET", f"{pods}/{name}").ok()["metadata"]
        assert (meta["deletionGracePeriodSeconds"], meta["generation"]) == (expected, 2)
    server.request("DELETE", f"{pods}/{name}?gracePeriodSeconds=0").ok()
    assert server.request("GET", f"{pods}/{name}").status == 404


def test_a_pod_that_no_kubelet_runs_goes_at_once(server: KubeServer) -> None:
    pods, unbound, over = f"{NAMESPACES}/default/pods", unique("pod"), unique("pod")
    server.request("POST", pods, a_pod(unbound)).ok()
    server.request("POST", pods, a_pod(over, nodeName="n")).ok()
    done = {"status": {"phase": "Succeeded"}}
    server.request("PATCH", f"{pods}/{over}/status", done, content_type=MERGE).ok()
    for name in (unbound, over):
        server.request("DELETE", f"{pods}/{name}").ok()
        assert server.request("GET", f"{pods}/{name}").status == 404


UNFIT: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "a pod without containers": ("pods", {"spec": {}}, 422, "spec.containers: Required value"),
    "a number for text": ("configmaps", {"data": {"a": 1}}, 400, "cannot be handled as a ConfigMap"),
    "a key that is no file name": ("configmaps", {"data": {"a b": ""}}, 422, "a valid config key must consist of"),
    "a secret that is not base64": ("secrets", {"data": {"a": "not base64!"}}, 400, "cannot be handled as a Secret"),
    "an event about elsewhere": ("events", {"involvedObject": {"namespace": "x"}}, 422, "does not match"),
}


@pytest.mark.parametrize(("plural", "body", "status", "message"), UNFIT.values(), ids=UNFIT)
def test_what_a_builtin_kind_cannot_be_is_refused(
    server: KubeServer, plural: str, body: dict[str, Any], status: int, message: str
) -> None:
    answer = server.request("POST", f"{NAMESPACES}/default/{plural}", {"metadata": {"name": unique()}, **body})
    assert (answer.status, message in answer.body["message"]) == (status, True), answer.body


def test_plain_text_in_a_secret_is_stored_as_data(server: KubeServer) -> None:
    body = {"metadata": {"name": unique()}, "stringData": {"token": "abc"}}
    secret = server.request("POST", f"{NAMESPACES}/default/secrets", body).ok()
    assert (secret["data"], secret["type"], "stringData" in secret) == ({"token": "YWJj"}, "Opaque", False)
    path = f"{NAMESPACES}/default/secrets/{secret['metadata']['name']}"
    assert list(causes(server.request("PATCH", path, {"type": "x"}, content_type=MERGE))) == ["type"]
    server.request("PATCH", path, {"immutable": True}, content_type=MERGE).ok()
    assert list(causes(server.request("PATCH", path, {"data": {"token": None}}, content_type=MERGE))) == ["data"]


def test_a_lease_has_one_holder(server: KubeServer) -> None:
    leases = f"/apis/coordination.k8s.io/v1/namespaces/default/leases/{(name := unique('lease'))}"
    body = {"metadata": {"name": name}, "spec": {"holderIdentity": "a", "leaseDurationSeconds": 15}}
    lease = server.request("POST", leases.rpartition("/")[0], body).ok()
    answers = []
    for holder in ("b", "c"):
        claim = copy.deepcopy(lease)
        claim["spec"]["holderIdentity"] = holder
        answers.append(server.request("PUT", leases, claim).status)
    assert answers == [200, 409]
    lease["metadata"].pop("resourceVersion")
    assert list(causes(server.request("PUT", leases, lease))) == ["metadata.resourceVersion"]
    for spec, status in (({"renewTime": "2026-01-01T00:00:00Z"}, 400), ({"leaseDurationSeconds": 0}, 422)):
        assert server.request("PATCH", leases, {"spec": spec}, content_type=MERGE).status in (status, 422)
        body = {"metadata": {"name": unique("lease")}, "spec": spec}
        assert server.request("POST", leases.rpartition("/")[0], body).status == status
    assert server.request("GET", leases).ok()["spec"]["holderIdentity"] == "b"


# Server-side apply


def test_apply_creates_and_records_who_owns_which_field(server: KubeServer) -> None:
    name = unique()
    answer = apply(server, name, {"spec": {"uri": "u", "size": "1Gi"}}, "alice")
    assert answer.status == 201
    entry = next(each for each in answer.body["metadata"]["managedFields"] if each["manager"] == "alice")
    assert (entry["operation"], entry["fieldsType"]) == ("Apply", "FieldsV1")
    assert entry["fieldsV1"] == {"f:spec": {"f:uri": {}, "f:size": {}}}
    again = apply(server, name, {"spec": {"uri": "u", "size": "1Gi"}}, "alice")
    assert (again.status, again.body["metadata"]["resourceVersion"]) == (
        200,
        answer.body["metadata"]["resourceVersion"],
    )


def test_who_applies_must_say_so(server: KubeServer) -> None:
    answer = server.request("PATCH", f"{WIDGETS}/{unique()}", a_widget("x"), content_type=APPLY)
    assert (answer.status, list(causes(answer))) == (422, ["fieldManager"])


def test_what_the_schema_does_not_know_cannot_be_applied(server: KubeServer) -> None:
    answer = apply(server, unique(), {"spec": {"uri": "u", "size": "1Gi", "colour": "red"}}, "alice")
    assert (answer.status, answer.body["message"].endswith(".spec.colour: field not declared in schema")) == (500, True)
    nameless = server.request("PATCH", f"{WIDGETS}/x?fieldManager=a", {"spec": {}}, content_type=APPLY)
    assert (nameless.status, "invalid object type" in nameless.body["message"]) == (400, True)


def test_a_field_that_is_no_longer_applied_is_removed(server: KubeServer) -> None:
    name = unique()
    apply(server, name, {"spec": {"uri": "u", "size": "1Gi", "replicas": 3, "tags": ["a", "b"]}}, "alice").ok()
    changed = apply(server, name, {"spec": {"uri": "u", "size": "1Gi", "tags": ["b"]}}, "alice").ok()
    assert "replicas" not in changed["spec"]
    assert changed["spec"]["tags"] == ["b"]


def test_another_value_for_an_owned_field_conflicts_until_forced(server: KubeServer) -> None:
    name = unique()
    apply(server, name, {"spec": {"uri": "u", "size": "1Gi"}}, "alice").ok()
    refused = apply(server, name, {"spec": {"size": "2Gi"}}, "bob")
    assert (refused.status, refused.body["reason"]) == (409, "Conflict")
    assert refused.body["message"] == 'Apply failed with 1 conflict: conflict with "alice": .spec.size'
    assert refused.body["details"]["causes"] == [
        {"reason": "FieldManagerConflict", "message": 'conflict with "alice"', "field": ".spec.size"}
    ]
    forced = apply(server, name, {"spec": {"size": "2Gi"}}, "bob", force=True).ok()
    assert forced["spec"] | {"size": "2Gi"} == forced["spec"]
    later = apply(server, name, {"spec": {"uri": "u"}}, "alice").ok()
    assert later["spec"]["size"] == "2Gi"


def test_equal_values_are_owned_together_and_removed_by_the_last(server: KubeServer) -> None:
    name = unique()
    for manager in ("alice", "bob"):
        apply(server, name, {"spec": {"uri": "u", "size": "1Gi", "replicas": 2}}, manager).ok()
    assert apply(server, name, {"spec": {"uri": "u", "size": "1Gi"}}, "alice").ok()["spec"]["replicas"] == 2
    assert "replicas" not in apply(server, name, {"spec": {"uri": "u", "size": "1Gi"}}, "bob").ok()["spec"]


def test_items_of_a_list_with_keys_have_owners_of_their_own(server: KubeServer) -> None:
    name = unique()
    apply(server, name, {"spec": {"uri": "u", "size": "1Gi", "parts": [{"name": "a", "weight": 1}]}}, "alice").ok()
    both = apply(server, name, {"spec": {"parts": [{"name": "b", "weight": 2}]}}, "bob").ok()
    assert [part["name"] for part in both["spec"]["parts"]] == ["a", "b"]
    only = apply(server, name, {"spec": {"uri": "u", "size": "1Gi"}}, "alice").ok()
    assert [part["name"] for part in only["spec"]["parts"]] == ["b"]


def test_a_plain_update_takes_the_fields_it_changes(server: KubeServer) -> None:
    name = unique()
    applied = apply(server, name, {"spec": {"uri": "u", "size": "1Gi"}}, "alice").ok()
    patch(server, applied, {"spec": {"size": "2Gi"}}).ok()
    refused = apply(server, name, {"spec": {"uri": "u", "size": "1Gi"}}, "alice")
    assert refused.status == 409
    assert 'conflict with "contract" using contract.localmodel.dev/v1: .spec.size' in refused.body["message"]


def test_status_is_applied_through_its_own_resource(server: KubeServer) -> None:
    name = unique()
    apply(server, name, {"spec": {"uri": "u", "size": "1Gi"}}, "alice").ok()
    ready = {"type": "Ready", "status": "True"}
    apply(server, name, {"status": {"conditions": [ready]}}, "controller", suffix="/status").ok()
    found = apply(
        server, name, {"status": {"conditions": [{"type": "Other", "status": "True"}]}}, "second", suffix="/status"
    ).ok()
    assert [each["type"] for each in found["status"]["conditions"]] == ["Ready", "Other"]


# Kinds at run time, and what clients discover


def test_a_kind_is_served_as_soon_as_it_is_defined_and_its_objects_go_with_it(server: KubeServer) -> None:
    plural = "things" + unique("")[1:]
    crd = widgets.crd(plural, plural.capitalize(), short=f"s{plural}")
    crd["spec"]["names"]["kind"] = plural.capitalize()
    created = server.request("POST", CRD_PATH, crd).ok()
    assert created["status"] == {
        "conditions": None,
        "acceptedNames": {"plural": "", "kind": ""},
        "storedVersions": ["v1"],
    }
    assert "finalizers" not in created["metadata"]
    path, definition = f"/apis/{widgets.API_VERSION}/{plural}", f"{CRD_PATH}/{plural}.{widgets.GROUP}"

    def established() -> bool:
        conditions = server.request("GET", definition).ok()["status"]["conditions"]
        return any(each["type"] == "Established" and each["status"] == "True" for each in conditions or ())

    eventually(established, timeout_s=20)
    eventually(lambda: server.request("GET", path).status == 200, timeout_s=20)
    eventually(
        lambda: server.request("POST", path, a_widget("x", kind=plural.capitalize())).status == 201, timeout_s=20
    )
    assert server.request("DELETE", definition).ok()["metadata"]["generation"] == created["metadata"]["generation"]
    eventually(lambda: server.request("GET", path).status == 404, timeout_s=20)


def the_spec(**schema: Any) -> dict[str, Any]:
    """A definition whose spec has this schema."""
    crd = widgets.crd("senseless", "Senseless", short="sns")
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] = schema
    return crd


def of_metadata(**schema: Any) -> dict[str, Any]:
    """A definition that says this of metadata."""
    crd = widgets.crd("senseless", "Senseless", short="sns")
    properties = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    properties["metadata"] = {"type": "object", **schema}
    return crd


def changed(**spec: Any) -> dict[str, Any]:
    crd = widgets.crd("senseless", "Senseless", short="sns")
    crd["spec"] |= spec
    return crd


IN_SPEC = "spec.validation.openAPIV3Schema.properties[spec]"
SENSELESS: dict[str, tuple[dict[str, Any], str]] = {
    "another name": (changed() | {"metadata": {"name": "other.example.com"}}, "metadata.name"),
    "a plural that is no name": (changed(names={"plural": "Senseless", "kind": "Senseless"}), "spec.names.plural"),
    "no version that is stored": (
        changed(versions=[{**widgets.crd()["spec"]["versions"][0], "storage": False}]),
        "spec.versions",
    ),
    "no schema": (
        changed(versions=[{"name": "v1", "served": True, "storage": True}]),
        "spec.versions[0].schema.openAPIV3Schema",
    ),
    "no type": (the_spec(description="x"), f"{IN_SPEC}.type"),
    "a type that is none": (the_spec(type="nope"), f"{IN_SPEC}.type"),
    "a list of nothing": (the_spec(type="array"), f"{IN_SPEC}.items"),
    "a pattern that is none": (the_spec(type="string", pattern="("), f"{IN_SPEC}.pattern"),
    "a default of another type": (the_spec(type="string", default=3), f"{IN_SPEC}.default"),
    "a description of metadata": (
        of_metadata(description="x"),
        "spec.validation.openAPIV3Schema.properties[metadata]",
    ),
    "a field of metadata": (
        of_metadata(properties={"labels": {"type": "object"}}),
        "spec.validation.openAPIV3Schema.properties[metadata]",
    ),
    "a rule that is not CEL": (
        the_spec(type="object", **{"x-kubernetes-validations": [{"rule": "self.("}]}),
        f"{IN_SPEC}.x-kubernetes-validations[0].rule",
    ),
}


@pytest.mark.parametrize(("crd", "field"), SENSELESS.values(), ids=SENSELESS)
def test_a_definition_that_makes_no_sense_is_refused(server: KubeServer, crd: dict[str, Any], field: str) -> None:
    answer = server.request("POST", CRD_PATH, crd)
    assert (answer.status, field in causes(answer)) == (422, True), answer.body


def test_a_table_has_the_printer_columns(server: KubeServer) -> None:
    created = create(server, replicas=3)
    patch(server, created, {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}, suffix="/status").ok()
    path = f"{WIDGETS}?fieldSelector=metadata.name%3D{created['metadata']['name']}"
    table = server.request("GET", path, accept=TABLE).ok()
    assert (table["kind"], table["apiVersion"]) == ("Table", "meta.k8s.io/v1")
    assert [column["name"] for column in table["columnDefinitions"]] == [
        "Name",
        "Color",
        "Ready",
        "Replicas",
        "Age",
        "Uri",
    ]
    assert [column["priority"] for column in table["columnDefinitions"]] == [0, 0, 0, 0, 0, 1]
    (row,) = table["rows"]
    assert row["cells"][:4] == [created["metadata"]["name"], "red", "True", 3]
    assert row["object"]["kind"] == "PartialObjectMetadata"
    with server.watch(f"{path}&watch=true&timeoutSeconds=5", accept=TABLE) as events:
        event = next(events)
    assert (event["type"], event["object"]["rows"][0]["cells"][1]) == ("ADDED", "red")


def test_only_metadata_is_given_on_request(server: KubeServer) -> None:
    created = create(server)
    accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
    partial = server.request("GET", f"{WIDGETS}/{created['metadata']['name']}", accept=accept).ok()
    assert (partial["kind"], "spec" in partial, partial["metadata"]["uid"]) == (
        "PartialObjectMetadata",
        False,
        created["metadata"]["uid"],
    )


def test_what_cannot_be_given_is_not_acceptable(server: KubeServer) -> None:
    assert server.request("GET", WIDGETS, accept="text/html").status == 406


def test_discovery_names_groups_resources_and_short_names(server: KubeServer) -> None:
    assert widgets.GROUP in [group["name"] for group in server.request("GET", "/apis").ok()["groups"]]
    resources = {each["name"]: each for each in server.request("GET", f"/apis/{widgets.API_VERSION}").ok()["resources"]}
    assert resources["widgets"]["shortNames"] == ["wdg"]
    assert {"get", "list", "watch", "patch", "deletecollection"} <= set(resources["widgets"]["verbs"])
    assert "widgets/status" in resources
    core = {each["name"] for each in server.request("GET", "/api/v1").ok()["resources"]}
    assert {
        "nodes",
        "events",
        "configmaps",
        "secrets",
        "persistentvolumes",
        "persistentvolumeclaims",
        "namespaces",
    } <= core


def test_aggregated_discovery_says_the_same_in_one_document(server: KubeServer) -> None:
    accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"
    found = server.request("GET", "/apis", accept=accept).ok()
    assert found["kind"] == "APIGroupDiscoveryList"
    group = next(item for item in found["items"] if item["metadata"]["name"] == widgets.GROUP)
    resources = {each["resource"]: each for each in group["versions"][0]["resources"]}
    assert (resources["widgets"]["scope"], resources["gadgets"]["scope"]) == ("Cluster", "Namespaced")


def test_openapi_v3_has_the_schema_and_says_that_fields_are_validated(server: KubeServer) -> None:
    def document() -> Any:
        index = server.request("GET", "/openapi/v3")
        assert index.headers["Content-Type"].startswith("text/plain")
        paths = json.loads(index.ok())["paths"]
        entry = paths.get(f"apis/{widgets.API_VERSION}")
        answer = entry and server.request("GET", entry["serverRelativeURL"])
        return answer and answer.status == 200 and answer.body  # for a moment after a kind was defined it is 404

    found = eventually(document, timeout_s=20)
    schema = found["components"]["schemas"]["dev.localmodel.contract.v1.Widget"]
    assert schema["properties"]["spec"]["properties"]["color"]["enum"] == ["red", "green"]
    parameters = found["paths"][f"{WIDGETS}/{{name}}"]["patch"]["parameters"]
    assert "fieldValidation" in [each.get("name") for each in parameters]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/livez"])
def test_health_is_ok(server: KubeServer, path: str) -> None:
    answer = server.request("GET", path, accept="*/*")
    assert (answer.status, answer.body) == (200, "ok")


# The Python client


@pytest.mark.slow
def test_the_python_client_reads_writes_and_watches(server: KubeServer) -> None:
    custom, name = client.CustomObjectsApi(server.api), unique()
    place = (widgets.GROUP, widgets.VERSION, widgets.PLURAL)
    custom.create_cluster_custom_object(*place, a_widget(name))
    custom.patch_cluster_custom_object_status(*place, name, {"status": {"phase": "Done"}})
    stream = watch.Watch().stream(
        custom.list_cluster_custom_object, *place, field_selector=f"metadata.name={name}", timeout_seconds=5
    )
    assert next(stream)["object"]["status"] == {"phase": "Done"}
    stream.close()
    custom.delete_cluster_custom_object(*place, name)
    with pytest.raises(client.ApiException) as gone:
        custom.get_cluster_custom_object(*place, name)
    assert gone.value.status == 404


@pytest.mark.slow
def test_the_python_client_reads_the_builtin_kinds_into_its_models(server: KubeServer) -> None:
    core, coordination, name = client.CoreV1Api(server.api), client.CoordinationV1Api(server.api), unique()
    core.create_node(client.V1Node(metadata=client.V1ObjectMeta(name=name, labels={"a": "b"})))
    assert core.read_node(name).metadata.labels["a"] == "b"
    lease = client.V1Lease(metadata=client.V1ObjectMeta(name=name), spec=client.V1LeaseSpec(holder_identity="me"))
    coordination.create_namespaced_lease("default", lease)
    assert coordination.read_namespaced_lease(name, "default").spec.holder_identity == "me"
    assert client.VersionApi(server.api).get_code().major == "1"
    definition = client.ApiextensionsV1Api(server.api).read_custom_resource_definition(f"widgets.{widgets.GROUP}")
    assert definition.spec.names.short_names == ["wdg"]
