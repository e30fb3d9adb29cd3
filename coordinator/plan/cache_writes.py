"""The writes of caches: first the finalizer, then the status with its Events, until the cache is deleted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.errors import Failure
from actors.times import rfc3339
from coordinator.plan.access import Access
from coordinator.plan.announcements import Announcement, cache_events
from coordinator.plan.cache_status import cache_numbers
from coordinator.plan.conditions import Verdict, conditions
from coordinator.plan.content import Content
from coordinator.plan.deletion import deletion_writes
from coordinator.plan.facts import Facts
from coordinator.plan.imports import Standing as Import
from coordinator.plan.imports import standing as import_of
from coordinator.plan.mounting import mount_status
from coordinator.plan.orphans import group_problem
from coordinator.plan.patches import CACHE_STATUS, is_material, status_patch
from coordinator.plan.removals import Leaving
from coordinator.plan.rollout import Rollouts, Step
from coordinator.plan.snapshot import Cache, Problem, Snapshot
from coordinator.plan.tally import Tally
from coordinator.plan.troubles import worst_trouble
from coordinator.plan.verdicts import verdicts
from coordinator.plan.versions import is_refreshed, refresh_status, said_of, versions, written_content
from coordinator.plan.writes import Verb, Write, patched


def cache_writes(facts: Facts, leaving: Sequence[Leaving], rolling: Rollouts) -> Iterator[Write]:
    """At most one for each cache. `leaving` are the copies that are to go, `rolling` what rollouts do now."""
    for cache in facts.snapshot.caches.values():
        if cache.deleted_at is not None:
            if cache.finalizer in cache.finalizers:
                yield from deletion_writes(facts, cache, leaving)
        elif cache.finalizer not in cache.finalizers and cache.problem is None:  # junk never gets a copy to clean up
            yield Write(Verb.PATCH, cache.ref, patched(cache.ref, {"finalizers": [*cache.finalizers, cache.finalizer]}))
        else:
            yield from _status(facts, facts.folded.caches[cache.key], rolling.steps.get(cache.key))


def _status(facts: Facts, tally: Tally, step: Step | None) -> Iterator[Write]:
    cache, use, call, same = tally.cache, facts.use, facts.memory.call, facts.memory.same
    key = cache.key
    extensions = cache.ref.resource.plural not in facts.snapshot.pruned
    imported = import_of(facts.snapshot, cache)
    if imported is None and cache.pvc_ref is not None and cache.problem is None:
        return  # it is not known yet how its claim is, and what was written may still hold
    if facts.folded.settling and _still_stands(tally):
        return
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
        same(("step", key), step),
        same(("refresh", key), _refresh(facts, cache)),
        same(("import", key), imported),
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


UNHEARD = "AgentStarting"


def _still_stands(tally: Tally) -> bool:
    """Whether what the last coordinator wrote is better known than what this one, which has just begun, has heard."""
    written = tally.cache.status
    reasons = {each.get("reason") for each in written.get("conditions") or () if isinstance(each, Mapping)}
    said = reasons and UNHEARD not in reasons and written.get("observedGeneration") == tally.cache.generation
    return bool(said) and any(failure.reason == UNHEARD for _, failure, _ in tally.troubles)


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
    step: Step | None,
    refresh: Mapping[str, Any],
    imported: Import | None,
) -> _Standing:
    wanted = cache_numbers(tally) | beside | {"unusedSince": unused_since, "refresh": refresh or None}
    wanted |= _versions(tally, refresh)
    wanted |= imported.status(tally.cache) if imported is not None else {}
    patch = status_patch(tally.cache.status, wanted, _UNTIMED, extensions=extensions)
    judged = imported.verdicts if imported is not None else verdicts(tally, problems, duplicate, step, refresh)
    return _Standing(wanted, judged, patch)


def _refresh(facts: Facts, cache: Cache) -> Mapping[str, Any]:
    if not is_refreshed(cache):
        return {}
    return refresh_status(cache, facts.snapshot.resolutions.get(cache.key), facts.now) or {}


def _versions(tally: Tally, refresh: Mapping[str, Any]) -> dict[str, Any]:
    """The versions on the nodes, and how far the next one is."""
    cache, source = tally.cache, tally.source
    wanted = source.content
    if not wanted.name:
        wanted = Content(source.revision, source.manifest_digest) if source.resolved else written_content(cache)
    failure, trouble = source.failure, worst_trouble(tally) if tally.earlier else None
    if failure is None and trouble is not None and not trouble.waiting:
        failure = Failure(trouble.reason, trouble.message, trouble.retryable)
    found = versions(tally, wanted, failure, refresh, Access.of(cache, source).permits)
    return {"versions": found, "rollout": said_of(found, tally.total)}


def _problems(snapshot: Snapshot, cache: Cache) -> list[Problem]:
    """The fault of the request itself, or of a group that it names."""
    problems = [cache.problem] if cache.problem else []
    return problems + [problem for name in cache.node_groups if (problem := group_problem(snapshot, name))]
