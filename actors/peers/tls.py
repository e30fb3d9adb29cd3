"""TLS between nodes, where certificates are mounted for it: both ends show one of the same authority, or nothing moves.

    certificate, key, authority ──► contexts, made anew when the files change ──► a `Wire` that speaks TLS, either end

Any holder of a certificate of the authority is taken for a node, whatever its name: nodes are reached by address, and
addresses come and go. So the authority must be one that signs node agents alone. The fill's token is needed all the
same. Without certificates that can be loaded nothing is sent and nothing accepted, in particular not without TLS.

The kernel cannot send a file over TLS by itself, and SO_RCVTIMEO means nothing to OpenSSL, so both are done here.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
import threading
import time
from dataclasses import dataclass, fields
from pathlib import Path

from actors.peers.wire import ProtocolError, Wire

BLOCK_BYTES = 128 << 10
COMPLAIN_S = 60.0
"""The same complaint is made once in so long."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM: this node's certificate with its chain, its unencrypted key, and the authority that others must be of."""

    certificate: Path
    key: Path
    authority: Path


class Tls:
    """What connections are opened with. Any thread. Connections that are open keep what they were opened with."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._seen: object = None
        self._contexts: tuple[ssl.SSLContext, ssl.SSLContext] | None = None
        self._complained_at = -COMPLAIN_S

    @property
    def usable(self) -> bool:
        """There are certificates. While new ones cannot be loaded the last ones are kept."""
        return self._load() is not None

    def server(self, connection: socket.socket, timeout_s: float) -> Wire:
        """The accepting end; `greet` must come first. Raises OSError."""
        return TlsWire(connection, timeout_s, self, self._context(ssl.Purpose.CLIENT_AUTH))

    def client(self, connection: socket.socket, timeout_s: float) -> Wire:
        """The asking end; `greet` must come first. Raises OSError."""
        return TlsWire(connection, timeout_s, self, self._context(ssl.Purpose.SERVER_AUTH))

    def complain(self, what: str, **details: str) -> None:
        with self._lock:
            now = time.monotonic()
            if now < self._complained_at + COMPLAIN_S:
                return
            self._complained_at = now
        _log.warning(what, extra=details)

    def _context(self, peer: ssl.Purpose) -> ssl.SSLContext:
        contexts = self._load()
        if contexts is None:
            raise ProtocolError(f"no certificate for peers could be loaded from {self._files.certificate}")
        return contexts[peer is ssl.Purpose.SERVER_AUTH]

    def _load(self) -> tuple[ssl.SSLContext, ssl.SSLContext] | None:
        """For servers, and for clients. Looks at the files' times only, unless they have changed."""
        seen, complaint = tuple(_look(getattr(self._files, each.name)) for each in fields(self._files)), None
        with self._lock:
            if seen != self._seen:
                self._seen = seen
                try:
                    self._contexts = self._make(ssl.PROTOCOL_TLS_SERVER), self._make(ssl.PROTOCOL_TLS_CLIENT)
                except OSError as error:  # of ssl, too: the files are being written, or do not belong together
                    complaint = str(error)
            contexts = self._contexts
        if complaint is not None:
            self.complain("cannot load the certificate for peers", file=str(self._files.certificate), error=complaint)
        return contexts

    def _make(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # see above: the authority vouches for a node, not for an address
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self._files.authority)
        context.load_cert_chain(self._files.certificate, self._files.key, password="")  # or it would ask a terminal
        if protocol == ssl.PROTOCOL_TLS_SERVER:
            context.num_tickets = 0  # every connection shows its certificate
        return context


class TlsWire(Wire):
    """A connection over TLS, either end of it."""

    def __init__(self, connection: socket.socket, timeout_s: float, tls: Tls, context: ssl.SSLContext) -> None:
        server = context.protocol == ssl.PROTOCOL_TLS_SERVER
        self._secured = context.wrap_socket(connection, server_side=server, do_handshake_on_connect=False)
        self._tls = tls
        super().__init__(self._secured, timeout_s)

    def greet(self) -> None:
        try:
            self._secured.do_handshake()
        except ssl.SSLError as error:
            self._tls.complain("a peer was refused, or refused us", error=str(error))
            raise ProtocolError(f"no TLS with this peer: {error}") from error

    def patience(self, timeout_s: float) -> None:
        self._secured.settimeout(timeout_s)

    def send(self, data: bytes, *, more: bool = False) -> None:
        self._secured.sendall(data)

    def send_file(self, descriptor: int, start: int, size: int) -> int:
        view, sent = memoryview(bytearray(min(size, BLOCK_BYTES))), 0
        while sent < size:
            count = os.preadv(descriptor, [view[: size - sent]], start + sent)
            if not count:
                break
            self._secured.sendall(view[:count])
            sent += count
        return sent

    def _receive(self, view: memoryview) -> int:
        """As MSG_WAITALL does: all that fits, or what came before the end or a pause. OpenSSL gives 16 KiB at most."""
        count = 0
        while count < len(view):
            try:
                got = self._secured.recv_into(view[count:])
            except TimeoutError:
                if not count:
                    raise
                break
            if not got:
                break
            count += got
        return count


def _look(path: Path) -> tuple[int, int, int] | None:
    """Differs when the file does, also one that a link was turned to, as in a mounted Secret."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size
