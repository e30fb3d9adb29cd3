"""What every agent should hold, and which sources must be resolved for that."""

from __future__ import annotations

from collections.abc import Mapping
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
from coordinator.plan.facts import Facts
from coordinator.plan.fill_groups import Companies
from coordinator.plan.fold import Fold
from coordinator.plan.origin_shares import Shares
from coordinator.plan.placement import Placement, Slot, audience, expected_digest, priority, status_roots
from coordinator.plan.retries import name_for, name_for_source
from coordinator.plan.snapshot import Cache, Credentials, Snapshot
from coordinator.plan.tally import SourceState
from coordinator.plan.usage import oldest_users


@dataclass(frozen=True, slots=True)
class Want:
    """A source to resolve. `pinned_revision`: answer for this commit. `reject`: resolutions that no longer serve.

    `retry` names the last request to ask again at once (see `plan.retries`).
    """

    source: ModelSource
    credentials: Credentials
    pinned_revision: str | None = None
    reject: frozenset[str] = frozenset()
    retry: str = ""


def desired_states(
    facts: Facts, together: Companies, shares: Shares, orders: Mapping[NodeName, tuple[Removal, ...]]
) -> dict[NodeName, DesiredState]:
    """The state of every node in a group, and an empty one for nodes that left but are not known to be empty yet."""
    snapshot, members = facts.snapshot, facts.members
    models_of = _ModelsOf(facts, together)
    desired: dict[NodeName, DesiredState] = {}
    for name, placement in members.placements.items():
        report = snapshot.report(name)
        desired[name] = DesiredState(
            owner=snapshot.owner,
            roots=_roots(placement.roots, report),
            models=models_of.node(name),
            resolved=_unknown(facts, name, report),
            companies=_unknown_companies(together, name, report),
            remove=orders.get(name, ()),
            manifests=facts.asked.get(name, frozenset()),
            origins=shares.of_nodes.get(name, {}),
            used=oldest_users(snapshot, name),
        )
    for name in snapshot.nodes:
        if name not in members.placements and draining(snapshot, name):
            report = snapshot.report(name)
            paths = [r.path for r in report.roots] if report else status_roots(snapshot.local_nodes.get(name))
            roots = tuple(DesiredRoot(path) for path in paths)
            desired[name] = DesiredState(
                snapshot.owner, roots, remove=orders.get(name, ()), origins={}, used=oldest_users(snapshot, name)
            )
    return desired


class _ModelsOf:
    """The models of every node; nodes that should hold the same, in the same company, share one tuple."""

    def __init__(self, facts: Facts, together: Companies) -> None:
        self._facts = facts
        self._together = together
        self._alone = {placement: _models(facts, placement) for placement in facts.members.by_placement}
        self._accompanied: dict[
            tuple[Placement, frozenset[tuple[StorageKey, str]], frozenset[StorageKey]], tuple[DesiredModel, ...]
        ] = {}

    def node(self, name: NodeName) -> tuple[DesiredModel, ...]:
        placement = self._facts.members.placements[name]
        models = self._alone[placement]
        named, unheard = self._together.of_nodes.get(name, {}), self._together.unheard.get(name, frozenset())
        if named or unheard:
            alike = placement, frozenset(named.items()), unheard
            if alike not in self._accompanied:
                self._accompanied[alike] = _accompanied(models, named, unheard)
            models = self._accompanied[alike]
        if foreign := self._facts.folded.foreign.get(name):
            models = _replacing(models, placement, foreign, self._facts.sources)
        return _asked_again(models, placement, name)


def _models(facts: Facts, placement: Placement) -> tuple[DesiredModel, ...]:
    """One per folder; who shares it lends it the highest priority."""
    sharing: dict[StorageKey, list[Slot]] = {}
    for slot in placement.slots:
        sharing.setdefault(slot.cache.storage_key, []).append(slot)
    return tuple(
        DesiredModel(
            key=slot.cache.storage_key,
            root=slot.root,
            source=slot.cache.source,
            resolved=facts.sources[slot.cache.key].resolved,
            expected_digest=expected_digest(sharing[slot.cache.storage_key]),
            priority=priority(sharing[slot.cache.storage_key]),
            evictable=may_go(sharing[slot.cache.storage_key], facts.use),
            kept=slot.orphan is not None,
            group=slot.group,
            audience=audience(sharing[slot.cache.storage_key]),
        )
        for slot in placement.slots
        if slot.owner is slot.cache and slot.root is not None and slot.cache.storage_key not in facts.forsaken
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


def _asked_again(models: tuple[DesiredModel, ...], placement: Placement, node: NodeName) -> tuple[DesiredModel, ...]:
    """With the requests of every cache that shares the folder to try again at once on this node."""
    names: dict[StorageKey, set[str]] = {}
    for slot in placement.slots:
        if slot.cache.retries and (name := name_for(slot.cache.retries, node)):
            names.setdefault(slot.cache.storage_key, set()).add(name)
    if not names:
        return models
    return tuple(
        replace(model, retry=",".join(sorted(names[model.key]))) if model.key in names else model for model in models
    )


def _roots(roots: tuple[DesiredRoot, ...], report: NodeReport | None) -> tuple[DesiredRoot, ...]:
    """The roots of the node's groups, and those of groups it has left as long as something lies there."""
    if report is None:
        return roots
    known = {root.path for root in roots}
    others = (root for root in report.roots if root.path not in known)
    return roots + tuple(DesiredRoot(root.path) for root in others if root.used_bytes or root.reserved_bytes)


def _unknown(facts: Facts, name: NodeName, report: NodeReport | None) -> dict[str, Resolved]:
    """The resolutions that this node needs and does not have."""
    known = report.resolved_known if report else frozenset()
    unknown = {}
    for cache in facts.folded.missing[name]:
        needed = facts.sources[cache.key].resolved
        if needed is not None and needed not in known:
            resolved = facts.snapshot.resolutions[cache.key].resolved
            if resolved is not None:
                unknown[needed] = resolved
    return unknown


def _accompanied(
    models: tuple[DesiredModel, ...], named: Mapping[StorageKey, str], unheard: frozenset[StorageKey]
) -> tuple[DesiredModel, ...]:
    """With the company of each; what must not begin yet counts as not resolved yet."""
    return tuple(
        replace(model, company=named.get(model.key), resolved=None if model.key in unheard else model.resolved)
        for model in models
    )


def _unknown_companies(together: Companies, node: NodeName, report: NodeReport | None) -> dict[str, Company]:
    """Those that this node is in and has not been told of."""
    named = together.of_nodes.get(node, {})
    unknown = set(named.values()) - (report.companies_known if report else frozenset())
    return {company.name: company for company in together.by_fill.values() if company.name in unknown}


def draining(snapshot: Snapshot, name: NodeName) -> bool:
    """A node in no group whose disk may still hold something: its status is cleared once its agent reports nothing."""
    local, report = snapshot.local_nodes.get(name), snapshot.report(name)
    if report and report.models:
        return True
    return local is not None and bool(local.models or local.status.get("modelStatus") or local.status.get("agent"))


def wants(facts: Facts) -> dict[StatusKey, Want]:
    """Every source that a ready node still needs something of, and that of every cache that has not read its own yet.

    A world that holds everything, for caches whose status proves their right to it, asks for nothing.
    """
    snapshot, folded = facts.snapshot, facts.folded
    wanted: dict[StatusKey, Cache] = {}
    looked_at: set[Placement] = set()
    for name, placement in facts.members.placements.items():
        if not snapshot.nodes[name].ready:
            continue
        missing = {cache.storage_key for cache in folded.missing[name]}
        if placement not in looked_at or missing:
            wanted |= _asking(snapshot, placement, folded, missing)
        looked_at.add(placement)
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
            retry=name_for_source(cache.retries),
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
