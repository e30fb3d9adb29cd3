"""The facts of the machine without which a figure means nothing, and how a table is printed."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

MOST_WARM_BYTES = 2 << 30


def machine() -> dict[str, Any]:
    """`load`: runnable processes over the last minute. `steal`: the part of the time since boot the host took away."""
    facts = {"machine": platform.machine(), "kernel": platform.release(), "python": platform.python_version()}
    return {"cpus": os.cpu_count(), **facts, "load": round(os.getloadavg()[0], 2), "steal": _steal()}


def _steal() -> float | None:
    try:
        ticks = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    return round(ticks[7] / max(sum(ticks), 1), 3)


def free_memory_bytes() -> int:
    """That nothing uses, not even the page cache."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def warm_up(folder: Path, size: int) -> None:
    """The kernel has just got back as much page cache as a file of `size` takes, from a file in `folder`.

    A virtual machine's host may take freed memory away; to get it back costs up to 3 seconds per Gi, whoever writes.
    """
    path, block = folder / "warm", bytes(1 << 20)
    with path.open("wb", buffering=0) as file:
        for _ in range(size // len(block) + 1):
            file.write(block)
    path.unlink()
