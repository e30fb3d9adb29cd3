"""`localmodel fill --verify` puts right what `verify` finds, and a fill that fails leaves nothing behind unnamed."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.disk.handles import Folder
from actors.disk.marker import MARKER
from actors.sources.resolve import resolve
from coordinator.dev.origin.faults import Fault
from coordinator.dev.origin.sample import REPO
from coordinator.dev.origin.server import Origin
from tests.command_line.test_fill import run
from tests.kit import damage
from tests.kit.damage import Damage, names
from tests.kit.disks import tmpfs

MIB = 1 << 20
SAMPLE_BYTES = 2 * MIB
URI = f"hf://{REPO}"


@pytest.fixture
def origin(sample: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Origin]:
    with Origin({REPO: sample}) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.hub_endpoint)
        yield running


@pytest.fixture
def model(origin: Origin, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A model that is there."""
    target = tmp_path / "model"
    assert run(capsys, "fill", URI, target)[0] == 0
    return target


DAMAGES: dict[str, Damage] = {
    "a flipped bit": damage.flip,
    "a file that is gone": damage.gone,
    "a file that is shorter": damage.cut,
    "a link in its place": damage.link("/etc/passwd"),
    "a fifo in its place": damage.fifo,
    "a folder in its place": damage.folder,
}


@pytest.mark.parametrize("damaged", DAMAGES.values(), ids=DAMAGES.keys())
def test_what_is_damaged_is_fetched_anew_and_nothing_else(
    damaged: Damage,
    model: Path,
    origin: Origin,
    sample: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = origin.stats()["bytes"]
    damaged(model / "config.json")
    assert run(capsys, "verify", model)[0] == 1

    code, out, err = run(capsys, "fill", "--verify", URI, model, "--json")

    assert (code, err) == (0, "")
    said = json.loads(out)
    assert (said["alreadyThere"], said["contentsChecked"], said["repaired"]) == (True, True, ["config.json"])
    assert origin.stats()["bytes"] - before == (sample / "config.json").stat().st_size
    assert damage.tree(model) == damage.tree(sample)
    assert (run(capsys, "verify", model)[0], names(model.parent)) == (0, ["model"])
    assert names(model / ".localmodel") == ["manifest.json"]


def test_a_model_that_is_as_it_was_is_read_and_nothing_is_fetched(
    model: Path, origin: Origin, capsys: pytest.CaptureFixture[str]
) -> None:
    origin.close()
    code, out, err = run(capsys, "fill", "--verify", URI, model)
    assert (code, err) == (0, "")
    assert "every byte was read, and is as it was filled" in out


def test_what_is_no_part_of_the_model_is_named_and_left(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "notes.txt").write_text("mine")
    code, _, err = run(capsys, "fill", "--verify", URI, model)
    assert (code, err) == (0, "extra: notes.txt is no part of the model, and was left where it is\n")
    assert (model / "notes.txt").read_text() == "mine"
    code, _, err = run(capsys, "verify", model)
    assert (code, "move them away" in err) == (1, True)


MARKERS: dict[str, Damage] = {
    "a flipped bit": damage.flip,
    "cut short": damage.cut,
    "empty": damage.empty,
    "another version": damage.text('{"version": 2}'),
    "a link": damage.moved_and_linked,
    "a folder": damage.folder,
    "a fifo": damage.fifo,
    "deep": damage.text("[" * 100_000),
    "binary": damage.text(os.urandom(1000)),
}


@pytest.mark.slow
@pytest.mark.parametrize("damaged", MARKERS.values(), ids=MARKERS.keys())
def test_a_damaged_marker_is_said_and_made_anew_without_fetching_what_is_right(
    damaged: Damage, model: Path, origin: Origin, sample: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = origin.stats()["bytes"]
    damaged(model / MARKER)
    damage.flip(model / "config.json")
    for command in (("verify", model), ("fill", URI, model)):
        code, _, err = run(capsys, *command)
        assert (code, "marker" in err, "fill --verify" in err) == (1, True, True)

    code, _, err = run(capsys, "fill", "--verify", URI, model)

    assert code == 0, err
    assert origin.stats()["bytes"] - before == (sample / "config.json").stat().st_size
    assert (damage.tree(model) == damage.tree(sample), run(capsys, "verify", model)[0]) == (True, 0)


def test_a_marker_of_a_newer_version_is_not_called_damaged(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = json.loads((model / MARKER).read_text())
    damage.text(json.dumps({**said, "version": 2}))(model / MARKER)
    for command in (("verify", model, "--json"), ("fill", URI, model, "--json")):
        code, out, err = run(capsys, *command)
        assert (code, json.loads(out)["reason"]) == (1, "MarkerNewer")
        assert "was written by a newer localmodel (it is of version 2, and 1 is the latest that is known here)" in err


def test_a_folder_that_may_not_be_looked_into_is_named_unless_it_is_of_the_model(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def closed(folder: Folder, path: str, *, make: bool = False) -> Folder:
        if path in ("original", "mine"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return enter(folder, path, make=make)

    (model / "mine").mkdir()
    enter = Folder.enter
    monkeypatch.setattr(Folder, "enter", closed)
    code, _, err = run(capsys, "verify", model)
    assert (code, [line for line in err.splitlines() if not line.startswith("next")]) == (
        1,
        ["damaged: original/params.json", "extra: mine"],
    )


def test_a_repair_whose_source_has_other_files_by_now_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, model = tmp_path / "source", tmp_path / "model"
    source.mkdir()
    (source / "w.bin").write_bytes(b"old")
    assert run(capsys, "fill", f"file://{source}", model)[0] == 0
    (source / "w.bin").write_bytes(b"newer")
    damage.flip(model / "w.bin")
    code, _, err = run(capsys, "fill", "--verify", f"file://{source}", model)
    assert (code, "no longer has the files" in err, f"delete {model}" in err) == (1, True, True)
    assert names(tmp_path) == ["model", "source"]


def test_a_file_of_an_archive_is_repaired_from_the_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive, model = tmp_path / "m.tar", tmp_path / "model"
    with tarfile.open(archive, "w") as tar:
        for name, content in (("config.json", b"{}"), ("sub/w.bin", os.urandom(1000))):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    assert run(capsys, "fill", f"file://{archive}", model)[0] == 0
    whole = (model / "sub/w.bin").read_bytes()
    damage.flip(model / "sub/w.bin", 500)
    code, _, err = run(capsys, "fill", "--verify", f"file://{archive}", model)
    assert (code, err) == (0, "")
    assert ((model / "sub/w.bin").read_bytes(), run(capsys, "verify", model)[0]) == (whole, 0)


# --- what a fill that fails leaves ---


def test_after_a_digest_that_is_not_the_expected_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "w.bin").write_bytes(os.urandom(100_000))
    target = tmp_path / "there" / "model"
    code, out, err = run(capsys, "fill", f"file://{source}", target, "--digest", "sha256:" + "0" * 64, "--json")
    assert (code, "0000 is expected (--digest)" in err, "kept" in err) == (1, True, False)
    assert json.loads(out).items() >= {"ok": False, "reason": "DigestMismatch"}.items()
    assert names(tmp_path) == ["source"], "also the folders on the way there are gone"


@pytest.mark.parametrize(("content", "reason"), [(b"no archive", "ArchiveDamaged"), (None, "ArchiveRefused")])
def test_of_an_archive_that_is_not_unpacked_nothing_is_left(
    content: bytes | None, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "source" / "m.tar"
    archive.parent.mkdir()
    archive.write_bytes(content or b"")
    if content is None:
        with tarfile.open(archive, "w") as made:
            made.addfile(tarfile.TarInfo("../evil"))
    code, out, err = run(capsys, "fill", f"file://{archive}", tmp_path / "model", "--json")
    assert (code, json.loads(out)["reason"], "kept" in err) == (1, reason, False)
    assert names(tmp_path) == ["source"]


def test_a_source_that_changes_meanwhile_is_listed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "w.bin").write_bytes(b"old")
    times = list[str]()

    def changing(*arguments: Any, **options: Any) -> Any:
        resolved = resolve(*arguments, **options)
        if not times:
            (source / "w.bin").write_bytes(b"n")
        times.append("listed")
        return resolved

    monkeypatch.setattr("coordinator.cli.fill.resolve", changing)
    code, _, err = run(capsys, "fill", f"file://{source}", tmp_path / "model")
    assert (code, err, (tmp_path / "model/w.bin").read_bytes(), len(times)) == (0, "", b"n", 2)


def test_what_can_be_gone_on_from_is_named(origin: Origin, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    origin.faults.set(Fault(path="*tokenizer.json", corrupt_bytes=1))
    code, out, err = run(capsys, "fill", URI, tmp_path / "model", "--json")
    staging = tmp_path / ".model.localmodel"
    assert (code, str(staging) in err, "the same command goes on from there" in err) == (1, True, True)
    assert json.loads(out)["kept"] == str(staging)
    origin.faults.clear()
    before = origin.stats()["bytes"]
    assert run(capsys, "fill", URI, tmp_path / "model")[0] == 0
    assert origin.stats()["bytes"] - before < SAMPLE_BYTES, "it went on"
    assert names(tmp_path) == ["model"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with tmpfs(tmp_path / "disk", "size=4m") as folder:
        yield folder


def a_source(folder: Path, *sizes: int) -> str:
    folder.mkdir()
    for number, size in enumerate(sizes):
        (folder / f"w{number}.bin").write_bytes(random.Random(number).randbytes(size))
    return f"file://{folder}"


def test_what_does_not_fit_is_refused_before_the_first_byte(
    small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = a_source(tmp_path / "source", *[MIB] * 5)
    code, _, err = run(capsys, "fill", uri, small_disk / "m")
    assert (code, "needs 5Mi" in err, "4Mi are free" in err) == (1, True, True)
    assert names(small_disk) == []


def test_a_disk_that_fills_up_meanwhile_is_not_left_full(
    small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = a_source(tmp_path / "source", *[MIB] * 5)
    monkeypatch.setattr("coordinator.cli.fill._check_room", lambda *_: None)  # it was free when it was looked at
    code, _, err = run(capsys, "fill", uri, small_disk / "m")
    assert (code, "the disk is full" in err) == (1, True)
    status = os.statvfs(small_disk)
    assert names(small_disk) == []
    assert status.f_bavail * status.f_frsize >= 3.9 * MIB


def test_what_lies_there_from_before_is_counted(
    small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = a_source(tmp_path / "source", *[MIB] * 3)

    def killed(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as once:
        once.setattr("coordinator.cli.fill._run", killed)
        with pytest.raises(SystemExit):
            run(capsys, "fill", uri, small_disk / "m")
    status = os.statvfs(small_disk)
    assert status.f_bavail * status.f_frsize < 2 * MIB
    assert run(capsys, "fill", uri, small_disk / "m")[0] == 0
