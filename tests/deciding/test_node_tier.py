"""The node tier alone holds what LocalModelNodes list, says so in KServe's words, and writes nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from actors.errors import Failure
from actors.messages import ModelReport, NodeName, Phase, Removal
from coordinator.dev.trial.builders import (
    CacheBuilder,
    World,
    a_cache,
    a_group,
    a_local_node,
    a_namespace_cache,
    a_node,
    a_pod,
    a_report,
    a_resolution,
    a_silent_agent,
    a_world,
    key_of,
)
from coordinator.plan.plan import Verb

N1, N2 = NodeName("n1"), NodeName("n2")
LLAMA, QWEN = a_cache("llama").in_group("gpu"), a_cache("qwen", "hf://models/qwen").in_group("gpu")
MINE = a_namespace_cache("team-a", "mine", "hf://models/mine").in_group("gpu")


def a_followed(*caches: CacheBuilder, group: str = "gpu") -> World:
    """Node n1 in the group `gpu`, with lines of these caches, of which no object is there."""
    world = a_world(a_node("n1"), a_group("gpu"), a_local_node("n1").listing(*caches, group=group)).reporting("n1")
    world.follows = True
    for cache in caches:
        world.resolved(cache)
    return world


def digested(cache: CacheBuilder) -> ModelReport:
    """A copy whose every byte is known."""
    return replace(a_report(cache), manifest_digest="sha256:" + "a" * 64)


def local_node(world: World, node: str = "n1") -> dict[str, Any]:
    found = world.find("LocalModelNode", node)
    assert found is not None
    return found


def words(world: World, node: str = "n1") -> dict[str, str]:
    found: dict[str, str] = local_node(world, node)["status"].get("modelStatus", {})
    return found


def details(world: World) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in local_node(world)["status"].get("models", ())}


def desired(world: World, node: NodeName = N1) -> dict[str, str]:
    return {model.key: model.root for model in world.settle().desired[node].models}


def removed(world: World) -> list[Removal]:
    world.looked_at = frozenset({N1})
    return list(world.settle().desired[N1].remove)


def unlisted(world: World, *kept: CacheBuilder) -> World:
    """KServe's controller has taken all lines but these away."""
    local_node(world)["spec"]["localModels"] = a_local_node("n1").listing(*kept).json["spec"]["localModels"]
    return world


def test_what_is_listed_is_to_be_held_and_nothing_but_status_is_written() -> None:
    world = a_followed(LLAMA, MINE).add(QWEN)  # of which the list knows nothing
    made = world.plan()
    assert [(write.verb, write.ref.resource.kind) for write in made.writes] == [(Verb.PATCH_STATUS, "LocalModelNode")]
    assert desired(world) == {key_of(LLAMA): "/models", key_of(MINE): "/models"}
    assert words(world) == {"llama": "ModelDownloadPending", "team-a/mine": "ModelDownloadPending"}
    assert set(world.plan().wants) == {"llama", "team-a/mine"}
    assert QWEN.json.get("status", {}) == {}


@pytest.mark.parametrize(
    ("phase", "word"),
    [
        (Phase.PENDING, "ModelDownloadPending"),
        (Phase.DOWNLOADING, "ModelDownloading"),
        (Phase.VERIFYING, "ModelDownloading"),
        (Phase.FAILED, "ModelDownloadError"),
        (Phase.READY, "ModelDownloaded"),
    ],
)
def test_status_has_kserves_words(phase: Phase, word: str) -> None:
    world = a_followed(LLAMA).reporting("n1", a_report(LLAMA, phase))
    world.settle()
    assert words(world) == {"llama": word}


def test_each_node_holds_what_its_own_list_has() -> None:
    world = a_followed(LLAMA).add(a_node("n2"), a_local_node("n2").listing(QWEN)).reporting("n2").resolved(QWEN)
    assert (list(desired(world)), list(desired(world, N2))) == ([key_of(LLAMA)], [key_of(QWEN)])
    world.reporting("n1", a_report(LLAMA)).settle()
    assert (words(world), words(world, "n2")) == ({"llama": "ModelDownloaded"}, {"qwen": "ModelDownloadPending"})


def test_one_name_may_be_of_two_uris_on_two_nodes() -> None:
    other = a_cache("llama", "hf://models/other")
    world = a_followed(LLAMA).add(a_node("n2"), a_local_node("n2").listing(other)).reporting("n1", a_report(LLAMA))
    world.reporting("n2")
    assert (list(desired(world)), list(desired(world, N2))) == ([key_of(LLAMA)], [key_of(other)])
    assert (words(world), words(world, "n2")) == ({"llama": "ModelDownloaded"}, {"llama": "ModelDownloadPending"})
    assert sorted(want.source.uri for want in world.plan().wants.values()) == [other.uri]
    world.reporting("n2", a_report(other)).settle()
    assert words(world, "n2") == {"llama": "ModelDownloaded"}


def test_a_list_that_is_emptied_empties_the_status() -> None:
    world = a_followed(LLAMA).reporting("n1", a_report(LLAMA))
    world.settle()
    unlisted(world).settle()
    assert words(world) == {}


def test_a_line_without_a_group_is_of_the_first_that_selects_the_node() -> None:
    world = a_followed(LLAMA, group="").add(a_group("other").labelled("pool", "none").at("/other"))
    assert desired(world) == {key_of(LLAMA): "/models"}


def test_overlapping_groups_the_line_says_which() -> None:
    world = a_followed(LLAMA, group="zz").add(a_group("zz").labelled("pool", "gpu").at("/nvme"))
    assert desired(world) == {key_of(LLAMA): "/nvme"}


@pytest.mark.parametrize(
    ("world", "reason"),
    [
        (a_followed(LLAMA, group="gone"), "NodeGroupNotFound"),
        (a_followed(a_cache("llama", "gopher://models/llama")), "SchemeNotAllowed"),
        (a_followed(a_cache("llama", "models/llama")), "InvalidURI"),
    ],
)
def test_a_line_that_cannot_be_carried_out_is_an_error_with_a_reason(world: World, reason: str) -> None:
    assert desired(world) == {}
    assert words(world) == {"llama": "ModelDownloadError"}
    assert details(world)["llama"]["reason"] == reason


JUNK: list[Any] = [
    {},
    {"modelName": "", "sourceModelUri": "hf://m/x"},
    {"modelName": "no-uri"},
    {"modelName": "@", "sourceModelUri": "hf://m/x"},
    {"modelName": 7, "sourceModelUri": "hf://m/x"},
    {"modelName": "account", "sourceModelUri": "hf://m/x", "serviceAccountName": {"a": 1}},
    {"modelName": "storage", "sourceModelUri": "hf://m/x", "storage": "key"},
    {"modelName": "parameters", "sourceModelUri": "hf://m/x", "storage": {"parameters": {"type": 7}}},
    {"modelName": "huge", "sourceModelUri": "hf://" + "x" * 10_000},
    "text",
    None,
]


@pytest.mark.parametrize("junk", JUNK)
def test_junk_in_a_list_harms_no_other_line(junk: Any) -> None:
    world = a_followed(LLAMA).reporting("n1", a_report(LLAMA))
    spec = local_node(world)["spec"]
    spec["localModels"] = [junk, *spec["localModels"], junk]
    world.settle()
    assert words(world)["llama"] == "ModelDownloaded"
    assert set(words(world).values()) <= {"ModelDownloaded", "ModelDownloadError", "ModelDownloadPending"}
    assert removed(world) == []


def test_what_the_object_says_beside_kserves_fields_counts() -> None:
    pinned = a_cache("llama").in_group("gpu").with_spec(revision="v2", priority=7)
    world = a_followed(LLAMA).add(pinned)
    world.resolutions["llama"] = a_resolution(pinned.source)
    (model,) = world.settle().desired[N1].models
    assert (model.source.revision, model.priority) == ("v2", 7)


def test_a_source_is_not_asked_again_and_again_for_what_only_a_status_remembers() -> None:
    refreshed = a_cache("llama").in_group("gpu").with_spec(refresh="1h", rollout={"maxUnavailable": 1})
    world = a_followed(LLAMA).add(refreshed).reporting("n1", a_report(LLAMA))
    assert world.settle().wants == {}
    assert words(world) == {"llama": "ModelDownloaded"}


# --- what goes ---


def test_a_copy_that_nothing_lists_and_no_cache_wants_goes() -> None:
    world = a_followed(LLAMA, QWEN).reporting("n1", a_report(LLAMA), a_report(QWEN))
    world.settle()
    assert removed(world) == []
    assert [(order.key, order.reason) for order in removed(unlisted(world, QWEN))] == [(key_of(LLAMA), "NotListed")]


def test_also_where_another_node_still_lists_it() -> None:
    world = a_followed(LLAMA).reporting("n1", a_report(LLAMA)).add(a_node("n2"), a_local_node("n2").listing(LLAMA))
    world.settle()
    assert [order.key for order in removed(unlisted(world))] == [key_of(LLAMA)]


def held_by_a_pod(world: World) -> None:
    world.add(a_pod().on("n1").claiming("llama-gpu", f"models/{key_of(LLAMA)}"))


def a_cache_that_lives(world: World) -> None:
    world.add(LLAMA)


def no_local_model_node(world: World) -> None:
    world.objects = [each for each in world.objects if each.json["kind"] != "LocalModelNode"]


def listed_by_another_name(world: World) -> None:
    unlisted(world, a_cache("again", LLAMA.uri))


def a_cache_that_cannot_be_read(world: World) -> None:
    world.add(a_cache("junk").with_spec(sourceModelUri=7))


@pytest.mark.parametrize(
    "accident",
    [held_by_a_pod, a_cache_that_lives, no_local_model_node, listed_by_another_name, a_cache_that_cannot_be_read],
)
def test_a_copy_stays(accident: Any) -> None:
    world = unlisted(a_followed(LLAMA)).reporting("n1", a_report(LLAMA))
    accident(world)
    assert removed(world) == []


def test_the_copy_of_a_cache_that_is_being_deleted_goes_once_its_line_has() -> None:
    world = a_followed(LLAMA).reporting("n1", a_report(LLAMA)).add(a_cache("llama").in_group("gpu").deleted())
    world.settle()
    assert removed(world) == []
    assert [order.key for order in removed(unlisted(world))] == [key_of(LLAMA)]


# --- who may have what is there ---


def test_a_line_of_a_tenant_is_done_once_its_own_source_has_been_read() -> None:
    world = a_followed(MINE).reporting("n1", digested(MINE))
    world.resolutions = {}
    world.settle()
    assert words(world) == {"team-a/mine": "ModelDownloadPending"}
    assert list(world.plan().wants) == ["team-a/mine"]
    world.resolved(MINE).settle()
    assert words(world) == {"team-a/mine": "ModelDownloaded"}


def test_what_a_tenant_was_shown_outlives_a_restart_and_a_silent_agent() -> None:
    world = a_followed(MINE).reporting("n1", digested(MINE))
    world.settle()
    assert details(world)["team-a/mine"]["digest"] == digested(MINE).manifest_digest
    last = world.agents["n1"]
    world.resolutions = {}
    world.settle()
    assert words(world) == {"team-a/mine": "ModelDownloaded"}
    world.agents["n1"] = a_silent_agent()
    world.settle()
    assert words(world) == {"team-a/mine": "ModelDownloaded"}
    world.agents["n1"] = last
    world.unresolved(MINE, Failure("SourceDenied", "401", retryable=False)).settle()
    assert words(world) == {"team-a/mine": "ModelDownloadError"}


def test_a_name_that_is_given_to_another_source_proves_nothing() -> None:
    world = a_followed(MINE).reporting("n1", digested(MINE))
    world.settle()
    other = a_namespace_cache("team-a", "mine", "hf://others/private")
    secret = replace(a_report(other), manifest_digest="sha256:" + "5" * 64)
    world.reporting("n1", digested(MINE), secret)
    world.resolutions = {}
    unlisted(world, other).settle()
    assert words(world) == {"team-a/mine": "ModelDownloadPending"}


def test_on_kserves_own_crds_a_tenant_asks_again_after_a_restart() -> None:
    world = a_followed(MINE).reporting("n1", digested(MINE))
    world.extensions = False
    world.settle()
    assert words(world) == {"team-a/mine": "ModelDownloaded"}
    assert list(local_node(world)["status"]) == ["modelStatus"]
    world.resolutions = {}
    world.settle()
    assert words(world) == {"team-a/mine": "ModelDownloadPending"}


def test_the_commit_that_nodes_hold_is_asked_for_again() -> None:
    world = a_followed(LLAMA).add(a_node("n2"), a_local_node("n2").listing(LLAMA))
    world.reporting("n1", replace(a_report(LLAMA), revision="c0ffee")).reporting("n2")
    world.resolutions = {}
    assert world.settle().wants[LLAMA.key].pinned_revision == "c0ffee"
