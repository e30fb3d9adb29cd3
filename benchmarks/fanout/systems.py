"""What `benchmarks.fanout` compares: what each way of filling N nodes runs on a node, and how it is driven.

one     a NodeAgent alone: the time that everything is measured against
naive   a NodeAgent on every node, each reading the origin, as a download job per node does
ours    the same agents, filling together: told so by the coordinator's own plan, at its own pace
aria2, libtorrent   BitTorrent with the origin as web seed; ray   its object broadcast
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path

from actors.errors import Failure
from actors.manifest import Resolved
from actors.messages import DesiredState, NodeName, NodeReport, Phase
from benchmarks.control import cache_json, group_json, node_json
from benchmarks.fanout.nodes import ORIGIN_PORT, TRACKER_PORT
from benchmarks.fanout.torrent import make_torrent
from benchmarks.needs import install_line
from coordinator.api.resources import StatusKey
from coordinator.dev.hosts import Running
from coordinator.dev.origin.sample import REPO
from coordinator.fleet.interface import AgentView
from coordinator.plan.plan import plan
from coordinator.plan.reading import read_cache, read_node, read_node_group
from coordinator.plan.snapshot import Resolution, Snapshot

ROOT = Path(__file__).resolve().parents[2]
TORRENT_PYTHON = ROOT / ".venv-libtorrent/bin/python"
TICK_S = 1.0
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Setting:
    """One run: who takes part, what is filled from where, and what a link carries (None: nobody knows)."""

    nodes: Sequence[str]
    addresses: Sequence[str]
    origin: str
    sample: Path
    resolved: Resolved
    link_bytes_per_s: float | None
    scratch: Path


@dataclass(slots=True)
class Watch:
    """What the driver of a run tells, and is told: `lost` grows when a node is killed."""

    deadline: float
    finished: dict[str, float] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)

    def done(self, name: str) -> None:
        self.finished.setdefault(name, time.monotonic())

    def left(self, names: Iterable[str]) -> set[str]:
        """The nodes that have still to finish. Raises TimeoutError."""
        left = set(names) - self.finished.keys() - self.lost
        if left and time.monotonic() > self.deadline:
            raise TimeoutError(f"not finished in time: {', '.join(sorted(left))}")
        return left


class System(ABC):
    """One way of filling the nodes."""

    alone = False
    """On the first node only."""

    def missing(self) -> str | None:
        """Why it cannot run here."""
        return None

    def prepare(self, setting: Setting) -> None:  # noqa: B027  most need nothing
        """Before the clock runs."""

    @abstractmethod
    def command(self, setting: Setting, number: int) -> list[str]:
        """What runs on the node of this number. It says `ready`."""

    def drive(self, setting: Setting, running: Mapping[str, Running], watch: Watch) -> None:
        """From the first word to the last node that is filled: a word to everybody, and an answer from each."""
        for each in running.values():
            each.connection.send("go")
        names = {each.host.address: name for name, each in running.items()}
        while left := watch.left(running):
            asked = {running[name].connection: name for name in running if name not in watch.lost}
            for connection in wait(asked, POLL_S):
                name = asked[connection]  # type: ignore[index]  # of those asked
                try:
                    said = running[name].connection.recv()
                except (EOFError, OSError):
                    if name in left and name not in watch.lost:
                        raise RuntimeError(f"{name} has ended") from None
                    continue
                watch.done(names[said[1]] if isinstance(said, tuple) else name)


def _python(*arguments: str) -> list[str]:
    return [sys.executable, "-m", *arguments]


class Agents(System):
    """Our own node agents, and what the coordinator decides about them; no Kubernetes and no Ray between them."""

    def __init__(self, *, together: bool, alone: bool = False) -> None:
        self._together = together
        self.alone = alone

    def command(self, setting: Setting, number: int) -> list[str]:
        peer_host = setting.addresses[number] if self._together else ""
        link = str(setting.link_bytes_per_s or 0)
        return _python("benchmarks.fanout.nodes", "agent", setting.nodes[number], peer_host, link)

    def drive(self, setting: Setting, running: Mapping[str, Running], watch: Watch) -> None:
        """The coordinator's loop: a plan every second. The agents are asked more often, to know when they are done."""
        world = _World(setting)
        for name, each in running.items():
            world.heard(name, _tell(each, None))
        desired = world.plan()
        planned_at = time.monotonic()
        while watch.left(running):
            due = time.monotonic() >= planned_at + TICK_S
            if due:
                desired, planned_at = world.plan(), time.monotonic()
            for name, each in running.items():
                try:
                    report = _tell(each, desired[NodeName(name)] if due or not world.told(name) else None)
                except (EOFError, OSError):
                    if name not in watch.lost:
                        raise RuntimeError(f"{name} has ended") from None
                    world.lost(name)
                    continue
                world.heard(name, report)
                if any(model.phase is Phase.READY for model in report.models):
                    watch.done(name)
            time.sleep(POLL_S)


def _tell(running: Running, desired: DesiredState | None) -> NodeReport:
    running.connection.send(desired)
    report: NodeReport = running.connection.recv()
    return report


class _World:
    """One cache for one group of nodes, as the coordinator sees them."""

    def __init__(self, setting: Setting) -> None:
        cache = cache_json("model")
        cache["spec"] |= {"sourceModelUri": setting.resolved.manifest.source.uri, "modelSize": "1Ti"}
        self._agents: dict[NodeName, AgentView] = {}
        self._snapshot = Snapshot(
            owner="fanout",
            caches={StatusKey("model"): read_cache(cache)},
            groups={"gpu": read_node_group(group_json())},
            nodes={NodeName(name): read_node(node_json(name)) for name in setting.nodes},
            resolutions={StatusKey("model"): Resolution(setting.resolved)},
            secret=b"fanout",
        )

    def heard(self, name: str, report: NodeReport) -> None:
        self._agents[NodeName(name)] = AgentView(report, time.time())

    def told(self, name: str) -> bool:
        report = self._agents[NodeName(name)].report
        return report is not None and bool(report.models)

    def lost(self, name: str) -> None:
        failure = Failure("AgentUnavailable", "killed")
        self._agents[NodeName(name)] = replace(self._agents[NodeName(name)], failure=failure)

    def plan(self) -> Mapping[NodeName, DesiredState]:
        self._snapshot = replace(self._snapshot, agents=dict(self._agents))
        planned = plan(self._snapshot, time.time())
        self._snapshot = replace(self._snapshot, companies=planned.companies)
        return planned.desired


class Torrent(System):
    """`command_line` gets the node's address and the torrent."""

    def __init__(
        self, piece_bytes: int, missing: Callable[[], str | None], command_line: Callable[[str, str], list[str]]
    ) -> None:
        self._piece_bytes = piece_bytes
        self._missing = missing
        self._command_line = command_line

    def missing(self) -> str | None:
        return self._missing()

    def prepare(self, setting: Setting) -> None:
        owner, _, name = REPO.partition("/")
        seed = f"http://{setting.origin}:{ORIGIN_PORT}/files/{owner}/"
        tracker = f"http://{setting.origin}:{TRACKER_PORT}/announce"
        torrent = make_torrent(setting.sample, name, self._piece_bytes, seed, tracker)
        (setting.scratch / "torrent").write_bytes(torrent)

    def command(self, setting: Setting, number: int) -> list[str]:
        return self._command_line(setting.addresses[number], str(setting.scratch / "torrent"))


def _aria2_missing() -> str | None:
    return None if shutil.which("aria2c") else f"aria2c is missing: {install_line('aria2c')}"


def _libtorrent_missing() -> str | None:
    if TORRENT_PYTHON.exists():
        return None
    venv = TORRENT_PYTHON.parents[1].name
    return f"libtorrent is missing: python -m venv {venv} && {venv}/bin/pip install libtorrent, in {ROOT}"


def _aria2(address: str, torrent: str) -> list[str]:
    return _python("benchmarks.fanout.nodes", "aria2", address, torrent)


def _libtorrent(address: str, torrent: str) -> list[str]:
    return [str(TORRENT_PYTHON), str(ROOT / "benchmarks/fanout/torrent.py"), address, torrent]


class RayObjects(System):
    def missing(self) -> str | None:
        found = subprocess.run([sys.executable, "-c", "import ray"], capture_output=True).returncode == 0
        return None if found else "ray is missing: pip install ray"

    def command(self, setting: Setting, number: int) -> list[str]:
        urls = [
            f"http://{setting.origin}:{ORIGIN_PORT}/files/{REPO}/{file.path}"
            for file in setting.resolved.manifest.files
        ]
        nodes = str(len(setting.nodes))
        return _python("benchmarks.fanout.ray", nodes, setting.addresses[0], setting.addresses[number], *urls)


VERIFIES = {
    **dict.fromkeys(("one", "naive"), "files"),
    "ours": "chunks, files",
    **dict.fromkeys(("aria2", "libtorrent"), "pieces"),
    "ray": "nothing",
}
"""By system, against which digests a node checks its copy: a file's is the hub's, a piece's the torrent's."""

SYSTEMS: Mapping[str, System] = {
    "one": Agents(together=False, alone=True),
    "naive": Agents(together=False),
    "ours": Agents(together=True),
    "aria2": Torrent(1 << 20, _aria2_missing, _aria2),
    "libtorrent": Torrent(4 << 20, _libtorrent_missing, _libtorrent),
    "ray": RayObjects(),
}
