"""A model whose URI ends in a slash is there under two names, because pods are told one or the other.

    models/<key of s3://b/m/>/…                    the copy, as KServe's agent names it
    models/<key of s3://b/m>/…                     the same files by hard links, as later KServe names it to pods
           …/.localmodel/second-name               of which copy: only a folder that says so is ever changed or removed

It is complete before it has its name, unless a kubelet has made the folder already: then it is filled in place. It goes
with its copy, and gives way to a model of its own URI. It takes no space, and nobody counts it as a copy.
"""

from __future__ import annotations

import errno
import logging
import os
import stat

from actors.disk.handles import FOLDER_MODE, NOT_A_FOLDER, Folder
from actors.disk.layout import Layout
from actors.disk.marker import MARKER, OWN, Marker
from actors.disk.publish import FILE_MODE, folders_of, is_hollow
from actors.disk.trash import Trash
from actors.manifest import Manifest, StorageKey, second_key

_log = logging.getLogger(__name__)

NOTE = "second-name"
_NOTE_BYTES = 64


class SecondNames:
    """Errors are logged, and change nothing about the copy."""

    def __init__(self, layout: Layout, trash: Trash) -> None:
        self._layout = layout
        self._trash = trash

    def ensure(self, key: StorageKey, marker: Marker) -> None:
        """The second name, if the model has one, leads to the files that the copy has now."""
        second = second_key(marker.manifest.source.uri)
        if second is None:
            return
        try:
            with self._layout.models() as models, models.enter(key) as copy:
                if models.status(second) is None:
                    self._make(models, second, key, copy, marker.manifest)
                elif is_hollow(models, second):
                    with models.enter(second) as target:
                        _fill(target, key, copy, marker.manifest)
                elif self._is_of(models, second, key):
                    with models.enter(second) as target:
                        if not _is_of_same_files(target, copy, marker.manifest):
                            self._trash.keep(models, second)
                            self._make(models, second, key, copy, marker.manifest)
        except OSError as error:
            fields = {"key": key, "second": second, "error": str(error)}
            _log.warning("a model has no second name: its URI without the slash leads nowhere", extra=fields)

    def drop(self, key: StorageKey, uri: str) -> None:
        """The copy has no second name any more; what a pod has open of it stays open."""
        second = second_key(uri)
        if second is None:
            return
        try:
            with self._layout.models() as models:
                if self._is_of(models, second, key):
                    self._trash.keep(models, second)
        except OSError as error:
            _log.warning("cannot remove the second name of a model", extra={"key": key, "error": str(error)})

    def _make(self, models: Folder, second: StorageKey, key: StorageKey, copy: Folder, manifest: Manifest) -> None:
        staged = os.urandom(16).hex()
        with self._layout.own("second") as own:
            for left in own.names():
                own.remove(left)
            with own.enter(staged, make=True) as target:
                _fill(target, key, copy, manifest)
            own.move(staged, models, second)
        models.sync()

    def _is_of(self, models: Folder, second: StorageKey, key: StorageKey) -> bool:
        """Whether it is the second name of this copy: it says so, and is no copy itself."""
        try:
            with models.enter(second) as folder:
                with folder.enter(OWN) as own:
                    if own.status(MARKER.rpartition("/")[2]) is not None:
                        return False
                return folder.read(f"{OWN}/{NOTE}", _NOTE_BYTES).decode(errors="replace") == key
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL, errno.EFBIG, *NOT_A_FOLDER):
                return False
            raise


def _fill(target: Folder, key: StorageKey, copy: Folder, manifest: Manifest) -> None:
    with target.enter(OWN, make=True) as own:
        own.write(NOTE, key.encode(), mode=FILE_MODE, sync=True)
    for folder in sorted(folders_of(manifest)):
        with copy.within(folder) as source, target.within(folder, make=True) as into:
            for file in manifest.files:
                above, _, name = file.path.rpartition("/")
                if above == folder:
                    os.link(name, name, src_dir_fd=source.descriptor, dst_dir_fd=into.descriptor, follow_symlinks=False)
            into.set_mode(FOLDER_MODE)
            into.sync()


def _is_of_same_files(target: Folder, copy: Folder, manifest: Manifest) -> bool:
    try:
        return all(_identity(target, file.path) == _identity(copy, file.path) for file in manifest.files)
    except OSError as error:
        if error.errno in (errno.ENOENT, *NOT_A_FOLDER):
            return False
        raise


def _identity(folder: Folder, path: str) -> tuple[int, int, bool]:
    status = folder.lstat(path)
    return status.st_dev, status.st_ino, stat.S_ISREG(status.st_mode)
