"""What the controller may rely on of any `Fleet`: the fake, and the one on Ray."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors.errors import Failure
from actors.messages import DesiredState, NodeName, NodeReport
from coordinator.dev.laptop.raynodes import LocalRay
from coordinator.dev.trial.waiting import eventually
from coordinator.fleet.interface import AgentView, Fleet, node_label
from tests.kit.fake_fleet import FakeFleet, ScriptedAgent

A, B, NOWHERE = NodeName("node-a"), NodeName("node-b"), NodeName("node-nowhere")


class World:
    """A fleet, and how to break what it stands on."""

    def __init__(self, fleet: Fleet, kill: Callable[[NodeName], None], mend: Callable[[NodeName], None]) -> None:
        self.fleet, self.kill, self.mend = fleet, kill, mend

    def view(self, node: NodeName) -> AgentView:
        return self.fleet.views()[node]

    def report(self, node: NodeName, owner: str) -> NodeReport:
        """The node's report, once it answers for a desired state with this owner."""

        def answered() -> NodeReport | None:
            view = self.view(node)
            good = view.failure is None and view.report is not None and view.report.version == owner
            return view.report if good else None

        found = eventually(answered, timeout_s=60, seen=self.fleet.views)
        assert found is not None
        return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRay]:
    folder = tmp_path_factory.mktemp("r")
    cluster = LocalRay({A: {}, B: {}}, log=folder / "ray.log")
    saved = dict(os.environ)
    try:
        cluster.launch()
        cluster.join()
        os.environ.update(cluster.environment, PYTHONPATH=str(Path(__file__).parents[2]))
        yield cluster
    finally:
        cluster.stop()
        os.environ.clear()
        os.environ.update(saved)


@pytest.fixture(params=["fake", pytest.param("ray", marks=pytest.mark.ray)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "fake":
        fake = FakeFleet()
        yield World(fake, fake.break_agent, fake.mend_agent)
        return
    request.getfixturevalue("cluster")
    from coordinator.fleet.ray_fleet import RayFleet

    cluster: LocalRay = request.getfixturevalue("cluster")
    fleet = RayFleet(cluster.address, factory=ScriptedAgent)

    def kill(node: NodeName) -> None:
        report = fleet.views()[node].report
        assert report is not None
        os.kill(report.pid, signal.SIGKILL)

    yield World(fleet, kill, lambda node: None)
    fleet.close(stop_agents=True)


def test_every_node_of_the_last_sync_has_a_view_at_once(world: World) -> None:
    world.fleet.sync({A: DesiredState("one"), B: DesiredState("one")})
    assert set(world.fleet.views()) == {A, B}


def test_each_agent_pursues_the_latest_state_of_its_own_node(world: World) -> None:
    world.fleet.sync({A: DesiredState("for-a"), B: DesiredState("for-b")})
    assert world.report(A, "for-a").node == A
    assert world.report(B, "for-b").node == B

    world.fleet.sync({A: DesiredState("changed"), B: DesiredState("for-b")})
    assert world.report(A, "changed").incarnation == world.report(A, "changed").incarnation


def test_sync_and_views_return_at_once_whatever_the_agents_do(world: World) -> None:
    world.fleet.sync({A: DesiredState("one"), B: DesiredState("one"), NOWHERE: DesiredState("one")})
    started = time.monotonic()
    for _ in range(100):
        world.fleet.sync({A: DesiredState("one"), B: DesiredState("one")})
        world.fleet.views()
    assert time.monotonic() - started < 1.0


def test_an_agent_that_is_killed_comes_back_as_another_and_its_last_report_stays_meanwhile(world: World) -> None:
    world.fleet.sync({A: DesiredState("one"), B: DesiredState("one")})
    first, other = world.report(A, "one"), world.report(B, "one")
    world.kill(A)

    def noticed() -> bool:
        view = world.view(A)
        assert view.report is not None
        return view.failure is not None or view.report.incarnation != first.incarnation

    eventually(noticed, seen=world.fleet.views)
    world.mend(A)
    eventually(lambda: world.report(A, "one").incarnation != first.incarnation, timeout_s=60)
    assert world.report(B, "one").incarnation == other.incarnation


def test_an_error_inside_an_agent_is_its_own(world: World) -> None:
    world.fleet.sync({A: DesiredState("raise"), B: DesiredState("fine")})
    world.report(B, "fine")

    def failure() -> Failure | None:
        found = world.view(A).failure
        return found if found and found.reason == "AgentError" else None

    found = eventually(failure, timeout_s=30, seen=world.fleet.views)
    assert found is not None
    assert "the agent was told to fail" in found.message


def test_a_node_that_is_no_longer_wanted_has_no_view(world: World) -> None:
    world.fleet.sync({A: DesiredState("one"), B: DesiredState("one")})
    world.report(B, "one")
    world.fleet.sync({A: DesiredState("one")})
    assert set(world.fleet.views()) == {A}


@pytest.mark.parametrize("name", ["ip-10-0-0-1.eu-west-1.compute.internal", "n" * 63])
def test_a_node_name_that_is_a_label_value_is_one(name: str) -> None:
    assert node_label(NodeName(name)) == name


@pytest.mark.slow
def test_a_longer_node_name_becomes_a_label_value_of_its_own() -> None:
    labels = {node_label(NodeName("n" * length)) for length in (64, 128, 253)}
    assert len(labels) == 3
    assert all(len(label) <= 63 and label.startswith("sha256-") for label in labels)
