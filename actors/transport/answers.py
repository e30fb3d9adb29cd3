"""How an origin is asked, and what it answers: the vocabulary that every reader of a source shares.

    SourceOptions     the credentials and endpoints to ask with, by the environment names KServe uses
    select            which of the listed files are wanted
    expires_at        until when a signed URL is good
    translate_status  what a refusal means:

    401 403 407 451   SourceDenied      but SourceExpired for a signed URL: a fresh one will do
    404 410           SourceNotFound
    412 416           SourceChanged     the file is not the one the manifest was made from
    429 503           SourceThrottled   with what `Retry-After` (or the hub's `RateLimit`) named
    anything else     SourceError
                      but first of all what the code of an object store says: see `actors.transport.refusals`
    unanswered        what it means that there is no answer: SourceUnreachable, SourceUntrusted, SourceStalled

URLs in messages are redacted: what signs a URL is a credential, and messages end in `kubectl describe`.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import string
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from fnmatch import translate
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

from actors.errors import (
    LocalModelError,
    SourceChanged,
    SourceDenied,
    SourceError,
    SourceExpired,
    SourceNotFound,
    SourceThrottled,
)
from actors.manifest import ManifestFile, ModelSource, Resolved, is_ours, is_packed
from actors.numbers import moment
from actors.redaction import redacted, remember
from actors.transport.guard import Refused
from actors.transport.refusals import error_of, refusal_of
from actors.transport.stall import TooSlow
from actors.trust import UNRESTRICTED, Trust

MAX_RETRY_AFTER_S = 3600.0
"""An origin that asks for more is asked again after this: a wrong header must not stop a node for a day."""

EXPIRED = ": it expired or was revoked"

PRIVATE_REDIRECTS = "LOCALMODEL_PRIVATE_REDIRECTS"
"""Set to 1 where an origin is public, and what it redirects to is not. See `actors.transport.redirects`."""

_SIGNATURES = frozenset({"x-amz-signature", "signature", "x-goog-signature", "sig", "key-pair-id"})
_RATE_LIMIT_RESET = re.compile(
    r"\bt=([0-9]{1,19})\b"
)  # the IETF draft `RateLimit: "resolvers";r=0;t=137`, as the hub sends it

_NAMES = re.compile(
    r"HF_TOKEN|HF_ENDPOINT|AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY|SESSION_TOKEN|ENDPOINT_URL|DEFAULT_REGION|CA_BUNDLE)"
    r"|AWS_ROLE_ARN|S3_(VERIFY_SSL|USER_VIRTUAL_BUCKET)|awsAnonymousCredential|STORAGE_OPTIONS"
    r"|AZURE_STORAGE_(ACCOUNT_NAME|ACCESS_KEY)|AZ(URE)?_(CLIENT_ID|CLIENT_SECRET|TENANT_ID)"
    r"|DOCKER_CONFIG_JSON|LOCALMODEL_PRIVATE_REDIRECTS|[A-Za-z0-9.-]+-headers"
)

S3, OTHER_STORES = "s3", "other stores"
STORES = frozenset({S3, OTHER_STORES})
"""Whose libraries know of identities outside of `env`: files in the home folder, the cloud's metadata service."""


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

    White space around a value is dropped, and a byte order mark: `echo TOKEN | base64` adds a line break. What is
    secret of it is remembered, so that no message of this process shows it.

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
    """What of it is a credential is shown by no message of this process."""
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
    """What no message may show. Of documents all that is not known to be harmless."""
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


def select(source: ModelSource, files: Iterable[ManifestFile]) -> list[ManifestFile]:
    """Those that are `wanted`. Raises SourceNotFound if nothing is left. Of an archive the members are selected.

    What a fill wrote beside them is not: a copy can be the source of the next.
    """
    listed = [file for file in files if not is_ours(file.path)]
    kept = [file for file in listed if wanted(source, file.path)] if not is_packed(source, listed) else listed
    if not kept:
        where = redact(source.uri)
        why = (
            f"none of its {len(listed)} files is selected by include/exclude"
            if listed
            else "it holds no files, or does not exist"
        )
        raise SourceNotFound(f"nothing to cache in {where}: {why}")
    return kept


def wanted(source: ModelSource, path: str) -> bool:
    """Whether it matches a glob of `include` (none: all) and none of `exclude`.

    Globs are the hub's and KServe's: `*` matches `/` too, a final `/` means everything below.
    """
    return (not source.include or _matches(path, source.include)) and not _matches(path, source.exclude)


def left_out(source: ModelSource, folder: str) -> bool:
    """Whether `exclude` leaves out everything below `folder`, which ends in a slash."""
    return folder in source.exclude or any(glob in ("*", f"{folder}*") for glob in source.exclude)


def _matches(path: str, globs: tuple[str, ...]) -> bool:
    return bool(globs) and _pattern(globs).match(path) is not None


@lru_cache(maxsize=64)
def _pattern(globs: tuple[str, ...]) -> re.Pattern[str]:
    """Of all of them: to try hundreds one by one takes Python longer than to list what they are tried on."""
    return re.compile("|".join(translate(glob + "*" if glob.endswith("/") else glob) for glob in globs))


def redact(url: str) -> str:
    """`url` without what may be secret in it: user info, query and fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "<malformed URL>"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def signed(url: str) -> bool:
    """Whether the query carries a signature (AWS, CloudFront, GCS, Azure), so that the URL expires."""
    return not _SIGNATURES.isdisjoint(name.lower() for name in parse_qs(urlsplit(url).query))


def expires_at(url: str) -> float | None:
    """Until when a signed URL is good, in epoch seconds; None if it does not say.

    AWS and GCS name a date and a lifetime, CloudFront and the older S3 an epoch, Azure a date.
    """
    query = {name.lower(): values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    try:
        for cloud in ("x-amz", "x-goog"):
            if {f"{cloud}-expires", f"{cloud}-date"} <= query.keys():
                signed_at = datetime.strptime(query[f"{cloud}-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
                return (signed_at + timedelta(seconds=int(query[f"{cloud}-expires"]))).timestamp()
        if "expires" in query:
            return moment(float(query["expires"]))
        return datetime.fromisoformat(query["se"]).timestamp() if "se" in query and "sig" in query else None
    except (ValueError, OverflowError):
        return None


def translate_status(status: int, url: str, headers: Mapping[str, str], body: bytes = b"") -> SourceError:
    """The error an HTTP status of an origin stands for; the table is at the top of this file. Never raises.

    `body`: the beginning of the answer, if it was read. What a store says there is more than a status.
    """
    where, refusal = redact(url), refusal_of(headers, body)
    code = f" {refusal.code}" if refusal is not None else ""
    if refusal is not None:
        error = error_of(
            where, f"answered HTTP {status}", refusal, retry_after_s(headers) if status in (429, 503) else None
        )
        unsure = type(error) is SourceDenied and error.reason == "SourceDenied" and signed(url)
        if error is not None and not unsure:
            return error
    if status in (400, 401, 403) and signed(url):  # S3 answers 400 when the session token behind the signature expired
        return SourceExpired(f"{where} refused its signed URL with HTTP {status}{code}{EXPIRED}")
    match status:
        case 401 | 403 | 407 | 451:
            return SourceDenied(
                f"{where} answered HTTP {status}{code}: it wants credentials, or others than it was given"
            )
        case 404 | 410:
            return SourceNotFound(f"{where} answered HTTP {status}{code}: there is no such file")
        case 412:
            return SourceChanged(f"{where} answered HTTP 412: it has another version than the one that was listed")
        case 416:
            return SourceChanged(f"{where} answered HTTP 416: it does not have the bytes that were asked for")
        case 429 | 503:
            wait_s = retry_after_s(headers)
            hint = "" if wait_s is None else f", try again in {wait_s:.0f}s"
            return SourceThrottled(f"{where} answered HTTP {status}: too many requests{hint}", retry_after_s=wait_s)
        case _:
            return SourceError(f"{where} answered HTTP {status}{code}")


def unanswered(url: str, error: Exception, timeout_s: float) -> SourceError:
    """The error that an exception instead of an answer stands for. The reasons differ where what helps does."""
    where = redact(url)
    match error:
        case Refused():
            return not_allowed(url, error)
        case TooSlow():
            return SourceError(f"{where} {error}", reason="SourceStalled")
        case TimeoutError():
            return SourceError(f"{where} did not answer within {timeout_s:g} s", reason="SourceStalled")
        case http.client.BadStatusLine() if not isinstance(error, ConnectionError):
            return SourceError(f"{where} does not speak HTTP: {redacted(str(error))[:60]}", reason="InvalidAnswer")
        case ssl.SSLCertVerificationError():
            # aiohttp's, which is one of these, has only a text
            said = getattr(error, "verify_message", "") or str(error)
            why = f"{where} has a certificate that is not accepted: {said}"
            return SourceError(why, reason="SourceUntrusted")
        case socket.gaierror():
            why = f"{where} could not be reached: its host name does not resolve: {error.strerror}"
            return SourceError(why, reason="SourceUnreachable")
    said = error.strerror if isinstance(error, OSError) else None
    why = f"{where} could not be reached{_by_way_of(url)}: {said or str(error) or type(error).__name__}"
    return SourceError(why, reason="SourceUnreachable")


def _by_way_of(url: str) -> str:
    """The proxy that stands before it: it may be what does not answer."""
    from actors.transport.connections import proxy_for  # here, because most that use this module connect to nothing

    try:
        proxy = proxy_for(urlsplit(url))
    except (LocalModelError, ValueError):
        return ""
    return f" by way of the proxy {proxy.netloc.rpartition('@')[2]}" if proxy is not None else ""


def not_allowed(url: str, refused: Refused) -> SourceDenied:
    """The error of a connection that the guard did not make."""
    return SourceDenied(f"{redact(url)} is not read: {refused}", reason=refused.reason)


def retry_after_s(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds the origin asks us to wait, in [0, MAX_RETRY_AFTER_S]; None if it does not say.

    An HTTP-date counts from the answer's own `Date` where there is one, so that a skewed clock does no harm.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    value = lower.get("retry-after", "").strip()
    if value.isascii() and value.isdecimal():
        return min(float(value[:30]), MAX_RETRY_AFTER_S)
    if (at := _http_date(value)) is not None:
        sent = _http_date(lower.get("date", ""))
        base = sent if sent is not None else time.time() if now is None else now
        return min(max(at - base, 0.0), MAX_RETRY_AFTER_S)
    reset = _RATE_LIMIT_RESET.search(lower.get("ratelimit", ""))
    return min(float(reset[1]), MAX_RETRY_AFTER_S) if reset else None


def _http_date(value: str) -> float | None:
    try:
        return parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError):
        return None
