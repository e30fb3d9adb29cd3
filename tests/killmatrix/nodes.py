"""Three node agents as processes, the origin they fill from, and everything that a fault can take hold of.

The coordinator's own plan tells the agents what to do; there is no Kubernetes and no Ray between them.
`coordinator.dev.trial.fanout` is the means, this adds what is counted, disks that can fail, and networks that can.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

from actors.disk.store import MARKER, remove_tree
from actors.errors import SourceError
from actors.manifest import ModelSource, Resolved
from actors.mesh.limits import Pace
from actors.messages import ModelReport, Phase
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from coordinator.dev import hosts as namespaces
from coordinator.dev.hosts import Host, Network
from coordinator.dev.origin.faults import Fault as OriginFault
from coordinator.dev.origin.sample import REPO, write_sample
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.fanout import Fanout, Place
from coordinator.dev.trial.waiting import eventually
from tests.killmatrix.trial import MIB, Fault, NotHere, Outcome

SIZE = 24 * MIB
NAMES = ("node-0", "node-1", "node-2")
WEIGHTS = "*.safetensors"
SLOW = OriginFault(path="/_cdn/*", latency_s=0.25)
"""Of every chunk that is read from the origin: a fill takes seconds, and is caught in the middle."""
PACE = Pace(slots=2)
PEER_PORT = 8002
PATIENCE_S = 90.0
FAST = {"LOCALMODEL_STALL_TIMEOUT_SECONDS": "2", "LOCALMODEL_LINK": "25Mi"}


def in_flight_mib(nodes: int) -> int:
    """MiB that so many of the nodes may have asked the origin for, or hold and have not passed on."""
    return nodes * (PACE.reads_per_owner(len(NAMES)) + PACE.unpassed)


class Nodes:
    """A context manager: the fill has begun when it is entered, and nothing is left when it is left.

    `disks`: by node, what is mounted as its disk before its agent starts. `network`: every node has one of its own.
    """

    def __init__(self, work: Path, sample: Path, rng: random.Random) -> None:
        self.work, self.sample, self.rng = work, sample, rng
        self.environment: dict[str, str] = dict(FAST)
        self.prefix: dict[str, Sequence[str]] = {}
        self.strangers: dict[str, str] = {}
        self.corrupt = 0
        self.served_before = 0
        self._renewed_at = 0.0
        self.origin: Origin
        self.fanout: Fanout
        self.hosts: dict[str, Host] = {}
        self.closing = ExitStack()
        self._truth = {path.relative_to(sample): _digest(path) for path in sample.rglob("*") if path.is_file()}

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.closing.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for agent in self.fanout.agents.values():
            if agent.running:
                os.kill(agent.pid, signal.SIGCONT)  # one that a fault has stopped could not end
        self.closing.close()

    def with_network(self) -> None:
        """Before it is entered: every node, and the origin, is a host of its own."""
        if (missing := namespaces.missing()) is not None:
            raise NotHere(missing)
        network = self.closing.enter_context(Network("400mbit"))
        self.hosts = {name: network.host(name) for name in ("origin", *NAMES)}

    def host_root(self, name: str) -> Path:
        return self.work / name

    def root(self, name: str) -> Path:
        return self.host_root(name) / "models"

    def folder(self, name: str) -> Path:
        return self.fanout.folder(name)

    def pid(self, name: str) -> int:
        return self.fanout.agents[name].pid

    def kill(self, *names: str) -> None:
        for name in names:
            self.fanout.agents[name].kill()

    def restart(self, *names: str) -> None:
        for name in names:
            self.fanout.start(name)

    def pause(self, name: str, number: signal.Signals) -> None:
        os.kill(self.pid(name), number)

    def erase(self, name: str) -> None:
        """Its disk is another, and empty."""
        remove_tree(self.root(name))

    @contextmanager
    def deaf(self, name: str) -> Iterator[None]:
        """The coordinator does not hear of this agent meanwhile."""
        self.fanout.deaf.add(name)
        yield
        self.fanout.deaf.discard(name)

    @contextmanager
    def parted(self, side: Sequence[Host], other: Sequence[Host]) -> Iterator[None]:
        """Nothing goes between the two sides meanwhile, in either direction, and nobody is told."""
        for here, there in ((side, other), (other, side)):
            for host in here:
                host.cut(*there)
        yield
        for here, there in ((side, other), (other, side)):
            for host in here:
                host.mend(*there)

    def run_for(self, seconds: float) -> None:
        """The coordinator ticks, and what is published is looked at."""
        until = time.monotonic() + seconds
        self._until(lambda: time.monotonic() >= until, timeout_s=seconds + PATIENCE_S)

    def until_filled(self, part: float) -> None:
        """So much of the model lies on the disks, on average; 1.0: it is Ready on all of them."""
        if part >= 1.0:
            self._until(self._all_ready)
            return
        self._until(lambda: sum(map(self.fanout.done, NAMES)) >= part * len(NAMES) * SIZE)

    def until_reason(self, reason: str, *, timed: bool) -> None:
        def said() -> bool:
            found = [report for report in map(self.fanout.model, NAMES) if report is not None]
            return any(_says(report, reason, timed) for report in found)

        self._until(said)

    def until_damaged(self, name: str) -> None:
        """Its agent has found, and said or repaired, that its copy is not what it was."""

        def found() -> bool:
            report = self.fanout.model(name)
            return report is not None and (report.damage is not None or report.repaired is not None)

        self._until(found)

    def until_ready(self) -> None:
        self._until(self._all_ready)

    def count(self, *, everywhere: bool) -> None:
        """Every byte of every copy is compared with the origin's, as the disk has it. `everywhere`: all have one."""
        for name in NAMES:
            folder = self.folder(name)
            if not everywhere and not (folder / MARKER).exists():
                continue
            for path, digest in self._truth.items():
                if not (folder / path).is_file() or _digest(folder / path) != digest:
                    self.corrupt += 1

    def faults(self, *faults: OriginFault) -> None:
        """The origin fails so from now on, and is slow besides."""
        self.origin.faults.set(*faults, SLOW)

    def resolve(self) -> Resolved:
        return resolve(ModelSource(f"hf://{REPO}"), SourceOptions({"HF_ENDPOINT": self.origin.hub_endpoint}))

    def close_origin(self) -> None:
        """Every connection is cut, and nobody listens any more."""
        self.served_before += int(self.origin.stats()["bytes"])
        self.origin.close()

    def reopen_origin(self) -> None:
        self.origin = self._open_origin(int(self.origin.url.rpartition(":")[2]))
        self.faults()

    @property
    def served(self) -> int:
        return self.served_before + int(self.origin.stats()["bytes"])

    def _start(self) -> None:
        self.origin = self._open_origin(0)
        self.closing.callback(lambda: self.origin.close())
        self.faults()
        switch = self.hosts.get("origin")
        resolved = switch.call(self.resolve) if switch is not None else self.resolve()
        places = {name: self._place(name) for name in NAMES}
        fanout = Fanout(self.work, resolved, places, strangers=self.strangers)
        self.fanout = self.closing.enter_context(fanout)

    def _open_origin(self, port: int) -> Origin:
        """Serves at `port`, 0: at a free one, on its own host where there are hosts."""
        switch = self.hosts.get("origin")
        if switch is None:
            return Origin({REPO: self.sample}, port=port)
        return switch.call(lambda: Origin({REPO: self.sample}, host=switch.address, port=port))

    def _place(self, name: str) -> Place:
        host = self.hosts.get(name)
        logged = ["sh", "-c", 'log=$0; exec "$@" 2>>"$log"', str(self.work / f"{name}.log")]
        if host is not None:
            return Place(host.address, PEER_PORT, [*logged, *host.inside], self.environment)
        return Place("127.0.0.1", 0, [*logged, *self.prefix.get(name, ())], self.environment)

    def _all_ready(self) -> bool:
        return all((report := self.fanout.model(name)) and report.phase is Phase.READY for name in NAMES)

    def _until(self, fact: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        def holds() -> bool:
            self.fanout.tick()
            self._renew()
            self._look()
            return fact()

        eventually(holds, timeout_s=timeout_s, seen=self.fanout.models)

    def _renew(self) -> None:
        """As the coordinator's resolver does it for agents whose links are refused."""
        failures = [report.failure for report in map(self.fanout.model, NAMES) if report is not None]
        stale = any(failure is not None and failure.reason == "SourceChanged" for failure in failures)
        if stale and time.monotonic() >= self._renewed_at + 1:
            self._renewed_at = time.monotonic()
            with suppress(SourceError):  # it is asked again in a second
                self.fanout.renew(self.resolve())

    def _look(self) -> None:
        """A copy that has its marker is complete, whenever somebody looks."""
        for name in NAMES:
            report = self.fanout.model(name)
            if report is not None and report.damage is not None:
                continue  # a fault has taken something away, and it is said
            folder = self.folder(name)
            if (folder / MARKER).exists():
                self.corrupt += sum(not _has_size(folder / path, self.sample / path) for path in self._truth)


def run(fault: Fault[Nodes], seed: int, work: Path) -> Outcome:
    """One trial. Never raises but KeyboardInterrupt: what went wrong is in the outcome."""
    rng = random.Random(f"{fault.name}/{seed}")
    outcome = Outcome(fault.party, fault.name, seed, twice_bound_bytes=fault.twice_mib * MIB)
    sample = work.parent / f"sample-{SIZE}"
    write_sample(sample, SIZE)
    nodes = Nodes(work, sample, rng)
    nodes.environment |= fault.environment
    try:
        with nodes.closing:
            if fault.prepare is not None:
                try:
                    fault.prepare(nodes)
                except NotHere as error:
                    outcome.skipped = str(error)
                    return outcome
            with nodes:
                _strike(fault, nodes, outcome)
    except (AssertionError, Exception) as error:  # noqa: BLE001  a row that fails is a row of the table
        outcome.error = f"{type(error).__name__}: {error}"[:2000]
    outcome.corrupt = nodes.corrupt
    return outcome


def _strike(fault: Fault[Nodes], nodes: Nodes, outcome: Outcome) -> None:
    """The fault came in the middle of the fill, and what became of it is in the outcome."""
    outcome.struck_at = round(nodes.rng.uniform(*fault.at), 3)
    nodes.until_filled(outcome.struck_at)
    began = time.monotonic()
    with fault.strikes(nodes):
        if fault.reason is not None:
            nodes.until_reason(fault.reason, timed=fault.timed)
            outcome.reason, outcome.reason_s = fault.reason, round(time.monotonic() - began, 1)
    if fault.recovers:
        nodes.until_ready()
        outcome.ready_s = round(time.monotonic() - began, 1)
    nodes.count(everywhere=fault.recovers)
    outcome.twice_bytes = max(0, nodes.served - SIZE)


def _says(report: ModelReport, reason: str, timed: bool) -> bool:
    if report.failure is None or report.failure.reason != reason:
        return False
    return report.retry_at is not None or not timed


def _has_size(path: Path, like: Path) -> bool:
    try:
        return path.stat().st_size == like.stat().st_size
    except OSError:
        return False


def _digest(path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # the disk is asked, and not the page cache
    finally:
        os.close(descriptor)
    return hashlib.sha256(path.read_bytes()).hexdigest()
