"""The API servers that the contract suites run against, and what a bare real one is known not to do.

The development server always; a real `kube-apiserver` when KUBEBUILDER_ASSETS names one.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config

from coordinator.dev.apiserver.server import ApiServer, write_kubeconfig
from coordinator.dev.laptop import envtest

Json = dict[str, Any]
KUBECTL = shutil.which("kubectl")


class Capability(enum.Enum):
    """What a server may lack although Kubernetes as a whole has it. The value says why."""

    COLLECTS = "garbage collection and namespace emptying need a controller manager"
    SHORT_HISTORY = "its history is minutes long, so that 410 cannot be reached in a test"
    EAGER_BOOKMARKS = "it sends a bookmark about once a minute"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: Any

    def ok(self) -> Any:
        assert 200 <= self.status < 300, self.body
        return self.body


@dataclass
class KubeServer:
    """A running server: typed clients through `api`, raw HTTP through `request` and `watch`, `kubectl` as a command."""

    name: str
    kubeconfig: Path
    capabilities: frozenset[Capability]
    home: Path
    api: client.ApiClient = field(init=False)

    def __post_init__(self) -> None:
        configuration = client.Configuration()
        config.load_kube_config(str(self.kubeconfig), client_configuration=configuration)
        self.api = client.ApiClient(configuration)

    def require(self, capability: Capability) -> None:
        """Skips the test, with the reason, where the server cannot do it."""
        if capability not in self.capabilities:
            pytest.skip(f"{self.name}: {capability.value}")

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        accept: str = "application/json",
        content_type: str = "application/json",
    ) -> Answer:
        """One request, no retries. `body` is sent as JSON, or as it is if it is text."""
        data = None if body is None else body if isinstance(body, str) else json.dumps(body)
        response = self._pool().request(
            method, self._url(path), body=data, headers=self._headers(accept, content_type), timeout=20, retries=False
        )
        text = response.data.decode()
        is_json = "json" in response.headers.get("Content-Type", "")
        return Answer(response.status, response.headers, json.loads(text) if is_json and text else text)

    @contextlib.contextmanager
    def watch(self, path: str, *, accept: str = "application/json") -> Iterator[Iterator[Json]]:
        """Events as they come, until the server ends the stream; 20 s of silence fail the test."""
        response = self._pool().request(
            "GET", self._url(path), headers=self._headers(accept), timeout=20, retries=False, preload_content=False
        )
        try:
            assert response.status == 200, response.read()
            yield (json.loads(line) for line in _lines(response))
        finally:
            response.close()
            response.release_conn()

    def kubectl(
        self,
        *arguments: str,
        stdin: str | None = None,
        check: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.kubectl_command(*arguments),
            env={**self._environment(), **(environment or {})},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    @contextlib.contextmanager
    def kubectl_running(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """`kubectl` in the background, e.g. `get -w`; ended on leaving, and after 30 s in any case."""
        command = self.kubectl_command(*arguments)
        process = subprocess.Popen(command, env=self._environment(), stdout=subprocess.PIPE, text=True)
        timer = threading.Timer(30, process.kill)
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def kubectl_command(self, *arguments: str) -> list[str]:
        if KUBECTL is None:
            pytest.skip("kubectl is not installed")
        return [KUBECTL, "--cache-dir", str(self.home / "cache"), *arguments]

    def _environment(self) -> dict[str, str]:
        return dict(os.environ) | {"KUBECONFIG": str(self.kubeconfig), "HOME": str(self.home)}

    def _pool(self) -> Any:
        return self.api.rest_client.pool_manager

    def _url(self, path: str) -> str:
        return str(self.api.configuration.host) + path

    def _headers(self, accept: str, content_type: str = "application/json") -> dict[str, str]:
        token = self.api.configuration.get_api_key_with_prefix("BearerToken", "authorization")  # the second until 36
        headers = {"Accept": accept, "Content-Type": content_type, "User-Agent": "contract/1"}
        return headers | ({"Authorization": token} if token else {})


@contextlib.contextmanager
def running(name: str) -> Iterator[KubeServer]:
    """The server `name` of `SERVERS`, ended on leaving. Skips if it cannot run here."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        home = Path(folder)
        if name == "dev":
            api = stack.enter_context(ApiServer(history=200, bookmark_s=0.2))
            write_kubeconfig(home / "kubeconfig", api.url)
            server = KubeServer(name, home / "kubeconfig", frozenset(Capability), home)
        else:
            binaries = envtest.assets()
            if binaries is None:
                pytest.skip(NO_REAL_SERVER)
            real = stack.enter_context(envtest.RealServer(binaries, home))
            server = KubeServer(name, real.kubeconfig, frozenset(), home)
        try:
            yield server
        finally:
            server.api.close()
            server.api.rest_client.pool_manager.clear()


SERVERS = ("dev", "real") if envtest.assets() else ("dev",)
NO_REAL_SERVER = "KUBEBUILDER_ASSETS does not name a folder with kube-apiserver and etcd"


def _lines(response: Any) -> Iterator[bytes]:
    rest = b""
    for chunk in response.stream(65536):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from filter(None, lines)
