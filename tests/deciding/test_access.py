"""Caches of one URI share a folder: who may take a copy for its own, and who decides what is in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from actors.agent.capacity import Room, Waiting
from actors.agent.evictions import Entry
from actors.errors import Failure, InsufficientStorage
from actors.manifest import Digest, Location, ManifestFile, Resolved, make_manifest, storage_key
from actors.messages import DesiredModel, Earlier, ModelReport, NodeName, Phase
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
    a_world,
    an_agent,
)
from coordinator.plan.access import Proof, asks_itself, proof_of
from coordinator.plan.placement import place
from coordinator.plan.snapshot import Resolution

URI = "hf://acme/private"
REFUSED = Failure("SourceDenied", "acme/private refused the credentials", retryable=False)
DOWN = Failure("SourceUnreachable", "the origin does not answer")
N1 = NodeName("n1")


def an_answer(cache: CacheBuilder, letter: str = "a", revision: str | None = "c0ffee") -> Resolution:
    """What the source has: one file, whose content the letter stands for."""
    manifest = make_manifest(cache.source, revision, [ManifestFile("w.bin", GIB, Digest(f"sha256:{letter * 64}"))])
    return Resolution(Resolved(manifest, (Location("https://origin.test/w.bin"),)))


def digest_of(answer: Resolution) -> str:
    assert answer.resolved is not None
    return str(answer.resolved.manifest.digest)


def a_copy(cache: CacheBuilder, letter: str = "a", revision: str | None = "c0ffee", **fields: Any) -> ModelReport:
    return a_report(cache, manifest_digest=digest_of(an_answer(cache, letter)), revision=revision, **fields)


def tenants(*caches: CacheBuilder) -> World:
    return a_world(*caches, a_group(), a_node("n1"))


def mine() -> CacheBuilder:
    return a_namespace_cache("team-b", "p", URI).created("2026-01-02T00:00:00Z").with_spec(serviceAccountName="b")


def theirs() -> CacheBuilder:
    return a_namespace_cache("team-a", "p", URI).created("2026-01-01T00:00:00Z").with_spec(serviceAccountName="a")


def status_of(cache: CacheBuilder) -> dict[str, Any]:
    status: dict[str, Any] = cache.json.get("status", {})
    return status


def ready(cache: CacheBuilder) -> tuple[str, str]:
    (found,) = (each for each in status_of(cache)["conditions"] if each["type"] == "Ready")
    return found["status"], found["reason"]


def the_model(world: World) -> DesiredModel:
    (model,) = world.plan().desired[N1].models
    return model


@pytest.mark.parametrize(
    ("cache", "expected"),
    [
        (a_cache(), False),
        (a_cache().with_spec(serviceAccountName="reader"), True),
        (a_cache().with_spec(storage={"key": "k"}), True),
        (a_namespace_cache("team"), True),
    ],
)
def test_only_a_cluster_cache_without_credentials_goes_by_the_coordinators_identity(
    cache: CacheBuilder, *, expected: bool
) -> None:
    (read,) = tenants(cache).snapshot().caches.values()
    assert asks_itself(read) is expected


def test_a_copy_is_not_the_copy_of_a_cache_whose_credentials_are_refused() -> None:
    b, a = mine(), theirs()
    world = tenants(b, a).reporting("n1", a_copy(b)).unresolved(a, REFUSED)
    world.resolutions[b.key] = an_answer(b)
    world.settle()
    assert ready(b) == ("True", "AllNodesReady")
    assert ready(a) == ("False", "SourceDenied")
    assert status_of(a)["nodeStatus"] == {"n1": "NodeDownloadError"}
    assert status_of(a)["copies"] == {"failed": 1, "total": 1}


def test_until_its_source_has_answered_a_cache_learns_nothing_of_the_copies_of_others() -> None:
    b, a = mine(), theirs()
    world = tenants(b, a).reporting("n1", a_copy(b))
    world.resolutions[b.key] = an_answer(b)
    world.settle()
    said = {name for name, value in status_of(a).items() if value}
    assert said == {"nodeStatus", "copies", "conditions", "observedGeneration", "available"}
    assert ready(a) == ("False", "Resolving")
    (detail,) = (each for each in world.snapshot().local_nodes[N1].status["models"] if each["name"] == a.key)
    assert detail == {"name": "team-a/p", "phase": "Pending"}


@pytest.mark.parametrize("edit", [{"digest": "sha256:" + "1" * 64}, {"revision": "v2"}, {"include": ["*.bin"]}])
def test_no_field_of_a_spec_gets_more_out_of_it(edit: dict[str, Any]) -> None:
    b, a = mine(), theirs().with_spec(**edit)
    world = tenants(b, a).reporting("n1", a_copy(b)).unresolved(a, REFUSED)
    world.resolutions[b.key] = an_answer(b)
    world.settle()
    assert ready(a) == ("False", "SourceDenied")
    text = repr(status_of(a))
    assert not [word for word in ("c0ffee", digest_of(an_answer(b)), str(GIB), "team-b", "w.bin") if word in text]


def test_the_commit_that_others_hold_is_not_said_to_who_may_not_read_it() -> None:
    b, a = mine(), theirs()
    world = tenants(b, a).reporting("n1", a_copy(b))
    world.resolutions[b.key] = an_answer(b)
    world.settle()
    assert world.plan().wants[a.key].pinned_revision == "c0ffee"
    world.unresolved(a, Failure("RevisionNotFound", "acme/private has no revision 'c0ffee'", retryable=False))
    world.settle()
    assert "c0ffee" not in repr(status_of(a))


def test_an_older_cache_that_is_refused_does_not_keep_a_newer_one_waiting() -> None:
    b, a = mine(), theirs()
    world = tenants(b, a).reporting("n1").unresolved(a, REFUSED)
    assert {a.key, b.key} <= world.plan().wants.keys()
    world.resolutions[b.key] = answer = an_answer(b)
    assert answer.resolved is not None
    assert the_model(world).resolved == answer.resolved.name
    assert list(world.plan().desired[N1].resolved) == [answer.resolved.name]


def test_nor_where_it_wants_another_revision() -> None:
    b, a = mine(), theirs().with_spec(revision="v9")
    world = tenants(b, a).reporting("n1").unresolved(a, REFUSED)
    world.resolutions[b.key] = an_answer(b)
    assert the_model(world).source == b.source


def test_a_cache_whose_own_source_says_the_same_shares_the_copy_and_proves_it_in_status() -> None:
    b, a = mine(), theirs()
    world = tenants(b, a).reporting("n1", a_copy(b))
    world.resolutions = {b.key: an_answer(b), a.key: an_answer(a)}
    assert world.settle().wants == {}
    for cache in (a, b):
        assert ready(cache) == ("True", "AllNodesReady")
        assert (status_of(cache)["revision"], status_of(cache)["manifestDigest"]) == ("c0ffee", digest_of(an_answer(b)))
    proof = proof_of(world.snapshot().caches[a.key])
    assert proof == Proof(a.source.selection, "c0ffee", digest_of(an_answer(a)), current=True)


def test_a_proof_outlives_a_restart_while_the_source_is_down() -> None:
    b, a = mine(), theirs()
    world = tenants(b, a).reporting("n1", a_copy(b))
    world.resolutions = {b.key: an_answer(b), a.key: an_answer(a)}
    world.settle()
    world.resolutions = {b.key: Resolution(failure=DOWN), a.key: Resolution(failure=DOWN)}
    world.settle()
    assert [ready(cache)[0] for cache in (a, b)] == ["True", "True"]
    world.agents["n1"] = a_silent_agent()
    world.settle()
    assert status_of(a)["nodeStatus"] == {"n1": "NodeDownloaded"}


def test_a_source_that_is_down_lets_nobody_in() -> None:
    b, a = mine(), theirs()
    world = tenants(b, a).reporting("n1", a_copy(b))
    world.resolutions[b.key] = an_answer(b)
    world.settle()
    agent = an_agent("n1", a_copy(b))
    assert agent.report is not None
    world.agents["n1"] = replace(agent, report=replace(agent.report, peer_address="10.0.0.1:1"))
    world.resolutions = {b.key: Resolution(failure=DOWN), a.key: Resolution(failure=DOWN)}
    planned = world.settle()
    assert ready(a) == ("False", "SourceUnreachable")
    assert a.key not in planned.manifests
    assert "c0ffee" not in repr(status_of(a))


def test_other_credentials_are_asked_with_and_the_proof_holds_until_they_are_refused() -> None:
    a = theirs()
    world = tenants(a).reporting("n1", a_copy(a))
    world.resolutions[a.key] = an_answer(a)
    assert a.key not in world.settle().wants
    a.with_spec(serviceAccountName="other")
    world.resolutions.clear()
    assert a.key in world.settle().wants
    assert ready(a)[0] == "True"
    world.unresolved(a, DOWN)
    world.settle()
    assert ready(a)[0] == "True"
    world.unresolved(a, REFUSED)
    world.settle()
    assert ready(a) == ("False", "SourceDenied")
    assert not {"selection", "revision", "manifestDigest", "resolvedAs", "bytes"} & status_of(a).keys()
    world.resolutions.clear()
    world.settle()
    assert ready(a) == ("False", "Resolving")


def test_credentials_that_are_refused_later_do_not_take_away_what_they_proved() -> None:
    a = theirs()
    world = tenants(a).reporting("n1", a_copy(a))
    world.resolutions[a.key] = an_answer(a)
    world.settle()
    world.unresolved(a, REFUSED)
    world.settle()
    assert ready(a)[0] == "True"


def test_an_edit_does_not_replace_what_another_cache_has() -> None:
    b, a = mine(), theirs()
    world = tenants(b, a).reporting("n1", a_copy(b))
    world.resolutions = {b.key: an_answer(b), a.key: an_answer(a)}
    world.settle()
    a.with_spec(revision="v2")
    world.resolutions[a.key] = an_answer(a, "f", "0ddba11")
    world.settle()
    assert the_model(world).source == b.source
    assert ready(b) == ("True", "AllNodesReady")
    degraded = next(each for each in status_of(a)["conditions"] if each["type"] == "Degraded")
    assert degraded["reason"] == "SourceConflict"
    assert "team-b" not in degraded["message"]
    assert status_of(a)["revision"] == "c0ffee"  # what is there, and it may have it
    assert status_of(a)["nodeStatus"] == {"n1": "NodeDownloaded"}


def test_an_edit_that_comes_to_the_same_files_is_no_conflict() -> None:
    b, a = mine(), theirs()
    world = tenants(b, a).reporting("n1", a_copy(b))
    world.resolutions = {b.key: an_answer(b), a.key: an_answer(a)}
    world.settle()
    a.with_spec(revision="main")
    world.resolutions[a.key] = an_answer(a)
    assert world.settle().wants == {}
    assert ready(a) == ("True", "AllNodesReady")


def test_a_digest_that_one_expects_is_judged_for_that_one_alone() -> None:
    b, a = mine(), theirs()
    world = tenants(b, a).reporting("n1", a_copy(b))
    world.resolutions = {b.key: an_answer(b), a.key: an_answer(a)}
    world.settle()
    a.with_spec(digest="sha256:" + "1" * 64).with_metadata(generation=2)
    for _ in range(2):
        world.settle()
        assert ready(b) == ("True", "AllNodesReady")
        assert ready(a) == ("False", "DigestMismatch")
        assert the_model(world).expected_digest is None
    b.with_spec(digest=digest_of(an_answer(b)))
    world.settle()
    assert ready(b) == ("True", "AllNodesReady")


def test_a_digest_that_all_expect_is_what_the_agent_insists_on() -> None:
    digest = digest_of(an_answer(mine()))
    b, a = mine().with_spec(digest=digest), theirs().with_spec(digest=digest)
    world = tenants(b, a).reporting("n1")
    world.resolutions = {b.key: an_answer(b), a.key: an_answer(a)}
    assert the_model(world).expected_digest == digest


def test_an_edited_node_group_does_not_move_what_another_cache_has() -> None:
    b, a = mine(), theirs()
    world = tenants(b, a).add(a_group("other").labelled("pool", "gpu").at("/elsewhere")).reporting("n1", a_copy(b))
    world.resolutions = {b.key: an_answer(b), a.key: an_answer(a)}
    world.settle()
    a.in_group("other").with_metadata(generation=2)
    for _ in range(3):
        world.settle()
        assert the_model(world).root == "/models"
        assert ready(b) == ("True", "AllNodesReady")
    a.in_group("gpu").with_metadata(generation=3)
    world.settle()
    assert ready(a) == ("True", "AllNodesReady")


def test_a_copy_stays_when_one_of_two_who_share_it_is_deleted() -> None:
    b, a = mine(), theirs()
    world = tenants(b, a).reporting("n1", a_copy(b))
    world.resolutions = {b.key: an_answer(b), a.key: an_answer(a)}
    world.settle()
    a.deleted()
    world.settle()
    assert world.find("LocalModelNamespaceCache", "p", "team-a") is None
    assert the_model(world).source == b.source
    assert ready(b)[0] == "True"


def test_what_a_deleted_cache_has_left_is_replaced_where_the_source_has_other_content_for_the_other() -> None:
    a = theirs()
    world = tenants(a).reporting("n1", a_copy(a, "f", "0ddba11"))
    world.resolutions[a.key] = answer = an_answer(a)
    world.settle()
    assert ready(a) == ("False", "SourceConflict")
    assert the_model(world).expected_digest == digest_of(answer)
    world.reporting("n1", a_copy(a))
    world.settle()
    assert (ready(a)[0], the_model(world).expected_digest) == ("True", None)


def test_a_status_from_before_proofs_holds_until_the_source_refuses() -> None:
    a = theirs().with_status(selection=theirs().source.selection, revision="c0ffee")
    world = tenants(a).reporting("n1", a_copy(a))
    assert a.key in world.settle().wants
    assert ready(a)[0] == "True"
    world.unresolved(a, REFUSED)
    world.settle()
    assert ready(a) == ("False", "SourceDenied")


def test_where_the_proof_is_pruned_a_node_that_was_written_as_downloaded_stands_in() -> None:
    a = theirs()
    world = tenants(a).reporting("n1", a_copy(a))
    world.extensions = False
    world.resolutions[a.key] = an_answer(a)
    world.settle()
    world.resolutions = {a.key: Resolution(failure=DOWN)}
    world.settle()
    assert status_of(a)["nodeStatus"] == {"n1": "NodeDownloaded"}
    world.unresolved(a, REFUSED)
    world.settle()
    assert status_of(a)["nodeStatus"] == {"n1": "NodeDownloadError"}


def test_who_has_read_nothing_lends_no_priority() -> None:
    b, a = mine(), theirs().with_spec(priority=1000)
    world = tenants(b, a).reporting("n1", a_copy(b)).unresolved(a, REFUSED)
    world.resolutions[b.key] = an_answer(b)
    assert the_model(world).priority == 0


def test_the_slot_of_a_refused_cache_is_there_all_the_same() -> None:
    """Its copies stay where they are: who may not read them is not who decides that they go."""
    b, a = mine(), theirs()
    world = tenants(b, a).unresolved(a, REFUSED)
    (placement,) = place(world.snapshot()).placements.values()
    assert [slot.cache.key for slot in placement.slots] == [a.key, b.key]


EARLIER = Earlier("an earlier request", "0ddba11", "sha256:" + "e" * 64, GIB, NOW - 100)


def test_a_copy_of_an_earlier_request_is_nobodys_who_has_not_read_it() -> None:
    a = theirs()
    world = tenants(a).reporting("n1", a_report(a, Phase.PENDING, total=0, earlier=EARLIER))
    world.resolutions[a.key] = an_answer(a)
    world.settle()
    assert status_of(a)["nodeStatus"] == {"n1": "NodeDownloadPending"}
    assert "0ddba11" not in repr(status_of(a))


# --- a cache that says where to ask may have brought anything under the URI ---


def plain(**status: Any) -> CacheBuilder:
    """A cluster cache that goes by the coordinator's identity."""
    return a_cache("plain", URI).created("2026-03-01T00:00:00Z").with_status(**status)


@pytest.mark.parametrize("victim", [plain, theirs])
@pytest.mark.parametrize("commit", ["c0ffee", None, "0ddba11"])
def test_what_another_endpoint_calls_the_same_commit_is_not_the_same(
    victim: Callable[[], CacheBuilder], commit: str | None
) -> None:
    b, a = mine().created("2025-01-01T00:00:00Z"), victim()
    world = tenants(b).reporting("n1", a_copy(b, "e", commit))
    world.resolutions = {b.key: an_answer(b, "e", commit)}
    world.settle()
    assert ready(b)[0] == "True"
    world.add(a).settle()
    assert ready(a)[0] == "False", "not before its own source has said so"
    assert a.key in world.plan().wants
    world.resolutions[a.key] = an_answer(a)
    world.settle()
    assert ready(a) == ("False", "SourceConflict")
    assert ready(b)[0] == "True", "which is its author's affair"
    assert digest_of(an_answer(b, "e")) not in str(a.json["status"])


@pytest.mark.parametrize("answered", [False, True])
def test_nor_is_it_when_the_other_cache_is_gone(answered: bool) -> None:
    b, a = mine().created("2025-01-01T00:00:00Z"), plain()
    world = tenants(b).reporting("n1", a_copy(b, "e"))
    world.resolutions = {b.key: an_answer(b, "e")}
    world.settle()
    world.add(a).settle()
    if answered:
        world.resolutions[a.key] = an_answer(a)
        world.settle()
    b.deleted()
    world.settle()
    assert world.find("LocalModelNamespaceCache", "p", "team-b") is None
    assert ready(a)[0] == "False"
    world.resolutions = {a.key: an_answer(a)}
    world.settle()
    assert the_model(world).expected_digest == digest_of(an_answer(a)), "it is replaced"
    world.reporting("n1", a_copy(a)).settle()
    assert ready(a) == ("True", "AllNodesReady")


def test_nor_when_its_author_took_the_finalizer_away() -> None:
    b, a = mine(), plain()
    world = tenants(b).reporting("n1", a_copy(b, "e"))
    world.resolutions = {b.key: an_answer(b, "e")}
    world.settle()
    world.objects.remove(b)
    world.add(a).settle()
    assert ready(a) == ("False", "Unproven")
    world.resolutions = {a.key: an_answer(a)}
    world.settle()
    assert the_model(world).expected_digest == digest_of(an_answer(a)), "it is replaced"
    world.reporting("n1", a_copy(a)).settle()
    assert ready(a) == ("True", "AllNodesReady")
    local = world.find("LocalModelNode", "n1")
    assert local is not None
    assert [line["modelName"] for line in local["spec"]["localModels"]] == ["plain"]


def test_a_cluster_cache_loses_nothing_by_others_that_share_its_uri() -> None:
    a, b = plain(), mine()
    world = tenants(a).reporting("n1", a_copy(a))
    world.resolutions = {a.key: an_answer(a)}
    world.settle()
    for answer in (None, an_answer(b, "e"), an_answer(b)):
        for failure in (None, REFUSED, DOWN):
            world.resolutions = {} if answer is None else {b.key: answer}
            if failure is not None:
                world.unresolved(a, failure)
            world.add(b).settle()
            assert ready(a) == ("True", "AllNodesReady")
            assert a.key not in world.plan().wants, "what status proves is not asked for again"
            world.objects.remove(b)
            world.settle()


def test_a_cluster_cache_shares_what_its_own_source_has_too() -> None:
    b, a = mine(), plain()
    world = tenants(b).reporting("n1", a_copy(b))
    world.resolutions = {b.key: an_answer(b)}
    world.settle()
    world.add(a)
    world.resolutions[a.key] = an_answer(a)
    world.settle()
    assert ready(a) == ("True", "AllNodesReady")
    world.resolutions = {}
    world.settle()
    assert ready(a) == ("True", "AllNodesReady"), "after a restart, too"
    assert world.plan().wants == {}


def test_a_cluster_cache_shares_with_who_asks_as_nobody_but_where_it_does() -> None:
    b, a = a_namespace_cache("team-b", "p", URI), plain()
    world = tenants(b).reporting("n1", a_copy(b))
    world.resolutions = {b.key: an_answer(b)}
    world.settle()
    world.add(a).settle()
    assert ready(a) == ("True", "AllNodesReady")


# --- what is said of the models of others ---

OTHERS = "hf://acme/secret project"
NEEDED = 30 * GIB


def in_its_way(uri: str, reason: str) -> Failure:
    """What an agent says, in its own words."""
    if reason == "Evicted":
        return Entry(NOW, GIB, storage_key(uri), uri, NEEDED).error().failure()
    with pytest.raises(InsufficientStorage) as caught:
        Room("/models", 100 * GIB, 0, 0).check_turn(0, [Waiting(uri, 7, NEEDED)])
    return caught.value.failure()


@pytest.mark.parametrize("reason", ["Evicted", "InsufficientStorage"])
def test_a_tenant_is_not_told_whose_model_is_in_the_way_nor_how_large_it_is(reason: str) -> None:
    b, other = mine(), a_namespace_cache("team-a", "s", OTHERS)
    for uri, told in ((OTHERS, False), (URI, True), ("hf://acme/gone", False)):
        world = tenants(b, other).reporting("n1", a_report(b, Phase.PENDING, failure=in_its_way(uri, reason)))
        world.resolutions = {b.key: an_answer(b)}
        heard = [event.message for _ in range(4) for write in world.step().writes for event in write.events]
        local = world.find("LocalModelNode", "n1")
        assert local is not None
        detail = next(each for each in local["status"]["models"] if each["name"] == b.key)
        assert detail["reason"] == reason
        text = str([b.json["status"]["conditions"], detail["message"], heard])
        assert [uri in text, "30Gi" in text, "another model" in text] == [told, told, not told]


@pytest.mark.parametrize("reason", ["Evicted", "InsufficientStorage"])
def test_whoever_reads_cluster_caches_is_told(reason: str) -> None:
    a = plain()
    failure = in_its_way(OTHERS, reason)
    world = tenants(a).reporting("n1", a_report(a, Phase.PENDING, failure=failure))
    world.settle()
    assert OTHERS in str(a.json["status"]["conditions"])
