"""Admission webhooks, asked as a real server asks them, and what their answers do.

    a write ──► decoded ──► Mutating: one after another, each sees what the last made of it ──► validated
            ──► Validating: all at once, one refusal is enough ──► stored

https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakSet

import aiohttp
import jsonpatch

from actors.transport.authorities import as_go_does
from coordinator.dev.apiserver.admission import Attempt
from coordinator.dev.apiserver.errors import Object, StatusError
from coordinator.dev.apiserver.kinds import Catalogue, Kind
from coordinator.dev.apiserver.matching import Undecided, conditions_hold, matching, request_of, with_object
from coordinator.dev.apiserver.storage import Storage

_KNOWN_VERSIONS = ("v1", "v1beta1")


class _Failed(Exception):
    """The webhook could not be asked: its failurePolicy decides."""


class Webhooks:
    """The webhooks that the stored configurations name. `services` maps `namespace/name` to `host:port`."""

    def __init__(self, storage: Storage, catalogue: Catalogue, services: Mapping[str, str]) -> None:
        self._storage = storage
        self._catalogue = catalogue
        self._services = services
        self._session: aiohttp.ClientSession | None = None
        self._sockets: WeakSet[socket.socket] = WeakSet()

    async def close(self) -> None:
        """No connection is left open, also to a webhook that leaves the end of TLS unanswered, for which TLS waits."""
        if self._session is None:
            return
        await self._session.close()
        while left := [each for each in self._sockets if each.fileno() >= 0]:
            for each in left:
                with contextlib.suppress(OSError):  # it has ended already, and the loop is about to close it
                    each.shutdown(socket.SHUT_RDWR)
            await asyncio.sleep(0.01)

    def _open(self, address: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, *_ = address
        opened = socket.socket(family, kind, protocol)
        self._sockets.add(opened)
        return opened

    def asked_of(self, attempt: Attempt) -> list[tuple[Object, Kind]]:
        """The webhooks whose rules and selectors match."""
        return matching(self._storage, self._catalogue, attempt)

    async def ask(self, attempt: Attempt, warnings: list[str]) -> Object | None:
        """The object as the webhooks leave it. Raises StatusError for a refusal."""
        asked = self.asked_of(attempt)
        if attempt.mutating:
            value = attempt.new
            for webhook, kind in asked:
                value = await self._ask_one(webhook, kind, with_object(attempt, value), warnings)
            return value
        answers = (self._ask_one(webhook, kind, attempt, warnings) for webhook, kind in asked)
        for answer in await asyncio.gather(*answers, return_exceptions=True):
            if isinstance(answer, BaseException):
                raise answer
        return attempt.new

    async def _ask_one(self, webhook: Object, kind: Kind, attempt: Attempt, warnings: list[str]) -> Object | None:
        """The object as this webhook leaves it."""
        request = request_of(kind, attempt)
        try:
            if not conditions_hold(webhook, request):
                return attempt.new
            response = await self._call(webhook, request)
            warnings += [str(each) for each in response.get("warnings") or ()]
            if not response.get("allowed"):
                raise _refusal(webhook["name"], response.get("status"))
            return _patched(response, attempt.new) if attempt.mutating else attempt.new
        except (_Failed, Undecided) as error:
            if webhook.get("failurePolicy") == "Ignore":
                return attempt.new
            message = f'Internal error occurred: failed calling webhook "{webhook["name"]}": {error}'
            raise StatusError(500, "InternalError", message, {"causes": [{"message": str(error)}]}) from error

    async def _call(self, webhook: Object, request: Object) -> Object:
        config = webhook["clientConfig"]
        url, name, address = self._place(config)
        version = next(each for each in webhook["admissionReviewVersions"] if each in _KNOWN_VERSIONS)
        api_version = f"admission.k8s.io/{version}"
        review = {"kind": "AdmissionReview", "apiVersion": api_version, "request": request}
        seconds = webhook.get("timeoutSeconds", 10)
        where = f'failed to call webhook: Post "{url}?timeout={seconds}s"'
        if self._session is None:
            self._session = aiohttp.ClientSession(
                trust_env=False, connector=aiohttp.TCPConnector(socket_factory=self._open)
            )
        try:
            async with self._session.post(
                f"{address}?timeout={seconds}s",
                json=review,
                headers={"Content-Type": "application/json", "Accept": "application/json"},
                ssl=_trusting(config),
                server_hostname=name,
                timeout=aiohttp.ClientTimeout(total=seconds),
                allow_redirects=False,
            ) as answer:
                body = await answer.read()
                if answer.status != 200:
                    raise _Failed(f"failed to call webhook: the server answered {answer.status}: {body[:200]!r}")
        except TimeoutError as error:
            raise _Failed(f"{where}: context deadline exceeded") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _Failed(f"{where}: {error}") from error
        return _response(body, api_version, request["uid"])

    def _place(self, config: Object) -> tuple[str, str, str]:
        """The URL as it is called, the name that the certificate must be for, and the URL to connect to."""
        if config.get("url"):
            url = str(config["url"])
            return url, urlsplit(url).hostname or "", url
        service = config["service"]
        name, port = f"{service['name']}.{service['namespace']}.svc", service.get("port", 443)
        path = service.get("path") or ""
        place = self._services.get(f"{service['namespace']}/{service['name']}")
        if place is None:
            raise _Failed(f'failed to call webhook: service "{service["name"]}" not found')
        return f"https://{name}:{port}{path}", name, f"https://{place}{path}"


def _trusting(config: Object) -> ssl.SSLContext:
    bundle = config.get("caBundle")
    return as_go_does(ssl.create_default_context(cadata=base64.b64decode(bundle).decode() if bundle else None))


def _response(body: bytes, api_version: str, uid: str) -> Object:
    try:
        review = json.loads(body)
    except ValueError as error:
        raise _Failed(f"couldn't get version/kind; json parse error: {error}") from error
    found = review if isinstance(review, dict) else {}
    named = (found.get("apiVersion"), found.get("kind"))
    if named != (api_version, "AdmissionReview"):
        raise _Failed(
            f"expected webhook response of {api_version}, Kind=AdmissionReview, got {named[0]}, Kind={named[1]}"
        )
    response = found.get("response")
    if not isinstance(response, dict):
        raise _Failed("webhook response was absent")
    if response.get("uid") != uid and api_version.endswith("/v1"):
        raise _Failed(f'expected response.uid="{uid}", got "{response.get("uid", "")}"')
    return response


def _refusal(name: str, status: Any) -> StatusError:
    """As apiserver's `ToStatusErr` makes it."""
    status = status if isinstance(status, dict) else {}
    message, reason = status.get("message") or "", status.get("reason") or ""
    denied = f'admission webhook "{name}" denied the request'
    text = f"{denied}: {message or reason}" if message or reason else f"{denied} without explanation"
    code = status.get("code")
    return StatusError(code if isinstance(code, int) and code >= 400 else 400, reason, text, status.get("details"))


def _patched(response: Object, value: Object | None) -> Object | None:
    if not response.get("patch") or value is None:
        return value
    if response.get("patchType") != "JSONPatch":
        raise _Failed(f"unsupported patch type {response.get('patchType')!r}")
    try:
        patched: Object = jsonpatch.apply_patch(value, json.loads(base64.b64decode(response["patch"])))
    except (ValueError, jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as error:
        raise _Failed(f"the patch cannot be applied: {error}") from error
    return patched
