"""Agents that die, stop, or have a wrong clock; networks that fall apart."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.killmatrix.nodes import NAMES, PEER_PORT, Nodes, in_flight_mib
from tests.killmatrix.trial import Fault, NotHere

Strikes = Callable[[Nodes], AbstractContextManager[None]]
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


@contextmanager
def killed(nodes: Nodes) -> Iterator[None]:
    name = nodes.rng.choice(NAMES)
    nodes.kill(name)
    nodes.run_for(nodes.rng.uniform(0, 2))
    nodes.restart(name)
    yield


@contextmanager
def killed_three_times(nodes: Nodes) -> Iterator[None]:
    name = nodes.rng.choice(NAMES)
    for _ in range(3):
        nodes.kill(name)
        nodes.restart(name)
        nodes.run_for(nodes.rng.uniform(0, 1))
    yield


@contextmanager
def two_killed(nodes: Nodes) -> Iterator[None]:
    names = nodes.rng.sample(NAMES, 2)
    nodes.kill(*names)
    nodes.run_for(nodes.rng.uniform(0, 2))
    nodes.restart(*names)
    yield


@contextmanager
def all_killed(nodes: Nodes) -> Iterator[None]:
    nodes.kill(*NAMES)
    nodes.restart(*NAMES)
    yield


@contextmanager
def ended_in_order(nodes: Nodes) -> Iterator[None]:
    nodes.restart(nodes.rng.choice(NAMES))  # which closes the one that runs
    yield


@contextmanager
def killed_at_the_end(nodes: Nodes) -> Iterator[None]:
    """While it verifies or commits; the moment is drawn."""
    name = nodes.rng.choice(NAMES)
    nodes.run_for(nodes.rng.uniform(0, 0.3))
    nodes.kill(name)
    nodes.restart(name)
    yield


def stopped_for(seconds: float) -> Strikes:
    """SIGSTOP: it holds its sockets, and answers nothing. The coordinator counts it as unavailable."""

    @contextmanager
    def strikes(nodes: Nodes) -> Iterator[None]:
        name = nodes.rng.choice(NAMES)
        with nodes.deaf(name):
            nodes.pause(name, signal.SIGSTOP)
            nodes.run_for(seconds)
            nodes.pause(name, signal.SIGCONT)
        yield

    return strikes


def clock(offset: str) -> Strikes:
    """The wall clock of one node jumps, and jumps back: `libfaketime` reads the offset from a file."""

    @contextmanager
    def strikes(nodes: Nodes) -> Iterator[None]:
        file = nodes.work / "clock"
        file.write_text(offset)
        nodes.run_for(2)
        file.write_text("+0")
        yield

    return strikes


def a_clock_of_its_own(nodes: Nodes) -> None:
    if not FAKETIME.exists():
        raise NotHere(f"{FAKETIME} is not there (Debian: apt-get install faketime)")
    file = nodes.work / "clock"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("+0")
    name = nodes.rng.choice(NAMES)
    settings = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    nodes.prefix[name] = ["env", *(f"{variable}={value}" for variable, value in settings.items())]


@contextmanager
def cut_from_all(nodes: Nodes) -> Iterator[None]:
    name = nodes.rng.choice(NAMES)
    rest = [host for other, host in nodes.hosts.items() if other != name]
    with nodes.parted([nodes.hosts[name]], rest):
        nodes.run_for(4)
    yield


@contextmanager
def cut_from_the_origin(nodes: Nodes) -> Iterator[None]:
    """For good: what it lacks it has from the others."""
    with nodes.parted([nodes.hosts[nodes.rng.choice(NAMES)]], [nodes.hosts["origin"]]):
        nodes.until_ready()
        yield


@contextmanager
def hidden(nodes: Nodes) -> Iterator[None]:
    nodes.hosts[nodes.rng.choice(NAMES)].hide(PEER_PORT)
    yield


@contextmanager
def two_halves(nodes: Nodes) -> Iterator[None]:
    far = nodes.rng.choice(NAMES)
    near = [host for other, host in nodes.hosts.items() if other != far]
    with nodes.parted(near, [nodes.hosts[far]]):
        nodes.run_for(6)
    yield


@contextmanager
def at_a_fiftieth(nodes: Nodes) -> Iterator[None]:
    host = nodes.hosts[nodes.rng.choice(NAMES)]
    host.shape("8mbit")
    nodes.run_for(3)
    host.shape("400mbit")
    yield


def _row(name: str, strikes: Strikes, **more: object) -> Fault[Nodes]:
    return Fault("agent", name, strikes, **more)  # type: ignore[arg-type]  # fields by name


def _network(name: str, strikes: Strikes, **more: object) -> Fault[Nodes]:
    return Fault("network", name, strikes, prepare=Nodes.with_network, **more)  # type: ignore[arg-type]  # fields by name


FAULTS: list[Fault[Nodes]] = [
    _row("an agent is killed", killed, twice_mib=in_flight_mib(1), short=True),
    _row("an agent is killed three times", killed_three_times, twice_mib=3 * in_flight_mib(1)),
    _row("two of three agents are killed", two_killed, twice_mib=in_flight_mib(2)),
    _row("all agents are killed", all_killed, twice_mib=in_flight_mib(3), short=True),
    _row("an agent ends in order and starts again", ended_in_order, twice_mib=in_flight_mib(1)),
    _row("an agent is killed when it verifies or commits", killed_at_the_end, at=(0.97, 0.99), twice_mib=8, short=True),
    _row("an agent is stopped for 3 s", stopped_for(3), twice_mib=in_flight_mib(1)),
    _row("an agent is stopped for 12 s", stopped_for(12), twice_mib=in_flight_mib(1)),
    _row("a node's clock jumps a day forward and back", clock("+1d"), prepare=a_clock_of_its_own),
    _row("a node's clock jumps a day back and forward", clock("-1d"), prepare=a_clock_of_its_own),
    _network("a node is cut off for 4 s", cut_from_all, twice_mib=in_flight_mib(1)),
    _network("a node is cut off from the origin", cut_from_the_origin, twice_mib=in_flight_mib(1), short=True),
    _network("a node's peer port is not reached", hidden, twice_mib=in_flight_mib(1)),
    _network("the network falls in two parts for 6 s", two_halves, twice_mib=in_flight_mib(1)),
    _network("a link drops to a fiftieth for 3 s", at_a_fiftieth, twice_mib=in_flight_mib(1)),
]
