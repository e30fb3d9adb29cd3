"""The seam to the node agents: one per Kubernetes node, polled, never blocking.

`Fleet` is what the controller knows. `RayFleet` (below) is the real one; tests and benchmarks have a fake. Both pass
`tests/test_fleet_contract.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from actors.errors import Failure
from actors.messages import DesiredState, NodeName, NodeReport


@dataclass(frozen=True, slots=True)
class AgentView:
    """What is known of one node's agent. `report` is the last one received, at `received_at` (epoch seconds).

    `failure` says why there is no current report (`AgentStarting`, `AgentUnavailable`, `NoRayNode`, …); None: healthy.
    """

    report: NodeReport | None = None
    received_at: float | None = None
    failure: Failure | None = None


class Fleet(Protocol):
    """Level-triggered: give it what every node should hold, read what every node holds. Neither call blocks."""

    def sync(self, desired: Mapping[NodeName, DesiredState]) -> None:
        """From now on exactly these nodes have an agent, and each pursues its state. Call it every tick."""

    def views(self) -> Mapping[NodeName, AgentView]:
        """The latest of every node in the last `sync`."""

    def close(self, *, stop_agents: bool) -> None:
        """Let go. With `stop_agents` False the agents stay for the next coordinator."""
