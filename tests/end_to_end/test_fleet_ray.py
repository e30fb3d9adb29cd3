"""What happens to the fleet when Ray nodes, coordinators and versions come and go."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.messages import DesiredState, NodeName, NodeReport
from coordinator.dev.laptop.raynodes import LocalRay
from coordinator.dev.trial.waiting import eventually
from tests.kit.fake_fleet import ScriptedAgent

pytestmark = pytest.mark.ray

A, NOWHERE = NodeName("node-a"), NodeName("node-nowhere")
REPO = Path(__file__).parents[2]

COORDINATOR = """
import json, sys, time
from actors.messages import DesiredState, NodeName
from coordinator.fleet.ray_fleet import RayFleet
from tests.kit.fake_fleet import ScriptedAgent

address, version, stop = sys.argv[1:]
fleet = RayFleet(address, version=version, factory=ScriptedAgent)
fleet.sync({NodeName("node-a"): DesiredState("hello")})
deadline = time.monotonic() + 60
while time.monotonic() < deadline:
    view = fleet.views()["node-a"]
    if view.failure is None and view.report:
        print(json.dumps({"pid": view.report.pid, "incarnation": view.report.incarnation}))
        break
    time.sleep(0.05)
fleet.close(stop_agents=stop == "stop")
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRay]:
    folder = tmp_path_factory.mktemp("r")
    cluster = LocalRay({A: {}}, log=folder / "ray.log")
    try:
        cluster.launch()
        cluster.join()
        yield cluster
    finally:
        cluster.stop()


def coordinate(cluster: LocalRay, version: str, *, stop: bool = False) -> dict[str, object]:
    """A whole coordinator's life with the fleet: what it learned of node-a's agent."""
    environment = {**os.environ, **cluster.environment, "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", COORDINATOR, cluster.address, version, "stop" if stop else "leave"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stderr
    found: dict[str, object] = json.loads(lines[-1])
    return found


def test_the_next_coordinator_finds_the_same_agent_and_one_of_another_version_replaces_it(cluster: LocalRay) -> None:
    first = coordinate(cluster, "1.0")
    assert coordinate(cluster, "1.0") == first
    second = coordinate(cluster, "2.0")
    assert second["incarnation"] != first["incarnation"]
    assert not Path(f"/proc/{first['pid']}").exists()
    coordinate(cluster, "2.0", stop=True)
    eventually(lambda: not Path(f"/proc/{second['pid']}").exists(), timeout_s=20)


def test_no_process_of_the_cluster_shows_the_token_in_its_environment(cluster: LocalRay) -> None:
    """`/proc` shows it to whoever can make a process of the same user read a file."""
    token = cluster.environment["RAY_AUTH_TOKEN"].encode()
    found = coordinate(cluster, "1.0")
    shown: dict[str, bytes] = {}
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            environment = (process / "environ").read_bytes() if process.name.isdigit() else b""
            if b"RAY_AUTH_TOKEN_PATH=" in environment and str(cluster.token_file).encode() in environment:
                shown[process.name] = environment
    assert str(found["pid"]) in shown, "the agent is among them"
    assert len(shown) >= 4, "and the raylets, and the GCS"
    assert [pid for pid, environment in shown.items() if token in environment] == []
    assert cluster.token_file.read_bytes() == token
    assert cluster.token_file.stat().st_mode & 0o777 == 0o400
    coordinate(cluster, "1.0", stop=True)


def test_a_ray_node_that_loses_power_is_named_and_served_again_when_it_returns(
    cluster: LocalRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**cluster.environment, "PYTHONPATH": str(REPO)}.items():
        monkeypatch.setenv(name, value)
    from coordinator.fleet.ray_fleet import RayFleet

    fleet = RayFleet(cluster.address, factory=ScriptedAgent)
    try:
        fleet.sync({A: DesiredState("one"), NOWHERE: DesiredState("one")})

        def healthy() -> NodeReport | None:
            view = fleet.views()[A]
            return view.report if view.failure is None else None

        first = eventually(healthy, timeout_s=60, seen=fleet.views)
        assert first is not None
        missing = eventually(lambda: fleet.views()[NOWHERE].failure, seen=fleet.views)
        assert missing is not None
        assert missing.reason == "NoRayNode"
        assert f"localmodel/node={NOWHERE}" in missing.message

        cluster.kill_node(A)
        eventually(lambda: fleet.views()[A].failure, timeout_s=30, seen=fleet.views)
        assert fleet.views()[A].report == first, "the last report stays"
        cluster.start_node(A)

        def returned() -> bool:
            report = healthy()
            return report is not None and report.incarnation != first.incarnation

        eventually(returned, timeout_s=60, seen=fleet.views)
    finally:
        fleet.close(stop_agents=True)


def test_without_the_lead_no_agent_is_asked_and_afterwards_only_what_is_told_anew(
    cluster: LocalRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**cluster.environment, "PYTHONPATH": str(REPO)}.items():
        monkeypatch.setenv(name, value)
    from coordinator.fleet.ray_fleet import RayFleet

    lead = [True]
    fleet = RayFleet(cluster.address, factory=ScriptedAgent, leading=lambda: lead[0])
    try:
        fleet.sync({A: DesiredState("one")})
        eventually(lambda: fleet.views()[A].failure is None, timeout_s=60, seen=fleet.views)
        lead[0] = False
        eventually(lambda: fleet.views()[A].report is None, timeout_s=10, seen=fleet.views)
        lead[0] = True
        quiet_until = time.monotonic() + 3
        eventually(lambda: time.monotonic() > quiet_until, timeout_s=5)
        assert fleet.views()[A].report is None, "it is told nothing that was decided before"
        fleet.sync({A: DesiredState("two")})
        eventually(lambda: fleet.views()[A].failure is None, timeout_s=30, seen=fleet.views)
    finally:
        lead[0] = True
        fleet.close(stop_agents=True)
