"""A `Kube` that writes down what is asked of it, in the words in which RBAC grants it, and passes it on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from coordinator.kube.interface import Kube, Object, Objects, PatchType, ResourceType, WatchEvent
from tests.kit.rbac import Request


@dataclass
class RecordingKube:
    """`requests` is everything that was asked for, whether it succeeded or not; `patches` are the merge patches."""

    kube: Kube
    requests: set[Request] = field(default_factory=set)
    patches: list[tuple[ResourceType, Object]] = field(default_factory=list)

    def list(
        self, resource: ResourceType, *, namespace: str | None = None, field_selector: str | None = None
    ) -> tuple[Objects, str]:
        self._record("list", resource, namespace)
        return self.kube.list(resource, namespace=namespace, field_selector=field_selector)

    def watch(self, resource: ResourceType, resource_version: str, *, timeout_s: float) -> Iterator[WatchEvent]:
        self._record("watch", resource, None)
        return self.kube.watch(resource, resource_version, timeout_s=timeout_s)

    def get(self, resource: ResourceType, name: str, *, namespace: str | None = None) -> Object:
        self._record("get", resource, namespace, name)
        return self.kube.get(resource, name, namespace=namespace)

    def create(self, resource: ResourceType, body: Object, *, namespace: str | None = None) -> Object:
        self._record("create", resource, namespace)  # RBAC does not see the name of what does not exist yet
        return self.kube.create(resource, body, namespace=namespace)

    def replace(self, resource: ResourceType, name: str, body: Object, *, namespace: str | None = None) -> Object:
        self._record("update", resource, namespace, name)
        return self.kube.replace(resource, name, body, namespace=namespace)

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
        self._record("patch", resource, namespace, name, subresource)
        if isinstance(body, Mapping) and patch_type is PatchType.MERGE:
            self.patches.append((resource, body))
        return self.kube.patch(
            resource, name, body, namespace=namespace, subresource=subresource, patch_type=patch_type
        )

    def delete(
        self, resource: ResourceType, name: str, *, namespace: str | None = None, uid: str = "", version: str = ""
    ) -> None:
        self._record("delete", resource, namespace, name)
        self.kube.delete(resource, name, namespace=namespace, uid=uid, version=version)

    def server_version(self) -> str:
        return self.kube.server_version()  # `/version` is open to everybody who is authenticated

    def _record(
        self, verb: str, resource: ResourceType, namespace: str | None, name: str = "", subresource: str | None = None
    ) -> None:
        kind = f"{resource.plural}/{subresource}" if subresource else resource.plural
        self.requests.add(Request(verb, resource.group, kind, namespace if resource.namespaced else None, name))
