"""TLS in front of a test origin, with a certificate that may be replaced at any time."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from typing import Self
from urllib.parse import urlsplit


class TlsFront:
    """Passes on to the server at `url` what comes over TLS. `context` may be replaced at any time."""

    def __init__(self, url: str, context: ssl.SSLContext) -> None:
        self.context = context
        self._behind = (urlsplit(url).hostname or "", urlsplit(url).port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = [self._listener]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            try:
                plain.settimeout(10)
                client = self.context.wrap_socket(plain, server_side=True)
                behind = socket.create_connection(self._behind)
            except OSError:  # a client that does not like the certificate
                plain.close()
                continue
            self._open += [client, behind]
            thread = threading.Thread(target=_pass_on, args=(client, behind))
            self._threads.append(thread)
            thread.start()


def _pass_on(client: ssl.SSLSocket, behind: socket.socket) -> None:
    """In one thread, because a TLS connection is not to be used by two."""
    with contextlib.suppress(OSError, ValueError):
        while True:
            ready = [client] if client.pending() else select.select([client, behind], [], [])[0]
            for source in ready:
                data = source.recv(1 << 16)
                if not data:
                    raise ConnectionError
                (behind if source is client else client).sendall(data)
    for each in (client, behind):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
