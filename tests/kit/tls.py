"""TLS in front of a test origin, and between nodes, with the certificates a test wants: good, and each way of bad.

    authority ── signs ──► good | expired | elsewhere (another host's name)        stranger: signed by nobody

Made by `openssl`, so that no package is needed for it.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from actors.peers.tls import TlsFiles

HERE = "subjectAltName=IP:127.0.0.1,DNS:localhost"
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class Authority:
    """A certificate authority with a folder; `file` is what a client must trust."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.file = folder / "ca.pem"
        self._peers = 0
        self._run("req", "-x509", *_KEY, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test CA", "-days", "2")

    def good(self) -> ssl.SSLContext:
        return self._issue("good", HERE, days=2)

    def expired(self) -> ssl.SSLContext:
        return self._issue("expired", HERE, days=-1)

    def elsewhere(self) -> ssl.SSLContext:
        return self._issue("elsewhere", "subjectAltName=DNS:elsewhere.example", days=2)

    def peer(self, *, days: int = 2) -> TlsFiles:
        """What a node is given: another certificate every time."""
        self._peers += 1
        name = f"peer-{self._peers}"
        self._issue(name, HERE, days=days)
        return TlsFiles(self.folder / f"{name}.pem", self.folder / f"{name}.key", self.file)

    def _issue(self, name: str, names: str, *, days: int) -> ssl.SSLContext:
        (self.folder / "names").write_text(names)
        self._run("req", *_KEY, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", "/CN=test")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
        self._run("x509", "-req", "-in", f"{name}.csr", "-days", str(days), *signed, "-out", f"{name}.pem")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        return context

    def _run(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)


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
