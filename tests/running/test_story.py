"""The coordinator's log: each decision once, and none where nothing is decided."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from actors.errors import Failure
from actors.messages import Phase
from coordinator.dev.trial.builders import World, a_cache, a_group, a_node, a_report, a_world
from coordinator.logs import Formatter, LogSettings
from tests.running.test_controller import Rig

BROKEN = Failure("SourceUnreachable", "the origin went away")


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[dict[str, Any]]]:
    """What this process logs, as it would be written; emptied by whoever reads it."""
    caplog.set_level(logging.INFO, logger="coordinator")
    found: list[dict[str, Any]] = []
    formatter = Formatter(LogSettings())

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(json.loads(formatter.format(record)))

    handler = Handler()
    logger = logging.getLogger("coordinator")
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


def taken(lines: list[dict[str, Any]]) -> list[str]:
    said = [line["msg"] for line in lines]
    lines.clear()
    return said


def a_place(*names: str) -> World:
    return a_world(*(a_cache(name) for name in names), a_group(), a_node("n1"), a_node("n2"))


def test_the_life_of_a_model_is_a_few_lines(lines: list[dict[str, Any]]) -> None:
    world = a_place("llama")
    cache = a_cache("llama")
    rig = Rig(world)
    rig.tick(3)
    assert taken(lines) == ["acting", "first plan"]
    world.resolved(cache)
    rig.tick(3)
    assert taken(lines) == ["Resolved"]
    for done in (1, 2, 3):
        for node in ("n1", "n2"):
            world.reporting(node, a_report(cache, Phase.DOWNLOADING, done=done << 20))
        rig.tick(5)
    assert set(taken(lines)) == {"Downloading", "AgentReady"}
    for node in ("n1", "n2"):
        world.reporting(node, a_report(cache))
    rig.tick(3)
    assert taken(lines) == ["NodeDownloaded", "NodeDownloaded", "Ready"]
    rig.tick(60)
    assert taken(lines) == []


def test_a_line_names_the_object_and_says_what_is_the_matter(lines: list[dict[str, Any]]) -> None:
    world = a_place("llama")
    cache = a_cache("llama")
    rig = Rig(world)
    world.unresolved(cache, BROKEN)
    world.reporting("n1").reporting("n2")
    rig.tick(10)
    (line,) = (line for line in lines if line["msg"] == "DownloadFailed")
    assert {name: line[name] for name in ("level", "logger", "kind", "object")} == {
        "level": "warn",
        "logger": "coordinator.control.story",
        "kind": "LocalModelCache",
        "object": "llama",
    }
    assert "SourceUnreachable: the origin went away" in line["text"]


def test_what_is_placed_and_withdrawn_is_said_with_the_nodes_and_why(lines: list[dict[str, Any]]) -> None:
    world = a_place("llama")
    rig = Rig(world)
    rig.tick(3)
    lines.clear()
    other = a_cache("phi")
    world.add(other)
    rig.tick(3)
    (placed,) = (line for line in lines if line["msg"] == "placed")
    assert (placed["caches"], placed["nodes"], placed["count"]) == (["phi"], "n1, n2", 2)
    lines.clear()
    other.deleted()
    rig.tick(3)
    (withdrawn,) = (line for line in lines if line["msg"] == "withdrawn")
    assert (withdrawn["nodes"], withdrawn["why"]) == ("n1, n2", "no cache wants it any more")


def test_another_attempt_is_said_once_with_what_ended_the_last(lines: list[dict[str, Any]]) -> None:
    world = a_place("llama")
    cache = a_cache("llama")
    world.resolved(cache).reporting("n1", a_report(cache, Phase.FAILED, failure=BROKEN, attempt=1)).reporting("n2")
    rig = Rig(world)
    rig.tick(3)
    lines.clear()
    world.reporting("n1", a_report(cache, Phase.DOWNLOADING, attempt=2))
    rig.tick(5)
    (line,) = (line for line in lines if line["msg"] == "retrying")
    assert (line["nodes"], line["attempt"], line["reason"]) == ("n1", 2, "SourceUnreachable")


def test_the_next_turn_begins_with_how_much_there_is(lines: list[dict[str, Any]]) -> None:
    rig = Rig(a_place("llama", "phi"))
    rig.tick(2)
    rig.leading = False
    rig.tick(2)
    lines.clear()
    rig.leading = True
    rig.tick(3)
    first = next(line for line in lines if line["msg"] == "first plan")
    assert (first["caches"], first["nodes"], first["copies"]) == (2, 2, 4)
    assert taken(lines) == ["acting", "first plan"]
