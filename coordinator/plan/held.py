"""Copies that are on a node although no cache selects it: those that stay, and those that leave."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

from actors.manifest import StorageKey
from actors.messages import NodeName
from coordinator.api.resources import StatusKey
from coordinator.plan.orphans import group_problem, stays
from coordinator.plan.snapshot import Cache, LocalNode, Snapshot


@dataclass(frozen=True, slots=True)
class Held:
    """A copy that stays where it is, or is `leaving`. Part of what makes two nodes' placements equal."""

    key: StatusKey
    group: str
    root: str | None
    uri: str
    orphan: str | None = None
    leaving: bool = False


def held_copies(
    snapshot: Snapshot,
    node: NodeName,
    member_of: tuple[str, ...],
    keys: frozenset[StorageKey],
    names: Container[StatusKey],
    by_key: Mapping[StorageKey, list[Cache]],
) -> list[Held]:
    """All that cannot be judged, is an orphan, or is leaving; each cache once.

    `keys` and `names` are what the node is selected for. `by_key`: as in `orphans.stays`.
    """
    local = snapshot.local_nodes.get(node)
    held: dict[StatusKey, Held] = {}
    for stay in stays(snapshot, node, member_of, keys, by_key):
        cache, group = stay.cache, snapshot.groups.get(stay.group)
        root = stay.root or (group.root if group else None) or _known_root(snapshot, node, member_of)
        leaving = stay.orphan is None
        held[cache.key] = Held(cache.key, stay.group, root, cache.source.uri, stay.orphan, leaving)
    for key, entry in local.listed.items() if local is not None else ():
        cache_of = snapshot.caches.get(key)
        if cache_of is None or cache_of.deleted_at is not None or key in held or key in names:
            continue
        name = str(entry.get("nodeGroup") or (cache_of.node_groups[0] if cache_of.node_groups else ""))
        if not cache_of.problem and (name not in cache_of.node_groups or group_problem(snapshot, name) is None):
            continue
        group = snapshot.groups.get(name)
        root = (group.root if group else None) or _known_root(snapshot, node, member_of)
        held[key] = Held(key, name, root, str(entry.get("sourceModelUri", "")))
    return list(held.values())


def _known_root(snapshot: Snapshot, node: NodeName, member_of: tuple[str, ...]) -> str | None:
    """The folder a copy of a vanished group is in: one that the node reports and no other group explains, or any."""
    view = snapshot.agents.get(node)
    known = view.report.roots if view and view.report else None
    reported = status_roots(snapshot.local_nodes.get(node)) if known is None else [root.path for root in known]
    explained = {group.root for name in member_of if (group := snapshot.groups.get(name))}
    return next((path for path in reported if path not in explained), next(iter(reported), None))


def status_roots(local: LocalNode | None) -> list[str]:
    """The roots this node had when its status was last written."""
    roots = (local.status.get("roots") if local else None) or ()
    return [root["path"] for root in roots if isinstance(root, Mapping) and isinstance(root.get("path"), str)]
