"""`localmodel fill` and `localmodel verify`: the data plane by hand, without Kubernetes or Ray.

    fill URI DIR      DIR appears by one rename, complete and verified; interrupted, it goes on where it was
    verify DIR        every byte of DIR is hashed again and compared with what was recorded when it was filled

Until DIR is there, everything is in `.<name>.localmodel` beside it. Both end with 0, or 1 and the reason on standard
error.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from actors.diff import check_digest
from actors.digest import Digester, algorithm_of
from actors.errors import LocalModelError, SourceChanged, StoreError
from actors.fetch import FillSettings
from actors.files import Cancelled
from actors.fill import Fill, verified_how
from actors.manifest import ManifestFile, ModelSource, Resolved
from actors.origin import SourceOptions
from actors.source import resolve
from actors.store import MARKER, Marker, disk_errors, is_complete, open_ingest, read_marker, remove_tree
from coordinator.quantity import format_bytes, format_duration

OWNER = "localmodel fill"
_READ_BYTES = 1 << 20


def add_fill_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("uri", metavar="URI", help="hf://owner/name[:revision], s3://…, gs://…, https://…, file:///…")
    parser.add_argument(
        "directory", metavar="DIR", type=Path, help="where the model is to be; must not exist, or be empty"
    )
    parser.add_argument("--revision", help="of a Hugging Face repository: a branch, tag or commit")
    parser.add_argument("--include", action="append", default=[], metavar="GLOB", help="only these files; repeatable")
    parser.add_argument("--exclude", action="append", default=[], metavar="GLOB", help="not these files; repeatable")
    parser.add_argument("--digest", metavar="sha256:HEX", help="the manifest digest it must have")
    most = FillSettings().connections
    parser.add_argument(
        "--connections", type=_positive, default=most, metavar="N", help=f"at most so many (default: {most})"
    )
    parser.add_argument("--json", action="store_true", help="the last line of standard output says what was done")


def add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", type=Path)
    parser.add_argument("--json", action="store_true", help="the last line of standard output says what was found")


def fill(args: argparse.Namespace) -> int:
    """0: DIR holds the model. 1: it does not, and standard error says why. Credentials come from the environment."""
    source = ModelSource(args.uri, args.revision, tuple(args.include), tuple(args.exclude))
    target = Path(os.path.abspath(args.directory))  # noqa: PTH100  links in it are the user's
    began = time.monotonic()
    try:
        marker = _present(target, source)
        present = marker is not None
        if marker is None:
            with _sole_writer(target) as folder:
                marker = _fill_resolving(source, target, folder, args)
        else:
            _remove(_staging(target))  # a process that died right after its rename leaves it
        check_digest(marker.manifest.digest, args.digest)
    except LocalModelError as error:
        return _fail(str(error))
    except Cancelled:
        _fail("interrupted; the same command goes on from here")
        return 130
    seconds = time.monotonic() - began
    if args.json:
        _print_json(_summary(marker, seconds))
    else:
        manifest = marker.manifest
        size = f"{len(manifest.files)} files, {format_bytes(manifest.total_bytes)}B"
        done = "was already there" if present else f"in {format_duration(seconds)}"
        sys.stdout.write(f"{target}: {size} {done}, {manifest.digest}\n")
    return 0


def verify(args: argparse.Namespace) -> int:
    """0: every file is as it was when it was filled, and there is no other. 1: standard error names what is not so."""
    folder: Path = args.directory
    marker = read_marker(folder)
    if marker is None:
        return _fail(f"{folder} holds no {MARKER}: it was not filled by localmodel, or not completely")
    from concurrent.futures import ThreadPoolExecutor  # here, because `fill` would wait for it

    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="verify") as pool:
        states = list(pool.map(lambda file: _state(folder, file), marker.manifest.files))
    named = {file.path: state for file, state in zip(marker.manifest.files, states, strict=True)}
    wrong = {state: [path for path, each in named.items() if each == state] for state in ("damaged", "missing")}
    wrong["extra"] = sorted(_paths(folder) - named.keys())
    for state, paths in wrong.items():
        for path in paths:
            sys.stderr.write(f"{state}: {path}\n")
    good = not any(wrong.values())
    if args.json:
        counts = {"files": len(named), "bytes": marker.manifest.total_bytes}
        _print_json({"ok": good, **counts, "manifestDigest": marker.manifest.digest, **wrong})
    elif good:
        sys.stdout.write(f"{folder}: {len(named)} files are as they were filled, {marker.manifest.digest}\n")
    return 0 if good else 1


# --- fill ---


def _present(target: Path, source: ModelSource) -> Marker | None:
    """The marker of a complete copy of `source` in `target`; None if there is nothing. Raises StoreError otherwise."""
    with disk_errors(f"reading {target}"):
        if not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir())):
            return None
    marker = read_marker(target)
    if marker is None:
        raise StoreError(f"{target} exists and was not filled by localmodel: choose another", reason="PathOccupied")
    if marker.manifest.source.selection != source.selection:
        held = marker.manifest.source.uri
        raise StoreError(
            f"{target} holds {held} as it was asked for then: delete it, or choose another", reason="PathOccupied"
        )
    if not is_complete(target, marker.manifest):
        raise StoreError(f"{target} has lost files since it was filled: delete it first", reason="PathOccupied")
    return marker


@contextlib.contextmanager
def _sole_writer(target: Path) -> Iterator[Path]:
    """The folder to fill in, on the same filesystem, and nobody else's meanwhile."""
    folder = _staging(target)
    with disk_errors(f"preparing {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(f"another `localmodel fill` is at work on {target}", reason="Busy") from error
        yield folder
    finally:
        os.close(descriptor)


def _fill_resolving(source: ModelSource, target: Path, folder: Path, args: argparse.Namespace) -> Marker:
    """Once more from the list of files if the source changes under us; a second change is an error."""
    options = SourceOptions.from_environ()
    try:
        return _fill(resolve(source, options), options, target, folder, args)
    except SourceChanged:
        return _fill(resolve(source, options), options, target, folder, args)


def _fill(resolved: Resolved, options: SourceOptions, target: Path, folder: Path, args: argparse.Namespace) -> Marker:
    """Locations that expire on the way are renewed, as often as it takes while something comes of it."""
    check_digest(resolved.manifest.digest, args.digest)
    started_at = time.time()
    ingest = open_ingest(folder / "ingest", resolved.manifest, OWNER)
    with contextlib.closing(ingest):
        ingest.allocate()
        source, revision = resolved.manifest.source, resolved.manifest.revision
        work = Fill(
            ingest,
            resolved,
            FillSettings(connections=args.connections),
            renew=lambda: resolve(source, options, pinned_revision=revision),
        )
        with _interruptible(work), _progress_bar(work):
            manifest = work.run()
        verified = verified_how(resolved.manifest)
        if manifest.packed:
            from actors.archive import unpack  # here, because few sources need it, and all would wait for it

            room_bytes = shutil.disk_usage(folder).free
            manifest, verified = unpack(ingest, manifest, verified, room_bytes=room_bytes, check=lambda: None)
        check_digest(manifest.digest, args.digest)
        marker = Marker(
            owner=OWNER,
            manifest=manifest,
            verified=verified,
            started_at=started_at,
            finished_at=time.time(),
            moved=work.progress().moved,
        )
        ingest.publish(marker, target, trash=folder / "trash")
    _remove(folder)
    return marker


def _staging(target: Path) -> Path:
    return target.parent / f".{target.name}.localmodel"


def _remove(folder: Path) -> None:
    with disk_errors(f"removing {folder}"):
        remove_tree(folder)


@contextlib.contextmanager
def _interruptible(work: Fill) -> Iterator[None]:
    """SIGINT and SIGTERM end the fill in good order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        threading.Thread(target=work.cancel).start()  # not here: the lock it takes may be held by this very thread

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _progress_bar(work: Fill) -> Iterator[None]:
    """Drawn on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    finished = threading.Event()
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("filling", total=work.manifest.total_bytes)

        def draw() -> None:
            while not finished.wait(0.2):
                now = work.progress()
                said = "filling" if now.trouble is None else now.trouble.reason
                bar.update(task, completed=now.done, description=said)

        drawer = threading.Thread(target=draw, name="progress", daemon=True)
        drawer.start()
        try:
            yield
        finally:
            finished.set()
            drawer.join()


def _summary(marker: Marker, seconds: float) -> dict[str, Any]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "bytes": marker.manifest.total_bytes,
        "files": len(marker.manifest.files),
        "seconds": round(seconds, 3),
        "cpuSeconds": round(usage.ru_utime + usage.ru_stime, 3),
        "maxRssBytes": _max_rss_bytes(),
        "verified": dict(Counter(marker.verified.values())),
        "manifestDigest": marker.manifest.digest,
    }


def _max_rss_bytes() -> int:
    """The most memory this program held. Not `ru_maxrss`, which starts with that of whoever started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


# --- verify ---


def _state(folder: Path, file: ManifestFile) -> str:
    """`good`, `damaged` or `missing`."""
    path = folder / file.path
    if path.is_symlink() or not path.is_file():
        return "missing"
    try:
        digester = Digester(algorithm_of(file.digest), file.size)
        with path.open("rb", buffering=0) as content:
            buffer = bytearray(_READ_BYTES)
            while count := content.readinto(buffer):
                digester.update(memoryview(buffer)[:count])
    except OSError:
        return "damaged"
    return "good" if digester.position == file.size and digester.digest() == file.digest else "damaged"


def _paths(folder: Path) -> set[str]:
    found = {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()
    }
    return found - {MARKER}


# --- output ---


def _fail(message: str) -> int:
    sys.stderr.write(f"localmodel: {message}\n")
    return 1


def _print_json(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)
