"""What a node thinks of one peer in one fill: what it has, and whether to ask it now.

fine ──busy──► not asked for some tens of milliseconds
fine ──unreachable──► suspected: not asked for 1 s, 2 s, … 30 s (1 s once it asks us), until it tells news or answers
fine ──wrong bytes──► not asked for that chunk again; and, unless most others were right, quarantined: not asked for
                      30 s, 60 s, … 1 h, whatever it says; sooner, a few times, where else the origin would be read
fine ──no delivery──► in default: not counted on until it delivers, and asked once after 30 s, 60 s, … 5 min

Answers of a peer do not count, only what it delivers: see `Mesh`. News prove that it lives, not that it can be asked:
they end the suspicion, but of a peer that was out of reach twice in a row only once its pause is over.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from actors.retry import doubled

ASK_S = (0.05, 0.5)
SUSPECT_FIRST_S = 1.0
SUSPECT_MAX_S = 30.0
QUARANTINE_MAX_S = 3600.0
DEFAULT_MAX_S = 300.0
BUSY_S = (0.03, 0.07)
RIGHT_PER_WRONG = 8
"""A peer that gave so many right chunks for each wrong one has a bad spot on its disk, and the rest of it is good."""
RELEASES = 3
"""So often the quarantine of a peer ends early. Each time costs `Pace.takeover_s`, in which nothing moves."""


@dataclass(slots=True)
class Standing:
    """`have` is a bitmap of chunks. Times are those of the caller's clock."""

    near: bool = True
    """In our zone, or zones are not known."""
    neighbour: bool = False
    known: bool = False
    """It has told what it has."""
    have: int = 0
    not_before: float = 0.0
    """It is not asked for data before this time."""
    silent: int = 0
    """How often in a row it could not be reached. It is suspected to be dead while this is not 0."""
    asking: int = 0
    """Our requests to it that are under way."""
    misses: int = 0
    """The same, but news do not end the row."""
    owes_since: float | None = None
    """It was asked then, and has delivered nothing since."""
    asked_at: float = 0.0
    in_default: bool = False
    defaulted_at: float = 0.0
    defaults: int = 0
    """How often it was found to owe for too long, or, in default, did not deliver when it was tried."""
    barred_until: float = 0.0
    """In default: it is not tried before this time."""
    waited_for: bool = True
    """What we have read may wait for it to take something. Not for a peer that was waited for and took nothing."""
    gifts: int = 0
    """Chunks of others that it gave us to read."""
    quarantined_until: float = 0.0
    wrong: int = 0
    """How many chunks with wrong bytes came from it, or were read by it."""
    right: int = 0
    """How many chunks came from it."""
    spoiled: int = 0
    """A bitmap of the chunks that came from it with wrong bytes. It does not know, and says that it has them."""
    releases: int = RELEASES
    """How often its quarantine may still end early. Never that of a reader whose digests were wrong."""

    def ready(self, now: float) -> bool:
        return self.not_before <= now

    def trusted(self, now: float) -> bool:
        """It can be counted on: neither suspected, nor quarantined, nor in default."""
        return not self.silent and not self.in_default and self.quarantined_until <= now

    def busy(self, now: float, rng: random.Random) -> None:
        self.not_before = max(self.not_before, now + rng.uniform(*BUSY_S))

    def unreachable(self, now: float, rng: random.Random) -> None:
        self.misses += 1
        self.silent = self.misses
        pause_s = doubled(SUSPECT_FIRST_S, SUSPECT_MAX_S, self.silent)
        self.not_before = max(self.not_before, now + pause_s * rng.uniform(0.5, 1.0))

    def alive(self) -> None:
        """It has answered. A pause because of silence is over; one because of wrong bytes, or of none, is not."""
        if self.silent:
            self.silent = 0
            self.not_before = self._barred
        self.misses = 0

    def told(self, now: float) -> bool:
        """It tells what it has. True: it was suspected, and is no longer."""
        if not self.silent or (self.misses > 1 and now < self.not_before):
            return False
        self.silent = 0
        self.not_before = self._barred
        return True

    def asks(self, now: float) -> None:
        """It asks us, so it is alive, and is tried again soon; that we reach it, too, is not said."""
        self.not_before = min(self.not_before, max(now + SUSPECT_FIRST_S, self._barred))

    def asked(self, now: float, fed_at: float) -> None:
        """We ask it for a chunk. Chunks that we were given since, by any peer, make up for what it owed before."""
        self.asked_at = now
        if self.owes_since is None or self.owes_since < fed_at:
            self.owes_since = now
        if self.in_default:  # once
            self.not_before = self.barred_until = now + DEFAULT_MAX_S

    def delivered(self) -> bool:
        """A chunk came from it. True: it was in default, and is no longer."""
        before, self.in_default = self.in_default, False
        self.owes_since = None
        self.right += 1
        if before:
            self.barred_until, self.not_before = 0.0, self.quarantined_until
        return before

    def default(self, now: float, first_s: float) -> None:
        """It has owed us a chunk for too long."""
        self.defaults += 1
        self.in_default, self.defaulted_at, self.owes_since = True, now, None
        self.barred_until = now + doubled(first_s, DEFAULT_MAX_S, self.defaults)
        self.not_before = max(self._barred, self.barred_until)

    def inherit(self, earlier: Standing) -> None:
        """It was here before, and starts anew: but it owes us what it owed. One in default may be tried at once."""
        self.owes_since, self.asked_at = earlier.owes_since, earlier.asked_at
        self.in_default, self.defaults = earlier.in_default, earlier.defaults

    def pardon(self) -> None:
        """That it owes us was not its fault."""
        if self.in_default:
            self.in_default, self.defaults = False, self.defaults - 1
            self.not_before = self.quarantined_until
        self.owes_since = None

    @property
    def _barred(self) -> float:
        return max(self.quarantined_until, self.barred_until if self.in_default else 0.0)

    def spoils(self, chunk: int) -> bool:
        """Whether the chunk came from it with wrong bytes."""
        return bool(self.spoiled >> chunk & 1)

    def sent_wrong(self, chunk: int, now: float, first_s: float) -> None:
        """The chunk came with wrong bytes."""
        self.spoiled |= 1 << chunk
        self.have &= ~self.spoiled
        if (self.wrong + 1) * RIGHT_PER_WRONG > self.right:
            self._quarantine(now, first_s)
        else:
            self.wrong += 1

    def lied(self, now: float, first_s: float) -> None:
        """It made a digest of other bytes than the source has."""
        self.releases = 0
        self._quarantine(now, first_s)

    def release(self, now: float) -> bool:
        """Whether it was in quarantine and no longer is."""
        if self.quarantined_until <= now or self.silent or self.in_default or not self.releases:
            return False
        self.releases -= 1
        self.quarantined_until = self.not_before = now
        return True

    def _quarantine(self, now: float, first_s: float) -> None:
        self.wrong += 1
        self.quarantined_until = now + doubled(first_s, QUARANTINE_MAX_S, self.wrong)
        self.not_before = max(self.not_before, self.quarantined_until)


class Backoff:
    """When a question that brought nothing may be asked again: doubles from the first of `ASK_S` to the second."""

    def __init__(self, now: float) -> None:
        self.after = now
        self._misses = 0

    def miss(self, now: float, rng: random.Random) -> None:
        self._misses += 1
        self.after = now + doubled(*ASK_S, self._misses) * rng.uniform(0.7, 1.3)

    def hit(self, now: float) -> None:
        self.after = now
        self._misses = 0
