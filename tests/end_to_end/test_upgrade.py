"""Agents that the layout before packages has started, and a coordinator of this one.

Agents are detached actors: they outlive the coordinator that started them, and Ray starts them again by the path of
their module. What is on the disk must outlive both, and nothing may be fetched again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from actors.messages import NodeName
from coordinator.dev.laptop.raynodes import LocalRay
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.waiting import eventually

pytestmark = pytest.mark.ray

A = NodeName("node-a")
HERE = Path(__file__).parents[2]
FORMER_FLEET = "coordinator/rayfleet.py"
SIZE = 3 << 20
Json = dict[str, Any]

COORDINATOR = """
import importlib, json, sys, time
from actors.manifest import Location, ManifestFile, ModelSource, Resolved, make_manifest, storage_key
from actors.messages import DesiredModel, DesiredRoot, DesiredState, NodeName, Phase
from actors.trust import UNRESTRICTED

module, address, url, size = sys.argv[1:]
fleet = importlib.import_module(module).RayFleet(address, trust=UNRESTRICTED)
source = ModelSource(url)
resolved = Resolved(make_manifest(source, None, [ManifestFile("model.bin", int(size))]), (Location(url),))
model = DesiredModel(storage_key(url), "/models", source, resolved.name)
desired = DesiredState("cluster", (DesiredRoot("/models"),), (model,), {resolved.name: resolved}, used={})
reasons, deadline = [], time.monotonic() + 90

def note():
    reasons.extend(view.failure.reason for view in fleet.views().values() if view.failure is not None)

fleet.changed = note
while time.monotonic() < deadline:
    fleet.sync({NodeName("node-a"): desired})
    view = fleet.views()[NodeName("node-a")]
    report = view.report if view.failure is None else None
    if report is not None and any(each.phase is Phase.READY for each in report.models):
        print(json.dumps({"pid": report.pid, "incarnation": report.incarnation, "reasons": reasons}))
        break
    time.sleep(0.05)
fleet.close(stop_agents=False)
"""


def git(*arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(HERE), *arguments], capture_output=True, check=True, timeout=60).stdout


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of the last commit that had the former layout."""
    try:
        moved = git("log", "-1", "--format=%H", "--no-renames", "--diff-filter=D", "--", FORMER_FLEET).decode().strip()
        archive = git("archive", f"{moved}^", "actors", "coordinator")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("the history of this checkout does not reach back to the layout before packages")
    folder = tmp_path_factory.mktemp("former")
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


class Site:
    """One node with a disk, an origin, and a tree of code that can be exchanged, as a new image does."""

    def __init__(self, folder: Path) -> None:
        (folder / "files").mkdir()
        (folder / "files" / "model.bin").write_bytes(os.urandom(SIZE))
        (folder / "disk" / "models").mkdir(parents=True)
        self.image = folder / "image"
        self.copy = folder / "disk" / "models" / "models"
        self.origin = Origin(files=folder / "files")
        environment = {
            "PYTHONPATH": str(self.image),
            "LOCALMODEL_HOST_ROOT": str(folder / "disk"),
            "LOCALMODEL_HEADROOM": "0",
        }
        self.empty = folder / "empty"
        self.empty.mkdir()
        self.ray = LocalRay({A: environment}, log=folder / "ray.log")

    def use(self, tree: Path) -> None:
        """From now on new processes of the node find this code."""
        fresh = self.image.with_name("fresh")
        fresh.symlink_to(tree)
        fresh.rename(self.image)

    def coordinate(self, tree: Path, fleet: str) -> Json:
        """A coordinator of this tree, until the node's agent holds the model: what it learned of the agent."""
        environment = {**os.environ, **self.ray.environment, "PYTHONPATH": str(tree)}
        arguments = [fleet, self.ray.address, f"{self.origin.url}/files/model.bin", str(SIZE)]
        command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", COORDINATOR, *arguments]
        done = subprocess.run(  # not here: Ray's workers, too, import what is in a driver's working directory
            command, env=environment, cwd=self.empty, capture_output=True, text=True, timeout=120, check=False
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        assert lines, done.stderr[-3000:]
        found: Json = json.loads(lines[-1])
        return found

    def inodes(self) -> dict[str, int]:
        """The files of the copy, each with what tells it from another of the same name."""
        return {path.name: path.stat().st_ino for path in self.copy.rglob("*") if path.is_file()}

    def close(self) -> None:
        self.ray.stop()
        self.origin.close()


@pytest.fixture
def site(tmp_path: Path, former: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    try:
        site.use(former)
        site.ray.launch()
        site.ray.join()
        yield site
    finally:
        site.close()


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("restarted", [False, True], ids=["it still runs", "Ray has started it again in the new image"])
def test_an_agent_of_the_former_layout_is_replaced_and_its_copy_is_kept(
    restarted: bool, site: Site, former: Path
) -> None:
    before = site.coordinate(former, "coordinator.rayfleet")
    served, copy = site.origin.stats()["bytes"], site.inodes()
    assert (served, "model.bin" in copy) == (SIZE, True)

    site.use(HERE)
    if restarted:  # it looks for the class that it was made from, by the name of the module then
        os.kill(before["pid"], signal.SIGKILL)
    after = site.coordinate(HERE, "coordinator.fleet.ray_fleet")

    assert after["incarnation"] != before["incarnation"]
    assert "AgentOutdated" in after["reasons"]
    assert "AgentError" not in after["reasons"]
    eventually(lambda: not alive(before["pid"]), timeout_s=20)
    assert site.origin.stats()["bytes"] == served, "nothing is fetched again"
    assert site.inodes() == copy, "the copy is the very same"
