"""Who makes room for whom: as numbers, on nodes, and as the rest of the plan follows from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.errors import Failure
from actors.manifest import StorageKey
from actors.messages import DesiredModel, ModelReport, NodeName, Phase, Removal
from actors.times import parse_time, rfc3339
from coordinator.api.resources import StatusKey
from coordinator.dev.trial.builders import (
    GIB,
    NOW,
    CacheBuilder,
    PodBuilder,
    World,
    a_cache,
    a_group,
    a_namespace_cache,
    a_node,
    a_pod,
    a_report,
    a_silent_agent,
    a_world,
    key_of,
)
from coordinator.plan.eviction import ORDER_S, Copy, Eviction, Waiting, choose
from coordinator.plan.pods import Look, read_pod

IDLE_S = 3600.0
LONG_AGO = NOW - 10 * IDLE_S
N1 = NodeName("n1")

# --- the numbers ---


def a_copy(name: str, size: int, *, since: float | None = 0.0, priority: int = 0) -> Copy:
    return Copy(StorageKey(name), size, priority, since)


def waits(name: str, needed: int, lacking: int, *, priority: int = 0) -> Waiting:
    return Waiting(StorageKey(name), needed, lacking, priority)


@dataclass(frozen=True)
class Choice:
    copies: list[Copy]
    waiting: list[Waiting]
    gone: list[tuple[str, str]]


CHOICES: dict[str, Choice] = {
    "nobody waits": Choice([a_copy("a", 10)], [], []),
    "a copy makes room": Choice([a_copy("a", 10)], [waits("w", 10, 4)], [("a", "w")]),
    "a copy that fits exactly is enough": Choice([a_copy("a", 10)], [waits("w", 10, 10)], [("a", "w")]),
    "one byte short, nothing goes": Choice([a_copy("a", 10)], [waits("w", 11, 11)], []),
    "several together": Choice([a_copy("a", 4), a_copy("b", 6)], [waits("w", 10, 10)], [("a", "w"), ("b", "w")]),
    "several together are too small: nothing goes": Choice([a_copy("a", 4), a_copy("b", 5)], [waits("w", 10, 10)], []),
    "one that is used or pinned stays": Choice([a_copy("a", 10, since=None)], [waits("w", 10, 4)], []),
    "one that was used lately stays": Choice([a_copy("a", 10, since=101.0)], [waits("w", 10, 4)], []),
    "one that was used an idle time ago goes": Choice(
        [a_copy("a", 10, since=100.0)], [waits("w", 10, 4)], [("a", "w")]
    ),
    "the longest unused goes": Choice(
        [a_copy("a", 10, since=3.0), a_copy("b", 10, since=1.0), a_copy("c", 10, since=2.0)],
        [waits("w", 10, 4)],
        [("b", "w")],
    ),
    "the less important goes before the longer unused": Choice(
        [a_copy("a", 10, since=1.0, priority=5), a_copy("b", 10, since=2.0)],
        [waits("w", 10, 4, priority=5)],
        [("b", "w")],
    ),
    "an equal goes": Choice([a_copy("a", 10, priority=5)], [waits("w", 10, 4, priority=5)], [("a", "w")]),
    "the more important stays": Choice([a_copy("a", 10, priority=6)], [waits("w", 10, 4, priority=5)], []),
    "a small one that turns out not to be needed stays": Choice(
        [a_copy("a", 1, since=1.0), a_copy("b", 10, since=2.0)], [waits("w", 10, 10)], [("b", "w")]
    ),
    "what would fit already makes nobody go": Choice([a_copy("a", 10)], [waits("w", 10, -5)], []),
    "two wait, and each gets its room": Choice(
        [a_copy("a", 10, since=1.0), a_copy("b", 10, since=2.0)],
        [waits("v", 10, 10), waits("w", 10, 10)],
        [("a", "v"), ("b", "w")],
    ),
    "what the first leaves over is enough for the second": Choice(
        [a_copy("a", 20), a_copy("b", 20, since=1.0)], [waits("v", 10, 10), waits("w", 10, 10)], [("a", "v")]
    ),
    "what fits now does not once the first has its room": Choice(
        [a_copy("a", 10, since=1.0), a_copy("b", 10, since=2.0)],
        [waits("v", 10, 5, priority=1), waits("w", 5, 0)],
        [("a", "v")],
    ),
    "the more important is served first": Choice(
        [a_copy("a", 10)], [waits("v", 10, 10), waits("w", 10, 10, priority=1)], [("a", "w")]
    ),
    "who would wait behind one that cannot be helped is not helped either": Choice(
        [a_copy("a", 10)], [waits("v", 99, 99, priority=1), waits("w", 10, 10)], []
    ),
    "an equal of one that cannot be helped is": Choice(
        [a_copy("a", 10)], [waits("v", 99, 99), waits("w", 10, 10)], [("a", "w")]
    ),
}


@pytest.mark.parametrize("case", CHOICES)
def test_who_goes_for_whom(case: str) -> None:
    choice = CHOICES[case]
    chosen = choose(choice.copies, choice.waiting, idle_before=100.0)
    assert [(copy.key, each.key) for copy, each in chosen] == choice.gone


names = st.integers(0, 6)
some_copies = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 2), st.one_of(st.none(), st.integers(0, 150))), max_size=7
)


@pytest.mark.slow
@given(some_copies, st.integers(1, 40), st.integers(-20, 40), st.integers(0, 2))
def test_never_more_than_needed_and_never_too_little(
    copies: list[tuple[int, int, int | None]], needed: int, lacking: int, priority: int
) -> None:
    known = [a_copy(f"{n}", size, priority=p, since=since) for n, (size, p, since) in enumerate(copies)]
    gone = [copy for copy, _ in choose(known, [waits("w", needed, lacking, priority=priority)], 100.0)]
    eligible = [c for c in known if c.priority <= priority and c.unused_since is not None and c.unused_since <= 100]
    assert set(gone) <= set(eligible)
    freed = sum(copy.size_bytes for copy in gone)
    if gone:
        assert freed >= lacking
        assert all(freed - copy.size_bytes < lacking for copy in gone)
    else:
        assert lacking <= 0 or sum(copy.size_bytes for copy in eligible) < lacking


# --- a node ---

FULL = Failure("InsufficientStorage", "needs 1Gi in /models: …")
HERE, NEW = a_cache("here"), a_cache("new")


def short(cache: CacheBuilder, lacking: int | None = GIB, **fields: Any) -> ModelReport:
    """It waits for space."""
    fields = {"failure": FULL, "needed_bytes": GIB, "lacking_bytes": lacking, **fields}
    return a_report(cache, Phase.PENDING, **fields)


def unused(cache: CacheBuilder, since: float = LONG_AGO) -> CacheBuilder:
    return cache.with_status(unusedSince=rfc3339(since))


def a_full_world(here: CacheBuilder | None = None, new: CacheBuilder | None = None, **report: Any) -> World:
    """One node: `here` is committed, long unused, and `new` waits for a GiB."""
    here, new = here or unused(a_cache("here")), new or a_cache("new")
    world = a_world(here, new, a_group(), a_node("n1")).resolved(here).resolved(new)
    world.evict_idle_s = IDLE_S
    return world.reporting("n1", a_report(here, **{"finished_at": LONG_AGO, **report}), short(new))


def going(world: World) -> list[tuple[str, str]]:
    """Who would go, and for whom."""
    return [(name, each.for_caches[0]) for each in world.plan().evictions for name in each.caches]


def test_an_unused_copy_makes_room_and_it_is_said_what_for() -> None:
    (found,) = a_full_world().plan().evictions
    expected = Eviction(
        node=N1,
        root="/models",
        key=key_of(HERE),
        caches=(HERE.key,),
        size_bytes=GIB,
        unused_since=LONG_AGO,
        for_key=key_of(NEW),
        for_caches=(NEW.key,),
        for_uri=NEW.uri,
        for_bytes=GIB,
    )
    assert found == expected
    for word in ("n1", "here", "1Gi", "unused since 2023-11-14", "makes room for new"):
        assert word in found.reason


def off(world: World) -> None:
    world.evict_idle_s = None


def pods_unknown(world: World) -> None:
    world.pods_known = False


def silent(world: World) -> None:
    world.agents["n1"] = a_silent_agent(last=world.agents["n1"])


def cannot_help(world: World) -> None:
    world.reporting("n1", a_report(HERE, finished_at=LONG_AGO), short(NEW, None))


def downloading_elsewhere(world: World) -> None:
    world.add(a_node("n2")).reporting("n2", a_report(HERE, Phase.DOWNLOADING))


def damaged(world: World) -> None:
    world.reporting("n1", a_report(HERE, finished_at=LONG_AGO, damage="f is missing"), short(NEW))


def another_request(world: World) -> None:
    raw = world.find("LocalModelCache", "here")
    assert raw is not None
    raw["spec"]["revision"] = "v2"


def shared_with_a_pinned_one(world: World) -> None:
    world.add(unused(a_namespace_cache("team", "twin", HERE.uri)).with_spec(pinned=True))


def used_by(pod: Any) -> Any:
    return lambda world: world.add(pod)


STAYS: dict[str, Any] = {
    "the policy is off": off,
    "pods cannot be watched": pods_unknown,
    "the agent is silent": silent,
    "emptying the disk would not help": cannot_help,
    "another node is downloading it": downloading_elsewhere,
    "it is being replaced": another_request,
    "it is damaged": damaged,
    "another cache of the same folder is pinned": shared_with_a_pinned_one,
    "a pod on the node mounts its claim": used_by(a_pod().on("n1").claiming("here-gpu")),
    "a pod on another node mounts its claim": used_by(a_pod().on("n9").claiming("here-gpu")),
    "a pod that no node runs yet mounts its claim": used_by(a_pod().claiming("here-gpu")),
    "a pod is starting": used_by(a_pod().claiming("here-gpu").with_status(phase="Pending")),
    "a pod that KServe labelled for it": used_by(a_pod().labelled(localmodel="here")),
    "a pod mounts its folder": used_by(a_pod().on("n1").mounting(f"/models/models/{key_of(HERE)}")),
    "a pod mounts a folder in it": used_by(a_pod().on("n1").mounting(f"/models/models/{key_of(HERE)}/onnx/")),
    "a pod mounts its folder of some volume": used_by(a_pod().claiming("any", f"models/{key_of(HERE)}")),
    "a pod mounts all models": used_by(a_pod().on("n1").mounting("/models/models")),
    "a pod mounts the whole folder": used_by(a_pod().on("n1").mounting("/models/")),
    "a pod that mounts the whole folder may come": used_by(a_pod().mounting("/models")),
}


@pytest.mark.parametrize("case", STAYS)
def test_a_copy_stays_when(case: str) -> None:
    world = a_full_world()
    assert going(world) == [("here", "new")]
    STAYS[case](world)
    assert going(world) == []


GOES: dict[str, Any] = {
    "the pod that used it has ended": used_by(a_pod().on("n1").claiming("here-gpu").ended()),
    "the pod that used it has failed": used_by(a_pod().on("n1").claiming("here-gpu").ended("Failed")),
    "a pod mounts the claim of another": used_by(a_pod().on("n1").claiming("there-gpu")),
    "a pod mounts a claim that only begins like it": used_by(a_pod().on("n1").claiming("here-else")),
    "a pod on another node mounts the whole folder": used_by(a_pod().on("n9").mounting("/models")),
    "a pod mounts the whole disk, as monitoring does": used_by(a_pod().on("n1").mounting("/")),
    "a pod mounts a folder of a name alike": used_by(a_pod().on("n1").mounting("/models/models-old")),
    "a pod of another namespace uses a cache of that name there": used_by(
        a_pod(namespace="team").labelled(localmodel="here", localmodel_namespace="team")
    ),
}


@pytest.mark.parametrize("case", GOES)
def test_a_copy_goes_when(case: str) -> None:
    world = a_full_world()
    GOES[case](world)
    assert going(world) == [("here", "new")]


@pytest.mark.parametrize(
    ("here", "report"),
    [
        (unused(a_cache("here")).with_spec(pinned=True), {}),
        (unused(a_cache("here"), NOW - IDLE_S + 1), {}),
        (a_cache("here"), {}),
        (unused(a_cache("here")), {"finished_at": NOW - 10}),
        (unused(a_cache("here")), {"finished_at": None}),
        (unused(a_cache("here")).with_spec(priority=1), {}),
        (unused(a_cache("here")).with_spec(modelSize="huge"), {}),
        (unused(a_cache("here")).with_status(inferenceServices=[{"namespace": "a", "name": "scaled-to-zero"}]), {}),
        (unused(a_cache("here")).with_status(llmInferenceServices=[{"namespace": "a", "name": "llm"}]), {}),
        (unused(a_cache("here")).with_status(unusedSince="yesterday"), {}),
    ],
    ids=[
        "it is pinned",
        "it is not unused for long enough",
        "nobody knows since when it is unused",
        "it has just arrived",
        "nobody knows since when it is there",
        "it is more important",
        "its spec cannot be read",
        "an InferenceService may want it again",
        "an LLMInferenceService may want it again",
        "what was written is no time",
    ],
)
def test_a_copy_stays_because(here: CacheBuilder, report: dict[str, Any]) -> None:
    assert going(a_full_world(here, **report)) == []


def test_a_namespace_cache_is_used_through_the_claim_in_its_namespace() -> None:
    here = unused(a_namespace_cache("team", "here"))
    world = a_full_world(here).add(a_pod(namespace="other").claiming("here-gpu"))
    assert going(world) == [("team/here", "new")]
    world.add(a_pod("mine", namespace="team").claiming("here-gpu"))
    assert going(world) == []


def test_every_node_decides_for_itself() -> None:
    world = a_full_world().add(a_node("n2")).reporting("n2", a_report(HERE, finished_at=LONG_AGO), a_report(NEW))
    assert [each.node for each in world.plan().evictions] == ["n1"]


# --- what follows ---


def orders(world: World) -> tuple[Removal, ...]:
    return world.plan().desired[N1].remove


def test_nothing_is_ordered_before_the_pods_of_the_node_were_looked_at() -> None:
    world = a_full_world()
    assert orders(world) == ()
    world.looked_at = frozenset({N1})
    order = Removal(
        "/models", key_of(HERE), "Evicted", NOW, ORDER_S, for_key=key_of(NEW), for_uri=NEW.uri, for_bytes=GIB
    )
    assert orders(world) == (order,)


def test_what_is_ordered_is_what_is_decided() -> None:
    world = a_full_world()
    world.looked_at = frozenset({N1})
    made = world.plan()
    assert [each.order(NOW) for each in made.evictions] == list(made.desired[N1].remove)


def test_what_only_a_look_at_the_node_shows_to_be_used_stays() -> None:
    """As a volume of somebody's own over the model's folder: the watch of pods does not follow claims."""
    world = a_full_world()
    read = read_pod(a_pod().on("n1").claiming("mine").json)
    assert read is not None
    world.looked_at = frozenset({N1})
    world.look_failures = {N1: Look(NOW, (read.over({"mine": f"/models/models/{key_of(HERE)}"}),))}
    assert going(world) == []
    assert orders(world) == ()


def test_a_tenant_is_told_of_its_own_caches_only() -> None:
    eviction = Eviction(
        N1,
        "/models",
        key_of(HERE),
        tuple(StatusKey(key) for key in ("a/mine", "b/theirs", "plain")),
        GIB,
        LONG_AGO,
        key_of(NEW),
        (StatusKey("b/big"),),
        NEW.uri,
        30 * GIB,
    )
    assert all(word in eviction.said_to(None) for word in ("a/mine", "b/theirs", "plain", "b/big", "30Gi"))
    assert "a/mine" in eviction.said_to("a")
    assert not any(word in eviction.said_to("a") for word in ("b/", "plain", "30Gi"))
    assert all(word in eviction.said_to("b") for word in ("b/theirs", "b/big", "30Gi"))


def model_of(world: World, cache: CacheBuilder) -> DesiredModel:
    return next(each for each in world.plan().desired[N1].models if each.key == key_of(cache))


@pytest.mark.parametrize(
    ("change", "evictable"),
    [
        (lambda world: None, True),
        (off, False),
        (shared_with_a_pinned_one, False),
        (used_by(a_pod().claiming("here-gpu")), False),
        (pods_unknown, True),
    ],
    ids=["unused", "the policy is off", "pinned", "in use", "for a moment nobody knows better"],
)
def test_an_agent_is_told_what_may_be_evicted(change: Any, evictable: bool) -> None:
    world = a_full_world()
    change(world)
    model = model_of(world, HERE)
    assert model.evictable is evictable
    assert replace(model, evictable=False, group="", audience=None) == DesiredModel(
        model.key, model.root, model.source, model.resolved, model.expected_digest, model.priority, model.company
    )


def evicted(world: World, new_phase: Phase = Phase.READY) -> World:
    """What the agent reports afterwards."""
    went = Failure("Evicted", "its 1Gi made room for hf://models/new; spec.pinned keeps it")
    new = a_report(NEW, finished_at=LONG_AGO) if new_phase is Phase.READY else short(NEW)
    return world.reporting("n1", a_report(HERE, Phase.PENDING, failure=went), new)


def test_what_was_evicted_makes_nobody_go() -> None:
    """Not even one that has been unused for as long: two models never take turns."""
    world = a_full_world(new=unused(a_cache("new")))
    evicted(world)
    assert going(world) == []


def test_what_was_evicted_is_said_with_its_reason_in_status_and_once_as_an_event() -> None:
    world = a_full_world()
    world.settle()
    evicted(world)
    said = [(e.reason, e.message) for w in world.step().writes for e in w.events]
    world.settle()
    assert said.count(("Evicted", "n1: its 1Gi made room for hf://models/new; spec.pinned keeps it")) == 1
    here, local = world.find("LocalModelCache", "here"), world.find("LocalModelNode", "n1")
    assert here is not None
    assert local is not None
    conditions = {c["type"]: (c["status"], c["reason"]) for c in here["status"]["conditions"]}
    assert conditions == {
        "Ready": ("False", "Evicted"),
        "Progressing": ("True", "Waiting"),
        "Degraded": ("False", "AsExpected"),
    }
    assert here["status"]["nodeStatus"] == {"n1": "NodeDownloadPending"}
    (detail,) = [each for each in local["status"]["models"] if each["name"] == "here"]
    assert (detail["phase"], detail["reason"]) == ("Pending", "Evicted")


def since(world: World, name: str = "here") -> object:
    found = world.find("LocalModelCache", name)
    assert found is not None
    return found["status"].get("unusedSince")


def test_the_time_since_when_nobody_uses_it_is_written_once_and_goes_when_somebody_does() -> None:
    world = a_full_world(a_cache("here"))
    world.settle(NOW)
    assert since(world) == rfc3339(NOW)
    assert world.plan(NOW + 500).writes == ()
    pod = a_pod().claiming("here-gpu")
    world.add(pod).settle(NOW + 1000)
    assert since(world) is None
    pod.ended()
    world.settle(NOW + 2000)
    assert since(world) == rfc3339(NOW + 2000)


def test_it_stays_as_it_was_written_while_pods_cannot_be_watched() -> None:
    world = a_full_world()
    world.pods_known = False
    world.settle(NOW)
    assert (since(world), since(world, "new")) == (rfc3339(LONG_AGO), None)


def test_it_is_removed_when_the_policy_is_turned_off_as_nobody_looks_any_more() -> None:
    world = a_full_world()
    off(world)
    world.settle(NOW)
    assert since(world) is None


def test_where_our_status_fields_are_pruned_nothing_is_evicted() -> None:
    world = a_full_world(a_cache("here"))
    world.extensions = False
    world.settle(NOW)
    assert [world.plan(NOW + 100 * IDLE_S).evictions, since(world)] == [(), None]


# --- what the agents are told of pods ---

LATE, EARLY = "2023-11-14T22:00:00Z", "2023-11-14T21:00:00Z"


def told(world: World) -> dict[StorageKey, float] | None:
    used = world.plan().desired[N1].used
    return None if used is None else dict(used)


@dataclass(frozen=True)
class Told:
    pods: list[PodBuilder]
    used: list[tuple[CacheBuilder, str]]


TOLD: dict[str, Told] = {
    "nobody uses anything": Told([], []),
    "the oldest of two counts": Told(
        [
            a_pod("a").on("n1").claiming("here-gpu").created(LATE),
            a_pod("b").on("n1").claiming("here-gpu").created(EARLY),
        ],
        [(HERE, EARLY)],
    ),
    "a pod on another node has nothing open here": Told([a_pod().on("n2").claiming("here-gpu").created(LATE)], []),
    "a pod that no node runs yet has nothing open": Told([a_pod().claiming("here-gpu").created(LATE)], []),
    "a pod that has ended has nothing open": Told([a_pod().on("n1").claiming("here-gpu").created(LATE).ended()], []),
    "the key in a path of the host": Told(
        [a_pod().on("n1").mounting(f"/models/models/{key_of(HERE)}").created(LATE)], [(HERE, LATE)]
    ),
    "the whole folder is everything that lies there": Told(
        [a_pod().on("n1").mounting("/models").created(LATE)], [(HERE, LATE), (NEW, LATE)]
    ),
    "a pod that does not say when it was made is the oldest": Told(
        [a_pod().on("n1").claiming("here-gpu")], [(HERE, "1970-01-01T00:00:00Z")]
    ),
}


@pytest.mark.parametrize("case", TOLD)
def test_agents_are_told_what_pods_may_have_open(case: str) -> None:
    world = a_full_world().add(*TOLD[case].pods)
    world.looked_at = frozenset({N1})
    assert told(world) == {key_of(cache): parse_time(at) for cache, at in TOLD[case].used}


def test_agents_are_told_nothing_of_pods_where_nobody_has_just_looked() -> None:
    world = a_full_world()
    assert told(world) is None
    world.looked_at = frozenset({NodeName("n2")})
    assert told(world) is None
