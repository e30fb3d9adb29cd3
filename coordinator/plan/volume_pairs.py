"""Pairs of a PersistentVolume and the claim to it that caches want, by KServe's names. Pure.

                     PersistentVolume                claim, and in which namespace
    download         <cache>-<group>-download        <cache>-<group>                 the job namespace
      namespaced     <cache>-<group>-<ns>-download   the same                        the job namespace
    serving          <cache>-<group>-<namespace>     <cache>-<group>                 the service's

KServe's mutators compute these names. Names may run together: of two caches that want one for different groups, the
older one gets it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from coordinator.plan.bindings import ClaimName, Mark, Role
from coordinator.plan.consumers import Consumers
from coordinator.plan.snapshot import Cache, NodeGroup, Snapshot


@dataclass(frozen=True, slots=True)
class Pair:
    """A volume and the claim to it, as a cache wants them. `group` is the node group that both are made from."""

    cache: Cache
    group: NodeGroup
    role: Role
    volume: str
    claim: ClaimName

    @property
    def mark(self) -> Mark:
        return Mark(self.cache.key, self.group.ref.name, self.role)


def wanted_pairs(snapshot: Snapshot, found: Consumers) -> list[Pair]:
    """Every pair that some cache wants, the oldest cache first; of two that want one name for different groups, one."""
    caches = sorted(snapshot.caches.values(), key=lambda cache: cache.age_order)
    usable = [cache for cache in caches if cache.deleted_at is None and cache.problem is None]
    every = [pair for cache in usable for pair in _downloads(snapshot, cache)]
    if found.known and not snapshot.kserve.disable_volume_management:
        every += [pair for cache in usable for pair in _servings(snapshot, cache, found)]
    taken: dict[str | ClaimName, Pair] = {}
    accepted = []
    for pair in every:
        first = [taken.setdefault(name, pair) for name in (pair.volume, pair.claim)]
        if all(_alike(pair, each) for each in first):
            accepted.append(pair)
    return accepted


def _alike(pair: Pair, first: Pair) -> bool:
    """Whether one volume is right for both. A download claim in a service's own namespace is not one to serve from."""
    return (pair.group, pair.volume, pair.claim) == (first.group, first.volume, first.claim)


def _downloads(snapshot: Snapshot, cache: Cache) -> Iterator[Pair]:
    jobs = snapshot.kserve.job_namespace
    for group in _groups(snapshot, cache):
        name = f"{cache.ref.name}-{group.ref.name}"
        if cache.ref.namespace is None:
            yield Pair(cache, group, Role.DOWNLOAD, f"{name}-download", (jobs, name))
        else:
            name = f"{name}-{cache.ref.namespace}-download"
            yield Pair(cache, group, Role.DOWNLOAD, name, (jobs, name))


def _servings(snapshot: Snapshot, cache: Cache, found: Consumers) -> Iterator[Pair]:
    groups = {group.ref.name: group for group in _groups(snapshot, cache)}
    for namespace, group in sorted(found.wanted.get(cache.key, ())):
        if group in groups:
            yield serving_pair(cache, groups[group], namespace)


def serving_pair(cache: Cache, group: NodeGroup, namespace: str) -> Pair:
    name = f"{cache.ref.name}-{group.ref.name}"
    return Pair(cache, group, Role.SERVING, f"{name}-{namespace}", (namespace, name))


def _groups(snapshot: Snapshot, cache: Cache) -> Iterator[NodeGroup]:
    return (snapshot.groups[name] for name in cache.node_groups if name in snapshot.groups)
