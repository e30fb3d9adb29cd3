"""The kinds that the coordinator watches, each parsed once into the values that `plan` reads.

Five of them it cannot do without. Pods are watched only where an eviction policy is on: they are many, so their changes
wake nobody, and where they cannot be watched nothing is evicted and all else goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from actors.schemes import Schemes
from coordinator.kube.informer import Informer
from coordinator.kube.interface import NODES, PODS, Kube, Object, ResourceType
from coordinator.plan.pods import Pod
from coordinator.plan.reading import read_cache, read_local_node, read_namespace_cache, read_node, read_node_group
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
)

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
    ) -> Informers:
        """One `Informer` per kind, not started. `poisoned` gets every object that has not even a name it can go by.

        `read_pod` None: pods are not watched. `schemes`: which a source may have; None: any.
        """

        def informer(
            resource: ResourceType, parse: Callable[[Object], T_co], changed: Callable[[], None] = changed
        ) -> Informer[T_co]:
            def report(found: Object, error: Exception) -> None:
                poisoned(_ref_of(resource, found), error)

            return Informer(
                kube, resource, parse, changed=changed, poisoned=report, restarted=partial(restarted, resource.plural)
            )

        return cls(
            caches=informer(CACHES, partial(read_cache, schemes=schemes)),
            namespace_caches=informer(NAMESPACE_CACHES, partial(read_namespace_cache, schemes=schemes)),
            groups=informer(NODE_GROUPS, read_node_group),
            nodes=informer(NODES, read_node),
            local_nodes=informer(LOCAL_NODES, read_local_node),
            pods=informer(PODS, read_pod, lambda: None) if read_pod is not None else None,
        )

    @property
    def kinds(self) -> tuple[Observed[object], ...]:
        return *self._needed, *((self.pods,) if self.pods is not None else ())

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


def _ref_of(resource: ResourceType, found: Object) -> Ref:
    metadata = found.get("metadata")
    known = metadata if isinstance(metadata, Mapping) else {}
    name, namespace, uid = (str(known.get(field) or "") for field in ("name", "namespace", "uid"))
    return Ref(resource, name, namespace or None, uid)
