"""Members of a fill that answer over real sockets as they like: the others are Ready soon, while the origin is well.

What each of them costs in every order of events is for `test_mesh_liars.py` to say; here it is that the transport
ends what it must, and that nothing a peer sends breaks a thread.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from actors.manifest import ModelSource, Resolved
from actors.messages import Member, NodeName
from actors.peers.gossip import MAX_FRAME_BYTES, Frame, Kind
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from coordinator.dev.origin.server import Origin
from tests.kit.peers import Peer, a_company, all_ready, running, wants

CHUNK = 256 << 10
SIZE = 24 * CHUNK
EVERYTHING = (1 << (SIZE // CHUNK)) - 1
STALL_S = 40.0
"""Eight times `Pace.takeover_s`, for two nodes beside one that does not do its part."""
URI = "hf://x/m"

Sends = Callable[[socket.socket], None]


def say(status: int, fields: str = "", length: int = 0) -> bytes:
    return f"HTTP/1.1 {status} Any\r\nContent-Length: {length}\r\n{fields}\r\n".encode()


def frame(kind: int, content: bytes = b"") -> bytes:
    return struct.pack(">BI", kind, len(content)) + content


CLAIM = Frame(Kind.WHOLE, EVERYTHING).encode()
ALIVE = Frame(Kind.DELTA).encode()
GIVES = f"Localmodel-Reader: liar\r\nLocalmodel-Digest: {'0' * 64}\r\n"


def sends(*parts: bytes, every_s: float = 0.0, forever: bytes = b"", then: str = "") -> Sends:
    """These one after the other; then the last for ever, or the end that is named."""

    def send(connection: socket.socket) -> None:
        for part in parts:
            connection.sendall(part)
        while forever:
            time.sleep(every_s)
            connection.sendall(forever)
        match then:
            case "hang":
                connection.recv(1)
            case "half":
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1)
            case "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()

    return send


BUSY = sends(say(503))
NEWS = sends(CLAIM, forever=ALIVE, every_s=0.5)


class RawMember:
    """A member without an agent. `chunk` answers a request for one, `news` tells; it never gives work."""

    def __init__(self, chunk: Sends, news: Sends, *, accepts: bool = True) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128 if accepts else 0)
        self.member = Member(NodeName("liar"), "1", None, f"127.0.0.1:{self.listener.getsockname()[1]}")
        self.asked = 0
        self._chunk, self._news = chunk, news
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        if accepts:
            self._thread.start()
        else:  # the queue of connections that nobody accepts is full
            for _ in range(4):
                waiting = socket.socket()
                waiting.setblocking(False)
                waiting.connect_ex(self.listener.getsockname())
                self._open.append(waiting)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            rest = b""
            while True:
                while b"\r\n\r\n" not in rest:
                    block = connection.recv(65536)
                    if not block:
                        return
                    rest += block
                head, _, rest = rest.partition(b"\r\n\r\n")
                what = head.split(b" ")[1].split(b"/")[3]
                if what == b"news":
                    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
                    self._news(connection)
                    return
                if what == b"work":
                    connection.sendall(say(204))
                    continue
                self.asked += 1
                self._chunk(connection)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


KINDS: dict[str, Callable[[], RawMember]] = {
    "busy": lambda: RawMember(BUSY, NEWS),
    "redirects to itself": lambda: RawMember(sends(say(307, "Localmodel-Reader: liar\r\n")), NEWS),
    "redirects to nobody": lambda: RawMember(sends(say(307)), NEWS),
    "no content": lambda: RawMember(sends(say(204)), NEWS),
    "not found, and claims nothing": lambda: RawMember(sends(say(404)), sends(forever=ALIVE, every_s=0.5)),
    "a status that is no number": lambda: RawMember(sends(b"HTTP/1.1 nan X\r\n\r\n"), NEWS),
    "no HTTP": lambda: RawMember(sends(b"\0" * 64 + b"\r\n\r\n"), NEWS),
    "a head without end": lambda: RawMember(sends(b"HTTP/1.1 200 OK\r\n", forever=b"X", every_s=0.2), NEWS),
    "a byte now and then": lambda: RawMember(sends(say(200, GIVES, CHUNK), forever=b"x", every_s=0.2), NEWS),
    "wrong bytes": lambda: RawMember(sends(say(200, GIVES, CHUNK), b"x" * CHUNK), NEWS),
    "a wrong length": lambda: RawMember(sends(say(200, GIVES, 10**14), then="hang"), NEWS),
    "a length that is none": lambda: RawMember(sends(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"), NEWS),
    "silent": lambda: RawMember(sends(then="hang"), NEWS),
    "accepts nothing": lambda: RawMember(BUSY, NEWS, accepts=False),
    "closes half": lambda: RawMember(sends(say(200, GIVES, CHUNK), b"x" * 1000, then="half"), NEWS),
    "resets": lambda: RawMember(sends(say(200, GIVES, CHUNK), b"x" * 1000, then="reset"), NEWS),
    "claims and takes back": lambda: RawMember(
        BUSY, sends(forever=CLAIM + Frame(Kind.WHOLE).encode() + CLAIM, every_s=0.3)
    ),
    "news without end": lambda: RawMember(BUSY, sends(forever=CLAIM * 50)),
    "news of more than there is": lambda: RawMember(BUSY, sends(frame(2, b"\xff" * 4000), forever=ALIVE, every_s=0.5)),
    "a gigantic frame": lambda: RawMember(BUSY, sends(frame(2, b"\xff" * (MAX_FRAME_BYTES + 1)), then="hang")),
    "a frame of another kind": lambda: RawMember(BUSY, sends(CLAIM, frame(77, b"abc"), forever=ALIVE, every_s=0.5)),
    "a frame that never ends": lambda: RawMember(BUSY, sends(CLAIM, struct.pack(">BI", 1, 3), then="hang")),
    "quiet for ever": lambda: RawMember(BUSY, sends(Frame(Kind.QUIET, 10**19).encode(), forever=ALIVE, every_s=0.5)),
    "quiet again and again": lambda: RawMember(BUSY, sends(forever=Frame(Kind.QUIET, 3_600_000).encode(), every_s=0.1)),
    "quiet beyond all numbers": lambda: RawMember(BUSY, sends(forever=frame(3, b"\xff" * 60_000), every_s=0.5)),
}


AT_A_TIME = 5
"""Kinds that are tried beside each other, each with two nodes of its own: more would be slow by themselves."""


@dataclass(frozen=True, slots=True)
class Outcome:
    took_s: float
    from_origin_bytes: int


def fill_beside(kind: str, resolved: Resolved, folder: Path) -> Outcome:
    """Two nodes and a liar of this kind have come together, and the two are Ready."""
    liar = KINDS[kind]()
    nodes = [Peer(folder / name, name, scrub_bytes_per_s=None) for name in ("a", "b")]
    try:
        with running(*nodes):
            members = [*(node.member() for node in nodes), liar.member]
            began = time.monotonic()
            for node in nodes:
                node.agent.reconcile(wants(resolved, a_company(members, chunk_bytes=CHUNK), URI))
            reports = all_ready(nodes, URI)
            return Outcome(time.monotonic() - began, sum(report.bytes_from_origin for report in reports))
    finally:
        liar.close()


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Future[Outcome]]]:
    """What comes of every kind that was chosen."""
    chosen = [kind for kind in KINDS if any(item.name.endswith(f"[{kind}]") for item in request.session.items)]
    repo = tmp_path_factory.mktemp("repo")
    (repo / "w.safetensors").write_bytes(random.Random(1).randbytes(SIZE))
    with Origin({"x/m": repo}) as origin, ThreadPoolExecutor(AT_A_TIME) as pool:
        resolved = resolve(ModelSource(URI), SourceOptions({"HF_ENDPOINT": origin.url}))
        yield {kind: pool.submit(fill_beside, kind, resolved, tmp_path_factory.mktemp("nodes")) for kind in chosen}
        pool.shutdown(cancel_futures=True)


@pytest.mark.e2e
@pytest.mark.parametrize("kind", KINDS)
def test_two_nodes_beside_a_liar_are_ready_soon(kind: str, outcomes: Mapping[str, Future[Outcome]]) -> None:
    outcome = outcomes[kind].result()
    assert outcome.took_s <= STALL_S
    assert outcome.from_origin_bytes <= SIZE + 8 * CHUNK
