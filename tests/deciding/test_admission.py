"""What may be written to a cache, and what is said of it: KServe's refusals word for word, our warnings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from actors.messages import NodeName
from actors.schemes import STANDARD, Schemes
from coordinator.dev.trial.builders import (
    Builder,
    CacheBuilder,
    a_cache,
    a_group,
    a_local_node,
    a_namespace_cache,
    a_node,
    a_world,
)
from coordinator.kube.interface import Object
from coordinator.plan.admission import (
    Consumer,
    Known,
    Operation,
    Refusal,
    Write,
    deletion_refusal,
    refusal,
    undecodable,
)
from coordinator.plan.admission_warnings import warnings
from coordinator.plan.snapshot import CACHES, NAMESPACE_CACHES

LABEL, OF = "internal.serving.kserve.io/localmodel", "internal.serving.kserve.io/localmodel-namespace"
LORA = "internal.serving.kserve.io/localmodel-lora"


def knowing(*objects: Builder) -> Known:
    world = a_world(*objects).snapshot()
    nodes = {NodeName(name): node for name, node in world.local_nodes.items()}
    return Known(world.caches, world.groups, world.nodes, nodes, Schemes())


def writing(new: CacheBuilder, old: CacheBuilder | None = None) -> Write:
    resource = NAMESPACE_CACHES if new.namespace else CACHES
    operation = Operation.CREATE if old is None else Operation.UPDATE
    return Write(operation, resource, new.json, old.json if old is not None else None)


def refused(write: Write, known: Known) -> Refusal | None:
    return refusal(write, write.parsed(known.schemes), known)


def said(write: Write, *objects: Builder) -> tuple[str, ...]:
    known = knowing(*objects)
    return warnings(write, write.parsed(known.schemes), known)


def in_claim(name: str, uri: str = "hf://m/x", claim: str = "disk", namespace: str = "team") -> CacheBuilder:
    cache = a_namespace_cache(namespace, name, uri).with_spec(pvcRef=claim)
    del cache.json["spec"]["nodeGroups"]
    return cache


@pytest.mark.parametrize(
    ("other", "allowed"),
    [
        (in_claim("first"), False),
        (in_claim("first").deleted(), True),
        (in_claim("first", claim="another"), True),
        (in_claim("first", uri="hf://m/y"), True),
        (in_claim("first", namespace="web"), True),
        (in_claim("second"), True),
    ],
    ids=["the model in the claim", "one that goes", "another claim", "another model", "another namespace", "itself"],
)
def test_one_model_comes_into_a_claim_once(other: CacheBuilder, allowed: bool) -> None:
    message = 'destination pvc "disk" already holds model "hf://m/x" via cache team/first'
    expected = None if allowed else Refusal(403, "Forbidden", message)
    assert refused(writing(in_claim("second")), knowing(other)) == expected
    assert refused(writing(in_claim("second"), in_claim("second", uri="hf://m/z")), knowing(other)) is None


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (writing(in_claim("a").with_spec(nodeGroups=["gpu"])), "nodeGroups and pvcRef are mutually exclusive"),
        (writing(in_claim("a").with_spec(pvcRef=None)), "one of nodeGroups or pvcRef must be set"),
        (writing(in_claim("a", claim="")), "pvcRef must not be empty"),
        (writing(in_claim("a", claim="other"), in_claim("a")), "pvcRef is immutable"),
        (writing(in_claim("a").with_spec(pvcRef=None, nodeGroups=["gpu"]), in_claim("a")), "pvcRef is immutable"),
    ],
)
def test_a_cache_is_for_node_groups_or_for_a_claim(write: Write, message: str) -> None:
    assert refused(write, knowing(a_group())) == Refusal(403, "Forbidden", message)


@pytest.mark.parametrize("first", ["a Pod", "no name"])
def test_an_update_of_another_object_is_refused(first: str) -> None:
    old = {**second().json, "kind": "Pod"} if first == "a Pod" else {**second().json, "metadata": {}}
    found = undecodable(replace(writing(second(), second()), old=old))
    assert found is not None
    assert (found.code, "expected *v1alpha1.LocalModelCache" in found.message) == (400, True)


def test_an_object_whose_name_is_not_made_yet_is_judged() -> None:
    unnamed = a_cache("x", "hf://m/x")
    unnamed.json["metadata"] = {"generateName": "x-"}
    write = writing(unnamed)
    assert undecodable(write) is None
    assert refused(write, knowing()) is None
    assert refused(write, knowing(a_cache("first", "hf://m/x"))) == TAKEN


TAKEN = Refusal(403, "Forbidden", "LocalModelCache first has the same StorageURI hf://m/x")
NO_GROUP = Refusal(404, "NotFound", 'LocalModelNodeGroup.serving.kserve.io "gpu" not found')


def second(uri: str = "hf://m/x") -> CacheBuilder:
    return a_cache("second", uri)


@pytest.mark.parametrize(
    ("write", "others", "expected"),
    [
        pytest.param(writing(second()), [a_cache("first", "hf://m/x")], TAKEN, id="create of a URI that another has"),
        pytest.param(writing(second()), [a_cache("first", "hf://m/x/")], None, id="another string is another URI"),
        pytest.param(writing(second()), [second()], None, id="itself is nobody else"),
        pytest.param(
            writing(second()), [a_cache("z", "hf://m/x"), a_cache("first", "hf://m/x")], TAKEN, id="the same is named"
        ),
        pytest.param(
            writing(second(), second("hf://m/y")), [a_cache("first", "hf://m/x")], TAKEN, id="update to such a URI"
        ),
        pytest.param(
            writing(second().with_spec(pinned=True), second()),
            [a_cache("first", "hf://m/x")],
            TAKEN,
            id="an edit of one that slipped in",
        ),
        pytest.param(
            writing(second(), second().without_finalizer()),
            [a_cache("first", "hf://m/x")],
            None,
            id="its finalizer can be written",
        ),
        pytest.param(
            writing(second().with_metadata(annotations={"localmodel.kserve.io/retry": "now"}), second()),
            [a_cache("first", "hf://m/x")],
            None,
            id="an annotation of ours can be written",
        ),
        pytest.param(
            writing(second().with_metadata(annotations={"other.io/x": "y"}), second()),
            [a_cache("first", "hf://m/x")],
            TAKEN,
            id="another annotation is an update",
        ),
        pytest.param(
            writing(second().with_spec(pinned=True), second().without_finalizer()),
            [a_cache("first", "hf://m/x")],
            TAKEN,
            id="a finalizer covers no edit of the spec",
        ),
        pytest.param(
            writing(second().deleted().without_finalizer(), second().deleted()),
            [a_cache("first", "hf://m/x")],
            None,
            id="what is being deleted is not checked",
        ),
        pytest.param(writing(second()), [a_namespace_cache("team", "first", "hf://m/x")], None, id="of a namespace"),
        pytest.param(writing(second()), [], None, id="an unknown group of a cluster cache is only warned of"),
        pytest.param(writing(a_namespace_cache("team")), [], NO_GROUP, id="an unknown group"),
        pytest.param(
            writing(a_namespace_cache("team"), a_namespace_cache("team").in_group("cpu")),
            [],
            NO_GROUP,
            id="update to it",
        ),
        pytest.param(writing(a_namespace_cache("team")), [a_group()], None, id="a known group"),
        pytest.param(
            writing(a_namespace_cache("team").in_group("gpu", "cpu")),
            [a_group()],
            Refusal(404, "NotFound", 'LocalModelNodeGroup.serving.kserve.io "cpu" not found'),
            id="each group is looked for",
        ),
        pytest.param(
            writing(a_namespace_cache("team"), a_namespace_cache("team").without_finalizer()),
            [],
            None,
            id="a finalizer although the group has gone",
        ),
        pytest.param(
            writing(a_namespace_cache("team", "m", "hf://m/x")),
            [a_group(), a_namespace_cache("other", "m", "hf://m/x"), a_cache("c", "hf://m/x")],
            None,
            id="a URI may be used by many namespaces",
        ),
    ],
)
def test_a_write_is_refused_as_kserve_refuses_it(write: Write, others: list[Builder], expected: Refusal | None) -> None:
    assert refused(write, knowing(*others)) == expected


def test_what_only_touches_finalizers_says_nothing_either() -> None:
    assert said(writing(a_cache("x" * 70), a_cache("x" * 70).without_finalizer())) == ()


# Deletions


def in_use(namespace: str | None = None, *, llm: bool = False, name: str = "chat") -> CacheBuilder:
    cache = a_namespace_cache(namespace, "m") if namespace else a_cache("m")
    field = "llmInferenceServices" if llm else "inferenceServices"
    return cache.with_status(**{field: [{"namespace": namespace or "default", "name": name}]})


def a_service(labels: Mapping[str, str], annotations: Mapping[str, str] | None = None) -> Object:
    return {
        "metadata": {
            "name": "chat",
            "namespace": "team",
            "labels": dict(labels),
            "annotations": dict(annotations or {}),
        }
    }


def adapters(*tied: Mapping[str, str]) -> dict[str, str]:
    return {LORA: json.dumps({f"adapter-{index}": each for index, each in enumerate(tied)})}


DENIED = "LocalModelCache m is being used by InferenceService chat"
DENIED_LLM = "LocalModelCache m is being used by LLMInferenceService chat"
DENIED_IN = "LocalModelNamespaceCache team/m is being used by InferenceService team/chat"
DENIED_LLM_IN = "LocalModelNamespaceCache team/m is being used by LLMInferenceService team/chat"


@pytest.mark.parametrize(
    ("cache", "service", "expected"),
    [
        pytest.param(in_use(), a_service({LABEL: "m"}), DENIED, id="an InferenceService uses it"),
        pytest.param(in_use(llm=True), a_service({LABEL: "m"}), DENIED_LLM, id="an LLMInferenceService uses it"),
        pytest.param(in_use("team"), a_service({LABEL: "m", OF: "team"}), DENIED_IN, id="in a namespace"),
        pytest.param(
            in_use("team", llm=True), a_service({LABEL: "m", OF: "team"}), DENIED_LLM_IN, id="there, the other"
        ),
        pytest.param(in_use(), None, None, id="a service that has gone keeps nothing"),
        pytest.param(in_use(), a_service({LABEL: "other"}), None, id="a service that moved on keeps nothing"),
        pytest.param(in_use(), a_service({}), None, id="a service without labels keeps nothing"),
        pytest.param(in_use("team"), a_service({LABEL: "m"}), None, id="a service of the cluster cache of that name"),
        pytest.param(in_use(), a_service({LABEL: "m", OF: "team"}), None, id="a service of a namespace's cache"),
        pytest.param(in_use(llm=True), a_service({}, adapters({"cache": "m"})), DENIED_LLM, id="for an adapter"),
        pytest.param(in_use(llm=True), a_service({}, adapters({"cache": "x"})), None, id="for another adapter"),
        pytest.param(
            in_use("team", llm=True),
            a_service({}, adapters({"cache": "x"}, {"cache": "m", "namespace": "team"})),
            DENIED_LLM_IN,
            id="for the second adapter",
        ),
        pytest.param(in_use(llm=True), a_service({}, {LORA: "{"}), DENIED_LLM, id="adapters that cannot be read"),
        pytest.param(in_use(llm=True), a_service({}, {LORA: "[]"}), DENIED_LLM, id="adapters that are no object"),
        pytest.param(a_cache("m"), a_service({LABEL: "m"}), None, id="status lists nobody"),
        pytest.param(
            a_cache("m").with_status(inferenceServices=["junk", {"name": 3}, None]),
            a_service({LABEL: "m"}),
            None,
            id="junk",
        ),
    ],
)
def test_a_deletion_is_refused_while_a_service_uses_the_cache(
    cache: CacheBuilder, service: Object | None, expected: str | None
) -> None:
    write = Write(Operation.DELETE, NAMESPACE_CACHES if cache.namespace else CACHES, None, cache.json)
    found = deletion_refusal(write, lambda consumer: service, lambda namespace: False)
    assert found == (Refusal(403, "Forbidden", expected) if expected else None)


def test_a_namespace_that_is_being_deleted_is_not_held_up_by_its_services() -> None:
    write = Write(Operation.DELETE, NAMESPACE_CACHES, None, in_use("team").json)
    service = a_service({LABEL: "m", OF: "team"})
    assert deletion_refusal(write, lambda consumer: service, lambda namespace: namespace == "team") is None


def test_the_second_service_keeps_what_the_first_has_left() -> None:
    cache = a_cache("m").with_status(
        inferenceServices=[{"namespace": "a", "name": "x"}, {"namespace": "b", "name": "y"}]
    )
    write = Write(Operation.DELETE, CACHES, None, cache.json)

    def find(consumer: Consumer) -> Object | None:
        return a_service({LABEL: "m"}) if consumer.name == "y" else None

    found = deletion_refusal(write, find, lambda namespace: False)
    assert found is not None
    assert found.message == "LocalModelCache m is being used by InferenceService y"


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}},
        {**a_namespace_cache("team").json},
        {**a_cache().json, "apiVersion": "serving.kserve.io/v1"},
        {**a_cache().json, "spec": "nonsense"},
        {**a_cache().json, "metadata": {}},
    ],
)
def test_an_object_of_another_type_is_refused(found: dict[str, Any]) -> None:
    problem = undecodable(Write(Operation.CREATE, CACHES, found, None))
    assert problem is not None
    assert (problem.code, problem.reason) == (400, "BadRequest")
    assert "expected *v1alpha1.LocalModelCache" in problem.message
    assert undecodable(Write(Operation.CREATE, CACHES, a_cache().json, None)) is None


# Warnings

READERS = ", ".join(sorted(STANDARD))
FIVE = ("n1", "n2", "n3", "n4", "n5")
WORLD = (a_group(), a_node("n1"), a_node("n2"))


def holding(*nodes: str, cache: CacheBuilder | None = None, free: int | None = None) -> list[Builder]:
    cache = cache or a_cache()
    found: list[Builder] = []
    for node in nodes:
        local = a_local_node(node).listing(cache).downloaded(cache)
        found.append(local if free is None else local.with_status(roots=[{"path": "/models", "free": free}]))
    return found


def edited(**spec: Any) -> Write:
    return writing(a_cache().with_spec(**spec), a_cache())


@pytest.mark.parametrize(
    ("write", "world", "expected"),
    [
        pytest.param(writing(a_cache()), WORLD, [], id="nothing to say"),
        pytest.param(writing(a_cache("x" * 63)), WORLD, [], id="a name of 63 characters"),
        pytest.param(
            writing(a_cache("x" * 64)),
            WORLD,
            [
                "metadata.name has 64 characters: KServe writes it into a label, which may have 63, so every "
                "InferenceService that would use this cache is refused; choose a shorter name"
            ],
            id="a name of 64",
        ),
        pytest.param(
            writing(a_cache(uri="sftp://host/m")),
            WORLD,
            [
                f"spec.sourceModelUri: no reader for sftp:// is allowed: a source is one of {READERS}; "
                "whoever runs the coordinator can allow more (--allow-schemes); until that is mended nothing is "
                "downloaded"
            ],
            id="a scheme without a reader",
        ),
        pytest.param(
            writing(a_cache().with_spec(modelSize="-1Gi")),
            WORLD,
            ["spec.modelSize: '-1Gi' is negative; until that is mended nothing is downloaded"],
            id="a size that is none",
        ),
        pytest.param(
            writing(a_cache().with_spec(storage={"parameters": {"region": "eu"}})),
            WORLD,
            ["spec.storage.parameters: they do nothing without spec.storage.key, or a `type` among them"],
            id="parameters of nothing",
        ),
        pytest.param(
            writing(a_cache().with_spec(storage={"parameters": {"type": "s3"}}, serviceAccountName="reader")),
            WORLD,
            [
                "spec.storage.parameters: they do nothing without spec.storage.key, because spec.serviceAccountName "
                "names the credentials"
            ],
            id="parameters beside a ServiceAccount",
        ),
        pytest.param(
            writing(a_cache().with_spec(storage={"parameters": {"type": "s3"}})), WORLD, [], id="parameters of a type"
        ),
        pytest.param(
            writing(a_cache().in_group("gpu", "tpu")),
            WORLD,
            ["spec.nodeGroups: LocalModelNodeGroup tpu not found; no node gets a copy for it until that is mended"],
            id="an unknown group",
        ),
        pytest.param(
            writing(a_cache()),
            [a_group()],
            [
                "spec.nodeGroups: LocalModelNodeGroup gpu selects no node: no node gets a copy for it; look at its "
                "nodeAffinity and at the labels of the nodes"
            ],
            id="a group without nodes",
        ),
        pytest.param(
            writing(a_cache().with_spec(modelSize="150Gi")),
            WORLD,
            [
                "spec.modelSize: 150Gi does not fit into LocalModelNodeGroup gpu: its storageLimit is 100Gi a node; "
                "raise it, or remove models"
            ],
            id="larger than a group",
        ),
        pytest.param(
            writing(a_cache().with_spec(modelSize="30Gi")),
            [*WORLD, a_cache("a").with_spec(modelSize="50Gi"), a_cache("b").with_status(bytes={"total": 30 << 30})],
            [
                "spec.modelSize: 30Gi does not fit into LocalModelNodeGroup gpu beside 2 other models of 80Gi: its "
                "storageLimit is 100Gi a node; raise it, or remove models"
            ],
            id="too large beside the others, by their measured sizes",
        ),
        pytest.param(
            writing(a_namespace_cache("team", uri="hf://models/a").with_spec(modelSize="60Gi")),
            [*WORLD, a_cache("a").with_spec(modelSize="60Gi")],
            [],
            id="one folder is counted once",
        ),
        pytest.param(
            writing(a_cache("new").with_spec(modelSize="30Gi")),
            [*WORLD, *holding("n1", free=20 << 30), *holding("n2", free=40 << 30)],
            [
                "spec.modelSize: 30Gi does not fit on the disk of n1 (20Gi free, 1Gi of it to be kept); there the "
                "model waits until something is removed"
            ],
            id="a disk without room",
        ),
        pytest.param(
            writing(a_cache("new").with_spec(modelSize="30Gi")),
            [*WORLD, *holding("n1", free=(30 << 30) + (1 << 29)), *holding("n2", free=31 << 30)],
            [
                "spec.modelSize: 30Gi does not fit on the disk of n1 (30.5Gi free, 1Gi of it to be kept); there the "
                "model waits until something is removed"
            ],
            id="a disk that would be full",
        ),
        pytest.param(
            writing(a_namespace_cache("team").with_spec(modelSize="30Gi")),
            [*WORLD, a_cache(), *holding("n1", free=20 << 30)],
            [],
            id="what is there needs no room",
        ),
        pytest.param(edited(priority=3), [*WORLD, *holding("n1")], [], id="an edit of no consequence"),
        pytest.param(
            edited(revision="v2"),
            [*WORLD, *holding("n1", "n2")],
            [
                "spec.revision: the 2 copies on n1, n2 are fetched again where the files differ; what is there is "
                "served until then"
            ],
            id="another revision",
        ),
        pytest.param(
            edited(include=["*.gguf"], exclude=["*.bin"]),
            [*WORLD, *holding("n1")],
            [
                "spec.include, spec.exclude: the copy on n1 is fetched again where the files differ; what is there is "
                "served until then"
            ],
            id="other files",
        ),
        pytest.param(edited(revision="v2"), WORLD, [], id="nobody holds a copy"),
        pytest.param(
            writing(
                a_cache().with_spec(digest=f"sha256:{'a' * 64}").with_status(manifestDigest=f"sha256:{'b' * 64}"),
                a_cache(),
            ),
            [*WORLD, *holding("n1")],
            [
                f"spec.digest: the copy on n1 is of another digest (sha256:{'b' * 64}) and no longer Ready with this "
                "edit, until the source has what is expected"
            ],
            id="a digest that the copy does not have",
        ),
        pytest.param(
            edited(nodeGroups=["cpu"]),
            [*WORLD, a_group("cpu"), a_node("n9").in_pool("cpu"), *holding("n1", "n2")],
            ["spec.nodeGroups: the 2 copies on n1, n2 are removed with this edit, when no pod uses them"],
            id="an edit that removes copies",
        ),
        pytest.param(
            edited(nodeGroups=["cpu"]),
            [a_group(), *map(a_node, FIVE), a_group("cpu"), a_node("n9").in_pool("cpu"), *holding(*FIVE)],
            [
                "spec.nodeGroups: the 5 copies on n1, n2, n3 and 2 others are removed with this edit, when no pod uses "
                "them"
            ],
            id="many nodes are not all named",
        ),
        pytest.param(
            edited(nodeGroups=["cpu"]),
            [
                *(*WORLD, a_group("cpu"), a_node("n9").in_pool("cpu"), *holding("n1")),
                a_namespace_cache("t", "o", a_cache().uri),
            ],
            [],
            id="another cache of the URI keeps the copy",
        ),
        pytest.param(
            edited(nodeGroups=["cpu"], pinned=True),
            [*WORLD, a_group("cpu"), a_node("n9").in_pool("cpu"), *holding("n1")],
            ["spec.nodeGroups: the copy on n1 is wanted by nobody with this edit, and kept because of spec.pinned"],
            id="a pinned one becomes an orphan",
        ),
        pytest.param(
            edited(nodeGroups=["typo"]),
            [*WORLD, *holding("n1")],
            [
                "spec.nodeGroups: LocalModelNodeGroup typo not found; no node gets a copy for it until that is mended",
                "spec.nodeGroups: the copy on n1 is wanted by nobody with this edit, and kept only for a grace period",
            ],
            id="a mistyped group removes nothing",
        ),
        pytest.param(
            edited(refresh="1h", revision="c" * 40),
            WORLD,
            [f"spec.refresh: spec.revision {'c' * 40} is a commit, which never moves; name a branch or a tag"],
            id="a commit is refreshed",
        ),
        pytest.param(edited(refresh="1h", revision="main"), WORLD, [], id="a branch is refreshed"),
        pytest.param(edited(refresh="Never", revision="c" * 40), WORLD, [], id="a commit is not refreshed"),
        pytest.param(
            edited(refresh="1h", digest="sha256:" + "0" * 64),
            WORLD,
            [
                "spec.refresh: spec.digest is of one version, so whatever the branch moves to is refused; remove"
                " spec.digest, or edit it with spec.revision"
            ],
            id="a pinned digest is refreshed",
        ),
        pytest.param(
            edited(rollout={"partition": ["gpu", "typo"]}),
            WORLD,
            ["spec.rollout.partition: spec.nodeGroups has no typo; no node of it takes a new version"],
            id="a partition of a group that the cache does not name",
        ),
        pytest.param(
            edited(rollout={"partition": []}),
            WORLD,
            ["spec.rollout.partition: it names no group, so no node takes a new version; remove it to have all do"],
            id="a partition of nothing",
        ),
    ],
)
def test_a_warning_says(write: Write, world: list[Builder], expected: list[str]) -> None:
    before = deepcopy(dict(write.object))
    assert list(said(write, *world)) == expected
    assert write.object == before


def test_an_edit_of_something_else_does_not_warn_of_the_room_again() -> None:
    big = a_cache().with_spec(modelSize="150Gi")
    assert said(writing(a_cache().with_spec(modelSize="150Gi", priority=1), big), *WORLD) == ()
    assert len(said(writing(a_cache().with_spec(modelSize="160Gi"), big), *WORLD)) == 1
