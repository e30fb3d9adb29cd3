"""How many workers are worth having: as many as make the transfer faster, and no more. Pure.

    growing ──── more workers, and it is faster ────► twice as many, up to the bound
       │ ▲
       │ └────── each brings plenty by itself: half as many ──► shrinking ──── as fast ────► half as many again
       │                                                            │
       └──────── no faster ──► back to as many as were as fast ◄────┴───────► holding ──► a few more, then a few fewer:
                                      ▲                                          ▲        which is as fast with less?
    throttled by the origin ──────────┴── half as many, held longer ─────────────┘

The number is found, not set: an origin that limits each connection wants many, one across the room wants two. Each
worker beyond those costs the processors (threads that take turns, over TLS as much as half as much again), so it is
looked downwards first where the first workers bring so much that hardly anything but the processors limits them.
The work of a worker is counted in bytes plus a constant per request, so that thousands of small files, which are
bound by round trips, are sped up the same way as one large file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

REQUEST_BYTES = 256 << 10
"""What a request is worth besides its bytes: about what a connection brings in the time of one round trip."""
FIRST_WORKERS = 8
SHORTEST_S = 0.25
ROUND_TRIPS = 10
"""A new connection needs about as many until it is at its speed; only then is its effect measured."""
LONGEST_S = 3.0
GAIN = 0.3
"""More workers by a factor f must be faster by at least GAIN * (f - 1)."""
LOSS = 0.05
"""Fewer workers may be slower by this much."""
SHRINKING_LOSS = 0.1
"""Half as many may, after so short a time."""
AMPLE_BYTES_PER_S = 32e6
"""Of one worker: more than origins that limit each connection usually give."""
HOLD_S = 10.0
THROTTLED_HOLD_S = 30.0


class Phase(Enum):
    GROWING = "growing"
    SHRINKING = "shrinking"
    HOLDING = "holding"
    PROBING_UP = "probing up"
    PROBING_DOWN = "probing down"


@dataclass(frozen=True, slots=True)
class Sample:
    """What came, by now: all bytes, all requests; `latency_s` is how long a request waits for its first byte."""

    at: float
    bytes: int
    requests: int
    latency_s: float = 0.0

    @property
    def work(self) -> int:
        return self.bytes + self.requests * REQUEST_BYTES


@dataclass(frozen=True, slots=True)
class Concurrency:
    """`workers` is what holds now. The rest is what was learnt: `good` workers brought `good_rate`."""

    workers: int
    most: int
    good: int
    good_rate: float
    phase: Phase
    since: Sample
    until: float
    """While holding: when to look again."""
    down_next: bool = False


def start(most: int, at: float) -> Concurrency:
    """Before the first byte. At most `most` workers, ever."""
    workers = min(FIRST_WORKERS, most)
    return Concurrency(workers, most, workers, 0.0, Phase.GROWING, Sample(at, 0, 0), at)


def observe(current: Concurrency, sample: Sample) -> Concurrency:
    """What holds from now on. Called as often as one likes: nothing is concluded from less than `_enough`."""
    passed_s = sample.at - current.since.at
    if passed_s < _enough(sample.latency_s) or sample.work <= current.since.work:
        return current
    if current.phase is Phase.HOLDING and sample.at < current.until:
        return current
    rate = (sample.work - current.since.work) / passed_s
    now = replace(current, since=sample)
    match current.phase:
        case Phase.GROWING if not current.good_rate and _is_ample(current, sample):
            return _shrink(now, rate)
        case Phase.SHRINKING:
            if rate >= current.good_rate * (1 - SHRINKING_LOSS):
                return _shrink(now, rate)
            back = replace(now, workers=current.good)
            none_to_spare = current.good >= min(FIRST_WORKERS, current.most)
            return _grow(back, current.good_rate) if none_to_spare else _hold(back, HOLD_S)
        case Phase.GROWING | Phase.PROBING_UP:
            factor = current.workers / current.good
            if rate >= current.good_rate * (1 + GAIN * (factor - 1)):
                return _grow(now, rate)
            return _hold(replace(now, workers=current.good), HOLD_S)
        case Phase.PROBING_DOWN:
            if rate >= current.good_rate * (1 - LOSS):
                return _hold(replace(now, good=current.workers, good_rate=rate), HOLD_S)
            return _hold(replace(now, workers=current.good), HOLD_S)
        case Phase.HOLDING:
            return _probe(replace(now, good=current.workers, good_rate=rate))


def throttled(current: Concurrency, sample: Sample, pause_s: float) -> Concurrency:
    """The origin asked to slow down for `pause_s`. However many requests it refuses at once, that counts once."""
    if current.phase is Phase.HOLDING and current.until - sample.at > HOLD_S:
        return current
    workers = max(1, current.workers // 2)
    return _hold(replace(current, workers=workers, good=workers, since=sample), THROTTLED_HOLD_S + pause_s)


def bounded(current: Concurrency, most: int, sample: Sample) -> Concurrency:
    """At most `most` (at least 1) from now on. Where the bound was what kept it from growing, it grows again."""
    if most == current.most:
        return current
    now = replace(current, most=most, good=min(current.good, most))
    if current.workers > most:
        return _hold(replace(now, workers=most, since=sample), HOLD_S)
    held_back = current.workers == current.most < most and current.phase is Phase.HOLDING
    if held_back and current.until - sample.at <= HOLD_S:  # else it was throttled
        return replace(now, good=current.workers, good_rate=0.0, phase=Phase.GROWING, since=sample)
    return now


def _enough(latency_s: float) -> float:
    return min(max(SHORTEST_S, ROUND_TRIPS * latency_s), LONGEST_S)


def _grow(current: Concurrency, rate: float) -> Concurrency:
    """The present number is good; is more better?"""
    good = replace(current, good=current.workers, good_rate=rate)
    if current.workers >= current.most:
        return _hold(good, HOLD_S)
    return replace(good, workers=min(current.most, current.workers * 2), phase=Phase.GROWING)


def _is_ample(current: Concurrency, sample: Sample) -> bool:
    bytes_per_s = (sample.bytes - current.since.bytes) / (sample.at - current.since.at)
    return current.workers > 1 and bytes_per_s >= AMPLE_BYTES_PER_S * current.workers


def _shrink(current: Concurrency, rate: float) -> Concurrency:
    """The present number is good; are fewer?"""
    good = replace(current, good=current.workers, good_rate=max(rate, current.good_rate))
    if current.workers == 1:
        return _hold(good, HOLD_S)
    return replace(good, workers=current.workers // 2, phase=Phase.SHRINKING)


def _hold(current: Concurrency, seconds: float) -> Concurrency:
    return replace(current, phase=Phase.HOLDING, until=current.since.at + seconds)


def _probe(current: Concurrency) -> Concurrency:
    """A quarter more or fewer, in turn: conditions change, and the first number may have been too high."""
    step = max(1, current.workers // 4)
    fewer = current.down_next or current.workers >= current.most
    workers = max(1, current.workers - step) if fewer else min(current.most, current.workers + step)
    if workers == current.workers:
        return _hold(replace(current, down_next=not fewer), HOLD_S)
    phase = Phase.PROBING_DOWN if fewer else Phase.PROBING_UP
    return replace(current, workers=workers, phase=phase, down_next=not fewer)
