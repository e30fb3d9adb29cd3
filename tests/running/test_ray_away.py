"""A fleet whose Ray head cannot be reached: it says so once, whatever the loop tells it meanwhile, and tries again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import pytest

from actors.messages import DesiredState, NodeName
from coordinator.dev.trial.waiting import eventually
from coordinator.fleet import ray_fleet as rayfleet
from coordinator.fleet.ray_fleet import RayFleet

N1 = NodeName("n1")


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
