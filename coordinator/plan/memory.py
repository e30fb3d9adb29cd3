"""Results of earlier plans, by what they were worked out from, so that the cost of a plan follows what has changed.

    call(label, function, a, b) ──► a and b are the very objects of last time? ──► the result of last time
                                                                          └──► function(a, b)

A remembered function gets its inputs and nothing else: no snapshot, no clock. What depends on the time is worked out in
every plan. So a result is right for as long as its inputs are the same objects, which nobody changes once they are made
(an informer reads each version of an object once). An equal object that is another one costs time, and is never wrong.

The result of a plan does not depend on its memory; an empty one is the same code. What a plan did not ask for is
forgotten by the end of the next. `plan` alone turns the page, and one plan at a time may use a memory.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from operator import is_
from typing import Any, TypeVar

K = TypeVar("K")
T = TypeVar("T")


class Memory:
    """Empty until a plan has used it."""

    def __init__(self) -> None:
        self._before: dict[Hashable, tuple[tuple[Any, ...], Any]] = {}
        self._now: dict[Hashable, tuple[tuple[Any, ...], Any]] = {}

    def turn(self) -> None:
        """A plan begins. What the last one has not used is forgotten."""
        self._before, self._now = self._now, {}

    def call(self, label: Hashable, function: Callable[..., T], *inputs: Any) -> T:
        """`function(*inputs)`. `label` tells it from all else that a plan remembers."""
        known = self._before.get(label) or self._now.get(label)
        if known is None or len(known[0]) != len(inputs) or not all(map(is_, known[0], inputs)):
            known = inputs, function(*inputs)
        self._now[label] = known
        found: T = known[1]
        return found

    def following(self, label: Hashable, function: Callable[..., T], *inputs: Any) -> T:
        """`function(before, *inputs)`, where `before` is its last result or None: what it makes anew of that."""
        known = self._before.get(label) or self._now.get(label)
        before = None if known is None else known[1]
        if known is None or len(known[0]) != len(inputs) or not all(map(is_, known[0], inputs)):
            known = inputs, function(before, *inputs)
        self._now[label] = known
        found: T = known[1]
        return found

    def alike(self, label: Hashable, mapping: Mapping[K, T]) -> Mapping[K, T]:
        """`mapping`, as the object that the last plan had in its place if that maps the same to the same objects."""
        before: Mapping[K, T] | None = self.last(label, None)
        if before is not None and list(before) == list(mapping) and all(map(is_, before.values(), mapping.values())):
            mapping = before
        self.keep(label, mapping)
        return mapping

    def same(self, label: Hashable, value: T) -> T:
        """`value`, as the object that the last plan had in its place if that is equal."""
        before = self.last(label, value)
        kept = before if before == value else value
        self.keep(label, kept)
        return kept

    def last(self, label: Hashable, default: T) -> T:
        """The value that the last plan kept under this label."""
        known = self._before.get(label) or self._now.get(label)
        return default if known is None else known[1]

    def keep(self, label: Hashable, value: object) -> None:
        self._now[label] = (), value
