"""An API server in memory: `Kube` as `test_kube_client_contract.py` demands it, plus faults on request."""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import jsonpatch

from coordinator.kube.interface import (
    Conflict,
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

WITH_STATUS = frozenset({"localmodelcaches", "localmodelnamespacecaches", "localmodelnodes", "nodes"})

Id = tuple[str, str, str]
"""(plural.group, namespace or "", name)"""


class FakeKube:
    """`failing` set: every call raises it. `writes` is every write that was asked for, as (verb, plural, name)."""

    def __init__(self, *, now: Callable[[], str] = lambda: "2026-01-01T00:00:00Z") -> None:
        self.failing: KubeError | None = None
        self.writes: list[tuple[str, str, str]] = []
        self._now = now
        self._objects: dict[Id, dict[str, Any]] = {}
        self._history: list[tuple[int, str, EventType, dict[str, Any]]] = []
        self._versions = itertools.count(1)
        self._version = 0
        self._oldest = 0
        self._closed = False
        self._changed = threading.Condition()

    # faults

    def fail(self, error: KubeError | None) -> None:
        """From now on every call, and every watch under way, raises `error`; None: healthy again."""
        with self._changed:
            self.failing = error
            self._changed.notify_all()

    def compact(self) -> None:
        """Older versions are forgotten: watching from them is Gone."""
        with self._changed:
            self._history.clear()
            self._oldest = self._version
            self._changed.notify_all()

    def erase(self) -> None:
        """The server lost its data and says so to nobody."""
        with self._changed:
            self._objects.clear()
            self._history.clear()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # Kube

    def list(
        self, resource: ResourceType, *, namespace: str | None = None, field_selector: str | None = None
    ) -> tuple[Objects, str]:
        with self._changed:
            self._check()
            key = _kind(resource)
            found = [o for (kind, ns, _), o in self._objects.items() if kind == key and namespace in (None, ns)]
            if field_selector:
                field, _, value = field_selector.partition("=")
                if field not in ("metadata.name", "metadata.namespace"):
                    raise Invalid(f"field label not supported: {field}", status=400)
                found = [o for o in found if o["metadata"].get(field.removeprefix("metadata.")) == value]
            return [deepcopy(o) for o in found], str(self._version)

    def watch(self, resource: ResourceType, resource_version: str, *, timeout_s: float) -> Iterator[WatchEvent]:
        seen, key, deadline = int(resource_version or 0), _kind(resource), time.monotonic() + timeout_s
        while True:
            with self._changed:
                self._check()
                if seen < self._oldest:
                    raise Gone("too old resource version", status=410)
                news = [entry for entry in self._history if entry[0] > seen]
                left_s = deadline - time.monotonic()
                if not news:
                    if left_s <= 0:
                        break
                    self._changed.wait(left_s)
                    continue
            for version, kind, event, found in news:
                seen = version
                if kind == key:
                    yield WatchEvent(event, deepcopy(found))
        bookmark = {"apiVersion": resource.api_version, "kind": resource.kind}
        yield WatchEvent(EventType.BOOKMARK, {**bookmark, "metadata": {"resourceVersion": str(seen)}})

    def get(self, resource: ResourceType, name: str, *, namespace: str | None = None) -> Object:
        with self._changed:
            self._check()
            return deepcopy(self._find(resource, namespace, name))

    def create(self, resource: ResourceType, body: Object, *, namespace: str | None = None) -> Object:
        with self._changed:
            metadata = dict(body.get("metadata") or {})
            name = metadata.get("name", "")
            self._write("create", resource, name)
            if not name:
                raise Invalid("metadata.name: Required value: name or generateName is required", status=422)
            if self._id(resource, namespace, name) in self._objects:
                raise Conflict(f'{resource.plural} "{name}" already exists', status=409)
            metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": self._now(), "generation": 1}
            if namespace is not None and resource.namespaced:
                metadata["namespace"] = namespace
            created = {**deepcopy(dict(body)), "metadata": metadata}
            created |= {"apiVersion": resource.api_version, "kind": resource.kind}
            if resource.plural in WITH_STATUS and resource.plural != "nodes":
                created.pop("status", None)
            return self._store(resource, created, EventType.ADDED)

    def replace(self, resource: ResourceType, name: str, body: Object, *, namespace: str | None = None) -> Object:
        with self._changed:
            self._write("update", resource, name)
            return self._update(resource, namespace, name, deepcopy(dict(body)), None)

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
        with self._changed:
            self._write(f"patch {subresource}" if subresource else "patch", resource, name)
            if subresource not in (None, "status") or (subresource and resource.plural not in WITH_STATUS):
                raise NotFound("the server could not find the requested resource", status=404)
            before = self._find(resource, namespace, name)
            if patch_type is PatchType.JSON and not isinstance(body, Mapping):
                try:
                    after = jsonpatch.apply_patch(before, body)
                except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as error:
                    raise Invalid(str(error), status=422) from error
            elif isinstance(body, Mapping):
                after = merge(before, body)
            else:
                raise Invalid("a merge patch is an object, a JSON patch a list", status=400)
            return self._update(resource, namespace, name, after, subresource)

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
        with self._changed:
            self._write("delete", resource, name)
            found = self._find(resource, namespace, name)
            metadata = found["metadata"]
            if uid not in ("", metadata["uid"]) or version not in ("", metadata["resourceVersion"]):
                raise Conflict(f'{resource.plural} "{name}": precondition failed', status=409)
            if not found["metadata"].get("finalizers"):
                self._remove(resource, found)
            elif not found["metadata"].get("deletionTimestamp"):
                found = deepcopy(found)
                found["metadata"] |= {"deletionTimestamp": self._now(), "deletionGracePeriodSeconds": 0}
                self._store(resource, found, EventType.MODIFIED)

    def server_version(self) -> str:
        with self._changed:
            self._check()
            return "v0.0.0-fake"

    # inside, with the lock held

    def _check(self) -> None:
        if self._closed:
            raise Unreachable("closed")
        if self.failing is not None:
            raise self.failing

    def _write(self, verb: str, resource: ResourceType, name: str) -> None:
        self.writes.append((verb, resource.plural, name))
        self._check()

    def _find(self, resource: ResourceType, namespace: str | None, name: str) -> dict[str, Any]:
        found = self._objects.get(self._id(resource, namespace, name))
        if found is None:
            raise NotFound(f'{resource.plural} "{name}" not found', status=404)
        return found

    @staticmethod
    def _id(resource: ResourceType, namespace: str | None, name: str) -> Id:
        return _kind(resource), (namespace or "") if resource.namespaced else "", name

    def _update(
        self, resource: ResourceType, namespace: str | None, name: str, after: dict[str, Any], subresource: str | None
    ) -> Object:
        before = self._find(resource, namespace, name)
        old, new = before["metadata"], dict(after.get("metadata") or {})
        if new.get("resourceVersion") not in (None, "", old["resourceVersion"]):
            raise Conflict(f'{resource.plural} "{name}": the object has been modified', status=409)
        kept = ("uid", "creationTimestamp", "generation", "deletionTimestamp", "resourceVersion", "name", "namespace")
        new = {key: value for key, value in new.items() if key not in kept}
        after["metadata"] = new | {key: old[key] for key in kept if key in old}
        if subresource == "status":
            after = {**before, **({"status": after["status"]} if "status" in after else {})}
        elif resource.plural in WITH_STATUS:
            after.pop("status", None)
            after |= {"status": before["status"]} if "status" in before else {}
        if after == before:
            return deepcopy(before)
        if after.get("spec") != before.get("spec"):
            after["metadata"]["generation"] = old.get("generation", 1) + 1
        if old.get("deletionTimestamp") and not after["metadata"].get("finalizers"):
            return self._remove(resource, after)
        return self._store(resource, after, EventType.MODIFIED)

    def _store(self, resource: ResourceType, found: dict[str, Any], event: EventType) -> Object:
        metadata = found["metadata"]
        self._objects[self._id(resource, metadata.get("namespace"), metadata["name"])] = found
        return self._record(resource, found, event)

    def _remove(self, resource: ResourceType, found: dict[str, Any]) -> Object:
        metadata = found["metadata"]
        del self._objects[self._id(resource, metadata.get("namespace"), metadata["name"])]
        return self._record(resource, deepcopy(found), EventType.DELETED)

    def _record(self, resource: ResourceType, found: dict[str, Any], event: EventType) -> Object:
        self._version = next(self._versions)
        found["metadata"] = {**found["metadata"], "resourceVersion": str(self._version)}
        self._history.append((self._version, _kind(resource), event, deepcopy(found)))
        self._changed.notify_all()
        return deepcopy(found)


def merge(target: object, patch: object) -> Any:
    """RFC 7386."""
    if not isinstance(patch, Mapping):
        return deepcopy(patch)
    merged = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def names(objects: Iterable[Object]) -> list[str]:
    return sorted(found["metadata"]["name"] for found in objects)


def _kind(resource: ResourceType) -> str:
    return f"{resource.plural}.{resource.group}"
