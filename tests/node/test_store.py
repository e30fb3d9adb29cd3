"""The store of one root: what it commits, adopts, keeps aside and removes, whatever is on the disk, step by step."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.agent.evictions import Ledger
from actors.chunks import Chunk
from actors.disk import handles
from actors.disk.filesystem import OUR_OWN
from actors.disk.handles import DEEPEST, Folder
from actors.disk.ingest import Ingest
from actors.disk.marker import MARKER, DamagedMarker, Marker, load_marker, parse_marker, read_marker
from actors.disk.store import Standing, Store
from actors.disk.trash import Aside, Trash
from actors.errors import StoreError
from actors.manifest import Digest, Manifest, ManifestFile, ModelSource, make_manifest, storage_key
from actors.scrub.record import Record
from tests.kit import damage
from tests.kit.damage import names, tree
from tests.kit.disks import tmpfs

URI = "hf://a/model"
KEY = storage_key(URI)
OWNER = "cluster-1"
FILES = {"config.json": b"{}", "a/b/large.bin": os.urandom(150_000), "a/small.bin": b"x" * 10, "empty": b""}


def digest_of(content: bytes) -> Digest:
    return Digest(f"sha256:{hashlib.sha256(content).hexdigest()}")


def a_manifest(files: dict[str, bytes] = FILES, uri: str = URI) -> Manifest:
    return make_manifest(
        ModelSource(uri), "r1", [ManifestFile(path, len(each), digest_of(each)) for path, each in files.items()]
    )


def a_marker(manifest: Manifest | None = None, owner: str = OWNER) -> Marker:
    manifest = manifest or a_manifest()
    return Marker(owner, manifest, {file.path: "sha256" for file in manifest.files}, 1.0, 2.0)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    damage.text("precious")(tmp_path / "outside/precious")
    return tmp_path / "outside"


@pytest.fixture
def store(root: Path, clock: Clock) -> Store:
    return Store(root, "one", clock, 0.0)


def write(ingest: Ingest, files: dict[str, bytes]) -> int:
    """All that is missing is there, as a fill brings it; how many bytes that were."""
    ingest.allocate()
    written = 0
    for index, file in enumerate(ingest.manifest.files):
        done = ingest.journal.done.get(index)
        if done is not None and done.total == file.size:
            continue
        descriptor = ingest.open_file(index)
        os.pwrite(descriptor, files[file.path], 0)
        os.close(descriptor)
        ingest.journal.record(Chunk(index, 0, file.size))
        written += file.size
    return written


def commit(store: Store, files: dict[str, bytes] = FILES, owner: str = OWNER, uri: str = URI) -> int:
    manifest = a_manifest(files, uri)
    ingest = store.ingest(storage_key(uri), manifest, owner)
    try:
        written = write(ingest, files)
        store.commit(storage_key(uri), ingest, a_marker(manifest, owner))
    finally:
        ingest.close()
    return written


def own(root: Path, *parts: str) -> Path:
    return root.joinpath(".localmodel", *parts)


def aside(root: Path) -> list[str]:
    return names(own(root, "aside")) if own(root, "aside").is_dir() else []


def test_a_model_is_committed_recorded_and_found_again(root: Path, store: Store) -> None:
    commit(store)
    assert (tree(root / "models" / KEY), store.standing(KEY, OWNER)) == (FILES, Standing.OURS)
    assert (names(own(root, "ingest")), names(own(root, "trash"))) == ([], [])
    assert Store(root, "two").committed() == {KEY: a_marker()}
    assert {path.stat().st_mode & 0o777 for path in (root / "models").rglob("*") if path.is_dir()} == {0o755}
    assert {path.stat().st_mode & 0o777 for path in (root / "models").rglob("*") if path.is_file()} == {0o444}


# --- a process that dies at any step of a commit ---


class Died(BaseException):
    """As kill -9 between two system calls."""


CHANGING = ("rename", "mkdir", "unlink", "rmdir", "fsync", "open", "fchmod")


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], object]:
    def at(step: int) -> object:
        """From the `step`-th change to the disk on, every further one fails: nobody is there to make it."""
        patched, left = pytest.MonkeyPatch(), [step]

        def dies(real: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: object, **more: object) -> object:
                if left[0] <= 0:
                    raise Died
                left[0] -= 1
                return real(*arguments, **more)

            return call

        for name in CHANGING:
            patched.setattr(os, name, dies(getattr(os, name)))
        return patched

    return at


@pytest.mark.slow
@pytest.mark.parametrize("before", ["nothing", "an empty folder", "folders in a folder", "an old copy"])
def test_a_commit_that_dies_at_any_step_is_complete_or_goes_on(
    before: str, root: Path, clock: Clock, dying: Callable[[int], pytest.MonkeyPatch]
) -> None:
    old = {"config.json": b"old", "other": b"y"}
    step, died = 0, True
    while died:
        case = root / f"{step}"
        case.mkdir()
        store = Store(case, "one", clock, 0.0)
        folder = case / "models" / KEY
        if before == "an old copy":
            commit(store, old)
        elif before != "nothing":
            (folder / ("a/b" if before == "folders in a folder" else "")).mkdir(parents=True)
        inode = folder.stat().st_ino if folder.exists() else None
        ingest = store.ingest(KEY, a_manifest(), OWNER)
        write(ingest, FILES)
        patched = dying(step)
        try:
            store.commit(KEY, ingest, a_marker())
            died = False
        except Died:
            pass
        finally:
            patched.undo()
            ingest.close()

        after = Store(case, f"two-{step}", clock, 0.0)
        found = after.committed().get(KEY)
        if found == a_marker():
            assert tree(folder) == FILES, step
        else:
            assert found == (a_marker(a_manifest(old)) if before == "an old copy" and folder.exists() else None), step
            assert after.standing(KEY, OWNER) in (Standing.ABSENT, Standing.OURS), step
            assert commit(after) == 0, f"{step}: nothing is written twice"
            assert tree(folder) == FILES, step
        if before in ("an empty folder", "folders in a folder"):
            assert folder.stat().st_ino == inode, "whoever has mounted it sees the model"
        assert read_marker(folder) == a_marker()
        for key in after.ingests(OWNER):
            after.abandon(key)
        after.used = {}
        clock.now += 1
        after.empty_trash()
        assert (names(own(case, "ingest")), names(own(case, "trash")), aside(case)) == ([], [], []), step
        step += 1
    assert step > 10


@pytest.mark.slow
def test_half_a_model_that_is_not_wanted_any_more_is_taken_away_again(
    root: Path, clock: Clock, dying: Callable[[int], pytest.MonkeyPatch]
) -> None:
    step, died, halves = 0, True, 0
    while died:
        case = root / f"{step}"
        (case / "models" / KEY).mkdir(parents=True)
        store = Store(case, "one", clock, 0.0)
        ingest = store.ingest(KEY, a_manifest(), OWNER)
        write(ingest, FILES)
        patched = dying(step)
        try:
            store.commit(KEY, ingest, a_marker())
            died = False
        except Died:
            pass
        finally:
            patched.undo()
            ingest.close()
        halves += bool(tree(case / "models" / KEY)) and read_marker(case / "models" / KEY) is None
        after = Store(case, "two", clock, 0.0)
        if KEY not in after.committed():
            after.abandon(KEY)
            assert tree(case / "models" / KEY) == {}, step
            assert after.standing(KEY, OWNER) is Standing.ABSENT
        step += 1
    assert halves > 3, "it did die half-way"


def test_errors_after_the_rename_change_nothing_about_it(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ingest = store.ingest(KEY, a_manifest(), OWNER)
    write(ingest, FILES)
    rename = os.rename

    def then_fail(source: str, target: str, **more: int) -> None:
        rename(source, target, **more)
        if target == KEY:
            for name in ("rename", "unlink", "rmdir", "fsync", "mkdir"):
                monkeypatch.setattr(os, name, failing)

    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context():
        monkeypatch.setattr(os, "rename", then_fail)
        store.commit(KEY, ingest, a_marker())
        monkeypatch.undo()
    assert tree(root / "models" / KEY) == FILES
    assert Store(root, "two").committed() == {KEY: a_marker()}
    assert {record.message for record in caplog.records} >= {
        "a model is there, but its folder was not synced",
        "cannot remove what is left of a fill",
        "a commit is not recorded twice",
    }


# --- what lies aside ---


def test_an_old_copy_lies_aside_until_no_pod_can_have_it_open(root: Path, store: Store, clock: Clock) -> None:
    commit(store)
    store.remove(KEY, OWNER)
    (copy,) = store.aside()
    moved_at, size = clock.now, sum(map(len, FILES.values()))
    assert (copy.key, copy.at, copy.size_bytes) == (KEY, moved_at, size)
    store.margin_s, clock.now = 5.0, moved_at + 3600
    for used, kept in (
        (None, True),
        ({KEY: moved_at - 10}, True),
        ({KEY: moved_at}, True),
        ({KEY: moved_at + 4}, True),
        ({KEY: moved_at + 6}, False),
    ):
        store.used = used
        assert store.trash_is_empty() == kept, used
        store.empty_trash()
        assert (len(store.aside()) == 1) == kept, used
    assert store.trash_is_empty()


def test_what_moved_aside_a_moment_ago_stays_for_one_more_list_of_pods(store: Store, clock: Clock) -> None:
    commit(store)
    store.remove(KEY, OWNER)
    store.margin_s, store.used = 5.0, {}
    for passed_s, left in ((0, 1), (4, 1), (2, 0)):
        clock.now += passed_s
        assert not store.trash_is_empty(), "its space is about to come back"
        store.empty_trash()
        assert len(store.aside()) == left
    assert store.trash_is_empty()


def test_what_was_told_of_pods_says_nothing_of_what_moved_aside_since(store: Store, clock: Clock) -> None:
    """The coordinator may be gone: what it said an hour ago was true an hour ago."""
    store.margin_s, store.used, store.used_at = 5.0, {}, clock.now
    clock.now += 3600
    commit(store)
    store.remove(KEY, OWNER)
    clock.now += 3600
    store.empty_trash()
    assert len(store.aside()) == 1
    store.used_at = clock.now
    store.empty_trash()
    assert store.aside() == []


@pytest.mark.parametrize("first", [True, False], ids=["before it is looked at", "after"])
def test_a_copy_that_moves_aside_while_others_are_unlinked_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch, *, first: bool
) -> None:
    """Nobody has asked yet whether a pod has it open."""
    aside = Trash.aside

    def meanwhile(trash: Trash) -> list[Aside]:
        if first:
            store.remove(KEY, OWNER)
        found = aside(trash)
        if not first:
            store.remove(KEY, OWNER)
        return found

    commit(store)
    store.used = {}
    with monkeypatch.context() as patch:
        patch.setattr(Trash, "aside", meanwhile)
        store.empty_trash()
    assert [copy.key for copy in store.aside()] == [KEY]
    assert store.aside()[0].size_bytes == sum(map(len, FILES.values())), "whole"


def test_what_lies_aside_survives_a_restart_with_its_size_and_its_time(root: Path, store: Store, clock: Clock) -> None:
    commit(store)
    commit(store, {"config.json": b"another"})
    store.remove(KEY, OWNER)
    before = store.aside()
    assert sorted(each.size_bytes for each in before) == [7, sum(map(len, FILES.values()))]
    clock.now += 100
    assert Store(root, "two", clock).aside() == before


def test_what_an_earlier_version_left_there_counts_from_when_it_was_moved(root: Path, store: Store) -> None:
    damage.text("x" * 5000)(own(root, "trash", f"{KEY}.0123456789ab", "w.bin"))
    (copy,) = store.aside()
    assert (copy.key, abs(copy.at - own(root, "trash", copy.name).stat().st_ctime) < 1) == (KEY, True)
    assert copy.size_bytes >= 5000


def test_a_process_in_the_old_folder_reads_every_file_to_its_end(root: Path, store: Store, clock: Clock) -> None:
    """As a pod that has mounted it: while it is replaced, removed and swept up."""
    commit(store)
    script = (
        "import pathlib, sys\n"
        "print('here', flush=True); sys.stdin.readline()\n"
        "found = {str(p): p.read_bytes().hex() for p in pathlib.Path('.').rglob('*')"
        " if p.is_file() and p.parts[0] != '.localmodel'}\n"
        "print(found)\n"
    )
    began, pod = clock.now, [sys.executable, "-c", script]
    with subprocess.Popen(
        pod, cwd=root / "models" / KEY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        clock.now += 10
        commit(store, {"config.json": b"the next"})
        clock.now += 10
        store.remove(KEY, OWNER)
        clock.now += 10
        store.used = {KEY: began}
        store.empty_trash()
        out, _ = process.communicate("go\n", timeout=20)
    assert {path: bytes.fromhex(content) for path, content in eval(out).items()} == FILES
    store.used = {}
    store.empty_trash()
    assert store.aside() == []


def test_what_cannot_be_unlinked_yet_keeps_nothing_else_and_is_said_once(
    root: Path, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """NFS keeps a file that is open as `.nfs…`, and the folder it is in."""
    commit(store)
    store.remove(KEY, OWNER)
    damage.text("x")(own(root, "trash", "gone.1", ".nfs0001"))
    damage.text("x")(own(root, "trash", "gone.2", "file"))
    unlink = os.unlink

    def silly(path: str, *, dir_fd: int | None = None) -> None:
        if path.startswith(".nfs"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        unlink(path, dir_fd=dir_fd)

    store.used = {}
    clock.now += 1
    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", silly)
        for _ in range(3):
            store.empty_trash()
    assert names(own(root, "trash")) == ["gone.1"]
    assert [record.message for record in caplog.records].count("cannot unlink yet") == 1
    assert store.trash_is_empty(), "nothing more comes of waiting for it"
    store.empty_trash()
    assert names(own(root, "trash")) == []


def test_a_copy_that_is_swapped_while_it_is_removed_is_not_unlinked(
    root: Path, store: Store, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(store)
    place, unlock = root / "models" / KEY, Folder.unlock

    def swap(folder: Folder, name: str) -> None:
        unlock(folder, name)
        if name == KEY and not place.is_symlink():
            place.rename(root / "elsewhere")
            (root / "mine").mkdir()
            (root / "mine/file").write_text("mine")
            (root / "mine").rename(place)

    monkeypatch.setattr(Folder, "unlock", swap)
    store.remove(KEY, OWNER)
    store.used = {}
    store.empty_trash()
    (kept,) = aside(root)
    assert (own(root, "aside", kept, "file")).read_text() == "mine"


# --- junk ---

PLACES = (".localmodel", "models", *(f".localmodel/{name}" for name in (
    "trash", "ingest", "scrub", "evicted", "committed", "aside", "incarnation",
)))  # fmt: skip
JUNK: dict[str, Callable[[Path], damage.Damage]] = {
    "a link elsewhere": damage.link,
    "a dangling link": lambda _: damage.link("/nowhere"),
    "a link to itself": lambda _: damage.link("x/../x"),
    "a file": lambda _: damage.text("no name of an agent"),
    "binary": lambda _: damage.text(os.urandom(5000)),
    "a fifo": lambda _: damage.fifo,
    **({"a device": lambda _: damage.device} if os.geteuid() == 0 else {}),
    "a folder": lambda _: damage.folder,
    "a folder that may not be looked into": lambda _: damage.locked,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK.keys())
@pytest.mark.parametrize("when", ["before it opens", "while it is open"])
def test_no_junk_in_our_places_keeps_a_store_from_working_or_leads_it_elsewhere(
    when: str, place: str, junk: Callable[[Path], damage.Damage], root: Path, outside: Path
) -> None:
    store = Store(root, "one", margin_s=0.0) if when == "while it is open" else None
    (root / place).parent.mkdir(exist_ok=True)
    junk(outside)(root / place)
    store = store or Store(root, "one", margin_s=0.0)
    store.used = {}
    store.check_fence()
    commit(store)
    assert Ledger(store.evicted_notes).known == frozenset()
    store.scrub_notes.write(KEY, b"{}")
    store.remove(KEY, OWNER)
    store.empty_trash()
    store.check_fence()
    assert (names(outside), (outside / "precious").read_text()) == (["precious"], "precious")
    assert (tree(root / "models"), store.aside()) == ({}, []) if place != "models" else store.aside() == []


@pytest.mark.slow
@pytest.mark.parametrize("place", ["ingest", "trash", "scrub", "evicted", "committed"])
def test_no_junk_inside_our_places_keeps_a_store_from_working(place: str, root: Path, outside: Path) -> None:
    for number, junk in enumerate(JUNK.values()):
        for name in (f"{KEY}.{number}", f"{KEY}.json" if not number else f"{number}.json"):
            junk(outside)(own(root, place, name))
    damage.text("x")(own(root, place, os.fsdecode(b"\xff\xfe.json")))
    damage.text("x")(own(root, place, "n" * 255))
    with own(root, place, f"{'0' * 16}.json").open("wb") as sparse:
        sparse.truncate(1 << 40)
    store = Store(root, "one", margin_s=0.0)
    store.used = {}
    assert (store.committed(), Ledger(store.evicted_notes).known) == ({}, frozenset())
    assert store.scrub_notes.read(KEY) is None or place == "scrub"
    commit(store)
    for key in store.ingests(OWNER):
        store.abandon(key)
    store.empty_trash()
    assert (tree(root / "models" / KEY), names(outside)) == (FILES, ["precious"])
    assert (names(own(root, "ingest")), names(own(root, "trash"))) == ([], [])


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK.keys())
def test_what_stands_where_a_model_belongs_and_is_not_ours_is_kept(
    junk: Callable[[Path], damage.Damage], root: Path, store: Store, outside: Path
) -> None:
    junk(outside)(root / "models" / KEY)
    before = (root / "models" / KEY).lstat().st_ino
    assert store.occupied(KEY, OWNER)
    assert (store.committed(), store.marker(KEY)) == ({}, None)
    ingest = store.ingest(KEY, a_manifest(), OWNER)
    write(ingest, FILES)
    if store.standing(KEY, OWNER) is Standing.UNMARKED:
        store.commit(KEY, ingest, a_marker())
        (aside,) = (root / ".localmodel/aside").iterdir()
        assert (aside.lstat().st_ino, tree(root / "models" / KEY)) == (before, FILES)
        return
    with pytest.raises(StoreError, match="move it away, or delete it"):
        store.commit(KEY, ingest, a_marker())
    with pytest.raises(StoreError, match="move it away, or delete it"):
        store.remove(KEY, OWNER)
    ingest.close()
    assert ((root / "models" / KEY).lstat().st_ino, names(outside)) == (before, ["precious"])


@pytest.mark.parametrize("junk", ["a link elsewhere", "a file", "a fifo"])
def test_what_took_the_place_of_a_model_of_ours_is_set_aside(
    junk: str, root: Path, store: Store, outside: Path
) -> None:
    commit(store)
    JUNK[junk](outside)(root / "models" / KEY)
    assert (store.look(KEY), store.standing(KEY, OWNER)) == (None, Standing.ABSENT)
    commit(store)
    assert (tree(root / "models" / KEY), len(aside(root)), names(outside)) == (FILES, 1, ["precious"])
    assert [path for path in store.junk if KEY in path] == [f"models/{KEY}"]


def test_a_disk_that_was_unmounted_is_not_written_to(root: Path, store: Store) -> None:
    """What would be written then would lie on the disk below."""
    root.rename(root.with_name("unmounted"))
    root.mkdir()
    for act in (store.check_fence, store.committed, lambda: store.ingests(OWNER), store.empty_trash):
        with pytest.raises(StoreError, match="was its disk unmounted"):
            act()
    assert names(root) == []


# --- markers ---


def marker_json(**changes: Any) -> bytes:
    data = a_marker().to_json()
    data["manifest"]["files"][0] |= changes.pop("file", {})
    data["manifest"]["source"] |= changes.pop("source", {})
    return json.dumps(data | changes).encode()


BAD_MARKERS: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"\x00\xff\x00",
    "cut off": marker_json()[:-20],
    "a number": b"5",
    "a list": b"[]",
    "100,000 brackets": b"[" * 100_000,
    "100,000 braces": b'{"a":' * 100_000,
    "a number of 10,000 digits": b'{"version": ' + b"9" * 10_000 + b"}",
    "another version": marker_json(version=2),
    "no owner": marker_json(owner=None),
    "no manifest": marker_json(manifest=None),
    "no files": marker_json(manifest={"source": {}, "revision": None, "files": None}),
    "a time that is text": marker_json(finishedAt="x"),
    "a time that is infinite": marker_json(finishedAt=float("inf")),
    "a time that is no number": marker_json(startedAt=float("nan")),
    "a negative count": marker_json(bytesFromOrigin=-1),
    "a count that is a list": marker_json(bytesFromPeers=[1]),
    "peers that are a list": marker_json(wrongPeers=[1]),
    "a URI that is a number": marker_json(source={"uri": 5}),
    "globs that are text": marker_json(source={"include": 5}),
    **{
        f"a file of {size!r} bytes": marker_json(file={"size": size})
        for size in (-1, 1 << 63, 1 << 70, 1.5, float("inf"), "1", None, True, [1])
    },
    **{
        f"a file at {path!r}": marker_json(file={"path": path})
        for path in (
            "../x", "/etc/passwd", "a/../../x", "", ".", "..", "a//b", "a/", "a\0b", "\ud800", "a\\b", 5, None, ["a"],
            ".localmodel/x", "empty",
        )
    },
    **{
        f"a digest {digest!r}": marker_json(file={"digest": digest})
        for digest in ("x", "sha256:", "sha256:../x", "crc64:00", 5, ["a"])
    },
}  # fmt: skip


@pytest.mark.parametrize("content", BAD_MARKERS.values(), ids=BAD_MARKERS.keys())
def test_a_marker_that_we_would_not_have_written_is_not_believed_and_made_anew(
    content: bytes, root: Path, store: Store
) -> None:
    with pytest.raises(DamagedMarker):
        parse_marker(content)
    commit(store)
    marker = root / "models" / KEY / MARKER
    damage.text(content)(marker)
    assert (read_marker(marker.parent.parent), store.marker(KEY)) == (None, None)

    after = Store(root, "two")

    assert (after.committed(), after.unread) == ({KEY: a_marker()}, {KEY: a_marker()})
    assert marker.read_bytes() == content, "until it is remembered that the copy has to be read"
    after.adopt(KEY, after.unread[KEY])
    assert parse_marker(marker.read_bytes()) == a_marker()
    (kept,) = aside(root)
    assert (own(root, "aside", kept).read_bytes(), kept.startswith(f"{KEY}.manifest.json")) == (content, True)


SHAPES = {
    "a link to itself, elsewhere": damage.moved_and_linked,
    "a link": damage.link("/etc/passwd"),
    "a fifo": damage.fifo,
    "a folder": damage.folder,
    "gone": damage.gone,
    **({"a device": damage.device} if os.geteuid() == 0 else {}),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("place", [MARKER, ".localmodel"])
def test_a_marker_of_another_shape_is_made_anew(place: str, shape: damage.Damage, root: Path, store: Store) -> None:
    commit(store)
    shape(root / "models" / KEY / place)
    after = Store(root, "two")
    assert (after.committed(), after.unread) == ({KEY: a_marker()}, {KEY: a_marker()})
    after.adopt(KEY, after.unread[KEY])
    assert read_marker(root / "models" / KEY) == a_marker()


def test_a_marker_of_another_user_is_not_believed(root: Path, store: Store) -> None:
    if os.geteuid() != 0:
        pytest.skip("takes root, to write as somebody else")
    commit(store)
    planted = a_marker(owner="somebody")
    marker = root / "models" / KEY / MARKER
    damage.text(planted.content)(marker)
    os.chown(marker, 1234, 1234)
    assert (store.marker(KEY), store.standing(KEY, "somebody")) == (None, Standing.FOREIGN)
    assert store.committed() == {KEY: a_marker()}, "what we recorded is made anew"


def test_a_damaged_marker_without_a_record_is_neither_ours_nor_in_the_way(
    root: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    commit(store)
    damage.text("{")(root / "models" / KEY / MARKER)
    damage.gone(own(root, "committed", f"{KEY}.json"))
    assert (store.committed(), store.standing(KEY, OWNER)) == ({}, Standing.DAMAGED)
    with pytest.raises(StoreError, match="move it away"):
        store.remove(KEY, OWNER)
    assert [record.message for record in caplog.records].count("found what is not ours") == 1, "it is said once"
    assert list(store.junk) == [f"models/{KEY}"]
    commit(store, {"config.json": b"new"})
    assert store.junk == {}
    assert (tree(root / "models" / KEY), len(store.aside())) == ({"config.json": b"new"}, 1)


def test_a_damaged_record_is_set_aside_and_written_anew(root: Path, store: Store) -> None:
    commit(store)
    damage.text("{")(own(root, "committed", f"{KEY}.json"))
    damage.text("{")(root / "models" / KEY / MARKER)
    after = Store(root, "two")
    assert (after.committed(), len(aside(root))) == ({}, 1)


def test_a_copy_of_an_earlier_version_is_recorded(root: Path, store: Store) -> None:
    commit(store)
    damage.gone(own(root, "committed"))
    Store(root, "two").committed()
    damage.flip(root / "models" / KEY / MARKER)
    assert Store(root, "three").committed() == {KEY: a_marker()}


def test_a_record_of_a_copy_that_is_gone_is_forgotten(root: Path, store: Store) -> None:
    commit(store)
    damage.gone(root / "models" / KEY)
    assert (Store(root, "two").committed(), names(own(root, "committed"))) == ({}, [])


def test_a_folder_with_things_of_somebody_else_is_not_taken_for_a_copy_without_marker(root: Path, store: Store) -> None:
    commit(store)
    damage.gone(root / "models" / KEY)
    damage.text("mine")(root / "models" / KEY / "config.json")
    damage.text("mine")(root / "models" / KEY / "notes.txt")
    assert (store.committed(), store.standing(KEY, OWNER)) == ({}, Standing.UNMARKED)


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b"5", b'{"at": 1e999}', b'{"at":"x"}', b"\xff"])
def test_a_note_that_makes_no_sense_is_not_believed(content: bytes, root: Path, store: Store) -> None:
    for place in ("scrub", "evicted", "committed"):
        damage.text(content)(own(root, place, f"{KEY}.json"))
    assert Ledger(store.evicted_notes).known == frozenset()
    assert Record.from_json(content, a_marker()) is None
    assert store.committed() == {}
    assert any(name.startswith(f"{KEY}.json") for name in aside(root))


# --- filesystems ---


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, int], None]]:
    def refuse(name: str, number: int) -> None:
        def call(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, name, call)

    yield refuse
    monkeypatch.undo()


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EROFS])
def test_a_disk_without_modes_will_do(
    number: int, root: Path, store: Store, refusing: Callable[[str, int], None]
) -> None:
    refusing("fchmod", number)
    commit(store)
    assert tree(root / "models" / KEY) == FILES


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EBADF])
def test_a_disk_that_cannot_reserve_will_do(
    number: int, root: Path, store: Store, refusing: Callable[[str, int], None]
) -> None:
    refusing("posix_fallocate", number)
    commit(store)
    assert tree(root / "models" / KEY) == FILES


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES])
def test_a_disk_that_cannot_sync_folders_will_do(
    number: int, root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def files_only(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    commit(store)
    assert tree(root / "models" / KEY) == FILES


def test_a_folder_that_cannot_be_synced_because_the_disk_fails_is_no_commit(
    root: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StoreError, match="Input/output error") as raised:
        commit(store)
    assert (raised.value.reason, (root / "models" / KEY).exists()) == ("DiskFailing", False)


def test_names_that_are_one_where_case_does_not_count_are_said(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"README.md": b"1", "sub/a": b"3", "Sub/b": b"4"}
    assert commit(store, files) == 3, "where it counts they are two"
    monkeypatch.setattr("actors.disk.ingest.folds_case", lambda _: True)
    ingest = store.ingest(KEY, a_manifest(files), OWNER)
    with pytest.raises(StoreError, match="one name on the filesystem") as raised:
        ingest.allocate()
    ingest.close()
    assert raised.value.reason == "NamesCollide"


def test_a_filesystem_that_does_not_tell_case_apart_is_found_out(tmp_path: Path) -> None:
    from actors.disk.filesystem import clash, folds_case

    assert clash(["a/B", "a/c", "A2"]) is None
    assert clash(["a/x", "A/y"]) == ("a", "A")
    assert clash(["straße", "STRASSE"]) == ("straße", "STRASSE")
    with Folder.at(tmp_path) as folder:
        assert not folds_case(folder.descriptor)
    image, mounted = tmp_path / "image", tmp_path / "mounted"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(4 << 20)
    made = subprocess.run(["mkfs.vfat", image], capture_output=True, check=False) if _has("mkfs.vfat") else None
    mount = ["mount", "-o", "loop", str(image), str(mounted)]
    if made is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        return  # no vfat here; the rest holds
    try:
        with Folder.at(mounted) as folder:
            assert folds_case(folder.descriptor)
        commit(Store(mounted, "one"))
        assert tree(mounted / "models" / KEY) == FILES
    finally:
        subprocess.run(["umount", mounted], check=True)


def _has(program: str) -> bool:
    from shutil import which

    return which(program) is not None


def test_an_ingest_that_was_planted_is_never_written_through(root: Path, store: Store, outside: Path) -> None:
    ingest = store.ingest(KEY, a_manifest(), OWNER)
    ingest.allocate()
    ingest.close()
    folder = own(root, "ingest", f"{KEY}.one")
    for place, junk in (("data/a", damage.link(outside)), ("journal", damage.link(outside / "precious"))):
        junk(folder / place)
    damage.link(outside / "precious")(folder / "data/config.json")
    commit(store)
    assert (tree(root / "models" / KEY), names(outside)) == (FILES, ["precious"])
    assert (outside / "precious").read_text() == "precious"


@pytest.mark.parametrize("place", ["journal", "manifest.json", "data", "data/a/b/large.bin"])
@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK.keys())
def test_junk_in_an_ingest_only_costs_what_it_replaced(
    place: str, junk: Callable[[Path], damage.Damage], root: Path, store: Store, outside: Path
) -> None:
    ingest = store.ingest(KEY, a_manifest(), OWNER)
    write(ingest, FILES)
    ingest.close()
    junk(outside)(own(root, "ingest", f"{KEY}.one", place))
    commit(Store(root, "two"))
    assert (tree(root / "models" / KEY), names(outside)) == (FILES, ["precious"])


def test_load_marker_never_waits(root: Path, store: Store) -> None:
    commit(store)
    damage.fifo(root / "models" / KEY / MARKER)
    with Folder.at(root / "models" / KEY) as folder, pytest.raises(DamagedMarker, match="not a regular file"):
        load_marker(folder)
    assert handles.FOLDER_MODE == 0o755


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with tmpfs(tmp_path / "disk", "size=1m") as folder:
        yield folder


def test_a_store_opens_on_a_disk_that_is_full_to_the_last_byte(small_disk: Path) -> None:
    commit(Store(small_disk, "one"))
    subprocess.run(["dd", "if=/dev/zero", f"of={small_disk / 'filler'}", "bs=4k"], capture_output=True, check=False)
    assert os.statvfs(small_disk).f_bavail == 0
    after = Store(small_disk, "a-longer-name")
    assert after.committed() == {KEY: a_marker()}
    after.check_fence()
    after.remove(KEY, OWNER)
    after.used = {}
    after.margin_s = -1.0
    after.empty_trash()
    assert names(own(small_disk, "trash")) == []


def test_models_on_another_disk_than_what_is_filled_for_them_are_said(root: Path, small_disk: Path) -> None:
    (root / "models").mkdir()
    bind = ["mount", "--bind", str(small_disk), str(root / "models")]
    subprocess.run(bind, check=True)
    try:
        with pytest.raises(StoreError, match="different filesystems: mount the disk at") as raised:
            Store(root, "one")
        assert raised.value.reason == "PathMismatch"
    finally:
        subprocess.run(["umount", "--lazy", root / "models"], check=True)


def test_copies_of_an_earlier_version_with_read_only_folders_move_and_go(root: Path, store: Store) -> None:
    """As their owner without root's rights sees them, too: run these tests as another user."""
    commit(store)
    for path in [*(root / "models" / KEY).rglob("*"), root / "models" / KEY]:
        if path.is_dir():
            path.chmod(0o555)
    store.rename(KEY, a_marker())
    commit(store, {"config.json": b"new"})
    store.remove(KEY, OWNER)
    store.used = {}
    store.margin_s = -1.0
    store.empty_trash()
    assert (names(own(root, "trash")), names(root / "models")) == ([], [])


NOTES: dict[str, Callable[[], dict[str, Any]]] = {
    "marker": lambda: a_marker().to_json(),
    "record": lambda: json.loads(Record.fresh(a_marker(), 1 << 20).to_json()),
    "eviction": lambda: {"at": 1.0, "size_bytes": 3, "for_key": "0" * 16, "for_uri": "hf://a/b", "for_bytes": 5},
}
ODD = [
    None, True, -1, 0, 1 << 63, 1 << 70, 1.5, float("inf"), float("nan"), "", "\ud800", "../..", "a\0b", [], [1], {},
    {"a": 1}, "9" * 5000,
]  # fmt: skip


def mutated(data: dict[str, Any], rng: random.Random) -> bytes:
    """One or a few values are others, or gone; or the text is cut, or has another bit."""
    for _ in range(rng.randint(1, 3)):
        at: Any = data
        while at:
            name = rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
            if isinstance(at[name], dict | list) and at[name] and rng.random() < 0.7:
                at = at[name]
                continue
            if rng.random() < 0.15:
                del at[name]
            else:
                at[name] = json.loads(json.dumps(rng.choice(ODD)))
            break
    content = bytearray(json.dumps(data).encode())
    if rng.random() < 0.1:
        del content[rng.randrange(len(content)) :]
    elif rng.random() < 0.1:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_no_change_to_what_we_have_noted_makes_us_stumble(seed: int, root: Path, store: Store) -> None:
    rng = random.Random(seed)
    for _ in range(50):
        for kind, make in NOTES.items():
            content = mutated(make(), rng)
            if kind == "marker":
                try:
                    marker = parse_marker(content)
                except DamagedMarker:
                    continue
                assert parse_marker(marker.content) == marker, content
                assert all(file.size >= 0 and not file.path.startswith(("/", "..")) for file in marker.manifest.files)
            elif kind == "record":
                Record.from_json(content, a_marker())
            else:
                store.evicted_notes.write(KEY, content)
                entry = Ledger(store.evicted_notes).get(KEY)
                assert entry is None or entry.error().reason == "Evicted"


@pytest.mark.slow
def test_a_tree_of_any_depth_is_not_looked_through(tmp_path: Path) -> None:
    """Each level that is reached by its path takes as many calls as it is deep: minutes for a few thousand."""
    store, plant = Store(tmp_path, "one"), damage.deep(5 * DEEPEST)
    plant(tmp_path / "models" / KEY)
    plant(tmp_path / f".localmodel/trash/{KEY}.1700000000.000.abcd")
    plant(tmp_path / f".localmodel/ingest/{KEY}.two")
    began = time.process_time()
    assert store.standing(KEY, "us") is Standing.UNMARKED
    assert [each.size_bytes for each in store.aside()] == [0]
    assert store.ingested_bytes(KEY) == 0
    assert store.committed() == {}
    took_s = time.process_time() - began
    damage.shallow(tmp_path)
    assert took_s < 5


@pytest.mark.slow
@pytest.mark.parametrize("place", [f"models/{KEY}/{MARKER}", f".localmodel/ingest/{KEY}.two/manifest.json"])
def test_a_document_that_a_pod_plants_takes_little_memory(place: str, tmp_path: Path) -> None:
    """A value of three bytes takes many times that in memory: an agent has a limit, and starts over and over."""
    Store(tmp_path, "one")
    damage.text(b'{"a":[' + b"[]," * (40 << 20) + b"[]]}")(tmp_path / place)
    program = (
        "import re, sys; from pathlib import Path; from actors.disk.store import Store\n"
        "store = Store(Path(sys.argv[1]), 'one'); store.committed(); store.ingests('us')\n"
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) >> 10)"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, check=True, timeout=60)
    assert int(done.stdout) < 300


LOOKS: dict[str, Callable[[Store], object]] = {
    "enter": lambda store: store.misfits(KEY, a_manifest()),
    "again": lambda store: store.misfits(KEY, a_manifest()),
    "lstat": lambda store: store.misfits(KEY, a_manifest()),
    "read": lambda store: store.look(KEY),
}


@pytest.mark.parametrize("number", sorted(OUR_OWN))
@pytest.mark.parametrize("step", LOOKS)
def test_a_process_that_is_short_of_something_finds_no_copy_damaged(
    step: str, number: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(store)

    def short(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(Folder, step, short)
        with pytest.raises(StoreError, match=os.strerror(number)):
            LOOKS[step](store)
    assert (store.misfits(KEY, a_manifest()), store.unread) == ({}, {})
