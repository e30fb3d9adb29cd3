"""Whether a model fits, before its first byte, beside what was promised to others. Pure.

    group's limit ── used ── reserved             ≥ needed      a repair is exempt: its copy replaces what it repairs
    free on the disk ── headroom ── unallocated   ≥ needed, less what an interrupted fill already holds

A model that waits for space holds back those of lower priority, so that they do not take away, one after the other,
what it waits for; but not if it could not even have an empty disk. Among equals whoever fits goes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from actors.errors import InsufficientStorage
from actors.sizes import say_bytes


@dataclass(frozen=True, slots=True)
class Waiting:
    """A model that did not fit when it was its turn."""

    uri: str
    priority: int
    needed_bytes: int


@dataclass(frozen=True, slots=True)
class Limit:
    """What the models of one node group may take on this node, and do. `bytes` None: as much as the disk has.

    A copy that no group wants counts as used by each.
    """

    bytes: int | None = None
    used_bytes: int = 0
    reserved_bytes: int = 0
    group: str = ""

    def lacking_bytes(self, needed_bytes: int) -> int | None:
        """How many bytes are too many; negative: so many to spare. None: nothing is limited."""
        return None if self.bytes is None else self.used_bytes + self.reserved_bytes + needed_bytes - self.bytes


@dataclass(frozen=True, slots=True)
class Room:
    """One root. `reserved_bytes` are promised to fills under way; `unallocated_bytes` of them still count as free."""

    root: str
    free_bytes: int
    headroom_bytes: int
    used_bytes: int
    reserved_bytes: int = 0
    unallocated_bytes: int = 0
    limit: Limit = Limit()

    def check(
        self, needed_bytes: int, *, peak_bytes: int | None = None, held_bytes: int = 0, repair: bool = False
    ) -> None:
        """Raises InsufficientStorage, with the numbers, if there is no room.

        `peak_bytes` is what it takes on its way, where that is more; `held_bytes` of it are allocated already.
        """
        peak = needed_bytes if peak_bytes is None else peak_bytes
        limit, over = self.limit, self.limit.lacking_bytes(needed_bytes)
        if not repair and over is not None and over > 0:
            allowed, used, reserved = map(say_bytes, (limit.bytes or 0, limit.used_bytes, limit.reserved_bytes))
            of_group = f" for group {limit.group}" if limit.group else ""
            raise InsufficientStorage(
                f"needs {say_bytes(needed_bytes, up=True)} in {self.root}, {allowed} allowed{of_group}, of which {used}"
                f" are used and {reserved} reserved: raise the group's storageLimit, or remove a model"
            )
        if peak - held_bytes > self.free_bytes - self.headroom_bytes - self.unallocated_bytes:
            raise InsufficientStorage(
                f"needs {say_bytes(peak, up=True)} in {self.root}: {say_bytes(self.free_bytes)} are free, of which"
                f" {say_bytes(self.headroom_bytes)} stay free and {say_bytes(self.unallocated_bytes)} are reserved:"
                " make room on the disk, or remove a model"
            )

    def check_turn(self, priority: int, waiting: Iterable[Waiting]) -> None:
        """Raises InsufficientStorage if a more important model waits for the same space."""
        first = max(
            (each for each in waiting if each.priority > priority and self.has_a_chance(each.needed_bytes)),
            key=lambda each: each.priority,
            default=None,
        )
        if first is not None:
            raise InsufficientStorage(
                f"goes after {first.uri}, which has priority {first.priority} over {priority}"
                f" and waits for {say_bytes(first.needed_bytes, up=True)} in {self.root}:"
                " raise spec.priority, or make room"
            )

    def lacking_bytes(self, needed_bytes: int, *, peak_bytes: int | None = None, held_bytes: int = 0) -> int:
        """How many bytes must go before `check` agrees; negative: it does, with so many to spare."""
        peak = needed_bytes if peak_bytes is None else peak_bytes
        lacking = peak - held_bytes - (self.free_bytes - self.headroom_bytes - self.unallocated_bytes)
        over = self.limit.lacking_bytes(needed_bytes)
        return lacking if over is None else max(lacking, over)

    def promise(self, count: int, of_group: int | None = None) -> Room:
        """The same with so many more bytes reserved, none of them allocated; `of_group` of them for the same group."""
        limit = replace(
            self.limit, reserved_bytes=self.limit.reserved_bytes + (count if of_group is None else of_group)
        )
        reserved, unallocated = self.reserved_bytes + count, self.unallocated_bytes + count
        return replace(self, reserved_bytes=reserved, unallocated_bytes=unallocated, limit=limit)

    def has_a_chance(self, needed_bytes: int) -> bool:
        """Whether it would fit if nothing but headroom and what is not ours were on the disk."""
        ours = self.used_bytes + self.reserved_bytes - self.unallocated_bytes
        capacity = self.free_bytes - self.headroom_bytes + ours
        return needed_bytes <= (capacity if self.limit.bytes is None else min(capacity, self.limit.bytes))
