"""A request line as a value: which resource, which verb's parameters, and how the answer should look."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from coordinator.dev.apiserver import patches, protobuf
from coordinator.dev.apiserver.errors import bad_request, not_acceptable, unsupported_media_type
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
            if not wanted or (named.get("g") == "meta.k8s.io" and named.get("v") == "v1"):
                return Form(wanted, query.get("includeObject", "Metadata"))
    raise not_acceptable("only the following media types are accepted: application/json")


class _Loader(yaml.SafeLoader):
    """YAML as Kubernetes reads it: a timestamp is a string."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def decode(body: bytes, content_type: str) -> Any:
    """The body's value. Raises StatusError 400 or 415."""
    media = content_type.partition(";")[0].strip()
    if media == protobuf.MEDIA_TYPE:
        try:
            return protobuf.decode(body)
        except ValueError as error:
            raise unsupported_media_type(f"{media}: {error}", ("application/json", "application/yaml")) from error
    is_yaml = media in ("application/yaml", patches.APPLY)
    if not is_yaml and media not in (
        "",
        "application/json",
        patches.JSON,
        patches.MERGE,
        patches.STRATEGIC,
        "text/plain",
    ):
        raise unsupported_media_type(media, ("application/json", "application/yaml"))
    try:
        return yaml.load(body, _Loader) if is_yaml else json.loads(body)  # noqa: S506  # _Loader is a SafeLoader
    except (ValueError, yaml.YAMLError) as error:
        raise bad_request(f"couldn't get version/kind; parse error: {error}") from error


def write_options(query: Mapping[str, str], user_agent: str) -> Options:
    validation = query.get("fieldValidation") or "Warn"
    if validation not in ("Strict", "Warn", "Ignore"):
        raise bad_request(f"invalid fieldValidation {validation!r}: must be Strict, Warn or Ignore")
    manager = query.get("fieldManager") or user_agent.partition("/")[0] or "unknown"
    return Options(_dry_run(query.get("dryRun")), manager, validation, query.get("force") == "true")


def delete_options(query: Mapping[str, str], body: Any) -> DeleteOptions:
    """From the query and a DeleteOptions body, the body first."""
    body = body if isinstance(body, dict) else {}
    preconditions = body.get("preconditions") or {}
    propagation = body.get("propagationPolicy") or query.get("propagationPolicy")
    if propagation is None:
        orphan = body.get("orphanDependents", query.get("orphanDependents") == "true")
        propagation = "Orphan" if orphan else "Background"
    if propagation not in ("Background", "Foreground", "Orphan"):
        raise bad_request(f"invalid propagationPolicy {propagation!r}: must be Background, Foreground or Orphan")
    dry_run = ",".join(body.get("dryRun") or ()) or query.get("dryRun")
    return DeleteOptions(propagation, preconditions.get("uid"), preconditions.get("resourceVersion"), _dry_run(dry_run))


def version_number(text: str | None) -> int:
    """A resourceVersion parameter; absent, empty and "0" are 0: any."""
    if not text:
        return 0
    if not text.isdecimal():
        raise bad_request(f"resourceVersion: Invalid value: {json.dumps(text)}: must be a number")
    return int(text)


def _dry_run(text: str | None) -> bool:
    if text not in (None, "", "All"):
        raise bad_request(f"invalid dryRun {text!r}: must be All")
    return bool(text)
