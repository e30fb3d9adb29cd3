"""What a new copy needs and other copies hold already: it is put into an ingest without the network.

    a copy's file of the wanted digest and size ──► hard link ─┐
                                                ──► reflink   ─┼──► done in the ingest, hashed there like all others
                                                ──► copy      ─┘

A hard link is made where the file is ours, nobody may write to it, and the filesystem has links: committed files are
never written again, and a repair puts another file in their place. The ingest never writes through a link either (see
`Ingest.open_file`). A file that others may write to is cloned where the filesystem can, and copied where it cannot.

A name proves nothing: what was put into the ingest is read like everything else before the model is committed.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from actors.chunks import Ranges
from actors.disk.filesystem import FULL, disk_errors, reserve
from actors.disk.handles import Folder
from actors.disk.ingest import LATE_FILE_BYTES, Ingest
from actors.manifest import Manifest

BLOCK_BYTES = 8 << 20
_FICLONE = 0x40049409
"""https://man7.org/linux/man-pages/man2/ioctl_ficlonerange.2.html"""
_FIDEDUPERANGE, _DEDUPE_RANGE = 0xC0189436, "=QQHHIqQQiI"
"""https://man7.org/linux/man-pages/man2/ioctl_fideduperange.2.html"""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Donor:
    """A copy on the same disk. `opened` gives its folder and raises OSError; files in `damaged` are not used."""

    name: str
    manifest: Manifest
    opened: Callable[[], Folder]
    damaged: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class Offer:
    """The file at `path` of the donor has the digest and the size that are wanted."""

    donor: Donor
    path: str


def offers(manifest: Manifest, donors: Iterable[Donor]) -> dict[int, tuple[Offer, ...]]:
    """By index of the wanted file, where it is to be had, in the order of the donors. Pure.

    A file without a digest is known by nothing that would tell it from another; what is in an archive has other
    digests than the archive.
    """
    if manifest.packed:
        return {}
    found: dict[int, tuple[Offer, ...]] = {}
    wanted = manifest.by_content
    for donor in donors:
        for content in wanted.keys() & donor.manifest.by_content.keys():
            paths = (donor.manifest.files[index].path for index in donor.manifest.by_content[content])
            path = next((each for each in paths if each not in donor.damaged), None)
            if path is not None:
                for index in wanted[content]:
                    found[index] = (*found.get(index, ()), Offer(donor, path))
    return found


def linkable_bytes(manifest: Manifest, offered: Mapping[int, Sequence[Offer]]) -> int:
    """How many of the offered bytes take no space, because a link will do. Small files are not counted.

    Looks at the files, and reads none.
    """
    folders: dict[int, Folder | None] = {}
    total = 0
    try:
        for index, each in offered.items():
            size = manifest.files[index].size
            found = (_is_linkable(_opened(folders, offer), offer.path, size) for offer in each)
            total += size if size > LATE_FILE_BYTES and any(found) else 0
    finally:
        for folder in folders.values():
            if folder is not None:
                folder.close()
    return total


def take(ingest: Ingest, offered: Mapping[int, Sequence[Offer]], check: Callable[[], None]) -> None:
    """The files offered are in the ingest, as far as they can be had. `check` may raise between two steps.

    Before `Ingest.allocate`. A donor that fails is passed over; a disk that is full is not.
    """
    folders: dict[int, Folder | None] = {}
    try:
        for index in sorted(offered):
            file = ingest.manifest.files[index]
            if ingest.journal.done.get(index, Ranges()).total == file.size:
                continue
            for offer in offered[index]:
                check()
                folder = _opened(folders, offer)
                if folder is not None and _take(ingest, index, folder, offer.path, check):
                    ingest.reused_bytes += file.size
                    break
    finally:
        for folder in folders.values():
            if folder is not None:
                folder.close()


def _opened(folders: dict[int, Folder | None], offer: Offer) -> Folder | None:
    """The donor's folder, opened once."""
    known = id(offer.donor)
    if known not in folders:
        try:
            folders[known] = offer.donor.opened()
        except OSError as error:
            folders[known] = None
            _log.info("a copy cannot be used again", extra={"copy": offer.donor.name, "error": str(error)})
    return folders[known]


def _take(ingest: Ingest, index: int, folder: Folder, path: str, check: Callable[[], None]) -> bool:
    file = ingest.manifest.files[index]
    above, _, name = path.rpartition("/")
    new = file.path.rpartition("/")[2]
    with disk_errors(f"making {ingest.data / file.path}"), ingest.folder_of(index) as target:
        target.remove(new)
        try:
            source = folder.within(above)
        except OSError:
            return False
        with source:
            if not _linked(source, name, target, new, file.size) and not _copied(
                source, name, target, new, file.size, check
            ):
                return False
        ingest.have(index)
    return True


def _is_linkable(folder: Folder | None, path: str, size: int) -> bool:
    try:
        return folder is not None and _is_immutable(folder.lstat(path), size)
    except OSError:
        return False


def _is_immutable(status: os.stat_result, size: int) -> bool:
    """Whether it is a file of ours that nobody writes to any more."""
    whole = stat.S_ISREG(status.st_mode) and status.st_size == size
    return whole and status.st_uid == os.geteuid() and not status.st_mode & 0o222


def _linked(source: Folder, name: str, target: Folder, new: str, size: int) -> bool:
    """Whether it is the same file under another name. A file that was swapped meanwhile is not taken."""
    status = source.status(name)
    if status is None or not _is_immutable(status, size):
        return False
    try:
        os.link(name, new, src_dir_fd=source.descriptor, dst_dir_fd=target.descriptor, follow_symlinks=False)
    except OSError:
        return False  # another filesystem, one without links, or as many as it takes
    made = target.status(new)
    if made is not None and _is_immutable(made, size):
        return True
    target.remove(new)
    return False


def _copied(source: Folder, name: str, target: Folder, new: str, size: int, check: Callable[[], None]) -> bool:
    """Whether its bytes are in a file of our own. Raises OSError when the disk is full."""
    try:
        taken = source.open(name)
    except OSError:
        return False
    try:
        made = target.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            whole = os.fstat(taken).st_size == size and (_cloned(taken, made) or _filled(taken, made, size, check))
        finally:
            os.close(made)
    except OSError as error:
        target.remove(new)
        if error.errno in FULL:
            raise
        return False
    except BaseException:
        target.remove(new)
        raise
    finally:
        os.close(taken)
    if not whole:
        target.remove(new)
    return whole


def _cloned(taken: int, made: int) -> bool:
    """Whether both share their blocks now, until one of them is written to."""
    try:
        fcntl.ioctl(made, _FICLONE, taken)
    except OSError:
        return False
    return True


def deduplicate(taken: int, start: int, made: int, position: int, size: int) -> int:
    """How many of these bytes of two open files share their blocks now: all if they are the same, else none.

    The kernel compares them. Raises OSError where the filesystem cannot share, or where it does not begin a block.
    """
    request = struct.pack(_DEDUPE_RANGE, start, size, 1, 0, 0, made, position, 0, 0, 0)
    *_, shared, status, _ = struct.unpack(_DEDUPE_RANGE, fcntl.ioctl(taken, _FIDEDUPERANGE, request))
    if status < 0:
        raise OSError(-status, os.strerror(-status))
    return 0 if status else shared


def _filled(taken: int, made: int, size: int, check: Callable[[], None]) -> bool:
    reserve(made, size)
    return copy_range(taken, 0, made, 0, size, check)


def copy_range(
    taken: int, start: int, made: int, position: int, size: int, check: Callable[[], None] = lambda: None
) -> bool:
    """Whether so many bytes from `start` of one open file are in the other; not if the one became shorter.

    They share their blocks afterwards where the filesystem can do that and both positions are multiples of a block.
    """
    while size:
        check()
        try:
            count = os.copy_file_range(taken, made, min(BLOCK_BYTES, size), start, position)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP):
                raise
            count = os.pwrite(made, os.pread(taken, min(BLOCK_BYTES, size), start), position)
        if not count:
            return False
        start, position, size = start + count, position + count, size - count
    return True
