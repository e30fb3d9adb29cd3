"""A rollout among node agents that are processes of their own, while agents and the coordinator are killed.

    python -m tests.kit.rolling_agents --kills 20 --seed 1        says what it saw; ends with 1 if anything was wrong

The coordinator is the plan and what a controller keeps of it. It is killed anywhere in a turn: some of its writes are
made, some agents have heard it, and the next one knows what stands in the objects and what the agents say.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from actors.disk.handles import Folder
from actors.manifest import Resolved
from actors.messages import NodeName, Phase
from coordinator.api.resources import StatusKey
from coordinator.dev.origin.sample import REPO, write_sample
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.fanout import GONE, TICK_S, Fanout, Place
from coordinator.dev.trial.versions import CHANGED, at_revision, next_version
from coordinator.fleet.interface import AgentView
from coordinator.plan.plan import plan
from coordinator.plan.rollout import SETTLE_S
from tests.kit.path_watch import LARGEST, PathWatch

NODES = ("node-1", "node-2", "node-3")


class Rolling(Fanout):
    """`skew_s`: added to the clock of the plan, so that a test need not wait for what a new coordinator waits for."""

    def __init__(self, folder: Path, resolved: Resolved, places: Mapping[str, Place], rollout: Mapping[str, object]):
        self.cutting_over: dict[StatusKey, frozenset[NodeName]] = {}
        self.acting_since = self.skew_s = 0.0
        self.most_let = 0
        self.rng: random.Random | None = None
        super().__init__(folder, resolved, places)
        self._builder.with_spec(rollout=dict(rollout), revision=resolved.manifest.source.revision)

    def tick(self) -> None:
        """One turn; with `rng`, one that is killed somewhere in it."""
        now = time.time() + self.skew_s
        snapshot = replace(
            self._world.snapshot(),
            companies={self.company.fill: self.company} if self.company is not None else {},
            secret=b"rolling",
            cutting_over=self.cutting_over,
            acting_since=self.acting_since,
        )
        made = plan(snapshot, now)
        steps = len(made.writes) + len(self.agents)
        left = self.rng.randrange(steps + 1) if self.rng is not None else steps
        self.company = next(iter(made.companies.values()), None)
        self.cutting_over = dict(made.cutting_over)
        self.most_let = max(self.most_let, *(len(nodes) for nodes in self.cutting_over.values()), 0)
        for write in made.writes[:left]:
            self._world.carry_out(write)
        for name, agent in list(self.agents.items())[: max(0, left - len(made.writes))]:
            try:
                answer = agent.reconcile(made.desired.get(NodeName(name)))
                self._world.agents[name] = AgentView(answer, now)
            except (OSError, EOFError):
                before = self._world.agents.get(name, AgentView())
                self._world.agents[name] = replace(before, failure=GONE)

    def kill_coordinator(self, rng: random.Random) -> None:
        """One more turn, killed in the middle; the next coordinator has heard nobody yet."""
        self.rng = rng
        self.tick()
        self.rng, self.cutting_over, self.company = None, {}, None
        self.acting_since = time.time() + self.skew_s
        self.skew_s += SETTLE_S
        self._world.agents.clear()

    def at(self, revision: str | None) -> int:
        """How many nodes say that they serve it."""
        found = (self.model(name) for name in self.agents)
        return sum(each is not None and each.phase is Phase.READY and each.revision == revision for each in found)

    @property
    def status(self) -> Mapping[str, object]:
        status: Mapping[str, object] = self._builder.json.get("status", {})
        return status


@dataclass
class Seen:
    """The outcome of a run. `wrong`: what a reader by path, or one in an old folder, saw that is no whole version."""

    kills: int = 0
    looks: int = 0
    wrong: list[str] = field(default_factory=list)
    most_let: int = 0
    origin_bytes: int = 0


def roll(folder: Path, sample_bytes: int, kills: int, seed: int) -> Seen:
    """Version 2 and 1 in turn, until so many processes were killed; every node ends with version 2."""
    rng, seen = random.Random(seed), Seen()
    write_sample(folder / "first", sample_bytes)
    next_version(folder / "first", folder / "second")
    with ExitStack() as stack:
        origin = stack.enter_context(Origin({REPO: folder / "first"}))
        first = at_revision(origin, origin.repos[REPO].main.commit)
        second = at_revision(origin, origin.repos[REPO].push(folder / "second"))
        places = {name: Place("127.0.0.1") for name in NODES}
        fleet = stack.enter_context(Rolling(folder / "nodes", first, places, {"maxUnavailable": 1}))
        fleet.until(lambda: fleet.at(first.manifest.revision) == len(NODES))
        content = {(folder / each / CHANGED).read_bytes(): each == "second" for each in ("first", "second")}
        watches = [stack.enter_context(PathWatch(fleet.folder(name), content)) for name in NODES]
        held = [stack.enter_context(Folder.at(fleet.folder(name))) for name in NODES]
        before = int(origin.stats()["bytes"])
        wanted = second
        fleet.revise(wanted)
        while seen.kills < kills:
            for _ in range(rng.randrange(4)):
                fleet.tick()
                time.sleep(rng.uniform(0, TICK_S))
            if rng.random() < 0.4:
                fleet.kill_coordinator(rng)
            else:
                name = rng.choice(NODES)
                with suppress(OSError, EOFError):
                    fleet.agents[name].kill()
                fleet.tick()
                fleet.start(name)
            seen.kills += 1
            if fleet.at(wanted.manifest.revision) == len(NODES):
                wanted = first if wanted is second else second
                fleet.revise(wanted)
        fleet.revise(second)
        fleet.until(lambda: fleet.at(second.manifest.revision) == len(NODES), timeout_s=90)
        seen.origin_bytes = int(origin.stats()["bytes"]) - before
        seen.most_let = fleet.most_let
        for each in held:
            if each.read(CHANGED, LARGEST) != (folder / "first" / CHANGED).read_bytes():
                seen.wrong.append("an old folder that is held changed")
    for watch in watches:
        seen.looks += watch.seen
        seen.wrong += watch.wrong
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mib", type=int, default=8)
    args = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        seen = roll(Path(folder), args.mib << 20, args.kills, args.seed)
    print(f"{seen.kills} kills, {seen.looks} looks by path, {len(seen.wrong)} wrong {sorted(set(seen.wrong))}")
    print(f"at most {seen.most_let} of {len(NODES)} nodes let at once; {seen.origin_bytes} bytes from the origin")
    print(f"{time.monotonic() - started:.0f} s")
    return 1 if seen.wrong or seen.most_let > 1 else 0


if __name__ == "__main__":
    sys.exit(main())
