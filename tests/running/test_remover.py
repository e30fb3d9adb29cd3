"""From the plan to the node: pods are looked at first, and a removal is said before it happens and after."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from actors.messages import NodeName
from coordinator.control.looks import AGAIN_S, FRESH_S, LOOKS_PER_S, Looks
from coordinator.dev.trial.builders import (
    OWNER,
    CacheBuilder,
    World,
    a_cache,
    a_group,
    a_node,
    a_pod,
    a_report,
    a_world,
    key_of,
)
from coordinator.kube.interface import Denied, KubeError
from coordinator.plan.snapshot import ORPHAN_GRACE_S, Snapshot
from tests.running.test_controller import AtOnce, Later, Rig

N1 = NodeName("n1")
DELETED = "2023-11-14T22:13:00Z"


def a_fleet(cache: CacheBuilder, nodes: int = 1) -> World:
    names = [f"n{number}" for number in range(1, nodes + 1)]
    world = a_world(cache, a_group(), a_group("other"), *(a_node(name) for name in names))
    for name in names:
        world.reporting(name, a_report(cache))
    return world


def ordered(rig: Rig) -> list[str]:
    assert rig.fleet.desired is not None
    return [order.key for state in rig.fleet.desired.values() for order in state.remove]


def said(rig: Rig) -> list[tuple[str, str]]:
    return [(name, reason) for name, _, reason in rig.told.events if reason in ("Removing", "Removed", "InUse")]


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "coordinator.control.remover"]


WISHES: dict[str, Callable[[Rig, CacheBuilder], object]] = {
    "a deletion": lambda rig, cache: cache.deleted(DELETED),
    "another node group": lambda rig, cache: cache.in_group("other"),
}


@pytest.mark.parametrize("case", WISHES)
def test_a_removal_is_said_before_and_after_and_once(case: str, caplog: pytest.LogCaptureFixture) -> None:
    cache = a_cache()
    rig = Rig(a_fleet(cache))
    rig.tick(5)
    with caplog.at_level("INFO", logger="coordinator.control.remover"):
        WISHES[case](rig, cache)
        rig.tick(4)
        assert ordered(rig) == [key_of(cache)]
        assert said(rig) == [("llama", "Removing")]
        assert lines(caplog) == ["removing a copy"]
        rig.tick(20)
        assert said(rig) == [("llama", "Removing")]
        rig.world.reporting("n1")
        rig.tick(5)
    assert said(rig) == [("llama", "Removing"), ("llama", "Removed")]
    assert lines(caplog) == ["removing a copy", "removed a copy"]


def test_the_end_of_an_orphan_is_said() -> None:
    cache, node = a_cache(), a_node("n1")
    world = a_world(cache, a_group(), node).reporting("n1", a_report(cache))
    rig = Rig(world)
    rig.tick(5)
    node.in_pool("none")
    rig.tick(5)
    assert said(rig) == []
    assert ("llama", "Warning", "NoMatchingNodes") in rig.told.events
    rig.now += ORPHAN_GRACE_S
    rig.tick(5)
    assert said(rig) == [("llama", "Removing")]


def test_many_nodes_share_an_event() -> None:
    cache = a_cache()
    rig = Rig(a_fleet(cache, nodes=9))
    rig.tick(5)
    cache.deleted(DELETED)
    rig.tick(5)
    assert len(ordered(rig)) == 9
    assert said(rig) == [("llama", "Removing")]


def test_a_copy_without_a_cache_is_said_on_its_node() -> None:
    cache = a_cache()
    rig = Rig(a_fleet(cache))
    rig.tick(5)
    rig.world.objects.remove(cache)
    rig.tick(5)
    assert said(rig) == [("n1", "Removing")]


def test_what_is_wanted_again_is_not_said_to_be_gone() -> None:
    cache = a_cache()
    rig = Rig(a_fleet(cache))
    rig.tick(5)
    cache.in_group("other")
    rig.tick(5)
    cache.in_group("gpu")
    rig.tick(5)
    assert ordered(rig) == []
    assert said(rig) == [("llama", "Removing")]


def test_a_pod_that_uses_the_copy_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    cache, pod = a_cache(), a_pod().on("n1").claiming("llama-gpu")
    rig = Rig(a_fleet(cache).add(pod))
    rig.tick(5)
    cache.deleted(DELETED)
    with caplog.at_level("INFO", logger="coordinator.control.remover"):
        rig.tick(60)
    assert ordered(rig) == []
    assert said(rig) == [("llama", "InUse")]
    assert lines(caplog) == ["a removal waits for pods that use the copy"]
    rig.world.objects.remove(pod)
    rig.tick(int(AGAIN_S) + 2)
    assert ordered(rig) == [key_of(cache)] or said(rig)[-1] == ("llama", "Removing")


WAITS: dict[str, tuple[str, Callable[[Rig, CacheBuilder], object]]] = {
    "of a cache that wants it elsewhere": ("llama", WISHES["another node group"]),
    "of a cache that is gone without a trace": ("n1", lambda rig, cache: rig.world.objects.remove(cache)),
}


@pytest.mark.parametrize("case", WAITS)
def test_a_copy_that_stays_for_a_pod_is_said_to(case: str) -> None:
    named, wish = WAITS[case]
    cache, pod = a_cache(), a_pod().on("n1").claiming("llama-gpu")
    rig = Rig(a_fleet(cache).add(pod))
    rig.tick(5)
    wish(rig, cache)
    rig.tick(60)
    assert ordered(rig) == []
    assert said(rig) == [(named, "InUse")]
    (message,) = (message for message in rig.told.messages if "stays while pods use it" in message)
    for word in ("n1", "default/server"):
        assert word in message
    rig.world.objects.remove(pod)
    rig.tick(int(AGAIN_S) + 2)
    assert (named, "Removing") in said(rig)


def test_where_pods_cannot_be_listed_nothing_goes_and_it_is_said() -> None:
    cache = a_cache()
    rig = Rig(a_fleet(cache))

    def forbidden(*_: object, **__: object) -> tuple[list[dict[str, object]], str]:
        raise Denied("pods is forbidden: User cannot list resource pods")

    rig.kube.list = forbidden  # type: ignore[method-assign,assignment]  # the fault under test
    rig.tick(5)
    cache.deleted(DELETED)
    rig.tick(60)
    assert ordered(rig) == []
    assert ("llama", "Warning", "PodsUnknown") in rig.told.events


def test_agents_that_keep_folders_aside_are_told_of_pods_from_time_to_time() -> None:
    cache = a_cache()
    rig = Rig(a_fleet(cache))
    rig.tick(3)
    assert rig.fleet.desired is not None
    assert rig.fleet.desired[N1].used is None
    report = rig.world.agents["n1"].report
    assert report is not None
    object.__setattr__(report, "aside", frozenset({key_of(cache)}))
    told = []
    for _ in range(30):
        rig.tick()
        told.append(rig.fleet.desired[N1].used)
    assert told.count({}) >= 2
    assert told.count(None) >= 2, "what was seen is not said for longer than it is fresh"


# --- the looks themselves ---


class Pods:
    """The pods of nodes, one list at a time."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fails: KubeError | None = None

    def list(self, _: object, *, field_selector: str) -> tuple[list[dict[str, object]], str]:
        self.asked.append(field_selector.removeprefix("spec.nodeName="))
        if self.fails is not None:
            raise self.fails
        return [], "1"


def looks_over(pods: Pods, clock: list[float], executor: AtOnce | Later | None = None) -> Looks:
    return Looks(pods, executor or AtOnce(), lambda: clock[0], lambda: None)  # type: ignore[arg-type]  # the part it uses


def fresh(looks: Looks, now: float) -> set[str]:
    return set(looks.see(Snapshot(OWNER), now).looked_at)


def test_a_look_is_fresh_for_seconds_and_made_again_after_some() -> None:
    pods, clock = Pods(), [100.0]
    looks = looks_over(pods, clock)
    looks.want([N1], 100.0)
    assert fresh(looks, 100.0 + FRESH_S) == {"n1"}
    assert fresh(looks, 100.1 + FRESH_S) == set()
    looks.want([N1], 99.9 + AGAIN_S)
    assert len(pods.asked) == 1
    looks.want([N1], 100.0 + AGAIN_S)
    assert len(pods.asked) == 2


def test_a_look_is_as_old_as_its_question() -> None:
    pods, clock, later = Pods(), [100.0], Later()
    looks = looks_over(pods, clock, later)
    looks.want([N1], 100.0)
    looks.want([N1], 101.0)
    clock[0] = 101.0
    later.run()
    assert len(pods.asked) == 1
    assert fresh(looks, 101.0 + FRESH_S) == {"n1"}
    assert fresh(looks, 101.5 + FRESH_S) == set()


def test_a_failed_look_is_not_fresh_and_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    pods, clock = Pods(), [100.0]
    looks = looks_over(pods, clock)
    pods.fails = Denied("pods is forbidden")
    with caplog.at_level(logging.WARNING):
        for now in (100.0, 100.0 + AGAIN_S, 100.0 + 2 * AGAIN_S):
            clock[0] = now
            looks.want([N1], now)
    assert fresh(looks, clock[0]) == set()
    assert looks.see(Snapshot(OWNER), clock[0]).looks[N1].failure == "pods is forbidden"
    assert len(pods.asked) == 3
    assert len(caplog.records) == 1, "said once"


@pytest.mark.slow
def test_many_nodes_are_looked_at_in_turn_at_a_bounded_pace() -> None:
    pods, clock = Pods(), [100.0]
    looks = looks_over(pods, clock)
    nodes = [NodeName(f"n{number}") for number in range(1000)]
    for step in range(400):
        clock[0] = 100.0 + step / 10
        looks.want(nodes, clock[0])
        assert len(pods.asked) <= LOOKS_PER_S * (1 + step / 10) + 1  # of rounding
    assert set(pods.asked) == set(nodes)
    asked = len(pods.asked)
    for step in range(2000):
        clock[0] = 140.0 + step / 10
        looks.want(nodes, clock[0])
    assert len(pods.asked) - asked <= 2 * len(nodes), "each node about every 100 s"
