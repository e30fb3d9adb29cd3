"""The garbage collector does not run while a plan is made, and is afterwards as it was."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from coordinator.cli import main
from coordinator.cli import plan as command
from coordinator.collector import paused
from coordinator.control import controller
from coordinator.dev.trial.builders import a_cache, a_group, a_node, a_world
from coordinator.plan.forecast import forecast
from coordinator.plan.plan import plan
from tests.running.test_controller import Rig

on_or_off = pytest.mark.parametrize("on", [True, False])


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """Each test leaves it as it found it, also one that fails."""
    was_on = gc.isenabled()
    yield
    (gc.enable if was_on else gc.disable)()


def switch(*, on: bool) -> None:
    (gc.enable if on else gc.disable)()


def watched(function: Callable[..., object], seen: list[bool]) -> Callable[..., object]:
    """The same function, which says whether the collector was on when it was called."""

    def called(*given: object) -> object:
        seen.append(gc.isenabled())
        return function(*given)

    return called


@on_or_off
def test_it_is_as_before_after_what_returns_or_raises(on: bool) -> None:
    switch(on=on)
    with paused():
        assert not gc.isenabled()
        with paused():
            assert not gc.isenabled()
        assert not gc.isenabled(), "the outer one goes on"
    assert gc.isenabled() == on
    with pytest.raises(KeyError), paused():
        raise KeyError
    assert gc.isenabled() == on


@on_or_off
def test_the_coordinator_plans_without_it(on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(controller, "plan", watched(plan, seen))
    rig = Rig(a_world(a_cache(), a_group(), a_node("n1")))
    switch(on=on)
    rig.tick()
    assert (set(seen), gc.isenabled()) == ({False}, on)
    assert rig.writes()


@on_or_off
def test_a_plan_that_fails_leaves_it_as_it_was(on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: object) -> object:
        raise TypeError("unhashable type: 'list'")

    seen: list[bool] = []
    monkeypatch.setattr(controller, "plan", watched(fails, seen))
    rig = Rig(a_world(a_cache(), a_group(), a_node("n1")))
    switch(on=on)
    with pytest.raises(TypeError):
        rig.tick()
    assert (set(seen), gc.isenabled()) == ({False}, on)


@on_or_off
def test_so_does_the_command(
    on: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(command, "forecast", watched(forecast, seen))
    new, there = tmp_path / "new.yaml", tmp_path / "there.yaml"
    new.write_text(yaml.safe_dump(a_cache("new").json))
    there.write_text(yaml.safe_dump_all([a_group().json, a_node("n1").json]))
    switch(on=on)
    main(["plan", "-f", str(new), "--cluster", str(there)])
    assert (seen, gc.isenabled()) == ([False], on)
    assert "new" in capsys.readouterr().out
