"""What the kubelet and Prometheus ask: /healthz, /readyz, /metrics, each answered by a function.

A check returns None when all is well, else why not. /readyz names every check and its reason, because the first thing a
person does with a pod that is not ready is `curl` it.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, ClassVar

from actors.service import Service

_log = logging.getLogger(__name__)

Check = Callable[[], str | None]


@dataclass(frozen=True, slots=True)
class Response:
    body: bytes
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"


Route = Callable[[], Response]


def parse_address(text: str) -> tuple[str, int] | None:
    """(host, port) of Go's `host:port`; an empty host means all interfaces. None for "" and "0": do not listen.

    Raises ValueError for anything else.
    """
    if text in ("", "0"):
        return None
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{text!r} is not host:port")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(f"{text!r}: an IPv6 address goes in brackets")
    return host.strip("[]"), int(port)


def run_checks(checks: Mapping[str, Check]) -> Response:
    """One line per check; 503 while any of them names a reason."""
    reasons = {name: check() for name, check in checks.items()}
    lines = [f"[+] {name}" if reason is None else f"[-] {name}: {reason}" for name, reason in reasons.items()]
    ready = all(reason is None for reason in reasons.values())
    lines.append("ok" if ready else "not ready")
    return Response(("\n".join(lines) + "\n").encode(), 200 if ready else 503)


class Server:
    """Answers `routes` (path to function) on `address` from construction until `close`.

    Listens on nothing for "" and "0". Raises ValueError for an address it cannot read, OSError for one it cannot have.
    """

    def __init__(self, address: str, routes: Mapping[str, Route]) -> None:
        self._listener: BoundListener | None = None
        parsed = parse_address(address)
        if parsed is None:
            return
        handler = type("Handler", (_Handler,), {"routes": dict(routes)})
        self._listener = listen(*parsed, handler)
        self._closing = threading.Event()
        self._service = Service(f"http-{self.port}", self._listener.serve_forever, self._closing)
        self._service.start()

    @property
    def port(self) -> int:
        """The port listened on; 0 if none."""
        return int(self._listener.server_address[1]) if self._listener else 0

    def close(self) -> None:
        if self._listener:
            self._closing.set()
            if self._service.alive:  # else nobody would answer `shutdown`
                self._listener.shutdown()
            self._service.join()
            self._listener.server_close()
            self._listener = None


class QuietHandler(BaseHTTPRequestHandler):
    """Logs no requests: a probe every few seconds is not news."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
        """Nothing."""


class _Handler(QuietHandler):
    """One short answer per connection."""

    routes: ClassVar[Mapping[str, Route]]
    timeout = 10  # seconds a silent client may hold its thread

    def do_GET(self) -> None:
        route = self.routes.get(self.path.partition("?")[0])
        try:
            response = route() if route else Response(b"not found\n", 404)
        except Exception:  # noqa: BLE001 - a probe that fails is an answer too
            _log.exception("probe failed", extra={"path": self.path})
            response = Response(b"internal error\n", 500)
        self.send_response(response.status)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    do_HEAD = do_GET  # noqa: N815 - the base class names it


class BoundListener(ThreadingHTTPServer):
    """A thread for each connection, `connections` at a time: one more is closed."""

    daemon_threads = True

    def __init__(
        self, family: socket.AddressFamily, host: str, port: int, handler: type[QuietHandler], connections: int
    ) -> None:
        self.address_family = family
        self._free = threading.BoundedSemaphore(connections)
        super().__init__((host, port), handler)

    def serve_forever(self, poll_interval: float = 0.05) -> None:
        """Until `shutdown`, which waits for `poll_interval` at most: by default half a second of each stop."""
        super().serve_forever(poll_interval)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def server_bind(self) -> None:
        """Without HTTPServer's reverse look-up of the host name, which can take seconds."""
        if self.address_family is socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        TCPServer.server_bind(self)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hung up."""


def listen(host: str, port: int, handler: type[QuietHandler], *, connections: int = 256) -> BoundListener:
    """Bound, and not serving yet. An empty host: all addresses. Raises OSError that names the address."""
    try:
        if not host and socket.has_dualstack_ipv6():
            return BoundListener(socket.AF_INET6, "::", port, handler, connections)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return BoundListener(family, host, port, handler, connections)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror or error}") from error
