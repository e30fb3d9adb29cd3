"""Marks on Nodes for their models: which labels and which condition stand in them, and when they go."""

from __future__ import annotations

import re
from typing import Any

import pytest

from actors.messages import Phase
from coordinator.dev.trial.builders import (
    GIB,
    NOW,
    CacheBuilder,
    World,
    a_cache,
    a_group,
    a_namespace_cache,
    a_node,
    a_report,
    a_silent_agent,
)
from coordinator.plan.node_marks import CONDITION, MAX_LABELS, MAX_OF_NAMESPACE, is_ours, label_of
from coordinator.plan.snapshot import CACHES, NAMESPACE_CACHES, Ref

OURS = "caches.localmodel.kserve.io"
KEY = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)/([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)")
"""The key of a label with a prefix, as Kubernetes takes it."""


def marking(*caches: CacheBuilder, **there: Any) -> World:
    """Node n1 of the group, which holds all of the caches, and n2 outside of it."""
    world = World(mark_nodes=True).add(*caches, a_group(), a_node("n1"), a_node("n2").in_pool("other"))
    for cache in caches:
        world.resolved(cache)
    return world.reporting("n1", *(a_report(cache, **there) for cache in caches))


def raw(world: World, node: str = "n1") -> dict[str, Any]:
    found = world.find("Node", node)
    assert found is not None
    return found


def labels(world: World, node: str = "n1") -> dict[str, str]:
    world.settle()
    return {key: value for key, value in raw(world, node)["metadata"]["labels"].items() if is_ours(key)}


def condition(world: World, node: str = "n1") -> tuple[str, str, str] | None:
    world.settle()
    conditions = raw(world, node)["status"]["conditions"]
    ours = [each for each in conditions if each["type"] == CONDITION]
    assert [each["type"] for each in conditions].count("Ready") == 1, "the kubelet's is kept"
    return (ours[0]["status"], ours[0]["reason"], ours[0]["message"]) if ours else None


def test_a_node_has_a_label_for_each_copy_and_others_have_none() -> None:
    world = marking(a_cache("llama"), a_namespace_cache("team-a", "llama", "hf://models/theirs"))
    assert labels(world) == {f"{OURS}/llama": "ready", f"team-a.{OURS}/llama": "ready"}
    assert labels(world, "n2") == {}


def test_nothing_is_written_to_a_node_without_the_flag() -> None:
    world = marking(a_cache("llama"))
    world.mark_nodes = False
    assert (labels(world), condition(world)) == ({}, None)


NAMES = {
    "a short name is itself": (None, "llama", f"{OURS}/llama"),
    "a name with dots is itself": (None, "llama-3.1-8b", f"{OURS}/llama-3.1-8b"),
    "63 characters are itself": (None, "a" * 63, f"{OURS}/{'a' * 63}"),
    "a namespace is part of the prefix": ("team-a", "llama", f"team-a.{OURS}/llama"),
}


@pytest.mark.parametrize("case", NAMES)
def test_a_label_is_named_after_its_cache(case: str) -> None:
    namespace, name, expected = NAMES[case]
    assert label_of(Ref(NAMESPACE_CACHES if namespace else CACHES, name, namespace)) == expected


def test_long_names_differ_where_only_their_ends_do_and_no_name_can_take_a_hashed_ones_place() -> None:
    long = [label_of(Ref(CACHES, "a" * 62 + end)) for end in ("bb", "bc", ".b" * 95)]
    assert len(set(long)) == 3
    assert all("_" in each and KEY.fullmatch(each) for each in long), "no cache's name has an underscore"
    assert KEY.fullmatch(label_of(Ref(NAMESPACE_CACHES, "m" * 253, "n" * 63)))


FOREIGN = [
    "caches.localmodel.kserve.io",
    "kserve/localmodel",
    "xcaches.localmodel.kserve.io/a",
    "a/caches.localmodel.kserve.io",
]


@pytest.mark.parametrize("label", FOREIGN)
def test_a_label_of_others_is_not_ours(label: str) -> None:
    assert not is_ours(label)


GONE: dict[str, dict[str, Any]] = {
    "it is fetched": {"phase": Phase.DOWNLOADING, "done": GIB // 2},
    "it failed": {"phase": Phase.FAILED, "done": 0},
    "it was evicted": {"phase": Phase.PENDING, "done": 0},
}


@pytest.mark.parametrize("case", GONE)
def test_a_label_goes_with_its_copy(case: str) -> None:
    cache = a_cache("llama")
    world = marking(cache)
    assert labels(world) == {f"{OURS}/llama": "ready"}
    state = GONE[case]
    world.reporting("n1", a_report(cache, phase=state["phase"], done=state["done"]))
    assert labels(world) == {}
    assert condition(world) == ("False", "ModelsMissing", "0 of 1 models are here; not yet: llama")


def test_a_label_goes_before_the_copy_of_a_cache_that_is_deleted() -> None:
    cache = a_cache("llama")
    world = marking(cache)
    assert labels(world)
    cache.deleted()
    world.step()
    assert f"{OURS}/llama" not in raw(world)["metadata"]["labels"]


def test_labels_and_condition_go_when_the_node_leaves_its_group() -> None:
    world = marking(a_cache("llama"))
    assert labels(world)
    assert condition(world) == ("True", "ModelsHere", "1 of 1 models are here")
    world.objects = [each for each in world.objects if each.json["kind"] != "LocalModelCache"]
    raw(world)["metadata"]["labels"]["pool"] = "other"
    assert labels(world) == {}
    assert condition(world) is None


def test_what_an_earlier_coordinator_left_on_a_node_that_was_replaced_goes() -> None:
    world = marking(a_cache("llama"))
    stale = raw(world, "n2")
    stale["metadata"]["labels"] |= {f"{OURS}/old": "ready", "mine": "1"}
    assert labels(world, "n2") == {}
    assert stale["metadata"]["labels"]["mine"] == "1"


def test_a_silent_agent_changes_nothing_that_its_node_says() -> None:
    cache = a_cache("llama")
    world = marking(cache)
    before = labels(world), condition(world)
    world.agents["n1"] = a_silent_agent("AgentRestarting")
    assert (labels(world), condition(world)) == before
    assert before[0] == {f"{OURS}/llama": "ready"}


def test_a_label_is_of_the_same_value_after_an_agent_was_silent() -> None:
    cache = a_cache("llama")
    world = marking(cache)
    labels(world)
    raw(world)["metadata"]["labels"][f"{OURS}/llama"] = "earlier"
    world.agents["n1"] = a_silent_agent("AgentRestarting")
    assert labels(world) == {f"{OURS}/llama": "earlier"}
    world.reporting("n1", a_report(cache))
    assert labels(world) == {f"{OURS}/llama": "ready"}


def test_labels_are_bounded_the_cluster_and_the_oldest_come_first_and_no_namespace_takes_the_others() -> None:
    crowd = [a_namespace_cache("crowd", f"c{n:03}") for n in range(MAX_OF_NAMESPACE + 5)]
    other = a_namespace_cache("other", "one")
    world = marking(*crowd, other, a_cache("cluster"))
    found = labels(world)
    assert {f"{OURS}/cluster", f"other.{OURS}/one"} <= found.keys()
    assert sum(key.startswith("crowd.") for key in found) == MAX_OF_NAMESPACE
    assert f"crowd.{OURS}/c000" in found
    many = [a_cache(f"m{n:03}") for n in range(MAX_LABELS + 1)]
    assert len(labels(marking(*many))) == MAX_LABELS


def test_a_cache_of_a_namespace_does_not_keep_a_node_from_being_ready() -> None:
    broken = a_namespace_cache("team-a", "broken")
    world = marking(a_cache("llama"))
    world.add(broken)
    assert condition(world) == ("True", "ModelsHere", "1 of 1 models are here")


def test_a_member_without_caches_is_ready_and_a_node_of_no_group_says_nothing() -> None:
    world = marking()
    assert condition(world) == ("True", "ModelsHere", "no LocalModelCache belongs here")
    assert condition(world, "n2") is None


def test_the_time_of_the_condition_moves_with_its_status_alone() -> None:
    cache = a_cache("llama")
    world = marking(cache)

    def transition() -> str:
        (ours,) = [each for each in raw(world)["status"]["conditions"] if each["type"] == CONDITION]
        return str(ours["lastTransitionTime"])

    world.settle()
    first = transition()
    second = a_cache("second")
    world.add(second).resolved(second).reporting("n1", a_report(cache), a_report(second))
    world.settle(NOW + 60)
    assert transition() == first
    world.reporting("n1", a_report(cache), a_report(second, phase=Phase.DOWNLOADING, done=1))
    world.settle(NOW + 120)
    assert transition() != first
