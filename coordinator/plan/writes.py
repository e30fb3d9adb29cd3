"""One request to the API server, as a plan decides it: what `coordinator.control` sends, paces and answers for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from coordinator.kube.interface import Object
from coordinator.plan.announcements import Announcement
from coordinator.plan.ref import Ref


class Verb(Enum):
    CREATE = "create"
    PATCH = "patch"
    PATCH_STATUS = "patch status"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Write:
    """One request. `body` is a whole object or a merge patch that carries the resourceVersion it was made from.

    `material` False: progress only, may wait. `events` are sent once it has succeeded. `probe`: it is sent to see
    whether the API server keeps all of it, and its events only if it does. A deletion is of the `uid` and `version` of
    `ref`, where it has them. `unmounted`: it is not sent while a pod mounts the claim that `ref` names. `foreground`:
    what the object owns goes before it.
    """

    verb: Verb
    ref: Ref
    body: Object
    material: bool = True
    events: tuple[Announcement, ...] = ()
    probe: bool = False
    unmounted: bool = False
    foreground: bool = False


def patched(ref: Ref, metadata: Mapping[str, Any] | None = None, **parts: Any) -> Object:
    """The body of a merge patch that is refused once `ref` is no longer the latest version."""
    return {"metadata": {"resourceVersion": ref.version, **(metadata or {})}, **parts}
