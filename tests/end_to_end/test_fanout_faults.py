"""What breaks in the middle of a cooperative fill, each with real processes: whoever is left ends with a verified copy,
and the origin gives no more than once everything, and once more what was in flight.

Networks that fail are made of network namespaces, which need root; the other tests run on loopback.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.manifest import ModelSource, Resolved
from actors.mesh.limits import Pace
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from coordinator.dev import hosts as namespaces
from coordinator.dev.hosts import Host, Network
from coordinator.dev.origin.faults import Fault
from coordinator.dev.origin.sample import REPO
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.fanout import Fanout, Place
from tests.kit.nodes import same_bytes

pytestmark = pytest.mark.e2e

CHUNK = 1 << 20
SAMPLE_BYTES = 56 * CHUNK
URI = f"hf://{REPO}"
SLOW = Fault(path="/_cdn/*", latency_s=0.3)
"""Of every chunk that is read from the origin: a fill takes seconds, and is caught in the middle."""
PACE = Pace(slots=2)
LOCAL = {f"node-{number}": Place("127.0.0.1") for number in range(6)}


def in_flight(nodes: int, of: int) -> int:
    """Bytes that so many of the owners may have asked the origin for, or hold and have not passed on."""
    return nodes * (PACE.reads_per_owner(of) + PACE.unpassed) * CHUNK


@pytest.fixture
def origin(sample: Path) -> Iterator[Origin]:
    with Origin({REPO: sample}) as running:
        running.faults.set(SLOW)
        yield running


def resolved_at(origin: Origin) -> Resolved:
    return resolve(ModelSource(URI), SourceOptions({"HF_ENDPOINT": origin.hub_endpoint}))


def served(origin: Origin) -> int:
    return int(origin.stats()["bytes"])


def test_a_third_of_the_nodes_killed_at_once(tmp_path: Path, origin: Origin, sample: Path) -> None:
    with Fanout(tmp_path, resolved_at(origin), LOCAL) as fanout:
        fanout.until(lambda: served(origin) > SAMPLE_BYTES / 2)
        for victim in ("node-1", "node-4"):
            fanout.agents[victim].kill()
        ready = fanout.until_ready()
        assert len(ready) == 4
        assert all(same_bytes(fanout.folder(name), sample) for name in ready)
    assert SAMPLE_BYTES <= served(origin) <= SAMPLE_BYTES + in_flight(2, of=6)


def test_a_killed_node_that_returns_goes_on_with_what_it_had(tmp_path: Path, origin: Origin, sample: Path) -> None:
    with Fanout(tmp_path, resolved_at(origin), LOCAL) as fanout:
        fanout.until(lambda: served(origin) > SAMPLE_BYTES / 2)
        fanout.agents["node-2"].kill()
        assert fanout.done("node-2")
        fanout.start("node-2")
        ready = fanout.until_ready()
        assert all(same_bytes(fanout.folder(name), sample) for name in LOCAL)
    moved = ready["node-2"].bytes_from_origin + ready["node-2"].bytes_from_peers
    assert moved <= SAMPLE_BYTES + PACE.slots * 16 * CHUNK, "before it was killed, and after"
    assert served(origin) <= SAMPLE_BYTES + in_flight(1, of=6)


def test_an_origin_that_throttles_every_node(tmp_path: Path, origin: Origin, sample: Path) -> None:
    with Fanout(tmp_path, resolved_at(origin), LOCAL) as fanout:
        fanout.until(lambda: served(origin) > SAMPLE_BYTES / 4)
        origin.faults.set(Fault(path="/_cdn/*", status=429, retry_after="1", times=12))
        ready = fanout.until_ready()
        assert all(same_bytes(fanout.folder(name), sample) for name in ready)
        assert not origin.faults.active(), "it did throttle"
    assert served(origin) == SAMPLE_BYTES


def test_an_origin_that_is_gone_after_most_of_it_and_comes_back(tmp_path: Path, origin: Origin, sample: Path) -> None:
    port = int(origin.url.rpartition(":")[2])
    with Fanout(tmp_path, resolved_at(origin), LOCAL) as fanout:
        fanout.until(lambda: served(origin) > 0.6 * SAMPLE_BYTES)
        origin.close()
        before = served(origin)
        most = 0.6 * SAMPLE_BYTES

        def held() -> list[int]:
            return [fanout.done(name) for name in LOCAL]

        fanout.until(lambda: min(held()) >= most and max(held()) - min(held()) < CHUNK)  # a part of one chunk
        assert max(held()) < SAMPLE_BYTES, "all have what any had, and wait"
        with Origin({REPO: sample}, port=port) as again:
            ready = fanout.until_ready()
            assert all(same_bytes(fanout.folder(name), sample) for name in ready)
            assert before + served(again) <= SAMPLE_BYTES + PACE.origin_reads * CHUNK


def test_a_peer_that_corrupts_every_fiftieth_chunk(tmp_path: Path, origin: Origin, sample: Path) -> None:
    """Its disk has changed since it read them: it passes on digests of what they were.

    The origin gives these chunks once more, to each node at most that found it out: all else node-0 still gives.
    """
    origin.faults.clear()
    early, late = ["node-0"], ["node-1", "node-2", "node-3"]
    with Fanout(tmp_path, resolved_at(origin), {name: LOCAL[name] for name in early + late}, late=late) as fanout:
        fanout.until_ready(*early)
        wrong = flip_every(50, fanout.folder("node-0"))
        for name in late:
            fanout.start(name)
        ready = fanout.until_ready(*late)
        assert all(same_bytes(fanout.folder(name), sample) for name in ready)
    assert {name for report in ready.values() for name in report.wrong_peers} == {"node-0"}
    assert 1 <= sum(sum(report.wrong_peers.values()) for report in ready.values()) <= wrong * len(late)
    assert served(origin) <= SAMPLE_BYTES + wrong * len(late) * CHUNK


def flip_every(nth: int, folder: Path) -> int:
    """Flips a bit of every `nth` chunk of the copy, from the first; how many."""
    flipped, number = 0, 0
    for path in sorted(folder.rglob("*.safetensors")):
        path.chmod(0o644)
        with path.open("r+b") as file:
            for start in range(0, path.stat().st_size, CHUNK):
                if number % nth == 0:
                    byte = os.pread(file.fileno(), 1, start + 100)
                    os.pwrite(file.fileno(), bytes([byte[0] ^ 1]), start + 100)
                    flipped += 1
                number += 1
    return flipped


# --- networks that fail ---

NO_NETWORK = namespaces.missing()
needs_network = pytest.mark.skipif(NO_NETWORK is not None, reason=NO_NETWORK or "")
PEER_PORT = 8002


class Hosts:
    """An origin and four nodes, each with a network of its own."""

    def __init__(self, network: Network, sample: Path) -> None:
        self.names = [f"node-{number}" for number in range(4)]
        self.switch = network.host("origin")
        self.of = {name: network.host(name) for name in self.names}
        self.origin = self.switch.call(lambda: Origin({REPO: sample}, host=self.switch.address))
        self.resolved = self.switch.call(lambda: resolved_at(self.origin))
        self.places = {name: Place(host.address, PEER_PORT, host.inside) for name, host in self.of.items()}

    def part(self, side: list[Host], other: list[Host]) -> None:
        for host in side:
            host.cut(*other)

    def join(self, side: list[Host], other: list[Host]) -> None:
        for host in side:
            host.mend(*other)


@pytest.fixture
def hosts(sample: Path) -> Iterator[Hosts]:
    with Network("400mbit") as network:
        made = Hosts(network, sample)
        try:
            yield made
        finally:
            made.origin.close()


@needs_network
def test_a_peer_at_a_twentieth_of_the_speed_holds_nobody_up(tmp_path: Path, hosts: Hosts, sample: Path) -> None:
    hosts.of["node-3"].shape("20mbit")
    with Fanout(tmp_path, hosts.resolved, hosts.places) as fanout:
        ready = fanout.until_ready("node-0", "node-1", "node-2")
        assert fanout.done("node-3") < SAMPLE_BYTES, "nobody waited for it"
        ready |= fanout.until_ready("node-3")
        assert all(same_bytes(fanout.folder(name), sample) for name in ready)
    assert served(hosts.origin) <= SAMPLE_BYTES + PACE.origin_reads * CHUNK


@needs_network
def test_a_node_whose_peer_port_nobody_reaches(tmp_path: Path, hosts: Hosts, sample: Path) -> None:
    hosts.origin.faults.set(SLOW)
    with Fanout(tmp_path, hosts.resolved, hosts.places) as fanout:
        fanout.until(lambda: served(hosts.origin) > SAMPLE_BYTES / 4)
        hosts.of["node-1"].hide(PEER_PORT)
        ready = fanout.until_ready()
        assert all(same_bytes(fanout.folder(name), sample) for name in ready)
    assert ready["node-1"].bytes_from_peers > 0, "it reaches the others still"
    again = served(hosts.origin) - SAMPLE_BYTES
    assert again <= ready["node-1"].bytes_from_origin, "at most what it read, and could pass on to nobody"
    assert again < SAMPLE_BYTES / 2, "the others soon let it read no more"


@needs_network
def test_a_network_that_falls_in_two_halves_and_heals(tmp_path: Path, hosts: Hosts, sample: Path) -> None:
    """The origin is on one side. The other side has what it has, and takes the rest from the first afterwards."""
    near = [hosts.switch, hosts.of["node-0"], hosts.of["node-1"]]
    far = [hosts.of["node-2"], hosts.of["node-3"]]
    hosts.origin.faults.set(SLOW)
    with Fanout(tmp_path, hosts.resolved, hosts.places) as fanout:
        fanout.until(lambda: served(hosts.origin) > SAMPLE_BYTES / 2)
        hosts.part(near, far)
        hosts.part(far, near)
        ready = fanout.until_ready("node-0", "node-1")
        assert fanout.done("node-2") < SAMPLE_BYTES
        assert fanout.done("node-3") < SAMPLE_BYTES
        hosts.join(near, far)
        hosts.join(far, near)
        ready |= fanout.until_ready("node-2", "node-3")
        assert all(same_bytes(fanout.folder(name), sample) for name in ready)
    assert served(hosts.origin) <= SAMPLE_BYTES + in_flight(2, of=4)
