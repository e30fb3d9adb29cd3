"""Where a process has a text: in its environment, its memory, or on its disk. To find what must not be there."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

_BLOCK_BYTES = 16 << 20


def traces(text: str, pid: int, disk: Path) -> list[str]:
    """Every place, for people. Looks for the text as it is, and as a Secret's data carries it.

    Skips the test where this user may not look into the process.
    """
    encoded = base64.b64encode(text.encode()).rstrip(b"=")[:-1]  # the last sign depends on what follows
    needles = [text.encode(), encoded]
    found = [f"environment of {pid}"] if _any(needles, Path(f"/proc/{pid}/environ").read_bytes()) else []
    try:
        found += [f"memory of {pid} at {where}" for where, block in _memory(pid) if _any(needles, block)]
    except PermissionError:
        pytest.skip("may not read the memory of another process (kernel.yama.ptrace_scope)")
    found += [str(path) for path in disk.rglob("*") if path.is_file() and _any(needles, path.read_bytes())]
    return found


def _any(needles: list[bytes], block: bytes) -> bool:
    return any(needle in block for needle in needles)


def _memory(pid: int) -> Iterator[tuple[str, bytes]]:
    """What the process has written, or could have, in overlapping blocks."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            addresses, rights, *_ = line.split()
            start, stop = (int(each, 16) for each in addresses.split("-"))
            if not rights.startswith("rw"):
                continue
            for position in range(start, stop, _BLOCK_BYTES):
                memory.seek(position)
                try:
                    yield line, memory.read(min(_BLOCK_BYTES + 4096, stop - position))
                except PermissionError:
                    raise
                except OSError:  # unmapped meanwhile, or a device's
                    continue
