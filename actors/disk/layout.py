"""The folders of one root, opened from its handle; what stands in their way is set aside, kept, and said.

    <root>/models/                  what pods mount
           .localmodel/<name>/      ours: see `actors.disk.store`
           .localmodel/aside/…      what stood in the way and is not ours

Anything found below a root is taken for junk until it has proved to be ours. Junk never keeps a store from opening.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from actors.disk.handles import NOT_A_FOLDER, Folder
from actors.disk.marker import OWN
from actors.errors import StoreError
from actors.manifest import StorageKey

_MOST_SAID, _LONGEST_SAID = 100, 300

_log = logging.getLogger(__name__)


class Gone(OSError):
    """The root is not the disk that it was."""


class Layout:
    """`path` is where this process sees the root, which is never created. Methods raise OSError as the disk does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.models_path = path / "models"
        self.own_path = path / OWN
        self._ready = False
        self._moved: dict[str, str] = {}
        self._left: dict[str, str] = {}

    def make(self) -> None:
        """Both folders are there. From now on the root is the disk that it is now: see `Gone`."""
        with Folder.at(self.path) as root:
            self._prepare(root, "models").close()
            self._prepare(root, OWN).close()
        self._ready = True

    def check_one_disk(self) -> None:
        """Raises StoreError if a rename could not make a model: what is filled must be on the disk it is for."""
        with self.models() as models, self.own() as own:
            if os.fstat(models.descriptor).st_dev != os.fstat(own.descriptor).st_dev:
                raise StoreError(
                    f"{self.models_path} and {self.own_path} are on different filesystems: mount the disk at"
                    f" {self.path}",
                    reason="PathMismatch",
                )

    # --- open folders, which the caller closes ---

    def models(self) -> Folder:
        with Folder.at(self.path) as root:
            self._check_mounted(root)
            return self._prepare(root, "models")

    def model(self, key: StorageKey) -> Folder:
        """The model's folder; a link in its place is not followed."""
        with Folder.at(self.path) as root:
            return root.enter(f"models/{key}")

    def own(self, name: str = "") -> Folder:
        """The folder of this name in `<root>/.localmodel`, or that itself."""
        with Folder.at(self.path) as root:
            self._check_mounted(root)
            own = self._prepare(root, OWN)
        if not name:
            return own
        with own:
            return self._prepare(own, name)

    def _check_mounted(self, root: Folder) -> None:
        """Raises OSError once our own folder is gone: what is then written would be on another disk."""
        if self._ready and root.status(OWN) is None:
            raise Gone(f"{self.path} holds no {OWN} any more: was its disk unmounted?")

    def _prepare(self, parent: Folder, name: str) -> Folder:
        """The folder is there, and open. Anything else in its place is set aside."""
        for last in (False, True):
            try:
                return parent.enter(name, make=True)
            except PermissionError:
                if last:
                    raise
                parent.unlock(name)
            except OSError as error:
                if last or error.errno not in NOT_A_FOLDER:
                    raise
                self.set_aside(parent, name, "is no folder")
        raise AssertionError("unreachable")

    # --- what is not ours ---

    @property
    def junk(self) -> dict[str, str]:
        """By path below the root, why something was set aside, or is left where it is: it is not ours."""
        return {**self._left, **self._moved}

    def set_aside(self, folder: Folder, name: str, why: str, *, as_name: str | None = None) -> None:
        """It is out of the way and kept, as `<root>/.localmodel/aside/…`."""
        new = f"{(as_name or name)[:100]}.{os.urandom(4).hex()}"
        own = folder.path == self.path or name == "aside"  # what holds the folder for it cannot go there
        if own:
            folder.move(name, folder, new)
        else:
            with self.own("aside") as aside:
                folder.unlock(name)
                folder.move(name, aside, new)
        where = self._below(folder.path / new) if own else f"{OWN}/aside/{new}"
        self._say(self._moved, self._below(folder.path / name), f"{why}; it is {where} now")

    def leave(self, path: str, why: str) -> None:
        """The thing at this path below the root is reported, and stays where it is."""
        self._say(self._left, path, why)

    def left_no_more(self, path: str) -> None:
        """Nothing is wrong any more with what is at this path, or it is gone."""
        self._left.pop(path, None)

    def _say(self, said: dict[str, str], path: str, why: str) -> None:
        path, why = (each.encode(errors="backslashreplace").decode()[:_LONGEST_SAID] for each in (path, why))
        if self.junk.get(path) != why:
            _log.warning("found what is not ours", extra={"root": str(self.path), "path": path, "why": why})
            if len(said) < _MOST_SAID or path in said:
                said[path] = why

    def _below(self, path: Path) -> str:
        return str(path.relative_to(self.path)) if path.is_relative_to(self.path) else str(path)
