"""Numbers that others write: parsed once, where they come in, with bounds. Past that point they can be trusted.

    count, moment      of a document, where a number is a number already: JSON from a hub, a marker, a journal
    decimal            of a header or a variable, where it is text
    within             of a setting, with what the message says if it is refused

Python reads more than others write: `int` takes `+5`, ` 5`, `1_000` and the digits of every script; `float` takes `nan`
and `inf`, for which no comparison helps; `True` is a number; and there is no largest one.
"""

from __future__ import annotations

import math
import re

from actors.redaction import redacted

LARGEST = (1 << 63) - 1
"""Of sizes and counts: what files, and Kubernetes' API, can have."""

LATEST = 1e11
"""Of times: after it no date can be written."""

_DECIMAL = re.compile(r"[0-9]{1,19}")


def count(value: object) -> int:
    """A number of bytes or things. Raises ValueError for what is none."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST:
        raise ValueError(f"{redacted(str(value))[:40]!r} is no whole number from 0 on")
    return value


def moment(value: object) -> float | None:
    """Epoch seconds. Raises ValueError for what is none."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or abs(value) > LATEST:
        raise ValueError(f"{redacted(str(value))[:40]!r} is no time")
    return float(value) if isinstance(value, float) else value


def decimal(text: str) -> int | None:
    """Digits and nothing else, as HTTP has them; None for anything that is not. See RFC 9110, section 8.6."""
    value = int(text) if _DECIMAL.fullmatch(text) else LARGEST + 1
    return value if value <= LARGEST else None


def within(name: str, text: str, least: int, most: int) -> int:
    """A whole number. Raises ValueError, which names the setting and what it may be."""
    value = decimal(text)
    if value is None or not least <= value <= most:
        raise ValueError(f"{name}: {redacted(text)[:40]!r} is not a number from {least} to {most}")
    return value
