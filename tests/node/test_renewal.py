"""Signed URLs end before a large fill does: they are signed again in time, and the fill reads on without noticing."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from actors.agent.agent import AgentSettings, NodeAgent
from actors.errors import Failure
from actors.manifest import ModelSource, storage_key
from actors.messages import DesiredModel, DesiredRoot, DesiredState, ModelReport, NodeName, Phase
from actors.sources.options import SourceOptions
from coordinator.api.resources import StatusKey
from coordinator.control.resolver import Resolver
from coordinator.dev.origin.repository import Repository
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.waiting import eventually
from coordinator.plan.plan import Want
from coordinator.plan.snapshot import Credentials

KIB = 1 << 10
KEY = StatusKey("m")


@pytest.mark.slow
def test_a_fill_outlives_the_links_it_began_with(tmp_path: Path) -> None:
    """The links of a gated repository are good for 4 s at most, the fill takes 5."""
    repo, source = tmp_path / "repo", ModelSource("hf://a/gated")
    repo.mkdir()
    (repo / "weights.safetensors").write_bytes(random.Random(1).randbytes(1024 * KIB))
    (tmp_path / "host" / "models").mkdir(parents=True)
    gated = Repository("a/gated", repo, token="hf_secret")
    with Origin({"a/gated": gated}, rate_bytes_per_s=200 * KIB, link_ttl_s=4.0) as origin:
        options = SourceOptions({"HF_ENDPOINT": origin.hub_endpoint, "HF_TOKEN": "hf_secret"})
        settings = AgentSettings(host_root=tmp_path / "host", headroom_bytes=0, connections=1, chunk_bytes=128 * KIB)
        agent, resolver = NodeAgent(NodeName("n"), settings), Resolver(workers=1)
        links: set[str] = set()
        failures: list[Failure] = []

        def tick() -> ModelReport | None:
            """What the coordinator does, without Kubernetes."""
            resolver.want({KEY: Want(source, Credentials())}, lambda credentials: options)
            resolved = resolver.resolutions()[KEY].resolved
            desired = DesiredState("c", (DesiredRoot("/models"),))
            if resolved is not None:
                links.add(resolved.locations[0].url)
                model = DesiredModel(storage_key(source.uri), "/models", source, resolved.name)
                desired = replace(desired, models=(model,), resolved={resolved.name: resolved})
            report = agent.reconcile(desired)
            failures.extend(model.failure for model in report.models if model.failure is not None)
            return next((model for model in report.models if model.phase is Phase.READY), None)

        try:
            ready = eventually(tick, every_s=0.05, seen=agent.report)
        finally:
            agent.close()
            resolver.close(5)
        assert ready is not None
        assert failures == []
        assert len(links) >= 2, "the links had to be renewed"
        assert origin.stats()["bytes"] == 1024 * KIB, "nothing was read twice"
