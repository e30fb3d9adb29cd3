"""A namespaced cache in a claim of its namespace: which reason it is given, for what is wrong with the claim."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.dev.trial.builders import Builder, CacheBuilder, a_cache, a_namespace_cache, a_world
from coordinator.plan.reading import read_namespace_cache
from coordinator.plan.shared_claim import claim_problem


def a_shared_cache(name: str = "llama", uri: str = "hf://models/llama") -> CacheBuilder:
    cache = a_namespace_cache("team", name, uri).with_spec(pvcRef="disk").with_metadata(uid=f"uid-{name}")
    del cache.json["spec"]["nodeGroups"]
    return cache


def a_claim(**spec: Any) -> Builder:
    built = Builder("PersistentVolumeClaim", "disk", "v1").with_metadata(namespace="team")
    built.with_spec(accessModes=["ReadWriteMany"], resources={"requests": {"storage": "10Gi"}})
    return built.with_spec(**spec)


OLDER = a_shared_cache("older").created("2025-01-01T00:00:00Z").with_spec(sourceModelUri="hf://models/llama")
OTHER = a_shared_cache("other").created("2025-01-01T00:00:00Z").with_spec(sourceModelUri="hf://models/other")

CASES: dict[str, tuple[list[Builder], str, str]] = {
    "there is none": ([], "PVCNotFound", "PersistentVolumeClaim team/disk not found"),
    "it is of another namespace": ([a_claim().with_metadata(namespace="web")], "PVCNotFound", "not found"),
    "it goes": ([a_claim().with_metadata(deletionTimestamp="2026-01-01T00:00:00Z")], "PVCNotFound", "not found"),
    "it is a block device": ([a_claim(volumeMode="Block")], "UnsupportedVolumeMode", "Block"),
    "one node may write": ([a_claim(accessModes=["ReadWriteOnce"])], "UnsupportedAccessMode", "ReadWriteOnce"),
    "it asks for too little": (
        [a_claim(resources={"requests": {"storage": "512Mi"}})],
        "InsufficientCapacity",
        "team/disk has 512Mi, and spec.modelSize is 1Gi",
    ),
    "it has got too little": (
        [a_claim().with_status(capacity={"storage": "512Mi"})],
        "InsufficientCapacity",
        "512Mi",
    ),
    "an older cache has the model there": ([a_claim(), OLDER], "DestinationConflict", "team/older"),
    "an older cache has another model there": ([a_claim(), OTHER], "ImportNotSupported", "k8s/components/imports"),
    "nothing imports here": ([a_claim()], "ImportNotSupported", "spec.nodeGroups"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_said_where(case: str) -> None:
    objects, reason, said = CASES[case]
    world = a_world(a_shared_cache(), *objects)
    world.volumes_known = world.imports_known = True
    world.settle()
    raw = world.find("LocalModelNamespaceCache", "llama", "team")
    assert raw is not None
    ready, _, degraded = raw["status"]["conditions"]
    assert (ready["status"], ready["reason"], degraded["status"]) == ("False", reason, "True")
    assert said in ready["message"]
    assert raw["status"]["copies"] == {"total": 1}


def test_nothing_is_said_before_claims_are_known_nor_of_caches_on_nodes() -> None:
    world = a_world(a_shared_cache())
    snapshot = world.snapshot()
    assert claim_problem(snapshot, read_namespace_cache(a_shared_cache().json)) is None
    world.volumes_known = True
    assert claim_problem(world.snapshot(), next(iter(a_world(a_cache()).snapshot().caches.values()))) is None
