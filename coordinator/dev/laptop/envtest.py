"""A real `kube-apiserver` on its own `etcd`, when the binaries are there: KUBEBUILDER_ASSETS, the envtest convention.

No scheduler, no controllers: objects are stored, validated and watched as in any cluster, and nothing acts on them.
`setup-envtest use -p path` fetches the binaries; https://book.kubebuilder.io/reference/envtest
"""

from __future__ import annotations

import http.client
import os
import ssl
import subprocess
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import yaml

from actors.transport.authorities import as_go_does
from coordinator.dev.laptop.processes import Child
from coordinator.dev.ports import free_port, free_ports

_TOKEN = "laptop"  # noqa: S105  # a server that ends with this process, on loopback
BINARIES = ("etcd", "kube-apiserver")


def assets(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The folder with both binaries; None if KUBEBUILDER_ASSETS does not name one."""
    folder = Path(environ.get("KUBEBUILDER_ASSETS") or "/nonexistent")
    return folder if all((folder / name).is_file() for name in BINARIES) else None


class RealServer:
    """Started by entering, ended by leaving. `directory` holds its data, keys, logs and `kubeconfig`."""

    def __init__(self, binaries: Path, directory: Path, *, port: int = 0) -> None:
        self.kubeconfig = directory / "kubeconfig"
        self.port = port or free_port()
        self._binaries, self._directory = binaries, directory
        self._certificate = directory / "tls.crt"
        self._etcd: Child | None = None
        self._etcd_url = ""

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        try:
            self._server = self.start()
            self._server.await_ready(self.answers, timeout_s=60)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()
        self.stop()

    def start(self) -> Child:
        """The server's process, soon ready (`answers`), and the caller's to stop; its etcd stays until `stop`."""
        home = self._directory
        home.mkdir(parents=True, exist_ok=True)
        if self._etcd is None:
            self._start_etcd()
        key, tokens = home / "tls.key", home / "tokens.csv"
        if not key.exists():
            self._make_certificate(key)
        tokens.write_text(f"{_TOKEN},laptop,laptop,system:masters\n")
        self.kubeconfig.write_text(yaml.safe_dump(self._config()))
        return self._child(
            "kube-apiserver",
            f"--etcd-servers={self._etcd_url}",
            f"--secure-port={self.port}",
            "--bind-address=127.0.0.1",
            f"--tls-cert-file={self._certificate}",
            f"--tls-private-key-file={key}",
            f"--token-auth-file={tokens}",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--service-account-issuer=https://localhost",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--disable-admission-plugins=ServiceAccount",
        )

    def stop(self) -> None:
        """Ends etcd; safe to call twice."""
        if self._etcd is not None:
            self._etcd.stop()
            self._etcd = None

    def _start_etcd(self) -> None:
        self._etcd_url, peer_url = (f"http://127.0.0.1:{port}" for port in free_ports(2))
        self._etcd = self._child(
            "etcd",
            f"--data-dir={self._directory / 'etcd'}",
            f"--listen-client-urls={self._etcd_url}",
            f"--advertise-client-urls={self._etcd_url}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=default={peer_url}",
            "--unsafe-no-fsync",
        )

    def _make_certificate(self, key: Path) -> None:
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "365", "-subj", "/CN=laptop"]
        command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(self._certificate)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    def _child(self, name: str, *flags: str) -> Child:
        return Child(name, [str(self._binaries / name), *flags], log=self._directory / f"{name}.log")

    def answers(self) -> bool:
        """Whether it is ready for requests."""
        request = urllib.request.Request(f"{self.url}/readyz", headers={"Authorization": f"Bearer {_TOKEN}"})
        context = as_go_does(ssl.create_default_context(cafile=str(self._certificate)))
        try:
            https = urllib.request.HTTPSHandler(context=context)
            direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), https)
            with direct.open(request, timeout=2) as response:
                return bool(response.status == 200)
        except (OSError, http.client.HTTPException):
            return False

    def _config(self) -> dict[str, object]:
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "real", "cluster": {"server": self.url, "certificate-authority": str(self._certificate)}}
            ],
            "users": [{"name": "laptop", "user": {"token": _TOKEN}}],
            "contexts": [{"name": "real", "context": {"cluster": "real", "user": "laptop"}}],
            "current-context": "real",
        }
