"""What an agent does next, from what should be, what is there and what is under way: one sentence each."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from actors.agent.diff import Action, Active, Cancel, Start, diff
from actors.disk.store import Marker
from actors.manifest import Digest, Manifest, ManifestFile, ModelSource, storage_key
from actors.messages import DesiredModel, DesiredState, Place

SOURCE = ModelSource("hf://a/b")
OTHER = ModelSource("hf://a/b", revision="v2")
PLACE = Place("/models", storage_key(SOURCE.uri))
MODEL = DesiredModel(PLACE.key, PLACE.root, SOURCE, resolved="r1")


def a_copy(source: ModelSource = SOURCE, owner: str = "us") -> Marker:
    return Marker(owner, Manifest(source, None, (ManifestFile("f", 1, Digest("sha256:00")),)), {})


def a_task(
    source: ModelSource = SOURCE, *, waiting: bool = False, due: bool = False, resolved: str | None = "r1"
) -> Active:
    return Active(source.selection, resolved, waiting, due)


@dataclass(frozen=True)
class Case:
    wanted: DesiredModel | None = MODEL
    copy: Marker | None = None
    task: Active | None = None
    damaged: bool = False


START, CANCEL = Start(PLACE, MODEL), Cancel(PLACE)
KEPT = DesiredModel(PLACE.key, PLACE.root, SOURCE, "r1", kept=True)
DIGEST = a_copy().manifest.digest
WANTED_OTHERWISE = DesiredModel(PLACE.key, PLACE.root, SOURCE, "r1", expected_digest="sha256:11")
WANTED_AS_IT_IS = DesiredModel(PLACE.key, PLACE.root, SOURCE, "r1", expected_digest=DIGEST)

CASES: dict[str, tuple[Case, list[Action]]] = {
    "what is not there is started": (Case(), [START]),
    "what is there is left alone": (Case(copy=a_copy()), []),
    "what runs is left alone": (Case(task=a_task()), []),
    "what waits is left alone until it is due": (Case(task=a_task(waiting=True)), []),
    "what waits and is due is started": (Case(task=a_task(waiting=True, due=True)), [START]),
    "a fresh resolution is not waited with": (Case(task=a_task(waiting=True, resolved="r0")), [START]),
    "what nobody mentions is kept": (Case(None, a_copy()), []),
    "what nobody wants any more is cancelled": (Case(None, a_copy(), a_task()), [CANCEL]),
    "what is only kept is left alone": (Case(KEPT, a_copy()), []),
    "what is only kept is not replaced": (Case(KEPT, a_copy(OTHER)), []),
    "what is only kept is not fetched": (Case(KEPT), []),
    "what is only kept is no longer replaced": (Case(KEPT, a_copy(), a_task()), [CANCEL]),
    "what is only kept is under repair": (Case(KEPT, a_copy(), a_task(), damaged=True), []),
    "what is only kept is repaired": (Case(KEPT, a_copy(), damaged=True), [Start(PLACE, KEPT)]),
    "what is only kept is not repaired from another request": (Case(KEPT, a_copy(OTHER), damaged=True), []),
    "a copy of an earlier request is replaced": (Case(copy=a_copy(OTHER)), [START]),
    "a task for an earlier request ends first": (Case(copy=a_copy(), task=a_task(OTHER)), [CANCEL]),
    "a copy of another digest is not what is wanted": (
        Case(WANTED_OTHERWISE, a_copy()),
        [Start(PLACE, WANTED_OTHERWISE)],
    ),
    "a copy of the digest that is wanted is": (Case(WANTED_AS_IT_IS, a_copy()), []),
    "what a task waited for is no longer asked for": (
        Case(WANTED_AS_IT_IS, a_copy(), a_task(waiting=True, due=True)),
        [CANCEL],
    ),
    "a damaged copy is repaired": (Case(copy=a_copy(), damaged=True), [START]),
    "a damaged copy under repair is left alone": (Case(copy=a_copy(), task=a_task(), damaged=True), []),
    "a damaged copy that waits for its repair keeps waiting": (
        Case(copy=a_copy(), task=a_task(waiting=True), damaged=True),
        [],
    ),
    "a damaged copy that nobody mentions is kept": (Case(None, a_copy(), damaged=True), []),
}


@pytest.mark.parametrize("name", CASES)
def test_what_comes_next(name: str) -> None:
    case, expected = CASES[name]
    desired = DesiredState("us", models=(case.wanted,) if case.wanted else ())
    present = {PLACE: case.copy} if case.copy else {}
    active = {PLACE: case.task} if case.task else {}
    assert diff(desired, present, active, {PLACE} if case.damaged else set()) == expected


def test_the_most_important_starts_first() -> None:
    models = tuple(
        DesiredModel(storage_key(uri), "/models", ModelSource(uri), "r", priority=priority)
        for uri, priority in (("hf://a/low", 0), ("hf://a/high", 10), ("hf://a/middle", 5))
    )
    started = [
        action.model.priority for action in diff(DesiredState("us", models=models), {}, {}) if isinstance(action, Start)
    ]
    assert started == [10, 5, 0]
