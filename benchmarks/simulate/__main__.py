"""A cooperative fill of a whole fleet in virtual time: the deciding code of the agents over simulated links.

    .venv/bin/python -m benchmarks.simulate [CASE …] [--list] [--seed 1] [--processes 1]
    .venv/bin/python -m benchmarks.simulate --measured FILE     # what `benchmarks.fanout --json` printed

Every node is a `mesh.mesh.Mesh`, the very code of the agents, with the chunks they would choose; the world around it
is `coordinator/dev/simulation`. Prints one table and one JSON line per case; ends with 1 where a target is missed.

over         the slowest healthy node's time over max(model / origin, model / link); of one that came late: over at
             least the time of a whole model at the rate of its link, after it came. Slow and dying nodes do not count.
origin       bytes read from the origin over the model
connections  most on one node at once: requests under way, its own and others', and news from and to each neighbour
messages     requests, answers and news that a node sends; calls that the coordinator makes, each with an answer

With `--measured` the run that was measured is simulated, and the slowest node over one node alone is compared; ends
with 1 where that deviates by more than 15 %, with 2 where the file holds no run that can be compared.

Takes: 2 s for the cases of 8 nodes, 1 to 3 min of a processor for each of 128, 16 to 24 min for each of 1,000
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.machine import machine
from coordinator.dev.simulation.fleet import Fleet, Scenario
from coordinator.dev.simulation.outcomes import GBIT, Case, Row, compare, result

ANCHORS = """Published elsewhere, on other machines, networks and data: for orientation, not a comparison
  Monarch, a chain of hosts (github.com/meta-pytorch/monarch/pull/4654)    128 in 26.5 s, one in 23.2 s: 1.14
  Kraken, 3 GB to 2,600 hosts (github.com/uber/kraken, README)             p99 over p50: 1.8
  Ray broadcast, 1Gi to 50 nodes (ray, release/perf_metrics/scalability) 16.94 s"""


def cases() -> Iterator[Case]:
    """Small: eight nodes, where a measured run exists. Origin-bound, then NIC-bound, each with all that goes wrong."""
    small = Scenario("8", 8, 1 << 30, 0.2 * GBIT, 0.2 * GBIT)
    yield Case(small, 1.10)
    yield Case(replace(small, case="8, one slow", slow=1 / 8), 1.15)
    yield Case(replace(small, case="8, one dies", dying=1 / 8), 1.15, origin=1.02)
    for nodes in (128, 1000):
        for origin, target in ((10, 1.05), (100, 1.10)):
            name = f"{nodes}, origin {origin} Gbit/s"
            large = Scenario(name, nodes, 140 * 10**9, 25 * GBIT, origin * GBIT, segments=1)
            yield Case(large, target)
            yield Case(replace(large, case=f"{name}, slow and dying", slow=0.05, dying=0.02), target)
            yield Case(replace(large, case=f"{name}, late", late=0.2), target)


def simulate(case: Case, seed: int) -> Row:
    cpu = time.process_time()
    fleet = Fleet(case.scenario, seed)
    fleet.run()
    row = result(fleet)
    return {**row, "over_target": case.over, "missed": case.missed(row), "cpu_s": round(time.process_time() - cpu, 1)}


def print_comparison(path: Path, seed: int) -> int:
    """Prints how far the simulation is from what was measured; the exit code."""
    found = compare(path.read_text().splitlines(), seed)
    if not found:
        how = "make one with benchmarks.fanout --rate 200mbit --systems one,ours --json"
        print(f"simulate: {path} holds no run of ours on shaped links beside one node: {how}", file=sys.stderr)
        return 2
    print(f"{'nodes':38}{'measured':>10}{'simulated':>11}{'deviation':>11}")
    for each in found:
        print(f"{each.case:38}{each.measured:>10.3f}{each.simulated:>11.3f}{each.deviation:>+11.1%}")
    for each in found:
        row = {"case": each.case, "measured_over_one": each.measured, "over_one": each.simulated}
        print(json.dumps({"benchmark": "simulate", **row, "seed": seed}))
    return 0 if all(each.close for each in found) else 1


COLUMNS = {
    "over": ("over", 7),
    "median_over": ("median", 8),
    "origin": ("origin", 8),
    "peak_connections": ("connections", 13),
    "node_messages_per_s": ("msg/s node", 12),
    "coordinator_messages_per_s": ("msg/s coord.", 14),
    "virtual_s": ("virtual s", 11),
    "cpu_s": ("CPU s", 8),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="*", help="cases whose name begins so; all, if none is given")
    parser.add_argument("--list", action="store_true", help="name the cases and exit")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--measured", type=Path, metavar="FILE", help="compare with this measured run instead")
    options = parser.parse_args()
    if options.measured is not None:
        return print_comparison(options.measured, options.seed)
    chosen = [case for case in cases() if not options.case or case.scenario.case.startswith(tuple(options.case))]
    if options.list:
        print("\n".join(case.scenario.case for case in chosen))
        return 0
    print(f"{'nodes':38}" + "".join(f"{title:>{width}}" for title, width in COLUMNS.values()), flush=True)
    rows = []
    with ProcessPoolExecutor(options.processes) as pool:
        for row in pool.map(partial(simulate, seed=options.seed), chosen):
            rows.append({"benchmark": "simulate", **row, "seed": options.seed, **machine()})
            figures = "".join(f"{row[key]:>{width}}" for key, (_, width) in COLUMNS.items())
            print(f"{row['case']:38}{figures}" + "".join(f"  missed: {each}" for each in row["missed"]), flush=True)
    print(ANCHORS)
    for row in rows:
        print(json.dumps(row))
    return 1 if not rows or any(row["missed"] for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
