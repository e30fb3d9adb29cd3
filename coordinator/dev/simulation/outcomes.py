"""What a simulated fill came to, what it had to reach, and how far it is from the same fill measured.

`benchmarks/simulate` prints these figures; `tests/peering/test_simulation.py` holds the small ones in every run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from actors.peers.server import MAX_CONNECTIONS
from actors.sizes import format_bytes, parse_bytes
from coordinator.dev.simulation.fleet import POLL_S, Fleet, Scenario

GBIT = 1e9 / 8
MAX_MESSAGES_PER_S = 1000.0
MAX_DEVIATION = 0.15
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A scenario and what it has to reach."""

    scenario: Scenario
    over: float
    origin: float = 1.01

    def missed(self, row: Row) -> list[str]:
        """The columns with a figure beyond what it may be."""
        most = {
            "over": self.over,
            "origin": self.origin,
            "peak_connections": MAX_CONNECTIONS,
            "node_messages_per_s": MAX_MESSAGES_PER_S,
            "coordinator_messages_per_s": self.scenario.nodes / POLL_S,
        }
        return [column for column, limit in most.items() if row[column] > limit]


def result(fleet: Fleet) -> Row:
    """The figures of a fleet that has run: its slowest healthy node, the origin's part, connections and messages."""
    scenario = fleet.scenario
    healthy = [node for node in fleet.nodes.values() if node.healthy]
    reach = scenario.model_bytes / scenario.link
    ends = [node.done_at or math.inf for node in healthy]
    overs = sorted(
        end / max(scenario.bound_s, (node.joined_at or 0.0) + reach) for node, end in zip(healthy, ends, strict=True)
    )
    told = fleet.coordinator_messages
    return {
        "case": scenario.case,
        "nodes": scenario.nodes,
        "chunks": scenario.chunks,
        "chunk_bytes": scenario.chunk_bytes,
        "over": round(overs[-1], 3),
        "median_over": round(overs[len(overs) // 2], 3),
        "origin": round(fleet.origin_reads.total() / scenario.chunks, 4),
        "peak_connections": max(node.peak_connections for node in healthy),
        "node_messages_per_s": round(sum(node.messages for node in healthy) / len(healthy) / max(ends), 1),
        "coordinator_messages_per_s": round(told.total() / max(ends), 1),
        "virtual_s": round(max(ends), 1),
    }


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run that was measured and the same run simulated: each the slowest node over one node alone."""

    case: str
    measured: float
    simulated: float

    @property
    def deviation(self) -> float:
        return self.simulated / self.measured - 1

    @property
    def close(self) -> bool:
        return abs(self.deviation) <= MAX_DEVIATION


def compare(lines: Iterable[str], seed: int) -> list[Comparison]:
    """Every run of `benchmarks.fanout --json` that can be compared, simulated. Passes over lines that are no JSON."""
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    return [Comparison(each.case, over, round(_over_one(each, seed), 3)) for each, over in _measured(rows)]


def _measured(rows: list[Row]) -> Iterator[tuple[Scenario, float]]:
    """Every run of ours on shaped links beside one node alone, as a scenario, and its slowest node over that one."""
    alone = {(row["bytes"], row["rate"]) for row in rows if row.get("system") == "one"}
    for row in rows:
        if row.get("system") == "ours" and row["rate"] and (row["bytes"], row["rate"]) in alone:
            rate = parse_bytes(row["rate"].removesuffix("bit").replace("m", "M").replace("g", "G")) / 8
            odd, variant = 1 / row["nodes"], row["variant"]
            name = f"{row['nodes']}, {format_bytes(row['bytes'])}, {row['rate']}, {variant}"
            scenario = Scenario(name, row["nodes"], row["bytes"], rate, rate, deaths=(0.5, 0.5))
            slow, dying = odd if variant == "straggler" else 0.0, odd if variant == "kill" else 0.0
            yield replace(scenario, slow=slow, dying=dying), row["over_one"]


def _over_one(scenario: Scenario, seed: int) -> float:
    """The time of the slowest healthy node over that of one node alone."""
    ends = []
    for each in (scenario, replace(scenario, nodes=1, slow=0.0, dying=0.0)):
        fleet = Fleet(each, seed)
        fleet.run()
        ends.append(max(node.done_at or math.inf for node in fleet.nodes.values() if node.healthy))
    return ends[0] / ends[1]
