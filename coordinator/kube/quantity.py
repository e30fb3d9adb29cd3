"""Numbers and times as Kubernetes writes them, and as people read them in `kubectl get`.

Parsing follows `k8s.io/apimachinery/pkg/api/resource`: decimal and binary suffixes, exponents, and a fraction of a byte
rounds up (https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/).
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal

from actors.numbers import LARGEST as LARGEST
from actors.sizes import format_bytes as format_bytes
from actors.sizes import say_bytes as say_bytes

_QUANTITY = re.compile(
    r"(?P<number>[+-]?(?:[0-9]{1,99}(?:\.[0-9]{0,99})?|\.[0-9]{1,99}))(?:(?P<suffix>[KMGTPE]i|[numkMGTPE])|[eE](?P<exponent>[+-]?[0-9]{1,9}))?"
)
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = ("Ki", "Mi", "Gi", "Ti", "Pi", "Ei")

"""The last second that an RFC 3339 time can name."""


def parse_bytes(quantity: int | str) -> int:
    """The number of bytes, rounded up to a whole one. Raises ValueError for what is not a quantity, or is negative."""
    if isinstance(quantity, bool) or not isinstance(quantity, int | str):
        raise ValueError(f"{quantity!r} is not a quantity")
    match = _QUANTITY.fullmatch(str(quantity))
    if match is None:
        raise ValueError(f"{quantity!r} is not a quantity (expected a number such as 500M, 10Gi or 1.5Ti)")
    number, suffix, exponent = Decimal(match["number"]), match["suffix"] or "", int(match["exponent"] or 0)
    if abs(exponent) > 18:
        raise ValueError(f"{quantity!r} is out of range")
    scale = Decimal(1 << 10 * (_BINARY.index(suffix) + 1)) if suffix in _BINARY else Decimal(10) ** _DECIMAL[suffix]
    value = int((number * scale * Decimal(10) ** exponent).to_integral_value(ROUND_CEILING))
    if number < 0:
        raise ValueError(f"{quantity!r} is negative")
    if value > LARGEST:
        raise ValueError(f"{str(quantity)[:40]} is out of range: more than 8Ei")
    return value


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
