"""A small fleet in virtual time: the same code as the benchmark, small enough for every test run."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.fleet import POLL_S, Fleet, Scenario
from benchmarks.simulate import GBIT, result

SMALL = Scenario("small", 8, 128 << 20, 0.2 * GBIT, 0.2 * GBIT)


def test_a_small_fleet_reads_the_origin_once_and_is_hardly_slower_than_one_node() -> None:
    fleet = Fleet(SMALL, seed=1)
    fleet.run()
    row = result(fleet)
    assert row["origin"] == 1.0
    assert row["over"] < 1.15
    assert row["coordinator_messages_per_s"] <= SMALL.nodes / POLL_S


def test_a_death_and_late_joiners_cost_the_origin_hardly_anything() -> None:
    fleet = Fleet(replace(SMALL, dying=1 / 8, late=1 / 8), seed=1)
    fleet.run()
    row = result(fleet)
    assert row["origin"] <= 1.05
    assert all(node.done_at for node in fleet.nodes.values() if node.healthy)


def test_an_origin_that_takes_long_over_each_chunk_is_still_read_once() -> None:
    scenario = Scenario("slow origin", 12, 128 << 20, 0.2 * GBIT, 0.02 * GBIT)
    fleet = Fleet(scenario, seed=1)
    assert scenario.nodes * fleet.chunk_bytes / scenario.origin > 2 * fleet.pace.silence_s  # one read
    fleet.run()
    assert result(fleet)["origin"] == 1.0


def test_a_larger_fleet_talks_to_few_however_many_there_are() -> None:
    fleet = Fleet(Scenario("wide", 50, 2 << 30, 25 * GBIT, 10 * GBIT, segments=1), seed=1)
    fleet.run()
    row = result(fleet)
    assert row["origin"] == 1.0
    assert row["peak_connections"] <= 128


def test_the_same_seed_gives_the_same_run() -> None:
    rows = []
    for _ in range(2):
        fleet = Fleet(replace(SMALL, slow=1 / 8), seed=3)
        fleet.run()
        rows.append(result(fleet))
    assert rows[0] == rows[1]
