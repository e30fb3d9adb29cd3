"""With which certificate the webhooks are served, and that the API server trusts it.

    files in --webhook-cert-dir             whoever mounts them (cert-manager's Secret) renews them, and writes caBundle
    else the Secret SECRET beside us        made by cert-manager: used as it is
                                            made by us: made, and renewed at two thirds of its life, by any replica
                                              └─► caBundle of every configuration that points to us, before it is shown

Every replica looks by itself, whether it leads or not; of two that write at once the second finds a conflict, and looks
again. A bundle holds the authority before, too, so replicas may change their certificate in any order.
"""

from __future__ import annotations

import base64
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from actors.retry import doubled
from actors.service import Service
from coordinator.control.certificates import LIFETIME, KeyPair, issue, unexpired, validity
from coordinator.control.tls_contexts import TlsContexts
from coordinator.kube.interface import SECRETS, Conflict, Kube, KubeError, NotFound, Object, ResourceType

SECRET = "localmodel-webhook-server-cert"  # noqa: S105  KServe's name for it
SERVICE = "localmodel-webhook-server-service"
CONFIGURATIONS = (
    "localmodel",
    "localmodelcache.serving.kserve.io",
    "localmodelnamespacecache.serving.kserve.io",
)
"""Ours, and those that KServe or its overlay left."""
WEBHOOKS = ResourceType(
    "admissionregistration.k8s.io", "v1", "validatingwebhookconfigurations", "ValidatingWebhookConfiguration"
)
OURS = "localmodel.kserve.io/self-signed"
"""Label of a Secret that this project made, and may replace."""
_INJECTED = "cert-manager.io/inject-ca-from"
LOOK_EVERY_S, RETRY_S = 60.0, 2.0

_log = logging.getLogger(__name__)


def names_of(namespace: str) -> tuple[str, ...]:
    """What the webhooks are reached as: the Service, and this machine for a cluster on a laptop."""
    name = f"{SERVICE}.{namespace}.svc"
    return name, f"{name}.cluster.local", f"{SERVICE}.{namespace}", SERVICE, "localhost", "127.0.0.1"


class WebhookIdentity:
    """Keeps `contexts` supplied from the Secret, and the API server trusting it. One thread of its own."""

    def __init__(
        self,
        kube: Kube,
        namespace: str,
        contexts: TlsContexts,
        *,
        clock: Callable[[], float] = time.time,
        lifetime: timedelta = LIFETIME,
        every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._kube = kube
        self._namespace = namespace
        self._contexts = contexts
        self._clock = clock
        self._lifetime = lifetime
        self._every_s = every_s
        self._stopping = threading.Event()
        self._service = Service("webhook-identity", self._run, self._stopping)
        self.failure: str | None = "there is no certificate yet"

    def start(self) -> None:
        self._service.start()

    def stop(self) -> None:
        """Waits for no call that hangs: the thread ends with the process."""
        self._stopping.set()
        self._service.join(1.0)

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            before = self.failure
            try:
                self.look()
            except (KubeError, OSError) as error:
                self.failure = str(error)
                if self.failure != before:
                    _log.warning("the webhooks' certificate cannot be kept", extra={"error": self.failure})
            failures = failures + 1 if self.failure else 0
            self._stopping.wait(doubled(RETRY_S, self._every_s, failures) if self.failure else self._every_s)

    def look(self) -> None:
        """The certificate is fresh, the API server trusts it, and it is what is shown. Raises KubeError and OSError."""
        if self._contexts.mounted:
            self.failure = None
            return
        pair = self._pair()
        for name in CONFIGURATIONS:
            self._trust(name, pair.authorities)
        self._contexts.show(pair)
        self.failure = None

    def _pair(self) -> KeyPair:
        """What the Secret holds, made or renewed where that is ours to do."""
        while True:
            found = self._find(SECRETS, SECRET, self._namespace)
            held = _held(found) if found is not None else None
            ours = found is None or OURS in (found["metadata"].get("labels") or {})
            reason = self._why_new(held, ours)
            if held is not None and reason is None:
                return held
            if not ours:
                raise OSError(
                    f"Secret {self._namespace}/{SECRET} is not this project's, and {reason}: have whoever made it "
                    "(cert-manager?) renew it, or delete it, and a new one is made"
                )
            trusted = held.authorities if held is not None else b""
            pair = issue(names_of(self._namespace), self._clock(), trusted=trusted, lifetime=self._lifetime)
            try:
                self._write(found, pair)
            except Conflict:
                continue  # another replica was faster: what it wrote is as good
            _log.info("made a certificate for the webhooks", extra={"secret": SECRET, "because": reason})
            return pair

    def _why_new(self, held: KeyPair | None, ours: bool) -> str | None:
        """None: it can be shown. One that is not ours is renewed in time by whoever made it."""
        if held is None:
            return "there is none"
        known, now = validity(held.certificate), self._clock()
        if known is None:
            return "its certificate cannot be read"
        if names_of(self._namespace)[0] not in known.names:
            return f"its certificate is not for {names_of(self._namespace)[0]}"
        if not unexpired(held.authorities, now):
            return "it has no authority (ca.crt) that is valid"
        if known.ends <= now or (ours and known.is_due(now)):
            return "its certificate expires"
        return None

    def _write(self, found: Object | None, pair: KeyPair) -> None:
        data = {"tls.crt": pair.certificate, "tls.key": pair.key, "ca.crt": pair.authorities}
        body: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls",
            "metadata": {"name": SECRET, "namespace": self._namespace, "labels": {OURS: "true"}},
            "data": {name: base64.b64encode(value).decode() for name, value in data.items()},
        }
        if found is None:
            self._kube.create(SECRETS, body, namespace=self._namespace)
            return
        body["metadata"]["resourceVersion"] = found["metadata"].get("resourceVersion", "")
        body["type"] = found.get("type", body["type"])  # cannot be changed
        self._kube.replace(SECRETS, SECRET, body, namespace=self._namespace)

    def _trust(self, name: str, authorities: bytes) -> None:
        """Every webhook of this configuration that points to us has the bundle. Nothing where there is none."""
        found = self._find(WEBHOOKS, name)
        annotations = ((found or {}).get("metadata") or {}).get("annotations") or {}
        if found is None or _INJECTED in annotations:
            return
        bundle = base64.b64encode(authorities).decode()
        webhooks = list(_trusting(found.get("webhooks") or (), self._namespace, bundle))
        if webhooks == found.get("webhooks"):
            return
        version = found["metadata"].get("resourceVersion")
        self._kube.patch(WEBHOOKS, name, {"metadata": {"resourceVersion": version}, "webhooks": webhooks})
        _log.info("the API server trusts the webhooks' certificate", extra={"configuration": name})

    def _find(self, resource: ResourceType, name: str, namespace: str | None = None) -> Object | None:
        try:
            return self._kube.get(resource, name, namespace=namespace)
        except NotFound:
            return None


def _trusting(webhooks: Any, namespace: str, bundle: str) -> Iterator[Mapping[str, Any]]:
    for webhook in webhooks:
        config = webhook.get("clientConfig") or {}
        service = config.get("service") or {}
        host = urlsplit(str(config.get("url") or "")).hostname
        ours = (service.get("namespace"), service.get("name")) == (namespace, SERVICE) or host in names_of(namespace)
        yield {**webhook, "clientConfig": {**config, "caBundle": bundle}} if ours else webhook


def _held(secret: Object) -> KeyPair | None:
    """None: it lacks a part."""
    data = secret.get("data") or {}
    try:
        certificate, key, authorities = (
            base64.b64decode(data.get(name) or "", validate=True) for name in ("tls.crt", "tls.key", "ca.crt")
        )
    except ValueError:
        return None
    return KeyPair(certificate, key, authorities or certificate) if certificate and key else None
