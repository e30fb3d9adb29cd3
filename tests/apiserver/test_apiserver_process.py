"""The development API server's life: as a thread and as a process, stopped, killed, started again."""

from __future__ import annotations

import gc
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import urllib3
import yaml

from coordinator.dev.apiserver.server import ApiServer, write_kubeconfig
from tests.kit import widgets
from tests.kit.widgets import WIDGETS, a_widget


@pytest.fixture
def http() -> Iterator[urllib3.PoolManager]:
    with urllib3.PoolManager(retries=False, timeout=10) as pool:
        yield pool


def get(http: urllib3.PoolManager, url: str) -> dict[str, Any]:
    found: dict[str, Any] = http.request("GET", url).json()
    return found


class Process:
    """`python -m coordinator.dev.apiserver`, ready when constructed."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        crds = folder / "crds"
        crds.mkdir(exist_ok=True)
        (crds / "widgets.yaml").write_text(yaml.safe_dump_all(widgets.CRDS))
        command = [sys.executable, "-m", "coordinator.dev.apiserver", "--port", str(port), "--crds", str(crds)]
        command += ["--kubeconfig", str(folder / "kubeconfig"), "--data", str(folder / "objects")]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        found = re.search(r"laptops and tests only.* (http://\S+)", self.process.stdout.readline())
        assert found is not None
        self.url = found[1]

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return self.process.wait(10)


@pytest.mark.slow
def test_what_was_written_survives_a_kill_and_versions_go_on(tmp_path: Path, http: urllib3.PoolManager) -> None:
    first = Process(tmp_path)
    port = int(first.url.rpartition(":")[2])
    for name in ("a", "b"):
        http.request("POST", first.url + WIDGETS, json=a_widget(name))
    http.request("DELETE", f"{first.url}{WIDGETS}/b")
    before = get(http, first.url + WIDGETS)
    assert first.end(signal.SIGKILL) == -signal.SIGKILL
    with (tmp_path / "objects").open("a") as journal:
        journal.write('{"version": 99999999999999, "resou')  # a line that the kill cut off
    second = Process(tmp_path, port)
    try:
        after = get(http, second.url + WIDGETS)
        assert after["items"] == before["items"]
        assert [item["metadata"]["name"] for item in after["items"]] == ["a"]
        written = http.request("POST", second.url + WIDGETS, json=a_widget("c")).json()
        assert int(written["metadata"]["resourceVersion"]) > int(before["metadata"]["resourceVersion"])
        config = yaml.safe_load((tmp_path / "kubeconfig").read_text())
        assert config["clusters"][0]["cluster"]["server"] == second.url
    finally:
        code = second.end(signal.SIGTERM)
    assert code == 0


@pytest.mark.slow
def test_sigterm_ends_open_watches(tmp_path: Path) -> None:
    server = Process(tmp_path)
    with urllib3.PoolManager(retries=False, timeout=10) as http:
        stream = http.request("GET", f"{server.url}{WIDGETS}?watch=true", preload_content=False)
        started = time.monotonic()
        assert server.end(signal.SIGTERM) == 0
        assert stream.read() == b""
        assert time.monotonic() - started < 5
        stream.release_conn()


@pytest.mark.slow
def test_a_port_in_use_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = [sys.executable, "-m", "coordinator.dev.apiserver", "--port", str(taken.getsockname()[1])]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr.count("\n"), done.stderr.startswith("cannot start: ")) == (1, 1, True)


def test_it_listens_on_loopback_only() -> None:
    with pytest.raises(ValueError, match="loopback only"):
        ApiServer(host="0.0.0.0")


def test_a_server_without_data_starts_empty_and_with_later_versions(http: urllib3.PoolManager) -> None:
    with ApiServer(widgets.CRDS) as first:
        http.request("POST", first.url + WIDGETS, json=a_widget("a"))
        before = get(http, first.url + WIDGETS)
    with ApiServer(widgets.CRDS) as second:
        after = get(http, second.url + WIDGETS)
        stale = http.request(
            "GET", f"{second.url}{WIDGETS}?watch=true&resourceVersion={before['metadata']['resourceVersion']}"
        )
    assert (len(before["items"]), len(after["items"])) == (1, 0)
    assert stale.json()["object"]["code"] == 410


def test_stopping_twice_and_starting_again_is_harmless(http: urllib3.PoolManager) -> None:
    server = ApiServer()
    server.start()
    url = server.url
    server.stop()
    server.stop()
    server.start()
    assert (server.url, http.request("GET", f"{url}/readyz").data) == (url, b"ok")
    server.stop()


@pytest.mark.slow
def test_a_client_that_does_not_read_has_no_connection_once_the_server_has_stopped(http: urllib3.PoolManager) -> None:
    objects = "/api/v1/namespaces/default/configmaps"
    with ApiServer() as server, closing(socket.socket()) as client:
        for number in range(8):
            body = {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": f"c{number}"},
                "data": {"x": "y" * 900_000},
            }
            assert http.request("POST", server.url + objects, json=body).status == 201
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", int(server.url.rpartition(":")[2])))
        client.sendall(f"GET {objects}?watch=true&resourceVersion=0 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert client.recv(15) == b"HTTP/1.1 200 OK"
        server.stop()
        gc.collect()  # of a transport that is left open Python says so, which fails this test
        client.settimeout(10)
        while client.recv(1 << 16):  # TimeoutError: it has not ended
            pass


def test_a_kubeconfig_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    write_kubeconfig(tmp_path / "config", "http://127.0.0.1:1")
    assert (tmp_path / "config").stat().st_mode & 0o077 == 0


JUNK: list[Any] = [
    None, [], 3, "text", {"metadata": 3}, {"metadata": {"labels": ["a"]}}, {"metadata": {"name": 3}}, {"spec": 3},
    {"metadata": {"name": "a", "ownerReferences": [{"kind": 1}]}}, {"metadata": {"name": "a", "managedFields": [{}]}},
    {"metadata": {"name": "a", "finalizers": {}}}, {"metadata": {"name": "a"}, "spec": {"names": 3, "versions": {}}},
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [WIDGETS, "/api/v1/namespaces/default/secrets", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"]
)
def test_junk_is_the_clients_error(http: urllib3.PoolManager, path: str) -> None:
    with ApiServer(widgets.CRDS) as server:
        for method, url in (("POST", path), ("PUT", f"{path}/a"), ("PATCH", f"{path}/a")):
            for junk in JUNK:
                for media in (
                    "application/json",
                    "application/merge-patch+json",
                    "application/json-patch+json",
                    "application/apply-patch+yaml",
                ):
                    answer = http.request(
                        method, f"{server.url}{url}?fieldManager=junk", json=junk, headers={"Content-Type": media}
                    )
                    assert 200 <= answer.status < 500, (method, media, junk, answer.data)
                    assert answer.json()["kind"]
