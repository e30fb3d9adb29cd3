"""An object as a write and an Event name it."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.kube.interface import ResourceType


@dataclass(frozen=True, slots=True)
class Ref:
    """`uid` and `version` (resourceVersion) are those that were last seen; "" where it is not there yet."""

    resource: ResourceType
    name: str
    namespace: str | None = None
    uid: str = ""
    version: str = ""
