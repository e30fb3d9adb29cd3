"""The node agent over real sockets and a real disk: what is asked for gets there, whatever the origin does."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from actors.agent import AgentSettings, NodeAgent
from actors.manifest import Location, Manifest, ManifestFile, ModelSource, Resolved, storage_key
from actors.messages import DesiredModel, DesiredRoot, DesiredState, ModelReport, NodeName, NodeReport, Phase
from actors.origin import SourceOptions
from actors.source import resolve
from coordinator.dev.faults import Fault
from coordinator.dev.origin import Origin
from coordinator.dev.sample import REPO, write_sample
from tests.waiting import eventually

MIB = 1 << 20
SAMPLE_BYTES = 3 * MIB
URI = f"hf://{REPO}"
KEY = storage_key(URI)
OWNER = "cluster-1"
FAST = {"chunk_bytes": 256 << 10, "backoff_first_s": 0.05, "backoff_max_s": 0.2, "headroom_bytes": 0}
PATIENT_CHUNKS = {"chunk_backoff_first_s": 0.02, "chunk_backoff_max_s": 0.1}


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agent") / "sample"
    write_sample(folder, SAMPLE_BYTES)
    return folder


@pytest.fixture
def origin(sample: Path) -> Iterator[Origin]:
    with Origin({REPO: sample}) as running:
        yield running


@pytest.fixture
def resolved(origin: Origin) -> Resolved:
    return resolve(ModelSource(URI), SourceOptions({"HF_ENDPOINT": origin.hub_endpoint}))


class Node:
    """A disk with agents on it, one after the other."""

    def __init__(self, host_root: Path) -> None:
        self.host_root = host_root
        self.root = host_root / "models"
        self.root.mkdir(parents=True)
        self.agents: list[NodeAgent] = []

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


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path / "host")
    yield node
    for agent in node.agents:
        agent.close(10)


def wants(*resolved: Resolved, limit: int | None = None, root: str = "/models", **changes: object) -> DesiredState:
    models = tuple(
        replace(
            DesiredModel(storage_key(each.manifest.source.uri), root, each.manifest.source, each.name),
            **changes,  # type: ignore[arg-type]  # by name
        )
        for each in resolved
    )
    return DesiredState(OWNER, (DesiredRoot(root, limit),), models, {each.name: each for each in resolved})


NOTHING = DesiredState(OWNER, (DesiredRoot("/models"),))


def model(report: NodeReport, key: str = KEY) -> ModelReport | None:
    return next((each for each in report.models if each.key == key), None)


def until(agent: NodeAgent, phase: Phase, *, reason: str | None = None, key: str = KEY) -> ModelReport:
    def reached() -> ModelReport | None:
        found = model(agent.report(), key)
        matches = found is not None and found.phase is phase
        return found if matches and (reason is None or (found and found.failure or None) is not None
                                     and found is not None and found.failure is not None
                                     and found.failure.reason == reason) else None

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


def test_a_model_arrives_complete_verified_and_read_only(
    node: Node, origin: Origin, resolved: Resolved, sample: Path
) -> None:
    agent = node.agent()
    first = model(agent.reconcile(wants(resolved)))
    assert first is not None
    assert first.phase in (Phase.DOWNLOADING, Phase.VERIFYING)

    ready = until(agent, Phase.READY)

    assert same_bytes(node.folder(), sample)
    assert ready.bytes_done == ready.bytes_total == ready.bytes_from_origin == SAMPLE_BYTES
    assert ready.manifest_digest == resolved.manifest.digest
    assert ready.revision == resolved.manifest.revision
    assert ready.verified == {"git-sha1": 8, "sha256": 4}
    assert ready.started_at is not None
    assert ready.finished_at is not None
    assert origin.stats()["bytes"] == SAMPLE_BYTES, "every byte was read once"
    modes = {path.stat().st_mode & 0o777 for path in [node.folder(), *node.folder().rglob("*")] if path.is_dir()}
    assert modes == {0o555}
    assert {path.stat().st_mode & 0o777 for path in node.folder().rglob("*") if path.is_file()} == {0o444}
    assert node.left_behind() == []
