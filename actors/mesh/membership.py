"""The members of one fill: which chunk each reads from the source, and whom it talks to. Pure.

Everybody computes this from the same list of members and comes to the same result, without a word to each other:

    owner       the member that reads a chunk. Every member has points on a circle, a chunk has one, and the next member
                clockwise is its owner: when a member leaves, only its chunks move, each to the next after it. (A hash
                per pair of member and chunk spreads more evenly, but takes seconds for a thousand members.)
    neighbours  the members a node exchanges chunks with: those beside it on several rings, each in an order of its
                own. A ring is connected, so the mesh is; neighbourhood is mutual; a member that comes or goes changes
                only who is beside it.
"""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect
from collections.abc import Iterable
from functools import cached_property, lru_cache

from actors.messages import Member as Member
from actors.messages import NodeName

NEIGHBOURS = 32
POINTS = 64
"""Of one member on the circle. With so many, shares differ by an eighth; stealing evens out the rest."""


class Membership:
    """The members of the fill named `fill`, which moves `chunks` chunks. Immutable; nodes may share one.

    Every node must be given the same list. Costs a tenth of a second for a thousand members, so make a new one only
    when the list has changed, and outside any lock.
    """

    def __init__(self, fill: str, members: Iterable[Member], chunks: int) -> None:
        self.fill = fill
        self.chunks = chunks
        self.members = {member.name: member for member in sorted(members, key=lambda each: each.name)}
        cold = [member for member in self.members.values() if not member.seed]
        self.seeds = tuple(member.name for member in self.members.values() if member.seed)
        self.cold = tuple(member.name for member in cold)
        self.owners = tuple(member.name for member in cold if member.owns) or self.cold
        """Those among whom the chunks are shared out. Where only late joiners are left, they are the owners."""

    @cached_property
    def owner(self) -> list[NodeName]:
        """By chunk. Empty without a cold member."""
        where, who = self._circle
        return [who[bisect(where, point) % len(who)] for point in _points(self.fill, self.chunks)] if who else []

    def without(self, names: frozenset[NodeName]) -> Membership:
        """The same fill with these members gone."""
        rest = [member for member in self.members.values() if member.name not in names]
        return Membership(self.fill, rest, self.chunks)

    @cached_property
    def _owned(self) -> dict[NodeName, list[int]]:
        owned: dict[NodeName, list[int]] = {}
        for chunk, name in enumerate(self.owner):
            owned.setdefault(name, []).append(chunk)
        return owned

    def owned(self, name: NodeName) -> list[int]:
        """The chunks this member reads, in ascending order."""
        return self._owned.get(name, [])

    def order(self, chunk: int) -> list[NodeName]:
        """The owner, and then who takes over after it, and so on."""
        where, who = self._circle
        start = bisect(where, _points(self.fill, self.chunks)[chunk])
        return list(dict.fromkeys(who[start:] + who[:start]))

    @cached_property
    def _circle(self) -> tuple[list[int], list[NodeName]]:
        points = sorted((point, name) for name in self.owners for point in _points(f"{self.fill}/{name}", POINTS))
        return [point for point, _ in points], [name for _, name in points]

    def neighbours(self, name: NodeName) -> frozenset[NodeName]:
        """At most NEIGHBOURS others, mutual. Half of the rings run inside a zone, where there is more than one."""
        if len(self.cold) <= NEIGHBOURS + 1:
            return frozenset(self.cold) - {name}
        return self._beside[name]

    @cached_property
    def _beside(self) -> dict[NodeName, frozenset[NodeName]]:
        beside: dict[NodeName, set[NodeName]] = {name: set() for name in self.cold}
        for ring in range(NEIGHBOURS // 2):
            for group in self._zones if ring % 2 else [list(self.cold)]:
                order = sorted(group, key=lambda name: _hash(f"{self.fill}/{ring}/{name}"))
                for left, right in zip(order, order[1:] + order[:1], strict=True):
                    if left != right:
                        beside[left].add(right)
                        beside[right].add(left)
        return {name: frozenset(others) for name, others in beside.items()}

    @cached_property
    def _zones(self) -> list[list[NodeName]]:
        zones: dict[str | None, list[NodeName]] = {}
        for name in self.cold:
            zones.setdefault(self.members[name].zone, []).append(name)
        return list(zones.values())


@lru_cache(maxsize=4096)
def _points(text: str, count: int) -> tuple[int, ...]:
    """So many numbers of 64 bits that anybody gets from this text."""
    return struct.unpack(f"<{count}Q", hashlib.shake_128(text.encode()).digest(8 * count))


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
