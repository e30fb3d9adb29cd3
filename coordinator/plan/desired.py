"""What every agent should hold, and which sources must be resolved for that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

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
    RootReport,
)
from actors.trust import UNRESTRICTED
from coordinator.api.resources import StatusKey
from coordinator.plan.access import Access, asks_itself
from coordinator.plan.eviction import may_go
from coordinator.plan.facts import Facts
from coordinator.plan.fill_groups import Companies
from coordinator.plan.fold import Fold
from coordinator.plan.held import status_roots
from coordinator.plan.origin_shares import Shares
from coordinator.plan.placement import Placement
from coordinator.plan.retries import name_for, name_for_source
from coordinator.plan.rollout import Rollouts
from coordinator.plan.slots import Slot, audience, expected_digest, priority
from coordinator.plan.snapshot import Cache, Credentials, Snapshot
from coordinator.plan.tally import SourceState
from coordinator.plan.usage import oldest_users
from coordinator.plan.versions import question, written_content


@dataclass(frozen=True, slots=True)
class Want:
    """A source to resolve. `pinned_revision`: answer for this commit. `reject`: resolutions that no longer serve.

    `retry` names the last request to ask again at once (see `plan.retries`), `refresh` the question what there is newer
    than that commit (see `plan.versions`).
    """

    source: ModelSource
    credentials: Credentials
    pinned_revision: str | None = None
    reject: frozenset[str] = frozenset()
    retry: str = ""
    refresh: str = ""


def desired_states(
    facts: Facts,
    together: Companies,
    shares: Shares,
    orders: Mapping[NodeName, tuple[Removal, ...]],
    rolling: Rollouts,
) -> dict[NodeName, DesiredState]:
    """The state of every node in a group, and an empty one for nodes that left but are not known to be empty yet."""
    snapshot, members = facts.snapshot, facts.members
    models_of, call = _ModelsOf(facts, together, rolling), facts.memory.call
    needed = _Needed(facts)
    by_name = {company.name: company for company in together.by_fill.values()}
    names_in: dict[int, frozenset[str]] = {id(named): frozenset(named.values()) for named in _each(together.of_nodes)}
    desired: dict[NodeName, DesiredState] = {}
    for name, placement in members.placements.items():
        report = snapshot.report(name)
        desired[name] = call(
            ("desired", name),
            DesiredState,
            snapshot.owner,
            call(("roots", name), _roots, placement.roots, report.roots if report is not None else ()),
            models_of.node(name),
            needed.unknown(name, report) or _NONE,
            _unknown_companies(by_name, names_in.get(id(together.of_nodes.get(name)), frozenset()), report) or _NONE,
            orders.get(name, ()),
            facts.asked.get(name, _NO_KEYS),
            shares.of_nodes.get(name, _NONE),
            UNRESTRICTED,
            oldest_users(snapshot, name),
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


_NONE: dict[Any, Any] = {}
"""Plain, because it travels; nobody writes into a desired state."""
_NO_KEYS: frozenset[StorageKey] = frozenset()


class _ModelsOf:
    """The models of every node; nodes that should hold the same, in the same company, share one tuple."""

    def __init__(self, facts: Facts, together: Companies, rolling: Rollouts) -> None:
        self._facts = facts
        self._held_back = rolling.held_back
        self._together = together
        self._memory = memory = facts.memory
        self._named: dict[int, frozenset[tuple[StorageKey, str]]] = {}
        self._sources = memory.alike("sources", facts.sources)
        unused = memory.same("unused", frozenset(facts.use.since))
        self._alone = {
            placement: memory.call(("models", placement), _models, placement, self._sources, facts.forsaken, unused)
            for placement in facts.members.by_placement
        }

    def _companies(self, named: Mapping[StorageKey, str]) -> frozenset[tuple[StorageKey, str]]:
        """One value for all nodes that fill the same together: most of them share one mapping."""
        if id(named) not in self._named:
            self._named[id(named)] = frozenset(named.items())
        return self._named[id(named)]

    def node(self, name: NodeName) -> tuple[DesiredModel, ...]:
        placement, memory = self._facts.members.placements[name], self._memory
        models = self._alone[placement]
        named, unheard = self._together.of_nodes.get(name), self._together.unheard.get(name, _NO_KEYS)
        if named or unheard:
            named = named or _NONE
            alike = "accompanied", placement, self._companies(named), unheard
            models = memory.call(alike, partial(_accompanied, named=named, unheard=unheard), models)
        if foreign := self._facts.folded.foreign.get(name):
            models = memory.call(("replacing", name), _replacing, models, placement, foreign, self._sources)
        if held_back := self._held_back.get(name):
            keys = memory.same(("held back keys", name), held_back)
            models = memory.call(("held back", name), _held_back, models, keys)
        if placement.retried:
            models = memory.call(("asked again", name), _asked_again, models, placement, name)
        return models


def _models(
    placement: Placement,
    sources: Mapping[StatusKey, SourceState],
    forsaken: frozenset[StorageKey],
    unused: frozenset[StatusKey],
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
            evictable=may_go(sharing[slot.cache.storage_key], unused),
            kept=slot.orphan is not None,
            group=slot.group,
            audience=audience(sharing[slot.cache.storage_key]),
            version=sources[slot.cache.key].content.name,
            keep=slot.cache.keep_versions,
        )
        for slot in placement.slots
        if slot.owner is slot.cache and slot.root is not None and slot.cache.storage_key not in forsaken
    )


def _held_back(models: tuple[DesiredModel, ...], keys: frozenset[StorageKey]) -> tuple[DesiredModel, ...]:
    """With those that are not to take the place of what is there."""
    return tuple(replace(model, hold=True) if model.key in keys else model for model in models)


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


def _roots(roots: tuple[DesiredRoot, ...], reported: Iterable[RootReport]) -> tuple[DesiredRoot, ...]:
    """The roots of the node's groups, and those of groups it has left as long as something lies there."""
    known = {root.path for root in roots}
    others = (root for root in reported if root.path not in known)
    return roots + tuple(DesiredRoot(root.path) for root in others if root.used_bytes or root.reserved_bytes)


class _Needed:
    """The resolutions that nodes need; those that lack the same are looked up once."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._by_missing: dict[Sequence[Cache], dict[str, Resolved]] = {}

    def unknown(self, name: NodeName, report: NodeReport | None) -> dict[str, Resolved]:
        """Those that this node does not have."""
        missing = self._facts.folded.missing[name]
        if not missing:
            return {}
        needed = self._by_missing.get(missing)
        if needed is None:
            needed = self._by_missing[missing] = dict(self._of(missing))
        if report is None or needed.keys() <= report.resolved_known:
            return needed if report is None else {}
        return {key: needed[key] for key in needed.keys() - report.resolved_known}

    def _of(self, missing: Iterable[Cache]) -> Iterator[tuple[str, Resolved]]:
        for cache in missing:
            needed = self._facts.sources[cache.key].resolved
            if needed is not None and (resolved := self._facts.snapshot.resolutions[cache.key].resolved) is not None:
                yield needed, resolved


def _accompanied(
    models: tuple[DesiredModel, ...], named: Mapping[StorageKey, str], unheard: frozenset[StorageKey]
) -> tuple[DesiredModel, ...]:
    """With the company of each; what must not begin yet counts as not resolved yet."""
    return tuple(
        replace(model, company=named.get(model.key), resolved=None if model.key in unheard else model.resolved)
        for model in models
    )


def _each(of_nodes: Mapping[NodeName, Mapping[StorageKey, str]]) -> Iterable[Mapping[StorageKey, str]]:
    """The mappings, each once, however many nodes share it."""
    return {id(named): named for named in of_nodes.values()}.values()


def _unknown_companies(
    by_name: Mapping[str, Company], named: frozenset[str], report: NodeReport | None
) -> dict[str, Company]:
    """Those that a node is in and has not been told of."""
    unknown = named - (report.companies_known if report else frozenset())
    return {name: by_name[name] for name in unknown if name in by_name}


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
    nothing: Sequence[Cache] = ()
    looked_at: set[tuple[Placement, Sequence[Cache]]] = set()
    for name, placement in facts.members.placements.items():
        if snapshot.nodes[name].ready:
            missing = folded.missing[name]
            if (placement, missing) not in looked_at:
                wanted |= _asking(snapshot, placement, folded, {cache.storage_key for cache in missing})
                looked_at |= {(placement, missing), (placement, nothing)}
    questions = {
        key: text
        for key, tally in folded.caches.items()
        if tally.total and (text := question(snapshot.caches[key], facts.now))
    }
    wanted |= {key: snapshot.caches[key] for key in questions}
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
            refresh=questions.get(key, ""),
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
        commit = written_content(cache).revision
        if commit and cache.deleted_at is None:
            commits.setdefault((cache.storage_key, cache.selection), commit)
    return commits


def _is_stale(snapshot: Snapshot, cache: Cache, report: ModelReport) -> bool:
    """The agent failed in a way that fresh locations can help: other content, or a signed location that is refused."""
    reason = report.failure.reason if report.failure else None
    resolution = snapshot.resolutions.get(cache.key)
    signed = resolution is not None and resolution.resolved is not None and resolution.resolved.expires_at is not None
    return reason in ("SourceChanged", "SourceExpired") or (reason == "SourceDenied" and signed)
