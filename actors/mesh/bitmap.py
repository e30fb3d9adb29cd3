"""Sets of chunks as whole numbers: bit `n` is set when chunk `n` is in the set. Pure.

A whole number is the fastest set Python has for a few thousand small members: union, intersection and count run over
machine words, and a set is a value that can be sent as it is.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator


def bitmap(members: Iterable[int]) -> int:
    bits = 0
    for member in members:
        bits |= 1 << member
    return bits


def full(count: int) -> int:
    """`[0, count)`."""
    return (1 << count) - 1


def members(bits: int) -> Iterator[int]:
    """In ascending order."""
    digits = bin(bits)[:1:-1]
    position = digits.find("1")
    while position >= 0:
        yield position
        position = digits.find("1", position + 1)


def nth(bits: int, rank: int) -> int:
    """The member with `rank` smaller ones. Halves the set until few are left: microseconds for ten thousand members."""
    base, width = 0, bits.bit_length()
    while rank > 3:
        half = width >> 1
        low = bits & ((1 << half) - 1)
        count = low.bit_count()
        if rank < count:
            bits, width = low, half
        else:
            bits, base, rank, width = bits >> half, base + half, rank - count, width - half
    for _ in range(rank):
        bits &= bits - 1
    return base + (bits & -bits).bit_length() - 1


def pick(bits: int, rng: random.Random) -> int:
    """One member, each as likely as the other. `bits` must not be empty."""
    return nth(bits, int(rng.random() * bits.bit_count()))
