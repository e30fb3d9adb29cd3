"""The whole job in the images, confined as in the manifests.

API server and origin stand outside. In containers with networks of their own run a Ray head, as KubeRay starts it, two
nodes, and the coordinator with its Ray node beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

from actors.manifest import storage_key
from coordinator.api import crds
from coordinator.api.resources import GROUP, VERSION, LocalModelCache
from coordinator.dev import hosts
from coordinator.dev.apiserver.server import ApiServer, write_kubeconfig
from coordinator.dev.hosts import Host, Network
from coordinator.dev.laptop.cluster import JOB_NAMESPACE, NODE_GROUP, laptop_node, node_group
from coordinator.dev.origin.sample import REPO, write_sample
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.waiting import eventually
from coordinator.kube.config import load_config
from coordinator.kube.http import HttpKube
from coordinator.kube.interface import NAMESPACES, NODES
from coordinator.plan.snapshot import CACHES, LOCAL_NODES, NODE_GROUPS
from tests.kit.containers import BUILD_S, COORDINATOR, RAY_NODE, Container, podman, running

T = TypeVar("T")
SIZE = 24 * 1024**2
URI = f"hf://{REPO}"

pytestmark = [
    pytest.mark.images,
    pytest.mark.timeout(BUILD_S + 600),
    pytest.mark.usefixtures("images"),
    pytest.mark.skipif(hosts.missing() is not None, reason=str(hosts.missing())),
]

RAY_FLAGS = ("--num-cpus=0", "--num-gpus=0", "--object-store-memory=78643200", "--disable-usage-stats")


@dataclass
class Site:
    """What stands outside of the containers, on the host `control`, and the containers by name."""

    folder: Path
    control: Host
    kube: HttpKube
    origin: Origin
    containers: dict[str, Container] = field(default_factory=dict)

    def ask(self, question: Callable[[HttpKube], T]) -> T:
        return self.control.call(lambda: question(self.kube))


def on(host: Host) -> str:
    return f"--network=ns:/run/netns/{host.inside[3]}"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    tmp_path.chmod(0o755)
    with ExitStack() as stack:
        network = stack.enter_context(Network(None))
        control, head = network.host("control"), network.host("head")
        write_sample(tmp_path / "sample", SIZE)
        server = control.call(lambda: ApiServer(crds.load()).start())
        stack.callback(server.stop)
        origin = control.call(lambda: Origin({REPO: tmp_path / "sample"}, host=control.address))
        stack.callback(origin.close)
        write_kubeconfig(tmp_path / "kubeconfig", server.url)
        (tmp_path / "kubeconfig").chmod(0o644)
        kube = HttpKube(load_config(str(tmp_path / "kubeconfig")))
        stack.callback(kube.close)
        made = Site(tmp_path, control, kube, origin)
        for name in ("localmodel", JOB_NAMESPACE):
            made.ask(lambda kube, name=name: kube.create(NAMESPACES, {"metadata": {"name": name}}))  # type: ignore[misc]  # bound at once
        made.ask(lambda kube: kube.create(NODE_GROUPS, node_group("10Gi")))
        (tmp_path / "token").write_text(secrets.token_hex(16))
        (tmp_path / "token").chmod(0o444)

        def start(name: str, image: str, host: Host, *arguments: str, options: tuple[str, ...] = ()) -> None:
            ray = (
                "--user=1000:1000",
                f"--volume={tmp_path / 'token'}:/var/run/localmodel/ray/auth_token:ro",
                "--env=RAY_AUTH_MODE=token",
                "--env=RAY_AUTH_TOKEN_PATH=/var/run/localmodel/ray/auth_token",
                f"--env=RAY_ADDRESS={head.address}:6379",
            )
            container = running(image, *arguments, options=(on(host), *ray, *options))
            made.containers[name] = stack.enter_context(container)

        as_kuberay = f"ulimit -n 8192; ray start --head --block --port=6379 --node-ip-address={head.address} "
        shell = ("--entrypoint=/bin/bash", "--shm-size=256m")
        start("head", RAY_NODE, head, "-c", "--", as_kuberay + " ".join(RAY_FLAGS), options=shell)
        for name in ("n1", "n2"):
            made.ask(lambda kube, name=name: kube.create(NODES, laptop_node(name)))  # type: ignore[misc]  # bound at once
            status = {"status": laptop_node(name)["status"]}
            made.ask(lambda kube, n=name, s=status: kube.patch(NODES, n, s, subresource="status"))  # type: ignore[misc]  # bound at once
            disk = tmp_path / name
            disk.mkdir()
            os.chown(disk, 1000, 1000)
            host = network.host(name)
            agent = (
                f"--volume={disk}:/models",
                "--shm-size=256m",
                f'--env=RAY_OVERRIDE_LABELS={{"localmodel/node":"{name}"}}',
                "--env=LOCALMODEL_ROOTS=/models",
                "--env=LOCALMODEL_HEADROOM=64Mi",
                f"--env=LOCALMODEL_PEER_HOST={host.address}",
            )
            start(name, RAY_NODE, host, "--", *RAY_FLAGS, options=agent)
        for name in ("tmp", "shm"):
            (tmp_path / name).mkdir()
            (tmp_path / name).chmod(0o1777)
        shared = (f"--volume={tmp_path / 'shm'}:/dev/shm", f"--volume={tmp_path / 'tmp'}:/tmp")
        start("ray", RAY_NODE, control, "--", *RAY_FLAGS, options=shared)
        coordinator = (
            *shared,
            f"--pid=container:{made.containers['ray'].name}",
            f"--volume={tmp_path / 'kubeconfig'}:/kubeconfig:ro",
            "--env=KUBECONFIG=/kubeconfig",
            "--env=POD_NAMESPACE=localmodel",
            f"--env=HF_ENDPOINT={origin.hub_endpoint}",
        )
        flags = ("run", "--leader-elect", f"--allow-origins={control.address}", "--progress-interval-seconds=0.5")
        start("coordinator", COORDINATOR, control, *flags, options=coordinator)
        try:
            yield made
        except BaseException:
            for name, container in made.containers.items():
                print(f"--- {name}", podman("logs", "--tail", "40", container.name))
            raise


def digests(folder: Path) -> dict[str, str]:
    """Of every file below `folder`, but for our own notes."""
    files = [path for path in folder.rglob("*") if path.is_file() and ".localmodel" not in path.parts]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_model_reaches_two_nodes_and_all_processes_end_in_good_order(site: Site) -> None:
    def agents() -> int:
        found, _ = site.ask(lambda kube: kube.list(LOCAL_NODES))
        return sum(1 for each in found if each.get("status", {}).get("agent", {}).get("ready"))

    def logs() -> str:
        return "\n".join(podman("logs", "--tail", "15", each.name).stderr for each in site.containers.values())

    eventually(lambda: agents() == 2, timeout_s=240)
    spec = {"sourceModelUri": URI, "modelSize": "1Gi", "nodeGroups": [NODE_GROUP]}
    about = {"apiVersion": f"{GROUP}/{VERSION}", "kind": LocalModelCache.KIND, "metadata": {"name": "sample"}}
    site.ask(lambda kube: kube.create(CACHES, {**about, "spec": spec}))

    def status() -> dict[str, object]:
        found: dict[str, object] = site.ask(lambda kube: kube.get(CACHES, "sample")).get("status", {})
        return found

    def copies() -> object:
        return status().get("copies")

    eventually(lambda: copies() == {"available": 2, "total": 2}, timeout_s=120)
    wanted = digests(site.folder / "sample")
    for name in ("n1", "n2"):
        there = site.folder / name / "models" / storage_key(URI)
        assert digests(there) == wanted, name
        assert {path.stat().st_uid for path in there.rglob("*")} == {1000}
    moved = status()["bytes"]
    assert isinstance(moved, dict)
    assert moved["fromOrigin"] == moved["total"], json.dumps(moved)

    for name in ("coordinator", "n1", "n2", "ray"):
        assert site.containers[name].stop() == 0, f"{name}\n{logs()}"
    left = subprocess.run(["pgrep", "-f", "raylet.*" + site.folder.name], capture_output=True, text=True, check=False)
    assert left.stdout == ""
