"""`Kube` over HTTP, on the pool of urllib3 that the official client makes.

Of that client we use what is hard and maintained there (finding and refreshing credentials, the TLS pool) and nothing
of its typed models, which drop unknown fields, or of its watch, which has no read timeout.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import quote, urlencode

import urllib3
from kubernetes.client.rest import RESTClientObject
from urllib3.exceptions import HTTPError

from actors.numbers import decimal
from actors.transport.authorities import accept_in_libraries
from coordinator.kube.config import ClusterConfig, cause_of
from coordinator.kube.interface import (
    Conflict,
    Denied,
    EventType,
    Gone,
    Invalid,
    KubeError,
    NotFound,
    Object,
    Objects,
    PatchType,
    ResourceType,
    Unreachable,
    WatchEvent,
)

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
        accept_in_libraries()
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

    def delete(
        self,
        resource: ResourceType,
        name: str,
        *,
        namespace: str | None = None,
        uid: str = "",
        version: str = "",
        foreground: bool = False,
    ) -> None:
        given = {key: value for key, value in (("uid", uid), ("resourceVersion", version)) if value}
        options: dict[str, Any] = {"preconditions": given} if given else {}
        if foreground:
            options["propagationPolicy"] = "Foreground"
        body = {"apiVersion": "v1", "kind": "DeleteOptions", **options} if options else None
        self._call("delete", "DELETE", resource.path(namespace, name), None, body)

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
            raise Unreachable(f"cannot reach the API server at {self.server}: {cause_of(error)}") from error
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
            raise Unreachable(f"no credentials for {self.server}: {cause_of(error)}") from error
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
