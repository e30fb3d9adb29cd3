"""Where to ask and with what come from one source: a credential goes only where whoever holds it says. Pure.

    kind     who we are                                    where to ask, and whom to believe there
    hub      HF_TOKEN                                      HF_ENDPOINT
    s3       AWS keys, role, anonymous                     AWS_ENDPOINT_URL, AWS_CA_BUNDLE, S3_VERIFY_SSL
    other    AZURE_*, STORAGE_OPTIONS (both in one)        AZURE_STORAGE_ACCOUNT_NAME
    oci      DOCKER_CONFIG_JSON, which names its hosts
    HOST-headers, each for the host in its name

The variables of one kind are a bundle. A bundle that names an identity keeps the place it came with; where somebody
else names the place, the identity stays behind, or the whole is refused. Other values, such as a region, tell nobody
anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from actors.errors import SourceDenied
from actors.sources.options import OTHER_STORES, S3

Env = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Kind:
    """`store`: its library knows of identities that no variable names (`SourceOptions.ambient`)."""

    identity: frozenset[str]
    place: frozenset[str] = frozenset()
    store: str | None = None


_AZURE = "AZURE_STORAGE_ACCESS_KEY AZURE_CLIENT_ID AZ_CLIENT_ID AZURE_CLIENT_SECRET AZ_CLIENT_SECRET"
KINDS = (
    Kind(frozenset({"HF_TOKEN"}), frozenset({"HF_ENDPOINT"})),
    Kind(
        frozenset(["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ROLE_ARN"])
        | {"awsAnonymousCredential"},
        frozenset({"AWS_ENDPOINT_URL", "AWS_CA_BUNDLE", "S3_VERIFY_SSL"}),
        S3,
    ),
    Kind(
        frozenset([*_AZURE.split(), "AZURE_TENANT_ID", "AZ_TENANT_ID", "STORAGE_OPTIONS"]),
        frozenset({"AZURE_STORAGE_ACCOUNT_NAME"}),
        OTHER_STORES,
    ),
    Kind(frozenset({"DOCKER_CONFIG_JSON"})),
)

MAX_ENDPOINT = 1024
"""It stands in the URL of every file."""

_BUNDLED = frozenset().union(*(kind.identity | kind.place for kind in KINDS))
_ENDPOINTS = frozenset({"HF_ENDPOINT", "AWS_ENDPOINT_URL", "AZURE_STORAGE_ACCOUNT_NAME", "STORAGE_OPTIONS"})
_PUBLIC = {
    "HF_ENDPOINT": re.compile(r"https://huggingface\.co"),
    "AWS_ENDPOINT_URL": re.compile(r"https://s3([.-][a-z0-9-]{1,63})?\.amazonaws\.com"),
    "S3_VERIFY_SSL": re.compile(r"(?!(?:0|false|no)$).*", re.IGNORECASE),
}
"""What anybody may name: where a protocol is at home, and that certificates are checked."""


def is_identity(name: str) -> bool:
    """Whether a variable is of somebody, and nobody else may use it."""
    return name.endswith("-headers") or any(name in kind.identity for kind in KINDS)


def joined(secrets: Mapping[str, Env]) -> dict[str, str]:
    """What several Secrets hold together, by their names; of one kind what the last that has an identity of it holds.

    Raises SourceDenied if one names the place of an identity that another holds.
    """
    found: dict[str, str] = {}
    holders: dict[Kind, str] = {}
    for where, env in secrets.items():
        for kind in KINDS:
            parts = {name: value for name, value in env.items() if name in kind.identity | kind.place}
            before = {name: value for name, value in found.items() if name in kind.identity | kind.place}
            if not parts:
                continue
            if parts.keys() & kind.identity:
                split = not before.keys() & kind.identity and not before.keys() <= parts.keys()
            else:
                split = bool(before.keys() & kind.identity) and not parts.items() <= before.items()
            if split:
                raise SourceDenied(
                    f"{holders[kind]} and {where} each hold a part of what belongs together "
                    f"({', '.join(sorted(before.keys() | parts.keys()))}): credentials are sent only where the same "
                    "Secret says, so put all of it into one",
                    reason="CredentialsInvalid",
                )
            if parts.keys() & kind.identity:
                found = {name: value for name, value in found.items() if name not in before}
            found |= parts
            holders[kind] = where
        found |= {name: value for name, value in env.items() if name not in _BUNDLED}
    return found


def placed(fields: Env, parameters: Env, own: Env, where: str) -> dict[str, str]:
    """What a Secret holds, with what the author of the cache says beside it.

    Raises SourceDenied if that sends the Secret's credentials elsewhere, or has others believed there, than the Secret
    or the operator says.
    """
    result = {**fields, **parameters}
    if "AWS_ACCESS_KEY_ID" in parameters:
        for name in {"AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ROLE_ARN"} - parameters.keys():
            result.pop(name, None)  # of another key
    for kind in KINDS:
        if not kind.identity & result.keys() - parameters.keys():
            continue
        for name in sorted(kind.place & parameters.keys()):
            if not _same(name, parameters[name], fields.get(name, own.get(name, ""))):
                field = FIELDS.get(name, name)
                raise SourceDenied(
                    f"spec.storage.parameters names another {field} than {where}, whose credentials are for nobody "
                    f"else: put {field} into {where}, or leave it out of the parameters",
                    reason="CredentialsInvalid",
                )
    return result


def completed(found: Env, own: Env, *, own_identity: bool) -> tuple[dict[str, str], frozenset[str]]:
    """What to ask with: `found`, and what of the operator's `own` goes with it; and which stores may use an identity of
    this process.

    An identity of its own only where the cache names neither an identity nor a place of that kind, and `own_identity`.
    """
    result = {name: value for name, value in own.items() if own_identity or not is_identity(name)}
    ambient = set()
    for kind in KINDS:
        named = found.keys() & (kind.identity | kind.place)
        if named:
            for name in kind.identity:
                result.pop(name, None)
            if named & _ENDPOINTS:
                for name in kind.place - {"AWS_CA_BUNDLE"}:  # whom the operator trusts may be known to all
                    result.pop(name, None)
        elif kind.store is not None and own_identity:
            ambient.add(kind.store)
    return {**result, **found}, frozenset(ambient)


FIELDS = {
    "HF_ENDPOINT": "endpoint_url",
    "AWS_ENDPOINT_URL": "endpoint_url",
    "AWS_CA_BUNDLE": "ca_bundle",
    "S3_VERIFY_SSL": "verify_ssl",
}
"""As `spec.storage.parameters` calls them."""


def _same(name: str, asked: str, known: str) -> bool:
    asked, known = asked.strip().rstrip("/"), known.strip().rstrip("/")
    return asked == known or (not known and name in _PUBLIC and _PUBLIC[name].fullmatch(asked) is not None)


def check_endpoint(value: str, field: str) -> str:
    """An http(s) URL of a host, and no more. Raises SourceDenied, without quoting it."""
    try:
        parts = urlsplit(value.strip())
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        plain = parts.username is None and not parts.query and not parts.fragment and value.strip().isprintable()
    except ValueError:
        good = plain = False
    if not good or not plain or len(value) > MAX_ENDPOINT or " " in value.strip():
        raise SourceDenied(
            f"{field} is not an address such as https://minio.example:9000, without user, query or fragment",
            reason="CredentialsInvalid",
        )
    return value.strip()
