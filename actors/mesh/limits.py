"""How big the chunks of a cooperative fill are, and how many of them move at a time. Pure.

The numbers come from measurements and from `benchmarks/simulate/`; each says what goes wrong on its other side.
"""

from __future__ import annotations

from dataclasses import dataclass

MIN_CHUNK_BYTES = 1 << 20
MAX_CHUNK_BYTES = 128 << 20
FAST_CHUNK_BYTES = 16 << 20
MAX_CHUNKS = 16_384
LINK_BYTES_PER_S = 125e6
"""What a link is taken to carry when nobody says: 1 Gbit/s. Chunks are then small enough for slower ones, too."""
DEAD_S = 10.0
"""A node that has been silent for so long is no member any more: another takes over what it was to read."""


def choose_chunk_bytes(model_bytes: int, link_bytes_per_s: float) -> int:
    """A power of two that a link carries in about 40 ms, 1 to 16 MiB; more only where there would be too many chunks.

    The end of a fill waits for the last chunks to go from hand to hand, so a chunk must be short on a slow link. Each
    costs a request, so it need not be shorter than a MiB. Bitmaps and bookkeeping grow with the number of chunks.
    Every member must use the same size: it is part of the fill's identity.
    """
    wanted = min(FAST_CHUNK_BYTES, max(MIN_CHUNK_BYTES, int(link_bytes_per_s * 0.04)))
    size = 1 << (wanted.bit_length() - 1)
    while size < MAX_CHUNK_BYTES and model_bytes > size * MAX_CHUNKS:
        size *= 2
    return size


def choose_slots(chunk_bytes: int, link_bytes_per_s: float) -> int:
    """How many chunks a node receives, and how many it sends, at a time: what its link carries in a second, 2 to 32."""
    return min(32, max(2, -int(-link_bytes_per_s // chunk_bytes)))


@dataclass(frozen=True, slots=True)
class Pace:
    """The limits one node keeps in one fill. Seconds and counts."""

    slots: int
    """Chunks received from peers at a time, and chunks sent at a time."""
    aim_s: float = 1.5
    """A node whose transfers mostly take longer uses fewer slots: on a slow link they would only slow each other."""
    origin_reads: int = 8
    """Chunks read from the origin at a time by all owners together, but by each at least one."""
    unpassed: int = 8
    """Chunks a node has read and nobody has yet taken. Uncapped, fast readers overload their uplinks."""
    window: int = 384
    """No chunk this far beyond what has been seen is begun. Without it a thousand readers hold an eighth of a model."""
    strangers: int = 4
    """Requests under way to members that are no neighbours, and chunks sent to such at a time."""
    holds: int = 2
    """Requests kept waiting for one chunk that is on its way. More would make its reader send it to everybody."""
    silence_s: float = 2.0
    """A transfer without a byte for so long is aborted, and a held request is held no longer."""
    settle_s: float = 1.0
    """For how long at most a node that starts waits to hear what its neighbours have before it reads the source."""
    takeover_s: float = 5.0
    """A node with nothing to do for so long acts for owners that it cannot reach, though they are members."""
    news_s: float = 0.25
    """How often neighbours tell each other what has landed; at once when it came from the origin."""
    quarantine_s: float = 30.0
    """For how long a peer that sent wrong bytes is not asked again; doubles every time, up to an hour."""

    def reads_per_owner(self, owners: int) -> int:
        """One node alone reads as many at a time as it would without peers."""
        return max(1, -(-self.origin_reads // max(owners, 1)))


class Width:
    """How many slots are used: fewer while most transfers take longer than `aim_s`, more while most do not.

    Follows the median, so that the few peers that are slow themselves do not count.
    """

    def __init__(self, slots: int, aim_s: float) -> None:
        self._slots, self._aim_s = slots, aim_s
        self._width = float(slots)

    def __int__(self) -> int:
        return int(self._width)

    def took(self, seconds: float) -> None:
        """A transfer is over."""
        step = -0.5 if seconds > self._aim_s else 0.5
        self._width = min(float(self._slots), max(2.0, self._width + step))
