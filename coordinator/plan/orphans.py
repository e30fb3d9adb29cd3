"""Why a copy is on a node that no node group of its cache selects: by a wish, or by an accident. Pure.

    by a wish        the cache is deleted; or its nodeGroups name other groups, all of which exist, and the node is
                     still in the group that it was put there for
    by an accident   all else: a group that is unknown or deleted, a selector that matches no longer, a label that is
                     gone. The copy is an orphan: it stays as it is, for a grace period

What it was put there for stands in `LocalModelNode.spec.localModels`, so a line stays there until the copy has gone.
Of several caches with one URI, one accident is enough to keep the copy they share.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from actors.manifest import StorageKey, storage_key
from actors.messages import ModelReport, NodeName, NodeReport, Phase
from actors.times import seconds_of
from coordinator.api.resources import ModelStatus, StatusKey
from coordinator.plan.snapshot import Cache, LocalNode, Problem, Snapshot

REJOIN = "the copy is used again, and nothing is fetched, as soon as spec.nodeGroups selects the node again"


@dataclass(frozen=True, slots=True)
class Stay:
    """A cache with a copy on a node that it does not select. `orphan` says by which accident; None: by a wish."""

    cache: Cache
    group: str
    root: str | None
    orphan: str | None


def group_problem(snapshot: Snapshot, name: str) -> Problem | None:
    """Why the group of this name has no members; None: it is usable."""
    group = snapshot.groups.get(name)
    return group.problem if group else Problem("NodeGroupNotFound", f"LocalModelNodeGroup {name} not found")


def copies_of(report: NodeReport | None) -> Iterator[ModelReport]:
    """The committed copies that a node reports, damaged, about to be replaced, or well."""
    for model in report.models if report is not None else ():
        if is_copy(model):
            yield model


def is_copy(model: ModelReport) -> bool:
    """Whether it is committed, whatever is to become of it."""
    return model.phase is Phase.READY or model.earlier is not None or model.damage is not None


def strays(report: NodeReport | None, roots: Collection[str]) -> dict[StorageKey, list[str]]:
    """In which folders the copies of each model lie, if any may lie elsewhere than in the one folder of `roots`.

    An edited path of a node group leaves a copy behind: it is an orphan beside the one that is wanted now.
    """
    if report is None or (len(roots) < 2 and {root.path for root in report.roots if root.used_bytes} <= set(roots)):
        return {}
    found: dict[StorageKey, list[str]] = {}
    for model in copies_of(report):
        if model.root:
            found.setdefault(model.key, []).append(model.root)
    return found


def stays(
    snapshot: Snapshot,
    node: NodeName,
    member_of: tuple[str, ...],
    placed: frozenset[StorageKey],
    by_key: Mapping[StorageKey, Sequence[Cache]],
) -> list[Stay]:
    """The copies that are on the node, or may be, of caches that exist and do not select it. `placed` is what they
    select it for.

    `by_key` has all caches, also those being deleted, the oldest first.
    """
    local, view = snapshot.local_nodes.get(node), snapshot.agents.get(node)
    report = view.report if view is not None else None
    found: list[Stay] = []
    here = {model.key: model for model in copies_of(report) if model.key not in placed}
    for key, model in here.items():
        found += _of_copy(snapshot, node, local, member_of, by_key.get(key, ()), model.root or None)
    if local is not None and report is None:  # nobody to ask: what was there still is
        for status_key, entry in local.listed.items():
            cache = snapshot.caches.get(status_key)
            if cache is None or cache.deleted_at is not None or cache.problem or cache.storage_key in placed:
                continue
            if (local.status.get("modelStatus") or {}).get(status_key) != ModelStatus.DOWNLOADED:
                continue
            group = _group(cache, entry)
            found.append(Stay(cache, group, None, _accident(snapshot, cache, group, member_of)))
    return found


def _of_copy(
    snapshot: Snapshot,
    node: NodeName,
    local: LocalNode | None,
    member_of: tuple[str, ...],
    caches: Iterable[Cache],
    root: str | None,
) -> list[Stay]:
    """All caches that the copy is there for; where nothing says for which it is, the oldest that exists."""
    found: list[Stay] = []
    others: list[Stay] = []
    wish = False
    for cache in caches:
        entry = local.listed.get(cache.key) if local is not None else None
        if not was_here(snapshot, node, cache):
            if cache.deleted_at is None and not cache.problem:
                others.append(Stay(cache, "", root, f"nothing says why it is on the node; {REJOIN}"))
            continue
        if cache.deleted_at is not None:
            wish = True
        elif not cache.problem:  # one that cannot be read is held, see `members`
            group = _group(cache, entry or {})
            found.append(Stay(cache, group, root, _accident(snapshot, cache, group, member_of)))
    return found if found or wish else others[:1]


def lists_others(local: LocalNode, caches: Set[StatusKey]) -> bool:
    """Whether the node's list has lines for others than these."""
    return not local.listed.keys() <= caches


def traces(snapshot: Snapshot, node: NodeName) -> list[Mapping[str, object]]:
    """The lines of the node's list for caches that are gone without a trace but this, while what they were for is here.

    Somebody took their finalizer away. Only these lines tell which pods may have the copy open, and who brought it. A
    cache that is there, and whose status says what it has, needs no such line beside its own.
    """
    local, view = snapshot.local_nodes.get(node), snapshot.agents.get(node)
    if local is None or not lists_others(local, snapshot.caches.keys()):
        return []
    report = view.report if view is not None else None
    here = {model.key for model in copies_of(report)}
    known = {cache.storage_key for key, cache in snapshot.caches.items() if cache.status.get("selection")}
    return [
        entry
        for key, entry in local.listed.items()
        if key not in snapshot.caches and (report is None or key_of(entry) in here - known)
    ]


def key_of(entry: Mapping[str, object]) -> StorageKey:
    """The model that a line of a node's list is about."""
    return storage_key(str(entry.get("sourceModelUri") or ""))


def was_here(snapshot: Snapshot, node: NodeName, cache: Cache) -> bool:
    """Whether this cache has, or had, the node among its own: the node's list or the cache's status says so."""
    local = snapshot.local_nodes.get(node)
    return (local is not None and cache.key in local.listed) or node in (cache.status.get("nodeStatus") or {})


def _group(cache: Cache, entry: Mapping[str, object]) -> str:
    name = entry.get("nodeGroup")
    return name if isinstance(name, str) and name else (cache.node_groups[0] if cache.node_groups else "")


def _accident(snapshot: Snapshot, cache: Cache, group: str, member_of: tuple[str, ...]) -> str | None:
    """What looks like a mistake, for people; None: its author no longer wants it there."""
    wanted = ", ".join(cache.node_groups)
    problems = [problem for name in cache.node_groups if (problem := group_problem(snapshot, name))]
    if problems:
        return "; ".join(problem.message for problem in problems) + f": correct spec.nodeGroups or the group; {REJOIN}"
    if group in cache.node_groups:
        return (
            f"LocalModelNodeGroup {wanted} no longer selects the node: look at the group's nodeAffinity and the node's"
            f" labels; {REJOIN}"
        )
    if group not in member_of:
        return (
            f"LocalModelNodeGroup {group}, which it came for, is gone or no longer selects the node, and {wanted} does"
            f" not either; {REJOIN}"
        )
    if cache.pinned:
        return "spec.nodeGroups no longer names a group of the node, but spec.pinned keeps what is there"
    return None


def orphaned_since(local: LocalNode | None, key: StatusKey, now: float) -> float:
    """Since when the copy is an orphan, as it was written (epoch seconds); else from now on."""
    for detail in (local.status.get("models") if local is not None else None) or ():
        if detail.get("name") == key and (since := seconds_of(detail.get("orphanedSince"))) is not None:
            return min(since, now)
    return float(int(now))
