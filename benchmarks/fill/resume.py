"""What a `kill -9` costs a fill whose connections are slow: bytes that the origin serves beyond the model.

    python -m benchmarks.fill.resume [--size 64Mi] [--rate 100000] [--connections 16] [--kills 1] [--checkout FOLDER]

`localmodel fill` in a process of its own, from the sample origin over HTTP on loopback, which sends at most `--rate`
bytes per second on each connection. It is killed when the origin has served an equal part more of the model, and
started again. `--checkout`: of which code the command is, to compare with an earlier one. Prints a line of JSON.

Takes: 1 min
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from actors.sizes import parse_bytes
from benchmarks.machine import machine
from coordinator.dev.origin.sample import REPO, write_sample
from coordinator.dev.origin.server import Origin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_bytes, default=64 << 20)
    parser.add_argument("--rate", type=float, default=100_000.0)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--kills", type=int, default=1)
    parser.add_argument("--checkout", type=Path, default=Path.cwd())
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="localmodel-resume-") as temporary:
        folder = Path(temporary)
        write_sample(folder / "sample", options.size)
        with Origin({REPO: folder / "sample"}, rate_bytes_per_s=options.rate) as origin:
            command = [sys.executable, "-m", "coordinator.cli", "fill", f"hf://{REPO}", str(folder / "model")]
            command += ["--connections", str(options.connections)]
            environment = {**os.environ, "HF_ENDPOINT": origin.hub_endpoint}
            lost, began = [], time.monotonic()
            for kill in range(1, options.kills + 1):
                process = subprocess.Popen(command, env=environment, cwd=options.checkout, stdout=subprocess.DEVNULL)
                while origin.stats()["bytes"] < options.size * kill / (options.kills + 1):
                    time.sleep(0.01)
                process.kill()
                process.wait()
                lost.append(origin.stats()["bytes"])
            last = subprocess.run(
                command, env=environment, cwd=options.checkout, stdout=subprocess.DEVNULL, check=False
            )
            served = origin.stats()["bytes"]
            seconds = time.monotonic() - began
    row = {"bytes": options.size, "rate": options.rate, "connections": options.connections, "killed_at": lost}
    found = {"served": served, "over": round(served / options.size, 3), "wall_s": round(seconds, 1)}
    print(json.dumps({"benchmark": "resume", **row, **found, **machine()}))
    return last.returncode


if __name__ == "__main__":
    raise SystemExit(main())
