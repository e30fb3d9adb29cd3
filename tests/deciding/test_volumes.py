"""Volumes and claims: what a world of caches, groups and services wants, and what becomes of what is there already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from actors.manifest import storage_key
from coordinator.dev.trial.builders import (
    Builder,
    World,
    a_cache,
    a_group,
    a_namespace_cache,
    a_node,
    a_report,
    a_service,
    a_world,
)
from coordinator.plan.kserve_config import KServeConfig
from coordinator.plan.plan import Verb

JOBS = "kserve-localmodel-jobs"
PREFIX = "internal.serving.kserve.io/localmodel"
MARK = "localmodel.kserve.io/cache"


def a_stocked_world(*objects: Builder) -> World:
    """One that knows of volumes, with the groups gpu and cpu."""
    world = a_world(a_group("gpu"), a_group("cpu").at("/slow"), *objects)
    world.volumes_known = True
    return world


def there(world: World) -> set[str]:
    """The volumes, and the claims as namespace/name → volume."""
    found = set()
    for each in (builder.json for builder in world.objects):
        if each["kind"] == "PersistentVolume":
            found.add(each["metadata"]["name"])
        elif each["kind"] == "PersistentVolumeClaim":
            metadata = each["metadata"]
            found.add(f"{metadata['namespace']}/{metadata['name']} -> {each['spec']['volumeName']}")
    return found


def pair(cache: str, group: str, namespace: str | None = None) -> set[str]:
    """A cluster cache's pair: for downloads, or to serve from in `namespace`."""
    end, where = (namespace, namespace) if namespace else ("download", JOBS)
    return {f"{cache}-{group}-{end}", f"{where}/{cache}-{group} -> {cache}-{group}-{end}"}


DOWNLOADS = pair("llama", "gpu")
TEAMS = {"llama-gpu-team-download", f"{JOBS}/llama-gpu-team-download -> llama-gpu-team-download"}
TEAMS_SERVING = {"llama-gpu-team", "team/llama-gpu -> llama-gpu-team"}

WANTED: dict[str, tuple[list[Builder], set[str]]] = {
    "a cache has download volumes before any node exists": ([a_cache()], DOWNLOADS),
    "one for each of its groups": ([a_cache().in_group("gpu", "cpu")], DOWNLOADS | pair("llama", "cpu")),
    "but not for a group that is not there": ([a_cache().in_group("gpu", "none")], DOWNLOADS),
    "a namespaced cache's are named with its namespace, in the job namespace": ([a_namespace_cache("team")], TEAMS),
    "a service gets its namespace the first group's": (
        [a_cache().in_group("gpu", "cpu"), a_service().using("llama")],
        DOWNLOADS | pair("llama", "cpu") | pair("llama", "gpu", "default"),
    ),
    "or that of the group it names": (
        [a_cache().in_group("gpu", "cpu"), a_service().using("llama").in_group("cpu")],
        DOWNLOADS | pair("llama", "cpu") | pair("llama", "cpu", "default"),
    ),
    "or that which its pods mount, when the order of groups was changed": (
        [a_cache().in_group("cpu", "gpu"), a_service().using("llama").annotated(f"{PREFIX}-pvc-name", "llama-gpu")],
        DOWNLOADS | pair("llama", "cpu") | pair("llama", "gpu", "default"),
    ),
    "none where it names a group that the cache is not in": (
        [a_cache(), a_service().using("llama").in_group("cpu")],
        DOWNLOADS,
    ),
    "an LLMInferenceService is served like any other": (
        [a_cache(), a_service(llm=True).using("llama")],
        DOWNLOADS | pair("llama", "gpu", "default"),
    ),
    "so is a LoRA adapter": (
        [a_cache(), a_service(llm=True).annotated(f"{PREFIX}-lora", '{"x": {"cache": "llama"}}')],
        DOWNLOADS | pair("llama", "gpu", "default"),
    ),
    "a namespaced cache serves its own namespace": (
        [a_namespace_cache("team"), a_service("s", "team").using("llama", "team")],
        TEAMS | TEAMS_SERVING,
    ),
    "and no other, whatever labels say": (
        [a_namespace_cache("team"), a_service("s", "other").using("llama", "team")],
        TEAMS,
    ),
    "a service of a namespaced cache is none of the cluster cache of that name": (
        [a_cache(), a_service("s", "team").using("llama", "team")],
        DOWNLOADS,
    ),
    "an annotation of a cache stands for a service": (
        [a_cache().with_metadata(annotations={"localmodel.kserve.io/claims": "default, web"})],
        DOWNLOADS | pair("llama", "gpu", "default") | pair("llama", "gpu", "web"),
    ),
    "but not for one in another namespace than its own": (
        [a_namespace_cache("team").with_metadata(annotations={"localmodel.kserve.io/claims": "team, web"})],
        TEAMS | TEAMS_SERVING,
    ),
    "a service in the job namespace uses the download claim, which has its name": (
        [a_cache(), a_service("s", JOBS).using("llama")],
        DOWNLOADS,
    ),
    "a cache whose spec cannot be read gets none": ([a_cache().with_spec(modelSize="much")], set()),
    "one that is being deleted gets none": ([a_cache().deleted(), a_service().using("llama")], set()),
    "of two caches whose names run together the older one gets the claim": (
        [
            a_cache("a-b").in_group("c").created("2026-01-01T00:00:00Z"),
            a_cache("a").in_group("b-c").created("2026-02-01T00:00:00Z"),
            a_group("c"),
            a_group("b-c").at("/other"),
        ],
        pair("a-b", "c"),
    ),
    "a cluster cache and a namespaced one of one name share what they serve from": (
        [
            a_cache(),
            a_namespace_cache("team"),
            a_service("s", "team").using("llama", "team"),
            a_service("t", "team").using("llama"),
        ],
        DOWNLOADS | TEAMS | TEAMS_SERVING,
    ),
}


@pytest.mark.parametrize("case", WANTED)
def test_what_is_made(case: str) -> None:
    objects, expected = WANTED[case]
    world = a_stocked_world(*objects)
    world.settle()
    assert there(world) == expected


def found(world: World, kind: str, name: str, namespace: str | None = None) -> dict[str, Any]:
    raw = world.find(kind, name, namespace)
    assert raw is not None, there(world)
    return raw


def test_specs_are_those_of_the_group_and_owners_and_marks_say_whose_they_are() -> None:
    group = a_group("gpu").with_spec(persistentVolumeClaimSpec={"accessModes": ["ReadOnlyMany"]})
    world = a_world(group, a_cache(), a_namespace_cache("team"))
    world.volumes_known = True
    world.settle()

    volume = found(world, "PersistentVolume", "llama-gpu-download")
    claim = found(world, "PersistentVolumeClaim", "llama-gpu", JOBS)
    assert volume["spec"] == group.volume
    assert claim["spec"] == {"accessModes": ["ReadOnlyMany"], "volumeName": "llama-gpu-download"}
    owner = {"apiVersion": "serving.kserve.io/v1alpha1", "kind": "LocalModelCache", "name": "llama"}
    owner |= {"uid": "uid-llama"}
    for each in (volume, claim):
        assert each["metadata"]["ownerReferences"] == [owner | {"controller": True, "blockOwnerDeletion": True}]
        assert each["metadata"]["annotations"][MARK] == "llama"
    for kind, namespace in (("PersistentVolume", None), ("PersistentVolumeClaim", JOBS)):
        metadata = found(world, kind, "llama-gpu-team-download", namespace)["metadata"]
        assert "ownerReferences" not in metadata
        assert metadata["annotations"][MARK] == "team/llama"


def test_the_claim_of_a_namespaced_cache_has_an_owner_and_its_volume_has_none() -> None:
    world = a_stocked_world(a_namespace_cache("team"), a_service("s", "team").using("llama", "team"))
    world.settle()
    (owner,) = found(world, "PersistentVolumeClaim", "llama-gpu", "team")["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["controller"]) == ("LocalModelNamespaceCache", True)
    assert "ownerReferences" not in found(world, "PersistentVolume", "llama-gpu-team")["metadata"]


def a_serving_world(*more: Builder) -> World:
    """A service in `default` with its pair, and what else there is, at rest."""
    world = a_stocked_world(a_cache().in_group("gpu", "cpu"), a_service().using("llama"), *more)
    world.settle()
    assert pair("llama", "gpu", "default") <= there(world)
    return world


def drop(world: World, kind: str, name: str) -> None:
    world.objects = [
        each for each in world.objects if (each.json["kind"], each.json["metadata"]["name"]) != (kind, name)
    ]


def annotate(world: World, group: str) -> None:
    found(world, "InferenceService", "chat", "default")["metadata"]["annotations"]["serving.kserve.io/nodegroup"] = (
        group
    )


def regroup(world: World, *groups: str) -> None:
    found(world, "LocalModelCache", "llama")["spec"]["nodeGroups"] = list(groups)


def disable(world: World) -> None:
    world.kserve = KServeConfig(disable_volume_management=True)
    drop(world, "InferenceService", "chat")


def forget(world: World) -> None:
    world.services_known = False


GPU, CPU = pair("llama", "gpu", "default"), pair("llama", "cpu", "default")
BOTH = DOWNLOADS | pair("llama", "cpu")

CHANGES: dict[str, tuple[Callable[[World], None], set[str]]] = {
    "nothing": (lambda world: None, BOTH | GPU),
    "the service went": (lambda world: drop(world, "InferenceService", "chat"), BOTH),
    "the service moved to another group": (lambda world: annotate(world, "cpu"), BOTH | CPU),
    "the service names a group that the cache is not in": (lambda world: annotate(world, "tpu"), BOTH | GPU),
    "the cache left the service's group": (lambda world: regroup(world, "cpu"), pair("llama", "cpu") | CPU),
    "a group was deleted by mistake": (lambda world: drop(world, "LocalModelNodeGroup", "gpu"), BOTH | GPU),
    "the cache went, and nothing collects": (lambda world: drop(world, "LocalModelCache", "llama"), set()),
    "volume management was turned off": (disable, BOTH | GPU),
    "services cannot be listed": (forget, BOTH | GPU),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_left_after(change: str) -> None:
    apply, expected = CHANGES[change]
    world = a_serving_world()
    apply(world)
    world.settle()
    assert there(world) == expected


def test_a_claim_is_not_deleted_while_a_pod_mounts_it_and_a_volume_not_before_its_claim() -> None:
    world = a_serving_world()
    drop(world, "InferenceService", "chat")
    (write,) = [write for write in world.plan().writes if write.verb is Verb.DELETE]
    assert (write.ref.resource.kind, write.ref.name, write.unmounted) == ("PersistentVolumeClaim", "llama-gpu", True)
    assert (write.ref.uid, write.ref.version) == ("uid-llama-gpu", "1")


def test_one_of_two_caches_that_share_a_claim_goes_and_the_other_keeps_it() -> None:
    world = a_stocked_world(
        a_cache().with_metadata(uid="uid-of-the-cluster-cache"),
        a_namespace_cache("team").created("2026-02-01T00:00:00Z"),
        a_service("s", "team").using("llama", "team"),
        a_service("t", "team").using("llama"),
    )
    world.settle()
    claim = found(world, "PersistentVolumeClaim", "llama-gpu", "team")["metadata"]
    assert [owner["kind"] for owner in claim["ownerReferences"]] == ["LocalModelCache", "LocalModelNamespaceCache"]
    assert "ownerReferences" not in found(world, "PersistentVolume", "llama-gpu-team")["metadata"]

    world.objects = [each for each in world.objects if each.json["kind"] != "LocalModelCache"]
    world.settle()
    assert there(world) == TEAMS | TEAMS_SERVING
    claim = found(world, "PersistentVolumeClaim", "llama-gpu", "team")["metadata"]
    assert [owner["kind"] for owner in claim["ownerReferences"]] == ["LocalModelNamespaceCache"]
    assert claim["annotations"][MARK] == "team/llama"


# --- what is there already ---


def test_what_kserve_made_is_taken_over_as_it_is() -> None:
    world = a_serving_world()
    for each in (builder.json["metadata"] for builder in world.objects):
        each.pop("labels", None) if "annotations" in each and MARK in each["annotations"] else None
        if MARK in each.get("annotations", {}):
            del each["annotations"]
    before = there(world)
    verbs = {write.verb for write in world.step().writes}
    world.settle()
    assert (there(world), verbs) == (before, {Verb.PATCH})
    assert found(world, "PersistentVolume", "llama-gpu-default")["metadata"]["annotations"][MARK] == "llama"


def bound(world: World, phase: str, uid: str) -> None:
    volume = found(world, "PersistentVolume", "llama-gpu-default")
    volume["spec"] = {**volume["spec"], "claimRef": {"namespace": "default", "name": "llama-gpu", "uid": uid}}
    volume["status"] = {"phase": phase}


@pytest.mark.parametrize("phase", ["Released", "Failed"])
def test_a_volume_whose_claim_was_deleted_is_made_anew(phase: str) -> None:
    world = a_serving_world()
    bound(world, phase, "uid-of-one-that-is-gone")
    assert [(w.verb, w.ref.name) for w in world.step().writes] == [(Verb.DELETE, "llama-gpu-default")]
    world.settle()
    assert "claimRef" not in found(world, "PersistentVolume", "llama-gpu-default")["spec"]


def test_a_volume_that_is_bound_is_left_alone() -> None:
    world = a_serving_world()
    bound(world, "Bound", "uid-llama-gpu")
    assert world.plan().writes == ()


def test_a_claim_that_lost_its_volume_is_made_anew() -> None:
    world = a_serving_world()
    found(world, "PersistentVolumeClaim", "llama-gpu", "default")["status"] = {"phase": "Lost"}
    world.settle()
    assert "status" not in found(world, "PersistentVolumeClaim", "llama-gpu", "default")


def test_what_is_being_deleted_is_waited_for() -> None:
    world = a_serving_world()
    claim = found(world, "PersistentVolumeClaim", "llama-gpu", "default")
    claim["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    world.settle()
    assert found(world, "PersistentVolumeClaim", "llama-gpu", "default") is claim
    assert "claims" not in found(world, "LocalModelCache", "llama")["status"]


def test_a_group_with_another_path_gets_other_volumes_when_no_pod_mounts_the_old_ones() -> None:
    world = a_serving_world()
    found(world, "LocalModelNodeGroup", "gpu")["spec"]["persistentVolumeSpec"]["local"] = {"path": "/new"}
    deleted = {(w.ref.namespace, w.ref.name): w.unmounted for w in world.step().writes if w.verb is Verb.DELETE}
    assert deleted == {(JOBS, "llama-gpu"): True, ("default", "llama-gpu"): True}
    world.settle(steps=10)
    assert there(world) == BOTH | GPU
    assert found(world, "PersistentVolume", "llama-gpu-default")["spec"]["local"] == {"path": "/new"}


def a_foreign(kind: str, name: str, namespace: str | None = None, **spec: Any) -> Builder:
    built = Builder(kind, name, "v1").with_spec(**spec)
    return built.with_metadata(namespace=namespace) if namespace else built


IN_THE_WAY: dict[str, Builder] = {
    "a claim of somebody's own": a_foreign("PersistentVolumeClaim", "llama-gpu", "default", volumeName="disk-7"),
    "a claim that waits for a disk": a_foreign("PersistentVolumeClaim", "llama-gpu", "default"),
    "a volume of another folder": a_foreign("PersistentVolume", "llama-gpu-default", local={"path": "/home"}),
    "a volume of another claim": a_foreign(
        "PersistentVolume",
        "llama-gpu-default",
        local={"path": "/models"},
        claimRef={"namespace": "web", "name": "site"},
    ),
}


@pytest.mark.parametrize("case", IN_THE_WAY)
def test_what_is_somebody_elses_is_not_touched_and_said_to_be_in_the_way(case: str) -> None:
    foreign = IN_THE_WAY[case]
    before = repr(foreign.json)
    world = a_stocked_world(a_cache(), a_service().using("llama"), foreign)
    world.settle()
    drop(world, "InferenceService", "chat")
    (entry,) = found(world, "LocalModelCache", "llama")["status"]["claims"]
    assert "somebody else's" in entry["message"]
    world.settle()
    assert repr(foreign.json) == before
    assert foreign.json in [each.json for each in world.objects]


def test_a_job_namespace_that_moves_takes_the_download_volumes_with_it() -> None:
    world = a_stocked_world(a_cache())
    world.settle()
    world.kserve = replace(world.kserve, job_namespace="jobs")
    world.settle(steps=10)
    assert {name for name in there(world) if "->" in name} == {"jobs/llama-gpu -> llama-gpu-download"}


def test_nothing_is_made_before_it_is_known_what_there_is() -> None:
    world = a_stocked_world(a_cache(), a_service().using("llama"))
    world.volumes_known = False
    world.settle()
    assert there(world) == set()


# --- status ---


def test_status_has_empty_copies_from_the_first_reconcile() -> None:
    world = a_stocked_world(a_cache())
    world.step()
    assert found(world, "LocalModelCache", "llama")["status"]["copies"] == {}
    assert world.settle().writes == ()


def test_status_lists_who_uses_the_cache_and_empties() -> None:
    world = a_stocked_world(
        a_cache(),
        a_service("b", "team").using("llama"),
        a_service("a", "team").using("llama").in_group("tpu"),
        a_service("c", "team", llm=True).using("llama"),
        a_service("d", "team"),
    )
    world.settle()
    status = found(world, "LocalModelCache", "llama")["status"]
    assert status["inferenceServices"] == [{"namespace": "team", "name": name} for name in ("a", "b")]
    assert status["llmInferenceServices"] == [{"namespace": "team", "name": "c"}]
    world.objects = [each for each in world.objects if "Service" not in each.json["kind"]]
    world.settle()
    status = found(world, "LocalModelCache", "llama")["status"]
    assert "inferenceServices" not in status
    assert "llmInferenceServices" not in status


def test_a_service_whose_adapters_can_no_longer_be_read_stays_listed_where_it_was() -> None:
    lora = a_service(llm=True).annotated(f"{PREFIX}-lora", '{"x": {"cache": "llama"}}')
    world = a_stocked_world(a_cache(), a_cache("other"), lora)
    world.settle()
    lora.annotated(f"{PREFIX}-lora", "{junk")
    world.settle()
    assert "llmInferenceServices" in found(world, "LocalModelCache", "llama")["status"]
    assert "llmInferenceServices" not in found(world, "LocalModelCache", "other")["status"]
    assert there(world) >= GPU


def test_status_says_how_a_pod_gets_at_the_model() -> None:
    cache = a_cache()
    world = a_stocked_world(cache, a_service().using("llama"), a_node("n1")).resolved(cache)
    world.settle()
    status = found(world, "LocalModelCache", "llama")["status"]
    inside = f"models/{storage_key(cache.uri)}"
    entry = {"namespace": "default", "name": "llama-gpu", "nodeGroup": "gpu", "subPath": inside, "phase": "Pending"}
    assert status["claims"] == [entry]
    assert "path" not in status

    world.reporting("n1", a_report(cache))
    found(world, "PersistentVolumeClaim", "llama-gpu", "default")["status"] = {"phase": "Bound"}
    world.settle()
    status = found(world, "LocalModelCache", "llama")["status"]
    assert (status["path"], status["claims"]) == (f"/models/{inside}", [entry | {"phase": "Bound"}])
