"""The report of `localmodel fill` on a model that is there."""

from __future__ import annotations

import resource
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.disk.marker import Marker
from coordinator.cli.output import printable
from coordinator.kube.quantity import format_duration

_NAMED = 3


@dataclass(frozen=True, slots=True)
class Done:
    """The model is there. `checked` None: it was filled just now; else whether the one that was there was read."""

    marker: Marker
    checked: bool | None = None
    repaired: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    def how(self, seconds: float) -> str:
        if self.checked is None:
            return f"in {format_duration(seconds)}"
        if not self.checked:
            return "already there; contents not checked, `--verify` reads every byte"
        if self.repaired:
            named = ", ".join(self.repaired[:_NAMED]) + (" and more" if len(self.repaired) > _NAMED else "")
            return f"already there; {len(self.repaired)} were damaged or missing and are repaired ({printable(named)})"
        return "already there; every byte was read, and is as it was filled"

    def to_json(self) -> dict[str, Any]:
        if self.checked is None:
            return {}
        said: dict[str, Any] = {"alreadyThere": True, "contentsChecked": self.checked}
        return said | ({"repaired": list(self.repaired), "extra": list(self.extra)} if self.checked else {})


def summary(marker: Marker, seconds: float) -> dict[str, Any]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "bytes": marker.manifest.total_bytes,
        "files": len(marker.manifest.files),
        "seconds": round(seconds, 3),
        "cpuSeconds": round(usage.ru_utime + usage.ru_stime, 3),
        "maxRssBytes": _max_rss_bytes(),
        "verified": dict(Counter(marker.verified.values())),
        "manifestDigest": marker.manifest.digest,
    }


def _max_rss_bytes() -> int:
    """The most memory this program held. Not `ru_maxrss`, which starts with that of whoever started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
