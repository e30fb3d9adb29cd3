"""What rot, other programs and other pods do to a disk: one thing put in the place of another."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

from coordinator.dev.trial.versions import flip as flip  # as tests of versions do, too

Damage = Callable[[Path], None]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below, by its path, but for those of ours."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}
    return {str(path): file.read_bytes() for path, file in found.items() if path.parts[0] != ".localmodel"}


def gone(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def cut(path: Path) -> None:
    path.chmod(0o644)
    os.truncate(path, 5)


def empty(path: Path) -> None:
    path.chmod(0o644)
    os.truncate(path, 0)


def text(content: str | bytes) -> Damage:
    def write(path: Path) -> None:
        gone(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def link(target: str | Path) -> Damage:
    def plant(path: Path) -> None:
        gone(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)

    return plant


def moved_and_linked(path: Path) -> None:
    """The very same, but behind a link."""
    elsewhere = path.with_name(f"{path.name}-elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere.name)


def fifo(path: Path) -> None:
    gone(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)


def device(path: Path) -> None:
    """A terminal's number, that nobody has; only root may."""
    gone(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(4, 63))


def folder(path: Path) -> None:
    gone(path)
    path.mkdir(parents=True)
    (path / "x").write_text("x")


def locked(path: Path) -> None:
    folder(path)
    path.chmod(0)


def deep(levels: int) -> Damage:
    """A folder within a folder within …; `shallow` removes it: pytest, with `shutil`, goes as deep in calls."""

    def plant(path: Path) -> None:
        path.mkdir(parents=True)
        below = os.open(path, os.O_RDONLY)
        for _ in range(levels):
            os.mkdir("a", dir_fd=below)
            above, below = below, os.open("a", os.O_RDONLY, dir_fd=below)
            os.close(above)
        os.close(below)

    return plant


def shallow(path: Path) -> None:
    """Nothing is left of the deep trees below."""
    subprocess.run(["rm", "-rf", path], check=True)
