"""The engine alone, in a process that is up: without the interpreter's start and, as in an agent, without resolving.

    python -m benchmarks.fill.engine URI BYTES DIR [--no-hash] [--connections N]

The last line of standard output is JSON: seconds, CPU seconds, when the first byte was written, peak memory above what
the process held before. `benchmarks.fill` runs it beside the other downloaders.

Takes: as long as one fill
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path

from actors.digest import Digester
from actors.disk.store import Marker, open_ingest
from actors.fill.files import Files
from actors.fill.fill import Fill, verified_how
from actors.fill.origin_reader import FillSettings
from actors.manifest import Location, ManifestFile, ModelSource, Resolved, make_manifest
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from benchmarks.machine import MOST_WARM_BYTES, warm_up


def observed(fill: Fill, *, hashing: bool) -> list[float]:
    """When its first bytes came, once they have. Without `hashing` it reads nothing back, which no product does."""
    answered, came = fill._traffic.answered, list[float]()

    def note(latency_s: float) -> None:
        came.append(time.perf_counter())
        answered(latency_s)

    def skip(self: Digester, data: memoryview) -> None:
        self.position += len(data)

    def unread(self: Files, descriptor: int, position: int, stop: int, buffer: bytearray) -> Iterator[memoryview]:
        for start in range(position, stop, len(buffer)):
            yield memoryview(buffer)[: stop - start]

    setattr(fill._traffic, "answered", note)  # noqa: B010  mypy takes no method for a variable
    if not hashing:
        setattr(Digester, "update", skip)  # noqa: B010  mypy takes no method for a variable
        setattr(Files, "_blocks", unread)  # noqa: B010  mypy takes no method for a variable
    return came


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("uri", help="one http(s) file, or any source")
    parser.add_argument("bytes", type=int, help="of the file, or of all files")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--no-hash", action="store_true")
    parser.add_argument("--connections", type=int, default=FillSettings().connections)
    options = parser.parse_args()
    source = ModelSource(options.uri)
    if options.uri.startswith("http"):
        resolved = Resolved(make_manifest(source, None, [ManifestFile("file", options.bytes)]), (Location(source.uri),))
    else:
        resolved = resolve(source, SourceOptions.from_environ())
    options.directory.mkdir(parents=True)
    warm_up(options.directory, min(options.bytes, MOST_WARM_BYTES))

    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now
    idle, cpu, began = _memory("VmHWM"), _cpu_s(), time.perf_counter()
    ingest = open_ingest(options.directory / "ingest", resolved.manifest, "benchmark")
    ingest.allocate()
    fill = Fill(ingest, resolved, FillSettings(connections=options.connections))
    came = observed(fill, hashing=not options.no_hash)
    filled = fill.run()
    marker = Marker("benchmark", filled, verified_how(resolved.manifest))
    ingest.publish(marker, options.directory / "model", trash=options.directory / "trash")
    seconds = time.perf_counter() - began
    print(
        json.dumps(
            {
                "seconds": seconds,
                "cpuSeconds": _cpu_s() - cpu,
                "firstByteSeconds": (came[0] if came else began) - began,
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
