"""The roots of a node, each with its store: which copies are committed there, which of them are damaged or in the way.

Committed models are known from the disk. It is read when a root is opened, and compared with the disk again from time
to time, because others may change what is there. A root that cannot be used says why, and is tried again with every
tick; it never keeps an agent from the others.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import replace

from actors.agent.beside import Beside
from actors.agent.evictions import Entry, Ledger
from actors.agent.settings import AgentSettings
from actors.disk.filesystem import disk_errors
from actors.disk.marker import Marker
from actors.disk.store import Aside, Store
from actors.errors import Failure, LocalModelError, StoreError
from actors.manifest import ModelSource, Resolved, StorageKey
from actors.messages import DesiredModel, Place
from actors.scrub.record import Record, is_same_copy
from actors.scrub.repair import Repair
from actors.scrub.scrubber import Scrubber
from actors.transferred import Transferred

UNREAD = "may not be what it was: its model's marker was damaged"
"""Of a file that has to be read again before the copy counts."""

_log = logging.getLogger(__name__)


class Root:
    """One of the settings' roots. Without a store, `failure` says why. The agent's lock guards it."""

    def __init__(
        self,
        name: str,
        settings: AgentSettings,
        incarnation: str,
        scrubber: Scrubber,
        clock: Callable[[], float],
    ) -> None:
        """Knows nothing before `open`."""
        self.name = name
        self.store: Store | None = None
        self.failure: Failure | None = None
        self.present: dict[StorageKey, Marker] = {}
        self.ledger = Ledger()
        self.beside = Beside(None, self.present)
        self._settings = settings
        self._incarnation = incarnation
        self._scrubber = scrubber
        self._clock = clock

    def open(self) -> None:
        """Its store is open, and what is committed in it is known; or `failure` says why not."""
        try:
            self._open()
            self.failure = None
            return
        except LocalModelError as error:
            self.failure = error.failure()
        except Exception as error:  # noqa: BLE001  one disk must not keep the agent from the others
            _log.exception("a root cannot be opened", extra={"root": self.name})
            why = f"{self.name} cannot be opened: {type(error).__name__}: {error}"
            self.failure = Failure("InternalError", why)
        self.store, self.present, self.ledger = None, {}, Ledger()
        self.beside = Beside(None, self.present)

    def _open(self) -> None:
        path = self._settings.path(self.name)
        with disk_errors(f"looking at {path}"):
            mounted = path.is_dir()
        if not mounted:
            raise StoreError(
                f"{self.name} is no folder where the agent looks for it ({path}): is the disk mounted into the agent?",
                reason="PathMismatch",
            )
        store = self.store = Store(path, self._incarnation, self._clock, self._settings.aside_margin_s)
        self.present, self.ledger = store.committed(), Ledger(store.evicted_notes)
        for key in self.ledger.known & self.present.keys():  # the agent ended before the copy went
            self.ledger.forget(key)
        for key, marker in self.present.items():
            self._scrubber.watch(self.place(key), marker, store)
            try:
                self._blame_misfits(store, key, marker)
            except StoreError as error:  # it is looked at again
                _log.warning("cannot look at a model", extra={"key": key, "error": str(error)})
        self.blame_unread()
        self.beside = Beside(store, self.present)
        self.beside.look()

    def usable(self) -> Store:
        """Raises StoreError for a root that cannot be used."""
        if self.store is None:
            raise StoreError(
                self.failure.message if self.failure else "", reason=self.failure.reason if self.failure else None
            )
        return self.store

    def place(self, key: StorageKey) -> Place:
        return Place(self.name, key)

    # --- what is known of a copy ---

    def damage(self, key: StorageKey) -> dict[str, str]:
        """By path, what is wrong with the committed copy."""
        return self._scrubber.damage(self.place(key))

    def record(self, key: StorageKey) -> Record | None:
        return self._scrubber.record(self.place(key))

    def repair(
        self, key: StorageKey, source: ModelSource, resolved: Resolved | None, *, in_vain: bool
    ) -> Repair | None:
        """What to put right in the committed copy. None: nothing, or nothing that this source still has.

        Without `resolved`, what has to be read first: it may be right. `in_vain`: the last attempt at it was a repair,
        and the source no longer gave the bytes that were committed.
        """
        marker, damage, record = self.present.get(key), self.damage(key), self.record(key)
        if marker is None or record is None or not damage or marker.manifest.source != source:
            return None
        if resolved is None:
            damage = {path: wrong for path, wrong in damage.items() if wrong == UNREAD}
        sums = {path: record.sums[path] for path in damage if path in record.sums}
        repair = Repair(marker, frozenset(damage), sums, record.chunk_bytes)
        if resolved is None:
            return repair if damage else None
        changed = in_vain and not repair.vouched(resolved.manifest)
        return repair if repair.possible(resolved.manifest) and not changed else None

    # --- what becomes of a copy ---

    def restore(self, model: DesiredModel, resolved: Resolved | None, owner: str) -> bool:
        """Whether a version that lies beside it is the model now: nothing is read or fetched for that."""
        key, store, current = model.key, self.usable(), self.present.get(model.key)
        if current is None or current.owner != owner or self.damage(key):
            return False
        found = self.beside.find(model, resolved)
        if found is None or found.marker.owner != owner:
            return False
        manifest = replace(found.marker.manifest, source=model.source)
        if resolved is not None:
            manifest = replace(manifest, revision=resolved.manifest.revision)
        now, moved = self._clock(), Transferred(bytes_reused=manifest.total_bytes)
        marker = replace(found.marker, manifest=manifest, moved=moved, started_at=now, finished_at=now)
        try:
            store.restore(found, marker)
        except StoreError as error:
            _log.warning("cannot restore a version", extra={"key": key, "error": str(error)})
            self.beside.drop([found])
            return False
        self.committed(key, marker)
        _log.info("restored a version", extra={"key": key, "revision": manifest.revision})
        return True

    def committed(self, key: StorageKey, marker: Marker) -> None:
        """The copy is there, as `marker` says, and is read from time to time."""
        self.rename(key, marker)
        self.ledger.forget(key)
        self.beside.look()

    def rename(self, key: StorageKey, marker: Marker) -> None:
        """The copy that is there is known by this marker."""
        if self.store is not None:
            self.present[key] = marker
            self._scrubber.watch(self.place(key), marker, self.store)

    def readmit(self, evictable: Set[StorageKey]) -> None:
        """Models that made room for others are held back no longer, unless they are among these."""
        for key in self.ledger.known - evictable:
            self.ledger.forget(key)

    def remove(self, key: StorageKey, owner: str) -> Marker | None:
        """The copy is no longer there: what it was. None: the disk refused, or it is not `owner`'s."""
        try:
            self.usable().remove(key, owner)
            self._scrubber.forget(self.place(key))
        except StoreError as error:
            _log.warning("cannot remove a model", extra={"key": key, "error": str(error)})
            return None
        removed = self.present.pop(key)
        self.beside.look()
        return removed

    def adopt(self, key: StorageKey, marker: Marker) -> None:
        """The folder there is this copy; first it is remembered that its files have to be read before it counts."""
        store = self.usable()
        self.present[key] = marker
        self._scrubber.watch(self.place(key), marker, store)
        unread = dict.fromkeys((file.path for file in marker.manifest.files), UNREAD)
        self._scrubber.blame(self.place(key), marker, unread)
        try:
            store.adopt(key, marker)
        except StoreError as error:
            _log.warning("cannot write a marker", extra={"key": key, "error": str(error)})

    def blame_unread(self) -> None:
        """Copies of which the marker was damaged are not Ready before every byte of them was read."""
        store = self.usable()
        while store.unread:
            self.adopt(*store.unread.popitem())

    def _blame_misfits(self, store: Store, key: StorageKey, marker: Marker) -> None:
        """What can be seen to be wrong with the copy is known. Raises StoreError if nothing can be seen just now."""
        self._scrubber.blame(self.place(key), marker, store.misfits(key, marker.manifest))

    # --- the disk, looked at again ---

    def rescan(self, lock: threading.RLock) -> None:
        """A copy that somebody took away is no longer present; one that somebody broke is damaged.

        The disk is looked at without the `lock`, which guards the root.
        """
        with lock:
            store, known = self.store, dict(self.present)
        if store is None:
            return
        for key, marker in known.items():
            try:
                found = store.look(key)
                if same := found is not None and is_same_copy(found, marker):
                    self._blame_misfits(store, key, marker)
            except StoreError as error:  # a disk that stumbles (ESTALE of NFS, EIO) has not lost the model
                _log.warning("cannot look at a model", extra={"key": key, "error": str(error)})
                continue
            if same:
                with lock:
                    self.blame_unread()
                continue
            with lock:
                if self.present.get(key) is not marker:
                    continue
                _log.warning("a committed model was taken away", extra={"key": key, "root": self.name})
                del self.present[key]
                self._scrubber.forget(self.place(key))
                if found is not None:  # and another put in its place
                    self.present[key] = found
                    self._scrubber.watch(self.place(key), found, store)

    def aside(self) -> list[Aside]:
        """The old copies that lie aside; none where that cannot be told, which is said of the root."""
        try:
            return self.store.aside() if self.store is not None else []
        except StoreError:
            return []

    def aside_bytes(self) -> int:
        """Of versions that can be restored, too."""
        return sum(each.size_bytes for each in self.aside()) + sum(each.own_bytes for each in self.beside.versions)

    def committed_bytes(self, keys: Set[StorageKey]) -> int:
        """Taken by the committed models among these."""
        return sum(marker.manifest.total_bytes for key, marker in self.present.items() if key in keys)

    def used_bytes(self) -> int:
        """Taken by the committed models, and by the old copies that lie aside."""
        return self.committed_bytes(self.present.keys()) + self.aside_bytes()


class Roots(Mapping[str, Root]):
    """The settings' roots by name, opened."""

    def __init__(
        self, settings: AgentSettings, incarnation: str, scrubber: Scrubber, clock: Callable[[], float]
    ) -> None:
        """Looks at the disks before it returns."""
        self._settings = settings
        self._roots = {name: Root(name, settings, incarnation, scrubber, clock) for name in settings.roots}
        self.reopen()

    def __getitem__(self, name: str) -> Root:
        return self._roots[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._roots)

    def __len__(self) -> int:
        return len(self._roots)

    def reopen(self) -> None:
        """Those that could not be used are tried again."""
        for root in self._roots.values():
            if root.store is None:
                root.open()

    def stores(self) -> Iterator[Store]:
        """Of the roots that can be used."""
        return (root.store for root in self._roots.values() if root.store is not None)

    def known(self, name: str) -> Root:
        """Raises StoreError for a root that is not one of ours."""
        if name not in self._roots:
            raise StoreError(self.mismatch(name).message, reason="PathMismatch")
        return self._roots[name]

    def mismatch(self, name: str) -> Failure:
        """The error of a root that is not one of ours."""
        ours = ", ".join(self._settings.roots)
        return Failure(
            "PathMismatch",
            f"the node group's volume is at {name}, but the agent on this node holds models in {ours}"
            " (LOCALMODEL_ROOTS)",
        )

    def present(self) -> Iterator[tuple[Place, Marker]]:
        """Every committed copy."""
        for root in self._roots.values():
            for key, marker in root.present.items():
                yield root.place(key), marker

    def copy(self, place: Place) -> Marker | None:
        """The committed copy there, if there is one."""
        root = self._roots.get(place.root)
        return root.present.get(place.key) if root is not None else None

    def damage(self, place: Place) -> dict[str, str]:
        """By path, what is wrong with the committed copy there."""
        root = self._roots.get(place.root)
        return root.damage(place.key) if root is not None else {}

    def evicted(self, place: Place) -> Entry | None:
        """Set while the copy that was there has made room for another."""
        root = self._roots.get(place.root)
        return root.ledger.get(place.key) if root is not None else None
