"""A laptop cluster for end-to-end tests, and short ways to say what a person does with it."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.manifest import storage_key
from actors.messages import NodeName
from coordinator.dev.laptop.cluster import NODE_GROUP, LaptopCluster
from coordinator.dev.origin.sample import REPO
from coordinator.dev.trial.waiting import eventually
from coordinator.kube.interface import NotFound, Object
from coordinator.plan.snapshot import CACHES, LOCAL_NODES

KUBECTL = shutil.which("kubectl")


class Laptop:
    """Reads and writes the way a test wants to say it."""

    def __init__(self, cluster: LaptopCluster) -> None:
        self.cluster = cluster
        self.kube = cluster.kube()

    def apply(self, name: str, uri: str, **spec: Any) -> None:
        self.cluster.create_cache(name, uri, **spec)

    def foresee(self, name: str, uri: str, size_bytes: int, *flags: str) -> Mapping[str, Any]:
        """The document of `localmodel plan --json` about this cache, before it is applied."""
        spec = {"sourceModelUri": uri, "modelSize": str(size_bytes), "nodeGroups": [NODE_GROUP]}
        cache = {"apiVersion": CACHES.api_version, "kind": CACHES.kind, "metadata": {"name": name}, "spec": spec}
        command = [sys.executable, "-m", "coordinator.cli", "plan", "-f", "-", "--json"]
        done = subprocess.run(
            [*command, "--kubeconfig", str(self.cluster.kubeconfig), *flags],
            input=json.dumps(cache),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode in (0, 3), done.stderr
        found: Mapping[str, Any] = json.loads(done.stdout)
        return found

    def cache(self, name: str) -> Object:
        return self.kube.get(CACHES, name)

    def status(self, name: str) -> Mapping[str, Any]:
        status: Mapping[str, Any] = self.cache(name).get("status", {})
        return status

    def condition(self, name: str, kind: str = "Ready") -> Mapping[str, Any]:
        found = [each for each in self.status(name).get("conditions", []) if each["type"] == kind]
        return found[0] if found else {"type": kind, "status": "", "reason": "", "message": ""}

    def until_ready(self, name: str, timeout_s: float = 60.0) -> Mapping[str, Any]:
        eventually(
            lambda: self.condition(name)["status"] == "True", timeout_s=timeout_s, seen=lambda: self.explain(name)
        )
        return self.status(name)

    def until_reason(self, name: str, reason: str, kind: str = "Ready", timeout_s: float = 30.0) -> Mapping[str, Any]:
        """The condition, once it says `reason`."""
        eventually(
            lambda: self.condition(name, kind)["reason"] == reason, timeout_s=timeout_s, seen=lambda: self.explain(name)
        )
        return self.condition(name, kind)

    def detail(self, node: str, model: str) -> Mapping[str, Any]:
        """What LocalModelNode says of one model on one node; {} if nothing."""
        try:
            status = self.kube.get(LOCAL_NODES, node).get("status", {})
        except NotFound:
            return {}
        found = [each for each in status.get("models", []) if each["name"] == model]
        return found[0] if found else {}

    def explain(self, name: str) -> str:
        return json.dumps(
            {"cache": self.status(name), "nodes": {node: self.detail(node, name) for node in self.cluster.nodes}},
            indent=1,
        )

    def folder(self, node: NodeName, uri: str) -> Path:
        return self.cluster.models(node) / storage_key(uri)

    def delete(self, name: str, *, timeout_s: float = 30.0) -> None:
        """Returns when the object is gone, and with it the finalizer's work."""
        self.kube.delete(CACHES, name)
        eventually(lambda: not self.exists(name), timeout_s=timeout_s, seen=lambda: self.cache(name))

    def clear(self, *, timeout_s: float = 30.0) -> None:
        """There is no fault of the origin and no cache any more. `timeout_s` is for each cache."""
        self.faults()
        for cache in self.kube.list(CACHES)[0]:
            self.delete(cache["metadata"]["name"], timeout_s=timeout_s)

    def exists(self, name: str) -> bool:
        try:
            self.cache(name)
        except NotFound:
            return False
        return True

    def served(self) -> int:
        """The bytes of the sample that the origin has sent so far."""
        stats = self.cluster.origin_stats()
        assert stats is not None
        return int(stats["repos"][REPO]["bytes"])

    def faults(self, *faults: Mapping[str, Any]) -> None:
        """Sets the origin's faults; none clears them."""
        connection = http.client.HTTPConnection("127.0.0.1", self.cluster.ports["origin"], timeout=10)
        try:
            connection.request("PUT" if faults else "DELETE", "/_faults", json.dumps(faults) if faults else None)
            response = connection.getresponse()
            assert response.status in (200, 204), response.read()
        finally:
            connection.close()

    def kubectl(
        self, *arguments: str, stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        assert KUBECTL is not None
        environment = dict(os.environ) | {"KUBECONFIG": str(self.cluster.kubeconfig)}
        done = subprocess.run(
            [KUBECTL, *arguments],
            env=environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr
        return done


def agent_pids(cluster: LaptopCluster, node: NodeName) -> list[int]:
    """The actor processes of one node: Ray workers that run in that node's environment."""
    home = f"LOCALMODEL_HOST_ROOT={cluster.directory / 'nodes' / node}".encode()
    found = []
    for process in Path("/proc").iterdir():
        try:
            is_actor = process.name.isdigit() and (process / "cmdline").read_bytes().startswith(b"ray::_AgentActor")
            if is_actor and home in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:
            continue  # ended meanwhile
    return found


def kill_agent(cluster: LaptopCluster, node: NodeName) -> None:
    """SIGKILL to the node's agent."""
    pids = agent_pids(cluster, node)
    assert pids, f"no agent process on {node}"
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
