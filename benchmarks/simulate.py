"""A cooperative fill of a whole fleet in virtual time: the deciding code of the agents over simulated links.

    .venv/bin/python -m benchmarks.simulate [CASE …] [--list] [--seed 1] [--processes 2]

Every node is an `actors.mesh.Mesh`, the very code of the agents; the network, the origin and the coordinator's list of
members are simulated. Prints one table and one JSON line per case. `over` is the time of the slowest healthy node over
max(model / origin, model / link) (of one that came late: at least a whole model at the rate of its link after it came).
Slow nodes and those that die are not counted; what dies falls silent, and the coordinator notices after 3 seconds.
Exits with 1 where a target is missed.

To stay within minutes the chunks of the large cases are larger than real ones (16 MiB); the bytes a node has under way
and the window are those of real chunks. Not simulated: disks, hashing, CPU, TCP's ramp and its unfairness.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from actors.membership import Member, Membership
from actors.mesh import Mesh
from actors.messages import NodeName
from actors.moves import Answer, AskPeer, Elsewhere, Origin, Outcome, ReadOrigin, Release, Steal, Wait
from actors.news import NOTHING
from actors.pace import Pace, choose_chunk_bytes, choose_slots
from benchmarks.network import Clock, Flow, Link

RTT_S = 0.001
NOTICE_S = 3.0
TICK_S = 1.0
GBIT = 1e9 / 8
ANCHORS = """Published elsewhere, on other machines and other data, for orientation:
  Monarch, chain of 128 hosts            26.5 s over 23.2 s for one: 1.14
  Kraken, 3 GB to 2,600 hosts            p99 over p50: 1.8
  Ray object broadcast, 1 GiB to 50      16.94 s"""


@dataclass(frozen=True)
class Scenario:
    """One run. Rates in bytes per second. Shares of the nodes: slow (a quarter of the rate), dying, late."""

    case: str
    nodes: int
    model_bytes: int
    chunks: int
    link: float
    origin: float
    slow: float = 0.0
    dying: float = 0.0
    late: float = 0.0
    segments: int = 4
    """In how many pieces a chunk moves: more is smoother, and slower to simulate."""

    @property
    def bound_s(self) -> float:
        return self.model_bytes / min(self.link, self.origin)


class Transfer:
    """One chunk on its way from one node to another. Cut when one of them dies: the other notices after a while."""

    __slots__ = ("asker", "chunk", "flow", "origin", "sender")

    def __init__(self, sender: Node, asker: Node, chunk: int, origin: Origin) -> None:
        self.sender, self.asker, self.chunk, self.origin = sender, asker, chunk, origin
        fleet = sender.fleet
        sender.begin(self, asker.name)
        asker.begin(self, sender.name)
        self.flow = Flow(sender.up, asker.down, fleet.chunk_bytes, fleet.segment, self.done)

    def done(self) -> None:
        sender, asker = self.sender, self.asker
        self.end()
        asker.landed(self.chunk, self.origin)
        if sender.mesh.served(asker.name, self.chunk, sender.clock.now, ok=True):
            sender.poke()

    def end(self) -> None:
        self.sender.end(self, self.asker.name)
        self.asker.end(self, self.sender.name)

    def cut(self) -> None:
        self.flow.open = False
        self.end()
        after, silence_s = self.sender.clock.after, self.sender.fleet.pace.silence_s
        after(silence_s, self.asker.failed, self.chunk, Outcome.UNREACHABLE)
        after(silence_s, self.sender.gave_up, self.asker.name, self.chunk)


class Node:
    """An agent: carries out what its mesh decides, over the simulated network."""

    def __init__(self, fleet: Fleet, name: NodeName, rate: float, healthy: bool) -> None:
        self.fleet, self.clock, self.name, self.healthy = fleet, fleet.clock, name, healthy
        self.up = Link(fleet.clock, rate, True)
        self.down = Link(fleet.clock, rate, False)
        self.joined_at = 0.0
        self.done_at: float | None = None
        self.dead = False
        self.mesh: Mesh
        self.cursor = NOTHING
        self.wake_at = float("inf")
        self.transfers: set[Transfer] = set()
        self.talks: dict[NodeName, int] = {}
        self.peak = 0
        self.messages = 0

    def start(self, membership: Membership, have: int = 0) -> None:
        fleet = self.fleet
        self.joined_at = self.clock.now
        self.mesh = Mesh(
            self.name, membership, fleet.pace, rng=random.Random(fleet.rng.random()), now=self.clock.now, have=have
        )
        self.clock.after(RTT_S, self.tell)
        self.clock.after(fleet.rng.uniform(0, fleet.pace.news_s), self.tell_regularly)
        self.poke()

    def poke(self) -> None:
        """Begins all there is to begin."""
        if self.dead:
            return
        now = self.clock.now
        while True:
            action = self.mesh.next(now)
            if isinstance(action, AskPeer):
                self.messages += 1
                self.clock.after(RTT_S / 2, self.fleet.nodes[action.peer].ask, self, action.chunk)
            elif isinstance(action, ReadOrigin):
                self.clock.after(RTT_S, self.read, action.chunk)
            elif isinstance(action, Steal):
                self.messages += 1
                self.clock.after(RTT_S / 2, self.fleet.nodes[action.owner].ask_for_work, self)
            elif isinstance(action, Wait):
                if action.until < self.wake_at:
                    self.wake_at = action.until
                    self.clock.after(action.until - now, self.wake, action.until)
                return
            else:
                if self.done_at is None:
                    self.done_at = now
                    self.fleet.unfinished.discard(self.name)
                return

    def wake(self, when: float) -> None:
        if when == self.wake_at:
            self.wake_at = float("inf")
            self.poke()

    # --- reading from the origin ---

    def read(self, chunk: int) -> None:
        if not self.dead:
            fleet = self.fleet
            fleet.origin_reads[chunk] += 1
            Flow(
                fleet.origin,
                self.down,
                fleet.chunk_bytes,
                fleet.segment,
                lambda: self.landed(chunk, Origin(self.name, b"")),
            )

    def landed(self, chunk: int, origin: Origin) -> None:
        if self.dead:
            return
        self.release(self.mesh.landed(chunk, origin, self.clock.now))
        if self.mesh.urgent(self.cursor):
            self.tell()
        self.poke()

    # --- asking ---

    def failed(self, chunk: int, outcome: Outcome) -> None:
        if not self.dead:
            self.release(self.mesh.failed(chunk, outcome, self.clock.now))
            self.poke()

    def redirected(self, chunk: int, to: NodeName) -> None:
        if not self.dead:
            self.release(self.mesh.redirected(chunk, to, self.clock.now))
            self.poke()

    def stolen(self, owner: NodeName, chunk: int | None, reached: bool = True) -> None:
        if not self.dead:
            self.mesh.stolen(owner, chunk, self.clock.now, reached=reached)
            self.poke()

    # --- being asked ---

    def ask(self, asker: Node, chunk: int) -> None:
        if self.dead:
            self.clock.after(self.fleet.pace.silence_s, asker.failed, chunk, Outcome.UNREACHABLE)
            return
        answer = self.mesh.asked(asker.name, chunk, self.clock.now)
        if answer is Answer.HOLD:
            self.clock.after(self.fleet.pace.silence_s, self.unhold, asker, chunk)
            self.fleet.held.add((self.name, asker.name, chunk))
        else:
            self.answer(asker, chunk, answer)

    def answer(self, asker: Node, chunk: int, answer: Answer | Elsewhere) -> None:
        self.messages += 1
        if answer is Answer.DATA:
            self.send(asker, chunk)
        elif answer is Answer.BUSY:
            self.clock.after(RTT_S / 2, asker.failed, chunk, Outcome.BUSY)
        elif isinstance(answer, Elsewhere):
            self.clock.after(RTT_S / 2, asker.redirected, chunk, answer.peer)
        else:
            self.clock.after(RTT_S / 2, asker.failed, chunk, Outcome.NOT_YET)

    def unhold(self, asker: Node, chunk: int) -> None:
        key = (self.name, asker.name, chunk)
        if key in self.fleet.held:
            self.fleet.held.discard(key)
            if self.dead:
                asker.failed(chunk, Outcome.UNREACHABLE)
            else:
                self.answer(asker, chunk, self.mesh.unhold(asker.name, chunk))

    def release(self, releases: list[Release]) -> None:
        for each in releases:
            key = (self.name, each.peer, each.chunk)
            if key in self.fleet.held:
                self.fleet.held.discard(key)
                self.answer(self.fleet.nodes[each.peer], each.chunk, each.answer)
            elif each.answer is Answer.DATA:
                self.mesh.served(each.peer, each.chunk, self.clock.now, ok=False)

    def send(self, asker: Node, chunk: int) -> None:
        origin = self.mesh.origins.get(chunk) or Origin(self.name, b"")
        transfer = Transfer(self, asker, chunk, origin)
        if asker.dead:
            transfer.cut()

    def begin(self, transfer: Transfer, other: NodeName) -> None:
        self.transfers.add(transfer)
        self.talks[other] = self.talks.get(other, 0) + 1
        if len(self.talks) > self.peak:
            self.peak = len(self.talks)

    def end(self, transfer: Transfer, other: NodeName) -> None:
        self.transfers.discard(transfer)
        left = self.talks[other] - 1
        if left:
            self.talks[other] = left
        else:
            del self.talks[other]

    def gave_up(self, asker: NodeName, chunk: int) -> None:
        if not self.dead:
            self.mesh.served(asker, chunk, self.clock.now, ok=False)

    def ask_for_work(self, thief: Node) -> None:
        if self.dead:
            self.clock.after(self.fleet.pace.silence_s, thief.stolen, self.name, None, False)
            return
        self.messages += 1
        chunk = self.mesh.asked_for_work(thief.name, self.clock.now)
        self.clock.after(RTT_S / 2, thief.stolen, self.name, chunk)

    # --- telling ---

    def tell_regularly(self) -> None:
        if not self.dead:
            self.tell()
            self.clock.after(self.fleet.pace.news_s, self.tell_regularly)

    def tell(self) -> None:
        news = self.mesh.news(self.cursor)
        if news.cursor != self.cursor:
            self.cursor = news.cursor
            beside = sorted(self.fleet.membership.neighbours(self.name))
            self.messages += len(beside)
            self.clock.after(RTT_S / 2, self.told, news, beside)

    def told(self, news: Any, beside: list[NodeName]) -> None:
        nodes, now = self.fleet.nodes, self.clock.now
        for name in beside:
            node = nodes[name]
            if (
                not node.dead
                and hasattr(node, "mesh")
                and node.mesh.heard(self.name, news.chunks, now, whole=news.whole)
            ):
                node.poke()

    def die(self) -> None:
        self.dead = True
        self.fleet.unfinished.discard(self.name)
        for transfer in sorted(self.transfers, key=lambda each: each.chunk):
            transfer.cut()


def scaled_pace(chunk_bytes: int, scenario: Scenario) -> Pace:
    """That of the real chunk size, in bytes: larger chunks must not mean more of the model in flight."""
    real = choose_chunk_bytes(scenario.model_bytes, scenario.link)
    scale = min(1.0, real / chunk_bytes)
    pace = Pace(slots=choose_slots(real, scenario.link))
    return replace(pace, slots=math.ceil(pace.slots * scale), window=math.ceil(pace.window * scale))


class Fleet:
    """All nodes of one scenario, the origin, and a coordinator that names the members."""

    def __init__(self, scenario: Scenario, seed: int, pace: Pace | None = None) -> None:
        self.scenario = scenario
        self.rng = random.Random(seed)
        self.clock = Clock()
        self.chunk_bytes = -(-scenario.model_bytes // scenario.chunks)
        self.segment = -(-self.chunk_bytes // scenario.segments)
        self.pace = pace or scaled_pace(self.chunk_bytes, scenario)
        self.origin = Link(self.clock, scenario.origin, True)
        self.origin_reads: Counter[int] = Counter()
        self.held: set[tuple[NodeName, NodeName, int]] = set()
        self.coordinator_messages: Counter[int] = Counter()
        names = [NodeName(f"n{number:04}") for number in range(scenario.nodes)]
        odd = self.rng.sample(names, round(len(names) * (scenario.slow + scenario.dying + scenario.late)))
        slow, dying = round(len(names) * scenario.slow), round(len(names) * scenario.dying)
        self.slow, self.dying, self.late = odd[:slow], odd[slow : slow + dying], odd[slow + dying :]
        self.nodes = {
            name: Node(
                self, name, scenario.link / 4 if name in self.slow else scenario.link, name not in odd[: slow + dying]
            )
            for name in names
        }
        self.unfinished = {name for name, node in self.nodes.items() if node.healthy}
        self.known = set(names) - set(self.late)
        self.changed = False
        self.membership = self.members()

    def members(self) -> Membership:
        return Membership(
            "simulation", [Member(name, owns=name not in self.late) for name in self.known], self.scenario.chunks
        )

    def run(self) -> None:
        bound = self.scenario.bound_s
        for name in sorted(self.known):
            self.nodes[name].start(self.membership)
        for name in self.dying:
            self.clock.after(self.rng.uniform(0.1, 0.8) * bound, self.kill, name)
        for name in self.late:
            self.clock.after(self.rng.uniform(0.05, 0.5) * bound, self.admit, name)
        self.clock.after(TICK_S, self.tick)
        self.clock.run(lambda: not self.unfinished, bound * 5)

    def kill(self, name: NodeName) -> None:
        self.nodes[name].die()
        self.clock.after(NOTICE_S, self.notice, name, False)

    def admit(self, name: NodeName) -> None:
        self.notice(name, True)

    def notice(self, name: NodeName, here: bool) -> None:
        (self.known.add if here else self.known.discard)(name)
        self.changed = True

    def tick(self) -> None:
        """The coordinator's: those who are alive are told who the others are, if that has changed."""
        self.clock.after(TICK_S, self.tick)
        if not self.changed:
            return
        self.changed = False
        self.membership = self.members()
        for name in sorted(self.known):
            node = self.nodes[name]
            if node.dead:
                continue
            self.coordinator_messages[int(self.clock.now)] += 1
            if not hasattr(node, "mesh"):
                node.start(self.membership)
            else:
                node.mesh.join(self.membership, self.clock.now)
                node.cursor = NOTHING
            self.clock.after(0.0, node.poke)


@dataclass(frozen=True)
class Case:
    """A scenario and what it has to reach."""

    scenario: Scenario
    over: float
    origin: float = 1.01


def cases() -> Iterator[Case]:
    """Small: eight nodes, where a measured run exists. Origin-bound, then NIC-bound, each with all that goes wrong."""
    small = Scenario("8", 8, 1 << 30, 1024, 0.2 * GBIT, 0.2 * GBIT)
    yield Case(small, 1.10)
    yield Case(replace(small, case="8, one slow", slow=1 / 8), 1.15)
    yield Case(replace(small, case="8, one dies", dying=1 / 8), 1.15, origin=1.02)
    for nodes in (128, 1000):
        for origin, target in ((10, 1.05), (100, 1.10)):
            name = f"{nodes}, origin {origin} Gbit/s"
            large = Scenario(name, nodes, 140 * 10**9, 2000, 25 * GBIT, origin * GBIT)
            yield Case(large, target)
            yield Case(replace(large, case=f"{name}, slow and dying", slow=0.05, dying=0.02), target)
            yield Case(replace(large, case=f"{name}, late", late=0.2), target)


def simulate(case: Case, seed: int) -> dict[str, Any]:
    cpu = time.process_time()
    fleet = Fleet(case.scenario, seed)
    fleet.run()
    return {**result(fleet), "over_target": case.over, "cpu_s": round(time.process_time() - cpu, 1)}


def result(fleet: Fleet) -> dict[str, Any]:
    scenario = fleet.scenario
    healthy = [node for node in fleet.nodes.values() if node.healthy]
    reach = scenario.model_bytes / scenario.link
    ends = [node.done_at or math.inf for node in healthy]
    overs = sorted(end / max(scenario.bound_s, node.joined_at + reach) for node, end in zip(healthy, ends, strict=True))
    told = fleet.coordinator_messages
    return {
        "case": scenario.case,
        "nodes": scenario.nodes,
        "chunks": scenario.chunks,
        "over": round(overs[-1], 3),
        "median_over": round(overs[len(overs) // 2], 3),
        "origin": round(fleet.origin_reads.total() / scenario.chunks, 4),
        "peak_connections": max(node.peak for node in healthy),
        "node_messages_per_s": round(sum(node.messages for node in healthy) / len(healthy) / max(ends), 1),
        "coordinator_messages_per_s": round(told.total() / max(ends), 1),
        "coordinator_messages_peak_s": max(told.values(), default=0),
        "virtual_s": round(max(ends), 1),
    }


def machine() -> dict[str, Any]:
    load = round(os.getloadavg()[0], 2)
    return {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version(), "load": load}


COLUMNS = {
    "over": ("over", 7),
    "median_over": ("median", 8),
    "origin": ("origin", 8),
    "peak_connections": ("conns", 7),
    "node_messages_per_s": ("msg/s node", 12),
    "coordinator_messages_per_s": ("msg/s coord.", 14),
    "virtual_s": ("virtual s", 11),
    "cpu_s": ("CPU s", 8),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="*", help="cases whose name begins so; all, if none is given")
    parser.add_argument("--list", action="store_true", help="name the cases and exit")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    chosen = [case for case in cases() if not options.case or case.scenario.case.startswith(tuple(options.case))]
    if options.list:
        print("\n".join(case.scenario.case for case in chosen))
        return 0
    print(f"{'nodes':38}" + "".join(f"{title:>{width}}" for title, width in COLUMNS.values()), flush=True)
    rows, missed = [], 0
    with ProcessPoolExecutor(options.processes) as pool:
        for case, row in zip(chosen, pool.map(simulate, chosen, [options.seed] * len(chosen)), strict=True):
            rows.append({"benchmark": "simulate", **row, "seed": options.seed, **machine()})
            missed += row["over"] > case.over or row["origin"] > case.origin
            print(
                f"{row['case']:38}" + "".join(f"{row[key]:>{width}}" for key, (_, width) in COLUMNS.items()), flush=True
            )
    print(ANCHORS)
    for row in rows:
        print(json.dumps(row))
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
