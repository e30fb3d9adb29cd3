"""Where `localmodel fill` puts a model: what DIR is, and where the model is staged until it is complete.

DIR does not exist         staged beside it, in `.<name>.localmodel`; DIR appears by one rename
DIR is an empty folder     staged in it, in `DIR/.localmodel/fill`, and so on its own disk, also if it is a mount;
                           published into it, the marker last
DIR is a link              what it points to is DIR; the link stays
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from actors.disk.filesystem import disk_errors, lock, set_mode
from actors.disk.handles import FOLDER_MODE, Folder, remove_tree
from actors.disk.marker import OWN, Marker, load_marker
from actors.disk.publish import holds_nothing, withdraw
from actors.errors import StoreError

_INSIDE = f"{OWN}/fill"
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Target:
    """`path` has no links in it; `staging` is on its disk."""

    path: Path
    staging: Path

    @classmethod
    def of(cls, directory: Path) -> Target:
        """Raises StoreError for what cannot be a folder."""
        path = _resolved(directory)
        with disk_errors(f"looking at {directory}"):
            try:
                status = path.lstat()
            except FileNotFoundError:
                return cls(path, _beside(path))
        if not stat.S_ISDIR(status.st_mode):
            raise StoreError(f"{directory} exists and is not a folder: choose another", reason="PathOccupied")
        beside = _beside(path)
        begun = beside.is_dir() and not os.path.ismount(path) and beside.stat().st_dev == status.st_dev
        return cls(path, beside if begun else path / _INSIDE)

    def look(self) -> Marker | None:
        """The marker of the model that is there; None if there is nothing yet.

        Raises DamagedMarker, and StoreError for a folder that holds something else.
        """
        with disk_errors(f"reading {self.path}"):
            try:
                folder = Folder.at(self.path)
            except FileNotFoundError:
                return None
            with folder:
                try:
                    return load_marker(folder)
                except FileNotFoundError:
                    pass
                with contextlib.suppress(FileNotFoundError), Folder.at(self.staging / "ingest") as ingest:
                    withdraw(ingest, folder)
                if holds_nothing(folder):
                    return None
                names = [name for name in folder.names() if name != OWN]
        named = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        raise StoreError(
            f"{self.path} exists and was not filled by localmodel ({named} in it): choose another",
            reason="PathOccupied",
        )

    @contextlib.contextmanager
    def sole_writer(self) -> Iterator[None]:
        """The staging folder is there, and nobody else's meanwhile."""
        made = _missing(self.staging)
        with disk_errors(f"preparing {self.staging}"):
            self.staging.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.staging, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            set_mode(descriptor, FOLDER_MODE)
        try:
            try:
                if not lock(descriptor):
                    sys.stderr.write(
                        f"localmodel: {self.staging.parent} cannot be locked on its filesystem:"
                        " let no other fill run on it meanwhile\n"
                    )
            except BlockingIOError as error:
                raise StoreError(f"another `localmodel fill` is at work on {self.path}", reason="Busy") from error
            yield
        finally:
            os.close(descriptor)
            for folder in made:  # as far as nothing is in them
                with contextlib.suppress(OSError):
                    folder.rmdir()

    @property
    def kept_bytes(self) -> int:
        """The disk space of what is staged."""
        total = 0
        for folder, _, names in os.walk(self.staging):
            for name in names:
                with contextlib.suppress(OSError):
                    total += os.lstat(f"{folder}/{name}").st_blocks * 512
        return total

    @property
    def began(self) -> bool:
        """Whether something that was fetched is staged."""
        with contextlib.suppress(OSError):
            return (self.staging / "ingest/journal").stat().st_size > 0
        return False

    def clear(self) -> str | None:
        """Nothing is staged any more; else why something still is."""
        failed = None
        for staging in {self.staging, _beside(self.path), self.path / _INSIDE}:
            try:
                remove_tree(staging)
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    failed = f"{staging}: {error.strerror}"
        with contextlib.suppress(OSError):
            (self.path / OWN).rmdir()
        return failed


def _resolved(directory: Path) -> Path:
    """Where the links lead; the last may lead nowhere yet."""
    try:
        directory.stat()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise StoreError(f"{directory} cannot be used: {error.strerror}", reason="PathOccupied") from error
    return Path(os.path.realpath(directory))


def _beside(path: Path) -> Path:
    """Short enough for any filesystem, however long the name is."""
    name = f".{path.name}.localmodel"
    if len(os.fsencode(name)) > 255:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.localmodel"
    return path.parent / name


def _missing(path: Path) -> list[Path]:
    """The folders on the way to it that do not exist, itself among them, the deepest first."""
    return [each for each in (path, *path.parents) if not os.path.lexists(each)]
