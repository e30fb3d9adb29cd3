"""From the bytes on a disk to the words in status: a real agent in front of the real plan, with a real origin."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.messages import NodeName
from actors.scrub import scrubber
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from coordinator.dev.origin.faults import Fault
from coordinator.dev.origin.sample import REPO
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.builders import NOW, CacheBuilder, a_cache, a_group, a_node, a_world
from coordinator.dev.trial.waiting import eventually
from coordinator.fleet.interface import AgentView
from coordinator.plan.snapshot import Resolution
from tests.kit.nodes import Node

MIB = 1 << 20
SAMPLE_BYTES = 2 * MIB
CHUNK = 256 << 10
OTHER = f"sha256:{'0' * 64}"


@pytest.fixture
def origin(sample: Path) -> Iterator[Origin]:
    with Origin({REPO: sample}, files=sample) as running:
        yield running


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setattr(scrubber, "IDLE_S", 0.02)
    with Node(tmp_path / "host") as node:
        yield node


class Cluster:
    """One cache on one node, and a coordinator that ticks when it is told to."""

    def __init__(self, node: Node, cache: CacheBuilder, origin: Origin) -> None:
        self.node, self.cache = node, cache
        self.world = a_world(cache, a_group(), a_node("node-1"))
        self.events: list[tuple[str, str]] = []
        self._options = SourceOptions({"HF_ENDPOINT": origin.hub_endpoint})
        self._agent = node.agent(scrub_interval_s=0.01, scrub_bytes_per_s=float(1 << 30))

    def tick(self) -> dict[str, Any]:
        """The cache's status after what the agent reports now was written, and the agent heard what follows."""
        self.world.agents["node-1"] = AgentView(self._agent.report(), NOW)
        made = self.world.step()
        self.events += [(event.reason, event.message) for write in made.writes for event in write.events]
        for key, want in made.wants.items():
            if key not in self.world.resolutions:
                self.world.resolutions[key] = Resolution(resolve(want.source, self._options))
        if (desired := made.desired.get(NodeName("node-1"))) is not None:
            self._agent.reconcile(desired)
        status: dict[str, Any] = self.cache.json.get("status", {})
        return status

    def until(self, reason: str, *, of: str = "Ready") -> str:
        """The message of the condition, once it has this reason."""

        def reached() -> str | None:
            found = {each["type"]: each for each in self.tick().get("conditions", ())}.get(of, {})
            return f"{found['message']} " if found.get("reason") == reason else None

        return (eventually(reached, every_s=0.01, seen=lambda: self.cache.json) or "").strip()

    @property
    def detail(self) -> dict[str, Any]:
        found = self.world.find("LocalModelNode", "node-1")
        assert found is not None
        (detail,) = found["status"]["models"]
        return dict(detail)


def flip(path: Path, position: int) -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes([byte[0] ^ 1]))


def test_how_each_file_was_verified_is_recorded_on_the_disk_and_counted_in_status(node: Node, origin: Origin) -> None:
    cluster = Cluster(node, a_cache("sample", f"hf://{REPO}"), origin)
    cluster.until("AllNodesReady")
    marker = json.loads((node.folder() / ".localmodel/manifest.json").read_text())
    assert {how for path, how in marker["verified"].items() if path.endswith(".safetensors")} == {"sha256"}
    assert marker["verified"]["config.json"] == "git-sha1"
    assert all(file["digest"] for file in marker["manifest"]["files"])
    assert cluster.detail["verified"] == {"sha256": 4, "git-sha1": 8}
    assert cluster.detail["digest"] == marker["manifestDigest"] == cluster.cache.json["status"]["manifestDigest"]


@pytest.mark.slow
def test_a_damage_is_seen_in_status_and_told_in_events_and_goes_with_the_repair(node: Node, origin: Origin) -> None:
    cluster = Cluster(node, a_cache("sample", f"hf://{REPO}"), origin)
    cluster.until("AllNodesReady")
    eventually(lambda: cluster.tick() and "verifiedAt" in cluster.detail, every_s=0.01)
    cluster.events.clear()
    shard = "model-00003-of-00004.safetensors"
    origin.faults.set(Fault(status=503))
    flip(node.folder() / shard, CHUNK + 1)

    message = cluster.until("Damaged")
    assert message.startswith(f"node-1: {shard} differs within bytes {CHUNK}-")
    assert cluster.cache.json["status"]["nodeStatus"]["node-1"] in ("NodeDownloadError", "NodeDownloading")
    assert "Damaged" in [reason for reason, _ in cluster.events]
    assert (node.folder() / shard).exists()
    origin.faults.clear()
    cluster.until("AllNodesReady")
    assert {"Recovered", "NodeDownloaded", "Ready", "Repaired"} <= {reason for reason, _ in cluster.events}
    assert cluster.detail["repaired"].startswith(f"{shard} differs")


def test_a_source_of_another_digest_is_refused_before_the_first_byte(node: Node, origin: Origin) -> None:
    cluster = Cluster(node, a_cache("sample", f"hf://{REPO}").with_spec(digest=OTHER), origin)
    message = cluster.until("DigestMismatch")
    assert OTHER in message
    assert origin.stats()["bytes"] == 0
    assert not node.folder().exists()


def test_a_source_that_names_no_digest_is_refused_once_it_is_read_and_never_becomes_a_copy(
    node: Node, origin: Origin
) -> None:
    uri = f"{origin.url}/files/config.json"
    cache = a_cache("sample", uri).with_spec(digest=OTHER)
    cluster = Cluster(node, cache, origin)
    message = cluster.until("DigestMismatch")
    found = next(word for word in message.replace(",", " ").split() if word.startswith("sha256:") and word != OTHER)
    assert not node.folder(uri).exists()
    cache.with_spec(digest=found)
    cluster.until("AllNodesReady")
    assert node.folder(uri).exists()
    assert cluster.detail["verified"] == {"size": 1}


def test_a_copy_is_out_of_service_from_the_moment_another_digest_is_expected(node: Node, origin: Origin) -> None:
    cache = a_cache("sample", f"hf://{REPO}")
    cluster = Cluster(node, cache, origin)
    cluster.until("AllNodesReady")
    cache.with_spec(digest=OTHER)
    cluster.until("DigestMismatch")
    assert cache.json["status"]["nodeStatus"] == {"node-1": "NodeDownloadError"}
    assert node.folder().exists(), "somebody may be using it"
    cache.with_spec(digest=cache.json["status"]["manifestDigest"])
    cluster.until("AllNodesReady")
    assert origin.stats()["bytes"] == 2 * MIB, "and it is not read again"
