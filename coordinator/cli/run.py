"""The coordinator as a process: what is built in which order, what `/readyz` means, and how it ends.

    probes and metrics listen ─► informers ─► leader ─► Ray ─► loop … SIGTERM ─► loop ends, writes and Events are
    flushed, the Lease is given back, Ray is left, the agents stay for the next coordinator

A lead that is lost ends nothing: from that moment nothing is written and no agent is told anything. When the Lease is
won again, after an API server was away or another replica led, what is known of the cluster is compared with it first.
`/healthz` answers 200 all the while; `/readyz` answers 503 while the Lease can be neither read nor written.

Exit codes: 0 told to stop; 1 no cluster is configured, or an address is taken.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from actors.errors import SourceError
from actors.sources.options import SourceOptions
from coordinator import logs
from coordinator.cli import health, settings
from coordinator.cli.settings import Settings
from coordinator.cli.tls_suites import tls_settings
from coordinator.cli.webhooks import WebhookServer
from coordinator.control import container_env, credentials
from coordinator.control.admission import Admission
from coordinator.control.controller import Controller
from coordinator.control.informers import Informers
from coordinator.control.kserve_config import ConfigReader
from coordinator.control.metrics import CONTENT_TYPE, Metrics
from coordinator.control.neighbours import Neighbours
from coordinator.control.resolver import Resolver
from coordinator.control.secret_keys import Defaults
from coordinator.control.tls_contexts import TlsContexts
from coordinator.control.webhook_identity import WebhookIdentity
from coordinator.kube.config import ClusterConfig, NoClusterConfig, load_config
from coordinator.kube.events import Recorder
from coordinator.kube.http import HttpKube
from coordinator.kube.interface import Denied, KubeError, NotFound, Object
from coordinator.kube.leader import LOCK_NAME, Leader
from coordinator.plan.pods import read_pod
from coordinator.plan.snapshot import Credentials

_log = logging.getLogger(__name__)

REVIEW_TIMEOUT_S = 4.0
"""Of a look-up for a webhook: under half of the 10 s that an API server waits for its answer."""


def run(args: argparse.Namespace) -> int:
    """`localmodel run`. Blocks until SIGTERM or SIGINT; the exit code."""
    chosen = settings.from_args(args, os.environ)
    logs.configure(chosen.log)
    _quieten_ray()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        config = load_config(chosen.kubeconfig, chosen.context)
    except NoClusterConfig as error:
        _log.error("unable to set up client config", extra={"error": str(error)})
        return 1
    try:
        apply = tls_settings(chosen.tls_min_version, chosen.tls_cipher_suites)
    except ValueError as error:
        _log.error("unable to resolve TLS configuration", extra={"error": str(error)})
        return 1
    try:
        _Process(chosen, config, stop, TlsContexts(chosen.webhook_cert_dir, apply)).serve()
    except (OSError, ValueError) as error:  # an address that cannot be listened on
        _log.error("unable to start", extra={"error": str(error)})
        return 1


def _quieten_ray() -> None:
    """Logs are one JSON object a line on standard error; Ray's notes on standard output are not."""
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  for as long as the process lives


class _Process:
    """Everything that is built once, and how it stands together."""

    def __init__(self, chosen: Settings, config: ClusterConfig, stop: threading.Event, contexts: TlsContexts) -> None:
        self._settings = chosen
        self._stop = stop
        self._contexts = contexts
        self._metrics = Metrics(version("localmodel"), leader_lock=LOCK_NAME)
        self._kube = HttpKube(config, observe=self._metrics.kube_request)
        self._lease_kube = HttpKube(
            config, timeout_s=chosen.leader_timing.request_timeout_s, observe=self._metrics.kube_request
        )
        self._review_kube = HttpKube(config, timeout_s=REVIEW_TIMEOUT_S, observe=self._metrics.kube_request)
        self._identity = WebhookIdentity(self._kube, chosen.namespace, contexts)
        self._neighbours = Neighbours(
            self._review_kube,
            chosen.kserve_namespace,
            chosen.namespace,
            changed=lambda: self._wake(),
            controller_stays=chosen.follows,
        )
        self._leader: Leader | None = None
        if chosen.leader_elect:
            identity = f"{socket.gethostname()}_{uuid.uuid4()}"
            self._leader = Leader(
                self._lease_kube, identity, chosen.namespace, changed=self._leadership, timing=chosen.leader_timing
            )
        else:
            self._metrics.leading(True)
        job_namespace = chosen.job_namespace if chosen.job_namespace_given else None
        self._kserve = ConfigReader(self._kube, chosen.kserve_namespace, job_namespace)
        self._server = config.server
        self._wake: Callable[[], None] = lambda: None

    def serve(self) -> NoReturn:
        """Ends the process, with 0, when it is told to stop."""
        from coordinator.fleet.ray_fleet import RayFleet  # after the flags were read: importing Ray takes a second

        importlib.import_module("actors.sources.huggingface")  # half a second, which the first cache would wait for

        chosen = self._settings
        resolver = Resolver(asked=self._metrics.resolved)
        recorder = Recorder(self._kube, instance=socket.gethostname())
        trust = chosen.trust(os.environ)
        fleet = RayFleet(chosen.ray_address, trust=trust, leading=self._may_act)
        informers = Informers.over(
            self._kube,
            changed=lambda: controller.wake(),
            poisoned=lambda ref, error: controller.poisoned(ref, error),
            restarted=lambda _: self._metrics.watch_restarted(),
            read_pod=partial(read_pod, home=chosen.namespace) if chosen.eviction is not None else None,
            schemes=trust.schemes,
            follows=chosen.follows,
        )
        controller = Controller(
            informers,
            self._kube,
            fleet,
            resolver,
            recorder,
            self._metrics,
            leading=self._may_act,
            load_options=self._loader(SourceOptions.from_environ(trust=trust)),
            budgets=chosen.budgets,
            progress_interval_s=chosen.progress_interval_s,
            eviction=chosen.eviction,
            orphan_grace_s=chosen.orphan_grace_s,
            storage_limit=chosen.storage_limit,
            mark_nodes=chosen.mark_nodes,
            home=chosen.namespace,
            kserve=self._kserve,
            follows=chosen.follows,
        )
        resolver.changed = self._kserve.changed = controller.wake
        fleet.changed = self._wake = controller.wake
        servers = self._listen(informers, controller, Admission(informers, self._review_kube, trust.schemes))
        try:
            _log.info("starting", extra={"version": version("localmodel"), "api_server": self._server})
            informers.start()
            self._kserve.read()
            if chosen.webhook_port:
                self._identity.start()
            if chosen.beside_kserve != "ignore":
                self._neighbours.start()
            if self._leader:
                self._leader.start()
            controller.run(self._stop, tick_s=chosen.tick_s)
            self._identity.stop()
            self._neighbours.stop()
            _log.info("stopping")
        finally:
            self._stop.set()
            recorder.close()
            if self._leader:
                self._leader.release()
            informers.stop()
            self._identity.stop()
            fleet.close(stop_agents=False)
            resolver.close()
            for kube in (self._kube, self._lease_kube, self._review_kube):
                kube.close()
            for server in servers:
                server.close()
        logging.shutdown()
        os._exit(0)  # Ray may still hold a thread; and where it has been left, it aborts now and then as Python ends

    def _listen(
        self, informers: Informers, controller: Controller, admission: Admission
    ) -> list[health.Server | WebhookServer]:
        """Probes, metrics and webhooks, up before anything that may take long, and on every replica."""
        chosen = self._settings
        checks: dict[str, health.Check] = {
            "informers": lambda: None if informers.synced else "; ".join(informers.failures) or "not synced yet",
            "loop": controller.standstill,
            "kserve": lambda: self._neighbours.standing,
        }
        if self._leader is not None:
            leader = self._leader
            checks["lease"] = lambda: leader.failure
        routes = {
            "/healthz": lambda: health.run_checks({"ping": lambda: None}),
            "/readyz": lambda: health.run_checks(checks),
        }

        def render() -> health.Response:
            self._metrics.leading(self._may_act())  # which ends by the clock, whatever request hangs
            return health.Response(self._metrics.render(), content_type=CONTENT_TYPE)

        servers: list[health.Server | WebhookServer] = []
        try:
            servers.append(health.Server(chosen.health_probe_addr, routes))
            servers.append(health.Server(chosen.metrics_addr, {"/metrics": render}))
            servers.append(
                WebhookServer(
                    chosen.webhook_port,
                    admission.routes(),
                    self._contexts.current,
                    lambda: admission.ready,
                    insist=chosen.webhook_port_given,
                )
            )
        except (OSError, ValueError):
            for server in servers:
                server.close()
            raise
        return servers

    def _may_act(self) -> bool:
        return self._neighbours.standing is None and (self._leader is None or self._leader.leading)

    def _leadership(self, leading: bool) -> None:
        self._metrics.leading(leading)
        self._wake()

    def _loader(self, given: SourceOptions) -> Callable[[Credentials], SourceOptions]:
        """What a source is asked with, of the namespace and the Secret that KServe's configuration names by now."""

        def load(named: Credentials) -> SourceOptions:
            config = self._kserve.current
            read = partial(self._read, config.job_namespace)
            own = credentials.trusting(given, config.storage_initializer, self._of_operator(config.job_namespace))
            return credentials.load_options(
                named,
                read,
                namespace=config.job_namespace,
                own=container_env.over(own, named.container, read),
                secret_name=config.storage_secret,
                namespaced_own=self._settings.namespaced_own_credentials,
                read_own=None if named.namespace is None else partial(self._read_own, named.namespace),
                defaults=Defaults.of(config.credentials),
            )

        return load

    def _of_operator(self, job_namespace: str) -> dict[str, credentials.Read]:
        """The namespaces that may hold certificates for all sources, in order; one that may not be read holds none."""
        namespaces = dict.fromkeys((job_namespace, self._settings.kserve_namespace))
        return {namespace: partial(self._read_own, namespace) for namespace in namespaces}

    def _read_own(self, namespace: str, kind: str, name: str) -> Object | None:
        """Of a namespace that the coordinator reads where it was bound a role there, such as a tenant's."""
        return self._read(namespace, kind, name, granted=False)

    def _read(self, namespace: str, kind: str, name: str, *, granted: bool = True) -> Object | None:
        """An object that `credentials` asks for. `granted` False: one that may not be read is none."""
        try:
            return self._kube.get(credentials.READ[kind], name, namespace=namespace)
        except NotFound:
            return None
        except Denied as error:
            if not granted:
                return None
            message = f"cannot read {kind} {namespace}/{name}: {error}"
            raise SourceError(message, reason="CredentialsUnavailable") from error
        except KubeError as error:
            message = f"cannot read {kind} {namespace}/{name}: {error}"
            raise SourceError(message, reason="CredentialsUnavailable") from error
