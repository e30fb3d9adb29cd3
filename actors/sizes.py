"""Sizes for people, as Kubernetes writes quantities."""

from __future__ import annotations

_UNITS = ("Ki", "Mi", "Gi", "Ti", "Pi", "Ei")


def format_bytes(count: int, *, up: bool = False) -> str:
    """A valid quantity with at most one digit after the point: `512`, `1.5Ki`, `15.3Gi`. Rounded down, or `up`.

    What is needed is rounded up and what there is down, so that what does not fit does not look as if it did.
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
