"""A whole control plane in this process, over HTTP: the real client, informers, loop and Events, and agents that obey.

`admin` is the person; what the coordinator itself asks the API server is recorded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from actors.errors import Failure
from actors.manifest import ModelSource, Resolved
from actors.messages import DesiredState, ModelReport, NodeName, Phase, Removal
from actors.sources.options import SourceOptions
from coordinator.api import crds
from coordinator.control import container_env
from coordinator.control.admission import Admission
from coordinator.control.controller import Controller
from coordinator.control.credentials import READ, load_options
from coordinator.control.informers import Informers
from coordinator.control.kserve_config import ConfigReader
from coordinator.control.metrics import Metrics
from coordinator.control.resolver import Resolver
from coordinator.control.tls_contexts import TlsContexts
from coordinator.control.webhook_identity import WebhookIdentity
from coordinator.dev.apiserver.server import ApiServer, write_kubeconfig
from coordinator.dev.trial.builders import Builder, a_report, a_resolution
from coordinator.dev.trial.builders import an_agent as an_agent_view
from coordinator.dev.trial.waiting import eventually
from coordinator.fleet.interface import AgentView
from coordinator.kube.config import load_config
from coordinator.kube.events import Recorder
from coordinator.kube.http import HttpKube
from coordinator.kube.interface import (
    EVENTS,
    NAMESPACES,
    Conflict,
    NotFound,
    Object,
    ResourceType,
)
from coordinator.kube.leader import Leader
from coordinator.plan.eviction import Policy
from coordinator.plan.pods import read_pod
from tests.kit.kserve import as_sent, consumer_crds
from tests.kit.recording_kube import RecordingKube

HOME, JOBS, KSERVE, TEAM = "localmodel", "kserve-localmodel-jobs", "kserve", "team-a"


class Agents:
    """A fleet whose agents hold what they should at once, and until they are ordered to remove it.

    They can be told to be silent.
    """

    def __init__(self) -> None:
        self.desired: Mapping[NodeName, DesiredState] = {}
        self.silent: Failure | None = None
        self.no_room_for = ""
        self.ordered: tuple[Removal, ...] = ()
        self.held: dict[NodeName, dict[str, ModelSource]] = {}

    def sync(self, desired: Mapping[NodeName, DesiredState]) -> None:
        self.desired = dict(desired)
        for node, state in desired.items():
            held = self.held.setdefault(node, {})
            held |= {model.key: model.source for model in state.models}
            for order in state.remove:
                if order.for_key is None:
                    held.pop(order.key, None)
        self.ordered = tuple(order for state in desired.values() for order in state.remove) or self.ordered

    def views(self) -> Mapping[NodeName, AgentView]:
        return {node: self._view(node) for node in self.desired}

    def _view(self, node: NodeName) -> AgentView:
        if self.silent is not None:
            return AgentView(failure=self.silent)
        return an_agent_view(node, *(self._report(source) for source in self.held[node].values()))

    def _report(self, source: ModelSource) -> ModelReport:
        if source.uri != self.no_room_for:
            return a_report(source)
        full = Failure("InsufficientStorage", "there is no room")
        return a_report(source, Phase.PENDING, failure=full, needed_bytes=1, lacking_bytes=1)

    def close(self, *, stop_agents: bool) -> None: ...


@dataclass
class Cluster:
    """A coordinator over a development API server; `admin` is the person, `recorded` the coordinator's own client."""

    admin: HttpKube
    recorded: RecordingKube
    agents: Agents
    kubeconfig: Path
    admission: Admission
    identity: WebhookIdentity
    asked_with: dict[str, SourceOptions] = field(default_factory=dict)

    def create(self, resource: ResourceType, built: Builder, namespace: str | None = None) -> None:
        self.admin.create(resource, as_sent(built), namespace=namespace)

    def namespace(self, name: str) -> str:
        """The namespace exists."""
        with suppress(Conflict):
            self.admin.create(NAMESPACES, {"metadata": {"name": name}})
        return name

    def find(self, resource: ResourceType, name: str, namespace: str | None = None) -> Object | None:
        try:
            return self.admin.get(resource, name, namespace=namespace)
        except NotFound:
            return None

    def ready(self, resource: ResourceType, name: str, namespace: str | None = None) -> bool:
        status = (self.find(resource, name, namespace) or {}).get("status", {})
        return any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", ()))

    def is_gone(self, resource: ResourceType, name: str, namespace: str | None = None) -> bool:
        return self.find(resource, name, namespace) is None

    def is_owned(self, resource: ResourceType, name: str, namespace: str | None = None) -> bool:
        return bool((self.find(resource, name, namespace) or {"metadata": {}})["metadata"].get("ownerReferences"))

    def was_said(self, name: str, reason: str, times: int) -> bool:
        """Whether the Events about an object say `reason` that often."""
        found, _ = self.admin.list(EVENTS)
        about = [event for event in found if event["involvedObject"]["name"] == name and event["reason"] == reason]
        return sum(int(event["count"]) for event in about) == times

    def resolve(self, source: ModelSource, options: SourceOptions, *, pinned_revision: str | None = None) -> Resolved:
        self.asked_with[source.uri] = options
        resolved = a_resolution(source).resolved
        assert resolved is not None
        return resolved


def read_credentials(kube: RecordingKube, kind: str, name: str) -> Object | None:
    try:
        return kube.get(READ[kind], name, namespace=JOBS)
    except NotFound:
        return None


@contextmanager
def coordinating(
    kubeconfig: Path,
    eviction: Policy | None = None,
    *,
    mark_nodes: bool = False,
    may_act: Callable[[], bool] = lambda: True,
    follows: bool = False,
) -> Iterator[Cluster]:
    """A coordinator that leads, against a server which serves our kinds. The namespaces it needs are made.

    `may_act`: what else must hold for it to act. `follows`: KServe's controller decides.
    """
    with ExitStack() as stack:
        config = load_config(str(kubeconfig))
        admin, client = HttpKube(config), HttpKube(config)
        stack.callback(admin.close)
        kube = RecordingKube(client)
        recorder = Recorder(kube)
        leader = Leader(kube, "coordinator-1", HOME)
        informers = Informers.over(
            kube,
            changed=lambda: controller.wake(),
            poisoned=lambda *poison: controller.poisoned(*poison),
            read_pod=partial(read_pod, home=HOME) if eviction is not None else None,
            follows=follows,
        )
        identity = WebhookIdentity(kube, HOME, TlsContexts(kubeconfig.parent / "none"))
        cluster = Cluster(admin, kube, Agents(), kubeconfig, Admission(informers, kube), identity)
        for name in (HOME, JOBS, KSERVE):
            cluster.namespace(name)
        resolver = Resolver(cluster.resolve, workers=1)
        stack.callback(resolver.close, 5.0)
        controller = Controller(
            informers,
            kube,
            cluster.agents,
            resolver,
            recorder,
            Metrics("test"),
            leading=lambda: leader.leading and may_act(),
            load_options=lambda named: load_options(
                named,
                partial(read_credentials, kube),
                namespace=JOBS,
                own=container_env.over(SourceOptions({}), named.container, partial(read_credentials, kube)),
            ),
            progress_interval_s=0.05,
            eviction=eviction,
            mark_nodes=mark_nodes,
            home=HOME,
            kserve=ConfigReader(kube, KSERVE),
            follows=follows,
        )
        stop = threading.Event()
        loop = threading.Thread(target=controller.run, args=(stop,), kwargs={"tick_s": 0.05})

        informers.start()
        stack.callback(informers.stop, 5.0)
        stack.callback(client.close)  # ends the watches under way
        stack.callback(recorder.close)
        leader.start()
        stack.callback(leader.release)
        loop.start()
        stack.callback(loop.join)
        stack.callback(stop.set)
        yield cluster


@contextmanager
def running_coordinator(folder: Path, eviction: Policy | None = None, *, mark_nodes: bool = False) -> Iterator[Cluster]:
    """One beside a development API server of its own."""
    with ApiServer([*crds.load(), *consumer_crds()]) as server:
        write_kubeconfig(folder / "kubeconfig", server.url)
        with coordinating(folder / "kubeconfig", eviction, mark_nodes=mark_nodes) as cluster:
            cluster.namespace(TEAM)
            yield cluster


def soon(fact: Callable[[], object]) -> None:
    eventually(fact, timeout_s=20.0, every_s=0.02)
