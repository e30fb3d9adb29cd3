"""TLS between nodes, with real certificates over real sockets: who is let in, and that a fill is none the wiser."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from actors.manifest import ModelSource
from actors.mesh.membership import Member
from actors.peers.client import Asker
from actors.peers.server import PeerServer
from actors.peers.swarm import Swarm
from actors.peers.tls import Tls, TlsFiles
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from coordinator.dev.certificates import AUTHORITIES, Authority
from coordinator.dev.origin.sample import REPO, write_sample
from coordinator.dev.origin.server import Origin
from tests.kit.nodes import same_bytes
from tests.kit.peers import MIB, Peer, a_company, all_ready, running, wants
from tests.peering.test_peers import CHUNK, FILL, HERE, THERE, a_swarm, write_content

URI = f"hf://{REPO}"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    return write_content(tmp_path)


@pytest.fixture
def swarm(tmp_path: Path, content: bytes) -> Iterator[Swarm]:
    swarm = a_swarm(tmp_path)
    yield swarm
    swarm.close()


@pytest.fixture
def server(swarm: Swarm, authority: Authority) -> Iterator[PeerServer]:
    server = PeerServer("127.0.0.1", 0, {FILL: swarm}, Tls(authority.peer()))
    yield server
    server.close()


@contextmanager
def asking(tls: Tls | None) -> Iterator[Asker]:
    asker = Asker(THERE, FILL, lambda: ["secret"], 5.0, tls)
    yield asker
    asker.close()


def status(server: PeerServer, tls: Tls | None, token: str = "secret") -> int:
    asker = Asker(THERE, FILL, lambda: [token], 5.0, tls)
    try:
        with asker.ask(Member(HERE, address=server.address), "GET", "chunks/0") as reply:
            return reply.status
    finally:
        asker.close()


def test_a_chunk_goes_over_tls_as_it_goes_without(server: PeerServer, authority: Authority, content: bytes) -> None:
    with asking(Tls(authority.peer())) as asker:
        for _ in range(2):  # over the same connection
            with asker.ask(Member(HERE, address=server.address), "GET", "chunks/2") as reply:
                assert reply.read(CHUNK) == content[2 * CHUNK : 3 * CHUNK]
        frames = asker.listen(Member(HERE, address=server.address))
        assert next(frames).value == 0b001111


@pytest.mark.slow
def test_the_token_is_needed_all_the_same(server: PeerServer, authority: Authority) -> None:
    assert status(server, Tls(authority.peer()), "a guess") == 403


REFUSED: Mapping[str, Callable[[Authority, Path], Tls | None]] = {
    "who does not speak TLS": lambda authority, folder: None,
    "who has a certificate of another authority": lambda authority, folder: Tls(
        TlsFiles(*_pair(Authority(folder / "other").peer()), authority.file)
    ),
    "who has a certificate that has expired": lambda authority, folder: Tls(authority.peer(days=-1)),
    "who trusts another authority": lambda authority, folder: Tls(
        TlsFiles(*_pair(authority.peer()), Authority(folder / "other").file)
    ),
}


def _pair(files: TlsFiles) -> tuple[Path, Path]:
    return files.certificate, files.key


@pytest.mark.slow
@pytest.mark.parametrize("who", REFUSED)
def test_refused(who: str, server: PeerServer, authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(OSError):
        status(server, REFUSED[who](authority, tmp_path))
    assert status(server, Tls(authority.peer())) == 200


@pytest.mark.slow
def test_authorities_that_say_little_of_themselves_are_accepted(swarm: Swarm, tmp_path: Path) -> None:
    """On every version of Python. Those from 3.13 on demand more, but of no context that is made as ours are."""
    for kind, extensions in AUTHORITIES.items():
        authority = Authority(tmp_path / kind, extensions)
        server = PeerServer("127.0.0.1", 0, {FILL: swarm}, Tls(authority.peer()))
        try:
            assert status(server, Tls(authority.peer())) == 200, kind
        finally:
            server.close()


def test_who_shows_no_certificate_hears_nothing(server: PeerServer, authority: Authority) -> None:
    context = ssl.create_default_context(cafile=authority.file)
    host, _, port = server.address.rpartition(":")
    request = f"GET /fills/{FILL}/chunks/0 HTTP/1.1\r\nAuthorization: Bearer secret\r\n\r\n".encode()
    heard = b""
    with (
        socket.create_connection((host, int(port)), 10) as plain,
        contextlib.suppress(OSError),
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secured,  # it is missed only after that
    ):
        secured.sendall(request)
        heard = secured.recv(100)
    assert heard == b""


@pytest.mark.slow
def test_a_server_that_has_expired_is_told_nothing(swarm: Swarm, authority: Authority) -> None:
    server = PeerServer("127.0.0.1", 0, {FILL: swarm}, Tls(authority.peer(days=-1)))
    try:
        with pytest.raises(OSError, match="certificate has expired"):
            status(server, Tls(authority.peer()))
    finally:
        server.close()


@pytest.mark.slow
def test_files_that_are_renewed_are_used_and_broken_ones_are_not(
    server: PeerServer, authority: Authority, tmp_path: Path
) -> None:
    mine = TlsFiles(tmp_path / "tls.crt", tmp_path / "tls.key", authority.file)
    tls = Tls(mine)
    assert not tls.usable
    with pytest.raises(OSError, match="no certificate for peers could be loaded"):
        status(server, tls)

    def mount(days: int) -> None:
        made = authority.peer(days=days)
        mine.certificate.write_bytes(made.certificate.read_bytes())
        mine.key.write_bytes(made.key.read_bytes())

    mount(days=-1)
    with pytest.raises(OSError):
        status(server, tls)
    mount(days=2)
    assert status(server, tls) == 200
    mine.key.write_text("half of a")
    assert status(server, tls) == 200, "the last pair is kept"
    mine.key.unlink()
    assert tls.usable


@pytest.mark.slow
def test_nodes_fill_together_over_tls_and_one_without_a_certificate_by_itself(
    tmp_path: Path, authority: Authority
) -> None:
    sample = tmp_path / "sample"
    write_sample(sample, 8 * MIB)
    files = authority.peer()
    peers = [Peer(tmp_path / name, name, peer_tls=files) for name in ("a", "b", "c")]
    late = Peer(tmp_path / "late", "late", peer_tls=TlsFiles(tmp_path / "none", tmp_path / "none", authority.file))
    assert late.agent.report().peer_address is None, "it is no member as long as it has none"
    with Origin({REPO: sample}) as origin, running(*peers, late):
        resolved = resolve(ModelSource(URI), SourceOptions({"HF_ENDPOINT": origin.hub_endpoint}))
        company = a_company([peer.member() for peer in peers])
        for peer in peers:
            peer.agent.reconcile(wants(resolved, company, URI))
        reports = all_ready(peers, URI)
        assert all(same_bytes(peer.folder(URI), sample) for peer in peers)
        assert origin.stats()["bytes"] <= 1.02 * 8 * MIB
        assert all(report.bytes_from_peers > 0 for report in reports)
        late.agent.reconcile(wants(resolved, company, URI))
        (report,) = all_ready([late], URI)
        assert report.bytes_from_peers == 0
