"""One file behind an http(s) URL. Asked for its first byte, because the answer proves more than a HEAD does:

    206  Content-Range: bytes 0-0/N     the size, and that ranges work; also where a signed URL allows only GET
         Content-Range: bytes 0-M/N     the size: it sends the whole for every range
    416  Content-Range: bytes */0       it is empty
    200  Content-Length: N              the size; the server ignores ranges. Closed before the body is read
    else                                asked again without a range, as curl does: some servers refuse any

A server that does not say how large the file is has it read once, to count and hash it, up to MAX_COUNTED_BYTES.

The location is the URL itself, not where it redirects to: redirects often end in signed URLs, which expire. An ETag
that differs between two requests says nothing of the file and is not kept.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from email.message import Message
from typing import IO
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from actors.errors import SourceDenied, SourceError, SourceNotFound, SourceUnsupported
from actors.manifest import Digest, Location, ManifestFile, ModelSource, Resolved, make_manifest
from actors.numbers import decimal
from actors.sources.options import SourceOptions
from actors.sources.selection import select
from actors.transport.answers import expires_at, redact, translate_status, unanswered
from actors.transport.connections import opener
from actors.transport.redirects import check_link, check_target, escaped, target_of
from actors.transport.refusals import MAX_BODY_BYTES

MAX_COUNTED_BYTES = 400 << 20
MAX_COUNTING_S = 100.0
"""Bounds on what is read only to know how large it is."""

_NO_RANGES = frozenset({206, 400, 403, 405, 406, 416, 501})
"""What servers that know no ranges answer to one; a 206 that does not say which bytes, or of how many, among it."""
_FOLLOWED = frozenset({301, 302, 303, 307, 308})
_CONTENT_RANGE = re.compile(r"bytes[ =] *(?:[0-9]+-[0-9]+|\*) */ *([0-9]{1,19})", re.IGNORECASE)
_SHA256_HEX = re.compile(r"[0-9a-f]{64}")
_REPR_DIGEST = re.compile(r"sha-256=:?([A-Za-z0-9+/]{43}=)", re.IGNORECASE)  # RFC 9530, and RFC 3230's Digest before it

_OURS = frozenset(["host", "connection", "content-length", "transfer-encoding", "expect", "upgrade"])


def resolve_file(source: ModelSource, options: SourceOptions) -> Resolved:
    """A manifest of one file, named as in the URL. Raises the SourceError family only.

    Headers for the URL's host (`{host}-headers` in the options) are sent, and given to the agents: no other way exists.
    """
    url = urlsplit(source.uri)
    _check_url(source, url)
    headers = _own_headers(url, options)
    where = escaped(source.uri)
    size, answer, first = _ask(where, headers, options)
    name = _name(url, answer)
    if not name:
        raise SourceUnsupported(f"{redact(source.uri)} does not name a file", reason="InvalidURI")
    if _is_page(answer, first) and not name.endswith((".html", ".htm")):
        raise SourceNotFound(f"{redact(source.uri)} is a web page, not a file to download")
    digest, etag = _digest(answer), answer.get("etag")
    if size is None:
        size, counted = _count(where, headers, options)
        digest = digest or counted
    if etag and (etag.startswith("W/") or _ask(where, headers, options, etag)[1].get("etag") != etag):
        etag = None
    location = Location(where, etag=etag or None, headers=headers, version=answer.get("last-modified"))
    files = select(source, [ManifestFile(name, size, digest)])
    return Resolved(make_manifest(source, None, files), (location,), expires_at(where))


def _check_url(source: ModelSource, url: SplitResult) -> None:
    """Returns if it may name a file. Raises SourceUnsupported."""
    if not url.hostname or (not url.query and not url.path.rpartition("/")[2]):
        raise SourceUnsupported(f"{redact(source.uri)} does not name a file", reason="InvalidURI")
    if url.username is not None:
        raise SourceUnsupported(
            f"{redact(source.uri)} carries a password, which would be stored with the model: "
            f"put an Authorization header into {url.hostname}-headers of a Secret",
            reason="InvalidURI",
        )


def _own_headers(url: SplitResult, options: SourceOptions) -> dict[str, str]:
    """The headers that the credentials have for its host. Raises SourceDenied for one that frames the request."""
    headers = {str(header): str(value) for header, value in options.mapping(f"{url.hostname}-headers").items()}
    for header in headers:
        if header.lower() in _OURS:
            raise SourceDenied(
                f"{url.hostname}-headers in the credentials may not set {header}: it says where a request goes, or "
                "where it ends",
                reason="CredentialsInvalid",
            )
    return headers


def is_public(url: str, options: SourceOptions) -> bool:
    """Whether anybody may read it."""
    try:
        _ask(url, {}, options)
    except SourceError:
        return False
    return True


def _ask(
    uri: str, headers: Mapping[str, str], options: SourceOptions, etag: str | None = None
) -> tuple[int | None, Mapping[str, str], bytes]:
    """The size, if it is said, the headers of the answer, by lower-case name, and of what may be a page its first byte.

    `x-linked-etag` also of a redirect on the way. With an `etag` the range is asked for only of what has it.
    """
    condition = {"If-Range": etag} if etag else {}
    status, answer, error, first = _get(uri, {**headers, **condition, "Range": "bytes=0-0"}, options)
    ranged = _CONTENT_RANGE.fullmatch(answer.get("content-range", ""))
    if ranged and (status in (200, 206) or (status == 416 and ranged[1] == "0")):
        return decimal(ranged[1]), answer, first
    if status in _NO_RANGES:
        status, plain, _, first = _get(uri, headers, options)
        if status >= 300 and error is not None:
            raise error
        answer = plain
    elif error is not None:
        raise error
    size = None if "transfer-encoding" in answer else decimal(answer.get("content-length", ""))
    return size, answer, first


def _get(
    uri: str, headers: Mapping[str, str], options: SourceOptions
) -> tuple[int, Mapping[str, str], SourceError | None, bytes]:
    """Status and headers, and what they mean if they are a refusal. Of a success only what calls itself a page is read,
    for its first byte.
    """
    with _answered(uri, headers, options) as (status, answer, body):
        if status < 300:
            return status, answer, None, body.read(1) if _says_page(answer) else b""
        if 300 <= status < 400:
            if not answer.get("location") or status not in _FOLLOWED:
                raise SourceError(
                    f"{redact(uri)} answered HTTP {status} and does not say where the file is", reason="InvalidAnswer"
                )
            target = target_of(uri, answer["location"])
            check_target(uri, target)
            raise SourceNotFound(f"{redact(uri)} redirects in a circle", reason="RedirectLoop")
        return status, answer, translate_status(status, uri, answer, body.read(MAX_BODY_BYTES)), b""


def _count(uri: str, headers: Mapping[str, str], options: SourceOptions) -> tuple[int, Digest]:
    """The size and the sha256 of a file that is read for that. Raises SourceUnsupported if it is too large."""
    until, size, digest = time.monotonic() + MAX_COUNTING_S, 0, hashlib.sha256()
    with _answered(uri, headers, options) as (status, answer, body):
        if status >= 300:
            raise translate_status(status, uri, answer, body.read(MAX_BODY_BYTES))
        while block := body.read(1 << 20):
            digest.update(block)
            size += len(block)
            if size > MAX_COUNTED_BYTES or time.monotonic() > until:
                raise SourceUnsupported(
                    f"{redact(uri)} does not say how large it is (no Content-Length), and sends more than can be read "
                    f"to find out ({MAX_COUNTED_BYTES >> 20}Mi in {MAX_COUNTING_S:.0f} s): name a server that does",
                    reason="SizeUnknown",
                )
    return size, Digest(f"sha256:{digest.hexdigest()}")


@contextmanager
def _answered(
    uri: str, headers: Mapping[str, str], options: SourceOptions
) -> Iterator[tuple[int, Mapping[str, str], IO[bytes]]]:
    """Status, headers by lower-case name, and the body. Raises SourceError where there is no answer."""
    redirects = _Redirects(private=options.private_redirects)
    request = urllib.request.Request(uri, headers={**headers, "Accept-Encoding": "identity"})
    try:
        try:
            with opener(redirects).open(request, timeout=options.timeout_s) as response:
                yield response.status, redirects.linked | _lower(response.headers), response
        except urllib.error.HTTPError as error:
            with error:
                yield error.code, redirects.linked | _lower(error.headers), error
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = getattr(error, "reason", None)
        raise unanswered(uri, cause if isinstance(cause, Exception) else error, options.timeout_s) from error


def _lower(headers: Message) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _says_page(answer: Mapping[str, str]) -> bool:
    return answer.get("content-type", "").startswith("text/html")


def _is_page(answer: Mapping[str, str], first: bytes) -> bool:
    """Many servers call what they do not know text/html: a page begins with a tag, a blank or a byte order mark."""
    return _says_page(answer) and first in (b"", b"<", b" ", b"\t", b"\r", b"\n", b"\xef", b"\xff", b"\xfe")


def _name(url: SplitResult, answer: Mapping[str, str]) -> str:
    """The file's name: as in the path; where that has no ending, as the server calls it, or as in the query."""
    path = unquote(url.path.rpartition("/")[2])
    if "." in path.strip("."):
        return path
    message = Message()
    message["Content-Disposition"] = answer.get("content-disposition", "")
    offered = message.get_filename() or ""
    with suppress(UnicodeError):
        offered = offered.encode("iso-8859-1").decode()
    queried = [value for _, value in parse_qsl(url.query)]
    for name in (offered, *([] if path else queried)):
        last = re.split(r"[/\\]", name)[-1].strip()
        if "." in last.strip("."):
            return last
    return path


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows where `redirects` allows it. Keeps secrets, and the digest that the hub names beside a redirect."""

    def __init__(self, *, private: bool) -> None:
        self._private = private
        self.linked: dict[str, str] = {}

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        newurl = target_of(req.full_url, headers.get("Location", newurl))
        try:
            check_link(req.full_url, newurl, private=self._private)
        except SourceDenied:
            fp.close()
            raise
        if "X-Linked-Etag" in headers:
            self.linked["x-linked-etag"] = headers["X-Linked-Etag"]
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            kept = ("Range", "If-range", "Accept-encoding")
            following.headers = {name: following.headers[name] for name in kept if name in following.headers}
        return following


def _digest(answer: Mapping[str, str]) -> Digest | None:
    """A sha256 of the whole file, if the origin vouches for one. An ordinary ETag is not a digest."""
    linked = answer.get("x-linked-etag", "").strip('"')
    if _SHA256_HEX.fullmatch(linked):
        return Digest(f"sha256:{linked}")
    for header in ("repr-digest", "digest"):
        if match := _REPR_DIGEST.search(answer.get(header, "")):
            try:
                return Digest("sha256:" + base64.b64decode(match[1], validate=True).hex())
            except binascii.Error:
                continue
    return None
