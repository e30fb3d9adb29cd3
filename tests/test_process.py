"""`localmodel run` as Kubernetes and people meet it: exit codes, probes, logs, and two replicas."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator import crds
from coordinator.dev.apiserver.server import ApiServer, write_kubeconfig
from coordinator.kube import LEASES, NAMESPACES, HttpKube, load_config
from coordinator.leader import LOCK_NAME
from tests.waiting import eventually

pytestmark = pytest.mark.e2e


class Coordinator:
    """One `localmodel run` with probes and metrics on ports of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            second.bind(("127.0.0.1", 0))
            self.health, self.metrics = first.getsockname()[1], second.getsockname()[1]
        self.log = folder / f"run-{self.health}.log"
        command = [sys.executable, "-m", "coordinator.cli", "run", f"--health-probe-addr=127.0.0.1:{self.health}"]
        command += [f"--metrics-addr=127.0.0.1:{self.metrics}", "--ray-address=127.0.0.2:9", *arguments]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def get(self, path: str, port: int | None = None) -> tuple[int, str]:
        """(status, body); status 0 while nobody listens."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port or self.health}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def logged(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def messages(self) -> list[object]:
        return [line["msg"] for line in self.logged()]

    def leads(self) -> bool:
        return 'leader_election_master_status{name="' + LOCK_NAME + '"} 1.0' in self.get("/metrics", self.metrics)[1]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(45)

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Coordinator]]:
    """What a test starts goes in here, and ends with it."""
    running: list[Coordinator] = []
    yield running
    for each in running:
        each.kill()


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Iterator[Path]:
    with ApiServer(crds.load()) as server:
        path = tmp_path / "kubeconfig"
        write_kubeconfig(path, server.url)
        kube = HttpKube(load_config(str(path)))
        kube.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kserve"}})
        kube.close()
        yield path


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coordinator.cli", "run", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_without_any_cluster_configuration_it_says_so_in_one_line_and_exits_1() -> None:
    done = run()
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert json.loads(line)["msg"] == "unable to set up client config"
    assert "KUBECONFIG" in json.loads(line)["error"]


@pytest.mark.parametrize("arguments", [["--no-such-flag"], ["--metrics-addr=nonsense"], ["--leader-elect=perhaps"]])
def test_a_bad_flag_exits_2_with_the_usage(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "usage: localmodel run" in done.stderr


def test_an_unreachable_cluster_is_named_and_probed_while_it_is_live_but_not_ready(
    tmp_path: Path, started: list[Coordinator]
) -> None:
    write_kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:9")
    coordinator = Coordinator(tmp_path, f"--kubeconfig={tmp_path / 'kubeconfig'}")
    started.append(coordinator)
    eventually(lambda: coordinator.get("/healthz")[0] == 200, seen=coordinator.log.read_text)
    eventually(lambda: "127.0.0.1" in coordinator.get("/readyz")[1], seen=lambda: coordinator.get("/readyz"))
    assert coordinator.get("/readyz")[0] == 503
    assert coordinator.stop() == 0


def test_it_is_ready_once_synced_logs_json_lines_and_ends_on_sigterm(
    tmp_path: Path, kubeconfig: Path, started: list[Coordinator]
) -> None:
    coordinator = Coordinator(tmp_path, f"--kubeconfig={kubeconfig}")
    started.append(coordinator)
    eventually(lambda: coordinator.get("/readyz")[0] == 200, seen=lambda: coordinator.get("/readyz"))
    assert "localmodel_tick_seconds_count" in coordinator.get("/metrics", coordinator.metrics)[1]
    assert coordinator.stop() == 0
    assert "starting" in coordinator.messages()
    assert coordinator.messages()[-1] == "stopping"
    lines = [line for line in coordinator.log.read_text().splitlines() if not line.startswith("{")]
    foreign = ("SIGTERM handler is not set", "[20")  # what Ray writes past Python's streams while it cannot connect
    assert [line for line in lines if not line.startswith(foreign)] == []


def test_of_two_replicas_one_leads_both_are_ready_and_the_other_takes_over(
    tmp_path: Path, kubeconfig: Path, started: list[Coordinator]
) -> None:
    flags = (f"--kubeconfig={kubeconfig}", "--leader-elect", "--namespace=kserve")
    first = Coordinator(tmp_path, *flags)
    started.append(first)
    eventually(first.leads, seen=first.log.read_text)
    second = Coordinator(tmp_path, *flags)
    started.append(second)
    eventually(lambda: second.get("/readyz")[0] == 200, seen=lambda: second.get("/readyz"))
    assert first.leads()
    assert not second.leads()

    assert first.stop() == 0
    eventually(second.leads, timeout_s=10, seen=second.log.read_text)


def test_a_leader_whose_lease_is_taken_stops_and_exits_1(
    tmp_path: Path, kubeconfig: Path, started: list[Coordinator]
) -> None:
    coordinator = Coordinator(tmp_path, f"--kubeconfig={kubeconfig}", "--leader-elect", "--namespace=kserve")
    started.append(coordinator)
    eventually(coordinator.leads, seen=coordinator.log.read_text)
    kube = HttpKube(load_config(str(kubeconfig)))
    try:
        kube.patch(LEASES, LOCK_NAME, {"spec": {"holderIdentity": "somebody-else"}}, namespace="kserve")
    finally:
        kube.close()
    assert coordinator.process.wait(30) == 1
    assert "leader election lost" in coordinator.messages()
