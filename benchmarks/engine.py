"""The engine alone, in a process that is up: one http(s) file, without resolving and without the interpreter's start.

    python -m benchmarks.engine URL BYTES DIR [--no-hash] [--connections N]

The last line of standard output is JSON: seconds, CPU seconds, when the first byte was written, peak memory above what
the process held before. `benchmarks.fill` runs it beside the other downloaders.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from actors.digest import Digester
from actors.fetch import FillSettings
from actors.files import Files
from actors.fill import Fill, verified_how
from actors.manifest import Location, ManifestFile, ModelSource, Resolved, make_manifest
from actors.store import Marker, open_ingest
from benchmarks.machine import MOST_WARM_BYTES, warm_up


class Observed(Files):
    """Knows when its first byte came. With `hashing` off it reads nothing back, which no product does."""

    first_byte_at: float | None = None
    hashing = True

    def write(self, index: int, position: int, block: memoryview) -> None:
        if Observed.first_byte_at is None:
            Observed.first_byte_at = time.perf_counter()
        super().write(index, position, block)

    def _blocks(self, descriptor: int, position: int, stop: int, buffer: bytearray) -> Iterator[memoryview]:
        if Observed.hashing:
            yield from super()._blocks(descriptor, position, stop, buffer)
        else:
            for start in range(position, stop, len(buffer)):
                yield memoryview(buffer)[: stop - start]


class Unhashed(Digester):
    def update(self, data: bytes | bytearray | memoryview) -> None:
        self.position += len(data)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("bytes", type=int)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--no-hash", action="store_true")
    parser.add_argument("--connections", type=int, default=FillSettings().connections)
    options = parser.parse_args()
    source = ModelSource(options.url)
    manifest = make_manifest(source, None, [ManifestFile("file", options.bytes)])
    resolved = Resolved(manifest, (Location(options.url),))
    options.directory.mkdir(parents=True)
    warm_up(options.directory, min(options.bytes, MOST_WARM_BYTES))

    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now
    idle, cpu, began = _memory("VmHWM"), _cpu_s(), time.perf_counter()
    ingest = open_ingest(options.directory / "ingest", manifest, "benchmark")
    ingest.allocate()
    Observed.hashing = not options.no_hash
    with (
        patch("actors.fill.Files", Observed),
        patch("actors.files.Digester", Digester if Observed.hashing else Unhashed),
    ):
        filled = Fill(ingest, resolved, FillSettings(connections=options.connections)).run()
    marker = Marker("benchmark", filled, verified_how(manifest))
    ingest.publish(marker, options.directory / "model", trash=options.directory / "trash")
    seconds = time.perf_counter() - began
    print(
        json.dumps(
            {
                "seconds": seconds,
                "cpuSeconds": _cpu_s() - cpu,
                "firstByteSeconds": (Observed.first_byte_at or began) - began,
                "rssAboveIdleBytes": _memory("VmHWM") - idle,
            }
        )
    )
    return 0


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _memory(name: str) -> int:
    """`VmHWM` (the peak) or `VmRSS` of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name + ":"))


if __name__ == "__main__":
    raise SystemExit(main())
