"""A fleet that fills together in virtual time: every node is an `mesh.mesh.Mesh`, the rest of the world is simulated.

    Mesh ──next──► Node ──► Flow over two Links (`coordinator.dev.simulation.network`) ──landed──► Mesh
                    └─────► another Node's Mesh: asked, asked for work, heard
    Fleet: the origin, who dies and who comes late, and a coordinator that tells who the members are

What dies falls silent: its peers notice after `Pace.silence_s`, the coordinator after as long as it waits for an agent.
Not simulated: disks, hashing, CPU, TCP's ramp and its unfairness.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from actors.mesh.actions import Answer, AskPeer, Elsewhere, Origin, Outcome, ReadOrigin, Release, Steal, Wait
from actors.mesh.announcements import NOTHING, News
from actors.mesh.limits import DEAD_S, Pace, choose_chunk_bytes, choose_slots
from actors.mesh.membership import Member, Membership
from actors.mesh.mesh import Mesh
from actors.messages import NodeName
from coordinator.dev.simulation.network import Clock, Flow, Link

RTT_S = 0.001
POLL_S = 0.5
"""As `fleet.ray_fleet` does while a node fills: one call for each, with the members and back with a report."""


@dataclass(frozen=True)
class Scenario:
    """One run. Rates in bytes per second. Shares of the nodes: slow (a quarter of the rate), dying, late."""

    case: str
    nodes: int
    model_bytes: int
    link: float
    origin: float
    slow: float = 0.0
    dying: float = 0.0
    late: float = 0.0
    deaths: tuple[float, float] = (0.1, 0.8)
    """When nodes die, in parts of the time that the fill takes at best."""
    segments: int = 4
    """In how many pieces a chunk moves: more is smoother, and slower to simulate."""

    @property
    def bound_s(self) -> float:
        return self.model_bytes / min(self.link, self.origin)

    @property
    def chunks(self) -> int:
        return -(-self.model_bytes // choose_chunk_bytes(self.model_bytes, self.link))

    @property
    def chunk_bytes(self) -> int:
        """All have the same size here: that which agents would choose, or a trifle less."""
        return -(-self.model_bytes // self.chunks)


class Transfer:
    """One chunk on its way from one node to another. Cut when one of them dies: the other notices after a while."""

    __slots__ = ("asker", "chunk", "flow", "origin", "sender")

    def __init__(self, sender: Node, asker: Node, chunk: int, origin: Origin) -> None:
        self.sender, self.asker, self.chunk, self.origin = sender, asker, chunk, origin
        sender.transfers.add(self)
        asker.transfers.add(self)
        fleet = sender.fleet
        self.flow = Flow(sender.up, asker.down, fleet.chunk_bytes, fleet.segment, self.done)

    def done(self) -> None:
        sender, asker = self.sender, self.asker
        self.end()
        asker.landed(self.chunk, self.origin)
        if sender.mesh.served(asker.name, self.chunk, sender.clock.now, ok=True):
            sender.poke()

    def end(self) -> None:
        self.sender.transfers.discard(self)
        self.sender.close()
        self.asker.transfers.discard(self)

    def cut(self) -> None:
        self.flow.open = False
        self.end()
        after, silence_s = self.sender.clock.after, self.sender.fleet.pace.silence_s
        after(silence_s, self.asker.failed, self.chunk, Outcome.UNREACHABLE)
        after(silence_s, self.sender.gave_up, self.asker.name, self.chunk)


class Node:
    """An agent: carries out what its mesh decides, over the simulated network."""

    mesh: Mesh

    def __init__(self, fleet: Fleet, name: NodeName, rate: float, healthy: bool) -> None:
        self.fleet, self.clock, self.name, self.healthy = fleet, fleet.clock, name, healthy
        self.up = Link(fleet.clock, rate, True)
        self.down = Link(fleet.clock, rate, False)
        self.alive = False
        self.joined_at: float | None = None
        self.done_at: float | None = None
        self.beside: list[NodeName] = []
        self.cursor = NOTHING
        self.wake_at = float("inf")
        self.transfers: set[Transfer] = set()
        self.requests = 0  # under way, its own and those of others to it: a connection each
        self.peak = 0
        self.messages = 0

    @property
    def peak_connections(self) -> int:
        """With those on which neighbours tell it, and are told, what has landed; without those kept for the next."""
        return self.peak + 2 * len(self.beside)

    def start(self, membership: Membership) -> None:
        fleet, now = self.fleet, self.clock.now
        self.alive, self.joined_at = True, now
        self.mesh = fleet.mesh_type(self.name, membership, fleet.pace, rng=random.Random(fleet.rng.random()), now=now)
        self.beside = sorted(membership.neighbours(self.name))
        self.clock.after(RTT_S, self.tell)
        self.clock.after(fleet.rng.uniform(0, fleet.pace.news_s), self.tell_regularly)
        self.poke()

    def join(self, membership: Membership) -> None:
        """From now on these are the members; new neighbours know nothing of what is here."""
        self.mesh.join(membership, self.clock.now)
        self.beside = sorted(membership.neighbours(self.name))
        self.cursor = NOTHING
        self.clock.after(0.0, self.poke)

    def die(self) -> None:
        self.alive = False
        self.fleet.unfinished.discard(self.name)
        for transfer in sorted(self.transfers, key=lambda each: (each.chunk, each.asker.name)):
            transfer.cut()

    def poke(self) -> None:
        """Begins all there is to begin."""
        if not self.alive:
            return
        now = self.clock.now
        while True:
            action = self.mesh.next(now)
            if isinstance(action, AskPeer):
                self.open()
                self.messages += 1
                self.clock.after(RTT_S / 2, self.fleet.nodes[action.peer].ask, self, action.chunk)
            elif isinstance(action, ReadOrigin):
                self.open()
                self.clock.after(RTT_S, self.read, action.chunk)
            elif isinstance(action, Steal):
                self.open()
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

    def open(self) -> None:
        self.requests += 1
        if self.requests > self.peak:
            self.peak = self.requests

    def close(self) -> None:
        self.requests -= 1

    # --- what became of its requests ---

    def read(self, chunk: int) -> None:
        if self.alive:
            fleet, origin = self.fleet, Origin(self.name, b"")
            fleet.origin_reads[chunk] += 1
            Flow(fleet.origin, self.down, fleet.chunk_bytes, fleet.segment, lambda: self.landed(chunk, origin))

    def landed(self, chunk: int, origin: Origin) -> None:
        if self.alive:
            self.close()
            self.release(self.mesh.landed(chunk, origin, self.clock.now))
            if self.mesh.urgent(self.cursor):
                self.tell()
            self.poke()

    def failed(self, chunk: int, outcome: Outcome) -> None:
        if self.alive:
            self.close()
            self.release(self.mesh.failed(chunk, outcome, self.clock.now))
            self.poke()

    def redirected(self, chunk: int, to: NodeName) -> None:
        if self.alive:
            self.close()
            self.release(self.mesh.redirected(chunk, to, self.clock.now))
            self.poke()

    def stolen(self, owner: NodeName, chunk: int | None, reached: bool = True) -> None:
        if self.alive:
            self.close()
            self.mesh.stolen(owner, chunk, self.clock.now, reached=reached)
            self.poke()

    # --- being asked ---

    def ask(self, asker: Node, chunk: int) -> None:
        silence_s = self.fleet.pace.silence_s
        if not self.alive:
            self.clock.after(silence_s, asker.failed, chunk, Outcome.UNREACHABLE)
            return
        self.open()
        answer = self.mesh.asked(asker.name, chunk, self.clock.now)
        if answer is Answer.HOLD:
            self.clock.after(silence_s, self.unhold, asker, chunk)
            self.fleet.held.add((self.name, asker.name, chunk))
        else:
            self.answer(asker, chunk, answer)

    def answer(self, asker: Node, chunk: int, answer: Answer | Elsewhere) -> None:
        self.messages += 1
        if answer is Answer.DATA:
            transfer = Transfer(self, asker, chunk, self.mesh.origins[chunk])
            if not asker.alive:
                transfer.cut()
            return
        self.close()
        if answer is Answer.BUSY:
            self.clock.after(RTT_S / 2, asker.failed, chunk, Outcome.BUSY)
        elif isinstance(answer, Elsewhere):
            self.clock.after(RTT_S / 2, asker.redirected, chunk, answer.peer)
        else:
            self.clock.after(RTT_S / 2, asker.failed, chunk, Outcome.NOT_YET)

    def unhold(self, asker: Node, chunk: int) -> None:
        key = (self.name, asker.name, chunk)
        if key in self.fleet.held:
            self.fleet.held.discard(key)
            if self.alive:
                self.answer(asker, chunk, self.mesh.unhold(asker.name, chunk))
            else:
                asker.failed(chunk, Outcome.UNREACHABLE)

    def release(self, releases: list[Release]) -> None:
        for each in releases:
            key = (self.name, each.peer, each.chunk)
            if key in self.fleet.held:
                self.fleet.held.discard(key)
                self.answer(self.fleet.nodes[each.peer], each.chunk, each.answer)
            elif each.answer is Answer.DATA:
                self.mesh.served(each.peer, each.chunk, self.clock.now, ok=False)

    def gave_up(self, asker: NodeName, chunk: int) -> None:
        if self.alive:
            self.mesh.served(asker, chunk, self.clock.now, ok=False)

    def ask_for_work(self, thief: Node) -> None:
        if not self.alive:
            self.clock.after(self.fleet.pace.silence_s, thief.stolen, self.name, None, False)
            return
        self.messages += 1
        chunk = self.mesh.asked_for_work(thief.name, self.clock.now)
        self.clock.after(RTT_S / 2, thief.stolen, self.name, chunk)

    # --- telling ---

    def tell_regularly(self) -> None:
        if self.alive:
            self.tell()
            self.clock.after(self.fleet.pace.news_s, self.tell_regularly)

    def tell(self) -> None:
        news = self.mesh.news(self.cursor)
        if news.cursor != self.cursor:
            self.cursor = news.cursor
            self.messages += len(self.beside)
            self.clock.after(RTT_S / 2, self.told, news, self.beside)

    def told(self, news: News, beside: list[NodeName]) -> None:
        nodes, now = self.fleet.nodes, self.clock.now
        for name in beside:
            node = nodes[name]
            if node.alive and node.mesh.heard(self.name, news.chunks, now, whole=news.whole):
                node.poke()


class Fleet:
    """All nodes of one scenario, the origin, and a coordinator that names the members."""

    mesh_type: type[Mesh] = Mesh
    """What decides for a node. Tests put one in its place that looks at itself."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        self.rng = random.Random(seed)
        self.clock = Clock()
        self.chunk_bytes = scenario.chunk_bytes
        self.segment = -(-self.chunk_bytes // scenario.segments)
        self.pace = Pace(slots=choose_slots(self.chunk_bytes, scenario.link))
        self.origin = Link(self.clock, scenario.origin, True)
        self.origin_reads: Counter[int] = Counter()
        self.held: set[tuple[NodeName, NodeName, int]] = set()
        self.coordinator_messages: Counter[int] = Counter()
        """By second."""
        names = [NodeName(f"n{number:04}") for number in range(scenario.nodes)]
        slow, dying, late = (round(len(names) * each) for each in (scenario.slow, scenario.dying, scenario.late))
        odd = self.rng.sample(names, slow + dying + late)
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
            self.clock.after(self.rng.uniform(*self.scenario.deaths) * bound, self.kill, name)
        for name in self.late:
            self.clock.after(self.rng.uniform(0.05, 0.5) * bound, self.notice, name, True)
        self.clock.after(POLL_S, self.poll)
        self.clock.run(lambda: not self.unfinished, bound * 5)

    def kill(self, name: NodeName) -> None:
        self.nodes[name].die()
        self.clock.after(DEAD_S, self.notice, name, False)

    def notice(self, name: NodeName, here: bool) -> None:
        (self.known.add if here else self.known.discard)(name)
        self.changed = True

    def poll(self) -> None:
        """The coordinator's: it calls every agent, and tells it who the members are, if that has changed."""
        self.clock.after(POLL_S, self.poll)
        self.coordinator_messages[int(self.clock.now)] += len(self.known)
        if self.changed:
            self.changed = False
            self.membership = self.members()
            for name in sorted(self.known):
                node = self.nodes[name]
                if node.joined_at is None:
                    node.start(self.membership)
                elif node.alive:
                    node.join(self.membership)
