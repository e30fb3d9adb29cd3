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


@dataclass(frozen=True, slots=True)
class Waiting:
    """A model that did not fit when it was its turn."""

    uri: str
    priority: int
    needed_bytes: int


@dataclass(frozen=True, slots=True)
class Room:
    """One root. `reserved_bytes` are promised to fills under way; `unallocated_bytes` of them still count as free."""

    root: str
    free_bytes: int
    headroom_bytes: int
    used_bytes: int
    reserved_bytes: int = 0
    unallocated_bytes: int = 0
    limit_bytes: int | None = None

    def check(
        self, needed_bytes: int, *, peak_bytes: int | None = None, held_bytes: int = 0, repair: bool = False
    ) -> None:
        """Raises InsufficientStorage, with the numbers, if there is no room.

        `peak_bytes` is what it takes on its way, where that is more; `held_bytes` of it are allocated already.
        """
        peak = needed_bytes if peak_bytes is None else peak_bytes
        limit, used = self.limit_bytes, self.used_bytes
        if not repair and limit is not None and used + self.reserved_bytes + needed_bytes > limit:
            raise InsufficientStorage(
                f"needs {needed_bytes} bytes in {self.root}: its storage limit is {limit} bytes,"
                f" {used} are used and {self.reserved_bytes} reserved"
            )
        if peak - held_bytes > self.free_bytes - self.headroom_bytes - self.unallocated_bytes:
            raise InsufficientStorage(
                f"needs {peak} bytes in {self.root}: {_settled(self.free_bytes)} bytes are free,"
                f" of which {self.headroom_bytes} stay free and {self.unallocated_bytes} are reserved"
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
                f" and waits for {first.needed_bytes} bytes in {self.root}"
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


def _settled(count: int) -> int:
    """To three digits, rounded down: others write there too, and every new message is a write to the cluster."""
    step: int = 10 ** max(0, len(str(count)) - 3)
    return count // step * step
