"""One trial: a fault that strikes a fill at a moment drawn by a seed, and what can be counted afterwards.

    fill begins ──► part of the bytes are there ──► the fault strikes ──► (its reason is said) ──► it is over ──► Ready

Three things are counted: files of a published copy that are not the origin's bytes, at any time; bytes that the origin
gave more than once; seconds from the fault until every node holds the model, or until its reason is in a report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

MIB = 1 << 20

Stage = TypeVar("Stage")


@dataclass(frozen=True, slots=True)
class Fault(Generic[Stage]):
    """A row of the matrix. `strikes` causes the fault when it is entered and takes it away when it is left.

    `reason`: what a report says while it lasts; None where the fill simply goes on. `timed`: that report names when it
    is tried again. `recovers`: the fill ends soon after the fault does. `twice_mib`: how much the origin may have given
    more than once, in MiB. `at`: which part of the bytes is there when it strikes, drawn from this range; 1.0: all is
    Ready. `short`: CI runs it. `environment` is of the agents. `prepare` is called before anything runs.
    """

    party: str
    name: str
    strikes: Callable[[Stage], AbstractContextManager[None]]
    reason: str | None = None
    timed: bool = True
    recovers: bool = True
    twice_mib: int = 0
    at: tuple[float, float] = (0.1, 0.8)
    short: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Stage], None] | None = None


@dataclass(slots=True)
class Outcome:
    """What one trial came to. `corrupt`: files; `error`: why it did not end as it must; empty: it did."""

    party: str
    name: str
    seed: int
    struck_at: float = 0.0
    corrupt: int = 0
    twice_bytes: int = 0
    twice_bound_bytes: int = 0
    ready_s: float | None = None
    reason: str | None = None
    reason_s: float | None = None
    skipped: str = ""
    error: str = ""

    @property
    def good(self) -> bool:
        return not self.error and not self.corrupt and self.twice_bytes <= self.twice_bound_bytes

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "good": self.good}


class NotHere(Exception):
    """This machine lacks what the fault is made with. The message says what to install or to be."""
