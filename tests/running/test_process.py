"""`localmodel run` as Kubernetes and people meet it: exit codes, probes, logs, and two replicas."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from coordinator.api import crds
from coordinator.control.neighbours import CONTROLLER, DEPLOYMENTS
from coordinator.dev.apiserver.server import ApiServer, write_kubeconfig
from coordinator.dev.ports import free_port, free_ports
from coordinator.dev.trial.builders import a_cache, a_local_node, a_node
from coordinator.dev.trial.waiting import eventually
from coordinator.kube.config import load_config
from coordinator.kube.http import HttpKube
from coordinator.kube.interface import LEASES, NAMESPACES, NODES, SECRETS
from coordinator.kube.leader import LOCK_NAME
from coordinator.plan.snapshot import CACHES, LOCAL_NODES, NODE_GROUPS
from tests.kit.conformance import a_whole_group
from tests.kit.kserve import as_sent
from tests.kit.webhooks import CACHE_PATH, Caller

pytestmark = pytest.mark.e2e
LEASE_S, DEADLINE_S = 6.0, 4.0
ELECTING = (
    "--leader-elect",
    "--namespace=kserve",
    f"--leader-elect-lease-duration={LEASE_S:.0f}s",
    f"--leader-elect-renew-deadline={DEADLINE_S:.0f}s",
    "--leader-elect-retry-period=500ms",
)
OUTAGE_S = LEASE_S + 3
"""Longer than a Lease lasts."""


class Coordinator:
    """One `localmodel run` with probes and metrics on ports of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.health, self.metrics, self.webhooks = free_ports(3)
        self.log = folder / f"run-{self.health}.log"
        command = [sys.executable, "-m", "coordinator.cli", "run", f"--health-probe-addr=127.0.0.1:{self.health}"]
        command += [f"--metrics-addr=127.0.0.1:{self.metrics}", "--ray-address=127.0.0.2:9"]
        command += [f"--webhook-port={self.webhooks}", f"--webhook-cert-dir={folder / 'certs'}", *arguments]
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


def test_beside_kserves_controller_the_node_tier_acts_alone(
    kubeconfig: Path, started: list[Coordinator], tmp_path: Path
) -> None:
    kube = HttpKube(load_config(str(kubeconfig)))
    labels = {"app": "manager"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "manager", "image": "kserve"}]}}
    spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
    kube.create(DEPLOYMENTS, {"metadata": {"name": CONTROLLER}, "spec": spec}, namespace="kserve")
    cache = a_cache("llama", "hf://models/llama").in_group("gpu")
    for resource, built in ((NODE_GROUPS, a_whole_group("gpu")), (NODES, a_node("n1")), (CACHES, cache)):
        kube.create(resource, as_sent(built))
    kube.create(LOCAL_NODES, as_sent(a_local_node("n1").listing(cache)))
    flags = ("--kubeconfig", str(kubeconfig), "--namespace=kserve", "--beside-kserve=nodes", "--webhook-port=0")
    coordinator = Coordinator(tmp_path, *flags)
    started.append(coordinator)

    def words() -> object:
        return kube.get(LOCAL_NODES, "n1").get("status", {}).get("modelStatus")

    eventually(lambda: words() == {"llama": "ModelDownloadPending"}, timeout_s=60, seen=coordinator.messages)
    assert coordinator.get("/readyz")[0] == 200
    found = kube.get(CACHES, "llama")
    assert ("status" in found, "finalizers" in found["metadata"]) == (False, False)
    kube.close()
    assert coordinator.stop() == 0


def test_of_two_replicas_one_leads_both_are_ready_and_the_other_takes_over(
    tmp_path: Path, kubeconfig: Path, started: list[Coordinator]
) -> None:
    flags = (f"--kubeconfig={kubeconfig}", *ELECTING)
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


def test_a_leader_whose_lease_is_taken_goes_on_as_a_follower_and_leads_again(
    tmp_path: Path, kubeconfig: Path, started: list[Coordinator]
) -> None:
    coordinator = Coordinator(tmp_path, f"--kubeconfig={kubeconfig}", *ELECTING)
    started.append(coordinator)
    eventually(lambda: "acting" in coordinator.messages(), seen=coordinator.log.read_text)
    kube = HttpKube(load_config(str(kubeconfig)))
    try:
        kube.patch(LEASES, LOCK_NAME, {"spec": {"holderIdentity": "somebody-else"}}, namespace="kserve")
        eventually(lambda: "observing only" in coordinator.messages(), timeout_s=20, seen=coordinator.log.read_text)
        assert coordinator.get("/healthz")[0] == 200
        assert coordinator.get("/readyz")[0] == 200
        assert not coordinator.leads()
        kube.patch(LEASES, LOCK_NAME, {"spec": {"holderIdentity": ""}}, namespace="kserve")
    finally:
        kube.close()
    eventually(lambda: coordinator.messages().count("acting") == 2, timeout_s=20, seen=coordinator.log.read_text)
    assert coordinator.process.poll() is None
    assert coordinator.stop() == 0


class Server:
    """The development API server as a process of its own, which can be stopped, killed and started again."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.kubeconfig = folder / "kubeconfig"
        self._command = [sys.executable, "-m", "coordinator.dev.apiserver", f"--port={port}", "--crds=k8s/crds"]
        self._command += [f"--kubeconfig={self.kubeconfig}", f"--data={folder / 'objects'}"]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert "laptops and tests only" in self.process.stdout.readline()

    def kill(self) -> None:
        self.process.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path)
    kube = HttpKube(load_config(str(running.kubeconfig)))
    kube.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kserve"}})
    kube.close()
    yield running
    running.kill()


def replicas(folder: Path, server: Server, started: list[Coordinator], count: int) -> list[Coordinator]:
    """So many, one of which acts."""
    flags = (f"--kubeconfig={server.kubeconfig}", *ELECTING)
    started += [Coordinator(folder, *flags) for _ in range(count)]
    eventually(lambda: sum(acts(each) for each in started) == 1, timeout_s=30, seen=lambda: logs(started))
    eventually(lambda: all(each.get("/readyz")[0] == 200 for each in started), seen=lambda: logs(started))
    return started


def acts(coordinator: Coordinator) -> bool:
    said = [message for message in coordinator.messages() if message in ("acting", "observing only")]
    return said[-1:] == ["acting"]


def logs(started: list[Coordinator]) -> list[str]:
    return [each.log.read_text() for each in started]


@pytest.mark.parametrize("count", [1, 2])
def test_while_the_api_server_hangs_nobody_acts_and_afterwards_one_does_again(
    tmp_path: Path, server: Server, started: list[Coordinator], count: int
) -> None:
    replicas(tmp_path, server, started, count)
    server.process.send_signal(signal.SIGSTOP)
    ends = time.monotonic() + OUTAGE_S
    try:
        eventually(lambda: not any(map(acts, started)), timeout_s=DEADLINE_S + 4, seen=lambda: logs(started))
        leader = next(each for each in started if "acting" in each.messages())
        eventually(lambda: leader.get("/readyz")[0] == 503, seen=lambda: leader.get("/readyz"))
        assert "lease" in leader.get("/readyz")[1]
        assert [each.get("/healthz")[0] for each in started] == [200] * count
        assert [each.leads() for each in started] == [False] * count
        eventually(lambda: time.monotonic() >= ends, timeout_s=OUTAGE_S + 1)
    finally:
        server.process.send_signal(signal.SIGCONT)
    eventually(lambda: sum(map(acts, started)) == 1, timeout_s=40, seen=lambda: logs(started))
    eventually(lambda: all(each.get("/readyz")[0] == 200 for each in started), timeout_s=40, seen=lambda: logs(started))
    assert [each.process.poll() for each in started] == [None] * count
    assert sum(each.leads() for each in started) == 1
    assert [each.stop() for each in started] == [0] * count


def test_an_api_server_that_is_killed_and_comes_back_finds_the_same_process_acting(
    tmp_path: Path, server: Server, started: list[Coordinator]
) -> None:
    (coordinator,) = replicas(tmp_path, server, started, 1)
    server.kill()
    lost = "the leader lease is lost; it is sought again"
    eventually(lambda: lost in coordinator.messages(), timeout_s=20, seen=coordinator.log.read_text)
    eventually(lambda: not acts(coordinator), timeout_s=5, seen=coordinator.log.read_text)  # in its next turn
    server.start()
    eventually(lambda: acts(coordinator), timeout_s=40, seen=coordinator.log.read_text)
    assert coordinator.process.poll() is None
    told = [message for message in coordinator.messages() if isinstance(message, str) and "lease" in message]
    assert told == ["cannot hold the leader lease", lost]
    assert coordinator.stop() == 0


def test_every_replica_serves_the_webhooks_with_one_certificate(
    tmp_path: Path, kubeconfig: Path, started: list[Coordinator]
) -> None:
    started += [
        Coordinator(tmp_path, f"--kubeconfig={kubeconfig}", *ELECTING, "--tls-min-version=VersionTLS13")
        for _ in range(2)
    ]
    eventually(lambda: all(each.get("/readyz")[0] == 200 for each in started), seen=lambda: logs(started))
    eventually(lambda: sum(map(acts, started)) == 1, seen=lambda: logs(started))
    kube = HttpKube(load_config(str(kubeconfig)))
    try:
        made = eventually(lambda: kube.list(SECRETS, namespace="kserve")[0], seen=lambda: logs(started))
    finally:
        kube.close()
    authority = base64.b64decode(made[0]["data"]["ca.crt"])
    for each in started:
        caller = Caller(each.webhooks, authority)
        eventually(partial(serves, caller), seen=lambda: logs(started))
        assert caller.review(CACHE_PATH, "CREATE", a_cache("x").json)["allowed"] is True
        with pytest.raises(ssl.SSLError):
            Caller(each.webhooks, authority, maximum_version=ssl.TLSVersion.TLSv1_2).certificate()
    assert [each.stop() for each in started] == [0, 0]


def serves(caller: Caller) -> bool:
    try:
        return bool(caller.certificate())
    except OSError:
        return False


def test_a_suite_that_is_none_and_a_webhook_port_that_is_taken_end_it_with_exit_code_1(kubeconfig: Path) -> None:
    done = run(f"--kubeconfig={kubeconfig}", "--tls-cipher-suites=TLS_RSA_WITH_RC4_128_SHA")
    assert done.returncode == 1
    line = json.loads(done.stderr.splitlines()[-1])
    assert line["msg"] == "unable to resolve TLS configuration"
    assert line["error"] == "unknown TLS cipher suite(s): TLS_RSA_WITH_RC4_128_SHA"
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        free = ("--metrics-addr=0", "--health-probe-addr=0", "--ray-address=127.0.0.2:9")
        done = run(f"--kubeconfig={kubeconfig}", f"--webhook-port={port}", *free)
    assert done.returncode == 1
    assert str(port) in json.loads([each for each in done.stderr.splitlines() if each.startswith("{")][-1])["error"]
