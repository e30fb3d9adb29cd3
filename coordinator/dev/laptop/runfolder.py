"""A folder that lives as long as one run, and what runs that were killed have left beside it.

    <parent>/localmodel-1a2b3c4d/.owner     locked by the run for as long as it lives; holds its pid, for people

Leaving removes the folder, and so does every ordinary end. `kill -9` cannot: the kernel then drops the lock, and the
next run removes the folder. The lock decides and not the pid, which may be another process's by now. A folder without
`.owner`, another user's, or one behind a link is not ours and stays.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

_OWNER = ".owner"


@contextlib.contextmanager
def run_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A fresh folder in `parent`, gone with everything in it on leaving. Raises OSError if it cannot be made."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    owner: int | None = None
    try:
        owner = _own(folder)
        yield folder
    finally:
        remove_tree(folder)
        if owner is not None:
            os.close(owner)


def remove_abandoned(parent: Path, prefix: str) -> int:
    """How many folders were removed that a run with this prefix has left in `parent`. Never raises OSError."""
    removed = 0
    with contextlib.suppress(OSError):
        for folder in sorted(parent.glob(f"{prefix}*")):
            with contextlib.suppress(OSError):
                removed += _remove_if_abandoned(folder)
    return removed


def remove_tree(folder: Path) -> None:
    """As much of `folder` as can be removed is gone: read-only folders too, and the `.owner` of a run last of all."""
    for path, _, _ in os.walk(folder):  # from the top: one that cannot be listed is opened up before it is
        with contextlib.suppress(OSError):
            _open_up(Path(path))
    with contextlib.suppress(OSError):
        for entry in _entries(folder):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif entry.name != _OWNER:
                with contextlib.suppress(OSError):
                    Path(entry.path).unlink()
        if all(entry.name == _OWNER for entry in _entries(folder)):
            (folder / _OWNER).unlink(missing_ok=True)
            folder.rmdir()


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def _open_up(folder: Path) -> None:
    """Its entries can be listed and removed."""
    with contextlib.suppress(OSError):
        folder.chmod(0o700)
    for entry in _entries(folder):
        if entry.is_dir(follow_symlinks=False):
            with contextlib.suppress(OSError):
                Path(entry.path).chmod(0o700)  # before os.walk lists it


def _own(folder: Path) -> int:
    """The lock of this folder. The file has its name only once it is locked, so that nobody finds it free before."""
    fresh = folder / f"{_OWNER}.new"
    owner = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.suppress(
            OSError
        ):  # where there are no locks nobody gets one, and nothing is taken for abandoned
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(OSError):  # a full disk
            os.write(owner, f"{os.getpid()}\n".encode())
        fresh.rename(folder / _OWNER)
    except BaseException:
        os.close(owner)
        raise
    return owner


def _remove_if_abandoned(folder: Path) -> bool:
    """Raises OSError where it is not one of ours, or its run lives."""
    place = folder.lstat()
    if not stat.S_ISDIR(place.st_mode) or place.st_uid != os.geteuid():
        return False
    owner = os.open(folder / _OWNER, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(owner).st_mode):
            return False
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove_tree(folder)
        return not folder.exists()
    finally:
        os.close(owner)
