"""Times as Kubernetes and people write them: RFC 3339 in UTC, to and from epoch seconds."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

_YEAR_10000 = 253402300800.0
LATEST = _YEAR_10000 - 1
"""The last time that can be written."""


@lru_cache(maxsize=65536)
def rfc3339(seconds: float, timespec: str = "seconds") -> str:
    """UTC, cut to whole seconds as `metav1.Time` is, or to "milliseconds" or "microseconds" (`metav1.MicroTime`).

    Clocks may be wild: what cannot be written becomes the nearest time that can.
    """
    within = min(seconds, LATEST) if seconds >= 0 else 0.0
    return datetime.fromtimestamp(within, UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


def parse_time(timestamp: str) -> float:
    """Epoch seconds of an RFC 3339 time, from 1970 to 9999. Raises ValueError."""
    try:
        parsed = datetime.fromisoformat(timestamp)
        seconds = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
    except OverflowError as error:
        raise ValueError(f"{timestamp!r} is out of range") from error
    if not 0 <= seconds < _YEAR_10000:
        raise ValueError(f"{timestamp!r} is out of range")
    return seconds


def seconds_of(timestamp: object) -> float | None:
    """Epoch seconds of an RFC 3339 time; None for anything else."""
    try:
        return parse_time(timestamp) if isinstance(timestamp, str) else None
    except ValueError:
        return None
