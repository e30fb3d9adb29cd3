"""Listings by fsspec's filesystems within bounds, which none of them has: they collect every page before they answer.

    any           `ls` of a folder    entries, depth, time
    S3            each page           entries, pages, a next page that was there before, bytes of the document
    Google        each page           the same
    WebHDFS       each answer         bytes, without compression

It is counted where the library passes by, on this one instance: what it asks, and in which order, is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from actors.errors import SourceError
from actors.sources.bounds import Bounds, current, decoded
from actors.sources.filesystems import s3_session
from actors.transport.answers import redact

MAX_DEPTH = 100
"""Of folders within folders: more is a link that leads back up, or somebody's joke."""

_BLOCK_BYTES = 64 << 10


@contextmanager
def watched(filesystem: Any, root: str, bounds: Bounds, timeout_s: float = 30.0) -> Iterator[None]:
    """The listing below `root` by `filesystem`, which has asked nothing yet, is held to the bounds, also after this.

    Of libraries that have no patience of their own, `timeout_s` is how long they wait for an answer.
    """
    _watch(filesystem, root, bounds, timeout_s)
    try:
        yield
    finally:
        session = getattr(filesystem, "session", None)  # of `requests`, whose connections nobody else closes
        if session is not None and "webhdfs" in _protocols(filesystem):
            session.close()


def bound_answers(filesystem: Any, timeout_s: float = 30.0) -> None:
    """No answer takes more memory than a document may, also where nothing is listed: what is read is in small parts."""
    session = getattr(filesystem, "session", None)
    if "webhdfs" in _protocols(filesystem) and session is not None and not session.hooks["response"]:
        _watch_requests(session, timeout_s)
    google = "gs" in _protocols(filesystem) and hasattr(filesystem, "session_kwargs")
    if google and "response_class" not in (filesystem.session_kwargs or {}):
        _bound_google(filesystem)


def _protocols(filesystem: Any) -> tuple[str, ...]:
    named = filesystem.protocol
    return named if isinstance(named, tuple) else (named,)


def _watch(filesystem: Any, root: str, bounds: Bounds, timeout_s: float) -> None:
    protocols = _protocols(filesystem)
    if getattr(filesystem, "async_impl", False):
        for name in ("find", "info"):
            setattr(filesystem, name, _cancelled_at_the_end(filesystem, name, bounds))
    if "s3" in protocols:
        _watch_s3(filesystem, bounds)
        return
    _watch_folders(filesystem, root, bounds)
    if "gs" in protocols and hasattr(filesystem, "session_kwargs"):
        _watch_google(filesystem, bounds)
    session = getattr(filesystem, "session", None)
    if "webhdfs" in protocols and session is not None:
        _watch_requests(session, timeout_s)


def _cancelled_at_the_end(filesystem: Any, name: str, bounds: Bounds) -> Callable[..., Any]:
    """A task in fsspec's own thread, which may sleep there before it tries again, ends with the bounds."""

    def call(*arguments: Any, **options: Any) -> Any:
        task = getattr(filesystem, f"_{name}")(*arguments, **options)
        import asyncio  # here, because `fill` of everything that is no bucket would wait for it

        return bounds.result_of(asyncio.run_coroutine_threadsafe(task, filesystem.loop))

    return call


def _watch_folders(filesystem: Any, root: str, bounds: Bounds) -> None:
    above = root.rstrip("/").count("/")

    def enter(path: object) -> None:
        bounds.check()
        if str(path).rstrip("/").count("/") - above > MAX_DEPTH:
            bounds.too_deep(MAX_DEPTH)

    def counted(found: Any) -> Any:
        if isinstance(found, list | Mapping):
            bounds.files(len(found))
        return found

    if getattr(filesystem, "async_impl", False):
        ls = filesystem._ls

        async def ls_counted(path: str, *arguments: Any, **options: Any) -> Any:
            enter(path)
            return counted(await ls(path, *arguments, **options))

        filesystem._ls = ls_counted
    else:
        blocking: Callable[..., Any] = filesystem.ls

        def blocking_counted(path: str, *arguments: Any, **options: Any) -> Any:
            enter(path)
            return counted(blocking(path, *arguments, **options))

        filesystem.ls = blocking_counted


def _watch_s3(filesystem: Any, bounds: Bounds) -> None:
    filesystem.config_kwargs = {**(filesystem.config_kwargs or {}), "http_session_cls": _s3_session()}
    filesystem.connect()

    def page(parsed: Mapping[str, Any], **_: Any) -> None:
        bounds.page(parsed.get("NextContinuationToken") if parsed.get("IsTruncated") else None)
        bounds.files(len(parsed.get("Contents") or ()) + len(parsed.get("CommonPrefixes") or ()))

    filesystem.s3.meta.events.register("after-call.s3.ListObjectsV2", page)


def _bound_google(filesystem: Any) -> None:
    sent = filesystem.session_kwargs or {}
    headers = {**(sent.get("headers") or {}), "Accept-Encoding": "identity"}
    filesystem.session_kwargs = {
        **sent,
        "headers": headers,
        "auto_decompress": False,
        "response_class": _google_response(),
    }


def _watch_google(filesystem: Any, bounds: Bounds) -> None:
    """https://cloud.google.com/storage/docs/json_api/v1/objects/list"""
    _bound_google(filesystem)
    call = filesystem._call

    async def counted(*arguments: Any, **options: Any) -> Any:
        bounds.check()
        answer = await call(*arguments, **options)
        if isinstance(answer, Mapping) and ("nextPageToken" in answer or "items" in answer):
            bounds.page(answer.get("nextPageToken"))
            bounds.files(len(answer.get("items") or ()) + len(answer.get("prefixes") or ()))
        return answer

    filesystem._call = counted


def _watch_requests(session: Any, timeout_s: float) -> None:
    """Reads what a `requests.Session` is answered before it does, in bounded pieces."""

    def read(response: Any, **_: Any) -> None:
        blocks = response.raw.stream(_BLOCK_BYTES, decode_content=False)
        try:
            response._content = b"".join(decoded(blocks, response.headers.get("Content-Encoding", "")))
            response._content_consumed = True
        except BaseException:
            response.raw.close()
            raise

    request = session.request
    session.request = lambda *arguments, **options: request(*arguments, **{"timeout": timeout_s, **options})
    session.headers["Accept-Encoding"] = "identity"
    session.hooks["response"].append(read)


@cache
def _s3_session() -> type:
    """A client for botocore that reads documents in bounded pieces. A streamed body is its reader's to bound."""
    staying: Any = s3_session()

    class BoundedSession(staying):  # type: ignore[misc]  # made at run time
        async def send(self, request: Any) -> Any:
            streamed, request.stream_output = request.stream_output, True
            try:
                response = await super().send(request)
            finally:
                request.stream_output = streamed
            if not streamed:
                try:
                    response._content = content = await _document(response.raw.content)
                except BaseException:
                    response.raw.close()
                    raise
                if request.method == "GET" and response.status_code == 200 and not _is_xml(content):
                    raise SourceError(  # botocore says HTTP 500
                        f"{redact(request.url)} answers with something else than a bucket does: it is not XML",
                        reason="InvalidAnswer",
                    )
            return response

    return BoundedSession


def _is_xml(content: bytes) -> bool:
    start = content[:100].lstrip().lower()
    return start.startswith(b"<") and not start.startswith((b"<!doctype html", b"<html"))


@cache
def _google_response() -> type:
    from gcsfs import core

    class BoundedResponse(core.aiohttp.ClientResponse):  # type: ignore[misc]  # has no types
        async def read(self) -> bytes:
            if self._body is None:
                self._body: bytes | None = await _document(self.content)
            return self._body

    return BoundedResponse


async def _document(stream: Any) -> bytes:
    pieces, count, bounds = [], 0, current()
    async for piece in stream.iter_chunked(_BLOCK_BYTES):
        pieces.append(piece)
        count += len(piece)
        bounds.document(len(piece), count)
    return b"".join(pieces)
