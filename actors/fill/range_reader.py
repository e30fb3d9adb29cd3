"""Bytes from one location: ranges over HTTP/1.1 keep-alive connections, read into a buffer that is used again.

    location ──► inline content │ http(s) range, redirects followed │ fsspec range ──► blocks, in order

What an answer must be, or it is refused before a byte of it is used:

    206   Content-Range starts where we asked, and names the size that the manifest has; else SourceChanged.
          The whole file although a part was asked for: ranges are ignored
    200   as a 206 if it has a Content-Range (rclone's `serve s3`); else only for the whole file, with its
          Content-Length, or ending with its last byte: for a part of one it means that ranges are ignored
    3xx   at most MAX_REDIRECTS; where to: see `actors.transport.redirects`; headers of a location stay with its host
    else  see `actors.transport.answers.translate_status`

A server of which no range has come yet, and that refuses one or answers it wrongly, is asked for the whole without:
what `curl` gets is to be had. Then the file comes in one piece. A refusal while other connections are served may mean
that there are too many of them: see `Crowded`. What is stored compressed is taken as it is stored.

A server that falls silent, or sends less than a trickle, has stalled: see `actors.transport.stall`.

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
from urllib.parse import SplitResult, urlsplit

from actors.errors import SourceChanged, SourceDenied, SourceError, SourceNotFound, SourceThrottled
from actors.manifest import Location
from actors.schemes import LOCAL
from actors.sources.local_files import Reading
from actors.sources.resolve import read_range
from actors.transport.answers import expires_at, redact, translate_status, unanswered
from actors.transport.connections import AGENT, connection_to, is_proxied
from actors.transport.guard import guarded
from actors.transport.redirects import Reach, check_target, inwards, reach_of, reach_of_url, target_of
from actors.transport.refusals import MAX_BODY_BYTES
from actors.transport.servers import Servers
from actors.transport.stall import MinSpeed, TooSlow, WatchedResponse
from actors.trust import UNRESTRICTED, Trust

MAX_REDIRECTS = 5
BLOCK_BYTES = 512 << 10
FSSPEC_BLOCK_BYTES = 4 << 20
MAX_CONNECTIONS_KEPT = 4

_CONTENT_RANGE = re.compile(r"bytes[ =] *([0-9]{1,19})-([0-9]{1,19}) */ *([0-9]{1,19}|\*)", re.IGNORECASE)
_UNSATISFIED = re.compile(r"bytes[ =] *\* */ *([0-9]{1,19})", re.IGNORECASE)
_STORED_ENCODING = "x-goog-stored-content-encoding"
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SMALL_BODY_BYTES = 64 << 10


_NO_RANGES = frozenset({400, 403, 405, 406, 416, 501})
"""What servers that know no ranges answer to one."""
_PLAIN_REASONS = frozenset({"SourceError", "SourceDenied"})


class RangesIgnored(SourceError):
    """The server sends the whole file whatever it is asked: a part must be asked for as part of the whole."""


class Crowded(SourceThrottled):
    """A server that serves other connections refused one more. `refusal`: what it means if that was not the reason."""

    def __init__(self, where: str, refusal: SourceError) -> None:
        super().__init__(f"{where} serves other connections and refused one more: {refusal}")
        self.refusal = refusal


class Redirects:
    """Where URLs led to, and what is known of `servers` and of files. Shared by the readers of a fill; any thread."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._targets: dict[str, tuple[str, Reach]] = {}
        self.servers = Servers()
        self.reading = Reading()

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
        agent: str = AGENT,
        trust: Trust = UNRESTRICTED,
    ) -> None:
        """`private_redirects`: an origin may redirect to addresses that are less public than its own.

        `trust`: what may be asked at all, whatever a location or a redirect says.
        """
        self._trust = trust
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
            local = location.url.partition("://")[0] in LOCAL
            for position in range(start, stop, FSSPEC_BLOCK_BYTES):
                end = min(stop, position + FSSPEC_BLOCK_BYTES)
                if local and position == start:
                    self._trust.schemes.scheme_of(location.url, listed=True)  # nothing is said of other files
                    self._redirects.reading.check(location.url, size)
                block = read_range(location.url, storage_options, position, end, self._trust)
                if local:
                    self._redirects.reading.check(location.url, size)
                yield memoryview(block)

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
        with self._redirects.servers.request(location.url):
            yield from self._counted_blocks(location, size, start, stop)

    def _counted_blocks(self, location: Location, size: int, start: int, stop: int) -> Iterator[memoryview]:
        url, response, expected = self._open(location, size, start, stop)
        where = redact(url)
        complete = False
        try:
            endless = response.length is None and expected
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
            if endless and response.status == 200 and not _ends(response):
                raise SourceChanged(f"{where} is longer than the {size} bytes it had when it was listed")
            complete = True
            self._redirects.servers.served(location.url)
            if position < stop:
                raise SourceError(f"{where} ended at byte {position}, before {stop}")
        finally:
            if complete and response.isclosed():
                response.close()
            else:
                self._drop(url)
                response.close()

    def _open(self, location: Location, size: int, start: int, stop: int) -> tuple[str, http.client.HTTPResponse, int]:
        """The answer's final URL, the answer with its body unread, and how many bytes of that are to be read."""
        servers, whole = self._redirects.servers, (start, stop) == (0, size)
        known = servers.ranges(location.url)
        if known is False and not whole:
            raise RangesIgnored(f"{redact(location.url)} does not support ranges", reason="RangesIgnored")
        headers = {"Accept-Encoding": "identity", "User-Agent": self._agent}
        ranged = {"Range": f"bytes={start}-{stop - 1}"} if known is not False else {}
        if location.etag and ranged:
            ranged["If-Range"] = location.etag
        url, response = self._follow(location, {**headers, **ranged})
        if response.getheader(_STORED_ENCODING, "identity") != "identity" and not response.getheader(
            "Content-Encoding"
        ):
            self._finish(url, response)  # Google unpacks what is stored with gzip, unless one says that one could
            headers["Accept-Encoding"] = "gzip"
            url, response = self._follow(location, {**headers, **ranged})
        try:
            expected = self._checked(url, response, location, size, start, stop)
            if ranged and response.getheader("Content-Range") is not None and expected == stop - start:
                servers.learned(location.url, ranges=True)
            return url, response, expected
        except RangesIgnored:
            self._finish(url, response)
            servers.learned(location.url, ranges=False)
            raise
        except SourceError as error:
            self._finish(url, response)
            refused = error.refusal if isinstance(error, Crowded) else error
            if not ranged or known or not _may_be_the_range(response.status, refused, location):
                raise
            try:
                url, response = self._follow(location, headers)
                expected = self._checked(url, response, location, size, 0, size)
            except SourceError:
                self._finish(url, response)
                raise error from None
            servers.learned(location.url, ranges=False)
            if whole:
                return url, response, expected
            self._finish(url, response)
            raise RangesIgnored(f"{redact(location.url)} refuses ranges: {error}", reason="RangesIgnored") from error

    def _checked(
        self, url: str, response: http.client.HTTPResponse, location: Location, size: int, start: int, stop: int
    ) -> int:
        """How many bytes of the answer are ours. Raises SourceError for the wrong answer."""
        if response.status in (200, 206):
            return _expected(response, redact(url), location, size, start, stop)
        headers = dict(response.getheaders())
        match = _UNSATISFIED.fullmatch(response.getheader("Content-Range", ""))
        if response.status == 416 and match and int(match[1]) != size:
            raise SourceChanged(f"{redact(url)} has {match[1]} bytes, it had {size} when it was listed")
        body = b""
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            body = response.read(MAX_BODY_BYTES)
        error = translate_status(response.status, url, headers, body)
        alone = location.headers or not self._redirects.servers.crowded(location.url)
        if response.status == 403 and isinstance(error, SourceDenied) and not alone:
            raise Crowded(redact(url), error)
        raise error

    def _follow(self, location: Location, headers: Mapping[str, str]) -> tuple[str, http.client.HTTPResponse]:
        """Where the redirects end, and what is answered there, whatever that is; its body is unread."""
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
            target = response.getheader("Location")
            if response.status not in _REDIRECTS or not target:
                if response.status in (200, 206) and url != location.url:
                    self._redirects.put(location.url, url, floor)
                return url, response
            self._finish(url, response)
            following = target_of(url, target)
            check_target(url, following)
            came_from, url, floor = url, following, Reach.HOST if self._private_redirects else self._reach(url)
        raise SourceNotFound(f"{redact(location.url)} redirects more than {MAX_REDIRECTS} times", reason="RedirectLoop")

    def _request(
        self, url: str, headers: Mapping[str, str], floor: Reach = Reach.HOST, came_from: str = ""
    ) -> http.client.HTTPResponse:
        """The answer's head. A server that is less public than `floor` is refused before it is asked.

        A kept connection that the server has closed meanwhile is replaced once.
        """
        with guarded(self._trust.origins):
            return self._asked(url, headers, floor, came_from)

    def _asked(self, url: str, headers: Mapping[str, str], floor: Reach, came_from: str) -> http.client.HTTPResponse:
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        while True:
            kept = False
            try:
                connection, kept = self._connection(parts)
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
                trouble = unanswered(url, error, self._timeout_s)
                if isinstance(error, ConnectionError) and self._redirects.servers.crowded(came_from or url):
                    raise Crowded(redact(url), trouble) from error
                raise trouble from error

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


def _ends(response: http.client.HTTPResponse) -> bool:
    """Whether nothing more comes of a body of which nobody said how long it is; a break says so, too."""
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError, AttributeError):
        return not response.read(1)
    return True


def _expected(
    response: http.client.HTTPResponse, where: str, location: Location, size: int, start: int, stop: int
) -> int:
    """How many bytes of the answer are ours, at most `stop - start`. Raises SourceError for the wrong answer."""
    etag = response.getheader("ETag")
    if location.etag and etag and etag != location.etag:
        raise SourceChanged(f"{where} changed: its ETag is {etag}, it was {location.etag} when it was listed")
    answer = response.getheader("Content-Range")
    encoded = response.getheader("Content-Encoding", "identity") != "identity"
    if response.status == 200 and answer is None:
        if response.length not in (None, size):
            if encoded or response.getheader(_STORED_ENCODING):
                raise SourceError(f"{where} is sent in another encoding than it is stored in", reason="InvalidAnswer")
            raise SourceChanged(f"{where} has {response.length} bytes, it had {size} when it was listed")
        if (start, stop) != (0, size):
            raise RangesIgnored(f"{where} does not support ranges", reason="RangesIgnored")
        return size
    match = _CONTENT_RANGE.fullmatch(answer or "")
    if match is not None and match[3] not in ("*", str(size)):
        raise SourceChanged(f"{where} has {match[3]} bytes, it had {size} when it was listed")
    if match is not None and (int(match[1]), int(match[2]) + 1) == (0, size) != (start, stop):
        raise RangesIgnored(f"{where} sends the whole for every range", reason="RangesIgnored")
    if match is None or int(match[1]) != start or int(match[2]) >= stop or (encoded and match[3] == "*"):
        raise SourceError(f"{where} answered {answer} when asked for bytes {start}-{stop - 1}", reason="InvalidAnswer")
    promised = int(match[2]) + 1 - start
    return promised if response.length is None else min(promised, response.length)


def _may_be_the_range(status: int, error: SourceError, location: Location) -> bool:
    """Whether a plain request may be answered although this was refused. A signature is not mistaken for that."""
    if status in (400, 403) and (type(error) not in (SourceError, SourceDenied) or error.reason not in _PLAIN_REASONS):
        return False  # a store has said what it is
    if status == 403 and location.headers:
        return False
    return status in _NO_RANGES or error.reason == "InvalidAnswer"
