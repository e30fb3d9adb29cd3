"""Why a cache is not Ready, or a node is slow: each cause with its sentence, its place and the next step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from actors.errors import Failure
from actors.messages import NodeName, Phase, RootReport
from coordinator.api.resources import StatusKey
from coordinator.dev.trial.builders import (
    GIB,
    NOW,
    World,
    a_cache,
    a_group,
    a_node,
    a_report,
    a_silent_agent,
    a_world,
)
from coordinator.plan.snapshot import LOCAL_NODES
from coordinator.view.causes import causes
from tests.kit.views import FULL, GONE, SLOW, a_mixed_world, view_of


def said(world: World, key: str, node: str | None = None, at: float = NOW) -> list[str]:
    """Each cause as `depth text → next step`."""
    found = causes(view_of(world, at), StatusKey(key), None if node is None else NodeName(node))
    return [f"{each.depth} {each.text}" + (f" → {each.next_step}" if each.next_step else "") for each in found]


def a_simple_world(report: object = None) -> World:
    cache = a_cache("llama")
    world = a_world(a_group(), cache, a_node("n1")).resolved(cache, GIB)
    if isinstance(report, Failure):
        world.reporting("n1", a_report(cache, Phase.FAILED, failure=report, retry_at=NOW + 60, attempt=2))
    else:
        world.reporting("n1", a_report(cache))
    world.settle()
    return world


def test_a_cache_of_many_troubles_names_the_worst_first_and_what_lies_below() -> None:
    found = said(a_mixed_world(), "llama-70b")

    assert found == [
        "0 llama-70b is not Ready: 0 of 5 nodes hold it, 15Gi each; 2.2Gi/s, 1m17s left.",
        f"1 {FULL} has no copy yet: needs 15.3Gi in /models, and 3.1Gi are free of the 100Gi of group gpu"
        " (InsufficientStorage; attempt 3; next try in 1m15s)."
        " → Raise `storageLimit`, remove a model, or turn eviction on;"
        " `localmodel retry llama-70b` tries again at once",
        "2 On its root /models models take 97Gi, fills under way are promised 1Gi, and 3Gi are free;"
        " group gpu allows 100Gi on each node.",
        f"1 {GONE} has no copy yet: the Kubernetes node is not ready (NodeNotReady).",
        f"2 Its Ready condition says: it has no message. → `kubectl describe node {GONE}`",
        f"1 {SLOW} is slow: 80Mi/s where the middle of the nodes has 1Gi/s, 1m17s left."
        f" → `localmodel status --why llama-70b {SLOW}`",
    ]


def test_a_namespaced_cache_is_named_as_the_commands_take_it() -> None:
    last = said(a_mixed_world(), "team-a/mistral")[1]

    assert last.endswith("`localmodel retry mistral -n team-a` tries again at once")


def test_a_ready_cache_has_one_line() -> None:
    assert said(a_simple_world(), "llama") == ["0 llama is Ready: 1 of 1 nodes hold it, 1Gi each."]


def test_what_passes_by_itself_has_no_next_step_but_to_try_at_once() -> None:
    found = said(a_simple_world(Failure("SourceExpired", "a signed link ended")), "llama")

    assert found[1:] == [
        "1 n1 has no copy: a signed link ended (SourceExpired; attempt 2; next try in 1m)."
        " → `localmodel retry llama` tries again at once"
    ]


@pytest.mark.parametrize(("at", "when"), [(NOW, "next try in 1m"), (NOW + 61, "the next try is due")])
def test_the_next_try_is_counted_from_now(at: float, when: str) -> None:
    assert when in said(a_simple_world(Failure("SourceError", "HTTP 500")), "llama", at=at)[1]


def silent(world: World) -> None:
    world.agents["n1"] = a_silent_agent("AgentDied")


def broken_disk(world: World) -> None:
    root = RootReport("/models", failure=Failure("DiskReadOnly", "the kernel has /models read-only"))
    world.reporting("n1", a_report(a_cache("llama"), Phase.FAILED, failure=Failure("DiskReadOnly", "x")), roots=(root,))


def node_gone(world: World) -> None:
    world.objects = [each for each in world.objects if each.json["kind"] != "Node"]


def local_node_gone(world: World) -> None:
    world.objects = [each for each in world.objects if each.json["kind"] != LOCAL_NODES.kind]


@pytest.mark.parametrize(
    ("change", "settled", "expected"),
    [
        (silent, True, "AgentDied"),
        (broken_disk, True, "2 Its root /models: The kernel has /models read-only (DiskReadOnly)."),
        (node_gone, False, "2 There is no Kubernetes node n1 any more."),
    ],
)
def test_what_is_below_a_copy_is_said(change: Callable[[World], None], settled: bool, expected: str) -> None:
    world = a_simple_world(Failure("SourceError", "HTTP 500"))
    change(world)
    if settled:
        world.settle()

    assert expected in "\n".join(said(world, "llama"))


def test_a_group_that_does_not_exist_is_named_with_what_to_do() -> None:
    world = a_world(a_cache("llama").in_group("gone"), a_node("n1"))
    world.settle()

    assert said(world, "llama") == [
        "0 llama is not Ready: 0 of 0 nodes hold it.",
        "1 LocalModelNodeGroup gone not found: correct spec.nodeGroups, or create it (NodeGroupNotFound)."
        " → Create the group, or correct the name.",
    ]


def test_a_group_without_nodes_says_how_many_there_are() -> None:
    world = a_world(a_cache("llama"), a_group(), a_node("n1").in_pool("cpu"))
    world.settle()

    found = said(world, "llama")

    assert found[1].startswith("1 No node matches the node affinity of LocalModelNodeGroup gpu")
    assert found[2].startswith("2 Group gpu selects none of the 1 nodes by its nodeAffinity.")


def test_a_cache_that_nobody_has_looked_at_points_at_the_coordinator() -> None:
    fresh = said(a_world(a_cache("llama"), a_group(), a_node("n1")), "llama")
    edited = a_simple_world()
    next(each for each in edited.objects if each.json["kind"] == "LocalModelCache").with_metadata(generation=7)

    assert fresh[0] == "0 llama has no status yet."
    assert "`localmodel doctor`" in fresh[1]
    assert "The spec was edited since (generation 7, status is of 1)." in said(edited, "llama")[1]


def test_a_node_that_takes_nothing_from_the_others_is_told_apart() -> None:
    found = said(a_mixed_world(), "llama-70b", SLOW)

    assert found == [
        f"0 {SLOW} is filling llama-70b: 60% of 15Gi, 80Mi/s, 1m17s left; 9Gi from the origin and 0 from other nodes.",
        f"1 {SLOW} is slow: 80Mi/s where the middle of the nodes has 1Gi/s, 1m17s left.",
        "2 It takes nothing from other nodes, which give each other the rest."
        " → `localmodel doctor` asks whether its peer port is reached",
    ]


def test_a_node_that_reads_across_zones_is_told_apart() -> None:
    world = a_mixed_world()
    report = world.agents[SLOW].report
    assert report is not None
    models = (report.models[0], replace(report.models[1], bytes_from_peers=8 * GIB, bytes_from_other_zones=6 * GIB))
    world.agents[SLOW] = replace(world.agents[SLOW], report=replace(report, models=models))
    world.settle()

    assert said(world, "llama-70b", SLOW)[-1] == "2 6Gi of 8Gi came from other zones."


def test_a_node_is_told_to_retry_there_alone() -> None:
    assert f"`localmodel retry llama-70b {FULL}`" in said(a_mixed_world(), "llama-70b", FULL)[1]


@pytest.mark.parametrize(
    ("node", "why"),
    [
        ("nowhere", "1 There is no Kubernetes node nowhere. → `kubectl get nodes`"),
        ("cpu-1", "1 No group of the cache (gpu) selects cpu-1."),
    ],
)
def test_a_node_that_is_not_to_hold_it(node: str, why: str) -> None:
    world = a_mixed_world().add(a_node("cpu-1").in_pool("cpu"))
    world.settle()

    found = said(world, "small", node)

    assert found[0] == f"0 {node} holds no copy of small and is not to."
    assert found[1].startswith(why)


def test_a_deletion_that_waits_says_for_whom() -> None:
    world = a_simple_world()
    next(each for each in world.objects if each.json["kind"] == "LocalModelCache").with_metadata(
        deletionTimestamp="2023-11-14T22:13:00Z"
    )
    world.agents["n1"] = a_silent_agent()
    world.settle()

    found = said(world, "llama")

    assert found[0] == "0 llama is being deleted: 1 of 1 nodes hold it, 1Gi each."
    assert found[1].startswith("1 ")
    assert "n1" in found[1]
