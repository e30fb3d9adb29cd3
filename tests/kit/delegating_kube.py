"""A `Kube` whose calls all pass through one place, where a test counts, loses, refuses or answers them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from coordinator.kube.interface import Kube, Object, Objects, PatchType, ResourceType, WatchEvent


@dataclass(frozen=True, slots=True)
class Call:
    """One call: `verb` as RBAC names it, what it is about, and `pass_on` to have it answered by the `Kube` behind."""

    verb: str
    resource: ResourceType
    pass_on: Callable[[], Any]
    namespace: str | None = None
    name: str = ""
    body: Object | Sequence[Object] | None = None
    subresource: str | None = None
    patch_type: PatchType | None = None
    field_selector: str | None = None


class DelegatingKube:
    """Passes on to `kube`. A subclass overrides `through`; the version of the server does not go through it."""

    def __init__(self, kube: Kube) -> None:
        self.kube = kube

    def through(self, call: Call) -> Any:
        """The answer to the caller; may raise KubeError."""
        return call.pass_on()

    def list(
        self, resource: ResourceType, *, namespace: str | None = None, field_selector: str | None = None
    ) -> tuple[Objects, str]:
        def pass_on() -> tuple[Objects, str]:
            return self.kube.list(resource, namespace=namespace, field_selector=field_selector)

        call = Call("list", resource, pass_on, namespace, field_selector=field_selector)
        return cast(tuple[Objects, str], self.through(call))

    def watch(self, resource: ResourceType, resource_version: str, *, timeout_s: float) -> Iterator[WatchEvent]:
        def pass_on() -> Iterator[WatchEvent]:
            return self.kube.watch(resource, resource_version, timeout_s=timeout_s)

        return cast(Iterator[WatchEvent], self.through(Call("watch", resource, pass_on)))

    def get(self, resource: ResourceType, name: str, *, namespace: str | None = None) -> Object:
        def pass_on() -> Object:
            return self.kube.get(resource, name, namespace=namespace)

        return cast(Object, self.through(Call("get", resource, pass_on, namespace, name)))

    def create(self, resource: ResourceType, body: Object, *, namespace: str | None = None) -> Object:
        def pass_on() -> Object:
            return self.kube.create(resource, body, namespace=namespace)

        name = body.get("metadata", {}).get("name", "")
        return cast(Object, self.through(Call("create", resource, pass_on, namespace, name, body)))

    def replace(self, resource: ResourceType, name: str, body: Object, *, namespace: str | None = None) -> Object:
        def pass_on() -> Object:
            return self.kube.replace(resource, name, body, namespace=namespace)

        return cast(Object, self.through(Call("update", resource, pass_on, namespace, name, body)))

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
        def pass_on() -> Object:
            return self.kube.patch(
                resource, name, body, namespace=namespace, subresource=subresource, patch_type=patch_type
            )

        return cast(
            Object, self.through(Call("patch", resource, pass_on, namespace, name, body, subresource, patch_type))
        )

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
        def pass_on() -> None:
            self.kube.delete(resource, name, namespace=namespace, uid=uid, version=version, foreground=foreground)

        self.through(Call("delete", resource, pass_on, namespace, name))

    def server_version(self) -> str:
        return self.kube.server_version()
