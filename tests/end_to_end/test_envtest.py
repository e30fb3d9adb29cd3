"""KUBEBUILDER_ASSETS: the laptop cluster on the binaries it names.

Where there are none to be had, stand-ins take the place of both: they show that what is asked of a real server (flags,
TLS with a certificate of its own, a bearer token, an etcd that outlives it) is what the laptop cluster then lives on.
The contract suites run against the real ones.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from coordinator.dev.laptop import envtest
from coordinator.dev.laptop.cluster import SAMPLE_URI, LaptopCluster, LaptopOptions
from tests.kit.laptop import Laptop

ETCD = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/etcd.started"
exec sleep 600
"""

KUBE_APISERVER = '''#!{python}
"""The development API server behind TLS, with a token, at the port that kube-apiserver would listen on."""
import asyncio, ssl, sys
from pathlib import Path
from coordinator.dev.apiserver.server import ApiServer

flags = dict(flag.removeprefix("--").split("=", 1) for flag in sys.argv[1:])
token = Path(flags["token-auth-file"]).read_text().partition(",")[0]
data = Path(flags["tls-cert-file"]).with_name("objects.json")


async def copy(reader, writer):
    while block := await reader.read(65536):
        writer.write(block)
        await writer.drain()
    writer.close()


async def serve(reader, writer):
    head = await reader.readuntil(b"\\r\\n\\r\\n")
    if f"bearer {{token}}" not in head.decode().lower():
        writer.write(b"HTTP/1.1 401 Unauthorized\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n")
        return writer.close()
    inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", int(plain.url.rpartition(":")[2]))
    inner_writer.write(head)
    await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer), return_exceptions=True)


async def main():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(flags["tls-cert-file"], flags["tls-private-key-file"])
    server = await asyncio.start_server(serve, flags["bind-address"], int(flags["secure-port"]), ssl=context)
    await server.serve_forever()


plain = ApiServer(data=data).start()
asyncio.run(main())
'''


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in (("etcd", ETCD), ("kube-apiserver", KUBE_APISERVER.format(python=sys.executable))):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(folder))
    return folder


@pytest.mark.parametrize("present", [(), ("etcd",), ("kube-apiserver",)])
def test_assets_that_are_not_complete_are_not_used(tmp_path: Path, present: tuple[str, ...]) -> None:
    for name in present:
        (tmp_path / name).touch()
    assert envtest.assets({"KUBEBUILDER_ASSETS": str(tmp_path)}) is None
    assert envtest.assets({}) is None


@pytest.mark.e2e
def test_the_laptop_cluster_lives_on_the_binaries_that_are_named(assets: Path, tmp_path: Path) -> None:
    with LaptopCluster(tmp_path / "laptop", LaptopOptions(nodes=1, sample_bytes=1 << 20)) as cluster:
        laptop = Laptop(cluster)
        assert cluster.api_name == "kube-apiserver and etcd"
        assert "server: https://127.0.0.1:" in cluster.kubeconfig.read_text()

        cluster.children["apiserver"].stop()
        cluster.start_apiserver()
        laptop.apply("sample", SAMPLE_URI)
        laptop.until_ready("sample")
        assert len((assets / "etcd.started").read_text().splitlines()) == 1, "etcd outlived the server"
