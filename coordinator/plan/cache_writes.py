"""The writes of caches: first the finalizer, then the status with its Events, until the cache is deleted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from actors.times import rfc3339
from coordinator.plan.announcements import Announcement, cache_events
from coordinator.plan.cache_status import cache_numbers
from coordinator.plan.conditions import Verdict, conditions
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
    cache, use, call, same = tally.cache, facts.use, facts.memory.call, facts.memory.same
    key = cache.key
    extensions = cache.ref.resource.plural not in facts.snapshot.pruned
    since = use.since.get(key)
    standing = call(
        ("status", key),
        _standing,
        tally,
        same(("beside", key), facts.consumers.status_of(cache) | mount_status(facts, tally)),
        same(("problems", key), _problems(facts.snapshot, cache)),
        facts.members.duplicates.get(key),
        same(("unused since", key), rfc3339(since) if since is not None else None),
        extensions,
    )
    wanted = {"completedAt": standing.wanted["completedAt"]}
    wanted["conditions"] = conditions(cache, standing.judged, facts.now)
    if standing.judged[0].status and not wanted["completedAt"]:
        written = cache.status.get("completedAt")
        wanted["completedAt"] = written or next(c["lastTransitionTime"] for c in wanted["conditions"])
    patch = standing.patch | status_patch(cache.status, wanted, _TIMED, extensions=extensions)
    if patch:
        material = is_material(cache.status, patch)
        events: list[Announcement] = []
        if material:
            events = cache_events(cache, standing.wanted | wanted, standing.judged, extensions=extensions)
        yield Write(Verb.PATCH_STATUS, cache.ref, patched(cache.ref, status=patch), material, tuple(events))


_TIMED = ("completedAt", "conditions")
"""The fields that may say when this was decided."""
_UNTIMED = tuple(name for name in CACHE_STATUS if name not in _TIMED)


@dataclass(frozen=True, slots=True)
class _Standing:
    """The status of a cache but for what depends on the time, and the `patch` that makes it so."""

    wanted: dict[str, Any]
    judged: tuple[Verdict, Verdict, Verdict]
    patch: dict[str, Any]


def _standing(
    tally: Tally,
    beside: dict[str, Any],
    problems: Sequence[Problem],
    duplicate: Cache | None,
    unused_since: str | None,
    extensions: bool,
) -> _Standing:
    wanted = cache_numbers(tally) | beside | {"unusedSince": unused_since}
    patch = status_patch(tally.cache.status, wanted, _UNTIMED, extensions=extensions)
    return _Standing(wanted, verdicts(tally, problems, duplicate), patch)


def _problems(snapshot: Snapshot, cache: Cache) -> list[Problem]:
    """The fault of the request itself, or of a group or a claim it names."""
    problems = [cache.problem] if cache.problem else []
    if (shared := claim_problem(snapshot, cache)) is not None:
        problems.append(shared)
    return problems + [problem for name in cache.node_groups if (problem := group_problem(snapshot, name))]
