"""When to try again: later each time, and never in step with others.

doubled       the pause after so many failures; the others, and the mesh, add chance to it
RetryPolicy   of errors that know whether trying again can help
Backoff       counts failures by itself, for loops that only know that something failed
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from actors.errors import LocalModelError


def doubled(first_s: float, max_s: float, failures: int) -> float:
    """`first_s` after one failure, twice as long after each further one, `max_s` at most."""
    return min(max_s, first_s * 2.0 ** min(failures - 1, 32))


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Doubles from `first_s` to `max_s`. An error that trying again cannot help is tried at the slowest pace."""

    first_s: float
    max_s: float

    def delay_s(self, error: LocalModelError, failures: int, rng: random.Random) -> float:
        """Before the next try, after `failures` (at least 1) in a row. From the upper half, so that nodes fall apart.

        Never sooner than the origin asked for.
        """
        ceiling = doubled(self.first_s, self.max_s, failures) if error.retryable else self.max_s
        return max(ceiling * rng.uniform(0.5, 1.0), error.retry_after_s or 0.0)


class Backoff:
    """Doubles from `first_s` to `max_s`; each delay is drawn from its upper half. One thread."""

    def __init__(self, rng: random.Random, *, first_s: float = 0.5, max_s: float = 30.0) -> None:
        self._rng = rng
        self._first_s = first_s
        self._max_s = max_s
        self._failures = 0

    def next_s(self) -> float:
        """The delay after one more failure."""
        self._failures += 1
        return doubled(self._first_s, self._max_s, self._failures) * self._rng.uniform(0.5, 1.0)

    def reset(self) -> None:
        """It worked: the next failure starts from `first_s`."""
        self._failures = 0


def __getattr__(name: str) -> Any:
    """Rates, for one more release: scripts outside look for them here. Only then, because the mesh imports no clock."""
    if name in ("RateLimit", "RateMeter"):
        return getattr(import_module("actors.rates"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
