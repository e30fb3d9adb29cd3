"""A few meshes in one world where anything may take any time: what is on its way arrives in random order.

Some members may be liars, that have no mesh: see `tests/kit/mesh_liars.py` for what they do.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable

from actors.mesh import bitmap
from actors.mesh.actions import Answer, AskPeer, Done, Elsewhere, Origin, Outcome, ReadOrigin, Release, Steal, Wait
from actors.mesh.announcements import NOTHING, Cursor
from actors.mesh.limits import Pace
from actors.mesh.membership import Member, Membership
from actors.mesh.mesh import Mesh
from actors.messages import NodeName

PACE = Pace(slots=4, unpassed=3, window=10)
Change = Callable[["World"], None]


class Liar:
    """A member that does as it likes. This one answers nothing, and connections to it are refused at once."""

    def __init__(self) -> None:
        self.name = ""

    def asked(self, world: World, peer: str, chunk: int) -> None:
        """Ends with one of `World.say`, `redirect` or `give`, for (peer, this one, chunk), now or later."""
        world.say(peer, self.name, chunk, Outcome.UNREACHABLE)

    def asked_for_work(self, world: World, peer: str) -> int | None:
        """Raises ConnectionError where it cannot be reached."""
        raise ConnectionError

    def acts(self, world: World) -> None:
        """Whatever else it does, again and again."""


class Meshes(dict[str, Mesh]):
    """By node. Those that were looked up since the last check are checked."""

    def __init__(self) -> None:
        super().__init__()
        self.touched: set[str] = set()

    def __getitem__(self, name: str) -> Mesh:
        self.touched.add(name)
        return super().__getitem__(name)

    def check(self) -> None:
        for name in self.touched:
            super().__getitem__(name).check()
        self.touched.clear()


class World:
    """Time passes only when nothing else can happen. `dead` nodes answer nothing; `deaf` ones cannot be reached."""

    def __init__(
        self,
        names: str,
        chunks: int,
        rng: random.Random,
        *,
        have: dict[str, int] | None = None,
        seeds: str = "",
        late: str = "",
        liars: dict[str, Liar] | None = None,
        read_s: float = 0.0,
    ) -> None:
        """A read of the origin takes `read_s`. The `liars` are members beside `names`."""
        self.rng, self.chunks, self.now = rng, chunks, 0.0
        self.seeds, self.late, self.members = seeds, late, [*names, *(liars or {})]
        self.dead: set[str] = set()
        self.deaf: set[str] = set()
        self.wrong_bytes: dict[str, int] = {}  # sends them so many times more
        self.old: dict[str, int] = {}  # a bitmap of chunks that it has on its disk elsewhere, as they are to be
        self.copied: Counter[str] = Counter()
        self.rotten: dict[str, int] = {}  # a bitmap of chunks that it sends with wrong bytes, always
        self.liars = liars or {}
        self.incarnations: Counter[str] = Counter()
        self.read_s = read_s
        self.timed: list[tuple[float, Callable[[], None]]] = []
        self.asked_liars: dict[tuple[str, int], str] = {}
        self.bad_reader: str | None = None
        self.origin_is_down = False
        self.reads: Counter[int] = Counter()
        self.readers: Counter[str] = Counter()
        self.pending: list[tuple[str, Callable[[], None]]] = []
        self.held: dict[tuple[str, str, int], float] = {}
        self.cursors: dict[tuple[str, str], Cursor] = {}
        self.waits: dict[str, float] = {}
        self.meshes = Meshes()
        for name, liar in self.liars.items():
            liar.name = name
        for name in names:
            everything = bitmap.full(chunks) if name in seeds else 0
            self.meshes[name] = self.start(name, (have or {}).get(name, everything))

    def start(self, name: str, have: int = 0) -> Mesh:
        seed = random.Random(self.rng.random())
        return Mesh(NodeName(name), self.membership(), PACE, rng=seed, now=self.now, have=have)

    def membership(self) -> Membership:
        return Membership(
            "fill",
            [
                Member(NodeName(n), str(self.incarnations[n]), owns=n not in self.late, seed=n in self.seeds)
                for n in self.members
            ],
            self.chunks,
        )

    def living(self) -> list[str]:
        return [name for name in self.meshes if name not in self.dead]

    def kill(self, name: str) -> None:
        self.dead.add(name)
        self.waits.pop(name, None)

    def notice(self) -> None:
        """The coordinator names those who are left."""
        self.members = [*self.living(), *(name for name in self.liars if name in self.members)]
        self.tell_members()

    def tell_members(self) -> None:
        membership = self.membership()
        for name in self.living():
            self.meshes[name].join(membership, self.now)

    def complete(self) -> bool:
        return all(self.meshes[name].complete for name in self.living())

    def run(self, steps: int = 20_000, until: Callable[[], bool] | None = None) -> None:
        """Returns when everybody alive has everything. AssertionError if that does not come to pass."""
        for _ in range(steps):
            if (until or self.complete)():
                return
            self.step()
        raise AssertionError(
            {n: list(bitmap.members(~m.have & bitmap.full(self.chunks))) for n, m in self.meshes.items()}
        )

    def step(self) -> None:
        """Something happens, and the meshes to which it did are sound after it."""
        self.happen()
        self.meshes.check()

    def happen(self) -> None:
        living = self.living()
        active = self.rng.sample(living, 1 if self.pending and len(living) > 1 else len(living))
        for name in active:
            self.act(name)
            self.tell(name)
        self.lie()
        due = [event for when, event in self.timed if when <= self.now]
        self.timed = [each for each in self.timed if each[0] > self.now]
        for event in due:
            event()
        if self.pending:
            _, event = self.pending.pop(self.rng.randrange(len(self.pending)))
            event()
            self.now += 0.001
            return
        soon = self.now + (0.1 if self.liars else 1.0)
        times = [*self.waits.values(), *self.held.values(), *(when for when, _ in self.timed), soon]
        self.now = max(self.now, min(times)) + 1e-6
        for key, until in list(self.held.items()):
            if until <= self.now and self.held.pop(key, None) is not None:
                holder, asker, chunk = key
                answer = self.meshes[holder].unhold(NodeName(asker), chunk)
                if asker not in self.dead:
                    if holder in self.dead or holder in self.deaf:
                        self.fail(asker, chunk, Outcome.UNREACHABLE)
                    else:
                        self.answer(asker, holder, chunk, answer)

    def act(self, name: str) -> None:
        """Begins all that the mesh wants."""
        mesh = self.meshes[name]
        for _ in range(100):
            action = mesh.next(self.now)
            if isinstance(action, Wait | Done):
                self.waits[name] = action.until if isinstance(action, Wait) else float("inf")
                return
            self.pending.append((name, self.doing(name, action)))
        raise AssertionError(f"{name} never stops")

    def doing(self, name: str, action: ReadOrigin | AskPeer | Steal) -> Callable[[], None]:
        if isinstance(action, ReadOrigin) and self.read_s:
            return lambda: self.timed.append((self.now + self.read_s, lambda: self.read(name, action.chunk)))
        if isinstance(action, ReadOrigin):
            return lambda: self.read(name, action.chunk)
        if isinstance(action, AskPeer):
            return lambda: self.ask(name, action.peer, action.chunk)
        return lambda: self.steal(name, action.owner)

    def read(self, name: str, chunk: int) -> None:
        if name in self.dead:
            self.reads[chunk] += 1  # was under way
            return
        if self.origin_is_down:
            self.meshes[name].failed(chunk, Outcome.ORIGIN, self.now, retry_at=self.now + 1)
            return
        self.reads[chunk] += 1
        self.readers[name] += 1
        wrong = name == self.bad_reader and chunk % 5 == 0
        self.land(name, chunk, Origin(NodeName(name), b"wrong" if wrong else b"right"))

    def land(self, name: str, chunk: int, origin: Origin, *, moved: bool = True) -> None:
        self.release(name, self.meshes[name].landed(chunk, origin, self.now, moved=moved))

    def fail(self, name: str, chunk: int, outcome: Outcome) -> None:
        self.release(name, self.meshes[name].failed(chunk, outcome, self.now))

    def ask(self, name: str, peer: str, chunk: int) -> None:
        if name in self.dead:
            return
        if peer in self.liars:
            self.asked_liars[name, chunk] = peer
            self.liars[peer].asked(self, name, chunk)
            return
        if peer in self.dead or peer in self.deaf:
            self.fail(name, chunk, Outcome.UNREACHABLE)
            return
        answer = self.meshes[peer].asked(NodeName(name), chunk, self.now)
        if answer is Answer.HOLD:
            self.held[peer, name, chunk] = self.now + PACE.silence_s
        else:
            self.answer(name, peer, chunk, answer)

    def answer(self, name: str, peer: str, chunk: int, answer: Answer | Elsewhere) -> None:
        if isinstance(answer, Elsewhere):
            to = answer.peer
            self.later(name, lambda: self.release(name, self.meshes[name].redirected(chunk, to, self.now)))
        elif answer is Answer.DATA:
            origin = self.meshes[peer].origins.get(chunk, Origin(NodeName(peer), b"right"))
            self.pending.append((name, lambda: self.deliver(name, peer, chunk, origin)))
        else:
            outcome = Outcome.BUSY if answer is Answer.BUSY else Outcome.NOT_YET
            self.later(name, lambda: self.fail(name, chunk, outcome))

    def later(self, name: str, change: Callable[[], None]) -> None:
        """An answer is on its way to a node."""
        self.pending.append((name, lambda: None if name in self.dead else change()))

    def deliver(self, name: str, peer: str, chunk: int, origin: Origin) -> None:
        ok, moved = False, True
        if name not in self.dead:
            if peer in self.dead or peer in self.deaf:
                self.fail(name, chunk, Outcome.UNREACHABLE)
            elif self.meshes[name].rejects(chunk, origin):
                self.fail(name, chunk, Outcome.STALE)
            elif self.wrong_bytes.get(peer, 0):
                self.wrong_bytes[peer] -= 1
                self.fail(name, chunk, Outcome.CORRUPT)
            elif self.rotten.get(peer, 0) >> chunk & 1:
                self.fail(name, chunk, Outcome.CORRUPT)
            else:
                moved = not self.old.get(name, 0) >> chunk & 1
                self.copied[name] += not moved
                self.land(name, chunk, origin, moved=moved)
                ok = True
        if peer not in self.dead:
            self.meshes[peer].served(NodeName(name), chunk, self.now, ok=ok, moved=moved)

    def release(self, name: str, releases: Iterable[Release]) -> None:
        for each in releases:
            if self.held.pop((name, each.peer, each.chunk), None) is not None and each.peer not in self.dead:
                self.answer(each.peer, name, each.chunk, each.answer)
            elif each.answer is Answer.DATA:
                self.meshes[name].served(each.peer, each.chunk, self.now, ok=False)

    def steal(self, name: str, owner: str) -> None:
        if name in self.dead:
            return
        if owner in self.liars:
            try:
                given, reached = self.liars[owner].asked_for_work(self, name), True
            except ConnectionError:
                given, reached = None, False
            self.later(name, lambda: self.meshes[name].stolen(NodeName(owner), given, self.now, reached=reached))
            return
        if owner in self.dead or owner in self.deaf:
            self.meshes[name].stolen(NodeName(owner), None, self.now, reached=False)
            return
        chunk = self.meshes[owner].asked_for_work(NodeName(name), self.now)
        self.later(name, lambda: self.meshes[name].stolen(NodeName(owner), chunk, self.now))

    def tell(self, name: str) -> None:
        mesh = self.meshes[name]
        if name in self.deaf:
            return
        for other in self.living():
            cursor = self.cursors.get((name, other), NOTHING)
            if other != name and (mesh.urgent(cursor) or self.rng.random() < 0.2):
                news = mesh.news(cursor)
                self.cursors[name, other] = news.cursor
                self.meshes[other].heard(NodeName(name), news.chunks, self.now, whole=news.whole)

    # --- liars ---

    def lie(self) -> None:
        """Every liar does what it does unasked, and requests to them that are given up end."""
        for liar in self.liars.values():
            liar.acts(self)
        for (name, chunk), peer in list(self.asked_liars.items()):
            if self.meshes[name].abandons(chunk):
                self.say(name, peer, chunk, Outcome.UNREACHABLE)

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        self.timed.append((self.now + seconds, event))

    def is_waiting(self, name: str, peer: str, chunk: int) -> bool:
        """The request is not over yet; from now on it is."""
        if self.asked_liars.get((name, chunk)) != peer:
            return False
        del self.asked_liars[name, chunk]
        return True

    def say(self, name: str, peer: str, chunk: int, outcome: Outcome) -> None:
        """A liar's answer, or that there is none."""
        if self.is_waiting(name, peer, chunk):
            self.later(name, lambda: self.fail(name, chunk, outcome))

    def redirect(self, name: str, peer: str, chunk: int, to: str) -> None:
        if self.is_waiting(name, peer, chunk):
            self.later(name, lambda: self.release(name, self.meshes[name].redirected(chunk, NodeName(to), self.now)))

    def give(self, name: str, peer: str, chunk: int) -> None:
        if self.is_waiting(name, peer, chunk):
            self.later(name, lambda: self.land(name, chunk, Origin(NodeName(peer), b"right")))


def wrong(mesh: Mesh) -> dict[NodeName, int]:
    """How often each peer was found to have sent, or read, wrong bytes: what its quarantine grows with."""
    return {name: peer.wrong for name, peer in mesh.state.peers.standings.items() if peer.wrong}
