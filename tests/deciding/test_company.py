"""Who fills a model together: every case is a world, and the company that follows from it."""

from __future__ import annotations

from dataclasses import replace

from actors.mesh.limits import DEAD_S
from actors.messages import Company, DesiredModel, Member, ModelReport, NodeName, Part, Phase
from coordinator.dev.trial.builders import (
    GIB,
    NOW,
    World,
    a_cache,
    a_group,
    a_node,
    a_report,
    a_silent_agent,
    an_agent,
)
from coordinator.fleet.interface import AgentView
from coordinator.plan.fill_groups import ROTATE_S, SETTLE_S
from coordinator.plan.plan import Plan, plan
from coordinator.plan.snapshot import Snapshot

LLAMA = a_cache("llama")
NODES = ("a", "b", "c")


def a_peer(name: str, *models: ModelReport, incarnation: str = "1", link: float | None = None) -> AgentView:
    view = an_agent(name, *models)
    assert view.report is not None
    report = replace(view.report, incarnation=incarnation, peer_address=f"{name}:7000", link_bytes_per_s=link)
    return replace(view, report=report)


def a_fleet(**agents: AgentView) -> World:
    nodes = [a_node(name) for name in NODES]
    world = World().add(LLAMA, a_group("gpu"), *nodes).resolved(LLAMA)
    world.agents = {name: a_peer(name) for name in NODES} | agents
    return world


def planned(world: World, before: Plan | None = None, now: float = NOW, **changes: object) -> Plan:
    snapshot: Snapshot = replace(
        world.snapshot(),
        companies=before.companies if before else {},
        secret=b"secret",
        **changes,  # type: ignore[arg-type]  # by name
    )
    return plan(snapshot, now)


def members(made: Plan) -> dict[str, tuple[bool, bool]]:
    """By name, whether it owns, and whether it is a seed."""
    (company,) = made.companies.values()
    return {member.name: (member.owns, member.seed) for member in company.members}


def the_company(made: Plan) -> Company:
    (company,) = made.companies.values()
    return company


def desired(made: Plan, node: str) -> DesiredModel:
    (model,) = made.desired[NodeName(node)].models
    return model


OWNER, JOINER, SEED = (True, False), (False, False), (False, True)


def filling(made: Plan, *, owns: bool = True, done: int = 5) -> ModelReport:
    company = the_company(made)
    part = Part(company.fill, company.name, company.chunk_bytes, owns)
    return a_report(LLAMA, Phase.DOWNLOADING, done=done, part=part)


def test_nodes_that_lack_a_model_fill_it_together_and_are_told_once() -> None:
    made = planned(a_fleet())
    assert members(made) == dict.fromkeys(NODES, OWNER)
    company = the_company(made)
    assert company.members[0] == Member(NodeName("a"), "1", None, "a:7000")
    for name in NODES:
        state = made.desired[NodeName(name)]
        assert desired(made, name).company == company.name
        assert state.companies == {company.name: company}
    agents = {}
    for name in NODES:
        view = a_peer(name, filling(made))
        assert view.report is not None
        agents[name] = replace(view, report=replace(view.report, companies_known=frozenset({company.name})))
    again = planned(a_fleet(**agents), made)
    assert the_company(again) == company, "nothing changes while nothing changes"
    assert [made.companies for made in again.desired.values()] == [{}] * 3


def test_a_node_that_alone_wants_a_model_has_no_company() -> None:
    world = a_fleet()
    world.objects = [each for each in world.objects if each.name not in ("b", "c")]
    made = planned(world)
    assert made.companies == {}
    assert desired(made, "a").company is None
    assert desired(made, "a").resolved is not None


def test_a_model_that_everybody_has_needs_no_company() -> None:
    ready = {name: a_peer(name, a_report(LLAMA)) for name in NODES}
    assert planned(a_fleet(**ready)).companies == {}


def test_a_node_without_a_peer_port_fills_for_itself() -> None:
    made = planned(a_fleet(c=an_agent("c")))
    assert members(made) == {"a": OWNER, "b": OWNER}
    assert desired(made, "c").company is None
    assert desired(made, "c").resolved is not None


def test_nobody_begins_before_it_has_been_heard() -> None:
    made = planned(a_fleet(c=a_silent_agent("AgentStarting")))
    assert members(made) == {"a": OWNER, "b": OWNER}
    assert desired(made, "c").resolved is None


def test_whoever_comes_when_a_fill_is_running_owns_nothing() -> None:
    made = planned(a_fleet(c=a_silent_agent("AgentStarting")))
    later = planned(a_fleet(a=a_peer("a", filling(made))), made)
    assert members(later) == {"a": OWNER, "b": OWNER, "c": JOINER}
    assert the_company(later).fill == the_company(made).fill


def test_who_restarts_owns_nothing_any_more() -> None:
    made = planned(a_fleet())
    later = planned(a_fleet(b=a_peer("b", incarnation="2")), made)
    assert members(later) == {"a": OWNER, "b": JOINER, "c": OWNER}


def test_a_committed_copy_is_a_seed_and_the_others_own_the_chunks() -> None:
    digestless = a_report(LLAMA, bytes_from_origin=GIB)
    assert members(planned(a_fleet(a=a_peer("a", digestless)))) == {"a": SEED, "b": OWNER, "c": OWNER}
    other = replace(digestless, selection="another")
    assert members(planned(a_fleet(a=a_peer("a", other))))["a"] == OWNER, "what it holds is something else"


def test_who_owned_and_is_complete_stays_what_it_was() -> None:
    made = planned(a_fleet())
    complete = replace(filling(made), phase=Phase.READY, bytes_done=GIB)
    assert members(planned(a_fleet(a=a_peer("a", complete)), made)) == dict.fromkeys(NODES, OWNER)


def test_what_does_not_fit_owns_nothing() -> None:
    full = a_report(LLAMA, Phase.PENDING, failure=a_silent_agent("InsufficientStorage").failure)
    assert members(planned(a_fleet(c=a_peer("c", full)))) == {"a": OWNER, "b": OWNER, "c": JOINER}


def test_an_agent_that_is_silent_for_long_is_no_member() -> None:
    made = planned(a_fleet())
    world = a_fleet(c=a_silent_agent(last=a_peer("c")))
    assert members(planned(world, made, NOW + DEAD_S - 1)) == dict.fromkeys(NODES, OWNER)
    assert members(planned(world, made, NOW + DEAD_S + 1)) == {"a": OWNER, "b": OWNER}


def test_the_slowest_link_decides_the_chunk_and_a_running_fill_keeps_its_own() -> None:
    slow = planned(a_fleet(a=a_peer("a", link=25e6), b=a_peer("b", link=3e9)))
    assert the_company(slow).chunk_bytes == 1 << 20
    assert the_company(planned(a_fleet(), slow)).chunk_bytes == 1 << 20
    running = {name: a_peer(name, filling(slow)) for name in NODES}
    assert the_company(planned(a_fleet(**running))).fill == the_company(slow).fill, "learnt from the agents"


def test_a_new_coordinator_changes_nothing_before_it_has_heard_everybody() -> None:
    made = planned(a_fleet())
    world = a_fleet(a=a_peer("a", filling(made)), b=a_peer("b", filling(made)), c=a_silent_agent("AgentStarting"))
    early = planned(world, acting_since=NOW - 1)
    assert early.companies == {}
    assert desired(early, "a").company == the_company(made).name, "it is what the agent knows already"
    assert early.desired[NodeName("a")].companies == {}
    late = planned(world, now=NOW + SETTLE_S, acting_since=NOW - 1)
    assert members(late) == {"a": OWNER, "b": OWNER}


def test_the_token_is_the_coordinators_and_the_fills() -> None:
    made = planned(a_fleet())
    again = planned(a_fleet())
    assert the_company(made).token == the_company(again).token
    other = plan(replace(a_fleet().snapshot(), secret=b"another"), NOW)
    assert the_company(other).token != the_company(made).token
    assert the_company(made).token not in repr(the_company(made))


def test_the_token_is_another_after_an_hour_and_the_fill_goes_on() -> None:
    start = NOW - NOW % ROTATE_S
    made = planned(a_fleet(), now=start)
    running = a_fleet(**{name: a_peer(name, filling(made)) for name in NODES})
    tokens = [the_company(made).token]
    for later in (ROTATE_S - 1, ROTATE_S, 2 * ROTATE_S):
        made = planned(running, made, start + later)
        tokens.append(the_company(made).token)
        assert members(made) == dict.fromkeys(NODES, OWNER)
        assert desired(made, "a").company == the_company(made).name
    assert tokens[0] == tokens[1]
    assert len(set(tokens)) == 3


def test_zones_are_told() -> None:
    world = a_fleet()
    for builder in world.objects:
        if builder.name in NODES:
            builder.json["metadata"]["labels"]["topology.kubernetes.io/zone"] = f"zone-{builder.name}"
    assert [member.zone for member in the_company(planned(world)).members] == ["zone-a", "zone-b", "zone-c"]
