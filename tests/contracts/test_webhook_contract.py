"""Admission webhooks: what every API server does with them, the development server and a real one alike."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from coordinator.dev.trial.waiting import eventually
from tests.contracts.test_kube_contract import CRD_PATH, has_status
from tests.kit import widgets
from tests.kit.hook_server import ALLOWED, HookServer
from tests.kit.kube_servers import SERVERS, Answer, KubeServer, running
from tests.kit.widgets import GADGETS, GROUP, VERSION, WIDGETS, a_widget, unique

VALIDATING = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
MUTATING = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
NAME = "hook.test.localmodel.dev"
DENIED = f'admission webhook "{NAME}" denied the request'

Json = dict[str, Any]


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[KubeServer]:
    with running(request.param) as server:
        for crd in widgets.CRDS:
            server.request("POST", CRD_PATH, crd).ok()
        for path in (WIDGETS, GADGETS):
            eventually(partial(has_status, server, path, 200), timeout_s=20)
        yield server


@pytest.fixture
def hook(tmp_path: Any) -> Iterator[HookServer]:
    with HookServer(tmp_path) as hook:
        yield hook


def a_webhook(hook: HookServer, path: str = "/", name: str = NAME, **fields: Any) -> Json:
    resources = fields.pop("resources", ["widgets", "gadgets"])
    operations = fields.pop("operations", ["*"])
    rule = {"apiGroups": [GROUP], "apiVersions": [VERSION], "operations": operations, "resources": resources}
    return {
        "name": name,
        "clientConfig": {"url": hook.url(path), "caBundle": hook.bundle},
        "rules": [rule],
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        **fields,
    }


@pytest.fixture
def configure(server: KubeServer, hook: HookServer) -> Iterator[Callable[..., None]]:
    """Returns when the server asks the webhooks; they are gone after the test.

    Beside those of the test there is one that allows everything, by which it is seen that they are asked.
    """
    made: list[str] = []

    def configure(*webhooks: Json, at: str = VALIDATING) -> None:
        kind = "ValidatingWebhookConfiguration" if at == VALIDATING else "MutatingWebhookConfiguration"
        hook.answers["/marker"] = lambda request: ALLOWED
        marker = a_webhook(hook, "/marker", "marker.test.localmodel.dev")
        body = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": unique()}}
        path = f"{at}/{body['metadata']['name']}"  # type: ignore[index]  # a name
        server.request("POST", at, {**body, "webhooks": [*webhooks, marker]}).ok()
        made.append(path)

        def is_asked() -> bool:
            server.request("POST", f"{WIDGETS}?dryRun=All", a_widget(unique()))
            return bool(hook.requests("/marker"))

        eventually(is_asked, timeout_s=20)
        hook.asked.clear()

    yield configure
    for path in made:
        server.request("DELETE", path).ok()

    def is_forgotten() -> bool:
        hook.asked.clear()
        return server.request("POST", f"{WIDGETS}?dryRun=All", a_widget(unique())).status == 201 and not hook.asked

    eventually(is_forgotten, timeout_s=20)


def denying(code: int | None = 403, message: str = "no", reason: str = "Forbidden") -> Callable[[Json], Json]:
    status = {"code": code, "message": message, "reason": reason}
    given = {key: value for key, value in status.items() if value}
    return lambda request: {"allowed": False, **({"status": given} if given else {})}


def warnings(answer: Answer) -> str:
    return answer.headers.get("Warning", "")


def test_a_refusal_reaches_the_client_with_its_code_reason_and_message(
    server: KubeServer, hook: HookServer, configure: Any
) -> None:
    hook.answers["/"] = denying()
    configure(a_webhook(hook))
    name = unique()
    answer = server.request("POST", WIDGETS, a_widget(name))
    assert answer.status == 403
    assert answer.body["message"] == f"{DENIED}: no"
    assert (answer.body["reason"], answer.body["code"]) == ("Forbidden", 403)
    assert server.request("GET", f"{WIDGETS}/{name}").status == 404


@pytest.mark.parametrize(
    ("said", "code", "message"),
    [
        ({"code": 404, "message": "no such group", "reason": "NotFound"}, 404, f"{DENIED}: no such group"),
        ({"code": 200, "message": "odd"}, 400, f"{DENIED}: odd"),
        ({"reason": "Because"}, 400, f"{DENIED}: Because"),
        ({}, 400, f"{DENIED} without explanation"),
    ],
)
def test_how_a_refusal_is_worded(
    server: KubeServer, hook: HookServer, configure: Any, said: Json, code: int, message: str
) -> None:
    hook.answers["/"] = lambda request: {"allowed": False, "status": said}
    configure(a_webhook(hook))
    answer = server.request("POST", WIDGETS, a_widget(unique()))
    assert (answer.status, answer.body["message"]) == (code, message)


def test_what_is_asked_of_a_create_an_update_and_a_delete(server: KubeServer, hook: HookServer, configure: Any) -> None:
    hook.answers["/"] = lambda request: ALLOWED
    configure(a_webhook(hook))
    name = unique()
    path = f"{GADGETS}/{name}"
    server.request("POST", GADGETS, a_widget(name, kind="Gadget")).ok()
    server.request("PATCH", path, {"spec": {"note": "x"}}, content_type="application/merge-patch+json").ok()
    server.request("DELETE", path).ok()
    create, update, delete = hook.requests("/")
    for request in (create, update, delete):
        assert (request["name"], request["namespace"]) == (name, "default")
        assert request["resource"] == {"group": GROUP, "version": VERSION, "resource": "gadgets"}
        assert request["kind"] == request["requestKind"] == {"group": GROUP, "version": VERSION, "kind": "Gadget"}
        assert request["dryRun"] is False
        assert request["uid"]
    assert (create["operation"], create["oldObject"]) == ("CREATE", None)
    assert create["object"]["spec"]["color"] == "red"  # with defaults
    assert create["object"]["metadata"]["uid"]
    assert update["operation"] == "UPDATE"
    assert (update["object"]["spec"]["note"], "note" in update["oldObject"]["spec"]) == ("x", False)
    assert (delete["operation"], delete["object"]) == ("DELETE", None)
    assert delete["oldObject"]["spec"]["note"] == "x"
    assert create["options"]["kind"] == "CreateOptions"
    assert delete["options"]["kind"] == "DeleteOptions"


def test_what_is_refused_is_neither_updated_nor_deleted(server: KubeServer, hook: HookServer, configure: Any) -> None:
    name = unique()
    made = server.request("POST", WIDGETS, a_widget(name)).ok()
    hook.answers["/"] = denying()
    configure(a_webhook(hook, operations=["UPDATE", "DELETE"]))
    path = f"{WIDGETS}/{name}"
    for method, body, media in (
        ("PATCH", {"spec": {"note": "x"}}, "application/merge-patch+json"),
        ("PATCH", [{"op": "add", "path": "/spec/note", "value": "x"}], "application/json-patch+json"),
        ("PUT", {**made, "spec": {**made["spec"], "note": "x"}}, "application/json"),
        ("DELETE", None, "application/json"),
    ):
        assert server.request(method, path, body, content_type=media).status == 403, method
    assert server.request("DELETE", f"{WIDGETS}?fieldSelector=metadata.name={name}").status == 403
    assert server.request("GET", path).ok() == made


def test_a_finalizer_that_is_refused_stays_and_one_that_is_allowed_goes(
    server: KubeServer, hook: HookServer, configure: Any
) -> None:
    name = unique()
    body = a_widget(name)
    server.request("POST", WIDGETS, {**body, "metadata": {**body["metadata"], "finalizers": ["test.dev/held"]}}).ok()
    hook.answers["/"] = denying()
    configure(a_webhook(hook, operations=["UPDATE"]))
    path = f"{WIDGETS}/{name}"
    server.request("DELETE", path).ok()
    released = {"metadata": {"finalizers": None}}
    assert server.request("PATCH", path, released, content_type="application/merge-patch+json").status == 403
    hook.answers["/"] = lambda request: ALLOWED
    server.request("PATCH", path, released, content_type="application/merge-patch+json").ok()
    assert server.request("GET", path).status == 404


def test_warnings_reach_the_client_also_with_a_refusal(server: KubeServer, hook: HookServer, configure: Any) -> None:
    hook.answers["/"] = lambda request: {
        "allowed": request["operation"] != "DELETE",
        "warnings": ["mind the gap", "two"],
    }
    configure(a_webhook(hook))
    name = unique()
    created = server.request("POST", WIDGETS, a_widget(name))
    created.ok()
    assert '299 - "mind the gap"' in warnings(created)
    assert '299 - "two"' in warnings(created)
    refused = server.request("DELETE", f"{WIDGETS}/{name}")
    assert refused.status == 400
    assert '299 - "mind the gap"' in warnings(refused)


@pytest.mark.slow
def test_kubectl_prints_the_warning_and_the_refusal(server: KubeServer, hook: HookServer, configure: Any) -> None:
    hook.answers["/"] = lambda request: {"allowed": True, "warnings": ["mind the gap"]}
    configure(a_webhook(hook))
    done = server.kubectl("apply", "-f", "-", stdin=json.dumps(a_widget(unique())))
    assert "Warning: mind the gap" in done.stderr
    hook.answers["/"] = denying()
    done = server.kubectl("apply", "-f", "-", stdin=json.dumps(a_widget(unique())), check=False)
    assert done.returncode == 1
    assert f"{DENIED}: no" in done.stderr


def test_a_dry_run_is_asked_about_too_and_says_so(server: KubeServer, hook: HookServer, configure: Any) -> None:
    hook.answers["/"] = denying()
    configure(a_webhook(hook))
    assert server.request("POST", f"{WIDGETS}?dryRun=All", a_widget(unique())).status == 403
    assert [request["dryRun"] for request in hook.requests("/")] == [True]


def test_what_is_invalid_is_refused_before_a_validating_webhook_is_asked(
    server: KubeServer, hook: HookServer, configure: Any
) -> None:
    hook.answers["/"] = denying()
    configure(a_webhook(hook))
    assert server.request("POST", WIDGETS, a_widget(unique(), color="blue")).status == 422
    assert hook.requests("/") == []


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({"operations": ["UPDATE"]}, False),
        ({"operations": ["CREATE"]}, True),
        ({"resources": ["gadgets"]}, True),
        ({"resources": ["widgets"]}, False),
        ({"resources": ["gadgets/status"]}, False),
        ({"resources": ["*"]}, True),
        ({"resources": ["*/*"]}, True),
        ({"resources": ["gadgets/*"]}, True),
        ({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}}}, True),
        ({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "other"}}}, False),
        ({"objectSelector": {"matchExpressions": [{"key": "team", "operator": "In", "values": ["a", "b"]}]}}, True),
        ({"objectSelector": {"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}}, False),
        ({"matchConditions": [{"name": "small", "expression": "object.spec.size == '1Gi'"}]}, True),
        ({"matchConditions": [{"name": "red", "expression": "object.spec.color == 'green'"}]}, False),
        ({"matchConditions": [{"name": "goes", "expression": "has(object.metadata.deletionTimestamp)"}]}, False),
        ({"matchConditions": [{"name": "what", "expression": "request.operation == 'CREATE'"}]}, True),
        ({"matchConditions": [{"name": "old", "expression": "oldObject == null"}]}, True),
    ],
)
def test_which_writes_are_asked_about(
    server: KubeServer, hook: HookServer, configure: Any, fields: Json, asked: bool
) -> None:
    hook.answers["/"] = lambda request: ALLOWED
    configure(a_webhook(hook, **fields))
    body = a_widget(unique(), kind="Gadget")
    body["metadata"]["labels"] = {"team": "a"}
    server.request("POST", GADGETS, body).ok()
    assert bool(hook.requests("/")) is asked


def test_status_is_asked_about_where_it_is_named(server: KubeServer, hook: HookServer, configure: Any) -> None:
    name = unique()
    server.request("POST", WIDGETS, a_widget(name)).ok()
    hook.answers["/"] = hook.answers["/status"] = lambda request: ALLOWED
    configure(a_webhook(hook), a_webhook(hook, "/status", "status.test.localmodel.dev", resources=["widgets/status"]))
    media = "application/merge-patch+json"
    server.request("PATCH", f"{WIDGETS}/{name}/status", {"status": {"phase": "x"}}, content_type=media).ok()
    assert hook.requests("/") == []
    (request,) = hook.requests("/status")
    assert request["subResource"] == "status"
    assert request["object"]["status"] == {"phase": "x"}


def slow(request: Json) -> Json:
    time.sleep(3)
    return ALLOWED


def broken(hook: HookServer, how: str) -> Json:
    """A webhook that cannot be asked."""
    hook.answers["/bad"] = {
        "another uid": lambda request: {"uid": "other", "allowed": True},
        "junk": lambda request: b"junk",
        "no response": lambda request: b'{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}',
        "slow": slow,
    }.get(how, lambda request: ALLOWED)
    webhook = a_webhook(hook, "/bad", timeoutSeconds=1)
    if how == "not found":
        webhook["clientConfig"]["url"] = hook.url("/none")
    if how == "nobody there":
        webhook["clientConfig"]["url"] = "https://127.0.0.1:1/"
    if how == "not trusted":
        del webhook["clientConfig"]["caBundle"]
    if how == "no such service":
        webhook["clientConfig"] = {"service": {"namespace": "default", "name": "none"}, "caBundle": hook.bundle}
    if how == "a condition that fails":
        webhook["matchConditions"] = [{"name": "odd", "expression": "object.spec.nothing == 'x'"}]
    return webhook


WAYS = ["another uid", "junk", "no response", "slow", "not found", "nobody there", "not trusted", "no such service"]


@pytest.mark.slow
@pytest.mark.parametrize("how", [*WAYS, "a condition that fails"])
def test_a_webhook_that_cannot_be_asked_refuses_or_is_ignored_as_its_policy_says(
    server: KubeServer, hook: HookServer, configure: Any, how: str
) -> None:
    configure({**broken(hook, how), "failurePolicy": "Ignore"})
    server.request("POST", WIDGETS, a_widget(unique())).ok()
    configure({**broken(hook, how), "failurePolicy": "Fail"})

    def refusals() -> list[Answer]:
        answer = server.request("POST", WIDGETS, a_widget(unique()))
        return [answer] if answer.status >= 400 else []

    (answer,) = eventually(refusals, timeout_s=20)
    if how == "a condition that fails":
        assert answer.status in (403, 500)
        return
    assert (answer.status, answer.body["reason"]) == (500, "InternalError")
    assert f'failed calling webhook "{NAME}": ' in answer.body["message"]


def test_a_mutating_webhook_changes_what_is_stored_and_the_next_sees_it(
    server: KubeServer, hook: HookServer, configure: Any
) -> None:
    def patching(*operations: Json) -> Callable[[Json], Json]:
        patch = base64.b64encode(json.dumps(operations).encode()).decode()
        return lambda request: {"allowed": True, "patchType": "JSONPatch", "patch": patch}

    hook.answers["/first"] = patching({"op": "replace", "path": "/spec/color", "value": "green"})
    hook.answers["/second"] = patching({"op": "add", "path": "/metadata/labels", "value": {"by": "second"}})
    configure(
        a_webhook(hook, "/first", "first.test.localmodel.dev", operations=["CREATE"]),
        a_webhook(hook, "/second", "second.test.localmodel.dev", operations=["CREATE"]),
        at=MUTATING,
    )
    name = unique()
    created = server.request("POST", WIDGETS, a_widget(name)).ok()
    assert created["spec"]["color"] == "green"
    assert created["metadata"]["labels"] == {"by": "second"}
    assert server.request("GET", f"{WIDGETS}/{name}").ok()["spec"]["color"] == "green"
    assert hook.requests("/first")[0]["object"]["spec"]["color"] == "red"
    assert hook.requests("/second")[0]["object"]["spec"]["color"] == "green"
    hook.answers["/first"] = patching({"op": "replace", "path": "/spec/color", "value": "blue"})
    assert server.request("POST", WIDGETS, a_widget(unique())).status == 422


@pytest.mark.parametrize("version", [["v1beta1"], ["v1beta1", "v1"], ["v7", "v1"]])
def test_the_first_version_that_both_know_is_spoken(
    server: KubeServer, hook: HookServer, configure: Any, version: list[str]
) -> None:
    hook.answers["/"] = lambda request: ALLOWED
    configure(a_webhook(hook, admissionReviewVersions=version))
    server.request("POST", WIDGETS, a_widget(unique())).ok()
    spoken = next(each for each in version if each != "v7")
    assert {review["apiVersion"] for path, review in hook.asked if path == "/"} == {f"admission.k8s.io/{spoken}"}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": "short"}, "webhooks[0].name"),
        ({"sideEffects": None}, "webhooks[0].sideEffects"),
        ({"sideEffects": "Some"}, "webhooks[0].sideEffects"),
        ({"admissionReviewVersions": []}, "webhooks[0].admissionReviewVersions"),
        ({"admissionReviewVersions": ["v7"]}, "webhooks[0].admissionReviewVersions"),
        ({"timeoutSeconds": 31}, "webhooks[0].timeoutSeconds"),
        ({"failurePolicy": "Perhaps"}, "webhooks[0].failurePolicy"),
        ({"clientConfig": {}}, "webhooks[0].clientConfig"),
        ({"clientConfig": {"url": "http://127.0.0.1:1"}}, "webhooks[0].clientConfig.url"),
        ({"matchConditions": [{"name": "x", "expression": "(("}]}, "webhooks[0].matchConditions[0].expression"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(
    server: KubeServer, hook: HookServer, change: Json, field: str
) -> None:
    webhook = {key: value for key, value in {**a_webhook(hook), **change}.items() if value is not None}
    body = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": unique()},
        "webhooks": [webhook],
    }
    answer = server.request("POST", VALIDATING, body)
    assert answer.status == 422
    assert field in {cause["field"] for cause in answer.body["details"]["causes"]}


def test_a_configuration_is_stored_with_its_defaults(server: KubeServer, hook: HookServer, configure: Any) -> None:
    hook.answers["/"] = lambda request: ALLOWED
    configure(a_webhook(hook))
    (stored,) = server.request("GET", VALIDATING).ok()["items"]
    webhook = stored["webhooks"][0]
    assert (webhook["failurePolicy"], webhook["matchPolicy"], webhook["timeoutSeconds"]) == ("Fail", "Equivalent", 10)
    assert (webhook["namespaceSelector"], webhook["objectSelector"]) == ({}, {})
    assert webhook["rules"][0]["scope"] == "*"
