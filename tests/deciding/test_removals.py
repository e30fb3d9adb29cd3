"""What removes a copy, and what keeps it: one sentence each for every wish and every accident."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Self

import pytest

from actors.errors import Failure
from actors.manifest import storage_key
from actors.messages import ModelReport, NodeName, Phase, Removal, RootReport
from actors.times import rfc3339
from coordinator.dev.trial.builders import (
    GIB,
    NOW,
    CacheBuilder,
    GroupBuilder,
    NodeBuilder,
    PodBuilder,
    World,
    a_cache,
    a_group,
    a_namespace_cache,
    a_node,
    a_pod,
    a_report,
    a_silent_agent,
    a_world,
    key_of,
)
from coordinator.plan.pods import Look
from coordinator.plan.snapshot import DELETE_IN_USE, ORPHAN_GRACE_S

N1 = NodeName("n1")
DELETED = "2023-11-14T22:13:00Z"


@dataclass
class Scene:
    """A node in the groups `gpu` and `extra`, of which the cache names `gpu`; its copy is there and all is well."""

    cache: CacheBuilder = field(default_factory=a_cache)
    node: NodeBuilder = field(default_factory=lambda: a_node("n1").labelled(extra="yes"))
    gpu: GroupBuilder = field(default_factory=a_group)
    extra: GroupBuilder = field(default_factory=lambda: a_group("extra").labelled("extra", "yes"))
    other: GroupBuilder = field(default_factory=lambda: a_group("other"))
    world: World = field(default_factory=World)

    def __post_init__(self) -> None:
        self.world.add(self.cache, self.node, self.gpu, self.extra, self.other)
        self.world.reporting("n1", a_report(self.cache)).resolved(self.cache).settle()
        assert self.condition("Ready")["status"] == "True"

    def drop(self, *builders: Any) -> Self:
        self.world.objects = [each for each in self.world.objects if each not in builders]
        return self

    def condition(self, type_: str) -> dict[str, Any]:
        found = self.cache.json["status"]["conditions"]
        return next(condition for condition in found if condition["type"] == type_)

    def detail(self) -> dict[str, Any]:
        local = self.world.find("LocalModelNode", "n1")
        assert local is not None
        details: list[dict[str, Any]] = local["status"].get("models", [])
        return next((detail for detail in details if detail["name"] == self.cache.key), {})

    def removals(self, now: float = NOW) -> list[Removal]:
        """What is removed, and why, once everything that will be written is and the node's pods were looked at."""
        self.world.looked_at = frozenset()
        self.world.settle(now)
        self.world.looked_at = frozenset({N1})
        state = self.world.settle(now).desired.get(N1)
        return list(state.remove) if state else []

    def ordered(self, now: float = NOW) -> list[tuple[str, str]]:
        return [(order.key, order.reason) for order in self.removals(now)]


WISHES: dict[str, tuple[str, Callable[[Scene], object]]] = {
    "the cache is deleted": ("CacheDeleted", lambda s: s.cache.deleted(DELETED)),
    "the cache is gone without a trace": ("CacheDeleted", lambda s: s.drop(s.cache)),
    "nodeGroups name another group that exists": ("NodeGroupsChanged", lambda s: s.cache.in_group("other")),
    "a pinned cache is deleted": ("CacheDeleted", lambda s: s.cache.with_spec(pinned=True).deleted(DELETED)),
    "it is deleted after its node lost the label": (
        "CacheDeleted",
        lambda s: (s.node.in_pool("none"), s.world.settle(), s.cache.deleted(DELETED)),
    ),
    "it is deleted after its group": (
        "CacheDeleted",
        lambda s: (s.drop(s.gpu), s.world.settle(), s.cache.deleted(DELETED)),
    ),
    "another cache of the same URI is elsewhere": (
        "CacheDeleted",
        lambda s: (
            s.world.add(a_namespace_cache("team", "same", s.cache.uri).in_group("other")),
            s.world.settle(),
            s.cache.deleted(DELETED),
        ),
    ),
}


@pytest.mark.parametrize("case", WISHES)
def test_a_copy_goes_when(case: str) -> None:
    scene, (reason, change) = Scene(), WISHES[case]
    change(scene)
    assert scene.ordered() == [(key_of(scene.cache), reason)]


@pytest.mark.parametrize("case", WISHES)
def test_it_goes_only_once_the_pods_of_the_node_were_looked_at(case: str) -> None:
    scene = Scene()
    WISHES[case][1](scene)
    made = scene.world.settle()
    assert made.desired[N1].remove == ()
    assert made.looks == {N1}


@pytest.mark.parametrize("case", WISHES)
def test_it_stays_while_a_pod_uses_it(case: str) -> None:
    scene = Scene()
    scene.world.add(a_pod().on("n1").mounting(f"/models/models/{key_of(scene.cache)}"))
    WISHES[case][1](scene)
    assert scene.ordered(NOW + 10 * 365 * 86400) == []


def test_what_is_to_go_stays_listed_until_it_has_gone() -> None:
    scene = Scene()
    scene.cache.in_group("other")
    assert scene.ordered() == [(key_of(scene.cache), "NodeGroupsChanged")]
    local = scene.world.find("LocalModelNode", "n1")
    assert local is not None
    assert [entry["nodeGroup"] for entry in local["spec"]["localModels"]] == ["gpu"]
    assert scene.ordered() == [(key_of(scene.cache), "NodeGroupsChanged")], "also for a coordinator that has just begun"
    scene.world.reporting("n1").settle()
    assert local["spec"]["localModels"] == []


ACCIDENTS: dict[str, tuple[str, str, Callable[[Scene], object], Callable[[Scene], object]]] = {
    "a typo in nodeGroups": (
        "NodeGroupNotFound",
        "gpuu not found",
        lambda s: s.cache.in_group("gpuu"),
        lambda s: s.cache.in_group("gpu"),
    ),
    "a typo in one of several": (
        "NodeGroupNotFound",
        "othr not found",
        lambda s: s.cache.in_group("othr", "other"),
        lambda s: s.cache.in_group("gpu", "other"),
    ),
    "the group is deleted": (
        "NodeGroupNotFound",
        "gpu not found",
        lambda s: s.drop(s.gpu),
        lambda s: s.world.add(s.gpu),
    ),
    "a typo in the selector's value": (
        "NoMatchingNodes",
        "gpu no longer selects the node",
        lambda s: s.gpu.labelled("pool", "gpuu"),
        lambda s: s.gpu.labelled("pool", "gpu"),
    ),
    "a typo in the selector's label": (
        "NoMatchingNodes",
        "gpu no longer selects the node",
        lambda s: s.gpu.labelled("pol", "gpu"),
        lambda s: s.gpu.labelled("pool", "gpu"),
    ),
    "a selector that cannot be read": (
        "NodeGroupInvalid",
        "LocalModelNodeGroup gpu",
        lambda s: s.gpu.selecting({"matchExpressions": [{"key": "pool", "operator": "in", "values": ["gpu"]}]}),
        lambda s: s.gpu.labelled("pool", "gpu"),
    ),
    "the group has no affinity any more": (
        "NoNodeAffinity",
        "LocalModelNodeGroup gpu",
        lambda s: s.gpu.without_affinity(),
        lambda s: s.gpu.labelled("pool", "gpu"),
    ),
    "the path is no path": (
        "NodeGroupInvalid",
        "LocalModelNodeGroup gpu",
        lambda s: s.gpu.at("models"),
        lambda s: s.gpu.at("/models"),
    ),
    "the node's label is removed": (
        "NoMatchingNodes",
        "gpu no longer selects the node",
        lambda s: s.node.json["metadata"]["labels"].pop("pool"),
        lambda s: s.node.in_pool("gpu"),
    ),
    "all labels are gone": (
        "NoMatchingNodes",
        "gpu no longer selects the node",
        lambda s: s.node.json["metadata"].pop("labels"),
        lambda s: s.node.with_metadata(labels={"pool": "gpu"}),
    ),
    "the node is in another pool": (
        "NoMatchingNodes",
        "gpu no longer selects the node",
        lambda s: s.node.in_pool("gpuu"),
        lambda s: s.node.in_pool("gpu"),
    ),
    "nodeGroups name another group, and the node has left the first": (
        "NoMatchingNodes",
        "gpu, which it came for",
        lambda s: (s.cache.in_group("other"), s.node.in_pool("none")),
        lambda s: (s.cache.in_group("gpu"), s.node.in_pool("gpu")),
    ),
    "pinned, and nodeGroups name another group": (
        "NoMatchingNodes",
        "spec.pinned keeps",
        lambda s: s.cache.with_spec(pinned=True).in_group("other"),
        lambda s: s.cache.in_group("gpu"),
    ),
}


@pytest.mark.parametrize("case", ACCIDENTS)
def test_a_copy_is_kept_counted_and_explained_after(case: str) -> None:
    scene, (reason, words, change, _) = Scene(), ACCIDENTS[case]
    before = scene.cache.json["status"]["copies"]
    change(scene)
    assert scene.ordered() == []
    state = scene.world.plan().desired[N1]
    assert [(model.key, model.root, model.kept) for model in state.models] == [(key_of(scene.cache), "/models", True)]
    status = scene.cache.json["status"]
    assert status["nodeStatus"] == {"n1": "NodeDownloaded"}
    assert status["copies"] == before
    for type_, value in (("Ready", "False"), ("Degraded", "True")):
        assert (scene.condition(type_)["status"], scene.condition(type_)["reason"]) == (value, reason)
        assert "1 copy on n1 stays for now" in scene.condition(type_)["message"]
    detail = scene.detail()
    assert (detail["phase"], detail["reason"], detail["orphanedSince"]) == ("Ready", "Orphaned", rfc3339(NOW))
    assert words in detail["message"]
    pinned = scene.cache.json["spec"].get("pinned")
    assert detail.get("removalTime") == (None if pinned else rfc3339(NOW + ORPHAN_GRACE_S))
    local = scene.world.find("LocalModelNode", "n1")
    assert local is not None
    assert local["status"]["modelStatus"] == {"llama": "ModelDownloaded"}
    assert [entry["modelName"] for entry in local["spec"]["localModels"]] == ["llama"]


@pytest.mark.parametrize("case", ACCIDENTS)
def test_once_it_is_put_right_all_is_as_before_and_nothing_is_fetched(case: str) -> None:
    scene, (_, _, change, mend) = Scene(), ACCIDENTS[case]
    change(scene)
    scene.world.settle()
    mend(scene)
    made = scene.world.settle(NOW + 60)
    assert made.wants == {}
    assert [model.kept for model in made.desired[N1].models] == [False]
    assert scene.condition("Ready")["status"] == "True"
    assert scene.condition("Degraded")["status"] == "False"
    assert "reason" not in scene.detail()
    assert "orphanedSince" not in scene.detail()


@pytest.mark.parametrize("case", ACCIDENTS)
def test_it_goes_after_the_grace_unless_it_is_pinned(case: str) -> None:
    scene = Scene()
    ACCIDENTS[case][2](scene)
    assert scene.ordered(NOW) == []
    assert scene.ordered(NOW + ORPHAN_GRACE_S - 1) == []
    expired = [(key_of(scene.cache), "OrphanExpired")]
    assert scene.ordered(NOW + ORPHAN_GRACE_S) == ([] if scene.cache.json["spec"].get("pinned") else expired)


@pytest.mark.parametrize("case", ACCIDENTS)
def test_it_outlives_the_grace_under_a_pod_and_where_no_grace_ends(case: str) -> None:
    scene = Scene()
    scene.world.orphan_grace_s = None
    ACCIDENTS[case][2](scene)
    scene.world.settle()
    assert scene.ordered(NOW + 100 * ORPHAN_GRACE_S) == []
    assert "removalTime" not in scene.detail()
    scene.world.orphan_grace_s = ORPHAN_GRACE_S
    scene.world.add(a_pod().on("n1").claiming("llama-gpu", f"models/{key_of(scene.cache)}"))
    assert scene.ordered(NOW + 200 * ORPHAN_GRACE_S) == []


@pytest.mark.parametrize("case", ACCIDENTS)
def test_an_agent_that_says_nothing_changes_nothing(case: str) -> None:
    scene = Scene()
    scene.world.agents["n1"] = a_silent_agent()
    ACCIDENTS[case][2](scene)
    scene.world.settle()
    assert scene.cache.json["status"]["nodeStatus"] == {"n1": "NodeDownloaded"}
    scene.world.reporting("n1", a_report(scene.cache))
    assert scene.ordered() == []
    assert scene.detail()["reason"] == "Orphaned"


def test_a_copy_is_kept_when_everything_that_tells_why_it_is_there_is_lost() -> None:
    scene = Scene()
    scene.node.in_pool("none")
    scene.drop(*(each for each in scene.world.objects if each.json["kind"] == "LocalModelNode"))
    scene.cache.json["status"] = {}
    assert scene.ordered() == []
    assert scene.detail()["reason"] == "Orphaned"


def test_a_copy_is_kept_while_a_cache_cannot_be_read_that_may_be_its() -> None:
    scene = Scene()
    scene.drop(scene.cache)
    scene.world.add(a_cache("junk").with_spec(sourceModelUri=7))
    assert scene.ordered() == []


def test_a_cache_whose_uri_is_empty_keeps_nothing_of_others() -> None:
    """Anybody may create one: the schema has nothing against it."""
    scene = Scene()
    scene.world.add(a_namespace_cache("team", "empty").with_spec(sourceModelUri="", modelSize="junk"))
    scene.drop(scene.cache)
    assert scene.ordered() == [(key_of(scene.cache), "CacheDeleted")]


def test_of_two_caches_with_one_uri_an_accident_of_one_keeps_the_copy() -> None:
    scene = Scene()
    second = a_namespace_cache("team", "second", scene.cache.uri)
    scene.world.add(second).resolved(second).settle()
    scene.node.in_pool("none")
    scene.world.settle()
    scene.cache.deleted(DELETED)
    assert scene.ordered() == []
    assert scene.world.find("LocalModelCache", "llama") is None, "its deletion does not wait for the other's copy"
    assert second.json["status"]["nodeStatus"] == {"n1": "NodeDownloaded"}


def test_a_half_done_fill_is_not_kept() -> None:
    scene = Scene()
    scene.world.reporting("n1", a_report(scene.cache, Phase.DOWNLOADING)).settle()
    scene.node.in_pool("none")
    assert scene.world.settle().desired[N1].models == ()


def test_an_orphan_of_an_earlier_revision_stays_as_it_is() -> None:
    scene = Scene()
    scene.node.in_pool("none")
    scene.world.settle()
    scene.cache.with_spec(revision="v2")
    made = scene.world.settle()
    assert [model.kept for model in made.desired[N1].models] == [True]
    assert made.wants == {}


def test_a_node_that_is_not_ready_keeps_its_copies() -> None:
    scene = Scene()
    scene.node.not_ready()
    scene.world.agents["n1"] = a_silent_agent(last=scene.world.agents["n1"])
    assert scene.ordered() == []
    assert scene.cache.json["status"]["nodeStatus"] == {"n1": "NodeDownloaded"}


def test_one_node_of_several_that_lost_its_label_leaves_the_cache_ready_and_degraded() -> None:
    scene = Scene()
    scene.world.add(a_node("n2")).reporting("n2", a_report(scene.cache)).settle()
    scene.node.in_pool("none")
    scene.world.settle()
    assert scene.condition("Ready")["status"] == "True"
    degraded = scene.condition("Degraded")
    assert (degraded["status"], degraded["reason"]) == ("True", "Orphaned")
    assert "1 copy on n1 stays for now" in degraded["message"]
    assert scene.cache.json["status"]["available"] == "2/2"


def test_an_orphan_is_a_source_for_the_nodes_that_fill() -> None:
    scene = Scene()
    scene.node.in_pool("none")
    scene.world.add(a_node("n2")).reporting("n2").settle()
    for name in ("n1", "n2"):
        view = scene.world.agents[name]
        assert view.report is not None
        scene.world.agents[name] = replace(view, report=replace(view.report, peer_address=f"{name}:1"))
    manifest = scene.world.resolutions[scene.cache.key].resolved.manifest  # type: ignore[union-attr]  # as it was made
    scene.world.reporting("n1", a_report(scene.cache, manifest_digest=manifest.digest))
    view = scene.world.agents["n1"]
    assert view.report is not None
    scene.world.agents["n1"] = replace(view, report=replace(view.report, peer_address="n1:1"))
    (company,) = scene.world.plan().companies.values()
    assert {member.name: member.seed for member in company.members} == {"n1": True, "n2": False}


def a_moved_group() -> tuple[Scene, ModelReport]:
    """The group's path has been edited, and the agents have both folders."""
    scene = Scene()
    scene.gpu.at("/data")
    old = replace(a_report(scene.cache), root="/models")
    scene.world.reporting("n1", old, roots=(RootReport("/models", GIB, GIB), RootReport("/data", GIB)))
    return scene, old


def test_a_copy_in_the_folder_of_an_earlier_path_is_not_taken_for_the_new_one_and_stays() -> None:
    scene, old = a_moved_group()
    assert scene.ordered() == []
    assert scene.cache.json["status"]["nodeStatus"] == {"n1": "NodeDownloadPending"}
    assert [(model.root, model.kept) for model in scene.world.plan().desired[N1].models] == [("/data", False)]
    new = replace(a_report(scene.cache), root="/data")
    roots = (RootReport("/models", GIB, GIB), RootReport("/data", GIB, GIB))
    scene.world.reporting("n1", old, new, roots=roots)
    assert scene.ordered() == []
    assert scene.condition("Ready")["status"] == "True"
    assert (scene.condition("Degraded")["reason"], "/models" in scene.condition("Degraded")["message"]) == (
        "Orphaned",
        True,
    )
    assert scene.detail()["orphanedSince"] == rfc3339(NOW)
    (order,) = scene.removals(NOW + ORPHAN_GRACE_S)
    assert (order.root, order.key, order.reason) == ("/models", key_of(scene.cache), "OrphanExpired")


def test_it_is_used_again_when_the_path_is_put_right() -> None:
    scene, _ = a_moved_group()
    mismatch = Failure("PathMismatch", "the node group's volume is at /data, but the agent holds models in /models")
    old = replace(a_report(scene.cache), root="/models")
    roots = (RootReport("/models", GIB, GIB), RootReport("/data", failure=mismatch))
    scene.world.reporting("n1", old, roots=roots).settle()
    assert scene.condition("Degraded")["reason"] == "PathMismatch"
    assert "a copy stays in /models for now" in scene.condition("Degraded")["message"]
    scene.gpu.at("/models")
    made = scene.world.reporting("n1", old).settle()
    assert (made.wants, scene.condition("Ready")["status"], "reason" in scene.detail()) == ({}, "True", False)


def test_it_goes_with_the_cache() -> None:
    scene, _ = a_moved_group()
    scene.cache.deleted(DELETED)
    assert scene.ordered() == [(key_of(scene.cache), "CacheDeleted")]


# --- who uses it ---

KEY = key_of(a_cache())
USES: dict[str, PodBuilder] = {
    "its path on the host": a_pod().mounting(f"/models/models/{KEY}"),
    "a folder in it": a_pod().mounting(f"/models/models/{KEY}/onnx"),
    "the whole folder of models": a_pod().mounting("/models/models"),
    "the whole disk of models": a_pod().mounting("/models/"),
    "what the disk is mounted below": a_pod().mounting("/mnt"),
    "KServe's claim": a_pod().claiming("llama-gpu"),
    "a claim with the model as subPath": a_pod().claiming("whatever", f"models/{KEY}"),
    "KServe's label": a_pod().labelled(localmodel="llama"),
    "a pod that ends": a_pod().claiming("llama-gpu").with_metadata(deletionTimestamp=DELETED),
    "a pod that waits to start": a_pod().claiming("llama-gpu").with_status(phase="Pending"),
    "an init container": a_pod().with_spec(
        initContainers=[{"name": "i", "volumeMounts": [{"name": "v", "subPath": f"models/{KEY}"}]}]
    ),
    "an ephemeral container": a_pod().with_spec(
        ephemeralContainers=[{"name": "i", "volumeMounts": [{"name": "v", "subPathExpr": f"models/{KEY}/$(X)"}]}]
    ),
}
USES_NOT: dict[str, PodBuilder] = {
    "a pod on another node": a_pod().claiming("llama-gpu").on("n2"),
    "a pod that has ended": a_pod().claiming("llama-gpu").ended(),
    "a claim of another cache": a_pod().claiming("mistral-gpu"),
    "another model": a_pod().mounting("/models/models/0123456789abcdef"),
    "a folder beside the disk": a_pod().mounting("/models2"),
    "monitoring that mounts everything": a_pod().mounting("/"),
    "a DaemonSet that mounts disks": a_pod().mounting("/mnt").with_metadata(ownerReferences=[{"kind": "DaemonSet"}]),
}


def a_scene_with(pod: PodBuilder, root: str) -> Scene:
    scene = Scene()
    scene.gpu.at(root)
    scene.world.reporting("n1", replace(a_report(scene.cache), root=root), roots=(RootReport(root, GIB, GIB),)).settle()
    scene.world.add(pod if pod.json["spec"].get("nodeName") else pod.on("n1"))
    scene.cache.deleted(DELETED)
    return scene


@pytest.mark.parametrize("case", USES)
def test_a_cache_is_deleted_after_its_last_user(case: str) -> None:
    scene = a_scene_with(USES[case], "/mnt/models" if "below" in case else "/models")
    assert scene.ordered() == []
    for type_ in ("Ready", "Progressing"):
        assert scene.condition(type_)["reason"] == "InUse"
        for word in ("default/server", "n1", DELETE_IN_USE):
            assert word in scene.condition(type_)["message"]
    assert scene.condition("Degraded")["status"] == "False"
    scene.drop(USES[case])
    assert scene.ordered() == [(KEY, "CacheDeleted")]
    assert scene.condition("Ready")["reason"] == "Deleting"
    scene.world.reporting("n1").settle()
    assert scene.world.find("LocalModelCache", "llama") is None


@pytest.mark.parametrize("case", USES_NOT)
def test_a_cache_is_deleted_beside(case: str) -> None:
    scene = a_scene_with(USES_NOT[case], "/mnt/models" if "disks" in case else "/models")
    assert scene.ordered() == [(KEY, "CacheDeleted")]


@pytest.mark.parametrize(
    "user", [a_pod().claiming("llama-gpu"), a_pod().labelled(localmodel="llama")], ids=["claim", "label"]
)
@pytest.mark.parametrize("group_too", [False, True])
def test_it_stays_while_a_pod_uses_it_by_the_name_of_a_cache_that_is_gone(group_too: bool, user: PodBuilder) -> None:
    """Somebody took the finalizer away."""
    scene = Scene()
    scene.world.add(user.on("n1"))
    scene.drop(scene.cache, *([scene.gpu] if group_too else []))
    assert scene.ordered() == []
    local = scene.world.find("LocalModelNode", "n1")
    assert local is not None
    assert [entry["modelName"] for entry in local["spec"]["localModels"]] == ["llama"]
    scene.drop(user)
    assert scene.ordered() == [(KEY, "CacheDeleted")]
    scene.world.reporting("n1").settle()
    assert local["spec"]["localModels"] == []


def test_what_a_cache_without_a_trace_left_stays_listed_while_nobody_can_be_asked() -> None:
    scene = Scene()
    view = scene.world.agents["n1"]
    scene.drop(scene.cache).world.agents["n1"] = a_silent_agent()
    local = scene.world.find("LocalModelNode", "n1")
    assert local is not None
    scene.world.settle()
    assert [entry["modelName"] for entry in local["spec"]["localModels"]] == ["llama"]
    scene.world.agents["n1"] = view
    assert scene.ordered() == [(KEY, "CacheDeleted")]


def test_with_the_annotation_it_is_deleted_under_its_users() -> None:
    scene = a_scene_with(a_pod().claiming("llama-gpu"), "/models")
    scene.cache.with_metadata(annotations={DELETE_IN_USE: "true"})
    (order,) = scene.world.settle().desired[N1].remove
    assert order.forced
    assert scene.condition("Ready")["reason"] == "Deleting"


URI = "hf://models/private"
FORCED = {DELETE_IN_USE: "true"}


def a_tenants_scene(*pods: PodBuilder) -> tuple[Scene, CacheBuilder]:
    """The copy was for the namespaced caches a/mine and b/mine, and is for b/mine alone now."""
    mine, other = (a_namespace_cache(namespace, "mine", URI) for namespace in "ab")
    scene = Scene(cache=other)
    scene.world.add(mine, *(pod.on("n1") for pod in pods)).resolved(mine).settle()
    mine.deleted(DELETED)
    scene.world.settle()
    assert scene.world.find("LocalModelNamespaceCache", "mine", "a") is None
    return scene, other


def test_the_annotation_of_a_namespaced_cache_is_for_pods_of_its_namespace() -> None:
    path = f"/models/models/{storage_key(URI)}"
    theirs, own = a_pod("theirs", "a").mounting(path), a_pod("own", "b").mounting(path)
    scene, cache = a_tenants_scene(theirs, own)
    cache.with_metadata(annotations=FORCED).deleted(DELETED)
    assert scene.removals() == []
    message = scene.condition("Ready")["message"]
    for word in ("b/own", "pods of other namespaces", "when no pod does"):
        assert word in message
    for secret in ("a/theirs", "theirs", DELETE_IN_USE):
        assert secret not in message
    scene.drop(theirs)
    (order,) = scene.removals()
    assert order.forced


def test_the_annotation_of_a_namespaced_cache_waits_for_a_look_at_the_pods() -> None:
    scene, cache = a_tenants_scene()
    cache.with_metadata(annotations=FORCED).deleted(DELETED)
    assert scene.world.settle().desired[N1].remove == ()
    scene.world.look_failures = {N1: Look(NOW, failure="pods is forbidden")}
    scene.world.settle()
    assert DELETE_IN_USE not in scene.condition("Ready")["message"]
    scene.world.look_failures = {}
    assert scene.ordered() == [(storage_key(URI), "CacheDeleted")]


REFUSED = Failure("SourceDenied", "401", retryable=False)


def test_a_cache_that_is_refused_does_not_keep_what_another_leaves() -> None:
    mine, refused = (a_namespace_cache(namespace, "mine", URI) for namespace in "ab")
    scene = Scene(cache=mine)
    scene.world.add(refused).unresolved(refused, REFUSED).settle()
    assert scene.condition("Ready")["status"] == "True"
    mine.deleted(DELETED)
    assert scene.ordered() == [(storage_key(URI), "CacheDeleted")]
    assert scene.world.plan().removals[0].caches == ("a/mine",), "the other is not told of it"
    assert scene.world.plan().desired[N1].models == (), "an agent removes nothing that is wanted"
    scene.world.reporting("n1").settle()
    assert scene.world.find("LocalModelNamespaceCache", "mine", "a") is None
    assert [model.key for model in scene.world.plan().desired[N1].models] == [storage_key(URI)]


KEEPERS: dict[str, Callable[[World, CacheBuilder], object]] = {
    "has read its source": lambda world, cache: world.resolved(cache),
    "has not heard from its source": lambda world, cache: world.resolutions.pop(cache.key, None),
    "has a source that is down": lambda world, cache: world.unresolved(cache, Failure("SourceError", "reset")),
    "had a right to it, and is refused since": lambda world, cache: (
        world.resolved(cache),
        world.settle(),
        world.unresolved(cache, REFUSED),
    ),
    "has another typo than that of credentials": lambda world, cache: world.unresolved(
        cache, Failure("RevisionNotFound", "no", retryable=False)
    ),
}


@pytest.mark.parametrize("case", KEEPERS)
def test_a_copy_is_kept_for_a_cache_that(case: str) -> None:
    mine, keeper = (a_namespace_cache(namespace, "mine", URI) for namespace in "ab")
    scene = Scene(cache=mine)
    scene.world.add(keeper).settle()
    KEEPERS[case](scene.world, keeper)
    scene.world.settle()
    mine.deleted(DELETED)
    assert scene.ordered() == []
    assert scene.world.find("LocalModelNamespaceCache", "mine", "a") is None, "and it is not waited for"


def test_the_wait_is_announced_once() -> None:
    scene = a_scene_with(a_pod().claiming("llama-gpu"), "/models")
    scene.world.settle()
    scene.world.looked_at = frozenset({N1})
    heard = [event for _ in range(5) for write in scene.world.step().writes for event in write.events]
    assert [(event.warning, event.reason) for event in heard] == [(True, "InUse")]


def test_where_pods_cannot_be_listed_nothing_goes_and_it_is_said_why() -> None:
    scene = Scene()
    scene.cache.deleted(DELETED)
    scene.world.settle()
    refused = Look(NOW, failure="pods is forbidden")
    scene.world.look_failures = {N1: refused}
    assert scene.world.settle().desired[N1].remove == ()
    assert (scene.condition("Degraded")["status"], scene.condition("Degraded")["reason"]) == ("True", "PodsUnknown")
    assert "pods is forbidden" in scene.condition("Ready")["message"]


def test_a_group_that_never_matched_anybody_is_degraded() -> None:
    cache = a_cache()
    a_world(cache, a_group(), a_node("n1").in_pool("other")).settle()
    conditions = {c["type"]: (c["status"], c["reason"]) for c in cache.json["status"]["conditions"]}
    assert conditions["Degraded"] == ("True", "NoMatchingNodes")
    assert conditions["Ready"] == ("False", "NoMatchingNodes")


def test_a_failure_of_the_agent_keeps_everything() -> None:
    scene = Scene()
    scene.cache.deleted(DELETED)
    view = scene.world.agents["n1"]
    scene.world.agents["n1"] = replace(view, failure=Failure("AgentUnavailable", "gone"))
    assert scene.ordered() == []


@pytest.mark.parametrize("ahead_s", [-3600.0, -4.0, 0.0, 3600.0])
def test_an_order_and_the_age_of_pods_are_by_the_clock_of_the_agent(ahead_s: float) -> None:
    scene = Scene()
    user = a_pod().on("n1").claiming("llama-gpu").created(rfc3339(NOW - 100))
    scene.world.add(user)
    view = scene.world.agents["n1"]
    assert view.report is not None
    took_s = 0.25
    scene.world.agents["n1"] = replace(view, report=replace(view.report, at=NOW + ahead_s - took_s), received_at=NOW)
    scene.cache.deleted(DELETED)
    assert scene.removals() == []
    assert scene.world.plan().desired[N1].used == {key_of(scene.cache): NOW - 100 + ahead_s - took_s}
    user.ended()
    (order,) = scene.removals(NOW + 3)
    assert order.at == NOW + 3 + ahead_s - took_s
