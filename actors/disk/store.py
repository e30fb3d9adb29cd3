"""The disk of one root: what is committed, what is being filled, what lies aside. The only writer of all three.

    <root>/models/<key>/…                                  complete, verified; appears by one rename, or marker last
           models/<key>/.localmodel/manifest.json          the marker: what it is, how it was verified, whose it is
           .localmodel/ingest/<key>.<incarnation>/         data/…  journal  manifest.json
           .localmodel/trash/<key>.<time>.<random>         an old copy, whole, until no pod can have it open
           .localmodel/trash/gone.<random>                 what nobody but us has ever seen; unlinked at once
           .localmodel/committed/<key>.json                the marker once more: heals a damaged one
           .localmodel/scrub/<key>.json                    what `actors.scrub.record` knows of the committed copy
           .localmodel/evicted/<key>.json                  what `agent.evictions` remembers of a copy that made room
           .localmodel/aside/…                             what stood in the way and is not ours: kept, and said
           .localmodel/incarnation                         who may write: the agent that started last

Commit order: every file is fsynced → marker → folders fsynced → rename → parent fsynced. A process may die between any
two steps: what it leaves is either an ingest, which the next one adopts, or a committed model.

The incarnation file fences: an agent that was replaced but still runs finds another name in it, and stops writing.
Everything below the root is reached from handles (`actors.disk.handles`), and whatever is found there is taken for junk
until it has proved to be ours. Junk is set aside and said; it never keeps a store from opening.
Raises StoreError for whatever the disk refuses, InsufficientStorage when it is full.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import re
import stat
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from actors.disk.filesystem import FULL, disk_errors, suppress_full
from actors.disk.handles import NOT_A_FOLDER, Folder, remove_tree
from actors.disk.ingest import Ingest, held_bytes, open_ingest, open_ingest_in, read_identity
from actors.disk.marker import (
    MARKER,
    OWN,
    DamagedMarker,
    Marker,
    is_complete,
    load_marker,
    misfit,
    misfits,
    parse_marker,
    read_marker,
)
from actors.disk.notes import Notes
from actors.disk.publish import FILE_MODE, MOST_FOLDERS, holds_nothing, is_half_published, withdraw
from actors.errors import LocalModelError, StoreError
from actors.manifest import Manifest, StorageKey

__all__ = [
    "MARKER",
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

_MOST_SAID, _LONGEST_SAID = 100, 300
MARGIN_S = 10.0
"""A list of a node's pods is seconds old, and clocks differ: see `DesiredState.used`."""
_INCARNATION = re.compile(r"[\w.:-]{1,200}")
_KEPT = re.compile(r"(?P<key>[0-9a-f]{16})\.(?:(?P<at>\d{1,12}\.\d{3})\.)?[0-9a-f]+")

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


class _Gone(OSError):
    """The root is not the disk that it was."""


class Store:
    """One root. `path` is where this process sees it; the root itself is never created."""

    def __init__(
        self, path: Path, incarnation: str, clock: Callable[[], float] = time.time, margin_s: float = MARGIN_S
    ) -> None:
        """From now on this incarnation is the writer. Empties nothing: see `empty_trash`."""
        self.margin_s = margin_s
        self.used: Mapping[StorageKey, float] | None = None
        """Which models pods may have open: see `DesiredState.used`."""
        self.used_at = math.inf
        """When that was told, in epoch seconds: it says nothing of what moved aside since."""
        self.path = path
        self.models = path / "models"
        self._own = path / OWN
        self._incarnation = incarnation
        self._clock = clock
        self._ready = False
        self._sizes: dict[str, int] = {}
        self._stuck: dict[str, str] = {}
        self._moved: dict[str, str] = {}
        self._left: dict[str, str] = {}
        self.unread: dict[StorageKey, Marker] = {}
        """Committed copies of which the marker was damaged, by our record of them. Once it is remembered that their
        files are to be read before they count, `adopt` makes the marker anew."""
        self._blamed: set[StorageKey] = set()
        self.committed_notes = Notes(lambda: self._folder("committed"), self._set_aside)
        self.scrub_notes = Notes(lambda: self._folder("scrub"), self._set_aside)
        self.evicted_notes = Notes(lambda: self._folder("evicted"), self._set_aside)
        with disk_errors(f"{path} cannot be written to"), Folder.at(path) as root:
            self._prepare(root, "models").close()
            self._prepare(root, OWN).close()
            self._ready = True
            for name in ("ingest", "trash", "committed", "scrub", "evicted"):
                with suppress_full():  # a full disk still has models on it; they are made when there is room
                    self._folder(name).close()
            self._check_one_disk()
            self._uid = self._claim()

    @property
    def junk(self) -> dict[str, str]:
        """What was set aside, or is left where it is, because it is not ours: by path below the root, why."""
        return {**self._left, **self._moved}

    # --- who may write ---

    def check_fence(self) -> None:
        """Returns while this incarnation is the writer. Raises StoreError once another one has started."""
        with disk_errors(f"reading {self._own / 'incarnation'}"):
            try:
                with self._folder("") as own:
                    writer = own.read("incarnation", 1 << 10).decode()
            except _Gone:
                raise
            except UnicodeDecodeError:
                writer = ""
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EINVAL, errno.EFBIG, *NOT_A_FOLDER):
                    raise  # the disk fails: who the writer is cannot be known
                writer = ""
            if _INCARNATION.fullmatch(writer) is None:  # nobody has taken over: an agent leaves its name
                _log.warning("the name of the writer was damaged", extra={"root": str(self.path)})
                self._claim()
                return
        if writer != self._incarnation:
            raise StoreError(f"agent {writer} has taken over {self.path}; this one stops writing", reason="Fenced")

    def _claim(self) -> int:
        """This incarnation is the writer; which user that makes us on this disk."""
        with self._folder("") as own:
            status = own.status("incarnation")
            if status is not None and not stat.S_ISREG(status.st_mode):
                self._set_aside(own, "incarnation", "is not a regular file")
            content = self._incarnation.encode()
            try:
                own.write("incarnation", content)
            except OSError as error:
                if error.errno not in FULL or status is None:
                    raise
                descriptor = own.open("incarnation", os.O_WRONLY)  # its block is there already
                os.pwrite(descriptor, content, 0)
                os.ftruncate(descriptor, len(content))
                os.close(descriptor)
            return own.lstat("incarnation").st_uid

    def free_bytes(self) -> int:
        """What is free on its filesystem for us, as `df` says it."""
        with disk_errors(f"measuring {self.path}"):
            status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize

    # --- what is committed ---

    def model(self, key: StorageKey) -> Path:
        return self.models / key

    def opened(self, key: StorageKey) -> Folder:
        """The model's folder, open; a link in its place is not followed. Raises OSError."""
        with Folder.at(self.path) as root:
            return root.enter(f"models/{key}")

    def committed(self) -> dict[StorageKey, Marker]:
        """The models that were committed, by their markers. They may have been damaged since."""
        found: dict[StorageKey, Marker] = {}
        with disk_errors(f"reading {self.models}"), self._models() as models:
            for name in models.names():
                if name == "lost+found":
                    continue
                with suppress(UnicodeEncodeError):
                    name.encode()  # else it is none of ours
                    try:
                        marker = self._marker(models, StorageKey(name))
                    except OSError as error:  # the others are none the worse for it
                        self._say(self._left, f"models/{name}", f"cannot be looked at: {error.strerror}")
                        continue
                    if marker is not None:
                        found[StorageKey(name)] = marker
        recorded = set(self.committed_notes.keys())
        for key in found.keys() - recorded:
            self._record(key, found[key])
        for key in recorded - found.keys():
            if not os.path.lexists(self.model(key)):
                with suppress(StoreError):
                    self.committed_notes.forget(key)
        return found

    def look(self, key: StorageKey) -> Marker | None:
        """As `committed`, of one model. Raises StoreError if that cannot be told just now."""
        with disk_errors(f"looking at {self.model(key)}"):
            try:
                with self._models() as models:
                    return self._marker(models, key)
            except _Gone:
                return None

    def misfits(self, key: StorageKey, manifest: Manifest) -> dict[str, str]:
        """By path, what can be seen to be wrong with the committed copy without reading its content."""
        try:
            with self.opened(key) as folder:
                return misfits(folder, manifest)
        except OSError as error:
            return {file.path: f"cannot be read: {error.strerror}" for file in manifest.files}

    def marker(self, key: StorageKey) -> Marker | None:
        """The marker of the committed copy, if there is one that is believed."""
        try:
            with self.opened(key) as folder:
                return load_marker(folder, uid=self._uid)
        except (OSError, DamagedMarker):
            return None

    def standing(self, key: StorageKey, owner: str) -> Standing:
        """What stands in the model's place."""
        with disk_errors(f"looking at {self.model(key)}"), self._models() as models:
            status = models.status(key)
            if status is None:
                return Standing.ABSENT
            if not stat.S_ISDIR(status.st_mode):
                if self.committed_notes.read(key) is None:
                    return Standing.FOREIGN
                self._set_aside(models, key, "is not a folder, where a model was committed")
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
                if holds_nothing(folder) or self._half_published(key, folder):
                    return Standing.ABSENT
                try:
                    load_marker(folder, uid=self._uid)
                except FileNotFoundError:
                    return Standing.UNMARKED
                except DamagedMarker:
                    pass
                return Standing.DAMAGED

    def occupied(self, key: StorageKey, owner: str) -> bool:
        """Whether something stands in the model's place that `owner` did not put there."""
        return self.standing(key, owner) in (Standing.UNMARKED, Standing.FOREIGN)

    def fits(self, key: StorageKey, manifest: Manifest) -> bool:
        """Whether the folder holds these very files by name and size, and no other."""
        with disk_errors(f"looking at {self.model(key)}"), self.opened(key) as folder:
            return not misfits(folder, manifest) and _holds_only(folder, manifest)

    def adopt(self, key: StorageKey, marker: Marker) -> None:
        """The folder, whatever its marker said before, is the copy `marker`; whether its files are is not looked at."""
        self.check_fence()
        with disk_errors(f"adopting {self.model(key)}"), self.opened(key) as folder:
            self._write_marker(folder, key, marker)
        self._record(key, marker)

    # --- what is being filled ---

    def ingest(
        self, key: StorageKey, manifest: Manifest, owner: str, versions: Mapping[str, str] | None = None
    ) -> Ingest:
        """The fill of `manifest`; continues what an earlier incarnation began, if that was the same.

        `versions` as in `open_ingest`.
        """
        self.check_fence()
        name = f"{key}.{self._incarnation}"
        with disk_errors(f"preparing {self._own / 'ingest' / name}"), self._folder("ingest") as ingests:
            for earlier in _of_key(ingests, key):
                self._withdraw(ingests, earlier, key)
                if earlier == name:
                    continue
                if ingests.status(name) is None:
                    ingests.unlock(earlier)
                    ingests.move(earlier, ingests, name)
                else:
                    self._discard(ingests, earlier)
            return open_ingest_in(ingests, name, self._own / "ingest" / name, manifest, owner, versions)

    def ingests(self, owner: str) -> set[StorageKey]:
        """The models of which `owner` has something half-done here."""
        with disk_errors(f"reading {self._own / 'ingest'}"), self._folder("ingest") as folder:
            return {
                StorageKey(name.partition(".")[0])
                for name in folder.names()
                if (identity := read_identity(folder, name)) is None or identity.get("owner") == owner
            }

    def ingested_bytes(self, key: StorageKey) -> int:
        """The disk space that the ingests of `key` hold by now."""
        total = 0
        with disk_errors(f"measuring {self._own / 'ingest'}"), self._folder("ingest") as ingests:
            for name in _of_key(ingests, key):
                with suppress(OSError), ingests.enter(name) as folder:
                    total += held_bytes(folder)
        return total

    def abandon(self, key: StorageKey) -> None:
        """No ingest of `key` is left, of whatever incarnation; unlinked by `empty_trash`."""
        self.check_fence()
        with disk_errors(f"removing the ingests of {key}"), self._folder("ingest") as ingests:
            for name in _of_key(ingests, key):
                self._withdraw(ingests, name, key)
                self._discard(ingests, name)

    # --- changing what is committed ---

    def commit(self, key: StorageKey, ingest: Ingest, marker: Marker) -> None:
        """The model is there. Refuses (PathOccupied) to replace what another owner put in its place.

        An old copy, or a damaged one, lies aside. Once the model is there nothing can fail any more.
        """
        self.check_fence()
        if self.occupied(key, marker.owner):
            raise path_occupied(self.model(key))
        with disk_errors(f"committing {self.model(key)}"), self._models() as models:
            ingest.publish_in(models, key, marker, lambda: self._move_aside(models, key))
        self.unread.pop(key, None)
        self._left.pop(f"models/{key}", None)
        self._record(key, marker)

    def rename(self, key: StorageKey, marker: Marker) -> None:
        """The marker of the committed model is this one; its files are as they were. Refuses as `commit` does."""
        self.check_fence()
        if self.occupied(key, marker.owner):
            raise path_occupied(self.model(key))
        with disk_errors(f"writing {self.model(key) / MARKER}"), self.opened(key) as folder:
            self._write_marker(folder, key, marker, damaged=False)
        self._record(key, marker)

    def mend(self, key: StorageKey, ingest: Ingest, owner: str) -> None:
        """The files of the ingest have taken the place of those of the model, each by one rename.

        The folder stays the one that pods have mounted: what they have open they keep, what they open anew is right.
        """
        self.check_fence()
        if self.standing(key, owner) is not Standing.OURS:
            raise path_occupied(self.model(key))
        with disk_errors(f"repairing {self.model(key)}"), self.opened(key) as folder:
            ingest.replace_in(folder, self._discard)

    def remove(self, key: StorageKey, owner: str) -> None:
        """The model is no longer there; unlinked by `empty_trash`. Raises StoreError if it is not `owner`'s."""
        self.check_fence()
        standing = self.standing(key, owner)
        if standing in (Standing.UNMARKED, Standing.FOREIGN, Standing.DAMAGED):
            raise path_occupied(self.model(key))
        with disk_errors(f"removing {self.model(key)}"):
            if standing is Standing.OURS:
                with self._models() as models:
                    self._move_aside(models, key)
            self.committed_notes.forget(key)
        self.unread.pop(key, None)

    # --- what lies aside ---

    def aside(self) -> list[Aside]:
        """The old copies that lie aside."""
        found = []
        with disk_errors(f"reading {self._own / 'trash'}"), self._folder("trash") as trash:
            for name in trash.names():
                kept = _KEPT.fullmatch(name)
                status = trash.status(name) if kept is not None else None
                if kept is not None and status is not None and stat.S_ISDIR(status.st_mode):
                    at = float(kept["at"]) if kept["at"] else status.st_ctime
                    found.append(Aside(name, StorageKey(kept["key"]), at, self._size(trash, name)))
        return found

    def trash_is_empty(self) -> bool:
        """Whether all that was removed has given its space back, but for what a pod may use or the disk holds on to."""
        held = {each.name for each in self.aside() if each.in_use(self.used, self.margin_s)} | self._stuck.keys()
        with disk_errors(f"reading {self._own / 'trash'}"), self._folder("trash") as trash:
            return not set(trash.names()) - held

    def empty_trash(self) -> None:
        """Nothing lies aside that no pod can have open any more, as far as the disk unlinks it. Takes its time.

        What cannot be unlinked (NFS while a file is open, an immutable file) is said once, and tried again.
        """
        used, lately = self.used, min(self._clock(), self.used_at) - self.margin_s
        held = {each.name for each in self.aside() if each.in_use(used, self.margin_s) or each.at > lately}
        with disk_errors(f"emptying {self._own / 'trash'}"), self._folder("trash") as trash:
            for name in trash.names():
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
        """As it was when it moved aside: measured once."""
        if name not in self._sizes:
            with suppress(OSError), trash.enter(name) as folder:
                try:
                    self._sizes[name] = load_marker(folder).manifest.total_bytes
                except (OSError, DamagedMarker):
                    self._sizes[name] = held_bytes(folder)
        return self._sizes.get(name, 0)

    def _move_aside(self, models: Folder, key: StorageKey) -> None:
        """The model's folder, whole. If it was swapped for something else meanwhile, that is kept, and not unlinked."""
        with models.enter(key) as folder, self._folder("trash") as trash:
            before = os.fstat(folder.descriptor)
            models.unlock(key)
            at = int(self._clock() * 1000) / 1000  # rounded down: it must not lie in the future
            name = f"{key}.{at:.3f}.{uuid.uuid4().hex[:8]}"
            models.move(key, trash, name)
            after = trash.status(name)
            if after is None or (after.st_dev, after.st_ino) != (before.st_dev, before.st_ino):
                self._set_aside(trash, name, "took the place of a model while that was removed")

    def _discard(self, folder: Folder, name: str) -> None:
        """It is unlinked soon: nobody but us has ever seen it, or it only stood in the way."""
        folder.unlock(name)
        with self._folder("trash") as trash:
            folder.move(name, trash, f"gone.{uuid.uuid4().hex}")

    # --- markers and records ---

    def _marker(self, models: Folder, key: StorageKey) -> Marker | None:
        """The marker of what stands there, by our record if it was damaged; None: it has none."""
        place = f"models/{key}"
        try:
            opened = models.enter(key)
        except OSError as error:
            if error.errno in NOT_A_FOLDER:
                self._say(self._left, place, "is no folder; it is left where it is")
                return None
            if error.errno == errno.ENOENT:
                self._left.pop(place, None)
                return None
            raise
        with opened as folder:
            try:
                marker: Marker | None = load_marker(folder, uid=self._uid)
                self._blamed.discard(key)
                self._left.pop(place, None)
                return marker
            except FileNotFoundError:
                why, strict = "it was taken away", True
            except DamagedMarker as error:
                why, strict = str(error), False
            marker = self._recorded(key)
            if marker is None and not strict:
                said = f"its marker is damaged ({why}), and nothing else tells whose it is; it is left where it is"
                self._say(self._left, place, said)
            if marker is None or (strict and not _holds_only(folder, marker.manifest)):
                return None  # whatever it is, it is not what we committed
            self._blame(key, marker, why)
            return marker

    def _recorded(self, key: StorageKey) -> Marker | None:
        """What we have committed there, by our own record."""
        content = self.committed_notes.read(key)
        if content is None:
            return None
        try:
            return parse_marker(content)
        except DamagedMarker as error:
            self.committed_notes.reject(key, str(error))
            return None

    def _record(self, key: StorageKey, marker: Marker) -> None:
        """Remembered beside the models. A disk that refuses changes nothing about the model."""
        try:
            self.committed_notes.write(key, marker.content, sync=True)
        except (LocalModelError, MemoryError) as error:
            _log.warning("a commit is not recorded twice", extra={"key": key, "error": str(error)})

    def _blame(self, key: StorageKey, marker: Marker, why: str) -> None:
        """Said once, until there is a marker again that is believed."""
        if key not in self._blamed:
            fields = {"key": key, "root": str(self.path), "error": why}
            _log.warning("the marker of a model was damaged; our record of it is taken instead", extra=fields)
            self._blamed.add(key)
            self.unread[key] = marker

    def _write_marker(self, folder: Folder, key: StorageKey, marker: Marker, *, damaged: bool = True) -> None:
        folder.unlock(OWN)
        status = folder.status(OWN)
        if status is not None and not stat.S_ISDIR(status.st_mode):
            self._set_aside(folder, OWN, "is no folder", as_name=f"{key}{OWN}")
        with folder.enter(OWN, make=True) as own:
            if damaged and own.status("manifest.json") is not None:
                self._set_aside(own, "manifest.json", "is a damaged marker", as_name=f"{key}.manifest.json")
            own.write("manifest.json", marker.content, mode=FILE_MODE, sync=True)
            own.sync()

    # --- folders of ours ---

    def _models(self) -> Folder:
        with Folder.at(self.path) as root:
            self._check_mounted(root)
            return self._prepare(root, "models")

    def _folder(self, name: str) -> Folder:
        """One of ours in `<root>/.localmodel`, or that itself. Raises OSError."""
        with Folder.at(self.path) as root:
            self._check_mounted(root)
            own = self._prepare(root, OWN)
        if not name:
            return own
        with own:
            return self._prepare(own, name)

    def _check_one_disk(self) -> None:
        """Raises StoreError if a rename could not make a model: what is filled must be on the disk it is for."""
        with self._models() as models, self._folder("") as own:
            if os.fstat(models.descriptor).st_dev != os.fstat(own.descriptor).st_dev:
                raise StoreError(
                    f"{self.models} and {self._own} are on different filesystems: mount the disk at {self.path}",
                    reason="PathMismatch",
                )

    def _check_mounted(self, root: Folder) -> None:
        """Raises OSError once our own folder is gone: what is then written would be on another disk."""
        if self._ready and root.status(OWN) is None:
            raise _Gone(f"{self.path} holds no {OWN} any more: was its disk unmounted?")

    def _prepare(self, parent: Folder, name: str) -> Folder:
        """The folder is there, and open. What stands in its place and is none is set aside."""
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
                self._set_aside(parent, name, "is no folder")
        raise AssertionError("unreachable")

    def _set_aside(self, folder: Folder, name: str, why: str, *, as_name: str | None = None) -> None:
        """It is out of the way and kept, as `<root>/.localmodel/aside/…`. Raises OSError."""
        new = f"{(as_name or name)[:100]}.{uuid.uuid4().hex[:8]}"
        own = folder.path == self.path or name == "aside"  # what holds the folder for it cannot go there
        if own:
            folder.move(name, folder, new)
        else:
            with self._folder("aside") as aside:
                folder.unlock(name)
                folder.move(name, aside, new)
        where = _below(self.path, folder.path / new) if own else f"{OWN}/aside/{new}"
        self._say(self._moved, _below(self.path, folder.path / name), f"{why}; it is {where} now")

    def _say(self, said: dict[str, str], path: str, why: str) -> None:
        path, why = (each.encode(errors="backslashreplace").decode()[:_LONGEST_SAID] for each in (path, why))
        if self.junk.get(path) != why:
            _log.warning("found what is not ours", extra={"root": str(self.path), "path": path, "why": why})
            if len(said) < _MOST_SAID or path in said:
                said[path] = why

    def _half_published(self, key: StorageKey, target: Folder) -> bool:
        with self._folder("ingest") as ingests:
            for name in _of_key(ingests, key):
                with suppress(OSError), ingests.enter(name) as ingest:
                    if is_half_published(ingest, target):
                        return True
        return False

    def _withdraw(self, ingests: Folder, name: str, key: StorageKey) -> None:
        """What an interrupted commit had moved into the model's folder already is back in the ingest."""
        try:
            ingests.unlock(name)
            with ingests.enter(name) as ingest, self.opened(key) as target:
                withdraw(ingest, target)
        except (FileNotFoundError, NotADirectoryError):
            pass  # there is nothing to take it back from
        except DamagedMarker as error:
            with self._models() as models:
                self._set_aside(models, key, f"is half a model, and we cannot tell which any more: {error}")


def path_occupied(folder: Path) -> StoreError:
    return StoreError(
        f"{folder} exists and was not put there by this cluster: move it away, or delete it", reason="PathOccupied"
    )


def _of_key(ingests: Folder, key: StorageKey) -> list[str]:
    return [name for name in ingests.names() if name == key or name.startswith(f"{key}.")]


def _holds_only(folder: Folder, manifest: Manifest) -> bool:
    """Whether there are files in the folder, and none that is not one of the manifest's by name."""
    known, found, folders = {file.path for file in manifest.files}, False, 0
    for path, _, within in folder.walk(but=OWN):
        folders += within
        found = found or not within
        if folders > len(known) + MOST_FOLDERS or (not within and path not in known):
            return False
    return found


def _below(root: Path, path: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
