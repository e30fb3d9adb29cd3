"""`localmodel verify DIR`: every byte of DIR is hashed again, and compared with what was recorded when it was filled.

Ends with 0 if every file is as it was and there is no other, else with 1: standard error names what is not so, and
what to run next; with 130 when it was interrupted.
"""

from __future__ import annotations

import argparse
import os
import shlex
import threading
from collections.abc import Mapping, Set
from functools import partial
from pathlib import Path

from actors.digest import Digester, algorithm_of
from actors.disk.handles import Folder
from actors.disk.marker import MARKER, DamagedMarker, NewerMarker, files_below, load_marker
from actors.manifest import Manifest, ManifestFile, ModelSource
from coordinator.cli.arguments import folder
from coordinator.cli.output import print_failure, print_json, printable, say, tell
from coordinator.cli.progress import Rate, Sample, shown

_READ_BYTES = 1 << 20


def add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", type=folder)
    parser.add_argument("--json", action="store_true", help="the last line of standard output says what was found")
    parser.epilog = (
        "ends with 0 if all is well, 1 if not (standard error says what to run next), 2 for a wrong command, 130 when"
        " it was interrupted"
    )


def verify(args: argparse.Namespace) -> int:
    directory: Path = args.directory
    try:
        with Folder.at(directory) as folder:
            marker = load_marker(folder)
            states = examine(folder, marker.manifest)
            extra = extra_files(folder, marker.manifest)
    except DamagedMarker as error:
        again = f"localmodel fill --verify URI {shlex.quote(str(directory))}"
        return _fail(args, *marker_trouble(directory, error, again))
    except FileNotFoundError:
        if not directory.exists():
            return _fail(args, "NotAModel", f"there is no folder {directory}")
        why = "it was not filled by localmodel, or not completely"
        return _fail(args, "NotAModel", f"{directory} holds no {MARKER}: {why}")
    except OSError as error:
        return _fail(args, "Unreadable", f"{directory} cannot be read: {error.strerror}")
    except KeyboardInterrupt:
        return _fail(args, "Interrupted", f"interrupted before every byte of {directory} was read", code=130)
    wrong = {state: [path for path, each in states.items() if each == state] for state in ("damaged", "missing")}
    wrong["extra"] = list(extra)
    for state, paths in wrong.items():
        for path in paths:
            tell(f"{state}: {printable(path)}")
    good, step = not any(wrong.values()), next_step(wrong, marker.manifest.source, directory)
    if step is not None:
        tell(step)
    if args.json:
        counts = {"files": len(states), "bytes": marker.manifest.total_bytes}
        said = {"ok": good, **counts, "manifestDigest": marker.manifest.digest, **wrong}
        if not good:
            counted = ", ".join(f"{len(paths)} {state}" for state, paths in wrong.items() if paths)
            said |= {"reason": "ModelDamaged", "message": f"of {len(states)} files {counted}", "retryable": False}
        print_json(said | ({"next": step} if step is not None else {}))
    elif good:
        written = f"{len(states)} files are as they were filled, {marker.manifest.digest}"
        say(f"{printable(directory)}: {written}")
    return 0 if good else 1


def marker_trouble(directory: Path, error: DamagedMarker, command: str) -> tuple[str, str]:
    """The reason and the message. `command` makes the marker anew."""
    if isinstance(error, NewerMarker):
        return "MarkerNewer", (
            f"the marker of {directory} was written by a newer localmodel ({error}): use that one, or make the marker"
            f" anew with `{command}`, which reads every file"
        )
    return "MarkerDamaged", (
        f"the marker of {directory} is damaged ({error}): `{command}` reads every file and makes it anew"
    )


def examine(folder: Folder, manifest: Manifest) -> dict[str, str]:
    """By path, whether each file is `good`, `damaged` or `missing`. Every byte is read, files in parallel."""
    from concurrent.futures import ThreadPoolExecutor  # here, because `fill` would wait for it

    ended, seen, rate = threading.Event(), _Seen(), Rate()
    state = partial(_state, folder, ended, seen)
    total = manifest.total_bytes
    with (
        shown(lambda: Sample("verifying", seen.count, total, rate.of(seen.count))),
        ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="verify") as pool,
    ):
        try:
            states = list(pool.map(state, manifest.files))
        except RuntimeError:  # there is no thread to be had
            states = list(map(state, manifest.files))
        except BaseException:
            ended.set()
            pool.shutdown(cancel_futures=True)
            raise
    return {file.path: each for file, each in zip(manifest.files, states, strict=True)}


def extra_files(folder: Folder, manifest: Manifest) -> tuple[str, ...]:
    """Files that are there and no part of the model."""
    known = {file.path for file in manifest.files}
    return tuple(sorted(path for path in files_below(folder) if path not in known and not _above(path, known)))


def _above(path: str, known: Set[str]) -> bool:
    """Whether it is a folder, which could not be looked into, of files of the model."""
    return any(each.startswith(f"{path}/") for each in known)


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


def _fail(args: argparse.Namespace, reason: str, message: str, code: int = 1) -> int:
    tell(f"localmodel: {printable(message)}")
    if args.json:
        print_failure(reason, message, retryable=reason == "Interrupted")
    return code


class _Seen:
    """Bytes that were read, by all threads; close enough for a bar where two add at once."""

    count = 0


def _state(folder: Folder, ended: threading.Event, seen: _Seen, file: ManifestFile) -> str:
    try:
        descriptor = folder.open(file.path)
    except OSError as error:
        return "damaged" if isinstance(error, PermissionError) else "missing"
    try:
        digester = Digester(algorithm_of(file.digest), file.size)
        with open(descriptor, "rb", buffering=0) as content:  # noqa: PTH123  # a descriptor
            buffer = bytearray(_READ_BYTES)
            while not ended.is_set() and (count := content.readinto(buffer)):
                digester.update(memoryview(buffer)[:count])
                seen.count += count
    except OSError:
        return "damaged"
    return "good" if digester.position == file.size and digester.digest() == file.digest else "damaged"
