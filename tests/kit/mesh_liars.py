"""What a member of a fill may do instead of its part: see `tests/kit/mesh_world.py` for the world in which it does.

How long a request to one may last is what the transport allows: `Pace.silence_s` and a second for the head of an answer
and `Pace.takeover_s` for a body that comes slower than `wire.SLOWEST_BYTES_PER_S`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from actors.mesh import bitmap
from actors.mesh.actions import Answer, Outcome
from actors.messages import NodeName
from tests.kit.mesh_world import PACE, Liar, World

HEAD_S = PACE.silence_s + 1.0
NEWS_S = 0.5


class Says(Liar):
    """The same answer to every request, after a while. `claims`: it says that it has everything."""

    def __init__(self, outcome: Outcome, *, after_s: float = 0.0, claims: bool = False, news: bool = True) -> None:
        super().__init__()
        self.outcome, self.after_s, self.claims, self.news = outcome, after_s, claims, news
        self.told_at = -NEWS_S

    def asked(self, world: World, peer: str, chunk: int) -> None:
        if self.after_s:
            world.after(self.after_s, partial(world.say, peer, self.name, chunk, self.outcome))
        else:
            world.say(peer, self.name, chunk, self.outcome)

    def asked_for_work(self, world: World, peer: str) -> int | None:
        if self.outcome is Outcome.UNREACHABLE:
            raise ConnectionError
        return None

    def acts(self, world: World) -> None:
        if self.news and world.now >= self.told_at + NEWS_S:
            self.told_at = world.now
            self.tell(world, bitmap.full(world.chunks) if self.claims else 0)

    def tell(self, world: World, chunks: int) -> None:
        if self.name in world.members:
            for name in world.living():
                world.meshes[name].heard(NodeName(self.name), chunks, world.now, whole=True)


class Redirects(Says):
    """Names somebody else for every chunk: `to`, or whoever asks."""

    def __init__(self, to: str | None, *, claims: bool) -> None:
        super().__init__(Outcome.NOT_YET, claims=claims)
        self.to = to

    def asked(self, world: World, peer: str, chunk: int) -> None:
        world.redirect(peer, self.name, chunk, self.to or peer)


class Retracts(Says):
    """Claims everything, and nothing, and everything."""

    def tell(self, world: World, chunks: int) -> None:
        self.claims = not self.claims
        super().tell(world, chunks)


class ClaimsMore(Says):
    """Claims one chunk more whenever patience might end."""

    def __init__(self) -> None:
        super().__init__(Outcome.BUSY)
        self.count = 0

    def tell(self, world: World, chunks: int) -> None:
        self.count = min(world.chunks, int(world.now / (0.8 * PACE.takeover_s)) + 1)
        super().tell(world, bitmap.full(self.count))


class Endless(Says):
    """News without a pause, of chunks beyond the end of the model, too."""

    def acts(self, world: World) -> None:
        self.tell(world, bitmap.full(8 * world.chunks + 64))


class Hushes(Says):
    """Says that the origin asked for a pause: of so many seconds, every so often."""

    def __init__(self, pause_s: float, every_s: float = NEWS_S) -> None:
        super().__init__(Outcome.NOT_YET)
        self.pause_s, self.every_s, self.hushed_at = pause_s, every_s, -every_s

    def acts(self, world: World) -> None:
        super().acts(world)
        if world.now >= self.hushed_at + self.every_s:
            self.hushed_at = world.now
            for name in world.living():
                world.meshes[name].told_to_pause(NodeName(self.name), self.pause_s, world.now)


class Thief(Says):
    """Takes every chunk that anybody lets it read, and reads none."""

    def __init__(self) -> None:
        super().__init__(Outcome.BUSY)

    def acts(self, world: World) -> None:
        super().acts(world)
        for name in world.living():
            world.meshes[name].asked_for_work(NodeName(self.name), world.now)


class Glutton(Says):
    """Asks everybody for everything, and takes a byte of it now and then."""

    def acts(self, world: World) -> None:
        super().acts(world)
        for name in world.living():
            for chunk in bitmap.members(world.meshes[name].have):
                answer = world.meshes[name].asked(NodeName(self.name), chunk, world.now)
                if answer is Answer.DATA:
                    world.after(60.0, partial(self.gave_up, world, name, chunk))

    def gave_up(self, world: World, name: str, chunk: int) -> None:
        world.meshes[name].served(NodeName(self.name), chunk, world.now, ok=False)


class Drips(Says):
    """Gives one chunk whenever patience might end, and is busy otherwise."""

    def __init__(self, every_s: float = 0.9 * PACE.takeover_s) -> None:
        super().__init__(Outcome.BUSY, claims=True)
        self.every_s, self.gave_at = every_s, 0.0

    def asked(self, world: World, peer: str, chunk: int) -> None:
        if world.now >= self.gave_at + self.every_s:
            self.gave_at = world.now
            world.give(peer, self.name, chunk)
        else:
            super().asked(world, peer, chunk)


class Slow(Says):
    """Gives what it is asked for, after a time: `body` that of the bytes, else that of the head."""

    def __init__(self, seconds: float, *, body: bool = False) -> None:
        super().__init__(Outcome.BUSY, claims=True)
        self.seconds, self.body = seconds, body

    def asked(self, world: World, peer: str, chunk: int) -> None:
        world.after(self.seconds, partial(world.give, peer, self.name, chunk))
        if self.body:
            for second in range(1, int(self.seconds)):
                world.after(second, partial(self.arrives, world, peer, chunk))

    def arrives(self, world: World, peer: str, chunk: int) -> None:
        if (peer, chunk) in world.asked_liars:
            world.meshes[peer].arriving(chunk, 1 / self.seconds, world.now)


class GivesWork(Says):
    """Gives everybody to read what others read."""

    def __init__(self) -> None:
        super().__init__(Outcome.NOT_YET)
        self.given = 0

    def asked_for_work(self, world: World, peer: str) -> int | None:
        self.given += 1
        return self.given % world.chunks


class Flaps(Says):
    """Starts again and again, or leaves and comes back; each time with all claims."""

    def __init__(self, *, leaves: bool) -> None:
        super().__init__(Outcome.BUSY, claims=True)
        self.leaves, self.flapped_at = leaves, 0.0

    def acts(self, world: World) -> None:
        if world.now >= self.flapped_at + 2 * NEWS_S:
            self.flapped_at = world.now
            world.incarnations[self.name] += 1
            if self.leaves and self.name in world.members:
                world.members.remove(self.name)
            elif self.leaves:
                world.members.append(self.name)
            world.tell_members()
        super().acts(world)


LIARS: dict[str, Callable[[], Liar]] = {
    "is always busy, and claims everything": lambda: Says(Outcome.BUSY, claims=True),
    "is always busy, and claims nothing": lambda: Says(Outcome.BUSY),
    "never has it yet, and claims everything": lambda: Says(Outcome.NOT_YET, claims=True),
    "is alive, tells that it has nothing, and never reads": lambda: Says(Outcome.NOT_YET),
    "is alive, never reads, and tells nothing": lambda: Says(Outcome.NOT_YET, news=False),
    "answers 204 or what nobody knows": lambda: Says(Outcome.UNREACHABLE, after_s=0.01, claims=True),
    "redirects to itself": lambda: Redirects("y", claims=True),
    "redirects to itself what it owns": lambda: Redirects("y", claims=False),
    "redirects to whoever asks": lambda: Redirects(None, claims=True),
    "redirects to whoever asks what it owns": lambda: Redirects(None, claims=False),
    "redirects to one that is honest": lambda: Redirects("a", claims=False),
    "trickles": lambda: Says(Outcome.UNREACHABLE, after_s=PACE.takeover_s, claims=True),
    "is silent after accepting": lambda: Says(Outcome.UNREACHABLE, after_s=HEAD_S, claims=True),
    "is silent after accepting, and claims nothing": lambda: Says(Outcome.UNREACHABLE, after_s=HEAD_S),
    "accepts no connection": lambda: Says(Outcome.UNREACHABLE, after_s=2.0, news=False),
    "refuses connections": Liar,
    "resets, or closes half, after some bytes": lambda: Says(Outcome.UNREACHABLE, after_s=0.05, claims=True),
    "answers with wrong lengths or bytes": lambda: Says(Outcome.CORRUPT, claims=True),
    "claims everything and takes it back": lambda: Retracts(Outcome.BUSY, claims=True),
    "claims one chunk after the other": ClaimsMore,
    "never stops telling, and of more than there is": lambda: Endless(Outcome.BUSY),
    "asks for quiet for ever": lambda: Hushes(1e16, every_s=1e9),
    "asks for quiet for ever, again and again": lambda: Hushes(1e16),
    "asks for quiet for a moment, again and again": lambda: Hushes(1.0),
    "takes work and does not do it": Thief,
    "takes chunks and does not read them": lambda: Glutton(Outcome.NOT_YET),
    "gives a chunk whenever patience might end": Drips,
    "gives a chunk every second": lambda: Drips(1.0),
    "is slow to begin": lambda: Slow(HEAD_S - 0.1),
    "is slow to end": lambda: Slow(30.0, body=True),
    "gives away what others read": GivesWork,
    "is another incarnation every second": lambda: Flaps(leaves=False),
    "leaves and comes back every second": lambda: Flaps(leaves=True),
}
