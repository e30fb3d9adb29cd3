"""The version before: the copy that a newer one has replaced stays on the disk, and can take its place again.

    <root>/.localmodel/versions/<key>.<time>.<random>      a copy, whole, and since when it lies here

    models/<key> ──replaced──► versions/<key>.… ──restored──► models/<key>
    ingest/<key> ──prefetched────────┘ │
                                       └────────dropped─────► trash/<key>.…     the same name

A version that is asked for, and is not to take the place of the copy yet, lies here too. What a version shares with
the copy are the same files, so it takes the room of what differs alone. Copies change places by one step where the
kernel can (renameat2, RENAME_EXCHANGE), so that a path never leads nowhere.
"""

from __future__ import annotations

import logging
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from actors.disk.filesystem import disk_errors
from actors.disk.handles import Folder
from actors.disk.layout import Layout
from actors.disk.marker import DamagedMarker, Marker, load_marker
from actors.disk.trash import FOLDER as TRASH
from actors.disk.trash import KEPT, aside_name, own_bytes
from actors.manifest import StorageKey

FOLDER = "versions"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Version:
    """A copy that was replaced. `own_bytes`: what no other copy on the disk holds."""

    name: str
    key: StorageKey
    marker: Marker
    own_bytes: int


class Versions:
    """`clock` gives epoch seconds. `uid`: whose markers are believed."""

    def __init__(self, layout: Layout, clock: Callable[[], float], uid: int) -> None:
        self._layout = layout
        self._clock = clock
        self._uid = uid

    def all(self) -> list[Version]:
        """Those that are what they say, the latest first. What else lies there goes the way of an old copy."""
        found, junk = [], []
        with disk_errors(f"reading {self._layout.own_path / FOLDER}"), self._layout.own(FOLDER) as folder:
            for name in sorted(folder.names(), key=lambda each: each.split(".")[1:], reverse=True):
                kept, status = KEPT.fullmatch(name), folder.status(name)
                if kept is None or status is None or not stat.S_ISDIR(status.st_mode):
                    continue
                try:
                    with folder.enter(name) as copy:
                        marker = load_marker(copy, uid=self._uid)
                        found.append(Version(name, StorageKey(kept["key"]), marker, own_bytes(copy)))
                except (OSError, DamagedMarker) as error:
                    _log.warning("an old version is none any more", extra={"version": name, "error": str(error)})
                    junk.append(name)
        for name in junk:
            self.drop(name)
        return found

    def opened(self, name: str) -> Folder:
        """The folder of a version. Raises OSError."""
        with self._layout.own(FOLDER) as folder:
            return folder.enter(name)

    def replace(self, ingest: Folder, models: Folder, key: StorageKey) -> bool:
        """The ingest's data is the model, and what was the model is a version; False: nothing was done. Raises OSError.

        A process that ends between the two steps leaves a new version that is complete, beside the old model.
        """
        with self._layout.own(FOLDER) as folder:
            name = aside_name(key, self._clock())
            models.unlock(key)
            ingest.move("data", folder, name)
            if folder.exchange(name, models, key):
                folder.sync()
                return True
            folder.move(name, ingest, "data")
            return False

    def add(self, ingest: Folder, key: StorageKey) -> None:
        """The ingest's data is a version; what is the model stays that. Raises OSError."""
        with self._layout.own(FOLDER) as folder:
            ingest.move("data", folder, aside_name(key, self._clock()))
            folder.sync()

    def keep(self, models: Folder, key: StorageKey) -> None:
        """The former model is a version, and nothing is in its place. Raises OSError."""
        with self._layout.own(FOLDER) as folder:
            models.unlock(key)
            models.move(key, folder, aside_name(key, self._clock()))

    def restore(self, version: Version, models: Folder) -> None:
        """The version is the model, and what was the model is a version. Raises OSError.

        It gets a name of now first: that tells which pods may have open what is about to lie there.
        """
        with self._layout.own(FOLDER) as folder:
            name = aside_name(version.key, self._clock())
            folder.unlock(version.name)
            folder.move(version.name, folder, name)
            models.unlock(version.key)
            if not folder.exchange(name, models, version.key):
                models.move(version.key, folder, f"{name}0")
                folder.move(name, models, version.key)
            folder.sync()
            models.sync()

    def drop(self, name: str) -> None:
        """It is an old copy like others, unlinked when no pod can have it open."""
        with (
            disk_errors(f"dropping {name}"),
            self._layout.own(FOLDER) as folder,
            self._layout.own(TRASH) as trash,
        ):
            folder.unlock(name)
            folder.move(name, trash, name)


def surplus(
    versions: Iterable[Version],
    present: Mapping[StorageKey, Marker],
    keep: Mapping[StorageKey, int | None] | None = None,
    wanted: Callable[[Version], bool] = lambda _: False,
) -> list[Version]:
    """Those that are not worth their room, of `versions` from the latest on. Pure.

    Of each model that is there, as many stay as `keep` says, and what is `wanted` beside them. Where it says nothing
    one does, of which half must be in the newer copy, too: else a model would take twice its size without having been
    asked to.
    """
    kept = Counter[StorageKey]()
    found = []
    for version in versions:
        current, most = present.get(version.key), (keep or {}).get(version.key)
        same = current is not None and current.manifest.is_same_content(version.marker.manifest)
        if not same and wanted(version):
            continue
        large = most is None and version.own_bytes * 2 > version.marker.manifest.total_bytes
        if current is None or same or large or kept[version.key] >= (1 if most is None else most):
            found.append(version)
        else:
            kept[version.key] += 1
    return found


def fitting(versions: Iterable[Version], key: StorageKey, wanted: Callable[[Marker], bool]) -> Version | None:
    """The latest version of the model that is what is wanted."""
    return next((each for each in versions if each.key == key and wanted(each.marker)), None)
