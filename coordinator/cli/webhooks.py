"""The HTTPS listener of the webhooks: one path per kind, TLS as the flags say, a certificate that may change any time.

    accept ─► handshake with the context of this moment ─► POST path ─► route(body) ─► AdmissionReview

Each connection has a thread, which a silent client cannot hold for long, and there is a bound on how many there are.
Only API servers connect, and they keep their connections.
"""

from __future__ import annotations

import json
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from actors.numbers import decimal
from actors.service import Service
from coordinator.cli.health import BoundListener, QuietHandler, listen
from coordinator.control.admission import MAX_BYTES, Review, refused
from coordinator.plan.admission import Refusal

CONNECTIONS = 256
HANDSHAKE_S, IDLE_S, BODY_S = 10.0, 90.0, 10.0
RETRY_S = 5.0

_log = logging.getLogger(__name__)


class WebhookServer:
    """Answers POST on the paths of `routes` over TLS, on all addresses, from construction until `close`.

    `port` 0: nowhere. `context` is asked for each connection; None: there is no certificate yet, and it is closed.
    `ready`: whether there is anything to answer from; until then the API server is told to go by its failurePolicy.
    `insist` False: a port that is taken is tried for again. Else raises OSError for it.
    """

    def __init__(
        self,
        port: int,
        routes: Mapping[str, Review],
        context: Callable[[], ssl.SSLContext | None],
        ready: Callable[[], bool] = lambda: True,
        *,
        host: str = "",
        insist: bool = True,
    ) -> None:
        self._handler = type("Handler", (_Handler,), {"served": _Served(dict(routes), context, ready)})
        self._host, self._port = host, port
        self._closing = threading.Event()
        self._listener: BoundListener | None = None
        if not port:
            return
        if insist:
            self._listener = listen(host, port, self._handler, connections=CONNECTIONS)
        self._service = Service(f"webhooks-{port}", self._serve, self._closing)
        self._service.start()

    def _serve(self) -> None:
        while self._listener is None and not self._closing.is_set():
            try:
                self._listener = listen(self._host, self._port, self._handler, connections=CONNECTIONS)
            except OSError as error:
                _log.warning("no webhooks are served yet", extra={"error": str(error)})
                self._closing.wait(RETRY_S)
        if self._listener is not None:
            self._listener.serve_forever()

    @property
    def port(self) -> int:
        """The port listened on; 0 if none."""
        return int(self._listener.server_address[1]) if self._listener else 0

    def close(self) -> None:
        self._closing.set()
        if not self._port:
            return
        if self._listener is not None and self._service.alive:
            self._listener.shutdown()
        self._service.join()
        if self._listener is not None:
            self._listener.server_close()
            self._listener = None


@dataclass(frozen=True, slots=True)
class _Served:
    routes: Mapping[str, Review]
    context: Callable[[], ssl.SSLContext | None]
    ready: Callable[[], bool]


class _Handler(QuietHandler):
    """The requests of one connection."""

    served: ClassVar[_Served]
    protocol_version = "HTTP/1.1"  # an API server keeps its connections
    timeout = IDLE_S

    def setup(self) -> None:
        """Raises OSError where there is no TLS with the client."""
        context = self.served.context()
        if context is None:
            raise OSError("there is no certificate yet")
        raw: socket.socket = self.request
        raw.settimeout(HANDSHAKE_S)
        self.request = context.wrap_socket(raw, server_side=True)
        super().setup()

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            self.request.close()  # the listener knows only the socket beneath, which TLS has taken over

    def do_POST(self) -> None:  # noqa: N802 - the base class names it
        route = self.served.routes.get(self.path.partition("?")[0])
        size = decimal(self.headers.get("Content-Length") or "")
        if size is None:
            return self._plain(411, "a review comes with its Content-Length")
        if size > MAX_BYTES:
            self.close_connection = True
            return self._review(refused(Refusal(413, "RequestEntityTooLarge", f"a review may have {MAX_BYTES} bytes")))
        self.connection.settimeout(BODY_S)
        body = self.rfile.read(size)
        self.connection.settimeout(IDLE_S)
        if route is None:
            return self._plain(404, "404 page not found")
        if not self.served.ready():
            return self._plain(503, "the coordinator does not know the cluster's caches yet: try again")
        media = self.headers.get("Content-Type") or ""
        if media != "application/json":
            message = f"contentType={media[:80]}, expected application/json"
            return self._review(refused(Refusal(400, "BadRequest", message)))
        try:
            answer = route(body)
        except Exception:  # noqa: BLE001  # a bug is answered, too: the API server goes by its failurePolicy
            _log.exception("webhook failed", extra={"path": self.path})
            return self._plain(500, "internal error")
        return self._review(answer)

    def do_GET(self) -> None:  # noqa: N802 - ditto
        known = self.path.partition("?")[0] in self.served.routes
        self._plain(405 if known else 404, "POST an AdmissionReview" if known else "404 page not found")

    def _review(self, answer: Mapping[str, Any]) -> None:
        self._send(200, json.dumps(answer).encode(), "application/json")

    def _plain(self, status: int, text: str) -> None:
        if status == 411:
            self.close_connection = True  # what follows cannot be told from the next request
        self._send(status, f"{text}\n".encode(), "text/plain; charset=utf-8")

    def _send(self, status: int, body: bytes, media: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media)
        self.send_header("Content-Length", str(len(body)))
        if status == 405:
            self.send_header("Allow", "POST")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
