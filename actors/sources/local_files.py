"""A folder of this machine as a listing: links followed, and whatever cannot be followed refused by name.

    link to a file, also outside    the file, under the link's name: so is a snapshot of the hub's cache
    link to a folder                its files, below the link's name
    link to a folder that it is in, to nothing, in a circle     refused
    socket, pipe, device, folders more than MAX_DEPTH deep      refused
    what may not be read                                        refused

So nothing that is listed vanishes: what include/exclude leave out is not looked at, all else is there or named.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from actors.errors import SourceChanged, SourceDenied, SourceNotFound
from actors.manifest import ModelSource, is_ours
from actors.sources.bounds import current
from actors.sources.entries import refused
from actors.sources.selection import left_out, wanted
from actors.transport.answers import redact

MAX_DEPTH = 100

_KINDS = {stat.S_IFSOCK: "a socket", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def local_listing(source: ModelSource, root: str) -> Mapping[str, Mapping[str, Any]]:
    """As `actors.sources.entries.listing`. Raises SourceNotFound, SourceDenied, SourceUnsupported."""
    top = root or "/"
    try:
        status = Path(top).stat()
    except FileNotFoundError as error:
        raise SourceNotFound(f"{redact(source.uri)} does not exist") from error
    except OSError as error:
        raise _unreadable(source, top, error) from error
    if stat.S_ISREG(status.st_mode):
        if not os.access(top, os.R_OK):
            raise _unreadable(source, top, PermissionError("it may not be read"))
        return {root: _file(top, status)}
    if not stat.S_ISDIR(status.st_mode):
        raise refused(source, top, f"it is {_KINDS.get(stat.S_IFMT(status.st_mode), 'no file')}")
    return dict(_below(source, root, "", (_identity(status),)))


def _below(
    source: ModelSource, root: str, folder: str, above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The entries of `folder`, a path from `root` that ends in a slash or is empty. `above`: the folders around it."""
    where, bounds = f"{root}/{folder}", current()
    try:
        with os.scandir(where) as found:
            entries = sorted(islice(found, bounds.limits.files + 1), key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(source, where, error) from error
    bounds.files(len(entries))
    for entry in entries:
        path, name = f"{folder}{entry.name}", f"{where}{entry.name}"
        if is_ours(path) or left_out(source, f"{path}/"):
            continue
        try:
            status = entry.stat()
        except OSError as error:
            if wanted(source, path):
                raise refused(source, name, _why_not(entry, error)) from error
            continue
        if stat.S_ISDIR(status.st_mode):
            if _identity(status) in above:
                raise refused(source, name, "it is a link to a folder that it is in")
            if len(above) >= MAX_DEPTH:
                raise refused(source, name, f"it is more than {MAX_DEPTH} folders deep")
            yield from _below(source, root, f"{path}/", (*above, _identity(status)))
        elif stat.S_ISREG(status.st_mode):
            if not os.access(name, os.R_OK) and wanted(source, path):
                raise _unreadable(source, name, PermissionError("it may not be read"))
            yield name, _file(name, status)
        elif wanted(source, path):
            raise refused(source, name, f"it is {_KINDS.get(stat.S_IFMT(status.st_mode), 'no file')}")


def _why_not(entry: os.DirEntry[str], error: OSError) -> str:
    """Why the entry of a folder cannot be looked at."""
    if isinstance(error, FileNotFoundError):
        target = Path(entry.path).readlink() if entry.is_symlink() else "nothing"
        return f"it is a link to {target}, which does not exist"
    return "it is a link that leads in a circle" if entry.is_symlink() else f"{error.strerror}"


class Reading:
    """The files of this machine that a fill reads, each in one version. Any thread."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def check(self, url: str, size: int) -> None:
        """Raises SourceChanged for a file of another size, or that was written to since it was looked at first."""
        try:
            status = Path(url.partition("://")[2]).stat()
        except OSError:  # reading it says why
            return
        remedy = "somebody writes to it: wait until that is done, or leave it out with include/exclude"
        if status.st_size != size:
            raise SourceChanged(f"{url} has {status.st_size} bytes, it had {size} when it was listed: {remedy}")
        if self._seen.setdefault(url, status.st_mtime_ns) != status.st_mtime_ns:
            raise SourceChanged(f"{url} changed while it was read: {remedy}")


def _file(name: str, status: os.stat_result) -> Mapping[str, Any]:
    return {"name": name, "type": "file", "size": status.st_size, "version": str(status.st_mtime_ns)}


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _unreadable(source: ModelSource, name: str, error: OSError) -> SourceDenied:
    return SourceDenied(f"{redact(source.uri)}: {name} cannot be read: {error.strerror or error}")
