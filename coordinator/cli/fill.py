"""`localmodel fill URI DIR`: the data plane by hand, without Kubernetes or Ray.

DIR is a complete and verified model, or is not there; interrupted, the same command goes on where it was. Where it is
staged until then: see `cli.target`. A model that is there already is not read; with `--verify` every byte of it
is, and what is damaged or missing is fetched anew.

Ends with 0; with 1 and the reason on standard error; with 2 for a wrong command; with 130 when it was interrupted.
Modules that only fill are imported after the first request.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from actors.disk.filesystem import disk_errors
from actors.disk.handles import Folder
from actors.disk.marker import OWN, DamagedMarker, Marker, misfits
from actors.disk.publish import FILE_MODE
from actors.errors import (
    Cancelled,
    InsufficientStorage,
    IntegrityError,
    LocalModelError,
    SourceChanged,
    SourceError,
    SourceThrottled,
    StoreError,
)
from actors.manifest import Manifest, ModelSource, Resolved, check_digest
from actors.sizes import say_bytes
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from coordinator.cli.arguments import add_fill_arguments as add_fill_arguments
from coordinator.cli.outcome import Done, summary
from coordinator.cli.output import print_failure, print_json, printable, say, tell
from coordinator.cli.signals import ending_on_signals, interruptible
from coordinator.cli.target import Target

if TYPE_CHECKING:  # what fills is imported when the source has answered
    from actors.disk.ingest import Ingest
    from actors.fill.fill import Fill
    from actors.fill.finish import Ending
    from actors.transferred import Transferred
    from coordinator.cli.progress import Sample

OWNER = "localmodel fill"
_USELESS = frozenset({"ArchiveRefused", "ArchiveDamaged"})
"""After these nothing of what was fetched is used again."""
_WAITS_S = (0.5, 2.0)
MAX_WAIT_S = 30.0
"""An origin that asks for a longer pause when it is to list its files ends the fill: it says how long."""


def fill(args: argparse.Namespace, options: Callable[[], SourceOptions] = SourceOptions.from_environ) -> int:
    """0: DIR holds the model. 1: it does not, and standard error says why.

    `options` gives what the source is asked with.
    """
    args.options = options
    source = ModelSource(args.uri, args.revision, tuple(args.include), tuple(args.exclude))
    began = time.monotonic()
    target: Target | None = None
    try:
        with ending_on_signals():
            target = Target.of(args.directory)
            done = _present(target, source, args)
            if done is None:
                with target.sole_writer(), _staged(target):
                    done = Done(_resolving(source, options, partial(_fill, target, args)))
            left = target.clear()  # also what a process that died right after its rename has left
            if left is not None:
                tell(f"localmodel: cannot remove what is left of the fill: {printable(left)}")
            _check_digest(done.marker.manifest, args)
    except LocalModelError as error:
        return _fail(args, error, target)
    except (Cancelled, KeyboardInterrupt):
        tell("localmodel: interrupted; the same command goes on from here")
        if args.json:
            print_failure("Interrupted", "the same command goes on from here", retryable=True)
        return 130
    seconds = time.monotonic() - began
    for path in done.extra:
        tell(f"extra: {printable(path)} is no part of the model, and was left where it is")
    if args.json:
        print_json(summary(done.marker, seconds) | done.to_json())
    else:
        manifest = done.marker.manifest
        size = f"{len(manifest.files)} files, {say_bytes(manifest.total_bytes)}"
        say(f"{printable(args.directory)}: {size} {done.how(seconds)}, {manifest.digest}")
    return 0


# --- what is there already ---


def _present(target: Target, source: ModelSource, args: argparse.Namespace) -> Done | None:
    """A complete copy of `source` is there; with `--verify`, as it was filled. None: nothing is. Raises StoreError."""
    try:
        marker = target.look()
    except DamagedMarker as error:
        if not args.verify:
            from coordinator.cli.verify import fill_command, marker_trouble

            reason, message = marker_trouble(target.path, error, fill_command(source, args.directory))
            raise StoreError(message, reason=reason) from error
        marker = None
    else:
        if marker is None:
            return None
    if marker is not None and marker.manifest.source.selection != source.selection:
        held = marker.manifest.source.uri
        raise StoreError(
            f"{target.path} holds {held} as it was asked for then: delete it, or choose another", reason="PathOccupied"
        )
    with disk_errors(f"reading {target.path}"), Folder.at(target.path) as folder:
        if args.verify or marker is None:
            return _verified(target, folder, source, marker, args)
        wrong = misfits(folder, marker.manifest)
    if wrong:
        from coordinator.cli.verify import fill_command

        path, what = next(iter(sorted(wrong.items())))
        command = fill_command(source, args.directory)
        raise StoreError(
            f"{target.path} has lost files since it was filled ({path} {what}): `{command}` fetches them anew",
            reason="ModelDamaged",
        )
    return Done(marker, checked=False)


def _verified(
    target: Target, folder: Folder, source: ModelSource, marker: Marker | None, args: argparse.Namespace
) -> Done:
    """Every file is as it was filled, or has been fetched anew. Without a marker the source says what it was."""
    from actors.fill.fill import verified_how
    from coordinator.cli.verify import examine, extra_files

    resolved: Resolved | None = None
    known = marker
    if known is None:
        resolved = resolve(source, args.options())
        if resolved.manifest.digest is None:
            raise StoreError(
                f"the marker of {target.path} is damaged, and {source.uri} does not say what all of its files hold:"
                f" delete {target.path}, and fill it again",
                reason="MarkerDamaged",
            )
        known = Marker(OWNER, resolved.manifest, verified_how(resolved.manifest), finished_at=time.time())
    states = examine(folder, known.manifest)
    wrong = tuple(path for path, state in states.items() if state != "good")
    if wrong:
        revision = known.manifest.revision
        again = partial(_mend, target, folder, known, frozenset(wrong), args)
        with target.sole_writer(), _staged(target):
            if resolved is not None:
                again(args.options(), resolved)
            else:
                _resolving(source, args.options, again, revision)
    if marker is None:
        with folder.enter(OWN, make=True) as own:
            own.remove("manifest.json")
            own.write("manifest.json", known.content, mode=FILE_MODE, sync=True)
    return Done(known, checked=True, repaired=wrong, extra=extra_files(folder, known.manifest))


def _mend(
    target: Target,
    folder: Folder,
    marker: Marker,
    wrong: frozenset[str],
    args: argparse.Namespace,
    options: SourceOptions,
    resolved: Resolved,
) -> Marker:
    """These files are what they were, each by one rename. Of an archive all is read, and these are taken from it."""
    from dataclasses import replace

    from actors.fill.origin_reader import FillSettings
    from actors.scrub.repair import Repair

    repair = Repair(marker, wrong, {}, FillSettings().chunk_bytes)
    changed = StoreError(
        f"{resolved.manifest.source.uri} no longer has the files that {target.path} was filled with:"
        f" delete {target.path}, and fill it again",
        reason="SourceChanged",
    )
    packed = resolved.manifest.packed
    if not packed and not repair.possible(resolved.manifest):
        raise changed
    wanted = resolved if packed else repair.narrowed(resolved)
    _check_room(target, wanted)
    with contextlib.closing(_ingest(target, wanted)) as ingest:
        sealed, _ = _run(ingest, wanted, lambda new: new if packed else repair.narrowed(new), options, args)
        if packed and _ending(target).unpacked(ingest, sealed)[0].digest != marker.manifest.digest:
            ingest.discard()
            raise changed
        with disk_errors(f"repairing {target.path}"):
            files = replace(marker.manifest, files=repair.files)
            ingest.replace_in(folder, lambda parent, name: parent.remove(name), files)
    return marker


# --- what is not there yet ---


def _resolving(
    source: ModelSource,
    load_options: Callable[[], SourceOptions],
    then: Callable[[SourceOptions, Resolved], Marker],
    revision: str | None = None,
) -> Marker:
    """Once more from the list of files if the source changes under us; a second change is an error."""
    options = load_options()
    try:
        return then(options, _listed(source, options, revision))
    except SourceChanged:
        return then(options, _listed(source, options, revision))


def _listed(source: ModelSource, options: SourceOptions, revision: str | None) -> Resolved:
    """What the source consists of. An origin that is busy, or fails, for a moment is asked again."""
    for wait_s in _WAITS_S:
        try:
            return resolve(source, options, pinned_revision=revision)
        except SourceError as error:
            failed = isinstance(error, SourceThrottled) or error.reason == "SourceError"
            pause_s = wait_s if error.retry_after_s is None else error.retry_after_s
            if not failed or pause_s > MAX_WAIT_S:
                raise
            time.sleep(pause_s)
    return resolve(source, options, pinned_revision=revision)


def _fill(target: Target, args: argparse.Namespace, options: SourceOptions, resolved: Resolved) -> Marker:
    _check_digest(resolved.manifest, args)
    started_at = time.time()
    _check_room(target, resolved)
    with contextlib.closing(_ingest(target, resolved)) as ingest:
        filled, moved = _run(ingest, resolved, lambda new: new, options, args)

        def expected(manifest: Manifest) -> None:
            try:
                _check_digest(manifest, args)
            except IntegrityError:
                ingest.discard()  # no second attempt would come to another one
                raise

        marker = _ending(target, expected, started_at).marker(ingest, filled, moved)
        ingest.publish(marker, target.path, trash=target.staging / "trash")
    return marker


def _check_digest(manifest: Manifest, args: argparse.Namespace) -> None:
    check_digest(manifest.digest, args.digest, "--digest")


def _check_room(target: Target, resolved: Resolved) -> None:
    """Returns if there is room, as far as the filesystem tells, before the first byte. Raises InsufficientStorage."""
    needed, held = resolved.manifest.peak_bytes, target.kept_bytes
    with disk_errors(f"measuring {target.staging}"):
        status = os.statvfs(target.staging)
    free = status.f_bavail * status.f_frsize
    if needed - held > free:
        begun = f", beside {say_bytes(held)} that are here already" if held else ""
        raise InsufficientStorage(
            f"{resolved.manifest.source.uri} needs {say_bytes(needed, up=True)} on the disk of {target.path}, and"
            f" {say_bytes(free)} are free{begun}: make room, or choose another disk"
        )


def _ingest(target: Target, resolved: Resolved) -> Ingest:
    """The space is reserved where the filesystem can promise that: a quota is found out here, too."""
    from actors.disk.ingest import open_ingest

    ingest = open_ingest(target.staging / "ingest", resolved.manifest, OWNER, resolved.versions)
    try:
        ingest.allocate()
    except BaseException:
        ingest.close()
        raise
    return ingest


def _run(
    ingest: Ingest,
    resolved: Resolved,
    narrow: Callable[[Resolved], Resolved],
    options: SourceOptions,
    args: argparse.Namespace,
) -> tuple[Manifest, Transferred]:
    """The manifest as it was filled. Locations that expire are renewed, as often as it takes while it helps."""
    from actors.fill.fill import Fill
    from actors.fill.origin_reader import FillSettings
    from coordinator.cli.progress import shown

    source, revision = resolved.manifest.source, resolved.manifest.revision
    work = Fill(
        ingest,
        resolved,
        FillSettings(connections=args.connections),
        renew=lambda: narrow(resolve(source, options, pinned_revision=revision)),
    )
    with interruptible(work.cancel), shown(partial(_sample, work, _origin_of(resolved))):
        return work.run(), work.progress().moved


def _ending(
    target: Target, expected: Callable[[Manifest], None] = lambda manifest: None, started_at: float | None = None
) -> Ending:
    import shutil

    from actors.fill.finish import Ending

    return Ending(OWNER, started_at, time.time, lambda: shutil.disk_usage(target.staging).free, expected)


@contextlib.contextmanager
def _staged(target: Target) -> Iterator[None]:
    """A staged copy stays after an error only if the same command can go on from it. A full disk is not left full.

    Around all attempts: the folder is needed as long as there is another.
    """
    try:
        yield
    except (LocalModelError, Cancelled, KeyboardInterrupt) as error:
        useless = isinstance(error, LocalModelError) and error.reason in _USELESS
        if useless or isinstance(error, InsufficientStorage) or not target.began:
            target.clear()
        raise


def _fail(args: argparse.Namespace, error: LocalModelError, target: Target | None) -> int:
    """Says why, and what is left of it."""
    kept = target is not None and target.began and error.reason != "Busy"
    message = str(error)
    if target is not None and kept:
        message += f"; what came of it is kept in {target.staging}, and the same command goes on from there"
    tell(f"localmodel: {printable(message)}")
    if args.json:
        more = {"kept": printable(target.staging)} if target is not None and kept else {}
        print_failure(error.reason, message, retryable=error.retryable, **more)
    return 1


def _sample(work: Fill, origin: str) -> Sample:
    """What there is to show of it now."""
    from coordinator.cli.progress import SHOWN_FILES, Sample

    now, connections = work.progress(), work.connections
    done = work.of_files()
    files = zip(work.manifest.files, done, strict=True)
    begun = [(file.path, have, file.size) for file, have in files if 0 < have < file.size]
    beside = f"{connections} connection{'s' if connections != 1 else ''}, {origin}" if connections else origin
    doing = "filling" if now.trouble is None else now.trouble.reason
    total = work.manifest.total_bytes
    return Sample(doing, now.done, total, now.rate_bytes_per_s, beside, tuple(begun[:SHOWN_FILES]))


def _origin_of(resolved: Resolved) -> str:
    """The host that the bytes come from, or the URI where that says more."""
    url = next((location.url for location in resolved.locations), "")
    return urlsplit(url).hostname or resolved.manifest.source.uri
