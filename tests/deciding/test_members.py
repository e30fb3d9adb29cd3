"""Placement: nodes into groups, caches onto nodes."""

from __future__ import annotations

from actors.messages import DesiredRoot
from coordinator.dev.trial.builders import World, a_cache, a_group, a_local_node, a_namespace_cache, a_node, a_world
from coordinator.plan.placement import Members, place


def placed(world: World) -> Members:
    return place(world.snapshot())


def layout(members: Members) -> dict[str, dict[str, str]]:
    """node → cache → group."""
    return {name: {s.cache.key: s.group for s in placement.slots} for name, placement in members.placements.items()}


def test_a_cache_is_placed_on_every_node_of_every_group_it_names() -> None:
    world = a_world(a_cache("llama").in_group("gpu", "cpu"), a_group("gpu"), a_group("cpu"), a_group("other"))
    world.add(a_node("g1"), a_node("c1").in_pool("cpu"), a_node("o1").in_pool("other"), a_node("x").in_pool("none"))
    assert layout(placed(world)) == {"g1": {"llama": "gpu"}, "c1": {"llama": "cpu"}, "o1": {}}


def test_a_node_in_two_groups_of_one_cache_takes_the_one_the_cache_names_first() -> None:
    world = a_world(a_cache("llama").in_group("b", "a"), a_group("a").labelled("pool", "gpu"), a_node("n1"))
    world.add(a_group("b").labelled("pool", "gpu"))
    assert layout(placed(world)) == {"n1": {"llama": "b"}}


def test_a_cache_that_is_being_deleted_is_placed_nowhere() -> None:
    assert layout(placed(a_world(a_cache("llama").deleted(), a_group(), a_node("n1")))) == {"n1": {}}


def test_nodes_with_the_same_groups_share_one_placement() -> None:
    members = placed(a_world(a_cache(), a_group(), a_node("n1"), a_node("n2")))
    assert members.placements["n1"] is members.placements["n2"]  # type: ignore[index]  # names as they are


def test_each_group_has_its_own_limit_where_two_share_a_root() -> None:
    world = a_world(a_group("a").labelled("pool", "gpu").with_spec(storageLimit="2Gi"), a_node("n1"))
    world.add(a_group("b").labelled("pool", "gpu").with_spec(storageLimit="1Gi"))
    (placement,) = placed(world).placements.values()
    assert placement.roots == (DesiredRoot("/models", 2 << 30, "a"), DesiredRoot("/models", 1 << 30, "b"))


def test_the_older_cache_owns_the_folder_that_two_share() -> None:
    old = a_cache("z", "hf://m").created("2026-01-01T00:00:00Z")
    young = a_cache("a", "hf://m").created("2026-01-02T00:00:00Z")
    members = placed(a_world(young, old, a_group(), a_node("n1")))
    (placement,) = members.placements.values()
    assert [(slot.cache.key, slot.owner.key, slot.conflict) for slot in placement.slots] == [
        ("z", "z", None),
        ("a", "z", None),
    ]
    assert {key: other.key for key, other in members.duplicates.items()} == {"a": "z"}


def test_of_two_caches_created_together_the_first_by_name_owns() -> None:
    members = placed(a_world(a_cache("b", "hf://m"), a_cache("a", "hf://m"), a_group(), a_node("n1")))
    assert list(members.duplicates) == ["b"]


def test_namespace_caches_share_folders_without_being_duplicates() -> None:
    members = placed(a_world(a_cache("m", "hf://m"), a_namespace_cache("team", "m", "hf://m"), a_group(), a_node("n1")))
    assert layout(members) == {"n1": {"m": "gpu", "team/m": "gpu"}}
    assert not members.duplicates


def test_sharing_a_folder_with_another_revision_is_a_conflict() -> None:
    young = a_cache("young", "hf://m").created("2026-02-01T00:00:00Z").with_spec(revision="v2", digest="sha256:1")
    (placement,) = placed(a_world(a_cache("old", "hf://m"), young, a_group(), a_node("n1"))).placements.values()
    conflict = placement.slots[1].conflict
    assert conflict is not None
    assert (conflict.reason, conflict.retryable) == ("SourceConflict", False)
    assert "LocalModelCache old" in conflict.message
    assert "revision, digest" in conflict.message


def test_a_copy_whose_group_is_missing_stays_where_it_is_and_goes_nowhere_else() -> None:
    cache = a_cache("llama")
    held = a_local_node("n1").listing(cache).with_status(roots=[{"path": "/models"}])
    members = placed(a_world(cache, held, a_node("n1"), a_node("n2")))
    assert layout(members) == {"n1": {"llama": "gpu"}}
    (placement,) = members.placements.values()
    assert placement.roots == (DesiredRoot("/models", group="gpu"),)


def test_a_copy_whose_group_lost_its_affinity_stays_in_the_root_of_the_group() -> None:
    cache = a_cache("llama")
    group = a_group().at("/nvme").without_affinity()
    members = placed(a_world(cache, group, a_local_node("n1").listing(cache), a_node("n1"), a_node("n2")))
    assert {name: slot.root for name, p in members.placements.items() for slot in p.slots} == {"n1": "/nvme"}


def test_a_node_that_no_longer_matches_its_group_loses_its_copies() -> None:
    cache = a_cache("llama")
    world = a_world(cache, a_group(), a_local_node("n1").listing(cache), a_node("n1").in_pool("other"))
    assert layout(placed(world)) == {}


def test_a_cache_whose_spec_became_unreadable_keeps_its_copies() -> None:
    cache = a_cache("llama")
    local = a_local_node("n1").listing(cache)
    cache.json["spec"] = {"nodeGroups": "gpu"}
    members = placed(a_world(cache, a_group(), local, a_node("n1"), a_node("n2")))
    assert layout(members) == {"n1": {"llama": "gpu"}, "n2": {}}
    assert [slot.cache.source.uri for p in members.placements.values() for slot in p.slots] == ["hf://models/llama"]
