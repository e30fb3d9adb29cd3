"""The outcome of a fill is counted once, whoever leads, and the count outlasts what it is about."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from actors.errors import Failure
from actors.messages import Phase
from actors.times import rfc3339
from coordinator.control.metrics import MAX_NODES, Metrics, NodeSample
from coordinator.control.outcomes import Outcomes
from coordinator.dev.trial.builders import NOW, CacheBuilder, World, a_cache, a_group, a_node, a_report, a_world
from tests.running.test_controller import Rig
from tests.running.test_metrics import series

CACHE = a_cache("llama")
BROKEN = Failure("SourceUnreachable", "the origin went away")


@dataclass
class Counted:
    bytes: Counter[str] = field(default_factory=Counter)
    times: list[tuple[str, str, float]] = field(default_factory=list)

    def moved(self, location: str, count: int) -> None:
        self.bytes[location] += count

    def first_byte(self, outcome: str, seconds: float) -> None:
        self.times.append(("first byte", outcome, seconds))

    def filled(self, outcome: str, seconds: float) -> None:
        self.times.append(("fill", outcome, seconds))

    def became_ready(self, outcome: str, seconds: float) -> None:
        self.times.append(("ready", outcome, seconds))


class Watched:
    """A coordinator's count over one node; each `sees` is a turn of its loop, at so many seconds after NOW."""

    def __init__(self, world: World, *, acting_since: float = 0.0) -> None:
        self.world = world
        self.counted = Counted()
        self.outcomes = Outcomes(self.counted)
        self.acting_since = NOW + acting_since

    def sees(self, at: float, phase: Phase, *, origin: int = 0, peers: int = 0, **more: Any) -> None:
        given = {"started_at": NOW, "bytes_from_origin": origin, "bytes_from_peers": peers, **more}
        self.world.reporting("n1", a_report(CACHE, phase, **given))
        snapshot = replace(self.world.snapshot(), acting_since=self.acting_since)
        self.outcomes.observe(snapshot, NOW + at)


def a_cluster(cache: CacheBuilder = CACHE) -> World:
    return a_world(cache, a_group(), a_node("n1"))


def test_a_fill_counts_its_bytes_once_and_its_times() -> None:
    watched = Watched(a_cluster())
    watched.sees(1, Phase.DOWNLOADING)
    watched.sees(4, Phase.DOWNLOADING, origin=10, peers=5)
    watched.sees(5, Phase.DOWNLOADING, origin=10, peers=5)
    watched.sees(9, Phase.READY, origin=30, peers=70, bytes_reused=3, finished_at=NOW + 8)
    watched.sees(10, Phase.READY, origin=30, peers=70, bytes_reused=3, finished_at=NOW + 8)
    assert watched.counted.bytes == {"origin": 30, "peers": 70, "disk": 3}
    assert watched.counted.times == [("first byte", "arrived", 4.0), ("fill", "ready", 8.0)]


def test_a_fill_within_one_turn_counts_too() -> None:
    watched = Watched(a_cluster())
    watched.sees(2, Phase.READY, origin=30, finished_at=NOW + 1)
    assert watched.counted.bytes == {"origin": 30}
    assert watched.counted.times == [("first byte", "arrived", 1.0), ("fill", "ready", 1.0)]


def test_an_attempt_fails_once_and_what_it_read_counts() -> None:
    watched = Watched(a_cluster())
    for at in (3, 4):
        watched.sees(at, Phase.PENDING, failure=BROKEN, attempt=1)
    watched.sees(9, Phase.PENDING, origin=7, failure=BROKEN, attempt=2)
    assert watched.counted.times == [("fill", "failed", 3.0), ("first byte", "failed", 3.0), ("fill", "failed", 9.0)]
    assert watched.counted.bytes == {"origin": 7}


def test_a_copy_that_is_fetched_again_counts_again() -> None:
    watched = Watched(a_cluster())
    watched.sees(2, Phase.READY, origin=30, finished_at=NOW + 1)
    watched.sees(20, Phase.DOWNLOADING, origin=4, started_at=NOW + 18)
    watched.sees(30, Phase.READY, origin=30, started_at=NOW + 18, finished_at=NOW + 29)
    assert watched.counted.bytes == {"origin": 60}
    assert watched.counted.times[-1] == ("fill", "ready", 11.0)


def test_clocks_that_differ_make_no_time_negative() -> None:
    watched = Watched(a_cluster())
    watched.sees(0, Phase.DOWNLOADING, origin=1, started_at=NOW + 60)
    assert watched.counted.times == [("first byte", "arrived", 0.0)]


def test_a_new_leader_goes_on_from_what_was_written() -> None:
    world = a_cluster()
    world.resolved(CACHE)
    first = Watched(world)
    first.sees(1, Phase.DOWNLOADING, origin=10, peers=5)
    world.settle()
    second = Watched(world, acting_since=3)
    second.sees(4, Phase.DOWNLOADING, origin=12, peers=9)
    assert first.counted.bytes == {"origin": 10, "peers": 5}
    assert second.counted.bytes == {"origin": 2, "peers": 4}
    assert second.counted.times == [], "the first byte was the other's"


def test_a_copy_of_long_ago_that_nothing_is_written_of_counts_nothing() -> None:
    watched = Watched(a_cluster(), acting_since=100)
    watched.sees(101, Phase.READY, origin=30, finished_at=NOW + 8)
    assert (watched.counted.bytes, watched.counted.times) == ({}, [])


def conditioned(status: str, since: float) -> World:
    cache = a_cache("llama")
    condition = {"type": "Ready", "status": status, "reason": "x", "lastTransitionTime": rfc3339(NOW + since)}
    return a_cluster(cache.with_status(conditions=[condition]))


def test_the_time_until_a_cache_is_ready_is_that_between_its_two_conditions() -> None:
    counted = Counted()
    outcomes = Outcomes(counted)
    for world in (conditioned("False", 10), conditioned("True", 52), conditioned("True", 52)):
        outcomes.observe(world.snapshot(), NOW + 60)
    assert counted.times == [("ready", "ready", 42.0)]
    for world in (conditioned("False", 70), World()):
        outcomes.observe(world.snapshot(), NOW + 100)
    assert counted.times[1:] == [("ready", "deleted", 30.0)]


def test_a_cache_that_was_ready_before_is_not_timed() -> None:
    counted = Counted()
    outcomes = Outcomes(counted)
    outcomes.observe(conditioned("False", 10).snapshot(), NOW + 20)
    outcomes.begin()
    outcomes.observe(conditioned("True", 52).snapshot(), NOW + 60)
    assert counted.times == []


def test_the_controller_counts_and_what_is_gone_stays_counted() -> None:
    world = a_cluster()
    world.resolved(CACHE)
    rig = Rig(world)
    rig.tick(2)
    world.reporting("n1", a_report(CACHE, Phase.DOWNLOADING, done=10, started_at=NOW))
    rig.tick(2)
    assert series(rig.metrics)["localmodel_read_bytes_total", (("location", "origin"),)] == 10
    disks = {labels: value for (name, labels), value in series(rig.metrics).items() if "node_disk" in name}
    assert disks[("node", "n1"), ("use", "free")] > 0
    world.objects = [each for each in world.objects if each.json["kind"] != "LocalModelCache"]
    world.reporting("n1")
    rig.tick(2)
    assert series(rig.metrics)["localmodel_read_bytes_total", (("location", "origin"),)] == 10


def test_a_cluster_of_any_size_has_a_bounded_number_of_series() -> None:
    metrics = Metrics("1")
    metrics.show([], {}, nodes=[NodeSample(f"n{number:04}") for number in range(MAX_NODES + 100)])
    nodes = {dict(labels)["node"] for name, labels in series(metrics) if name == "localmodel_node_disk_bytes"}
    assert len(nodes) == MAX_NODES
    assert max(nodes) == f"n{MAX_NODES - 1:04}"
