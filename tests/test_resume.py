"""An agent that is killed without warning, again and again: the next one reads twice only what was in flight."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest

from actors import alone
from actors.chunks import Chunk
from actors.fetch import FillSettings
from actors.fill import Fill
from actors.manifest import ModelSource, storage_key
from actors.origin import SourceOptions
from actors.source import resolve
from actors.store import open_ingest
from coordinator.dev.origin import Origin
from coordinator.dev.sample import REPO, write_sample
from tests.nodes import same_bytes
from tests.waiting import eventually, output_of

MIB = 1 << 20
MODEL_BYTES = 96 * MIB
CHUNK_BYTES = 1 * MIB
CONNECTIONS = 4
KILLS = 8
URI = f"hf://{REPO}"

AGENT = """
import os, sys, time
from actors.agent import AgentSettings, NodeAgent
from actors.manifest import ModelSource, storage_key
from actors.messages import DesiredModel, DesiredRoot, DesiredState, Phase
from actors.origin import SourceOptions
from actors.source import resolve

uri = sys.argv[1]
resolved = resolve(ModelSource(uri), SourceOptions.from_environ())
model = DesiredModel(storage_key(uri), "/models", resolved.manifest.source, resolved.name)
agent = NodeAgent("node-1", AgentSettings.from_env(os.environ))
agent.reconcile(DesiredState("owner", (DesiredRoot("/models"),), (model,), {resolved.name: resolved}))
while agent.report().models[0].phase is not Phase.READY:
    time.sleep(0.01)
"""


def an_agent(host_root: Path, endpoint: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "LOCALMODEL_HOST_ROOT": str(host_root),
        "LOCALMODEL_HEADROOM": "0",
        "LOCALMODEL_CHUNK": str(CHUNK_BYTES),
        "LOCALMODEL_CONNECTIONS": str(CONNECTIONS),
    }
    return subprocess.Popen([sys.executable, "-c", AGENT, URI], env=environment, stderr=subprocess.PIPE, text=True)


def until_served(origin: Origin, count: float) -> None:
    eventually(lambda: origin.stats()["bytes"] >= count, every_s=0.005, seen=origin.stats)


def test_a_file_of_which_much_was_there_but_not_hashed_is_completed(tmp_path: Path) -> None:
    size = alone.UNHASHED_BYTES + 4 * MIB
    (tmp_path / "served").mkdir()
    (tmp_path / "served/weights").write_bytes(random.Random(20).randbytes(size))
    source = ModelSource(f"file://{tmp_path / 'served'}")
    resolved = resolve(source, SourceOptions({}))
    ingest = open_ingest(tmp_path / "ingest", resolved.manifest, "owner")
    ingest.allocate()
    there = size - 2 * MIB
    with (ingest.data / "weights").open("r+b") as file:
        file.write((tmp_path / "served/weights").read_bytes()[:there])
    ingest.journal.record(Chunk(0, 0, there))
    ingest.close()
    ingest = open_ingest(tmp_path / "ingest", resolved.manifest, "owner")
    fill = Fill(ingest, resolved, FillSettings(connections=4, chunk_bytes=1 * MIB))
    manifest = fill.run()
    assert fill.progress().moved.from_origin == size - there
    assert manifest.files[0].digest == f"sha256:{sha256((tmp_path / 'served/weights').read_bytes()).hexdigest()}"
    ingest.close()


@pytest.mark.e2e
def test_every_kill_costs_at_most_the_chunks_that_were_in_flight(tmp_path: Path) -> None:
    write_sample(tmp_path / "sample", MODEL_BYTES)
    (tmp_path / "host/models").mkdir(parents=True)
    folder, rng = tmp_path / "host/models/models" / storage_key(URI), random.Random(20)
    with Origin({REPO: tmp_path / "sample"}, rate_bytes_per_s=16 * MIB) as origin:
        for kill in range(KILLS):
            process = an_agent(tmp_path / "host", origin.hub_endpoint)
            enough = MODEL_BYTES * (kill + rng.random()) / (KILLS + 1)  # of all that is served, so progress is made
            until_served(origin, enough)
            time.sleep(rng.uniform(0, 0.1))
            process.kill()
            process.communicate()
            assert not folder.exists() or (folder / ".localmodel/manifest.json").exists(), "all or nothing"
        process = an_agent(tmp_path / "host", origin.hub_endpoint)
        _, err = output_of(process, 120)
        served = origin.stats()["bytes"]
    assert (process.returncode, err) == (0, "")
    assert same_bytes(folder, tmp_path / "sample")
    assert served - MODEL_BYTES <= KILLS * CONNECTIONS * CHUNK_BYTES, "read twice"


@pytest.mark.e2e
def test_a_repair_that_is_killed_again_and_again_ends_and_fetches_little_more_than_was_lost(tmp_path: Path) -> None:
    write_sample(tmp_path / "sample", MODEL_BYTES)
    (tmp_path / "host/models").mkdir(parents=True)
    folder, rng = tmp_path / "host/models/models" / storage_key(URI), random.Random(20)
    with Origin({REPO: tmp_path / "sample"}, rate_bytes_per_s=16 * MIB) as origin:
        output_of(an_agent(tmp_path / "host", origin.hub_endpoint), 120)
        before = origin.stats()["bytes"]
        shards = sorted(folder.glob("*.safetensors"))[:2]
        lost = sum(shard.stat().st_size for shard in shards)
        folder.chmod(0o755)
        for shard in shards:
            shard.unlink()
        for kill in range(4):
            process = an_agent(tmp_path / "host", origin.hub_endpoint)
            until_served(origin, before + lost * (kill + rng.random()) / 5)
            time.sleep(rng.uniform(0, 0.1))
            process.kill()
            process.communicate()
            assert (folder / ".localmodel/manifest.json").exists(), "the copy stays where it is"
        process = an_agent(tmp_path / "host", origin.hub_endpoint)
        _, err = output_of(process, 120)
        served = origin.stats()["bytes"] - before
    assert (process.returncode, err) == (0, "")
    assert same_bytes(folder, tmp_path / "sample")
    assert served - lost <= 4 * CONNECTIONS * CHUNK_BYTES, "read twice"
