"""The writes of caches: first the finalizer, then the status with its Events, until the cache is deleted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from actors.times import rfc3339
from coordinator.plan.announcements import cache_events
from coordinator.plan.cache_status import cache_numbers
from coordinator.plan.conditions import conditions
from coordinator.plan.deletion import deletion_writes
from coordinator.plan.facts import Facts
from coordinator.plan.mounting import mount_status
from coordinator.plan.orphans import group_problem
from coordinator.plan.patches import CACHE_STATUS, is_material, status_patch
from coordinator.plan.removals import Leaving
from coordinator.plan.shared_claim import claim_problem
from coordinator.plan.snapshot import Cache, Problem, Snapshot
from coordinator.plan.tally import Tally
from coordinator.plan.verdicts import verdicts
from coordinator.plan.writes import Verb, Write, patched


def cache_writes(facts: Facts, leaving: Sequence[Leaving]) -> Iterator[Write]:
    """At most one for each cache. `leaving` are the copies that are to go."""
    for cache in facts.snapshot.caches.values():
        if cache.deleted_at is not None:
            if cache.finalizer in cache.finalizers:
                yield from deletion_writes(facts, cache, leaving)
        elif cache.finalizer not in cache.finalizers and cache.problem is None:  # junk never gets a copy to clean up
            yield Write(Verb.PATCH, cache.ref, patched(cache.ref, {"finalizers": [*cache.finalizers, cache.finalizer]}))
        else:
            yield from _status(facts, facts.folded.caches[cache.key])


def _status(facts: Facts, tally: Tally) -> Iterator[Write]:
    cache, use = tally.cache, facts.use
    wanted = cache_numbers(tally) | facts.consumers.status_of(cache) | mount_status(facts, tally)
    judged = verdicts(tally, _problems(facts.snapshot, cache), facts.members.duplicates.get(cache.key))
    wanted["conditions"] = conditions(cache, judged, facts.now)
    if judged[0].status and not wanted["completedAt"]:
        written = cache.status.get("completedAt")
        wanted["completedAt"] = written or next(c["lastTransitionTime"] for c in wanted["conditions"])
    wanted["unusedSince"] = rfc3339(use.since[cache.key]) if cache.key in use.since else None
    extensions = cache.ref.resource.plural not in facts.snapshot.pruned
    patch = status_patch(cache.status, wanted, CACHE_STATUS, extensions=extensions)
    if patch:
        material = is_material(cache.status, patch)
        events = cache_events(cache, wanted, judged, extensions=extensions) if material else []
        yield Write(Verb.PATCH_STATUS, cache.ref, patched(cache.ref, status=patch), material, tuple(events))


def _problems(snapshot: Snapshot, cache: Cache) -> list[Problem]:
    """The fault of the request itself, or of a group or a claim it names."""
    problems = [cache.problem] if cache.problem else []
    if (shared := claim_problem(snapshot, cache)) is not None:
        problems.append(shared)
    return problems + [problem for name in cache.node_groups if (problem := group_problem(snapshot, name))]
