"""An agent that is killed without warning, again and again: the next one reads twice only what was in flight.

Of a chunk that takes long, that is what its connection had in a buffer.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from hashlib import sha256
from pathlib import Path

import pytest

from actors.chunks import Chunk
from actors.disk.handles import Folder
from actors.disk.ingest import COST_S
from actors.disk.journal import read
from actors.disk.marker import load_marker
from actors.disk.store import Ingest, open_ingest
from actors.fill import solo as alone
from actors.fill.fill import Fill
from actors.fill.origin_reader import FillSettings
from actors.fill.range_reader import BLOCK_BYTES
from actors.manifest import ManifestFile, ModelSource, make_manifest, storage_key
from actors.mesh.limits import Pace
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from actors.transferred import Transferred
from coordinator.dev.origin.sample import REPO, write_sample
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.fanout import Fanout, Place
from coordinator.dev.trial.waiting import eventually, output_of
from tests.kit.nodes import same_bytes

MIB = 1 << 20
MODEL_BYTES = 96 * MIB
CHUNK_BYTES = 1 * MIB
CONNECTIONS = 4
KILLS = 8
URI = f"hf://{REPO}"

AGENT = """
import os, sys, time
from actors.agent.agent import AgentSettings, NodeAgent
from actors.manifest import ModelSource, storage_key
from actors.messages import DesiredModel, DesiredRoot, DesiredState, Phase
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve

uri = sys.argv[1]
resolved = resolve(ModelSource(uri), SourceOptions.from_environ())
model = DesiredModel(storage_key(uri), "/models", resolved.manifest.source, resolved.name)
agent = NodeAgent("node-1", AgentSettings.from_env(os.environ))
agent.reconcile(DesiredState("owner", (DesiredRoot("/models"),), (model,), {resolved.name: resolved}))
while agent.report().models[0].phase is not Phase.READY:
    time.sleep(0.01)
"""


def an_agent(host_root: Path, endpoint: str, chunk_bytes: int = CHUNK_BYTES) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "LOCALMODEL_HOST_ROOT": str(host_root),
        "LOCALMODEL_HEADROOM": "0",
        "LOCALMODEL_CHUNK": str(chunk_bytes),
        "LOCALMODEL_CONNECTIONS": str(CONNECTIONS),
    }
    return subprocess.Popen([sys.executable, "-c", AGENT, URI], env=environment, stderr=subprocess.PIPE, text=True)


def until_served(origin: Origin, count: float) -> None:
    eventually(lambda: origin.stats()["bytes"] >= count, every_s=0.005, seen=origin.stats)


@pytest.mark.slow
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
    assert fill.progress().moved.bytes_from_origin == size - there
    assert manifest.files[0].digest == f"sha256:{sha256((tmp_path / 'served/weights').read_bytes()).hexdigest()}"
    ingest.close()


def test_chunks_that_land_together_are_all_counted_a_moment_later(tmp_path: Path) -> None:
    manifest = make_manifest(ModelSource(URI), None, [ManifestFile("weights", 8)])
    ingest, moved = open_ingest(tmp_path / "ingest", manifest, "owner"), 0
    ingest.cost = lambda: Transferred(bytes_from_origin=moved)
    try:
        for moved in range(1, 9):
            ingest.record(Chunk(0, moved - 1, moved))
        eventually(lambda: ingest.note_cost(COST_S), timeout_s=5, every_s=0.02)
        assert ingest.noted_cost() == Transferred(bytes_from_origin=8)
    finally:
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
    in_flight = KILLS * CONNECTIONS * CHUNK_BYTES
    assert served - MODEL_BYTES <= in_flight, "read twice"
    with Folder.at(folder) as copy:
        counted = load_marker(copy).moved.bytes_from_origin
    unnoted = KILLS * 2 * MIB
    assert served - in_flight - unnoted <= counted <= served, "every process goes on counting"


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


# --- slow connections ---

SLOW_BYTES_PER_S = 256 << 10
SLOW_MODEL_BYTES = 16 * MIB
SLOW_CHUNK_BYTES = 4 * MIB
"""Of which one takes 16 s: all of the model is in flight at once, and no chunk is finished for long."""
PROMPTLY_BYTES = int(SLOW_BYTES_PER_S * 1.5)
"""What such a connection brings before it is told of: less than a buffer, because of `stall.PROMPT_S`."""
LATE_BYTES = 3 * PROMPTLY_BYTES
"""The same on a busy machine, where an agent looks late at what the kernel has for it: a quarter of a chunk."""


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder with one file of 4 MiB."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(random.Random(20).randbytes(4 * MIB))
    return folder


def a_fill(folder: Path, origin: Origin, *, connections: int, chunk_bytes: int) -> tuple[Fill, Ingest]:
    resolved = resolve(ModelSource(f"{origin.url}/files/weights.bin"), SourceOptions({}))
    ingest = open_ingest(folder, resolved.manifest, "owner")
    ingest.allocate()
    return Fill(ingest, resolved, FillSettings(connections=connections, chunk_bytes=chunk_bytes)), ingest


def journaled(folder: Path) -> tuple[int, int]:
    """How many bytes the journal speaks of, and in how many lines."""
    done, _ = read(folder / "journal", [4 * MIB])
    return sum(ranges.total for ranges in done.values()), len((folder / "journal").read_bytes().splitlines())


@pytest.mark.slow
def test_of_a_chunk_that_takes_long_what_has_come_is_journaled(tmp_path: Path, weights: Path) -> None:
    with Origin(files=weights, rate_bytes_per_s=MIB) as origin:
        fill, ingest = a_fill(tmp_path / "ingest", origin, connections=1, chunk_bytes=16 * MIB)
        running = threading.Thread(target=fill.run)
        running.start()
        until_served(origin, 1.6 * MIB)
        known, lines = journaled(tmp_path / "ingest")
        assert known >= origin.stats()["bytes"] - 2 * BLOCK_BYTES
        assert lines <= 4, "one for each block"
        running.join()
        assert fill.progress().done == 4 * MIB
        ingest.close()
    assert journaled(tmp_path / "ingest")[0] == 4 * MIB


def test_a_chunk_that_comes_fast_is_one_line(tmp_path: Path, weights: Path) -> None:
    with Origin(files=weights) as origin:
        fill, ingest = a_fill(tmp_path / "ingest", origin, connections=1, chunk_bytes=1 * MIB)
        fill.run()
        ingest.close()
    assert journaled(tmp_path / "ingest") == (4 * MIB, 4)


@pytest.mark.e2e
def test_with_slow_connections_a_kill_costs_what_they_had_in_a_buffer(tmp_path: Path) -> None:
    write_sample(tmp_path / "sample", SLOW_MODEL_BYTES)
    (tmp_path / "host/models").mkdir(parents=True)
    folder, rng, kills = tmp_path / "host/models/models" / storage_key(URI), random.Random(20), 4
    with Origin({REPO: tmp_path / "sample"}, rate_bytes_per_s=SLOW_BYTES_PER_S) as origin:
        for kill in range(kills):
            process = an_agent(tmp_path / "host", origin.hub_endpoint, SLOW_CHUNK_BYTES)
            until_served(origin, SLOW_MODEL_BYTES * (kill + rng.random()) / (kills + 1))
            process.kill()
            process.communicate()
        process = an_agent(tmp_path / "host", origin.hub_endpoint, SLOW_CHUNK_BYTES)
        _, err = output_of(process, 120)
        served = origin.stats()["bytes"]
    assert (process.returncode, err) == (0, "")
    assert same_bytes(folder, tmp_path / "sample")
    assert PROMPTLY_BYTES <= BLOCK_BYTES
    assert served - SLOW_MODEL_BYTES <= kills * CONNECTIONS * LATE_BYTES, "read twice"


@pytest.mark.e2e
def test_with_slow_connections_the_fill_command_goes_on_after_a_kill_with_all_but_a_buffer(tmp_path: Path) -> None:
    write_sample(tmp_path / "sample", SLOW_MODEL_BYTES)
    with Origin({REPO: tmp_path / "sample"}, rate_bytes_per_s=SLOW_BYTES_PER_S) as origin:
        environment = {**os.environ, "HF_ENDPOINT": origin.hub_endpoint}
        command = [sys.executable, "-m", "coordinator.cli", "fill", URI, str(tmp_path / "model"), "--connections", "8"]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        until_served(origin, SLOW_MODEL_BYTES / 2)
        process.kill()
        process.communicate()
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        _, err = output_of(process, 120)
        served = origin.stats()["bytes"]
    assert process.returncode == 0, err
    assert same_bytes(tmp_path / "model", tmp_path / "sample")
    assert served - SLOW_MODEL_BYTES <= 8 * LATE_BYTES, "read twice"


@pytest.mark.e2e
def test_with_slow_connections_a_killed_owner_reads_on_in_the_middle_of_its_chunks(tmp_path: Path) -> None:
    model, rate, reads = 16 * MIB, 128 << 10, Pace(slots=2).reads_per_owner(2)  # a chunk of 1 MiB takes 8 s
    write_sample(tmp_path / "sample", model)
    with Origin({REPO: tmp_path / "sample"}, rate_bytes_per_s=rate) as origin:
        resolved = resolve(ModelSource(URI), SourceOptions({"HF_ENDPOINT": origin.hub_endpoint}))
        places = {"node-0": Place("127.0.0.1"), "node-1": Place("127.0.0.1")}
        with Fanout(tmp_path, resolved, places) as fanout:
            fanout.until(lambda: origin.stats()["bytes"] > 0.3 * model)
            fanout.agents["node-1"].kill()
            fanout.start("node-1")
            fanout.until_ready()
            assert all(same_bytes(fanout.folder(name), tmp_path / "sample") for name in places)
            served = origin.stats()["bytes"]
    assert served - model <= reads * rate * 1.5, "read twice"
