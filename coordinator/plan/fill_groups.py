"""The nodes that fill a model together: of those that want the same content, the ones that can reach each other.

    node lacks it, its agent is alive and has a peer port     ──► member, if it is not the only node that wants it
    node holds a committed copy of it                         ──► member, a seed: the others read it, not the origin
    agent silent for DEAD_S, or of another incarnation        ──► no member any more; another takes over what it owned

Pure. A node that owned a share of a running fill keeps it, and one that joins later owns none, because a chunk whose
owner changes is read twice if its owner had begun. That is known from what was told last; after a restart of the
coordinator from the agents, whose companies stay as they are until all of them have had the time to report.
"""

from __future__ import annotations

import hashlib
import hmac
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from actors.manifest import Resolved, StorageKey
from actors.mesh.limits import DEAD_S, LINK_BYTES_PER_S, choose_chunk_bytes
from actors.messages import Company, Member, ModelReport, NodeName, Part, Phase
from coordinator.plan.facts import Facts
from coordinator.plan.placement import Placement
from coordinator.plan.snapshot import Cache, Snapshot

ZONE_LABEL = "topology.kubernetes.io/zone"
SETTLE_S = 15.0
"""A new coordinator hears from agents that are alive within seconds."""
ROTATE_S = 3600.0
"""The token of a fill is another after this. Agents know the last one too, so no transfer notices."""


@dataclass(frozen=True, slots=True)
class Companies:
    """`by_fill` is what is told now. `of_nodes` names the company of each model on each node, where there is one.

    `unheard`: what several nodes want, and these are not to begin before it is known what the others do.
    """

    by_fill: Mapping[str, Company] = field(default_factory=dict)
    of_nodes: Mapping[NodeName, Mapping[StorageKey, str]] = field(default_factory=dict)
    unheard: Mapping[NodeName, frozenset[StorageKey]] = field(default_factory=dict)


def companies(facts: Facts) -> Companies:
    """Everybody who fills together, by what is known now."""
    snapshot, members = facts.snapshot, facts.members
    by_fill: dict[str, Company] = {}
    of_nodes: dict[NodeName, Mapping[StorageKey, str]] = {}
    unheard: dict[NodeName, frozenset[StorageKey]] = {}
    wanted = _wanted(facts)
    if not wanted:
        return Companies()
    agents = dict(_agents(facts))
    reportless = frozenset(name for name in members.placements if snapshot.report(name) is None)
    earlier = {_content(company.fill): company for company in snapshot.companies.values()}
    shared: dict[frozenset[Placement], _Wanting] = {}
    for resolved, caches in wanted:
        key, where = caches[0].storage_key, members.where_wanted(caches)
        if where not in shared:
            shared[where] = _Wanting.among(members.nodes_of(where), agents, reportless)
        wanting = shared[where]
        if wanting.count < 2:
            continue
        for name in wanting.silent:
            unheard[name] = unheard.get(name, frozenset()) | {key}
        before = earlier.get(resolved.content)
        if before is None and wanting.silent and facts.now < snapshot.acting_since + SETTLE_S:
            parts = {each.name: each.part_in(resolved, key) for each in wanting.agents}
            if any(parts.values()):  # an earlier coordinator has begun this, and not all who are in it were heard yet
                for name, part in parts.items():
                    if part is not None:
                        of_nodes[name] = {**of_nodes.get(name, {}), key: part.company}
                    else:
                        unheard[name] = unheard.get(name, frozenset()) | {key}
                continue
        company = _company(snapshot, resolved, key, wanting.agents, before, facts.now)
        if company.members:  # also if it is but one: the others' agents may be about to start
            by_fill[company.fill] = company
            wanting.named[key] = company.name
    for wanting in shared.values():
        for each in wanting.agents if wanting.named else ():
            known = of_nodes.get(each.name)
            of_nodes[each.name] = wanting.named if known is None else {**known, **wanting.named}
    return Companies(by_fill, of_nodes, unheard)


@dataclass(frozen=True, slots=True)
class _Agent:
    """An agent that can be counted on and that others can reach, with its models by key.

    `owner`, `seed`, `other`: itself as a member of a fill. `process`: its name and incarnation.
    """

    name: NodeName
    link_bytes_per_s: float
    models: Mapping[StorageKey, ModelReport]
    owner: Member
    seed: Member
    other: Member
    process: tuple[NodeName, str]

    def as_told(
        self, told: Mapping[tuple[NodeName, str], Member], resolved: Resolved, key: StorageKey
    ) -> Member | None:
        """As a member of a fill in which this very process is; None: it is not."""
        was = told.get(self.process)
        if was is None or was is self.owner:
            return was
        if was is self.other:
            model = self.models.get(key)
            if model is None or model.phase is not Phase.READY:
                return was
        return self.member(was.owns, resolved, key)

    def member(self, owns: bool, resolved: Resolved, key: StorageKey) -> Member:
        if owns:
            return self.owner
        model = self.models.get(key)
        holds = model is not None and model.phase is Phase.READY and _is_copy(model, resolved)
        return self.seed if holds else self.other

    def part_in(self, resolved: Resolved, key: StorageKey) -> Part | None:
        """The part that it says it takes in the fill of this content."""
        model = self.models.get(key)
        part = model.part if model is not None else None
        return part if part is not None and _content(part.fill) == resolved.content else None


@dataclass(frozen=True, slots=True)
class _Wanting:
    """The nodes that should hold the same: how many, those with an agent to count on, and those never heard.

    `named` are the companies of all these agents, by model.
    """

    count: int
    agents: Sequence[_Agent]
    silent: frozenset[NodeName]
    named: dict[StorageKey, str] = field(default_factory=dict)

    @classmethod
    def among(
        cls, names: Sequence[NodeName], agents: Mapping[NodeName, _Agent], reportless: frozenset[NodeName]
    ) -> _Wanting:
        able = [agents[name] for name in sorted(names) if name in agents]
        return cls(len(names), able, reportless.intersection(names))


def _wanted(facts: Facts) -> list[tuple[Resolved, list[Cache]]]:
    """What some node lacks and can be read, with the caches that ask for it. Equal resolutions count as one."""
    lacking = {cache.key: cache for caches in dict.fromkeys(facts.folded.missing.values()) for cache in caches}
    found: dict[str, tuple[Resolved, list[Cache]]] = {}
    for key, cache in lacking.items():
        resolution = facts.snapshot.resolutions.get(key)
        resolved = resolution.resolved if resolution is not None else None
        if resolved is not None and facts.sources[key].resolved == resolved.name:
            found.setdefault(resolved.content, (resolved, []))[1].append(cache)
    return list(found.values())


def _agents(facts: Facts) -> Iterator[tuple[NodeName, _Agent]]:
    snapshot = facts.snapshot
    for name in facts.members.placements:
        view = snapshot.agent(name)
        report = view.report
        if report is None or report.peer_address is None:
            continue
        if view.failure is not None and facts.now > (view.received_at or 0.0) + DEAD_S:
            continue
        link = report.link_bytes_per_s or LINK_BYTES_PER_S
        address = report.incarnation, snapshot.nodes[name].labels.get(ZONE_LABEL), report.peer_address
        known = facts.memory.same(("member", name), (name, *address))
        members = facts.memory.call(("members", name), _as_members, known)
        yield name, _Agent(name, link, view.models, *members, (name, report.incarnation))


def _as_members(address: tuple[NodeName, str, str | None, str]) -> tuple[Member, Member, Member]:
    return (
        Member(*address, owns=True, seed=False),
        Member(*address, owns=False, seed=True),
        Member(*address, owns=False, seed=False),
    )


def _company(
    snapshot: Snapshot,
    resolved: Resolved,
    key: StorageKey,
    agents: Sequence[_Agent],
    before: Company | None,
    now: float,
) -> Company:
    """The company of one fill. `before`: as it was told last."""
    told = {(member.name, member.incarnation): member for member in before.members} if before is not None else {}
    members = [each.as_told(told, resolved, key) for each in agents] if told else [None] * len(agents)
    parts: dict[NodeName, Part] = {}
    if None in members:
        parts = {each.name: part for each in agents if (part := each.part_in(resolved, key)) is not None}
    begun = any(member.owns for member in told.values()) or any(part.owns for part in parts.values())
    chunk_bytes = before.chunk_bytes if before is not None else _chunk_bytes(resolved, agents, list(parts.values()))
    readers = set[NodeName]() if begun else _readers(snapshot, resolved, key, agents)
    known = [
        member or each.member(parts[each.name].owns if each.name in parts else each.name in readers, resolved, key)
        for each, member in zip(agents, members, strict=True)
    ]
    fill = f"{resolved.content}-{chunk_bytes}"
    company = Company(fill, chunk_bytes, tuple(known), _token(snapshot.secret, fill, now))
    return before if before is not None and company == before else company  # its name is known already


def _chunk_bytes(resolved: Resolved, agents: Sequence[_Agent], parts: Sequence[Part]) -> int:
    """As those who fill already have it, else such that the slowest link is kept busy by few."""
    if parts:
        return max(parts, key=lambda part: part.owns).chunk_bytes
    slowest = min((each.link_bytes_per_s for each in agents), default=LINK_BYTES_PER_S)
    return choose_chunk_bytes(resolved.manifest.total_bytes, slowest)


def _readers(snapshot: Snapshot, resolved: Resolved, key: StorageKey, agents: Sequence[_Agent]) -> set[NodeName]:
    """Those that read the origin, as many as its budget allows at a time: other nodes for other models."""
    models = ((each.name, each.models.get(key)) for each in agents)
    able = [name for name, model in models if not _is_copy(model, resolved) and not is_held_up(model)]
    most = min((snapshot.budgets.of(origin).requests for origin in resolved.origins), default=len(agents))
    return set(random.Random(resolved.content).sample(able, min(most, len(able))))


def _token(secret: bytes, fill: str, now: float) -> str:
    """Of one fill, for one epoch: nobody can tell the next one, or another fill's, from it."""
    return hmac.new(secret, f"{fill}/{int(now // ROTATE_S)}".encode(), hashlib.sha256).hexdigest()


def _content(fill: str) -> str:
    return fill.partition("-")[0]


def _is_copy(model: ModelReport | None, resolved: Resolved) -> bool:
    """The node has committed this content. Where the origin names no digests, what was committed is taken for it."""
    manifest = resolved.manifest
    return (
        model is not None
        and (model.phase is Phase.READY or model.prefetched)
        and model.selection == manifest.source.selection
        and model.bytes_total == manifest.total_bytes
        and manifest.digest in (None, model.manifest_digest)
    )


def is_held_up(model: ModelReport | None) -> bool:
    """Something keeps the node from beginning: it does not fit, or it has failed."""
    return model is not None and model.failure is not None and model.phase in (Phase.PENDING, Phase.FAILED)
