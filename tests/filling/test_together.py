"""Several real node agents and a real origin: a model is read once, whatever happens to nodes, peers and origin."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from actors.chunks import Grid
from actors.disk.store import read_marker
from actors.errors import Failure
from actors.manifest import Resolved, known_from_a_copy, storage_key
from actors.mesh.actions import Answer, Elsewhere
from actors.mesh.actions import Origin as ReadBy
from actors.messages import Company, DesiredRoot, DesiredState, Member, NodeName, Phase
from actors.peers.content import digest_of
from actors.peers.gossip import Frame, Kind
from actors.peers.server import PeerServer, Sending
from actors.peers.swarm import Swarm
from coordinator.dev.origin.faults import Fault
from coordinator.dev.origin.sample import REPO
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.agent_process import AgentProcess
from coordinator.dev.trial.waiting import eventually
from tests.kit.nodes import same_bytes
from tests.kit.peers import MIB, OWNER, Peer, a_company, all_ready, running, wants

pytestmark = pytest.mark.slow

SAMPLE_BYTES = 16 * MIB
CHUNK = 256 << 10
URI = f"hf://{REPO}"


def some_peers(tmp_path: Path, count: int, **settings: object) -> list[Peer]:
    return [Peer(tmp_path / f"node-{number}", f"node-{number}", **settings) for number in range(count)]


def tell(peers: list[Peer], resolved: Resolved, company: Company | None) -> None:
    for peer in peers:
        peer.agent.reconcile(wants(resolved, company, URI))


def done(peer: Peer) -> int:
    report = peer.model(URI)
    return report.bytes_done if report is not None else 0


def failure_of(peer: Peer) -> str | None:
    report = peer.model(URI)
    return report.failure.reason if report is not None and report.failure is not None else None


def test_cold_nodes_read_the_origin_once(tmp_path: Path, origin: Origin, resolved: Resolved, sample: Path) -> None:
    peers = some_peers(tmp_path, 4)
    with running(*peers):
        tell(peers, resolved, a_company([peer.member() for peer in peers]))
        reports = all_ready(peers, URI)
        assert all(same_bytes(peer.folder(URI), sample) for peer in peers)
    assert origin.stats()["bytes"] <= 1.02 * SAMPLE_BYTES
    assert sum(report.bytes_from_origin for report in reports) == origin.stats()["bytes"], "the origin agrees"
    for report in reports:
        assert report.bytes_from_origin + report.bytes_from_peers >= SAMPLE_BYTES
        assert report.part is not None
        assert (report.wrong_peers, report.wrong_readers) == ({}, {})
    assert max(report.bytes_from_origin for report in reports) < SAMPLE_BYTES, "the reading was shared out"


def test_a_late_joiner_takes_everything_from_peers(
    tmp_path: Path, origin: Origin, resolved: Resolved, sample: Path
) -> None:
    *early, late = some_peers(tmp_path, 3)
    with running(*early, late):
        tell(early, resolved, a_company([peer.member() for peer in early]))
        all_ready(early, URI)
        before = origin.stats()["bytes"]
        company = a_company([*(peer.member() for peer in early), late.member(owns=False)])
        tell([*early, late], resolved, company)
        (report,) = all_ready([late], URI)
        assert same_bytes(late.folder(URI), sample)
    assert (report.bytes_from_origin, report.bytes_from_peers) == (0, SAMPLE_BYTES)
    assert origin.stats()["bytes"] == before


def test_bytes_are_taken_from_the_same_zone_and_those_that_cross_are_counted(
    tmp_path: Path, origin: Origin, resolved: Resolved, sample: Path
) -> None:
    *early, late = some_peers(tmp_path, 5)
    zones = {
        peer.name: zone for peer, zone in zip([*early, late], ("east", "west", "west", "west", "east"), strict=True)
    }

    def members(peers: list[Peer]) -> list[Member]:
        return [peer.member(zone=zones[peer.name], owns=peer is not late) for peer in peers]

    with running(*early, late):
        tell(early, resolved, a_company(members(early)))
        lonely, *_ = all_ready(early, URI)
        tell([*early, late], resolved, a_company(members([*early, late])))
        (report,) = all_ready([late], URI)
        assert same_bytes(late.folder(URI), sample)
    assert report.bytes_from_peers == SAMPLE_BYTES
    assert report.bytes_from_other_zones < 0.5 * SAMPLE_BYTES, "three of the four that have it are in the other zone"
    assert lonely.bytes_from_other_zones == lonely.bytes_from_peers > 0, "nobody else is in its zone"


def test_a_committed_copy_seeds_the_others_though_the_origin_and_its_first_agent_are_gone(
    tmp_path: Path, origin: Origin, resolved: Resolved, sample: Path
) -> None:
    seed, *cold = some_peers(tmp_path, 3)
    with running(seed, *cold):
        tell([seed], resolved, None)
        (report,) = all_ready([seed], URI)
        assert report.part is None, "one node alone takes part in nothing"
        assert report.bytes_from_peers == 0
        seed.agent.close()
        origin.close()
        seed = Peer(seed.host_root, seed.name)
        with running(seed):
            company = a_company([seed.member(owns=False, seed=True), *(peer.member() for peer in cold)])
            tell([seed, *cold], resolved, company)
            reports = all_ready(cold, URI)
        assert all(same_bytes(peer.folder(URI), sample) for peer in cold)
    assert [report.bytes_from_origin for report in reports] == [0, 0]


def test_what_a_copy_consists_of_is_enough_for_the_others_to_fill_from_it(
    tmp_path: Path, origin: Origin, resolved: Resolved, sample: Path
) -> None:
    seed, *cold = some_peers(tmp_path, 3)
    silent = Failure("SourceUnreachable", "the hub refused the connection")
    with running(seed, *cold):
        tell([seed], resolved, None)
        (report,) = all_ready([seed], URI)
        assert seed.agent.report().manifests == {}, "nobody has asked"
        origin.close()
        asked = replace(wants(resolved, None, URI), manifests=frozenset({storage_key(URI)}))
        (manifest,) = seed.agent.reconcile(asked).manifests.values()
        assert manifest.digest == report.manifest_digest
        known = known_from_a_copy(manifest, silent)
        tell(cold, known, None)
        reasons = [eventually(lambda peer=peer: failure_of(peer)) for peer in cold]  # type: ignore[misc]  # a default argument binds the loop variable
        assert reasons == [silent.reason] * 2, "alone they cannot, and say why"
        members = [seed.member(owns=False, seed=True), *(peer.member() for peer in cold)]
        tell([seed, *cold], known, a_company(members))
        reports = all_ready(cold, URI)
        assert all(same_bytes(peer.folder(URI), sample) for peer in cold)
    assert [(each.bytes_from_origin, each.manifest_digest) for each in reports] == [(0, manifest.digest)] * 2


def test_a_fill_that_can_read_its_origin_goes_on_when_that_no_longer_says_where_its_files_are(
    tmp_path: Path, origin: Origin, resolved: Resolved, sample: Path
) -> None:
    (peer,) = some_peers(tmp_path, 1)
    origin.faults.set(Fault(path="/_cdn/*", latency_s=0.2))
    with running(peer):
        tell([peer], resolved, None)
        eventually(lambda: done(peer), every_s=0.01)
        origin.faults.clear()
        tell([peer], known_from_a_copy(resolved.manifest, Failure("SourceThrottled", "429")), None)
        (report,) = all_ready([peer], URI)
        assert same_bytes(peer.folder(URI), sample)
    assert report.bytes_from_origin == SAMPLE_BYTES


def test_a_node_that_fills_alone_goes_on_in_company_with_what_it_has(
    tmp_path: Path, origin: Origin, resolved: Resolved, sample: Path
) -> None:
    first, second = some_peers(tmp_path, 2, chunk_bytes=CHUNK)
    origin.faults.set(Fault(path="/_cdn/*0000[34]*", latency_s=0.3))
    with running(first, second):
        tell([first], resolved, None)
        eventually(lambda: done(first) > SAMPLE_BYTES * 0.4, every_s=0.01, seen=lambda: first.model(URI))
        origin.faults.clear()
        tell([first, second], resolved, a_company([first.member(), second.member()]))
        reports = all_ready([first, second], URI)
        assert same_bytes(second.folder(URI), sample)
    assert all(report.attempt == 1 for report in reports if report.attempt), "nothing started over"
    assert sum(report.bytes_from_origin for report in reports) < 1.3 * SAMPLE_BYTES
    assert reports[1].bytes_from_peers > 0.4 * SAMPLE_BYTES


def test_bytes_that_are_spread_over_the_peers_are_enough_when_the_origin_is_down(
    tmp_path: Path, origin: Origin, resolved: Resolved, sample: Path
) -> None:
    first, second = some_peers(tmp_path, 2)
    with running(first, second):
        for peer, kept_back in ((first, "*0000[34]-of*"), (second, "*0000[12]-of*")):
            origin.faults.set(Fault(path=f"/_cdn/{kept_back}", stall_after_bytes=0))
            tell([peer], resolved, None)
            eventually(lambda peer=peer: done(peer) > SAMPLE_BYTES * 0.49, every_s=0.01, seen=lambda: first.model(URI))  # type: ignore[misc]  # a default argument binds the loop variable
        before = origin.stats()["bytes"]
        origin.faults.set(Fault(status=503))
        tell([first, second], resolved, a_company([first.member(), second.member()]))
        all_ready([first, second], URI)
        assert all(same_bytes(peer.folder(URI), sample) for peer in (first, second))
    assert origin.stats()["bytes"] == before


def test_an_origin_that_is_down_for_all_is_said_and_waited_for(
    tmp_path: Path, origin: Origin, resolved: Resolved, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.fill.cooperative.STUCK_S", 0.5)
    peers = some_peers(tmp_path, 2)
    origin.faults.set(Fault(status=404))
    with running(*peers):
        tell(peers, resolved, a_company([peer.member() for peer in peers]))

        def failed() -> bool:
            reports = [peer.model(URI) for peer in peers]
            return all(r is not None and r.failure and r.failure.reason == "SourceNotFound" for r in reports)

        eventually(failed, every_s=0.01, seen=lambda: [peer.model(URI) for peer in peers])
        origin.faults.clear()
        all_ready(peers, URI)
    assert origin.stats()["bytes"] < 1.1 * SAMPLE_BYTES


def test_an_origin_that_is_wrong_itself_is_to_blame_and_no_peer(
    tmp_path: Path, origin: Origin, resolved: Resolved
) -> None:
    peers = some_peers(tmp_path, 2)
    origin.faults.set(Fault(path="/_cdn/*00001-of*", corrupt_bytes=8))
    with running(*peers):
        tell(peers, resolved, a_company([peer.member() for peer in peers]))

        def failed() -> bool:
            reports = [peer.model(URI) for peer in peers]
            return all(r is not None and r.failure and r.failure.reason == "IntegrityError" for r in reports)

        eventually(failed, every_s=0.01, seen=lambda: [peer.model(URI) for peer in peers])
        reports = [peer.model(URI) for peer in peers]
        origin.faults.clear()
        all_ready(peers, URI)
    assert [(r.wrong_peers, r.wrong_readers) for r in reports if r is not None] == [({}, {})] * 2


def test_a_pause_that_the_origin_asks_of_one_is_kept_by_all(tmp_path: Path, origin: Origin, resolved: Resolved) -> None:
    peers, pause_s, heard_s = some_peers(tmp_path, 3), 4.0, 1.0
    origin.faults.set(Fault(path="/_cdn/*", status=429, retry_after=f"{pause_s:.0f}", times=1))
    with running(*peers):
        tell(peers, resolved, a_company([peer.member() for peer in peers]))
        eventually(lambda: not origin.faults.active(), every_s=0.005)
        asked_for = time.monotonic()
        all_ready(peers, URI)
    # What was under way has ended, and the word has gone round, in a second; an origin remembers who came when.
    begins, ends = asked_for + heard_s, asked_for + pause_s - 0.1
    assert [at for at in origin.arrivals() if begins < at < ends] == []
    assert max(origin.arrivals()) > ends, "they went on afterwards"
    assert origin.stats()["bytes"] <= 1.02 * SAMPLE_BYTES


# --- peers that die, lie or crawl ---


def process(tmp_path: Path, name: str) -> AgentProcess:
    (tmp_path / name / "models").mkdir(parents=True)
    environment = {
        "LOCALMODEL_HOST_ROOT": str(tmp_path / name),
        "LOCALMODEL_HEADROOM": "0",
        "LOCALMODEL_PEER_HOST": "127.0.0.1",
    }
    return AgentProcess(name, environment)


@pytest.mark.e2e
def test_a_node_killed_in_the_middle_costs_no_more_than_what_it_had_in_flight(
    tmp_path: Path, origin: Origin, resolved: Resolved, sample: Path
) -> None:
    origin.faults.set(Fault(path="/_cdn/*", latency_s=0.05))
    peers = some_peers(tmp_path, 2)
    with running(*peers), process(tmp_path, "victim") as victim:
        report = victim.reconcile(DesiredState(OWNER, (DesiredRoot("/models"),)))
        member = Member(NodeName("victim"), report.incarnation, None, report.peer_address or "")
        company = a_company([*(peer.member() for peer in peers), member])
        victim.reconcile(wants(resolved, company, URI))
        tell(peers, resolved, company)
        eventually(lambda: sum(map(done, peers)) > 0.6 * SAMPLE_BYTES, every_s=0.01)
        victim.kill()
        all_ready(peers, URI)  # nobody has told them that it is gone
        assert all(same_bytes(peer.folder(URI), sample) for peer in peers)
    in_flight = 16 * CHUNK
    assert origin.stats()["bytes"] <= SAMPLE_BYTES + in_flight


def test_an_address_that_a_node_of_another_fill_has_by_now_gives_nothing_and_is_nobodys_fault(
    tmp_path: Path, origin: Origin, resolved: Resolved, sample: Path
) -> None:
    """As a pod's does, that was given to another pod: here one that holds the very bytes, but for others."""
    *peers, stranger = some_peers(tmp_path, 3)
    with running(*peers, stranger):
        theirs = replace(a_company([stranger.member()], token="another secret"), fill="fill-2")
        tell([stranger], resolved, theirs)
        all_ready([stranger], URI)
        before = origin.stats()["bytes"]
        gone = replace(stranger.member(), name=NodeName("gone"), incarnation="1", owns=False, seed=True)
        tell(peers, resolved, a_company([*(peer.member() for peer in peers), gone]))
        reports = all_ready(peers, URI)
        assert all(same_bytes(peer.folder(URI), sample) for peer in peers)
    read = origin.stats()["bytes"] - before
    assert SAMPLE_BYTES <= read <= SAMPLE_BYTES + 16 * CHUNK, "once, by these two, but for what both were at"
    assert sum(report.bytes_from_peers for report in reports) == 2 * SAMPLE_BYTES - read
    assert [(report.wrong_peers, report.wrong_readers) for report in reports] == [({}, {})] * 2


class Impostor:
    """A member that has everything, and answers in its own way."""

    name = NodeName("impostor")

    def __init__(self, folder: Path, resolved: Resolved) -> None:
        self.grid = Grid(resolved.manifest.files, CHUNK)
        self.files = [folder / file.path for file in resolved.manifest.files]
        self.server = PeerServer("127.0.0.1", 0, {"fill-1": self})
        self.member = Member(self.name, "1", None, self.server.address, owns=False)
        self.gone = threading.Event()
        self.asked_for = 0

    def admits(self, token: str) -> bool:
        return True

    def asked(self, peer: NodeName, chunk: int, buffer: bytearray) -> Sending | Answer | Elsewhere:
        self.asked_for += 1
        place = self.grid.chunks[chunk]
        descriptor = os.open(self.files[place.file], os.O_RDONLY)
        made = digest_of(descriptor, place.start, place.stop, bytearray(1 << 20))
        return self.send(descriptor, Sending(descriptor, place.start, place.size, ReadBy(self.name, made)))

    def send(self, descriptor: int, sending: Sending) -> Sending:
        return sending

    def served(self, peer: NodeName, chunk: int, *, ok: bool) -> None:
        pass

    def named(self, peer: NodeName, chunk: int) -> None:
        pass

    def asked_for_work(self, peer: NodeName) -> int | None:
        return None

    def told(self) -> Iterator[bytes]:
        yield Frame(Kind.WHOLE, (1 << len(self.grid)) - 1).encode()
        while not self.gone.wait(0.5):
            yield Frame(Kind.DELTA).encode()

    def close(self) -> None:
        self.gone.set()
        self.server.close()


class Liar(Impostor):
    """Flips a byte of every fifth chunk, and keeps its digest."""

    def send(self, descriptor: int, sending: Sending) -> Sending:
        if self.asked_for % 5:
            return sending
        content = bytearray(os.pread(descriptor, sending.size, sending.start))
        content[len(content) // 2] ^= 1
        os.close(descriptor)
        wrong = os.memfd_create("wrong")
        os.write(wrong, content)
        return replace(sending, descriptor=wrong, start=0)


class Forger(Impostor):
    """Flips a byte of every chunk, and makes a digest for that."""

    def send(self, descriptor: int, sending: Sending) -> Sending:
        content = bytearray(os.pread(descriptor, sending.size, sending.start))
        content[0] ^= 1
        os.close(descriptor)
        wrong = os.memfd_create("wrong")
        os.write(wrong, content)
        made = digest_of(wrong, 0, sending.size, bytearray(1 << 20))
        return replace(sending, descriptor=wrong, start=0, origin=ReadBy(self.name, made))


class Sloth(Impostor):
    """Takes a second for every answer."""

    def send(self, descriptor: int, sending: Sending) -> Sending:
        time.sleep(1.0)
        return sending


@pytest.mark.parametrize("kind", [Liar, Forger, Sloth])
def test_a_peer_that_lies_or_crawls_harms_nobody(
    kind: type[Impostor], tmp_path: Path, origin: Origin, resolved: Resolved, sample: Path
) -> None:
    peers = some_peers(tmp_path, 2)
    impostor = kind(sample, resolved)
    origin.faults.set(Fault(path="/_cdn/*", latency_s=0.02))
    try:
        with running(*peers):
            tell(peers, resolved, a_company([*(peer.member() for peer in peers), impostor.member]))
            reports = all_ready(peers, URI)
            assert all(same_bytes(peer.folder(URI), sample) for peer in peers)
    finally:
        impostor.close()
    assert impostor.asked_for
    sent = {name for report in reports for name in report.wrong_peers}
    read = {name for report in reports for name in report.wrong_readers}
    assert (sent, read) == ({impostor.name} if kind is Liar else set(), {impostor.name} if kind is Forger else set())
    kept = read_marker(peers[0].folder(URI))
    assert kept is not None
    assert (kept.moved.wrong_peers, kept.moved.wrong_readers) == (reports[0].wrong_peers, reports[0].wrong_readers)


def test_a_token_that_is_rotated_while_it_runs_is_not_noticed_by_the_fill(
    tmp_path: Path, origin: Origin, resolved: Resolved, sample: Path
) -> None:
    peers = some_peers(tmp_path, 3)
    origin.faults.set(Fault(path="/_cdn/*", latency_s=0.05))

    def more_than(least: float) -> bool:
        return sum(map(done, peers)) > least

    with running(*peers):
        members = [peer.member() for peer in peers]
        tell(peers, resolved, a_company(members))
        for number in range(1, 4):  # each time one of them hears of it late
            eventually(partial(more_than, number * 0.5 * SAMPLE_BYTES), every_s=0.01)
            tell(peers[1:], resolved, a_company(members, token=f"token {number}"))
            late = sum(map(done, peers[1:]))
            eventually(lambda late=late: sum(map(done, peers[1:])) > late or late >= 2 * SAMPLE_BYTES, every_s=0.01)  # type: ignore[misc]  # a default argument binds the loop variable
            tell(peers[:1], resolved, a_company(members, token=f"token {number}"))
        all_ready(peers, URI)
        assert all(same_bytes(peer.folder(URI), sample) for peer in peers)
        markers = [read_marker(peer.folder(URI)) for peer in peers]
    assert origin.stats()["bytes"] <= 1.02 * SAMPLE_BYTES
    assert [marker.moved.wrong_peers for marker in markers if marker is not None] == [{}] * 3


def test_without_the_token_a_node_gets_nothing_and_reads_for_itself(
    tmp_path: Path, origin: Origin, resolved: Resolved, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []

    def admits(swarm: Swarm, token: str) -> bool:
        admitted = original(swarm, token)
        refused.extend(() if admitted else (token,))
        return admitted

    original = Swarm.admits
    monkeypatch.setattr(Swarm, "admits", admits)
    honest, stranger = some_peers(tmp_path, 2)
    with running(honest, stranger):
        members = [honest.member(), stranger.member(owns=False)]
        tell([honest], resolved, a_company(members))
        all_ready([honest], URI)
        tell([stranger], resolved, a_company(members, token="a guess"))
        eventually(lambda: refused.count("a guess") > 2, seen=lambda: refused)
        report = stranger.model(URI)
        assert report is not None
        assert report.phase is Phase.DOWNLOADING
        assert (report.bytes_from_peers, done(stranger)) == (0, 0)
        tell([stranger], resolved, a_company(members))
        (report,) = all_ready([stranger], URI)
        assert report.bytes_from_peers == SAMPLE_BYTES
