"""A process that has no thread left for a moment: what it was doing goes on, or is done a little later."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from actors.manifest import ModelSource, Resolved
from actors.messages import Phase
from actors.peers.server import PeerServer
from actors.sources.options import SourceOptions
from coordinator.api.resources import StatusKey
from coordinator.control.resolver import Resolver
from coordinator.dev.origin.faults import Fault
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.waiting import eventually
from coordinator.plan.plan import Want
from coordinator.plan.snapshot import Credentials
from tests.kit.nodes import URI, Node, same_bytes, until, wants
from tests.kit.peers import Peer, a_company, all_ready, running
from tests.kit.peers import wants as together

SAMPLE_BYTES = 6 << 20


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """So often a thread whose name begins like this cannot be started."""
    left: Counter[str] = Counter()
    start: Callable[[threading.Thread], None] = threading.Thread.start

    def short(thread: threading.Thread) -> None:
        for prefix in left:
            if left[prefix] > 0 and thread.name.startswith(prefix):
                left[prefix] -= 1
                raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", short)
    yield left
    assert not +left, "what was to be refused was asked for"


def answer_of(server: PeerServer) -> bytes:
    """What the port says to a request; nothing if it hangs up."""
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), 5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        try:
            return connection.recv(100)
        except OSError:
            return b""


def test_the_peer_port_turns_one_away_and_serves_the_next(refused: Counter[str]) -> None:
    server = PeerServer("127.0.0.1", 0, {})
    try:
        refused["peer"] = 1
        assert answer_of(server) == b""
        assert answer_of(server).startswith(b"HTTP/1.1 404")
    finally:
        server.close()


@pytest.mark.slow
def test_a_peer_port_that_could_not_begin_to_listen_does_later(
    refused: Counter[str], tmp_path: Path, origin: Origin, resolved: Resolved
) -> None:
    refused["peers"] = 1
    nodes = [Peer(tmp_path / name, name) for name in ("a", "b")]
    with running(*nodes):
        company = a_company([node.member() for node in nodes])
        for node in nodes:
            node.agent.reconcile(together(resolved, company, URI))
        all_ready(nodes, URI)
        assert origin.stats()["bytes"] == SAMPLE_BYTES, "they have helped each other"


@pytest.mark.slow
def test_an_attempt_without_a_thread_is_said_and_made_again(
    refused: Counter[str], tmp_path: Path, resolved: Resolved, sample: Path
) -> None:
    with Node(tmp_path / "host") as node:
        refused["fill-"] = 1
        agent = node.agent(backoff_first_s=0.3, backoff_max_s=0.3)
        report = agent.reconcile(wants(resolved))
        (said,) = (each.failure for each in report.models)
        assert said is not None
        assert (said.reason, said.retryable) == ("OutOfThreads", True)
        until(agent, Phase.READY)
        assert same_bytes(node.folder(), sample)
        assert {each.name for each in threading.enumerate()} >= {"housekeeping", "scrub"}


@pytest.mark.slow
def test_a_fill_goes_on_with_the_threads_it_has(
    refused: Counter[str], tmp_path: Path, origin: Origin, resolved: Resolved, sample: Path
) -> None:
    with Node(tmp_path / "host") as node:
        agent = node.agent()
        refused["fill-1"] = refused["fill-2"] = 3
        origin.faults.set(Fault(path="/_cdn/*", latency_s=0.1))
        agent.reconcile(wants(resolved))
        until(agent, Phase.READY)
        assert same_bytes(node.folder(), sample)


@pytest.mark.slow
def test_nodes_that_fill_together_go_on_with_the_threads_they_have(
    refused: Counter[str], tmp_path: Path, origin: Origin, resolved: Resolved
) -> None:
    nodes = [Peer(tmp_path / name, name) for name in ("a", "b")]
    with running(*nodes):
        company = a_company([node.member() for node in nodes])
        refused["news-"], refused["fill-0"], refused["fill-3"] = 3, 1, 2
        for node in nodes:
            node.agent.reconcile(together(resolved, company, URI))
        all_ready(nodes, URI)
        assert origin.stats()["bytes"] == SAMPLE_BYTES


@pytest.mark.slow
def test_housekeeping_and_scrubbing_begin_with_the_next_tick(
    refused: Counter[str], tmp_path: Path, resolved: Resolved
) -> None:
    refused["housekeeping"] = refused["scrub"] = 1
    with Node(tmp_path / "host") as node:
        agent = node.agent()
        agent.reconcile(wants(resolved))
        until(agent, Phase.READY)
        assert {each.name for each in threading.enumerate()} >= {"housekeeping", "scrub"}


@pytest.mark.slow
def test_housekeeping_outlives_what_it_meets(
    tmp_path: Path, resolved: Resolved, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = threading.Event()

    def step(agent: object) -> None:
        if not broken.is_set():
            broken.set()
            raise MemoryError

    with Node(tmp_path / "host") as node:
        agent = node.agent()
        agent.reconcile(wants(resolved))
        with monkeypatch.context() as once:
            once.setattr("actors.agent.agent.NodeAgent._step", step)
            assert broken.wait(10)
        until(agent, Phase.READY)
        assert any(each.name == "housekeeping" for each in threading.enumerate())


def test_resolving_goes_on_with_the_next_tick(refused: Counter[str], resolved: Resolved) -> None:
    refused["resolver-"] = 2
    resolver = Resolver(lambda source, options, pinned_revision=None: resolved, workers=1)
    try:
        key, want = StatusKey("llama"), Want(resolved.manifest.source, Credentials())

        def found() -> object:
            resolver.want({key: want}, lambda _: SourceOptions())
            return resolver.resolutions()[key].resolved

        eventually(lambda: found() == resolved, every_s=0.01)
        assert refused["resolver-"] == 0, "both refusals were used up"
    finally:
        resolver.close()


def test_a_worker_that_breaks_is_there_for_the_next_question(resolved: Resolved) -> None:
    told: list[int] = []

    def changed() -> None:
        told.append(1)
        if len(told) == 1:
            raise KeyError("a bug in whoever is told")

    resolver = Resolver(lambda source, options, pinned_revision=None: replace(resolved), workers=1)
    resolver.changed = changed
    try:
        for key in (StatusKey("one"), StatusKey("two")):
            want = Want(ModelSource(f"hf://a/{key}"), Credentials())
            resolver.want({key: want}, lambda _: SourceOptions())
            eventually(lambda: resolver.resolutions()[key].resolved, every_s=0.01)  # noqa: B023  asked at once
    finally:
        resolver.close()
