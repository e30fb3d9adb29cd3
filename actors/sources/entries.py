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


def files_of(source: ModelSource, found: Mapping[str, Mapping[str, Any]], root: str) -> Listed:
    """Raises SourceError for what cannot be a file and is not left out; the message names it and the remedy."""
    listed, names = Listed(), dict[str, str]()
    for name, info in found.items():
        below = name == root or name.startswith(f"{root}/")  # what only begins alike is another folder
        if not below or info["type"] == "directory" or (name.endswith("/") and not info.get("size")):
            continue
        path = "/".join(part for part in (name[len(root) + 1 :] or name.rpartition("/")[2]).split("/") if part)
        names.setdefault(path, name)
        why = _refused(name, path, info)
        if why is None and path in listed.names:
            why = f"{listed.names[path]!r} would be the same file"
        if why is not None and wanted(source, path):
            raise refused(source, name, why)
        if why is not None:
            continue
        digest, checksum, etag = described(info)
        listed.names[path] = name
        listed.files.append(ManifestFile(path, count(info["size"]), digest, checksum))
        if etag is not None:
            listed.etags[path] = etag
        if (version := info.get("version")) is not None:
            listed.versions[path] = str(version)
    folders = _folders(names)
    listed.files = [file for file in listed.files if file.size or file.path not in folders]
    listed.names = {file.path: listed.names[file.path] for file in listed.files}
    for path, name in listed.names.items():
        error = archived(f"{redact(source.uri)}: {name}", found[name].get("blob_tier"), None, None)
        if error is not None and wanted(source, path):
            raise error
    return listed


def refused(source: ModelSource, name: str, why: str) -> SourceError:
    """`name` is no file of a model: nobody is served a model without it, either."""
    return SourceUnsupported(
        f"{redact(source.uri)} lists {name!r}, which cannot be part of a model: {why}. Rename or remove it there, or "
        "leave it out with include/exclude",
        reason="InvalidManifest",
    )


def _refused(name: str, path: str, info: Mapping[str, Any]) -> str | None:
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
        return None if is_ours(path) else str(error)
    return None


def _folders(paths: Iterable[str]) -> set[str]:
    folders: set[str] = set()
    for path in paths:
        folder = path.rpartition("/")[0]
        while folder and folder not in folders:
            folders.add(folder)
            folder = folder.rpartition("/")[0]
    return folders
