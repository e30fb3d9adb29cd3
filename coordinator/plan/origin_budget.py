"""How much all nodes together may ask of an origin, as flags and environment say it; and how much they do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from actors.manifest import OriginName, origin_of
from actors.numbers import decimal
from actors.sizes import parse_bytes

_OVERRIDE = re.compile(r"(?P<origin>[^=\s]+)=(?P<requests>\d+)(?:/(?P<rate>\w+))?")


MAX_REQUESTS = 1_000_000


@dataclass(frozen=True, slots=True)
class Budget:
    """`requests` at a time; `bytes_per_s` None: as fast as it goes.

    The default is twice what one fill uses at most, so that a node alone is not slowed down.
    """

    requests: int = 64
    bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Budgets:
    """`overrides` are of origins that have a budget of their own."""

    default: Budget = Budget()
    overrides: Mapping[OriginName, Budget] = field(default_factory=dict)

    def of(self, origin: OriginName) -> Budget:
        return self.overrides.get(origin, self.default)


@dataclass(frozen=True, slots=True)
class OriginUse:
    """The load on one origin now, by the last reports. `pause_s` is what is left of the pause it asked for."""

    origin: OriginName
    budget: Budget
    nodes: int = 0
    requests: int = 0
    wanted: int = 0
    rate_bytes_per_s: float = 0.0
    pause_s: float = 0.0


def parse_overrides(text: str) -> dict[OriginName, Budget]:
    """`ORIGIN=REQUESTS[/BYTES_PER_S]`, by comma or space: `https://huggingface.co=16/200M`. Raises ValueError."""
    found: dict[OriginName, Budget] = {}
    for each in text.replace(",", " ").split():
        match = _OVERRIDE.fullmatch(each)
        origin = origin_of(match["origin"]) if match is not None else None
        if match is None or origin is None:
            raise ValueError(f"{each!r} is not ORIGIN=REQUESTS[/BYTES_PER_S], such as https://huggingface.co=16/200M")
        found[origin] = Budget(parse_requests(match["requests"]), float(parse_bytes(match["rate"] or "0")) or None)
    return found


def parse_requests(text: str) -> int:
    """Raises ValueError: without a request nothing would ever be read."""
    value = decimal(text)
    if value is None or not 1 <= value <= MAX_REQUESTS:
        raise ValueError(f"{text[:40]!r} is not a number from 1 to {MAX_REQUESTS}")
    return value
