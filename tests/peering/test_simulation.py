"""A small fleet in virtual time: the same code as the benchmark, small enough for every test run."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from actors.mesh.actions import Action
from actors.mesh.mesh import Mesh
from coordinator.dev.simulation import fleet as simulated
from coordinator.dev.simulation.fleet import POLL_S, Scenario
from coordinator.dev.simulation.outcomes import GBIT, Case, compare, result

SMALL = Scenario("small", 8, 128 << 20, 0.2 * GBIT, 0.2 * GBIT)


class Checked(Mesh):
    """Is sound whenever it decides: after everything that happened, and after each of its own decisions."""

    def next(self, now: float) -> Action:
        self.check()
        return super().next(now)


class Fleet(simulated.Fleet):
    mesh_type = Checked


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


@pytest.mark.slow
def test_an_origin_that_takes_long_over_each_chunk_is_still_read_once() -> None:
    scenario = Scenario("slow origin", 12, 128 << 20, 0.2 * GBIT, 0.02 * GBIT)
    fleet = Fleet(scenario, seed=1)
    assert scenario.nodes * fleet.chunk_bytes / scenario.origin > 2 * fleet.pace.silence_s  # one read
    fleet.run()
    assert result(fleet)["origin"] == 1.0


@pytest.mark.slow
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


def a_run(system: str, over_one: float, **odd: Any) -> dict[str, Any]:
    """A line of `benchmarks.fanout --json`."""
    nodes = 1 if system == "one" else 8
    run = {"system": system, "variant": "plain", "nodes": nodes, "bytes": 64 << 20, "rate": "200mbit"}
    return {**run, "over_one": over_one, **odd}


@pytest.mark.parametrize(
    ("runs", "close"),
    [
        pytest.param([a_run("one", 1.0), a_run("ours", 1.05)], [True], id="a run within 15 % is what was simulated"),
        pytest.param([a_run("one", 1.0), a_run("ours", 1.6)], [False], id="a run further off is not"),
        pytest.param([a_run("ours", 1.05)], [], id="a run without one node alone cannot be compared"),
        pytest.param([a_run("one", 1.0, rate=None), a_run("ours", 1.05, rate=None)], [], id="or without links"),
        pytest.param([a_run("one", 1.0), a_run("aria2", 1.05)], [], id="nor can what others did"),
    ],
)
def test_a_measured_run_is_compared_with_the_same_run_simulated(runs: list[dict[str, Any]], close: list[bool]) -> None:
    found = compare(["a table", *map(json.dumps, runs)], seed=1)
    assert [each.close for each in found] == close


@pytest.mark.parametrize(
    ("figures", "missed"),
    [
        pytest.param({}, [], id="all at the limit is met"),
        pytest.param({"over": 1.051}, ["over"], id="slower than the target"),
        pytest.param({"origin": 1.02, "peak_connections": 257}, ["origin", "peak_connections"], id="two at once"),
        pytest.param({"coordinator_messages_per_s": 16.1}, ["coordinator_messages_per_s"], id="a coordinator too busy"),
    ],
)
def test_a_figure_beyond_its_limit_is_named(figures: dict[str, float], missed: list[str]) -> None:
    met = {"over": 1.05, "origin": 1.01, "peak_connections": 256, "node_messages_per_s": 1000.0}
    row = {**met, "coordinator_messages_per_s": SMALL.nodes / POLL_S, **figures}
    assert Case(SMALL, 1.05).missed(row) == missed
