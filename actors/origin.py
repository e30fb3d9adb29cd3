"""How an origin is asked, and what its refusals mean: the vocabulary that every reader of a source shares.

    401 403 407 451   SourceDenied      but SourceChanged for a signed URL: it expired, a fresh one will do
    404 410           SourceNotFound
    412 416           SourceChanged     the file is not the one the manifest was made from
    429 503           SourceThrottled   with what `Retry-After` (or the hub's `RateLimit`) named
    anything else     SourceError

URLs in messages are redacted: what signs a URL is a credential, and messages end in `kubectl describe`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from urllib.parse import parse_qs, urlsplit, urlunsplit

from actors.errors import SourceChanged, SourceDenied, SourceError, SourceNotFound, SourceThrottled

MAX_RETRY_AFTER_S = 3600.0
"""An origin that asks for more is asked again after this: a wrong header must not stop a node for a day."""

_SIGNATURES = frozenset({"x-amz-signature", "signature", "x-goog-signature", "sig", "key-pair-id"})
_RATE_LIMIT_RESET = re.compile(r"\bt=(\d+)")  # the IETF draft `RateLimit: "resolvers";r=0;t=137`, as the hub sends it


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


def translate_status(status: int, url: str, headers: Mapping[str, str]) -> SourceError:
    """The error an HTTP status of an origin stands for; the table is at the top of this file. Never raises."""
    where = redact(url)
    if status in (400, 401, 403) and signed(url):  # S3 answers 400 when the session token behind the signature expired
        return SourceChanged(f"{where} refused its signed URL with HTTP {status}: it expired or was revoked")
    match status:
        case 401 | 403 | 407 | 451:
            return SourceDenied(f"{where} answered HTTP {status}: it wants credentials, or others than it was given")
        case 404 | 410:
            return SourceNotFound(f"{where} answered HTTP {status}: there is no such file")
        case 412 | 416:
            return SourceChanged(f"{where} answered HTTP {status}: the file changed since it was listed")
        case 429 | 503:
            wait_s = retry_after_s(headers)
            hint = "" if wait_s is None else f", try again in {wait_s:.0f}s"
            return SourceThrottled(f"{where} answered HTTP {status}: too many requests{hint}", retry_after_s=wait_s)
        case _:
            return SourceError(f"{where} answered HTTP {status}")


def retry_after_s(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds the origin asks us to wait, in [0, MAX_RETRY_AFTER_S]; None if it does not say.

    An HTTP-date counts from the answer's own `Date` where there is one, so that a skewed clock does no harm.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    value = lower.get("retry-after", "").strip()
    if value.isdecimal():
        return min(float(value), MAX_RETRY_AFTER_S)
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
