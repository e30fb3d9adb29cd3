"""A small Ray cluster on this machine: a head, and one Ray node per Kubernetes node to imitate.

    LocalRay ──lines──► one child process ──► gcs, raylet (head), raylet (node-1), raylet (node-2), …

Every Ray node has an environment of its own, which the actors on it inherit. One process starts them all, because
importing Ray costs more than a Ray node does, and several nodes that start at once time each other out. All of them end
with that process, and it ends with its parent, so nothing is left behind and nobody calls `ray stop`, which kills by
process name. Several clusters can live side by side.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from actors.messages import NodeName
from actors.sources.options import SourceOptions
from actors.transport.answers import PRIVATE_REDIRECTS
from coordinator.dev.laptop.processes import Child, ChildFailed
from coordinator.dev.laptop.runfolder import remove_abandoned, run_folder
from coordinator.fleet.interface import NODE_LABEL, node_label

_FOR_AGENTS = frozenset({"AWS_CA_BUNDLE", PRIVATE_REDIRECTS})
"""What agents may have of the environment that sources are read with: credentials stay with the coordinator."""

_HEAD = ""
_HOST = "127.0.0.2"
"""The head's. Loopback, but not 127.0.0.1: Ray replaces that by an address of the machine that others can reach."""

DRAIN_S = 2
"""How long a Ray node that leaves in order is waited for, as by `ray start`: an agent never ends by itself."""

_PREFIX = "lm-"
_SHORT = Path("/tmp")  # noqa: S108  a fresh folder below it is used
"""Whatever TMPDIR says: Ray puts Unix sockets deep below its folder, and the path of one ends at 107 characters."""


class LocalRay:
    """`nodes` maps each Kubernetes node's name to what its agent should find in the environment.

    `hosts` has the address of each. Several pods of a node, by name, are several Ray nodes that carry its label.
    """

    def __init__(self, nodes: Mapping[NodeName, Mapping[str, str]], *, log: Path) -> None:
        self.nodes: dict[NodeName, Mapping[str, str]] = dict(nodes)
        self.hosts = {name: f"127.0.0.{number}" for number, name in enumerate(self.nodes, start=3)}
        self.address = ""
        self._log = log
        self._token = os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(16)  # Ray reads it once in a process
        self.token_file = log.with_name(f".{log.name}-token").absolute()
        self._process: Child | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What every process that drives this cluster must have set from its start, beside `address`."""
        return {**self._common, "RAY_AUTH_TOKEN": self._token}

    def environment_of_child(self) -> dict[str, str]:
        """The same for a process that we start, with all else that it inherits. The token is in a file.

        The token is in no environment, which `/proc` shows to others.
        """
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
        return {**inherited, **self._common, "RAY_AUTH_TOKEN_PATH": str(self.token_file)}

    @property
    def _common(self) -> dict[str, str]:
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            # A lost node is noticed after about three seconds instead of thirteen.
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "2000",
            "RAY_health_check_failure_threshold": "3",
        }

    def launch(self) -> None:
        """Returns at once; `join` waits."""
        command = [sys.executable, "-m", "coordinator.dev.laptop.raynodes"]
        secret = SourceOptions.from_environ().env.keys() - _FOR_AGENTS
        environment = {name: value for name, value in self.environment_of_child().items() if name not in secret}
        environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = str(DRAIN_S)
        self.token_file.unlink(missing_ok=True)
        with os.fdopen(os.open(self.token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "w") as file:
            file.write(self._token)
        self._process = Child("Ray", command, log=self._log, env=environment, spoken=True)
        for name in (NodeName(_HEAD), *self.nodes):
            self._tell("start", name)

    def join(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Returns when every node is there, seconds later. Raises ChildFailed with the end of the log.

        `meanwhile` is called all the time, and may raise to end the waiting.
        """
        for _ in (_HEAD, *self.nodes):
            self.address = self._answer(meanwhile)

    def start_node(self, name: NodeName, pod: str = "") -> None:
        """The Ray node of a Kubernetes node has joined (again)."""
        self._do("start", name, pod)

    def stop_node(self, name: NodeName, pod: str = "") -> None:
        """It has left in order, as when its pod is deleted."""
        self._do("stop", name, pod)

    def kill_node(self, name: NodeName, pod: str = "") -> None:
        """Everything on the node is gone at once, as when it loses power."""
        self._do("kill", name, pod)

    def freeze_node(self, name: NodeName, pod: str = "") -> None:
        """It answers nobody any more, so that Ray gives it up; its agent runs on."""
        self._do("freeze", name, pod)

    def kill_head(self) -> None:
        """The head, and the GCS with all it knows, is gone at once. The actors on other nodes run on for a minute."""
        self._do("kill", NodeName(_HEAD))

    def start_head(self) -> None:
        """There is a new head, which knows of nothing, at a new `address`. The nodes have to be killed and started."""
        self.address = self._do("start", NodeName(_HEAD))

    def stop(self) -> None:
        """Ends every Ray process of this cluster; safe to call twice and half-way."""
        if self._process is not None:
            self._process.stop()
            self._process = None
        self.token_file.unlink(missing_ok=True)

    @property
    def _child(self) -> Child:
        if self._process is None:
            raise ChildFailed("Ray was not launched")
        return self._process

    def _do(self, verb: str, name: NodeName, pod: str = "") -> str:
        """The address of the cluster, once it is done."""
        self._tell(verb, name, pod)
        return self._answer()

    def _tell(self, verb: str, name: NodeName, pod: str = "") -> None:
        order = {"verb": verb, "node": name, "pod": pod, "host": self.hosts.get(name, _HOST)}
        self._child.tell(json.dumps({**order, "environment": dict(self.nodes.get(name, {}))}))

    def _answer(self, meanwhile: Callable[[], object] = lambda: None) -> str:
        answer = json.loads(self._child.answer(meanwhile=meanwhile))
        if "error" in answer:
            raise ChildFailed(f"Ray: {answer['error']}:\n{self._child.log_tail()}")
        return str(answer["address"])


class _Nodes:
    """The Ray nodes of this process. Uses what `ray start` itself uses; there is no public way to start a Ray node."""

    def __init__(self, temp_dir: str) -> None:
        self._temp_dir = temp_dir
        self._nodes: dict[tuple[str, str], Any] = {}
        self._address = ""

    def start(self, name: str, pod: str, host: str, environment: Mapping[str, str]) -> str:
        """The address of the cluster."""
        from ray._private.node import Node
        from ray._private.parameter import RayParams

        head = name == _HEAD
        place: dict[str, Any] = {"temp_dir": self._temp_dir} if head else {"gcs_address": self._address}
        parameters = RayParams(
            node_ip_address=host,
            node_manager_port=0,
            min_worker_port=0,
            max_worker_port=0,
            num_cpus=0,
            num_gpus=0,
            object_store_memory=80 * 1024**2,
            include_dashboard=False,
            include_log_monitor=False,
            no_monitor=True,
            labels=None if head else {NODE_LABEL: node_label(NodeName(name))},
            env_vars=dict(environment),
            **place,
        )
        node = Node(parameters, head=head, shutdown_at_exit=False, spawn_reaper=True)  # they end with us
        self._nodes[name, pod] = node
        self._address = node.gcs_address
        return self._address

    def stop(self, name: str, pod: str) -> str:
        """The node and its actors are gone, as `ray start` leaves at SIGTERM."""
        self._nodes[name, pod]._drain_node_before_shutdown()
        return self.kill(name, pod, in_order=True)

    def freeze(self, name: str, pod: str) -> str:
        for raylet in self._nodes[name, pod].all_processes["raylet"]:
            raylet.process.send_signal(signal.SIGSTOP)
        return self._address

    def kill(self, name: str, pod: str, *, in_order: bool = False) -> str:
        """The node and its actors are gone. Left to itself, an actor notices only a moment later."""
        node = self._nodes.pop((name, pod))
        roots = {each.process.pid for processes in node.all_processes.values() for each in processes}
        actors = _descendants(roots)
        node.kill_all_processes(check_alive=False, allow_graceful=in_order)
        for pid in actors:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return self._address

    def kill_all(self) -> None:
        for name, pod in sorted(self._nodes, reverse=True):  # the head is last
            self.kill(name, pod)


def _descendants(roots: set[int]) -> set[int]:
    """The processes that these started, and those that they started."""
    parents: dict[int, int] = {}
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit():  # of `pid (name) state parent …` the name may hold anything
                parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    found = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - roots


def serve(nodes: _Nodes, lines: Iterable[str]) -> None:
    """Obeys until the parent hangs up."""
    for line in lines:
        order = json.loads(line)
        try:
            node, pod = order["node"], order["pod"]
            if order["verb"] == "start":
                answer = {"address": nodes.start(node, pod, order["host"], order["environment"])}
            else:
                do = {"stop": nodes.stop, "freeze": nodes.freeze, "kill": nodes.kill}[order["verb"]]
                answer = {"address": do(node, pod)}
        except Exception as error:  # noqa: BLE001  Ray raises bare Exceptions; the parent decides what it means
            answer = {"error": f"{order['verb']} {order['node'] or 'head'}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    remove_abandoned(_SHORT, _PREFIX)
    with run_folder(_SHORT, _PREFIX) as folder:
        nodes = _Nodes(str(folder))
        try:
            serve(nodes, sys.stdin)
        finally:
            nodes.kill_all()
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)  # Ray's own helpers notice only after half a minute that their nodes are gone
    return 0


if __name__ == "__main__":
    sys.exit(main())
