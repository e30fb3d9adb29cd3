"""An object that makes every plan raise: found, named, left out until it changes, and never taken for deleted."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from actors.messages import NodeName
from coordinator.control import controller
from coordinator.control.quarantine import FAILURES
from coordinator.dev.trial.builders import World, a_cache, a_group, a_node, a_report, a_world, key_of
from coordinator.plan.plan import Plan, plan
from coordinator.plan.snapshot import Snapshot
from tests.running.test_controller import Rig

BAD: dict[str, Callable[[Snapshot], bool]] = {
    "caches/bad": lambda s: "bad" in s.caches,
    "groups/old": lambda s: "old" in s.groups,
    "nodes/n2": lambda s: "n2" in s.nodes,
    "local_nodes/n2": lambda s: "n2" in s.local_nodes,
    "agents/n2": lambda s: s.agents.get(NodeName("n2")) is not None and s.agents[NodeName("n2")].report is not None,
}
N1 = NodeName("n1")


def a_full_world() -> World:
    good, bad = a_cache("good"), a_cache("bad")
    world = a_world(good, bad, a_group(), a_group("old"), a_node("n1"), a_node("n2"))
    for node in ("n1", "n2"):
        world.reporting(node, a_report(good), a_report(bad))
    world.settle()
    return world


def poison(monkeypatch: pytest.MonkeyPatch, *bad: Callable[[Snapshot], bool]) -> None:
    """From now on no plan can be made with these."""

    def fragile(snapshot: Snapshot, *rest: object) -> Plan:
        if any(is_there(snapshot) for is_there in bad):
            raise TypeError("unhashable type: 'list'")
        return plan(snapshot, *rest)  # type: ignore[arg-type]  # as it was called

    monkeypatch.setattr(controller, "plan", fragile)


def fail(rig: Rig) -> None:
    """As often as one object may."""
    for _ in range(FAILURES - 1):
        with pytest.raises(TypeError):
            rig.controller.tick()


@pytest.mark.parametrize("case", BAD)
def test_it_is_named_and_the_others_go_on(
    case: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = a_full_world()
    rig = Rig(world)
    poison(monkeypatch, BAD[case])
    world.add(a_cache("new"))
    fail(rig)
    rig.tick(3)
    kind, name = case.split("/")
    assert (name, "Warning", "LeftOut") in rig.told.events
    (said,) = [record for record in caplog.records if record.levelname == "ERROR" and "left out" in record.message]
    assert (vars(said)["kind"], vars(said)["object"]) == (kind, name)
    new = world.find("LocalModelCache", "new")
    assert new is not None
    assert "n1" in new["status"]["nodeStatus"]


@pytest.mark.parametrize("case", BAD)
def test_nothing_is_removed_because_of_it(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world = a_full_world()
    rig = Rig(world)
    poison(monkeypatch, BAD[case])
    fail(rig)
    for _ in range(10):
        rig.tick()
        assert rig.fleet.desired is not None
        assert [state.remove for state in rig.fleet.desired.values() if state.remove] == []
    assert ("delete", "n2") not in rig.writes()
    assert world.find("LocalModelNode", "n2") is not None


def test_it_is_tried_again_when_it_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    world = a_full_world()
    rig = Rig(world)
    poison(monkeypatch, BAD["caches/bad"])
    fail(rig)
    rig.tick()
    assert rig.fleet.desired is not None
    assert [model.key for model in rig.fleet.desired[N1].models] == [key_of(a_cache("good"))]
    monkeypatch.undo()
    rig.tick()
    assert len(rig.fleet.desired[N1].models) == 1, "nothing has changed"
    bad = world.find("LocalModelCache", "bad")
    assert bad is not None
    bad["metadata"]["resourceVersion"] = "99"
    rig.tick()
    assert len(rig.fleet.desired[N1].models) == 2


def test_several_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(a_full_world())
    poison(monkeypatch, BAD["caches/bad"], BAD["groups/old"], BAD["local_nodes/n2"])
    fail(rig)
    rig.tick()
    assert {name for name, _, reason in rig.told.events if reason == "LeftOut"} == {"bad", "old", "n2"}


def test_one_that_fails_now_and_then_is_not_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(a_full_world())
    for _ in range(5):
        poison(monkeypatch, BAD["caches/bad"])
        fail(rig)
        monkeypatch.undo()
        rig.tick()
    assert [event for event in rig.told.events if event[2] == "LeftOut"] == []


@pytest.mark.slow
def test_where_it_is_no_object_the_loop_goes_on_failing_and_is_not_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(a_full_world())
    poison(monkeypatch, lambda _: True)
    monkeypatch.setattr(controller, "STANDSTILL_S", 0.0)
    stop = threading.Event()
    turns: list[int] = []

    def failed() -> None:
        turns.append(len(turns))
        if len(turns) > 2 * FAILURES:
            stop.set()

    monkeypatch.setattr(rig.metrics, "tick_failed", failed)
    rig.controller.run(stop, tick_s=0.001)
    assert "TypeError" in (rig.controller.standstill() or "")
    assert [event for event in rig.told.events if event[2] == "LeftOut"] == []


def test_a_loop_that_turns_is_ready() -> None:
    rig = Rig(a_full_world())
    assert rig.controller.standstill() is None
