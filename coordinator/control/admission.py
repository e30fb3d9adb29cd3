"""The webhooks that the API server asks before it writes a cache: an AdmissionReview in, its answer out.

    POST /validate-serving-kserve-io-v1alpha1-localmodelcache            ─┐   informers ──► Known ─┐
    POST /validate-serving-kserve-io-v1alpha1-localmodelnamespacecache   ─┴─► review ──────────────┴─► plan.admission

Paths, codes and the form of answers are KServe's. A refusal is an answer like any other (HTTP 200): what cannot be read
is refused with 400, and a look-up that fails with its own status. What the informers do not know yet is asked for, so
that a node group and a cache that are applied together do not meet a refusal.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from actors.schemes import Schemes
from coordinator.control.informers import Informers
from coordinator.kube.interface import NAMESPACES, Kube, KubeError, NotFound, Object, ResourceType
from coordinator.plan.admission import (
    Consumer,
    Known,
    Operation,
    Refusal,
    Write,
    deletion_refusal,
    refusal,
    undecodable,
)
from coordinator.plan.admission_warnings import warnings
from coordinator.plan.reading import read_node_group
from coordinator.plan.snapshot import CACHES, NAMESPACE_CACHES, NODE_GROUPS, Cache, NodeGroup

VERSIONS = ("admission.k8s.io/v1", "admission.k8s.io/v1beta1")
MAX_BYTES = 7 << 20
LOOK_UPS_S = 8.0
"""How long the services of one cache are looked for: under the 10 s that an API server waits."""

Review = Callable[[bytes], Object]


class Admission:
    """Answers from any thread, whether this coordinator leads or not."""

    def __init__(self, informers: Informers, kube: Kube, schemes: Schemes | None = None) -> None:
        self._informers = informers
        self._kube = kube
        self._schemes = schemes

    @property
    def ready(self) -> bool:
        """Whether what it knows can be answered from. Until then an API server is to go by its failurePolicy."""
        return self._informers.synced

    def routes(self) -> Mapping[str, Review]:
        """By path."""
        return {
            path_of(resource): lambda body, resource=resource: self.review(resource, body)  # type: ignore[misc]  # bound
            for resource in (CACHES, NAMESPACE_CACHES)
        }

    def review(self, resource: ResourceType, body: bytes) -> Object:
        """The answer, an AdmissionReview of the version that asks."""
        if len(body) > MAX_BYTES:
            return refused(Refusal(413, "RequestEntityTooLarge", f"a review may have {MAX_BYTES} bytes"))
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            return refused(Refusal(400, "BadRequest", "the body is not JSON" if body else "request body is empty"))
        version = str(asked.get("apiVersion")) if isinstance(asked, dict) else ""
        request = asked.get("request") if isinstance(asked, dict) else None
        if version not in VERSIONS or asked.get("kind") != "AdmissionReview" or not isinstance(request, dict):
            expected = " or ".join(VERSIONS)
            return refused(Refusal(400, "BadRequest", f"the body is not an AdmissionReview of {expected}"))
        uid = str(request.get("uid") or "")
        try:
            said, refusing = self._judge(_write(resource, request))
        except _Unreadable as error:
            said, refusing = (), error.refusal
        except KubeError as error:
            said, refusing = (), _of_error(error)
        return _answer(version, uid, refusing, said)

    def _judge(self, write: Write) -> tuple[tuple[str, ...], Refusal | None]:
        if write.operation is Operation.DELETE:
            return (), self._judge_deletion(write)
        known = self._known()
        cache = write.parsed(self._schemes)
        known = self._with_groups(known, cache)
        refusing = refusal(write, cache, known)
        return () if refusing else warnings(write, cache, known), refusing

    def _judge_deletion(self, write: Write) -> Refusal | None:
        deadline = time.monotonic() + LOOK_UPS_S

        def find(consumer: Consumer) -> Object | None:
            if time.monotonic() > deadline:
                raise KubeError("the services that use the cache could not be looked up in time", status=504)
            return self._get(consumer.resource, consumer.name, consumer.namespace)

        def is_terminating(namespace: str) -> bool:
            found = self._get(NAMESPACES, namespace)
            return found is None or bool(found["metadata"].get("deletionTimestamp"))

        return deletion_refusal(write, find, is_terminating)

    def _known(self) -> Known:
        informers = self._informers
        both = (*informers.caches.items().values(), *informers.namespace_caches.items().values())
        return Known(
            caches={cache.key: cache for cache in both},
            groups={name: group for (_, name), group in informers.groups.items().items()},
            nodes={node.name: node for node in informers.nodes.items().values()},
            local_nodes={node.ref.name: node for node in informers.local_nodes.items().values()},  # type: ignore[misc]  # named like their nodes
            schemes=self._schemes,
        )

    def _with_groups(self, known: Known, cache: Cache) -> Known:
        """With the groups that the cache names and the informer has not seen."""
        found: dict[str, NodeGroup] = {}
        for name in cache.node_groups:
            if name not in known.groups and (group := self._get(NODE_GROUPS, name)) is not None:
                found[name] = read_node_group(group)
        return replace(known, groups={**known.groups, **found}) if found else known

    def _get(self, resource: ResourceType, name: str, namespace: str | None = None) -> Object | None:
        """None: it is not there, or there is no such kind."""
        try:
            return self._kube.get(resource, name, namespace=namespace)
        except NotFound:
            return None


def path_of(resource: ResourceType) -> str:
    """As controller-runtime names it."""
    group = resource.group.replace(".", "-")
    return f"/validate-{group}-{resource.version}-{resource.kind.lower()}"


class _Unreadable(Exception):
    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def _write(resource: ResourceType, request: Mapping[str, Any]) -> Write:
    """Raises _Unreadable for what is no write of such a cache."""
    try:
        operation = Operation(str(request.get("operation")))
    except ValueError:
        message = f"operation {str(request.get('operation'))[:40]!r} is none of {', '.join(Operation)}"
        raise _Unreadable(Refusal(400, "BadRequest", message)) from None
    new, old = (
        value if isinstance(value, dict) else None for value in (request.get("object"), request.get("oldObject"))
    )
    write = Write(operation, resource, new, old)
    problem = undecodable(write)
    if problem is not None:
        raise _Unreadable(problem)
    return write


def _of_error(error: KubeError) -> Refusal:
    """A look-up that failed, with its own status, as KServe answers it."""
    code = error.status if error.status >= 400 else 500
    for known, reason in ((403, "Forbidden"), (404, "NotFound"), (504, "Timeout")):
        if code == known:
            return Refusal(code, reason, str(error))
    return Refusal(code, "InternalError", str(error))


def refused(refusal: Refusal) -> Object:
    """The answer to what is not even a review."""
    return _answer(VERSIONS[0], "", refusal, ())


def _answer(version: str, uid: str, refusing: Refusal | None, said: tuple[str, ...]) -> Object:
    status: dict[str, Any] = {"metadata": {}, "code": 200}
    if refusing is not None:
        status = {"metadata": {}, "status": "Failure", "code": refusing.code}
        status |= {"reason": refusing.reason, "message": refusing.message}
    response = {"uid": uid, "allowed": refusing is None, "status": status}
    return {
        "apiVersion": version,
        "kind": "AdmissionReview",
        "response": response | ({"warnings": list(said)} if said else {}),
    }
