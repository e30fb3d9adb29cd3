"""The seam to the node agents: one per Kubernetes node, polled, never blocking.

`Fleet` is what the controller knows. `fleet.ray_fleet` has the real one, in a room of its own so that deciding
does not import Ray; tests and benchmarks have a fake. Both pass `tests/contracts/test_fleet_contract.py`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from operator import is_
from typing import Protocol

from actors.errors import Failure
from actors.manifest import StorageKey
from actors.messages import DesiredState, ModelReport, NodeName, NodeReport

NODE_LABEL = "localmodel/node"
"""The Ray node label that ties a Ray node to a Kubernetes node; its value is `node_label`."""

_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


def node_label(node: NodeName) -> str:
    """The label value for a Kubernetes node: its name, or a hash of it where that is no label value (over 63 long)."""
    return node if _LABEL_VALUE.fullmatch(node) else "sha256-" + hashlib.sha256(node.encode()).hexdigest()[:40]


@dataclass(frozen=True)
class AgentView:
    """The state of one node's agent, as far as it is known. `report` is the last one received, at `received_at` (epoch
    seconds).

    `failure` says why there is no current report (`AgentStarting`, `AgentUnavailable`, `NoRayNode`, …); None: healthy.
    """

    report: NodeReport | None = None
    received_at: float | None = None
    failure: Failure | None = None

    @cached_property
    def models(self) -> Mapping[StorageKey, ModelReport]:
        """What the last report says of each model."""
        return {model.key: model for model in self.report.models} if self.report else {}

    def by_its_clock(self, at: float) -> float:
        """A time of ours (epoch seconds) as the agent's clock had it: earlier by what the report took, never later."""
        if self.report is None or self.received_at is None or not self.report.at:
            return at
        return at + self.report.at - self.received_at


def following(report: NodeReport, before: NodeReport | None) -> NodeReport:
    """`report`, made of the objects of the one before where they say the same: what follows from them is known."""
    if before is None or before.models is report.models:
        return report
    known = {model.key: model for model in before.models}
    models = tuple(each if (was := known.get(each.key)) != each else was for each in report.models)
    same = len(models) == len(before.models) and all(map(is_, models, before.models))
    roots = before.roots if before.roots == report.roots else report.roots
    return replace(report, models=before.models if same else models, roots=roots)


class Fleet(Protocol):
    """Level-triggered: give it what every node should hold, read what every node holds. Neither call blocks."""

    def sync(self, desired: Mapping[NodeName, DesiredState]) -> None:
        """From now on exactly these nodes have an agent, and each pursues its state. Call it every tick."""

    def views(self) -> Mapping[NodeName, AgentView]:
        """The latest of every node in the last `sync`."""

    def close(self, *, stop_agents: bool) -> None:
        """Let go. With `stop_agents` False the agents stay for the next coordinator."""
