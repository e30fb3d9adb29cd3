"""A request line as a value: which resource, which verb's parameters, and how the answer should look."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from coordinator.dev.apiserver import patches, protobuf
from coordinator.dev.apiserver.errors import (
    Cause,
    bad_request,
    forbidden_value,
    invalid,
    invalid_value,
    not_acceptable,
    unsupported_media_type,
    unsupported_value,
)
from coordinator.dev.apiserver.registry import DeleteOptions, Options

MAX_BODY_BYTES = 3 * 1024 * 1024
_PATH = re.compile(r"^/(?:api|apis/(?P<group>[^/]+))/(?P<version>[^/]+)/(?P<rest>.+?)/?$")


@dataclass(frozen=True, slots=True)
class Target:
    """What a path names. `name` "": the collection; `namespace` "": all of them, or a cluster-scoped resource."""

    group: str
    version: str
    plural: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""


def target(path: str) -> Target | None:
    """None for a path that is not a resource's."""
    found = _PATH.match(path)
    if found is None:
        return None
    group, version, parts = found["group"] or "", found["version"], found["rest"].split("/")
    namespace = ""
    if parts[0] == "namespaces" and len(parts) > 2 and not (len(parts) == 3 and parts[2] in ("status", "finalize")):
        namespace, parts = parts[1], parts[2:]
    if len(parts) > 3:
        return None
    return Target(group, version, parts[0], namespace, *parts[1:])


@dataclass(frozen=True, slots=True)
class Form:
    """How the answer should look. `kind` is Table, PartialObjectMetadata(List) or "" for the objects themselves."""

    kind: str = ""
    include: str = "Metadata"


def form(accept: str, query: Mapping[str, str]) -> Form:
    """The first form in `accept` that this server has. Raises StatusError 406 if there is none."""
    for each in accept.split(",") if accept else ["*/*"]:
        media, *parameters = (part.strip() for part in each.split(";"))
        named = dict(part.partition("=")[::2] for part in parameters)
        if media in ("application/json", "application/*", "*/*"):
            wanted = named.get("as", "")
            if not wanted or (wanted in _FORMS and named.get("g") == "meta.k8s.io" and named.get("v") == "v1"):
                return Form(wanted, query.get("includeObject", "Metadata"))
    raise not_acceptable()


_FORMS = ("Table", "PartialObjectMetadata", "PartialObjectMetadataList")


class _Loader(yaml.SafeLoader):
    """YAML as Kubernetes reads it: a timestamp is a string."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class Unreadable(Exception):
    """The fault of a body that is neither JSON nor YAML."""


def decode(body: bytes, content_type: str) -> Any:
    """The body's value. Raises Unreadable, and StatusError 400 or 415."""
    media = content_type.partition(";")[0].strip()
    if media == protobuf.MEDIA_TYPE:
        try:
            return protobuf.decode(body)
        except ValueError as error:
            raise unsupported_media_type() from error
    is_yaml = media in ("application/yaml", patches.APPLY)
    if not is_yaml and media not in (
        "",
        "application/json",
        patches.JSON,
        patches.MERGE,
        patches.STRATEGIC,
        "text/plain",
    ):
        raise unsupported_media_type()
    try:
        return yaml.load(body, _Loader) if is_yaml else json.loads(body)  # noqa: S506  # _Loader is a SafeLoader
    except (ValueError, yaml.YAMLError) as error:
        if media == patches.APPLY:
            raise bad_request(f"error decoding YAML: {error}") from error
        raise Unreadable(str(error)) from error


def write_options(verb: str, query: Mapping[str, str], user_agent: str) -> Options:
    """`verb` as in CreateOptions. Raises StatusError 422."""
    validation, manager = query.get("fieldValidation") or "Warn", query.get("fieldManager", "")
    causes = [] if query.get("dryRun") in (None, "", "All") else [_wrong_dry_run(query["dryRun"])]
    if validation not in ("Strict", "Warn", "Ignore"):
        causes.append(unsupported_value("fieldValidation", validation, ("", "Ignore", "Strict", "Warn")))
    if len(manager) > MAX_MANAGER:
        why = f"Too long: may not be more than {MAX_MANAGER} bytes"
        causes.append(Cause("FieldValueTooLong", why, "fieldManager"))
    if causes:
        raise invalid("meta.k8s.io", f"{verb}Options", "", causes)
    manager = manager or user_agent.partition("/")[0][:MAX_MANAGER] or "unknown"
    return Options(bool(query.get("dryRun")), manager, validation, flag(query, "force"))


MAX_MANAGER = 128


def flag(query: Mapping[str, str], name: str) -> bool:
    """As Go reads one from a query: present, and not `0` or `false`."""
    return name in query and query[name].lower() not in ("0", "false")


def number(query: Mapping[str, str], name: str) -> int | None:
    """None where it is not given. Raises StatusError 400."""
    text = query.get(name, "")
    if text and not re.fullmatch(r"-?\d{1,18}", text):
        raise bad_request(f'{name}: parsing "{text}": invalid syntax')
    return int(text) if text else None


def delete_options(query: Mapping[str, str], body: Any) -> DeleteOptions:
    """From the query and a DeleteOptions body, the body first. Raises StatusError 400 or 422."""
    body = body if isinstance(body, dict) else {}
    if body.get("kind", "DeleteOptions") != "DeleteOptions":
        raise bad_request(f'no kind "{body["kind"]}" is registered for version "{body.get("apiVersion", "")}"')
    preconditions = body.get("preconditions") or {}
    propagation = body.get("propagationPolicy") or query.get("propagationPolicy")
    orphan = body.get("orphanDependents", flag(query, "orphanDependents") if "orphanDependents" in query else None)
    dry_run = ",".join(body.get("dryRun") or ()) or query.get("dryRun")
    causes = [] if dry_run in (None, "", "All") else [_wrong_dry_run(dry_run)]
    if propagation is not None and orphan is not None:
        why = "orphanDependents and deletionPropagation cannot be both set"
        causes.append(invalid_value("propagationPolicy", propagation, why))
    elif propagation not in (None, "Background", "Foreground", "Orphan"):
        known = ("Foreground", "Background", "Orphan", "nil")
        causes.append(unsupported_value("propagationPolicy", propagation, known))
    if causes:
        raise invalid("meta.k8s.io", "DeleteOptions", "", causes)
    grace = body.get("gracePeriodSeconds", number(query, "gracePeriodSeconds"))
    return DeleteOptions(
        propagation or ("Orphan" if orphan else "Background"),
        preconditions.get("uid"),
        preconditions.get("resourceVersion"),
        bool(dry_run),
        max(1, grace) if isinstance(grace, int) and grace < 0 else grace if isinstance(grace, int) else None,
    )


def check_list_options(query: Mapping[str, str]) -> None:
    """Raises StatusError 422 for parameters of a list or a watch that do not go together."""
    match, version, watches = query.get("resourceVersionMatch", ""), query.get("resourceVersion", ""), is_watch(query)
    why = None
    if flag(query, "sendInitialEvents") and match != "NotOlderThan":
        why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
    elif match and watches and "sendInitialEvents" not in query:
        why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
    elif match and not watches and not version:
        why = "resourceVersionMatch is forbidden unless resourceVersion is provided"
    elif match == "Exact" and version == "0":
        why = 'resourceVersionMatch "exact" is forbidden for resourceVersion "0"'
    if why:
        raise invalid("meta.k8s.io", "ListOptions", "", [forbidden_value("resourceVersionMatch", why)])
    if match not in ("", "Exact", "NotOlderThan"):
        cause = unsupported_value("resourceVersionMatch", match, ("Exact", "NotOlderThan", ""))
        raise invalid("meta.k8s.io", "ListOptions", "", [cause])


def is_watch(query: Mapping[str, str]) -> bool:
    """Whether events are asked for rather than a list."""
    return flag(query, "watch")


def version_number(text: str | None) -> int:
    """A resourceVersion parameter; absent, empty and "0" are 0: any."""
    if not text:
        return 0
    if not text.isdecimal():
        raise bad_request(f"resourceVersion: Invalid value: {json.dumps(text)}: must be a number")
    return int(text)


def _wrong_dry_run(text: str | None) -> Cause:
    return unsupported_value("dryRun", [text], ("All",))
