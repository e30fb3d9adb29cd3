"""A `Kube` that writes down what is asked of it, in the words in which RBAC grants it, and passes it on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coordinator.kube.interface import Kube, Object, PatchType, ResourceType
from tests.kit.delegating_kube import Call, DelegatingKube
from tests.kit.rbac import Request


class RecordingKube(DelegatingKube):
    """`requests` is everything that was asked for, whether it succeeded or not; `patches` are the merge patches.

    `/version` is not among them: it is open to everybody who is authenticated.
    """

    def __init__(self, kube: Kube) -> None:
        super().__init__(kube)
        self.requests: set[Request] = set()
        self.patches: list[tuple[ResourceType, Object]] = []

    def through(self, call: Call) -> Any:
        kind = f"{call.resource.plural}/{call.subresource}" if call.subresource else call.resource.plural
        namespace = call.namespace if call.resource.namespaced else None
        name = "" if call.verb == "create" else call.name  # RBAC does not see the name of what does not exist yet
        self.requests.add(Request(call.verb, call.resource.group, kind, namespace, name))
        if isinstance(call.body, Mapping) and call.patch_type is PatchType.MERGE:
            self.patches.append((call.resource, call.body))
        return super().through(call)
