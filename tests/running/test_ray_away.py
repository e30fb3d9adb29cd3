"""Agents that do not answer: the reason that is said stays the same while what is the matter does.

And a Ray head that cannot be reached: it is said once, whatever the loop tells the fleet meanwhile, and tried again.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from actors.messages import DesiredState, NodeName, NodeReport
from actors.retry import Backoff
from coordinator.dev.trial.waiting import eventually
from coordinator.fleet import ray_fleet as rayfleet
from coordinator.fleet.ray_fleet import RayFleet

N1 = NodeName("n1")

LIVES: dict[str, tuple[list[tuple[str, float]], list[str]]] = {
    "its pod is replaced": (
        [("unavailable", 1), ("died", 3), ("no Ray node", 4), ("no Ray node", 40), ("made", 41)],
        ["AgentRestarting"],
    ),
    "its pod is replaced, and nobody says so": (
        [("silent", 11), ("silent", 14), ("died", 15), ("no Ray node", 16), ("made", 30), ("unavailable", 31)],
        ["AgentRestarting"],
    ),
    "its pod does not come back": (
        [("unavailable", 1), ("died", 3), ("no Ray node", 30), ("no Ray node", 59), ("no Ray node", 62)],
        ["AgentRestarting", "NoRayNode"],
    ),
    "its host hangs": (
        [("silent", 11), ("silent", 50), ("silent", 62), ("silent", 600)],
        ["AgentRestarting", "AgentUnavailable"],
    ),
    "its host hangs until Ray gives it up": (
        [("silent", 11), ("silent", 62), ("died", 63), ("made", 64), ("unavailable", 65), ("made", 67)],
        ["AgentRestarting", "AgentUnavailable"],
    ),
}


@pytest.mark.parametrize("case", LIVES)
def test_the_reason_does_not_change_to_and_fro(case: str) -> None:
    happenings, expected = LIVES[case]
    slot = rayfleet._Slot(N1, Backoff(random.Random(1), first_s=0.5, max_s=60.0), lambda: 0.0)
    slot.stage = rayfleet._Stage.JOINING
    slot.answered("1", "1", 0.5)
    slot.answered(NodeReport(N1, "first", "1", 0), "1", 1.0)
    said = [reason(slot)]
    slot.called_at = 1.0
    for happening, at in happenings:
        match happening:
            case "silent":
                slot.silent(at)
            case "unavailable":
                slot.broken(ActorUnavailableError("the actor is unavailable", None), at)
            case "died":
                slot.broken(ActorDiedError(), at)
            case "no Ray node":
                slot.fail(slot.away(at, ray_node=False))
            case "made":
                slot.made(object(), at)
        said.append(reason(slot))
    slot.stage = rayfleet._Stage.SERVING
    slot.answered(NodeReport(N1, "second", "1", 0), "1", 700.0)
    said.append(reason(slot))
    assert [each for each, after in pairwise([*said, "end"]) if each != after] == ["", *expected, ""]


def reason(slot: rayfleet._Slot) -> str:
    return slot.view.failure.reason if slot.view.failure is not None else ""


def test_an_agent_that_was_never_there_lacks_its_ray_node() -> None:
    slot = rayfleet._Slot(N1, Backoff(random.Random(1), first_s=0.5, max_s=60.0), lambda: 0.0)
    assert slot.away(1.0, ray_node=False).reason == "NoRayNode"


@pytest.mark.slow
def test_it_is_said_once_and_tried_again_with_patience(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[float] = []
    answers: list[Callable[[], Any]] = [refuse]

    def connect(_: object) -> None:
        tried.append(time.monotonic())
        answers[0]()

    monkeypatch.setattr(rayfleet.RayFleet, "_connect", connect)
    monkeypatch.setattr(rayfleet.RayFleet, "_turn", lambda *_: None)
    fleet = RayFleet("127.0.0.9:1", factory=lambda node: None)  # type: ignore[arg-type,return-value]  # never started
    try:
        with caplog.at_level(logging.INFO, "coordinator.fleet.ray_fleet"):
            began = time.monotonic()
            while time.monotonic() < began + 2.0:
                fleet.sync({N1: DesiredState("owner")})
                time.sleep(0.02)
            assert 1 <= len(tried) <= 4, "a tick is no reason to ask again"
            failure = fleet.views()[N1].failure
            assert failure is not None
            assert failure.reason == "RayUnavailable"
            answers[0] = lambda: None
            eventually(lambda: "Ray can be used again" in caplog.messages, timeout_s=10.0)
    finally:
        fleet.close(stop_agents=False)
    assert caplog.messages == ["Ray cannot be used", "Ray can be used again"]


def refuse() -> None:
    raise ConnectionError("the head does not answer")
