"""What an archive holds, instead of the archive: KServe's tars, compressed or not, and zips, unpacked without trust.

    archive, fetched as one file ──► unpacked beside it, hashed on the way ──► takes its place ──► committed as usual

Until it is complete an archive is a file like any other: ranges, resume and the origin's digest are as ever. The files
that it held are published, and listed in the marker with a sha256 each; so the digest of such a model is known only
once it is unpacked. A file counts as verified in the way the archive was. `include` and `exclude` select what is
unpacked. Which sources are archives: see `Manifest.packed`.

An image is the same with several archives: its layers, one over the other, of which what is below /models is unpacked.

    a member twice       the last one wins, as in tar
    a link within        is unpacked as what it leads to: the same bytes under a second name, never as a link; so is
                         every file below a link to a folder. A member below such a link is one below that folder
    a link elsewhere     refused, by name: also one to nothing, in a circle, or to what include/exclude leave out
    `.localmodel/`       left out: it is what we wrote beside a copy, and this one gets its own

Nothing in an archive is believed. What its members may be, see `fill.archive_members`; how many there are, their bytes
and their ratio to the archive are bounded. An archive that is refused is forgotten, so that it is asked for again when
the model's next turn comes: then it may be another.
"""

from __future__ import annotations

import errno
import hashlib
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice, takewhile
from typing import IO

from actors.disk.filesystem import disk_errors
from actors.disk.handles import Folder
from actors.disk.ingest import Ingest
from actors.errors import InsufficientStorage, IntegrityError, LocalModelError, SourceError, SourceUnsupported
from actors.fill.archive_members import Kind, Member, RefusedArchive, tar_members, zip_members
from actors.manifest import Digest, Manifest, ManifestFile, ModelSource, is_image, is_ours, make_manifest
from actors.sizes import say_bytes
from actors.sources.selection import wanted

MAX_FILES = 100_000
MAX_RATIO = 100
RATIO_FREE_BYTES = 64 << 20
"""So much may come out of any archive, however small: a few zeros compress better than a bomb."""
MAX_LINKS_FOLLOWED = 40
"""On the way to one file: what Linux follows."""

IMAGE_FOLDER = "models/"
"""Where KServe's images have the model."""

_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError)
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"  # https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts
_BLOCK_BYTES = 1 << 20
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})


def unpack(
    ingest: Ingest, manifest: Manifest, verified: Mapping[str, str], *, room_bytes: int, check: Callable[[], None]
) -> tuple[Manifest, dict[str, str]]:
    """The ingest holds what its archive held; the manifest of that, and how each file was verified.

    At most `room_bytes` are written. `check` is called often, and ends it by raising. Raises SourceUnsupported
    (ArchiveRefused), IntegrityError (ArchiveDamaged), InsufficientStorage, StoreError.
    """
    layers = manifest.source.uri.startswith("oci://")
    image = layers and is_image(manifest.files)
    name = manifest.files[0].path
    try:
        with disk_errors(f"unpacking {name}"), _translated(name if not layers else manifest.source.uri):
            limit = max(manifest.total_bytes * MAX_RATIO, RATIO_FREE_BYTES)
            with ingest.unpack_into() as target, ingest.opened() as data:
                unpacker = _Unpacker(target, manifest.source, limit, room_bytes, check)
                for packed in manifest.files:
                    with open(data.open(packed.path), "rb") as archive:  # noqa: PTH123  # a descriptor
                        if packed.path.endswith(".zip"):
                            unpacker.write(zip_members(archive))
                        else:
                            below = IMAGE_FOLDER if image else ""
                            members = tar_members(archive, below=below, limit_bytes=2 * limit)
                            unpacker.write(_below(members, below) if image else members, layer=layers)
                unpacker.follow_links()
            unpacked = make_manifest(manifest.source, manifest.revision, unpacker.files.values())
            if unpacked.packed or not unpacked.files:
                where = f" below /{IMAGE_FOLDER}" if image else ""
                raise RefusedArchive(
                    f"it holds nothing{where} but another archive, or nothing that include/exclude select"
                )
    except LocalModelError as error:
        with disk_errors(f"removing what {name} held"):
            ingest.drop_unpacked()
            if isinstance(error, SourceUnsupported | IntegrityError):
                _forget(ingest)
        raise
    with disk_errors(f"replacing {ingest.data}"):
        _forget(ingest)
        ingest.take_unpacked()
    (how,) = set(verified.values())
    return unpacked, dict.fromkeys((file.path for file in unpacked.files), how)


def _forget(ingest: Ingest) -> None:
    for index in range(len(ingest.manifest.files)):
        ingest.journal.forget(index)


def _below(members: Iterable[Member], folder: str) -> Iterator[Member]:
    """Members below `folder`, named from there; so is what they link to by a path from the top."""
    for member in members:
        target = member.target.lstrip("/") if member.target.startswith("/") else member.target
        absolute = target != member.target or member.kind is Kind.HARD_LINK
        if absolute and not f"{target}/".startswith(folder):
            raise RefusedArchive(f"{member.path!r} in it is a link to {member.target!r}, which is not below /{folder}")
        if absolute and member.kind is Kind.SYMBOLIC_LINK:  # from the top, where it is unpacked
            target = "../" * (member.path.count("/") - folder.count("/")) + (target.removeprefix(folder) or ".")
        elif absolute:
            target = target.removeprefix(folder)
        yield replace(member, path=member.path.removeprefix(folder), target=target)


class _Unpacker:
    """Writes members below `target`, as long as they stay within the bounds."""

    def __init__(
        self, target: Folder, source: ModelSource, limit: int, room_bytes: int, check: Callable[[], None]
    ) -> None:
        self.files: dict[str, ManifestFile] = {}
        self._links: dict[str, str] = {}
        self._target = target
        self._source = source
        self._limit = limit
        self._room_bytes = room_bytes
        self._check = check
        self._count = 0
        self._declared = 0
        self._written = 0
        self._freed = 0

    def write(self, members: Iterable[Member], *, layer: bool = False) -> None:
        """A `layer` may replace what those below it hold, and take it away."""
        own: set[str] = set()
        for member in members:
            self._check()
            self._bound(member.size)
            path = self._behind_links(member.path)
            if layer and path not in own:
                folder, _, name = path.rpartition("/")
                if name.startswith(_WHITEOUT):
                    gone = folder if name == _OPAQUE else f"{folder}/{name.removeprefix(_WHITEOUT)}".lstrip("/")
                    self._remove(gone, but=own)
                    continue
                if self._links or self._exists(path):
                    self._remove(path, but=own)
                own.add(path)
            self._forget(path)
            if is_ours(path):
                continue
            if member.kind is Kind.SYMBOLIC_LINK:
                self._links[path] = member.target
            elif wanted(self._source, path):
                if member.kind is Kind.FILE:
                    self._check_room(member.size)
                    self.files[path] = self._write_one(path, member.content)
                else:
                    self._repeat(self._behind_links(member.target), path)

    def follow_links(self) -> None:
        """The targets of symbolic links are there under their names, too. Once nothing more is written."""
        found: dict[str, str] = {}
        names = sorted(self.files), sorted(self._links)
        for link in names[1]:
            self._follow(link, link, found, names, depth=0)
        for path, original in sorted(found.items()):
            self._check()
            self._repeat(original, path)

    def _follow(
        self, path: str, link: str, found: dict[str, str], names: tuple[list[str], list[str]], depth: int
    ) -> None:
        """`path` is, or stands for, the link `link`: what it names is `found`, by the path that it has from there.

        `names` are all files and all links, sorted.
        """
        self._bound(0)
        wide = wanted(self._source, path)
        original = self._walk(link)
        if original in self.files:
            if wide:
                self._bound(self.files[original].size)
                found[path] = original
            return
        below = f"{original}/" if original else ""
        files, links = (_starting(each, below) for each in names)
        if not files and not links:
            if wide:
                raise RefusedArchive(
                    f"{path!r} in it is a link to {self._links[link]!r}, which it does not hold"
                    " or which include/exclude leave out"
                )
            return
        if depth >= MAX_LINKS_FOLLOWED or f"{link}/".startswith(below):
            raise RefusedArchive(f"{path!r} in it is a link to a folder that it is in")
        for file in files:
            if wanted(self._source, again := f"{path}/{file.removeprefix(below)}"):
                self._bound(self.files[file].size)
                found[again] = file
        for each in links:
            self._follow(f"{path}/{each.removeprefix(below)}", each, found, names, depth + 1)

    def _behind_links(self, path: str) -> str:
        """Where a member is: its folder may be named by a link."""
        folder, _, name = path.rpartition("/")
        return f"{self._walk(folder)}/{name}".lstrip("/") if folder and self._links else path

    def _walk(self, path: str) -> str:
        """The path that is left when every link on the way has been followed."""
        todo, here, followed = path.split("/")[::-1], list[str](), 0
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                if not here:
                    raise RefusedArchive(f"{path!r} in it is a link that leads out of it")
                here.pop()
                continue
            here.append(part)
            if (target := self._links.get("/".join(here))) is None:
                continue
            followed += 1
            if followed > MAX_LINKS_FOLLOWED:
                raise RefusedArchive(f"{path!r} in it is a link that leads in a circle")
            if target.startswith("/"):
                raise RefusedArchive(f"{path!r} in it is a link to {target!r}, which is outside of it")
            here.pop()
            todo += target.split("/")[::-1]
        return "/".join(here)

    def _bound(self, size: int) -> None:
        self._count += 1
        self._declared += size
        if self._count > MAX_FILES or size < 0 or self._declared > self._limit:
            raise RefusedArchive(f"it holds more than {MAX_FILES} files, or {MAX_RATIO} times its size")

    def _remove(self, path: str, *, but: Set[str]) -> None:
        """The entries of lower layers at or below `path` are gone; "" is everything."""
        below = f"{path}/" if path else ""
        for each in [known for known in (*self.files, *self._links) if known == path or known.startswith(below)]:
            if each not in but:
                self._forget(each)

    def _forget(self, path: str) -> None:
        """The next member of this name is the one that counts."""
        self._links.pop(path, None)
        if (file := self.files.pop(path, None)) is not None:
            folder, _, name = path.rpartition("/")
            with self._target.enter(folder) if folder else self._target.again() as parent:
                parent.remove(name)
            self._freed += file.size

    def _exists(self, path: str) -> bool:
        try:
            self._target.lstat(path)
        except OSError:
            return False
        return True

    @contextmanager
    def _creating(self, path: str) -> Iterator[tuple[Folder, str]]:
        """Its folder, open, and its name in there, which nothing has."""
        folder, _, name = path.rpartition("/")
        try:
            parent = self._target.enter(folder, make=True) if folder else self._target.again()
            with parent:
                status = parent.status(name)
                known = status is not None and any(file.startswith(f"{path}/") for file in self.files)
                if status is not None and stat.S_ISDIR(status.st_mode) and not known:
                    parent.remove(name)
                yield parent, name
        except (FileExistsError, NotADirectoryError) as error:
            raise RefusedArchive(f"it holds {path!r} as a file and as a folder") from error

    def _write_one(self, path: str, content: IO[bytes]) -> ManifestFile:
        with self._creating(path) as (folder, name):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(name, flags, 0o644, dir_fd=folder.descriptor)
        digest, size = hashlib.sha256(), 0
        with open(descriptor, "wb", buffering=0) as file:  # noqa: PTH123  # a descriptor
            while block := content.read(_BLOCK_BYTES):
                self._check()
                self._check_room(len(block))  # what is declared may not be true
                if self._written + len(block) > self._limit:
                    raise RefusedArchive(f"more than {MAX_RATIO} times its size comes out of it")
                digest.update(block)
                file.write(block)
                size += len(block)
                self._written += len(block)
            os.fsync(descriptor)
        return ManifestFile(path, size, Digest(f"sha256:{digest.hexdigest()}"))

    def _repeat(self, original: str, path: str) -> None:
        """The file `original` is at `path`, too: it takes no room, but where the disk cannot do that."""
        known = self.files.get(original)
        if known is None:
            raise RefusedArchive(
                f"{path!r} in it is a link to {original!r}, which it does not hold before it"
                " or which include/exclude leave out"
            )
        if path in self.files:
            raise RefusedArchive(f"it holds {path!r} twice, once behind a link")
        try:
            above, _, known_as = original.rpartition("/")
            with (
                self._creating(path) as (folder, name),
                self._target.enter(above) if above else self._target.again() as source,
            ):
                descriptors = {"src_dir_fd": source.descriptor, "dst_dir_fd": folder.descriptor}
                os.link(known_as, name, **descriptors, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            with open(self._target.open(original), "rb") as content:  # noqa: PTH123  # a descriptor
                self.files[path] = self._write_one(path, content)
            return
        self.files[path] = replace(known, path=path)

    def _check_room(self, more: int) -> None:
        needed = self._written - self._freed + more
        if needed > self._room_bytes:
            raise InsufficientStorage(
                f"what the archive holds needs {say_bytes(needed, up=True)} and more, there is room for"
                f" {say_bytes(self._room_bytes)}"
            )


def _starting(names: list[str], prefix: str) -> list[str]:
    """Those of the sorted `names` that start with `prefix`."""
    first = bisect_left(names, prefix)
    return list(takewhile(lambda name: name.startswith(prefix), islice(names, first, None)))


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """An exception about an archive inside becomes the error that it stands for."""
    try:
        yield
    except (RefusedArchive, SourceError, NotImplementedError) as error:
        raise SourceUnsupported(f"{name} is not unpacked: {error}", reason="ArchiveRefused") from error
    except OSError as error:
        if error.errno is not None:  # the disk's
            raise
        raise IntegrityError(f"{name} cannot be unpacked: {error}", reason="ArchiveDamaged") from error
    except _DAMAGED as error:
        raise IntegrityError(f"{name} cannot be unpacked: {error}", reason="ArchiveDamaged") from error
