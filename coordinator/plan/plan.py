"""Decides: everything that follows from a snapshot, and nothing else.

    Snapshot ──place──► who should hold what ──fold──► status of caches and nodes      see `facts`
                                │                              │
                                ▼                              ▼
             desired state of every agent             writes (with their Events)
             sources to resolve

`plan` has no state: a `Memory` of the last plan makes it quicker, and the same comes of it. A cache, a node or a copy
is in some state because the snapshot says so, and the plan for a world that is as it should be is empty of writes. An
object is written at most once per plan, so a step of two writes (first the finalizer, then status) takes two plans.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from actors.manifest import Manifest
from actors.messages import Company, DesiredState, NodeName, Removal
from coordinator.api.resources import StatusKey
from coordinator.plan.cache_writes import cache_writes
from coordinator.plan.deletion import UNREACHABLE_GRACE_S as UNREACHABLE_GRACE_S
from coordinator.plan.desired import Want as Want
from coordinator.plan.desired import desired_states, wants
from coordinator.plan.eviction import Eviction, evictions
from coordinator.plan.eviction import orders_of as eviction_orders
from coordinator.plan.facts import Facts, gather
from coordinator.plan.fill_groups import companies
from coordinator.plan.fold import Turn
from coordinator.plan.imports import import_writes
from coordinator.plan.memory import Memory
from coordinator.plan.node_marks import mark_writes
from coordinator.plan.node_writes import group_writes, node_statuses, node_writes
from coordinator.plan.origin_shares import Shares, govern
from coordinator.plan.removals import Leaving, orders_of, removals
from coordinator.plan.rollout import Rollouts, rollouts
from coordinator.plan.snapshot import Snapshot
from coordinator.plan.tally import Tally
from coordinator.plan.volumes import volume_writes
from coordinator.plan.writes import Verb as Verb
from coordinator.plan.writes import Write as Write


@dataclass(frozen=True, slots=True)
class Plan:
    """`tallies` are for metrics. `companies`, by fill, `manifests` and `cutting_over`, by cache, and
    `shares.by_origin` belong into the next snapshot.

    Of `evictions` and `removals`, `desired` orders those on nodes whose pods were just looked at and do not use the
    copy. `looks` are the nodes whose pods are to be looked at for that, and for what agents keep aside.
    """

    writes: tuple[Write, ...]
    desired: Mapping[NodeName, DesiredState]
    wants: Mapping[StatusKey, Want]
    tallies: Mapping[StatusKey, Tally]
    companies: Mapping[str, Company] = field(default_factory=dict)
    evictions: tuple[Eviction, ...] = ()
    removals: tuple[Leaving, ...] = ()
    looks: frozenset[NodeName] = frozenset()
    manifests: Mapping[StatusKey, Manifest] = field(default_factory=dict)
    shares: Shares = field(default_factory=Shares)
    cutting_over: Mapping[StatusKey, frozenset[NodeName]] = field(default_factory=dict)


def plan(snapshot: Snapshot, now: float, turn: Turn | None = None, memory: Memory | None = None) -> Plan:
    """Pure. `now` is epoch seconds; it becomes a time in a status, and tells the dead from the merely silent.

    `turn` bounds for how many LocalModelNodes a status is made; None: for all. `memory` is that of the last plan: what
    has not changed since is not worked out again.
    """
    memory = memory or Memory()
    memory.turn()
    facts = gather(snapshot, now, turn, memory)
    leaving, going = removals(facts), evictions(facts)
    together = companies(facts)
    shares = govern(facts, together)
    rolling = rollouts(facts)
    carried_out = () if snapshot.evict_dry_run else going
    return Plan(
        writes=tuple(_writes(facts, leaving, rolling)),
        desired=desired_states(facts, together, shares, _orders(snapshot, leaving, carried_out, now), rolling),
        wants=wants(facts),
        tallies=facts.folded.caches,
        companies=together.by_fill,
        evictions=going,
        removals=leaving,
        looks=frozenset(_looks(snapshot, leaving, carried_out)),
        manifests=facts.manifests,
        shares=shares,
        cutting_over=rolling.cutting_over,
    )


def _writes(facts: Facts, leaving: Sequence[Leaving], rolling: Rollouts) -> Iterator[Write]:
    if facts.snapshot.follows:
        yield from node_statuses(facts)
    else:
        yield from cache_writes(facts, leaving, rolling)
        yield from node_writes(facts)
        yield from group_writes(facts)
        yield from volume_writes(facts)
        yield from import_writes(facts.snapshot)
    yield from mark_writes(facts)


def _orders(
    snapshot: Snapshot, leaving: Sequence[Leaving], going: Sequence[Eviction], now: float
) -> dict[NodeName, tuple[Removal, ...]]:
    """What every agent is to remove now."""
    orders = orders_of(snapshot, leaving, now)
    for name, evicted in eviction_orders(snapshot, going, now).items():
        orders[name] = (*orders.get(name, ()), *evicted)
    return orders


def _looks(snapshot: Snapshot, leaving: Sequence[Leaving], going: Sequence[Eviction]) -> Iterator[NodeName]:
    """The nodes whose pods must be known: something is to go there, or lies aside until nobody uses it."""
    yield from (name for name, view in snapshot.agents.items() if view.report is not None and view.report.aside)
    yield from (each.node for each in leaving)
    yield from (each.node for each in going)
