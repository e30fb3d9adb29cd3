"""What localmodel is worth in a minute: one node beside two other downloaders, and many nodes that fill together.

    python -m benchmarks quick [--size 256Mi] [--runs 2] [--nodes 16] [--html FILE] [--plot FILE.svg|FILE.png]

Takes: under 1 min

First, one node fills a sample model from a hub stand-in on loopback: the engine as in an agent that is up, `localmodel
fill` from the start of the interpreter, `huggingface_hub.snapshot_download`, and a loop over `urllib.request`. Each run
is a process of its own; they take turns, and the best of `--runs` counts. Then a fleet of `--nodes` cold nodes with
links of 200 Mbit/s is simulated: the deciding code of the agents, in virtual time. Nothing leaves this machine.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from actors.sizes import format_bytes, parse_bytes
from benchmarks import report
from benchmarks.fill import downloaders, origins
from benchmarks.fill.downloaders import ENGINE, FILL, PLAIN, SNAPSHOT, Downloader
from benchmarks.result import Result
from coordinator.dev.origin.sample import MIN_BYTES, REPO, write_sample
from coordinator.dev.simulation.fleet import Fleet, Scenario
from coordinator.dev.simulation.outcomes import GBIT, result

LINK = 0.2 * GBIT
FLEET_BYTES = 1 << 30
NAMES = {ENGINE: "localmodel, the engine"}


def fills(folder: Path, size: int, runs: int) -> list[Result]:
    """The best turn of each downloader."""
    sample, target = folder / "sample", folder / "target"
    write_sample(sample, size)
    measured: dict[str, list[dict[str, float]]] = {}
    with origins.hub({REPO: sample}) as environment:
        found = [
            *downloaders.of_hub(REPO, size, target, environment, None),
            downloaders.plain_of_hub(REPO, target, environment),
        ]
        chosen = [each for each in found if isinstance(each, Downloader)]
        for _ in range(runs):
            for each in chosen:
                shutil.rmtree(target, ignore_errors=True)
                target.mkdir()
                measured.setdefault(each.name, []).append(downloaders.run(each))
    best = {name: min(turns, key=lambda turn: turn["wall_s"]) for name, turns in measured.items()}
    group = f"One node, {format_bytes(size)} from a hub on loopback"
    return [
        Result(
            group,
            NAMES.get(each.name, each.name),
            each.verifies,
            best[each.name]["wall_s"],
            size,
            None,
            _fill_means(each.name, {name: turn["wall_s"] for name, turn in best.items()}),
            cpu_s=best[each.name]["cpu_s"],
            rss_bytes=int(best[each.name]["rss_bytes"]),
        )
        for each in chosen
    ]


def _fill_means(name: str, seconds: dict[str, float]) -> str:
    ratio = seconds[SNAPSHOT] / seconds[name]
    times = f"{ratio:.1f} times as fast as" if ratio >= 1 else f"takes {1 / ratio:.1f} times as long as"
    times += " snapshot_download"
    return {
        ENGINE: f"An agent that is up and has been told the files, until each is checked and on the disk: {times}.",
        FILL: f"The same as a command, with the start of Python and the fsync before it ends: {times}.",
        SNAPSHOT: "The library that KServe's downloader uses: no file's digest is compared, nothing is synced.",
        PLAIN: "One connection, no check, no fsync: what the loopback and the disk give to a simple loop.",
    }[name]


def fleet(nodes: int, size: int = FLEET_BYTES) -> list[Result]:
    """Many cold nodes, each for itself (arithmetic) and together (simulated)."""
    scenario = Scenario("together", nodes, size, LINK, LINK)
    one_s, group = size / LINK, f"{nodes} cold nodes, {format_bytes(size)}, every link 200 Mbit/s"
    run = Fleet(scenario, seed=1)
    run.run()
    found = result(run)
    together_s, read = float(found["virtual_s"]), float(found["origin"])
    return [
        Result(
            group,
            "localmodel, together",
            "chunks and files",
            together_s,
            size,
            read,
            f"The last node is done after {together_s / one_s:.2f} times the time of one, and the origin is read"
            f" {read:.2f} times.",
            how="simulated: the agents' deciding code in virtual time; no disks, no TCP",
        ),
        Result(
            group,
            "each for itself",
            "as its downloader",
            nodes * one_s,
            size,
            float(nodes),
            f"A download job per node reads the origin {nodes} times over the origin's one link.",
            how="computed: nodes × size over the origin's link",
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_bytes, default=256 << 20, help="of the sample model (default: 256Mi)")
    parser.add_argument("--runs", type=int, default=2, help="turns of each downloader (default: 2)")
    parser.add_argument("--nodes", type=int, default=16, help="of the simulated fleet (default: 16)")
    report.add_arguments(parser)
    args = parser.parse_args(arguments)
    if args.size < MIN_BYTES or args.runs < 1 or args.nodes < 2:
        parser.error(f"needs --size {format_bytes(MIN_BYTES)}, --runs 1 and --nodes 2 at least")
    report.check(args, "quick")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the origin ends with us
    with tempfile.TemporaryDirectory(prefix="localmodel-quick-") as folder:
        results = fills(Path(folder), args.size, args.runs)
    results += fleet(args.nodes)
    note = "Loopback is faster than any network: the first part compares what downloaders cost, not what a link gives."
    report.tell("localmodel, measured in a minute", "quick", results, args, (note,))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
