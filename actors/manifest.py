"""What a model consists of: which source was asked for, which files it has, and where each can be read.

    ModelSource   what a person asked for           uri, revision, include, exclude      → `selection`
    Manifest      what that turned out to be        resolved revision, files with sizes and digests → `digest`
    Resolved      a manifest and where to read it   one `Location` per file, valid until `expires_at`

A manifest is identity and outlives everything; locations are perishable (signed URLs) and are renewed. All values.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, NewType
from urllib.parse import urlsplit

from actors.errors import Failure, IntegrityError, SourceError
from actors.numbers import LARGEST, count
from actors.redaction import redacted

StorageKey = NewType("StorageKey", str)
"""16 hex digits: the name of a model's folder on every node. See `storage_key`."""

Digest = NewType("Digest", str)
"""`algorithm:hex`; the algorithms are in `actors.digest`."""

NodeName = NewType("NodeName", str)
"""A Kubernetes node's `metadata.name`. Not to be mixed with a Ray node id."""

OriginName = NewType("OriginName", str)
"""`scheme://host:port`, without the port where it is the scheme's own. See `origin_of`."""


_LAYER = re.compile(r"(layer|part)-\d{3,}\.tar(\.gz)?")
_PORTS = {"http": 80, "https": 443}
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".zip")
"""What KServe unpacks. A `.tar.zst`, which it does not, stays the file that it is."""
_FORBIDDEN = re.compile(r"[\0\\\ud800-\udfff]")
"""NUL ends a name for the kernel, a backslash is a `/` to some, half a surrogate pair has no bytes."""


MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 3072
"""Linux ends a path at 4096 bytes, and a model lies some folders deep."""


def storage_key(uri: str) -> StorageKey:
    """The folder KServe uses for `uri`: the first 16 hex digits of the sha256 of the raw, unnormalised string."""
    return StorageKey(hashlib.sha256(uri.encode()).hexdigest()[:16])


def second_key(uri: str) -> StorageKey | None:
    """The folder later KServe names to pods where it is another: that of the URI without the slash at its end."""
    return storage_key(uri.removesuffix("/")) if uri.endswith("/") else None


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What a person asked for. Two caches with one `uri` share a folder, so they must agree on the whole of it."""

    uri: str
    revision: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @property
    def selection(self) -> str:
        """A short name for this exact request; changes when any field does. Recorded on disk and in status."""
        return hashlib.sha256(_canonical(asdict(self))).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file. `path` is relative, `/`-separated, safe to join to a folder. `digest`: None if the source has none.

    `checksum` is what the source has instead of one: it finds damage, but anybody can make other bytes that have it.
    So it is compared, and is no part of what a file is known by: that is the sha256 of what was read.
    """

    path: str
    size: int
    digest: Digest | None = None
    checksum: Digest | None = None

    @property
    def vouched(self) -> Digest | None:
        """The strongest that the source says of its bytes."""
        return self.digest or self.checksum


@dataclass(frozen=True)  # no slots: what follows from the files is computed once
class Manifest:
    """The files of one resolved revision, sorted by path, without duplicates."""

    source: ModelSource
    revision: str | None
    files: tuple[ManifestFile, ...]

    @cached_property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)

    @cached_property
    def digest(self) -> str | None:
        """`sha256:<hex>` over every file's path, size and digest; None while a file's digest is not known.

        Independent of where the bytes came from, so a mirror of the same files has the same digest.
        """
        if self.packed or any(file.digest is None for file in self.files):
            return None
        return "sha256:" + hashlib.sha256(_canonical([[f.path, f.size, f.digest] for f in self.files])).hexdigest()

    @cached_property
    def by_content(self) -> Mapping[tuple[Digest, int], tuple[int, ...]]:
        """By digest and size, the files that are the same; not empty ones, nor those without a digest."""
        found: dict[tuple[Digest, int], tuple[int, ...]] = {}
        for index, file in enumerate(self.files):
            if file.digest is not None and file.size:
                found[file.digest, file.size] = (*found.get((file.digest, file.size), ()), index)
        return found

    @cached_property
    def packed(self) -> bool:
        """Whether the files are archives, which are unpacked before anything is published. See `is_packed`."""
        return is_packed(self.source, self.files)

    @property
    def peak_bytes(self) -> int:
        """What a fill takes on the disk. The contents of an archive are taken to be as large as the archive."""
        return self.total_bytes * (2 if self.packed else 1)

    def is_same_content(self, other: Manifest) -> bool:
        """Whether both come to the same files, as far as their sources vouch for it, whatever was asked for.

        A revision names content for good: of one URI and the same globs it is enough.
        """
        if self.digest is not None and self.digest == other.digest:
            return True
        mine, theirs = self.source, other.source
        if (mine.uri, mine.include, mine.exclude) == (theirs.uri, theirs.include, theirs.exclude):
            return self.revision is not None and self.revision == other.revision
        return False

    def to_json(self) -> dict[str, Any]:
        files = [
            {"path": file.path, "size": file.size, "digest": file.digest}
            | ({"checksum": file.checksum} if file.checksum else {})
            for file in self.files
        ]
        return {"source": asdict(self.source), "revision": self.revision, "files": files}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """Raises KeyError, TypeError or ValueError for anything `to_json` did not make."""
        source = data["source"]
        return cls(
            source=ModelSource(source["uri"], source["revision"], tuple(source["include"]), tuple(source["exclude"])),
            revision=data["revision"],
            files=tuple(
                ManifestFile(f["path"], count(f["size"]), f["digest"], f.get("checksum")) for f in data["files"]
            ),
        )


def origin_of(url: str) -> OriginName | None:
    """The origin of `url`, as it is written: what it redirects to is the same origin's. None: no host is named.

    So the hub and the CDN that it sends its readers to are one origin: whoever throttles, it is the hub's users that he
    means, and a budget must be known before the first request tells where it leads.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not host:
        return None
    host = f"[{host}]" if ":" in host else host
    scheme = parts.scheme.lower()
    return OriginName(f"{scheme}://{host}" + (f":{port}" if port not in (None, _PORTS.get(scheme)) else ""))


def layer_name(number: int, *, zipped: bool, image: bool = True) -> str:
    """The file that holds a layer of an image, or of something else that is packed in several parts.

    In the order of their names, one goes over the other.
    """
    return f"{'layer' if image else 'part'}-{number:03}.tar{'.gz' if zipped else ''}"


def is_image(files: Sequence[ManifestFile]) -> bool:
    """Whether these are an image's layers, of which the model is below one folder."""
    return bool(files) and files[0].path.startswith("layer-")


def is_packed(source: ModelSource, files: Sequence[ManifestFile]) -> bool:
    """Whether it is not the files that are wanted but what they hold: one archive, or the layers of an image.

    A single file of such a name is an archive, as in KServe, but not in a repository of the hub.
    """
    if source.uri.startswith("oci://"):
        return bool(files) and all(_LAYER.fullmatch(file.path) for file in files)
    return len(files) == 1 and files[0].path.endswith(_ARCHIVES) and not source.uri.startswith("hf://")


def make_manifest(source: ModelSource, revision: str | None, files: Iterable[ManifestFile]) -> Manifest:
    """A manifest of checked, sorted files. Raises SourceError for a path that could leave its folder or comes twice."""
    ordered = tuple(sorted(files, key=lambda file: file.path))
    paths = [file.path for file in ordered]
    for file in ordered:
        check_relative(file.path)
        try:
            count(file.size)
        except ValueError as error:
            what = f"{redacted(source.uri)} lists {file.path!r} with a size that is none: {error}"
            raise SourceError(what, reason="InvalidManifest") from error
    if sum(file.size for file in ordered) > LARGEST:
        what = f"{redacted(source.uri)} lists files of more than {LARGEST} bytes together"
        raise SourceError(what, reason="InvalidManifest")
    if len(set(paths)) != len(paths):
        raise SourceError(f"{source.uri} lists a file twice", reason="InvalidManifest")
    folders = {folder for parent in {path.rpartition("/")[0] for path in paths} for folder in _and_above(parent)}
    clash = next((path for path in paths if path in folders), None)
    if clash is not None:
        raise SourceError(
            f"{source.uri} lists {clash!r} both as a file and as a folder: leave one of them out with include/exclude",
            reason="InvalidManifest",
        )
    return Manifest(source, revision, ordered)


def _and_above(folder: str) -> Iterator[str]:
    while folder:
        yield folder
        folder = folder.rpartition("/")[0]


def is_ours(path: str) -> bool:
    """Whether it is what a fill writes beside the files: no part of a model, although a copy of a copy lists it."""
    return path.partition("/")[0] == ".localmodel"


def check_relative(path: str) -> None:
    """Returns if `path` joined to a folder stays inside it and names a file. Raises SourceError otherwise."""
    parts = path.split("/")
    unsafe = any(part in ("", ".", "..") for part in parts)
    if unsafe or is_ours(path) or _FORBIDDEN.search(path):
        raise SourceError(f"refusing the unsafe file name {redacted(path)[:200]!r}", reason="InvalidManifest")
    if len(path.encode()) > MAX_PATH_BYTES or any(len(part.encode()) > MAX_NAME_BYTES for part in parts):
        raise SourceError(
            f"refusing the file name {redacted(path)[:80]!r}…: no disk takes a path of more than {MAX_PATH_BYTES} "
            f"bytes, or a name of more than {MAX_NAME_BYTES} in it",
            reason="InvalidManifest",
        )


@dataclass(frozen=True, slots=True)
class Location:
    """Where one file can be read now.

    `http(s)` urls are read by the range engine with `headers`; any other url is read through fsspec with
    `Resolved.storage_options`. `content` is set instead when the whole file travels with the message (small files
    that only the coordinator's credentials can read). `etag` pins the version where the origin has one. `version`
    tells apart, where there is no `etag`, what was there at different times: a date, as the origin says it.
    """

    url: str
    etag: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    content: bytes | None = field(default=None, repr=False)
    version: str | None = None

    @property
    def origin(self) -> OriginName | None:
        """The origin asked for the file; None: its content is at hand."""
        return origin_of(self.url) if self.content is None else None


@dataclass(frozen=True)  # no slots: the name is computed once
class Resolved:
    """A manifest and one location per file, in the same order. Epoch seconds; None: does not expire.

    `unreadable`: why nothing can be read at these locations. The origin did not say where its files are; what they are
    is known from a copy (`known_from_a_copy`), and peers are all there is.
    """

    manifest: Manifest
    locations: tuple[Location, ...]
    expires_at: float | None = None
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    unreadable: Failure | None = None

    @cached_property
    def origins(self) -> frozenset[OriginName]:
        """Everybody who is asked for a file of it."""
        return frozenset(origin for location in self.locations if (origin := location.origin) is not None)

    @property
    def carries_options(self) -> bool:
        """Whether agents read with what the source was asked with, credentials among it: there is nothing to sign."""
        return bool(self.storage_options) or any(location.headers for location in self.locations)

    @cached_property
    def versions(self) -> dict[str, str]:
        """By path, which version of a file is meant where no digest would tell, as far as the origin does."""
        pairs = zip(self.manifest.files, self.locations, strict=True)
        found = {file.path: place.etag or place.version for file, place in pairs if file.vouched is None}
        return {path: version for path, version in found.items() if version}

    @cached_property
    def content(self) -> str:
        """Names what is to be read, wherever it is read: the same for every resolution of the same bytes."""
        pairs = zip(self.manifest.files, self.locations, strict=True)
        files = [[f.path, f.size, f.digest or [f.checksum, loc.etag]] for f, loc in pairs]
        identity = [self.manifest.source.selection, self.manifest.revision, files]
        return hashlib.sha256(_canonical(identity)).hexdigest()[:16]

    @cached_property
    def name(self) -> str:
        """Names this exact resolution, so that it is sent to an agent once and not with every tick."""
        pairs = zip(self.manifest.files, self.locations, strict=True)
        files = [[f.path, f.size, f.vouched, loc.url, loc.etag] for f, loc in pairs]
        identity = [self.manifest.source.selection, self.manifest.revision, files]
        return hashlib.sha256(_canonical(identity)).hexdigest()[:16]


def known_from_a_copy(manifest: Manifest, unreadable: Failure) -> Resolved:
    """The model to be filled, from peers alone: the origin cannot be asked, for this reason."""
    return Resolved(manifest, (Location(""),) * len(manifest.files), unreadable=unreadable)


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def check_digest(digest: str | None, expected: str | None, named: str = "spec.digest") -> None:
    """Raises IntegrityError if the digest is known and is not the expected one. Nothing expected: anything will do."""
    if expected is not None and digest is not None and digest != expected:
        raise IntegrityError(
            f"the model's digest is {digest}, but {expected} is expected ({named})", reason="DigestMismatch"
        )
