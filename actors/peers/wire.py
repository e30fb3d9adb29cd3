"""HTTP/1.1 between nodes, as little of it as two ends that know each other need: heads, and bytes of a known length.

    GET  /fills/{fill}/chunks/{number}      a chunk, if it is here
    GET  /fills/{fill}/news                 what has landed here, told for as long as the connection lasts
    POST /fills/{fill}/work                 a chunk that is ours to read from the source and not begun: the asker's now

    Authorization: Bearer …                 the fill's token
    Localmodel-Node: …                      who asks

Requests have no body. Sockets block, and time out in the kernel (SO_RCVTIMEO): `settimeout` would cost a poll per call.
Failures raise OSError; what is no HTTP, or too long, `ProtocolError`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MAX_HEAD_BYTES = 4096
HEAD_TIMEOUT_S = 5.0
"""For a head to arrive, once it has begun."""
SLOWEST_BYTES_PER_S = 32 << 10
"""A body that comes slower than this is broken off, though it still moves."""
READER, DIGEST, NODE = "Localmodel-Reader", "Localmodel-Digest", "Localmodel-Node"
UNLESS = "If-None-Match"
"""Of a request for a chunk: digests, quoted, of bytes that the asker has elsewhere on its disk."""

_END = b"\r\n\r\n"


class ProtocolError(OSError):
    """The other end does not speak this."""


class Closed(OSError):
    """The other end hung up between two heads."""


@dataclass(frozen=True, slots=True)
class Head:
    """`first` is the request or status line. Field names are in lower case."""

    first: str
    fields: Mapping[str, str]

    @property
    def length(self) -> int:
        """Of the body. Raises ProtocolError for what is no length."""
        text = self.fields.get("content-length", "0")
        if not text.isdecimal() or len(text) > 15:
            raise ProtocolError(f"not a length: {text!r}")
        return int(text)


class Wire:
    """One connection, either end of it. For one thread; `cut` may be called by any."""

    def __init__(self, connection: socket.socket, timeout_s: float) -> None:
        self.socket = connection
        self._rest = b""
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.patience(timeout_s)

    def patience(self, timeout_s: float) -> None:
        """From now on a call that moves no byte for so long raises BlockingIOError."""
        value = struct.pack("ll", int(timeout_s), int(timeout_s % 1 * 1e6))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def greet(self) -> None:
        """Each end knows that the other is one to talk to, as far as that is told before the first head."""

    def send(self, data: bytes, *, more: bool = False) -> None:
        """`more`: something follows at once, so that the two may share a packet."""
        self.socket.sendall(data, socket.MSG_MORE if more else 0)

    def send_file(self, descriptor: int, start: int, size: int) -> int:
        """So many bytes of an open file, from the page cache. How many there were: less if it became shorter."""
        sent = 0
        while sent < size:
            count = os.sendfile(self.socket.fileno(), descriptor, start + sent, size - sent)
            if not count:
                break
            sent += count
        return sent

    def send_head(self, first: str, fields: Mapping[str, object], *, more: bool = False) -> None:
        lines = [first, *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        self.send("\r\n".join(lines).encode("latin-1"), more=more)

    def read_head(self) -> Head:
        """Raises Closed if there is none, ProtocolError for one that is too long or takes too long."""
        head, deadline = self._rest, 0.0
        while _END not in head:
            if len(head) >= MAX_HEAD_BYTES or (deadline and time.monotonic() > deadline):
                raise ProtocolError("the head is too long, or too slow")
            block = self.socket.recv(MAX_HEAD_BYTES)
            if not block:
                raise ProtocolError("hung up in the middle of a head") if head else Closed("hung up")
            deadline = deadline or time.monotonic() + HEAD_TIMEOUT_S
            head += block
        head, _, self._rest = head.partition(_END)
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        return Head(first, {name.strip().lower(): value.strip() for name, _, value in pairs})

    def read_into(self, view: memoryview) -> int:
        """At least one byte of the body, at most what fits; as many as there are. Raises ProtocolError at its end."""
        count = len(self._rest)
        if count:
            count = min(count, len(view))
            view[:count], self._rest = self._rest[:count], self._rest[count:]
            return count
        count = self._receive(view)
        if not count:
            raise ProtocolError("hung up in the middle of a body")
        return count

    def read(self, count: int) -> bytes:
        content = bytearray(count)
        view = memoryview(content)
        while view:
            view = view[self.read_into(view) :]
        return bytes(content)

    def _receive(self, view: memoryview) -> int:
        return self.socket.recv_into(view, 0, socket.MSG_WAITALL)  # a thread switch per packet would cost more

    def cut(self) -> None:
        """The thread that waits for this connection is told that it is over."""
        with contextlib.suppress(OSError):  # it was over before
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)  # of TLS, too: its own would end the encryption first

    def close(self) -> None:
        self.socket.close()


def address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def time_for(size_bytes: int) -> float:
    """Seconds in which a body must be over. A peer that is slower is given up, though it still moves."""
    return 30.0 + size_bytes / SLOWEST_BYTES_PER_S


def connect(where: str, timeout_s: float, open_wire: Callable[[socket.socket, float], Wire] = Wire) -> Wire:
    """Raises OSError, also for what is no address."""
    host, _, port = where.rpartition(":")
    if not host or not port.isdecimal():
        raise ProtocolError(f"not an address: {where!r}")
    connection = socket.create_connection((host.strip("[]"), int(port)), timeout_s)
    try:
        wire = open_wire(connection, timeout_s)
    except OSError:
        connection.close()
        raise
    try:
        wire.greet()
    except OSError:
        wire.close()
        raise
    return wire
