"""`localmodel dev` as a person meets it: exit codes, the JSON line, Ctrl-C, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from coordinator.dev.command import cache_names
from tests.waiting import eventually

pytestmark = pytest.mark.e2e


class Dev:
    """One `localmodel dev`, and every process that carries its mark."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.mark = f"LOCALMODEL_TEST_MARK={uuid.uuid4()}"
        name, _, value = self.mark.partition("=")
        environment = dict(os.environ) | {name: value, "TMPDIR": str(folder)}
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", "coordinator.cli", "dev", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self, timeout_s: float = 120) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, out, err

    def left_running(self) -> list[str]:
        found = []
        for process in Path("/proc").iterdir():
            try:
                if process.name.isdigit() and self.mark.encode() in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100])
            except OSError:
                continue  # ended meanwhile
        return found

    def until_up(self) -> None:
        """Returns when it has printed how to use kubectl."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + 120
        for line in self.process.stdout:
            if "export KUBECONFIG=" in line:
                return
            assert time.monotonic() < deadline
        raise AssertionError(f"ended before it was up: {self.finish()}")


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("d")


def test_once_json_reports_a_ready_sample_and_leaves_nothing(folder: Path) -> None:
    dev = Dev(folder, "--once", "--json", "--nodes", "2", "--size", "16MiB")
    code, out, err = dev.finish()

    assert code == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert summary["ready"] is True
    assert summary["seconds"] > 0
    (cache,) = summary["caches"]
    assert cache["name"] == "sample"
    assert cache["reason"] == "AllNodesReady"
    assert cache["nodes"] == 2
    assert cache["bytesTotal"] >= 16 * 1024**2
    assert cache["bytesFromOrigin"] + cache["bytesFromPeers"] == 2 * cache["bytesTotal"]
    assert cache["originServedBytes"] == cache["bytesFromOrigin"], "the origin counts for itself, and agrees"
    assert sorted(cache["perNode"]) == ["node-1", "node-2"]
    for place in ("bytesFromOrigin", "bytesFromPeers", "bytesFromOtherZones"):
        assert sum(node[place] for node in cache["perNode"].values()) == cache[place]
    assert cache["amplification"] <= 1.01
    assert cache["manifestDigest"].startswith("sha256:")
    assert dev.left_running() == []
    assert list(folder.iterdir()) == []


def test_once_exits_1_and_says_why_when_the_model_cannot_be_had(folder: Path) -> None:
    dev = Dev(folder, "--once", "--json", "--nodes", "1", "--model", "http://127.0.0.1:9/model.bin")
    code, out, err = dev.finish()

    assert code == 1, err
    (cache,) = json.loads(out.splitlines()[-1])["caches"]
    assert cache["ready"] is False
    assert cache["reason"] == "SourceUnreachable"
    assert dev.left_running() == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 0)])
def test_ctrl_c_stops_everything_it_started(folder: Path, number: signal.Signals, code: int) -> None:
    dev = Dev(folder, "--nodes", "1", "--size", "8MiB")
    dev.until_up()
    dev.process.send_signal(number)

    assert dev.finish(30)[0] == code
    assert dev.left_running() == []
    assert list(folder.iterdir()) == []


def test_kill_9_leaves_no_process(folder: Path) -> None:
    dev = Dev(folder, "--nodes", "1", "--size", "8MiB")
    dev.until_up()
    dev.process.kill()
    dev.finish(10)

    eventually(lambda: not dev.left_running(), timeout_s=30, seen=dev.left_running)


@pytest.mark.parametrize("arguments", [["--nodes", "0"], ["--size", "lots"], ["--no-such-flag"]])
def test_wrong_usage_exits_2(folder: Path, arguments: list[str]) -> None:
    code, _, err = Dev(folder, *arguments).finish(30)
    assert code == 2
    assert "usage: localmodel dev" in err


def test_a_cluster_that_cannot_start_says_why_and_leaves_nothing(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        dev = Dev(folder, "--once", "--json", "--nodes", "1", "--port", port)
        code, out, err = dev.finish()

    assert code == 1
    assert "apiserver ended" in err
    summary = json.loads(out.splitlines()[-1])
    assert (summary["ready"], summary["caches"]) == (False, [])
    assert "apiserver ended" in summary["error"]
    assert dev.left_running() == []
    assert list(folder.iterdir()) == []


def test_ctrl_c_while_it_starts_is_obeyed_at_once(folder: Path) -> None:
    dev = Dev(folder, "--nodes", "3")
    eventually(lambda: len(dev.left_running()) > 3, timeout_s=30, seen=dev.left_running)
    dev.process.send_signal(signal.SIGINT)

    assert dev.finish(30)[0] == 130
    assert dev.left_running() == []
    assert list(folder.iterdir()) == []


def test_models_that_end_alike_get_different_names() -> None:
    uris = ["hf://a/model", "hf://b/Model:main", "http://c/model"]
    assert list(cache_names(uris)) == ["model", "model-2", "model-3"]
