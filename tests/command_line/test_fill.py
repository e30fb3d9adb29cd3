"""`localmodel fill` and `localmodel verify`, as a person runs them: real processes, killed without warning."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator import cli
from coordinator.dev.origin.faults import Fault
from coordinator.dev.origin.repository import Repository
from coordinator.dev.origin.sample import REPO, write_sample
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.waiting import eventually, output_of
from tests.kit.documents import check_document

MIB = 1 << 20
SAMPLE_BYTES = 2 * MIB
LARGE_BYTES = 160 * MIB
URI = f"hf://{REPO}"


@pytest.fixture
def origin(sample: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Origin]:
    with Origin({REPO: sample}) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.hub_endpoint)
        yield running


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    code = cli.main([str(each) for each in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def a_process(*arguments: str | Path, endpoint: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "coordinator.cli", *map(str, arguments)]
    environment = {**os.environ, "HF_ENDPOINT": endpoint}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def damage(folder: Path, name: str, content: bytes | None) -> None:
    """Write to, or (None) remove, a file of a read-only model."""
    folder.chmod(0o755)
    path = folder / name
    if path.exists():
        path.chmod(0o644)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)


def test_a_model_is_filled_once_and_verified(
    origin: Origin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "there" / "model"
    code, out, err = run(capsys, "fill", URI, target, "--json")
    assert (code, err) == (0, "")
    said = json.loads(out.splitlines()[-1])
    assert said.keys() == {
        "bytes", "files", "seconds", "cpuSeconds", "maxRssBytes", "verified", "manifestDigest",
    }  # fmt: skip
    assert (said["bytes"], said["files"], said["verified"]) == (SAMPLE_BYTES, 12, {"sha256": 4, "git-sha1": 8})
    assert [path.name for path in target.parent.iterdir()] == ["model"], "nothing is left beside it"

    origin.close()
    code, out, err = run(capsys, "fill", URI, target)
    assert (code, err) == (0, ""), "what is there needs no origin"
    assert "already there; contents not checked, `--verify` reads every byte" in out
    code, out, err = run(capsys, "fill", URI, target, "--json")
    assert json.loads(out).items() >= {"alreadyThere": True, "contentsChecked": False}.items()
    check_document("fill", json.loads(out))
    code, out, err = run(capsys, "verify", target, "--json")
    assert (code, err) == (0, "")
    check_document("verify", json.loads(out))
    assert json.loads(out) == {
        "ok": True,
        "files": 12,
        "bytes": SAMPLE_BYTES,
        "manifestDigest": said["manifestDigest"],
        "damaged": [],
        "missing": [],
        "extra": [],
    }


def test_verify_names_what_is_damaged_missing_and_extra(
    origin: Origin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "model"
    run(capsys, "fill", URI, target)
    whole = (target / "config.json").read_bytes()
    damage(target, "config.json", bytes([whole[0] ^ 1]) + whole[1:])
    damage(target, "README.md", None)
    damage(target, "surprise", b"")

    code, _, err = run(capsys, "verify", target)
    command = f"localmodel fill --verify {URI} {target}"
    assert (code, err.splitlines()) == (
        1,
        [
            "damaged: config.json",
            "missing: README.md",
            "extra: surprise",
            f"next: `{command}` fetches anew what is damaged or missing",
        ],
    )
    code, _, err = run(capsys, "fill", URI, target)
    assert code == 1
    assert "lost files" in err
    assert "README.md is missing" in err
    assert f"`{command}`" in err


def test_verify_of_a_folder_that_was_not_filled_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "verify", tmp_path)
    assert code == 1
    assert "was not filled by localmodel" in err


def test_only_the_selected_files_are_filled(origin: Origin, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "model"
    target.mkdir()
    assert run(capsys, "fill", URI, target, "--include", "*.json", "--exclude", "original/*")[0] == 0
    names = {path.name for path in target.iterdir()}
    assert names == {
        ".localmodel", "config.json", "generation_config.json", "tokenizer.json", "model.safetensors.index.json",
    }  # fmt: skip
    assert (run(capsys, "fill", URI, target))[0] == 1, "another selection is another model"


def test_a_folder_with_something_in_it_is_left_alone(
    origin: Origin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "precious").write_text("data")
    code, _, err = run(capsys, "fill", URI, tmp_path)
    assert code == 1
    assert "choose another" in err
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hf://no/such"], "there is no repository"),
        ([URI, "--digest", "sha256:" + "0" * 64], "is expected (--digest)"),
        ([URI, "--revision", "nightly"], "nightly"),
        (["model"], "scheme"),
    ],
    ids=["no such repository", "another digest", "no such revision", "no scheme"],
)
def test_what_cannot_be_done_is_said_in_one_line(
    arguments: list[str], message: str, origin: Origin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "fill", arguments[0], tmp_path / "model", *arguments[1:])
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert message in err
    assert not (tmp_path / "model").exists()
    assert origin.stats()["bytes"] == 0


def test_a_gated_model_is_read_with_the_token_of_the_environment(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Origin({REPO: Repository(REPO, sample, token="hf_secret")}) as origin:
        monkeypatch.setenv("HF_ENDPOINT", origin.hub_endpoint)
        assert run(capsys, "fill", URI, tmp_path / "model")[0] == 1
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        assert run(capsys, "fill", URI, tmp_path / "model")[0] == 0
    assert run(capsys, "verify", tmp_path / "model")[0] == 0


@pytest.mark.slow
def test_a_second_fill_of_the_same_folder_is_refused(origin: Origin, tmp_path: Path) -> None:
    origin.faults.set(Fault(path="/_cdn/*", stall_after_bytes=0))
    first = a_process("fill", URI, tmp_path / "model", endpoint=origin.hub_endpoint)
    try:
        while origin.stats()["bytes"] == 0:
            assert first.poll() is None
            time.sleep(0.01)
        second = a_process("fill", URI, tmp_path / "model", endpoint=origin.hub_endpoint)
        _, err = output_of(second, 20)
        assert (second.returncode, "another `localmodel fill` is at work" in err) == (1, True)
    finally:
        first.kill()
        first.communicate()


@pytest.mark.slow
def test_control_c_ends_it_in_good_order_and_the_next_run_goes_on(origin: Origin, tmp_path: Path) -> None:
    origin.faults.set(Fault(path="*00002*", stall_after_bytes=1000))
    first = a_process("fill", URI, tmp_path / "model", endpoint=origin.hub_endpoint)
    journal = tmp_path / ".model.localmodel/ingest/journal"
    shard = next(file for path, file in origin.repos[REPO].main.files.items() if "00002" in path)
    until_served(origin, SAMPLE_BYTES - shard.size + 1000)
    others = len(origin.repos[REPO].main.files) - 2  # neither the shard nor the empty file
    eventually(lambda: len(journal.read_text().splitlines()) >= others, every_s=0.005)  # nothing else is in flight
    first.send_signal(signal.SIGINT)
    _, err = output_of(first, 20)
    assert (first.returncode, err) == (130, "localmodel: interrupted; the same command goes on from here\n")
    origin.faults.clear()

    second = a_process("fill", URI, tmp_path / "model", endpoint=origin.hub_endpoint)
    _, err = output_of(second, 20)
    assert (second.returncode, err) == (0, "")
    assert origin.stats()["bytes"] == SAMPLE_BYTES, "nothing was read twice"


def until_served(origin: Origin, count: float) -> None:
    eventually(lambda: origin.stats()["bytes"] >= count, every_s=0.005, seen=origin.stats)


@pytest.mark.e2e
def test_killed_again_and_again_it_still_ends_complete_in_little_memory(tmp_path: Path) -> None:
    write_sample(tmp_path / "large", LARGE_BYTES)
    target, rng = tmp_path / "model", random.Random(20)
    with Origin({REPO: tmp_path / "large"}, rate_bytes_per_s=16 * MIB) as origin:
        for _ in range(3):
            process = a_process("fill", URI, target, "--connections", "4", endpoint=origin.hub_endpoint)
            enough = origin.stats()["bytes"] + rng.uniform(0, LARGE_BYTES / 4)
            until_served(origin, enough)
            process.kill()
            process.communicate()
            assert not target.exists() or (target / ".localmodel/manifest.json").exists(), "all or nothing"
        process = a_process("fill", URI, target, "--connections", "4", "--json", endpoint=origin.hub_endpoint)
        out, err = output_of(process, 120)
    assert (process.returncode, err) == (0, "")
    said: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert said["bytes"] == LARGE_BYTES
    assert said["maxRssBytes"] < 100 * MIB
    verified = subprocess.run(
        [sys.executable, "-m", "coordinator.cli", "verify", target], capture_output=True, check=False
    )
    assert verified.returncode == 0, verified.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("status", "pause"), [(503, None), (429, "1"), (500, None)])
def test_an_origin_that_cannot_list_its_files_for_a_moment_is_asked_again(
    status: int, pause: str | None, origin: Origin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    origin.faults.set(Fault(path="/api/*", times=1, status=status, retry_after=pause))
    assert run(capsys, "fill", URI, tmp_path / "model")[0] == 0


def test_an_origin_that_asks_for_a_long_pause_is_not_waited_for(
    origin: Origin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    origin.faults.set(Fault(path="/api/*", status=429, retry_after="60"))
    code, _, err = run(capsys, "fill", URI, tmp_path / "model")
    assert (code, "try again in 60s" in err) == (1, True)


@pytest.mark.parametrize(
    ("words", "reason", "retryable"),
    [
        (("fill", "file:///nowhere/at/all", "model"), "SourceNotFound", False),
        (("fill", "nonsense", "model"), "InvalidURI", False),
        (("fill", "http://127.0.0.1:9/model.bin", "model"), "SourceUnreachable", True),
        (("verify", "nothing"), "NotAModel", False),
    ],
)
def test_a_failure_is_one_object_with_its_reason(
    words: tuple[str, ...], reason: str, retryable: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *words[:-1], tmp_path / words[-1], "--json")
    document = json.loads(out)

    assert code == 1
    check_document("failure", document)
    assert (document["reason"], document["retryable"]) == (reason, retryable)
    assert document["message"].split(";")[0] in err


def test_a_verification_that_finds_something_is_one_object_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/w.bin").write_bytes(b"x" * 100)
    run(capsys, "fill", f"file://{tmp_path / 'source'}", tmp_path / "model")
    (tmp_path / "model/w.bin").chmod(0o644)
    (tmp_path / "model/w.bin").write_bytes(b"y" * 100)

    code, out, _ = run(capsys, "verify", tmp_path / "model", "--json")
    document = json.loads(out)

    assert code == 1
    check_document("verify", document)
    assert (document["reason"], document["message"]) == ("ModelDamaged", "of 1 files 1 damaged")
