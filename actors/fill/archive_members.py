"""What an archive lists, member by member: a tar or a zip, read forwards, a bounded piece at a time.

    tar    files, sparse ones too; hard and symbolic links; GNU's and pax's long names; with or without an end mark;
           compressed, whatever its name says: see `actors.fill.decompress`
    zip    files, stored or deflated; symbolic links; names with backslashes, as Windows writes them; zip64

Names are as GNU tar makes them on extraction: without `.` and empty parts, and without a leading `/`. What cannot be a
name below a folder, what is neither a file nor a link, and what cannot be decompressed a piece at a time is refused,
by name. A tar that ends in the middle of a member or of a header is damaged; so is a compressed stream or a zip entry
whose checksum is wrong. Whether a link leads anywhere is for `actors.fill.unpack` to say.
"""

from __future__ import annotations

import io
import os
import re
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import IO

from actors.fill.decompress import decompressed

MAX_READ_BYTES = 32 << 20
"""The most that one read may ask for: the largest directory of a zip, the largest header of a tar."""
MAX_PATH_BYTES = 4096
MAX_NAME_BYTES = 255
"""Of the whole path, and of each of its parts: what Linux takes."""

_TAR_BLOCK = 512
_VOLUME_LABEL, _DUMP_DIRECTORY, _CONTINUATION = b"V", b"D", b"M"
_ZIP_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
"""The others cannot be read a bounded piece at a time."""
_ZIP_NAMES = {9: "deflate64", zipfile.ZIP_BZIP2: "bzip2", zipfile.ZIP_LZMA: "LZMA", 93: "Zstandard", 95: "xz"}
_FORBIDDEN = re.compile(r"[\0\ud800-\udfff]")


class RefusedArchive(Exception):
    """The archive is refused; the message names it, and says what is wrong with it."""


class Kind(Enum):
    FILE = auto()
    HARD_LINK = auto()
    """Another name of a member that came before: `target` is its path."""
    SYMBOLIC_LINK = auto()
    """`target` as it is written: from the folder of the link, or from the top if it is absolute."""


@dataclass(frozen=True, slots=True)
class Member:
    """`content` is read before the next member is asked for. `path` and the path of a hard link are safe."""

    path: str
    kind: Kind
    size: int
    content: IO[bytes]
    target: str = ""


def tar_members(file: IO[bytes], *, limit_bytes: int, below: str = "") -> Iterator[Member]:
    """Folders are left out, and what is not `below` one, whatever that is.

    Raises RefusedArchive, tarfile's errors and those of `actors.fill.decompress`.
    """
    with decompressed(file) as plain:
        bounded = Bounded(plain, limit_bytes)
        with tarfile.open(fileobj=bounded, mode="r:") as tar:
            while (entry := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # documented, if not declared: it keeps them all
                if _plain(entry.name).startswith(below) and (member := _of_tar(tar, entry)) is not None:
                    yield member
            cut = bounded.last == b"" and getattr(plain, "followed", False)  # it may have been a damaged part of it
            if cut or bounded.last not in (bytes(_TAR_BLOCK), b""):  # tarfile takes a broken header for the end
                raise tarfile.ReadError("it breaks off")
            while bounded.read(1 << 20):  # the checksum of the compression comes last
                pass


def _of_tar(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> Member | None:
    if entry.isdir() or entry.type in (_VOLUME_LABEL, _DUMP_DIRECTORY):
        return None
    path = safe_path(entry.name)
    if entry.islnk():
        return Member(path, Kind.HARD_LINK, 0, io.BytesIO(), safe_path(entry.linkname))
    if entry.issym():
        return Member(path, Kind.SYMBOLIC_LINK, 0, io.BytesIO(), _target(path, entry.linkname))
    if entry.ischr() or entry.isblk() or entry.isfifo():
        raise RefusedArchive(f"{entry.name!r} in it is a {'pipe' if entry.isfifo() else 'device'}")
    content = tar.extractfile(entry) if entry.type != _CONTINUATION else None
    if content is None:
        raise RefusedArchive(f"{entry.name!r} in it is the rest of a file that begins in another volume")
    return Member(path, Kind.FILE, entry.size, content)


def zip_members(file: IO[bytes]) -> Iterator[Member]:
    """Folders are left out. Raises RefusedArchive, zipfile's and zlib's errors, EOFError."""
    with zipfile.ZipFile(Bounded(file)) as archive:
        for entry in archive.infolist():
            name, kind = entry.filename.replace("\\", "/"), stat.S_IFMT(entry.external_attr >> 16)
            if name.endswith("/") or kind == stat.S_IFDIR:
                continue
            path = safe_path(name)
            if kind not in (0, stat.S_IFREG, stat.S_IFLNK):
                raise RefusedArchive(f"{entry.filename!r} in it is neither a file nor a link")
            if entry.volume:
                raise RefusedArchive("it is one of several parts: join them there (`zip -s 0 --out one.zip`)")
            if entry.flag_bits & 1:
                raise RefusedArchive(f"{entry.filename!r} in it is encrypted")
            if entry.compress_type not in _ZIP_METHODS:
                method = _ZIP_NAMES.get(entry.compress_type, f"method {entry.compress_type}")
                raise RefusedArchive(f"{entry.filename!r} in it is compressed with {method}: only deflate is read")
            with archive.open(entry) as content:
                if kind == stat.S_IFLNK:
                    target = content.read(MAX_PATH_BYTES + 1).decode(errors="surrogateescape")
                    yield Member(path, Kind.SYMBOLIC_LINK, 0, io.BytesIO(), _target(path, target))
                else:
                    yield Member(path, Kind.FILE, entry.file_size, content)


def safe_path(name: str) -> str:
    """`name` from the top of the archive, `/`-separated. Raises RefusedArchive if it leaves it or cannot be a path."""
    path = _plain(name)
    parts = path.split("/")
    if not path or ".." in parts or _FORBIDDEN.search(path) or "\\" in path:
        raise RefusedArchive(f"refusing the unsafe file name {name[:MAX_PATH_BYTES]!r}")
    if len(path.encode()) > MAX_PATH_BYTES or max(len(part.encode()) for part in parts) > MAX_NAME_BYTES:
        raise RefusedArchive(f"the file name {name[:80]!r}… in it is longer than a disk takes")
    return path


def _plain(name: str) -> str:
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _target(path: str, target: str) -> str:
    if not target or _FORBIDDEN.search(target) or len(target.encode()) > MAX_PATH_BYTES:
        raise RefusedArchive(f"{path!r} in it is a link to something that cannot be a path")
    return target


class Bounded(io.RawIOBase):
    """A stream that neither gives much at once nor, with a `limit`, goes on for ever. `last`: what it gave last."""

    def __init__(self, stream: IO[bytes], limit: int | None = None) -> None:
        self._stream = stream
        self._limit = limit
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        if size > MAX_READ_BYTES:
            raise RefusedArchive(f"a header in it is larger than {MAX_READ_BYTES} bytes")
        self.last = self._stream.read(MAX_READ_BYTES if size < 0 else size)
        self._check()
        return self.last

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position = self._stream.seek(offset, whence)
        self._check()
        return position

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._stream.tell()

    def _check(self) -> None:
        if self._limit is not None and self._stream.tell() > self._limit:
            raise RefusedArchive("it goes on after what its size allows for")
