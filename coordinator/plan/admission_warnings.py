"""What a person who writes a cache should know before it shows, as warnings that `kubectl` prints. Pure.

    a name that KServe cannot write into a label        a source that no reader is allowed for, parameters without use
    node groups that are unknown, broken or empty       more than the groups, or their disks, have room for
    an edit that has copies removed, orphaned or fetched again

The rules are those by which `plan` acts: `orphans` says what becomes of a copy, `snapshot` what a spec means, the
agent's own arithmetic what fits on a disk. `forecast` answers for whole clusters; a write must be answered in
milliseconds. What a node holds is what stands in its LocalModelNode, so every replica answers alike, whether it leads
or not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from actors.agent.capacity import Room
from actors.manifest import StorageKey
from actors.messages import NodeName
from actors.sizes import say_bytes
from coordinator.api.resources import ModelStatus, StatusKey
from coordinator.plan.admission import Known, Operation, Write
from coordinator.plan.forecast import HEADROOM_BYTES, roots_of
from coordinator.plan.orphans import group_problem, stays
from coordinator.plan.snapshot import Cache, LocalNode, Snapshot

LABEL_LENGTH = 63
"""https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set"""
SHOWN = 3
"""Nodes that a warning names."""

Members = Mapping[NodeName, frozenset[str]]


def warnings(write: Write, cache: Cache, known: Known) -> tuple[str, ...]:
    """One sentence each, for a CREATE or UPDATE that is allowed. `cache` is what is to be written."""
    if write.passes or write.operation is Operation.DELETE:
        return ()
    members = _members(known)
    found = [
        *_name(write, cache),
        *_source(cache),
        *_credentials(cache),
        *_groups(cache, known, members),
        *_versions(cache),
    ]
    before = write.old
    if before is None or _asks_for_more(write, cache, known):
        found += _capacity(cache, known, members)
    if before is not None:
        found += _edit(write, cache, known, members)
    return tuple(found)


def _name(write: Write, cache: Cache) -> Iterator[str]:
    length = len(cache.ref.name)
    if length > LABEL_LENGTH and write.operation is Operation.CREATE:
        yield (
            f"metadata.name has {length} characters: KServe writes it into a label, which may have {LABEL_LENGTH}, so "
            "every InferenceService that would use this cache is refused; choose a shorter name"
        )


def _source(cache: Cache) -> Iterator[str]:
    if cache.problem is not None:
        yield f"{cache.problem.message}; until that is mended nothing is downloaded"


def _credentials(cache: Cache) -> Iterator[str]:
    """Parameters that say nothing: see `coordinator.control.credentials`."""
    named = cache.credentials
    if not named.parameters or named.storage_key is not None:
        return
    if named.service_account is not None:
        yield (
            "spec.storage.parameters: they do nothing without spec.storage.key, because spec.serviceAccountName names "
            "the credentials"
        )
    elif not any(name == "type" for name, _ in named.parameters):
        yield "spec.storage.parameters: they do nothing without spec.storage.key, or a `type` among them"


def _groups(cache: Cache, known: Known, members: Members) -> Iterator[str]:
    """An unknown group of a LocalModelNamespaceCache was refused before."""
    world = _world(known, [])
    for name in cache.node_groups:
        problem = group_problem(world, name)
        if problem is not None:
            yield f"spec.nodeGroups: {problem.message}; no node gets a copy for it until that is mended"
        elif not any(name in groups for groups in members.values()):
            yield (
                f"spec.nodeGroups: LocalModelNodeGroup {name} selects no node: no node gets a copy for it; look at its "
                "nodeAffinity and at the labels of the nodes"
            )


_COMMIT = re.compile(r"[0-9a-f]{40}|sha256:[0-9a-f]{64}")


def _versions(cache: Cache) -> Iterator[str]:
    """Wishes that no rollout or refresh can fulfil."""
    revision = cache.source.revision or ""
    if cache.refresh_s is not None and _COMMIT.fullmatch(revision):
        yield f"spec.refresh: spec.revision {revision} is a commit, which never moves; name a branch or a tag"
    if cache.refresh_s is not None and cache.digest is not None:
        yield (
            "spec.refresh: spec.digest is of one version, so whatever the branch moves to is refused; remove "
            "spec.digest, or edit it with spec.revision"
        )
    unknown = sorted((cache.rollout.groups or frozenset()) - set(cache.node_groups)) if cache.rollout else []
    if unknown:
        yield f"spec.rollout.partition: spec.nodeGroups has no {_listed(unknown)}; no node of it takes a new version"
    if cache.rollout is not None and cache.rollout.groups == frozenset():
        yield "spec.rollout.partition: it names no group, so no node takes a new version; remove it to have all do"


def _asks_for_more(write: Write, cache: Cache, known: Known) -> bool:
    before = replace(write, operation=Operation.CREATE, new=write.old).parsed(known.schemes)
    return before.size_bytes != cache.size_bytes or before.node_groups != cache.node_groups


def _capacity(cache: Cache, known: Known, members: Members) -> Iterator[str]:
    """By the sizes that specs name, or better that status knows: a group's limit, and the disks that have room."""
    needed = cache.size_bytes
    if not needed:
        return
    for name in cache.node_groups:
        group = known.groups.get(name)
        if group is None or group.limit_bytes is None:
            continue
        others = _models(name, cache, known)
        total = needed + sum(others.values())
        if total > group.limit_bytes:
            beside = (
                f" beside {len(others)} other models of {say_bytes(sum(others.values()), up=True)}" if others else ""
            )
            yield (
                f"spec.modelSize: {say_bytes(needed, up=True)} does not fit into LocalModelNodeGroup {name}{beside}: "
                f"its storageLimit is {say_bytes(group.limit_bytes)} a node; raise it, or remove models"
            )
    if short := _without_room(cache, needed, known, members):
        kept = say_bytes(HEADROOM_BYTES)
        shown = [f"{node} ({say_bytes(free)} free, {kept} of it to be kept)" for node, free in sorted(short.items())]
        yield (
            f"spec.modelSize: {say_bytes(needed, up=True)} does not fit on the disk of {_listed(shown)}; there the "
            "model waits until something is removed"
        )


def _models(group: str, cache: Cache, known: Known) -> dict[StorageKey, int]:
    """What else caches want in a group, each folder once, by the largest size that is known of it."""
    found: dict[StorageKey, int] = {}
    for other in known.caches.values():
        if group in other.node_groups and other.deleted_at is None and other.storage_key != cache.storage_key:
            measured = (other.status.get("bytes") or {}).get("total")
            size = measured if isinstance(measured, int) else other.size_bytes or 0
            found[other.storage_key] = max(found.get(other.storage_key, 0), size)
    return found


def _without_room(cache: Cache, needed: int, known: Known, members: Members) -> dict[NodeName, int]:
    """The free bytes of nodes that would get a copy, do not hold it, and have less than it needs."""
    found, sharing = {}, _sharing(cache, known)
    for node, groups in members.items():
        local = known.local_nodes.get(node)
        name = next((each for each in cache.node_groups if each in groups), None)
        if local is None or name is None or _has(local, sharing):
            continue
        root = next((each for each in roots_of(local) if each.path == known.groups[name].root), None)
        if root is None:
            continue
        room = Room(root.path, root.free_bytes, HEADROOM_BYTES, root.used_bytes, root.reserved_bytes)
        if room.lacking_bytes(needed) > 0:
            found[node] = root.free_bytes
    return found


def _edit(write: Write, cache: Cache, known: Known, members: Members) -> Iterator[str]:
    """What becomes of the copies that nodes hold. See docs/editing.md."""
    before = replace(write, operation=Operation.CREATE, new=write.old).parsed(known.schemes)
    sharing = _sharing(before, known)
    holders = [node for node, local in known.local_nodes.items() if _has(local, sharing)]
    if not holders:
        return
    if before.digest != cache.digest and cache.digest is not None:
        held = cache.status.get("manifestDigest")
        if held is not None and held != cache.digest:
            yield (
                f"spec.digest: {_copies(holders)} of another digest ({held}) and no longer Ready with this edit, until "
                "the source has what is expected"
            )
    if before.selection != cache.selection:
        fields = ("revision", "include", "exclude")
        changed = [name for name in fields if getattr(before.source, name) != getattr(cache.source, name)]
        yield (
            f"{', '.join(f'spec.{name}' for name in changed)}: {_copies(holders)} fetched again where the files "
            "differ; what is there is served until then"
        )
    if before.node_groups != cache.node_groups:
        yield from _regrouped(cache, holders, known, members)


def _regrouped(cache: Cache, holders: Iterable[NodeName], known: Known, members: Members) -> Iterator[str]:
    """Which copies an edit of `spec.nodeGroups` takes away, and which it leaves to nobody."""
    caches = [cache, *(other for other in known.caches.values() if other.key != cache.key)]
    world = _world(known, caches)
    removed: list[NodeName] = []
    orphaned: list[NodeName] = []
    for node in holders:
        groups = tuple(sorted(members.get(node, ())))
        placed = frozenset(
            each.storage_key
            for each in caches
            if each.deleted_at is None and not each.problem and any(name in groups for name in each.node_groups)
        )
        for stay in stays(world, node, groups, placed, {cache.storage_key: [cache]}):
            if stay.cache is cache:
                (removed if stay.orphan is None else orphaned).append(node)
    if removed:
        yield f"spec.nodeGroups: {_copies(removed)} removed with this edit, when no pod uses them"
    if orphaned:
        kept = "because of spec.pinned" if cache.pinned else "only for a grace period"
        yield f"spec.nodeGroups: {_copies(orphaned)} wanted by nobody with this edit, and kept {kept}"


def _sharing(cache: Cache, known: Known) -> frozenset[StatusKey]:
    """All caches of one folder."""
    alike = (key for key, other in known.caches.items() if other.storage_key == cache.storage_key)
    return frozenset([cache.key, *alike])


def _has(local: LocalNode, sharing: frozenset[StatusKey]) -> bool:
    """Whether the node holds the model, for one of these caches."""
    words = local.status.get("modelStatus") or {}
    return any(words.get(key) == ModelStatus.DOWNLOADED for key in sharing & local.listed.keys())


def _members(known: Known) -> Members:
    """The usable groups of each node."""
    usable = {
        name: group.selector for name, group in known.groups.items() if group.selector is not None and not group.problem
    }
    return {
        node.name: frozenset(name for name, selector in usable.items() if selector.matches(node.name, node.labels))
        for node in known.nodes.values()
    }


def _world(known: Known, caches: Iterable[Cache]) -> Snapshot:
    """As `orphans` looks at it: nobody but the LocalModelNodes says what is on the nodes."""
    return Snapshot("", {cache.key: cache for cache in caches}, known.groups, known.nodes, known.local_nodes)


def _copies(nodes: Iterable[NodeName]) -> str:
    """`the copy on node-1 is`, `the 5 copies on node-1, node-2, node-3 and 2 others are`."""
    names = sorted(nodes)
    if len(names) == 1:
        return f"the copy on {names[0]} is"
    return f"the {len(names)} copies on {_listed(names)} are"


def _listed(names: list[str] | list[NodeName]) -> str:
    shown = ", ".join(names[:SHOWN])
    return f"{shown} and {len(names) - SHOWN} others" if len(names) > SHOWN else shown
