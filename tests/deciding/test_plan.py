"""The plan: what is written, sent and resolved, and that a world which is as it should be is left alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.errors import Failure
from actors.manifest import Digest
from actors.messages import DesiredRoot, NodeName, Phase, RootReport
from actors.times import parse_time
from coordinator.dev.trial.builders import (
    GIB,
    NOW,
    OWNER,
    CacheBuilder,
    World,
    a_cache,
    a_group,
    a_local_node,
    a_namespace_cache,
    a_node,
    a_report,
    a_resolution,
    a_silent_agent,
    a_world,
    an_agent,
    key_of,
)
from coordinator.plan.fold import Turn
from coordinator.plan.plan import UNREACHABLE_GRACE_S, Plan, Write, plan
from coordinator.plan.snapshot import Credentials

N1, N2 = NodeName("n1"), NodeName("n2")
DELETED = "2023-11-14T22:13:00Z"


def a_cluster(*caches: CacheBuilder, nodes: int = 1) -> World:
    return a_world(*caches, a_group(), *(a_node(f"n{number}") for number in range(1, nodes + 1)))


def listed(world: World, name: str) -> list[dict[str, Any]]:
    found = world.find("LocalModelNode", name)
    assert found is not None
    entries: list[dict[str, Any]] = found["spec"]["localModels"]
    return entries


def events(made: Plan) -> list[tuple[str, str]]:
    return [(event.reason, event.message) for write in made.writes for event in write.events]


def writes(made: Plan) -> set[tuple[str, str, str]]:
    return {(write.verb.value, write.ref.resource.kind, write.ref.name) for write in made.writes}


# --- objects ---


def test_the_finalizer_comes_before_anything_else_is_written_to_a_cache() -> None:
    cache = a_cache().without_finalizer()
    world = a_cluster(cache)
    assert writes(world.step()) == {("patch", "LocalModelCache", "llama"), ("create", "LocalModelNode", "n1")}
    assert cache.json["metadata"]["finalizers"] == ["localmodel.kserve.io/finalizer"]


def test_the_finalizer_of_a_namespace_cache_is_kserves() -> None:
    cache = a_namespace_cache("team").without_finalizer()
    a_cluster(cache).step()
    assert cache.json["metadata"]["finalizers"] == ["localmodelnamespacecache.kserve.io/finalizer"]


def test_finalizers_of_others_are_kept() -> None:
    cache = a_cache().with_metadata(finalizers=["other/one"])
    world = a_cluster(cache)
    world.step()
    assert cache.json["metadata"]["finalizers"] == ["other/one", "localmodel.kserve.io/finalizer"]
    cache.deleted(DELETED)
    world.reporting("n1").settle()
    assert cache.json["metadata"]["finalizers"] == ["other/one"]


def test_a_local_model_node_is_owned_by_its_node_and_lists_what_kserve_lists() -> None:
    plain = a_cache("plain", "s3://a")
    full = a_namespace_cache("team", "full", "s3://b").with_spec(
        serviceAccountName="reader", storage={"key": "k", "parameters": {"region": "eu"}}, revision="ours"
    )
    world = a_cluster(plain, full)
    world.step()
    assert listed(world, "n1") == [
        {"modelName": "plain", "sourceModelUri": "s3://a", "nodeGroup": "gpu"},
        {
            "modelName": "full",
            "sourceModelUri": "s3://b",
            "namespace": "team",
            "nodeGroup": "gpu",
            "serviceAccountName": "reader",
            "storage": {"key": "k", "parameters": {"region": "eu"}},
        },
    ]
    created = world.find("LocalModelNode", "n1")
    assert created is not None
    owner = {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "uid-n1"}
    assert created["metadata"]["ownerReferences"] == [owner]


def test_a_local_model_node_that_kserve_left_is_adopted() -> None:
    cache, gone = a_cache(), a_cache("gone")
    local = a_local_node("n1").listing(gone, cache).downloaded(gone, cache)
    world = a_cluster(cache).add(local).reporting("n1", a_report(cache))
    world.settle()
    assert [entry["modelName"] for entry in listed(world, "n1")] == ["llama"]
    assert local.json["metadata"]["ownerReferences"][0]["uid"] == "uid-n1"
    assert local.json["status"]["modelStatus"] == {"llama": "ModelDownloaded"}


def test_a_reference_to_an_earlier_node_of_the_same_name_is_replaced() -> None:
    stale = {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "uid-before"}
    local = a_local_node("n1").with_metadata(ownerReferences=[stale])
    a_cluster().add(local).settle()
    assert [owner["uid"] for owner in local.json["metadata"]["ownerReferences"]] == ["uid-n1"]


def test_the_local_model_node_of_a_node_that_is_gone_is_deleted() -> None:
    world = a_cluster(a_cache()).add(a_local_node("gone"))
    assert ("delete", "LocalModelNode", "gone") in writes(world.step())


def test_every_write_carries_the_version_it_was_made_from() -> None:
    cache = a_cache()
    world = a_cluster(cache).add(a_local_node("n1").with_metadata(resourceVersion="77"))
    versions = {w.ref.name: w.body["metadata"]["resourceVersion"] for w in world.plan().writes}
    assert versions == {"llama": "1", "n1": "77"}


def test_a_status_patch_names_only_what_differs() -> None:
    cache = a_cache()
    world = a_cluster(cache, nodes=3).reporting("n1", a_report(cache)).reporting("n2")
    world.resolved(cache).settle()
    made = world.reporting("n2", a_report(cache)).plan()
    (write,) = [w for w in made.writes if w.ref.resource.kind == "LocalModelCache"]
    status = write.body["status"]
    assert status["nodeStatus"] == {"n2": "NodeDownloaded"}
    assert status["copies"] == {"available": 2}
    assert "revision" not in status


# --- quiet ---


def test_a_world_that_is_as_it_should_be_is_left_alone() -> None:
    held, failing, waiting = a_cache("held"), a_cache("failing"), a_cache("waiting")
    world = a_cluster(held, failing, waiting, nodes=2).add(a_node("off").not_ready()).resolved(waiting)
    broken = Failure("SourceNotFound", "404", retryable=False)
    world.unresolved(failing, broken, retry_at=NOW + 60)
    full = Failure("InsufficientStorage", "needs 9Gi")
    for node in ("n1", "n2"):
        world.reporting(node, a_report(held), a_report(waiting, Phase.PENDING, failure=full))
    assert world.settle().writes == ()
    assert world.plan(NOW + 3600).writes == ()


def test_small_changes_of_free_space_are_not_written() -> None:
    world = a_cluster(a_cache()).reporting("n1", roots=(RootReport("/models", 100 * GIB),))
    world.settle()
    world.reporting("n1", roots=(RootReport("/models", 100 * GIB - GIB // 2),))
    assert world.plan().writes == ()
    world.reporting("n1", roots=(RootReport("/models", 90 * GIB),))
    assert {w.ref.resource.kind for w in world.plan().writes} == {"LocalModelNode", "LocalModelNodeGroup"}


def test_progress_is_told_from_what_somebody_waits_for() -> None:
    cache = a_cache()
    world = a_cluster(cache).resolved(cache)

    def downloading(done: int) -> World:
        return world.reporting("n1", a_report(cache, Phase.DOWNLOADING, done=done, rate_bytes_per_s=1e6))

    downloading(GIB // 4).settle()
    made = downloading(GIB // 2).plan()
    assert {w.ref.name: w.material for w in made.writes} == {"llama": False, "n1": False}
    assert events(made) == []
    made = world.reporting("n1", a_report(cache)).plan()
    assert {w.ref.name: w.material for w in made.writes} == {"llama": True, "n1": True, "gpu": False}


def test_progress_of_a_node_waits_for_its_turn_and_news_does_not() -> None:
    cache = a_cache()
    world = a_cluster(cache, nodes=2).resolved(cache)
    for done in (GIB // 4, GIB // 2):
        for node in ("n1", "n2"):
            world.reporting(node, a_report(cache, Phase.DOWNLOADING, done=done, rate_bytes_per_s=1e6))
        if done == GIB // 4:
            world.settle()
    snapshot = world.snapshot()
    assert {w.ref.name for w in plan(snapshot, NOW, Turn({N2}, 9)).writes} == {"llama", "n2"}
    world.reporting("n1", a_report(cache))
    assert {w.ref.name for w in plan(world.snapshot(), NOW, Turn((), 9)).writes} == {"llama", "n1", "gpu"}


def test_kserves_own_crds_are_written_without_our_fields_and_without_end() -> None:
    cache = a_cache()
    world = a_cluster(cache).reporting("n1", a_report(cache))
    world.extensions = False
    world.settle()
    assert set(cache.json["status"]) == {"nodeStatus", "copies"}
    local = world.find("LocalModelNode", "n1")
    assert local is not None
    assert set(local["status"]) == {"modelStatus"}


REPORTS = st.sampled_from(
    [
        None,
        (Phase.PENDING, None),
        (Phase.PENDING, Failure("InsufficientStorage", "full")),
        (Phase.DOWNLOADING, None),
        (Phase.VERIFYING, None),
        (Phase.READY, None),
        (Phase.FAILED, Failure("SourceError", "reset")),
        (Phase.REMOVING, None),
    ]
)
AGENT = st.tuples(REPORTS, REPORTS, st.sampled_from(["healthy", "silent", "never heard of"]), st.booleans())


def a_random_world(agents: list[Any], resolved: list[bool], deleted: int | None) -> World:
    young = a_cache("b", "hf://x").created("2026-02-01T00:00:00Z")
    caches = [a_cache("a", "hf://x"), young, a_namespace_cache("ns", "c")]
    if deleted is not None:
        caches[deleted].deleted(DELETED)
    world = a_world(*caches, a_group())
    for number, (first, second, health, ready) in enumerate(agents):
        world.add(a_node(f"n{number}").ready(ready))
        chosen = zip((caches[0], caches[2]), (first, second), strict=True)
        models = [a_report(cache, found[0], failure=found[1]) for cache, found in chosen if found]
        if health != "never heard of":
            world.agents[f"n{number}"] = an_agent(f"n{number}", *models)
        if health == "silent":
            world.agents[f"n{number}"] = a_silent_agent(last=world.agents[f"n{number}"])
    for cache, known in zip(caches, resolved, strict=True):
        if known:
            world.resolved(cache)
    return world


RANDOM_WORLD = {
    "agents": st.lists(AGENT, max_size=4),
    "resolved": st.lists(st.booleans(), min_size=3, max_size=3),
    "deleted": st.none() | st.integers(0, 2),
}


@pytest.mark.slow
@given(**RANDOM_WORLD)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_world_comes_to_rest(agents: list[Any], resolved: list[bool], deleted: int | None) -> None:
    world = a_random_world(agents, resolved, deleted)
    assert world.settle(steps=8).writes == ()


@pytest.mark.slow
@given(**RANDOM_WORLD)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_order_of_observation_does_not_matter(agents: list[Any], resolved: list[bool], deleted: int | None) -> None:
    def keyed(made: Plan) -> dict[tuple[str, str], Write]:
        return {(write.ref.resource.kind, write.ref.name): write for write in made.writes}

    snapshot = a_random_world(agents, resolved, deleted).snapshot()
    mirrored = replace(
        snapshot,
        caches=dict(reversed(list(snapshot.caches.items()))),
        nodes=dict(reversed(list(snapshot.nodes.items()))),
        agents=dict(reversed(list(snapshot.agents.items()))),
    )
    one, other = plan(snapshot, NOW), plan(mirrored, NOW)
    assert keyed(one) == keyed(other)
    assert (one.desired, one.wants) == (other.desired, other.wants)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 70) | st.text(max_size=4) | st.sampled_from(["gpu", "n1", "/a"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
PATHS = [
    *(
        ("LocalModelCache", "spec", name)
        for name in ("sourceModelUri", "modelSize", "nodeGroups", "storage", "include")
    ),
    *(("LocalModelCache", "status", name) for name in ("nodeStatus", "copies", "conditions", "bytes", "selection")),
    *(("LocalModelCache", "status", name) for name in ("startedAt", "completedAt", "revision", "manifestDigest")),
    *(("LocalModelCache", "metadata", name) for name in ("finalizers", "creationTimestamp", "generation", "labels")),
    *(("LocalModelNodeGroup", "spec", name) for name in ("storageLimit", "persistentVolumeSpec")),
    *(("LocalModelNodeGroup", "status", name) for name in ("used", "available")),
    *(("LocalModelNode", "spec", name) for name in ("localModels",)),
    *(("LocalModelNode", "status", name) for name in ("modelStatus", "models", "roots", "agent")),
    *(("LocalModelNode", "metadata", name) for name in ("ownerReferences",)),
    *(("Node", "metadata", name) for name in ("labels",)),
    *(("Node", "status", name) for name in ("conditions",)),
    *(
        (kind, part)
        for kind in ("LocalModelCache", "LocalModelNodeGroup", "LocalModelNode")
        for part in ("spec", "status")
    ),
]


@pytest.mark.slow
@given(st.lists(st.tuples(st.sampled_from(PATHS), JUNK), min_size=1, max_size=4), st.booleans(), st.booleans())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_junk_in_an_object_stops_the_plan(junk: list[Any], silent: bool, deleted: bool) -> None:
    cache, other = a_cache(), a_cache("other")
    if deleted:
        cache.deleted(DELETED)
    world = a_world(cache, a_group(), a_node("n1"), a_local_node("n1").listing(cache), other)
    world.reporting("n1", a_report(cache), a_report(other, Phase.DOWNLOADING))
    for (kind, *path), value in junk:
        target: Any = next(b.json for b in world.objects if b.json["kind"] == kind and b.name != "other")
        for step in path[:-1]:
            target = target.get(step) if isinstance(target.get(step), dict) else target.setdefault(f"no {step}", {})
        target[path[-1]] = value
    if silent:
        world.agents["n1"] = a_silent_agent()
    assert "other" in {write.ref.name for write in world.plan().writes}


# --- what agents are sent ---


def test_an_agent_is_sent_everything_its_node_should_hold() -> None:
    high, low = a_cache("high", "hf://h").with_spec(priority=7, digest="sha256:1"), a_cache("low", "hf://l")
    desired = a_cluster(high, low).plan().desired[N1]
    assert desired.owner == OWNER
    assert desired.roots == (DesiredRoot("/models", 100 * GIB, "gpu"),)
    models = {model.source.uri: (model.root, model.priority, model.expected_digest) for model in desired.models}
    assert models == {"hf://h": ("/models", 7, "sha256:1"), "hf://l": ("/models", 0, None)}


def test_a_folder_that_two_caches_share_is_sent_once_with_the_higher_priority() -> None:
    old = a_cache("old", "hf://m")
    young = a_cache("young", "hf://m").created("2026-02-01T00:00:00Z").with_spec(priority=3)
    (model,) = a_cluster(old, young).plan().desired[N1].models
    assert (model.key, model.priority) == (key_of(old), 3)


def test_a_resolution_is_sent_until_the_agent_knows_it() -> None:
    cache = a_cache()
    world = a_cluster(cache, nodes=3).resolved(cache)
    resolved = world.resolutions["llama"].resolved
    assert resolved is not None
    world.reporting("n1").reporting("n2", known=frozenset({resolved.name})).reporting("n3", a_report(cache))
    desired = world.plan().desired
    assert {name: list(state.resolved) for name, state in desired.items()} == {
        "n1": [resolved.name],
        "n2": [],
        "n3": [],
    }
    assert {model.resolved for state in desired.values() for model in state.models} == {resolved.name}


def test_a_resolution_of_an_earlier_spec_is_not_sent() -> None:
    cache = a_cache().with_spec(revision="v2")
    world = a_cluster(cache).reporting("n1")
    world.resolutions["llama"] = a_resolution(cache.uri)
    (model,) = world.plan().desired[N1].models
    assert model.resolved is None


def test_a_source_with_another_digest_is_not_sent() -> None:
    cache = a_cache().with_spec(digest="sha256:beef")
    world = a_cluster(cache).reporting("n1").resolved(cache)
    world.resolutions["llama"] = _with_digests(world, cache)
    desired = world.plan().desired[N1]
    assert (desired.models[0].resolved, desired.resolved) == (None, {})


def _with_digests(world: World, cache: CacheBuilder) -> Any:
    resolution = world.resolutions[cache.key]
    assert resolution.resolved is not None
    manifest = resolution.resolved.manifest
    files = tuple(replace(file, digest=Digest("sha256:00")) for file in manifest.files)
    return replace(resolution, resolved=replace(resolution.resolved, manifest=replace(manifest, files=files)))


def test_a_root_the_node_has_left_is_sent_until_nothing_lies_there() -> None:
    world = a_cluster(a_cache())
    world.reporting(
        "n1", roots=(RootReport("/models", GIB), RootReport("/old", GIB, used_bytes=1), RootReport("/x", 1))
    )
    assert world.plan().desired[N1].roots == (DesiredRoot("/models", 100 * GIB, "gpu"), DesiredRoot("/old"))


def test_a_node_that_left_its_group_is_let_go_once_nothing_lies_there() -> None:
    cache = a_cache()
    node = a_node("n1")
    world = a_world(cache, a_group(), node).reporting("n1", a_report(cache))
    world.settle()
    node.in_pool("other")
    desired = world.step().desired[N1]
    assert ([model.kept for model in desired.models], desired.roots) == ([True], (DesiredRoot("/models", group="gpu"),))
    assert [entry["modelName"] for entry in listed(world, "n1")] == ["llama"]
    world.agents["n1"] = a_silent_agent(last=world.agents["n1"])
    assert N1 in world.settle().desired
    world.reporting("n1").settle()
    assert N1 not in world.plan().desired
    assert world.find("LocalModelNode", "n1") is not None
    assert cache.json["status"].get("nodeStatus") in (None, {})


# --- what is resolved ---


def test_a_world_that_holds_everything_resolves_nothing() -> None:
    cache = a_cache()
    assert a_cluster(cache).reporting("n1", a_report(cache)).plan().wants == {}


def test_a_source_is_wanted_as_soon_as_a_ready_node_lacks_the_model() -> None:
    cache = a_cache().with_spec(serviceAccountName="reader", storage={"key": "k", "parameters": {"b": "2", "a": "1"}})
    want = a_cluster(cache).plan().wants[cache.key]
    assert want.source == cache.source
    assert want.credentials == Credentials("reader", "k", (("a", "1"), ("b", "2")))
    assert (want.pinned_revision, want.reject) == (None, frozenset())


@pytest.mark.parametrize(
    "world",
    [
        pytest.param(a_world(a_cache(), a_group()), id="a group without nodes"),
        pytest.param(a_world(a_cache(), a_group(), a_node("n1").not_ready()), id="a node that is not ready"),
        pytest.param(a_world(a_cache().with_spec(modelSize="huge"), a_group(), a_node("n1")), id="a junk spec"),
    ],
)
def test_a_source_is_not_wanted_for(world: World) -> None:
    assert world.plan().wants == {}


def test_only_the_owner_of_a_shared_folder_is_resolved() -> None:
    old, young = a_cache("z", "hf://m"), a_cache("a", "hf://m").created("2026-02-01T00:00:00Z")
    assert list(a_cluster(young, old).plan().wants) == ["z"]


def test_a_revision_stays_pinned_while_the_request_is_the_same() -> None:
    cache = a_cache().with_spec(revision="main")
    world = a_cluster(cache, nodes=2).resolved(cache, revision="abc")
    world.settle()
    assert world.plan().wants[cache.key].pinned_revision == "abc"
    cache.with_spec(revision="next")
    assert world.plan().wants[cache.key].pinned_revision is None


@pytest.mark.parametrize(
    ("reason", "expires_at", "rejected"),
    [
        pytest.param("SourceChanged", None, True, id="other content than the manifest says"),
        pytest.param("SourceDenied", NOW + 60, True, id="a signed location that is refused"),
        pytest.param("SourceDenied", None, False, id="a plain refusal, which asking again does not change"),
        pytest.param("SourceError", NOW + 60, False, id="a broken connection"),
    ],
)
def test_a_resolution_that_no_longer_serves_is_rejected(reason: str, expires_at: float | None, rejected: bool) -> None:
    cache = a_cache()
    world = a_cluster(cache).resolved(cache, expires_at=expires_at)
    world.reporting("n1", a_report(cache, Phase.FAILED, failure=Failure(reason, "no"), resolved="the-name"))
    assert world.plan().wants[cache.key].reject == (frozenset({"the-name"}) if rejected else frozenset())


# --- deletion ---


def deleted_world(cache: CacheBuilder, nodes: int = 1) -> World:
    """A cache that was Ready everywhere, just deleted."""
    world = a_cluster(cache, nodes=nodes)
    for number in range(1, nodes + 1):
        world.reporting(f"n{number}", a_report(cache))
    world.settle()
    cache.deleted(DELETED)
    return world


def test_a_deleted_cache_goes_once_no_disk_has_it() -> None:
    cache = a_cache()
    world = deleted_world(cache, nodes=2)
    made = world.step()
    assert [state.models for state in made.desired.values()] == [(), ()]
    assert listed(world, "n1") == listed(world, "n2") == []
    world.reporting("n1").settle()
    assert cache.json["status"]["nodeStatus"] == {"n2": "NodeDownloaded"}
    assert world.find("LocalModelCache", "llama") is not None
    assert events(world.reporting("n2").step())[0][0] == "Deleted"
    assert world.find("LocalModelCache", "llama") is None
    world.settle()


def test_the_older_of_two_caches_goes_and_its_folder_stays() -> None:
    old, young = a_cache("old", "hf://m"), a_cache("young", "hf://m").created("2026-02-01T00:00:00Z")
    world = a_cluster(old, young).reporting("n1", a_report(old))
    world.settle()
    old.deleted(DELETED)
    world.settle()
    assert world.find("LocalModelCache", "old") is None
    assert [model.key for model in world.plan().desired[N1].models] == [key_of(young)]
    degraded = [c for c in young.json["status"]["conditions"] if c["type"] == "Degraded"]
    assert degraded[0]["status"] == "False"


def test_a_node_that_is_gone_does_not_block_deletion() -> None:
    cache = a_cache()
    world = deleted_world(cache)
    world.objects = [builder for builder in world.objects if builder.json["kind"] != "Node"]
    world.agents.clear()
    world.settle()
    assert world.find("LocalModelCache", "llama") is None


def test_a_missing_group_does_not_block_deletion_and_the_disk_is_emptied_first() -> None:
    cache = a_cache()
    world = deleted_world(cache)
    world.objects = [builder for builder in world.objects if builder.json["kind"] != "LocalModelNodeGroup"]
    made = world.settle()
    assert (made.desired[N1].models, made.desired[N1].roots) == ((), (DesiredRoot("/models"),))
    assert world.find("LocalModelCache", "llama") is not None
    world.reporting("n1").settle()
    assert world.find("LocalModelCache", "llama") is None


def test_a_silent_agent_on_a_node_that_is_not_ready_does_not_block_deletion() -> None:
    cache, node = a_cache(), a_node("n1")
    world = a_world(cache, a_group(), node).reporting("n1", a_report(cache))
    world.settle()
    cache.deleted(DELETED)
    node.not_ready()
    world.agents["n1"] = a_silent_agent(last=world.agents["n1"])
    world.settle()
    assert world.find("LocalModelCache", "llama") is None


def test_a_silent_agent_on_a_ready_node_blocks_deletion_for_a_while_and_is_named() -> None:
    cache = a_cache()
    world = deleted_world(cache)
    world.agents["n1"] = a_silent_agent()
    seen = [event for _ in range(4) for event in events(world.step())]
    message = "waiting for the node agent on n1 to remove its copy; not waiting longer than 2023-11-14T22:23:00Z"
    assert [text for reason, text in seen if reason == "Deleting"] == [message]
    conditions = {c["type"]: (c["status"], c["reason"]) for c in cache.json["status"]["conditions"]}
    assert conditions["Ready"] == ("False", "Deleting")
    assert conditions["Degraded"] == ("True", "AgentUnavailable")
    world.settle(parse_time(DELETED) + UNREACHABLE_GRACE_S)
    assert world.find("LocalModelCache", "llama") is None


def test_a_cache_without_our_finalizer_is_left_to_others() -> None:
    cache = a_cache().with_metadata(finalizers=["other/one"]).deleted(DELETED)
    assert [w for w in a_cluster(cache).plan().writes if w.ref.name == "llama"] == []


# --- Events ---


def said(world: World) -> list[tuple[str, str]]:
    """Everything that is said of caches until the world is at rest."""
    heard = []
    while (made := world.step()).writes:
        heard += [e for w in made.writes for e in w.events if e.ref.resource.kind == "LocalModelCache"]
    return [(event.reason, event.message) for event in heard]


def story(world: World) -> list[str]:
    return [reason for reason, _ in said(world)]


def test_a_life_in_events() -> None:
    cache = a_cache().with_spec(modelSize="512Mi")
    world = a_cluster(cache, nodes=2).reporting("n1").reporting("n2")
    assert story(world) == []
    assert story(world.resolved(cache)) == ["Resolved", "ModelSizeMismatch"]
    moving = a_report(cache, Phase.DOWNLOADING, done=1)
    assert story(world.reporting("n1", moving).reporting("n2", moving)) == ["Downloading"]
    broken = a_report(cache, Phase.FAILED, failure=Failure("SourceError", "connection reset"))
    assert story(world.reporting("n1", broken)) == ["DownloadFailed"]
    assert story(world.reporting("n1", moving)) == ["Recovered"]
    assert story(world.reporting("n1", a_report(cache))) == ["NodeDownloaded"]
    assert story(world.reporting("n2", a_report(cache))) == ["NodeDownloaded", "Ready"]
    full = a_report(cache, Phase.PENDING, failure=Failure("InsufficientStorage", "needs 4Gi, 1Gi free"))
    assert story(world.reporting("n2", full)) == ["InsufficientStorage"]
    cache.deleted(DELETED)
    assert story(world.reporting("n1").reporting("n2")) == ["Deleted"]


def test_a_failure_is_announced_with_its_reason_and_its_node() -> None:
    cache, missing = a_cache(), Failure("SourceNotFound", "404 for x", retryable=False)
    world = a_cluster(cache, nodes=2).reporting("n1", a_report(cache, Phase.FAILED, failure=missing)).reporting("n2")
    assert said(world) == [("DownloadFailed", "SourceNotFound: 1/2 nodes (n1): 404 for x")]


def test_a_damaged_copy_is_resolved_again_and_announced_until_it_is_repaired() -> None:
    cache, damage = a_cache(), "a.bin is missing"
    world = a_cluster(cache).reporting("n1", a_report(cache))
    world.settle()
    assert world.plan().wants == {}
    world.reporting("n1", a_report(cache, Phase.PENDING, damage=damage))
    assert said(world) == [("Damaged", f"n1: {damage}; not repaired yet")]
    assert world.plan().wants[cache.key].pinned_revision == "c0ffee"
    world.reporting("n1", a_report(cache, repaired=damage, repaired_at=NOW))
    assert story(world) == ["Recovered", "NodeDownloaded", "Ready"]


def test_a_repair_that_was_over_before_anybody_looked_is_announced_on_its_node() -> None:
    cache = a_cache()
    world = a_cluster(cache).reporting("n1", a_report(cache))
    world.settle()
    world.reporting("n1", a_report(cache, repaired="a.bin is missing", repaired_at=NOW))
    assert events(world.step()) == [("Repaired", "llama: a.bin is missing; it was fetched again")]
    assert events(world.step()) == []


def test_who_sent_or_read_wrong_bytes_is_named_and_again_only_when_the_number_has_doubled() -> None:
    cache, bad = a_cache(), NodeName("n3")
    world = a_cluster(cache, nodes=3).reporting("n1", a_report(cache)).reporting("n2", a_report(cache)).reporting("n3")
    world.settle()

    def said_when(**wrong: Any) -> list[str]:
        world.reporting("n1", a_report(cache, **wrong))
        return [message for reason, message in said(world) if reason == "WrongBytes"]

    (first,) = said_when(wrong_peers={bad: 1})
    assert first.startswith("n3 sent 1 chunk with wrong bytes to other nodes")
    assert said_when(wrong_peers={bad: 1}) == []
    (second,) = said_when(wrong_peers={bad: 2})
    assert second.startswith("n3 sent 2 chunks with wrong bytes")
    assert said_when(wrong_peers={bad: 3}) == []
    (third,) = said_when(wrong_peers={bad: 3}, wrong_readers={bad: 1, NodeName("n1"): 4})[:1]
    assert third.startswith("n1 read 4 chunks wrong from the origin")
    assert world.settle().writes == ()


def test_wrong_bytes_stand_in_status_by_node_and_are_not_forgotten_by_a_coordinator_that_starts() -> None:
    cache, bad = a_cache(), NodeName("n3")
    world = a_cluster(cache, nodes=3).reporting("n3", a_report(cache))
    for node in ("n1", "n2"):
        world.reporting(node, a_report(cache, wrong_peers={bad: 2}, wrong_readers={bad: 1}))
    world.settle()
    counts = {"wrongPeers": {"n3": 4}, "wrongReaders": {"n3": 2}}
    assert {name: cache.json["status"][name] for name in counts} == counts
    local = world.find("LocalModelNode", "n1")
    assert local is not None
    (detail,) = local["status"]["models"]
    assert (detail["wrongPeers"], detail["wrongReaders"]) == ({"n3": 2}, {"n3": 1})
    for node in ("n1", "n2"):
        world.agents[node] = a_silent_agent("AgentStarting")
    assert "WrongBytes" not in story(world)
    world.reporting("n1", a_report(cache, wrong_peers={bad: 2})).reporting("n2", a_report(cache, wrong_peers={bad: 2}))
    assert "WrongBytes" not in story(world)
    assert {name: cache.json["status"][name] for name in counts} == counts


def test_many_nodes_that_finish_together_share_one_event() -> None:
    cache = a_cache()
    world = a_cluster(cache, nodes=12)
    for number in range(1, 13):
        world.reporting(f"n{number}", a_report(cache))
    assert ("NodeDownloaded", "12 more nodes hold the model: n1, n10, n11 and 9 more") in said(world)


def test_an_agent_that_goes_and_comes_back_is_announced_on_its_node() -> None:
    world = a_cluster(a_cache()).reporting("n1")
    world.settle()
    world.agents["n1"] = a_silent_agent("NoRayNode")
    assert [event for event in events(world.plan()) if event[0] == "NoRayNode"]
    world.settle()
    assert ("AgentReady", "the node agent reports") in events(world.reporting("n1").plan())


def test_kserves_own_crds_do_not_make_events_repeat() -> None:
    cache = a_cache()
    world = a_cluster(cache, nodes=2).reporting("n1").reporting("n2")
    world.extensions = False
    assert story(world.reporting("n1", a_report(cache))) == ["NodeDownloaded"]
    assert story(world.reporting("n2", a_report(cache))) == ["NodeDownloaded"]
