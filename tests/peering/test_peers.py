"""The peer port: what it gives to whom, and how it bears those that it gives nothing."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3

from actors.chunks import Grid
from actors.manifest import Manifest, ManifestFile, ModelSource
from actors.mesh import bitmap
from actors.mesh.actions import Answer, Origin, ReadOrigin
from actors.mesh.limits import Pace
from actors.messages import Company, Member, NodeName
from actors.peers import server as peers
from actors.peers import wire
from actors.peers.client import Asker
from actors.peers.gossip import Frame, Kind
from actors.peers.server import FIRST_HEAD_S, RAY_PORTS, PeerServer, Sending
from actors.peers.swarm import Swarm
from actors.peers.wire import DIGEST, NODE, READER
from coordinator.dev.trial.waiting import eventually

CHUNK = 64 << 10
SIZE = 5 * CHUNK + 100
FILL = "content-65536"
HERE, THERE, STRANGER = NodeName("here"), NodeName("there"), NodeName("stranger")
MANIFEST = Manifest(ModelSource("x://m"), None, (ManifestFile("folder/weights", SIZE), ManifestFile("zero", 0)))
COMPANY = Company(FILL, CHUNK, (Member(HERE), Member(THERE)), "secret")


def write_content(folder: Path) -> bytes:
    content = random.Random(7).randbytes(SIZE)
    (folder / "folder").mkdir()
    (folder / "folder" / "weights").write_bytes(content)
    (folder / "zero").touch()
    return content


def a_swarm(folder: Path) -> Swarm:
    """Has chunks 0 to 3 of 6."""
    pace = Pace(slots=2, silence_s=0.2, news_s=0.02, settle_s=0.0)
    return Swarm(HERE, COMPANY, MANIFEST, folder, pace, have=0b001111, rng=random.Random(1))


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    return write_content(tmp_path)


@pytest.fixture
def swarm(tmp_path: Path, content: bytes) -> Iterator[Swarm]:
    swarm = a_swarm(tmp_path)
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


def test_a_chunk_that_the_asker_has_elsewhere_is_named_and_not_sent(
    server: PeerServer, asker: Asker, content: bytes
) -> None:
    here, other = blake3(content[2 * CHUNK : 3 * CHUNK]).digest(), bytes(32)
    for _ in range(5):  # over the same connection; slots are given back
        with asker.ask(the_peer(server), "GET", "chunks/2", unless=[other, here]) as reply:
            assert (reply.status, reply.left) == (304, 0)
            assert reply.head.fields[READER.lower()] == HERE
            assert reply.head.fields[DIGEST.lower()] == here.hex()
    with asker.ask(the_peer(server), "GET", "chunks/2", unless=[other]) as reply:
        assert (reply.status, reply.read(CHUNK)) == (200, content[2 * CHUNK : 3 * CHUNK])


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


def plain_connection(server: PeerServer) -> socket.socket:
    host, _, port = server.address.rpartition(":")
    return socket.create_connection((host, int(port)), 10)


@pytest.mark.parametrize("limit", ["MAX_CONNECTIONS", "MAX_PER_ADDRESS"])
def test_connections_that_ask_for_nothing_give_way_to_those_that_do(
    limit: str, server: PeerServer, asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, limit, 2)
    with contextlib.ExitStack() as kept:
        first, *_ = [kept.enter_context(plain_connection(server)) for _ in range(5)]
        assert first.recv(1) == b"", "it has been idle for longest"
        with asker.ask(the_peer(server), "GET", "chunks/0") as reply:
            assert reply.status == 200


@pytest.mark.slow
def test_connections_at_work_do_not_give_way(server: PeerServer, asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "MAX_CONNECTIONS", 2)
    listening = [asker.listen(the_peer(server)) for _ in range(2)]
    for frames in listening:
        next(frames)
    with plain_connection(server) as third:
        assert third.recv(1) == b"", "there is no room for it"
    for frames in listening:
        assert next(frames) == Frame(Kind.DELTA)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", b"GET /fills/x HTTP/1.1\r\n"], ids=["nothing", "half a head"])
def test_a_connection_that_asks_for_nothing_is_hung_up_on(
    sent: bytes, server: PeerServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "FIRST_HEAD_S", 0.1)
    with plain_connection(server) as idle:
        idle.sendall(sent)
        assert idle.recv(1) == b""


def test_a_head_that_comes_a_byte_at_a_time_is_not_waited_for(
    server: PeerServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "HEAD_TIMEOUT_S", 0.1)
    with plain_connection(server) as slow:
        slow.settimeout(0.02)

        def hung_up_on() -> bool:
            try:
                slow.sendall(b"G")
                return slow.recv(1) == b""
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        eventually(hung_up_on, timeout_s=FIRST_HEAD_S / 2, every_s=0.0)


@pytest.mark.slow
def test_a_peer_that_takes_a_byte_now_and_then_does_not_keep_a_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "time_for", lambda size: 0.3)
    size = 64 << 20  # more than the kernel takes off our hands
    with (tmp_path / "large").open("wb") as file:
        file.truncate(size)
    manifest = Manifest(ModelSource("x://m"), None, (ManifestFile("large", size),))
    swarm = Swarm(
        HERE, replace(COMPANY, chunk_bytes=size), manifest, tmp_path, Pace(slots=2), have=1, rng=random.Random(1)
    )
    server = PeerServer("127.0.0.1", 0, {FILL: swarm})
    asked = [request(f"/fills/{FILL}/chunks/0", BEARER, f"{NODE}: {name}") for name in ("one", "two")]
    try:
        slow = [plain_connection(server) for _ in asked]
        for connection, each in zip(slow, asked, strict=True):
            connection.sendall(each)
            assert connection.recv(10) == b"HTTP/1.1 2"

        def slot() -> bool:
            for connection in slow:
                with contextlib.suppress(ConnectionError):
                    connection.recv(1)
            answer = swarm.asked(THERE, 0, bytearray())
            if isinstance(answer, Sending):
                os.close(answer.descriptor)
            return answer is not Answer.BUSY

        assert swarm.asked(THERE, 0, bytearray()) is Answer.BUSY
        eventually(slot)
        for connection in slow:
            connection.close()
    finally:
        server.close()
        swarm.close()


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
    swarm.pause(5.0)
    assert next(frames) == Frame(Kind.DELTA, 0)
    quiet = next(frames)
    assert quiet.kind is Kind.QUIET
    assert 1000 < quiet.value <= 5000
    swarm.close()
    with pytest.raises(OSError):
        list(frames)


@pytest.mark.parametrize(("lands", "status"), [(True, 200), (False, 503)])
def test_whoever_asks_for_what_is_coming_waits_for_it(
    lands: bool, status: int, server: PeerServer, swarm: Swarm, asker: Asker
) -> None:
    swarm.join(replace(COMPANY, members=(Member(HERE), Member(THERE, owns=False))))
    (action, *_), _ = swarm.begin()
    assert isinstance(action, ReadOrigin)
    heard: list[int] = []

    def ask() -> None:
        with asker.ask(the_peer(server), "GET", f"chunks/{action.chunk}") as reply:
            heard.append(reply.status)

    asking = threading.Thread(target=ask)
    asking.start()
    if lands:
        eventually(lambda: swarm._held, every_s=0.001)
        swarm.landed(action.chunk, Origin(HERE, b"digest"))
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
