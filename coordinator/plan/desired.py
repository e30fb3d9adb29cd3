"""What every agent should hold, and which sources must be resolved for that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from actors.manifest import ModelSource, Resolved, StorageKey
from actors.messages import (
    Company,
    DesiredModel,
    DesiredRoot,
    DesiredState,
    ModelReport,
    NodeName,
    NodeReport,
    Removal,
)
from coordinator.api.resources import StatusKey
from coordinator.plan.access import Access, asks_itself
from coordinator.plan.eviction import may_go
from coordinator.plan.fill_groups import Companies
from coordinator.plan.fold import Fold, report_of
from coordinator.plan.origin_shares import Shares
from coordinator.plan.placement import Members, Placement, Slot, expected_digest, priority, status_roots
from coordinator.plan.snapshot import Cache, Credentials, Snapshot
from coordinator.plan.tally import SourceState
from coordinator.plan.usage import Usage, oldest_users


@dataclass(frozen=True, slots=True)
class Want:
    """A source to resolve. `pinned_revision`: answer for this commit. `reject`: resolutions that no longer serve."""

    source: ModelSource
    credentials: Credentials
    pinned_revision: str | None = None
    reject: frozenset[str] = frozenset()


def desired_states(
    snapshot: Snapshot,
    members: Members,
    sources: Mapping[StatusKey, SourceState],
    folded: Fold,
    together: Companies,
    use: Usage,
    orders: Mapping[NodeName, tuple[Removal, ...]],
    asked: Mapping[NodeName, frozenset[StorageKey]],
    shares: Shares,
    nobodys: frozenset[StorageKey] = frozenset(),
) -> dict[NodeName, DesiredState]:
    """The state of every node in a group, and an empty one for nodes that left but are not known to be empty yet.

    `asked`: the models whose manifests nodes are asked for. `nobodys` are wanted only by caches that may not have them.
    """
    desired: dict[NodeName, DesiredState] = {}
    shared: dict[int, tuple[DesiredModel, ...]] = {}
    accompanied: dict[
        tuple[int, frozenset[tuple[StorageKey, str]], frozenset[StorageKey]], tuple[DesiredModel, ...]
    ] = {}
    for name, placement in members.placements.items():
        models = shared.get(id(placement))
        if models is None:
            models = shared[id(placement)] = _models(placement, sources, use, nobodys)
        report = report_of(snapshot, name)
        named, unheard = together.of_nodes.get(name, {}), together.unheard.get(name, frozenset())
        if named or unheard:
            alike = id(placement), frozenset(named.items()), unheard
            if alike not in accompanied:
                accompanied[alike] = _together(models, named, unheard)
            models = accompanied[alike]
        if foreign := folded.foreign.get(name):
            models = _replacing(models, placement, foreign, sources)
        desired[name] = DesiredState(
            owner=snapshot.owner,
            roots=_roots(placement.roots, report),
            models=models,
            resolved=_unknown(snapshot, folded.missing[name], report, sources),
            companies=_unknown_companies(together, named, report),
            remove=orders.get(name, ()),
            manifests=asked.get(name, frozenset()),
            origins=shares.of_nodes.get(name, {}),
            used=oldest_users(snapshot, name),
        )
    for name in snapshot.nodes:
        if name not in members.placements and draining(snapshot, name):
            report = report_of(snapshot, name)
            paths = [r.path for r in report.roots] if report else status_roots(snapshot.local_nodes.get(name))
            roots = tuple(DesiredRoot(path) for path in paths)
            desired[name] = DesiredState(
                snapshot.owner, roots, remove=orders.get(name, ()), origins={}, used=oldest_users(snapshot, name)
            )
    return desired


def _models(
    placement: Placement, sources: Mapping[StatusKey, SourceState], use: Usage, nobodys: frozenset[StorageKey]
) -> tuple[DesiredModel, ...]:
    """One per folder; who shares it lends it the highest priority."""
    sharing: dict[StorageKey, list[Slot]] = {}
    for slot in placement.slots:
        sharing.setdefault(slot.cache.storage_key, []).append(slot)
    return tuple(
        DesiredModel(
            key=slot.cache.storage_key,
            root=slot.root,
            source=slot.cache.source,
            resolved=sources[slot.cache.key].resolved,
            expected_digest=expected_digest(sharing[slot.cache.storage_key]),
            priority=priority(sharing[slot.cache.storage_key]),
            evictable=may_go(sharing[slot.cache.storage_key], use),
            kept=slot.orphan is not None,
        )
        for slot in placement.slots
        if slot.owner is slot.cache and slot.root is not None and slot.cache.storage_key not in nobodys
    )


def _replacing(
    models: tuple[DesiredModel, ...],
    placement: Placement,
    foreign: frozenset[StorageKey],
    sources: Mapping[StatusKey, SourceState],
) -> tuple[DesiredModel, ...]:
    """With the digest to insist on where a copy was left by a cache that is gone, and is not what the source has."""
    digests = {
        slot.cache.storage_key: sources[slot.cache.key].manifest_digest
        for slot in placement.slots
        if slot.owner is slot.cache and slot.cache.storage_key in foreign
    }
    return tuple(
        replace(model, expected_digest=model.expected_digest or digests.get(model.key))
        if model.key in digests
        else model
        for model in models
    )


def _roots(roots: tuple[DesiredRoot, ...], report: NodeReport | None) -> tuple[DesiredRoot, ...]:
    """The roots of the node's groups, and those of groups it has left as long as something lies there."""
    if report is None:
        return roots
    known = {root.path for root in roots}
    others = (root for root in report.roots if root.path not in known)
    return roots + tuple(DesiredRoot(root.path) for root in others if root.used_bytes or root.reserved_bytes)


def _unknown(
    snapshot: Snapshot,
    missing: Sequence[Cache],
    report: NodeReport | None,
    sources: Mapping[StatusKey, SourceState],
) -> dict[str, Resolved]:
    """The resolutions that this node needs and does not have."""
    known = report.resolved_known if report else frozenset()
    unknown = {}
    for cache in missing:
        name = sources[cache.key].resolved
        if name is not None and name not in known:
            resolved = snapshot.resolutions[cache.key].resolved
            if resolved is not None:
                unknown[name] = resolved
    return unknown


def _together(
    models: tuple[DesiredModel, ...], named: Mapping[StorageKey, str], unheard: frozenset[StorageKey]
) -> tuple[DesiredModel, ...]:
    """With the company of each; what must not begin yet counts as not resolved yet."""
    return tuple(
        replace(model, company=named.get(model.key), resolved=None if model.key in unheard else model.resolved)
        for model in models
    )


def _unknown_companies(
    together: Companies, named: Mapping[StorageKey, str], report: NodeReport | None
) -> dict[str, Company]:
    """Those that this node is in and has not been told of."""
    unknown = set(named.values()) - (report.companies_known if report else frozenset())
    return {company.name: company for company in together.by_fill.values() if company.name in unknown}


def draining(snapshot: Snapshot, name: NodeName) -> bool:
    """A node in no group whose disk may still hold something: its status is cleared once its agent reports nothing."""
    local, report = snapshot.local_nodes.get(name), report_of(snapshot, name)
    if report and report.models:
        return True
    return local is not None and bool(local.models or local.status.get("modelStatus") or local.status.get("agent"))


def wants(snapshot: Snapshot, members: Members, folded: Fold) -> dict[StatusKey, Want]:
    """Every source that a ready node still needs something of, and that of every cache that has not read its own yet.

    A world that holds everything, for caches whose status proves their right to it, asks for nothing.
    """
    wanted: dict[StatusKey, Cache] = {}
    looked_at: set[int] = set()
    for name, placement in members.placements.items():
        if not snapshot.nodes[name].ready:
            continue
        missing = {cache.storage_key for cache in folded.missing[name]}
        if id(placement) not in looked_at or missing:
            wanted |= _asking(snapshot, placement, folded, missing)
        looked_at.add(id(placement))
    commits = _commits(snapshot) if wanted else {}
    rejected: dict[StatusKey, set[str]] = {}
    for cache, report in folded.failed:
        if report.resolved and _is_stale(snapshot, cache, report):
            rejected.setdefault(cache.key, set()).add(report.resolved)
    return {
        key: Want(
            source=cache.source,
            credentials=cache.credentials,
            pinned_revision=commits.get((cache.storage_key, cache.selection)) or folded.caches[key].coming,
            reject=frozenset(rejected.get(key, ())),
        )
        for key, cache in wanted.items()
    }


def _asking(snapshot: Snapshot, placement: Placement, folded: Fold, missing: set[StorageKey]) -> dict[StatusKey, Cache]:
    """Of one placement: who must prove something, and of those who share what is missing the first that is not refused.

    Those before it go on asking, so that it does not change with every failure.
    """
    asking: dict[StatusKey, Cache] = {}
    settled: set[StorageKey] = set()
    for slot in placement.slots:
        cache, key = slot.cache, slot.cache.storage_key
        if cache.problem is not None:
            continue
        tally = folded.caches[cache.key]
        if asks_itself(cache) and (tally.barred or Access.of(cache, tally.source).unproven):
            asking[cache.key] = cache
        if key in missing and slot.conflict is None and key not in settled:
            asking[cache.key] = cache
            resolution = snapshot.resolutions.get(cache.key)
            if resolution is None or resolution.failure is None or resolution.resolved is not None:
                settled.add(key)
        elif slot.conflict is not None and not (cache.digest or slot.owner.digest):  # the same files, perhaps
            asking[cache.key] = cache
    return asking


def _commits(snapshot: Snapshot) -> dict[tuple[StorageKey, str], str]:
    """By folder and request, the commit that it was resolved to first; who shares it asks for the same."""
    commits: dict[tuple[StorageKey, str], str] = {}
    for cache in sorted(snapshot.caches.values(), key=lambda cache: cache.age_order):
        commit = cache.status.get("revision")
        if commit and cache.deleted_at is None and cache.status.get("selection") == cache.selection:
            commits.setdefault((cache.storage_key, cache.selection), str(commit))
    return commits


def _is_stale(snapshot: Snapshot, cache: Cache, report: ModelReport) -> bool:
    """The agent failed in a way that fresh locations can help: other content, or a signed location that is refused."""
    reason = report.failure.reason if report.failure else None
    resolution = snapshot.resolutions.get(cache.key)
    signed = resolution is not None and resolution.resolved is not None and resolution.resolved.expires_at is not None
    return reason in ("SourceChanged", "SourceExpired") or (reason == "SourceDenied" and signed)
