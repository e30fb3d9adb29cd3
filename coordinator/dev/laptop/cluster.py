"""A whole cluster on one laptop, from real processes: API server, origin, Ray nodes, coordinator.

    <directory>/kubeconfig            for kubectl; a real API server (KUBEBUILDER_ASSETS) has it in apiserver/
               /logs/*.log            one per process
               /nodes/<node>/models/  what would be /models on that node (the node group's root)
               /origin/               the sample repository, as the hub stand-in serves it

Every process is a child of this one and ends with it. For laptops and tests, never for more.
"""

from __future__ import annotations

import http.client
import json
import shutil
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from actors.messages import NodeName
from actors.sizes import format_bytes
from coordinator.api import crds
from coordinator.api.resources import GROUP, VERSION, LocalModelCache, LocalModelNode, LocalModelNodeGroup
from coordinator.control.webhook_identity import CONFIGURATIONS, WEBHOOKS
from coordinator.dev.laptop import envtest
from coordinator.dev.laptop.processes import Child, ChildFailed
from coordinator.dev.laptop.raynodes import LocalRay
from coordinator.dev.laptop.webhooks import webhook_configuration
from coordinator.dev.ports import free_ports
from coordinator.kube.config import load_config
from coordinator.kube.http import HttpKube
from coordinator.kube.interface import NAMESPACES, NODES, Conflict, KubeError, Object, ResourceType
from coordinator.plan.snapshot import CACHES, LOCAL_NODES, NODE_GROUPS

ROOT = "/models"
NODE_GROUP = "laptop"
JOB_NAMESPACE = "kserve-localmodel-jobs"
SAMPLE_REPO = "localmodel/sample"
SAMPLE_URI = f"hf://{SAMPLE_REPO}"
CUSTOM_RESOURCE_DEFINITIONS = ResourceType(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition"
)


@dataclass(frozen=True, slots=True)
class LaptopOptions:
    """`sample_bytes` 0: no sample repository. `api_port` 0: a free port. `repos` are served by the hub stand-in.

    `allow_origins`: as the coordinator's flag; by default what is served on this machine.
    """

    nodes: int = 3
    api_port: int = 0
    sample_bytes: int = 256 * 1024**2
    repos: Mapping[str, Path] | None = None
    real_hub: bool = False
    allow_origins: str = "127.0.0.1,::1"


class LaptopCluster:
    """Started by `start`, ended by `stop`; a context manager does both. `say` receives one line per step."""

    def __init__(
        self,
        directory: Path,
        options: LaptopOptions,
        *,
        say: Callable[[str], None] = lambda _: None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self.directory = directory
        self.options = options
        self.kubeconfig = directory / "kubeconfig"
        binaries = envtest.assets()
        self.real = envtest.RealServer(binaries, directory / "apiserver", port=options.api_port) if binaries else None
        self.logs = directory / "logs"
        self.nodes = [NodeName(f"node-{number}") for number in range(1, options.nodes + 1)]
        self.ports = dict(zip(("api", "origin", "metrics", "health", "webhook"), free_ports(5), strict=True))
        if options.api_port:
            self.ports["api"] = options.api_port
        if self.real is not None:
            self.ports["api"], self.kubeconfig = self.real.port, self.real.kubeconfig
        agents = {node: self._agent_environment(node) for node in self.nodes}
        self.ray = LocalRay(agents, log=self.logs / "ray.log")
        self.children: dict[str, Child] = {}
        self._say = say
        self._interrupted = interrupted

    @property
    def api_name(self) -> str:
        """What `kubectl` talks to."""
        return "a development API server" if self.real is None else "kube-apiserver and etcd"

    @property
    def origin_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['origin']}"

    @property
    def health_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['health']}"

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['metrics']}/metrics"

    def kube(self) -> HttpKube:
        """A client of this cluster's API server."""
        return HttpKube(load_config(str(self.kubeconfig)))

    def models(self, node: NodeName) -> Path:
        """Where `node` keeps its committed models."""
        return self.directory / "nodes" / node / ROOT.lstrip("/") / "models"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when a `kubectl apply` would be acted upon.

        Raises ChildFailed with the log of what did not start, KeyboardInterrupt once it is `interrupted`: between two
        steps, so that `stop` knows every child.
        """
        self.logs.mkdir(parents=True, exist_ok=True)
        for node in self.nodes:
            (self.directory / "nodes" / node / ROOT.lstrip("/")).mkdir(parents=True, exist_ok=True)
        self._say(f"starting {self.api_name}, the sample origin and {len(self.nodes)} Ray nodes")
        self.ray.launch()
        self.start_apiserver(wait=False)
        self.start_origin(wait=False)
        self._await_apiserver()
        self._await("origin", lambda: self.origin_stats() is not None, timeout_s=120)
        self._create_world()
        self.ray.join(self._check_interrupted)
        self._say("starting the coordinator and the node agents")
        self.start_coordinator()
        kube = self.kube()
        self._await("coordinator", lambda: self._agents_are_ready(kube), timeout_s=60)
        self._await("coordinator", lambda: self._webhooks_are_trusted(kube), timeout_s=30)

    def stop(self) -> None:
        """Ends everything that was started; safe to call twice and half-way."""
        for name in ("coordinator", "origin"):
            if child := self.children.pop(name, None):
                child.stop()
        self.ray.stop()
        if child := self.children.pop("apiserver", None):
            child.stop()
        if self.real is not None:
            self.real.stop()

    def start_apiserver(self, *, wait: bool = True) -> None:
        if self.real is not None:
            self.children["apiserver"] = self.real.start()
        else:
            command = [sys.executable, "-m", "coordinator.dev.apiserver", "--port", str(self.ports["api"])]
            command += ["--kubeconfig", str(self.kubeconfig), "--data", str(self.directory / "objects.json")]
            self._start("apiserver", command)
        if wait:
            self._await_apiserver()

    def start_origin(self, *, wait: bool = True) -> None:
        command = [sys.executable, "-m", "coordinator.dev.origin", "--port", str(self.ports["origin"])]
        command += ["--size", str(self.options.sample_bytes), "--directory", str(self.directory / "origin")]
        for repo, folder in (self.options.repos or {}).items():
            command += ["--repo", f"{repo}={folder}"]
        self._start("origin", command)
        if wait:
            self._await("origin", lambda: self.origin_stats() is not None, timeout_s=120)

    def start_coordinator(self, *, extra: Sequence[str] = (), wait: bool = True) -> None:
        command = [sys.executable, "-m", "coordinator.cli", "run", "--kubeconfig", str(self.kubeconfig)]
        command += ["--ray-address", self.ray.address, "--job-namespace", JOB_NAMESPACE]
        command += ["--allow-origins", self.options.allow_origins]
        command += ["--metrics-addr", f"127.0.0.1:{self.ports['metrics']}"]
        command += ["--health-probe-addr", f"127.0.0.1:{self.ports['health']}"]
        command += ["--webhook-port", str(self.ports["webhook"]), "--webhook-cert-dir", str(self.directory / "certs")]
        command += ["--tick-seconds", "0.5", "--progress-interval-seconds", "0.5", *extra]
        environment = self.ray.environment_of_child()
        if not self.options.real_hub:
            environment["HF_ENDPOINT"] = self.origin_url
        self._start("coordinator", command, environment)
        if wait:
            self._await("coordinator", lambda: _get(f"{self.health_url}/readyz") is not None, timeout_s=60)

    def create_cache(self, name: str, uri: str, **spec: Any) -> Object:
        """What `kubectl create` of a minimal LocalModelCache for the laptop's node group would do."""
        body = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": LocalModelCache.KIND,
            "metadata": {"name": name},
            "spec": {"sourceModelUri": uri, "modelSize": "1Gi", "nodeGroups": [NODE_GROUP], **spec},
        }
        return self.kube().create(CACHES, body)

    def origin_stats(self) -> Any:
        """What the origin itself counted, or None while it does not answer."""
        body = _get(f"{self.origin_url}/_stats")
        return None if body is None else json.loads(body)

    def _start(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self.children[name] = Child(name, command, log=self.logs / f"{name}.log", env=env)

    def _await(self, name: str, ready: Callable[[], bool], *, timeout_s: float) -> None:
        def is_ready() -> bool:
            self._check_interrupted()
            return ready()

        self.children[name].await_ready(is_ready, timeout_s=timeout_s)

    def _check_interrupted(self) -> None:
        if self._interrupted():
            raise KeyboardInterrupt

    def check(self) -> None:
        """Raises ChildFailed if a process has ended that should be running."""
        for child in self.children.values():
            child.check()

    def _await_apiserver(self) -> None:
        self._await("apiserver", self._apiserver_answers, timeout_s=60)

    def _apiserver_answers(self) -> bool:
        if self.real is not None:
            return self.real.answers()
        return self.kubeconfig.exists() and _get(f"http://127.0.0.1:{self.ports['api']}/readyz") is not None

    def _agents_are_ready(self, kube: HttpKube) -> bool:
        found = [LocalModelNode.model_validate(each) for each in kube.list(LOCAL_NODES)[0]]
        ready = {each.metadata.name for each in found if each.status.agent is not None and each.status.agent.ready}
        return ready >= set(self.nodes)

    def _webhooks_are_trusted(self, kube: HttpKube) -> bool:
        found = kube.get(WEBHOOKS, CONFIGURATIONS[0])
        return all(webhook["clientConfig"].get("caBundle") for webhook in found["webhooks"])

    def _agent_environment(self, node: NodeName) -> dict[str, str]:
        home = self.directory / "nodes" / node
        return {
            "LOCALMODEL_HOST_ROOT": str(home),
            "LOCALMODEL_ROOTS": ROOT,
            "LOCALMODEL_HEADROOM": "64Mi",
            "LOCALMODEL_PEER_HOST": "127.0.0.1",
        }

    def _create_world(self) -> None:
        kube = self.kube()
        for crd in crds.load():
            _create(kube, CUSTOM_RESOURCE_DEFINITIONS, crd)
        for namespace in ("kserve", JOB_NAMESPACE):
            _create(kube, NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        _create(kube, WEBHOOKS, webhook_configuration(self.ports["webhook"]))
        for node in self.nodes:
            _create(kube, NODES, laptop_node(node))
            kube.patch(NODES, node, {"status": laptop_node(node)["status"]}, subresource="status")
        group = node_group(format_bytes(shutil.disk_usage(self.directory).free))
        self._await("apiserver", lambda: _create(kube, NODE_GROUPS, group), timeout_s=30)


def laptop_node(name: str) -> dict[str, Any]:
    """A Ready Node with the label that KServe's model cache nodes carry."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kserve/localmodel": "worker"}},
        "spec": {},
        "status": {
            "conditions": [
                {"type": "Ready", "status": "True", "reason": "LaptopNode", "message": "a directory on this machine"}
            ]
        },
    }


def node_group(limit: str, name: str = NODE_GROUP, path: str = ROOT) -> dict[str, Any]:
    """A node group over all nodes with the label of `laptop_node`."""
    expression = {"key": "kserve/localmodel", "operator": "In", "values": ["worker"]}
    capacity = {"storage": limit}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": LocalModelNodeGroup.KIND,
        "metadata": {"name": name},
        "spec": {
            "storageLimit": limit,
            "persistentVolumeSpec": {
                "accessModes": ["ReadOnlyMany"],
                "capacity": capacity,
                "storageClassName": "local-storage",
                "local": {"path": path},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}},
            },
            "persistentVolumeClaimSpec": {
                "accessModes": ["ReadOnlyMany"],
                "storageClassName": "local-storage",
                "resources": {"requests": capacity},
            },
        },
    }


def _create(kube: HttpKube, resource: ResourceType, body: Object) -> bool:
    """Whether the object is there now. False: the API server does not serve the kind yet."""
    try:
        kube.create(resource, body)
    except Conflict:
        return True
    except KubeError as error:
        if error.status in (404, 429):
            return False
        raise ChildFailed(f"the API server refused {body['kind']} {body['metadata']['name']}: {error}") from error
    return True


def _get(url: str) -> bytes | None:
    """The body of a 200 answer, None for anything else."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=2) as response:
            return bytes(response.read())
    except (OSError, http.client.HTTPException):  # of another program's answer, too
        return None
