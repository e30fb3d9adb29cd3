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
from coordinator.plan.placement import Members
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
    of_nodes: dict[NodeName, dict[StorageKey, str]] = {}
    unheard: dict[NodeName, frozenset[StorageKey]] = {}
    agents = dict(_agents(snapshot, members, facts.now))
    reportless = {name for name in members.placements if snapshot.report(name) is None}
    earlier = {_content(company.fill): company for company in snapshot.companies.values()}
    for resolved, caches in _wanted(facts):
        key, wanting = caches[0].storage_key, members.wanting(caches)
        if len(wanting) < 2:
            continue
        silent = reportless.intersection(wanting)
        for name in silent:
            unheard[name] = unheard.get(name, frozenset()) | {key}
        candidates = [_candidate(agents[name], resolved, key) for name in wanting if name in agents]
        before = earlier.get(resolved.content)
        if before is None and silent and _is_begun_by_another(snapshot, candidates, facts.now):
            for each in candidates:
                name = each.agent.name
                if each.part is not None:
                    of_nodes.setdefault(name, {})[key] = each.part.company
                else:
                    unheard[name] = unheard.get(name, frozenset()) | {key}
            continue
        company = _company(snapshot, resolved, candidates, before, facts.now)
        if company.members:  # also if it is but one: the others' agents may be about to start
            by_fill[company.fill] = company
            for member in company.members:
                of_nodes.setdefault(member.name, {})[key] = company.name
    return Companies(by_fill, of_nodes, unheard)


def _is_begun_by_another(snapshot: Snapshot, candidates: Sequence[_Candidate], now: float) -> bool:
    """Whether an earlier coordinator has begun this fill, and there was no time yet to hear all who are in it."""
    return now < snapshot.acting_since + SETTLE_S and any(each.part is not None for each in candidates)


@dataclass(frozen=True, slots=True)
class _Agent:
    """An agent that can be counted on and that others can reach, with its models by key."""

    name: NodeName
    incarnation: str
    zone: str | None
    address: str
    link_bytes_per_s: float
    models: Mapping[StorageKey, ModelReport]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """The agent of a node that should hold the model. `holds`: a committed copy of it."""

    agent: _Agent
    model: ModelReport | None
    part: Part | None
    holds: bool


def _wanted(facts: Facts) -> list[tuple[Resolved, list[Cache]]]:
    """What some node lacks and can be read, with the caches that ask for it. Equal resolutions count as one."""
    lacking = {cache.key: cache for caches in facts.folded.missing.values() for cache in caches}
    found: dict[str, tuple[Resolved, list[Cache]]] = {}
    for key, cache in lacking.items():
        resolution = facts.snapshot.resolutions.get(key)
        resolved = resolution.resolved if resolution is not None else None
        if resolved is not None and facts.sources[key].resolved == resolved.name:
            found.setdefault(resolved.content, (resolved, []))[1].append(cache)
    return list(found.values())


def _agents(snapshot: Snapshot, members: Members, now: float) -> Iterator[tuple[NodeName, _Agent]]:
    for name in members.placements:
        view = snapshot.agent(name)
        report = view.report
        if report is None or report.peer_address is None:
            continue
        if view.failure is not None and now > (view.received_at or 0.0) + DEAD_S:
            continue
        link = report.link_bytes_per_s or LINK_BYTES_PER_S
        zone = snapshot.nodes[name].labels.get(ZONE_LABEL)
        yield name, _Agent(name, report.incarnation, zone, report.peer_address, link, view.models)


def _candidate(agent: _Agent, resolved: Resolved, key: StorageKey) -> _Candidate:
    model = agent.models.get(key)
    part = model.part if model is not None else None
    if part is not None and _content(part.fill) != resolved.content:
        part = None
    return _Candidate(agent, model, part, _is_copy(model, resolved))


def _company(
    snapshot: Snapshot, resolved: Resolved, candidates: list[_Candidate], before: Company | None, now: float
) -> Company:
    """The company of one fill. `before`: as it was told last."""
    told = {(member.name, member.incarnation): member for member in before.members} if before is not None else {}
    chunk_bytes = before.chunk_bytes if before is not None else _chunk_bytes(resolved, candidates)
    begun = any(member.owns for member in told.values())
    begun = begun or any(each.part.owns for each in candidates if each.part is not None)
    readers = set[NodeName]() if begun else _readers(snapshot, resolved, candidates)
    found = []
    for each in candidates:
        agent = each.agent
        was = told.get((agent.name, agent.incarnation)) or each.part
        owns = was.owns if was is not None else agent.name in readers
        seed = each.holds and not owns
        found.append(Member(agent.name, agent.incarnation, agent.zone, agent.address, owns, seed))
    fill = f"{resolved.content}-{chunk_bytes}"
    members = tuple(sorted(found, key=lambda member: member.name))
    company = Company(fill, chunk_bytes, members, _token(snapshot.secret, fill, now))
    return before if before is not None and company == before else company  # its name is known already


def _chunk_bytes(resolved: Resolved, candidates: Sequence[_Candidate]) -> int:
    """As those who fill already have it, else such that the slowest link is kept busy by few."""
    parts = [each.part for each in candidates if each.part is not None]
    if parts:
        return max(parts, key=lambda part: part.owns).chunk_bytes
    slowest = min((each.agent.link_bytes_per_s for each in candidates), default=LINK_BYTES_PER_S)
    return choose_chunk_bytes(resolved.manifest.total_bytes, slowest)


def _readers(snapshot: Snapshot, resolved: Resolved, candidates: Sequence[_Candidate]) -> set[NodeName]:
    """Those that read the origin, as many as its budget allows at a time: other nodes for other models."""
    able = [each.agent.name for each in candidates if not each.holds and not is_held_up(each.model)]
    most = min((snapshot.budgets.of(origin).requests for origin in resolved.origins), default=len(candidates))
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
        and model.phase is Phase.READY
        and model.selection == manifest.source.selection
        and model.bytes_total == manifest.total_bytes
        and manifest.digest in (None, model.manifest_digest)
    )


def is_held_up(model: ModelReport | None) -> bool:
    """Something keeps the node from beginning: it does not fit, or it has failed."""
    return model is not None and model.failure is not None and model.phase in (Phase.PENDING, Phase.FAILED)
