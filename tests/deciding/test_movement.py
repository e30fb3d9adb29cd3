"""How long a plan says that it takes, beside the simulator (agents in virtual time) and beside a recorded run."""

from __future__ import annotations

from typing import Any

import pytest

from actors.messages import NodeName, Phase, RootReport
from coordinator.dev.simulation.fleet import Fleet, Scenario
from coordinator.dev.trial.builders import NOW, a_cache, a_group, a_node, a_report, a_world
from coordinator.plan.applied import applied, by_kind, snapshot_of
from coordinator.plan.forecast import BEGIN_S, Assumed, Forecast, forecast
from coordinator.plan.movement import Fetch, Movement, movement, origin_of
from coordinator.plan.snapshot import Snapshot

MIB, GIB = 1 << 20, 1 << 30
GBIT = 1e9 / 8
NOBODY = Snapshot(owner="", caches={}, groups={}, nodes={}, local_nodes={}, agents={})


def nodes(count: int, start: int = 0) -> list[NodeName]:
    return [NodeName(f"n{number}") for number in range(start, start + count)]


def moved(*fetches: Fetch, link: float = 100.0, origin: float | None = 50.0) -> Movement:
    return movement(NOBODY, fetches, link, origin)


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario("the origin is slower", 8, 128 * MIB, GBIT, 0.2 * GBIT),
        Scenario("as fast as the links", 8, 128 * MIB, 0.2 * GBIT, 0.2 * GBIT),
        Scenario("the origin is faster", 4, 256 * MIB, 0.2 * GBIT, 2 * GBIT),
        Scenario("more nodes", 16, 128 * MIB, 0.5 * GBIT, 0.2 * GBIT, segments=1),
        Scenario("one node", 1, 128 * MIB, GBIT, 0.5 * GBIT),
    ],
    ids=lambda scenario: scenario.case,
)
def test_the_last_node_is_done_within_a_fifth_of_what_the_simulator_says(scenario: Scenario) -> None:
    fleet = Fleet(scenario, seed=1)
    fleet.run()
    last = max(node.done_at or 0.0 for node in fleet.nodes.values())

    said = moved(Fetch(scenario.model_bytes, nodes(scenario.nodes)), link=scenario.link, origin=scenario.origin).seconds
    assert max(said.values()) == pytest.approx(last, rel=0.2)


TOOK_S = (12.92, 12.64)
"""48Mi on three nodes of a laptop cluster, twice: eight connections to an origin that gave 512Ki a second to each."""
WROTE = {"startedAt": "2026-11-28T04:11:58Z", "finishedAt": "2026-11-28T04:12:11Z"}


def recorded() -> list[Any]:
    """The objects as they stood after the first of the two."""
    sample = a_cache("a", "hf://localmodel/sample").with_spec(modelSize=48 * MIB)
    world = a_world(a_group(), sample)
    moved = {"node-1": (15730420, 34601228), "node-2": (17825884, 32505764), "node-3": (16775344, 33556304)}
    for name in moved:
        report = a_report(sample, total=48 * MIB)
        world.add(a_node(name)).reporting(name, report, roots=(RootReport("/models", 80 * GIB, 48 * MIB),))
    world.settle()
    written = {
        "startedAt": WROTE["startedAt"],
        "completedAt": WROTE["finishedAt"],
        "bytes": {"total": 50331648, "fromOrigin": 50331648, "fromPeers": 100663296},
    }
    cache = world.find("LocalModelCache", "a")
    assert cache is not None
    cache["status"] |= written
    for name, (origin, peers) in moved.items():
        node = world.find("LocalModelNode", name)
        assert node is not None
        (detail,) = node["status"]["models"]
        detail |= WROTE | {"bytesFromOrigin": origin, "bytesFromPeers": peers}
    return [each.json for each in world.objects]


def foreseen(objects: list[Any], *manifests: Any, **assumed: Any) -> Forecast:
    before = by_kind(objects)
    after = applied(before, [each.json for each in manifests], NOW)
    return forecast(snapshot_of(before, after, NOW), NOW, Assumed(**assumed))


def test_what_an_earlier_fill_took_foretells_the_next_within_a_fifth() -> None:
    again = a_cache("b", "hf://localmodel/sample2").with_spec(modelSize=48 * MIB)
    found = foreseen(recorded(), again)

    assert sorted(found.moving.seconds) == ["node-1", "node-2", "node-3"]
    assert (found.moving.origin_bytes, found.moving.peer_bytes) == (48 * MIB, 96 * MIB)
    for took in TOOK_S:
        assert found.ready_in(1.0) == pytest.approx(took, rel=0.2)


def test_a_rate_of_the_origin_that_is_given_foretells_the_first_within_a_fifth() -> None:
    objects = [each for each in recorded() if each["kind"] != "LocalModelCache"]
    for each in objects:
        (each.get("status") or {}).pop("models", None)
    first = a_cache("a", "hf://localmodel/sample").with_spec(modelSize=48 * MIB)
    found = foreseen(objects, first, origin_bytes_per_s=8 * 512 * 1024)

    assert found.ready_in(1.0) == pytest.approx(TOOK_S[0], rel=0.2)
    assert found.ready_in(0.0) == BEGIN_S + 12.0


# --- what shares what ---


def test_models_of_one_origin_share_it_and_the_smaller_is_there_first() -> None:
    found = moved(Fetch(100, nodes(1), origin="hf"), Fetch(300, nodes(1, 1), origin="hf"))

    assert dict(found.seconds) == {"n0": 4.0, "n1": 8.0}
    assert found.origin_bytes == 400


def test_origins_do_not_wait_for_each_other() -> None:
    found = moved(Fetch(100, nodes(1), origin="hf"), Fetch(300, nodes(1, 1), origin="s3://bucket"))

    assert dict(found.seconds) == {"n0": 2.0, "n1": 6.0}


def test_a_link_carries_all_that_its_node_takes() -> None:
    found = moved(Fetch(100, nodes(2), origin="a"), Fetch(100, nodes(1), origin="b"), origin=1000.0)

    assert dict(found.seconds) == {"n0": 2.0, "n1": 1.0}


def test_a_lone_seed_gives_all_its_models_over_one_link() -> None:
    found = moved(Fetch(100, nodes(1), nodes(1, 9)), Fetch(100, nodes(1, 1), nodes(1, 9)))

    assert dict(found.seconds) == {"n0": 2.0, "n1": 2.0}
    assert found.origin_bytes == 0


def test_seeds_share_what_they_give() -> None:
    found = moved(Fetch(100, nodes(1), nodes(2, 8)), Fetch(100, nodes(1, 1), nodes(2, 8)))

    assert dict(found.seconds) == {"n0": 1.0, "n1": 1.0}


def test_what_is_under_way_takes_its_part_of_link_and_origin_until_it_is_there() -> None:
    arriving = Fetch(100, arriving={NodeName("n0"): 60}, origin="hf")
    found = moved(arriving, Fetch(100, nodes(2), origin="hf"))

    assert arriving.unread == 60
    assert dict(found.seconds) == {"n0": 3.2, "n1": 3.2}
    assert (found.origin_bytes, found.peer_bytes) == (100, 100)


def test_a_node_that_has_fetched_nothing_yet_of_what_is_under_way_has_all_of_it_to_come() -> None:
    llama = a_cache("llama", "hf://a/llama").with_spec(modelSize=10 * GIB)
    world = a_world(a_group(), llama, a_node("n0"))
    world.reporting(
        "n0",
        a_report(llama, Phase.DOWNLOADING, total=10 * GIB, done=0),
        roots=(RootReport("/models", 80 * GIB, 0, 10 * GIB),),
    ).settle()
    objects = [each.json for each in world.objects]
    new = a_cache("new", "hf://a/new").with_spec(modelSize=10 * GIB)

    assert foreseen(objects, new, link_bytes_per_s=float(GIB)).moment(1.0) == pytest.approx(20.0)


@pytest.mark.parametrize(
    ("uri", "origin"),
    [
        ("hf://owner/name:main", "hf"),
        ("s3://bucket/a/b", "s3://bucket"),
        ("https://host:8443/a", "https://host:8443"),
    ],
)
def test_a_hub_a_server_and_a_bucket_have_a_rate_each(uri: str, origin: str) -> None:
    assert origin_of(uri) == origin
