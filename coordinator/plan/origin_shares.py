"""Which share of an origin's budget each node has, so that all nodes together never ask more of it.

    what nodes lack, by origin ──► who would read ──► a fair share each ──► handed over as others let go of theirs
    what agents report ────────┘                                    └──► the pause that one was asked for, for all

An origin is the scheme, host and port that the manifest's locations name. The hub and the CDN it redirects to are one:
the budget belongs to what is asked. What the coordinator itself asks, a few questions per model, is not counted.

Shares are fair by demand: no node has more while another has less than it wants. The rest goes to those that read, so
that a node alone has all of it. A node that reads nothing has one request, while there are enough, to begin with. With
more readers than requests, who reads goes on, and the others wait for their turn. Bytes go by requests: a share of a
quarter of the requests is one of a quarter of the bandwidth.

Messages take their time, and a request under way goes on when its share has shrunk. So a node counts with all that it
may be using: what it was told, what it reports that it was told, what is under way. Another's share grows only by what
is free beside that, and a share changes only once the last one was heard: then what a node may be using is known. A
node that has been silent for DEAD_S does not count; if it reads on, the budget is exceeded by its share at most, until
it is heard again.

Pure. The last shares come with the snapshot; after a restart of the coordinator those that the agents report take their
place, and agents that have not reported yet count for DEAD_S as if they were about to read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from actors.manifest import OriginName, StorageKey
from actors.mesh.limits import DEAD_S
from actors.messages import NodeName, OriginReport, OriginShare, heeded_s
from coordinator.api.resources import StatusKey
from coordinator.plan.facts import Facts
from coordinator.plan.fill_groups import Companies, is_held_up
from coordinator.plan.origin_budget import Budget, OriginUse
from coordinator.plan.snapshot import Cache, Governed, Snapshot

SAME_PAUSE_S = 1.0
"""A pause that seems to end so much later is the same one, told by a report that took longer."""


@dataclass(frozen=True, slots=True)
class Shares:
    """`by_origin` belongs into the next snapshot. `of_nodes` is what each node is told."""

    by_origin: Mapping[OriginName, Governed] = field(default_factory=dict)
    of_nodes: Mapping[NodeName, Mapping[OriginName, OriginShare]] = field(default_factory=dict)
    usage: tuple[OriginUse, ...] = ()


@dataclass(slots=True)
class _Claim:
    """One node at one origin. `told` is the share it was told last, `held` all that it may be using.

    `demand`: requests that it would have under way, if it might. `lacks`: it will read something, now or later.
    """

    demand: int = 0
    lacks: bool = False
    told: int = 0
    held: int = 0
    heard: bool = True


def govern(facts: Facts, together: Companies) -> Shares:
    """Every node's share of every origin that somebody reads, or is about to."""
    snapshot, now = facts.snapshot, facts.now
    reports = _reports(snapshot, now)
    claims = _claims(facts, together, reports)
    by_origin: dict[OriginName, Governed] = {}
    of_nodes: dict[NodeName, dict[OriginName, OriginShare]] = {}
    usage: list[OriginUse] = []
    pauses = _pauses(snapshot, now)
    for origin in sorted({*claims, *pauses}):
        budget, of_origin, said = snapshot.budgets.of(origin), claims.get(origin, {}), reports.get(origin, {})
        until = pauses.get(origin, 0.0)
        told = hand_over(budget.requests, of_origin)
        by_origin[origin] = Governed({name: requests for name, requests in told.items() if requests}, until)
        for name, requests in told.items():
            if requests or of_origin[name].lacks:
                of_nodes.setdefault(name, {})[origin] = _share(requests, budget, until, now)
        usage.append(
            OriginUse(
                origin=origin,
                budget=budget,
                nodes=sum(report.requests > 0 for report in said.values()),
                requests=sum(report.requests for report in said.values()),
                wanted=sum(report.wanted for report in said.values()),
                rate_bytes_per_s=sum(report.rate_bytes_per_s for report in said.values()),
                pause_s=max(0.0, until - now),
            )
        )
    return Shares(by_origin, of_nodes, tuple(usage))


# --- who reads what ---


def _reports(snapshot: Snapshot, now: float) -> dict[OriginName, dict[NodeName, OriginReport]]:
    """What the agents that can be counted on say."""
    found: dict[OriginName, dict[NodeName, OriginReport]] = {}
    for name, view in snapshot.agents.items():
        if view.report is not None and _is_alive(snapshot, name, now):
            for report in view.report.origins:
                found.setdefault(report.origin, {})[name] = report
    return found


def _is_alive(snapshot: Snapshot, name: NodeName, now: float) -> bool:
    view = snapshot.agent(name)
    return view.failure is None or now <= max(view.received_at or 0.0, snapshot.acting_since) + DEAD_S


def _claims(
    facts: Facts, together: Companies, reports: Mapping[OriginName, Mapping[NodeName, OriginReport]]
) -> dict[OriginName, dict[NodeName, _Claim]]:
    claims: dict[OriginName, dict[NodeName, _Claim]] = {}
    for name, lacking in _lacking(facts, together):
        if _is_alive(facts.snapshot, name, facts.now):
            for origin, begins in lacking.items():
                claims.setdefault(origin, {})[name] = _Claim(demand=int(begins), lacks=True)
    for origin, said in reports.items():
        for name, report in said.items():
            if report.wanted or report.granted or name in claims.get(origin, {}):
                claim = claims.setdefault(origin, {}).setdefault(name, _Claim())
                wanted = report.wanted if name in facts.members.placements else 0
                claim.lacks, claim.demand = claim.lacks or wanted > 0, max(claim.demand, wanted)
    for origin, of_origin in claims.items():
        before, said = facts.snapshot.governed.get(origin), reports.get(origin, {})
        for name, claim in of_origin.items():
            _recall(claim, name, before, said.get(name))
    return claims


def _recall(claim: _Claim, name: NodeName, before: Governed | None, said: OriginReport | None) -> None:
    """What the node was told, by us or by a coordinator before, and what of it it may be using."""
    granted = (said.granted or 0) if said is not None else 0
    claim.told = before.shares.get(name, granted) if before is not None else granted
    claim.held = max(claim.told, granted, said.requests if said is not None else 0)
    claim.heard = claim.told == granted


def _lacking(facts: Facts, together: Companies) -> Iterator[tuple[NodeName, Mapping[OriginName, bool]]]:
    """Every node, with every origin of what it lacks, and whether it is to begin reading there.

    Not what others read for it, nor what fails or has no room: whoever waits for that needs nothing meanwhile.
    """
    snapshot = facts.snapshot
    origins: dict[StatusKey, frozenset[OriginName]] = {
        key: resolution.resolved.origins
        for key, resolution in snapshot.resolutions.items()
        if resolution.resolved is not None
    }
    owners = {
        company.name: frozenset(member.name for member in company.members if member.owns)
        for company in together.by_fill.values()
    }
    of_missing: dict[Sequence[Cache], frozenset[OriginName]] = {}
    for name, missing in facts.folded.missing.items():
        if not missing:
            continue
        if missing not in of_missing:
            of_missing[missing] = frozenset(each for cache in missing for each in origins.get(cache.key, ()))
        named: Mapping[StorageKey, str] = together.of_nodes.get(name, {})
        models = snapshot.agent(name).models
        found = dict.fromkeys(sorted(of_missing[missing]), False)
        unsettled = set(found)
        for cache in missing:
            if not unsettled:
                break
            company = named.get(cache.storage_key)
            reads = company is None or name in owners.get(company, (name,))
            if reads and not is_held_up(models.get(cache.storage_key)):
                settled = origins.get(cache.key, frozenset()) & unsettled
                found.update(dict.fromkeys(settled, True))
                unsettled -= settled
        yield name, found


# --- how much each may ---


def hand_over(budget: int, claims: Mapping[NodeName, _Claim]) -> dict[NodeName, int]:
    """What each is told now: its fair share, as far as the others have let go of theirs."""
    order = sorted(claims, key=lambda name: (not claims[name].held, name))
    fair = dict(zip(order, _fair(budget, [claims[name] for name in order]), strict=True))
    free = budget - sum(claim.held for claim in claims.values())
    told: dict[NodeName, int] = {}
    for name in order:
        claim = claims[name]
        if not claim.heard:
            told[name] = claim.told
            continue
        grown = min(max(0, fair[name] - claim.held), max(0, free))
        free -= grown
        told[name] = min(fair[name], claim.held + grown)
    return told


def _fair(budget: int, claims: Sequence[_Claim]) -> list[int]:
    """Shares that add up to the budget at most. The first have what does not divide."""
    shares = divide(budget, [claim.demand for claim in claims])
    left = budget - sum(shares)
    for number, claim in enumerate(claims):
        if left and claim.lacks and not shares[number]:
            shares[number], left = 1, left - 1
    reading = [number for number, claim in enumerate(claims) if claim.demand]
    reading = reading or [number for number, claim in enumerate(claims) if claim.lacks]
    for number, more in zip(reading, divide(left, [left] * len(reading)), strict=True):
        shares[number] += more
    return shares


def divide(budget: int, wants: Sequence[int]) -> list[int]:
    """Max-min fair: no share exceeds its demand, and shares of unsatisfied nodes differ by one request at most."""
    shares = [0] * len(wants)
    left, hungry = budget, [number for number, want in enumerate(wants) if want > 0]
    while left and hungry:
        each = max(1, left // len(hungry))
        for number in hungry[:left]:
            more = min(each, wants[number] - shares[number], left)
            shares[number], left = shares[number] + more, left - more
        hungry = [number for number in hungry if shares[number] < wants[number]]
    return shares


def _share(requests: int, budget: Budget, until: float, now: float) -> OriginShare:
    """A node that has just lost its last request finishes what is under way at the pace of one."""
    rate = budget.bytes_per_s
    return OriginShare(
        requests=requests,
        bytes_per_s=None if rate is None else rate * max(1, requests) / budget.requests,
        pause=f"{until:.3f}" if until > now else "",
        pause_s=max(0.0, until - now),
    )


# --- the gate ---


def _pauses(snapshot: Snapshot, now: float) -> dict[OriginName, float]:
    """By origin that asked any node for a pause, when it may be asked again. What a silent node said still counts."""
    latest: dict[OriginName, float] = {}
    for view in snapshot.agents.values():
        if view.report is not None and view.received_at is not None:
            for report in view.report.origins:
                if pause_s := heeded_s(report.pause_s):
                    until = view.received_at + pause_s
                    latest[report.origin] = max(latest.get(report.origin, 0.0), until)
    known = {origin: was.quiet_until for origin, was in snapshot.governed.items()}
    for origin, until in latest.items():
        if until > known.get(origin, 0.0) + SAME_PAUSE_S:
            known[origin] = until
    return {origin: until for origin, until in known.items() if until > now}
