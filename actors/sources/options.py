"""What a source is asked with: credentials and endpoints, by the names of environment variables that KServe uses.

A value is checked when it is read, by its name: a key that was copied with its quotes, an endpoint that is no URL, a
header with a line break. No message shows a value. Names that may be public are listed here; all others count as
secret.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from actors.errors import SourceDenied
from actors.manifest import Resolved
from actors.redaction import remember
from actors.transport.answers import PRIVATE_REDIRECTS, redact
from actors.trust import UNRESTRICTED, Trust

_NAMES = re.compile(
    r"HF_TOKEN|HF_ENDPOINT|AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY|SESSION_TOKEN|ENDPOINT_URL|DEFAULT_REGION|CA_BUNDLE)"
    r"|AWS_ROLE_ARN|S3_(VERIFY_SSL|USER_VIRTUAL_BUCKET|USE_ACCELERATE)|awsAnonymousCredential|STORAGE_OPTIONS"
    r"|AZURE_STORAGE_(ACCOUNT_NAME|ACCESS_KEY)|AZ(URE)?_(CLIENT_ID|CLIENT_SECRET|TENANT_ID)"
    r"|DOCKER_CONFIG_JSON|LOCALMODEL_PRIVATE_REDIRECTS|[A-Za-z0-9.-]+-headers"
)

S3, OTHER_STORES = "s3", "other stores"
STORES = frozenset({S3, OTHER_STORES})
"""The stores whose libraries know of identities outside of `env`: home folder, metadata service of the cloud."""


_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_AROUND = "\ufeff\u200b" + string.whitespace + "\x85\xa0\u2028\u2029"
_KEYS = re.compile(r"HF_TOKEN|AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY|SESSION_TOKEN)")
_NO_KEY = re.compile(r"[^\x21-\x7e]|[\"'`]")
_DOCUMENTS = re.compile(r"STORAGE_OPTIONS|DOCKER_CONFIG_JSON|.*-headers")
_PUBLIC = re.compile(
    r".*_ENDPOINT(_URL)?|AWS_(DEFAULT_REGION|CA_BUNDLE|ROLE_ARN)|S3_.*|awsAnonymousCredential|LOCALMODEL_.*"
    r"|.*_(ACCOUNT_NAME|CLIENT_ID|TENANT_ID)"
)
"""What may be read in a message, as far as it is no URL with a password."""
_PUBLIC_FIELDS = re.compile(
    r"(?i)account_name|account_host|anon|client_email|client_id|endpoint_url|host|location_mode|port|project(_id)?"
    r"|proxy_to|requester_pays|tenant_id|type|use_https|user(name)?|[a-z_]*uri|[a-z_]*url|universe_domain|accept|user-agent"
)


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What a source is asked with. `env` uses the names of environment variables, and is never printed.

    White space around a value is dropped, and a byte order mark: `echo TOKEN | base64` adds a line break. Its secrets
    are remembered, so that no message of this process shows them.

    Two that are not self-explanatory: `{host}-headers` is a JSON object of headers for http(s) on that host (KServe's),
    `STORAGE_OPTIONS` a JSON object of fsspec options for any other scheme (ours).
    """

    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout_s: float = 30.0
    trust: Trust = UNRESTRICTED
    ambient: frozenset[str] = STORES
    """Of which stores the libraries may look for an identity of this process, where `env` has none for them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "env", {name: str(value).strip(_AROUND) for name, value in self.env.items()})
        remember(_secrets(self.env))

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None, trust: Trust = UNRESTRICTED) -> SourceOptions:
        """What a process was started with; only the names known here, so that nothing else travels."""
        values = os.environ if environ is None else environ
        return cls({name: value for name, value in values.items() if value and _NAMES.fullmatch(name)}, trust=trust)

    def get(self, name: str) -> str | None:
        """None also when it is empty. Raises SourceDenied, by its name, for one that no header could carry."""
        value = self.env.get(name) or None
        if value is not None and not _DOCUMENTS.fullmatch(name):
            _check_text(name, value)
            if _KEYS.fullmatch(name):
                _check_key(name, value)
        return value

    def check_endpoint(self, name: str) -> None:
        """Returns if it is not set, or the URL of a server. Raises SourceDenied."""
        if (value := self.get(name)) is not None:
            _check_endpoint(name, value)

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean as KServe writes them: `0`, `false` and `no` in any case are False."""
        value = self.get(name)
        return default if value is None else value.strip().lower() not in ("0", "false", "no")

    def mapping(self, name: str) -> dict[str, Any]:
        """A JSON object, its texts trimmed; empty if unset. Raises SourceDenied for anything else."""
        value = _document(self.get(name) or "{}")
        if not isinstance(value, dict):
            raise SourceDenied(f"{name} in the credentials is not a JSON object", reason="CredentialsInvalid")
        trimmed: dict[str, Any] = _trimmed(name, value)
        return trimmed

    @property
    def private_redirects(self) -> bool:
        """Whether what is public may redirect to what is not."""
        return self.get(PRIVATE_REDIRECTS) == "1"

    @property
    def fingerprint(self) -> str:
        """Equal for equal options; reveals nothing of them."""
        canonical = json.dumps([sorted(self.env.items()), self.timeout_s, repr(self.trust), sorted(self.ambient)])
        return hashlib.sha256(canonical.encode()).hexdigest()


def remember_options(resolved: Resolved) -> None:
    """No message of this process shows the credentials in it."""
    remember(_secret_fields(dict(resolved.storage_options)))
    for headers in {id(location.headers): location.headers for location in resolved.locations}.values():
        remember(_secret_fields(dict(headers)))


def _document(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _trimmed(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _trimmed(f"{name}: {key!r}", each) for key, each in value.items()}
    if isinstance(value, list):
        return [_trimmed(name, each) for each in value]
    if isinstance(value, str):
        value = value.strip()
        _check_text(name, value)
    return value


def _check_text(name: str, value: str) -> None:
    """Raises SourceDenied without the value, unless it is one line of text, or a key or certificate."""
    if _CONTROL.search(value) and not value.startswith("-----BEGIN "):
        raise SourceDenied(
            f"{name} in the credentials has a line break or another control character within: it was put together, or "
            "copied, in a wrong way",
            reason="CredentialsInvalid",
        )


def _check_key(name: str, value: str) -> None:
    """Raises SourceDenied without the value for what no cloud gives: it was copied with something around it."""
    if (found := _NO_KEY.search(value)) is not None:
        raise SourceDenied(
            f"{name} in the credentials has the character {found[0]!a}, which no such key has: put there what was given"
            " to you, without quotes, and nothing else",
            reason="CredentialsInvalid",
        )


def _check_endpoint(name: str, value: str) -> None:
    """Raises SourceDenied for what is no URL of a server."""
    try:
        parts = urlsplit(value)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 0) >= 0
    except ValueError:
        good = False
    if not good:
        raise SourceDenied(
            f"{name} is {redact(value)[:200]!r}, which is no URL: it begins with https:// or http://, and names a host",
            reason="CredentialsInvalid",
        )


def _secrets(env: Mapping[str, str]) -> Iterator[object]:
    """The values that no message may show: of documents all that is not known to be harmless."""
    for name, value in env.items():
        if _DOCUMENTS.fullmatch(name):
            yield from _secret_fields(_document(value))
        elif not _PUBLIC.fullmatch(name):
            yield value


def _secret_fields(value: Any) -> Iterator[object]:
    if isinstance(value, dict):
        for key, each in value.items():
            if isinstance(each, dict | list):
                yield from _secret_fields(each)
            elif not _PUBLIC_FIELDS.fullmatch(key):
                yield each
    elif isinstance(value, list):
        for each in value:
            yield from _secret_fields(each)
