"""One file behind an http(s) URL. Asked for its first byte, because the answer proves more than a HEAD does:

    206  Content-Range: bytes 0-0/N     the size, and that ranges work; also where a signed URL allows only GET
    416  Content-Range: bytes */0       it is empty
    200  Content-Length: N              the size; the server ignores ranges. Closed before the body is read

The location is the URL itself, not where it redirects to: redirects often end in signed URLs, which expire.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import IO
from urllib.parse import unquote, urljoin, urlsplit

from actors.connections import opener
from actors.errors import SourceDenied, SourceError, SourceNotFound, SourceUnsupported
from actors.manifest import Digest, Location, ManifestFile, ModelSource, Resolved, make_manifest
from actors.origin import SourceOptions, expires_at, redact, select, translate_status, unanswered
from actors.reach import check_link, check_target

_CONTENT_RANGE = re.compile(r"bytes (?:\d+-\d+|\*)/(\d+)")
_SHA256_HEX = re.compile(r"[0-9a-f]{64}")
_REPR_DIGEST = re.compile(r"sha-256=:?([A-Za-z0-9+/]{43}=)", re.IGNORECASE)  # RFC 9530, and RFC 3230's Digest before it


def resolve_file(source: ModelSource, options: SourceOptions) -> Resolved:
    """A manifest of one file, named as in the URL. Raises the SourceError family only.

    Headers for the URL's host (`{host}-headers` in the options) are sent, and given to the agents: no other way exists.
    """
    url = urlsplit(source.uri)
    name = unquote(url.path.rpartition("/")[2])
    if not url.hostname or not name:
        raise SourceUnsupported(f"{redact(source.uri)} does not name a file", reason="InvalidURI")
    if url.username is not None:
        raise SourceUnsupported(
            f"{redact(source.uri)} carries a password, which would be stored with the model: "
            f"put an Authorization header into {url.hostname}-headers of a Secret",
            reason="InvalidURI",
        )
    headers = {str(header): str(value) for header, value in options.mapping(f"{url.hostname}-headers").items()}
    size, answer = _ask(source.uri, headers, options)
    if answer.get("content-type", "").startswith("text/html") and not name.endswith((".html", ".htm")):
        raise SourceNotFound(f"{redact(source.uri)} is a web page, not a file to download")
    etag = answer.get("etag")
    location = Location(source.uri, etag=etag if etag and not etag.startswith("W/") else None, headers=headers)
    files = select(source, [ManifestFile(name, size, _digest(answer))])
    return Resolved(make_manifest(source, None, files), (location,), expires_at(source.uri))


def is_public(url: str, options: SourceOptions) -> bool:
    """Whether anybody may read it."""
    try:
        _ask(url, {}, options)
    except SourceError:
        return False
    return True


def _ask(uri: str, headers: Mapping[str, str], options: SourceOptions) -> tuple[int, Mapping[str, str]]:
    """The size and the headers of the answer, by lower-case name; `x-linked-etag` also of a redirect on the way."""
    redirects = _Redirects(private=options.private_redirects)
    request = urllib.request.Request(uri, headers={**headers, "Range": "bytes=0-0", "Accept-Encoding": "identity"})
    try:
        with opener(redirects).open(request, timeout=options.timeout_s) as response:
            answer = redirects.linked | {name.lower(): value for name, value in response.headers.items()}
    except urllib.error.HTTPError as error:
        with error:
            answer = redirects.linked | {name.lower(): value for name, value in error.headers.items()}
            if 300 <= error.code < 400:
                check_target(uri, urljoin(uri, answer.get("location", "")))
                raise SourceNotFound(f"{redact(uri)} redirects in a circle", reason="RedirectLoop") from error
            if error.code != 416 or _CONTENT_RANGE.fullmatch(answer.get("content-range", "")) is None:
                raise translate_status(error.code, uri, answer) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = getattr(error, "reason", None)
        raise unanswered(uri, cause if isinstance(cause, Exception) else error, options.timeout_s) from error
    ranged = _CONTENT_RANGE.fullmatch(answer.get("content-range", ""))
    size = ranged[1] if ranged else answer.get("content-length", "")
    if not size.isdecimal():
        raise SourceUnsupported(f"{redact(uri)} does not say how large it is (no Content-Length)", reason="SizeUnknown")
    return int(size), answer


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows where `actors.reach` allows it. Keeps the digest that the hub names beside its redirect, and secrets."""

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
        try:
            check_link(req.full_url, newurl, private=self._private)
        except SourceDenied:
            fp.close()
            raise
        if "X-Linked-Etag" in headers:
            self.linked["x-linked-etag"] = headers["X-Linked-Etag"]
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            following.headers = {name: following.headers[name] for name in ("Range", "Accept-encoding")}
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
