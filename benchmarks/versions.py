"""A new version of a model on nodes that hold the one before, and back again: what is read, and what the disks take.

    python -m benchmarks.versions [--size 1Gi] [--nodes 3] [--changed 0.05] [--folder DIR]

Takes: 2 min

Four shards and some small files; the next version changes a part of one shard and adds a file. Agents are processes of
their own, told by the coordinator's plan, on loopback; the hub is the stand-in. Beside it: the same version on empty
disks, and `snapshot_download` of it into a cache that holds the one before, on one node.

The disk is looked at while it runs and once it is over. Blocks that files share count for each; where `--folder` is a
filesystem of its own, what that has less free space is measured instead.
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
from actors.mesh.limits import choose_chunk_bytes
from actors.messages import Phase
from actors.sizes import format_bytes, parse_bytes
from benchmarks.machine import machine
from coordinator.dev.origin.sample import REPO, write_sample
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.fanout import LINK_BYTES_PER_S, Fanout, Place
from coordinator.dev.trial.versions import at_revision, changed_chunk_bytes, disk_bytes, moved_bytes, next_version

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
    most_bytes: int
    disk_bytes: int

    def cells(self) -> list[str]:
        peers = "" if self.peer_bytes is None else format_bytes(self.peer_bytes)
        return [
            self.what,
            f"{self.seconds:.2f} s",
            format_bytes(self.origin_bytes),
            peers,
            format_bytes(self.most_bytes),
            format_bytes(self.disk_bytes),
        ]


def taken_bytes(mount: Path) -> int:
    """The space of a filesystem that is not free."""
    space = os.statvfs(mount)
    return (space.f_blocks - space.f_bfree) * space.f_frsize


class Disk:
    """The most that was held while the thread ran, and what is at the end, above what was before."""

    def __init__(self, held: Callable[[], int]) -> None:
        self._held, self._before, self._most = held, held(), 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self._look()

    def _look(self) -> int:
        more = self._held() - self._before
        self._most = max(self._most, more)
        return more

    def close(self) -> tuple[int, int]:
        self._over.set()
        self._thread.join()
        after = self._look()
        return self._most, max(0, after)


def measured(what: str, origin: Origin, held: Callable[[], int], act: Callable[[], int | None]) -> Row:
    before, disk, started = int(origin.stats()["bytes"]), Disk(held), time.monotonic()
    try:
        peers = act()
        seconds = time.monotonic() - started
    finally:
        most, after = disk.close()
    return Row(what, seconds, int(origin.stats()["bytes"]) - before, peers, most, after)


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


@dataclass(frozen=True, slots=True)
class Changed:
    """Bytes of the next version that are of files, and of chunks, that the one before has not."""

    files: int
    chunks: int


def run(folder: Path, size: int, count: int, changed: float, mount: Path | None) -> tuple[list[Row], Changed]:
    """A row for each step, and how much the next version is another. `mount`: the folder's own filesystem."""

    def held(each: Path) -> Callable[[], int]:
        return partial(disk_bytes, each) if mount is None else partial(taken_bytes, mount)

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
            rows.append(measured("version 1, empty disks", origin, held(fleet), lambda: turned(fanout, first)))
            rows.append(measured("version 2 over version 1", origin, held(fleet), lambda: turned(fanout, second)))
            rows.append(measured("back to version 1", origin, held(fleet), lambda: turned(fanout, again)))
            rows.append(measured("on to version 2 again", origin, held(fleet), lambda: turned(fanout, second)))
        with nodes(fresh, second, count) as fanout:
            rows.append(measured("version 2, empty disks", origin, held(fresh), lambda: turned(fanout, second)))
        for name, commit in (("1", str(again.manifest.revision)), ("2", str(second.manifest.revision))):
            what = f"snapshot_download of version {name}, one node"
            rows.append(measured(what, origin, held(cache), partial(snapshot_download, origin, cache, commit)))
        chunk_bytes = choose_chunk_bytes(first.manifest.total_bytes, LINK_BYTES_PER_S)
        chunks = changed_chunk_bytes(folder / "v1", folder / "v2", chunk_bytes)
        return rows, Changed(moved_bytes(folder / "v2"), chunks)


def verdicts(rows: list[Row], changed: Changed, count: int) -> dict[str, bool]:
    """By what is aimed at, whether it was reached."""
    over, back = rows[1], rows[2]
    return {
        "a new version reads its changed files once": over.origin_bytes <= changed.files * SLACK,
        "other nodes take its changed chunks alone": (over.peer_bytes or 0) <= (count - 1) * changed.chunks * SLACK,
        "it takes the room of its changed files": over.most_bytes <= count * (changed.files * SLACK + SMALL_BYTES),
        "the way back reads nothing": back.origin_bytes == back.peer_bytes == 0,
        f"the way back takes {ROLLBACK_S:g} s at most": back.seconds < ROLLBACK_S,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_bytes, default=1 << 30)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--changed", type=float, default=0.05, help="of one shard (default: 0.05)")
    parser.add_argument("--folder", type=Path, help="where to work (default: where temporary files are)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="localmodel-bench-", dir=args.folder) as folder:
        mount = args.folder if args.folder is not None and args.folder.is_mount() else None
        rows, changed = run(Path(folder), args.size, args.nodes, args.changed, mount)
    head = ["", "time", "from origin", "from peers", "more on disk", "after"]
    table = [head, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(head))]
    for line in table:
        print(
            "  ".join(
                [
                    line[0].ljust(widths[0]),
                    *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
                ]
            )
        )
    files, chunks = format_bytes(changed.files), format_bytes(changed.chunks)
    print(
        f"\nchanged and added: files of {files}, chunks of {chunks}, of {format_bytes(args.size)}; {args.nodes} nodes"
    )
    reached = verdicts(rows, changed, args.nodes)
    for what, held in reached.items():
        print(f"{'yes' if held else 'NO':>4}  {what}")
    facts: dict[str, Any] = {"benchmark": "versions", "nodes": args.nodes, "size": args.size, **machine()}
    for row in rows:
        figures = {
            "what": row.what,
            "seconds": round(row.seconds, 3),
            "originBytes": row.origin_bytes,
            "peerBytes": row.peer_bytes,
            "mostDiskBytes": row.most_bytes,
            "extraDiskBytes": row.disk_bytes,
            "changedBytes": changed.files,
            "changedChunkBytes": changed.chunks,
        }
        print(json.dumps({**facts, **figures}))
    return 0 if all(reached.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
