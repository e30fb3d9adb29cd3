"""A webhook that answers as a test wants, and remembers what it was asked."""

from __future__ import annotations

import base64
import json
import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from coordinator.control.certificates import issue

Json = dict[str, Any]
ALLOWED: Json = {"allowed": True}


class HookServer:
    """`answers` maps a path to the response for a request; what is not there is a 404. A context manager."""

    def __init__(self, folder: Path) -> None:
        pair = issue(("127.0.0.1",), time.time())
        (folder / "hook.pem").write_bytes(pair.certificate + pair.key)
        self.bundle = base64.b64encode(pair.authorities).decode()
        self.answers: dict[str, Callable[[Json], Json | bytes]] = {}
        self.asked: list[tuple[str, Json]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                path = self.path.partition("?")[0]
                outer.asked.append((path, review))
                answer = outer.answers.get(path)
                body = b"" if answer is None else outer._body(review, answer(review["request"]))
                self.send_response(404 if answer is None else 200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that trusts somebody else
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "hook.pem")
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @staticmethod
    def _body(review: Json, response: Json | bytes) -> bytes:
        if isinstance(response, bytes):
            return response
        answer = {"apiVersion": review["apiVersion"], "kind": "AdmissionReview"}
        return json.dumps({**answer, "response": {"uid": review["request"]["uid"], **response}}).encode()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def url(self, path: str) -> str:
        return f"https://127.0.0.1:{self._server.server_address[1]}{path}"

    def requests(self, path: str) -> list[Json]:
        return [review["request"] for where, review in self.asked if where == path]
