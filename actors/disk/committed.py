"""The committed models of a root: markers are read, and healed by our own record of them; strangers are told from ours.

    <root>/models/<key>/.localmodel/manifest.json       the marker: what it is, how it was verified, whose it is
           .localmodel/committed/<key>.json             the marker once more

A disk that is shared with pods may have anything where a model belongs: see `Standing`.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from contextlib import suppress
from enum import Enum, auto
from pathlib import Path

from actors.disk.fence import Fence
from actors.disk.filesystem import disk_errors
from actors.disk.handles import NOT_A_FOLDER, Folder
from actors.disk.ingests import Ingests
from actors.disk.layout import Gone, Layout
from actors.disk.marker import MARKER, OWN, DamagedMarker, Marker, load_marker, misfits, parse_marker
from actors.disk.notes import Notes
from actors.disk.publish import FILE_MODE, MOST_FOLDERS, folders_of, holds_nothing
from actors.errors import LocalModelError, StoreError
from actors.manifest import Manifest, StorageKey

MOST_STRAYS = 1000
"""A folder with more in it that does not belong there is set aside as a whole."""

_log = logging.getLogger(__name__)


class Standing(Enum):
    """What stands where a model belongs."""

    ABSENT = auto()
    """Nothing, or a folder without a file in it, which becomes the model."""
    OURS = auto()
    DAMAGED = auto()
    """A folder of which the marker cannot be believed, and that we have no record of."""
    UNMARKED = auto()
    """A folder with something in it that has no marker."""
    FOREIGN = auto()
    """Of another owner, or no folder at all."""


class Committed:
    """`unread`: committed copies of which the marker was damaged, by our record of them.

    Once it is remembered that their files are to be read before they count, `adopt` makes the marker anew.
    """

    def __init__(self, layout: Layout, fence: Fence, ingests: Ingests) -> None:
        self.unread: dict[StorageKey, Marker] = {}
        self._layout = layout
        self._fence = fence
        self._ingests = ingests
        self._notes = Notes(lambda: layout.own("committed"), layout.set_aside)
        self._blamed: set[StorageKey] = set()

    def path(self, key: StorageKey) -> Path:
        return self._layout.models_path / key

    def all(self) -> dict[StorageKey, Marker]:
        """The models that were committed, by their markers. They may have been damaged since."""
        found: dict[StorageKey, Marker] = {}
        with disk_errors(f"reading {self._layout.models_path}"), self._layout.models() as models:
            for name in models.names():
                if name == "lost+found":
                    continue
                with suppress(UnicodeEncodeError):
                    name.encode()  # else it is none of ours
                    try:
                        marker = self._marker(models, StorageKey(name))
                    except OSError as error:  # the others are none the worse for it
                        self._layout.leave(f"models/{name}", f"cannot be looked at: {error.strerror}")
                        continue
                    if marker is not None:
                        found[StorageKey(name)] = marker
        recorded = set(self._notes.keys())
        for key in found.keys() - recorded:
            self._record(key, found[key])
        for key in recorded - found.keys():
            if not os.path.lexists(self.path(key)):
                with suppress(StoreError):
                    self._notes.forget(key)
        return found

    def look(self, key: StorageKey) -> Marker | None:
        """As `all`, of one model. Raises StoreError if that cannot be told just now."""
        with disk_errors(f"looking at {self.path(key)}"):
            try:
                with self._layout.models() as models:
                    return self._marker(models, key)
            except Gone:
                return None

    def misfits(self, key: StorageKey, manifest: Manifest) -> dict[str, str]:
        """By path, what can be seen to be wrong with the committed copy without reading its content.

        Raises StoreError if that cannot be told just now.
        """
        with disk_errors(f"looking at {self.path(key)}"), self._layout.model(key) as folder:
            return misfits(folder, manifest)

    def marker(self, key: StorageKey) -> Marker | None:
        """The marker of the committed copy, if there is one that is believed."""
        try:
            with self._layout.model(key) as folder:
                return load_marker(folder, uid=self._fence.uid)
        except (OSError, DamagedMarker):
            return None

    def standing(self, key: StorageKey, owner: str) -> Standing:
        """What stands in the model's place."""
        with disk_errors(f"looking at {self.path(key)}"), self._layout.models() as models:
            status = models.status(key)
            if status is None:
                return Standing.ABSENT
            if not stat.S_ISDIR(status.st_mode):
                if self._notes.read(key) is None:
                    return Standing.FOREIGN
                self._layout.set_aside(models, key, "is not a folder, where a model was committed")
                return Standing.ABSENT
            try:
                marker = self._marker(models, key)
                opened = models.enter(key)
            except PermissionError:
                return Standing.FOREIGN
            if marker is not None:
                opened.close()
                return Standing.OURS if marker.owner == owner else Standing.FOREIGN
            with opened as folder:
                if holds_nothing(folder) or self._ingests.half_published(key, folder):
                    return Standing.ABSENT
                try:
                    load_marker(folder, uid=self._fence.uid)
                except FileNotFoundError:
                    return Standing.UNMARKED
                except DamagedMarker:
                    pass
                return Standing.DAMAGED

    def occupied(self, key: StorageKey, owner: str) -> bool:
        """Whether something stands in the model's place that `owner` did not put there."""
        return self.standing(key, owner) in (Standing.UNMARKED, Standing.FOREIGN)

    def clear(self, key: StorageKey, manifest: Manifest, *, keep: bool) -> bool:
        """Nothing is in the folder but files of the manifest. False: there is too much else for that, or none of them.

        With `keep` the rest stays where it is, and is said to be there.
        """
        self._fence.check()
        with disk_errors(f"looking at {self.path(key)}"), self._layout.model(key) as folder:
            found = _strays(folder, manifest)
            if found is None:
                return False
            for path in found:
                above, _, name = path.rpartition("/")
                if keep:
                    self._layout.leave(f"models/{key}/{path}", "does not belong to the model; a pod may use it")
                else:
                    with folder.within(above) as parent:
                        self._layout.set_aside(parent, name, f"does not belong to the model {manifest.source.uri}")
        return True

    def adopt(self, key: StorageKey, marker: Marker) -> None:
        """The folder, whatever its marker said before, is the copy `marker`; whether its files are is not looked at."""
        self._fence.check()
        with disk_errors(f"adopting {self.path(key)}"), self._layout.model(key) as folder:
            self._write_marker(folder, key, marker)
        self._record(key, marker)

    def rename(self, key: StorageKey, marker: Marker) -> None:
        """The marker of the committed model is this one; its files are as they were. Refuses as `commit` does."""
        self._fence.check()
        if self.occupied(key, marker.owner):
            raise path_occupied(self.path(key))
        with disk_errors(f"writing {self.path(key) / MARKER}"), self._layout.model(key) as folder:
            self._write_marker(folder, key, marker, damaged=False)
        self._record(key, marker)

    def record(self, key: StorageKey, marker: Marker) -> None:
        """The model was committed: nothing that was said of what stood there holds any more."""
        self.unread.pop(key, None)
        self._layout.left_no_more(f"models/{key}")
        self._record(key, marker)

    def forget(self, key: StorageKey) -> None:
        """The model was removed. Raises StoreError."""
        self._notes.forget(key)
        self.unread.pop(key, None)

    # --- markers and records ---

    def _marker(self, models: Folder, key: StorageKey) -> Marker | None:
        """The marker of what stands there, by our record if it was damaged; None: it has none."""
        place = f"models/{key}"
        try:
            opened = models.enter(key)
        except OSError as error:
            if error.errno in NOT_A_FOLDER:
                self._layout.leave(place, "is no folder; it is left where it is")
                return None
            if error.errno == errno.ENOENT:
                self._layout.left_no_more(place)
                return None
            raise
        with opened as folder:
            try:
                marker: Marker | None = load_marker(folder, uid=self._fence.uid)
                self._blamed.discard(key)
                self._layout.left_no_more(place)
                return marker
            except FileNotFoundError:
                why, strict = "it was taken away", True
            except DamagedMarker as error:
                why, strict = str(error), False
            marker = self._recorded(key)
            if marker is None and not strict:
                said = f"its marker is damaged ({why}), and nothing else tells whose it is; it is left where it is"
                self._layout.leave(place, said)
            if marker is None or (strict and not _holds_only(folder, marker.manifest)):
                return None  # whatever it is, it is not what we committed
            self._blame(key, marker, why)
            return marker

    def _recorded(self, key: StorageKey) -> Marker | None:
        """What we have committed there, by our own record."""
        content = self._notes.read(key)
        if content is None:
            return None
        try:
            return parse_marker(content)
        except DamagedMarker as error:
            self._notes.reject(key, str(error))
            return None

    def _record(self, key: StorageKey, marker: Marker) -> None:
        """Remembered beside the models. A disk that refuses changes nothing about the model."""
        try:
            self._notes.write(key, marker.content, sync=True)
        except (LocalModelError, MemoryError) as error:
            _log.warning("a commit is not recorded twice", extra={"key": key, "error": str(error)})

    def _blame(self, key: StorageKey, marker: Marker, why: str) -> None:
        """Said once, until there is a marker again that is believed."""
        if key not in self._blamed:
            fields = {"key": key, "root": str(self._layout.path), "error": why}
            _log.warning("the marker of a model was damaged; our record of it is taken instead", extra=fields)
            self._blamed.add(key)
            self.unread[key] = marker

    def _write_marker(self, folder: Folder, key: StorageKey, marker: Marker, *, damaged: bool = True) -> None:
        folder.unlock(OWN)
        status = folder.status(OWN)
        if status is not None and not stat.S_ISDIR(status.st_mode):
            self._layout.set_aside(folder, OWN, "is no folder", as_name=f"{key}{OWN}")
        with folder.enter(OWN, make=True) as own:
            if damaged and own.status("manifest.json") is not None:
                self._layout.set_aside(own, "manifest.json", "is a damaged marker", as_name=f"{key}.manifest.json")
            own.write("manifest.json", marker.content, mode=FILE_MODE, sync=True)
            own.sync()


def path_occupied(folder: Path) -> StoreError:
    return StoreError(
        f"{folder} exists and was not put there by this cluster: move it away, or delete it", reason="PathOccupied"
    )


def _holds_only(folder: Folder, manifest: Manifest) -> bool:
    """Whether there are files in the folder, and none that is not one of the manifest's by name."""
    known, found, folders = {file.path for file in manifest.files}, False, 0
    for path, _, within in folder.walk(but=OWN):
        folders += within
        found = found or not within
        if folders > len(known) + MOST_FOLDERS or (not within and path not in known):
            return False
    return found


def _strays(folder: Folder, manifest: Manifest) -> list[str] | None:
    """The highest paths below which nothing is of the manifest's. None: too many to name, or nothing is of them."""
    known, folders = {file.path for file in manifest.files}, folders_of(manifest)
    strays: list[str] = []
    found = False
    for looked, (path, _, within) in enumerate(folder.walk(but=OWN)):
        if path in known and not within:
            found = True
        elif not (within and path in folders) and not any(path.startswith(f"{each}/") for each in strays[-1:]):
            strays.append(path)
        if len(strays) > MOST_STRAYS or looked > len(known) + len(folders) + MOST_FOLDERS:
            return None
    return strays if found else None
