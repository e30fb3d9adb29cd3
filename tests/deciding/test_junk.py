"""Junk in any object, written past its schema or by hand, stops no plan: hypothesis puts it everywhere."""

from __future__ import annotations

import json
from contextlib import suppress
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.api.resources import LocalModelCacheStatus, LocalModelNodeStatus
from coordinator.dev.trial.builders import (
    NOW,
    Builder,
    World,
    a_cache,
    a_group,
    a_local_node,
    a_namespace_cache,
    a_node,
    a_pod,
    a_report,
    a_silent_agent,
    a_world,
)
from coordinator.plan import written
from coordinator.plan.kserve_config import KServeConfig, read_config
from coordinator.plan.storage_containers import read_storage_container

TIMES = ["2026-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "yesterday", ""]
WORDS = [
    "n1",
    "gpu",
    "llama",
    "team/llama",
    "ModelDownloaded",
    "NodeDownloaded",
    "True",
    "Ready",
    "/models",
    "\x00",
    "a/b",
]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**63, -(2**70), 10**400]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(TIMES + WORDS),
)
names = st.one_of(st.text(max_size=6), st.sampled_from([*WORDS, "type", "name", "path", "free", "status", "reason"]))
junk = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3)),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path in a JSON value, but not what names an object, for which an API server vouches."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        if path == ("metadata",) and name in ("name", "namespace", "uid", "resourceVersion"):
            continue
        if path == () and name in ("kind", "apiVersion", "metadata"):
            found += places(inner, (name,))[1:] if name == "metadata" else []
            continue
        found += places(inner, (*path, name))
    return found


def put(target: Any, path: tuple[Any, ...], value: Any) -> None:
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value


def settled() -> World:
    """A world with everything in it: statuses as they are written, an orphan, a deletion, pods."""
    cache, other, second = a_cache(), a_cache("orphan").in_group("old"), a_namespace_cache("team", "second")
    going = a_cache("going")
    world = a_world(cache, other, second, going, a_group(), a_group("old").labelled("pool", "gpu"))
    world.add(a_node("n1"), a_node("n2").not_ready(), a_node("n3"), a_local_node("gone"))
    world.add(a_pod().on("n1").claiming("llama-gpu", "models/x"), a_pod("b").on("n1").mounting("/models"))
    for each in (cache, other, second, going):
        world.resolved(each)
    world.reporting("n1", *(a_report(each) for each in (cache, other, second, going))).reporting("n3")
    world.evict_idle_s = 60.0
    world.settle()
    for builder in world.objects:
        if builder.json["kind"] == "LocalModelNodeGroup" and builder.name == "old":
            builder.volume["nodeAffinity"]["required"]["nodeSelectorTerms"] = [  # type: ignore[attr-defined]  # a group
                {"matchExpressions": [{"key": "pool", "operator": "In", "values": ["none"]}]}
            ]
    going.deleted()
    world.settle()
    return world


SETTLED = settled()


@st.composite
def worlds(draw: st.DrawFn) -> World:
    world = deepcopy(SETTLED)
    for _ in range(draw(st.integers(1, 4))):
        builder: Builder = draw(st.sampled_from(world.objects))
        options = [*places(builder.json), ("status",), ("spec",), ("metadata", "annotations"), ("metadata", "labels")]
        put(builder.json, draw(st.sampled_from(options)), draw(junk))
    if draw(st.booleans()):
        world.agents["n1"] = a_silent_agent()
    world.extensions = draw(st.booleans())
    return world


@pytest.mark.slow
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(worlds())
def test_no_junk_stops_a_plan(world: World) -> None:
    made = world.plan(NOW + 5)
    for write in made.writes:
        json.dumps(write.body)
    assert "n1" in made.desired


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(worlds())
def test_junk_in_a_status_is_mended_and_then_left_alone(world: World) -> None:
    world.extensions = True
    world.settle(NOW + 5, steps=10)


of_kserve = st.sampled_from(
    [
        *("internal.serving.kserve.io/localmodel", "internal.serving.kserve.io/localmodel-lora"),
        *("localmodel.kserve.io/cache", "localmodel.kserve.io/node-group", "localmodel.kserve.io/volume"),
        *("local", "path", "claimRef", "namespace", "name", "uid", "kind", "accessModes", "resources", "requests"),
        *("localModel", "credentials", "workloadType", "supportedUriFormats", "container", "env", "valueFrom"),
    ]
)
fields_of_kserve = st.one_of(junk, st.dictionaries(of_kserve, junk, max_size=4), st.lists(junk, max_size=3))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(fields_of_kserve, fields_of_kserve, fields_of_kserve)
def test_junk_in_what_kserve_and_kubernetes_write_stops_no_plan(metadata: object, spec: object, status: object) -> None:
    world = a_world(a_group(), a_cache())
    world.volumes_known = True
    for kind, name in (
        ("InferenceService", "chat"),
        ("LLMInferenceService", "chat"),
        ("PersistentVolume", "llama-gpu-download"),
        ("PersistentVolumeClaim", "llama-gpu"),
    ):
        built = Builder(kind, name, "v1").with_metadata(namespace="kserve-localmodel-jobs")
        built.with_metadata(labels=metadata, annotations=metadata, ownerReferences=metadata)
        built.json |= {"spec": spec, "status": status}
        world.add(built)
    json.dumps([write.body for write in world.plan(NOW).writes])
    read_config({"data": spec}, KServeConfig())
    with suppress(ValueError):  # a regex that is none
        read_storage_container({"metadata": {"name": "x"}, "spec": spec})


def test_every_field_of_a_status_is_read_back() -> None:
    for read, model in (
        (written.CACHE_STATUS, LocalModelCacheStatus),
        (written.NODE_STATUS, LocalModelNodeStatus),
    ):
        assert set(read) == {field.alias for field in model.model_fields.values()}


@pytest.mark.parametrize("value", [-1, 2**63, 1.5, True, "1", None, 10**400])
def test_what_is_no_count(value: object) -> None:
    assert written.count(value) is None


def test_junk_within_a_mapping_keeps_its_key_so_that_a_patch_removes_it() -> None:
    read = written.read_fields(
        {"nodeStatus": {"n1": 7, "n2": "NodeDownloaded"}, "bytes": {"x": []}}, written.CACHE_STATUS
    )
    assert read == {"nodeStatus": {"n1": "", "n2": "NodeDownloaded"}, "bytes": {"x": None}}


def test_of_a_list_only_the_junk_is_left_out() -> None:
    models = [7, {"name": []}, {"name": "a", "orphanedSince": "yesterday"}, {"name": "b", "bytesTotal": 1}]
    read = written.read_fields({"models": models, "roots": "x"}, written.NODE_STATUS)
    assert read == {"models": [{"name": "a"}, {"name": "b", "bytesTotal": 1}]}
