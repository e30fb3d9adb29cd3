"""The peer port: what it gives to whom, and how it bears those that it gives nothing."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3

from actors import bitmap, peers
from actors.asking import Asker
from actors.chunks import Grid
from actors.gossip import Frame, Kind
from actors.manifest import Manifest, ManifestFile, ModelSource
from actors.messages import Company, Member, NodeName
from actors.moves import Origin, ReadOrigin
from actors.pace import Pace
from actors.peers import RAY_PORTS, PeerServer
from actors.swarm import Swarm
from actors.wire import DIGEST, READER
from tests.waiting import eventually

CHUNK = 64 << 10
SIZE = 5 * CHUNK + 100
FILL = "content-65536"
HERE, THERE, STRANGER = NodeName("here"), NodeName("there"), NodeName("stranger")
MANIFEST = Manifest(ModelSource("x://m"), None, (ManifestFile("folder/weights", SIZE), ManifestFile("zero", 0)))
COMPANY = Company(FILL, CHUNK, (Member(HERE), Member(THERE)), "secret")


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    content = random.Random(7).randbytes(SIZE)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "weights").write_bytes(content)
    (tmp_path / "zero").touch()
    return content


@pytest.fixture
def swarm(tmp_path: Path, content: bytes) -> Iterator[Swarm]:
    """Has chunks 0 to 3 of 6."""
    pace = Pace(slots=2, silence_s=0.2, news_s=0.02, settle_s=0.0)
    swarm = Swarm(HERE, COMPANY, MANIFEST, tmp_path, pace, have=0b001111, rng=random.Random(1))
    yield swarm
    swarm.close()


@pytest.fixture
def server(swarm: Swarm) -> Iterator[PeerServer]:
    server = PeerServer("127.0.0.1", 0, {FILL: swarm})
    yield server
    server.close()


@pytest.fixture
def asker() -> Iterator[Asker]:
    asker = Asker(THERE, FILL, lambda: ["secret"], 5.0)
    yield asker
    asker.close()


def the_peer(server: PeerServer) -> Member:
    return Member(HERE, address=server.address)


def raw(server: PeerServer, request: bytes) -> bytes:
    """What the port says to these bytes, until it hangs up or falls silent."""
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        answer = b""
        with contextlib.suppress(OSError):  # it may hang up before it has read everything
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while block := connection.recv(1 << 16):
                answer += block
        return answer


def request(path: str, *fields: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", *fields, "", ""]).encode()


BEARER = "Authorization: Bearer secret"


def test_a_chunk_comes_with_its_bytes_its_digest_and_who_read_it(
    server: PeerServer, asker: Asker, content: bytes
) -> None:
    for _ in range(2):  # over the same connection
        with asker.ask(the_peer(server), "GET", "chunks/2") as reply:
            body = reply.read(CHUNK)
            assert reply.status == 200
            assert body == content[2 * CHUNK : 3 * CHUNK]
            assert reply.head.fields[READER.lower()] == HERE
            assert reply.head.fields[DIGEST.lower()] == blake3(body).hexdigest()


def test_what_is_not_here_yet_is_not_given(server: PeerServer, asker: Asker) -> None:
    for number in (4, 5, 6, 10**8):
        with asker.ask(the_peer(server), "GET", f"chunks/{number}") as reply:
            assert reply.status == 425


def test_slots_are_given_back(server: PeerServer, asker: Asker, tmp_path: Path) -> None:
    for _ in range(5):
        with asker.ask(the_peer(server), "GET", "chunks/0") as reply:
            assert reply.status == 200
            reply.read(CHUNK)
    (tmp_path / "folder" / "weights").unlink()
    for _ in range(5):
        with asker.ask(the_peer(server), "GET", "chunks/0") as reply:
            assert reply.status == 425, "what was removed is not given, and takes no slot"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request(f"/fills/{FILL}/chunks/0"), 401),
        (request(f"/fills/{FILL}/chunks/0", "Authorization: Basic secret"), 401),
        (request(f"/fills/{FILL}/chunks/0", "Authorization: Bearer wrong"), 403),
        (request(f"/fills/{FILL}/chunks/0", "Authorization: Bearer "), 403),
        (request(f"/fills/{FILL}/news", "Authorization: Bearer s\xe9cret"), 403),
        (request(f"/fills/{FILL}/work", "Authorization: Bearer wrong", method="POST"), 403),
        (request("/fills/another/chunks/0", BEARER), 404),
        (request(f"/fills/{FILL}/chunks/../../etc/passwd", BEARER), 404),
        (request(f"/fills/{FILL}/chunks/-1", BEARER), 404),
        (request(f"/fills/{FILL}/chunks/{'9' * 30}", BEARER), 404),
        (request(f"/fills/{FILL}/chunks/folder%2fweights", BEARER), 404),
        (request("/", BEARER), 404),
        (request("/metrics", BEARER), 404),
        (request(f"/fills/{FILL}/chunks/0", BEARER, method="DELETE"), 404),
        (request(f"/fills/{FILL}/work", BEARER, "Content-Length: 5", method="POST") + b"hello", 400),
        (request(f"/fills/{FILL}/work", BEARER, "Transfer-Encoding: chunked", method="POST"), 400),
    ],
)
def test_nothing_is_given_without_the_token_or_beside_the_chunks(
    sent: bytes, status: int, server: PeerServer, content: bytes
) -> None:
    answer = raw(server, sent)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:100]
    assert content[:100] not in answer


@pytest.mark.parametrize(
    "sent", [b"", b"\x16\x03\x01\x02\x00\x01\x00\x01", b"GET / HTTP/1.1\r\n", b"A" * 10_000, b"\r\n\r\n"]
)
def test_junk_harms_nobody(sent: bytes, server: PeerServer, asker: Asker) -> None:
    assert b" 200 " not in raw(server, sent)
    with asker.ask(the_peer(server), "GET", "chunks/0") as reply:
        assert reply.status == 200


def test_more_connections_than_allowed_are_refused(
    server: PeerServer, asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "MAX_CONNECTIONS", 2)
    host, _, port = server.address.rpartition(":")
    kept = [socket.create_connection((host, int(port)), 10) for _ in range(3)]
    try:
        assert kept[2].recv(1) == b"", "the third is hung up on"
    finally:
        for each in kept:
            each.close()

    def served() -> bool:
        try:
            with asker.ask(the_peer(server), "GET", "chunks/0") as reply:
                return reply.status == 200
        except OSError:
            return False

    eventually(served)


def test_the_token_before_the_last_still_opens(swarm: Swarm) -> None:
    swarm.join(replace(COMPANY, token="second"))
    assert [swarm.admits(token) for token in ("secret", "second", "third", "")] == [True, True, False, False]
    swarm.join(replace(COMPANY, token="third"))
    assert [swarm.admits(token) for token in ("secret", "second", "third", "")] == [False, True, True, False]
    swarm.close()
    assert not swarm.admits("third")


def test_a_peer_that_has_not_heard_of_the_new_token_is_asked_with_the_last(server: PeerServer, swarm: Swarm) -> None:
    tokens = ["second", "secret"]
    asker = Asker(THERE, FILL, lambda: tokens, 5.0)
    try:
        statuses = []
        for rotated in (False, True):
            if rotated:
                swarm.join(replace(COMPANY, token="second"))
            with asker.ask(the_peer(server), "GET", "chunks/0") as reply:
                statuses.append(reply.status)
                reply.read(CHUNK)
        tokens[:] = ["another", "guess"]
        with asker.ask(the_peer(server), "GET", "chunks/0") as reply:
            statuses.append(reply.status)
    finally:
        asker.close()
    assert statuses == [200, 200, 403]


def test_news_come_whole_first_and_end_with_the_fill(server: PeerServer, swarm: Swarm, asker: Asker) -> None:
    frames = asker.listen(the_peer(server))
    assert next(frames) == Frame(Kind.WHOLE, 0b001111)
    with swarm.lock:
        swarm.quiet(5.0)
    assert next(frames) == Frame(Kind.DELTA, 0)
    quiet = next(frames)
    assert quiet.kind is Kind.QUIET
    assert 1000 < quiet.value <= 5000
    swarm.close()
    with pytest.raises(OSError):
        list(frames)


@pytest.mark.parametrize(("lands", "status"), [(True, 200), (False, 425)])
def test_whoever_asks_for_what_is_coming_waits_for_it(
    lands: bool, status: int, server: PeerServer, swarm: Swarm, asker: Asker
) -> None:
    swarm.join(replace(COMPANY, members=(Member(HERE), Member(THERE, owns=False))))
    with swarm.lock:
        action = swarm.mesh.next(time.monotonic())
    assert isinstance(action, ReadOrigin)
    heard: list[int] = []

    def ask() -> None:
        with asker.ask(the_peer(server), "GET", f"chunks/{action.chunk}") as reply:
            heard.append(reply.status)

    asking = threading.Thread(target=ask)
    asking.start()
    if lands:
        eventually(lambda: swarm._held, every_s=0.001)
        with swarm.lock:
            swarm.release(swarm.mesh.landed(action.chunk, Origin(HERE, b"digest"), time.monotonic()))
    asking.join()
    assert heard == [status]


def test_a_free_port_is_never_one_of_rays(tmp_path: Path) -> None:
    for _ in range(3):
        server = PeerServer("127.0.0.1", 0, {})
        assert int(server.address.rpartition(":")[2]) not in RAY_PORTS
        server.close()


def test_a_seed_has_every_chunk(content: bytes) -> None:
    grid = Grid(MANIFEST.files, CHUNK)
    assert len(grid) == 6
    assert list(grid.of_file(0)) == [0, 1, 2, 3, 4, 5]
    assert list(grid.of_file(1)) == []
    assert bitmap.full(len(grid)) == 0b111111
