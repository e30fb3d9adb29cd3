"""The server's life: an event loop in a thread, started, stopped, and pointed to by a kubeconfig.

`ApiServer` runs it in the background of a test, `python -m coordinator.dev.apiserver` as a process.
"""

from __future__ import annotations

import asyncio
import ipaddress
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from aiohttp import web

from coordinator.dev.apiserver import collector
from coordinator.dev.apiserver.application import Application
from coordinator.dev.apiserver.builtins import BUILTINS, CRDS
from coordinator.dev.apiserver.errors import Object
from coordinator.dev.apiserver.kinds import Catalogue
from coordinator.dev.apiserver.registry import Options, Registry
from coordinator.dev.apiserver.storage import Storage

HISTORY = 10_000


class ApiServer:
    """The server in a thread. Also a context manager. `services`: where webhooks of a Service are, see `Application`.

    `port` 0 takes a free one. `data` names a journal: what was written survives a kill and is there at the next start.
    Raises ValueError for a `host` that is not loopback: there is no authentication.
    """

    def __init__(
        self,
        crds: Sequence[Mapping[str, Any]] = (),
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        history: int = HISTORY,
        data: Path | None = None,
        bookmark_s: float = 10.0,
        services: Mapping[str, str] | None = None,
    ) -> None:
        if not ipaddress.ip_address(host).is_loopback:
            raise ValueError(
                f"the development API server has no authentication and listens on loopback only, not on {host}"
            )
        self._crds = crds
        self._services = services
        self._host, self._port = host, port
        self._history, self._data, self._bookmark_s = history, data, bookmark_s
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._started = threading.Event()
        self._failure: BaseException | None = None

    @property
    def url(self) -> str:
        """`http://127.0.0.1:<port>`; the port is known once started."""
        return f"http://{self._host}:{self._port}"

    def start(self) -> Self:
        """Serving when this returns. Raises what stood in the way, e.g. OSError for a port in use."""
        self._started.clear()
        self._thread = threading.Thread(target=self._run, name="apiserver", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            self._thread.join()
            raise failure
        return self

    def stop(self) -> None:
        """Watches are ended, connections closed, the port free. Safe to call twice."""
        if self._loop is not None and self._stop is not None and self._thread is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001  # handed to the thread that called start()
            self._failure = error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        storage = Storage(history=self._history, journal=self._data)
        try:
            registry = Registry(storage, Catalogue(BUILTINS))
            for crd in self._crds:
                _install(registry, crd)
            collector.collect(registry)
            application = Application(registry, bookmark_s=self._bookmark_s, services=self._services)
            runner = web.AppRunner(application.routes(), access_log=None, shutdown_timeout=1.0)
            await runner.setup()
            try:
                site = web.TCPSite(runner, self._host, self._port)
                await site.start()
                self._port = runner.addresses[0][1]
                self._started.set()
                await self._stop.wait()
                await application.close()
            finally:
                await _end(runner)
        finally:
            storage.close()


async def _end(runner: web.AppRunner) -> None:
    """No connection is left open, also of a client that does not read what it is sent: a mere close waits for it."""
    server = runner.server
    transports = [each.transport for each in server.connections] if server is not None else []
    await runner.cleanup()
    for transport in transports:
        if transport is not None:
            transport.abort()
    await asyncio.sleep(0)  # the loop closes them in its next turn


def _install(registry: Registry, crd: Mapping[str, Any]) -> None:
    """As `kubectl replace --force` would, without losing objects."""
    name, options = crd["metadata"]["name"], Options(field_manager="apiserver-start")
    if registry.storage.get(CRDS.resource, ("", name)) is None:
        registry.create(CRDS, "", dict(crd), options)
    else:
        registry.update(CRDS, "", name, dict(crd), options)


def load_crds(folder: Path) -> list[Object]:
    """Every CustomResourceDefinition in the folder's YAML files, in the order of their names."""
    documents = [doc for path in sorted(folder.glob("*.yaml")) for doc in yaml.safe_load_all(path.read_text())]
    return [doc for doc in documents if isinstance(doc, dict) and doc.get("kind") == "CustomResourceDefinition"]


def write_kubeconfig(path: Path, url: str) -> None:
    """A kubeconfig for `kubectl` and client libraries, replaced by one rename."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "localmodel-dev", "cluster": {"server": url}}],
        "users": [{"name": "dev", "user": {}}],
        "contexts": [{"name": "localmodel-dev", "context": {"cluster": "localmodel-dev", "user": "dev"}}],
        "current-context": "localmodel-dev",
    }
    temporary = path.with_name(path.name + ".new")
    temporary.touch(mode=0o600)
    temporary.write_text(yaml.safe_dump(config))
    temporary.replace(path)
