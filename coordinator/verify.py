"""`localmodel verify DIR`: every byte of DIR is hashed again, and compared with what was recorded when it was filled.

Ends with 0 if every file is as it was and there is no other, else with 1: standard error names what is not so, and
what to run next.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.digest import Digester, algorithm_of
from actors.handles import Folder
from actors.manifest import Manifest, ManifestFile, ModelSource
from actors.marker import MARKER, DamagedMarker, files_below, load_marker

_READ_BYTES = 1 << 20


def add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", type=Path)
    parser.add_argument("--json", action="store_true", help="the last line of standard output says what was found")
    parser.epilog = "ends with 0 if all is well, 1 if not (standard error says what to run next), 2 for a wrong command"


def verify(args: argparse.Namespace) -> int:
    directory: Path = args.directory
    try:
        with Folder.at(directory) as folder:
            marker = load_marker(folder)
            states = examine(folder, marker.manifest)
            extra = sorted(set(files_below(folder)) - states.keys())
    except DamagedMarker as error:
        again = f"localmodel fill --verify URI {shlex.quote(str(directory))}"
        return _fail(
            args, f"the marker of {directory} is damaged ({error}): `{again}` reads every file and makes it anew"
        )
    except OSError as error:
        why = "it was not filled by localmodel, or not completely"
        missing = isinstance(error, FileNotFoundError)
        return _fail(args, f"{directory} holds no {MARKER}: {why}" if missing else f"{directory}: {error.strerror}")
    wrong = {state: [path for path, each in states.items() if each == state] for state in ("damaged", "missing")}
    wrong["extra"] = extra
    for state, paths in wrong.items():
        for path in paths:
            sys.stderr.write(f"{state}: {printable(path)}\n")
    good, step = not any(wrong.values()), next_step(wrong, marker.manifest.source, directory)
    if step is not None:
        sys.stderr.write(f"{step}\n")
    if args.json:
        counts = {"files": len(states), "bytes": marker.manifest.total_bytes}
        said = {"ok": good, **counts, "manifestDigest": marker.manifest.digest, **wrong}
        print_json(said | ({"next": step} if step is not None else {}))
    elif good:
        written = f"{len(states)} files are as they were filled, {marker.manifest.digest}"
        sys.stdout.write(f"{printable(directory)}: {written}\n")
    return 0 if good else 1


def examine(folder: Folder, manifest: Manifest) -> dict[str, str]:
    """By path, whether each file is `good`, `damaged` or `missing`. Every byte is read, files in parallel."""
    from concurrent.futures import ThreadPoolExecutor  # here, because `fill` would wait for it

    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="verify") as pool:
        states = list(pool.map(lambda file: _state(folder, file), manifest.files))
    return {file.path: state for file, state in zip(manifest.files, states, strict=True)}


def next_step(wrong: Mapping[str, list[str]], source: ModelSource, directory: Path) -> str | None:
    """What to run to put it right."""
    if wrong["damaged"] or wrong["missing"]:
        return f"next: `{fill_command(source, directory)}` fetches anew what is damaged or missing"
    if wrong["extra"]:
        return "next: the extra files are no part of the model; move them away if you do not need them there"
    return None


def fill_command(source: ModelSource, directory: Path) -> str:
    """The command that repairs the model in this folder."""
    words = ["localmodel", "fill", "--verify"]
    words += ["--revision", source.revision] if source.revision is not None else []
    for option, globs in (("--include", source.include), ("--exclude", source.exclude)):
        words += [word for glob in globs for word in (option, glob)]
    return printable(shlex.join([*words, source.uri, str(directory)]))


def printable(text: str | Path) -> str:
    """Names need not be UTF-8."""
    return os.fsencode(text).decode(errors="backslashreplace") if isinstance(text, Path) else _decoded(text)


def print_json(document: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")


def _decoded(text: str) -> str:
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _fail(args: argparse.Namespace, message: str) -> int:
    sys.stderr.write(f"localmodel: {printable(message)}\n")
    if args.json:
        print_json({"ok": False, "error": printable(message)})
    return 1


def _state(folder: Folder, file: ManifestFile) -> str:
    try:
        descriptor = folder.open(file.path)
    except OSError as error:
        return "damaged" if isinstance(error, PermissionError) else "missing"
    try:
        digester = Digester(algorithm_of(file.digest), file.size)
        with open(descriptor, "rb", buffering=0) as content:  # noqa: PTH123  # a descriptor
            buffer = bytearray(_READ_BYTES)
            while count := content.readinto(buffer):
                digester.update(memoryview(buffer)[:count])
    except OSError:
        return "damaged"
    return "good" if digester.position == file.size and digester.digest() == file.digest else "damaged"
