"""One line of what was measured, as every table, plot, page and JSON line of `quick` and `cluster` shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actors.sizes import format_bytes
from benchmarks.machine import machine


@dataclass(frozen=True, slots=True)
class Result:
    """`group`: rows of one group are compared with each other. `means`: a sentence for a person.

    `verifies`: against what a copy is checked before it counts. `origin`: bytes read from the origin over the size of
    the model; None where nobody counted.
    """

    group: str
    who: str
    verifies: str
    seconds: float
    bytes: int
    origin: float | None
    means: str
    cpu_s: float | None = None
    rss_bytes: int | None = None
    how: str = "measured"
    nodes: Mapping[str, float] | None = None
    """Seconds until each was done, where that is known."""

    @property
    def time(self) -> str:
        return f"{self.seconds:.2f}s" if self.seconds < 100 else f"{self.seconds:.0f}s"

    @property
    def rate(self) -> str:
        """Bytes of one copy over the time until it is there, or until the last node has its own."""
        return f"{format_bytes(int(self.bytes / max(self.seconds, 1e-9)))}/s"

    @property
    def read(self) -> str:
        return "" if self.origin is None else f"{self.origin:.2f}×"

    @property
    def cpu(self) -> str:
        return "" if self.cpu_s is None else f"{self.cpu_s:.2f}s"

    @property
    def memory(self) -> str:
        return "" if self.rss_bytes is None else format_bytes(self.rss_bytes)

    def row(self, benchmark: str) -> dict[str, Any]:
        """A JSON line, with the facts of the machine."""
        figures = {
            "seconds": round(self.seconds, 3),
            "bytes": self.bytes,
            "size": format_bytes(self.bytes),
            "rate": self.rate,
            "origin": None if self.origin is None else round(self.origin, 4),
            "cpu_s": None if self.cpu_s is None else round(self.cpu_s, 3),
            "rss_bytes": self.rss_bytes,
            "nodes": None if self.nodes is None else {name: round(each, 3) for name, each in self.nodes.items()},
        }
        said = {"group": self.group, "who": self.who, "verifies": self.verifies, "how": self.how, "means": self.means}
        return {"benchmark": benchmark, **said, **figures, **machine()}


COLUMNS = {
    "who": "who",
    "verifies": "verifies",
    "time": "time",
    "rate": "rate",
    "cpu": "CPU",
    "memory": "memory",
    "read": "from origin",
}
"""Attribute of a Result, and what the head of its column says."""
