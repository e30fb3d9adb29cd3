"""The fold: what agents report, in KServe's words and in ours. C1, C5, N1 and N4 are KServe's own tests of the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from actors.errors import Failure
from actors.messages import Phase, RootReport
from actors.times import parse_time, rfc3339
from coordinator.api.resources import LocalModelCacheStatus, LocalModelNodeStatus
from coordinator.dev.trial.builders import (
    GIB,
    NOW,
    CacheBuilder,
    World,
    a_cache,
    a_group,
    a_local_node,
    a_namespace_cache,
    a_node,
    a_report,
    a_silent_agent,
    a_world,
    an_agent,
)
from coordinator.plan.cache_status import short_revision
from coordinator.plan.fold import SETTLING_S
from coordinator.plan.plan import Plan, plan
from coordinator.plan.snapshot import CACHES, LOCAL_NODES

DENIED = Failure("SourceDenied", "401 from the hub", retryable=False)
RESET = Failure("SourceError", "connection reset")
FULL = Failure("InsufficientStorage", "needs 4Gi, 1Gi free")


def status_of(world: World, cache: CacheBuilder) -> dict[str, Any]:
    """The status of the cache once nothing is left to write, as valid by our own model."""
    world.settle()
    status: dict[str, Any] = cache.json["status"]
    LocalModelCacheStatus.model_validate(status)
    return status


def node_status(world: World, name: str) -> dict[str, Any]:
    found = world.find("LocalModelNode", name)
    assert found is not None
    status: dict[str, Any] = found["status"]
    LocalModelNodeStatus.model_validate(status)
    return status


def condition(status: dict[str, Any], kind: str) -> tuple[str, str, str]:
    (found,) = [c for c in status["conditions"] if c["type"] == kind]
    return found["status"], found["reason"], found["message"]


def a_cluster(cache: CacheBuilder, nodes: int = 1) -> World:
    return a_world(cache, a_group(), *(a_node(f"n{number}") for number in range(1, nodes + 1)))


@pytest.mark.parametrize(
    ("phase", "failure", "node_word", "model_word"),
    [
        (Phase.PENDING, None, "NodeDownloadPending", "ModelDownloadPending"),
        (Phase.PENDING, FULL, "NodeDownloadPending", "ModelDownloadPending"),
        (Phase.DOWNLOADING, None, "NodeDownloading", "ModelDownloading"),
        (Phase.VERIFYING, None, "NodeDownloading", "ModelDownloading"),
        (Phase.READY, None, "NodeDownloaded", "ModelDownloaded"),
        (Phase.FAILED, RESET, "NodeDownloadError", "ModelDownloadError"),
        (Phase.REMOVING, None, "NodeDownloadPending", "ModelDownloadPending"),
    ],
)
def test_every_phase_has_kserves_word(phase: Phase, failure: Failure | None, node_word: str, model_word: str) -> None:
    cache = a_cache()
    world = a_cluster(cache).reporting("n1", a_report(cache, phase, failure=failure))
    assert status_of(world, cache)["nodeStatus"] == {"n1": node_word}
    assert node_status(world, "n1")["modelStatus"] == {"llama": model_word}


def test_c1_two_groups_with_a_node_each_hold_the_model() -> None:
    cache = a_cache("iris", "s3://mybucket/mymodel").in_group("gpu1", "gpu2")
    world = a_world(cache, a_group("gpu1"), a_group("gpu2"), a_node("node-1").in_pool("gpu1"))
    world.add(a_node("node-2").in_pool("gpu2"))
    for node in ("node-1", "node-2"):
        world.reporting(node, a_report(cache))
    status = status_of(world, cache)
    assert status["copies"] == {"available": 2, "total": 2}
    assert status["nodeStatus"] == {"node-1": "NodeDownloaded", "node-2": "NodeDownloaded"}
    assert status["available"] == "2/2"


def test_c5_two_caches_of_one_uri_both_have_their_entry_and_their_status() -> None:
    old, young = a_cache("a", "s3://m"), a_cache("b", "s3://m").created("2026-02-01T00:00:00Z")
    world = a_world(old, young, a_group(), a_node("n1")).reporting("n1", a_report(old))
    assert status_of(world, young)["nodeStatus"] == {"n1": "NodeDownloaded"}
    assert node_status(world, "n1")["modelStatus"] == {"a": "ModelDownloaded", "b": "ModelDownloaded"}
    assert condition(young.json["status"], "Ready")[0] == "True"
    message = "LocalModelCache a has the same StorageURI s3://m"
    assert condition(young.json["status"], "Degraded") == ("True", "DuplicateSource", message)
    assert condition(old.json["status"], "Degraded")[0] == "False"


def test_n1_a_namespace_cache_is_named_with_its_namespace() -> None:
    cache = a_namespace_cache("team", "ns-iris")
    world = a_cluster(cache).reporting("n1", a_report(cache)).resolved(cache)
    assert status_of(world, cache)["copies"] == {"available": 1, "total": 1}
    assert node_status(world, "n1")["modelStatus"] == {"team/ns-iris": "ModelDownloaded"}


def test_n4_cluster_and_namespace_caches_coexist_on_a_node() -> None:
    one, other = a_cache("m", "hf://a/m"), a_namespace_cache("team", "m", "hf://b/m")
    world = a_world(one, other, a_group(), a_node("n1")).reporting("n1", a_report(one), a_report(other))
    world.resolved(other)
    assert status_of(world, one)["copies"] == {"available": 1, "total": 1}
    assert node_status(world, "n1")["modelStatus"] == {"m": "ModelDownloaded", "team/m": "ModelDownloaded"}


@pytest.mark.parametrize(
    ("before", "report", "expected"),
    [
        pytest.param(None, None, "NodeNotReady", id="without an entry it is NodeNotReady"),
        pytest.param("NodeNotReady", None, "NodeNotReady", id="and stays so"),
        pytest.param("NodeDownloaded", Phase.READY, "NodeDownloaded", id="it still holds the model"),
        pytest.param("NodeDownloading", None, "NodeDownloading", id="any other entry is kept while nobody reports"),
        pytest.param(None, Phase.READY, "NodeDownloaded", id="what is known to be there is there"),
    ],
)
def test_a_node_that_is_not_ready(before: str | None, report: Phase | None, expected: str) -> None:
    cache = a_cache()
    if before:
        cache.with_status(nodeStatus={"n1": before})
    world = a_world(cache, a_group(), a_node("n1").not_ready())
    world.agents["n1"] = a_silent_agent(last=an_agent("n1", a_report(cache, report)) if report else None)
    assert status_of(world, cache)["nodeStatus"] == {"n1": expected}


def test_a_node_that_leaves_is_pruned() -> None:
    cache = a_cache().with_status(nodeStatus={"gone": "NodeDownloaded", "n1": "NodeDownloaded"})
    world = a_cluster(cache).reporting("n1", a_report(cache))
    status = status_of(world, cache)
    assert status["nodeStatus"] == {"n1": "NodeDownloaded"}
    assert status["copies"] == {"available": 1, "total": 1}


def test_a_silent_agent_keeps_what_its_node_was_last_known_to_hold() -> None:
    held, absent = a_cache("held").with_status(nodeStatus={"n1": "NodeDownloaded"}), a_cache("absent")
    world = a_world(held, absent, a_group(), a_node("n1"), a_local_node("n1").owned().listing(held).downloaded(held))
    world.agents["n1"] = a_silent_agent()
    assert status_of(world, held)["nodeStatus"] == {"n1": "NodeDownloaded"}
    assert status_of(world, absent)["nodeStatus"] == {"n1": "NodeDownloadPending"}
    assert condition(held.json["status"], "Ready")[0] == "True"
    assert condition(absent.json["status"], "Ready")[1] == "AgentUnavailable"
    status = node_status(world, "n1")
    assert status["agent"]["reason"] == "AgentUnavailable"
    assert {model["name"]: model["reason"] for model in status["models"]} == dict.fromkeys(
        ("held", "absent"), "AgentUnavailable"
    )


def test_a_status_of_another_uri_under_the_same_name_is_not_believed() -> None:
    cache, earlier = a_cache("llama", "hf://new"), a_cache("llama", "hf://old")
    local = a_local_node("n1").owned().listing(earlier).downloaded(earlier)
    world = a_world(cache, a_group(), a_node("n1"), local)
    world.agents["n1"] = a_silent_agent()
    assert status_of(world, cache)["nodeStatus"] == {"n1": "NodeDownloadPending"}


def test_an_earlier_revision_that_status_speaks_of_is_there_still_and_is_not_taken_for_the_new_one() -> None:
    cache = a_cache().with_status(nodeStatus={"n1": "NodeDownloaded"}, selection="of another revision")
    world = a_cluster(cache)
    world.agents["n1"] = a_silent_agent()
    status = status_of(world, cache)
    assert (status["nodeStatus"], status["selection"]) == ({"n1": "NodeDownloaded"}, "of another revision")
    assert condition(status, "Ready")[:2] == ("True", "EarlierRevision")


def test_a_copy_of_an_earlier_revision_does_not_count() -> None:
    earlier, cache = a_cache("llama").with_spec(revision="v1"), a_cache("llama").with_spec(revision="v2")
    world = a_cluster(cache).reporting("n1", a_report(earlier))
    assert status_of(world, cache)["nodeStatus"] == {"n1": "NodeDownloadPending"}


def test_a_cache_whose_spec_became_unreadable_still_shows_the_copies_it_has() -> None:
    cache = a_cache()
    world = a_cluster(cache, 2).reporting("n1", a_report(cache)).reporting("n2")
    world.settle()
    cache.json["spec"] = {"sourceModelUri": 7}
    status = status_of(world, cache)
    assert status["nodeStatus"] == {"n1": "NodeDownloaded", "n2": "NodeDownloadPending"}
    assert condition(status, "Ready")[:2] == ("False", "InvalidObject")
    assert [len(state.models) for state in world.plan().desired.values()] == [1, 1]


def test_a_conflicting_request_does_not_count_the_owners_copy() -> None:
    old = a_cache("old", "hf://m")
    young = a_cache("young", "hf://m").created("2026-02-01T00:00:00Z").with_spec(include=["*.json"])
    world = a_world(old, young, a_group(), a_node("n1")).reporting("n1", a_report(old))
    assert status_of(world, young)["nodeStatus"] == {"n1": "NodeDownloadError"}
    assert condition(young.json["status"], "Ready")[:2] == ("False", "SourceConflict")
    assert condition(old.json["status"], "Ready")[0] == "True"


def test_when_the_source_cannot_be_read_the_nodes_that_hold_the_model_stay_downloaded() -> None:
    cache = a_cache()
    world = a_cluster(cache, 2).reporting("n1", a_report(cache)).reporting("n2")
    world.unresolved(cache, DENIED, retry_at=NOW + 30)
    status = status_of(world, cache)
    assert status["nodeStatus"] == {"n1": "NodeDownloaded", "n2": "NodeDownloadError"}
    assert status["copies"] == {"available": 1, "failed": 1, "total": 2}
    assert condition(status, "Ready") == ("False", "SourceDenied", "401 from the hub; next try 2023-11-14T22:13:50Z")
    (model,) = node_status(world, "n2")["models"]
    assert (model["phase"], model["reason"], model["retryTime"]) == ("Failed", "SourceDenied", "2023-11-14T22:13:50Z")


def test_a_source_that_agents_read_with_its_own_options_is_named() -> None:
    cache = a_cache()
    world = a_cluster(cache).resolved(cache, GIB, storage_options={"key": "id", "secret": "key"})
    status = status_of(world, cache)
    assert status["credentialsOnNodes"] is True
    assert "secret" not in str(status)
    assert "credentialsOnNodes" not in status_of(a_cluster(cache).resolved(cache, GIB), cache)


def test_a_source_of_other_content_than_the_digest_names_is_never_downloaded() -> None:
    cache = a_cache().with_spec(digest="sha256:beef")
    world = a_cluster(cache)
    world.reporting("n1", a_report(cache, manifest_digest="sha256:dead"))
    status = status_of(world, cache)
    assert status["nodeStatus"] == {"n1": "NodeDownloadError"}
    assert condition(status, "Ready")[1] == "DigestMismatch"


def test_progress_is_summed_over_nodes() -> None:
    cache = a_cache()
    world = a_cluster(cache, 4).resolved(cache, 4 * GIB)
    world.reporting("n1", a_report(cache, total=4 * GIB, bytes_from_peers=GIB, bytes_from_other_zones=GIB // 2))
    moving: dict[str, Any] = {"rate_bytes_per_s": GIB / 50, "started_at": NOW - 99}
    world.reporting("n2", a_report(cache, Phase.DOWNLOADING, total=4 * GIB, done=2 * GIB, **moving))
    world.reporting("n3", a_report(cache, Phase.DOWNLOADING, total=4 * GIB, done=3 * GIB, **moving))
    world.reporting("n4")
    status = status_of(world, cache)
    assert status["bytes"] == {
        "total": 4 * GIB,
        "cached": 9 * GIB,
        "fromOrigin": 9 * GIB,
        "fromPeers": GIB,
        "fromOtherZones": GIB // 2,
        "reused": 0,
        "amplification": "2.25",
    }
    assert node_status(world, "n1")["models"][0]["bytesFromOtherZones"] == GIB // 2
    assert (status["progress"], status["eta"], status["available"], status["size"]) == ("56%", "1m40s", "1/4", "4Gi")
    assert status["rateBytesPerSecond"] == 2 * (GIB // 50)
    assert status["startedAt"] == "2023-11-14T22:11:41Z"
    assert "completedAt" not in status
    message = "1/4 nodes, 56% of 4 × 4Gi, 40.9Mi/s, 1m40s left"
    assert condition(status, "Ready") == ("False", "Downloading", message)
    assert condition(status, "Progressing") == ("True", "Downloading", message)


def test_a_finished_cache_says_so_and_shows_nothing_that_moves() -> None:
    cache = a_cache()
    world = a_cluster(cache, 3).resolved(cache)
    for node in ("n1", "n2", "n3"):
        world.reporting(node, a_report(cache, manifest_digest="sha256:1", verified={"sha256": 1}))
    status = status_of(world, cache)
    assert condition(status, "Ready") == ("True", "AllNodesReady", "3/3 nodes hold the model")
    assert condition(status, "Progressing")[0] == "False"
    assert condition(status, "Degraded")[0] == "False"
    assert (status["progress"], status["revision"], status["manifestDigest"]) == ("100%", "c0ffee", "sha256:1")
    assert status["completedAt"] == "2023-11-14T22:13:10Z"
    assert not {"eta", "rateBytesPerSecond"} & set(status)
    (model,) = node_status(world, "n1")["models"]
    assert (model["phase"], model["digest"], model["verified"]) == ("Ready", "sha256:1", {"sha256": 1})


@pytest.mark.parametrize(
    ("world", "reason", "names"),
    [
        pytest.param(a_world(a_cache(), a_node("n1")), "NodeGroupNotFound", "gpu", id="a missing group"),
        pytest.param(
            a_world(a_cache(), a_group().without_affinity(), a_node("n1")),
            "NoNodeAffinity",
            "nodeAffinity.required",
            id="a group without affinity",
        ),
        pytest.param(
            a_world(a_cache(), a_group().at("models"), a_node("n1")),
            "NodeGroupInvalid",
            "local.path",
            id="a group with a relative path",
        ),
        pytest.param(
            a_world(a_cache(), a_group().at("/a/../b"), a_node("n1")),
            "NodeGroupInvalid",
            "local.path",
            id="a group whose path climbs",
        ),
        pytest.param(
            a_world(a_cache(), a_group().with_spec(storageLimit="lots"), a_node("n1")),
            "NodeGroupInvalid",
            "storageLimit",
            id="a group whose limit is no quantity",
        ),
        pytest.param(
            a_world(a_cache(), a_group().labelled("pool", "tpu"), a_node("n1")),
            "NoMatchingNodes",
            "gpu",
            id="a group that matches no node",
        ),
        pytest.param(
            a_world(a_cache().with_spec(modelSize="huge"), a_group(), a_node("n1")),
            "InvalidObject",
            "spec.modelSize",
            id="a size that is no quantity",
        ),
        pytest.param(
            a_world(a_cache().with_spec(nodeGroups="gpu"), a_group(), a_node("n1")),
            "InvalidObject",
            "spec.nodeGroups",
            id="groups that are no list",
        ),
    ],
)
def test_what_is_wrong_with_a_request_is_named(world: World, reason: str, names: str) -> None:
    cache = world.objects[0]
    world.settle()
    status, shown, message = condition(cache.json["status"], "Ready")
    assert (status, shown) == ("False", reason)
    assert names in message


def test_the_other_groups_go_on_when_one_is_missing() -> None:
    cache = a_cache().in_group("missing", "gpu")
    world = a_cluster(cache).reporting("n1", a_report(cache))
    status = status_of(world, cache)
    assert status["nodeStatus"] == {"n1": "NodeDownloaded"}
    assert condition(status, "Ready")[:2] == ("False", "NodeGroupNotFound")
    assert condition(status, "Degraded")[:2] == ("True", "NodeGroupNotFound")


def test_the_failure_that_needs_a_person_is_the_one_to_talk_about() -> None:
    cache = a_cache()
    world = a_cluster(cache, 5)
    for node in ("n1", "n2", "n3"):
        world.reporting(node, a_report(cache, Phase.FAILED, failure=RESET, retry_at=NOW + 5))
    for node in ("n4", "n5"):
        world.reporting(node, a_report(cache, Phase.FAILED, failure=DENIED))
    status = status_of(world, cache)
    assert condition(status, "Ready") == ("False", "SourceDenied", "2/5 nodes (n4, n5): 401 from the hub")
    assert condition(status, "Progressing")[0] == "False"
    assert status["copies"] == {"failed": 5, "total": 5}


def test_a_retryable_failure_is_progress() -> None:
    cache = a_cache()
    world = a_cluster(cache, 5)
    for number in range(1, 6):
        report = a_report(cache, Phase.FAILED, failure=RESET, retry_at=NOW + number)
        world.reporting(f"n{number}", report)
    status = status_of(world, cache)
    message = "5/5 nodes (n1, n2, n3 and 2 more): connection reset; next try 2023-11-14T22:13:21Z"
    assert condition(status, "Ready") == ("False", "SourceError", message)
    assert condition(status, "Progressing") == ("True", "Retrying", message)


def test_a_model_that_does_not_fit_waits_with_its_reason() -> None:
    cache = a_cache()
    world = a_cluster(cache).reporting("n1", a_report(cache, Phase.PENDING, failure=FULL))
    status = status_of(world, cache)
    assert condition(status, "Ready") == ("False", "InsufficientStorage", "n1: needs 4Gi, 1Gi free")
    assert node_status(world, "n1")["models"][0]["reason"] == "InsufficientStorage"


DAMAGE = "a.bin differs within bytes 0-15"


@pytest.mark.parametrize(
    ("phase", "failure", "words", "message"),
    [
        (Phase.PENDING, None, ("NodeDownloadError", "Damaged"), f"{DAMAGE}; not repaired yet"),
        (Phase.FAILED, RESET, ("NodeDownloadError", "Damaged"), f"{DAMAGE}; not repaired yet: connection reset"),
        (Phase.DOWNLOADING, None, ("NodeDownloading", "Downloading"), f"{DAMAGE}; being repaired"),
        (Phase.VERIFYING, RESET, ("NodeDownloading", "Verifying"), f"{DAMAGE}; being repaired: connection reset"),
    ],
)
def test_a_damaged_copy_is_out_of_service_and_says_which_file_until_it_is_repaired(
    phase: Phase, failure: Failure | None, words: tuple[str, str], message: str
) -> None:
    cache = a_cache()
    report = a_report(cache, phase, done=GIB - 16, failure=failure, damage=DAMAGE)
    world = a_cluster(cache).reporting("n1", report)
    status = status_of(world, cache)
    detail = node_status(world, "n1")["models"][0]
    assert (status["nodeStatus"]["n1"], detail["phase"]) == words
    assert (detail["reason"], detail["message"]) == ("Damaged", message)
    for kind, value in (("Ready", "False"), ("Degraded", "True")):
        assert condition(status, kind) == (value, "Damaged", f"n1: {message}")
    assert condition(status, "Progressing")[0] == "True"
    assert not status["copies"].get("available")


def test_a_source_that_cannot_be_resolved_holds_up_a_repair_and_is_named() -> None:
    cache = a_cache()
    world = a_cluster(cache).reporting("n1", a_report(cache, Phase.PENDING, damage=DAMAGE))
    status = status_of(world.unresolved(cache, RESET, retry_at=NOW + 5), cache)
    message = f"n1: {DAMAGE}; not repaired yet: connection reset; next try 2023-11-14T22:13:25Z"
    assert condition(status, "Ready") == ("False", "Damaged", message)


def test_a_node_shows_when_a_copy_was_last_read_and_what_was_repaired() -> None:
    cache = a_cache()
    report = a_report(cache, verified={"sha256": 3}, verified_at=NOW, repaired=DAMAGE, repaired_at=NOW - 60)
    world = a_cluster(cache).reporting("n1", report)
    world.settle()
    detail = node_status(world, "n1")["models"][0]
    shown = {name: detail[name] for name in ("phase", "verified", "verifiedAt", "repaired", "repairedAt")}
    assert shown == {
        "phase": "Ready",
        "verified": {"sha256": 3},
        "verifiedAt": "2023-11-14T22:13:20Z",
        "repaired": DAMAGE,
        "repairedAt": "2023-11-14T22:12:20Z",
    }


def test_a_model_that_waits_for_a_broken_root_says_so() -> None:
    cache = a_cache()
    broken = RootReport("/models", failure=Failure("PathMismatch", "the agent sees another disk"))
    world = a_cluster(cache).reporting("n1", roots=(broken,))
    status = status_of(world, cache)
    assert condition(status, "Ready") == ("False", "PathMismatch", "n1: the agent sees another disk")
    assert node_status(world, "n1")["roots"][0]["reason"] == "PathMismatch"


def test_a_condition_keeps_its_transition_time_until_its_status_changes() -> None:
    cache = a_cache()
    world = a_cluster(cache).reporting("n1")
    world.settle(NOW)
    world.reporting("n1", a_report(cache, Phase.FAILED, failure=RESET)).settle(NOW + 60)
    times = {c["type"]: c["lastTransitionTime"] for c in cache.json["status"]["conditions"]}
    assert times == {
        "Ready": "2023-11-14T22:13:20Z",
        "Progressing": "2023-11-14T22:13:20Z",
        "Degraded": "2023-11-14T22:14:20Z",
    }


def test_conditions_of_others_are_kept() -> None:
    other = {"type": "Audited", "status": "True", "reason": "ByPolicy", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    cache = a_cache().with_status(conditions=[other])
    status = status_of(a_cluster(cache), cache)
    assert [c["type"] for c in status["conditions"]] == ["Ready", "Progressing", "Degraded", "Audited"]


def test_consumers_that_kserve_tracks_are_not_touched() -> None:
    cache = a_cache().with_status(inferenceServices=[{"namespace": "a", "name": "b"}])
    assert status_of(a_cluster(cache), cache)["inferenceServices"] == [{"namespace": "a", "name": "b"}]


def test_a_node_shows_what_lies_aside_and_what_is_not_ours() -> None:
    cache = a_cache()
    junk = ("models: is no folder; it is models.0123abcd now",)
    root = RootReport("/models", 10 * GIB, 3 * GIB, aside_bytes=2 * GIB, junk=junk)
    world = a_cluster(cache).reporting("n1", a_report(cache), roots=(root,))
    world.settle()
    (shown,) = node_status(world, "n1")["roots"]
    assert (shown["used"], shown["aside"], shown["junk"]) == (3 * GIB, 2 * GIB, list(junk))
    world.reporting("n1", a_report(cache), roots=(RootReport("/models", 10 * GIB, GIB),))
    world.settle()
    (shown,) = node_status(world, "n1")["roots"]
    assert shown.keys() == {"path", "free", "used", "reserved"}


def test_a_node_shows_its_disk_and_its_agent() -> None:
    cache = a_cache()
    root = RootReport("/models", 10 * GIB, GIB, 2 * GIB)
    world = a_cluster(cache).reporting("n1", a_report(cache), roots=(root,))
    world.settle()
    status = node_status(world, "n1")
    assert status["roots"] == [{"path": "/models", "free": 10 * GIB, "used": GIB, "reserved": 2 * GIB}]
    assert status["agent"] == {"ready": True, "incarnation": "incarnation-1", "version": "0.1.0"}


def test_a_group_shows_what_is_used_and_what_is_left_for_models() -> None:
    cache, group = a_cache(), a_group().with_spec(storageLimit="8Gi")
    world = a_world(cache, group, a_node("n1"), a_node("n2"))
    world.reporting("n1", a_report(cache), roots=(RootReport("/models", 100 * GIB, GIB, 2 * GIB),))
    world.reporting("n2", a_report(cache), roots=(RootReport("/models", 3 * GIB, GIB, 0), RootReport("/other", 1)))
    world.settle()
    assert group.json["status"] == {"used": "2Gi", "available": "8Gi", "storageLimitMode": "Enforce"}


def test_what_an_archive_holds_is_the_size_and_not_the_archive() -> None:
    cache = a_cache("iris", "https://h/iris.tar.gz")
    world = a_cluster(cache, 2).resolved(cache, GIB, names=("iris.tar.gz",))
    filling = a_report(cache, Phase.DOWNLOADING, total=GIB, done=GIB // 2)
    status = status_of(world.reporting("n1", filling), cache)
    assert (status["selection"], status["progress"]) == (cache.source.selection, "25%")

    for node in ("n1", "n2"):
        world.reporting(node, a_report(cache, total=3 * GIB))
    status = status_of(world, cache)
    assert (status["bytes"]["total"], status["bytes"]["cached"]) == (3 * GIB, 6 * GIB)
    assert status["progress"] == "100%"


@pytest.mark.parametrize("at", [-1e18, -1.0, 0.0, 1.5, 1e12, 1e20, float("inf"), float("nan")])
def test_a_node_whose_clock_is_wild_is_written_once_with_times_that_can_be_read(at: float) -> None:
    cache = a_cache()
    for phase in (Phase.READY, Phase.FAILED):
        report = a_report(cache, phase, started_at=at, finished_at=at, retry_at=at, verified_at=at, failure=RESET)
        world = a_world(cache, a_group(), a_node("n1")).reporting("n1", report)
        status = status_of(world, cache)
        assert {parse_time(status[name]) >= 0 for name in ("startedAt", "completedAt") if name in status} <= {True}


def test_a_coordinator_that_begins_takes_no_agent_for_new_that_the_last_one_knew() -> None:
    cache = a_cache()
    world = a_world(cache, a_group(), a_node("n1")).reporting("n1", a_report(cache))
    world.settle()
    world.agents.clear()
    begun = replace(world.snapshot(), acting_since=NOW)
    starting = {"reason": "AgentStarting", "message": "the node agent has not reported yet"}
    assert "agent" not in patched(plan(begun, NOW + SETTLING_S - 1))
    assert patched(plan(begun, NOW + SETTLING_S))["agent"] == {"ready": False, **starting}
    world.agents["n1"] = a_silent_agent("AgentUnavailable")
    begun = replace(world.snapshot(), acting_since=NOW)
    assert patched(plan(begun, NOW + 1))["agent"]["reason"] == "AgentUnavailable", "what it does know it says"


def test_a_coordinator_that_begins_in_a_fill_writes_nothing_of_nodes_that_it_has_not_heard() -> None:
    """Else every status would say Pending for a second, and the Event that the fill began would come once more."""
    cache, nodes = a_cache(), ("n1", "n2")
    world = a_world(cache, a_group(), *map(a_node, nodes))
    for node in nodes:
        world.reporting(node, a_report(cache, Phase.DOWNLOADING))
    world.settle()
    heard, known = dict(world.agents), dict(world.resolutions)

    def begins(*nodes: str, resolved: bool, after_s: float = 1.0) -> Plan:
        world.agents = {name: heard[name] for name in nodes}
        world.resolutions = known if resolved else {}
        return plan(replace(world.snapshot(), acting_since=NOW), NOW + after_s)

    for made in (begins(resolved=False), begins(resolved=True), begins("n1", resolved=True)):
        assert [write for write in made.writes if write.ref.resource in (CACHES, LOCAL_NODES)] == []
    made = begins(*nodes, resolved=True)
    assert [event.reason for write in made.writes for event in write.events] == []
    late = begins("n1", resolved=True, after_s=SETTLING_S)
    assert {CACHES, LOCAL_NODES} <= {write.ref.resource for write in late.writes}, "then it says what it misses"
    cache.json["metadata"]["generation"] += 1
    edited = begins("n1", resolved=True)
    assert CACHES in {write.ref.resource for write in edited.writes}, "of another request nothing was said before"


def patched(made: Plan) -> dict[str, Any]:
    """What is written to the status of the only LocalModelNode; a merge patch, without what it removes."""
    statuses = [write.body["status"] for write in made.writes if write.ref.resource == LOCAL_NODES]
    found: dict[str, Any] = {}
    for status in statuses:
        found |= status
    if "agent" in found:
        found["agent"] = {name: value for name, value in found["agent"].items() if value is not None}
    return found


# --- for people ---


def test_a_node_is_summed_up_in_words() -> None:
    cache = a_cache()
    moving = a_report(cache, Phase.DOWNLOADING, total=4 * GIB, done=GIB, rate_bytes_per_s=2.0 * GIB)
    world = a_cluster(cache).reporting("n1", moving, roots=(RootReport("/models", 10 * GIB, 3 * GIB),))
    world.settle()

    status = node_status(world, "n1")

    assert status["summary"] == {"ready": "True", "models": "0/1", "size": "3Gi", "free": "10Gi", "rate": "2Gi/s"}
    assert status["models"][0]["progress"] == "25% of 4Gi"
    world.reporting("n1", a_report(cache), roots=(RootReport("/models", 9 * GIB, 4 * GIB),)).settle()
    status = node_status(world, "n1")
    assert status["summary"] == {"ready": "True", "models": "1/1", "size": "4Gi", "free": "9Gi"}
    assert "progress" not in status["models"][0]


def test_a_disk_that_cannot_be_used_is_not_counted() -> None:
    cache = a_cache()
    roots = (RootReport("/models", failure=Failure("DiskReadOnly", "read-only")), RootReport("/b", 5 * GIB, GIB))
    world = a_cluster(cache).reporting("n1", a_report(cache), roots=roots)
    world.settle()

    assert node_status(world, "n1")["summary"] == {"ready": "True", "models": "1/1", "size": "1Gi", "free": "5Gi"}


def test_a_silent_agent_says_since_when_and_a_new_coordinator_does_not_forget_it() -> None:
    cache = a_cache()
    world = a_cluster(cache).reporting("n1", a_report(cache))
    world.settle()
    assert "silentSince" not in node_status(world, "n1")["agent"]

    world.agents["n1"] = a_silent_agent(last=world.agents["n1"])
    world.settle(NOW + 300)
    assert node_status(world, "n1")["agent"]["silentSince"] == rfc3339(NOW)
    assert node_status(world, "n1")["summary"]["ready"] == "False"

    world.agents["n1"] = a_silent_agent()  # nothing is remembered
    world.settle(NOW + 600)
    assert node_status(world, "n1")["agent"]["silentSince"] == rfc3339(NOW)
    world.reporting("n1", a_report(cache)).settle(NOW + 900)
    assert "silentSince" not in node_status(world, "n1")["agent"]


@pytest.mark.parametrize(
    ("revision", "short"),
    [
        (None, None),
        ("main", "main"),
        ("7c5ac14d5cff174fdaf88da07139f501d9a6288d", "7c5ac14d5cff"),
        ("sha256:" + "ab" * 32, "abababababab"),
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
    ],
)
def test_a_commit_is_named_by_its_first_digits(revision: str | None, short: str | None) -> None:
    assert short_revision(revision) == short


def test_what_moved_is_said_for_people() -> None:
    cache = a_cache()
    world = a_cluster(cache)
    report = a_report(cache, bytes_from_origin=GIB // 2, bytes_from_peers=GIB // 2, bytes_from_other_zones=GIB // 4)
    world.resolved(cache, GIB).reporting("n1", report)
    world.settle()

    status = cache.json["status"]

    assert status["moved"] == "origin 512Mi (0.50 times), peers 512Mi, 256Mi of it from other zones"
    assert status["shortRevision"] == status["revision"] == "c0ffee"
    assert "rate" not in status


def test_the_event_of_a_beginning_has_no_time_left() -> None:
    cache = a_cache()
    world = a_cluster(cache).resolved(cache, 10 * GIB)
    begun = a_report(cache, Phase.DOWNLOADING, total=10 * GIB, done=1, rate_bytes_per_s=100.0)
    world.reporting("n1", begun)
    events = [event for _ in range(4) for write in world.step().writes for event in write.events]

    (said,) = [event.message for event in events if event.reason == "Downloading"]
    assert said == "0/1 nodes hold the model, 10Gi each"
