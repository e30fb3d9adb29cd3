"""How fast to go, and how fast it goes: a byte budget that threads share, a speedometer. Seconds are monotonic."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 10.0
"""The rate is that of the last so many seconds."""
WARM_UP_S = 1.0
"""After the first byte: the rate of a shorter time would be shown as days to go."""


class RateLimit:
    """A budget of bytes per second that threads share. None: no limit. `bytes_per_s` may be changed at any time."""

    def __init__(self, bytes_per_s: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.bytes_per_s = bytes_per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = clock()

    def spend(self, count: int) -> float:
        """`count` bytes have been used. Returns how many seconds the caller must be quiet now."""
        rate = self.bytes_per_s
        if rate is None:
            return 0.0
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now) + count / rate
            return self._free_at - now


class RateMeter:
    """Bytes per second over the last `WINDOW_S`; 0 until `WARM_UP_S` have passed. Not thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began: float | None = None  # when the first bytes came
        self._samples: deque[tuple[int, int]] = deque()  # a whole second, and the bytes that came in it

    def add(self, count: int) -> None:
        now = self._clock()
        self._began = now if self._began is None else self._began
        second = int(now)
        if self._samples and self._samples[-1][0] == second:
            count += self._samples.pop()[1]
        self._samples.append((second, count))
        while self._samples[0][0] < second - WINDOW_S:
            self._samples.popleft()

    def rate(self) -> float:
        now = self._clock()
        if self._began is None or now - self._began < WARM_UP_S:
            return 0.0
        since = max(self._began, now - WINDOW_S)
        recent = sum(count for second, count in self._samples if second >= int(since))
        return recent / (now - since)
