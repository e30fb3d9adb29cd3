"""Files and folders of a fill's data, by their paths in it.

Nothing but the fill makes anything there, so what is of another kind than it should be is removed.
"""

from __future__ import annotations

import os
import stat

from actors.disk.filesystem import reserve, set_mode
from actors.disk.handles import Folder
from actors.manifest import ManifestFile


def make_folder(data: Folder, path: str) -> None:
    """There is such a folder, and it can be written to. Raises OSError."""
    parts = path.split("/") if path else []
    for count in range(1, len(parts) + 1):
        with data.within("/".join(parts[: count - 1])) as parent:
            status = parent.status(parts[count - 1])
            if status is not None and not stat.S_ISDIR(status.st_mode):
                parent.remove(parts[count - 1])
            parent.unlock(parts[count - 1])
            parent.enter(parts[count - 1], make=True).close()


def allocate(data: Folder, file: ManifestFile) -> bool:
    """Whether the file was not there, or not at its size, before."""
    with data.within(file.path.rpartition("/")[0]) as parent:
        name = file.path.rpartition("/")[2]
        status = parent.status(name)
        if status is not None and (not stat.S_ISREG(status.st_mode) or status.st_size != file.size):
            parent.remove(name)
        descriptor = open_file(parent, name)
        try:
            if status is not None and os.fstat(descriptor).st_size == file.size:
                return False
            if file.size:
                reserve(descriptor, file.size)
            return True
        finally:
            os.close(descriptor)


def open_file(folder: Folder, path: str) -> int:
    """To read and write; one that was made read-only for a commit that did not come about is made writable again."""
    flags = os.O_RDWR | os.O_CREAT
    above, _, name = path.rpartition("/")
    with folder.within(above) as parent:
        status = parent.status(name)
        if status is not None and not stat.S_ISREG(status.st_mode):
            parent.remove(name)  # nothing but files is made here
        elif status is not None and status.st_nlink > 1:
            return parent.open(name)  # another copy's, too: see `actors.disk.reuse`
    try:
        return folder.open(path, flags)
    except PermissionError:
        descriptor = folder.open(path)
        set_mode(descriptor, 0o644)
        os.close(descriptor)
        return folder.open(path, flags)


def is_immutable(status: os.stat_result) -> bool:
    """Whether it may be another copy's, too, or was once."""
    return status.st_nlink > 1 or not status.st_mode & 0o222


def drop_immutable(data: Folder, path: str) -> None:
    """There is no such file, unless it may be written to."""
    try:
        status = data.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    if stat.S_ISREG(status.st_mode) and is_immutable(status):
        above, _, name = path.rpartition("/")
        with data.within(above) as parent:
            parent.remove(name)
