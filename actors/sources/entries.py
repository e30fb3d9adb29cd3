"""What a listing's entries are as files below a folder: every one of them, or it is refused by the entry's name.

    folder/  of no bytes              left out: consoles leave it behind for a folder; so is an empty `folder` beside
                                      `folder/…`, which other tools leave
    a//b                              a/b: an empty part names nothing
    neither a file nor a folder, no   refused, unless include/exclude leave it out: what is listed does not vanish
    size, `.` or `..`, two of a path

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from actors.errors import SourceError, SourceUnsupported
from actors.manifest import ManifestFile, ModelSource, check_relative, is_ours
from actors.numbers import count
from actors.sources.object_digests import described
from actors.sources.selection import wanted
from actors.transport.answers import redact
from actors.transport.refusals import archived


@dataclass(slots=True)
class Listed:
    """`names`: what each file is called where it is, by its path in the model; `etags` as far as they are known."""

    names: dict[str, str] = field(default_factory=dict)
    files: list[ManifestFile] = field(default_factory=list)
    etags: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    def take(self, path: str, name: str, info: Mapping[str, Any]) -> None:
        """`name` is one of the files, by its `path` in the model."""
        digest, checksum, etag = described(info)
        self.names[path] = name
        self.files.append(ManifestFile(path, count(info["size"]), digest, checksum))
        if etag is not None:
            self.etags[path] = etag
        if (version := info.get("version")) is not None:
            self.versions[path] = str(version)


def files_of(source: ModelSource, found: Mapping[str, Mapping[str, Any]], root: str) -> Listed:
    """Raises SourceError for what cannot be a file and is not left out; the message names it and the remedy."""
    listed, names = Listed(), dict[str, str]()
    for name, info in found.items():
        if not _is_entry(name, info, root):
            continue
        path = "/".join(part for part in (name[len(root) + 1 :] or name.rpartition("/")[2]).split("/") if part)
        names.setdefault(path, name)
        why = _refused(name, path, info, listed.names)
        if why is not None and wanted(source, path):
            raise refused(source, name, why)
        if why is not None:
            continue
        listed.take(path, name, info)
    folders = _folders(names)
    listed.files = [file for file in listed.files if file.size or file.path not in folders]
    listed.names = {file.path: listed.names[file.path] for file in listed.files}
    for path, name in listed.names.items():
        if wanted(source, path):
            _check_online(source, name, found[name])
    return listed


def _check_online(source: ModelSource, name: str, info: Mapping[str, Any]) -> None:
    """Returns if the store can give its bytes now. Raises SourceError for what is archived."""
    error = archived(f"{redact(source.uri)}: {name}", info.get("blob_tier"), None, None)
    if error is not None:
        raise error


def _is_entry(name: str, info: Mapping[str, Any], root: str) -> bool:
    """Whether it is below `root`, and neither a folder nor the mark of one."""
    below = name == root or name.startswith(f"{root}/")  # a name that only begins alike is in another folder
    return below and info["type"] != "directory" and bool(not name.endswith("/") or info.get("size"))


def refused(source: ModelSource, name: str, why: str) -> SourceError:
    """`name` is no file of a model: nobody is served a model without it, either."""
    return SourceUnsupported(
        f"{redact(source.uri)} lists {name!r}, which cannot be part of a model: {why}. Rename or remove it there, or "
        "leave it out with include/exclude",
        reason="InvalidManifest",
    )


def _refused(name: str, path: str, info: Mapping[str, Any], taken: Mapping[str, str]) -> str | None:
    if info["type"] != "file":
        return f"it is neither a file nor a folder ({info['type']})"
    if name.endswith("/"):
        return f"its name ends in a slash, and it holds {info['size']} bytes"
    if not path or not {".", ".."}.isdisjoint(path.split("/")):
        return "a part of its name is `.` or `..`"
    if info.get("size") is None:
        return "its size is not known"
    try:
        count(info["size"])
    except ValueError as error:
        return f"its size: {error}"
    try:
        check_relative(path)
    except SourceError as error:
        if not is_ours(path):
            return str(error)
    return f"{taken[path]!r} would be the same file" if path in taken else None


def _folders(paths: Iterable[str]) -> set[str]:
    folders: set[str] = set()
    for path in paths:
        folder = path.rpartition("/")[0]
        while folder and folder not in folders:
            folders.add(folder)
            folder = folder.rpartition("/")[0]
    return folders
