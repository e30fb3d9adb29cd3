"""Asking for another try: what an annotation says, what the plan makes of it, and what a task of an agent does."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from actors.agent.attempt import Ended, Engine
from actors.agent.settings import AgentSettings
from actors.agent.task import RETRY_PAUSE_S, Task
from actors.errors import Failure, LocalModelError, SourceError, SourceThrottled
from actors.manifest import ModelSource, StorageKey
from actors.messages import DesiredModel, NodeName, Phase, Place
from actors.rates import RateLimit
from actors.retry import RetryPolicy
from coordinator.dev.trial.builders import NOW, CacheBuilder, World, a_cache, a_group, a_node, a_report, a_world
from coordinator.plan.retries import EVERYWHERE, MOST_NODES, RETRY, asked, name_for, name_for_source, read_retries

N1, N2 = NodeName("n1"), NodeName("n2")


@pytest.mark.parametrize(
    ("annotation", "retries"),
    [
        (None, {}),
        ("", {}),
        (7, {}),
        ("now", {}),
        ("[]", {}),
        ("null", {}),
        ('{"*": 1, "n1": "", "n2": "a"}', {"n2": "a"}),
        ('{"*": "' + "x" * 101 + '"}', {}),
        ("[" * 100_000, {}),
        ('{"*": "a"' + " " * 100_000 + "}", {}),
        (json.dumps({f"n{number}": "a" for number in range(MOST_NODES + 1)}), {}),
        ('{"*": "a", "n1": "b"}', {"*": "a", "n1": "b"}),
    ],
)
def test_junk_in_an_annotation_asks_for_nothing(annotation: object, retries: dict[str, str]) -> None:
    assert read_retries(annotation) == retries


@pytest.mark.parametrize(
    ("known", "node", "after", "of_n1", "of_n2"),
    [
        ({}, None, {"*": "t"}, "t", "t"),
        ({}, N1, {"n1": "t"}, "t", ""),
        ({"n1": "a"}, N2, {"n1": "a", "n2": "t"}, "a", "t"),
        ({"n1": "a"}, None, {"*": "t"}, "t", "t"),
        ({"*": "a"}, N1, {"*": "a", "n1": "t"}, "t", "a"),
        ({"n1": "a"}, N1, {"n1": "t"}, "t", ""),
        ({f"m{number}": "a" for number in range(MOST_NODES)}, N1, {"*": "t"}, "t", "t"),
    ],
)
def test_a_request_is_for_a_node_or_for_all(
    known: dict[str, str], node: NodeName | None, after: dict[str, str], of_n1: str, of_n2: str
) -> None:
    retries = read_retries(asked(known, "t", node))

    assert retries == after
    assert (name_for(retries, N1), name_for(retries, N2)) == (of_n1, of_n2)
    assert name_for_source(retries) not in ("", name_for_source(known))


# --- the plan ---


def a_failed_world(**annotations: str) -> tuple[World, CacheBuilder]:
    cache = a_cache("llama")
    world = a_world(cache, a_group(), a_node("n1"), a_node("n2")).resolved(cache)
    for node in ("n1", "n2"):
        failed = a_report(cache, Phase.FAILED, failure=Failure("SourceError", "HTTP 500"), retry_at=NOW + 200)
        world.reporting(node, failed)
    cache.with_metadata(annotations={RETRY: json.dumps(annotations)} if annotations else {})
    return world, cache


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [({}, ("", "")), ({"*": "t"}, ("t", "t")), ({"n1": "t"}, ("t", "")), ({"*": "s", "n2": "t"}, ("s", "t"))],
)
def test_the_plan_hands_a_request_to_the_nodes_it_names(annotations: dict[str, str], expected: tuple[str, str]) -> None:
    world, _ = a_failed_world(**annotations)

    made = world.plan()

    assert tuple(made.desired[node].models[0].retry for node in (N1, N2)) == expected
    assert made.wants == {} or all(want.retry == ",".join(sorted(annotations.values())) for want in made.wants.values())


def test_a_request_of_any_cache_that_shares_a_folder_counts() -> None:
    world, cache = a_failed_world()
    twin = a_cache("twin", cache.uri).created("2026-02-01T00:00:00Z")
    twin.with_metadata(annotations={RETRY: asked({}, "t", None)})
    world.add(twin)

    (model,) = world.plan().desired[N1].models
    assert model.retry == "t"


def test_a_request_changes_nothing_that_is_written() -> None:
    world, cache = a_failed_world()
    world.settle()
    cache.with_metadata(annotations={RETRY: asked({EVERYWHERE: "a"}, "b", N1)})

    assert world.plan().writes == ()


# --- an agent ---


class Clocked:
    def __init__(self) -> None:
        self.now = 1000.0
        retry = RetryPolicy(300.0, 300.0)
        engine = Engine(AgentSettings(), lambda: self.now, random.Random(1), retry, RateLimit(None))
        self.task = Task(Place("/models", StorageKey("k")), self.model(""), engine)

    @staticmethod
    def model(retry: str) -> DesiredModel:
        return DesiredModel(StorageKey("k"), "/models", ModelSource("hf://a/b"), retry=retry)

    def fails(self, error: LocalModelError) -> None:
        self.task.finish(Ended(error=error))

    def due(self, at: float, retry: str) -> bool:
        self.task.want(self.model(retry))
        return self.task.active(1000.0 + at).due


@pytest.mark.parametrize(
    ("error", "at", "retry", "due"),
    [
        (SourceError("HTTP 500"), 1, "", False),
        (SourceError("HTTP 500"), 400, "", True),
        (SourceError("HTTP 500"), RETRY_PAUSE_S - 1, "t", False),
        (SourceError("HTTP 500"), RETRY_PAUSE_S, "t", True),
        (SourceThrottled("busy", retry_after_s=60.0), 59, "t", False),
        (SourceThrottled("busy", retry_after_s=60.0), 60, "t", True),
    ],
)
def test_a_task_tries_again_when_it_is_asked(error: LocalModelError, at: float, retry: str, due: bool) -> None:
    clocked = Clocked()
    clocked.fails(error)

    assert clocked.due(at, retry) is due


def test_a_task_heeds_a_request_once() -> None:
    clocked = Clocked()
    clocked.fails(SourceError("HTTP 500"))
    assert clocked.due(10, "t")

    attempt: Any = type("Attempt", (), {"run": lambda self: Ended(), "progress": None})()
    clocked.task._launch(attempt, lambda ended: None)
    assert clocked.task.thread is not None
    clocked.task.thread.join()
    clocked.now = 1010.0
    clocked.fails(SourceError("HTTP 500"))

    assert not clocked.due(30, "t")
    assert clocked.due(30, "u")


def test_a_request_that_is_older_than_the_task_asks_for_nothing() -> None:
    clocked = Clocked()
    clocked.task = Task(clocked.task.place, clocked.model("old"), clocked.task._engine)
    clocked.fails(SourceError("HTTP 500"))

    assert not clocked.due(30, "old")
