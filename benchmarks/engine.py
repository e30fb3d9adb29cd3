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

from actors.chunks import Chunk
from actors.digest import Digester
from actors.fetch import FillSettings
from actors.fill import Fill, verified_how
from actors.manifest import Location, ManifestFile, ModelSource, Resolved, make_manifest
from actors.store import Marker, open_ingest
from actors.transfer import RangeReader
from benchmarks.machine import warm_up


class Observed(Fill):
    """Knows when its first byte came. With `hashing` off it reads nothing back, which no product does."""

    first_byte_at: float | None = None
    hashing = True

    def read(self, reader: RangeReader, resolved: Resolved, chunk: Chunk) -> Iterator[memoryview]:
        for block in super().read(reader, resolved, chunk):
            if self.first_byte_at is None:
                self.first_byte_at = time.perf_counter()
            yield block

    def _hash(self, digester: Digester, descriptor: int, frontier: int, buffer: bytearray) -> None:
        if self.hashing:
            super()._hash(digester, descriptor, frontier, buffer)
        else:
            digester.position = frontier


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
    warm_up(options.directory, min(options.bytes, 2 << 30))

    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now
    idle, cpu, began = _memory("VmHWM"), _cpu_s(), time.perf_counter()
    ingest = open_ingest(options.directory / "ingest", manifest, "benchmark")
    ingest.allocate()
    fill = Observed(ingest, resolved, FillSettings(connections=options.connections))
    fill.hashing = not options.no_hash
    filled = fill.run()
    marker = Marker("benchmark", filled, verified_how(manifest))
    ingest.publish(marker, options.directory / "model", trash=options.directory / "trash")
    seconds = time.perf_counter() - began
    print(
        json.dumps(
            {
                "seconds": seconds,
                "cpuSeconds": _cpu_s() - cpu, "ru": str(resource.getrusage(resource.RUSAGE_SELF))[23:100],
                "firstByteSeconds": (fill.first_byte_at or began) - began,
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
