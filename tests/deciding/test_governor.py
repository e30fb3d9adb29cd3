"""Who may ask how much of an origin: every case is a world, and what its nodes are told."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import Failure
from actors.manifest import Location, OriginName, known_from_a_copy, origin_of
from actors.mesh.limits import DEAD_S
from actors.messages import ModelReport, NodeName, OriginReport, OriginShare, Phase
from coordinator.dev.trial.builders import (
    NOW,
    World,
    a_cache,
    a_group,
    a_node,
    a_report,
    a_resolution,
    a_silent_agent,
    an_agent,
)
from coordinator.fleet.interface import AgentView
from coordinator.plan.origin_budget import Budget, Budgets, parse_overrides
from coordinator.plan.origin_shares import divide
from coordinator.plan.plan import Plan, plan
from coordinator.plan.snapshot import Governed, Resolution

HUB = OriginName("https://origin.test")
STORE = OriginName("https://store.test")
LLAMA, QWEN = a_cache("llama"), a_cache("qwen")


def reading(
    node: str,
    model: ModelReport | None = None,
    *,
    requests: int = 0,
    wanted: int = 0,
    granted: int = 0,
    pause_s: float = 0.0,
) -> AgentView:
    """An agent that says this of the hub."""
    view = an_agent(node, model or a_report(LLAMA, Phase.DOWNLOADING))
    assert view.report is not None
    said = OriginReport(HUB, requests, wanted, granted, pause_s=pause_s)
    return replace(view, report=replace(view.report, origins=(said,)))


def a_copy(node: str) -> AgentView:
    """An agent that has everything, and reads nothing."""
    return an_agent(node, a_report(LLAMA))


def dead(view: AgentView) -> AgentView:
    return replace(a_silent_agent(last=view), received_at=NOW - DEAD_S - 1)


def silent(view: AgentView) -> AgentView:
    return replace(a_silent_agent(last=view), received_at=NOW - 1)


def planned(
    agents: Mapping[str, AgentView],
    *,
    told: Mapping[str, int] | None = None,
    requests: int = 64,
    bytes_per_s: float | None = None,
    quiet_until: float = 0.0,
    now: float = NOW,
) -> Plan:
    """What follows where every one of these nodes should hold llama, having been `told` this much last."""
    world = World().add(LLAMA, a_group("gpu"), *(a_node(name) for name in agents)).resolved(LLAMA)
    world.agents = dict(agents)
    governed = {}
    if told is not None or quiet_until:
        governed = {HUB: Governed({NodeName(name): count for name, count in (told or {}).items()}, quiet_until)}
    snapshot = replace(world.snapshot(), budgets=Budgets(Budget(requests, bytes_per_s)), governed=governed)
    return plan(snapshot, now)


def shares(made: Plan, origin: OriginName = HUB) -> dict[str, OriginShare]:
    """By node that is told anything of it."""
    said = {name: state.origins for name, state in made.desired.items()}
    return {name: origins[origin] for name, origins in said.items() if origins is not None and origin in origins}


def requests(made: Plan) -> dict[str, int]:
    return {name: share.requests for name, share in shares(made).items()}


@dataclass(frozen=True)
class Case:
    agents: Mapping[str, AgentView]
    expected: Mapping[str, int]
    told: Mapping[str, int] = field(default_factory=dict)
    budget: int = 64


FAILED = a_report(LLAMA, Phase.FAILED, failure=Failure("SourceError", "broke off"))
HELD_UP = a_report(LLAMA, Phase.PENDING, failure=Failure("InsufficientStorage", "does not fit"))
EVICTED = a_report(LLAMA, Phase.PENDING, failure=Failure("Evicted", "made room"))

CASES = {
    "a node alone has all of it": Case({"a": an_agent("a")}, {"a": 64}),
    "nodes that begin share it evenly": Case({n: an_agent(n) for n in "abcd"}, dict.fromkeys("abcd", 16)),
    "what does not divide goes to the first": Case({n: an_agent(n) for n in "abc"}, {"a": 22, "b": 21, "c": 21}),
    "who holds the model has nothing": Case({"a": an_agent("a"), "b": a_copy("b")}, {"a": 64}),
    "who has no room for it has one, to begin with": Case(
        {"a": an_agent("a"), "b": an_agent("b", HELD_UP)}, {"a": 63, "b": 1}
    ),
    "whose copy was evicted has one, to begin with when it may come back": Case(
        {"a": an_agent("a"), "b": reading("b", EVICTED)}, {"a": 63, "b": 1}
    ),
    "who has failed, and waits, keeps one": Case(
        {"a": reading("a", wanted=32, granted=32), "b": reading("b", FAILED, granted=32)},
        {"a": 32, "b": 1},
        {"a": 32, "b": 32},
    ),
    "nobody has more while another has less than he wants": Case(
        {"a": reading("a", wanted=2), "b": reading("b", wanted=32), "c": reading("c", wanted=32)},
        {"a": 2, "b": 7, "c": 7},
        budget=16,
    ),
    "with more nodes than requests, who reads goes on": Case(
        {"a": an_agent("a"), "b": reading("b", requests=1, wanted=4, granted=1), "c": an_agent("c")},
        {"a": 1, "b": 1, "c": 0},
        {"b": 1},
        budget=2,
    ),
    "another grows by what is free only": Case(
        {"a": reading("a", requests=32, wanted=32, granted=64), "b": an_agent("b")},
        {"a": 48, "b": 0},
        {"a": 64},
    ),
    "what is under way beyond a share is not free yet": Case(
        {"a": reading("a", requests=50, wanted=50, granted=40), "b": reading("b", wanted=32)},
        {"a": 32, "b": 14},
        {"a": 40},
    ),
    "a share that was not heard yet stays as it is": Case(
        {"a": reading("a", wanted=32, granted=64), "b": reading("b", wanted=32)}, {"a": 32, "b": 0}, {"a": 32}
    ),
    "shares grow when a node dies": Case(
        {"a": reading("a", wanted=32, granted=32), "b": dead(reading("b", wanted=32, granted=32))},
        {"a": 64},
        {"a": 32, "b": 32},
    ),
    "who is merely silent keeps his": Case(
        {"a": reading("a", wanted=32, granted=32), "b": silent(reading("b", wanted=32, granted=32))},
        {"a": 32, "b": 32},
        {"a": 32, "b": 32},
    ),
    "who comes back with a share that was given away loses it, and nobody else does": Case(
        {"a": reading("a", wanted=64, granted=64), "b": reading("b", requests=32, wanted=32, granted=32)},
        {"a": 32, "b": 32},
        {"a": 64},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_shares(name: str) -> None:
    case = CASES[name]
    assert requests(planned(case.agents, told=case.told, requests=case.budget)) == case.expected


def test_after_a_restart_of_the_coordinator_what_agents_say_they_were_told_counts() -> None:
    agents = {"a": reading("a", requests=32, wanted=32, granted=64), "b": an_agent("b")}
    assert requests(planned(agents, told=None)) == {"a": 48, "b": 0}


def test_the_bandwidth_goes_by_the_requests() -> None:
    made = planned({n: an_agent(n) for n in "abcd"}, requests=8, bytes_per_s=800.0)
    assert [share.bytes_per_s for share in shares(made).values()] == [200.0] * 4
    assert [share.bytes_per_s for share in shares(planned({"a": an_agent("a")})).values()] == [None]


def test_a_pause_that_one_node_was_asked_for_is_told_to_all_and_once() -> None:
    agents = {"a": reading("a", wanted=8, pause_s=20.0), "b": an_agent("b")}
    made = planned(agents)
    told = shares(made)
    assert [share.pause_s for share in told.values()] == [20.0, 20.0]
    assert len({share.pause for share in told.values()} - {""}) == 1

    later = planned(agents, told=requests(made), quiet_until=NOW + 19.5, now=NOW + 5)
    again = planned(agents, told=requests(made), quiet_until=NOW + 19.5, now=NOW + 6)
    assert [share.pause_s for share in shares(later).values()] == [14.5, 14.5], "the same pause, and less of it"
    assert shares(later) == shares(again), "that time passes is no news"

    over = planned({n: reading(n, wanted=8) for n in "ab"}, told=requests(made), quiet_until=NOW + 20, now=NOW + 21)
    assert {share.pause for share in shares(over).values()} == {""}


@pytest.mark.parametrize(("said", "told"), [(1e16, 3600.0), (-5.0, 0.0), (float("nan"), 0.0)])
def test_a_pause_that_a_node_speaks_of_is_told_as_one_of_an_hour_at_most(said: float, told: float) -> None:
    made = planned({"a": reading("a", wanted=8, pause_s=said), "b": an_agent("b")})
    assert shares(made)["b"].pause_s == told


def test_a_pause_outlives_the_node_that_was_asked_for_it() -> None:
    agents = {"a": dead(reading("a", pause_s=60.0)), "b": an_agent("b")}
    left_s = 60.0 - DEAD_S - 1
    assert shares(planned(agents))["b"].pause_s == pytest.approx(left_s)
    made = planned({"b": an_agent("b")}, quiet_until=NOW + 30)
    assert shares(made)["b"].pause_s == 30.0


def test_two_models_from_one_origin_have_one_share_and_another_origin_has_its_own() -> None:
    world = World().add(LLAMA, QWEN, a_cache("phi"), a_group("gpu"), a_node("a")).resolved(LLAMA).resolved(QWEN)
    elsewhere = a_resolution("hf://models/phi").resolved
    assert elsewhere is not None
    world.resolutions["phi"] = Resolution(replace(elsewhere, locations=(Location(f"{STORE}/0.bin"),)))
    world.agents = {"a": an_agent("a")}
    budgets = Budgets(Budget(10), {STORE: Budget(3)})
    made = plan(replace(world.snapshot(), budgets=budgets), NOW)
    origins = made.desired[NodeName("a")].origins
    assert origins == {HUB: OriginShare(10), STORE: OriginShare(3)}


def test_of_a_model_that_only_copies_know_no_origin_is_shared_out_but_to_those_that_read_it_still() -> None:
    world = World().add(LLAMA, a_group("gpu"), a_node("a"), a_node("b")).resolved(LLAMA)
    answer = world.resolutions[LLAMA.key].resolved
    assert answer is not None
    stands_in = known_from_a_copy(answer.manifest, Failure("SourceUnreachable", "no answer"))
    world.resolutions[LLAMA.key] = Resolution(stands_in)
    world.agents = {"a": reading("a", requests=4, wanted=8, granted=64), "b": an_agent("b")}
    made = plan(world.snapshot(), NOW)
    assert requests(made) == {"a": 64}
    assert made.desired[NodeName("b")].origins == {}


def test_a_node_that_leaves_is_told_that_it_may_read_nothing() -> None:
    world = World().add(LLAMA, a_group("gpu"), a_node("a").in_pool("other")).resolved(LLAMA)
    world.agents = {"a": reading("a", requests=4, wanted=4, granted=8)}
    made = plan(world.snapshot(), NOW)
    assert made.desired[NodeName("a")].origins == {}


def test_no_more_nodes_own_a_part_of_a_fill_than_may_read_the_origin() -> None:
    def a_peer(name: str, *models: ModelReport) -> AgentView:
        view = an_agent(name, *models)
        assert view.report is not None
        return replace(view, report=replace(view.report, peer_address=f"{name}:7000"))

    made = planned({n: a_peer(n) for n in "abcdef"}, requests=2)
    (company,) = made.companies.values()
    owners = {member.name for member in company.members if member.owns}
    assert len(owners) == 2
    assert requests(made) == {name: int(name in owners) for name in "abcdef"}


def test_what_is_asked_of_an_origin_is_summed_over_the_nodes() -> None:
    agents = {"a": reading("a", requests=3, wanted=8, granted=32), "b": reading("b", wanted=8, granted=32, pause_s=9.0)}
    (usage,) = planned(agents).shares.usage
    assert (usage.origin, usage.budget.requests) == (HUB, 64)
    assert (usage.requests, usage.wanted, usage.nodes, usage.pause_s) == (3, 16, 1, 9.0)


# --- dividing ---


@given(budget=st.integers(0, 200), wants=st.lists(st.integers(0, 100), max_size=40))
def test_dividing_is_fair_and_gives_all_that_is_wanted_and_there(budget: int, wants: list[int]) -> None:
    found = divide(budget, wants)
    assert sum(found) == min(budget, sum(wants))
    assert all(0 <= share <= want for share, want in zip(found, wants, strict=True))
    unsatisfied = [share for share, want in zip(found, wants, strict=True) if share < want]
    assert not unsatisfied or max(found) <= min(unsatisfied) + 1


@dataclass
class Agent:
    """A node in the history below. What it is told, and what it answers, may be on its way for as long as it takes."""

    desired: int = 0
    call: int | None = None
    answer: tuple[int, int, int] | None = None
    said: tuple[int, int, int] = (0, 0, 0)
    share: int = 0
    under_way: int = 0
    wanted: int = 0

    def do(self, event: str, amount: int) -> None:
        match event:
            case "call" if self.call is None and self.answer is None:  # one at a time, as the fleet does
                self.call = self.desired
            case "hear" if self.call is not None:
                self.share, self.call = self.call, None
                self.answer = self.under_way, max(self.wanted, self.under_way), self.share
            case "answer" if self.answer is not None:
                self.said, self.answer = self.answer, None
            case "begin":
                self.under_way += max(0, min(amount, self.share - self.under_way))
            case "end":
                self.under_way -= min(amount, self.under_way)
            case "want":
                self.wanted = amount


def replanned(agents: Mapping[str, Agent], told: Mapping[str, int], budget: int) -> dict[str, int]:
    """One plan from what the agents have said. Returns what they were told."""
    views = {}
    for name, agent in agents.items():
        under_way, wanted, granted = agent.said
        views[name] = reading(name, requests=under_way, wanted=wanted, granted=granted)
    made = planned(views, told=told, requests=budget)
    for name, agent in agents.items():
        agent.desired = requests(made).get(name, 0)
    return {str(name): count for name, count in made.shares.by_origin[HUB].shares.items()}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_late_the_origin_is_never_asked_more_than_its_budget(seed: int) -> None:
    rng = random.Random(seed)
    agents, told, budget = {name: Agent() for name in "abc"}, dict[str, int](), rng.randint(1, 12)
    most = 0
    for _ in range(600):
        if rng.random() < 0.2:
            told = replanned(agents, told, budget)
        else:
            event = rng.choice(["call", "hear", "answer", "begin", "begin", "end", "want"])
            agents[rng.choice("abc")].do(event, rng.choice([0, 1, 20]))
        asked = sum(max(agent.share, agent.under_way) for agent in agents.values())
        most = max(most, asked)
        assert asked <= budget
    assert most == budget, "all of it was used"


def test_in_the_end_everybody_has_his_fair_share_whatever_was_before() -> None:
    agents = {name: Agent(wanted=32) for name in "bcd"}
    agents["a"] = Agent(desired=64, share=64, under_way=64, wanted=64, said=(64, 64, 64))
    told: dict[str, int] = {"a": 64}
    for _ in range(4):
        told = replanned(agents, told, 64)
        for agent in agents.values():
            for event, amount in (("call", 0), ("hear", 0), ("answer", 0), ("end", 64), ("begin", 64)):
                agent.do(event, amount)
    assert told == dict.fromkeys("abcd", 16)


# --- origins, and their budgets ---


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        pytest.param("https://huggingface.co/a/b/resolve/c/d?x=y", "https://huggingface.co", id="a path and a query"),
        pytest.param("HTTPS://HuggingFace.co:443/a", "https://huggingface.co", id="its own port, and any case"),
        pytest.param("http://user:secret@10.0.0.1:8080/a", "http://10.0.0.1:8080", id="no secret in it"),
        pytest.param("http://[::1]:80/a", "http://[::1]", id="IPv6"),
        pytest.param("s3://bucket/key", "s3://bucket", id="a bucket"),
        pytest.param("file:///models/a", None, id="the local disk"),
        pytest.param("http://host:port/", None, id="no URL"),
    ],
)
def test_an_origin_is_scheme_host_and_port(url: str, origin: str | None) -> None:
    assert origin_of(url) == origin
    assert Location(url).origin == origin
    assert Location(url, content=b"").origin is None


def test_overrides_name_origins_however_they_are_written() -> None:
    found = parse_overrides("https://Huggingface.co:443/=16/200M, s3://bucket=8")
    assert found == {"https://huggingface.co": Budget(16, 200e6), "s3://bucket": Budget(8)}


@pytest.mark.parametrize("text", ["huggingface.co=16", "https://a", "https://a=0", "https://a=1/fast", "https://a=-1"])
def test_an_override_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        parse_overrides(text)
