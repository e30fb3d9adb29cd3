"""How a node agent is configured, and that the bandwidth it may use is kept over real sockets."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from actors.agent.settings import AgentSettings
from actors.manifest import ModelSource
from actors.messages import DesiredState, Phase
from actors.peers.tls import TlsFiles
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.waiting import eventually
from tests.kit.nodes import OWNER, Node, wants

MIB = 1 << 20
DEFAULT = AgentSettings()

ACCEPTED: dict[str, tuple[Mapping[str, str], AgentSettings]] = {
    "nothing": ({}, DEFAULT),
    "roots below a host": (
        {"LOCALMODEL_HOST_ROOT": "/host", "LOCALMODEL_ROOTS": "/models:/mnt/fast/"},
        replace(DEFAULT, host_root=Path("/host"), roots=("/models", "/mnt/fast")),
    ),
    "sizes in powers of 1000 and of 1024": (
        {"LOCALMODEL_HEADROOM": "10G", "LOCALMODEL_CHUNK": "8Mi"},
        replace(DEFAULT, headroom_bytes=10_000_000_000, chunk_bytes=8 * MIB),
    ),
    "a limit on what the node reads": ({"LOCALMODEL_RATE_LIMIT": "50M"}, replace(DEFAULT, rate_limit_bytes_per_s=5e7)),
    "no limit": ({"LOCALMODEL_RATE_LIMIT": "0"}, DEFAULT),
    "the pace of scrubbing": (
        {"LOCALMODEL_SCRUB_RATE": "10M", "LOCALMODEL_SCRUB_INTERVAL_SECONDS": "604800"},
        replace(DEFAULT, scrub_bytes_per_s=1e7, scrub_interval_s=7 * 86400.0),
    ),
    "no scrubbing": ({"LOCALMODEL_SCRUB_RATE": "0"}, replace(DEFAULT, scrub_bytes_per_s=None)),
    "certificates for peers": (
        {f"LOCALMODEL_PEER_TLS_{name}": f"/tls/{name}" for name in ("CERT", "KEY", "CA")},
        replace(DEFAULT, peer_tls=TlsFiles(Path("/tls/CERT"), Path("/tls/KEY"), Path("/tls/CA"))),
    ),
    "how much at once": (
        {"LOCALMODEL_CONNECTIONS": "16", "LOCALMODEL_CONCURRENT_MODELS": "1", "LOCALMODEL_STALL_TIMEOUT_SECONDS": "5"},
        replace(DEFAULT, connections=16, concurrent_models=1, stall_timeout_s=5.0),
    ),
}

REFUSED: dict[str, tuple[Mapping[str, str], str]] = {
    "a size that is none": ({"LOCALMODEL_SCRUB_RATE": "fast"}, "LOCALMODEL_SCRUB_RATE: 'fast' is not a size"),
    "no interval": ({"LOCALMODEL_SCRUB_INTERVAL_SECONDS": "0"}, "_SCRUB_INTERVAL_SECONDS: '0' is not a number"),
    "half of what TLS takes": (
        {"LOCALMODEL_PEER_TLS_CERT": "/tls/tls.crt", "LOCALMODEL_PEER_TLS_KEY": "/tls/tls.key"},
        "LOCALMODEL_PEER_TLS_CA: '' is not an absolute path",
    ),
    "a relative root": ({"LOCALMODEL_ROOTS": "models"}, "'models' is not an absolute path"),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(case: str) -> None:
    env, expected = ACCEPTED[case]
    assert AgentSettings.from_env(env) == expected


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_the_name_of_the_variable(case: str) -> None:
    env, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        AgentSettings.from_env(env)


@pytest.mark.slow
def test_all_fills_of_a_node_together_keep_its_bandwidth_limit(tmp_path: Path) -> None:
    limit, names = 4 * MIB, ("a/model", "b/model")
    repos = {}
    for name in names:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(bytes(5 * MIB))
        repos[name] = folder
    with Origin(repos) as origin, Node(tmp_path / "host") as node:
        options = SourceOptions({"HF_ENDPOINT": origin.hub_endpoint})
        states = [wants(resolve(ModelSource(f"hf://{name}"), options)) for name in names]
        models = tuple(model for state in states for model in state.models)
        resolved = {name: each for state in states for name, each in state.resolved.items()}
        agent = node.agent(rate_limit_bytes_per_s=float(limit), connections=1)
        beyond: list[float] = []  # by how much more than the limit allows had come, each time it was looked at
        began = time.monotonic()
        agent.reconcile(DesiredState(OWNER, states[0].roots, models, resolved))

        def all_ready() -> bool:
            reports = agent.report().models
            allowed = limit * (time.monotonic() - began)
            beyond.append(sum(report.bytes_done for report in reports) - allowed)
            return [report.phase for report in reports] == [Phase.READY] * 2

        eventually(all_ready, every_s=0.02, seen=agent.report)
        took = time.monotonic() - began
        assert origin.stats()["bytes"] == 10 * MIB
    assert took >= 10 * MIB / limit * 0.8
    assert max(beyond) <= 2 * MIB, "each connection begins with a block before it is told to wait"
