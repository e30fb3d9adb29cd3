"""Webhook configurations as objects: the defaults that a server writes into them, and what is wrong with one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from coordinator.dev.apiserver import errors, rules
from coordinator.dev.apiserver.errors import Cause, Object

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?){2,}")
_DEFAULTS: Mapping[str, Any] = {
    "failurePolicy": "Fail",
    "matchPolicy": "Equivalent",
    "timeoutSeconds": 10,
    "namespaceSelector": {},
    "objectSelector": {},
}
_OPERATIONS = ("*", "CONNECT", "CREATE", "DELETE", "UPDATE")


def defaulted(value: Object, *, mutating: bool) -> Object:
    """The form in which it is stored."""
    webhooks = value.get("webhooks")
    if not isinstance(webhooks, list) or not all(isinstance(each, dict) for each in webhooks):
        return value
    return {**value, "webhooks": [_webhook(each, mutating) for each in webhooks]}


def _webhook(webhook: Object, mutating: bool) -> Object:
    found = {**_DEFAULTS, **({"reinvocationPolicy": "Never"} if mutating else {}), **webhook}
    if isinstance(found.get("rules"), list):
        found["rules"] = [{"scope": "*", **rule} if isinstance(rule, dict) else rule for rule in found["rules"]]
    config = found.get("clientConfig")
    if isinstance(config, dict) and isinstance(config.get("service"), dict):
        found["clientConfig"] = {**config, "service": {"port": 443, **config["service"]}}
    return found


def causes(value: Object) -> Iterator[Cause]:
    """What a server refuses it for."""
    names = set()
    for index, webhook in enumerate(value.get("webhooks") or ()):
        path = f"webhooks[{index}]"
        name = webhook.get("name", "")
        if not _NAME.fullmatch(name):
            why = "should be a domain with at least three segments separated by dots"
            yield errors.invalid_value(f"{path}.name", name, why)
        if name in names:
            yield Cause("FieldValueDuplicate", f"Duplicate value: {errors.show(name)}", f"{path}.name")
        names.add(name)
        yield from _client_causes(webhook.get("clientConfig"), f"{path}.clientConfig")
        yield from _rule_causes(webhook.get("rules") or (), f"{path}.rules")
        yield from _choice(webhook.get("failurePolicy"), f"{path}.failurePolicy", ("Fail", "Ignore"))
        yield from _choice(webhook.get("matchPolicy"), f"{path}.matchPolicy", ("Equivalent", "Exact"))
        effects = webhook.get("sideEffects")
        if effects is None:
            yield errors.required(f"{path}.sideEffects", "must specify one of None, NoneOnDryRun")
        else:
            yield from _choice(effects, f"{path}.sideEffects", ("None", "NoneOnDryRun"))
        timeout = webhook.get("timeoutSeconds")
        if not isinstance(timeout, int) or not 1 <= timeout <= 30:
            yield errors.invalid_value(
                f"{path}.timeoutSeconds", timeout, "the timeout value must be between 1 and 30 seconds"
            )
        versions = webhook.get("admissionReviewVersions")
        if not versions:
            yield errors.required(f"{path}.admissionReviewVersions", "must specify one of v1, v1beta1")
        elif not {"v1", "v1beta1"} & set(versions):
            why = "must include at least one of v1, v1beta1"
            yield errors.invalid_value(f"{path}.admissionReviewVersions", versions, why)
        yield from _condition_causes(webhook.get("matchConditions") or (), f"{path}.matchConditions")


def _client_causes(config: Any, path: str) -> Iterator[Cause]:
    config = config if isinstance(config, Mapping) else {}
    url, service = config.get("url"), config.get("service")
    if (url is None) == (service is None):
        yield errors.required(path, "exactly one of url or service is required")
    elif url is not None and urlsplit(str(url)).scheme != "https":
        why = "'https' is the only allowed URL scheme; desired format: https://host[/path]"
        yield errors.invalid_value(f"{path}.url", urlsplit(str(url)).scheme, why)
    elif service is not None:
        for name in ("namespace", "name"):
            if not service.get(name):
                yield errors.required(f"{path}.service.{name}", f"service {name} is required")


def _rule_causes(found: Any, path: str) -> Iterator[Cause]:
    for index, rule in enumerate(found):
        for name in ("apiGroups", "apiVersions", "resources", "operations"):
            if not rule.get(name):
                yield errors.required(f"{path}[{index}].{name}")
        for number, operation in enumerate(rule.get("operations") or ()):
            yield from _choice(operation, f"{path}[{index}].operations[{number}]", _OPERATIONS)
        yield from _choice(rule.get("scope"), f"{path}[{index}].scope", ("*", "Cluster", "Namespaced"))


def _condition_causes(found: Any, path: str) -> Iterator[Cause]:
    for index, condition in enumerate(found):
        for name in ("name", "expression"):
            if not condition.get(name):
                yield errors.required(f"{path}[{index}].{name}")
        expression = condition.get("expression") or "true"
        if (why := rules.compiles(expression)) is not None:
            yield errors.invalid_value(f"{path}[{index}].expression", expression, f"compilation failed: {why}")


def _choice(value: Any, path: str, known: tuple[str, ...]) -> Iterator[Cause]:
    if value not in known:
        yield errors.unsupported_value(path, value, sorted(known))
