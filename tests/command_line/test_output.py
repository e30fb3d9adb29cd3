"""What `localmodel fill` and `verify` do where their output cannot be written, and when they are told to end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.cli import main, output
from coordinator.dev.trial.waiting import eventually, output_of
from tests.command_line.test_fill import a_process, run

LOCALMODEL = f"{sys.executable} -m coordinator.cli"


@pytest.fixture
def uri(tmp_path: Path) -> str:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/w.bin").write_bytes(os.urandom(100_000))
    return f"file://{tmp_path / 'source'}"


def shell(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-c", script.replace("localmodel ", f"{LOCALMODEL} ")]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("around", "code"),
    [
        ("{ localmodel %s --json; echo $? >&2; } | true", 0),
        ("localmodel %s >&-; echo $? >&2", 0),
        ("localmodel %s 2>&- >/dev/null; echo $? >&2", 0),
        ("localmodel %s <&- >&- 2>&-; echo $? >&2", 0),
        ("localmodel %s --json >/dev/full; echo $? >&2", 1),
        ("localmodel %s 2>/dev/full; echo $? >&2", 0),
    ],
    ids=["nobody reads", "closed", "errors closed", "all closed", "full", "errors full"],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", ["fill", "verify"])
def test_what_was_done_does_not_depend_on_who_reads(
    command: str, unbuffered: str, around: str, code: int, uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "model"
    if command == "verify":
        run(capsys, "fill", uri, target)
    words = f"fill {uri} {target}" if command == "fill" else f"verify {target}"
    err = shell(around % words, PYTHONUNBUFFERED=unbuffered).stderr
    assert err.splitlines()[-1] == str(code)
    expected = ["localmodel: standard output cannot be written: No space left on device"] if code else []
    assert err.splitlines()[:-1] == expected
    assert run(capsys, "verify", target)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "source"]


@pytest.mark.slow
def test_a_name_that_the_terminal_cannot_show_is_escaped(uri: str, tmp_path: Path) -> None:
    done = shell(f"localmodel fill {uri} {tmp_path}/modèle", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"mod\\xe8le: 1 files", done.stdout)


def test_nothing_that_a_terminal_obeys_is_printed() -> None:
    assert output.printable("a\x1b[2Jb\nc\u202ed\x9b\udce9") == r"a\x1b[2Jb\nc\u202ed\x9b\xe9"
    assert output.printable("modèle") == "modèle"


@pytest.mark.slow
def test_a_folder_that_is_relative_to_nothing_is_a_wrong_command(uri: str, tmp_path: Path) -> None:
    done = shell(f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir {tmp_path}/gone; localmodel fill {uri} model")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("is relative to a folder that is no longer there")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", ""], "is empty: name a folder"),
        (["fill", "file:///x", ""], "is empty: name a folder"),
        (["fill", "file:///x", "y", "--digest", "junk"], "'junk' is not sha256: and 64 hexadecimal digits"),
        (["fill", "file:///x", "y", "--digest", "sha256:00"], "'sha256:00' is not"),
    ],
)
def test_a_wrong_argument_is_a_wrong_command(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        run(capsys, *arguments)
    assert (raised.value.code, message in capsys.readouterr().err) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_fill_that_is_ended_while_the_origin_is_silent_says_so_and_leaves_nothing(
    number: signal.Signals, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        process = a_process("fill", "hf://owner/repo", tmp_path / "model", "--json", endpoint=endpoint)
        with silent.accept()[0]:
            process.send_signal(number)
            out, err = output_of(process, 20)
    assert (process.returncode, err) == (130, "localmodel: interrupted; the same command goes on from here\n")
    assert json.loads(out)["reason"] == "Interrupted"
    assert sorted(path.name for path in tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_ignores_hangups_goes_on(uri: str, tmp_path: Path) -> None:
    assert shell(f"trap '' HUP; localmodel fill {uri} {tmp_path}/model & kill -HUP $!; wait $!").returncode == 0


@pytest.mark.slow
def test_a_check_that_is_ended_reads_no_further(uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "source/huge.bin").write_bytes(b"")
    target = tmp_path / "model"
    run(capsys, "fill", uri, target)
    marker = target / ".localmodel/manifest.json"
    said = json.loads(marker.read_text())
    size = 1 << 40  # of holes: hours to read
    next(file for file in said["manifest"]["files"] if file["path"] == "huge.bin")["size"] = size
    target.chmod(0o755)
    for path in (marker, target / "huge.bin"):
        path.chmod(0o644)
    marker.write_text(json.dumps(said))
    os.truncate(target / "huge.bin", size)
    process = a_process("verify", target, "--json", endpoint="")
    reading = re.compile(r"^rchar: \d{8,}$", re.MULTILINE)
    eventually(lambda: reading.search(Path(f"/proc/{process.pid}/io").read_text()) is not None)
    process.send_signal(signal.SIGINT)
    out, err = output_of(process, 10)
    assert (process.returncode, json.loads(out)["reason"]) == (130, "Interrupted")
    assert err == f"localmodel: interrupted before every byte of {target} was read\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no command was given"),
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["stauts"], "there is no command stauts, but status"),
        (["bogus"], "there is no command bogus;"),
        (["bo\x1b[31mgus"], "there is no command bo\\x1b[31mgus;"),
    ],
)
def test_a_command_that_is_none_is_one_line_that_says_where_they_are(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert said in line
    assert line.endswith("--help` lists the commands")


def test_a_folder_that_is_not_there_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path / "nowhere")]) == 1
    assert f"there is no folder {tmp_path / 'nowhere'}" in capsys.readouterr().err
