"""The bytes that came from each place, and those that the origin was spared: `localmodel status --saved`.

The numbers are those of the copies that are there now, each since it was filled: a copy that was removed no longer
counts, on either side.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from coordinator.view.rows import CacheRow


@dataclass(frozen=True, slots=True)
class Saving:
    """Of one cache, or of all (`key` ""). `size` is of one copy, summed over caches; `since` is an RFC 3339 time."""

    key: str
    copies: int
    size: int
    origin: int
    peers: int
    other_zones: int
    since: str | None

    @property
    def amplification(self) -> float | None:
        """Bytes read from the origin, in copies of the model."""
        return self.origin / self.size if self.size else None

    @property
    def saved(self) -> int:
        """Bytes that would have come from the origin, too, if every node had filled alone."""
        return self.peers


def savings(rows: Iterable[CacheRow]) -> tuple[list[Saving], Saving]:
    """Of each cache that has read anything, the largest saving first; and of all of them."""
    each = [
        Saving(
            key=row.key,
            copies=row.available,
            size=row.size or 0,
            origin=row.origin,
            peers=row.peers,
            other_zones=row.other_zones,
            since=row.started,
        )
        for row in rows
        if row.origin or row.peers
    ]
    each.sort(key=lambda one: (-one.saved, one.key))
    return each, Saving(
        key="",
        copies=sum(one.copies for one in each),
        size=sum(one.size for one in each),
        origin=sum(one.origin for one in each),
        peers=sum(one.peers for one in each),
        other_zones=sum(one.other_zones for one in each),
        since=min((one.since for one in each if one.since), default=None),
    )
