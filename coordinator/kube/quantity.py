"""Sizes (`actors.sizes`), durations and shares as people read them in `kubectl get`."""

from __future__ import annotations

from actors.numbers import LARGEST as LARGEST
from actors.sizes import format_bytes as format_bytes
from actors.sizes import parse_bytes as parse_bytes
from actors.sizes import say_bytes as say_bytes


def format_duration(seconds: float) -> str:
    """Two units at most, rounded up to a second: `0s`, `42s`, `4m10s`, `2h5m`, `3d4h`."""
    total = max(0, -int(-seconds // 1))
    for unit, below, large, small in ((60, 3600, "m", "s"), (3600, 86400, "h", "m"), (86400, None, "d", "h")):
        if total < 60:
            return f"{total}s"
        if below is None or total < below:
            whole, rest = divmod(total, unit)
            rest //= {"s": 1, "m": 60, "h": 3600}[small]
            return f"{whole}{large}{rest}{small}" if rest else f"{whole}{large}"
    raise AssertionError("the last unit has no upper bound")


def format_percent(done: int, total: int) -> str:
    """`73%`, rounded down, so that 100% means all of it. An empty whole is done."""
    return f"{100 if total <= 0 else min(100, done * 100 // total)}%"
