"""`localmodel ray-node`: real processes in the place of Ray, real sockets in the place of its head."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from coordinator.cli import ray_node
from coordinator.cli.ray_node import RayNode, parse_head
from coordinator.dev.trial.waiting import eventually

A_RAY = """\
    #!{python}
    import os, pathlib, signal, sys, time
    folder = pathlib.Path(os.environ["SEEN"])
    with (folder / "starts").open("a") as starts:
        starts.write(" ".join(sys.argv[1:]) + chr(10))
    print("Local node IP: 10.0.0.7", flush=True)
    print("drains for", os.environ["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"], flush=True)
    def drain(*_):
        (folder / "drained").touch()
        if child:
            os.kill(child, signal.SIGKILL)
        sys.exit(0)
    child = 0
    signal.signal(signal.SIGTERM, signal.SIG_IGN if os.environ.get("STUBBORN") else drain)
    child = os.fork()
    if child == 0:
        (folder / "raylet").write_text(str(os.getpid()))
        time.sleep(600)
    while folder.exists() and not (folder / "die").exists():
        time.sleep(0.02)
    (folder / "die").unlink(missing_ok=True)
    os._exit(3)
"""


class Machine:
    """A folder with a `ray` on PATH, a head that can be away, and the `ray-node` that is started on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ray = folder / "ray"
        ray.write_text(textwrap.dedent(A_RAY).format(python=sys.executable))
        ray.chmod(0o755)
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.head = free.getsockname()[1]
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            self.probes = free.getsockname()[1]

    @contextmanager
    def a_head(self) -> Iterator[None]:
        with closing(socket.create_server(("127.0.0.1", self.head))):
            yield

    @contextmanager
    def ray_node(self, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
        log = (self.folder / "log").open("w")
        command = [sys.executable, "-m", "coordinator.cli", "ray-node", f"--health-probe-addr=127.0.0.1:{self.probes}"]
        path = f"{self.folder}:{os.environ['PATH']}"
        child = subprocess.Popen(
            [*command, *arguments],
            env={**os.environ, "PATH": path, "SEEN": str(self.folder), **environment},
            stderr=log,
            text=True,
        )
        try:
            yield child
        finally:
            child.kill()
            child.wait()
            log.close()
            (self.folder / "die").touch()  # a Ray that outlived it
            if (raylet := self.raylet()) is not None:
                os.kill(raylet, signal.SIGKILL)

    def starts(self) -> list[str]:
        file = self.folder / "starts"
        return file.read_text().splitlines() if file.exists() else []

    def said(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in (self.folder / "log").read_text().splitlines()]

    def raylet(self) -> int | None:
        """The process that Ray left, while it is there."""
        file = self.folder / "raylet"
        pid = int(file.read_text()) if file.exists() and file.read_text() else None
        return pid if pid is not None and Path(f"/proc/{pid}").exists() and not is_zombie(pid) else None

    def probe(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.probes}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refusal:
            return refusal.code, refusal.read().decode()


def is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.slow
def test_it_waits_for_its_head_says_so_once_and_is_alive_meanwhile(machine: Machine) -> None:
    with machine.ray_node(f"--address=127.0.0.1:{machine.head}", "--", "--num-cpus=0") as process:
        eventually(lambda: (machine.folder / "log").read_text(), timeout_s=20)
        eventually(lambda: machine.probe("/healthz")[0] == 200, timeout_s=20)
        assert machine.probe("/readyz") == (
            503,
            f"[-] raylet: waits for the Ray head 127.0.0.1:{machine.head}\nnot ready\n",
        )
        assert machine.starts() == []
        with machine.a_head():
            eventually(machine.starts, timeout_s=20)
            assert machine.starts() == [
                f"start --address=127.0.0.1:{machine.head} --block --log-color=false --num-cpus=0"
            ]
        process.terminate()
        assert process.wait(20) == 0
    messages = [line["msg"] for line in machine.said()]
    assert messages.count("waiting for the Ray head") == 1
    assert messages.count("the Ray head is there") == 1
    assert "Local node IP: 10.0.0.7" in messages, "Ray's own lines are lines of the log"
    assert "drains for 10" in messages, "less than it is given until it is killed"
    assert (machine.folder / "drained").exists()


@pytest.mark.slow
def test_a_ray_node_that_ended_is_started_again_and_leaves_nothing_behind(machine: Machine) -> None:
    with machine.a_head(), machine.ray_node(f"--address=127.0.0.1:{machine.head}"):
        eventually(machine.raylet, timeout_s=20)
        first = machine.raylet()
        (machine.folder / "die").touch()
        eventually(lambda: len(machine.starts()) == 2, timeout_s=20)
        eventually(lambda: machine.raylet() not in (None, first), timeout_s=20)
        assert first is not None
        assert not Path(f"/proc/{first}").exists() or is_zombie(first)
    (ended,) = [line for line in machine.said() if line["msg"] == "the Ray node ended and is started again"]
    assert ended["exit_code"] == 3


@pytest.mark.slow
def test_a_ray_that_does_not_drain_is_killed_within_the_time_it_was_given(machine: Machine) -> None:
    arguments = (f"--address=127.0.0.1:{machine.head}", "--drain-seconds=0.5")
    with machine.a_head(), machine.ray_node(*arguments, STUBBORN="1") as process:
        eventually(machine.raylet, timeout_s=20)
        process.terminate()
        assert process.wait(20) == 0
        assert machine.raylet() is None


@pytest.mark.parametrize("address", ["", "auto", "head", "head:", ":6379", "head:0", "head:port", "head:99999"])
def test_an_address_that_names_no_head_is_refused(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="is not host:port of a Ray head"):
        parse_head(address)
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "coordinator.cli", "ray-node", f"--address={address}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "is not host:port of a Ray head" in done.stderr


def test_addresses_of_heads_are_understood() -> None:
    assert parse_head("head-svc.localmodel.svc:6379") == ("head-svc.localmodel.svc", 6379)
    assert parse_head("[fd00::5]:6379") == ("fd00::5", 6379)


class Raylet:
    def __init__(self) -> None:
        self.well, self.now = True, 0.0

    def node(self) -> RayNode:
        node = RayNode([], ("head", 1), threading.Event(), answers=lambda: self.well, clock=lambda: self.now)
        node._child = subprocess.Popen(["true"], text=True)
        return node


def test_a_raylet_is_hung_only_when_it_has_answered_and_then_been_silent_for_long() -> None:
    raylet = Raylet()
    node = raylet.node()
    raylet.well = False
    assert node.hung() is None, "it has never answered: it is joining"
    raylet.now, raylet.well = 500.0, True
    assert (node.unready(), node.hung()) == (None, None)
    raylet.now, raylet.well = 500.0 + ray_node.SILENT_S, False
    assert (node.unready(), node.hung()) == ("the raylet does not answer", None)
    raylet.now += 1
    assert node.hung() == "the raylet has not answered for 121 s"
    raylet.well = True
    assert node.hung() is None
    assert node._child is not None
    node._child.wait()
    node._child = None
    raylet.well = False
    assert node.hung() is None, "a head that is away is no reason to start the container again"
