"""The parts of `localmodel dev` that need no cluster: flags, the folder of a run, the screen, how a run ends."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

from coordinator.api.resources import LocalModelCache, LocalModelNode
from coordinator.dev.laptop import flags
from coordinator.dev.laptop.command import PREFIX, bypass_proxies, cache_names
from coordinator.dev.laptop.flags import WrongFlags
from coordinator.dev.laptop.outcome import Ending, ending, progress, saved, table, unfinished
from coordinator.dev.laptop.runfolder import remove_abandoned, remove_tree, run_folder
from coordinator.dev.laptop.screen import Screen, rows_taken
from coordinator.dev.trial.waiting import eventually

MIB = 1024**2

# Flags


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"x" * 1000)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a:b").mkdir()
    return tmp_path


def parsed(folder: Path, *arguments: str) -> flags.Request:
    parser = argparse.ArgumentParser(prog="localmodel dev", allow_abbrev=False)
    flags.add_arguments(parser)
    return flags.request(parser.parse_args(arguments), {"TMPDIR": str(folder)})


WRONG: dict[str, str] = {
    "--size 5": "5 is too small: the sample takes at least 64Ki",
    "--size 0": "0 is too small",
    "--size x": "'x' is not a quantity",
    "--size -1": "'-1' is negative",
    "--port 99999": "'99999' is not a port from 1 to 65535, or 0 for a free one",
    "--port x": "'x' is not a port",
    "--nodes x": "'x' is not a number from 1 to 32",
    "--nodes 0": "'0' is not a number",
    "--nodes 1000": "'1000' is not a number",
    "--nodes ²": "is not a number",
    "--timeout 0 --once": "'0' is not a number of seconds above 0",
    "--timeout nan --once": "'nan' is not",
    "--timeout inf --once": "'inf' is not",
    "--timeout 5": "--timeout ends --once, which is not given",
    "--repo x=y": "--repo x=y: expected OWNER/NAME=FOLDER",
    "--repo a/b": "expected OWNER/NAME=FOLDER",
    "--repo a/b=nowhere": "nowhere is not there",
    "--repo a/b=model/weights": "weights is not a folder",
    "--repo a/b=empty": "empty holds no files",
    "--repo a/b=model --repo a/b=model": "--repo a/b: given twice",
    "--repo localmodel/sample=model": "localmodel/sample is the built-in sample",
    "--model nonsense": "--model 'nonsense': expected a URI",
    "--model hf://": "expected a URI",
    "--model http://a/b --model http://a/b": "given 2 times",
    "--model hf://a/b --model hf://localmodel/sample": "take one of them",
    "--model http://a/b --size 1Mi": "--size is that of the sample",
    "--dir nowhere": "nowhere is not there: create it first",
    "--dir model/weights": "weights is not a folder",
    "--dir a:b": "cannot hold ':'",
    f"--dir {'x' * 300}": "File name too long",
    f"--dir {'x/' * 2000}": "is too long; at most 3000 fit",
}


@pytest.mark.parametrize("given", WRONG)
def test_a_wrong_flag_is_one_clear_line(
    folder: Path, given: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises((WrongFlags, SystemExit)) as wrong:
        parsed(folder, *given.split())
    said = str(wrong.value)
    if isinstance(wrong.value, SystemExit):
        assert wrong.value.code == 2
        said = capsys.readouterr().err.splitlines()[-1]
    assert WRONG[given] in said
    assert "\n" not in said


def test_a_port_that_is_in_use_is_said_before_anything_starts(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(WrongFlags, match=rf"^--port {port} is in use; without --port a free one is taken$"):
            parsed(folder, "--port", str(port))
    assert parsed(folder, "--port", str(port)).options.api_port == port


def test_a_temporary_folder_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(WrongFlags, match=r"^\$TMPDIR .*gone is not there"):
        parsed(folder / "gone")


def test_a_folder_that_is_not_writable_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "empty").chmod(0o500)
    if os.geteuid() == 0:  # who may write anywhere
        monkeypatch.setattr(os, "access", lambda path, mode: Path(path).stat().st_mode & mode << 6 == mode << 6)
    with pytest.raises(WrongFlags, match=r"empty is not writable; give another with --dir$"):
        parsed(folder, "--dir", str(folder / "empty"))


def test_what_is_asked_for_is_understood(folder: Path) -> None:
    plain = parsed(folder)
    assert (plain.models, plain.parent, plain.once) == (("hf://localmodel/sample",), folder, False)
    assert (plain.options.nodes, plain.options.sample_bytes, plain.options.real_hub) == (3, 256 * MIB, False)
    assert plain.model_bytes == 256 * MIB
    ours = parsed(folder, "--repo", f"a/b={folder / 'model'}", "--model", "hf://a/b:main", "--once", "--timeout", "2.5")
    assert (ours.options.sample_bytes, ours.options.real_hub, ours.model_bytes) == (0, False, 1000)
    assert (ours.once, ours.timeout_s) == (True, 2.5)
    assert parsed(folder, "--model", "hf://Qwen/Qwen2.5-0.5B").options.real_hub


def test_models_that_end_alike_get_different_names() -> None:
    uris = ["hf://a/model", "hf://b/Model:main", "http://c/model"]
    assert list(cache_names(uris)) == ["model", "model-2", "model-3"]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "localhost,127.0.0.1,127.0.0.2,::1"),
        ({"NO_PROXY": "corp, localhost"}, "corp,localhost,127.0.0.1,127.0.0.2,::1"),
        ({"no_proxy": "corp"}, "corp,localhost,127.0.0.1,127.0.0.2,::1"),
    ],
)
def test_loopback_never_goes_through_a_proxy(environ: dict[str, str], expected: str) -> None:
    bypass_proxies(environ)
    assert (environ["NO_PROXY"], environ["no_proxy"]) == (expected, expected)


# The folder of a run

HOLDER = """
import sys, time
from pathlib import Path
from coordinator.dev.laptop.runfolder import run_folder
with run_folder(Path(sys.argv[1]), "localmodel-") as folder:
    (folder / "nodes").mkdir()
    (folder / "nodes" / "weights").write_bytes(b"x" * 100)
    (folder / "nodes").chmod(0o555)
    print(folder, flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def a_run(parent: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(parent)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())
    finally:
        process.kill()
        process.communicate()


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "localmodel-mine").mkdir()
    (tmp_path / "localmodel-mine" / "notes").write_text("not of a run")
    (tmp_path / "localmodel-file").write_text("a file")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "localmodel-link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / ".owner").write_text("1\n")
    others = sorted(tmp_path.iterdir())
    with a_run(tmp_path) as (killed, left), a_run(tmp_path) as (living, kept):
        assert remove_abandoned(tmp_path, PREFIX) == 0
        killed.send_signal(signal.SIGKILL)
        killed.wait(10)
        assert (left / "nodes" / "weights").exists()
        assert remove_abandoned(tmp_path, PREFIX) == 1
        assert (left.exists(), (kept / "nodes" / "weights").exists(), living.poll()) == (False, True, None)
        assert sorted(tmp_path.iterdir()) == sorted([*others, kept])
    assert (tmp_path / "elsewhere" / ".owner").exists()


def test_a_link_in_place_of_the_owner_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "free").write_text("1\n")
    planted = tmp_path / "localmodel-planted"
    planted.mkdir()
    (planted / ".owner").symlink_to(tmp_path / "free")
    assert remove_abandoned(tmp_path, PREFIX) == 0
    assert planted.exists()


def test_a_run_leaves_nothing_however_its_folder_is_protected(tmp_path: Path) -> None:
    with run_folder(tmp_path, PREFIX) as folder:
        (folder / "models" / "a").mkdir(parents=True)
        (folder / "models" / "a" / "weights").touch(mode=0o400)
        (folder / "models" / "out").symlink_to(tmp_path)
        (folder / "models" / "a").chmod(0o000)
        (folder / "models").chmod(0o555)
    assert list(tmp_path.iterdir()) == []


def test_a_removal_that_was_cut_short_can_go_on(tmp_path: Path) -> None:
    """The owner goes last: a folder that is half removed is still known to be one of ours."""
    folder = tmp_path / "localmodel-half"
    (folder / "nodes").mkdir(parents=True)
    (folder / ".owner").write_text("1\n")
    assert remove_abandoned(tmp_path, PREFIX) == 1
    remove_tree(folder)
    assert not folder.exists()


@pytest.mark.slow
def test_many_who_sweep_at_once_disturb_nobody(tmp_path: Path) -> None:
    with a_run(tmp_path) as (_, kept):
        sweep = "import sys; from pathlib import Path; from coordinator.dev.laptop.runfolder import *\n"
        sweep += "for _ in range(200):\n  remove_abandoned(Path(sys.argv[1]), 'localmodel-')\n"
        sweep += "  with run_folder(Path(sys.argv[1]), 'localmodel-') as f: assert (f / '.owner').exists()"
        many = [subprocess.Popen([sys.executable, "-c", sweep, str(tmp_path)]) for _ in range(3)]
        assert [each.wait(60) for each in many] == [0, 0, 0]
        assert list(tmp_path.iterdir()) == [kept]


# The screen


class Terminal:
    """A screen on a pseudo-terminal, and what was written to it."""

    def __init__(self, **environ: str) -> None:
        self._ours, theirs = pty.openpty()
        self._stream = os.fdopen(theirs, "w")
        self.screen = Screen(self._stream, environ={"TERM": "xterm", **environ})

    def written(self) -> str:
        said = b""
        while select.select([self._ours], [], [], 0.2)[0]:
            said += os.read(self._ours, 65536)
        return said.decode().replace("\r\n", "\n")

    def close(self) -> None:
        self._stream.close()
        os.close(self._ours)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


def test_a_block_takes_the_place_of_the_last_one_and_lines_stay_above_it(terminal: Terminal) -> None:
    terminal.screen.show(Text("one\ntwo"))
    terminal.screen.show(Text("three"))
    terminal.screen.line("a line [/that] stays")
    terminal.screen.keep(Text("the end"))
    assert (
        terminal.written()
        == "one\ntwo\n\x1b[2A\n\x1b[Jthree\n\x1b[1A\n\x1b[Ja line [/that] stays\nthe end\n".replace("A\n", "A\r")
    )


@pytest.mark.parametrize(
    ("lengths", "columns", "rows"),
    [([], 80, 0), ([0], 80, 1), ([80], 80, 1), ([81], 80, 2), ([60, 60], 40, 4), ([60], 0, 60)],
)
def test_lines_of_a_window_that_became_narrower_take_more_rows(lengths: list[int], columns: int, rows: int) -> None:
    assert rows_taken(lengths, columns) == rows


def test_a_file_gets_lines_and_no_blocks_and_no_escapes() -> None:
    out, now = io.StringIO(), [0.0]
    screen = Screen(out, environ={"TERM": "xterm"}, clock=lambda: now[0])
    screen.show(Text("drawn"))
    for at, text in ((0.0, "a: 1%"), (1.0, "a: 2%"), (6.0, "a: 2%"), (12.0, "a: 2%"), (13.0, "a: 3%")):
        now[0] = at
        screen.progress(text)
    screen.line("w" * 300, "red")
    assert out.getvalue() == f"a: 1%\na: 2%\na: 3%\n{'w' * 300}\n"


def test_a_dumb_terminal_is_spared_blocks() -> None:
    terminal = Terminal(TERM="dumb")
    terminal.screen.show(Text("drawn"))
    terminal.screen.progress("a: 1%")
    assert "\x1b" not in (said := terminal.written())
    assert said == "a: 1%\n"
    terminal.close()


def test_an_output_that_nobody_reads_is_left_alone_and_said_once() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    told: list[int] = []
    with os.fdopen(writer, "w") as stream:
        screen = Screen(stream, gone=lambda: told.append(1))
        for _ in range(3):
            screen.line("x" * 10000)
    assert told == [1]


def test_a_character_that_the_output_lacks_is_replaced(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w", encoding="ascii") as stream:
        Screen(stream).line("3 × 256Mi …")
    assert (tmp_path / "out").read_text() == "3 ? 256Mi ?\n"


def test_no_output_at_all_is_no_error() -> None:
    Screen(None).line("to nobody")


# How a run ends


def a_cache(name: str = "sample", *, ready: bool = False, reason: str = "", **status: Any) -> LocalModelCache:
    condition = {"type": "Ready", "status": "True" if ready else "False", "reason": reason or "Ready", "message": "m"}
    condition["lastTransitionTime"] = "2026-01-02T03:04:05Z"
    spec = {"sourceModelUri": f"hf://localmodel/{name}", "modelSize": "1Gi", "nodeGroups": ["laptop"]}
    return LocalModelCache.model_validate(
        {"metadata": {"name": name}, "spec": spec, "status": {"conditions": [condition], **status}}
    )


def a_node(name: str, model: str = "sample", *, done: bool = False, reason: str | None = None) -> LocalModelNode:
    detail = {"name": model, "phase": "Ready" if done else "Pending", "reason": reason, "message": "needs 1Gi"}
    status = {"models": [detail], "modelStatus": {model: "ModelDownloaded"} if done else {}}
    return LocalModelNode.model_validate({"metadata": {"name": name}, "spec": {"localModels": []}, "status": status})


def states(**by_node: str) -> dict[str, str]:
    return {name.replace("_", "-"): f"Node{state}" for name, state in by_node.items()}


ENDINGS: dict[str, tuple[list[LocalModelCache], list[LocalModelNode], str | None]] = {
    "nothing is known yet": ([a_cache(reason="Pending")], [], None),
    "it is on its way": ([a_cache(nodeStatus=states(n_1="Downloading"))], [a_node("n-1")], None),
    "one is done and one on its way": (
        [a_cache(nodeStatus=states(n_1="Downloaded", n_2="Downloading"))],
        [a_node("n-1", done=True), a_node("n-2")],
        None,
    ),
    "Ready, but a node has not said so": (
        [a_cache(ready=True, nodeStatus=states(n_1="Downloaded"))],
        [a_node("n-1")],
        None,
    ),
    "Ready": ([a_cache(ready=True, nodeStatus=states(n_1="Downloaded"))], [a_node("n-1", done=True)], "Ready"),
    "it failed": (
        [a_cache(reason="SourceDenied", nodeStatus=states(n_1="DownloadError"))],
        [a_node("n-1")],
        "SourceDenied",
    ),
    "there is no room": (
        [a_cache(reason="Downloading", nodeStatus=states(n_1="DownloadPending"))],
        [a_node("n-1", reason="InsufficientStorage")],
        "InsufficientStorage",
    ),
    "there is no room on one, another is on its way": (
        [a_cache(nodeStatus=states(n_1="DownloadPending", n_2="Downloading"))],
        [a_node("n-1", reason="InsufficientStorage"), a_node("n-2")],
        None,
    ),
    "it was deleted": ([], [], "Deleted"),
}


@pytest.mark.parametrize(("caches", "nodes", "expected"), ENDINGS.values(), ids=ENDINGS)
def test_waiting_ends(caches: list[LocalModelCache], nodes: list[LocalModelNode], expected: str | None) -> None:
    found = ending(["sample"], caches, nodes)
    assert (found and found.reason) == expected


def test_a_time_that_ran_out_says_how_far_it_was() -> None:
    cache = a_cache(reason="Downloading", progress="37%", nodeStatus=states(n_1="Downloading"))
    assert unfinished([cache], [], 30) == Ending("Timeout", "not Ready within 30 s: sample at 37% (Downloading: m)")
    assert unfinished([], [], 0.5).message == "not Ready within 0.5 s: no cache was seen"


def test_progress_is_a_line() -> None:
    cache = a_cache(progress="73%", available="1/3", eta="4s")
    assert progress([cache, a_cache("other")]) == "sample: 73%, 1/3 nodes, 4s left"


def test_what_was_saved_is_said_as_all_sizes_are() -> None:
    amounts = {"total": 256 * MIB, "fromOrigin": 256 * MIB, "fromPeers": 512 * MIB}
    cache = a_cache(bytes=amounts)
    expected = "origin read 1.00 times, 512Mi of 768Mi came from peers"
    assert saved([cache], {}) == expected
    assert saved([cache], {"localmodel/sample": {"bytes": 256 * MIB}}) == expected
    assert saved([a_cache()], {}) is None
    assert saved([a_cache(bytes={"total": 5, "fromOrigin": 0, "fromPeers": 0})], {}) is None


@pytest.mark.parametrize(
    ("columns", "headings"),
    [
        (120, ["NODE", "MODEL", "PHASE", "BYTES", "RATE", "ETA", "REASON"]),
        (80, ["NODE", "MODEL", "PHASE", "BYTES", "RATE", "ETA"]),
        (40, ["NODE", "PHASE", "BYTES"]),
    ],
)
def test_a_narrow_window_gets_the_columns_that_matter(columns: int, headings: list[str]) -> None:
    nodes = [a_node("node-1", reason="InsufficientStorage")]
    caches = [a_cache(reason="NodeGroupNotFound")]
    grid = table(caches, nodes, columns)
    assert [column.header for column in grid.columns] == headings
    out = io.StringIO()
    Screen(out, environ={"COLUMNS": str(columns)}).keep(grid)
    assert "node-1" in out.getvalue()
    if columns == 120:
        assert textwrap.dedent(out.getvalue()).count("InsufficientStorage: needs 1Gi") == 1


@pytest.mark.slow
def test_a_line_appears_where_it_is_awaited(tmp_path: Path) -> None:
    """A child that is spoken to is listened to without holding up whoever wants to interrupt."""
    from coordinator.dev.laptop.processes import Child, ChildFailed

    script = "import sys,time\nfor line in sys.stdin:\n  time.sleep(float(line)); print('one\\ntwo', flush=True)"
    child = Child("talker", [sys.executable, "-c", script], log=tmp_path / "log", spoken=True)
    try:
        asked: list[int] = []
        child.tell("0.5")
        assert (child.answer(meanwhile=lambda: asked.append(1)), child.answer()) == ("one", "two")
        assert asked
        child.tell("30")
        with pytest.raises(ChildFailed, match="said nothing for 0 s"):
            child.answer(timeout_s=0.3)
        with pytest.raises(KeyboardInterrupt):
            child.answer(meanwhile=_interrupt)
        child.check()
    finally:
        child.kill()
    eventually(lambda: not child.running)
    with pytest.raises(ChildFailed, match="talker ended with exit code -9"):
        child.check()


def _interrupt() -> None:
    raise KeyboardInterrupt
