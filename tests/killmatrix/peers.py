"""Members of a fill that do not play along: each is a real server on a peer port, and says that it has every chunk."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.killmatrix.nodes import SIZE, Nodes
from tests.killmatrix.trial import MIB, Fault

EVERY_CHUNK = (1 << (2 * SIZE // MIB)) - 1
_DELTA, _WHOLE, _QUIET = 1, 2, 3

Answer = Callable[[socket.socket], None]
"""What it does with one request for a chunk, or for news. The connection is closed afterwards."""


def frame(kind: int, value: int = 0) -> bytes:
    content = value.to_bytes((value.bit_length() + 7) // 8, "big")
    return struct.pack(">BI", kind, len(content)) + content


def says(status: int, *headers: str, body: bytes = b"") -> Answer:
    head = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status} X", *headers, f"Content-Length: {len(body)}"))
    return lambda connection: connection.sendall(head.encode() + b"\r\n" + body)


def silent(connection: socket.socket) -> None:
    connection.settimeout(60)
    connection.recv(1)


def trickles(connection: socket.socket) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {MIB}\r\nLocalmodel-Reader: stranger\r\n"
    connection.sendall(f"{head}Localmodel-Digest: {'0' * 64}\r\n\r\n".encode())
    while True:
        connection.sendall(b"x")
        time.sleep(0.2)


def hangs_up(connection: socket.socket) -> None:
    return


def wrong_bytes(connection: socket.socket) -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {MIB}\r\nLocalmodel-Reader: stranger\r\n"
    connection.sendall(f"{head}Localmodel-Digest: {'0' * 64}\r\n\r\n".encode() + bytes(MIB))


def news(*frames: bytes, then: Answer = silent) -> Answer:
    def answer(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"".join(frames))
        then(connection)

    return answer


def signs_of_life(connection: socket.socket) -> None:
    while True:
        time.sleep(0.5)
        connection.sendall(frame(_DELTA))


def floods(connection: socket.socket) -> None:
    block = frame(_WHOLE, EVERY_CHUNK) * 1000
    for _ in range(2000):  # bounded, should nobody hang up
        connection.sendall(block)


HONEST_NEWS = news(frame(_WHOLE, EVERY_CHUNK), then=signs_of_life)


class Stranger:
    """Serves until it is closed. `chunk` answers requests for chunks, `told` those for news."""

    def __init__(self, chunk: Answer, told: Answer = HONEST_NEWS, work: Answer | None = None) -> None:
        self._answers = {"chunk": chunk, "news": told, "work": work or says(204)}
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        for each in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.add(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, IndexError, ValueError), connection:
            head = b""
            while b"\r\n\r\n" not in head:
                block = connection.recv(65536)
                if not block:
                    return
                head += block
            what = head.split(b" ")[1].decode("latin-1").split("/")[3]
            self._answers.get(what, self._answers["chunk"])(connection)


def joined_by(chunk: Answer, told: Answer = HONEST_NEWS) -> Callable[[Nodes], None]:
    def prepare(nodes: Nodes) -> None:
        stranger = Stranger(chunk, told)
        nodes.closing.callback(stranger.close)
        nodes.strangers["stranger"] = stranger.address

    return prepare


@contextmanager
def from_the_start(nodes: Nodes) -> Iterator[None]:
    yield


def _row(name: str, chunk: Answer, told: Answer = HONEST_NEWS, *, short: bool = False) -> Fault[Nodes]:
    """The stranger owns a share of the chunks; each may be read by two that act for it at the same moment."""
    prepare = joined_by(chunk, told)
    return Fault("peer", name, from_the_start, twice_mib=4, at=(0.0, 0.1), short=short, prepare=prepare)


FAULTS: list[Fault[Nodes]] = [
    _row("a member only answers 503", says(503), short=True),
    _row("a member only answers 404", says(404)),
    _row("a member redirects to itself", says(307, "Localmodel-Reader: stranger")),
    _row("a member redirects to nobody", says(307, "Localmodel-Reader: nobody")),
    _row("a member is silent", silent),
    _row("a member is silent, its news too", silent, silent),
    _row("a member sends a byte now and then", trickles),
    _row("a member hangs up", hangs_up),
    _row("a member sends wrong bytes", wrong_bytes, short=True),
    _row("a member asks for quiet for ever", says(503), news(frame(_WHOLE), frame(_QUIET, 10**19)), short=True),
    _row("a member's news do not end", says(503), news(then=floods)),
    _row("a member's news are no frames", says(503), news(b"\xff" * 4096)),
]
