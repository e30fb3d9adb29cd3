"""The kinds that the coordinator watches, each parsed once into the values that `plan` reads.

Five of them it cannot do without. Pods are watched only where an eviction policy is on: they are many, so their changes
wake nobody, and where they cannot be watched nothing is evicted and all else goes on. So with volumes and claims, of
which a cluster may have many more than ours. The services that use caches are KServe's kinds: they need not be served.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

from actors.schemes import Schemes
from coordinator.kube.informer import Informer
from coordinator.kube.interface import CLAIMS, NODES, PODS, VOLUMES, Kube, Object, ResourceType
from coordinator.plan.bindings import Claim, Volume, read_claim, read_volume
from coordinator.plan.pods import Pod
from coordinator.plan.reading import read_cache, read_local_node, read_namespace_cache, read_node, read_node_group
from coordinator.plan.services import INFERENCE_SERVICES, LLM_INFERENCE_SERVICES, Service, read_service
from coordinator.plan.snapshot import (
    CACHES,
    LOCAL_NODES,
    NAMESPACE_CACHES,
    NODE_GROUPS,
    Cache,
    LocalNode,
    Node,
    NodeGroup,
    Ref,
    Snapshot,
)
from coordinator.plan.storage_containers import (
    STORAGE_CONTAINERS,
    StorageContainer,
    read_storage_container,
    with_containers,
)

_log = logging.getLogger(__name__)

T_co = TypeVar("T_co", covariant=True)


class Observed(Protocol[T_co]):
    """One kind of object as an informer keeps it. `items` is by (namespace or None, name)."""

    @property
    def synced(self) -> bool: ...

    @property
    def failure(self) -> str | None: ...

    def items(self) -> Mapping[tuple[str | None, str], T_co]: ...

    def caught_up(self) -> bool: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def join(self, timeout_s: float) -> bool: ...


@dataclass(frozen=True, slots=True)
class Informers:
    """Everything that is watched."""

    caches: Observed[Cache]
    namespace_caches: Observed[Cache]
    groups: Observed[NodeGroup]
    nodes: Observed[Node]
    local_nodes: Observed[LocalNode]
    pods: Observed[Pod | None] | None = None
    services: tuple[Observed[Service | None], ...] = ()
    volumes: Observed[Volume] | None = None
    claims: Observed[Claim] | None = None
    storage_containers: Observed[StorageContainer | None] | None = None

    @classmethod
    def over(
        cls,
        kube: Kube,
        *,
        changed: Callable[[], None],
        poisoned: Callable[[Ref, Exception], None],
        restarted: Callable[[str], None] = lambda resource: None,
        read_pod: Callable[[Object], Pod | None] | None = None,
        schemes: Schemes | None = None,
        follows: bool = False,
    ) -> Informers:
        """One `Informer` per kind, not started. `poisoned` gets every object that has not even a name it can go by.

        `read_pod` None: pods are not watched. `schemes`: which a source may have; None: any. `follows`: what
        LocalModelNodes list is read, too (see `plan.node_tier`), and services, volumes and claims are not watched.
        """

        def informer(
            resource: ResourceType,
            parse: Callable[[Object], T_co],
            changed: Callable[[], None] = changed,
            *,
            optional: bool = False,
        ) -> Informer[T_co]:
            def report(found: Object, error: Exception) -> None:
                poisoned(_ref_of(resource, found), error)

            return Informer(
                kube,
                resource,
                parse,
                changed=changed,
                poisoned=report,
                restarted=partial(restarted, resource.plural),
                optional=optional,
            )

        return cls(
            caches=informer(CACHES, partial(read_cache, schemes=schemes)),
            namespace_caches=informer(NAMESPACE_CACHES, partial(read_namespace_cache, schemes=schemes)),
            groups=informer(NODE_GROUPS, read_node_group),
            nodes=informer(NODES, read_node),
            local_nodes=informer(
                LOCAL_NODES, partial(read_local_node, follows=schemes or Schemes()) if follows else read_local_node
            ),
            pods=informer(PODS, read_pod, lambda: None) if read_pod is not None else None,
            services=()
            if follows
            else (
                informer(INFERENCE_SERVICES, read_service, optional=True),
                informer(LLM_INFERENCE_SERVICES, partial(read_service, llm=True), optional=True),
            ),
            volumes=None if follows else informer(VOLUMES, read_volume, lambda: None),
            claims=None if follows else informer(CLAIMS, read_claim, lambda: None),
            storage_containers=informer(STORAGE_CONTAINERS, _read_storage_container, optional=True),
        )

    @property
    def kinds(self) -> tuple[Observed[object], ...]:
        return *self._needed, *self.services, *(kind for kind in self._beside if kind)

    @property
    def synced(self) -> bool:
        """Every kind that is needed was listed at least once: what is absent does not exist."""
        return all(kind.synced for kind in self._needed)

    def caught_up(self) -> bool:
        """Whether what says who should hold what is known as it is at this moment. Raises KubeError.

        LocalModelNodes are left out: they change all the time, and a write from an old one is refused.
        """
        return all(kind.caught_up() for kind in (self.caches, self.namespace_caches, self.groups, self.nodes))

    @property
    def _needed(self) -> tuple[Observed[object], ...]:
        return self.caches, self.namespace_caches, self.groups, self.nodes, self.local_nodes

    @property
    def _beside(self) -> tuple[Observed[object] | None, ...]:
        return self.pods, self.volumes, self.claims, self.storage_containers

    def see(self, snapshot: Snapshot) -> Snapshot:
        """The same with services, volumes and claims, each once it was listed, and as storage containers have it."""
        containers = self.storage_containers.items().values() if self.storage_containers else ()
        snapshot = with_containers(snapshot, (each for each in containers if each is not None))
        services = None
        if self.services and all(kind.synced for kind in self.services):
            services = [each for kind in self.services for each in kind.items().values() if each is not None]
        volumes, claims = self.volumes, self.claims
        return replace(
            snapshot,
            services=services,
            volumes={name: each for (_, name), each in volumes.items().items()} if volumes and volumes.synced else None,
            claims={each.key: each for each in claims.items().values()} if claims and claims.synced else None,
        )

    @property
    def failures(self) -> tuple[str, ...]:
        """Why some kinds cannot be kept current at this moment."""
        return tuple(dict.fromkeys(kind.failure for kind in self.kinds if kind.failure))

    def start(self) -> None:
        for kind in self.kinds:
            kind.start()

    def stop(self, timeout_s: float = 0.0) -> None:
        """Asks all to end, and waits for each up to `timeout_s`."""
        for kind in self.kinds:
            kind.stop()
        for kind in self.kinds:
            kind.join(timeout_s)


def _read_storage_container(raw: Object) -> StorageContainer | None:
    """Says, once for each version of it, what of it means nothing here."""
    found = read_storage_container(raw)
    if found is not None and found.unheeded:
        fields = {"object": found.name, "fields": list(found.unheeded)}
        _log.warning("part of a ClusterStorageContainer changes nothing: there are no download Jobs", extra=fields)
    return found


def _ref_of(resource: ResourceType, found: Object) -> Ref:
    metadata = found.get("metadata")
    known = metadata if isinstance(metadata, Mapping) else {}
    name, namespace, uid = (str(known.get(field) or "") for field in ("name", "namespace", "uid"))
    return Ref(resource, name, namespace or None, uid)
