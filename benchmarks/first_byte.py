"""From `kubectl apply` to the first byte asked of the origin, on a laptop cluster that is up.

    python -m benchmarks.first_byte [--runs 5] [--nodes 3]

Needs: kubectl, aiohttp
Takes: 1 min

One cluster, one new cache per run, each of a repository of its own; the origin itself says when it was asked.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.needs import require
from coordinator.dev.laptop.cluster import NODE_GROUP, LaptopCluster, LaptopOptions
from coordinator.dev.origin.sample import write_sample

LIMIT_S = 2.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--nodes", type=int, default=3)
    args = parser.parse_args()
    require(__doc__, "first_byte")
    with tempfile.TemporaryDirectory(prefix="localmodel-bench-") as folder:
        repos = {f"bench/run-{run}": Path(folder) / f"run-{run}" for run in range(args.runs)}
        for path in repos.values():
            write_sample(path, 1 << 20)
        options = LaptopOptions(nodes=args.nodes, sample_bytes=0, repos=repos)
        with LaptopCluster(Path(folder) / "laptop", options) as cluster:
            seconds = [measure(cluster, repo) for repo in repos]
    print(f"{'run':>4}  {'apply to first byte':>20}")
    for run, took in enumerate(seconds, 1):
        print(f"{run:>4}  {took:>18.2f} s")
    row = {
        "benchmark": "first_byte",
        "nodes": args.nodes,
        "median_s": round(statistics.median(seconds), 3),
        "max_s": round(max(seconds), 3),
        "limit_s": LIMIT_S,
        **machine(),
    }
    print(json.dumps(row))
    return 0 if max(seconds) <= LIMIT_S else 1


def measure(cluster: LaptopCluster, repo: str) -> float:
    """Seconds from starting kubectl to the origin having been asked for a file's bytes."""
    manifest = {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "LocalModelCache",
        "metadata": {"name": repo.rpartition("/")[2]},
        "spec": {"sourceModelUri": f"hf://{repo}", "modelSize": "1Mi", "nodeGroups": [NODE_GROUP]},
    }
    command = ["kubectl", "--kubeconfig", str(cluster.kubeconfig), "apply", "-f", "-"]
    started = time.monotonic()
    subprocess.run(command, input=json.dumps(manifest), text=True, check=True, stdout=subprocess.DEVNULL)
    while True:
        stats = cluster.origin_stats()
        if stats and stats["repos"][repo]["bytes"] > 0:
            return time.monotonic() - started
        if time.monotonic() - started > 60:
            raise SystemExit(f"{repo} was never asked for: {cluster.children['coordinator'].log_tail()}")
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main())
