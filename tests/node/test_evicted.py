"""A copy makes room for another model on a real disk: only as ordered, only while it helps, and without coming back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from actors.agent.agent import NodeAgent
from actors.disk.store import Store
from actors.manifest import ModelSource, Resolved, StorageKey, storage_key
from actors.messages import DesiredRoot, DesiredState, ModelReport, Phase, Removal
from actors.sizes import say_bytes
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.waiting import eventually
from tests.kit.disks import tmpfs
from tests.kit.nodes import Node, a_removal, model, ordering, together, until, wants

MIB = 1 << 20
OLD, NEW, SMALL = "hf://a/old", "hf://b/new", "hf://c/small"
SIZES = {OLD: 3 * MIB, NEW: 3 * MIB, SMALL: MIB}
LIMIT = 5 * MIB


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    repos, folder = {}, tmp_path_factory.mktemp("evicted")
    for uri, size in SIZES.items():
        name = uri.removeprefix("hf://")
        repos[name] = folder / name
        repos[name].mkdir(parents=True)
        (repos[name] / "model.safetensors").write_bytes(name[0].encode() * size)
    with Origin(repos) as running:
        yield running


@pytest.fixture(scope="module")
def sources(origin: Origin) -> dict[str, Resolved]:
    options = SourceOptions({"HF_ENDPOINT": origin.hub_endpoint})
    return {uri: resolve(ModelSource(uri), options) for uri in SIZES}


@pytest.fixture
def small_disk(node: Node) -> Iterator[Node]:
    """A node whose models are on a filesystem of 5 MiB."""
    with tmpfs(node.root, "size=5m"), node:
        yield node


def key(uri: str) -> StorageKey:
    return storage_key(uri)


def asked(sources: dict[str, Resolved], *uris: str, limit: int | None = LIMIT, **changes: object) -> DesiredState:
    """These, all of which may be evicted unless `changes` says otherwise."""
    state = together(*(wants(sources[uri], **{"evictable": True, **changes}) for uri in uris))  # type: ignore[arg-type]  # by name
    return replace(state, roots=(DesiredRoot("/models", limit),))


def an_order(victim: str = OLD, beneficiary: str = NEW, *, age_s: float = 0.0) -> Removal:
    beneficent = {"for_key": key(beneficiary), "for_uri": beneficiary, "for_bytes": SIZES[beneficiary]}
    return a_removal(key(victim), age_s=age_s, reason="Evicted", **beneficent)


def found(agent: NodeAgent, uri: str) -> ModelReport:
    report = model(agent.report(), key(uri))
    assert report is not None
    return report


def waiting_for_room(agent: NodeAgent, uri: str = NEW) -> int:
    """How much it lacks, once that is known."""
    eventually(lambda: found(agent, uri).lacking_bytes is not None, every_s=0.01, seen=agent.report)
    lacking = found(agent, uri).lacking_bytes
    assert lacking is not None
    return lacking


def evicted(agent: NodeAgent, uri: str = OLD) -> ModelReport:
    return until(agent, Phase.PENDING, reason="Evicted", key=key(uri))


def full(node: Node, sources: dict[str, Resolved], limit: int | None = LIMIT, **settings: object) -> NodeAgent:
    """An agent that holds the old model, and has no room for the new one."""
    agent = node.agent(**settings)
    agent.reconcile(asked(sources, OLD, limit=limit))
    until(agent, Phase.READY, key=key(OLD))
    agent.reconcile(asked(sources, OLD, NEW, limit=limit))
    waiting_for_room(agent)
    return agent


def test_what_is_lacking_is_said_to_the_byte(node: Node, sources: dict[str, Resolved]) -> None:
    agent = full(node, sources)
    assert found(agent, NEW).lacking_bytes == SIZES[OLD] + SIZES[NEW] - LIMIT
    assert found(agent, NEW).needed_bytes == SIZES[NEW]
    assert found(agent, OLD).lacking_bytes is None


def test_nothing_is_lacking_for_what_would_not_fit_an_empty_disk(node: Node, sources: dict[str, Resolved]) -> None:
    agent = node.agent()
    agent.reconcile(asked(sources, NEW, limit=2 * MIB))
    assert until(agent, Phase.PENDING, reason="InsufficientStorage", key=key(NEW)).lacking_bytes is None


@pytest.mark.parametrize("limited", [True, False], ids=["the storage limit", "the disk"])
def test_an_evicted_copy_goes_and_what_it_made_room_for_comes(
    request: pytest.FixtureRequest, sources: dict[str, Resolved], limited: bool
) -> None:
    node = request.getfixturevalue("node" if limited else "small_disk")
    limit = LIMIT if limited else None
    agent = full(node, sources, limit=limit)
    agent.reconcile(ordering(asked(sources, OLD, NEW, limit=limit), an_order()))
    assert not node.folder(OLD).exists()
    until(agent, Phase.READY, key=key(NEW))
    said = evicted(agent).failure
    assert said is not None
    for word in (say_bytes(SIZES[OLD]), NEW, say_bytes(SIZES[NEW]), "spec.pinned"):
        assert word in said.message
    eventually(lambda: node.left_behind() == [], seen=node.left_behind)


def test_it_does_not_come_back_while_there_is_no_room_not_even_after_a_restart(
    node: Node, origin: Origin, sources: dict[str, Resolved]
) -> None:
    agent = full(node, sources)
    agent.reconcile(ordering(asked(sources, OLD, NEW), an_order()))
    until(agent, Phase.READY, key=key(NEW))
    before = origin.stats()["repos"]["a/old"]["bytes"]
    agent.close()
    again = node.agent()
    for _ in range(3):
        again.reconcile(asked(sources, OLD, NEW))
        assert evicted(again).lacking_bytes is None, "nobody makes room for what made room"
    assert found(again, NEW).phase is Phase.READY
    assert origin.stats()["repos"]["a/old"]["bytes"] == before


@pytest.mark.slow
def test_it_leaves_the_room_to_what_it_went_for_although_that_is_not_there_yet(
    node: Node, sources: dict[str, Resolved]
) -> None:
    agent = full(node, sources)
    agent.reconcile(ordering(asked(sources, OLD, NEW), an_order()))
    until(agent, Phase.READY, key=key(NEW))
    agent.close()
    folder = node.folder(NEW)
    folder.rename(node.root / "elsewhere")
    again = node.agent()
    unresolved = tuple(
        replace(each, resolved=None) if each.key == key(NEW) else each for each in asked(sources, OLD, NEW).models
    )
    again.reconcile(replace(asked(sources, OLD, NEW), models=unresolved))
    evicted(again)
    again.reconcile(asked(sources, OLD, NEW))
    until(again, Phase.READY, key=key(NEW))
    evicted(again)
    assert not node.folder(OLD).exists(), "the room was not given back meanwhile"


@pytest.mark.slow
def test_it_comes_back_when_it_fits_beside_the_other(node: Node, sources: dict[str, Resolved]) -> None:
    agent = full(node, sources)
    agent.reconcile(ordering(asked(sources, OLD, NEW), an_order()))
    until(agent, Phase.READY, key=key(NEW))
    evicted(agent)
    agent.reconcile(asked(sources, OLD, NEW, limit=6 * MIB))
    until(agent, Phase.READY, key=key(OLD))
    assert list((node.root / ".localmodel/evicted").iterdir()) == []
    agent.reconcile(asked(sources, OLD, NEW))
    assert found(agent, OLD).phase is Phase.READY, "a limit that was lowered takes nothing away"


@pytest.mark.slow
def test_it_comes_back_when_the_other_is_no_longer_wanted(node: Node, sources: dict[str, Resolved]) -> None:
    agent = full(node, sources)
    agent.reconcile(ordering(asked(sources, OLD, NEW), an_order()))
    until(agent, Phase.READY, key=key(NEW))
    agent.reconcile(ordering(asked(sources, OLD), a_removal(key(NEW))))
    until(agent, Phase.READY, key=key(OLD))
    assert (node.folder(OLD).exists(), node.folder(NEW).exists()) == (True, False)


@pytest.mark.slow
def test_one_that_is_used_or_pinned_meanwhile_competes_again(node: Node, sources: dict[str, Resolved]) -> None:
    agent = full(node, sources)
    agent.reconcile(ordering(asked(sources, OLD, NEW), an_order()))
    until(agent, Phase.READY, key=key(NEW))
    agent.reconcile(together(asked(sources, OLD, evictable=False), asked(sources, NEW)))
    until(agent, Phase.PENDING, reason="InsufficientStorage", key=key(OLD))
    assert waiting_for_room(agent, OLD) == SIZES[OLD] + SIZES[NEW] - LIMIT


REFUSED: dict[str, tuple[dict[str, Any], bool]] = {
    "it may not be evicted": ({}, False),
    "the order is old": ({"age_s": 61.0}, True),
    "the order is of a clock that is ahead": ({"age_s": -120.0}, True),
    "what it is for does not wait": ({"beneficiary": OLD}, True),
    "what it is for is not wanted": ({"beneficiary": SMALL}, True),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_order_is_not_carried_out_when(case: str, node: Node, sources: dict[str, Resolved]) -> None:
    order, evictable = an_order(**REFUSED[case][0]), REFUSED[case][1]
    agent = full(node, sources)
    agent.reconcile(ordering(asked(sources, OLD, NEW, evictable=evictable), order))
    assert node.folder(OLD).exists()
    assert found(agent, OLD).phase is Phase.READY
    assert list((node.root / ".localmodel/evicted").iterdir()) == []


def test_while_a_removed_copy_has_not_given_its_space_back_nothing_more_goes(
    small_disk: Node, sources: dict[str, Resolved], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = small_disk.agent()
    agent.reconcile(asked(sources, OLD, SMALL, limit=None))
    for uri in (OLD, SMALL):
        until(agent, Phase.READY, key=key(uri))
    agent.reconcile(asked(sources, OLD, SMALL, NEW, limit=None))
    waiting_for_room(agent)
    unlinking, empty_trash = threading.Event(), Store.empty_trash

    def slowly(store: Store) -> None:
        unlinking.wait(30)
        empty_trash(store)

    monkeypatch.setattr(Store, "empty_trash", slowly)
    agent.reconcile(ordering(asked(sources, OLD, SMALL, NEW, limit=None), an_order()))
    agent.reconcile(ordering(asked(sources, OLD, SMALL, NEW, limit=None), an_order(SMALL)))
    assert (small_disk.folder(OLD).exists(), small_disk.folder(SMALL).exists()) == (False, True)
    assert found(agent, NEW).lacking_bytes is None
    unlinking.set()
    until(agent, Phase.READY, key=key(NEW))
    assert found(agent, SMALL).phase is Phase.READY


def test_an_order_is_not_remembered(node: Node, sources: dict[str, Resolved]) -> None:
    """An agent that nobody talks to any more pursues its goal, and evicts nothing."""
    agent = node.agent()
    agent.reconcile(asked(sources, OLD))
    until(agent, Phase.READY, key=key(OLD))
    agent.reconcile(ordering(asked(sources, OLD, NEW), an_order()))  # before the new one waits for space
    waiting_for_room(agent)
    assert node.folder(OLD).exists()


def test_another_clusters_copy_is_not_evicted(node: Node, sources: dict[str, Resolved]) -> None:
    agent = full(node, sources)
    agent.reconcile(ordering(replace(asked(sources, OLD, NEW), owner="cluster-2"), an_order()))
    assert node.folder(OLD).exists()
    assert list((node.root / ".localmodel/evicted").iterdir()) == []


def test_an_agent_that_ended_before_the_copy_went_has_not_evicted_it(node: Node, sources: dict[str, Resolved]) -> None:
    agent = full(node, sources)
    agent.close()
    entry = node.root / ".localmodel/evicted" / f"{key(OLD)}.json"
    entry.write_text('{"at": 1.0, "size_bytes": 1, "for_key": "k", "for_uri": "hf://b/new", "for_bytes": 1}')
    again = node.agent()
    again.reconcile(asked(sources, OLD, NEW))
    assert found(again, OLD).phase is Phase.READY
    assert not entry.exists()
