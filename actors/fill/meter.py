"""What has come over the network in one fill, from where and how fast, and what is in its way. Any thread."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable

from actors.errors import Failure
from actors.fill.concurrency import Sample
from actors.messages import NodeName
from actors.rates import RateMeter
from actors.transferred import Transferred


class Traffic:
    """Bytes count when they arrive, whether they turn out to be right or not."""

    def __init__(self, clock: Callable[[], float], reused: int = 0) -> None:
        """`clock` gives epoch seconds, for times that people are told. `reused`: bytes that were there before."""
        self._clock = clock
        self._reused = reused
        self._lock = threading.Lock()
        self._meter = RateMeter()
        self._requests = 0
        self._latency_s = math.inf
        self._trouble: tuple[Failure, float] | None = None
        self._from_origin = 0
        self._from_peers = 0
        self._from_other_zones = 0
        self._wrong_peers: Counter[NodeName] = Counter()
        self._wrong_readers: Counter[NodeName] = Counter()

    def origin(self, count: int, *, requests: int = 0) -> None:
        with self._lock:
            self._from_origin += count
            self._requests += requests
            self._arrived(count)

    def peer(self, count: int, *, far: bool) -> None:
        with self._lock:
            self._from_peers += count
            self._from_other_zones += count if far else 0
            self._arrived(count)

    def reused(self, count: int) -> None:
        """These bytes were not fetched: another copy on the disk had them."""
        with self._lock:
            self._reused += count

    def wrong_peer(self, name: NodeName) -> None:
        """A chunk from this node did not have the digest that it was sent with."""
        with self._lock:
            self._wrong_peers[name] += 1

    def wrong_reader(self, name: NodeName) -> None:
        """A chunk was wrong when this node read it from the origin."""
        with self._lock:
            self._wrong_readers[name] += 1

    @property
    def moved(self) -> Transferred:
        with self._lock:
            return Transferred(
                bytes_from_origin=self._from_origin,
                bytes_from_peers=self._from_peers,
                bytes_from_other_zones=self._from_other_zones,
                bytes_reused=self._reused,
                wrong_peers=dict(self._wrong_peers),
                wrong_readers=dict(self._wrong_readers),
            )

    def answered(self, latency_s: float) -> None:
        """The first byte of a request came after so long."""
        self._latency_s = min(self._latency_s, latency_s)

    def troubled(self, failure: Failure, delay_s: float) -> None:
        """Nothing comes because of this, and it is tried again after the delay. Forgotten when bytes come later."""
        with self._lock:
            self._trouble = (failure, self._clock() + delay_s)

    @property
    def trouble(self) -> tuple[Failure, float] | None:
        return self._trouble

    @property
    def rate_bytes_per_s(self) -> float:
        with self._lock:
            return self._meter.rate()

    def sample(self) -> Sample:
        """Of the origin."""
        latency_s = self._latency_s if math.isfinite(self._latency_s) else 0.0
        return Sample(time.monotonic(), self._from_origin, self._requests, latency_s)

    def _arrived(self, count: int) -> None:
        self._meter.add(count)
        if self._trouble is not None and self._clock() >= self._trouble[1]:
            self._trouble = None
