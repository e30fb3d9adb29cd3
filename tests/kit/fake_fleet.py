"""A fleet without Ray: agents that live in this process and do what a test tells them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from actors.errors import Failure
from actors.messages import DesiredState, NodeName, NodeReport
from coordinator.fleet.interface import AgentView


class ScriptedAgent:
    """Reports that it is there, and what it was last asked for. Runs inside a Ray actor as well as here.

    A desired `owner` says what to do: `raise`: fail; anything else is echoed as the report's version.
    """

    def __init__(self, node: NodeName) -> None:
        self._node = node
        self._incarnation = f"{os.getpid()}-{time.monotonic_ns()}"

    def reconcile(self, desired: DesiredState) -> NodeReport:
        if desired.owner == "raise":
            raise RuntimeError("the agent was told to fail")
        return NodeReport(self._node, self._incarnation, desired.owner, os.getpid())

    def close(self, timeout_s: float) -> None:
        pass


class FakeFleet:
    """`Fleet` over agents in this process: every `views` asks each agent, so an answer is never late.

    `break_agent` makes a node's agent unreachable, keeping its last report; `mend_agent` starts a new one.
    """

    def __init__(self, factory: Callable[[NodeName], ScriptedAgent] = ScriptedAgent) -> None:
        self._factory = factory
        self._desired: Mapping[NodeName, DesiredState] = {}
        self._agents: dict[NodeName, ScriptedAgent] = {}
        self._broken: dict[NodeName, Failure] = {}
        self._views: dict[NodeName, AgentView] = {}

    def sync(self, desired: Mapping[NodeName, DesiredState]) -> None:
        self._desired = desired
        self._agents = {node: self._agents.get(node) or self._factory(node) for node in desired}

    def views(self) -> Mapping[NodeName, AgentView]:
        self._views = {node: self._look(node, desired) for node, desired in self._desired.items()}
        return dict(self._views)

    def close(self, *, stop_agents: bool) -> None:
        if stop_agents:
            self._agents = {}

    def break_agent(self, node: NodeName, reason: str = "AgentUnavailable") -> None:
        self._broken[node] = Failure(reason, f"{node} was broken by the test")

    def mend_agent(self, node: NodeName) -> None:
        self._broken.pop(node, None)
        self._agents[node] = self._factory(node)

    def _look(self, node: NodeName, desired: DesiredState) -> AgentView:
        before = self._views.get(node, AgentView())
        if node in self._broken:
            return replace(before, failure=self._broken[node])
        try:
            return AgentView(self._agents[node].reconcile(desired), time.time())
        except RuntimeError as error:
            return replace(before, failure=Failure("AgentError", str(error)))
