"""Nodes that may take a new version now: at no moment is the model unavailable on more of them than the spec allows.

    BEHIND ──fetched beside──► PREFETCHED ──let──► CUTTING ──the agent says so──► DONE
                                                     │
                                                     └── unavailable, as is a node that has no sound copy in
                                                         place (GONE) or whose agent does not answer (SILENT)

A node is *unavailable* from the plan that lets it take the new version to the report that has that version in place,
verified. It serves a whole copy all the while, because versions change places by one rename; but nobody can tell which
one before it says so. As in a Deployment, a node that is unavailable for another reason counts, too: a rollout does not
make it worse. A node that Kubernetes calls NotReady runs no pods and counts only once it was let.

The first node is let when all that can take the new version have it ready. A plan remembers whom it has let; another
coordinator does not, so it lets nobody before all that its predecessor has told can have come to an end. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from actors.manifest import StorageKey
from actors.messages import ModelReport, NodeName, Phase
from coordinator.api.resources import StatusKey
from coordinator.fleet.interface import AgentView
from coordinator.plan.content import Content
from coordinator.plan.facts import Facts
from coordinator.plan.snapshot import Cache, Policy

SETTLE_S = 5.0
"""An agent does at once what it may, and a call to it that is late by more has failed."""


class Stage(StrEnum):
    """How far one node is with the version that is asked for."""

    BEHIND = "Behind"
    PREFETCHED = "Prefetched"
    DONE = "Done"
    GONE = "Gone"
    SILENT = "Silent"
    AWAY = "Away"


@dataclass(frozen=True, slots=True)
class Step:
    """The present step of a rollout. `let`: the nodes that may take the new version, `unavailable`: as above.

    `held`: those that could, and may not: the rollout is paused, or is not for their group.
    """

    let: frozenset[NodeName] = frozenset()
    unavailable: frozenset[NodeName] = frozenset()
    limit: int = 1
    behind: int = 0
    prefetched: int = 0
    done: int = 0
    held: int = 0
    paused: bool = False

    @property
    def total(self) -> int:
        return self.behind + self.prefetched + self.done

    @property
    def is_over(self) -> bool:
        """Whether everything that may take the new version has it, and others are held back."""
        return bool(self.held) and self.held == self.behind + self.prefetched and not self.let


def step(
    policy: Policy,
    stages: Mapping[NodeName, Stage],
    cutting: Collection[NodeName],
    groups: Mapping[NodeName, str],
    *,
    settled: bool = True,
) -> Step:
    """`stages` has every node that should hold the model, `cutting` those that were let before and are not done.

    `groups`: which of the cache's groups each is in. Not `settled`: nobody further is let yet.
    """
    cutting = {node for node in cutting if stages.get(node, Stage.DONE) in _UNDER_WAY}
    unavailable = cutting | {node for node, stage in stages.items() if stage in (Stage.GONE, Stage.SILENT)}
    limit = policy.limit(len(stages))
    chosen = {node for node in stages if policy.groups is None or groups.get(node) in policy.groups}
    waiting = sorted(node for node in chosen - cutting if stages[node] is Stage.PREFETCHED)
    ready = settled and not policy.paused and not any(stages[node] is Stage.BEHIND for node in chosen)
    let = waiting[: max(0, limit - len(unavailable))] if ready else []
    behind = {node for node, stage in stages.items() if stage is Stage.BEHIND}
    able = {node for node, stage in stages.items() if stage is Stage.PREFETCHED}
    return Step(
        let=frozenset({*cutting, *let}),
        unavailable=frozenset({*unavailable, *let}),
        limit=limit,
        behind=len(behind),
        prefetched=len(able),
        done=sum(stage is Stage.DONE for stage in stages.values()),
        held=len((behind | able) - cutting if policy.paused else (behind | able) - chosen - cutting),
        paused=policy.paused,
    )


_UNDER_WAY = frozenset({Stage.PREFETCHED, Stage.GONE, Stage.SILENT, Stage.AWAY})
"""In these it is not known that a node that was let has come to an end. BEHIND: something else is asked for by now."""


def stage(cache: Cache, wanted: Content, report: ModelReport | None, view: AgentView, *, ready: bool) -> Stage:
    """One node. `ready`: Kubernetes says so."""
    if not ready:
        return Stage.AWAY
    if view.failure is not None or view.report is None:
        return Stage.SILENT
    if report is None or report.damage is not None:
        return Stage.GONE
    asked_for = report.selection == cache.selection
    if report.phase is Phase.READY:
        return Stage.DONE if asked_for and wanted.is_of(report) else Stage.BEHIND
    if report.earlier is None:
        return Stage.GONE
    return Stage.PREFETCHED if report.prefetched and asked_for and wanted.is_of(report) else Stage.BEHIND


@dataclass(frozen=True, slots=True)
class Rollouts:
    """By cache with a `rollout`, what is to be done now. `held_back`: by node, the models it is not to take."""

    steps: Mapping[StatusKey, Step] = field(default_factory=dict)
    held_back: Mapping[NodeName, frozenset[StorageKey]] = field(default_factory=dict)

    @property
    def cutting_over(self) -> dict[StatusKey, frozenset[NodeName]]:
        return {key: each.let for key, each in self.steps.items() if each.let}


def rollouts(facts: Facts) -> Rollouts:
    """Of every cache that decides about its folder and has a `rollout`."""
    snapshot = facts.snapshot
    ruled = {key: cache for key, cache in snapshot.caches.items() if cache.rollout and cache.deleted_at is None}
    if not ruled:
        return Rollouts()
    stages: dict[StatusKey, dict[NodeName, Stage]] = {}
    groups: dict[StatusKey, dict[NodeName, str]] = {}
    for placement, nodes in facts.members.by_placement.items():
        slots = [slot for slot in placement.slots if slot.owner is slot.cache and slot.orphan is None]
        for slot in slots:
            if slot.cache.key not in ruled:
                continue
            key, wanted = slot.cache.key, facts.sources[slot.cache.key].content
            for name in nodes:
                view = snapshot.agent(name)
                report = view.models.get(slot.cache.storage_key)
                found = stage(slot.cache, wanted, report, view, ready=snapshot.nodes[name].ready)
                stages.setdefault(key, {})[name] = found
                groups.setdefault(key, {})[name] = slot.group
    settled = facts.now >= snapshot.acting_since + SETTLE_S
    steps, held_back = {}, dict[NodeName, set[StorageKey]]()
    for key, of_nodes in stages.items():
        policy, before = ruled[key].rollout, snapshot.cutting_over.get(key, frozenset())
        if policy is None:
            continue
        steps[key] = step(policy, of_nodes, before, groups[key], settled=settled)
        for name in of_nodes.keys() - steps[key].let:
            held_back.setdefault(name, set()).add(ruled[key].storage_key)
    return Rollouts(steps, {name: frozenset(keys) for name, keys in held_back.items()})
