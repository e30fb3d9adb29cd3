"""What an origin answers: the errors that statuses and silence stand for, and how long it asks to wait.

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

import http.client
import re
import socket
import ssl
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
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
from actors.numbers import moment
from actors.redaction import redacted
from actors.transport.guard import Refused
from actors.transport.refusals import Refusal, error_of, refusal_of
from actors.transport.stall import TooSlow

MAX_RETRY_AFTER_S = 3600.0
"""An origin that asks for more is asked again after this: a wrong header must not stop a node for a day."""

EXPIRED = ": it expired or was revoked"

PRIVATE_REDIRECTS = "LOCALMODEL_PRIVATE_REDIRECTS"
"""Set to 1 where an origin is public, and what it redirects to is not. See `actors.transport.redirects`."""

_SIGNATURES = frozenset({"x-amz-signature", "signature", "x-goog-signature", "sig", "key-pair-id"})
_RATE_LIMIT_RESET = re.compile(
    r"\bt=([0-9]{1,19})\b"
)  # the IETF draft `RateLimit: "resolvers";r=0;t=137`, as the hub sends it


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

    `body`: the beginning of the answer, if it was read. The words of a store there say more than a status.
    """
    where, refusal = redact(url), refusal_of(headers, body)
    code = f" {refusal.code}" if refusal is not None else ""
    if refusal is not None and (error := _said(refusal, status, url, headers)) is not None:
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


def _said(refusal: Refusal, status: int, url: str, headers: Mapping[str, str]) -> SourceError | None:
    """The error that the code of an object store names; None where the status says more, or as much."""
    wait_s = retry_after_s(headers) if status in (429, 503) else None
    error = error_of(redact(url), f"answered HTTP {status}", refusal, wait_s)
    unsure = type(error) is SourceDenied and error.reason == "SourceDenied" and signed(url)
    return None if unsure else error


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
