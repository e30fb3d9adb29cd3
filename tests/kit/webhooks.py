"""Webhooks as an API server calls them: AdmissionReviews over HTTPS, and a server of ours that answers them."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from actors.schemes import Schemes
from coordinator.cli.tls_suites import tls_settings
from coordinator.cli.webhooks import WebhookServer
from coordinator.control.admission import Admission
from coordinator.control.certificates import LIFETIME
from coordinator.control.informers import Informers
from coordinator.control.tls_contexts import TlsContexts
from coordinator.control.webhook_identity import WebhookIdentity
from coordinator.dev.trial.waiting import eventually
from coordinator.kube.interface import Kube, Object

CACHE_PATH = "/validate-serving-kserve-io-v1alpha1-localmodelcache"
NAMESPACE_CACHE_PATH = "/validate-serving-kserve-io-v1alpha1-localmodelnamespacecache"
V1, V1BETA1 = "admission.k8s.io/v1", "admission.k8s.io/v1beta1"
HOST = "localmodel-webhook-server-service.kserve.svc"

Json = dict[str, Any]


def a_review(operation: str, new: Object | None, old: Object | None = None, *, version: str = V1) -> Json:
    request = {"uid": "u-1", "operation": operation, "object": new, "oldObject": old}
    return {"apiVersion": version, "kind": "AdmissionReview", "request": request}


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: Any


class Caller:
    """A client that trusts `authorities`, and expects the certificate of the Service, at a port of this machine."""

    def __init__(self, port: int, authorities: bytes, *, name: str = HOST, **limits: Any) -> None:
        self._port, self._name = port, name
        self.context = ssl.create_default_context(cadata=authorities.decode())
        for field, value in limits.items():
            setattr(self.context, field, value)

    def post(self, path: str, body: object, *, content_type: str = "application/json") -> Reply:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", path, data, {"Content-Type": content_type})

    def review(self, path: str, operation: str, new: Object | None, old: Object | None = None) -> Json:
        """The `response` of the answer."""
        reply = self.post(path, a_review(operation, new, old))
        assert reply.status == 200, reply
        response: Json = reply.body["response"]
        return response

    def request(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Reply:
        """Raises OSError, ssl's among them."""
        with self.connected() as connection:
            connection.request(method, path, body, dict(headers or {}))
            return answered(connection)

    @contextlib.contextmanager
    def connected(self) -> Iterator[http.client.HTTPConnection]:
        connection = http.client.HTTPSConnection("127.0.0.1", self._port, timeout=10, context=self.context)
        wrap = self.context.wrap_socket
        connection.connect = lambda: self._connect(connection, wrap)  # type: ignore[method-assign]  # for another name
        try:
            yield connection
        finally:
            connection.close()

    def _connect(self, connection: http.client.HTTPConnection, wrap: Any) -> None:
        http.client.HTTPConnection.connect(connection)
        raw = connection.sock
        try:
            connection.sock = wrap(raw, server_hostname=self._name)
        except BaseException:
            raw.close()
            raise

    def certificate(self) -> bytes:
        """What the server shows (DER)."""
        with self.connected() as connection:
            connection.connect()
            assert isinstance(connection.sock, ssl.SSLSocket)
            return connection.sock.getpeercert(binary_form=True) or b""


def answered(connection: http.client.HTTPConnection) -> Reply:
    answer = connection.getresponse()
    content = answer.read()
    is_json = answer.headers.get("Content-Type") == "application/json"
    return Reply(answer.status, dict(answer.headers), json.loads(content) if is_json else content.decode())


@dataclass
class Served:
    """A server of ours over what `kube` holds. `identity.look()` is what its thread would do."""

    kube: Kube
    informers: Informers
    contexts: TlsContexts
    identity: WebhookIdentity
    server: WebhookServer

    def caller(self, authorities: bytes, **limits: Any) -> Caller:
        return Caller(self.server.port, authorities, **limits)


@contextlib.contextmanager
def serving(
    kube: Kube,
    folder: Path,
    *,
    port: int,
    min_version: str = "VersionTLS12",
    suites: tuple[str, ...] = (),
    clock: Any = None,
    lifetime: timedelta = LIFETIME,
    namespace: str = "kserve",
    watched: Kube | None = None,
) -> Iterator[Served]:
    """Informers, of `watched` if given, are in step when this is entered; no certificate has been made yet."""
    informers = Informers.over(watched or kube, changed=lambda: None, poisoned=lambda ref, error: None)
    contexts = TlsContexts(folder, tls_settings(min_version, suites))
    timing = {} if clock is None else {"clock": clock}
    identity = WebhookIdentity(kube, namespace, contexts, lifetime=lifetime, **timing)
    admission = Admission(informers, kube, Schemes())
    server = WebhookServer(port, admission.routes(), contexts.current, lambda: admission.ready, host="127.0.0.1")
    informers.start()
    try:
        eventually(lambda: informers.synced, every_s=0.01)
        yield Served(kube, informers, contexts, identity, server)
    finally:
        server.close()
        informers.stop()
