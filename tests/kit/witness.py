"""A web server at any loopback address that says who asked it for what, and answers as it is told."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Mapping
from typing import Any, Self

Answer = tuple[int, Mapping[str, str], bytes]


class Witness:
    """`answer` is given the path of every request; `asked` holds method, path and headers of each."""

    def __init__(self, host: str, answer: Callable[[str], Answer] = lambda path: (404, {}, b"")) -> None:
        self.answer = answer
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        witness = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                self.rfile.read(length)
                witness.asked.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
                status, headers, body = witness.answer(self.path)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_POST = do_GET  # noqa: N815  # as the class wants it

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer((host, 0), Handler)
        self.host = host
        self.port = self._server.server_port
        self.url = f"http://{host}:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def paths(self) -> list[str]:
        return [path for _, path, _ in self.asked]

    @property
    def authorizations(self) -> set[str]:
        """What was shown to it."""
        return {headers["authorization"] for _, _, headers in self.asked if "authorization" in headers}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
