"""Reading collections: pages of a list at one resourceVersion, and the stream of what happens after it."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from coordinator.dev.apiserver import errors, requests, selectors
from coordinator.dev.apiserver.errors import Object
from coordinator.dev.apiserver.kinds import Kind
from coordinator.dev.apiserver.registry import as_version
from coordinator.dev.apiserver.selectors import Predicate
from coordinator.dev.apiserver.storage import Change, Storage

WATCH_S = 1800.0
"""How long a watch lasts that names no timeout."""

Event = tuple[str, Object]
"""ADDED, MODIFIED, DELETED, BOOKMARK or ERROR, and its object."""


@dataclass(frozen=True, slots=True)
class Page:
    """`version` is that of the whole list; `next_token` "" on the last page."""

    items: list[Object]
    version: int
    next_token: str = ""
    remaining: int = 0


def selection(kind: Kind, query: Mapping[str, str]) -> Predicate:
    labels = selectors.label_selector(query.get("labelSelector", ""))
    fields = selectors.field_selector(query.get("fieldSelector", ""), kind.selectable)
    return lambda value: labels(value) and fields(value)


def page(storage: Storage, kind: Kind, namespace: str, query: Mapping[str, str]) -> Page:
    """Raises StatusError 400, 410, 422 or 504."""
    requests.check_list_options(query)
    chosen = selection(kind, query)
    wanted = requests.version_number(query.get("resourceVersion"))
    requests.number(query, "timeoutSeconds")
    limit = max(0, requests.number(query, "limit") or 0)
    start: tuple[str, str] | None = None
    if query.get("continue"):
        wanted, start = _read_token(query["continue"])
    elif query.get("resourceVersionMatch") != "Exact":
        if wanted > storage.version:
            raise errors.too_large_resource_version(wanted, storage.version)
        wanted = storage.version
    if wanted > storage.version:
        raise errors.too_large_resource_version(wanted, storage.version)
    found = (
        storage.all(kind.resource, namespace)
        if wanted == storage.version
        else storage.all_at(kind.resource, namespace, wanted)
    )
    items = [as_version(kind, each) for each in found if (start is None or _place(each) >= start) and chosen(each)]
    if not limit or len(items) <= limit:
        return Page(items, wanted)
    return Page(items[:limit], wanted, _token(wanted, _place(items[limit])), len(items) - limit)


@dataclass(frozen=True, slots=True)
class Watch:
    """What a watch asks for. `start` 0: begin with what there is. Raises StatusError 400 or 422 when made."""

    chosen: Predicate
    start: int
    bookmarks: bool
    initial: bool
    timeout_s: float

    @classmethod
    def of(cls, kind: Kind, query: Mapping[str, str]) -> Watch:
        requests.check_list_options(query)
        timeout_s = requests.number(query, "timeoutSeconds")
        return cls(
            chosen=selection(kind, query),
            start=requests.version_number(query.get("resourceVersion")),
            bookmarks=requests.flag(query, "allowWatchBookmarks"),
            initial=requests.flag(query, "sendInitialEvents"),
            timeout_s=float(timeout_s) if timeout_s is not None and timeout_s >= 0 else WATCH_S,
        )


async def watch(
    storage: Storage, kind: Kind, namespace: str, wanted: Watch, *, bookmark_s: float, alive: Callable[[], bool]
) -> AsyncIterator[Event]:
    """Every event after `wanted.start`, until its timeout or until nobody is `alive` to read.

    Looks up at every write and every `bookmark_s`. Ends with ERROR 410 if it fell further behind than the history.
    """
    version = wanted.start
    if version == 0 or wanted.initial:
        version = storage.version
        for each in storage.all(kind.resource, namespace):
            if wanted.chosen(each):
                yield "ADDED", as_version(kind, each)
        if wanted.initial:
            yield "BOOKMARK", bookmark(kind, version, initial_end=True)
    clock = asyncio.get_running_loop().time
    deadline, next_bookmark = clock() + wanted.timeout_s, clock() + bookmark_s
    while alive() and clock() < deadline:
        try:
            changes = storage.changes_since(version)
        except errors.StatusError as error:
            yield "ERROR", error.status
            return
        for change in changes:
            version = change.version
            event = seen(change, kind, namespace, wanted.chosen)
            if event is not None:
                yield event
        if clock() >= next_bookmark:
            next_bookmark = clock() + bookmark_s
            if wanted.bookmarks:
                yield "BOOKMARK", bookmark(kind, version)
        if version >= storage.version:
            await storage.changed(max(0.0, min(next_bookmark, deadline) - clock()))


def seen(change: Change, kind: Kind, namespace: str, chosen: Callable[[Object], bool]) -> Event | None:
    """What a watcher with this selection sees of a change: objects come and go as they match."""
    if change.resource != kind.resource or (namespace and change.key[0] != namespace):
        return None
    before = change.before is not None and chosen(change.before)
    after = change.after is not None and chosen(change.after)
    if not before and not after:
        return None
    if before and not after:
        gone = {**(change.before or {}), "metadata": {**(change.before or change.last)["metadata"]}}
        gone["metadata"]["resourceVersion"] = str(change.version)
        return "DELETED", as_version(kind, gone)
    return ("MODIFIED" if before else "ADDED"), as_version(kind, change.last)


def bookmark(kind: Kind, version: int, *, initial_end: bool = False) -> Object:
    meta: Object = {"resourceVersion": str(version), "creationTimestamp": None}
    if initial_end:
        meta["annotations"] = {"k8s.io/initial-events-end": "true"}
    return {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": meta}


def _place(value: Object) -> tuple[str, str]:
    return value["metadata"].get("namespace", ""), value["metadata"]["name"]


def _token(version: int, start: tuple[str, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps([version, *start]).encode()).decode()


def _read_token(token: str) -> tuple[int, tuple[str, str]]:
    try:
        version, namespace, name = json.loads(base64.urlsafe_b64decode(token))
        return int(version), (str(namespace), str(name))
    except (ValueError, TypeError) as error:
        raise errors.bad_request(f"invalid continue token: continue key is not valid: {error}") from error
