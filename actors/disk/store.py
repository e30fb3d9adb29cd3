"""The disk of one root: what is committed, what is being filled, what lies aside. The only writer of all three.

    <root>/models/<key>/…                                  complete, verified; appears by one rename, or marker last
           models/<key>/.localmodel/manifest.json          the marker: what it is, how it was verified, whose it is
           .localmodel/ingest/<key>.<incarnation>/         data/…  journal  manifest.json
           .localmodel/trash/<key>.<time>.<random>         an old copy, whole, until no pod can have it open
           .localmodel/trash/gone.<random>                 what nobody but us has ever seen; unlinked at once
           .localmodel/versions/<key>.<time>.<random>      the version before, which can be restored
           .localmodel/committed/<key>.json                the marker once more: heals a damaged one
           .localmodel/scrub/<key>.json                    what `actors.scrub.record` knows of the committed copy
           .localmodel/evicted/<key>.json                  what `agent.evictions` remembers of a copy that made room
           .localmodel/second/…                            a second name of a model, until it is complete
           .localmodel/aside/…                             what stood in the way and is not ours: kept, and said
           .localmodel/incarnation                         who may write: the agent that started last

Commit order: every file is fsynced → marker → folders fsynced → rename → parent fsynced. A process may die between any
two steps: what it leaves is either an ingest, which the next one adopts, or a committed model.

    layout      the folders, opened from handles; what is not ours is set aside and said
    fence       who may write
    committed   what is committed, and what stands where a model belongs
    ingests     what is being filled
    versions    what was replaced, and can be restored
    trash       what lies aside, and when it may be unlinked
    second_names  the other name of a model whose URI ends in a slash
    store       all of it together: a fill becomes a copy, a copy is repaired, a copy goes

Raises StoreError for whatever the disk refuses, InsufficientStorage when it is full.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from actors.disk.committed import Committed, Standing, path_occupied
from actors.disk.fence import Fence
from actors.disk.filesystem import disk_errors, suppress_full
from actors.disk.handles import Folder, remove_tree
from actors.disk.ingest import Ingest, open_ingest
from actors.disk.ingests import Ingests
from actors.disk.layout import Layout
from actors.disk.marker import MARKER, Marker, is_complete, misfit, misfits, read_marker
from actors.disk.notes import Notes
from actors.disk.second_names import SecondNames
from actors.disk.trash import Aside, Pods, Trash
from actors.disk.versions import Version, Versions
from actors.errors import StoreError
from actors.manifest import Manifest, StorageKey

__all__ = [
    "MARKER",
    "Aside",
    "Ingest",
    "Marker",
    "Standing",
    "Store",
    "disk_errors",
    "is_complete",
    "misfit",
    "misfits",
    "open_ingest",
    "path_occupied",
    "read_marker",
    "remove_tree",
]

MARGIN_S = 10.0
"""A list of a node's pods is seconds old, and clocks differ: see `DesiredState.used`."""


class Store:
    """One root. `path` is where this process sees it; the root itself is never created."""

    def __init__(
        self, path: Path, incarnation: str, clock: Callable[[], float] = time.time, margin_s: float = MARGIN_S
    ) -> None:
        """From now on this incarnation is the writer. Empties nothing: see `empty_trash`."""
        self.path = path
        self.margin_s = margin_s
        """How much older than a list of this node's pods an old copy must be to be unlinked by it."""
        self.used: Mapping[StorageKey, float] | None = None
        """Which models pods may have open: see `DesiredState.used`."""
        self.used_at = math.inf
        """When that was told, in epoch seconds: it says nothing of what moved aside since."""
        layout = self._layout = Layout(path)
        with disk_errors(f"{path} cannot be written to"):
            layout.make()
            for name in ("ingest", "trash", "versions", "committed", "scrub", "evicted"):
                with suppress_full():  # a full disk still has models on it; they are made when there is room
                    layout.own(name).close()
            layout.check_one_disk()
            self._fence = Fence(layout, incarnation)
        self._trash = Trash(layout, clock)
        self._ingests = Ingests(layout, self._fence, self._trash)
        self._committed = Committed(layout, self._fence, self._ingests)
        self._versions = Versions(layout, clock, self._fence.uid)
        self._second_names = SecondNames(layout, self._trash)
        self.scrub_notes = Notes(lambda: layout.own("scrub"), layout.set_aside)
        self.evicted_notes = Notes(lambda: layout.own("evicted"), layout.set_aside)

    @property
    def junk(self) -> dict[str, str]:
        """By path below the root, why something was set aside, or is left where it is: it is not ours."""
        return self._layout.junk

    def check_fence(self) -> None:
        """Returns while this incarnation is the writer. Raises StoreError once another one has started."""
        self._fence.check()

    def free_bytes(self) -> int:
        """The bytes free on its filesystem for us, as `df` says it."""
        with disk_errors(f"measuring {self.path}"):
            status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize

    # --- what is committed: see `Committed` ---

    def model(self, key: StorageKey) -> Path:
        return self._committed.path(key)

    def opened(self, key: StorageKey) -> Folder:
        """The model's folder, open; a link in its place is not followed. Raises OSError."""
        return self._layout.model(key)

    def committed(self) -> dict[StorageKey, Marker]:
        """The models that were committed, by their markers. They may have been damaged since.

        Those that have a second name are there under that, too.
        """
        found = self._committed.all()
        for key, marker in found.items():
            self._second_names.ensure(key, marker)
        return found

    @property
    def unread(self) -> dict[StorageKey, Marker]:
        """Committed copies of which the marker was damaged: their files are to be read before they count."""
        return self._committed.unread

    def look(self, key: StorageKey) -> Marker | None:
        """As `committed`, of one model. Raises StoreError if that cannot be told just now."""
        return self._committed.look(key)

    def misfits(self, key: StorageKey, manifest: Manifest) -> dict[str, str]:
        """By path, what can be seen to be wrong with the committed copy without reading its content.

        Raises StoreError if that cannot be told just now.
        """
        return self._committed.misfits(key, manifest)

    def marker(self, key: StorageKey) -> Marker | None:
        """The marker of the committed copy, if there is one that is believed."""
        return self._committed.marker(key)

    def standing(self, key: StorageKey, owner: str) -> Standing:
        """What stands in the model's place."""
        return self._committed.standing(key, owner)

    def occupied(self, key: StorageKey, owner: str) -> bool:
        """Whether something stands in the model's place that `owner` did not put there."""
        return self._committed.occupied(key, owner)

    def clear(self, key: StorageKey, manifest: Manifest) -> bool:
        """Nothing is in the folder but files of the manifest. False: there is too much else for that, or none of them.

        Files that a pod may have open stay where they are, and are said to be there.
        """
        return self._committed.clear(key, manifest, keep=self.used is None or key in self.used)

    def adopt(self, key: StorageKey, marker: Marker) -> None:
        """The folder, whatever its marker said before, is the copy `marker`; whether its files are is not looked at."""
        self._committed.adopt(key, marker)

    def rename(self, key: StorageKey, marker: Marker) -> None:
        """The marker of the committed model is this one; its files are as they were. Refuses as `commit` does."""
        self._committed.rename(key, marker)

    # --- what is being filled: see `Ingests` ---

    def ingest(
        self, key: StorageKey, manifest: Manifest, owner: str, versions: Mapping[str, str] | None = None
    ) -> Ingest:
        """The fill of `manifest`; continues what an earlier incarnation began, if that was the same."""
        return self._ingests.open(key, manifest, owner, versions)

    def ingests(self, owner: str) -> set[StorageKey]:
        """The models of which `owner` has something half-done here."""
        return self._ingests.of(owner)

    def ingested_bytes(self, key: StorageKey) -> int:
        """The disk space that the ingests of `key` hold by now."""
        return self._ingests.held_bytes(key)

    def abandon(self, key: StorageKey) -> None:
        """No ingest of `key` is left, of whatever incarnation; unlinked by `empty_trash`."""
        self._ingests.abandon(key)

    # --- changing what is committed ---

    def commit(self, key: StorageKey, ingest: Ingest, marker: Marker, *, keep: bool = False) -> None:
        """The model is there. Refuses (PathOccupied) to replace what another owner put in its place.

        An old copy, or a damaged one, lies aside; with `keep` it is a version from now on. A folder without a marker is
        set aside. Once the model is there nothing can fail any more.
        """
        self.check_fence()
        standing = self.standing(key, marker.owner)
        if standing is Standing.FOREIGN:
            raise path_occupied(self.model(key))
        with disk_errors(f"committing {self.model(key)}"), self._layout.models() as models:

            def move_aside() -> None:
                if standing is Standing.UNMARKED:
                    self._layout.set_aside(models, key, "was not put there by this cluster")
                elif keep:
                    self._versions.keep(models, key)
                else:
                    self._trash.keep(models, key)

            def replace(data: Folder) -> bool:
                return keep and standing is Standing.OURS and self._versions.replace(data, models, key)

            ingest.publish_in(models, key, marker, move_aside, replace)
        self._committed.record(key, marker)
        self._second_names.ensure(key, marker)

    def prefetch(self, key: StorageKey, ingest: Ingest, marker: Marker) -> None:
        """A version of the model is there, complete, beside the copy, which stays. Refuses as `commit` does."""
        self.check_fence()
        if self.standing(key, marker.owner) is not Standing.OURS:
            raise path_occupied(self.model(key))
        with disk_errors(f"prefetching {self.model(key)}"):
            ingest.publish_beside(marker, lambda data: self._versions.add(data, key))

    def mend(self, key: StorageKey, ingest: Ingest, owner: str) -> None:
        """The files of the ingest have taken the place of those of the model, each by one rename.

        The folder stays the one that pods have mounted: what they have open they keep, what they open anew is right.
        """
        self.check_fence()
        if self.standing(key, owner) is not Standing.OURS:
            raise path_occupied(self.model(key))
        with disk_errors(f"repairing {self.model(key)}"), self.opened(key) as folder:
            ingest.replace_in(folder, self._trash.discard)
        if (marker := self.marker(key)) is not None:
            self._second_names.ensure(key, marker)

    def remove(self, key: StorageKey, owner: str) -> None:
        """The model is no longer there; unlinked by `empty_trash`. Raises StoreError if it is not `owner`'s."""
        self.check_fence()
        standing = self.standing(key, owner)
        if standing in (Standing.UNMARKED, Standing.FOREIGN, Standing.DAMAGED):
            raise path_occupied(self.model(key))
        with disk_errors(f"removing {self.model(key)}"):
            if standing is Standing.OURS:
                if (marker := self.look(key)) is not None:
                    self._second_names.drop(key, marker.manifest.source.uri)
                with self._layout.models() as models:
                    self._trash.keep(models, key)
            self._committed.forget(key)

    # --- versions that were replaced: see `Versions` ---

    def versions(self) -> list[Version]:
        """The versions that were kept, the latest first."""
        return self._versions.all()

    def opened_version(self, name: str) -> Folder:
        """The folder of a version, open. Raises OSError."""
        return self._versions.opened(name)

    def restore(self, version: Version, marker: Marker) -> None:
        """The version is the model, by this marker, and what was the model is a version. Nothing was read of it.

        Raises StoreError: also for one of which a file is missing, or of another size.
        """
        self.check_fence()
        if self.standing(version.key, marker.owner) is not Standing.OURS:
            raise path_occupied(self.model(version.key))
        with disk_errors(f"restoring {version.name}"), self._versions.opened(version.name) as folder:
            if wrong := misfits(folder, marker.manifest):
                raise StoreError(f"{version.name} is damaged: {next(iter(wrong))}")
        with disk_errors(f"restoring {version.name}"), self._layout.models() as models:
            self._versions.restore(version, models)
        self._committed.rename(version.key, marker)
        self._second_names.ensure(version.key, marker)

    def drop_version(self, version: Version) -> None:
        """It is unlinked when no pod can have it open."""
        self.check_fence()
        self._versions.drop(version.name)

    # --- what lies aside: see `Trash` ---

    def aside(self) -> list[Aside]:
        """The old copies that lie aside."""
        return self._trash.aside()

    def trash_is_empty(self) -> bool:
        """Whether all that was removed has given its space back, but for what a pod may use or the disk holds on to."""
        return self._trash.is_empty(self._pods())

    def empty_trash(self) -> None:
        """Nothing lies aside that no pod can have open any more, as far as the disk unlinks it. Takes its time."""
        self._trash.empty(self._pods())

    def _pods(self) -> Pods:
        at = self.used_at  # read first: what is told meanwhile is newer than this says, which keeps more
        return Pods(self.used, at, self.margin_s)
