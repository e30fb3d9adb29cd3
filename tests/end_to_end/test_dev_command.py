"""`localmodel dev` as a person meets it: exit codes, the JSON line, Ctrl-C, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from coordinator.dev.trial.waiting import eventually
from coordinator.kube.config import load_config
from coordinator.kube.http import HttpKube
from coordinator.kube.interface import KubeError
from coordinator.plan.snapshot import CACHES

pytestmark = pytest.mark.e2e


class Dev:
    """One `localmodel dev`, and every process that carries its mark."""

    started: ClassVar[list[Dev]] = []

    def __init__(self, folder: Path, *arguments: str, prefix: Sequence[str] = (), **environ: str | None) -> None:
        self.mark = f"LOCALMODEL_TEST_MARK={uuid.uuid4()}"
        name, _, value = self.mark.partition("=")
        changed = {**os.environ, name: value, "TMPDIR": str(folder), **environ}
        environment = {key: each for key, each in changed.items() if each is not None}
        self.folder = folder
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "coordinator.cli", "dev", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(self)

    def finish(self, timeout_s: float = 120) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, out, err

    def finish_unheard(self, timeout_s: float = 60) -> tuple[int, str]:
        """The exit code and standard error of one whose standard output nobody reads any more."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        code = self.process.wait(timeout_s)
        with self.process.stderr as stream:
            return code, stream.read()

    def left_running(self) -> list[str]:
        found = []
        for process in Path("/proc").iterdir():
            try:
                if process.name.isdigit() and self.mark.encode() in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100])
            except OSError:
                continue  # ended meanwhile
        return found

    def until_up(self) -> Path:
        """The kubeconfig, when it has printed how to use kubectl."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + 120
        for line in self.process.stdout:
            if found := re.search(r"export KUBECONFIG=(.+)", line):
                return Path(shlex.split(found[1])[0])
            assert time.monotonic() < deadline
        raise AssertionError(f"ended before it was up: {self.finish()}")


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where runs keep their files. A run that a failed test has left up ends with it."""
    yield tmp_path_factory.mktemp("d")
    for dev in Dev.started:
        if dev.process.poll() is None:
            dev.process.send_signal(signal.SIGINT)
            dev.finish(30)
    Dev.started.clear()


def test_once_json_reports_a_ready_sample_and_leaves_nothing(folder: Path) -> None:
    dev = Dev(folder, "--once", "--json", "--nodes", "2", "--size", "16MiB")
    code, out, err = dev.finish()

    assert code == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert (summary["ready"], summary["reason"]) == (True, "Ready")
    assert summary["seconds"] > 0
    assert err.splitlines()[-1] == "origin read 1.00 times, 16Mi of 32Mi came from peers"
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
    summary = json.loads(out.splitlines()[-1])
    assert (summary["reason"], summary["message"]) == (cache["reason"], cache["message"])
    assert dev.left_running() == []


def test_ctrl_c_stops_everything_it_started_and_leaves_a_folder_with_blanks_empty(folder: Path) -> None:
    """Its kubeconfig is in that folder, and can be pasted."""
    place = folder / "a b"
    place.mkdir()
    dev = Dev(folder, "--nodes", "1", "--size", "8MiB", "--dir", str(place))
    assert dev.until_up().is_relative_to(place)
    dev.process.send_signal(signal.SIGINT)
    dev.process.send_signal(signal.SIGQUIT)

    code, out, _ = dev.finish(30)
    assert code == 0
    assert out.splitlines()[-1] == "origin read 1.00 times, 0 of 8Mi came from peers"
    assert dev.left_running() == []
    assert list(place.iterdir()) == []


def test_it_stays_up_when_the_sample_is_deleted_and_ends_when_its_terminal_is_closed(folder: Path) -> None:
    """As when the window is closed: SIGHUP, and nothing can be written any more."""
    dev = Dev(folder, "--nodes", "1", "--size", "8MiB")
    kube = HttpKube(load_config(str(dev.until_up())))
    kube.delete(CACHES, "sample")
    eventually(lambda: not kube.list(CACHES)[0], timeout_s=30)
    kube.close()
    with pytest.raises(subprocess.TimeoutExpired):
        dev.process.wait(1.5)  # longer than it takes to look again
    dev.process.send_signal(signal.SIGHUP)

    assert dev.finish_unheard()[0] in (0, 141)
    assert dev.left_running() == []
    assert list(folder.iterdir()) == []


def test_an_output_that_is_not_read_to_its_end_stops_it(folder: Path) -> None:
    dev = Dev(folder, "--once", "--nodes", "1", "--size", "8MiB")
    assert dev.process.stdout is not None
    assert dev.process.stdout.readline().startswith("starting ")
    assert dev.finish_unheard() == (141, "")
    assert dev.left_running() == []
    assert list(folder.iterdir()) == []


def test_kill_9_leaves_no_process_and_its_files_to_the_next_run(folder: Path) -> None:
    """The next run removes them, also where another run is up, whose files stay, and where itself it has no room."""
    (folder / "localmodel-notes").mkdir()
    killed, living = (Dev(folder, "--nodes", "1", "--size", "8MiB") for _ in range(2))
    left, kept = killed.until_up().parent, living.until_up().parent
    killed.process.kill()
    killed.finish(10)
    eventually(lambda: not killed.left_running(), timeout_s=30, seen=killed.left_running)
    assert left.exists()

    code, out, _ = Dev(folder, "--once", "--size", "5Ei").finish(30)
    assert code == 1
    assert out.startswith(f"removed what 1 killed run has left in {folder}")
    assert sorted(folder.iterdir()) == sorted([kept, folder / "localmodel-notes"])
    living.process.send_signal(signal.SIGTERM)
    assert living.finish(30)[0] == 0
    assert living.left_running() == []


def test_the_sample_may_be_deleted_while_it_is_filled(folder: Path) -> None:
    dev = Dev(folder, "--nodes", "1", "--size", "256MiB", "--once", "--json")
    config = eventually(lambda: next(folder.glob("localmodel-*/kubeconfig"), None), timeout_s=60)
    kube = HttpKube(load_config(str(config)))

    def delete() -> bool:
        try:
            kube.delete(CACHES, "sample")
        except KubeError:
            return False
        return True

    eventually(delete, timeout_s=60, every_s=0.05)
    kube.close()
    code, out, _ = dev.finish()
    summary = json.loads(out.splitlines()[-1])
    assert (code, summary["ready"], summary["reason"], summary["caches"]) == (1, False, "Deleted", [])
    assert "sample was deleted" in summary["message"]


def test_a_process_of_the_cluster_that_ends_is_named(folder: Path) -> None:
    dev = Dev(folder, "--nodes", "1", "--size", "8MiB")
    dev.until_up()
    found = [each for each in Path("/proc").iterdir() if each.name.isdigit() and _runs_origin(each, folder)]
    os.kill(int(found[0].name), signal.SIGKILL)
    code, out, _ = dev.finish(60)
    assert (code, "the laptop cluster failed: origin ended with exit code -9" in out) == (1, True), out
    assert dev.left_running() == []
    assert list(folder.iterdir()) == []


def _runs_origin(process: Path, folder: Path) -> bool:
    try:
        command = (process / "cmdline").read_bytes()
    except OSError:
        return False
    return b"coordinator.dev.origin\0" in command and str(folder).encode() in command


def test_a_time_that_runs_out_is_a_reason(folder: Path) -> None:
    dev = Dev(folder, "--once", "--json", "--nodes", "1", "--size", "256MiB", "--timeout", "0.1")
    code, out, err = dev.finish()
    summary = json.loads(out.splitlines()[-1])
    assert (code, summary["ready"], summary["reason"]) == (1, False, "Timeout"), err
    assert summary["message"].startswith("not Ready within 0.1 s: ")
    assert dev.left_running() == []
    assert list(folder.iterdir()) == []


def test_a_disk_without_room_is_a_reason_before_anything_starts(folder: Path) -> None:
    dev = Dev(folder, "--once", "--json", "--size", "5Ei")
    code, out, err = dev.finish(30)
    summary = json.loads(out.splitlines()[-1])
    assert (code, summary["ready"], summary["reason"]) == (1, False, "InsufficientStorage"), err
    assert re.search(r"3 nodes need 20Ei in .*, where \S+ are free: take fewer --nodes", summary["message"])
    assert list(folder.iterdir()) == []


_NOWHERE = "http://127.0.0.1:9"
AWKWARD: dict[str, tuple[str, dict[str, str | None], tuple[str, ...]]] = {
    "blanks and brackets in the path, no HOME, proxies, another cluster and another Ray, ASCII": (
        "a [b] 'c' $d",
        {
            **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "grpc_proxy"), _NOWHERE),
            "HOME": None,
            "KUBECONFIG": "/nowhere",
            "RAY_ADDRESS": "127.0.0.1:1",
            "PYTHONIOENCODING": "ascii",
            "NO_COLOR": "1",
        },
        (),
    ),
    "a long path, no right to overrule permissions, nohup": (
        "long/" * 30,
        {"TERM": "dumb"},
        ("setpriv", "--inh-caps=-all", "--bounding-set=-all", "nohup"),
    ),
}


@pytest.mark.parametrize("case", AWKWARD)
def test_it_runs_in_ordinary_places(folder: Path, case: str) -> None:
    name, environ, prefix = AWKWARD[case]
    if prefix and (shutil.which(prefix[0]) is None or os.geteuid() != 0):
        prefix = prefix[-1:]  # who is not root has no such rights in the first place
    place = folder / name
    place.mkdir(parents=True)
    dev = Dev(place, "--once", "--nodes", "1", "--size", "2MiB", prefix=prefix, **environ)
    code, out, err = dev.finish()
    assert (code, err.replace("nohup: ignoring input\n", "")) == (0, ""), out
    assert out.splitlines()[-1] == "origin read 1.00 times, 0 of 2Mi came from peers"
    assert "\x1b" not in out
    assert dev.left_running() == []
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--size", "5"], ["--no-such-flag"]])
def test_wrong_usage_exits_2(folder: Path, arguments: list[str]) -> None:
    code, out, err = Dev(folder, *arguments).finish(30)
    assert (code, out) == (2, "")
    assert "usage: localmodel dev" in err
    assert err.splitlines()[-1].startswith("localmodel dev: error: ")
    assert list(folder.iterdir()) == []


def test_a_port_in_use_exits_2(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, out, err = Dev(folder, "--once", "--json", "--nodes", "1", "--port", port).finish()
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == f"localmodel dev: error: --port {port} is in use; without --port a free one is taken"


def test_a_cluster_that_cannot_start_says_why_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    """Binaries that are there and do not run."""
    for name in ("etcd", "kube-apiserver"):
        (tmp_path / name).write_text("#!/bin/sh\necho cannot run here >&2\nexit 3\n")
        (tmp_path / name).chmod(0o755)
    dev = Dev(folder, "--once", "--json", "--nodes", "1", KUBEBUILDER_ASSETS=str(tmp_path))
    code, out, err = dev.finish()

    assert code == 1
    assert "apiserver ended with exit code 3" in err
    summary = json.loads(out.splitlines()[-1])
    assert (summary["ready"], summary["caches"], summary["reason"]) == (False, [], "ClusterFailed")
    assert "cannot run here" in summary["message"]
    assert summary["error"] == summary["message"]
    assert dev.left_running() == []
    assert list(folder.iterdir()) == []


def test_ctrl_c_while_it_starts_is_obeyed_at_once(folder: Path) -> None:
    dev = Dev(folder, "--nodes", "3")
    eventually(lambda: len(dev.left_running()) > 3, timeout_s=30, seen=dev.left_running)
    dev.process.send_signal(signal.SIGINT)

    assert dev.finish(30)[0] == 130
    assert dev.left_running() == []
    assert list(folder.iterdir()) == []
