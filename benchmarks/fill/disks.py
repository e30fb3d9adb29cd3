"""A disk of a known speed, where the machine's own is so fast that the processor is the limit."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_LIMIT = Path("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device")


def missing() -> str:
    """What a disk of a known speed lacks here; empty: nothing."""
    if os.geteuid() != 0:
        return "root"
    return "" if _LIMIT.exists() else f"{_LIMIT} (cgroup v1)"


@contextmanager
def disk(folder: Path, size: int, bytes_per_s: int) -> Iterator[Path]:
    """An empty ext4 of `size` bytes, kept in `folder`, that writes so fast and reads as the disk below does."""
    image, mounted = folder / "disk.img", folder / "disk"
    mounted.mkdir(exist_ok=True)
    with ExitStack() as undo:
        with image.open("wb") as file:
            file.truncate(size)
        undo.callback(image.unlink)
        _run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image))
        device = _run("losetup", "--find", "--show", "--direct-io=on", str(image))
        undo.callback(_run, "losetup", "--detach", device)
        _run("mount", device, str(mounted))
        undo.callback(_run, "umount", str(mounted))
        number = Path(device).stat().st_rdev
        undo.callback(_LIMIT.write_text, f"{os.major(number)}:{os.minor(number)} 0")
        _LIMIT.write_text(f"{os.major(number)}:{os.minor(number)} {bytes_per_s}")
        yield mounted


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
