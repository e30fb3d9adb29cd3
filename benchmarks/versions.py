"""A new version of a model on nodes that hold the one before, and back again: what is read, and what the disks take.

    python -m benchmarks.versions [--size 1Gi] [--nodes 3] [--changed 0.05]

Takes: 2 min

Four shards and some small files; the next version changes a part of one shard and adds a file. Agents are processes of
their own, told by the coordinator's plan, on loopback; the hub is the stand-in. Beside it: the same version on empty
disks, and `snapshot_download` of it into a cache that holds the one before, on one node.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from actors.manifest import Resolved
from actors.messages import Phase
from actors.sizes import format_bytes, parse_bytes
from benchmarks.machine import machine
from coordinator.dev.origin.sample import REPO, write_sample
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.fanout import Fanout, Place
from coordinator.dev.trial.versions import at_revision, disk_bytes, moved_bytes, next_version

ROLLBACK_S = 2.0
SLACK = 1.02
SMALL_BYTES = 256 << 10
"""On each node, folders, markers and the journal."""
SAMPLE_S = 0.05


@dataclass(frozen=True, slots=True)
class Row:
    what: str
    seconds: float
    origin_bytes: int
    peer_bytes: int | None
    disk_bytes: int

    def cells(self) -> list[str]:
        peers = "" if self.peer_bytes is None else format_bytes(self.peer_bytes)
        return [
            self.what,
            f"{self.seconds:.2f} s",
            format_bytes(self.origin_bytes),
            peers,
            format_bytes(self.disk_bytes),
        ]


class Disk:
    """The most that the folders held while the thread ran, above what they held before."""

    def __init__(self, *folders: Path) -> None:
        self._folders, self._before, self._most = folders, disk_bytes(*folders), 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self._look()

    def _look(self) -> None:
        self._most = max(self._most, disk_bytes(*self._folders) - self._before)

    def close(self) -> int:
        self._over.set()
        self._thread.join()
        self._look()
        return self._most


def measured(what: str, origin: Origin, folder: Path, act: Callable[[], int | None]) -> Row:
    before, disk, started = int(origin.stats()["bytes"]), Disk(folder), time.monotonic()
    try:
        peers = act()
        seconds = time.monotonic() - started
    finally:
        most = disk.close()
    return Row(what, seconds, int(origin.stats()["bytes"]) - before, peers, most)


def turned(fanout: Fanout, resolved: Resolved) -> int:
    """Bytes that went from node to node until every node has this version."""
    fanout.revise(resolved)

    def there() -> bool:
        found = list(fanout.models().values())
        return all(
            each is not None and each.phase is Phase.READY and each.revision == resolved.manifest.revision
            for each in found
        )

    fanout.until(there, timeout_s=600)
    return sum(each.bytes_from_peers for each in fanout.models().values() if each is not None)


@contextmanager
def nodes(folder: Path, resolved: Resolved, count: int) -> Iterator[Fanout]:
    with Fanout(folder, resolved, {f"node-{number}": Place("127.0.0.1") for number in range(count)}) as fanout:
        yield fanout


def snapshot_download(origin: Origin, folder: Path, revision: str) -> None:
    call = f"snapshot_download({REPO!r}, revision={revision!r}, cache_dir={str(folder)!r})"
    code = f"import huggingface_hub; huggingface_hub.{call}"
    environment = {**os.environ, "HF_ENDPOINT": origin.hub_endpoint, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def run(folder: Path, size: int, count: int, changed: float) -> tuple[list[Row], int]:
    """A row for each step, and how many bytes of the next version are of files that the one before has not."""
    write_sample(folder / "v1", size)
    next_version(folder / "v1", folder / "v2", changed_part=changed)
    rows = []
    with Origin({REPO: folder / "v1"}) as origin:
        repo = origin.repos[REPO]
        first = at_revision(origin)
        again = at_revision(origin, repo.main.commit)
        second = at_revision(origin, repo.push(folder / "v2"))
        fleet, fresh, cache = folder / "fleet", folder / "fresh", folder / "cache"
        with nodes(fleet, first, count) as fanout:
            rows.append(measured("version 1, empty disks", origin, fleet, lambda: turned(fanout, first)))
            rows.append(measured("version 2 over version 1", origin, fleet, lambda: turned(fanout, second)))
            rows.append(measured("back to version 1", origin, fleet, lambda: turned(fanout, again)))
            rows.append(measured("on to version 2 again", origin, fleet, lambda: turned(fanout, second)))
        with nodes(fresh, second, count) as fanout:
            rows.append(measured("version 2, empty disks", origin, fresh, lambda: turned(fanout, second)))
        for name, commit in (("1", str(again.manifest.revision)), ("2", str(second.manifest.revision))):
            what = f"snapshot_download of version {name}, one node"
            rows.append(measured(what, origin, cache, partial(snapshot_download, origin, cache, commit)))
        return rows, moved_bytes(folder / "v2")


def verdicts(rows: list[Row], changed_bytes: int, count: int) -> dict[str, bool]:
    """By what is aimed at, whether it was reached."""
    over, back = rows[1], rows[2]
    return {
        "a new version reads its changed files once": over.origin_bytes <= changed_bytes * SLACK,
        "other nodes take no more than those": (over.peer_bytes or 0) <= (count - 1) * changed_bytes * SLACK,
        "it takes their room": over.disk_bytes <= count * (changed_bytes * SLACK + SMALL_BYTES),
        "the way back reads nothing": back.origin_bytes == back.peer_bytes == 0,
        f"the way back takes {ROLLBACK_S:g} s at most": back.seconds < ROLLBACK_S,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_bytes, default=1 << 30)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--changed", type=float, default=0.05, help="of one shard (default: 0.05)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="localmodel-bench-") as folder:
        rows, changed_bytes = run(Path(folder), args.size, args.nodes, args.changed)
    table = [["", "time", "from origin", "from peers", "more on disk"], *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(5)]
    for line in table:
        print(
            "  ".join(
                [
                    line[0].ljust(widths[0]),
                    *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
                ]
            )
        )
    print(f"\nchanged and added: {format_bytes(changed_bytes)} of {format_bytes(args.size)}, {args.nodes} nodes")
    reached = verdicts(rows, changed_bytes, args.nodes)
    for what, held in reached.items():
        print(f"{'yes' if held else 'NO':>4}  {what}")
    facts: dict[str, Any] = {"benchmark": "versions", "nodes": args.nodes, "size": args.size, **machine()}
    for row in rows:
        figures = {
            "what": row.what,
            "seconds": round(row.seconds, 3),
            "originBytes": row.origin_bytes,
            "peerBytes": row.peer_bytes,
            "extraDiskBytes": row.disk_bytes,
            "changedBytes": changed_bytes,
        }
        print(json.dumps({**facts, **figures}))
    return 0 if all(reached.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
