"""What DIR may be: the model is staged on its disk, and DIR stays what it was: a mount, a link, a folder in use."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.disk import filesystem
from actors.disk.journal import read
from coordinator.dev.origin.faults import Fault
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.waiting import eventually, output_of
from tests.command_line.test_fill import a_process, run
from tests.kit import damage
from tests.kit.damage import names, tree
from tests.kit.disks import tmpfs

FILES = {"config.json": b"{}", "sub/deep/w.bin": os.urandom(200_000), "empty": b""}


@pytest.fixture
def uri(tmp_path: Path) -> str:
    for path, content in FILES.items():
        damage.text(content)(tmp_path / "source" / path)
    return f"file://{tmp_path / 'source'}"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, mounted at an empty folder."""
    with tmpfs(tmp_path / "mnt" / "models", "size=20m") as folder:
        yield folder


def filled(capsys: pytest.CaptureFixture[str], uri: str, target: Path | str, *more: str) -> str:
    """Standard error of a fill that has come about, and whose model is verified."""
    code, _, err = run(capsys, "fill", uri, target, *more)
    assert code == 0, err
    assert tree(Path(target)) == FILES
    assert run(capsys, "verify", target)[0] == 0
    assert names(Path(target) / ".localmodel") == ["manifest.json"]
    return err


def refused(capsys: pytest.CaptureFixture[str], uri: str, target: Path | str) -> str:
    code, out, err = run(capsys, "fill", uri, target)
    assert (code, out, len(err.splitlines())) == (1, "", 1), err
    return err


def test_a_mount_point_is_filled_on_its_own_disk(disk: Path, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    device = disk.stat().st_dev
    filled(capsys, uri, disk)
    assert ({path.stat().st_dev for path in disk.rglob("*")}, names(disk.parent)) == ({device}, ["models"])


def test_a_bind_mount_of_the_same_disk_is_filled_in_place(
    tmp_path: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "bound").mkdir()
    bind = ["mount", "--bind", str(tmp_path / "real"), str(tmp_path / "bound")]
    if subprocess.run(bind, capture_output=True, check=False).returncode != 0:
        pytest.skip("may not mount here")
    try:
        filled(capsys, uri, tmp_path / "bound")
        assert tree(tmp_path / "real") == FILES
    finally:
        subprocess.run(["umount", "--lazy", tmp_path / "bound"], check=True)


def test_a_fresh_disk_with_lost_and_found_counts_as_empty(
    disk: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (disk / "lost+found").mkdir(mode=0o700)
    filled(capsys, uri, disk)


def test_a_mounted_model_is_repaired_in_place(disk: Path, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    filled(capsys, uri, disk)
    damage.flip(disk / "sub/deep/w.bin", 1000)
    filled(capsys, uri, disk, "--verify")


@pytest.mark.parametrize(
    "links",
    [
        {"dir": "big/target"},
        {"dir": "{}/big/target"},
        {"dir": "one", "one": "two", "two": "big/target"},
        {"dir": "new/target"},
        {"dir": "one", "one": "{}/new/target"},
    ],
    ids=["relative", "absolute", "a chain", "dangling", "a dangling chain"],
)
def test_a_link_stays_and_what_it_points_to_is_filled(
    links: dict[str, str], tmp_path: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "big/target").mkdir(parents=True)
    for name, target in links.items():
        (tmp_path / name).symlink_to(target.format(tmp_path))
    filled(capsys, uri, tmp_path / "dir")
    assert all((tmp_path / name).is_symlink() for name in links)
    end = next(path for path in ("big", "new") if any(path in target for target in links.values()))
    assert (tree(tmp_path / end / "target"), names(tmp_path / end)) == (FILES, ["target"])
    assert "already there" in run(capsys, "fill", uri, tmp_path / "dir")[1]


def test_an_empty_folder_stays_the_folder_that_it_was(
    tmp_path: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process that is in it, as a container that has mounted it, sees the model."""
    (tmp_path / "dir/sub").mkdir(parents=True)
    before = (tmp_path / "dir").stat().st_ino, (tmp_path / "dir/sub").stat().st_ino
    watching = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read(); print(open('sub/deep/w.bin', 'rb').read().hex())"],
        cwd=tmp_path / "dir", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    filled(capsys, uri, tmp_path / "dir")
    out, _ = watching.communicate("go", timeout=20)
    assert bytes.fromhex(out.strip()) == FILES["sub/deep/w.bin"]
    assert before == ((tmp_path / "dir").stat().st_ino, (tmp_path / "dir/sub").stat().st_ino)


@pytest.mark.parametrize("name", ["n" * 250, "n" * 255, "ü" * 127, "模型", "a b'c\"d", "-x", ".hidden"])
def test_any_name_that_a_folder_may_have_will_do(
    name: str, tmp_path: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(capsys, uri, tmp_path / "there" / name)
    assert names(tmp_path / "there") == [name]


def test_a_name_that_is_not_utf_8_will_do(tmp_path: Path, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    filled(capsys, uri, tmp_path / os.fsdecode(b"caf\xe9"))


@pytest.mark.parametrize("form", ["model/", "./model", "x/../model", "model//", "."])
def test_any_way_to_write_it_will_do(
    form: str, tmp_path: Path, uri: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work/x").mkdir(parents=True)
    if form == ".":
        (tmp_path / "work/x").rmdir()
    monkeypatch.chdir(tmp_path / "work")
    filled(capsys, uri, form)


REFUSED = {
    "a file": (lambda path: path.write_text("x"), "is not a folder: choose another"),
    "a fifo": (os.mkfifo, "is not a folder: choose another"),
    "a folder with something in it": (damage.folder, "(x in it): choose another"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "cannot be used"),
    "a folder with links in it": (lambda path: damage.link("/etc")(path / "etc"), "(etc in it): choose another"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_filled_is_refused_by_name_and_left_alone(
    make: damage.Damage, message: str, tmp_path: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "dir")
    before = sorted(tmp_path.rglob("*"))
    err = refused(capsys, uri, tmp_path / "dir")
    assert message in err
    assert str(tmp_path / "dir") in err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_root_of_the_machine_is_refused(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "choose another" in refused(capsys, uri, "/")


def test_no_folder_at_all_is_a_wrong_command(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(capsys, "fill", uri, "")


def test_a_read_only_disk_is_said(disk: Path, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for target in (disk, disk / "model"):
        assert "Read-only file system" in refused(capsys, uri, target)


def whole(journal: Path, sizes: list[int]) -> set[int]:
    """The files that the journal calls complete: what the origin has sent may still wait in a socket."""
    return {index for index, ranges in read(journal, sizes)[0].items() if ranges.total == sizes[index]}


@pytest.mark.slow
@pytest.mark.parametrize("made", [False, True], ids=["it does not exist", "it is an empty folder"])
def test_killed_on_the_way_it_goes_on(
    made: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        damage.text(hashlib.sha256(bytes([number])).digest() * 20_000)(tmp_path / "repo" / f"{number}.bin")
    with Origin({"a/m": tmp_path / "repo"}) as origin:
        monkeypatch.setenv("HF_ENDPOINT", origin.hub_endpoint)
        origin.faults.set(Fault(path="*3.bin", stall_after_bytes=10))
        target = tmp_path / "dir"
        if made:
            target.mkdir()
        first = a_process("fill", "hf://a/m", target, endpoint=origin.hub_endpoint)
        staging = target / ".localmodel/fill" if made else tmp_path / ".dir.localmodel"
        sizes = [640_000] * 4
        eventually(lambda: whole(staging / "ingest/journal", sizes) == {0, 1, 2}, every_s=0.005)
        first.send_signal(signal.SIGTERM)
        _, err = output_of(first, 20)
        assert (first.returncode, "goes on from here" in err) == (130, True)
        assert not (target / ".localmodel/manifest.json").exists()
        origin.faults.clear()
        before = origin.stats()["bytes"]
        assert run(capsys, "fill", "hf://a/m", target)[0] == 0
        assert origin.stats()["bytes"] - before <= 640_000, "only what was under way is fetched again"
    assert names(tmp_path) == ["dir", "repo"]
    assert tree(target) == tree(tmp_path / "repo")


@pytest.mark.parametrize("umask", [0o077, 0o000, 0o027])
def test_modes_do_not_depend_on_the_umask(
    umask: int, tmp_path: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, made in (("new", False), ("there", True)):
        if made:
            (tmp_path / name).mkdir(mode=0o700)
        before = os.umask(umask)
        try:
            filled(capsys, uri, tmp_path / name)
        finally:
            os.umask(before)
        paths = [tmp_path / name, *(tmp_path / name).rglob("*")]
        assert {path.stat().st_mode & 0o777 for path in paths if path.is_dir()} == {0o755}
        assert {path.stat().st_mode & 0o777 for path in paths if path.is_file()} == {0o444}


@pytest.mark.slow
def test_whoever_filled_it_can_delete_it(tmp_path: Path, uri: str) -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("takes root and setpriv, to become somebody else")
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(folder.stat().st_mode | 0o055)
    (tmp_path / "home").mkdir()
    os.chown(tmp_path / "home", 65534, 65534)
    nobody = ["setpriv", "--reuid=65534", "--clear-groups"]
    command = [*nobody, sys.executable, "-m", "coordinator.cli", "fill", uri, str(tmp_path / "home/m")]
    filled = subprocess.run(command, capture_output=True, text=True, check=False)
    assert filled.returncode == 0, filled.stderr
    subprocess.run([*nobody, "rm", "-rf", tmp_path / "home/m"], check=True)
    assert names(tmp_path / "home") == []


@pytest.mark.slow
def test_a_disk_without_locks_is_filled_and_said(
    tmp_path: Path, uri: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in sorted(filesystem.NO_LOCKS):

        def refuse(*_: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("fcntl.flock", refuse)
        err = filled(capsys, uri, tmp_path / f"m{number}")
        assert err.splitlines() == [
            f"localmodel: {tmp_path} cannot be locked on its filesystem: let no other fill run on it meanwhile"
        ]
