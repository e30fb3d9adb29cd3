"""What lies aside: old copies, whole, until no pod can have them open; and what nobody but us has ever seen.

    <root>/.localmodel/trash/<key>.<time>.<random>      an old copy, and since when it lies aside
           .localmodel/trash/gone.<random>              unlinked at once

A copy that is to go is renamed into the trash first, and unlinked later: a name that is gone takes no time, and what a
pod has open stays whole.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from actors.disk.filesystem import disk_errors
from actors.disk.handles import Folder
from actors.disk.ingest import held_bytes
from actors.disk.layout import Layout
from actors.disk.marker import OWN, DamagedMarker, load_marker
from actors.manifest import StorageKey

FOLDER = "trash"
KEPT = re.compile(r"(?P<key>[0-9a-f]{16})\.(?:(?P<at>\d{1,12}\.\d{3})\.)?[0-9a-f]+")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Aside:
    """An old copy. `at`: since when it lies aside, in epoch seconds."""

    name: str
    key: StorageKey
    at: float
    size_bytes: int

    def in_use(self, used: Mapping[StorageKey, float] | None, margin_s: float) -> bool:
        """Whether a pod may have it open: see `DesiredState.used`."""
        return used is None or (self.key in used and used[self.key] <= self.at + margin_s)


@dataclass(frozen=True, slots=True)
class Pods:
    """Which models pods may have open (see `DesiredState.used`), and when that was told, in epoch seconds.

    `margin_s`: how much older than the list an old copy must be to be unlinked by it. Lists are seconds old, and clocks
    differ.
    """

    used: Mapping[StorageKey, float] | None
    at: float
    margin_s: float

    def may_use(self, copy: Aside) -> bool:
        return copy.in_use(self.used, self.margin_s)


class Trash:
    """`clock` gives epoch seconds."""

    def __init__(self, layout: Layout, clock: Callable[[], float]) -> None:
        """Empties nothing: see `empty`."""
        self._layout = layout
        self._clock = clock
        self._sizes: dict[str, int] = {}
        self._stuck: dict[str, str] = {}

    def aside(self) -> list[Aside]:
        """The old copies that lie aside. Raises StoreError."""
        found = []
        with disk_errors(f"reading {self._layout.own_path / FOLDER}"), self._layout.own(FOLDER) as trash:
            for name in trash.names():
                kept = KEPT.fullmatch(name)
                status = trash.status(name) if kept is not None else None
                if kept is not None and status is not None and stat.S_ISDIR(status.st_mode):
                    at = float(kept["at"]) if kept["at"] else status.st_ctime
                    found.append(Aside(name, StorageKey(kept["key"]), at, self._size(trash, name)))
        return found

    def is_empty(self, pods: Pods) -> bool:
        """Whether all that was removed has given its space back, but for what a pod may use or the disk holds on to.

        Raises StoreError.
        """
        held = {each.name for each in self.aside() if pods.may_use(each)} | self._stuck.keys()
        with disk_errors(f"reading {self._layout.own_path / FOLDER}"), self._layout.own(FOLDER) as trash:
            return not set(trash.names()) - held

    def empty(self, pods: Pods) -> None:
        """Nothing lies aside that no pod can have open any more, as far as the disk unlinks it. Takes its time.

        A copy that moves aside meanwhile stays: nobody has judged it. One that cannot be unlinked (NFS while a file is
        open, an immutable file) is said once, and tried again.
        """
        lately = min(self._clock(), pods.at) - pods.margin_s  # of what moved aside since, the list says nothing
        with disk_errors(f"emptying {self._layout.own_path / FOLDER}"), self._layout.own(FOLDER) as trash:
            names = trash.names()  # before they are judged, or one that comes in between is taken for judged
            held = {each.name for each in self.aside() if pods.may_use(each) or each.at > lately}
            for name in names:
                if name in held:
                    continue
                try:
                    trash.remove(name)
                    self._sizes.pop(name, None)
                    self._stuck.pop(name, None)
                except OSError as error:
                    if self._stuck.get(name) != str(error):
                        _log.warning("cannot unlink yet", extra={"path": str(trash.path / name), "error": str(error)})
                    self._stuck[name] = str(error)

    def _size(self, trash: Folder, name: str) -> int:
        """The bytes given back when it goes, as they were when it moved aside: measured once."""
        if name not in self._sizes:
            with suppress(OSError), trash.enter(name) as folder:
                try:
                    self._sizes[name] = load_marker(folder).manifest.total_bytes - linked_bytes(folder)
                except (OSError, DamagedMarker):
                    self._sizes[name] = held_bytes(folder)
        return self._sizes.get(name, 0)

    def keep(self, models: Folder, key: StorageKey) -> None:
        """The model's folder lies aside, whole. Raises OSError.

        If it was swapped for something else meanwhile, that is kept, and not unlinked.
        """
        with models.enter(key) as folder, self._layout.own(FOLDER) as trash:
            before = os.fstat(folder.descriptor)
            models.unlock(key)
            name = aside_name(key, self._clock())
            models.move(key, trash, name)
            after = trash.status(name)
            if after is None or (after.st_dev, after.st_ino) != (before.st_dev, before.st_ino):
                self._layout.set_aside(trash, name, "took the place of a model while that was removed")

    def discard(self, folder: Folder, name: str) -> None:
        """It is unlinked soon: nobody but us has ever seen it, or it only stood in the way. Raises OSError."""
        folder.unlock(name)
        with self._layout.own(FOLDER) as trash:
            folder.move(name, trash, f"gone.{os.urandom(16).hex()}")


def aside_name(key: StorageKey, now: float) -> str:
    """Of a copy that lies aside from `now` on, in epoch seconds. Rounded down: it must not lie in the future."""
    return f"{key}.{int(now * 1000) / 1000:.3f}.{os.urandom(4).hex()}"


def linked_bytes(folder: Folder) -> int:
    """The bytes of the copy that another has, too: unlinking it gives them not back."""
    statuses = (status for _, status, _ in folder.walk(but=OWN))
    return sum(status.st_size for status in statuses if stat.S_ISREG(status.st_mode) and status.st_nlink > 1)


def own_bytes(folder: Folder) -> int:
    """The bytes of the copy that no other has."""
    statuses = (status for _, status, _ in folder.walk(but=OWN))
    return sum(status.st_size for status in statuses if stat.S_ISREG(status.st_mode) and status.st_nlink < 2)
