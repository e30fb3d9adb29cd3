"""Sizes as Kubernetes writes quantities: read from what people wrote, and written for people.

Parsing follows `k8s.io/apimachinery/pkg/api/resource`: decimal and binary suffixes, exponents, and a fraction of a byte
rounds up (https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/).
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal

from actors.numbers import LARGEST

_QUANTITY = re.compile(
    r"(?P<number>[+-]?(?:[0-9]{1,99}(?:\.[0-9]{0,99})?|\.[0-9]{1,99}))(?:(?P<suffix>[KMGTPE]i|[numkMGTPE])|[eE](?P<exponent>[+-]?[0-9]{1,9}))?"
)
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_UNITS = ("Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_PLAIN = re.compile(r"([0-9]{1,19})(|[KMGT]i?|k)")


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
    scale = Decimal(1 << 10 * (_UNITS.index(suffix) + 1)) if suffix in _UNITS else Decimal(10) ** _DECIMAL[suffix]
    value = int((number * scale * Decimal(10) ** exponent).to_integral_value(ROUND_CEILING))
    if number < 0:
        raise ValueError(f"{quantity!r} is negative")
    if value > LARGEST:
        raise ValueError(f"{str(quantity)[:40]} is out of range: more than 8Ei")
    return value


def parse_plain_bytes(text: str) -> int:
    """The number of bytes of a whole number with a suffix up to `T` or `Ti`, where `K` means `k`. Raises ValueError.

    Settings are so: an exponent, a sign or a fraction there is more likely a mistake than a size.
    """
    if (match := _PLAIN.fullmatch(text)) is None:
        raise ValueError(f"{text[:40]!r} is not a size such as 512Mi")
    return parse_bytes(f"{match[1]}k" if match[2] == "K" else text)


def format_bytes(count: int, *, up: bool = False) -> str:
    """A valid quantity with at most one digit after the point: `512`, `1.5Ki`, `15.3Gi`. Rounded down, or `up`.

    A need is rounded up and a stock down, so that what does not fit does not look as if it did.
    """
    power = min((max(count, 1).bit_length() - 1) // 10, len(_UNITS))
    if power == 0:
        return str(count)
    tenths = -(-count * 10 >> 10 * power) if up else count * 10 >> 10 * power
    whole, tenth = divmod(tenths, 10)
    if up and tenth and whole >= 100:
        whole, tenth = whole + 1, 0
    if whole >= 1024 and power < len(_UNITS):
        return format_bytes(whole << 10 * power, up=up)
    return f"{whole}.{tenth}{_UNITS[power - 1]}" if tenth and whole < 100 else f"{whole}{_UNITS[power - 1]}"


def say_bytes(count: int, *, up: bool = False) -> str:
    """The same within a sentence, where a number needs a unit: `0`, `512 bytes`, `1.5Ki`."""
    text = format_bytes(count, up=up)
    return f"{text} bytes" if count and text.isdecimal() else text
