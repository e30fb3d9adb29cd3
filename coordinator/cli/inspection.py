"""What lies in a folder that a node agent or `localmodel fill` wrote: read as it is, and nothing changed.

    a root        models, fills under way, old copies, notes, and what was set aside
    a model       its marker, its files by name and size, its scrub record
    an ingest     what is being filled, and how far its journal is

No content is read; `localmodel verify` does that. Every part is a document as docs/json.md describes it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from actors.disk import journal
from actors.disk.documents import parsed
from actors.disk.handles import NOT_A_FOLDER, Folder
from actors.disk.ingest import held_bytes
from actors.disk.marker import MARKER_BYTES, OWN, DamagedMarker, Marker, load_marker, manifest_from_json, misfits
from actors.manifest import storage_key
from actors.scrub.record import Record
from actors.times import rfc3339
from coordinator.cli.verify import extra_files

_INCARNATION_BYTES = 1 << 10
_MOST_FOUND = 10_000
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
Document = dict[str, Any]


class NothingOfOurs(Exception):
    """The folder is none of ours. The message says what it lacks."""


def inspect(directory: Path) -> Document:
    """Raises NothingOfOurs, and OSError for a folder that cannot be read."""
    with Folder.at(directory) as folder:
        names = set(folder.names())
        if "journal" in names or ("data" in names and "manifest.json" in names):
            return _ingest(folder, directory.name)
        own = _names(folder, OWN)
        if "manifest.json" in own:
            return _model(folder, directory)
        if own or "models" in names:
            return _root(folder)
        if "ingest" in names:  # of `localmodel fill`
            with folder.enter("ingest") as staged:
                return _ingest(staged, "ingest")
    raise NothingOfOurs(f"{directory} holds no {OWN}, no models and no journal: it is not of localmodel")


def troubles(document: Document) -> list[str]:
    """Everything that is not as it should be, in sentences; empty: all is well as far as names and sizes tell."""
    found = [f"{path} {wrong}" for path, wrong in document.get("wrong", {}).items()]
    found += [f"{path} is no part of the model" for path in document.get("extra", ())]
    if "damaged" in document:
        found.append(document["damaged"])
    found += [f"{path}: {wrong}" for path, wrong in (document.get("scrub") or {}).get("damage", {}).items()]
    for each in document.get("models", ()):
        found += [f"{each['key']}: {trouble}" for trouble in troubles(each)]
    found += [f"{name} was set aside: it is not of localmodel" for name in document.get("aside", ())]
    return found


def _root(folder: Folder) -> Document:
    status = os.statvfs(folder.descriptor)
    models = []
    for name in sorted(_names(folder, "models")):
        try:
            with folder.enter(f"models/{name}") as model:
                models.append({"key": name, **_model(model, Path(name), folder)})
        except OSError as error:
            models.append({"key": name, "kind": "model", "damaged": f"it cannot be looked into: {error.strerror}"})
    ingests = []
    for name in sorted(_names(folder, f"{OWN}/ingest")):
        with suppress(OSError), folder.enter(f"{OWN}/ingest/{name}") as ingest:
            ingests.append({"name": name, **_ingest(ingest, name)})
    return {
        "kind": "root",
        "writer": _text(folder, f"{OWN}/incarnation"),
        "freeBytes": status.f_bavail * status.f_frsize,
        "models": models,
        "ingests": ingests,
        "trash": [_size_of(folder, f"{OWN}/trash", name) for name in sorted(_names(folder, f"{OWN}/trash"))],
        "evicted": [name.removesuffix(".json") for name in sorted(_names(folder, f"{OWN}/evicted"))],
        "aside": sorted(_names(folder, f"{OWN}/aside")),
    }


def _model(folder: Folder, directory: Path, root: Folder | None = None) -> Document:
    try:
        marker = load_marker(folder)
    except FileNotFoundError:
        return {"kind": "model", "damaged": "it has no marker: not of localmodel, or not complete", **_found(folder)}
    except DamagedMarker as error:
        return {"kind": "model", "damaged": f"its marker cannot be believed: {error}", **_found(folder)}
    manifest = marker.manifest
    document = {
        "kind": "model",
        "uri": manifest.source.uri,
        "revision": manifest.revision,
        "manifestDigest": manifest.digest,
        "owner": marker.owner,
        "files": len(manifest.files),
        "bytes": manifest.total_bytes,
        "verified": dict(Counter(marker.verified.values())),
        "startedAt": _time(marker.started_at),
        "finishedAt": _time(marker.finished_at),
        "bytesFromOrigin": marker.moved.bytes_from_origin,
        "bytesFromPeers": marker.moved.bytes_from_peers,
        "wrong": misfits(folder, manifest),
        "extra": list(extra_files(folder, manifest)),
    }
    if root is not None and directory.name != storage_key(manifest.source.uri):
        document["damaged"] = f"its folder is not named after its URI: {storage_key(manifest.source.uri)} would be"
    scrub = _scrub(root, directory, folder, marker)
    known = document | ({"scrub": scrub} if scrub is not None else {})
    return {name: value for name, value in known.items() if value is not None}


def _found(folder: Folder) -> Document:
    """The files of a folder that no marker describes; of too many nothing is said."""
    found: dict[str, int] = {}
    for path, status, _ in folder.walk(but=OWN, strict=False):
        if stat.S_ISREG(status.st_mode):
            found[path] = status.st_size
        if len(found) > _MOST_FOUND:
            return {}
    return {"found": dict(sorted(found.items()))}


def _scrub(root: Folder | None, directory: Path, folder: Folder, marker: Marker) -> Document | None:
    """What reading the copy again has shown; None where there is no record of this very copy."""
    name = f"{OWN}/scrub/{directory.name}.json"
    try:
        if root is not None:
            content = root.read(name, MARKER_BYTES)
        else:
            with Folder.at(directory.resolve().parent.parent) as above:
                content = above.read(name, MARKER_BYTES)
    except OSError:
        return None
    record = Record.from_json(content, marker)
    if record is None:
        return None
    found = {
        "nextFile": record.next_file,
        "verifiedAt": _time(record.verified_at),
        "damage": record.damage,
        "repaired": record.repaired,
        "repairedAt": _time(record.repaired_at),
    }
    return {name: value for name, value in found.items() if value is not None}


def _ingest(folder: Folder, name: str) -> Document:
    document: Document = {"kind": "ingest", "heldBytes": held_bytes(folder)}
    if "." in name and name != "ingest":
        document["incarnation"] = name.partition(".")[2]
    try:
        identity = parsed(folder.read("manifest.json", MARKER_BYTES))
        manifest = manifest_from_json(identity["manifest"])
    except _UNREADABLE:
        return document | {"damaged": "what is filled cannot be read: it begins anew"}
    done = _done(folder, [file.size for file in manifest.files])
    return document | {
        "uri": manifest.source.uri,
        "owner": str(identity.get("owner", "")),
        "files": len(manifest.files),
        "bytes": manifest.total_bytes,
        "doneBytes": done,
        "publishing": folder.status("publishing") is not None,
    }


def _done(folder: Folder, sizes: list[int]) -> int:
    status = folder.status("journal")
    if status is None or not stat.S_ISREG(status.st_mode):
        return 0
    done, _ = journal.read(folder.here / "journal", sizes)
    return sum(stop - start for ranges in done.values() for start, stop in ranges)


def _size_of(folder: Folder, parent: str, name: str) -> Document:
    held = 0
    with suppress(OSError), folder.enter(f"{parent}/{name}") as opened:
        held = held_bytes(opened)
    return {"name": name, "heldBytes": held}


def _names(folder: Folder, path: str) -> set[str]:
    """Of a folder below; none if there is no such folder."""
    try:
        with folder.enter(path) as opened:
            return set(opened.names())
    except OSError as error:
        if error.errno in NOT_A_FOLDER | {errno.ENOENT}:
            return set()
        raise


def _text(folder: Folder, path: str) -> str | None:
    try:
        return folder.read(path, _INCARNATION_BYTES).decode(errors="replace").strip()
    except OSError:
        return None


def _time(at: float | None) -> str | None:
    return None if at is None else rfc3339(at)
