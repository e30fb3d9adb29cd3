"""A node's disk with agents on it, for tests: what is asked for, what is reported, what lies there."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from actors.agent.agent import AgentSettings, NodeAgent
from actors.manifest import Resolved, StorageKey, storage_key
from actors.messages import DesiredModel, DesiredRoot, DesiredState, ModelReport, NodeName, NodeReport, Phase, Removal
from coordinator.dev.origin.sample import REPO
from coordinator.dev.trial.waiting import eventually

URI = f"hf://{REPO}"
KEY = storage_key(URI)
OWNER = "cluster-1"
FAST = {
    "chunk_bytes": 256 << 10,
    "backoff_first_s": 0.05,
    "backoff_max_s": 0.2,
    "headroom_bytes": 0,
    "aside_margin_s": 0.0,
}
PATIENT_CHUNKS = {"chunk_backoff_first_s": 0.02, "chunk_backoff_max_s": 0.1}


class Node:
    """A disk with agents on it, one after the other; they end with the `with` block."""

    def __init__(self, host_root: Path) -> None:
        self.host_root = host_root
        self.root = host_root / "models"
        self.root.mkdir(parents=True)
        self.agents: list[NodeAgent] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for agent in self.agents:
            agent.close(10)

    def agent(self, **settings: object) -> NodeAgent:
        known = {**FAST, **PATIENT_CHUNKS, **settings}
        agent = NodeAgent(
            NodeName("node-1"),
            AgentSettings(host_root=self.host_root, **known),  # type: ignore[arg-type]  # by name, as AgentSettings says
            rng=random.Random(1),
        )
        self.agents.append(agent)
        return agent

    def folder(self, uri: str = URI) -> Path:
        return self.root / "models" / storage_key(uri)

    def left_behind(self) -> list[Path]:
        own = self.root / ".localmodel"
        return [*(own / "ingest").iterdir(), *(own / "trash").iterdir()]


def wants(*resolved: Resolved, limit: int | None = None, root: str = "/models", **changes: object) -> DesiredState:
    models = tuple(
        replace(
            DesiredModel(storage_key(each.manifest.source.uri), root, each.manifest.source, each.name),
            **changes,  # type: ignore[arg-type]  # by name
        )
        for each in resolved
    )
    by_name = {each.name: each for each in resolved}
    return DesiredState(OWNER, (DesiredRoot(root, limit),), models, by_name, used={})


def together(*states: DesiredState) -> DesiredState:
    """All of it, in the roots of the first."""
    return DesiredState(
        OWNER,
        states[0].roots,
        tuple(model for state in states for model in state.models),
        {name: each for state in states for name, each in state.resolved.items()},
        used={},
    )


def a_removal(key: StorageKey, *, age_s: float = 0.0, reason: str = "CacheDeleted", **fields: Any) -> Removal:
    """An order to remove a copy, given `age_s` ago and good for a minute."""
    return Removal("/models", key, reason, time.time() - age_s, 60.0, **fields)


def ordering(state: DesiredState, *orders: Removal, used: Mapping[StorageKey, float] | None = None) -> DesiredState:
    """The same with orders, for a node whose pods use these models and no others."""
    return replace(state, remove=orders, used=used or {})


NOTHING = DesiredState(OWNER, (DesiredRoot("/models"),), used={})
"""No model is wanted, and no pod uses any."""


def model(report: NodeReport, key: str = KEY) -> ModelReport | None:
    return next((each for each in report.models if each.key == key), None)


def until(agent: NodeAgent, phase: Phase, *, reason: str | None = None, key: str = KEY) -> ModelReport:
    """The model's report, once it is in that phase, for that reason."""

    def reached() -> ModelReport | None:
        found = model(agent.report(), key)
        if found is None or found.phase is not phase:
            return None
        return found if reason is None or (found.failure is not None and found.failure.reason == reason) else None

    found = eventually(reached, timeout_s=20, every_s=0.01, seen=agent.report)
    assert found is not None
    return found


def until_gone(agent: NodeAgent, key: str = KEY) -> None:
    eventually(lambda: model(agent.report(), key) is None, timeout_s=20, every_s=0.01, seen=agent.report)


def same_bytes(folder: Path, sample: Path) -> bool:
    expected = {path.relative_to(sample): path.read_bytes() for path in sample.rglob("*") if path.is_file()}
    found = {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".localmodel" not in path.parts[-2:]
    }
    return found == expected
