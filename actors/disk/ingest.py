"""A fill's folder: the files at their full size, the journal of what of them is written, and what it is a fill of.

    <ingest>/manifest.json    whose fill of which manifest it is, of which versions of its files, and since which boot
             journal          see `actors.disk.journal`
             cost.json        what it has moved over the network so far, in all processes; a second old at most
             data/…           what becomes the model
             publishing       only while it becomes one: see `actors.disk.publish`

Everything in it is reached from its handle. An entry there that cannot be ours (a link, a fifo, a file of the wrong
kind) is removed, and the fill starts over from what is left.
"""

from __future__ import annotations

import json
import logging
import math
import os
import stat
import time
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from actors.chunks import Chunk, Ranges
from actors.disk.data_files import allocate, drop_immutable, make_folder, open_file
from actors.disk.data_files import is_immutable as is_immutable
from actors.disk.documents import parsed
from actors.disk.filesystem import clash, disk_errors, folds_case, set_mode
from actors.disk.handles import Folder
from actors.disk.journal import Journal
from actors.disk.marker import MARKER_BYTES, Marker
from actors.disk.publish import FILE_MODE, folders_of, publish, seal
from actors.errors import StoreError
from actors.manifest import Manifest
from actors.transferred import Transferred

LATE_FILE_BYTES = 64 << 10
"""Up to this size a file is made when it is written. What thousands of them need, the headroom covers until then."""
_IDENTITY = "manifest.json"
_COST = "cost.json"
COST_S = 0.1
"""How often it is noted, at most."""
_UNPACKED = "unpacked"
_JOURNAL_BYTES = 256 << 20

_log = logging.getLogger(__name__)


class Ingest:
    """A fill's folder, open until `close`."""

    def __init__(
        self,
        parent: Folder,
        handle: Folder,
        folder: Path,
        manifest: Manifest,
        *,
        continued: bool,
        stale: Container[str] = (),
    ) -> None:
        """Use `open_ingest`. Takes the handle over. The bytes there of `stale` files are of another version."""
        self._parent = parent.again()
        self._handle = handle
        self.folder = folder
        self.data = folder / "data"
        self.manifest = manifest
        self.reused_bytes = 0
        """Of what this process has put into it, what came from other copies on the disk."""
        self.cost: Callable[[], Transferred] | None = None
        """What the fill has moved so far, which is noted beside the journal. May be called by any thread."""
        self._noted, self._noted_at = Transferred(), -math.inf
        self.journal = Journal.open(handle.here / "journal", [file.size for file in manifest.files])
        for index, file in enumerate(manifest.files):
            doubtful = file.path in stale or (not continued and file.vouched is None)
            if doubtful and self.journal.done.pop(index, None) is not None:
                self.journal.forget(index)

    def opened(self) -> Folder:
        """The folder of the data, open. The caller closes it."""
        with disk_errors(f"opening {self.data}"):
            return self._handle.enter("data")

    def allocate(self) -> None:
        """Every file exists at its full size, with the disk space for it where the filesystem can promise that.

        But small ones only if something of them is there already: there may be thousands, and others arrive meanwhile.
        """
        made: set[str] = set()
        with disk_errors(f"making room in {self.data}"), self._handle.enter("data", make=True) as data:
            self._check_names(data)
            for index, file in enumerate(self.manifest.files):
                if self.journal.done.get(index, Ranges()).total < file.size:
                    drop_immutable(data, file.path)
                if file.size <= LATE_FILE_BYTES and index not in self.journal.done:
                    continue
                folder = file.path.rpartition("/")[0]
                if folder not in made:
                    make_folder(data, folder)
                    made.add(folder)
                if allocate(data, file) and self.journal.done.pop(index, None) is not None:
                    self.journal.forget(index)

    def record(self, chunk: Chunk) -> None:
        """The chunk is in the journal, and what the fill has moved is noted, ten times a second. Raises OSError."""
        self.journal.record(chunk)
        self.note_cost(COST_S)

    def note_cost(self, every_s: float = 0.0) -> bool:
        """The next process goes on counting from here. False: it has been done less than `every_s` ago.

        A disk that does not take it costs that number alone.
        """
        if self.cost is None or (cost := self.cost()) == self._noted:
            return True
        now = time.monotonic()
        if now < self._noted_at + every_s:
            return False
        self._noted, self._noted_at = cost, now
        with suppress(OSError):
            self._handle.write(_COST, json.dumps(cost.to_json()).encode())
        return True

    def noted_cost(self) -> Transferred:
        """What earlier processes have moved for it; nothing where that is not known."""
        with suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
            return Transferred.from_json(parsed(self._handle.read(_COST, MARKER_BYTES)))
        return Transferred()

    def folder_of(self, index: int) -> Folder:
        """The folder that the file at `index` belongs in, open. The caller closes it. Raises OSError."""
        above = self.manifest.files[index].path.rpartition("/")[0]
        with self._handle.enter("data", make=True) as data:
            make_folder(data, above)
            return data.within(above)

    @property
    def whole(self) -> set[int]:
        """The files that are there wholly, by index."""
        done = self.journal.done
        return {
            index for index, file in enumerate(self.manifest.files) if index in done and done[index].total == file.size
        }

    def have(self, index: int) -> None:
        """All of the file is there."""
        size = self.manifest.files[index].size
        self.journal.record(Chunk(index, 0, size))
        self.journal.done.setdefault(index, Ranges()).add(0, size)

    def open_file(self, index: int) -> int:
        """A descriptor of the file at `index`, to read and write; but only to read one that is linked elsewhere, too.

        The caller closes it.
        """
        path = self.manifest.files[index].path
        with disk_errors(f"opening {self.data / path}"), self._handle.enter("data", make=True) as data:
            make_folder(data, path.rpartition("/")[0])
            return open_file(data, path)

    def forget_file(self, index: int) -> None:
        """There is no such file any more."""
        path = self.manifest.files[index].path
        folder, _, name = path.rpartition("/")
        with (
            disk_errors(f"removing {self.data / path}"),
            self._handle.enter("data") as data,
            data.within(folder) as parent,
        ):
            parent.remove(name)

    def unpack_into(self) -> Folder:
        """An empty folder beside the data, open. The caller closes it."""
        self.drop_unpacked()
        return self._handle.enter(_UNPACKED, make=True)

    def drop_unpacked(self) -> None:
        """The unpacked files are gone."""
        self._handle.remove(_UNPACKED)

    def take_unpacked(self) -> None:
        """The unpacked files are the data."""
        self._handle.remove("data")
        self._handle.move(_UNPACKED, self._handle, "data")

    def publish(self, marker: Marker, target: Path, *, trash: Path) -> None:
        """`target` is the model, complete. The one before it is in `trash`, and is the caller's to unlink."""
        with disk_errors(f"committing {target}"), Folder.at(target.parent) as parent:

            def move_aside() -> None:
                trash.mkdir(exist_ok=True)
                with Folder.at(trash) as folder:
                    parent.unlock(target.name)
                    parent.move(target.name, folder, os.urandom(6).hex())

            self.publish_in(parent, target.name, marker, move_aside)

    def publish_in(
        self,
        parent: Folder,
        name: str,
        marker: Marker,
        move_aside: Callable[[], None],
        replace: Callable[[Folder], bool] = lambda ingest: False,
    ) -> None:
        """The model `name` in `parent` is this, complete; `move_aside` takes away an old copy. Raises OSError.

        `replace` as in `actors.disk.publish`.

        Once it is there nothing can fail any more: what goes wrong with what is left of the fill is logged.
        """
        late = publish(self._handle, parent, name, marker, move_aside, replace)
        if late is not None:
            _log.warning("a model is there, but its folder was not synced", extra={"model": name, "error": str(late)})
        self._leave()

    def publish_beside(self, marker: Marker, move: Callable[[Folder], None]) -> None:
        """The data is complete and sealed by this marker, and `move` has taken it out of the ingest. Raises OSError."""
        with self._handle.enter("data") as data:
            seal(data, marker)
        move(self._handle)
        self._leave()

    def replace_in(
        self, folder: Folder, move_aside: Callable[[Folder, str], None], manifest: Manifest | None = None
    ) -> None:
        """The files of the ingest, or those of `manifest`, are those of the model in the open folder. Raises OSError.

        Anything in their way is moved aside: a link or a file where a folder should be, or the other way round.
        """
        wanted = manifest or self.manifest
        with self._handle.enter("data") as data:
            for path in sorted(folders_of(wanted) - {""}):
                above, _, name = path.rpartition("/")
                with folder.within(above) as parent:
                    status = parent.status(name)
                    if status is not None and not stat.S_ISDIR(status.st_mode):
                        move_aside(parent, name)
                    parent.unlock(name)
                    parent.enter(name, make=True).close()
            for file in wanted.files:
                above, _, name = file.path.rpartition("/")
                with data.within(above) as source, folder.within(above) as parent:
                    status = parent.status(name)
                    if status is not None and stat.S_ISDIR(status.st_mode):
                        move_aside(parent, name)
                    descriptor = source.open(name)
                    set_mode(descriptor, FILE_MODE)
                    os.close(descriptor)
                    source.move(name, parent, name)
            for path in folders_of(wanted):
                with folder.within(path) as opened:
                    opened.sync()
        self._leave()

    def close(self) -> None:
        self.journal.close()
        self._handle.close()
        self._parent.close()

    def discard(self) -> None:
        """Nothing of it is left, and it is closed. Does nothing once it is."""
        if self._parent.descriptor < 0:
            return
        self.journal.close()
        try:
            with disk_errors(f"removing {self.folder}"):
                self._parent.remove(self.folder.name)
        finally:
            self.close()

    def _leave(self) -> None:
        """The rest of the fill is gone, or will be: the next one finds it, or it is swept up."""
        try:
            self.discard()
        except (OSError, StoreError, MemoryError) as error:
            _log.warning(
                "cannot remove what is left of a fill", extra={"folder": str(self.folder), "error": str(error)}
            )

    def _check_names(self, data: Folder) -> None:
        both = clash(file.path for file in self.manifest.files)
        if both is not None and folds_case(data.descriptor):
            raise StoreError(
                f"{both[0]} and {both[1]} are one name on the filesystem of {self.folder}, which does not tell upper"
                " from lower case: use another filesystem, or exclude one of them",
                reason="NamesCollide",
            )


def open_ingest(folder: Path, manifest: Manifest, owner: str, versions: Mapping[str, str] | None = None) -> Ingest:
    """The ingest in `folder`: what is there, if it is of the same manifest; else a new one.

    `versions` as `Resolved.versions`. Of a file without a digest that was begun in another version nothing is kept:
    nobody would notice that it is of both.
    After a reboot a journal may speak of bytes that never reached the disk. That is found by digest; files that have
    none are fetched again.
    """
    with disk_errors(f"preparing {folder}"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with Folder.at(folder.parent) as parent:
            return open_ingest_in(parent, folder.name, folder, manifest, owner, versions)


def open_ingest_in(
    parent: Folder, name: str, folder: Path, manifest: Manifest, owner: str, versions: Mapping[str, str] | None = None
) -> Ingest:
    """The same, in an open folder. `folder` is what people are told. Raises OSError."""
    now = dict(versions or {})
    identity = {"owner": owner, "manifest": manifest.to_json(), "boot": _boot_id(), "versions": now}
    before = read_identity(parent, name)
    if before is None or before.get("manifest") != json.loads(json.dumps(identity["manifest"])):
        parent.remove(name)
    handle = parent.enter(name, make=True)
    try:
        data, journal = handle.status("data"), handle.status("journal")
        if data is not None and not stat.S_ISDIR(data.st_mode):
            handle.remove("data")
        handle.unlock("data")
        if journal is not None and not _is_journal(journal):
            handle.remove("journal")
        handle.enter("data", make=True).close()
        continued = before is not None and before.get("boot") == identity["boot"]
        earlier = before.get("versions") if before is not None else None
        earlier = earlier if isinstance(earlier, dict) else now
        stale = {path for path in {*now, *earlier} if now.get(path) != earlier.get(path)}
        ingest = Ingest(parent, handle, folder, manifest, continued=continued, stale=stale)
        try:
            handle.write(_IDENTITY, json.dumps(identity).encode())  # once nothing is left of another version
        except BaseException:
            ingest.journal.close()
            raise
        return ingest
    except BaseException:
        handle.close()
        raise


def read_identity(parent: Folder, name: str) -> Mapping[str, Any] | None:
    """The owner and the model of the ingest; None if they cannot be read."""
    try:
        with parent.enter(name) as folder:
            identity = parsed(folder.read(_IDENTITY, MARKER_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return identity if isinstance(identity, dict) else None


def held_bytes(folder: Folder) -> int:
    """The disk space that the files in the open folder take, as far as anybody may look into it.

    Those that are linked elsewhere, too, take none of their own.
    """
    statuses = (status for _, status, _ in folder.walk(strict=False))
    own = (status for status in statuses if not stat.S_ISDIR(status.st_mode) and status.st_nlink < 2)
    return sum(status.st_blocks * 512 for status in own)


def _is_journal(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_size <= _JOURNAL_BYTES


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
