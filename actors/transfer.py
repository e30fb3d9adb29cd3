"""Bytes from one location: ranges over HTTP/1.1 keep-alive connections, read into a buffer that is used again.

    location ──► inline content │ http(s) range, redirects followed │ fsspec range ──► blocks, in order

What an answer must be, or it is refused before a byte of it is used:

    206   Content-Range starts where we asked, and names the size that the manifest has; else SourceChanged
    200   as a 206 if it has a Content-Range (rclone's `serve s3`); else only for the whole file, with its
          Content-Length: for a part of one it means that ranges are ignored
    3xx   at most MAX_REDIRECTS; where to: see `actors.reach`; headers of a location stay with its host
    else  see `actors.origin.translate_status`

A server that falls silent, or sends less than a trickle, has stalled: see `actors.stall`.

The target of a redirect is remembered, so that the hub is asked once per file and not once per range; a target that
refuses is forgotten, and asked for again once.

`http.client` and not more: on loopback it costs half the CPU of any client library with features.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from actors.connections import connection_to, is_proxied
from actors.errors import SourceChanged, SourceError, SourceNotFound
from actors.manifest import Location
from actors.origin import expires_at, redact, translate_status, unanswered
from actors.reach import Reach, check_target, inwards, reach_of, reach_of_url
from actors.source import read_range
from actors.stall import MinSpeed, TooSlow, WatchedResponse

MAX_REDIRECTS = 5
BLOCK_BYTES = 512 << 10
FSSPEC_BLOCK_BYTES = 4 << 20
MAX_CONNECTIONS_KEPT = 4

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SMALL_BODY_BYTES = 64 << 10


class RangesIgnored(SourceError):
    """The server sends the whole file whatever it is asked: a part must be asked for as part of the whole."""


class Redirects:
    """Where URLs led to. Shared by the readers of a fill; any thread."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._targets: dict[str, tuple[str, Reach]] = {}

    def get(self, url: str) -> tuple[str, Reach] | None:
        """The target, and how public its address must be."""
        known = self._targets.get(url)
        if known is None:
            return None
        until = expires_at(known[0])
        return known if until is None or self._clock() < until - 30.0 else None

    def put(self, url: str, target: str, floor: Reach) -> None:
        self._targets[url] = target, floor

    def forget(self, url: str) -> None:
        self._targets.pop(url, None)


class RangeReader:
    """One thread's connections and buffer. `abort` may be called by any thread; it ends what the reader waits for."""

    def __init__(
        self,
        *,
        stall_timeout_s: float,
        min_bytes_per_s: float = 0.0,
        private_redirects: bool = False,
        redirects: Redirects | None = None,
        agent: str = "localmodel",
    ) -> None:
        """`private_redirects`: an origin may redirect to addresses that are less public than its own."""
        self._timeout_s = stall_timeout_s
        self._least = MinSpeed(min_bytes_per_s, stall_timeout_s)
        self._private_redirects = private_redirects
        self._redirects = redirects or Redirects()
        self._agent = agent
        self._buffer = bytearray(BLOCK_BYTES)
        self._connections: dict[tuple[str, str], http.client.HTTPConnection] = {}
        self._reaches: dict[str, Reach] = {}
        self._lock = threading.Lock()
        self._aborted = False

    @property
    def buffer(self) -> bytearray:
        """For the reader's own thread, between reads."""
        return self._buffer

    def blocks(
        self, location: Location, storage_options: Mapping[str, Any], size: int, start: int, stop: int
    ) -> Iterator[memoryview]:
        """Bytes `[start, stop)` of the file of `size` bytes at `location`, in order; at most what was asked for.

        A block is valid until the next one is asked for. Raises the SourceError family; blocks that came before the
        error are good. Ends early without an error for nobody: fewer bytes than asked for is a SourceError.
        """
        if location.content is not None:
            if len(location.content) != size:
                raise SourceChanged(f"{redact(location.url)} came with {len(location.content)} bytes, not {size}")
            yield memoryview(location.content)[start:stop]
        elif location.url.startswith(("http://", "https://")):
            yield from self._http_blocks(location, size, start, stop)
        else:
            for position in range(start, stop, FSSPEC_BLOCK_BYTES):
                end = min(stop, position + FSSPEC_BLOCK_BYTES)
                yield memoryview(read_range(location.url, storage_options, position, end))

    def close(self) -> None:
        with self._lock:
            connections, self._connections = list(self._connections.values()), {}
        for connection in connections:
            connection.close()

    def abort(self) -> None:
        with self._lock:
            self._aborted = True
            for connection in self._connections.values():
                if connection.sock is not None:
                    with contextlib.suppress(OSError):
                        connection.sock.shutdown(socket.SHUT_RDWR)

    # --- http ---

    def _http_blocks(self, location: Location, size: int, start: int, stop: int) -> Iterator[memoryview]:
        url, response = self._open(location, start, stop)
        where = redact(url)
        complete = False
        try:
            expected = _expected(response, where, location, size, start, stop)
            view = memoryview(self._buffer)
            position = start
            while position < start + expected:
                try:
                    count = response.readinto(view[: min(len(view), start + expected - position)])
                except TimeoutError as error:
                    how = str(error) if isinstance(error, TooSlow) else f"sent nothing for {self._timeout_s:g} s"
                    raise SourceError(f"{where} {how}", reason="SourceStalled") from error
                except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
                    # ValueError and AttributeError: the connection was closed under us by `abort`
                    raise SourceError(f"{where} broke off: {str(error) or type(error).__name__}") from error
                if not count:
                    raise SourceError(f"{where} broke off at byte {position}, before {stop}")
                position += count
                yield view[:count]
            complete = True
            if position < stop:
                raise SourceError(f"{where} ended at byte {position}, before {stop}")
        finally:
            if complete and response.isclosed():
                response.close()
            else:
                self._drop(url)
                response.close()

    def _open(self, location: Location, start: int, stop: int) -> tuple[str, http.client.HTTPResponse]:
        """The answer's final URL, and the answer with its body unread."""
        headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity", "User-Agent": self._agent}
        if location.etag:
            headers["If-Range"] = location.etag
        remembered = self._redirects.get(location.url)
        if remembered is not None:
            url, floor = remembered
            response = self._request(url, headers, floor, location.url)
            if response.status < 300:
                return url, response
            self._finish(url, response)
            self._redirects.forget(location.url)
        came_from, url, floor = "", location.url, Reach.HOST
        for _ in range(MAX_REDIRECTS + 1):
            own = location.headers if urlsplit(url).netloc == urlsplit(location.url).netloc else {}
            response = self._request(url, {**own, **headers}, floor, came_from)
            if response.status in (200, 206):
                if url != location.url:
                    self._redirects.put(location.url, url, floor)
                return url, response
            self._finish(url, response)
            target = response.getheader("Location")
            if response.status not in _REDIRECTS or not target:
                raise translate_status(response.status, url, dict(response.getheaders()))
            following = urljoin(url, target)
            check_target(url, following)
            came_from, url, floor = url, following, Reach.HOST if self._private_redirects else self._reach(url)
        raise SourceNotFound(f"{redact(location.url)} redirects more than {MAX_REDIRECTS} times", reason="RedirectLoop")

    def _request(
        self, url: str, headers: Mapping[str, str], floor: Reach = Reach.HOST, came_from: str = ""
    ) -> http.client.HTTPResponse:
        """The answer's head. A server that is less public than `floor` is refused before it is asked.

        A kept connection that the server has closed meanwhile is replaced once.
        """
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        while True:
            connection, kept = self._connection(parts)
            try:
                if not kept and not is_proxied(connection):
                    connection.connect()
                    address = connection.sock.getpeername()[0]
                    self._reaches[parts.netloc] = min(reach_of(address), reach_of(parts.hostname or ""))
                if floor > Reach.HOST and self._reach(url) < floor:
                    raise inwards(came_from, url)
                connection.request("GET", target, headers=dict(headers))
                return connection.getresponse()
            except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
                # AttributeError: the connection was closed under us by `abort`
                self._drop(url)
                if kept and isinstance(error, ConnectionError) and not self._aborted:
                    continue  # the others of that age are dropped the same way, one by one
                raise unanswered(url, error, self._timeout_s) from error

    def _reach(self, url: str) -> Reach:
        """Who can see the server of a URL that was, or is about to be, asked. Behind a proxy the name tells."""
        place = urlsplit(url).netloc
        if place not in self._reaches:
            self._reaches[place] = reach_of_url(url)
        return self._reaches[place]

    def _connection(self, parts: SplitResult) -> tuple[http.client.HTTPConnection, bool]:
        """A connection to that server, and whether it has served before."""
        place = (parts.scheme, parts.netloc)
        with self._lock:
            if self._aborted:
                raise SourceError("the transfer was cancelled")
            connection = self._connections.pop(place, None)
            if connection is not None:
                self._connections[place] = connection  # the most recently used are last
                return connection, connection.sock is not None
            while len(self._connections) >= MAX_CONNECTIONS_KEPT:
                self._connections.pop(next(iter(self._connections))).close()
            connection = connection_to(parts, self._timeout_s)
            connection.response_class = functools.partial(WatchedResponse, least=self._least)  # type: ignore[assignment]
            self._connections[place] = connection
            return connection, False

    def _drop(self, url: str) -> None:
        parts = urlsplit(url)
        with self._lock:
            connection = self._connections.pop((parts.scheme, parts.netloc), None)
        if connection is not None:
            connection.close()

    def _finish(self, url: str, response: http.client.HTTPResponse) -> None:
        """The connection can serve again: a small body is read, one with a large body is given up."""
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            response.read(_SMALL_BODY_BYTES)
        if not response.isclosed():
            self._drop(url)
        response.close()


def _expected(
    response: http.client.HTTPResponse, where: str, location: Location, size: int, start: int, stop: int
) -> int:
    """How many bytes of the answer are ours, at most `stop - start`. Raises SourceError for the wrong answer."""
    etag = response.getheader("ETag")
    if location.etag and etag and etag != location.etag:
        raise SourceChanged(f"{where} changed: its ETag is {etag}, it was {location.etag} when it was listed")
    if response.getheader("Content-Encoding", "identity") != "identity":
        raise SourceError(f"{where} is sent compressed although it must not be", reason="InvalidAnswer")
    if response.status == 200 and response.getheader("Content-Range") is None:
        if response.length not in (None, size):
            raise SourceChanged(f"{where} has {response.length} bytes, it had {size} when it was listed")
        if (start, stop) != (0, size):
            raise RangesIgnored(f"{where} does not support ranges", reason="RangesIgnored")
        return size
    match = _CONTENT_RANGE.fullmatch(response.getheader("Content-Range", ""))
    if match is None or int(match[1]) != start or int(match[2]) >= stop:
        answer = response.getheader("Content-Range")
        raise SourceError(f"{where} answered {answer} when asked for bytes {start}-{stop - 1}", reason="InvalidAnswer")
    if match[3] not in ("*", str(size)):
        raise SourceChanged(f"{where} has {match[3]} bytes, it had {size} when it was listed")
    promised = int(match[2]) + 1 - start
    return promised if response.length is None else min(promised, response.length)
