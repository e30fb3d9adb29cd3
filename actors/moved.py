"""What has come over the network for one model, from where, and who got it wrong. Pure; adds up over attempts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from actors.messages import NodeName
from actors.numbers import count


@dataclass(frozen=True, slots=True)
class Moved:
    """Bytes, right or wrong; `from_other_zones` are those of `from_peers` that crossed a zone.

    `wrong_peers` counts, by node, chunks that did not have the digest they were sent with; `wrong_readers` those whose
    bytes were wrong already when that node read them from the origin. That is on the word of whoever passed them on: a
    node that lies about it accuses another, but its bytes are found out all the same.
    """

    from_origin: int = 0
    from_peers: int = 0
    from_other_zones: int = 0
    wrong_peers: Mapping[NodeName, int] = field(default_factory=dict)
    wrong_readers: Mapping[NodeName, int] = field(default_factory=dict)

    def __add__(self, other: Self) -> Moved:
        return Moved(
            self.from_origin + other.from_origin,
            self.from_peers + other.from_peers,
            self.from_other_zones + other.from_other_zones,
            Counter(self.wrong_peers) + Counter(other.wrong_peers),
            Counter(self.wrong_readers) + Counter(other.wrong_readers),
        )

    def to_json(self) -> dict[str, Any]:
        """What is nothing is left out, except for the bytes that every copy has."""
        rare = {
            "bytesFromOtherZones": self.from_other_zones,
            "wrongPeers": dict(self.wrong_peers),
            "wrongReaders": dict(self.wrong_readers),
        }
        known = {"bytesFromOrigin": self.from_origin, "bytesFromPeers": self.from_peers}
        return known | {name: value for name, value in rare.items() if value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Moved:
        """Raises TypeError, ValueError or AttributeError for anything `to_json` did not make."""
        return cls(
            count(data.get("bytesFromOrigin", 0)),
            count(data.get("bytesFromPeers", 0)),
            count(data.get("bytesFromOtherZones", 0)),
            _counts(data.get("wrongPeers", {})),
            _counts(data.get("wrongReaders", {})),
        )


def _counts(data: Mapping[str, Any]) -> dict[NodeName, int]:
    return {NodeName(name): count(times) for name, times in data.items()}
