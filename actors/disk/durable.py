"""Bytes that are on the disk, and not only in the page cache, without the disk standing still in between.

    start_writeback   the disk begins to write while the network brings more, so that the fsync at the end is short
    sync_files        many small files in one call: an fsync each would wait for the filesystem's journal each time

Both know Linux' own calls, which Python does not have. Where they are missing, the plain fsync still holds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes

MANY = 32
"""From so many files on the whole filesystem is synced, with whatever else is about to be written to it."""

_SYNC_FILE_RANGE_WRITE = 2


def start_writeback(descriptor: int, start: int, stop: int) -> None:
    """The disk is asked to write `[start, stop)`; nobody waits for it, and nothing is promised."""
    library = _libc()
    if library is not None:
        library.sync_file_range(descriptor, start, stop - start, _SYNC_FILE_RANGE_WRITE)


def sync_files(
    folder: Path,
    paths: Sequence[Path | str],
    open_file: Callable[[str], int] = lambda path: os.open(path, os.O_RDONLY | os.O_CLOEXEC),
) -> None:
    """All of `paths`, files below `folder` on one filesystem, are on the disk. Raises OSError as the disk does."""
    if len(paths) >= MANY and _sync_filesystem(folder):
        return
    for path in paths:
        descriptor = open_file(str(path))
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _sync_filesystem(folder: Path) -> bool:
    """False also when the disk reported an error: which file it hit, the fsync of each will tell."""
    library = _libc()
    if library is None:
        return False
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return bool(library.syncfs(descriptor) == 0)
    finally:
        os.close(descriptor)


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL | None:
    """None where these calls do not exist."""
    import ctypes  # here, because the first byte need not wait for it

    try:
        library = ctypes.CDLL(None)
        library.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
        library.syncfs.argtypes = [ctypes.c_int]
    except (OSError, AttributeError):
        return None
    return library
