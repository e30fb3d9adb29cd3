"""Decides: everything that follows from a snapshot, and nothing else.

    Snapshot ──place──► who should hold what ──fold──► status of caches and nodes
                                │                              │
                                ▼                              ▼
             desired state of every agent             writes (with their Events)
             sources to resolve

`plan` has no memory. A cache, a node or a copy is in some state because the snapshot says so, and the plan for a world
that is as it should be is empty of writes. An object is written at most once per plan, so a step of two writes (first
the finalizer, then status) takes two plans.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from actors.manifest import Manifest, StorageKey
from actors.messages import Company, DesiredState, ModelReport, NodeName
from actors.times import rfc3339
from coordinator.api.resources import NodeStatus, StatusKey
from coordinator.fleet.interface import AgentView
from coordinator.kube.quantity import format_bytes, parse_bytes
from coordinator.plan.access import forsaken, veiled, with_contested
from coordinator.plan.announcements import Announcement, agent_events, cache_events, eviction_events, repair_events
from coordinator.plan.conditions import conditions, deleting, verdicts
from coordinator.plan.desired import Want as Want
from coordinator.plan.desired import desired_states, draining, wants
from coordinator.plan.eviction import Eviction, evictions
from coordinator.plan.eviction import orders_of as eviction_orders
from coordinator.plan.fill_groups import companies
from coordinator.plan.fold import STARTING, Fold, Turn, fold, models_of, report_of, source_state
from coordinator.plan.offline_sources import known_from_copies
from coordinator.plan.origin_shares import Shares, govern
from coordinator.plan.orphans import group_problem, traces
from coordinator.plan.patches import CACHE_STATUS, NODE_STATUS, is_material, status_patch
from coordinator.plan.placement import Members, Placement, place
from coordinator.plan.removals import Leaving, orders_of, removals
from coordinator.plan.snapshot import LOCAL_NODES, Cache, LocalNode, Node, NodeGroup, Problem, Ref, Snapshot
from coordinator.plan.status import SETTLE, cache_numbers, local_node_status
from coordinator.plan.tally import Tally
from coordinator.plan.usage import Usage, usage
from coordinator.plan.writes import Verb as Verb
from coordinator.plan.writes import Write as Write
from coordinator.plan.writes import patched

UNREACHABLE_GRACE_S = 600.0
"""How long the deletion of a cache waits for an agent that does not answer on a node that is Ready. Its copy is then
ordered away when the agent is back, because nothing is left that it was for: see `removals`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`tallies` are for metrics. `companies`, by fill, `manifests`, by cache, and `shares.by_origin` belong into the
    next snapshot.

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


def plan(snapshot: Snapshot, now: float, turn: Turn | None = None) -> Plan:
    """Pure. `now` is epoch seconds; it becomes a time in a status, and tells the dead from the merely silent.

    `turn` bounds for how many LocalModelNodes a status is made; None: for all.
    """
    snapshot = replace(snapshot, caches=with_contested(snapshot))
    members = place(snapshot)
    copies = known_from_copies(snapshot, members)
    snapshot = replace(snapshot, resolutions=copies.resolutions)
    sources = {
        cache.key: source_state(cache, snapshot.resolutions.get(cache.key))
        for cache in snapshot.caches.values()
        if cache.deleted_at is None
    }
    sources = veiled(snapshot.caches.values(), sources)
    folded = fold(snapshot, members, sources, turn, now)
    use = usage(snapshot, now)
    nobodys = forsaken(snapshot.caches.values(), snapshot.resolutions)
    leaving = removals(snapshot, members, now, nobodys)
    writes = [
        *_cache_writes(snapshot, members, folded, use, leaving, nobodys, now),
        *_node_writes(snapshot, members, folded),
        *_group_writes(snapshot, members),
    ]
    together = companies(snapshot, members, sources, folded, now)
    going = evictions(snapshot, members, folded, use, now)
    orders = orders_of(snapshot, leaving, now)
    if not snapshot.evict_dry_run:
        for name, evicted in eviction_orders(snapshot, going, now).items():
            orders[name] = (*orders.get(name, ()), *evicted)
    shares = govern(snapshot, members, folded, together, now)
    desired = desired_states(snapshot, members, sources, folded, together, use, orders, copies.asked, shares, nobodys)
    return Plan(
        writes=tuple(writes),
        desired=desired,
        wants=wants(snapshot, members, folded),
        tallies=folded.caches,
        companies=together.by_fill,
        evictions=going,
        removals=leaving,
        looks=_looks(snapshot, leaving, () if snapshot.evict_dry_run else going),
        manifests=copies.manifests,
        shares=shares,
    )


def _looks(snapshot: Snapshot, leaving: Sequence[Leaving], going: Sequence[Eviction]) -> frozenset[NodeName]:
    aside = (name for name, view in snapshot.agents.items() if view.report is not None and view.report.aside)
    return frozenset([*aside, *(each.node for each in leaving), *(each.node for each in going)])


# --- caches ---


def _cache_writes(
    snapshot: Snapshot,
    members: Members,
    folded: Fold,
    use: Usage,
    leaving: Sequence[Leaving],
    nobodys: frozenset[StorageKey],
    now: float,
) -> Iterator[Write]:
    reported = None
    for cache in snapshot.caches.values():
        if cache.deleted_at is not None:
            if cache.finalizer in cache.finalizers:
                if reported is None:
                    reported = {name: models_of(report_of(snapshot, name)) for name in snapshot.nodes}
                yield from _deletion(snapshot, members, cache, reported, leaving, nobodys, now)
        elif cache.finalizer not in cache.finalizers and cache.problem is None:  # junk never gets a copy to clean up
            yield Write(Verb.PATCH, cache.ref, patched(cache.ref, {"finalizers": [*cache.finalizers, cache.finalizer]}))
        else:
            yield from _status_of_cache(snapshot, members, folded.caches[cache.key], use, now)


def _status_of_cache(snapshot: Snapshot, members: Members, tally: Tally, use: Usage, now: float) -> Iterator[Write]:
    cache = tally.cache
    wanted = cache_numbers(tally)
    judged = verdicts(tally, _problems(snapshot, cache), members.duplicates.get(cache.key))
    wanted["conditions"] = conditions(cache, judged, now)
    if judged[0].status and not wanted["completedAt"]:
        written = cache.status.get("completedAt")
        wanted["completedAt"] = written or next(c["lastTransitionTime"] for c in wanted["conditions"])
    wanted["unusedSince"] = rfc3339(use.since[cache.key]) if cache.key in use.since else None
    extensions = cache.ref.resource.plural not in snapshot.pruned
    patch = status_patch(cache.status, wanted, CACHE_STATUS, extensions=extensions)
    if patch:
        material = is_material(cache.status, patch)
        events = cache_events(cache, wanted, judged, extensions=extensions) if material else []
        yield Write(Verb.PATCH_STATUS, cache.ref, patched(cache.ref, status=patch), material, tuple(events))


def _problems(snapshot: Snapshot, cache: Cache) -> list[Problem]:
    """What is wrong with the request itself, or with a group it names."""
    problems = [cache.problem] if cache.problem else []
    return problems + [problem for name in cache.node_groups if (problem := group_problem(snapshot, name))]


def _deletion(
    snapshot: Snapshot,
    members: Members,
    cache: Cache,
    reported: Mapping[NodeName, Mapping[StorageKey, ModelReport]],
    leaving: Sequence[Leaving],
    nobodys: frozenset[StorageKey],
    now: float,
) -> Iterator[Write]:
    """Releases the finalizer once no node lists or reports the copy. What cannot be asked does not block for ever."""
    words = {k: v for k, v in (cache.status.get("nodeStatus") or {}).items() if isinstance(v, str)}
    holding, silent = [], []
    for name, node in snapshot.nodes.items():
        local, view = snapshot.local_nodes.get(name), snapshot.agents.get(name, STARTING)
        placement = members.placements.get(name)
        if local is not None and cache.key in local.listed:
            holding.append(name)
        elif placement is not None and cache.storage_key in placement.keys - nobodys:
            continue  # another cache of the same URI keeps the folder
        elif view.failure is None:
            if cache.storage_key in reported[name]:
                holding.append(name)
        elif node.ready and _may_hold(cache, view, reported[name], words.get(name)):
            silent.append(name)
    until = (cache.deleted_at or now) + UNREACHABLE_GRACE_S
    if not holding and (not silent or now >= until):
        rest = [finalizer for finalizer in cache.finalizers if finalizer != cache.finalizer]
        message = "no node lists it any more" + (f"; {len(silent)} could not be asked" if silent else "")
        done = Announcement(cache.ref, bool(silent), "Deleted", message)
        yield Write(Verb.PATCH, cache.ref, patched(cache.ref, {"finalizers": rest or None}), events=(done,))
        return
    left = {name: words[name] for name in sorted({*holding, *silent}) if name in words}
    available = sum(word == NodeStatus.DOWNLOADED for word in left.values())
    failed = sum(word == NodeStatus.ERROR for word in left.values())
    going = [each for each in leaving if each.key == cache.storage_key and not each.forced]
    users = {each.node: each.users for each in going if each.users}
    failures = (snapshot.looks[each.node].failure for each in going if each.node in snapshot.looks)
    unknown = next((failure for failure in failures if failure is not None), None)
    judged = deleting(cache, silent, until if silent else None, users, unknown)
    copies = {"available": available, "failed": failed, "total": len(left)}
    wanted = {
        "nodeStatus": left,
        "copies": {name: count for name, count in copies.items() if count},
        "conditions": conditions(cache, judged, now),
        "available": f"{available}/{len(left)}",
    }
    patch = status_patch(cache.status, wanted, wanted, extensions=cache.ref.resource.plural not in snapshot.pruned)
    if patch:
        known = {c.get("type"): c for c in cache.status.get("conditions") or ()}
        warn = any(
            known.get(verdict.type, {}).get("reason") != verdict.reason
            for verdict in (judged[0], judged[2])
            if verdict.reason not in ("Deleting", "AsExpected")
        )
        events = (Announcement(cache.ref, True, judged[0].reason, judged[0].message),) if warn else ()
        material = is_material(cache.status, patch)
        yield Write(Verb.PATCH_STATUS, cache.ref, patched(cache.ref, status=patch), material, events)


def _may_hold(cache: Cache, view: AgentView, reported: Mapping[StorageKey, ModelReport], word: str | None) -> bool:
    """Whether a silent agent's node is believed to have bytes of this cache: by its last report, else by status."""
    if view.report is not None:
        return cache.storage_key in reported
    return word in (NodeStatus.DOWNLOADED, NodeStatus.DOWNLOADING, NodeStatus.ERROR)


# --- nodes ---


def _node_writes(snapshot: Snapshot, members: Members, folded: Fold) -> Iterator[Write]:
    for name, placement in members.placements.items():
        node, local = snapshot.nodes[name], snapshot.local_nodes.get(name)
        if ("local_nodes", name) in snapshot.left_out:
            continue
        if local is None:
            yield _created(node, placement)
        else:
            entries = [*placement.entries, *traces(snapshot, name)]
            yield from _updated(snapshot, node, local, entries, folded.nodes.get(name))
    for name, local in snapshot.local_nodes.items():
        gone = snapshot.nodes.get(name)
        if ("nodes", name) in snapshot.left_out:
            continue
        if gone is None:  # the garbage collector does the same where KServe's LocalModelNodes have an owner
            yield Write(Verb.DELETE, local.ref, {})
        elif name not in members.placements and draining(snapshot, name):
            view = snapshot.agents.get(name, STARTING)
            empty = view.failure is None and view.report is not None and not view.report.models
            status = {} if empty and not local.models else local_node_status({}, [], view, local)
            yield from _updated(snapshot, gone, local, traces(snapshot, name), status)


def _created(node: Node, placement: Placement) -> Write:
    ref = Ref(LOCAL_NODES, node.name)
    body = {
        "apiVersion": LOCAL_NODES.api_version,
        "kind": LOCAL_NODES.kind,
        "metadata": {"name": node.name, "ownerReferences": [_owner(node)]},
        "spec": {"localModels": placement.entries},
    }
    return Write(Verb.CREATE, ref, body)


def _updated(
    snapshot: Snapshot, node: Node, local: LocalNode, entries: list[Mapping[str, Any]], status: Mapping[str, Any] | None
) -> Iterator[Write]:
    owned = any(owner.get("uid") == node.uid for owner in local.owners)
    if not owned or list(local.models) != entries:
        others = [owner for owner in local.owners if owner.get("kind") != "Node"]
        metadata = {} if owned else {"ownerReferences": [*others, _owner(node)]}
        yield Write(Verb.PATCH, local.ref, patched(local.ref, metadata, spec={"localModels": entries}))
        return
    if status is None:
        return
    patch = status_patch(local.status, status, NODE_STATUS, extensions=LOCAL_NODES.plural not in snapshot.pruned)
    if patch:
        events = agent_events(local.ref, local.status, status) if "agent" in patch and status else []
        if "models" in patch:
            events = [*events, *repair_events(local.ref, local.status, status)]
            events += eviction_events(node.name, snapshot.caches, local.status, status)
        material = is_material(local.status, patch)
        yield Write(Verb.PATCH_STATUS, local.ref, patched(local.ref, status=patch), material, tuple(events))


def _owner(node: Node) -> Mapping[str, str]:
    return {"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.uid}


# --- node groups ---


def _group_writes(snapshot: Snapshot, members: Members) -> Iterator[Write]:
    """`status.used` and `.available`, summed over the members that report. Not a subresource, as in KServe."""
    for name, nodes in members.groups.items():
        group = snapshot.groups[name]
        roots = [
            root
            for node in nodes
            if (report := report_of(snapshot, node)) is not None
            for root in report.roots
            if root.path == group.root and root.failure is None
        ]
        if not roots:
            continue
        limit = group.limit_bytes if group.limit_bytes is not None else 1 << 62
        used = sum(root.used_bytes for root in roots)
        available = sum(max(0, min(root.free_bytes, limit - root.used_bytes) - root.reserved_bytes) for root in roots)
        yield from _group_status(group, used, available)


def _group_status(group: NodeGroup, used: int, available: int) -> Iterator[Write]:
    measured = {"used": used, "available": available}
    wanted = {name: _settled_quantity(count, group.status.get(name)) for name, count in measured.items()}
    if any(group.status.get(name) != value for name, value in wanted.items()):
        yield Write(Verb.PATCH, group.ref, patched(group.ref, status=wanted), material=False)


def _settled_quantity(count: int, written: object) -> object:
    """`written` while it says about the same; else `count` for people."""
    text = format_bytes(count)
    try:
        value = parse_bytes(written) if isinstance(written, int | str) else None
    except ValueError:
        value = None
    if value is None or bool(value) != bool(count):
        return text
    return written if text == written or abs(value - count) <= SETTLE * max(value, count) else text
