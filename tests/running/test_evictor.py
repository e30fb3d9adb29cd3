"""From the plan to the disk: what is said, what is looked at first, and that what was said is what happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.manifest import ModelSource, Resolved
from actors.messages import DesiredState, NodeReport
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.builders import World, a_cache, a_group, a_node, a_pod, a_world, key_of
from coordinator.dev.trial.waiting import eventually
from coordinator.plan.eviction import Eviction, Policy
from coordinator.plan.snapshot import Resolution
from tests.deciding.test_eviction import IDLE_S, N1, a_full_world
from tests.kit.fake_fleet import FakeFleet, ScriptedAgent
from tests.kit.nodes import Node
from tests.running.test_controller import Later, Listed, Rig

MIB = 1 << 20

# --- what the controller does with a plan ---


def a_rig(world: World, *, dry_run: bool = False, **options: Any) -> Rig:
    return Rig(world, eviction=Policy(IDLE_S, dry_run), **options)


def ordered(rig: Rig) -> list[str]:
    assert rig.fleet.desired is not None
    return [order.key for order in rig.fleet.desired[N1].remove]


def test_an_order_is_given_once_the_pods_of_the_node_were_looked_at() -> None:
    rig = a_rig(a_full_world())
    rig.tick()
    assert ordered(rig) == []
    rig.tick()
    assert ordered(rig) == [key_of(a_cache("here"))]


def test_a_dry_run_says_who_would_go_once_and_orders_nothing(caplog: pytest.LogCaptureFixture) -> None:
    rig = a_rig(a_full_world(), dry_run=True)
    with caplog.at_level("INFO", logger="coordinator.control.eviction_guard"):
        for _ in range(5):
            rig.tick()
            assert ordered(rig) == []
    (said,) = [record for record in caplog.records if record.name == "coordinator.control.eviction_guard"]
    assert said.message == "would evict"
    assert {name: vars(said)[name] for name in ("node", "model", "for")} == {
        "node": "n1",
        "model": "here",
        "for": "new",
    }
    assert [event for event in rig.told.events if event[2] == "WouldEvict"] == [("here", "Normal", "WouldEvict")]


def test_without_a_policy_nothing_is_said_and_nothing_is_ordered() -> None:
    rig = Rig(a_full_world())
    rig.tick(5)
    assert ordered(rig) == []
    assert "WouldEvict" not in [event[2] for event in rig.told.events]


def test_a_pod_that_the_watch_has_not_shown_yet_is_seen_by_the_look() -> None:
    world = a_full_world()
    rig = a_rig(world)
    assert isinstance(rig.informers.pods, Listed)
    rig.informers.pods.freeze()
    world.add(a_pod().on("n1").claiming("here-gpu"))
    for _ in range(10):
        rig.tick()
        assert ordered(rig) == []


def test_a_look_that_has_not_been_answered_holds_the_order_back_and_is_not_repeated() -> None:
    executor = Later()
    rig = a_rig(a_full_world(), executor=executor)
    rig.tick(3)
    executor.run()
    rig.tick()
    assert ordered(rig) == [key_of(a_cache("here"))]


def test_a_look_that_is_too_old_is_made_again() -> None:
    rig = a_rig(a_full_world())
    rig.tick(2)
    assert ordered(rig) != []
    rig.now += 60
    rig.tick()
    assert ordered(rig) == []
    rig.tick()
    assert ordered(rig) != []


@pytest.mark.parametrize("broken", [{"synced": False}, {"failure": "403"}], ids=["never listed", "cannot be watched"])
def test_while_pods_cannot_be_watched_nothing_is_evicted_and_all_else_goes_on(broken: dict[str, Any]) -> None:
    rig = a_rig(a_full_world())
    for name, value in broken.items():
        setattr(rig.informers.pods, name, value)
    rig.tick(4)
    assert ordered(rig) == []
    assert ("patch status", "here") in rig.writes()
    assert rig.informers.synced


# --- what was said is what happens ---

SIZES = {"oldest": 2, "old": 3, "pinned": 3, "used": 2, "big": 4}
LIMIT_MIB = 10


class Housed(ScriptedAgent):
    """A real node agent behind the fake fleet."""

    def __init__(self, node: Node) -> None:
        self._agent = node.agents[-1]

    def reconcile(self, desired: DesiredState) -> NodeReport:
        return self._agent.reconcile(desired)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Resolved]]:
    repos = {}
    for name, size in SIZES.items():
        repos[f"m/{name}"] = folder = tmp_path_factory.mktemp(name)
        (folder / "model.safetensors").write_bytes(name[:1].encode() * (size * MIB))
    with Origin(repos) as origin:
        options = SourceOptions({"HF_ENDPOINT": origin.hub_endpoint})
        yield {name: resolve(ModelSource(f"hf://m/{name}"), options) for name in SIZES}


class House:
    """One node with a real disk and a real agent on it, and the coordinators that come and go."""

    def __init__(self, folder: Path, sources: dict[str, Resolved]) -> None:
        self.node = Node(folder)
        self.node.agent()
        self.world = a_world(a_group().with_spec(storageLimit=f"{LIMIT_MIB}Mi"), a_node("n1"))
        self._sources = sources
        self._fleet = FakeFleet(lambda _: Housed(self.node))
        self.rig = self.coordinated(None)

    def coordinated(self, policy: Policy | None) -> Rig:
        """By a coordinator that has just been started."""
        self.rig = Rig(self.world, fleet=self._fleet, eviction=policy)
        self.rig.now = time.time()
        return self.rig

    def wants(self, name: str, **spec: Any) -> None:
        cache = a_cache(name, f"hf://m/{name}").with_spec(modelSize=f"{SIZES[name]}Mi", **spec)
        self.world.add(cache).resolutions[cache.key] = Resolution(self._sources[name])

    def held(self) -> set[str]:
        return {name for name in SIZES if self.node.folder(f"hf://m/{name}").exists()}

    def tick(self) -> tuple[Eviction, ...]:
        """Who would go, as of now."""
        self.rig.now = max(self.rig.now, time.time())
        made = self.rig.controller.tick()
        assert made is not None
        return made.evictions

    def until(self, fact: Callable[[tuple[Eviction, ...]], object]) -> tuple[Eviction, ...]:
        """Ticks until it is so."""
        last: list[tuple[Eviction, ...]] = [()]

        def ticked() -> object:
            last[0] = self.tick()
            return fact(last[0])

        eventually(ticked, timeout_s=30, every_s=0.02, seen=self.held)
        return last[0]


@pytest.fixture
def house(tmp_path: Path, sources: dict[str, Resolved]) -> Iterator[House]:
    """Four models, one pinned and one used by a pod, fill the disk one after the other; then a big one comes."""
    house = House(tmp_path / "host", sources)
    house.world.add(a_pod().on("n1").claiming("used-gpu"))
    with house.node:
        for name in ("oldest", "old", "pinned", "used"):
            house.wants(name, pinned=name == "pinned")
            house.until(lambda _, name=name: name in house.held())  # type: ignore[misc]  # bound now, not when called
        house.wants("big")
        yield house


@pytest.mark.slow
def test_what_the_dry_run_said_is_what_happens_and_then_nothing_more(house: House) -> None:
    before = house.held()
    house.coordinated(Policy(idle_s=0.001, dry_run=True))
    said = house.until(lambda going: going)
    assert {each.caches[0] for each in said} == {"oldest", "old"}
    for _ in range(5):
        assert house.tick() == said
    assert house.held() == before, "a dry run touches nothing"

    rig = house.coordinated(Policy(idle_s=0.001))
    house.until(lambda _: "big" in house.held())
    assert before - house.held() == {each.caches[0] for each in said}
    assert [event for event in rig.told.events if event[2] == "WouldEvict"] == []
    house.until(lambda _: {("oldest", "Warning", "Evicted"), ("old", "Warning", "Evicted")} <= set(rig.told.events))

    house.coordinated(Policy(idle_s=0.001))  # all that matters is on the disk and in Kubernetes
    for _ in range(20):
        assert house.tick() == ()
        house.rig.now += 3600.0
    assert house.held() == {"pinned", "used", "big"}
    eventually(lambda: house.node.left_behind() == [], seen=house.node.left_behind)
