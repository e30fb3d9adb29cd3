"""What a person sees while `fill` and `verify` work: bars at a terminal, else a line now and then."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.cli import progress
from coordinator.cli.progress import Sample, sentence, shown
from coordinator.dev.trial.waiting import eventually

GIB = 1 << 30


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (Sample("filling", 0, GIB), "filling: 0% of 1Gi"),
        (
            Sample("filling", GIB // 2, GIB, float(GIB // 8), "32 connections, huggingface.co"),
            "filling: 50% of 1Gi, 128Mi/s, 4s left, 32 connections, huggingface.co",
        ),
        (Sample("SourceThrottled", 1, 0, 0.5), "SourceThrottled: 100% of 0"),
        (Sample("verifying", 3, 4, 1e-9), "verifying: 75% of 4"),
    ],
)
def test_a_line_says_how_far_and_how_fast(now: Sample, said: str) -> None:
    assert sentence(now) == said


def test_a_pipe_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "LINE_S", 0.01)
    seen: list[str] = []

    def told() -> bool:
        seen.append(capsys.readouterr().err)
        return "localmodel: filling: 25% of 4\n" in "".join(seen)

    with shown(lambda: Sample("filling", 1, 4)):
        eventually(told, timeout_s=5)


def test_what_is_short_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/w.bin").write_bytes(b"x" * 1000)
    uri = f"file://{tmp_path / 'source'}"
    command = [sys.executable, "-m", "coordinator.cli", "fill", uri, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_a_terminal_gets_a_bar_for_all_and_for_each_file() -> None:
    script = """
import sys, time
from coordinator.cli import progress
from coordinator.cli.progress import Sample, shown
progress.DRAW_S = 0.01
asked = []
def sample():
    asked.append(1)
    return Sample("filling", 5, 10, 2.0, "2 connections, hub", (("a.bin", 1, 4), ("b.bin", 4, 6)))
with shown(sample):
    while len(asked) < 30:
        time.sleep(0.01)
"""
    ours, theirs = pty.openpty()
    try:
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "NO_COLOR": "1"}
        with subprocess.Popen([sys.executable, "-c", script], stderr=theirs, env=environment) as process:
            os.set_blocking(ours, False)
            seen: list[bytes] = []

            def ended() -> bool:
                try:
                    seen.append(os.read(ours, 65536))
                except BlockingIOError:
                    return process.poll() is not None
                return False

            eventually(ended, timeout_s=30)
    finally:
        os.close(ours)
        os.close(theirs)
    text = b"".join(seen).decode()
    for said in ("filling", "50% of 10", "2 connections, hub", "a.bin", "25%", "b.bin", "66%"):
        assert said in text
