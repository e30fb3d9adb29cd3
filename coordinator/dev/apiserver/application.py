"""HTTP: every request routed by its path, every answer a JSON document, every error a `Status`.

One aiohttp handler takes all paths. Writes run between two awaits, so that each is a transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from coordinator.dev.apiserver import (
    collector,
    discovery,
    errors,
    openapi,
    patches,
    protobuf,
    requests,
    special,
    tables,
    watching,
)
from coordinator.dev.apiserver.admission import Admission, Attempt, Pending
from coordinator.dev.apiserver.errors import Object, StatusError
from coordinator.dev.apiserver.kinds import Kind
from coordinator.dev.apiserver.registry import Options, Registry
from coordinator.dev.apiserver.requests import Form, Target
from coordinator.dev.apiserver.webhooks import Webhooks

_LOG = logging.getLogger(__name__)
RETRY_S = 1.0
"""How soon a controller tries again what a webhook has refused."""


class Application:
    """Requests in, objects out. Everything but reading and writing sockets is synchronous."""

    def __init__(
        self, registry: Registry, *, bookmark_s: float = 10.0, services: Mapping[str, str] | None = None
    ) -> None:
        """`services` says where webhooks of a Service are: `namespace/name` to `host:port`."""
        self.registry = registry
        self.webhooks = Webhooks(registry.storage, registry.catalogue, services or {})
        self._collecting: asyncio.Task[None] | None = None
        self._closing = False
        self._bookmark_s = bookmark_s
        self._collected = registry.storage.version

    def routes(self) -> web.Application:
        app = web.Application(client_max_size=requests.MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._answer)
        return app

    async def close(self) -> None:
        """Ends the watches."""
        self._closing = True
        self.registry.storage.wake()
        if self._collecting is not None:
            self._collecting.cancel()
        await self.webhooks.close()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        try:
            return await self._route(request)
        except StatusError as error:
            if error.status.get("details") == {} and error.code == 404 and not request.path.startswith("/api/"):
                return web.Response(text="404 page not found\n", status=404)  # nobody knows what it would be
            headers = {"Retry-After": "1"} if error.code == 504 else {}
            return _warned(_json(error.status, error.code, headers), error.warnings)
        except web.HTTPRequestEntityTooLarge:
            message = f"Request entity too large: limit is {requests.MAX_BODY_BYTES}"
            return _json(StatusError(413, "RequestEntityTooLarge", message).status, 413)
        except Exception as error:  # noqa: BLE001  # a bug here is still answered as an API server would
            _LOG.exception("request failed: %s %s", request.method, request.path_qs)
            message = f"Internal error occurred: {type(error).__name__}: {error}"
            return _json(StatusError(500, "InternalError", message).status, 500)

    async def _route(self, request: web.Request) -> web.StreamResponse:
        target = requests.target(request.path)
        if target is None:
            return self._document(request)
        kind = self.registry.catalogue.find(target.group, target.version, target.plural)
        if kind is None or (target.namespace and not kind.namespaced) or target.subresource not in _subresources(kind):
            raise errors.path_not_found()
        if request.method == "GET" and not target.name and requests.is_watch(request.query):
            return await self._watch(request, kind, target)
        body = await request.read()
        admission = Admission(self.webhooks)
        while True:
            try:
                response = self._resource(request, kind, target, body, admission)
                break
            except Pending as pending:
                await admission.ask(pending.attempt)
            except StatusError as error:
                error.warnings += admission.warnings
                raise
        self._collect()
        return _warned(response, admission.warnings)

    def _collect(self) -> None:
        storage = self.registry.storage
        if collector.due(storage, self._collected):
            collector.collect(self.registry, self.webhooks)
        self._collected = storage.version
        if self.registry.held_up and self._collecting is None:
            self._collecting = asyncio.get_running_loop().create_task(self._ask_for_collector())

    async def _ask_for_collector(self) -> None:
        """What controllers delete is asked about as well, and again after a while where it is refused."""
        while self.registry.held_up and not self._closing:
            refused = False
            for attempt in self.registry.held_up:
                admission = Admission(self.webhooks)
                await admission.ask(attempt)
                refused |= isinstance(admission.answers[attempt.key], StatusError)
                if not isinstance(admission.answers[attempt.key], StatusError):
                    self.registry.cleared.add(attempt.object["metadata"]["uid"])
            collector.collect(self.registry, self.webhooks)
            if refused:
                await asyncio.sleep(RETRY_S)
        self._collecting = None

    # resources

    def _resource(
        self, request: web.Request, kind: Kind, target: Target, body: bytes, admission: Admission
    ) -> web.Response:
        """Raises Pending where a webhook has to be asked first: it is called again then."""
        form = requests.form(request.headers.get("Accept", ""), request.query)
        method = request.method
        if method == "GET":
            return self._get(request, kind, target, form)
        if kind.namespaced and not target.namespace:
            raise errors.path_not_found() if kind.custom else errors.method_not_allowed()
        content_type = _media(request)
        try:
            value = requests.decode(body, content_type) if body or method != "DELETE" else None
        except requests.Unreadable as error:
            why = f"couldn't get version/kind; json parse error: {error}"
            raise errors.unreadable(kind.kind, why) from error
        if method == "DELETE":
            return self._delete(request, kind, target, value, admission)
        verb = _VERBS.get(method)
        if verb is None:
            raise errors.method_not_allowed()
        options = requests.write_options(verb, request.query, request.headers.get("User-Agent", ""))
        options.admission = admission
        status = 200
        if method == "POST" and not target.name:
            written, status = self.registry.create(kind, target.namespace, value, options), 201
        elif method == "PUT" and target.name:
            written = self.registry.update(kind, target.namespace, target.name, value, options, target.subresource)
        elif method == "PATCH" and target.name:
            if content_type == patches.APPLY and not request.query.get("fieldManager"):
                cause = errors.required("fieldManager", "is required for apply patch")
                raise errors.invalid("meta.k8s.io", "PatchOptions", "", [cause])
            written, created = self._patch(kind, target, content_type, value, options)
            status = 201 if created else 200
        elif kind.custom and not target.name:
            raise errors.bad_request("name must be provided")
        else:
            raise errors.method_not_allowed()
        return _warned(_json(self._formed(kind, [written], form, one=True), status), options.warnings)

    def _patch(
        self, kind: Kind, target: Target, content_type: str, value: Any, options: Options
    ) -> tuple[Object, bool]:
        place = (kind, target.namespace, target.name)
        accepted = [patches.JSON, patches.MERGE, patches.APPLY] + ([] if kind.custom else [patches.STRATEGIC])
        if content_type not in accepted:
            raise errors.unsupported_media_type(accepted)
        if content_type == patches.APPLY:
            return self.registry.apply(*place, value, options, target.subresource)
        return self.registry.patch(*place, content_type, value, options, target.subresource), False

    def _get(self, request: web.Request, kind: Kind, target: Target, form: Form) -> web.Response:
        if target.name:
            value = self.registry.get(kind, target.namespace, target.name)
            return _json(self._formed(kind, [value], form, one=True))
        page = watching.page(self.registry.storage, kind, target.namespace, request.query)
        meta: Object = {"resourceVersion": str(page.version)}
        if page.next_token:
            meta |= {"continue": page.next_token, "remainingItemCount": page.remaining}
        return _json(self._formed(kind, page.items, form, meta))

    def _delete(
        self, request: web.Request, kind: Kind, target: Target, body: Any, admission: Admission
    ) -> web.Response:
        options = replace(requests.delete_options(request.query, body), admission=admission)
        if target.name:
            value, gone = self.registry.delete(kind, target.namespace, target.name, options)
            if not gone or special.shown_when_deleted(kind):
                return _json(value)
            details = {"name": target.name, "group": kind.group, "kind": kind.plural, "uid": value["metadata"]["uid"]}
            return _json(
                {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
            )
        page = watching.page(self.registry.storage, kind, target.namespace, request.query)
        for value in page.items:  # all are asked about before the first goes, because this may begin anew
            for mutating in (True, False):
                admission(Attempt(mutating, "DELETE", kind, "", None, value, options.dry_run))
        options = replace(options, admission=None)
        for value in page.items:
            meta = value["metadata"]
            self.registry.delete(kind, meta.get("namespace", ""), meta["name"], options)
        return _json(self._formed(kind, page.items, Form(), {"resourceVersion": str(page.version)}))

    def _formed(
        self, kind: Kind, items: Sequence[Object], form: Form, meta: Object | None = None, *, one: bool = False
    ) -> Object:
        """One object (`one`), or a list of them, in the form that was asked for."""
        if one and meta is None:
            meta = {"resourceVersion": items[0]["metadata"].get("resourceVersion", "")}
        if form.kind == "Table":
            return tables.table(kind, items, meta or {}, datetime.now(UTC), form.include)
        if form.kind.startswith("PartialObjectMetadata"):
            parts = [tables.partial(item) for item in items]
            header = {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1"}
            return parts[0] if one else {**header, "metadata": meta, "items": parts}
        if one:
            return items[0]
        return {"kind": kind.list_kind, "apiVersion": kind.api_version, "metadata": meta, "items": list(items)}

    async def _watch(self, request: web.Request, kind: Kind, target: Target) -> web.StreamResponse:
        form = requests.form(request.headers.get("Accept", ""), request.query)
        wanted = watching.Watch.of(kind, request.query)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        events = watching.watch(
            self.registry.storage,
            kind,
            target.namespace,
            wanted,
            bookmark_s=self._bookmark_s,
            alive=lambda: not self._closing and request.transport is not None,
        )
        with contextlib.suppress(ConnectionError):  # the client is gone, which is how most watches end
            async for type_, value in events:
                shown = value if type_ == "ERROR" else self._formed(kind, [value], form, one=True)
                await response.write(json.dumps({"type": type_, "object": shown}).encode() + b"\n")
        return response

    # documents

    def _document(self, request: web.Request) -> web.Response:
        path, kinds = request.path.rstrip("/") or "/", self.registry.catalogue.all()
        accept = request.headers.get("Accept", "")
        if path in ("/healthz", "/readyz", "/livez") or path in ("/readyz/ping", "/livez/ping"):
            return web.Response(text="ok")
        if path == "/version":
            return _json(discovery.VERSION)
        if path in ("/api", "/apis"):
            for version in ("v2", "v2beta1"):
                media = f"application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"
                if media in accept.replace(" ", ""):
                    return _json(discovery.aggregated(kinds, path == "/api", version), content_type=media)
            return _json(discovery.core_versions() if path == "/api" else discovery.group_list(kinds))
        if path == "/openapi/v2":
            if protobuf.OPENAPI_ASKED in accept:
                return web.Response(body=protobuf.openapi_v2(kinds), headers={"Content-Type": protobuf.OPENAPI_GIVEN})
            return _json(openapi.swagger())
        if path == "/openapi/v3":
            return web.Response(text=json.dumps(openapi.index(kinds)))  # a real server does not call it JSON either
        if path.startswith("/openapi/v3/"):
            found = openapi.document(path.removeprefix("/openapi/v3/"), kinds)
            if found is not None:
                return _json(found)
        parts = path.strip("/").split("/")
        if parts[0] in ("api", "apis") and len(parts) == (2 if parts[0] == "api" else 3):
            resources = discovery.resource_list("/".join(parts[1:]), kinds)
            if resources["resources"]:
                return _json(resources)
        if parts[0] == "apis" and len(parts) == 2 and any(kind.group == parts[1] for kind in kinds):
            return _json(discovery.group(parts[1], kinds))
        raise errors.path_not_found()


_VERBS = {"POST": "Create", "PUT": "Update", "PATCH": "Patch"}
"""The first part of the name of a write's options."""


def _subresources(kind: Kind) -> tuple[str, ...]:
    return ("", "status") if kind.status else ("",)


def _media(request: web.Request) -> str:
    return request.headers.get("Content-Type", "application/json").partition(";")[0].strip()


def _warned(response: web.Response, warnings: Sequence[str]) -> web.Response:
    for warning in dict.fromkeys(warnings):
        response.headers.add("Warning", f"299 - {json.dumps(warning)}")
    return response


def _json(
    value: Object, status: int = 200, headers: Mapping[str, str] | None = None, content_type: str = "application/json"
) -> web.Response:
    body = json.dumps(value).encode()
    return web.Response(body=body, status=status, headers={**(headers or {}), "Content-Type": content_type})
