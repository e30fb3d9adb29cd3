"""The placement of copies: nodes into groups, caches onto nodes.

A node is a member of a group iff the node selector of the group's PersistentVolume matches it; a cache belongs on every
member of every group it names. Nodes with the same groups share one `Placement`, so the work grows with the number of
different combinations and not with the number of nodes.

A group that is missing or unusable, and a cache whose spec cannot be read, say nothing about membership. Their copies
are *held*: they stay on the nodes whose LocalModelNode already lists them and go nowhere else, because deleting a node
group by mistake must not empty disks. A copy that is an orphan (see `orphans`) is held as well, as it is: it is
counted, served to others, and never fetched. One that somebody no longer wants is *leaving*: its line in the
LocalModelNode stays until it has gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from operator import attrgetter
from typing import Any

from actors.manifest import ModelSource, StorageKey, storage_key
from actors.messages import DesiredRoot, ModelReport, NodeName
from coordinator.api.resources import StatusKey
from coordinator.fleet.interface import AgentView
from coordinator.kube.node_selector import NodeSelector
from coordinator.plan.held import Held, held_copies
from coordinator.plan.held import status_roots as status_roots
from coordinator.plan.kserve_config import KServeConfig
from coordinator.plan.limits import enforces
from coordinator.plan.memory import Memory
from coordinator.plan.node_tier import Orders, orders_on
from coordinator.plan.orphans import lists_others
from coordinator.plan.slots import Placed, entry_of, owner_of, slot_of
from coordinator.plan.slots import Slot as Slot
from coordinator.plan.slots import audience as audience
from coordinator.plan.slots import expected_digest as expected_digest
from coordinator.plan.slots import priority as priority
from coordinator.plan.snapshot import Cache, LocalNode, Node, NodeGroup, Resolution, Snapshot

_KEY = attrgetter("key")


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Everything a node with these groups should hold, the oldest cache first.

    `held`: what else stays there, or leaves; `orders`: as in `node_tier`. `leaving` are the models that are there and
    that nobody wants there. `entries` lists them too. `retried`: somebody asks for another try of one. `deciding`: the
    caches that decide what is in a folder.
    """

    groups: tuple[str, ...]
    roots: tuple[DesiredRoot, ...]
    slots: tuple[Slot, ...]
    keys: frozenset[StorageKey]
    names: frozenset[StatusKey] = frozenset()
    entries: list[Mapping[str, Any]] = field(default_factory=list)
    leaving: frozenset[StorageKey] = frozenset()
    held: tuple[Held, ...] = ()
    orders: Orders | None = None
    retried: bool = False
    deciding: frozenset[StatusKey] = frozenset()

    @property
    def of(self) -> tuple[object, ...]:
        """The same for all nodes that share it, whatever their caches are at the moment."""
        return self.groups, self.held, self.orders


@dataclass(frozen=True, slots=True)
class Members:
    """`groups` names the members of every usable group; `placements` has an entry for each node that is in any.

    `by_placement` has the same nodes by the placement that they share. `duplicates` maps a cluster cache to the older
    cluster cache of the same URI.
    """

    groups: Mapping[str, tuple[NodeName, ...]]
    placements: Mapping[NodeName, Placement]
    duplicates: Mapping[StatusKey, Cache]
    by_placement: Mapping[Placement, Sequence[NodeName]] = field(default_factory=dict)

    def wanting(self, caches: Iterable[Cache]) -> list[NodeName]:
        """The nodes that should hold what these caches ask for, in the order of `placements`."""
        where = self.where_wanted(caches)
        return [name for name, placement in self.placements.items() if placement in where]

    def where_wanted(self, caches: Iterable[Cache]) -> frozenset[Placement]:
        """The placements in which these caches decide what is to be there."""
        keys = {cache.key for cache in caches}
        return frozenset(placement for placement in self.by_placement if not keys.isdisjoint(placement.deciding))

    def nodes_of(self, placements: Iterable[Placement]) -> list[NodeName]:
        return [name for placement in placements for name in self.by_placement[placement]]


def place(snapshot: Snapshot, memory: Memory | None = None) -> Members:
    """Every cache that is not being deleted, on every node that should hold it."""
    memory = memory or Memory()
    world = _without_nodes(snapshot, memory)
    caches = memory.call("by age", _by_age, world)
    selectors = memory.call("selectors", _selectors, world.groups)
    by_key = memory.call("by key", _by_key, world)
    groups: dict[str, list[NodeName]] = {name: [] for name, group in world.groups.items() if group.problem is None}
    placements: dict[NodeName, Placement] = {}
    by_placement: dict[Placement, list[NodeName]] = {}
    shared: dict[tuple[tuple[str, ...], tuple[Held, ...], Orders | None], Placement] = {}

    def placement_of(
        member_of: tuple[str, ...], held: tuple[Held, ...] = (), orders: Orders | None = None
    ) -> Placement:
        key = member_of, held, orders
        if key not in shared:
            shared[key] = memory.following(("placement", *key), partial(_placement, *key), world, caches)
        return shared[key]

    for name, node in snapshot.nodes.items():
        member_of = memory.call(("groups of", name), _groups_of, node, selectors)
        for group in member_of:
            groups[group].append(name)
        if snapshot.follows:
            if member_of or name in snapshot.local_nodes:
                placements[name] = placement = placement_of(member_of, (), orders_on(snapshot, name, member_of))
                by_placement.setdefault(placement, []).append(name)
            continue
        placement = placement_of(member_of)
        held: tuple[Held, ...] = ()
        local, view = snapshot.local_nodes.get(name), snapshot.agents.get(name)
        models = view.report.models if view is not None and view.report is not None else ()
        if memory.call(("more", name), _may_hold_more, local, models, placement):
            held = memory.call(("held", name), _held_on, world, node, local, view, placement, by_key)
            placement = placement_of(member_of, held) if held else placement
        if member_of or held:
            placements[name] = placement
            by_placement.setdefault(placement, []).append(name)
    members = {name: tuple(nodes) for name, nodes in groups.items()}
    return Members(members, placements, memory.call("duplicates", _duplicates, caches), by_placement)


def _without_nodes(snapshot: Snapshot, memory: Memory) -> Snapshot:
    """All that placements are made from: one object while it is the same."""
    return memory.call(
        "without nodes",
        _world_of,
        memory.alike("caches", snapshot.caches),
        memory.alike("groups", snapshot.groups),
        memory.alike("resolutions", snapshot.resolutions),
        memory.same("storage limit", snapshot.storage_limit),
        memory.same("kserve", snapshot.kserve),
        snapshot.follows,
    )


def _world_of(
    caches: Mapping[StatusKey, Cache],
    groups: Mapping[str, NodeGroup],
    resolutions: Mapping[StatusKey, Resolution],
    storage_limit: str,
    kserve: KServeConfig,
    follows: bool,
) -> Snapshot:
    return Snapshot(
        owner="",
        caches=caches,
        groups=groups,
        resolutions=resolutions,
        storage_limit=storage_limit,
        kserve=kserve,
        follows=follows,
    )


def _by_age(world: Snapshot) -> list[Cache]:
    return sorted((cache for cache in world.caches.values() if cache.deleted_at is None), key=lambda c: c.age_order)


def _by_key(world: Snapshot) -> dict[StorageKey, list[Cache]]:
    found: dict[StorageKey, list[Cache]] = {}
    for cache in sorted(world.caches.values(), key=lambda c: c.age_order):
        found.setdefault(cache.storage_key, []).append(cache)
    return found


def _selectors(groups: Mapping[str, NodeGroup]) -> list[tuple[str, NodeSelector]]:
    usable = sorted(name for name, group in groups.items() if group.problem is None)
    return [(name, selector) for name in usable if (selector := groups[name].selector)]


def _groups_of(node: Node, selectors: Iterable[tuple[str, NodeSelector]]) -> tuple[str, ...]:
    return tuple(name for name, selector in selectors if selector.matches(node.name, node.labels))


def _may_hold_more(local: LocalNode | None, models: Iterable[ModelReport], selected: Placement) -> bool:
    """Whether anything is listed or reported beyond what the node is selected for. Almost never, so this is fast."""
    if local is not None and lists_others(local, selected.names):
        return True
    return not selected.keys.issuperset(map(_KEY, models))


def _held_on(
    world: Snapshot,
    node: Node,
    local: LocalNode | None,
    view: AgentView | None,
    selected: Placement,
    by_key: Mapping[StorageKey, list[Cache]],
) -> tuple[Held, ...]:
    found = replace(
        world,
        local_nodes={} if local is None else {node.name: local},
        agents={} if view is None else {node.name: view},
    )
    return tuple(held_copies(found, node.name, selected.groups, selected.keys, selected.names, by_key))


def _placement(
    member_of: tuple[str, ...],
    held: tuple[Held, ...],
    orders: Orders | None,
    before: Placement | None,
    snapshot: Snapshot,
    caches: Iterable[Cache],
) -> Placement:
    """`before`, if that is the same still."""
    ordered = {order.key: order for order in orders} if orders is not None else None
    held_by_key = {item.key: item for item in held if not item.leaving}
    roots: dict[tuple[str, str], DesiredRoot] = {}
    for name in member_of:
        group = snapshot.groups[name]
        if group.root is None:
            continue
        limit = group.limit_bytes if enforces(snapshot, group) else None
        roots[group.root, name] = DesiredRoot(group.root, limit, name)
    placed: list[Placed] = []
    sharing: dict[StorageKey, list[Placed]] = {}
    for cache in caches:
        orphan = None
        group_name = next((g for g in cache.node_groups if g in member_of), None) if not cache.problem else None
        if ordered is not None:
            order = ordered.get(cache.key)
            if order is None:
                continue
            group_name, root = order.group, order.root
            if root is not None:
                roots.setdefault((root, group_name), DesiredRoot(root, group=group_name))
        elif group_name is not None:
            root = snapshot.groups[group_name].root
        elif (item := held_by_key.get(cache.key)) is not None:
            group_name, root, orphan = item.group, item.root, item.orphan
            if not cache.source.uri:
                source = ModelSource(item.uri)
                cache = replace(cache, source=source, selection=source.selection, storage_key=storage_key(item.uri))
            if root is not None:
                roots.setdefault((root, group_name), DesiredRoot(root, group=group_name))
        else:
            continue
        each = Placed(cache, group_name, root, orphan)
        placed.append(each)
        sharing.setdefault(cache.storage_key, []).append(each)
    owners = {key: owner_of(snapshot, each) for key, each in sharing.items()}
    slots = tuple(slot_of(snapshot, each, owners[each.cache.storage_key]) for each in placed)
    leaving = sorted((item for item in held if item.leaving), key=lambda item: item.key)
    entries = [slot.entry for slot in slots] + [entry_of(snapshot.caches[each.key], each.group) for each in leaving]
    found = Placement(
        groups=member_of,
        roots=tuple(roots.values()),
        slots=slots,
        keys=frozenset(owners),
        names=frozenset(slot.cache.key for slot in slots),
        entries=before.entries if before is not None and before.entries == entries else entries,
        leaving=frozenset(snapshot.caches[each.key].storage_key for each in leaving) - owners.keys(),
        held=held,
        orders=orders,
        retried=any(slot.cache.retries for slot in slots),
        deciding=frozenset(slot.owner.key for slot in slots if slot.root is not None),
    )
    if before is not None and all(getattr(before, each.name) == getattr(found, each.name) for each in fields(found)):
        return before
    return found


def _duplicates(caches: list[Cache]) -> dict[StatusKey, Cache]:
    """Every cluster cache whose URI an older cluster cache has, with that older one. KServe's webhook refuses these."""
    oldest: dict[str, Cache] = {}
    duplicates = {}
    for cache in caches:
        if cache.ref.namespace is None and cache.source.uri:
            first = oldest.setdefault(cache.source.uri, cache)
            if first is not cache:
                duplicates[cache.key] = first
    return duplicates
