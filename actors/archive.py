"""What an archive holds, instead of the archive: KServe's `.tar`, `.tar.gz`, `.tgz` and `.zip`, unpacked without trust.

    archive, fetched as one file ──► unpacked beside it, hashed on the way ──► takes its place ──► committed as usual

Until it is complete an archive is a file like any other: ranges, resume and the origin's digest are as ever. What is
published, and what the marker lists with a sha256 each, is what it held; so the digest of such a model is known only
once it is unpacked. A file counts as verified in the way the archive was. `include` and `exclude` select what is
unpacked. Which sources are archives: see `Manifest.packed`.

An image is the same with several archives: its layers, one over the other, of which what is below /models is unpacked.

Nothing in an archive is believed. Names are held to the rules of manifests; links and devices are refused, not skipped;
files, bytes and the ratio are bounded; no header or directory makes us read much into memory; a tar must have its end
mark, a gzip stream and every zip entry their checksum. An archive that is refused is forgotten, so that it is asked for
again when the model's next turn comes: then it may be another.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from actors.errors import InsufficientStorage, IntegrityError, LocalModelError, SourceError, SourceUnsupported
from actors.manifest import Digest, Manifest, ManifestFile, ModelSource, check_relative, make_manifest
from actors.origin import wanted
from actors.store import Ingest, disk_errors, remove_tree

MAX_FILES = 100_000
MAX_RATIO = 100
RATIO_FREE_BYTES = 64 << 20
"""So much may come out of any archive, however small: a few zeros compress better than a bomb."""
MAX_READ_BYTES = 32 << 20
"""The most that one read may ask for: the largest directory of a zip, the largest header of a tar."""

IMAGE_FOLDER = "models/"
"""Where KServe's images have the model."""

_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"  # https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts
_BLOCK_BYTES = 1 << 20
_TAR_BLOCK = 512
_ZIP_METHODS = frozenset(
    {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
)  # the others cannot be read a bounded piece at a time

_Members = Iterator[tuple[str, int, IO[bytes]]]
"""Name, size as it is declared, content. The content is read before the next one is asked for."""


def unpack(
    ingest: Ingest, manifest: Manifest, verified: Mapping[str, str], *, room_bytes: int, check: Callable[[], None]
) -> tuple[Manifest, dict[str, str]]:
    """The ingest holds what its archive held; the manifest of that, and how each file was verified.

    At most `room_bytes` are written. `check` is called often, and ends it by raising. Raises SourceUnsupported
    (ArchiveRefused), IntegrityError (ArchiveDamaged), InsufficientStorage, StoreError.
    """
    image = manifest.source.uri.startswith("oci://")
    target = ingest.folder / "unpacked"
    name = manifest.files[0].path
    try:
        with disk_errors(f"unpacking {name}"), _translated(name if not image else manifest.source.uri):
            remove_tree(target)
            target.mkdir()
            limit = max(manifest.total_bytes * MAX_RATIO, RATIO_FREE_BYTES)
            unpacker = _Unpacker(target, manifest.source, limit, room_bytes, check)
            for packed in manifest.files:
                with (ingest.data / packed.path).open("rb") as archive:
                    if packed.path.endswith(".zip"):
                        unpacker.write(_zip(archive))
                    else:
                        below = IMAGE_FOLDER if image else ""
                        unpacker.write(_tar(archive, packed.path.endswith("gz"), limit, below), layer=image)
            unpacked = make_manifest(manifest.source, manifest.revision, unpacker.files.values())
            if unpacked.packed or not unpacked.files:
                raise _Refused("it holds nothing but another archive, or nothing that include/exclude select")
    except LocalModelError as error:
        with disk_errors(f"removing {target}"):
            remove_tree(target)
            if isinstance(error, SourceUnsupported | IntegrityError):
                _forget(ingest)
        raise
    with disk_errors(f"replacing {ingest.data}"):
        _forget(ingest)
        remove_tree(ingest.data)
        target.rename(ingest.data)
    (how,) = set(verified.values())
    return unpacked, dict.fromkeys((file.path for file in unpacked.files), how)


def _forget(ingest: Ingest) -> None:
    for index in range(len(ingest.manifest.files)):
        ingest.journal.forget(index)


class _Refused(Exception):
    """What is wrong with the archive, of which the message says the name."""


class _Unpacker:
    """Writes members below `target`, as long as they stay within the bounds."""

    def __init__(
        self, target: Path, source: ModelSource, limit: int, room_bytes: int, check: Callable[[], None]
    ) -> None:
        self.files: dict[str, ManifestFile] = {}
        self._target = target
        self._source = source
        self._limit = limit
        self._room_bytes = room_bytes
        self._check = check
        self._count = 0
        self._declared = 0
        self._written = 0

    def write(self, members: _Members, *, layer: bool = False) -> None:
        """A `layer` may replace what those below it hold, and take it away."""
        own: set[str] = set()
        for path, size, content in members:
            check_relative(path)
            self._count += 1
            self._declared += size
            if layer and path not in own:
                folder, _, name = path.rpartition("/")
                if name.startswith(_WHITEOUT):
                    gone = folder if name == _OPAQUE else f"{folder}/{name.removeprefix(_WHITEOUT)}".lstrip("/")
                    self._remove(gone, but=own)
                    continue
                self._remove(path, but=own)
                own.add(path)
            if self._count > MAX_FILES or size < 0 or self._declared > self._limit:
                raise _Refused(f"it holds more than {MAX_FILES} files, or {MAX_RATIO} times its size")
            if wanted(self._source, path):
                self._check_room(size)
                self.files[path] = self._write_one(path, content)

    def _remove(self, path: str, *, but: Set[str]) -> None:
        """What lower layers hold at or below `path` is gone; "" is everything."""
        for each in [known for known in self.files if known == path or known.startswith(f"{path}/" if path else "")]:
            if each not in but:
                (self._target / each).unlink()
                del self.files[each]

    def _write_one(self, path: str, content: IO[bytes]) -> ManifestFile:
        target = self._target / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except (FileExistsError, NotADirectoryError) as error:
            raise _Refused(f"it holds {path!r} twice, or as a file and as a folder") from error
        digest, size = hashlib.sha256(), 0
        with open(descriptor, "wb", buffering=0) as file:  # noqa: PTH123  # a descriptor
            while block := content.read(_BLOCK_BYTES):
                self._check()
                self._check_room(len(block))  # what is declared may not be true
                if self._written + len(block) > self._limit:
                    raise _Refused(f"more than {MAX_RATIO} times its size comes out of it")
                digest.update(block)
                file.write(block)
                size += len(block)
                self._written += len(block)
            os.fsync(descriptor)
        return ManifestFile(path, size, Digest(f"sha256:{digest.hexdigest()}"))

    def _check_room(self, more: int) -> None:
        if self._written + more > self._room_bytes:
            raise InsufficientStorage(
                f"what the archive holds needs {self._written + more} bytes and more, "
                f"there is room for {self._room_bytes}"
            )


def _tar(file: IO[bytes], zipped: bool, limit: int, below: str) -> _Members:
    """What is below a folder, named from there."""
    with gzip.open(file) if zipped else file as plain:
        bounded = _Bounded(plain, 2 * limit)
        with tarfile.open(fileobj=bounded, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # documented, if not declared: it keeps them all
                path = member.name.removeprefix("./")
                if member.isdir() or not path.startswith(below):
                    continue
                content = tar.extractfile(member) if member.isreg() else None
                if content is None:
                    raise _Refused(f"{member.name!r} in it is a link or a device")
                yield path.removeprefix(below), member.size, content
            if bounded.last != bytes(_TAR_BLOCK):  # tarfile takes a broken header for the end
                raise tarfile.ReadError("it breaks off")
            while bounded.read(_BLOCK_BYTES):  # gzip's own checksum comes last
                pass


def _zip(file: IO[bytes]) -> _Members:
    with zipfile.ZipFile(_Bounded(file)) as archive:
        for entry in archive.infolist():
            if entry.is_dir():
                continue
            if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
                raise _Refused(f"{entry.filename!r} in it is a link or a device")
            if entry.flag_bits & 1 or entry.compress_type not in _ZIP_METHODS:
                raise _Refused(f"{entry.filename!r} in it is encrypted, or compressed in another way than deflate")
            with archive.open(entry) as content:
                yield entry.filename.removeprefix("./"), entry.file_size, content


class _Bounded(io.RawIOBase):
    """A stream that neither gives much at once nor, with a `limit`, goes on for ever. `last`: what it gave last."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, limit: int | None = None) -> None:
        self._stream = stream
        self._limit = limit
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        if size > MAX_READ_BYTES:
            raise _Refused(f"a header in it is larger than {MAX_READ_BYTES} bytes")
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
            raise _Refused(f"it goes on after {MAX_RATIO} times its size")


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """Whatever is raised about an archive inside becomes the error that it stands for."""
    try:
        yield
    except (_Refused, SourceError) as error:
        raise SourceUnsupported(f"{name} is not unpacked: {error}", reason="ArchiveRefused") from error
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise IntegrityError(f"{name} cannot be unpacked: {error}", reason="ArchiveDamaged") from error
