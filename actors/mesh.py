"""One node's part in one cooperative fill: which chunk is next, from whom, and what peers that ask are told.

Only decides. No thread, socket or clock: the caller passes `now` (seconds, any zero) and does what `next` returns. The
node agent drives it with a lock and real sockets, `benchmarks/simulate.py` by the thousand in virtual time.

    while action := mesh.next(now):      take actions until Wait or Done; again after every event, or when the wait is over
        ReadOrigin(chunk)                → landed(chunk, …) or failed(chunk, …)
        AskPeer(chunk, peer)             → landed, failed or redirected
        Steal(owner)                     → stolen(owner, chunk or None)

    a peer asks for a chunk              asked → Answer;  DATA → send it → served
    a peer asks for work                 asked_for_work → chunk or None
    a peer tells what it has             heard;           ours to tell: news
    the coordinator names the members    join             (also at the start)

How the chunks spread: each has one owner, that alone reads it from the source, in ascending order, not far ahead of what
is seen anywhere, and not more than a few that nobody has yet taken. Everybody else takes random chunks from neighbours.
Who has nothing left to read takes unbegun chunks from slower owners. A member that is lost is replaced by the next in
order at once; one that is only unreachable from here, when nothing else moves. The source is the members that held a
committed copy at the start (seeds), else the origin.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterable

from actors import bitmap
from actors.membership import Membership
from actors.messages import NodeName
from actors.moves import (
    Action,
    Answer,
    AskPeer,
    Done,
    Elsewhere,
    News,
    Origin,
    Outcome,
    ReadOrigin,
    Release,
    Steal,
    Wait,
)
from actors.pace import Pace
from actors.standing import Standing

INFINITE = float("inf")
ASK_S = (0.05, 0.5)
"""Between two questions that brought nothing: doubles from the first to the second."""


class Mesh:
    """Not thread-safe: the caller holds one lock around every call. No call blocks or takes long, see Membership."""

    def __init__(
        self, me: NodeName, membership: Membership, pace: Pace, *, rng: random.Random, now: float, have: int = 0
    ) -> None:
        """`have` is a bitmap of the chunks on the disk already."""
        raise NotImplementedError

    # --- what the caller may read ---

    have: int
    """A bitmap of the chunks that have landed."""
    origins: dict[int, Origin]
    """By chunk, who read it from the source, and its digest; sent with every copy. Missing for what was there before."""

    @property
    def complete(self) -> bool:
        raise NotImplementedError

    def wrong(self) -> dict[NodeName, int]:
        """How many wrong chunks each peer has sent or read: what status and Events name."""
        raise NotImplementedError

    # --- what to do ---

    def next(self, now: float) -> Action:
        """What to begin now. Anything but Wait and Done takes a slot until its end is reported."""
        raise NotImplementedError

    def landed(self, chunk: int, origin: Origin, now: float, peer: NodeName | None = None) -> list[Release]:
        """The chunk is on the disk and has the digest it was announced with. `peer` None: it came from the origin."""
        raise NotImplementedError

    def failed(self, chunk: int, outcome: Outcome, now: float, *, retry_at: float = 0.0) -> list[Release]:
        """The read or request brought nothing. CORRUPT quarantines the peer that was asked."""
        raise NotImplementedError

    def redirected(self, chunk: int, to: NodeName, now: float) -> list[Release]:
        """The owner says who reads the chunk in its place."""
        raise NotImplementedError

    def stolen(self, owner: NodeName, chunk: int | None, now: float, *, reached: bool = True) -> None:
        """The owner's answer to Steal: a chunk that this node reads now, or nothing to give."""
        raise NotImplementedError

    def rejects(self, chunk: int, origin: Origin) -> bool:
        """This copy has been found wrong: do not take it, report STALE."""
        raise NotImplementedError

    # --- what peers ask and tell ---

    def asked(self, peer: NodeName, chunk: int, now: float) -> Answer | Elsewhere:
        """After DATA call `served`; after HOLD wait for a Release, or call `unhold`."""
        raise NotImplementedError

    def served(self, peer: NodeName, chunk: int, now: float, *, ok: bool) -> None:
        """A chunk promised with DATA went out, or did not."""
        raise NotImplementedError

    def unhold(self, peer: NodeName, chunk: int) -> None:
        """The held request was given up or timed out. Without effect if it has been released."""
        raise NotImplementedError

    def asked_for_work(self, peer: NodeName, now: float) -> int | None:
        """A chunk of ours that we have not begun: `peer` reads it from now on. None: nothing to give."""
        raise NotImplementedError

    def heard(self, peer: NodeName, chunks: int, now: float, *, whole: bool = False) -> bool:
        """A peer tells what it has. True if that gives us something to do: call `next`."""
        raise NotImplementedError

    def news(self, cursor: tuple[int, int]) -> News:
        """What to tell a peer that knows everything up to `cursor`; `(0, 0)` for one that knows nothing."""
        raise NotImplementedError

    def urgent(self, cursor: tuple[int, int]) -> bool:
        """A chunk that nobody else may have has landed since `cursor`: tell it now, not with the next `Pace.news_s`."""
        raise NotImplementedError

    # --- what the world does ---

    def join(self, membership: Membership, now: float) -> None:
        """From now on these are the members. Chunks of those that left have new owners."""
        raise NotImplementedError

    def quiet_origin(self, until: float) -> None:
        """Nobody may read the origin before: it asked for a pause (429, 503), or the governor did."""
        raise NotImplementedError

    def doubt(self, chunks: Iterable[int], now: float) -> None:
        """A file is wrong although each of its chunks had its announced digest: all are read once more, by others.

        Every member comes to the same finding by itself. The new reader of a chunk is the first in order that did not
        read it before; copies of the doubted ones are turned down from now on (`rejects`).
        """
        raise NotImplementedError

    def settle(self, chunks: Iterable[int], now: float) -> dict[int, NodeName]:
        """The file is right now. By chunk, the reader whose bytes were not: each is quarantined."""
        raise NotImplementedError
