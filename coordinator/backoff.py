"""How long to wait before trying again: longer each time, never in step with others."""

from __future__ import annotations

import random


class Backoff:
    """Doubles from `first_s` to `max_s`; each delay is drawn from its upper half. One thread."""

    def __init__(self, rng: random.Random, *, first_s: float = 0.5, max_s: float = 30.0) -> None:
        self._rng = rng
        self._first_s = first_s
        self._max_s = max_s
        self._failures = 0

    def next_s(self) -> float:
        """The delay after one more failure."""
        delay_s = min(self._max_s, self._first_s * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return delay_s * self._rng.uniform(0.5, 1.0)

    def reset(self) -> None:
        """It worked: the next failure starts from `first_s`."""
        self._failures = 0
