"""Which webhooks are asked of a write, and the request that they are sent.

By its rules, its selectors and its conditions, in this order; configurations by name, their webhooks as they stand.
https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/#matching-requests-rules
"""

from __future__ import annotations

import uuid
from dataclasses import replace

import celpy

from coordinator.dev.apiserver import rules
from coordinator.dev.apiserver.admission import Attempt
from coordinator.dev.apiserver.builtins import MUTATING, NAMESPACES, VALIDATING
from coordinator.dev.apiserver.errors import Object
from coordinator.dev.apiserver.kinds import Catalogue, Kind
from coordinator.dev.apiserver.selectors import selects
from coordinator.dev.apiserver.storage import Storage


class Undecided(Exception):
    """A condition could not be evaluated."""


def matching(storage: Storage, catalogue: Catalogue, attempt: Attempt) -> list[tuple[Object, Kind]]:
    """The webhooks, each with the kind in the version that it is to be sent."""
    if attempt.kind in (MUTATING, VALIDATING):
        return []  # or nobody could repair a webhook that refuses everything
    found = []
    for configuration in storage.all((MUTATING if attempt.mutating else VALIDATING).resource):
        for webhook in configuration.get("webhooks") or ():
            sent_as = _version_for(webhook, catalogue, attempt)
            if sent_as is not None and _is_selected(webhook, storage, attempt):
                found.append((webhook, sent_as))
    return found


def _version_for(webhook: Object, catalogue: Catalogue, attempt: Attempt) -> Kind | None:
    """Exactly the version that is written, or with matchPolicy Equivalent any other of the kind."""
    versions = [each for each in catalogue.all() if each.resource == attempt.kind.resource]
    exact = webhook.get("matchPolicy") == "Exact"
    for kind in [attempt.kind] if exact else sorted(versions, key=lambda each: each is not attempt.kind):
        if any(_rule_matches(rule, kind, attempt) for rule in webhook.get("rules") or ()):
            return kind
    return None


def _is_selected(webhook: Object, storage: Storage, attempt: Attempt) -> bool:
    meta = attempt.object["metadata"]
    space: Object | None = None
    if attempt.kind is NAMESPACES:
        space = attempt.object
    elif attempt.kind.namespaced:
        space = storage.get(NAMESPACES.resource, ("", meta.get("namespace", "")))
    if space is not None and not selects(webhook.get("namespaceSelector"), space["metadata"].get("labels") or {}):
        return False
    both = [each["metadata"].get("labels") or {} for each in (attempt.new, attempt.old) if each is not None]
    return any(selects(webhook.get("objectSelector"), labels) for labels in both)


def _rule_matches(rule: Object, kind: Kind, attempt: Attempt) -> bool:
    wanted = f"{kind.plural}/{attempt.subresource}" if attempt.subresource else kind.plural
    resources = {wanted, "*/*", f"{kind.plural}/*", f"*/{attempt.subresource}" if attempt.subresource else "*"}
    scope = {"*", "Namespaced" if kind.namespaced else "Cluster"}
    return (
        bool({"*", attempt.operation} & set(rule.get("operations") or ()))
        and bool({"*", kind.group} & set(rule.get("apiGroups") or ()))
        and bool({"*", kind.version} & set(rule.get("apiVersions") or ()))
        and bool(resources & set(rule.get("resources") or ()))
        and (rule.get("scope") or "*") in scope
    )


def request_of(kind: Kind, attempt: Attempt) -> Object:
    meta = attempt.object["metadata"]
    group_kind = {"group": kind.group, "version": kind.version, "kind": kind.kind}
    resource = {"group": kind.group, "version": kind.version, "resource": kind.plural}
    own = {**group_kind, "version": attempt.kind.version}, {**resource, "version": attempt.kind.version}
    options = {"CREATE": "CreateOptions", "UPDATE": "UpdateOptions", "DELETE": "DeleteOptions"}[attempt.operation]
    request: Object = {
        "uid": str(uuid.uuid4()),
        "kind": group_kind,
        "resource": resource,
        "requestKind": own[0],
        "requestResource": own[1],
        "operation": attempt.operation,
        "userInfo": {"username": "dev", "groups": ["system:masters", "system:authenticated"]},
        "object": _as(kind, attempt.new),
        "oldObject": _as(kind, attempt.old),
        "dryRun": attempt.dry_run,
        "options": {"kind": options, "apiVersion": "meta.k8s.io/v1"},
    }
    if attempt.subresource:
        request |= {"subResource": attempt.subresource, "requestSubResource": attempt.subresource}
    request |= {key: meta[key] for key in ("name", "namespace") if meta.get(key)}
    return request


def _as(kind: Kind, value: Object | None) -> Object | None:
    return None if value is None else {**value, "apiVersion": kind.api_version}


def conditions_hold(webhook: Object, request: Object) -> bool:
    """Raises Undecided where one cannot be evaluated and no other is false."""
    failed = None
    for condition in webhook.get("matchConditions") or ():
        names = {"object": request["object"], "oldObject": request["oldObject"], "request": request}
        try:
            holds = rules.program(condition["expression"]).evaluate(
                {name: celpy.json_to_cel(value) for name, value in names.items()}
            )
        except rules.ERRORS as error:
            failed = (
                f"expression '{condition['expression']}' resulted in error: {error.args[0] if error.args else error}"
            )
            continue
        if not bool(holds):
            return False
    if failed is not None:
        raise Undecided(failed)
    return True


def with_object(attempt: Attempt, value: Object | None) -> Attempt:
    """The same write of what a webhook has made of it."""
    return replace(attempt, new=value)
