"""A rollout: which nodes may take a new version now, what status says of it, and that its bound holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.messages import NodeName
from coordinator.dev.trial.builders import a_cache
from coordinator.plan.rollout import SETTLE_S, Stage, step
from coordinator.plan.snapshot import Policy
from tests.kit.rolling import Fleet

B, P, D, G, S, A = Stage.BEHIND, Stage.PREFETCHED, Stage.DONE, Stage.GONE, Stage.SILENT, Stage.AWAY
ONE = Policy(most=1, share=False)

STEPS: dict[str, tuple[Policy, list[Stage], set[int], set[int]]] = {
    "one that is behind keeps all": (ONE, [P, P, B], set(), set()),
    "when all have it the first is let": (ONE, [P, P, P], set(), {0}),
    "while one is let no other is": (ONE, [P, P, P], {1}, {1}),
    "one that is done makes room for the next": (ONE, [D, P, P], {0}, {1}),
    "two at a time": (Policy(2, share=False), [P, P, P], set(), {0, 1}),
    "a share is rounded down": (Policy(50), [P, P, P, P, P], set(), {0, 1}),
    "and is at least one": (Policy(25), [P, P, P], set(), {0}),
    "a share of all of them": (Policy(100), [P, P, P], set(), {0, 1, 2}),
    "one without a copy counts": (ONE, [P, P, G], set(), set()),
    "one that is silent counts": (ONE, [P, P, S], set(), set()),
    "and leaves what is left": (Policy(2, share=False), [P, P, S], set(), {0}),
    "one that was let and fell silent stays let": (ONE, [S, P, P], {0}, {0}),
    "one that was let and lost its copy stays let": (ONE, [G, P, P], {0}, {0}),
    "one that was let and is not ready stays let": (ONE, [A, P, P], {0}, {0}),
    "one that is not ready does not count": (ONE, [A, P, P], set(), {1}),
    "one that was let for another version is not any more": (ONE, [B, P, P], {0}, set()),
    "paused: nobody further": (Policy(2, share=False, paused=True), [P, P, P], {0}, {0}),
    "only the groups that are named": (Policy(3, share=False, groups=frozenset({"odd"})), [P, P, P, P], set(), {1, 3}),
    "nobody waits for those of another group": (
        Policy(3, share=False, groups=frozenset({"odd"})),
        [B, P, B, P],
        set(),
        {1, 3},
    ),
    "no group": (Policy(3, share=False, groups=frozenset()), [P, P, P], set(), set()),
    "more than allowed were let before": (ONE, [P, P, P], {0, 1}, {0, 1}),
    "nothing to do": (ONE, [D, D, D], set(), set()),
    "no nodes": (ONE, [], set(), set()),
}


@pytest.mark.parametrize(("policy", "stages", "cutting", "expected"), STEPS.values(), ids=STEPS)
def test_which_nodes_may_take_the_new_version(
    policy: Policy, stages: list[Stage], cutting: set[int], expected: set[int]
) -> None:
    names = [NodeName(f"n{index}") for index in range(len(stages))]
    groups = {name: "odd" if index % 2 else "even" for index, name in enumerate(names)}
    found = step(policy, dict(zip(names, stages, strict=True)), {names[index] for index in cutting}, groups)
    assert found.let == {names[index] for index in expected}


def test_another_coordinator_lets_nobody_at_first() -> None:
    stages = {NodeName("n1"): P, NodeName("n2"): P}
    assert step(ONE, stages, set(), {}, settled=False).let == frozenset()


@given(
    stages=st.lists(st.sampled_from(Stage), max_size=12),
    cutting=st.sets(st.integers(0, 11)),
    most=st.integers(1, 100),
    share=st.booleans(),
    paused=st.booleans(),
)
def test_nobody_is_let_beyond_the_bound(
    stages: list[Stage], cutting: set[int], most: int, share: bool, paused: bool
) -> None:
    names = {NodeName(f"n{index}"): stage for index, stage in enumerate(stages)}
    before = {NodeName(f"n{index}") for index in cutting}
    found = step(Policy(most, share, paused=paused), names, before, {})
    further = found.let - before
    assert not further or len(found.unavailable) <= found.limit
    assert all(names[node] is P for node in further)


# --- a whole fleet ---


def a_fleet(nodes: int = 4, *, fetches: int = 0, groups: tuple[str, ...] = ("gpu",), **rollout: Any) -> Fleet:
    """Every node serves version 1."""
    fleet = Fleet(a_cache().with_spec(revision="1"), nodes, fetches=fetches, groups=groups)
    fleet.cache.with_spec(rollout=rollout)
    fleet.until(1)
    for _ in range(3):
        fleet.tick()
    assert fleet.serving() == {"1": nodes}
    return fleet


def edit(fleet: Fleet, **spec: Any) -> None:
    fleet.cache.with_spec(**spec)
    fleet.cache.json["metadata"]["generation"] += 1


def condition(fleet: Fleet, name: str) -> tuple[str, str]:
    (found,) = (each for each in fleet.status["conditions"] if each["type"] == name)
    return found["status"], found["reason"]


def versions(fleet: Fleet) -> list[tuple[int, str, int, int]]:
    """Number, state, nodes, beside."""
    found: list[Mapping[str, Any]] = fleet.status["versions"]
    return [(int(each["revision"], 16), each["state"], each["nodes"], each["beside"]) for each in found]


def test_the_new_version_is_on_all_nodes_before_the_first_takes_it_and_then_they_do_one_by_one() -> None:
    fleet = a_fleet(4, fetches=3, maxUnavailable=1)
    edit(fleet, revision="2")
    seen = []
    for _ in range(40):
        fleet.tick()
        seen.append(fleet.serving())
        assert fleet.most_let <= 1
    steps = [each for index, each in enumerate(seen) if index == 0 or each != seen[index - 1]]
    assert steps == [{"1": 4}, {"2": 1, "1": 3}, {"2": 2, "1": 2}, {"2": 3, "1": 1}, {"2": 4}]
    assert versions(fleet) == [(2, "Current", 4, 0), (1, "Previous", 0, 4)]
    assert condition(fleet, "Progressing") == ("False", "AllNodesReady")
    assert fleet.status["revision"] == f"{2:040x}"
    assert "rollout" not in fleet.status


def test_status_says_both_versions_on_the_way() -> None:
    fleet = a_fleet(4, maxUnavailable=1, paused=True)
    edit(fleet, revision="2")
    for _ in range(6):
        fleet.tick()
    assert versions(fleet) == [(1, "Current", 4, 0), (2, "Next", 0, 4)]
    assert fleet.status["rollout"] == "0/4 on 000000000000, 4 have it ready"
    assert condition(fleet, "Ready") == ("True", "EarlierRevision")
    assert condition(fleet, "Progressing") == ("False", "RolloutPaused")
    assert fleet.status["revision"] == f"{1:040x}"
    edit(fleet, rollout={"maxUnavailable": 1})
    for _ in range(2):
        fleet.tick()
    assert condition(fleet, "Progressing") == ("True", "CuttingOver")
    fleet.until(2)


def test_a_partition_is_a_canary() -> None:
    fleet = a_fleet(4, groups=("canary", "rest"), maxUnavailable=2, partition=["canary"])
    edit(fleet, revision="2")
    for _ in range(10):
        fleet.tick()
    assert fleet.serving() == {"1": 2, "2": 2}
    assert versions(fleet) == [(1, "Current", 2, 2), (2, "Next", 2, 2)]
    assert condition(fleet, "Progressing") == ("False", "RolloutPartitioned")
    edit(fleet, rollout={"maxUnavailable": 2})
    fleet.until(2)


def test_going_back_asks_for_nothing_and_is_said() -> None:
    fleet = a_fleet(3, fetches=2, maxUnavailable="100%")
    edit(fleet, revision="2")
    fleet.until(2)
    for _ in range(3):
        fleet.tick()
    for disk in fleet.disks.values():
        disk.fetches = 10_000
    edit(fleet, revision="1")
    reasons = []
    for _ in range(8):
        reasons += [event.reason for write in fleet.tick().writes for event in write.events]
    assert fleet.serving() == {"1": 3}
    assert "RolledBack" in reasons
    assert "RolledOut" not in reasons


def test_each_step_is_said_once() -> None:
    fleet = a_fleet(2, fetches=2, maxUnavailable=1)
    edit(fleet, revision="2")
    reasons = []
    for _ in range(15):
        reasons += [event.reason for write in fleet.tick().writes for event in write.events]
    about = [each for each in reasons if each in {"Resolved", "Prefetched", "CutOver", "RolledOut", "RolledBack"}]
    assert about == ["Resolved", "Prefetched", "CutOver", "RolledOut"]


def test_without_a_rollout_every_node_takes_it_as_soon_as_it_has_it() -> None:
    fleet = a_fleet(4)
    del fleet.cache.json["spec"]["rollout"]
    edit(fleet, revision="2")
    assert fleet.until(2) <= 4


def test_two_commits_of_the_same_content_are_one_version() -> None:
    fleet = a_fleet(3)
    disk = fleet.disks[NodeName("n2")]
    assert disk.place is not None
    disk.place = replace(disk.place, revision="f" * 40)
    for _ in range(2):
        fleet.tick()
    (only,) = fleet.status["versions"]
    assert (only["state"], only["nodes"]) == ("Current", 3)


def test_a_silent_node_holds_up_and_is_named() -> None:
    fleet = a_fleet(3, maxUnavailable=1)
    fleet.silent.add(NodeName("n2"))
    edit(fleet, revision="2")
    for _ in range(8):
        fleet.tick()
    assert fleet.serving() == {"1": 3}
    fleet.silent.clear()
    fleet.until(2)


# --- a branch that moves ---


def a_refreshed_fleet(nodes: int = 3, /, **spec: Any) -> Fleet:
    fleet = Fleet(a_cache().with_spec(**spec), nodes)
    fleet.until(1)
    for _ in range(4):
        fleet.tick()
    return fleet


def test_a_branch_that_moved_is_rolled_out_after_the_interval() -> None:
    fleet = a_refreshed_fleet(refresh="1h", rollout={"maxUnavailable": 1})
    fleet.latest = 2
    for _ in range(20):
        fleet.tick()
    assert fleet.serving() == {"1": 3}
    fleet.now += 3600
    for _ in range(2):
        fleet.tick()
    assert fleet.serving() == {"1": 3}
    assert [each["state"] for each in fleet.status["versions"]] == ["Current", "Next"]
    fleet.until(2)
    for _ in range(3):
        fleet.tick()
    assert versions(fleet) == [(2, "Current", 3, 0), (1, "Previous", 0, 3)]
    assert fleet.status["revision"] == f"{2:040x}"


@pytest.mark.parametrize("refresh", [None, "Never"])
def test_a_branch_that_moved_is_nothing_to_a_cache_that_is_not_refreshed(refresh: str | None) -> None:
    fleet = a_refreshed_fleet(**({"refresh": refresh} if refresh else {}))
    fleet.latest = 2
    fleet.now += 10 * 86400
    for _ in range(10):
        assert fleet.tick().wants == {}
    assert fleet.serving() == {"1": 3}


def test_an_annotation_asks_once() -> None:
    fleet = a_refreshed_fleet()
    fleet.latest = 2
    fleet.cache.with_metadata(annotations={"localmodel.kserve.io/refresh": "now"})
    fleet.until(2)
    for _ in range(4):
        fleet.tick()
    fleet.latest = 3
    fleet.now += 10 * 86400
    for _ in range(6):
        fleet.tick()
    assert fleet.serving() == {"2": 3}
    fleet.cache.with_metadata(annotations={"localmodel.kserve.io/refresh": "again"})
    fleet.until(3)


def test_another_coordinator_goes_on_with_the_version_that_was_next() -> None:
    fleet = a_refreshed_fleet(4, refresh="1h", rollout={"maxUnavailable": 1})
    fleet.latest, fleet.now = 2, fleet.now + 3600
    while fleet.serving() != {"1": 3, "2": 1}:
        fleet.tick()
    fleet.latest = 3
    fleet.restart()
    fleet.until(2)
    assert fleet.serving() == {"2": 4}


def test_a_digest_that_is_pinned_refuses_what_the_branch_moved_to() -> None:
    fleet = a_refreshed_fleet(refresh="1m")
    edit(fleet, digest=fleet.status["manifestDigest"])
    fleet.latest, fleet.now = 2, fleet.now + 60
    for _ in range(6):
        fleet.tick()
    assert fleet.serving() == {"1": 3}
    assert condition(fleet, "Ready") == ("True", "AllNodesReady")
    assert condition(fleet, "Degraded") == ("True", "DigestMismatch")
    current, failed = fleet.status["versions"]
    assert (current["state"], current["nodes"], failed["state"], failed["reason"]) == (
        "Current",
        3,
        "Failed",
        "DigestMismatch",
    )


# --- histories ---


@settings(max_examples=30, deadline=None)
@given(
    nodes=st.integers(2, 6),
    most=st.sampled_from([1, 2, "25%", "50%", "100%"]),
    fetches=st.integers(0, 3),
    data=st.data(),
)
@pytest.mark.slow
def test_the_bound_holds_whatever_happens(nodes: int, most: int | str, fetches: int, data: st.DataObject) -> None:
    fleet = a_fleet(nodes, fetches=fetches, maxUnavailable=most)
    share = isinstance(most, str)
    limit = Policy(int(str(most).rstrip("%")), share).limit(nodes)
    names = sorted(fleet.disks)
    edit(fleet, revision="2")
    some = st.lists(st.sampled_from(names), min_size=1, unique=True)
    for _ in range(data.draw(st.integers(10, 40))):
        match data.draw(st.sampled_from(["edit", "restart", "silent", "heard", "pause", "resume", *["go"] * 12])):
            case "edit":
                edit(fleet, revision=data.draw(st.sampled_from(["1", "2", "3"])))
            case "restart":
                for name in names:
                    fleet.deliver(name)  # within SETTLE_S
                fleet.restart()
            case "silent":
                fleet.silent.add(data.draw(st.sampled_from(names)))
            case "heard":
                fleet.silent.clear()
            case "pause" | "resume" as what:
                edit(fleet, rollout={"maxUnavailable": most, "paused": what == "pause"})
        fleet.tick(*data.draw(some | st.just(names)))
        assert fleet.most_let <= limit
        assert sum(fleet.serving().values()) == nodes
    fleet.silent.clear()
    edit(fleet, revision="3", rollout={"maxUnavailable": most})
    fleet.now += SETTLE_S
    fleet.until(3, ticks=200)
