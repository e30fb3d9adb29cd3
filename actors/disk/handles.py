"""Folders that are open. Files below one are reached from its handle, name by name, and never through a link.

A disk is shared with pods that may run as our user: between two looks at a path, any part of it may have become a link
to elsewhere. From a handle there is no elsewhere: each name is opened in the folder that is open already, with
O_NOFOLLOW, and a name that turns out to be a link, a device or a fifo is refused, not followed and not waited for.

    Folder.at(path)     the one place where links are followed: what an operator, or the user, named
    folder.enter("a/b") the folder below, component by component
    folder.open("a/f")  a regular file below
    folder.remove("a")  it is gone, whatever it was; nothing outside, and nothing behind a mount, was touched
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from actors.disk import deletion
from actors.disk.filesystem import set_mode, sync_folder

FOLDER_MODE = 0o755
"""Pods read as any user; the owner may delete with `rm -rf`."""

DEEPEST = 200
"""Folders within each other. No listing of a source has so many: see `actors.sources.listings`."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_EXCHANGE = 2
"""RENAME_EXCHANGE of renameat2(2)."""
_NO_NAMES = frozenset({"", ".", ".."})
NOT_A_FOLDER = frozenset({errno.ENOTDIR, errno.ELOOP})


class Folder:
    """An open folder. Every method raises OSError as the disk does. `path` is for people."""

    def __init__(self, descriptor: int, path: Path) -> None:
        """Takes the descriptor over."""
        self.descriptor = descriptor
        self.path = path

    @classmethod
    def at(cls, path: Path) -> Self:
        return cls(os.open(path, _FOLDER), path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def again(self) -> Folder:
        """The same folder, open once more. The caller closes it."""
        return Folder(os.dup(self.descriptor), self.path)

    def close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    @property
    def here(self) -> Path:
        """This very folder, by a path that is valid in this process while it is open, whatever becomes of its name."""
        return Path(f"/proc/self/fd/{self.descriptor}")

    # --- what is in it ---

    def names(self) -> list[str]:
        """Names that are not UTF-8 come with surrogates, and can be used like the others."""
        with os.scandir(self.descriptor) as entries:
            return sorted(entry.name for entry in entries)

    def status(self, name: str) -> os.stat_result | None:
        """Of what has this name, a link itself; None: nothing has."""
        try:
            return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def lstat(self, path: str) -> os.stat_result:
        """Of what is at a path below, with no link on the way."""
        folder, name = _split(path)
        if not folder:
            return os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        with self.enter(folder) as parent:
            return os.stat(name, dir_fd=parent.descriptor, follow_symlinks=False)

    def enter(self, path: str, *, make: bool = False) -> Folder:
        """The folder at a path below; with `make` it is there afterwards, with FOLDER_MODE whatever the umask.

        ENOTDIR or ELOOP: something on the way is no folder.
        """
        parts = path.split("/")
        if any(part in _NO_NAMES for part in parts):
            raise OSError(errno.EINVAL, f"{path!r} leaves its folder")
        here = Folder(os.dup(self.descriptor), self.path)
        try:
            for part in parts:
                if make:
                    here._make(part)
                below = Folder(os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=here.descriptor), here.path / part)
                here.close()
                here = below
        except BaseException:
            here.close()
            raise
        return here

    def within(self, path: str, *, make: bool = False) -> Folder:
        """As `enter`; and the same folder once more for an empty path."""
        return self.enter(path, make=make) if path else self.again()

    def open(self, path: str, flags: int = os.O_RDONLY, mode: int = 0o644) -> int:
        """A descriptor of the regular file at a path below. EINVAL: it is something else. Never waits for anybody."""
        folder, name = _split(path)
        if folder:
            with self.enter(folder) as parent:
                return parent.open(name, flags, mode)
        status = self.status(name)  # a device may do something when it is opened
        if status is not None and not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(self.path / name))
        descriptor = os.open(name, flags | _FILE, mode, dir_fd=self.descriptor)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EINVAL, "is not a regular file", str(self.path / name))
        return descriptor

    def read(self, path: str, most: int) -> bytes:
        """The content of a small regular file. EFBIG: it has more than `most` bytes."""
        descriptor = self.open(path)
        with open(descriptor, "rb") as file:  # noqa: PTH123  # a descriptor
            content = file.read(most + 1)
        if len(content) > most:
            raise OSError(errno.EFBIG, f"has more than {most} bytes", str(self.path / path))
        return content

    def walk(self, *, but: str = "", strict: bool = True) -> Generator[tuple[str, os.stat_result, bool], None, None]:
        """Everything below but what `but` at the top names: its path, what it is, whether what is in it comes next.

        It does not of what is no folder, of one that nobody may look into, nor of one that lies DEEPEST below. Entries
        that have just gone are left out. Other errors are raised if `strict`. As many folders are open as lie within
        each other: to reach each by its path would take time with the square of their depth, and anybody can make a
        deep one.
        """
        stack = [(self.again(), "", iter(self.names()))]
        try:
            while stack:
                folder, above, names = stack[-1]
                name = next(names, None)
                if name is None:
                    stack.pop()[0].close()
                    continue
                status = folder.status(name) if above or name != but else None
                if status is None:
                    continue
                inner: Folder | None = None
                if stat.S_ISDIR(status.st_mode) and len(stack) < DEEPEST:
                    try:
                        inner = folder.enter(name)
                        stack.append((inner, f"{above}{name}/", iter(())))
                        stack[-1] = (inner, f"{above}{name}/", iter(inner.names()))
                    except OSError as error:
                        if error.errno in (errno.ENOENT, *NOT_A_FOLDER):
                            continue
                        if strict and error.errno != errno.EACCES:
                            raise
                yield above + name, status, inner is not None
        finally:
            for folder, _, _ in stack:
                folder.close()

    # --- changing it ---

    def write(self, name: str, content: bytes, *, mode: int = 0o644, sync: bool = False) -> None:
        """The file has this content, by one rename: before, it has what it had."""
        staged = f".{os.urandom(6).hex()}.new"
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE, 0o600, dir_fd=self.descriptor)
        try:
            with open(descriptor, "wb") as file:  # noqa: PTH123  # a descriptor
                file.write(content)
                file.flush()
                set_mode(descriptor, mode)
                if sync:
                    os.fsync(descriptor)
            self.move(staged, self, name)
        except BaseException:
            with suppress(OSError):
                os.unlink(staged, dir_fd=self.descriptor)
            raise

    def move(self, name: str, to: Folder, new: str) -> None:
        """A link is moved itself. In place of a file there, but of no folder that holds anything."""
        os.rename(name, new, src_dir_fd=self.descriptor, dst_dir_fd=to.descriptor)

    def exchange(self, name: str, other: Folder, its: str) -> bool:
        """Both names have changed places, in one step; False: the kernel or the filesystem cannot. Raises OSError."""
        import ctypes  # here, because the first byte need not wait for it

        call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        if call is None:
            return False
        if call(self.descriptor, os.fsencode(name), other.descriptor, os.fsencode(its), _EXCHANGE) == 0:
            return True
        number = ctypes.get_errno()
        if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
            return False
        raise OSError(number, os.strerror(number), name)

    def unlock(self, name: str) -> None:
        """What the folder with this name holds may be changed by us, who own it: renaming it takes that, too."""
        status = self.status(name)
        if status is None or not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o700 == 0o700:
            return
        descriptor = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.descriptor)
        try:
            with suppress(OSError):  # what comes next says what is wrong
                os.chmod(f"/proc/self/fd/{descriptor}", FOLDER_MODE)  # noqa: PTH101  # fchmod takes no O_PATH
        finally:
            os.close(descriptor)

    def sync(self) -> None:
        sync_folder(self.descriptor)

    def set_mode(self, mode: int) -> None:
        set_mode(self.descriptor, mode)

    def remove(self, name: str) -> None:
        """Nothing has this name any more: see `actors.disk.deletion`."""
        deletion.remove(self, name)

    def _make(self, name: str) -> None:
        try:
            os.mkdir(name, FOLDER_MODE, dir_fd=self.descriptor)
        except FileExistsError:
            return
        with self.enter(name) as made:
            made.set_mode(FOLDER_MODE)


def _split(path: str) -> tuple[str, str]:
    """The folder, "" if it is in none, and the name in it. Raises EINVAL for what names nothing below."""
    folder, slash, name = path.rpartition("/")
    if name in _NO_NAMES or (slash and not folder):
        raise OSError(errno.EINVAL, f"{path!r} leaves its folder")
    return folder, name


def remove_tree(path: Path) -> None:
    """`path` is gone, read-only folders and all; also if another process removes it at the same time."""
    with suppress(FileNotFoundError), Folder.at(path.parent) as parent:
        parent.remove(path.name)
