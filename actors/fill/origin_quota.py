"""What this node may ask of each origin, whichever models it reads from there: requests at a time, bytes, pauses.

    coordinator ── OriginShare ──► Quota ◄── enter, arrived, leave ── every request of every fill
    origin ─── 429, 503 ── pause ──►  │
                                      └── OriginReport ──► coordinator, which tells the others

A share holds until another is told. A coordinator that is away for a while is common (an update, a restart), and then
the shares of all nodes still add up to the budget; a node that hears nothing while the others are told of shares that
count it out is rare, and exceeds the budget by its own share at most. So a share does not expire: what was begun is
finished at the pace that was agreed on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

from actors.errors import Cancelled, Failure, SourceThrottled
from actors.manifest import OriginName
from actors.messages import OriginReport, OriginShare, heeded_s
from actors.rates import RateLimit, RateMeter

NOTHING = OriginShare(0)
"""Of an origin that a governed node was told nothing about."""
_LOOK_S = 0.1
"""How often a request that waits looks whether its fill was cancelled meanwhile."""


class NotOurTurn(Exception):  # not an error: others may read it sooner
    """The request would have waited for longer than its caller can be waited for."""


class Quota:
    """One origin. Any thread may call anything."""

    def __init__(self, origin: OriginName, clock: Callable[[], float] = time.monotonic) -> None:
        self.origin = origin
        self._clock = clock
        self._changed = threading.Condition()
        self._share: OriginShare | None = None
        self._limit = RateLimit(None, clock)
        self._meter = RateMeter(clock)
        self._under_way = 0
        self._waiting = 0
        self._quiet_until = 0.0
        self._asked_until = 0.0  # for so long the origin itself asked us to be quiet
        self._heeded = ""  # the last pause we were told of

    @property
    def requests(self) -> int | None:
        """How many may be under way at a time; None: any number."""
        share = self._share
        return None if share is None else share.requests

    @property
    def pause_s(self) -> float:
        """For how long nobody may begin a request."""
        return max(0.0, self._quiet_until - self._clock())

    def allow(self, share: OriginShare | None) -> None:
        """From now on this holds. Requests under way beyond it end in their own time. None: everything is allowed."""
        with self._changed:
            self._share = share
            self._limit.bytes_per_s = share.bytes_per_s if share is not None else None
            if share is not None and share.pause and share.pause != self._heeded:
                self._heeded = share.pause
                self._quiet_until = max(self._quiet_until, self._clock() + heeded_s(share.pause_s))
            self._changed.notify_all()

    def quiet(self, pause_s: float) -> None:
        """The origin asked this node for a pause."""
        with self._changed:
            self._asked_until = max(self._asked_until, self._clock() + heeded_s(pause_s))
            self._quiet_until = max(self._quiet_until, self._asked_until)

    def hindrance(self) -> tuple[Failure, float] | None:
        """Why a request cannot begin though its fill would like to, and for how many seconds at least."""
        if pause_s := self.pause_s:
            return Failure("SourceThrottled", self._paused(pause_s), retry_after_s=pause_s), pause_s
        if self.requests == 0 and self._share is not NOTHING:  # of which it is about to be told
            message = (
                f"waits for its turn at {self.origin}: all requests that nodes may make there at a time are in use"
            )
            return Failure("WaitingForOrigin", message), 1.0
        return None

    @contextmanager
    def request(self, stop: threading.Event, patience_s: float, turn_s: float | None = None) -> Iterator[None]:
        """A request may be under way within. Waits for its turn, and for the end of a pause.

        Raises Cancelled soon after `stop` is set, SourceThrottled where the pause lasts for more than `patience_s`,
        NotOurTurn where no pause but other requests take longer than `turn_s`, or this node may have none at all. None:
        waits for as long as that takes.
        """
        self._enter(stop, patience_s, turn_s)
        try:
            yield
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify()

    def _enter(self, stop: threading.Event, patience_s: float, turn_s: float | None) -> None:
        with self._changed:
            self._waiting += 1
            turn_by: float | None = None
            try:
                while not stop.is_set():
                    pause_s = self.pause_s
                    if pause_s > patience_s:
                        raise SourceThrottled(self._paused(pause_s), retry_after_s=pause_s)
                    if not pause_s and (self._share is None or self._under_way < self._share.requests):
                        self._under_way += 1
                        return
                    if not pause_s and turn_s is not None:
                        turn_by = turn_by or self._clock() + turn_s
                        if self.requests == 0 or self._clock() >= turn_by:
                            raise NotOurTurn
                    self._changed.wait(min(pause_s or _LOOK_S, _LOOK_S))
            finally:
                self._waiting -= 1
        raise Cancelled

    def arrived(self, count: int) -> float:
        """So many bytes have come. Returns for how many seconds the caller must be quiet now."""
        with self._changed:
            self._meter.add(count)
        return self._limit.spend(count)

    def report(self, wanted: int) -> OriginReport:
        """`wanted`: what the fills would have under way."""
        with self._changed:
            return OriginReport(
                origin=self.origin,
                requests=self._under_way,
                wanted=max(wanted, self._under_way + self._waiting),
                granted=self.requests,
                rate_bytes_per_s=self._meter.rate(),
                pause_s=max(0.0, self._asked_until - self._clock()),
            )

    def _paused(self, pause_s: float) -> str:
        return f"{self.origin} asked for a pause, of which {pause_s:.0f}s are left: no node reads it meanwhile"


class Quotas:
    """Every origin of this node. Any thread may call anything."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._shares: Mapping[OriginName, OriginShare] | None = None
        self._quotas: dict[OriginName, Quota] = {}
        self._wants: dict[object, tuple[frozenset[OriginName], int]] = {}

    def of(self, origin: OriginName) -> Quota:
        with self._lock:
            return self._of(origin)

    def allow(self, shares: Mapping[OriginName, OriginShare] | None) -> None:
        """From now on these hold, and nothing is allowed of any other origin. None: nobody governs."""
        with self._lock:
            self._shares = shares
            for origin in {*self._quotas, *(shares or ())}:
                self._of(origin).allow(self._share(origin))

    def want(self, reader: object, origins: frozenset[OriginName], requests: int) -> None:
        """From now on `reader` would have so many under way at each of these. 0: it is gone."""
        with self._lock:
            if requests:
                self._wants[reader] = origins, requests
            else:
                self._wants.pop(reader, None)

    def allowance(self, origins: Collection[OriginName]) -> int | None:
        """How many requests may be under way at the one of these that allows the fewest; None: any number."""
        with self._lock:
            known = [quota.requests for origin in origins if (quota := self._quotas.get(origin)) is not None]
        return min((requests for requests in known if requests is not None), default=None)

    def pause_s(self, origins: Collection[OriginName]) -> float:
        """For how long none of these may be asked."""
        with self._lock:
            known = [quota.pause_s for origin in origins if (quota := self._quotas.get(origin)) is not None]
        return min(known, default=0.0) if len(known) == len(origins) else 0.0

    def report(self) -> tuple[OriginReport, ...]:
        """Every origin that there is something to say about; the others are forgotten."""
        with self._lock:
            wanted: dict[OriginName, int] = {}
            for origins, requests in self._wants.values():
                for origin in origins:
                    wanted[origin] = wanted.get(origin, 0) + requests
            said = [self._of(origin).report(wanted.get(origin, 0)) for origin in {*self._quotas, *wanted}]
            telling = {each.origin: each for each in said if each.wanted or each.pause_s or self._is_told(each.origin)}
            self._quotas = {origin: quota for origin, quota in self._quotas.items() if origin in telling}
        return tuple(telling[origin] for origin in sorted(telling))

    def _is_told(self, origin: OriginName) -> bool:
        return self._shares is not None and origin in self._shares

    def _share(self, origin: OriginName) -> OriginShare | None:
        return None if self._shares is None else self._shares.get(origin, NOTHING)

    def _of(self, origin: OriginName) -> Quota:
        quota = self._quotas.get(origin)
        if quota is None:
            quota = self._quotas[origin] = Quota(origin, self._clock)
            quota.allow(self._share(origin))
        return quota
