"""A cooperative fill of a fleet in virtual time: the deciding code of the agents over simulated links.

    .venv/bin/python -m benchmarks.simulate
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import os
import platform
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from actors import bitmap
from actors.membership import Member, Membership
from actors.mesh import Mesh
from actors.messages import NodeName
from actors.moves import Answer, AskPeer, Done, Elsewhere, Origin, Outcome, ReadOrigin, Release, Steal, Wait
from actors.news import NOTHING
from actors.pace import Pace, choose_chunk_bytes, choose_slots

RTT_S = 0.001
NOTICE_S = 3.0
TICK_S = 1.0

class Clock:
    """Events in the order of their time."""

    __slots__ = ("_events", "_serial", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = 0

    def after(self, delay_s: float, act: Callable[..., None], *args: Any) -> None:
        self._serial += 1
        heapq.heappush(self._events, (self.now + delay_s, self._serial, act, args))

    def run(self, until: Callable[[], bool], limit_s: float) -> None:
        events = self._events
        while events and not until():
            self.now, _, act, args = heapq.heappop(events)
            if self.now > limit_s:
                break
            act(*args)


class Flow:
    """One chunk on its way over two links, in segments. `done` is called with the last; never, once it is cut."""

    __slots__ = ("down", "done", "left", "open", "segment", "sending", "up", "waiting")

    def __init__(self, up: Link, down: Link, size: int, segment: int, done: Callable[[], None]) -> None:
        self.up, self.down, self.left, self.segment, self.done = up, down, size, segment, done
        self.sending = size  # not yet through the uplink
        self.waiting = 0     # segments at the downlink
        self.open = True
        up.push(self)


class Link:
    """One direction of a network card: serves segments in turn. `next_hop`..."""

    __slots__ = ("_clock", "_queue", "_busy", "rate", "bytes", "is_up", "_finish")

    def __init__(self, clock: Clock, rate: float, is_up: bool) -> None:
        self._clock = clock
        self.rate = rate
        self._queue: deque[Flow] = deque()
        self._busy = False
        self.bytes = 0
        self.is_up = is_up
        self._finish = self._sent if is_up else self._received

    def push(self, flow: Flow) -> None:
        if self._busy:
            self._queue.append(flow)
        else:
            self._busy = True
            self._serve(flow)

    def _serve(self, flow: Flow) -> None:
        left = flow.sending if self.is_up else flow.left
        size = flow.segment if flow.segment < left else left
        self._clock.after(size / self.rate, self._finish, flow, size)

    def _next(self) -> None:
        queue = self._queue
        while queue:
            flow = queue.popleft()
            if flow.open:
                self._serve(flow)
                return
        self._busy = False

    def _sent(self, flow: Flow, size: int) -> None:
        self._next()
        if flow.open:
            self.bytes += size
            flow.sending -= size
            flow.waiting += 1
            flow.down.push(flow)
            if flow.sending and flow.waiting < 2:
                self.push(flow)

    def _received(self, flow: Flow, size: int) -> None:
        self._next()
        if flow.open:
            self.bytes += size
            flow.left -= size
            flow.waiting -= 1
            if flow.sending and flow.waiting == 1:
                flow.up.push(flow)
            if not flow.left:
                flow.open = False
                flow.done()

@dataclass(frozen=True)
class Scenario:
    """One run. Rates in bytes per second. Shares of the nodes: slow (a quarter of the rate), dying, late."""

    name: str
    nodes: int
    model_bytes: int
    chunks: int
    link: float
    origin: float
    slow: float = 0.0
    dying: float = 0.0
    late: float = 0.0
    segments: int = 4
    zones: int = 1
    seeds: int = 0

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
        self.cross = 0

    def start(self, membership: Membership, have: int = 0) -> None:
        fleet = self.fleet
        self.joined_at = self.clock.now
        self.mesh = Mesh(self.name, membership, fleet.pace, rng=random.Random(fleet.rng.random()), now=self.clock.now, have=have)
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
            kind = type(action)
            if kind is AskPeer:
                self.messages += 1
                self.clock.after(RTT_S / 2, self.fleet.nodes[action.peer].ask, self, action.chunk)
            elif kind is ReadOrigin:
                self.clock.after(RTT_S, self.read, action.chunk)
            elif kind is Steal:
                self.messages += 1
                self.clock.after(RTT_S / 2, self.fleet.nodes[action.owner].ask_for_work, self)
            elif kind is Wait:
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
            Flow(fleet.origin, self.down, fleet.chunk_bytes, fleet.segment, lambda: self.landed(chunk, Origin(self.name, b"")))

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
                self.mesh.unhold(asker.name, chunk)
                self.answer(asker, chunk, Answer.NOT_YET)

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
            if not node.dead and hasattr(node, "mesh") and node.mesh.heard(self.name, news.chunks, now, whole=news.whole):
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
            name: Node(self, name, scenario.link / 4 if name in self.slow else scenario.link, name not in odd[: slow + dying])
            for name in names
        }
        self.unfinished = {name for name, node in self.nodes.items() if node.healthy}
        self.known = set(names) - set(self.late)
        self.changed = False
        self.membership = self.members()

    def members(self) -> Membership:
        return Membership("simulation", [Member(name, owns=name not in self.late) for name in self.known], self.scenario.chunks)

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


def result(fleet: Fleet, took_s: float) -> dict[str, Any]:
    scenario = fleet.scenario
    healthy = [node for node in fleet.nodes.values() if node.healthy]
    reach = scenario.model_bytes / scenario.link
    overs = sorted((node.done_at or float("inf")) / max(scenario.bound_s, node.joined_at + reach) for node in healthy)
    last = max(node.done_at or float("inf") for node in healthy)
    return {
        "case": scenario.name, "nodes": scenario.nodes, "chunks": scenario.chunks, "slots": fleet.pace.slots,
        "over": round(overs[-1], 3), "median_over": round(overs[len(overs) // 2], 3),
        "origin": round(sum(fleet.origin_reads.values()) / scenario.chunks, 4),
        "peak_connections": max(node.peak for node in healthy),
        "messages_per_node_s": round(sum(node.messages for node in healthy) / len(healthy) / last, 1),
        "coordinator_messages_per_s": round(sum(fleet.coordinator_messages.values()) / last, 1),
        "virtual_s": round(last, 2), "cpu_s": round(took_s, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="*")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    G = 1e9 / 8
    a = dict(nodes=8, model_bytes=1 << 30, chunks=1024, link=.2 * G, origin=.2 * G)
    b = dict(nodes=128, model_bytes=140_000_000_000, chunks=2000, link=25 * G, origin=10 * G)
    cases = {
        "a": Scenario("a", **a), "a-slow": Scenario("a-slow", **a, slow=.125), "a-dying": Scenario("a-dying", **a, dying=.125),
        "b": Scenario("b", **b), "b-slow": Scenario("b-slow", **b, slow=.05, dying=.02),
        "c": Scenario("c", **{**b, "nodes": 1000}), "c-slow": Scenario("c-slow", **{**b, "nodes": 1000}, slow=.05, dying=.02),
        "d": Scenario("d", **{**b, "origin": 100 * G}), "d-slow": Scenario("d-slow", **{**b, "origin": 100 * G}, slow=.05, dying=.02),
        "e": Scenario("e", **{**b, "nodes": 1000, "origin": 100 * G}),
        "e-slow": Scenario("e-slow", **{**b, "nodes": 1000, "origin": 100 * G}, slow=.05, dying=.02),
        "b-late": Scenario("b-late", **b, late=.2), "d-late": Scenario("d-late", **{**b, "origin": 100 * G}, late=.2),
    }
    for name in options.case:
        cpu = time.process_time()
        fleet = Fleet(cases[name], options.seed)
        fleet.run()
        print(json.dumps(result(fleet, time.process_time() - cpu)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
