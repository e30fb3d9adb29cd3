"""How fast one node fills, and at what cost, beside whatever else could bring the same bytes from the same server.

    python -m benchmarks.fill [--scenario http …] [--size 1Gi] [--runs 3] [--json] [--kserve VENV/bin/python]

    http      one file from nginx on loopback                          tls       the same over TLS, with a CA of its own
    limited   25Mi/s per connection                                   s3        signed requests, rclone `serve s3`
    shards    a hub repository of twice the size                       small     10,000 files of 1Ki from the hub
    memory    peak memory at the size, and at 16 times it (only when named: it takes long)
    disk      against `dd … conv=fsync` on the same disk               slow-disk the same on one of 500 MB/s; needs root

Every run is a process of its own; the downloaders take turns, `--runs` times, and the best of each counts, because the
machine is shared. Before each turn the page cache gets back what it is about to need: see `benchmarks.machine`. A peer
that is not installed is named and left out, and so is a scenario. Everything happens below `--folder`, on loopback.

Better with: nginx, openssl, curl, aria2c, rclone, kserve-storage, s5cmd, root
Takes: 15 min; 1 min with --scenario http
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from actors.sizes import format_bytes, parse_bytes
from benchmarks.fill import disks, downloaders, origins
from benchmarks.fill.downloaders import Absent, Downloader
from benchmarks.machine import MOST_WARM_BYTES, machine, warm_up
from benchmarks.needs import lacks
from coordinator.dev.origin.sample import write_sample

Row = dict[str, Any]
SMALL_FILES, SMALL_FILE_BYTES = 10_000, 1024
LARGE = 16
SLOW_DISK_BYTES_PER_S = 500_000_000
_SERVER = ("nginx", "openssl")
_NEEDS = dict.fromkeys(("http", "tls", "limited", "memory", "disk"), _SERVER) | {
    "slow-disk": ("root", *_SERVER),
    "s3": ("rclone",),
}
_ALWAYS = ("http", "tls", "limited", "s3", "shards", "small", "disk", "slow-disk")


class Bench:
    """One invocation: a folder, servers that end with it, and how each scenario is run."""

    def __init__(self, folder: Path, size: int, runs: int, kserve: str | None, stack: ExitStack) -> None:
        self.size, self.runs, self.kserve = size, runs, kserve
        self._folder, self._stack = folder, stack
        self._content, self._target = folder / "content", folder / "target"
        self._nginx: origins.Nginx | None = None

    def scenario(self, name: str) -> Iterator[Row]:
        if missing := lacks(_NEEDS.get(name, ())):
            yield from ({"scenario": name, "who": "-", "absent": each} for each in missing)
            return
        yield from getattr(self, "_" + name.replace("-", "_"))()

    def _http(self) -> Iterator[Row]:
        url = f"{self._server().http}/{self._file(self.size)}"
        found = [downloaders.splice(url, self.size, self._target), *self._of_url(url, self.size)]
        yield from self._compare("http", self.size, found)

    def _tls(self) -> Iterator[Row]:
        url = f"{self._server().https}/{self._file(self.size)}"
        yield from self._compare("tls", self.size, self._of_url(url, self.size))

    def _limited(self) -> Iterator[Row]:
        url = f"{self._server().http}{origins.SLOW}/{self._file(self.size)}"
        yield from self._compare("limited", self.size, self._of_url(url, self.size))

    def _s3(self) -> Iterator[Row]:
        bucket = self._folder / "buckets" / "models"
        origins.write_noise(bucket / "llama" / "model.safetensors", self.size)
        env = self._stack.enter_context(origins.s3(bucket.parent))
        found = downloaders.of_s3("s3://models/llama", self.size, self._target, env, self.kserve)
        yield from self._compare("s3", self.size, found)

    def _shards(self) -> Iterator[Row]:
        size = 2 * self.size
        folder = self._folder / f"shards-{size}"
        write_sample(folder, size)
        yield from self._compare("shards", size, self._of_hub("benchmark/shards", size, folder))

    def _small(self) -> Iterator[Row]:
        size, folder = SMALL_FILES * SMALL_FILE_BYTES, self._folder / "small"
        if not folder.exists():
            origins.write_small_files(folder, SMALL_FILES, SMALL_FILE_BYTES)
        yield from self._compare("small", size, self._of_hub("benchmark/small", size, folder))

    def _memory(self) -> Iterator[Row]:
        for size in (self.size, LARGE * self.size):
            url = f"{self._server().http}/{self._file(size, sparse=True)}"
            ours = [each for each in self._of_url(url, size) if _name(each) == downloaders.ENGINE]
            yield from self._compare(f"memory {format_bytes(size)}", size, ours, runs=1)

    def _disk(self, scenario: str = "disk") -> Iterator[Row]:
        url = f"{self._server().http}/{self._file(self.size)}"
        zeros = ["dd", "if=/dev/zero", f"of={self._target}/dd", "bs=1M", f"count={self.size >> 20}", "conv=fsync"]
        ours = [each for each in self._of_url(url, self.size) if _name(each) == downloaders.ENGINE]
        yield from self._compare(scenario, self.size, [Downloader("dd conv=fsync", "-", zeros), *ours])

    def _slow_disk(self) -> Iterator[Row]:
        if lacks := disks.missing():
            yield {"scenario": "slow-disk", "who": "-", "absent": f"needs {lacks}"}
            return
        usual = self._target
        with disks.disk(self._folder, 2 * self.size + (1 << 30), SLOW_DISK_BYTES_PER_S) as disk:
            self._target = disk / "target"
            yield from self._disk("slow-disk")
        self._target = usual

    def _of_url(self, url: str, size: int) -> list[Downloader | Absent]:
        ca = self._server().ca if url.startswith("https") else None
        return downloaders.of_url(url, size, self._target, ca, self.kserve)

    def _of_hub(self, repo: str, size: int, folder: Path) -> list[Downloader | Absent]:
        env = self._stack.enter_context(origins.hub({repo: folder}))
        return downloaders.of_hub(repo, size, self._target, env, self.kserve)

    def _server(self) -> origins.Nginx:
        if self._nginx is None:
            self._content.mkdir(exist_ok=True)
            self._nginx = self._stack.enter_context(origins.nginx(self._content, self._folder))
        return self._nginx

    def _file(self, size: int, *, sparse: bool = False) -> str:
        name = f"{'sparse' if sparse else 'noise'}-{size}.bin"
        if sparse:
            with (self._content / name).open("wb") as file:
                file.truncate(size)
        else:
            origins.write_noise(self._content / name, size)
        return name

    def _compare(
        self, scenario: str, size: int, found: Sequence[Downloader | Absent], runs: int | None = None
    ) -> Iterator[Row]:
        present = [each for each in found if isinstance(each, Downloader)]
        for each in found:
            if isinstance(each, Absent):
                yield {"scenario": scenario, "who": "-", "absent": str(each)}
        measured: dict[str, list[dict[str, float]]] = {each.name: [] for each in present}
        for _ in range(runs or self.runs):
            for each in present:
                measured[each.name].append(self._turn(each, size))
        for each in present:
            checks = {"hashes": each.hashes, "verifies": each.verifies}
            yield {"scenario": scenario, "who": each.name, **checks, **_row(measured[each.name], size)}

    def _turn(self, downloader: Downloader, size: int) -> dict[str, float]:
        _empty(self._target)
        warm_up(self._target, min(size, MOST_WARM_BYTES))
        measured = downloaders.run(downloader)
        _empty(self._target)
        return measured


def _row(turns: list[dict[str, float]], size: int) -> Row:
    best = {name: min(turn[name] for turn in turns) for name in turns[0]}
    return {
        "bytes": size,
        **{name: round(value, 3) for name, value in best.items() if name != "rss_bytes"},
        "mb_per_s": round(size / 1e6 / best["wall_s"]),
        "cpu_s_per_gb": round(best["cpu_s"] / (size / 1e9), 2),
        "rss_mb": round(max(turn["rss_bytes"] for turn in turns) / 1e6),
        "turns": [round(turn["wall_s"], 2) for turn in turns],
    }


def _name(found: Downloader | Absent) -> str:
    return found.name if isinstance(found, Downloader) else ""


def _empty(folder: Path) -> None:
    """There is an empty folder, and no bytes that are gone for those that are written later to wait behind."""
    subprocess.run(["chmod", "-Rf", "u+w", str(folder)], check=False)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _targets(rows: Sequence[Row]) -> Iterator[tuple[str, float, float, bool]]:
    """The targets: name, the limit, what it is, and whether that will do; only for what was measured."""
    by = {(row["scenario"], row["who"]): row for row in rows if "absent" not in row}
    fill, engine, unhashed = downloaders.FILL, downloaders.ENGINE, downloaders.UNHASHED

    def value(scenario: str, who: str, name: str = "wall_s") -> float | None:
        row = by.get((scenario, who))
        return None if row is None else row.get(name)

    def ratio(scenario: str, who: str, ours: str) -> float | None:
        theirs, mine = value(scenario, who), value(scenario, ours)
        return None if theirs is None or mine is None else theirs / mine

    at_most: list[tuple[str, float, float | None]] = [
        ("http: CPU s/GB, no hash", 1.0, value("http", unhashed, "cpu_s_per_gb")),
        ("http: CPU s/GB, sha256", 1.6, value("http", engine, "cpu_s_per_gb")),
        ("tls: CPU s/GB, no hash", 1.35, value("tls", unhashed, "cpu_s_per_gb")),
        ("tls: CPU s/GB, sha256", 2.0, value("tls", engine, "cpu_s_per_gb")),
        ("http: engine's wall / curl's", 1.15, _inverse(ratio("http", "curl", engine))),
        ("http: seconds before the first byte", 0.05, value("http", engine, "first_byte_s")),
        ("tls: seconds before the first byte", 0.05, value("tls", engine, "first_byte_s")),
        *(
            (f"{row['scenario']}: Mi above idle", 100, row["rss_mb"] * 1e6 / 2**20)
            for row in rows
            if row["scenario"][:6] == "memory"
        ),
    ]
    at_least: list[tuple[str, float, float | None]] = [
        ("http: times faster than kserve-storage", 1, ratio("http", "kserve-storage", fill)),
        ("limited: times faster than kserve-storage", 8, ratio("limited", "kserve-storage", fill)),
        ("limited: times faster than aria2c -x16", 1, ratio("limited", "aria2c -x16", fill)),
        ("s3: times faster than s3fs.get", 2, ratio("s3", "s3fs.get", fill)),
        ("s3: times faster than kserve-storage", 1, ratio("s3", "kserve-storage", fill)),
        ("shards: times faster than snapshot_download", 3, ratio("shards", "snapshot_download", fill)),
        ("small: times faster than snapshot_download", 3, ratio("small", "snapshot_download", fill)),
        ("disk: of dd's rate", 0.9, ratio("disk", "dd conv=fsync", engine)),
        ("slow-disk: of dd's rate", 0.9, ratio("slow-disk", "dd conv=fsync", engine)),
    ]
    for name, limit, found in at_most:
        if found is not None:
            yield f"{name} <= {limit}", limit, found, found <= limit
    for name, limit, found in at_least:
        if found is not None:
            yield f"{name} >= {limit}", limit, found, found >= limit


def _inverse(value: float | None) -> float | None:
    return None if value is None else 1 / value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", action="append", choices=(*_ALWAYS, "memory"), help="repeatable; default: all")
    parser.add_argument("--size", type=parse_bytes, default=1 << 30)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="JSON lines instead of the table")
    parser.add_argument("--kserve", metavar="PYTHON", help="the interpreter of a venv that has kserve-storage")
    parser.add_argument("--folder", type=Path, help="kept and used again (default: a temporary one)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the servers end with us
    rows: list[Row] = []
    say: Callable[[str], None] = (lambda line: None) if options.json else (lambda line: print(line, flush=True))
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="localmodel-fill-")))
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(folder.resolve(), options.size, options.runs, options.kserve, stack)
        heads = f"{'wall s':>8}{'rate':>10}{'CPU s':>8}{'CPU s/GB':>10}{'memory':>9}"
        say(f"{'scenario':14}{'who':20}{'hashes':>10}  {'verifies':18}{heads}")
        for name in options.scenario or _ALWAYS:
            for row in bench.scenario(name):
                rows.append({"benchmark": "fill", **row, **machine(), "at": int(time.time())})
                if "absent" in row:
                    say(f"{row['scenario']:14}{row['absent']}")
                    continue
                rate = f"{format_bytes(int(row['bytes'] / row['wall_s']))}/s"
                numbers = f"{row['wall_s']:>8.2f}{rate:>10}{row['cpu_s']:>8.2f}{row['cpu_s_per_gb']:>10.2f}"
                who = f"{row['scenario']:14}{row['who']:20}{row['hashes']:>10}  {row['verifies']:18}"
                say(f"{who}{numbers}{format_bytes(int(row['rss_mb'] * 1e6)):>9}")
    met = list(_targets(rows))
    for target, _, found, good in met:
        say(f"{'met   ' if good else 'MISSED'}  {target}: {found:.3g}")
    for row in rows if options.json else []:
        print(json.dumps(row))
    if all("absent" in row for row in rows):
        return 2
    return 0 if all(good for *_, good in met) else 1


if __name__ == "__main__":
    raise SystemExit(main())
