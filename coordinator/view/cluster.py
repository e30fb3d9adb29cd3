"""The objects that a person asks about, as values: read with the same readers as the coordinator's snapshot.

A kind that may not be listed is absent, and `notes` says so: whoever may see the caches of one namespace gets an answer
about these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from actors.messages import NodeName
from coordinator.api.resources import StatusKey
from coordinator.kube.interface import NODES, Object, ResourceType
from coordinator.plan import written
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
)

KINDS = (CACHES, NAMESPACE_CACHES, LOCAL_NODES, NODE_GROUPS, NODES)
"""What is listed for an answer."""

Detail = Mapping[str, Any]
"""One entry of `LocalModelNode.status.models`, junk left out."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ClusterView:
    """`nodes` None: they may not be listed. `not_ready` has the message of the Ready condition of nodes without it.

    `copies` has what each node says of each cache, by cache: from `local_nodes`, once for all questions.
    `at` is when the objects were read, in epoch seconds by the clock here.
    """

    caches: Mapping[StatusKey, Cache] = field(default_factory=dict)
    local_nodes: Mapping[NodeName, LocalNode] = field(default_factory=dict)
    groups: Mapping[str, NodeGroup] = field(default_factory=dict)
    nodes: Mapping[NodeName, Node] | None = None
    not_ready: Mapping[NodeName, str] = field(default_factory=dict)
    copies: Mapping[StatusKey, Mapping[NodeName, Detail]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    at: float = 0.0

    def details(self, key: StatusKey) -> Mapping[NodeName, Detail]:
        """What each node says of one cache."""
        return self.copies.get(key, {})


def read_view(objects: Mapping[ResourceType, Sequence[Object]], at: float, notes: Iterable[str] = ()) -> ClusterView:
    """`objects` by kind; a kind that is missing could not be listed."""
    caches = [*_read(objects.get(CACHES), read_cache), *_read(objects.get(NAMESPACE_CACHES), read_namespace_cache)]
    raw_nodes = objects.get(NODES)
    local_nodes = {NodeName(each.ref.name): each for each in _read(objects.get(LOCAL_NODES), read_local_node)}
    nodes = None if raw_nodes is None else {node.name: node for node in _read(raw_nodes, read_node)}
    return ClusterView(
        caches={cache.key: cache for cache in caches},
        local_nodes=local_nodes,
        copies=_copies(local_nodes),
        groups={each.ref.name: each for each in _read(objects.get(NODE_GROUPS), read_node_group)},
        nodes=nodes,
        not_ready=_not_ready(raw_nodes or ()),
        notes=tuple(notes),
        at=at,
    )


def condition(cache: Cache, kind: str) -> Mapping[str, Any]:
    """The condition of this type as it stands in the object; {} if there is none."""
    return next((each for each in cache.status.get("conditions") or () if each.get("type") == kind), {})


def _read(raw: Sequence[Object] | None, reader: Callable[[Object], T]) -> list[T]:
    found = []
    for each in raw or ():
        try:
            found.append(reader(each))
        except ValueError:  # without a name: nobody can ask about it
            continue
    return found


def _copies(local_nodes: Mapping[NodeName, LocalNode]) -> dict[StatusKey, dict[NodeName, Detail]]:
    found: dict[StatusKey, dict[NodeName, Detail]] = {}
    for name, local in local_nodes.items():
        for detail in local.status.get("models") or ():
            found.setdefault(detail["name"], {})[name] = detail
    return found


def _not_ready(raw: Iterable[Object]) -> dict[NodeName, str]:
    found: dict[NodeName, str] = {}
    for each in raw:
        metadata, status = each.get("metadata"), each.get("status")
        name = metadata.get("name") if isinstance(metadata, Mapping) else None
        conditions = written.CONDITIONS(status.get("conditions")) if isinstance(status, Mapping) else None
        ready = next((one for one in conditions or () if one.get("type") == "Ready"), None)
        if isinstance(name, str) and (ready is None or ready.get("status") != "True"):
            found[NodeName(name)] = (ready or {}).get("message") or "it has no message"
    return found
