"""Who should hold what: nodes into groups, caches onto nodes.

A node is a member of a group iff the node selector of the group's PersistentVolume matches it; a cache belongs on every
member of every group it names. Nodes with the same groups share one `Placement`, so the work grows with the number of
different combinations and not with the number of nodes.

A group that is missing or unusable, and a cache whose spec cannot be read, say nothing about membership. Their copies
are *held*: they stay on the nodes whose LocalModelNode already lists them and go nowhere else, because deleting a node
group by mistake must not empty disks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from actors.errors import Failure
from actors.manifest import ModelSource, StorageKey, storage_key
from actors.messages import DesiredRoot, NodeName
from coordinator.api import StatusKey
from coordinator.snapshot import Cache, LocalNode, Problem, Snapshot


@dataclass(frozen=True, slots=True)
class Slot:
    """One cache on one node. `owner` is the cache whose request decides the content of the folder they share.

    `root` is None where nothing says which folder a held copy is in. `conflict` says why the owner's copy is not this
    cache's.
    """

    cache: Cache
    group: str
    root: str | None
    owner: Cache
    entry: Mapping[str, Any]
    conflict: Failure | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Everything a node with these groups should hold, the oldest cache first."""

    groups: tuple[str, ...]
    roots: tuple[DesiredRoot, ...]
    slots: tuple[Slot, ...]
    keys: frozenset[StorageKey]
    entries: list[Mapping[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Members:
    """`groups` names the members of every usable group; `placements` has an entry for each node that is in any.

    `duplicates` maps a cluster cache to the older cluster cache of the same URI.
    """

    groups: Mapping[str, tuple[NodeName, ...]]
    placements: Mapping[NodeName, Placement]
    duplicates: Mapping[StatusKey, Cache]


@dataclass(frozen=True, slots=True)
class _Held:
    """A copy that stays where it is. Part of what makes two nodes' placements equal."""

    key: StatusKey
    group: str
    root: str | None
    uri: str


def place(snapshot: Snapshot) -> Members:
    """Every cache that is not being deleted, on every node that should hold it."""
    caches = sorted((c for c in snapshot.caches.values() if c.deleted_at is None), key=lambda c: c.age_order)
    usable = {name: group for name, group in snapshot.groups.items() if group.problem is None}
    groups: dict[str, list[NodeName]] = {name: [] for name in usable}
    placements: dict[NodeName, Placement] = {}
    shared: dict[tuple[tuple[str, ...], tuple[_Held, ...]], Placement] = {}
    any_held = any(c.problem or any(group not in usable for group in c.node_groups) for c in caches)
    selectors = [(name, group.selector) for name, group in sorted(usable.items()) if group.selector]
    for node in snapshot.nodes.values():
        member_of = tuple(name for name, selector in selectors if selector.matches(node.name, node.labels))
        for name in member_of:
            groups[name].append(node.name)
        local = snapshot.local_nodes.get(node.name) if any_held else None
        held = tuple(_held(snapshot, local, member_of)) if local else ()
        if member_of or held:
            signature = (member_of, held)
            if signature not in shared:
                shared[signature] = _placement(snapshot, caches, member_of, held)
            placements[node.name] = shared[signature]
    return Members({name: tuple(nodes) for name, nodes in groups.items()}, placements, _duplicates(caches))


def group_problem(snapshot: Snapshot, name: str) -> Problem | None:
    """Why the group of this name has no members; None: it is usable."""
    group = snapshot.groups.get(name)
    return group.problem if group else Problem("NodeGroupNotFound", f"LocalModelNodeGroup {name} not found")


def _held(snapshot: Snapshot, local: LocalNode, member_of: tuple[str, ...]) -> list[_Held]:
    held = []
    for key, entry in local.listed.items():
        cache = snapshot.caches.get(key)
        if cache is None or cache.deleted_at is not None:
            continue
        name = entry.get("nodeGroup") or (cache.node_groups[0] if cache.node_groups else "")
        if not cache.problem and (name not in cache.node_groups or group_problem(snapshot, name) is None):
            continue
        group = snapshot.groups.get(name)
        root = group.root if group else None
        uri = str(entry.get("sourceModelUri", ""))
        held.append(_Held(key, name, root or _known_root(snapshot, local, member_of), uri))
    return held


def _known_root(snapshot: Snapshot, local: LocalNode, member_of: tuple[str, ...]) -> str | None:
    """The folder a copy of a vanished group is in: one that the node reports and no other group explains, or any."""
    view = snapshot.agents.get(NodeName(local.ref.name))
    reported = [root.path for root in view.report.roots] if view and view.report else status_roots(local)
    explained = {group.root for name in member_of if (group := snapshot.groups.get(name))}
    return next((path for path in reported if path not in explained), next(iter(reported), None))


def status_roots(local: LocalNode | None) -> list[str]:
    """The roots this node had when its status was last written."""
    roots = (local.status.get("roots") if local else None) or ()
    return [root["path"] for root in roots if isinstance(root, Mapping) and isinstance(root.get("path"), str)]


def _placement(
    snapshot: Snapshot, caches: list[Cache], member_of: tuple[str, ...], held: tuple[_Held, ...]
) -> Placement:
    held_by_key = {item.key: item for item in held}
    roots: dict[str, int | None] = {}
    for name in member_of:
        group = snapshot.groups[name]
        if group.root is not None:
            limits = [limit for limit in (roots.get(group.root), group.limit_bytes) if limit is not None]
            roots[group.root] = min(limits, default=None)
    slots: list[Slot] = []
    owners: dict[StorageKey, Slot] = {}
    for cache in caches:
        group_name = next((g for g in cache.node_groups if g in member_of), None) if not cache.problem else None
        if group_name is not None:
            root = snapshot.groups[group_name].root
        elif (item := held_by_key.get(cache.key)) is not None:
            group_name, root = item.group, item.root
            if not cache.source.uri:
                source = ModelSource(item.uri)
                cache = replace(cache, source=source, selection=source.selection, storage_key=storage_key(item.uri))
            if root is not None:
                roots.setdefault(root, None)
        else:
            continue
        first = owners.get(cache.storage_key)
        entry = {**cache.entry, "sourceModelUri": cache.source.uri, "nodeGroup": group_name}
        slot = Slot(cache, group_name, root, first.owner if first else cache, entry, _conflict(cache, root, first))
        owners.setdefault(cache.storage_key, slot)
        slots.append(slot)
    return Placement(
        groups=member_of,
        roots=tuple(DesiredRoot(path, limit) for path, limit in roots.items()),
        slots=tuple(slots),
        keys=frozenset(owners),
        entries=[slot.entry for slot in slots],
    )


def _conflict(cache: Cache, root: str | None, first: Slot | None) -> Failure | None:
    """Two caches of one URI share one folder, so they must want the same files in the same place."""
    if first is None:
        return None
    owner = first.owner
    differing = [
        name
        for name, mine, theirs in (
            ("revision", cache.source.revision, owner.source.revision),
            ("include", cache.source.include, owner.source.include),
            ("exclude", cache.source.exclude, owner.source.exclude),
            ("digest", cache.digest, owner.digest),
            ("node group path", root, first.root),
        )
        if mine != theirs
    ]
    if not differing:
        return None
    what = f"{owner.ref.resource.kind} {owner.key}"
    message = f"{what} has the same URI {cache.source.uri} with another {', '.join(differing)}"
    return Failure("SourceConflict", message, retryable=False)


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
