"""The benchmark of cooperative fills works, on real hosts in network namespaces, and leaves none of them behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.dev import hosts as namespaces
from coordinator.dev.trial.waiting import output_of

ROOT = Path(__file__).resolve().parents[2]


def fanout(*arguments: str, temporary: Path) -> tuple[int, subprocess.CompletedProcess[str]]:
    """The id of its process, and what became of it."""
    command = [sys.executable, "-m", "benchmarks.fanout", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        out, err = output_of(process, 150)
    return process.pid, subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.mark.e2e
@pytest.mark.skipif(namespaces.missing() is not None, reason=str(namespaces.missing()))
def test_two_cold_hosts_read_the_origin_once_and_leave_nothing_behind(tmp_path: Path) -> None:
    pid, done = fanout("--nodes", "2", "--size", "16MiB", "--systems", "one,ours", "--json", temporary=tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["nodes"] == 2
    assert 1.0 <= found["amplification"] <= 1.05
    assert [name for name in namespaces.leftovers() if name.split("-")[1] == str(pid)] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="is root")
def test_without_root_it_says_so(tmp_path: Path) -> None:
    _, done = fanout("--nodes", "2", temporary=tmp_path)

    assert done.returncode == 2
    assert "needs root" in done.stderr or "need root" in done.stderr
