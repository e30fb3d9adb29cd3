"""storageLimit: of one group, among groups that share a folder; enforced, or only watched; and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from actors.messages import DesiredRoot, NodeName, Phase, RootReport
from coordinator.dev.trial.builders import NOW, World, a_cache, a_group, a_node, a_report, a_world
from coordinator.plan.kserve_config import KServeConfig
from coordinator.plan.limits import ANNOTATION, LimitMode, limit_mode
from coordinator.plan.placement import place
from coordinator.plan.plan import plan

GIB = 1 << 30
N1 = NodeName("n1")


MODES: dict[str, tuple[str | None, str, bool, LimitMode]] = {
    "nothing is said, KServe is not there": (None, "auto", False, LimitMode.ENFORCE),
    "nothing is said, KServe is there": (None, "auto", True, LimitMode.WARN),
    "the operator enforces where KServe is": (None, "enforce", True, LimitMode.ENFORCE),
    "the operator only warns": (None, "warn", False, LimitMode.WARN),
    "the group wins over the operator": ("warn", "enforce", False, LimitMode.WARN),
    "the group wins over what suits the cluster": ("Enforce", "auto", True, LimitMode.ENFORCE),
    "a word that is none counts for nothing": ("perhaps", "auto", False, LimitMode.ENFORCE),
}


@pytest.mark.parametrize("case", MODES)
def test_what_a_limit_means(case: str) -> None:
    annotation, flag, kserve, expected = MODES[case]
    group = a_group()
    if annotation is not None:
        group.json["metadata"]["annotations"] = {ANNOTATION: annotation}
    snapshot = replace(a_world(group, a_node("n1")).snapshot(), storage_limit=flag, kserve=KServeConfig(found=kserve))
    assert limit_mode(snapshot, snapshot.groups["gpu"]) is expected
    (root,) = place(snapshot).placements[N1].roots
    assert root == DesiredRoot("/models", 100 * GIB if expected is LimitMode.ENFORCE else None, "gpu")


def two_groups(limit: str) -> World:
    """On one node and in one folder; each has a model."""
    groups = [a_group(name).labelled("pool", "gpu").with_spec(storageLimit=limit) for name in ("a", "b")]
    caches = [a_cache(f"of-{name}", f"hf://of/{name}").in_group(name) for name in ("a", "b")]
    world = a_world(*caches, *groups, a_node("n1"))
    roots = (RootReport("/models", 100 * GIB, used_bytes=5 * GIB),)
    reports = (a_report(caches[0], total=3 * GIB), a_report(caches[1], total=2 * GIB))
    return world.reporting("n1", *reports, roots=roots)


def test_a_model_counts_against_the_limit_of_its_group() -> None:
    desired = two_groups("8Gi").plan().desired[N1]
    assert {model.source.uri: model.group for model in desired.models} == {"hf://of/a": "a", "hf://of/b": "b"}
    assert desired.roots == (DesiredRoot("/models", 8 * GIB, "a"), DesiredRoot("/models", 8 * GIB, "b"))


def test_a_group_is_shown_what_its_own_models_take() -> None:
    world = two_groups("8Gi")
    world.settle()
    shown = {name: status_of_group(world, name) for name in ("a", "b")}
    assert shown == {
        "a": {"used": "3Gi", "available": "5Gi", "storageLimitMode": "Enforce"},
        "b": {"used": "2Gi", "available": "6Gi", "storageLimitMode": "Enforce"},
    }


def status_of_group(world: World, name: str) -> Any:
    group = world.find("LocalModelNodeGroup", name)
    assert group is not None
    return group["status"]


def test_a_group_over_its_limit_is_warned_of_once() -> None:
    world = two_groups("2Gi")
    (write,) = (each for each in plan(world.snapshot(), NOW).writes if each.ref.name == "a")
    (event,) = write.events
    assert (event.warning, event.reason) == (True, "StorageLimitExceeded")
    assert event.message.startswith("the models of group a take more than the 2Gi that spec.storageLimit allows on n1")
    world.settle()
    assert status_of_group(world, "a")["nodesOverLimit"] == 1
    assert "nodesOverLimit" not in status_of_group(world, "b")
    assert [each for each in plan(world.snapshot(), NOW).writes if each.ref.name == "a"] == []


def test_a_fill_that_is_under_way_is_not_counted_as_used() -> None:
    cache = a_cache()
    group = a_group().with_spec(storageLimit="1Gi")
    world = a_world(cache, group, a_node("n1"))
    world.reporting("n1", a_report(cache, Phase.DOWNLOADING, total=2 * GIB), roots=(RootReport("/models", 9 * GIB),))
    world.settle()
    assert group.json["status"] == {"used": "0", "available": "1Gi", "storageLimitMode": "Enforce"}
