"""How many workers there are: found by what they bring, lowered when the origin asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.fill.concurrency import (
    HOLD_S,
    THROTTLED_HOLD_S,
    Concurrency,
    Phase,
    Sample,
    bounded,
    observe,
    start,
    throttled,
)

MB = 1_000_000


def after(
    seconds: float,
    rate: Callable[[int], float],
    *,
    most: int = 64,
    latency_s: float = 0.0,
    current: Concurrency | None = None,
) -> Concurrency:
    """What is found within so many seconds where `rate` says how many bytes per second that many workers bring."""
    current = current or start(most, 0.0)
    at, done = current.since.at, float(current.since.bytes)
    end = at + seconds
    while at < end:
        at += 0.05
        done += rate(current.workers) * 0.05
        current = observe(current, Sample(at, int(done), 0, latency_s))
    return current


def each(limit: float, link: float) -> Callable[[int], float]:
    """Every connection is limited, and so is the link they share."""
    return lambda workers: min(workers * limit, link)


@pytest.mark.parametrize(
    ("rate", "latency_s", "seconds", "at_least", "at_most"),
    [
        (each(25 * MB, 10_000 * MB), 0.001, 2, 64, 64),
        (each(25 * MB, 10_000 * MB), 0.1, 5, 64, 64),
        (each(25 * MB, 400 * MB), 0.001, 5, 16, 16),
        (each(1000 * MB, 1000 * MB), 0.001, 2, 1, 1),
        (each(500 * MB, 1000 * MB), 0.001, 2, 2, 2),
        (each(90 * MB, 10_000 * MB), 0.001, 2, 64, 64),
        (each(1000 * MB, 1000 * MB), 0.001, 300, 1, 2),
        (lambda workers: 1000 * MB / (1 + workers / 20), 0.001, 300, 1, 2),
        (each(25 * MB, 400 * MB), 0.001, 300, 12, 20),
    ],
    ids=[
        "each connection is limited: as many as there may be, soon",
        "the same, far away: it takes longer, and comes to the same",
        "the link is full with sixteen",
        "one fills the link: soon there is one",
        "two fill the link: soon there are two",
        "each is limited, but high: as many as there may be, soon",
        "one fills the link: in time few are left",
        "more is slower: in time few are left",
        "the link is full with sixteen, and that is kept",
    ],
)
def test_the_knee_is_found(
    rate: Callable[[int], float], latency_s: float, seconds: float, at_least: int, at_most: int
) -> None:
    assert at_least <= after(seconds, rate, latency_s=latency_s).workers <= at_most


def test_small_files_are_sped_up_like_large_ones() -> None:
    current = start(32, 0.0)
    for tick in range(1, 60):
        current = observe(current, Sample(tick * 0.05, tick * 1024, requests=tick * current.workers))
    assert current.workers == 32


def test_an_origin_that_throttles_is_asked_by_half_as_many_and_for_longer() -> None:
    full = after(5, each(25 * MB, 10_000 * MB))
    sample = Sample(full.since.at + 1, full.since.bytes, 0)
    calmed = throttled(full, sample, pause_s=2)
    assert (calmed.workers, calmed.phase) == (32, Phase.HOLDING)
    assert throttled(calmed, sample, pause_s=2) == calmed, "refused all at once, lowered once"
    assert after(THROTTLED_HOLD_S, each(25 * MB, 10_000 * MB), current=calmed).workers == 32
    later = after(THROTTLED_HOLD_S + 5 + 4 * HOLD_S, each(25 * MB, 10_000 * MB), current=calmed)
    assert later.workers > 32, "it recovers"


def test_a_smaller_share_is_kept_to_and_a_larger_one_is_tried_out_at_once() -> None:
    fast = each(25 * MB, 10_000 * MB)
    current = after(20, fast, current=bounded(start(32, 0.0), 4, Sample(0.0, 0, 0)))
    assert (current.workers, current.most, current.phase) == (4, 4, Phase.HOLDING)
    assert bounded(current, 4, current.since) == current
    grown = bounded(current, 32, current.since)
    assert grown.phase is Phase.GROWING
    assert after(HOLD_S, fast, current=grown).workers == 32, "sooner than by probing"
    shrunk = bounded(after(HOLD_S, fast, current=grown), 3, Sample(100.0, 1 << 40, 0))
    assert shrunk.workers == 3


def test_a_larger_share_is_no_reason_to_hurry_where_more_were_no_faster_or_it_was_throttled() -> None:
    enough = after(20, each(25 * MB, 100 * MB))
    assert enough.workers < enough.most
    assert bounded(enough, enough.most + 8, enough.since) == replace(enough, most=enough.most + 8)
    few = after(20, each(25 * MB, 10_000 * MB), current=bounded(start(32, 0.0), 4, Sample(0.0, 0, 0)))
    calmed = bounded(throttled(few, few.since, pause_s=2), 2, few.since)
    assert bounded(calmed, 32, few.since).phase is Phase.HOLDING


def test_a_share_that_shrinks_while_fewer_are_tried_out_is_kept_to_when_that_was_slower() -> None:
    limited = each(25 * MB, 10_000 * MB)
    current = after(20, limited)
    while current.phase is not Phase.PROBING_DOWN:
        current = observe(current, Sample(current.since.at + HOLD_S, current.since.bytes + MB, 0))
    bound = bounded(current, current.workers, current.since)
    slower = observe(bound, Sample(bound.since.at + HOLD_S, bound.since.bytes + 1, 0))
    assert slower.workers == current.workers < current.good


def test_a_standstill_teaches_nothing() -> None:
    current = after(1, each(25 * MB, 10_000 * MB))
    assert after(60, lambda workers: 0.0, current=current) == current


@pytest.mark.slow
@given(
    most=st.integers(1, 100),
    steps=st.lists(
        st.tuples(
            st.floats(0.001, 20), st.integers(0, 1 << 40), st.sampled_from(["", "refused"]) | st.integers(1, 100)
        ),
        max_size=60,
    ),
)
def test_whatever_happens_there_is_at_least_one_and_never_more_than_allowed(
    most: int, steps: list[tuple[float, int, str | int]]
) -> None:
    current, at, done = start(most, 0.0), 0.0, 0
    for passed_s, count, happened in steps:
        at, done = at + passed_s, done + count
        sample = Sample(at, done, 0, latency_s=0.01)
        if isinstance(happened, int):
            most = happened
            current = bounded(current, most, sample)
        else:
            current = throttled(current, sample, 1.0) if happened else observe(current, sample)
        assert 1 <= current.workers <= most
        assert 1 <= current.good <= most
