"""A spec that is edited while copies are there: what is served meanwhile, and what status says of it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from actors.errors import Failure
from actors.manifest import Digest, Location, ManifestFile, Resolved, make_manifest
from actors.messages import Earlier, ModelReport, NodeName, Phase
from coordinator.api.resources import (
    RESOURCES,
    ApiModel,
    LocalModelCacheSpec,
    LocalModelNamespaceCacheSpec,
    LocalModelNodeGroupSpec,
    LocalModelNodeSpec,
)
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
)
from coordinator.plan.snapshot import Resolution

TYPO = Failure("RevisionNotFound", "https://hub/acme/m has no revision 'v9': correct spec.revision", retryable=False)
DOWN = Failure("SourceUnreachable", "https://hub did not answer")
OLD, NEW = "a" * 64, "b" * 64


def an_answer(cache: CacheBuilder, digest: str, revision: str) -> Resolution:
    file = ManifestFile("w.bin", GIB, Digest(f"sha256:{digest}"))
    return Resolution(Resolved(make_manifest(cache.source, revision, [file]), (Location("https://hub/w.bin"),)))


def a_copy(cache: CacheBuilder, digest: str = OLD, revision: str = "old-commit") -> ModelReport:
    resolved = an_answer(cache, digest, revision).resolved
    assert resolved is not None
    return a_report(cache, manifest_digest=resolved.manifest.digest, revision=revision)


def replacing(cache: CacheBuilder, held: ModelReport, phase: Phase = Phase.PENDING, **fields: Any) -> ModelReport:
    """What an agent says of a copy that it holds while something else is asked for."""
    earlier = Earlier(held.selection, held.revision, held.manifest_digest, held.bytes_total, held.finished_at)
    return a_report(cache, phase, **{"total": 0, **fields}, earlier=earlier)


def settled(cache: CacheBuilder, nodes: int = 1) -> tuple[World, ModelReport]:
    """A world in which every node holds what `cache` asks for, and the copy."""
    world = a_world(cache, a_group(), *(a_node(f"n{index + 1}") for index in range(nodes)))
    held = a_copy(cache)
    for index in range(nodes):
        world.reporting(f"n{index + 1}", held)
    world.resolutions[cache.key] = an_answer(cache, OLD, "old-commit")
    world.settle()
    return world, held


def status_of(cache: CacheBuilder) -> dict[str, Any]:
    status: dict[str, Any] = cache.json["status"]
    return status


def condition(cache: CacheBuilder, name: str) -> tuple[str, str]:
    (found,) = (each for each in status_of(cache)["conditions"] if each["type"] == name)
    return found["status"], found["reason"]


def identity(cache: CacheBuilder) -> tuple[str | None, ...]:
    return tuple(status_of(cache).get(name) for name in ("selection", "revision", "manifestDigest", "resolvedAs"))


@pytest.fixture(params=[None, "team"], ids=["a cluster cache", "a namespaced cache"])
def cache(request: pytest.FixtureRequest) -> CacheBuilder:
    namespace: str | None = request.param
    return a_namespace_cache(namespace, "m") if namespace else a_cache("m")


@pytest.mark.parametrize("edit", [{"revision": "v9"}, {"include": ["*.bin"]}, {"exclude": ["*.txt"]}])
def test_what_cannot_be_resolved_leaves_the_copy_and_what_is_said_of_it_as_it_is(
    cache: CacheBuilder, edit: dict[str, Any]
) -> None:
    world, held = settled(cache)
    before, copies = identity(cache), (status_of(cache)["nodeStatus"], status_of(cache)["copies"])
    assert before[1] == "old-commit"
    cache.with_spec(**edit)
    world.unresolved(cache, TYPO).reporting("n1", replacing(cache, held))
    planned = world.settle()
    assert identity(cache) == before
    assert (status_of(cache)["nodeStatus"], status_of(cache)["copies"]) == copies
    assert status_of(cache)["progress"] == "100%"
    assert condition(cache, "Ready") == ("True", "EarlierRevision")
    assert condition(cache, "Progressing") == ("False", "RevisionNotFound")
    assert condition(cache, "Degraded") == ("True", "RevisionNotFound")
    assert [model.source for model in planned.desired[NodeName("n1")].models] == [cache.source]
    assert cache.key in planned.wants
    (detail,) = world.snapshot().local_nodes[NodeName("n1")].status["models"]
    assert (detail["phase"], detail["revision"], detail["reason"]) == ("Ready", "old-commit", "RevisionNotFound")


def test_an_origin_that_is_down_leaves_it_too(cache: CacheBuilder) -> None:
    world, held = settled(cache)
    before = identity(cache)
    cache.with_spec(revision="v2")
    world.unresolved(cache, DOWN, retry_at=NOW + 60).reporting("n1", replacing(cache, held))
    world.settle()
    assert identity(cache) == before
    assert condition(cache, "Ready")[0] == "True"
    assert condition(cache, "Progressing") == ("True", "Retrying")
    assert condition(cache, "Degraded") == ("True", "SourceUnreachable")


def test_a_new_revision_is_shown_under_way_and_the_old_one_until_no_node_holds_it(cache: CacheBuilder) -> None:
    world, held = settled(cache, nodes=2)
    before = identity(cache)
    cache.with_spec(revision="v2")
    world.resolutions[cache.key] = an_answer(cache, NEW, "new-commit")
    coming = {"total": GIB, "revision": "new-commit", "manifest_digest": a_copy(cache, NEW).manifest_digest}
    for node in ("n1", "n2"):
        world.reporting(node, replacing(cache, held, Phase.DOWNLOADING, done=GIB // 4, **coming))
    world.settle()
    assert identity(cache) == before
    assert (status_of(cache)["available"], status_of(cache)["progress"]) == ("2/2", "25%")
    assert condition(cache, "Ready") == ("True", "EarlierRevision")
    assert condition(cache, "Progressing") == ("True", "Downloading")
    assert condition(cache, "Degraded")[0] == "False"
    world.reporting("n1", a_copy(cache, NEW, "new-commit"))
    assert world.settle().wants[cache.key].pinned_revision == "new-commit"
    assert identity(cache) == before
    assert status_of(cache)["nodeStatus"] == {"n1": "NodeDownloaded", "n2": "NodeDownloaded"}
    world.reporting("n2", a_copy(cache, NEW, "new-commit"))
    assert world.settle().wants == {}
    assert identity(cache)[1] == "new-commit"
    assert condition(cache, "Ready") == ("True", "AllNodesReady")
    assert condition(cache, "Progressing")[0] == "False"


def test_before_the_agent_has_heard_of_an_edit_its_copy_counts_on(cache: CacheBuilder) -> None:
    world, _ = settled(cache)
    before = identity(cache)
    cache.with_spec(revision="v2")
    world.resolutions.clear()
    world.settle()
    assert identity(cache) == before
    assert status_of(cache)["nodeStatus"] == {"n1": "NodeDownloaded"}
    assert condition(cache, "Progressing") == ("True", "Updating")


def test_the_copy_of_a_silent_agent_counts_on(cache: CacheBuilder) -> None:
    world, _ = settled(cache)
    before = identity(cache)
    cache.with_spec(revision="v2")
    world.agents["n1"] = a_silent_agent()
    world.settle()
    assert identity(cache) == before
    assert status_of(cache)["nodeStatus"] == {"n1": "NodeDownloaded"}


def test_the_same_content_is_ready_at_once_and_nothing_is_wanted(cache: CacheBuilder) -> None:
    world, held = settled(cache)
    cache.with_spec(revision="main")
    world.resolutions[cache.key] = an_answer(cache, OLD, "old-commit")
    world.reporting("n1", held)
    world.settle()
    assert condition(cache, "Ready") == ("True", "AllNodesReady")
    world.reporting("n1", replace(held, selection=cache.source.selection))
    assert world.settle().wants == {}
    assert identity(cache)[:2] == (cache.source.selection, "old-commit")


def test_a_wrong_digest_fails_closed_and_the_bytes_stay(cache: CacheBuilder) -> None:
    world, _ = settled(cache)
    cache.with_spec(digest="sha256:" + "0" * 64)
    planned = world.settle()
    assert condition(cache, "Ready") == ("False", "DigestMismatch")
    assert status_of(cache)["nodeStatus"] == {"n1": "NodeDownloadError"}
    (model,) = planned.desired[NodeName("n1")].models
    assert (model.source, model.expected_digest) == (cache.source, "sha256:" + "0" * 64)


def test_nor_is_a_copy_of_a_wrong_digest_served_while_the_source_is_down(cache: CacheBuilder) -> None:
    world, held = settled(cache)
    cache.with_spec(digest="sha256:" + "0" * 64)
    world.unresolved(cache, DOWN).reporting("n1", replacing(cache, held))
    world.settle()
    assert condition(cache, "Ready")[0] == "False"


@pytest.mark.parametrize("answer", [TYPO, None], ids=["no such revision", "another digest"])
def test_another_version_that_fails_leaves_the_one_before_in_service(
    cache: CacheBuilder, answer: Failure | None
) -> None:
    world, held = settled(cache)
    cache.with_spec(digest="sha256:" + "0" * 64, revision="v2")
    if answer is None:
        world.resolutions[cache.key] = an_answer(cache, NEW, "new-commit")
    else:
        world.unresolved(cache, answer)
    world.reporting("n1", replacing(cache, held))
    world.settle()
    reason = answer.reason if answer is not None else "DigestMismatch"
    assert condition(cache, "Ready") == ("True", "EarlierRevision")
    assert condition(cache, "Degraded") == ("True", reason)
    serving, failed = status_of(cache)["versions"]
    assert (serving["revision"], serving["state"], serving["nodes"]) == ("old-commit", "Current", 1)
    assert (failed["state"], failed["nodes"], failed["reason"]) == ("Failed", 0, reason)


@pytest.mark.parametrize(
    "edit",
    [
        {"priority": 7},
        {"pinned": True},
        {"modelSize": "2Gi"},
        {"serviceAccountName": "other"},
        {"storage": {"key": "k"}},
    ],
    ids=str,
)
def test_what_does_not_change_the_content_changes_nothing_that_is_there(
    cache: CacheBuilder, edit: dict[str, Any]
) -> None:
    world, _ = settled(cache)
    before = identity(cache)[:3]
    cache.with_spec(**edit)
    world.resolutions.clear()
    world.settle()
    assert identity(cache)[:3] == before
    assert condition(cache, "Ready") == ("True", "AllNodesReady")


def fields_of(model: type[ApiModel], prefix: str = "") -> list[str]:
    """Every field that a person can write, with those of objects of ours below it."""
    found = []
    for name, field in model.model_fields.items():
        path = prefix + (field.alias or name)
        found.append(path)
        parts: list[object] = [field.annotation]
        parts += get_args(field.annotation)
        for part in parts:
            if isinstance(part, type) and issubclass(part, ApiModel):
                found += fields_of(part, f"{path}.")
    return found


KINDS = {
    "LocalModelCache, LocalModelNamespaceCache": LocalModelNamespaceCacheSpec,
    "LocalModelNodeGroup": LocalModelNodeGroupSpec,
    "LocalModelNode": LocalModelNodeSpec,
}


@pytest.mark.parametrize(("title", "spec"), list(KINDS.items()), ids=list(KINDS))
def test_the_table_says_of_every_field_of_every_spec_what_editing_it_does(title: str, spec: type[ApiModel]) -> None:
    sections = (Path(__file__).parents[2] / "docs/editing.md").read_text().split("\n## ")
    (section,) = (each for each in sections if each.startswith(f"{title}\n"))
    rows = re.findall(r"^\| `([\w.]+)` \| (\S.*) \|$", section, re.MULTILINE)
    assert [name for name, _ in rows] == fields_of(spec)


def test_the_table_has_every_kind() -> None:
    others = [kind for kind in RESOURCES if kind.model_fields["spec"].annotation not in KINDS.values()]
    assert [kind.KIND for kind in others] == ["LocalModelCache"]
    assert {*fields_of(LocalModelCacheSpec)} < {*fields_of(LocalModelNamespaceCacheSpec)}
