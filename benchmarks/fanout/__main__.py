"""Do N cold nodes finish in the time of one, while the origin is read once? Measured on hosts with shaped links.

    python -m benchmarks.fanout [--nodes 8] [--size 1Gi] [--rate 200mbit] [--systems one,naive,ours]
                                [--straggler | --kill] [--plot FILE.png] [--json]

Every host is a network namespace, with a link of `--rate` each way, process tree and disk (in memory) of its own. One
is the origin, which counts the payload it sends; the others start cold, all at once. All systems are measured on the
same hosts, one after the other; see `benchmarks.fanout.systems`.

Prints a table; with --json, a JSON line per system, and then `{"nodes", "amplification", "slowest_over_one",
"naive_over_one", "ray_broadcast_over_one", "cpu_s_per_gb"}`. A system that is not installed is skipped, and it says so.
Exits with 1 when a system did not finish, with 2 where hosts cannot be made.

Needs: root, ip, tc, unshare
Better with: aria2c, libtorrent, matplotlib
Takes: 25 min; 2 min with --systems ours
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from actors.sizes import format_bytes, parse_bytes
from benchmarks.fanout.systems import SYSTEMS, VERIFIES, Setting, Watch
from benchmarks.machine import free_memory_bytes, machine, warm_up
from coordinator.dev import hosts as namespaces
from coordinator.dev.hosts import Network, Running
from coordinator.dev.laptop.runfolder import remove_abandoned, run_folder
from coordinator.dev.origin.sample import write_sample

SAMPLE_S = 0.2
START_S = 120.0
MEMORY = Path("/dev/shm")
SLOWDOWN = 4
"""The straggler's link is that many times slower."""
LAST_LINES = 40
ANCHORS = (
    "published elsewhere: Monarch, a chain: 26.5 s to 128 nodes, 23.2 s to 1 (1.14); Kraken, 3 GB to 2,600 hosts:"
    " p99/p50 1.8; Ray broadcast, 1Gi to 50 nodes: 16.94 s"
)
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Options:
    nodes: int
    size: int
    rate: str | None
    systems: tuple[str, ...]
    variant: str
    """`plain`, `straggler` or `kill`; the last node is the odd one."""

    @property
    def names(self) -> list[str]:
        return [f"node{number}" for number in range(1, self.nodes + 1)]

    @property
    def link_bytes_per_s(self) -> float | None:
        return None if self.rate is None else _rate_bits(self.rate) / 8

    @property
    def patience_s(self) -> float:
        """For every node to read all of it from the origin, one after the other, and twice that."""
        return 60.0 + 3 * self.nodes * self.size / (self.link_bytes_per_s or 100e6)


@dataclass(slots=True)
class Observation:
    """One run. Seconds since it began; bytes as they came over each node's link, with all headers."""

    finished: dict[str, float] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    received: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    origin_bytes: int = 0
    cpu_s: float = 0.0


class Lab:
    """The hosts, and what is measured on them."""

    def __init__(self, options: Options, network: Network, sample: Path, scratch: Path) -> None:
        self._options = options
        self._network = network
        self._sample = sample
        self._scratch = scratch
        self._python_path = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        for name in ("origin", *options.names):
            network.host(name)
        if options.variant == "straggler":
            network.host(options.names[-1]).shape(f"{_rate_bits(options.rate or '') / SLOWDOWN:.0f}bit")

    def run(self, name: str) -> Observation:
        """The nodes are filled by this system. Raises TimeoutError and RuntimeError."""
        system, options = SYSTEMS[name], self._options
        nodes = options.names[:1] if system.alone else options.names
        with self._network.programs() as programs, (self._scratch / f"{name}.log").open("ab") as log:

            def start(host: str, command: list[str]) -> Running:
                found = self._network.hosts[host].start(command, self._network.disk, log, self._python_path)
                programs.append(found)
                return found

            address = self._network.hosts["origin"].address
            serve = [sys.executable, "-m", "benchmarks.fanout.nodes", "origin", address, str(self._sample)]
            origin = start("origin", serve)
            setting = Setting(
                nodes=nodes,
                addresses=[self._network.hosts[node].address for node in nodes],
                origin=address,
                sample=self._sample,
                resolved=_first_words([origin])[0],
                link_bytes_per_s=options.link_bytes_per_s,
                scratch=self._scratch,
            )
            system.prepare(setting)
            running = {node: start(node, system.command(setting, number)) for number, node in enumerate(nodes)}
            _first_words(list(running.values()))
            warm_up(MEMORY, min(len(nodes) * options.size, free_memory_bytes() * 9 // 10))
            observed, watch = Observation(), Watch(time.monotonic() + options.patience_s)
            with _Meter(observed, watch, running, self._victim(system.alone)):
                began, cpu_s = time.monotonic(), sum(each.cpu_s() for each in running.values())
                system.drive(setting, running, watch)
            observed.cpu_s = sum(each.cpu_s() for each in running.values()) - cpu_s
            observed.finished = {node: at - began for node, at in watch.finished.items()}
            observed.lost = watch.lost
            origin.connection.send("count")
            observed.origin_bytes = origin.connection.recv()
            return observed

    def _victim(self, alone: bool) -> tuple[str, int] | None:
        """The node that is killed, and after how many bytes."""
        return (
            (self._options.names[-1], self._options.size // 2)
            if self._options.variant == "kill" and not alone
            else None
        )


class _Meter:
    """While it is open, what comes over the links is written down, and the victim is killed when its time has come."""

    def __init__(
        self, observed: Observation, watch: Watch, running: Mapping[str, Running], victim: tuple[str, int] | None
    ) -> None:
        self._observed, self._watch, self._running, self._victim = observed, watch, running, victim
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="meter", daemon=True)

    def __enter__(self) -> None:
        self._before = {node: each.received_bytes() for node, each in self._running.items()}
        self._began = time.monotonic()
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(SAMPLE_S):
            for node in self._running.keys() - self._watch.lost:
                received = self._running[node].received_bytes() - self._before[node]
                self._observed.received.setdefault(node, []).append((time.monotonic() - self._began, received))
                if self._victim is not None and node == self._victim[0] and received >= self._victim[1]:
                    self._watch.lost.add(node)
                    self._running[node].kill()


def _first_words(running: Sequence[Running]) -> list[Any]:
    """What each says when it has started. Raises as soon as one has ended."""
    words: dict[Running, Any] = {}
    deadline = time.monotonic() + START_S
    while left := {each.connection: each for each in running if each not in words}:
        ready = wait(left, max(0.0, deadline - time.monotonic()))
        for connection in ready:
            each = left[connection]  # type: ignore[index]  # of those waited for
            try:
                words[each] = each.connection.recv()
            except EOFError:
                raise RuntimeError(f"{each.host.name} ended when it started") from None
        if not ready:
            raise TimeoutError(
                f"not started within {START_S:.0f} s: {', '.join(each.host.name for each in left.values())}"
            )
    return [words[each] for each in running]


def summarise(name: str, options: Options, observed: Observation, one_s: float | None) -> Row:
    """The figures of one run. The slowest node is that of the healthy ones."""
    odd = {options.names[-1]} if options.variant != "plain" and not SYSTEMS[name].alone else set()
    healthy = sorted(seconds for node, seconds in observed.finished.items() if node not in odd)
    delivered = options.size * len(observed.finished) / 1e9
    slowest = healthy[-1]
    return {
        "system": name,
        "verifies": VERIFIES[name],
        "variant": options.variant,
        "nodes": 1 if SYSTEMS[name].alone else options.nodes,
        "bytes": options.size,
        "rate": options.rate,
        "first_s": round(healthy[0], 2),
        "median_s": round(statistics.median(healthy), 2),
        "slowest_s": round(slowest, 2),
        "over_one": round(slowest / (one_s or slowest), 3),
        "amplification": round(observed.origin_bytes / options.size, 4),
        "cpu_s_per_gb": round(observed.cpu_s / delivered, 2),
    }


def verdict(nodes: int, rows: list[Row]) -> dict[str, Any]:
    """What it comes to; None for what was not measured."""
    found = {row["system"]: row for row in rows}

    def of(system: str, name: str) -> Any:
        return found[system][name] if system in found else None

    return {
        "nodes": nodes,
        "amplification": of("ours", "amplification"),
        "slowest_over_one": of("ours", "over_one"),
        "naive_over_one": of("naive", "over_one"),
        "ray_broadcast_over_one": of("ray", "over_one"),
        "cpu_s_per_gb": of("ours", "cpu_s_per_gb"),
    }


COLUMNS = ("nodes", "first_s", "median_s", "slowest_s", "over_one", "amplification", "cpu_s_per_gb")


def measure(
    options: Options, sample: Path, scratch: Path, say: Callable[[str], None]
) -> tuple[list[Row], dict[str, Observation]]:
    """A row for every system that ran to its end; of others it is said what their programs said last."""
    rows: list[Row] = []
    observations: dict[str, Observation] = {}
    with Network(options.rate) as network:
        lab = Lab(options, network, sample, scratch)
        say("".join([f"{'system':12}{'verifies':15}", *(f"{name.replace('_', ' '):>15}" for name in COLUMNS)]))
        for name in options.systems:
            absent = SYSTEMS[name].missing()
            if absent is not None:
                say(f"{name:12} skipped: {absent}")
                continue
            try:
                observed = observations[name] = lab.run(name)
            except (RuntimeError, TimeoutError) as error:
                lines = (scratch / f"{name}.log").read_text(errors="replace").splitlines()[-LAST_LINES:]
                say(
                    "\n".join(
                        [f"{name:12} failed: {error}; its programs said last:", *(f"    {line}" for line in lines)]
                    )
                )
                continue
            one_s = next((row["slowest_s"] for row in rows if row["system"] == "one"), None)
            rows.append(summarise(name, options, observed, one_s))
            say("".join([f"{name:12}{VERIFIES[name]:15}", *(f"{rows[-1][column]:>15}" for column in COLUMNS)]))
    return rows, observations


def draw(path: Path, observations: Mapping[str, Observation]) -> None:
    """Bytes over time, a panel for every system and a line for every node."""
    import matplotlib  # type: ignore[import-not-found,unused-ignore]  # not a dependency

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(observations), sharex=True, sharey=True, squeeze=False, figsize=(4 * len(observations), 3.5)
    )
    for panel, (name, observed) in zip(panels[0], observations.items(), strict=True):
        for node, points in sorted(observed.received.items()):
            seconds, received = zip((0.0, 0), *points, strict=True)
            panel.plot(seconds, [each / 2**20 for each in received], linewidth=1, label=node)
        panel.set(title=name, xlabel="seconds")
    panels[0][0].set(ylabel="Mi received")
    panels[0][-1].legend(fontsize="x-small")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def _rate_bits(text: str) -> float:
    """As tc writes it. Raises ValueError."""
    match = re.fullmatch(r"(\d+)(k|m|g)bit", text)
    if match is None:
        raise ValueError(f"{text!r} is not a rate such as 200mbit")
    return int(match[1]) * {"k": 1e3, "m": 1e6, "g": 1e9}[match[2]]


def _rate(text: str) -> str:
    _rate_bits(text)
    return text


def _size(text: str) -> int:
    return parse_bytes(text.removesuffix("B") if text.endswith("iB") else text)


def _systems(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(["one", *text.split(",")]))  # everything is measured against it
    unknown = set(names) - SYSTEMS.keys()
    if unknown:
        raise ValueError(f"unknown: {', '.join(unknown)}")
    return names


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--size", type=_size, default=1 << 30, help="of the model (default: 1Gi)")
    parser.add_argument("--rate", type=_rate, help="of every link, each way, such as 200mbit (default: unshaped)")
    parser.add_argument(
        "--systems", type=_systems, default=tuple(SYSTEMS), help=f"of {','.join(SYSTEMS)} (default: all)"
    )
    odd = parser.add_mutually_exclusive_group()
    odd.add_argument("--straggler", action="store_true", help="the last node's link has a quarter of the rate")
    odd.add_argument("--kill", action="store_true", help="the last node is killed when half of it is there")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="bytes over time per node; needs matplotlib")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, too")
    given = parser.parse_args()
    variant = "straggler" if given.straggler else "kill" if given.kill else "plain"
    options = Options(given.nodes, given.size, given.rate, given.systems, variant)
    if options.nodes < 2 or (given.straggler and given.rate is None):
        parser.error("needs at least two nodes, and --straggler a --rate")
    problem = namespaces.missing() or _no_matplotlib(given.plot) or _no_memory(options)
    if problem is not None:
        print(f"fanout: {problem}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parent, prefix = Path(tempfile.gettempdir()), "localmodel-fanout-"
    remove_abandoned(parent, prefix)
    with run_folder(parent, prefix) as folder:
        write_sample(folder / "sample", options.size)
        rows, observations = measure(options, folder / "sample", folder, lambda line: print(line, flush=True))
    print(ANCHORS)
    if given.plot is not None:
        draw(given.plot, observations)
    if given.json:
        for row in rows:
            print(json.dumps({"benchmark": "fanout", **row, **machine()}))
        print(json.dumps(verdict(options.nodes, rows)))
    return 0 if len(observations) == len(options.systems) else 1


def _no_matplotlib(plot: Path | None) -> str | None:
    if plot is not None and find_spec("matplotlib") is None:
        return "--plot needs matplotlib: pip install matplotlib"
    return None


def _no_memory(options: Options) -> str | None:
    """The nodes' disks are in memory."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    needed = (options.nodes + 1) * options.size + (1 << 30)
    if needed > free:
        size = format_bytes(options.size)
        need, have = format_bytes(needed, up=True), format_bytes(free)
        return f"{options.nodes} nodes with {size} each take {need} of memory; {have} are free: choose a smaller --size"
    return None


if __name__ == "__main__":
    raise SystemExit(main())
