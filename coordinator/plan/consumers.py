"""The consumers of each cache, and the namespaces in which a claim to it is needed. Pure.

    a service with serving.kserve.io/nodegroup   that group's claim, if the cache is in it
                                          else   none is made, and what its namespace has stays
    one without                                  the claim that its annotation names, else that of nodeGroups[0]
    localmodel.kserve.io/claims on the cache     a claim to each of its groups, in each namespace that is named

As KServe does it, but for two things: a service that says it uses a namespaced cache is no consumer of the cluster
cache of that name, and one that has moved to another group no longer keeps the first one's claim.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from coordinator.api.resources import StatusKey
from coordinator.plan.services import Service, Use
from coordinator.plan.snapshot import Cache, Snapshot

Wanted = tuple[str, str]
"""(namespace, node group)"""


@dataclass(frozen=True, slots=True)
class Consumers:
    """`known` False: services cannot be watched yet, so what is there stays.

    `wanted` are the claims that are needed, by cache; `kept` the namespaces in which claims to it stay as they are.
    """

    known: bool = False
    services: Mapping[StatusKey, Sequence[Service]] = field(default_factory=dict)
    wanted: Mapping[StatusKey, frozenset[Wanted]] = field(default_factory=dict)
    kept: Mapping[StatusKey, frozenset[str]] = field(default_factory=dict)

    def status_of(self, cache: Cache) -> dict[str, Any]:
        """`inferenceServices` and `llmInferenceServices` of a cache, as KServe writes them. Empty is absent."""
        names = ("inferenceServices", "llmInferenceServices")
        if not self.known:
            return {name: cache.status.get(name) for name in names}
        found = self.services.get(cache.key, ())
        return {name: _names(each for each in found if each.llm is (name == names[1])) for name in names}


def consumers(snapshot: Snapshot) -> Consumers:
    """Of all caches that exist."""
    services: defaultdict[StatusKey, list[Service]] = defaultdict(list)
    wanted: defaultdict[StatusKey, set[Wanted]] = defaultdict(set)
    kept: defaultdict[StatusKey, set[str]] = defaultdict(set)
    for service in snapshot.services or ():
        for use in service.uses:
            cache = snapshot.caches.get(use.cache)
            if cache is None:
                continue
            if service not in services[cache.key]:
                services[cache.key].append(service)
            group = group_of(cache, service, use)
            if group is None:
                kept[cache.key].add(service.namespace)
            else:
                wanted[cache.key].add((service.namespace, group))
    unreadable = [service for service in snapshot.services or () if service.unreadable]
    for cache in snapshot.caches.values():
        wanted[cache.key] |= {(namespace, group) for namespace in cache.claims_in for group in cache.node_groups}
        for service in unreadable:
            if _was_listed(cache, service) and service not in services[cache.key]:
                services[cache.key].append(service)
                kept[cache.key].add(service.namespace)
    return Consumers(
        known=snapshot.services is not None,
        services=services,
        wanted={key: frozenset(each) for key, each in wanted.items()},
        kept={key: frozenset(each) for key, each in kept.items()},
    )


def group_of(cache: Cache, service: Service, use: Use) -> str | None:
    """The node group whose claim the service's pods mount; None: one that the cache is not in."""
    if service.group is not None:
        return service.group if service.group in cache.node_groups else None
    named = (group for group in cache.node_groups if use.claim == f"{cache.ref.name}-{group}")
    return next(named, next(iter(cache.node_groups), None))


def _was_listed(cache: Cache, service: Service) -> bool:
    """Whether its status says that it used the cache when it could still be read."""
    listed = cache.status.get("llmInferenceServices" if service.llm else "inferenceServices") or ()
    return {"namespace": service.namespace, "name": service.name} in listed


def _names(services: Iterable[Service]) -> list[dict[str, str]]:
    return [
        {"namespace": each.namespace, "name": each.name}
        for each in sorted(services, key=lambda each: (each.namespace, each.name))
    ]
