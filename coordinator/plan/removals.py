"""What removes a copy: orders to node agents, each for a reason that somebody can be told. Pure.

    CacheDeleted         no cache of its URI exists any more, or only such as do not want it on this node, or that were
                         never shown to have a right to it and are refused (`access.forsaken`)
    NodeGroupsChanged    its cache names other groups now (see `orphans`)
    OrphanExpired        it has been an orphan for the whole grace period, and nobody pinned it
    NotListed            where KServe's controller decides: see `node_tier.unlisted`

First it is found that a copy should go, then the pods of its node are listed, then the order is given if no pod uses
it; the agent looks once more. Nothing else removes a copy, except an eviction, which goes the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

from actors.manifest import StorageKey
from actors.messages import ModelReport, NodeName, NodeReport, Removal
from coordinator.api.resources import StatusKey
from coordinator.plan.facts import Facts
from coordinator.plan.node_tier import unlisted
from coordinator.plan.orphans import copies_of, is_copy, orphaned_since, was_here
from coordinator.plan.placement import Placement
from coordinator.plan.pods import Pod
from coordinator.plan.snapshot import Cache, Snapshot
from coordinator.plan.usage import users_on

_KEY, _ROOT = attrgetter("key"), attrgetter("root")
ORDER_S = 5.0
"""How long after the decision an agent may carry it out."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """A copy that is to go. `caches` are those it was for, as far as they still exist. `users` None: not known.

    `forced`: it goes whoever uses it, as whoever may say so has said.
    """

    node: NodeName
    root: str
    key: StorageKey
    reason: str
    caches: tuple[StatusKey, ...]
    forced: bool = False
    users: tuple[Pod, ...] | None = None

    def order(self, now: float) -> Removal:
        """`now` by the agent's clock."""
        return Removal(self.root, self.key, self.reason, now, ORDER_S, forced=self.forced)


def removals(facts: Facts) -> tuple[Leaving, ...]:
    """Every copy that is to go, on every node whose agent answers."""
    snapshot = facts.snapshot
    by_key: dict[StorageKey, list[Cache]] = {}
    for cache in snapshot.caches.values():
        if cache.deleted_at is not None or cache.storage_key not in facts.forsaken:
            by_key.setdefault(cache.storage_key, []).append(cache)
    readable = all(cache.readable for cache in snapshot.caches.values() if cache.deleted_at is None)
    readable = readable and not any(kind == "caches" for kind, _ in snapshot.left_out)
    found: list[Leaving] = []
    for name in snapshot.nodes:
        view = snapshot.agent(name)
        if view.failure is None and view.report is not None:
            found += _on_node(facts, name, by_key, readable)
    return tuple(found)


def orders_of(snapshot: Snapshot, leaving: Sequence[Leaving], now: float) -> dict[NodeName, tuple[Removal, ...]]:
    """What may be carried out: what no pod uses, on nodes whose pods were listed just now."""
    orders: dict[NodeName, tuple[Removal, ...]] = {}
    for each in leaving:
        if each.forced or (each.node in snapshot.looked_at and each.users == ()):
            at = snapshot.agents[each.node].by_its_clock(now)
            orders[each.node] = (*orders.get(each.node, ()), each.order(at))
    return orders


def _on_node(
    facts: Facts, name: NodeName, by_key: Mapping[StorageKey, Sequence[Cache]], readable: bool
) -> Iterator[Leaving]:
    snapshot, report = facts.snapshot, facts.snapshot.report(name)
    reason: str | None
    models = report.models if report is not None else ()
    going: list[tuple[ModelReport, str]] = []
    astray: Sequence[tuple[ModelReport, bool, bool]] = ()
    if snapshot.follows:
        gone, reason = unlisted(snapshot.local_nodes.get(name), copies_of(report), by_key), "NotListed"
        going += [(copy, reason) for copy in gone if readable]
    else:
        placement = facts.members.placements.get(name)
        astray = facts.memory.call(("astray", name), _astray, placement, facts.forsaken, models)
    for copy, kept, leaving in astray:
        caches = by_key.get(copy.key, ())
        if kept:
            reason = _expired(snapshot, name, caches, facts.now)
        else:
            reason = "NodeGroupsChanged" if leaving else _deleted(snapshot, name, caches, readable)
        if reason is not None:
            going.append((copy, reason))
    users = users_on(snapshot, name) if going else None
    for copy, reason in going:
        caches = by_key.get(copy.key, ())
        using = None if users is None else tuple(users.get(copy.key, ()))
        yield Leaving(
            node=name,
            root=copy.root or _only_root(report),
            key=copy.key,
            reason=reason,
            caches=tuple(sorted(each.key for each in caches if was_here(snapshot, name, each) or len(caches) == 1)),
            forced=_is_forced(caches, using if name in snapshot.looked_at else None),
            users=using,
        )


def _astray(
    placement: Placement | None, forsaken: frozenset[StorageKey], models: Sequence[ModelReport]
) -> list[tuple[ModelReport, bool, bool]]:
    """The copies on the node that nobody wants where they are.

    With each: whether somebody wants the model on this node, and whether a cache of it names other groups now.
    """
    slots = placement.slots if placement is not None else ()
    kept = placement.keys - forsaken if placement is not None else frozenset()
    orphans = {slot.cache.storage_key for slot in slots if slot.orphan}
    roots = {slot.cache.storage_key: slot.root for slot in slots}
    if not orphans and kept.issuperset(map(_KEY, models)) and not any(map(_ROOT, models)):
        return []  # nearly always
    found = []
    for copy in models:
        stray = bool(copy.root) and roots.get(copy.key) not in (None, copy.root)
        if (stray or copy.key in orphans or copy.key not in kept) and is_copy(copy):
            found.append((copy, copy.key in kept, placement is not None and copy.key in placement.leaving))
    return found


def _is_forced(caches: Sequence[Cache], users: Sequence[Pod] | None) -> bool:
    """All that the copy was for are deleted and do not wait for pods; a namespaced one only not for those beside it."""
    if not caches or not all(cache.deleted_at is not None and cache.delete_in_use for cache in caches):
        return False
    namespaces = {cache.ref.namespace for cache in caches}
    return None in namespaces or (users is not None and all(pod.namespace in namespaces for pod in users))


def _deleted(snapshot: Snapshot, name: NodeName, caches: Sequence[Cache], readable: bool) -> str | None:
    """All caches of the copy are deleted, or all that it was ever on this node for."""
    if not caches:  # a cache whose URI cannot be read may be its
        return "CacheDeleted" if readable else None
    here = [cache for cache in caches if was_here(snapshot, name, cache)] or caches
    return "CacheDeleted" if all(cache.deleted_at is not None for cache in here) else None


def _expired(snapshot: Snapshot, name: NodeName, caches: Sequence[Cache], now: float) -> str | None:
    alive = [cache for cache in caches if cache.deleted_at is None]
    if snapshot.orphan_grace_s is None or not alive or any(cache.pinned for cache in alive):
        return None
    local = snapshot.local_nodes.get(name)
    since = min(orphaned_since(local, cache.key, now) for cache in alive)
    return "OrphanExpired" if now - since >= snapshot.orphan_grace_s else None


def _only_root(report: NodeReport | None) -> str:
    """Of an agent that does not say where its copies are: the only root it has."""
    roots = [root.path for root in report.roots] if report is not None else []
    return roots[0] if len(roots) == 1 else ""
