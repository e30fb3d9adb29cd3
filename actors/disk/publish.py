"""A complete ingest becomes the model: by one rename, or, into an empty folder that is there already, name by name.

    nothing there, or an old copy     the old one moves aside, whole; data ──rename──► <model>
    a folder without a file in it     data/* ──rename──► <model>/*, the marker last; the folder stays the one it was

A kubelet makes the folder of a subPath that is not there yet, and mounts it: a rename over it would never reach that
pod. An init container's `/mnt/models` is a mount, which no rename replaces. So such a folder is filled in place. Until
its marker is there it is no model, to us as to those who wait for one; what an end half-way leaves is named by a note
in the ingest, and taken back into it before anything else is done with either.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import PurePosixPath

from actors.disk.filesystem import set_mode
from actors.disk.handles import FOLDER_MODE, NOT_A_FOLDER, Folder
from actors.disk.marker import MARKER, MARKER_BYTES, OWN, DamagedMarker, Marker, misfit, parse_marker
from actors.errors import StoreError
from actors.manifest import Manifest

FILE_MODE = 0o444
NOTE = "publishing"
"""In an ingest: the folder, by device and inode, that its files are being moved into."""
_NOTE_BYTES = 1 << 10
MOST_FOLDERS = 10_000
"""A folder with more in it is not taken for one that waits for a model."""
_IGNORED = frozenset({OWN, "lost+found"})
"""At the top of a folder, these do not make it a folder with something in it."""


def seal(data: Folder, marker: Marker) -> None:
    """The marker is in the folder, every file is read-only and of its size, every folder open to all, all on the disk.

    Anything else there is removed: nobody else has anything to put here.

    Raises StoreError for a file that is not what the manifest says.
    """
    with data.enter(OWN, make=True) as own:
        own.remove("manifest.json")
        own.write("manifest.json", marker.content, mode=FILE_MODE, sync=True)
    files: dict[str, dict[str, int]] = {folder: {} for folder in folders_of(marker.manifest)}
    known: dict[str, set[str]] = {"": {OWN}}
    for file in marker.manifest.files:
        folder, _, name = file.path.rpartition("/")
        files[folder][name] = file.size
    for path in (*files.keys() - {""}, *(file.path for file in marker.manifest.files)):
        folder, _, name = path.rpartition("/")
        known.setdefault(folder, set()).add(name)
    for folder in sorted(files, key=lambda each: -each.count("/") if each else 1):
        with data.within(folder) as opened:
            for stranger in set(opened.names()) - known[folder]:
                opened.remove(stranger)
            for name, size in files[folder].items():
                _make_read_only(opened, name, size)
            opened.set_mode(FOLDER_MODE)
            opened.sync()
    with data.enter(OWN) as own:
        own.sync()


def publish(
    ingest: Folder,
    parent: Folder,
    name: str,
    marker: Marker,
    move_aside: Callable[[], None],
    replace: Callable[[Folder], bool] = lambda ingest: False,
) -> OSError | None:
    """The ingest's data is the model `name` in `parent`. If an old copy stands there `replace` may put it in its place;
    where that returns False, `move_aside` is called first.

    An error after the rename that made it so is given back: it changes nothing about that.
    """
    with ingest.enter("data") as data:
        seal(data, marker)
    if is_hollow(parent, name):
        with parent.enter(name) as target:
            _publish_into(ingest, target)
    else:
        there = parent.status(name) is not None
        if not there or not replace(ingest):
            if there:
                move_aside()
            ingest.move("data", parent, name)
    try:
        parent.sync()
    except OSError as error:
        return error
    return None


def is_hollow(parent: Folder, name: str) -> bool:
    """Whether it is a folder that holds nothing but folders, and none of ours with a marker."""
    status = parent.status(name)
    if status is None or not stat.S_ISDIR(status.st_mode):
        return False
    with parent.enter(name) as folder:
        return holds_nothing(folder)


def holds_nothing(folder: Folder) -> bool:
    """As above, of an open folder."""
    try:
        if folder.lstat(MARKER):
            return False
    except OSError as error:
        if error.errno not in (errno.ENOENT, *NOT_A_FOLDER):
            raise
    own = folder.status(OWN)
    if own is not None and not stat.S_ISDIR(own.st_mode):
        return False
    seen = 0
    for path, _, within in folder.walk(but=OWN):
        if path.partition("/")[0] in _IGNORED:
            continue
        seen += 1
        if seen > MOST_FOLDERS or not within:
            return False
    return True


def is_half_published(ingest: Folder, target: Folder) -> bool:
    """Whether the ingest was being moved into this very folder when its process ended."""
    try:
        note = json.loads(ingest.read(NOTE, _NOTE_BYTES))
    except (OSError, ValueError, RecursionError):
        return False
    status = os.fstat(target.descriptor)
    return bool(note == {"device": status.st_dev, "inode": status.st_ino}) and _missing(target, MARKER)


def withdraw(ingest: Folder, target: Folder) -> None:
    """Files of the model that had been moved into the folder are back in the ingest, and the folder is as it was.

    Raises DamagedMarker if it is not known any more what that was.
    """
    if not is_half_published(ingest, target):
        return
    with ingest.enter("data", make=True) as data:
        try:
            manifest = parse_marker(data.read(MARKER, MARKER_BYTES)).manifest
        except OSError as error:
            raise DamagedMarker(f"{error.strerror}: {MARKER}") from error
        for file in manifest.files:
            if not _missing(data, file.path) or misfit(target, file) is not None:
                continue
            folder, _, name = file.path.rpartition("/")
            with data.within(folder, make=True) as to, target.within(folder) as source:
                source.move(name, to, name)
        for folder in sorted(folders_of(manifest) - {""}, key=lambda each: -each.count("/")):
            with suppress(OSError), target.within(folder.rpartition("/")[0]) as above:
                os.rmdir(folder.rpartition("/")[2], dir_fd=above.descriptor)
    ingest.remove(NOTE)


def folders_of(manifest: Manifest) -> set[str]:
    """Every folder that a file of the model is in, at whatever depth; "" is the model's own."""
    parents = {parent for file in manifest.files for parent in PurePosixPath(file.path).parents}
    return {"" if parent == PurePosixPath() else str(parent) for parent in parents} | {""}


def _publish_into(ingest: Folder, target: Folder) -> None:
    status = os.fstat(target.descriptor)
    note = {"device": status.st_dev, "inode": status.st_ino}
    with target.enter(OWN, make=True) as own, ingest.enter("data") as data:
        own.set_mode(FOLDER_MODE)
        ingest.write(NOTE, json.dumps(note).encode(), sync=True)
        ingest.sync()
        _merge(data, target, but=OWN)
        target.set_mode(FOLDER_MODE)
        target.sync()
        with data.enter(OWN) as marked:
            marked.move("manifest.json", own, "manifest.json")
        own.sync()


def _merge(source: Folder, target: Folder, *, but: str = "") -> None:
    for name in source.names():
        if name == but:
            continue
        here, there = source.status(name), target.status(name)
        if here is not None and there is not None and stat.S_ISDIR(here.st_mode) and stat.S_ISDIR(there.st_mode):
            with source.enter(name) as inner, target.enter(name) as into:  # a pod may have mounted that one, too
                _merge(inner, into)
                into.set_mode(FOLDER_MODE)
                into.sync()
            continue
        if there is not None and stat.S_ISDIR(there.st_mode):
            target.remove(name)  # it holds no file
        source.move(name, target, name)


def _make_read_only(folder: Folder, name: str, size: int) -> None:
    descriptor = folder.open(name)
    try:
        found = os.fstat(descriptor).st_size
        if found != size:
            raise StoreError(f"{folder.path / name} has {found} bytes, not {size}: somebody else writes there")
        set_mode(descriptor, FILE_MODE)
    finally:
        os.close(descriptor)


def _missing(folder: Folder, path: str) -> bool:
    try:
        folder.lstat(path)
    except OSError as error:
        return error.errno in (errno.ENOENT, *NOT_A_FOLDER)
    return False
