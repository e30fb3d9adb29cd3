"""The marker of a committed model: what it is, how it was verified, whose it is; and what can be seen to be wrong.

    <model>/.localmodel/manifest.json

Pods share the disk, and disks rot. So a marker is believed only if it is a small regular file, in a folder that is no
link, that belongs to the user who writes ours; that says nothing we would not have written; and whose files are named
by paths that stay inside. It is opened beneath the model's folder, and so are the files that it names.
"""

from __future__ import annotations

import errno
import json
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from actors.disk.documents import MOST_BYTES, parsed
from actors.disk.filesystem import OUR_OWN
from actors.disk.handles import Folder
from actors.errors import LocalModelError
from actors.manifest import Manifest, ManifestFile, make_manifest
from actors.numbers import count, moment
from actors.transferred import Transferred

MARKER = ".localmodel/manifest.json"
OWN = ".localmodel"
VERSION = 1
MARKER_BYTES = MOST_BYTES

_DIGEST = re.compile(r"(sha256|git-sha1|md5|md5-[1-9]\d{0,18}|crc64nvme|crc32c|crc32):[0-9a-f]{1,128}(-\d{1,9})?")
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR})


class DamagedMarker(ValueError):
    """There is something where the marker should be, and it is none. The message says what is wrong with it."""


class NewerMarker(DamagedMarker):
    """It is one that a later version of this program has written."""


@dataclass(frozen=True, slots=True)
class Marker:
    """A committed model. `manifest` has every file's digest; `verified` says how each was checked.

    `moved` is what the fill has cost, over all attempts.
    """

    owner: str
    manifest: Manifest
    verified: Mapping[str, str]
    started_at: float | None = None
    finished_at: float | None = None
    moved: Transferred = field(default_factory=Transferred)

    def to_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "owner": self.owner,
            "selection": self.manifest.source.selection,
            "manifestDigest": self.manifest.digest,
            "manifest": self.manifest.to_json(),
            "verified": dict(self.verified),
            "startedAt": self.started_at,
            "finishedAt": self.finished_at,
            **self.moved.to_json(),
        }

    @property
    def content(self) -> bytes:
        """As it lies on the disk."""
        return json.dumps(self.to_json()).encode()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Marker:
        """Raises KeyError, TypeError, ValueError or AttributeError for anything `to_json` did not make."""
        version = data.get("version", VERSION)
        if type(version) is int and version > VERSION:
            raise NewerMarker(f"it is of version {version}, and {VERSION} is the latest that is known here")
        if version != VERSION:
            raise ValueError(f"version {version!r} is not one we know")
        return cls(
            owner=_text(data["owner"]),
            manifest=manifest_from_json(data["manifest"]),
            verified={_text(path): _text(how) for path, how in data["verified"].items()},
            started_at=moment(data.get("startedAt")),
            finished_at=moment(data.get("finishedAt")),
            moved=Transferred.from_json(data),
        )


def parse_marker(content: bytes) -> Marker:
    """Raises DamagedMarker for anything that `Marker.content` is not."""
    try:
        return Marker.from_json(parsed(content))
    except NewerMarker:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, LocalModelError) as error:
        raise DamagedMarker(f"{type(error).__name__}: {str(error)[:200]}") from error


def load_marker(folder: Folder, *, uid: int | None = None) -> Marker:
    """The marker of a model's open folder. Raises FileNotFoundError if there is none, DamagedMarker, or OSError.

    With `uid` it must belong to this user.
    """
    try:
        status = folder.lstat(MARKER)
    except NotADirectoryError as error:
        raise DamagedMarker(f"{OWN} is no folder") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DamagedMarker(f"{OWN} is a link") from error
        raise
    if not stat.S_ISREG(status.st_mode):
        raise DamagedMarker("it is not a regular file")
    if uid is not None and status.st_uid != uid:
        raise DamagedMarker(f"it belongs to user {status.st_uid}, and we write as {uid}")
    try:
        return parse_marker(folder.read(MARKER, MARKER_BYTES))
    except OSError as error:
        if error.errno in OUR_OWN:
            raise
        raise DamagedMarker(f"it cannot be read: {error.strerror}") from error


def read_marker(folder: Path) -> Marker | None:
    """The marker of a model's folder; None if it has none that can be read."""
    try:
        with Folder.at(folder.parent) as parent, parent.enter(folder.name) as opened:
            return load_marker(opened)
    except (OSError, DamagedMarker):
        return None


def is_complete(folder: Path, manifest: Manifest) -> bool:
    """Whether every file is there, with its size. Reads no content."""
    return not misfits(folder, manifest)


def misfits(folder: Path | Folder, manifest: Manifest) -> dict[str, str]:
    """By path, what can be seen to be wrong with a file of the model without reading its content.

    Raises OSError for what is not the disk's fault, as `misfit` does.
    """
    if isinstance(folder, Path):
        try:
            with Folder.at(folder) as opened:
                return misfits(opened, manifest)
        except OSError as error:
            return {file.path: _missing(error) for file in manifest.files}
    found: dict[str, str] = {}
    for path, files in groupby(manifest.files, key=lambda file: file.path.rpartition("/")[0]):
        try:
            opened = folder.within(path)
        except OSError as error:
            found |= {file.path: _missing(error) for file in files}
            continue
        with opened:
            for file in files:
                wrong = misfit(opened, replace(file, path=file.path.rpartition("/")[2]))
                if wrong is not None:
                    found[file.path] = wrong
    return found


def misfit(folder: Folder, file: ManifestFile) -> str | None:
    """The fault of the file, as far as its name and size tell; None: there is none. Links on the way are wrong, too."""
    try:
        status = folder.lstat(file.path)
    except OSError as error:
        return _missing(error)
    if not stat.S_ISREG(status.st_mode):
        return "is no longer a regular file"
    return None if status.st_size == file.size else f"has {status.st_size} bytes, not {file.size}"


def files_below(folder: Folder) -> Iterator[str]:
    """Every path below an open folder that is no folder itself, but for those of ours.

    A folder that cannot be looked into is given, too: what is in it is not known.
    """
    for path, _, within in folder.walk(but=OWN):
        if not within:
            yield path


def _missing(error: OSError) -> str:
    """The fault of a file that cannot be looked at. Raises the error if this process is to blame."""
    if error.errno in OUR_OWN:
        raise error
    return "is missing" if error.errno in _MISSING else f"cannot be read: {error.strerror}"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]!r} is no text")
    value.encode()  # half a surrogate pair has no bytes
    return value


def _digest(value: object) -> None:
    if _DIGEST.fullmatch(_text(value)) is None:
        raise ValueError(f"{str(value)[:80]!r} is no digest")


def manifest_from_json(data: Mapping[str, Any]) -> Manifest:
    """The manifest in a marker or an ingest. Raises ValueError, KeyError, TypeError or AttributeError for junk."""
    for each in data["files"]:
        _text(each["path"])
        count(each["size"])
        for name in ("digest", "checksum"):
            if each.get(name) is not None:
                _digest(each[name])
    source = data["source"]
    for each in (source["uri"], *source["include"], *source["exclude"]):
        _text(each)
    for each in (source["revision"], data["revision"]):
        if each is not None:
            _text(each)
    read = Manifest.from_json(data)
    return make_manifest(read.source, read.revision, read.files)
