"""What filesystems do differently, and what of it is no reason to fail.

    always there     files, folders, rename within one filesystem, fsync of a file
    often missing    flock (NFS without a lock daemon, some FUSE), fsync of a folder (CIFS, FUSE), chmod (vfat, CIFS),
                     fallocate (NFS 3, ext3, FUSE), names that differ only in case (vfat, CIFS, casefolded ext4)

Where something is missing, what it would have given is given up, and nothing else. Everything else that a disk refuses
becomes a StoreError, or an InsufficientStorage when it is full.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from actors.errors import InsufficientStorage, StoreError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
OUR_OWN = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR})
"""What this process lacks: no fault of the disk, and of no file on it."""
_REASONS = {
    errno.EROFS: "DiskReadOnly",
    errno.EACCES: "DiskPermissionDenied",
    errno.EPERM: "DiskPermissionDenied",
    errno.EIO: "DiskFailing",
}
_MISSING = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY})
NO_FALLOCATE = _MISSING | {errno.EBADF, errno.EPERM}
NO_FOLDER_SYNC = _MISSING | {errno.EBADF, errno.EACCES, errno.EROFS}
NO_CHMOD = _MISSING | {errno.EPERM, errno.EACCES, errno.EROFS}
NO_LOCKS = _MISSING | {errno.ENOLCK, errno.EBADF, errno.EPERM, errno.EACCES, errno.EIO}


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """An OSError of the disk becomes ours. Nothing that talks to a network belongs inside."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in FULL:
            raise InsufficientStorage(f"the disk is full: {what}: {reason}") from error
        if error.errno == errno.EFBIG:
            raise StoreError(
                f"{what}: {reason}: the filesystem, or a limit of this process (`ulimit -f`), takes no file of this"
                " size: use another filesystem, or raise the limit",
                reason="FileTooLarge",
            ) from error
        raise StoreError(f"{what}: {reason}", reason=_REASONS.get(error.errno or 0)) from error


@contextmanager
def suppress_full() -> Iterator[None]:
    """A write inside that the disk has no room for is left undone."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise


def reserve(descriptor: int, size: int) -> None:
    """The file has this size, with the disk space for it where the filesystem can promise that.

    A file that does not fit has taken nothing when this raises: on tmpfs and others part of it would stay allocated.
    """
    if not size:
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in NO_FALLOCATE:
            os.ftruncate(descriptor, 0)
            raise
        os.ftruncate(descriptor, size)


def sync_folder(descriptor: int) -> None:
    """The names in an open folder are on the disk, where the filesystem can promise that."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise


def set_mode(descriptor: int, mode: int) -> None:
    """The mode is this, whatever the umask, where the filesystem has modes and they are ours to set."""
    try:
        os.fchmod(descriptor, mode)
    except OSError as error:
        if error.errno not in NO_CHMOD:
            raise


def lock(descriptor: int) -> bool:
    """Nobody else holds the lock on this open folder now; False: this filesystem has no locks.

    Raises BlockingIOError while another process holds it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise
    return True


def clash(paths: Iterable[str]) -> tuple[str, str] | None:
    """Two paths that are one on a filesystem that does not tell upper from lower case; None if there are none."""
    seen: dict[str, str] = {}
    for path in paths:
        parts = path.split("/")
        for count in range(1, len(parts) + 1):
            each = "/".join(parts[:count])
            other = seen.setdefault(each.casefold(), each)
            if other != each:
                return other, each
    return None


def folds_case(folder: int) -> bool:
    """Whether the open folder does not tell upper from lower case."""
    name = ".localmodel-case"
    os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder))
    try:
        os.stat(name.upper(), dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    finally:
        os.unlink(name, dir_fd=folder)
    return True
