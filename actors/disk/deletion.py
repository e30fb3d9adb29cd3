"""Trees are removed from the handle of the folder above, however deep they are, and never beyond a link or a mount.

Folders below those of a tree are moved up, a level at a time, and so two folders are open at most. Moving also tells a
mount, which is left (EBUSY), from a folder.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actors.disk.handles import Folder

_NOT_EMPTY = frozenset({errno.ENOTEMPTY, errno.EEXIST})


def remove(folder: Folder, name: str) -> None:
    """Nothing has this name any more. An entry that cannot be removed is left, its parents too, and raised last."""
    if folder.status(name) is None or _unlink(folder, name) or _rmdir(folder, name):
        return
    folder.unlock(name)
    with suppress(FileNotFoundError):
        with folder.enter(name) as top:
            _empty(top)
        os.rmdir(name, dir_fd=folder.descriptor)


def _empty(folder: Folder) -> None:
    failed: OSError | None = None
    stuck: set[str] = set()
    while names := set(folder.names()) - stuck:
        for name in names:
            try:
                _flatten(folder, name)
            except OSError as error:
                stuck.add(name)
                failed = failed or error
    if failed is not None:
        raise failed


def _flatten(folder: Folder, name: str) -> None:
    """It is gone, and the folders that it held are in this one."""
    if _unlink(folder, name) or _rmdir(folder, name):
        return
    folder.unlock(name)
    failed: OSError | None = None
    with suppress(FileNotFoundError):
        with folder.enter(name) as inner:
            for child in inner.names():
                try:
                    if not _unlink(inner, child) and not _rmdir(inner, child):
                        inner.unlock(child)
                        inner.move(child, folder, f".{os.urandom(16).hex()}")
                except OSError as error:
                    failed = failed or error
        if failed is not None:
            raise failed
        os.rmdir(name, dir_fd=folder.descriptor)


def _unlink(folder: Folder, name: str) -> bool:
    """Whether it is gone; False: it is a folder."""
    status = folder.status(name)
    if status is not None and stat.S_ISDIR(status.st_mode):
        return False
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder.descriptor)
    return True


def _rmdir(folder: Folder, name: str) -> bool:
    """Whether it is gone; False: it holds something. Raises EBUSY for a mount."""
    try:
        os.rmdir(name, dir_fd=folder.descriptor)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in _NOT_EMPTY:
            raise
        return False
    return True
