"""Kubernetes RBAC for one subject: what roles and bindings grant it, and whether that covers a request.

Only what minimal roles are made of: wildcards, aggregation and non-resource URLs are refused instead of guessed at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of the API server. `namespace` None: all, or a cluster-scoped kind; `name` "": none."""

    verb: str
    group: str
    resource: str
    namespace: str | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Grant:
    """The smallest part of a rule. `namespace` None: every one, and cluster-scoped kinds; `name` None: every one."""

    verb: str
    group: str
    resource: str
    namespace: str | None = None
    name: str | None = None

    def covers(self, request: Request) -> bool:
        return (
            (self.verb, self.group, self.resource) == (request.verb, request.group, request.resource)
            and self.namespace in (None, request.namespace)
            and self.name in (None, request.name)
        )


def grants(manifests: Iterable[Mapping[str, Any]], account: str, namespace: str) -> set[Grant]:
    """Everything the bindings among `manifests` grant to the ServiceAccount. KeyError for a role that is not there."""
    manifests = list(manifests)
    roles = {
        (m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"]): m["rules"]
        for m in manifests
        if m["kind"] in ("Role", "ClusterRole")
    }
    subject = {"kind": "ServiceAccount", "name": account, "namespace": namespace}
    found: set[Grant] = set()
    for binding in manifests:
        if binding["kind"] in ("RoleBinding", "ClusterRoleBinding") and subject in binding["subjects"]:
            scope = binding["metadata"].get("namespace")
            role = binding["roleRef"]
            rules = roles[role["kind"], scope if role["kind"] == "Role" else None, role["name"]]
            found |= {grant for rule in rules for grant in _expand(rule, scope)}
    return found


def denied(requests: Iterable[Request], granted: Iterable[Grant]) -> set[Request]:
    """The requests that no grant covers."""
    granted = list(granted)
    return {request for request in requests if not any(grant.covers(request) for grant in granted)}


def unused(requests: Iterable[Request], granted: Iterable[Grant]) -> set[Grant]:
    """The grants that no request needs."""
    requests = list(requests)
    return {grant for grant in granted if not any(grant.covers(request) for request in requests)}


def _expand(rule: Mapping[str, Any], scope: str | None) -> Iterable[Grant]:
    assert set(rule) <= {"apiGroups", "resources", "verbs", "resourceNames"}, rule
    names: list[str | None] = list(rule.get("resourceNames") or [None])
    for group, resource, verb, name in product(rule["apiGroups"], rule["resources"], rule["verbs"], names):
        assert "*" not in (group, resource, verb), rule
        yield Grant(verb, group, resource, scope, name)
