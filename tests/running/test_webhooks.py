"""The webhooks over HTTPS: what an API server gets back, with which certificate, and how that is renewed."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from coordinator.cli.webhooks import WebhookServer
from coordinator.control.admission import MAX_BYTES
from coordinator.control.certificates import issue, validity
from coordinator.control.webhook_identity import OURS, SECRET, SERVICE, WEBHOOKS, names_of
from coordinator.dev.certificates import Authority
from coordinator.dev.fake_kube import FakeKube
from coordinator.dev.ports import free_port
from coordinator.dev.trial.builders import a_cache, a_group, a_namespace_cache
from coordinator.dev.trial.waiting import eventually
from coordinator.kube.interface import NAMESPACES, SECRETS, Denied, Object
from coordinator.plan.services import INFERENCE_SERVICES, LLM_INFERENCE_SERVICES
from coordinator.plan.snapshot import CACHES, NAMESPACE_CACHES, NODE_GROUPS
from tests.kit.webhooks import (
    CACHE_PATH,
    HOST,
    NAMESPACE_CACHE_PATH,
    V1,
    V1BETA1,
    Caller,
    Served,
    a_review,
    answered,
    serving,
)

LABEL, OF = "internal.serving.kserve.io/localmodel", "internal.serving.kserve.io/localmodel-namespace"


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    kube = FakeKube()
    yield kube
    kube.close()


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def served(kube: FakeKube, tmp_path: Path, port: int) -> Iterator[Served]:
    with serving(kube, tmp_path / "none", port=port) as served:
        served.identity.look()
        yield served


@pytest.fixture
def caller(served: Served) -> Caller:
    return served.caller(authorities(served.kube))


def authorities(kube: Any) -> bytes:
    return base64.b64decode(kube.get(SECRETS, SECRET, namespace="kserve")["data"]["ca.crt"])


def seen(served: Served, resource: Any, body: Object, namespace: str | None = None) -> Object:
    """Created, and known to the informers."""
    created = served.kube.create(resource, body, namespace=namespace)
    kind = {CACHES: served.informers.caches, NODE_GROUPS: served.informers.groups}.get(resource)
    if kind is not None:
        eventually(lambda: (None, body["metadata"]["name"]) in kind.items(), every_s=0.01)
    return created


# What is answered


@pytest.mark.parametrize("version", [V1, V1BETA1])
def test_a_review_is_answered_in_its_own_version_with_its_uid(caller: Caller, version: str) -> None:
    reply = caller.post(CACHE_PATH, a_review("CREATE", a_cache("x").json, version=version))
    assert (reply.status, reply.headers["Content-Type"]) == (200, "application/json")
    assert reply.body["apiVersion"] == version
    assert reply.body["kind"] == "AdmissionReview"
    assert reply.body["response"]["uid"] == "u-1"
    assert reply.body["response"]["allowed"] is True
    assert reply.body["response"]["status"]["code"] == 200


def test_a_refusal_is_an_answer_with_its_code_reason_and_message(served: Served, caller: Caller) -> None:
    seen(served, CACHES, a_cache("first", "hf://m/x").json)
    response = caller.review(CACHE_PATH, "CREATE", a_cache("second", "hf://m/x").json)
    assert response == {
        "uid": "u-1",
        "allowed": False,
        "status": {
            "metadata": {},
            "status": "Failure",
            "code": 403,
            "reason": "Forbidden",
            "message": "LocalModelCache first has the same StorageURI hf://m/x",
        },
    }


def test_a_warning_comes_with_what_is_allowed(caller: Caller) -> None:
    response = caller.review(CACHE_PATH, "CREATE", a_cache("x").json)
    assert response["allowed"] is True
    assert response["warnings"] == [
        "spec.nodeGroups: LocalModelNodeGroup gpu not found; no node gets a copy for it until that is mended"
    ]


def test_a_group_that_no_informer_has_seen_yet_is_asked_for(kube: FakeKube, tmp_path: Path, port: int) -> None:
    kube.create(NODE_GROUPS, a_group().json)
    with serving(kube, tmp_path / "none", port=port, watched=FakeKube()) as served:
        served.identity.look()
        caller = served.caller(authorities(kube))
        known = caller.review(NAMESPACE_CACHE_PATH, "CREATE", a_namespace_cache("team").json)
        response = caller.review(NAMESPACE_CACHE_PATH, "CREATE", a_namespace_cache("team").in_group("none").json)
    assert known["allowed"] is True
    assert response["status"]["code"] == 404
    assert response["status"]["message"] == 'LocalModelNodeGroup.serving.kserve.io "none" not found'


@pytest.mark.parametrize(
    ("resource", "field", "kind"),
    [
        (INFERENCE_SERVICES, "inferenceServices", "InferenceService"),
        (LLM_INFERENCE_SERVICES, "llmInferenceServices", "LLMInferenceService"),
    ],
)
def test_a_cache_in_use_is_not_deleted(served: Served, caller: Caller, resource: Any, field: str, kind: str) -> None:
    service = {"metadata": {"name": "chat", "labels": {LABEL: "m"}}}
    served.kube.create(resource, service, namespace="default")
    old = a_cache("m").with_status(**{field: [{"namespace": "default", "name": "chat"}]}).json
    response = caller.review(CACHE_PATH, "DELETE", None, old)
    assert response["allowed"] is False
    assert response["status"]["message"] == f"LocalModelCache m is being used by {kind} chat"
    served.kube.delete(resource, "chat", namespace="default")
    assert caller.review(CACHE_PATH, "DELETE", None, old)["allowed"] is True


@pytest.mark.parametrize(("phase", "allowed"), [({}, False), ({"deletionTimestamp": "2026-01-01T00:00:00Z"}, True)])
def test_a_namespace_on_its_way_out_takes_its_caches_along(
    served: Served, caller: Caller, phase: dict[str, str], allowed: bool
) -> None:
    served.kube.create(
        INFERENCE_SERVICES, {"metadata": {"name": "chat", "labels": {LABEL: "m", OF: "team"}}}, namespace="team"
    )
    finalizers = {"finalizers": ["test/held"]} if phase else {}
    served.kube.create(NAMESPACES, {"metadata": {"name": "team", **finalizers}})
    if phase:
        served.kube.delete(NAMESPACES, "team")
    old = a_namespace_cache("team", "m").with_status(inferenceServices=[{"namespace": "team", "name": "chat"}]).json
    assert caller.review(NAMESPACE_CACHE_PATH, "DELETE", None, old)["allowed"] is allowed


def test_a_look_up_that_fails_refuses_with_its_own_status(kube: FakeKube, served: Served, caller: Caller) -> None:
    old = a_cache("m").with_status(inferenceServices=[{"namespace": "default", "name": "chat"}]).json
    kube.fail(Denied("inferenceservices is forbidden", status=403))
    response = caller.review(CACHE_PATH, "DELETE", None, old)
    assert response["allowed"] is False
    assert (response["status"]["code"], response["status"]["reason"]) == (403, "Forbidden")
    assert "inferenceservices is forbidden" in response["status"]["message"]


@pytest.mark.parametrize("path", ["/", "/validate-localmodelcaches", CACHE_PATH + "s", CACHE_PATH + "/x", "/healthz"])
def test_an_unknown_path_is_not_found(caller: Caller, path: str) -> None:
    assert caller.post(path, a_review("CREATE", a_cache("x").json)).status == 404
    assert caller.request("GET", path).status == 404


def test_a_known_path_takes_posts_alone(caller: Caller) -> None:
    reply = caller.request("GET", CACHE_PATH)
    assert (reply.status, reply.headers["Allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("body", "content_type", "code"),
    [
        (b"", "application/json", 400),
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"{}", "application/json", 400),
        (a_review("CREATE", a_cache().json, version="admission.k8s.io/v2"), "application/json", 400),
        ({"apiVersion": V1, "kind": "AdmissionReview"}, "application/json", 400),
        (a_review("CREATE", a_cache().json), "application/yaml", 400),
        (a_review("CREATE", a_cache().json), "application/json; charset=utf-8", 400),
        (a_review("CREATE", None), "application/json", 400),
        (a_review("CONNECT", a_cache().json), "application/json", 400),
        (a_review("DELETE", a_cache().json, None), "application/json", 400),
        (a_review("CREATE", a_namespace_cache("team").json), "application/json", 400),
        (a_review("CREATE", {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}), "application/json", 400),
        (b"x" * (MAX_BYTES + 1), "application/json", 413),
    ],
)
def test_what_cannot_be_read_is_refused_in_an_answer(
    caller: Caller, body: object, content_type: str, code: int
) -> None:
    try:
        reply = caller.post(CACHE_PATH, body, content_type=content_type)
    except (ConnectionError, ssl.SSLError):
        assert code == 413  # it was refused before all of it was sent
        return
    assert reply.status == 200
    assert reply.body["response"]["allowed"] is False
    assert reply.body["response"]["status"]["code"] == code
    assert reply.body["response"]["status"]["message"]


def test_junk_in_a_spec_is_survived(caller: Caller) -> None:
    wrong: list[dict[str, Any]] = [{}, {"sourceModelUri": 3, "modelSize": [], "nodeGroups": "gpu"}]
    wrong.append({"nodeGroups": [None, 1, {}]})
    for spec in wrong:
        cache: Any = {**a_cache("x").json, "spec": spec, "status": {"inferenceServices": "junk"}}
        assert caller.review(CACHE_PATH, "CREATE", cache)["allowed"] is True
        assert caller.review(CACHE_PATH, "UPDATE", cache, cache)["allowed"] is True
        assert caller.review(CACHE_PATH, "DELETE", None, cache)["allowed"] is True


def test_a_connection_is_kept(caller: Caller) -> None:
    with caller.connected() as connection:
        for _ in range(3):
            body = json.dumps(a_review("CREATE", a_cache("x").json))
            connection.request("POST", CACHE_PATH, body, {"Content-Type": "application/json"})
            assert answered(connection).body["response"]["allowed"] is True


def test_what_knows_nothing_yet_leaves_it_to_the_failure_policy(kube: FakeKube, tmp_path: Path, port: int) -> None:
    with serving(kube, tmp_path / "none", port=port) as served:
        served.identity.look()
        served.server.close()
        deaf = WebhookServer(port, {CACHE_PATH: dict}, served.contexts.current, lambda: False, host="127.0.0.1")  # type: ignore[dict-item]  # it is never asked
        try:
            caller = Caller(port, authorities(kube))
            assert caller.post(CACHE_PATH, a_review("CREATE", a_cache("x").json)).status == 503
        finally:
            deaf.close()


def test_silent_clients_do_not_keep_others_waiting(served: Served, caller: Caller) -> None:
    silent = [socket.create_connection(("127.0.0.1", served.server.port)) for _ in range(20)]
    try:
        assert caller.review(CACHE_PATH, "CREATE", a_cache("x").json)["allowed"] is True
    finally:
        for each in silent:
            each.close()


# TLS


@pytest.mark.parametrize(
    ("flags", "offers", "agreed"),
    [
        ({}, {}, "TLSv1.3"),
        ({}, {"maximum_version": ssl.TLSVersion.TLSv1_2}, "TLSv1.2"),
        ({"min_version": "VersionTLS13"}, {}, "TLSv1.3"),
        ({"min_version": "VersionTLS13"}, {"maximum_version": ssl.TLSVersion.TLSv1_2}, None),
        (
            {"suites": ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",)},
            {"maximum_version": ssl.TLSVersion.TLSv1_2},
            "ECDHE-ECDSA-AES256-GCM-SHA384",
        ),
        (
            {"suites": ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",)},  # which this certificate's key cannot do
            {"maximum_version": ssl.TLSVersion.TLSv1_2},
            None,
        ),
        ({"suites": ("TLS_AES_128_GCM_SHA256",)}, {"maximum_version": ssl.TLSVersion.TLSv1_2}, None),
        ({"suites": ("TLS_AES_128_GCM_SHA256",)}, {}, "TLSv1.3"),
    ],
)
def test_the_flags_of_tls_act(
    kube: FakeKube, tmp_path: Path, port: int, flags: dict[str, Any], offers: dict[str, Any], agreed: str | None
) -> None:
    with serving(kube, tmp_path / "none", port=port, **flags) as served:
        served.identity.look()
        caller = served.caller(authorities(kube), **offers)
        if agreed is None:
            with pytest.raises(ssl.SSLError):
                caller.request("GET", "/")
            return
        with caller.connected() as connection:
            connection.connect()
            assert isinstance(connection.sock, ssl.SSLSocket)
            assert agreed in (connection.sock.version(), (connection.sock.cipher() or ("",))[0])


def test_tls_1_1_and_plain_http_get_nothing(caller: Caller, served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.server.port), timeout=5) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            answer = plain.recv(100)
        except ConnectionError:
            answer = b""
    assert not answer.startswith(b"HTTP")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", served.server.port), timeout=5) as old, pytest.raises(ssl.SSLError):
        context.wrap_socket(old, server_hostname=HOST)


def test_http_1_1_is_agreed_upon_where_http_2_is_offered_too(served: Served) -> None:
    caller = served.caller(authorities(served.kube))
    caller.context.set_alpn_protocols(["h2", "http/1.1"])
    with caller.connected() as connection:
        connection.connect()
        assert isinstance(connection.sock, ssl.SSLSocket)
        assert connection.sock.selected_alpn_protocol() == "http/1.1"


def test_mounted_files_are_shown_and_shown_anew_when_they_change(kube: FakeKube, tmp_path: Path, port: int) -> None:
    folder, authority = tmp_path / "certs", Authority(tmp_path / "ca")

    def mount() -> None:
        """As the kubelet does: the files are links through one that is turned to another folder."""
        version = tmp_path / f"v{len(list(tmp_path.glob('v*')))}"
        version.mkdir()
        pair = authority.peer()
        shutil.copy(pair.certificate, version / "tls.crt")
        shutil.copy(pair.key, version / "tls.key")
        folder.mkdir(exist_ok=True)
        for name in ("tls.crt", "tls.key"):
            (folder / f"{name}.new").symlink_to(version / name)
            (folder / f"{name}.new").replace(folder / name)

    mount()
    with serving(kube, folder, port=port) as served:
        served.identity.look()
        assert served.identity.failure is None
        assert [write for write in kube.writes if write[1] == "secrets"] == []
        caller = served.caller(authority.file.read_bytes(), name="localhost")
        first = caller.certificate()
        assert caller.certificate() == first
        mount()
        second = caller.certificate()
        assert second != first
        (folder / "tls.key").unlink()  # half of a change
        (folder / "tls.crt").unlink()
        assert caller.certificate() == second
        (folder / "tls.crt").write_text("nonsense")
        (folder / "tls.key").write_text("nonsense")
        assert caller.certificate() == second
        (folder / "tls.crt").unlink()
        (folder / "tls.key").unlink()
        mount()
        assert caller.certificate() not in (first, second)


# The certificate that we make


def a_configuration(name: str, **config: Any) -> Object:
    client = config or {"service": {"namespace": "kserve", "name": SERVICE, "path": CACHE_PATH}}
    webhooks = [{"name": "ours.test.io", "clientConfig": client}]
    webhooks.append({"name": "theirs.test.io", "clientConfig": {"url": "https://theirs.example/x", "caBundle": "eA=="}})
    return {"metadata": {"name": name}, "webhooks": webhooks}


def bundle(kube: FakeKube, name: str, index: int = 0) -> bytes:
    config = kube.get(WEBHOOKS, name)["webhooks"][index]["clientConfig"]
    return base64.b64decode(config.get("caBundle", ""))


@pytest.mark.parametrize("config", [{}, {"url": "https://127.0.0.1:9443" + CACHE_PATH}])
@pytest.mark.parametrize("name", ["localmodel", "localmodelcache.serving.kserve.io"])
def test_without_a_certificate_one_is_made_and_the_api_server_is_told_whom_to_trust(
    kube: FakeKube, tmp_path: Path, port: int, name: str, config: dict[str, str]
) -> None:
    kube.create(WEBHOOKS, a_configuration(name, **config))
    with serving(kube, tmp_path / "none", port=port) as served:
        with pytest.raises(OSError):
            served.caller(issue(["x"], 0.0).authorities).request("GET", "/")
        served.identity.look()
        assert bundle(kube, name, 1) == b"x"
        caller = served.caller(bundle(kube, name))
        assert caller.review(CACHE_PATH, "CREATE", a_cache("x").json)["allowed"] is True
        secret = kube.get(SECRETS, SECRET, namespace="kserve")
        assert secret["type"] == "kubernetes.io/tls"
        assert secret["metadata"]["labels"] == {OURS: "true"}
        known = validity(base64.b64decode(secret["data"]["tls.crt"]))
        assert known is not None
        assert {HOST, SERVICE, "127.0.0.1"} <= known.names
        writes = len(kube.writes)
        served.identity.look()
        assert len(kube.writes) == writes


def test_two_replicas_agree_on_one_certificate(kube: FakeKube, tmp_path: Path, port: int) -> None:
    with ExitStack() as stack:
        first, second = (stack.enter_context(serving(kube, tmp_path / "none", port=at)) for at in (port, port + 1))
        both = threading.Barrier(2)

        def look(served: Served) -> None:
            both.wait()
            served.identity.look()

        threads = [threading.Thread(target=look, args=(each,)) for each in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        trusted = authorities(kube)
        assert first.caller(trusted).certificate() == second.caller(trusted).certificate()


def test_it_is_renewed_before_it_ends_and_meanwhile_both_are_trusted(kube: FakeKube, tmp_path: Path, port: int) -> None:
    kube.create(WEBHOOKS, a_configuration("localmodel"))
    now = [time.time() - timedelta(days=21).total_seconds()]
    with ExitStack() as stack:
        life = timedelta(days=30)
        first, second = (
            stack.enter_context(serving(kube, tmp_path / "none", port=at, clock=lambda: now[0], lifetime=life))
            for at in (port, port + 1)
        )
        first.identity.look()
        second.identity.look()
        old = first.caller(bundle(kube, "localmodel")).certificate()
        now[0] += timedelta(days=19).total_seconds()
        first.identity.look()
        assert first.caller(bundle(kube, "localmodel")).certificate() == old
        now[0] += timedelta(days=2).total_seconds()
        first.identity.look()
        trusted = bundle(kube, "localmodel")
        new = first.caller(trusted).certificate()
        assert new != old
        assert second.caller(trusted).certificate() == old
        second.identity.look()
        assert second.caller(trusted).certificate() == new
        known = validity(ssl.DER_cert_to_PEM_cert(new).encode())
        assert known is not None
        assert known.ends > now[0] + timedelta(days=29).total_seconds()
        now[0] += timedelta(days=21).total_seconds()  # the first authority has ended and is forgotten
        first.identity.look()
        assert bundle(kube, "localmodel").count(b"BEGIN CERTIFICATE") == 2


@pytest.mark.parametrize(
    "damage",
    [
        {"tls.crt": None},
        {"tls.key": None},
        {"tls.crt": "bm9uc2Vuc2U="},
        {"tls.crt": "%%%"},
    ],
)
def test_a_damaged_secret_of_ours_is_made_anew(kube: FakeKube, served: Served, damage: dict[str, Any]) -> None:
    before = served.caller(authorities(kube)).certificate()
    kube.patch(SECRETS, SECRET, {"data": damage}, namespace="kserve")
    served.identity.look()
    assert served.caller(authorities(kube)).certificate() != before


def test_a_deleted_secret_is_made_anew(kube: FakeKube, served: Served) -> None:
    kube.delete(SECRETS, SECRET, namespace="kserve")
    served.identity.look()
    assert served.caller(authorities(kube)).review(CACHE_PATH, "CREATE", a_cache("x").json)["allowed"] is True


def of_cert_manager(now: float, *names: str) -> Object:
    pair = issue(names or names_of("kserve"), now)
    data = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": pair.authorities}
    annotations = {"cert-manager.io/certificate-name": "localmodel-serving-cert"}
    return {
        "type": "kubernetes.io/tls",
        "metadata": {"name": SECRET, "annotations": annotations},
        "data": {name: base64.b64encode(value).decode() for name, value in data.items()},
    }


def test_the_certificate_of_cert_manager_is_used_as_it_is(kube: FakeKube, tmp_path: Path, port: int) -> None:
    kube.create(SECRETS, of_cert_manager(time.time()), namespace="kserve")
    injected = a_configuration("localmodelcache.serving.kserve.io")
    injected = {
        **injected,
        "metadata": {**injected["metadata"], "annotations": {"cert-manager.io/inject-ca-from": "k/c"}},
    }
    kube.create(WEBHOOKS, injected)
    writes = len(kube.writes)
    with serving(kube, tmp_path / "none", port=port) as served:
        served.identity.look()
        assert len(kube.writes) == writes
        assert served.caller(authorities(kube)).review(CACHE_PATH, "CREATE", a_cache("x").json)["allowed"] is True
        kube.delete(SECRETS, SECRET, namespace="kserve")
        kube.create(SECRETS, of_cert_manager(time.time()), namespace="kserve")  # renewed
        served.identity.look()
        assert served.caller(authorities(kube)).review(CACHE_PATH, "CREATE", a_cache("x").json)["allowed"] is True


@pytest.mark.parametrize(
    ("secret", "why"),
    [
        (lambda now: of_cert_manager(now - 100 * 86400), "its certificate expires|no authority"),
        (lambda now: of_cert_manager(now, "elsewhere.svc"), f"is not for {HOST}"),
    ],
)
def test_a_strangers_certificate_that_will_not_do_is_left_alone_and_said(
    kube: FakeKube, tmp_path: Path, port: int, secret: Any, why: str
) -> None:
    kube.create(SECRETS, secret(time.time()), namespace="kserve")
    with serving(kube, tmp_path / "none", port=port) as served:
        with pytest.raises(OSError, match=why):
            served.identity.look()
        assert kube.get(SECRETS, SECRET, namespace="kserve")["metadata"].get("labels") is None


def test_the_thread_goes_on_when_the_api_server_is_back(kube: FakeKube, tmp_path: Path, port: int) -> None:
    with serving(kube, tmp_path / "none", port=port) as served:
        kube.fail(Denied("secrets is forbidden", status=403))
        served.identity.start()
        try:
            eventually(lambda: served.identity.failure == "secrets is forbidden", every_s=0.01)
            kube.fail(None)
            eventually(lambda: served.identity.failure is None)
        finally:
            served.identity.stop()


def test_namespace_caches_are_known_as_well(served: Served, caller: Caller) -> None:
    served.kube.create(NAMESPACE_CACHES, a_namespace_cache("team", "m", "hf://m/x").json, namespace="team")
    eventually(lambda: ("team", "m") in served.informers.namespace_caches.items(), every_s=0.01)
    assert caller.review(CACHE_PATH, "CREATE", a_cache("m", "hf://m/x").json)["allowed"] is True
