"""Nothing below an open folder is reached through a link, waited for, or followed out of it, whoever plants what."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.disk.handles import DEEPEST, Folder, remove_tree
from tests.kit import damage
from tests.kit.damage import names


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    damage.text("precious")(tmp_path / "outside/precious")
    return tmp_path / "outside"


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Folder]:
    (tmp_path / "here").mkdir()
    with Folder.at(tmp_path / "here") as folder:
        yield folder


def refused(number: int, *numbers: int) -> pytest.RaisesExc[OSError]:
    return pytest.RaisesExc(OSError, check=lambda error: error.errno in (number, *numbers))


NOT_FILES: dict[str, damage.Damage] = {
    "a link to a file": damage.link("../outside/precious"),
    "a link to nothing": damage.link("nowhere"),
    "a link to itself": damage.link("thing"),
    "a fifo": damage.fifo,
    "a folder": damage.folder,
    **({"a device": damage.device} if os.geteuid() == 0 else {}),
}


@pytest.mark.parametrize("plant", NOT_FILES.values(), ids=NOT_FILES.keys())
def test_only_a_regular_file_is_opened_read_or_written_to(plant: damage.Damage, here: Folder, outside: Path) -> None:
    plant(here.path / "thing")
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_WRONLY | os.O_TRUNC):
        with refused(errno.EINVAL, errno.ELOOP):
            here.open("thing", flags)
    with refused(errno.EINVAL, errno.ELOOP):
        here.read("thing", 100)
    assert (outside / "precious").read_text() == "precious"


@pytest.mark.parametrize("plant", [*NOT_FILES.values(), damage.text("x")], ids=[*NOT_FILES, "a file"])
def test_writing_takes_the_place_of_whatever_is_there_but_a_folder(
    plant: damage.Damage, here: Folder, outside: Path
) -> None:
    plant(here.path / "thing")
    if plant is damage.folder:
        with refused(errno.EISDIR):
            here.write("thing", b"new")
    else:
        here.write("thing", b"new")
        assert here.read("thing", 3) == b"new"
    assert (names(here.path), (outside / "precious").read_text()) == (["thing"], "precious")


@pytest.mark.parametrize("path", ["..", ".", "", "a/..", "a/../b", "/etc", "a//b", "a/./b", "/", "a/"])
def test_no_path_leads_out(path: str, here: Folder) -> None:
    (here.path / "a").mkdir()
    for act in (here.enter, here.open, here.lstat):
        with refused(errno.EINVAL):
            act(path)


@pytest.mark.parametrize("at", ["a", "a/b", "a/b/c"])
def test_a_link_anywhere_on_the_way_is_refused(at: str, here: Folder, outside: Path) -> None:
    damage.text("x")(here.path / "a/b/c/file")
    here.lstat("a/b/c/file")
    damage.gone(here.path / at)
    (here.path / at).symlink_to(outside)
    damage.text("x")(outside / "b/c/file")
    damage.text("x")(outside / "c/file")
    damage.text("x")(outside / "file")
    for act in (here.lstat, here.open, lambda path: here.read(path, 9), lambda path: here.enter(path[:-5], make=True)):
        with refused(errno.ENOTDIR, errno.ELOOP):
            act("a/b/c/file")


def test_a_file_that_is_too_large_is_not_read(here: Folder) -> None:
    with (here.path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with refused(errno.EFBIG):
        here.read("sparse", 1 << 20)


def test_a_folder_that_was_opened_stays_the_one_it_was(here: Folder, outside: Path) -> None:
    damage.text("mine")(here.path / "a/file")
    with here.enter("a") as opened:
        (here.path / "a").rename(here.path / "b")
        (here.path / "a").symlink_to(outside)
        assert opened.read("file", 9) == b"mine"
        assert (opened.here / "file").read_text() == "mine"
        opened.write("new", b"x")
        opened.remove("file")
    assert (names(here.path / "b"), names(outside)) == (["new"], ["precious"])


@pytest.mark.parametrize("umask", [0o077, 0o000])
def test_folders_are_open_to_all_whatever_the_umask(umask: int, here: Folder) -> None:
    before = os.umask(umask)
    try:
        here.enter("a/b", make=True).close()
        here.write("file", b"x")
    finally:
        os.umask(before)
    modes = [(here.path / name).stat().st_mode & 0o777 for name in ("a", "a/b", "file")]
    assert modes == [0o755, 0o755, 0o644]


# --- removing ---


def test_what_is_removed_is_gone_and_what_it_points_to_is_not(here: Folder, outside: Path) -> None:
    tree = here.path / "tree"
    for number, plant in enumerate([*NOT_FILES.values(), damage.text("x")]):
        plant(tree / f"sub/deeper/{number}")
        plant(tree / f"{number}")
    (tree / "sub/out").symlink_to(outside)
    damage.text("x")(tree / os.fsdecode(b"caf\xe9") / os.fsdecode(b"\xff\xfe"))
    damage.text("x")(tree / ("n" * 255) / ("m" * 255))
    here.remove("tree")
    here.remove("tree")
    assert (names(here.path), names(outside)) == ([], ["precious"])


@pytest.mark.parametrize("plant", [*NOT_FILES.values(), damage.text("x")], ids=[*NOT_FILES, "a file"])
def test_a_name_is_removed_whatever_has_it(plant: damage.Damage, here: Folder, outside: Path) -> None:
    plant(here.path / "thing")
    here.remove("thing")
    assert (names(here.path), names(outside)) == ([], ["precious"])


@pytest.mark.slow
def test_a_tree_is_removed_however_deep_it_is(here: Folder) -> None:
    descriptors = [os.dup(here.descriptor)]
    for _ in range(3000):
        os.mkdir("d", dir_fd=descriptors[-1])
        descriptors.append(os.open("d", os.O_RDONLY, dir_fd=descriptors[-1]))
        os.close(descriptors.pop(0))
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=descriptors[0]))
    os.close(descriptors[0])
    here.remove("d")
    assert names(here.path) == []


def test_folders_that_their_owner_may_not_look_into_are_removed_too(here: Folder) -> None:
    damage.text("x")(here.path / "tree/locked/file")
    damage.text("x")(here.path / "tree/open/locked/file")
    for folder in ("tree/open/locked", "tree/locked", "tree"):
        (here.path / folder).chmod(0o000)
    os.chown(here.path, 65534, -1) if os.geteuid() == 0 else None
    remove_tree(here.path / "tree")
    assert names(here.path) == []


def test_what_cannot_be_removed_is_said_and_keeps_nothing_else(here: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """As NFS does with a file that is open, and ext4 with an immutable one."""
    for path in ("a/stuck", "a/file", "b/c/file", "file"):
        damage.text("x")(here.path / "tree" / path)
    unlink = os.unlink

    def busy(path: str, *, dir_fd: int | None = None) -> None:
        if path == "stuck":
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        unlink(path, dir_fd=dir_fd)

    with monkeypatch.context() as patched:
        patched.setattr("os.unlink", busy)
        with refused(errno.EBUSY):
            here.remove("tree")
    left = [path.name for path in (here.path / "tree").rglob("*") if path.is_file()]
    assert left == ["stuck"]
    here.remove("tree")
    assert names(here.path) == []


def test_what_is_mounted_below_is_not_emptied(here: Folder, outside: Path) -> None:
    (here.path / "tree/sub/mounted").mkdir(parents=True)
    damage.text("x")(here.path / "tree/file")
    bind = ["mount", "--bind", str(outside), str(here.path / "tree/sub/mounted")]
    if subprocess.run(bind, capture_output=True, check=False).returncode != 0:
        pytest.skip("may not mount here")
    try:
        with refused(errno.EBUSY):
            here.remove("tree")
        assert (names(outside), (here.path / "tree/file").exists()) == (["precious"], False)
    finally:
        subprocess.run(["umount", *here.path.rglob("mounted")], check=True)
    here.remove("tree")
    assert names(here.path) == []


@pytest.mark.slow
def test_a_folder_that_becomes_a_link_while_it_is_removed_takes_nobody_outside(tmp_path: Path, outside: Path) -> None:
    """A swap as fast as it goes, for as long as trees are removed."""
    (tmp_path / "here").mkdir()
    over, folder = threading.Event(), tmp_path / "here/tree/sub"
    for number in range(3):
        damage.text("precious")(outside / f"{number}/precious")

    def swap() -> None:
        while not over.is_set():
            try:
                os.rename(folder, tmp_path / "away")  # noqa: PTH104  as fast as it goes
                os.symlink(outside, folder)  # noqa: PTH211  as fast as it goes
                damage.gone(tmp_path / "away")
            except OSError:
                damage.gone(tmp_path / "away")

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        with Folder.at(tmp_path / "here") as here:
            for _ in range(300):
                for number in range(3):
                    (here.path / f"tree/sub/{number}").mkdir(parents=True, exist_ok=True)
                try:
                    here.remove("tree")
                except OSError:
                    here.remove("tree")
    except OSError:
        pass  # a name that came back meanwhile is no harm
    finally:
        over.set()
        swapper.join()
    assert [path.read_text() for path in sorted(outside.rglob("precious"))] == ["precious"] * 4


def test_a_walk_names_everything_but_does_not_go_too_deep(here: Folder, outside: Path) -> None:
    (here.path / "b" / "c").mkdir(parents=True)
    (here.path / "b" / "c" / "d").touch()
    (here.path / "own").mkdir()
    (here.path / "own" / "marker").touch()
    (here.path / "b" / "link").symlink_to(outside)
    assert sorted(path for path, *_ in here.walk(but="own")) == ["b", "b/c", "b/c/d", "b/link"]
    damage.deep(3 * DEEPEST)(here.path / "deep")
    levels = [path.count("/") + 1 for path, *_ in here.walk() if path.startswith("deep")]
    damage.shallow(here.path / "deep")
    assert max(levels) == DEEPEST
    opened = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # no path on a disk
    walk = here.walk()
    next(walk)
    walk.close()
    assert len(os.listdir("/proc/self/fd")) == opened  # noqa: PTH208  # no path on a disk
