"""The cost of polling: the real fleet with a thousand agents, over a Ray that is only played.

    .venv/bin/python -m benchmarks.polling [--agents 1000] [--models 20] [--seconds 10]

An agent is a report that is pickled and read again for each call, and is answered `LATENCY_S` later; so the coordinator
does all that it does with Ray, except for Ray's own part. First every model is Ready, then every one progresses.
`polls/s`: answers that were taken. `CPU`: of the process, of one core. `age`: of the view that a plan gets, at worst.

Takes: 30 s
"""

from __future__ import annotations

import argparse
import json
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from actors.messages import DesiredState, NodeName, NodeReport, Phase
from benchmarks.control import GIB, World
from benchmarks.machine import machine
from coordinator.fleet import ray_fleet
from coordinator.fleet.interface import NODE_LABEL

LATENCY_S = 0.003


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    answer: bytes
    ready_at: float


class Method:
    def __init__(self, answer: Callable[..., object]) -> None:
        self._answer = answer

    def remote(self, *arguments: object) -> Call:
        given = pickle.loads(pickle.dumps(arguments))
        return Call(pickle.dumps(self._answer(*given)), time.monotonic() + LATENCY_S)


class Handle:
    """One agent. `reports` has what each says now."""

    def __init__(self, node: NodeName, version: str, reports: Mapping[NodeName, NodeReport]) -> None:
        self.version = Method(lambda: version)
        self.reconcile = Method(lambda desired: replace(reports[node], at=time.time()))
        self.drain = Method(lambda timeout_s: None)


class Ray:
    """As much of Ray as the fleet asks for."""

    def __init__(self, reports: Mapping[NodeName, NodeReport]) -> None:
        self._reports = reports
        self.taken = 0

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Labels": {NODE_LABEL: name}} for name in self._reports]

    def remote(self, *arguments: Any, **options: Any) -> Any:
        """Both `ray.remote(…)(class)` and, on what that returns, `.options(…).remote(node, version, factory)`."""
        return Handle(arguments[0], arguments[1], self._reports) if len(arguments) > 1 else lambda actor: self

    def options(self, **options: Any) -> Ray:
        return self

    def wait(
        self, calls: Sequence[Call], *, num_returns: int, timeout: float, fetch_local: bool
    ) -> tuple[list[Call], list[Call]]:
        first = min(call.ready_at for call in calls)
        time.sleep(max(0.0, min(timeout, first - time.monotonic())))
        now = time.monotonic()
        ready = [call for call in calls if call.ready_at <= now][:num_returns]
        return ready, [call for call in calls if call not in ready] if num_returns == 1 else []

    def get(self, call: Call, timeout: float) -> object:
        self.taken += 1
        return pickle.loads(call.answer)

    def kill(self, handle: Handle) -> None: ...

    def shutdown(self) -> None: ...


def measure(agents: int, models: int, seconds: float) -> Iterator[dict[str, Any]]:
    world = World([f"n{number:04}" for number in range(agents)], [f"m{number:03}" for number in range(models)])
    world.advance(None)
    reports = {name: view.report for name, view in world.agents.items() if view.report is not None}
    desired = {name: DesiredState("owner") for name in reports}
    played = Ray(reports)
    with patch.object(ray_fleet, "ray", played):
        fleet = ray_fleet.RayFleet("127.0.0.1:1")
        try:
            for case, done in (("all Ready", None), ("all progress", GIB // 2)):
                world.advance(done)
                reports |= {name: view.report for name, view in world.agents.items() if view.report is not None}
                fleet.sync(desired)
                _settle(fleet, agents, Phase.READY if done is None else Phase.DOWNLOADING)
                yield {"case": case, "agents": agents, "models": models, **_observe(fleet, played, desired, seconds)}
        finally:
            fleet.close(stop_agents=False)


def _settle(fleet: ray_fleet.RayFleet, agents: int, phase: Phase) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        known = [view.report for view in fleet.views().values() if view.report is not None]
        if len(known) == agents and all(report.models[0].phase is phase for report in known):
            return
        time.sleep(0.1)
    raise SystemExit("the fleet has not heard all agents within a minute")


def _observe(
    fleet: ray_fleet.RayFleet, played: Ray, desired: Mapping[NodeName, DesiredState], seconds: float
) -> dict[str, Any]:
    taken, cpu, began, age_s = played.taken, time.process_time(), time.monotonic(), 0.0
    while time.monotonic() < began + seconds:
        fleet.sync(desired)
        heard = min(view.received_at or 0.0 for view in fleet.views().values())
        age_s = max(age_s, time.time() - heard)
        time.sleep(1.0)
    lasted = time.monotonic() - began
    return {
        "polls_per_s": round((played.taken - taken) / lasted),
        "cpu": round((time.process_time() - cpu) / lasted, 3),
        "age_s": round(age_s, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=1000)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    rows = []
    print(f"{'case':16}{'agents':>8}{'models':>8}{'polls/s':>9}{'CPU':>8}{'age s':>8}")
    for row in measure(options.agents, options.models, options.seconds):
        rows.append({"benchmark": "polling", **row, **machine()})
        print(
            f"{row['case']:16}{row['agents']:>8}{row['models']:>8}{row['polls_per_s']:>9}{row['cpu']:>8}{row['age_s']:>8}"
        )
    for row in rows:
        print(json.dumps(row))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
