"""The disk of one root: what is committed, what is being filled, what is being deleted. The only writer of all three.

    <root>/models/<key>/…                                  complete, verified, read-only; appears by one rename
           models/<key>/.localmodel/manifest.json          the marker: what it is, how it was verified, whose it is
           .localmodel/ingest/<key>.<incarnation>/         data/…  journal  manifest.json
           .localmodel/trash/                              renamed first, unlinked after; emptied when an agent starts
           .localmodel/scrub/<key>.json                    what `actors.scrub` knows of the committed copy
           .localmodel/evicted/<key>.json                  what `actors.evicted` remembers of a copy that made room
           .localmodel/incarnation                         who may write: the agent that started last

Commit order: every file is fsynced → marker → folders fsynced → rename → parent fsynced. A process may die between any
two steps: what it leaves is either an ingest, which the next one adopts, or a committed model.

The incarnation file fences: an agent that was replaced but still runs finds another name in it, and stops writing.
Raises StoreError for whatever the disk refuses, InsufficientStorage when it is full.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from actors.errors import InsufficientStorage, StoreError
from actors.journal import Journal
from actors.manifest import Manifest, ManifestFile, StorageKey
from actors.moved import Moved

MARKER = ".localmodel/manifest.json"
LATE_FILE_BYTES = 64 << 10
"""Up to this size a file is made when it is written. What thousands of them need, the headroom covers until then."""
FILE_MODE = 0o444
FOLDER_MODE = 0o555

_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_REASONS = {
    errno.EROFS: "DiskReadOnly",
    errno.EACCES: "DiskPermissionDenied",
    errno.EPERM: "DiskPermissionDenied",
    errno.EIO: "DiskFailing",
}
_NO_FALLOCATE = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """An OSError of the disk becomes ours. Nothing that talks to a network belongs inside."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            raise InsufficientStorage(f"the disk is full: {what}: {reason}") from error
        raise StoreError(f"{what}: {reason}", reason=_REASONS.get(error.errno or 0)) from error


@dataclass(frozen=True, slots=True)
class Marker:
    """What is known of a committed model. `manifest` has every file's digest; `verified` says how each was checked.

    `moved` is what the fill has cost, over all attempts.
    """

    owner: str
    manifest: Manifest
    verified: Mapping[str, str]
    started_at: float | None = None
    finished_at: float | None = None
    moved: Moved = field(default_factory=Moved)

    def to_json(self) -> dict[str, Any]:
        return {
            "version": 1,
            "owner": self.owner,
            "selection": self.manifest.source.selection,
            "manifestDigest": self.manifest.digest,
            "manifest": self.manifest.to_json(),
            "verified": dict(self.verified),
            "startedAt": self.started_at,
            "finishedAt": self.finished_at,
            **self.moved.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Marker:
        """Raises KeyError, TypeError or ValueError for anything `to_json` did not make."""
        return cls(
            owner=str(data["owner"]),
            manifest=Manifest.from_json(data["manifest"]),
            verified={str(path): str(how) for path, how in data["verified"].items()},
            started_at=data.get("startedAt"),
            finished_at=data.get("finishedAt"),
            moved=Moved.from_json(data),
        )


def read_marker(folder: Path) -> Marker | None:
    """The marker of a model's folder; None if it has none that can be read."""
    try:
        return Marker.from_json(json.loads((folder / MARKER).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def is_complete(folder: Path, manifest: Manifest) -> bool:
    """Whether every file is there, with its size. Reads no content."""
    return not misfits(folder, manifest)


def misfits(folder: Path, manifest: Manifest) -> dict[str, str]:
    """By path, what can be seen to be wrong with a file of the model without reading its content."""
    found = {file.path: misfit(folder / file.path, file) for file in manifest.files}
    return {path: wrong for path, wrong in found.items() if wrong is not None}


def misfit(path: Path, file: ManifestFile) -> str | None:
    """What is wrong with the file at `path` as far as its name and size tell; None: nothing."""
    try:
        status = path.lstat()
    except OSError as error:
        return "is missing" if error.errno in _MISSING else f"cannot be read: {error.strerror}"
    if not stat.S_ISREG(status.st_mode):
        return "is no longer a regular file"
    return None if status.st_size == file.size else f"has {status.st_size} bytes, not {file.size}"


class Ingest:
    """A fill's folder: the files at their full size, and the journal of what of them has been written."""

    def __init__(self, folder: Path, manifest: Manifest, *, continued: bool) -> None:
        """Use `open_ingest`."""
        self.folder = folder
        self.data = folder / "data"
        self.manifest = manifest
        self.journal = Journal.open(folder / "journal", [file.size for file in manifest.files])
        if not continued:
            for index, file in enumerate(manifest.files):
                if file.vouched is None and self.journal.done.pop(index, None) is not None:
                    self.journal.forget(index)

    def allocate(self) -> None:
        """Every file exists at its full size, with the disk space for it where the filesystem can promise that.

        But small ones only if something of them is there already: there may be thousands, and others arrive meanwhile.
        """
        made: set[Path] = set()
        with disk_errors(f"making room in {self.data}"):
            for index, file in enumerate(self.manifest.files):
                path = self.data / file.path
                if path.parent not in made:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    made.add(path.parent)
                if file.size <= LATE_FILE_BYTES and index not in self.journal.done:
                    continue
                if _allocate(path, file) and self.journal.done.pop(index, None) is not None:
                    self.journal.forget(index)

    def open_file(self, index: int) -> int:
        """A descriptor to read and write the file at `index`. The caller closes it."""
        path = self.data / self.manifest.files[index].path
        with disk_errors(f"opening {path}"):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)

    def publish(self, marker: Marker, target: Path, *, trash: Path) -> None:
        """`target` is the model, complete. What was there before is in `trash`, and is the caller's to unlink."""
        with disk_errors(f"committing {target}"):
            path = self.data / MARKER
            path.parent.mkdir(exist_ok=True)
            if path.exists():
                path.unlink()
            _write_synced(path, json.dumps(marker.to_json()).encode())
            for folder, _, names in os.walk(self.data, topdown=False):
                for name in names:
                    os.chmod(f"{folder}/{name}", FILE_MODE)  # noqa: PTH101  there may be thousands
                if folder != str(self.data):  # to be renamed, a folder must be writable
                    Path(folder).chmod(FOLDER_MODE)
                _sync_folder(Path(folder))
            if target.exists():
                _move(target, trash)
            self.data.rename(target)
            target.chmod(FOLDER_MODE)
            _sync_folder(target.parent)
        self.close()
        remove_tree(self.folder)

    def replace_in(self, target: Path, *, trash: Path) -> None:
        """The files of the ingest are those of the model in `target`. What stood in their way is in `trash`."""
        folders = sorted(
            {target / parent for file in self.manifest.files for parent in PurePosixPath(file.path).parents}
        )
        with disk_errors(f"repairing {target}"):
            for folder in folders:
                if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
                    _move(folder, trash)
                folder.mkdir(exist_ok=True)
                folder.chmod(0o755)
            for file in self.manifest.files:
                path = target / file.path
                if path.is_dir() and not path.is_symlink():
                    _move(path, trash)
                (self.data / file.path).chmod(FILE_MODE)
                (self.data / file.path).replace(path)
            for folder in reversed(folders):
                _sync_folder(folder)
                folder.chmod(FOLDER_MODE)
        self.close()
        remove_tree(self.folder)

    def close(self) -> None:
        self.journal.close()

    def discard(self) -> None:
        """Nothing of it is left."""
        self.close()
        with disk_errors(f"removing {self.folder}"):
            remove_tree(self.folder)


def open_ingest(folder: Path, manifest: Manifest, owner: str) -> Ingest:
    """The ingest in `folder`: what is there, if it is of the same manifest; else a new one.

    After a reboot a journal may speak of bytes that never reached the disk. That is found by digest; files that have
    none are fetched again.
    """
    identity = {"owner": owner, "manifest": manifest.to_json(), "boot": _boot_id()}
    with disk_errors(f"preparing {folder}"):
        before = _read_identity(folder)
        same = before is not None and before.get("manifest") == json.loads(json.dumps(identity["manifest"]))
        if not same:
            remove_tree(folder)
        (folder / "data").mkdir(parents=True, exist_ok=True)
        staged = folder / "manifest.json.new"
        staged.write_text(json.dumps(identity))
        staged.replace(folder / "manifest.json")
        continued = before is not None and before.get("boot") == identity["boot"]
        return Ingest(folder, manifest, continued=continued)


class Store:
    """One root. `path` is where this process sees it; the root itself is never created."""

    def __init__(self, path: Path, incarnation: str) -> None:
        """From now on this incarnation is the writer. Empties nothing: see `empty_trash`."""
        self.path = path
        self.models = path / "models"
        self._own = path / ".localmodel"
        self._ingests = self._own / "ingest"
        self._trash = self._own / "trash"
        self._scrub = self._own / "scrub"
        self._incarnation = incarnation
        with disk_errors(f"{path} cannot be written to"):
            for folder in (self.models, self._ingests, self._trash, self._scrub, self.evicted):
                folder.mkdir(parents=True, exist_ok=True)
            staged = self._own / f"incarnation.{incarnation}"
            staged.write_text(incarnation)
            staged.replace(self._own / "incarnation")

    def check_fence(self) -> None:
        """Returns while this incarnation is the writer. Raises StoreError once another one has started."""
        with disk_errors(f"reading {self._own / 'incarnation'}"):
            writer = (self._own / "incarnation").read_text()
        if writer != self._incarnation:
            raise StoreError(f"agent {writer} has taken over {self.path}; this one stops writing", reason="Fenced")

    def free_bytes(self) -> int:
        """What is free on its filesystem for us, as `df` says it."""
        with disk_errors(f"measuring {self.path}"):
            status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize

    def model(self, key: StorageKey) -> Path:
        return self.models / key

    def scrub_record(self, key: StorageKey) -> Path:
        return self._scrub / f"{key}.json"

    @property
    def evicted(self) -> Path:
        """The folder of what is remembered of evicted models."""
        return self._own / "evicted"

    def committed(self) -> dict[StorageKey, Marker]:
        """The models that were committed, by their markers. They may have been damaged since."""
        found: dict[StorageKey, Marker] = {}
        with disk_errors(f"reading {self.models}"):
            folders = sorted(self.models.iterdir())
        for folder in folders:
            marker = read_marker(folder)
            if marker is not None:
                found[StorageKey(folder.name)] = marker
        return found

    def occupied(self, key: StorageKey, owner: str) -> bool:
        """Whether something stands in the model's place that `owner` did not put there."""
        folder = self.model(key)
        if not os.path.lexists(folder):
            return False
        marker = read_marker(folder)
        return marker is None or marker.owner != owner

    def ingest(self, key: StorageKey, manifest: Manifest, owner: str) -> Ingest:
        """The fill of `manifest`; continues what an earlier incarnation began, if that was the same."""
        self.check_fence()
        folder = self._ingests / f"{key}.{self._incarnation}"
        with disk_errors(f"adopting what is in {self._ingests}"):
            for earlier in sorted(self._ingests.glob(f"{key}.*")):
                if earlier != folder and not folder.exists():
                    earlier.rename(folder)
                elif earlier != folder:
                    _move(earlier, self._trash)
        return open_ingest(folder, manifest, owner)

    def ingests(self, owner: str) -> set[StorageKey]:
        """The models of which `owner` has something half-done here."""
        with disk_errors(f"reading {self._ingests}"):
            folders = list(self._ingests.iterdir())
        return {
            StorageKey(folder.name.partition(".")[0])
            for folder in folders
            if (identity := _read_identity(folder)) is None or identity.get("owner") == owner
        }

    def ingested_bytes(self, key: StorageKey) -> int:
        """The disk space that the ingests of `key` hold by now."""
        with disk_errors(f"measuring {self._ingests}"):
            return sum(
                status.st_blocks * 512 for folder in self._ingests.glob(f"{key}.*") for status in _statuses(folder)
            )

    def abandon(self, key: StorageKey) -> None:
        """No ingest of `key` is left, of whatever incarnation; unlinked by `empty_trash`."""
        self.check_fence()
        with disk_errors(f"removing the ingests of {key}"):
            for folder in self._ingests.glob(f"{key}.*"):
                _move(folder, self._trash)

    def commit(self, key: StorageKey, ingest: Ingest, marker: Marker) -> None:
        """The model is there. Refuses (PathOccupied) to replace what another owner put in its place."""
        self.check_fence()
        if self.occupied(key, marker.owner):
            raise path_occupied(self.model(key))
        ingest.publish(marker, self.model(key), trash=self._trash)

    def rename(self, key: StorageKey, marker: Marker) -> None:
        """The marker of the committed model is this one; its files are as they were. Refuses as `commit` does."""
        self.check_fence()
        if self.occupied(key, marker.owner):
            raise path_occupied(self.model(key))
        path = self.model(key) / MARKER
        with disk_errors(f"writing {path}"):
            path.parent.chmod(0o755)
            staged = path.with_name("manifest.json.new")
            staged.unlink(missing_ok=True)
            _write_synced(staged, json.dumps(marker.to_json()).encode())
            staged.chmod(FILE_MODE)
            staged.replace(path)
            _sync_folder(path.parent)
            path.parent.chmod(FOLDER_MODE)

    def mend(self, key: StorageKey, ingest: Ingest, owner: str) -> None:
        """The files of the ingest have taken the place of those of the model, each by one rename.

        The folder stays the one that pods have mounted: what they have open they keep, what they open anew is right.
        """
        self.check_fence()
        if self.occupied(key, owner):
            raise path_occupied(self.model(key))
        ingest.replace_in(self.model(key), trash=self._trash)

    def remove(self, key: StorageKey, owner: str) -> None:
        """The model is no longer there; unlinked by `empty_trash`. Raises StoreError if it is not `owner`'s."""
        self.check_fence()
        folder = self.model(key)
        if not os.path.lexists(folder):
            return
        if self.occupied(key, owner):
            raise path_occupied(folder)
        with disk_errors(f"removing {folder}"):
            _move(folder, self._trash)

    def trash_is_empty(self) -> bool:
        """Whether everything that was removed has given its space back."""
        with disk_errors(f"reading {self._trash}"):
            return next(self._trash.iterdir(), None) is None

    def empty_trash(self) -> None:
        """Takes as long as the disk needs to unlink."""
        with disk_errors(f"emptying {self._trash}"):
            for entry in self._trash.iterdir():
                remove_tree(entry)


def path_occupied(folder: Path) -> StoreError:
    return StoreError(
        f"{folder} exists and was not put there by this cluster: move it away, or delete it", reason="PathOccupied"
    )


def remove_tree(folder: Path) -> None:
    """`folder` is gone, read-only folders and all; also if another process removes it at the same time."""
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        folder.unlink(missing_ok=True)
        return
    for parent, _, _ in os.walk(folder):
        with suppress(FileNotFoundError):
            Path(parent).chmod(0o755)
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)


def _move(folder: Path, trash: Path) -> None:
    if not folder.is_symlink():
        folder.chmod(0o755)  # to be renamed, a folder must be writable
    trash.mkdir(exist_ok=True)
    folder.rename(trash / f"{folder.name}.{uuid.uuid4().hex[:12]}")


def _allocate(path: Path, file: ManifestFile) -> bool:
    """Whether the file was not there, or not at its size, before."""
    if path.is_symlink() or (path.exists() and path.stat().st_size != file.size):
        path.unlink()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if os.fstat(descriptor).st_size == file.size:
            return False
        try:
            os.posix_fallocate(descriptor, 0, file.size)
        except OSError as error:
            if error.errno not in _NO_FALLOCATE:
                raise
            os.ftruncate(descriptor, file.size)
        return True
    finally:
        os.close(descriptor)


def _statuses(folder: Path) -> Iterator[os.stat_result]:
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                yield (Path(parent) / name).lstat()


def _read_identity(folder: Path) -> Mapping[str, Any] | None:
    try:
        identity = json.loads((folder / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return None
    return identity if isinstance(identity, dict) else None


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
