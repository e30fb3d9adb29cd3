"""Jobs that import models into claims, and the PodTemplate that they are made from, as they are found. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from coordinator.kube.interface import Object, ResourceType
from coordinator.kube.parts import list_of, mapping_of
from coordinator.plan.bindings import ClaimName
from coordinator.plan.ref import Ref

JOBS = ResourceType("batch", "v1", "jobs", "Job", namespaced=True)
POD_TEMPLATES = ResourceType("", "v1", "podtemplates", "PodTemplate", namespaced=True)
TEMPLATE = "localmodel-import"
"""The PodTemplate in the coordinator's namespace; without it nothing is imported."""
CONTAINER = "import"


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A Job as it is found. `owner` is the uid of its controller; `finished` None: it is still at work."""

    ref: Ref
    owner: str
    annotations: Mapping[str, str]
    finished: bool | None
    ready: int
    message: str
    deleting: bool


@dataclass(frozen=True, slots=True)
class Imports:
    """The operator's template for imports, None without one, and the Jobs by namespace and name.

    `final` are the names that were looked for after the deletion of their cache was known: nobody makes these any more.
    """

    template: Mapping[str, Any] | None = None
    jobs: Mapping[ClaimName, Job] = field(default_factory=dict)
    final: frozenset[ClaimName] = frozenset()


def read_job(raw: Object) -> Job:
    metadata, status = mapping_of(raw.get("metadata")), mapping_of(raw.get("status"))
    owners = [mapping_of(each) for each in list_of(metadata.get("ownerReferences"))]
    ended = [each for each in map(mapping_of, list_of(status.get("conditions"))) if each.get("status") == "True"]
    by_type = {str(each.get("type")): each for each in ended}
    failed = by_type.get("Failed", {})
    ready = status.get("ready")
    names = ("name", "namespace", "uid", "resourceVersion")
    name, namespace, uid, version = (str(metadata.get(each) or "") for each in names)
    return Job(
        ref=Ref(JOBS, name, namespace, uid, version),
        owner=next((str(owner.get("uid") or "") for owner in owners if owner.get("controller") is True), ""),
        annotations={k: v for k, v in mapping_of(metadata.get("annotations")).items() if isinstance(v, str)},
        finished=True if "Complete" in by_type else False if "Failed" in by_type else None,
        ready=ready if isinstance(ready, int) else 0,
        message=str(failed.get("message") or failed.get("reason") or ""),
        deleting=metadata.get("deletionTimestamp") is not None,
    )


def read_template(raw: Object | None) -> Mapping[str, Any] | None:
    """The pod that a PodTemplate describes; None where it has no container of the right name."""
    template = mapping_of((raw or {}).get("template"))
    containers = map(mapping_of, list_of(mapping_of(template.get("spec")).get("containers")))
    return template if any(each.get("name") == CONTAINER and each.get("image") for each in containers) else None
