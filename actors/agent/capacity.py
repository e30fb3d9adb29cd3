"""Whether a model fits, before its first byte, beside what was promised to others. Pure.

    storage limit ── used ── reserved             ≥ needed      a repair is exempt: its copy replaces what it repairs
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
class Room:
    """One root. `reserved_bytes` are promised to fills under way; `unallocated_bytes` of them still count as free.

    `group` names the node group that sets the limit.
    """

    root: str
    free_bytes: int
    headroom_bytes: int
    used_bytes: int
    reserved_bytes: int = 0
    unallocated_bytes: int = 0
    limit_bytes: int | None = None
    group: str = ""

    def check(
        self, needed_bytes: int, *, peak_bytes: int | None = None, held_bytes: int = 0, repair: bool = False
    ) -> None:
        """Raises InsufficientStorage, with the numbers, if there is no room.

        `peak_bytes` is what it takes on its way, where that is more; `held_bytes` of it are allocated already.
        """
        peak = needed_bytes if peak_bytes is None else peak_bytes
        limit, used = self.limit_bytes, self.used_bytes
        if not repair and limit is not None and used + self.reserved_bytes + needed_bytes > limit:
            of_group = f" for group {self.group}" if self.group else ""
            raise InsufficientStorage(
                f"needs {say_bytes(needed_bytes, up=True)} in {self.root}, {say_bytes(limit)} allowed{of_group},"
                f" of which {say_bytes(used)} are used and {say_bytes(self.reserved_bytes)} reserved: raise the group's"
                " storageLimit, or remove a model"
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
        if self.limit_bytes is None:
            return lacking
        return max(lacking, self.used_bytes + self.reserved_bytes + needed_bytes - self.limit_bytes)

    def promise(self, count: int) -> Room:
        """The same with so many more bytes reserved, and none of them allocated."""
        return replace(
            self, reserved_bytes=self.reserved_bytes + count, unallocated_bytes=self.unallocated_bytes + count
        )

    def has_a_chance(self, needed_bytes: int) -> bool:
        """Whether it would fit if nothing but headroom and what is not ours were on the disk."""
        ours = self.used_bytes + self.reserved_bytes - self.unallocated_bytes
        capacity = self.free_bytes - self.headroom_bytes + ours
        return needed_bytes <= (capacity if self.limit_bytes is None else min(capacity, self.limit_bytes))
