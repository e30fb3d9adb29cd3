"""What stands behind an error of a library: the same fault has the same reason, whoever met it.

    a status of HTTP                           as `actors.transport.answers.translate_status` says
    no connection, or one that broke off       SourceUnreachable
    no answer in time                          SourceStalled
    a certificate that is not accepted         SourceUntrusted
    an answer that is no HTTP, JSON or XML     InvalidAnswer

Libraries wrap what they met, some several times, and each in its own classes. So the whole chain is looked at, and what
is no class of Python's is known by its name: none is worth an import.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Iterator, Mapping

from actors.errors import SourceError
from actors.redaction import redacted
from actors.transport.answers import translate_status, unanswered

_BROKEN = frozenset(
    {
        *("ConnectionError", "ConnectError", "ReadError", "WriteError", "ProxyError", "ProtocolError"),
        *("EndpointConnectionError", "ConnectionClosedError", "ProxyConnectionError", "ServerDisconnectedError"),
        *("ClientConnectorError", "ClientPayloadError", "ClientOSError", "ServiceRequestError"),
        *("IncompleteReadError", "ChunkedEncodingError"),
    }
)
_LATE = frozenset(
    {
        *("Timeout", "ConnectTimeout", "ReadTimeout", "WriteTimeout", "PoolTimeout", "FSTimeoutError"),
        *("ConnectTimeoutError", "ReadTimeoutError", "ServerTimeoutError", "ConnectionTimeoutError"),
        "ServiceResponseTimeoutError",
    }
)
_UNREADABLE = frozenset(
    {"BadStatusLine", "BadHttpMessage", "ResponseParserError", "InvalidHeader", "LineTooLong", "DecodeError"}
)


def cause_of(where: str, error: Exception, timeout_s: float) -> SourceError | None:
    """What `error` about the URL `where` comes from; None if nothing in it says so."""
    chain = list(_chain(error))
    if (ours := next((each for each in chain if isinstance(each, SourceError)), None)) is not None:
        return ours  # from below a library
    if (each := next(filter(_is_not_trusted_or_found, chain), None)) is not None:
        return unanswered(where, each, timeout_s)
    if (each := next(filter(_is_unreadable, chain), None)) is not None:
        what = f"{where} answers with something else than it should: {_first_line(each)}"
        return SourceError(what, reason="InvalidAnswer")
    if any(map(_is_late, chain)):
        return unanswered(where, TimeoutError(), timeout_s)
    if (each := next(filter(_is_broken, reversed(chain)), None)) is not None:  # the innermost says most
        return unanswered(where, each, timeout_s)
    for answered in chain:
        if (status := _status(answered)) is not None:
            return translate_status(status, where, _headers(answered))
    if isinstance(error, TypeError | LookupError | AttributeError | RecursionError):  # it was read, but not understood
        what = f"{where} answers with something else than it should: {type(error).__name__}: {_first_line(error)}"
        return SourceError(what, reason="InvalidAnswer")
    return None


def _is_not_trusted_or_found(error: Exception) -> bool:
    """The name leads nowhere, or the certificate is not accepted."""
    return isinstance(error, ssl.SSLError | socket.gaierror)


def _is_unreadable(error: Exception) -> bool:
    return type(error).__name__ in _UNREADABLE or isinstance(error, json.JSONDecodeError) or _is_no_http(error)


def _is_late(error: Exception) -> bool:
    return isinstance(error, TimeoutError) or type(error).__name__ in _LATE


def _is_broken(error: Exception) -> bool:
    kind = type(error).__name__
    return isinstance(error, ConnectionError | http.client.HTTPException) or kind in {*_BROKEN, "RemoteProtocolError"}


def _is_no_http(error: BaseException) -> bool:
    """h11 has one class for all that a server does wrong, its end among it."""
    text = str(error)
    return type(error).__name__ == "RemoteProtocolError" and "disconnected" not in text and "closed conn" not in text


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return redacted(lines[0])[:200] if lines else type(error).__name__  # half a secret would not be known again


def _chain(error: BaseException) -> Iterator[Exception]:
    """With all that it was raised because of, or that it carries: outermost first."""
    waiting: list[object] = [error]
    seen: set[int] = set()
    while waiting and len(seen) < 50:
        each = waiting.pop(0)
        if not isinstance(each, BaseException) or id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, Exception):
            yield each
        carried = [getattr(each, name, None) for name in ("reason", "os_error", "original_error", "inner_exception")]
        waiting += [each.__cause__, each.__context__, *carried, *each.args]


def _status(error: BaseException) -> int | None:
    """Of HTTP, as requests, httpx, botocore, aiohttp, gcsfs and Azure have it."""
    response = getattr(error, "response", None)
    metadata = response.get("ResponseMetadata") if isinstance(response, Mapping) else None
    found = [
        getattr(response, "status_code", None),
        metadata.get("HTTPStatusCode") if isinstance(metadata, Mapping) else None,
        getattr(error, "status_code", None),
        getattr(error, "status", None) if type(error).__name__ == "ClientResponseError" else None,
        getattr(error, "code", None) if type(error).__name__ in ("HttpError", "HTTPError") else None,
    ]
    for each in found:
        try:
            status = int(str(each))
        except (TypeError, ValueError, OverflowError):
            continue
        if 400 <= status < 600:
            return int(status)
    return None


def _headers(error: BaseException) -> Mapping[str, str]:
    response = getattr(error, "response", None)
    metadata = response.get("ResponseMetadata") if isinstance(response, Mapping) else None
    if isinstance(metadata, Mapping) and isinstance(metadata.get("HTTPHeaders"), Mapping):
        return {str(name): str(value) for name, value in metadata["HTTPHeaders"].items()}
    for holder in (response, error):
        headers = getattr(holder, "headers", None)
        if headers is not None and hasattr(headers, "items"):
            return {str(name): str(value) for name, value in headers.items()}
    return {}
