"""What a node thinks of one peer in one fill: what it has, and whether to ask it now.

fine ──busy──► not asked for some tens of milliseconds
fine ──unreachable──► suspected: not asked for 1 s, 2 s, … 30 s (1 s once it asks us), until it tells news or answers
fine ──wrong bytes──► quarantined: not asked for 30 s, 60 s, … 1 h, whatever it says
"""

from __future__ import annotations

import random
from dataclasses import dataclass

ASK_S = (0.05, 0.5)
SUSPECT_FIRST_S = 1.0
SUSPECT_MAX_S = 30.0
QUARANTINE_MAX_S = 3600.0
BUSY_S = (0.03, 0.07)


@dataclass(slots=True)
class Standing:
    """`have` is a bitmap of chunks. Times are those of the caller's clock."""

    near: bool = True
    """In our zone, or zones are not known."""
    neighbour: bool = False
    known: bool = False
    """It has told what it has."""
    have: int = 0
    asking: int = 0
    """Our requests to it that are under way."""
    not_before: float = 0.0
    """It is not asked for data before this time."""
    silent: int = 0
    """How often in a row it could not be reached. It is suspected to be dead while this is not 0."""
    quarantined_until: float = 0.0
    wrong: int = 0
    """How many chunks with wrong bytes came from it, or were read by it."""

    def ready(self, now: float) -> bool:
        return self.not_before <= now

    def trusted(self, now: float) -> bool:
        """It can be counted on: neither suspected nor quarantined."""
        return not self.silent and self.quarantined_until <= now

    def busy(self, now: float, rng: random.Random) -> None:
        self.not_before = max(self.not_before, now + rng.uniform(*BUSY_S))

    def unreachable(self, now: float, rng: random.Random) -> None:
        self.silent += 1
        pause_s = min(SUSPECT_MAX_S, SUSPECT_FIRST_S * 2.0 ** min(self.silent - 1, 16))
        self.not_before = max(self.not_before, now + pause_s * rng.uniform(0.5, 1.0))

    def alive(self) -> None:
        """It was heard from. A pause because of silence is over; one because of wrong bytes is not."""
        if self.silent:
            self.silent = 0
            self.not_before = self.quarantined_until

    def asks(self, now: float) -> None:
        """It asks us, so it is alive, and is tried again soon; that we reach it, too, is not said."""
        self.not_before = min(self.not_before, max(now + SUSPECT_FIRST_S, self.quarantined_until))

    def lied(self, now: float, first_s: float) -> None:
        self.wrong += 1
        self.quarantined_until = now + min(QUARANTINE_MAX_S, first_s * 2.0 ** min(self.wrong - 1, 16))
        self.not_before = max(self.not_before, self.quarantined_until)


class Backoff:
    """When a question that brought nothing may be asked again: doubles from the first of `ASK_S` to the second."""

    def __init__(self, now: float) -> None:
        self.after = now
        self._pause_s = ASK_S[0]

    def miss(self, now: float, rng: random.Random) -> None:
        self.after = now + self._pause_s * rng.uniform(0.7, 1.3)
        self._pause_s = min(ASK_S[1], self._pause_s * 2)

    def hit(self, now: float) -> None:
        self.after = now
        self._pause_s = ASK_S[0]
