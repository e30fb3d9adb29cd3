"""The seam to the Kubernetes API: plain dicts in and out, errors of our own, a timeout on every call.

`Kube` is what the rest knows, `HttpKube` the real one; the only module that imports `kubernetes`. Of that client it
uses what is hard and maintained there (finding and refreshing credentials, the TLS pool) and nothing of its typed
models, which drop unknown fields, or of its watch, which has no read timeout.
"""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlencode

import urllib3
from kubernetes import config as kubeconfigs
from kubernetes.client import Configuration
from kubernetes.client.rest import RESTClientObject
from urllib3.exceptions import HTTPError

from actors.numbers import decimal

Object = Mapping[str, Any]
"""A Kubernetes object as JSON. Never mutated."""

Objects = list[Object]
"""Named here because inside the classes below `list` is a verb."""


@dataclass(frozen=True, slots=True)
class ResourceType:
    """How the API server is asked for a kind. `group` "" is the core group."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = False

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path. A namespaced kind without `namespace` names all namespaces."""
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        if namespace is not None and self.namespaced:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/".join(parts)


NODES = ResourceType("", "v1", "nodes", "Node")
NAMESPACES = ResourceType("", "v1", "namespaces", "Namespace")
EVENTS = ResourceType("", "v1", "events", "Event", namespaced=True)
SECRETS = ResourceType("", "v1", "secrets", "Secret", namespaced=True)
SERVICE_ACCOUNTS = ResourceType("", "v1", "serviceaccounts", "ServiceAccount", namespaced=True)
CONFIG_MAPS = ResourceType("", "v1", "configmaps", "ConfigMap", namespaced=True)
PODS = ResourceType("", "v1", "pods", "Pod", namespaced=True)
CLAIMS = ResourceType("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", namespaced=True)
VOLUMES = ResourceType("", "v1", "persistentvolumes", "PersistentVolume")
LEASES = ResourceType("coordination.k8s.io", "v1", "leases", "Lease", namespaced=True)


class KubeError(Exception):
    """Base. `status` is the HTTP status, 0 if there was no answer."""

    def __init__(self, message: str, *, status: int = 0, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class Unreachable(KubeError):
    """No answer: refused, reset, timed out, TLS, or a 5xx/429 that asks to come back."""


class NotFound(KubeError):
    """404: the object, or the kind itself."""


class Conflict(KubeError):
    """409: `resourceVersion` is stale, or the object exists already."""


class Gone(KubeError):
    """410: the resourceVersion is too old to watch from; list again."""


class Denied(KubeError):
    """401 or 403: credentials or RBAC."""


class Invalid(KubeError):
    """400 or 422: the API server's validation refused the object."""


class EventType(StrEnum):
    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"


class PatchType(StrEnum):
    MERGE = "application/merge-patch+json"
    JSON = "application/json-patch+json"
    APPLY = "application/apply-patch+yaml"


@dataclass(frozen=True, slots=True)
class WatchEvent:
    type: EventType
    object: Object


class Kube(Protocol):
    """What is asked of an API server. Every call raises KubeError only, and returns within its timeout."""

    def list(
        self, resource: ResourceType, *, namespace: str | None = None, field_selector: str | None = None
    ) -> tuple[Objects, str]:
        """All objects (pages followed) and the resourceVersion to watch from."""

    def watch(self, resource: ResourceType, resource_version: str, *, timeout_s: float) -> Iterator[WatchEvent]:
        """Events after `resource_version`, bookmarks included; ends normally after about `timeout_s`. Raises Gone."""

    def get(self, resource: ResourceType, name: str, *, namespace: str | None = None) -> Object: ...

    def create(self, resource: ResourceType, body: Object, *, namespace: str | None = None) -> Object: ...

    def replace(self, resource: ResourceType, name: str, body: Object, *, namespace: str | None = None) -> Object: ...

    def patch(
        self,
        resource: ResourceType,
        name: str,
        body: Object | Sequence[Object],
        *,
        namespace: str | None = None,
        subresource: str | None = None,
        patch_type: PatchType = PatchType.MERGE,
    ) -> Object:
        """A merge patch that carries `metadata.resourceVersion` raises Conflict when somebody was faster."""

    def delete(self, resource: ResourceType, name: str, *, namespace: str | None = None) -> None: ...

    def server_version(self) -> str:
        """The cheapest call that proves the API server answers."""


class NoClusterConfig(Exception):
    """Nothing says which cluster to talk to, or what says so cannot be read. One sentence for the person."""


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """Where the API server is and who we are there. `source` says where that was found."""

    server: str
    source: str
    configuration: Any = field(repr=False)


def load_config(
    kubeconfig: str | None = None, context: str | None = None, *, environ: Mapping[str, str] = os.environ
) -> ClusterConfig:
    """The first of: the flag, $KUBECONFIG, the pod's service account, ~/.kube/config. Raises NoClusterConfig.

    The first that is named must be usable: a typing error never falls through to another cluster.
    """
    home = Path(environ.get("HOME") or "~").expanduser() / ".kube" / "config"
    configuration = Configuration()
    configuration.connection_pool_maxsize = POOL_SIZE
    if not kubeconfig and not environ.get("KUBECONFIG") and environ.get("KUBERNETES_SERVICE_HOST"):
        source = "the pod's service account"
        load = partial(kubeconfigs.load_incluster_config, client_configuration=configuration)
    else:
        file, source = (
            (kubeconfig, "--kubeconfig")
            if kubeconfig
            else (environ["KUBECONFIG"], "$KUBECONFIG")
            if environ.get("KUBECONFIG")
            else (str(home), str(home))
        )
        if not any(Path(part).expanduser().is_file() for part in file.split(os.pathsep) if part):
            if file == str(home):
                raise NoClusterConfig(
                    "no Kubernetes cluster is configured: give --kubeconfig, set KUBECONFIG, run in a pod with a"
                    f" service account, or create {home}"
                )
            raise NoClusterConfig(f"{source} names {file}, which is not a file")
        load = partial(
            kubeconfigs.load_kube_config,
            config_file=file,
            context=context,
            client_configuration=configuration,
            persist_config=False,
        )
    try:
        load()
    except Exception as error:  # the loader raises whatever its YAML, files and exec plugins do
        raise NoClusterConfig(f"the cluster configuration from {source} cannot be used: {_cause(error)}") from error
    return ClusterConfig(configuration.host, source, configuration)


POOL_SIZE = 32
PAGE_OBJECTS = 500
MAX_ERROR_BYTES = 65536
FIELD_MANAGER = "localmodel"
WATCH_GRACE_S = 5.0
"""How long after its announced end a silent watch is given up."""

_TRANSPORT = (HTTPError, http.client.HTTPException, OSError)
_BY_STATUS = {400: Invalid, 401: Denied, 403: Denied, 404: NotFound, 409: Conflict, 410: Gone, 422: Invalid}

Observe = Callable[[str, int, float], None]
"""(verb, HTTP status or 0, seconds) of every request, for metrics."""


class HttpKube:
    """`Kube` over HTTP. Safe for many threads; one connection per call under way, none is shared.

    `timeout_s` bounds every call but `watch`: the answer must have begun by then, and be whole by twice that.
    """

    def __init__(
        self,
        config: ClusterConfig,
        *,
        timeout_s: float = 15.0,
        connect_timeout_s: float = 5.0,
        observe: Observe = lambda verb, status, seconds: None,
    ) -> None:
        self.server = config.server
        self._configuration = config.configuration
        self._pool: urllib3.PoolManager = RESTClientObject(config.configuration).pool_manager
        self._timeout_s = timeout_s
        self._connect_timeout_s = min(connect_timeout_s, timeout_s)
        self._observe = observe
        self._credentials = threading.Lock()
        self._lock = threading.Lock()
        self._watches: set[urllib3.BaseHTTPResponse] = set()
        self._closed = False

    def close(self) -> None:
        """Ends every watch under way, from whichever thread; calls after this are Unreachable."""
        with self._lock:
            self._closed = True
            for response in self._watches:
                with suppress(ValueError, RuntimeError, OSError):  # it ended by itself meanwhile
                    response.shutdown()
        self._pool.clear()

    def list(
        self, resource: ResourceType, *, namespace: str | None = None, field_selector: str | None = None
    ) -> tuple[Objects, str]:
        query = {"limit": str(PAGE_OBJECTS)}
        if field_selector:
            query["fieldSelector"] = field_selector
        try:
            return self._pages(resource, namespace, query)
        except Gone:  # the pages took longer than the server keeps old versions: take all at once
            return self._pages(resource, namespace, {key: query[key] for key in query if key != "limit"})

    def _pages(self, resource: ResourceType, namespace: str | None, query: dict[str, str]) -> tuple[Objects, str]:
        kind = {"apiVersion": resource.api_version, "kind": resource.kind}  # the server leaves both out of list items
        objects: Objects = []
        while True:
            page = self._call("list", "GET", resource.path(namespace), query)
            metadata, items = page.get("metadata"), page.get("items") or []
            junk = not isinstance(items, list) or not all(isinstance(item, dict) for item in items)
            if junk or not isinstance(metadata, dict):
                raise Unreachable(f"{self.server} answered something that is not a list of {resource.plural}")
            objects += [{**kind, **item} for item in items]
            if not metadata.get("continue"):
                return objects, str(metadata.get("resourceVersion", ""))
            query = {**query, "continue": metadata["continue"]}

    def watch(self, resource: ResourceType, resource_version: str, *, timeout_s: float) -> Iterator[WatchEvent]:
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(max(1, round(timeout_s))),
        }
        with self._request(
            "watch", "GET", resource.path(), query, read_timeout_s=timeout_s + WATCH_GRACE_S
        ) as response:
            with self._lock:
                if self._closed:
                    raise Unreachable(f"the connection to {self.server} is closed")
                self._watches.add(response)
            try:
                for line in _lines(response):
                    event = _watch_event(line)
                    if event is not None:
                        yield event
            finally:
                with self._lock:
                    self._watches.discard(response)

    def get(self, resource: ResourceType, name: str, *, namespace: str | None = None) -> Object:
        return self._call("get", "GET", resource.path(namespace, name))

    def create(self, resource: ResourceType, body: Object, *, namespace: str | None = None) -> Object:
        return self._call("create", "POST", resource.path(namespace), _MANAGED, body)

    def replace(self, resource: ResourceType, name: str, body: Object, *, namespace: str | None = None) -> Object:
        return self._call("update", "PUT", resource.path(namespace, name), _MANAGED, body)

    def patch(
        self,
        resource: ResourceType,
        name: str,
        body: Object | Sequence[Object],
        *,
        namespace: str | None = None,
        subresource: str | None = None,
        patch_type: PatchType = PatchType.MERGE,
    ) -> Object:
        query = {**_MANAGED, "force": "true"} if patch_type is PatchType.APPLY else _MANAGED
        path = resource.path(namespace, name, subresource)
        return self._call("patch", "PATCH", path, query, body, content_type=patch_type.value)

    def delete(self, resource: ResourceType, name: str, *, namespace: str | None = None) -> None:
        self._call("delete", "DELETE", resource.path(namespace, name))

    def server_version(self) -> str:
        return str(self._call("version", "GET", "/version").get("gitVersion", ""))

    def _call(
        self,
        verb: str,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: object = None,
        *,
        content_type: str = "application/json",
    ) -> dict[str, Any]:
        """The answer as a JSON object. Raises KubeError."""
        deadline = time.monotonic() + self._timeout_s
        content = bytearray()
        with self._request(verb, method, path, query, body, content_type=content_type) as response:
            while block := response.read1(65536):
                content += block
                if time.monotonic() > deadline:  # a server that trickles never trips the read timeout
                    raise Unreachable(f"{self.server} did not finish its answer within {self._timeout_s:g} s")
        answer = _json(bytes(content))
        if answer is None:
            raise Unreachable(f"{self.server} answered {method} {path} with something that is not a JSON object")
        return answer

    @contextmanager
    def _request(
        self,
        verb: str,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: object = None,
        *,
        content_type: str = "application/json",
        read_timeout_s: float | None = None,
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        """A 2xx response whose body is to be read inside; whatever goes wrong there is a KubeError too."""
        started, status = time.monotonic(), 0
        total_s = read_timeout_s or self._timeout_s
        timeout = urllib3.Timeout(total=total_s, connect=self._connect_timeout_s)
        response = None
        whole = False  # the body was read to its end
        try:
            if self._closed:
                raise Unreachable(f"the connection to {self.server} is closed")
            response = self._pool.request(
                method,
                self.server + quote(path) + (f"?{urlencode(query)}" if query else ""),
                body=None if body is None else json.dumps(body).encode(),
                headers=self._headers(content_type if body is not None else None),
                timeout=timeout,
                retries=False,
                redirect=False,
                preload_content=False,
            )
            status = response.status
            if not 200 <= status < 300:
                content = response.read(MAX_ERROR_BYTES)
                whole = len(content) < MAX_ERROR_BYTES
                raise _error(status, response.headers.get("Retry-After"), content, response.reason)
            yield response
            whole = True
        except _TRANSPORT as error:
            raise Unreachable(f"cannot reach the API server at {self.server}: {_cause(error)}") from error
        finally:
            if response is not None:
                if not whole:  # unread bytes must not meet the next request on this connection
                    response.close()
                response.release_conn()
            self._observe(verb, status, time.monotonic() - started)

    def _headers(self, content_type: str | None) -> dict[str, str]:
        headers = {"Accept": "application/json", "User-Agent": "localmodel"}
        if content_type:
            headers["Content-Type"] = content_type
        try:
            with self._credentials:  # rereads an expired token; the client's hook is not made for several threads
                for auth in self._configuration.auth_settings().values():
                    if auth["in"] == "header" and auth["value"]:
                        headers[auth["key"]] = auth["value"]
        except Exception as error:  # whatever a credential plugin or a token file raises
            raise Unreachable(f"no credentials for {self.server}: {_cause(error)}") from error
        return headers


MAX_RETRY_AFTER_S = 3600.0

_MANAGED = {"fieldManager": FIELD_MANAGER}


def _error(status: int, retry_after: str | None, body: bytes, reason: str | None) -> KubeError:
    """The API server's own words in the class the status names."""
    answer = _json(body) or {}
    message = str(answer.get("message") or body[:200].decode(errors="replace").strip() or reason or "no message")
    kind = _BY_STATUS.get(status, Unreachable if status == 429 or status >= 500 else KubeError)
    wait_s = decimal(retry_after.strip()) if retry_after else None
    delay_s = None if wait_s is None else min(float(wait_s), MAX_RETRY_AFTER_S)
    return kind(f"{message} (HTTP {status})", status=status, retry_after_s=delay_s)


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """Non-empty lines as they arrive."""
    pending = b""
    while block := response.read1(65536):
        *lines, pending = (pending + block).split(b"\n")
        yield from filter(None, lines)


def _watch_event(line: bytes) -> WatchEvent | None:
    """None for a type from the future. Raises what an ERROR event says, Gone among it, and Unreachable for garbage."""
    event = _json(line) or {}
    kind, content = event.get("type"), event.get("object")
    if not isinstance(kind, str) or not isinstance(content, dict):
        raise Unreachable("the API server sent something that is not a watch event")
    if kind == "ERROR":
        code = content.get("code")
        raise _error(code if isinstance(code, int) else 500, None, json.dumps(content).encode(), None)
    return WatchEvent(EventType(kind), content) if kind in EventType.__members__ else None


def _json(content: bytes) -> dict[str, Any] | None:
    """None for anything that is not a JSON object."""
    try:
        value = json.loads(content)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _cause(error: BaseException) -> str:
    """The innermost reason of a chain of wrapped errors, in words."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, http.client.IncompleteRead):
            return "the connection ended in the middle of an answer"
        error, cause = cause, cause.__cause__ or cause.__context__
    words = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return words[:1].lower() + words[1:]
