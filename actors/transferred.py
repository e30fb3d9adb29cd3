"""A model's numbers: what has come over the network for it, from where, and who got it wrong. Pure.

Everybody who counts has this one value: a fill under way, a marker on the disk, a report, the sum over nodes, a sample
of the metrics. A number is a field here; JSON, a report and a status take their names from it. Where it is counted
(`fill.meter`), how a status describes it (`coordinator.api.resources`) and whether it is a metric is decided there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Self

from actors.manifest import NodeName
from actors.numbers import count


@dataclass(frozen=True, slots=True, kw_only=True)
class Transferred:
    """Bytes, right or wrong; `bytes_from_other_zones` are those of `bytes_from_peers` that crossed a zone.

    `bytes_reused` have not come over the network: another copy on the same disk had them.

    `wrong_peers` counts, by node, chunks that did not have the digest they were sent with; `wrong_readers` those whose
    bytes were wrong already when that node read them from the origin. That is on the word of whoever passed them on: a
    node that lies about it accuses another, but its bytes are found out all the same.
    """

    bytes_from_origin: int = 0
    bytes_from_peers: int = 0
    bytes_from_other_zones: int = 0
    bytes_reused: int = 0
    wrong_peers: Mapping[NodeName, int] = field(default_factory=dict)
    wrong_readers: Mapping[NodeName, int] = field(default_factory=dict)

    @property
    def from_origin(self) -> int:
        return self.bytes_from_origin

    @property
    def numbers(self) -> dict[str, Any]:
        """Every number by its name, as a keyword argument of whatever is a `Transferred`."""
        return {name: getattr(self, name) for name in NAMES}

    @property
    def amounts(self) -> dict[str, int]:
        """The plain numbers, as JSON and the API name them."""
        return {CAMEL[name]: getattr(self, name) for name in AMOUNTS}

    @property
    def by_node(self) -> dict[str, dict[NodeName, int]]:
        """The numbers of each node, as JSON and the API name them."""
        return {CAMEL[name]: dict(getattr(self, name)) for name in BY_NODE}

    def __add__(self, other: Transferred) -> Transferred:
        return total((self, other))

    def to_json(self) -> dict[str, Any]:
        """As a marker has it: numbers that are 0 are left out, except for the bytes that every copy has."""
        numbers = {**self.amounts, **self.by_node}
        return {name: value for name, value in numbers.items() if value or name in _ALWAYS}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Raises TypeError, ValueError or AttributeError for anything `to_json` did not make."""
        amounts = {name: count(data.get(CAMEL[name], 0)) for name in AMOUNTS}
        by_node = {name: _counts(data.get(CAMEL[name], {})) for name in BY_NODE}
        return cls(**amounts, **by_node)  # type: ignore[arg-type]  # by the kind of each field


def total(each: Iterable[Transferred]) -> Transferred:
    """The sum. One pass for each number over plain attributes: a coordinator sums a report for each model and node."""
    known = list(each)
    amounts = {name: sum(map(attrgetter(name), known)) for name in AMOUNTS}
    by_node: dict[str, Counter[NodeName]] = {}
    for name in BY_NODE:
        by_node[name] = Counter()
        for counts in filter(None, map(attrgetter(name), known)):
            by_node[name].update(counts)
    return Transferred(**amounts, **by_node)  # type: ignore[arg-type]  # by the kind of each field


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.title, rest))


NAMES = tuple(Transferred.__dataclass_fields__)
AMOUNTS = tuple(name for name, each in Transferred.__dataclass_fields__.items() if each.default == 0)
BY_NODE = tuple(name for name in NAMES if name not in AMOUNTS)
CAMEL = {name: _camel(name) for name in NAMES}
_ALWAYS = frozenset({"bytesFromOrigin", "bytesFromPeers"})


def _counts(data: Mapping[str, Any]) -> dict[NodeName, int]:
    return {_node(name): count(times) for name, times in data.items()}


def _node(name: str) -> NodeName:
    name.encode()  # half a surrogate pair has no bytes
    return NodeName(name)
