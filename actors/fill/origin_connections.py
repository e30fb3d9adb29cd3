"""One thread's connections to origins: requests, where redirects lead, and connections that are kept for the next.

A server that is less public than the one that led to it is refused before it is asked: `actors.transport.redirects`.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import socket
import threading
import time
from collections.abc import Callable, Mapping
from urllib.parse import SplitResult, urlsplit

from actors.errors import SourceError, SourceNotFound, SourceThrottled
from actors.manifest import Location
from actors.sources.local_files import Reading
from actors.transport.answers import expires_at, redact, unanswered
from actors.transport.connections import connection_to, is_proxied
from actors.transport.guard import guarded
from actors.transport.redirects import Reach, check_target, inwards, reach_of, reach_of_url, target_of
from actors.transport.servers import Servers
from actors.transport.stall import MinSpeed, WatchedResponse
from actors.trust import Trust

MAX_REDIRECTS = 5
MAX_CONNECTIONS_KEPT = 4
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SMALL_BODY_BYTES = 64 << 10


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


class Connections:
    """One thread's. `abort` may be called by any thread; it ends what is waited for."""

    def __init__(
        self, redirects: Redirects, trust: Trust, *, timeout_s: float, least: MinSpeed, private_redirects: bool
    ) -> None:
        """`private_redirects`: an origin may redirect to addresses that are less public than its own."""
        self._redirects = redirects
        self._trust = trust
        self._timeout_s = timeout_s
        self._least = least
        self._private_redirects = private_redirects
        self._connections: dict[tuple[str, str], http.client.HTTPConnection] = {}
        self._reaches: dict[str, Reach] = {}
        self._lock = threading.Lock()
        self._aborted = False

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

    def follow(self, location: Location, headers: Mapping[str, str]) -> tuple[str, http.client.HTTPResponse]:
        """Where the redirects end, and what is answered there, whatever that is; its body is unread."""
        remembered = self._redirects.get(location.url)
        if remembered is not None:
            url, floor = remembered
            response = self._request(url, headers, floor, location.url)
            if response.status < 300:
                return url, response
            self.finish(url, response)
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
            self.finish(url, response)
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
                    self._connect(connection, parts)
                if floor > Reach.HOST and self._reach(url) < floor:
                    raise inwards(came_from, url)
                connection.request("GET", target, headers=dict(headers))
                return connection.getresponse()
            except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
                # AttributeError: the connection was closed under us by `abort`
                self.drop(url)
                if kept and isinstance(error, ConnectionError) and not self._aborted:
                    continue  # the others of that age are dropped the same way, one by one
                trouble = unanswered(url, error, self._timeout_s)
                if isinstance(error, ConnectionError) and self._redirects.servers.crowded(came_from or url):
                    raise Crowded(redact(url), trouble) from error
                raise trouble from error

    def _connect(self, connection: http.client.HTTPConnection, parts: SplitResult) -> None:
        """It is connected, and how public its server is, is known: by its address and by its name."""
        connection.connect()
        address = connection.sock.getpeername()[0]
        self._reaches[parts.netloc] = min(reach_of(address), reach_of(parts.hostname or ""))

    def _reach(self, url: str) -> Reach:
        """How far the server of a URL can be seen that was, or is about to be, asked. Behind a proxy the name tells."""
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
            connection.response_class = functools.partial(WatchedResponse, least=self._least)  # type: ignore[assignment]  # it is only called
            self._connections[place] = connection
            return connection, False

    def drop(self, url: str) -> None:
        parts = urlsplit(url)
        with self._lock:
            connection = self._connections.pop((parts.scheme, parts.netloc), None)
        if connection is not None:
            connection.close()

    def finish(self, url: str, response: http.client.HTTPResponse) -> None:
        """The connection can serve again: a small body is read, one with a large body is given up."""
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            response.read(_SMALL_BODY_BYTES)
        if not response.isclosed():
            self.drop(url)
        response.close()
