"""What a node may ask of an origin: every fill of it asks here first."""

from __future__ import annotations

import threading

import pytest

from actors.errors import Cancelled, SourceThrottled
from actors.fill.origin_quota import NotOurTurn, Quota, Quotas
from actors.manifest import OriginName
from actors.messages import MAX_PAUSE_S, OriginReport, OriginShare
from coordinator.dev.trial.waiting import eventually

HUB, STORE = OriginName("https://hub.test"), OriginName("https://store.test")
NEVER = threading.Event()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Asking:
    """A thread with one request: under way until it is told to end."""

    def __init__(self, quota: Quota, turn_s: float | None = None) -> None:
        self.stop, self.begun, self.end = threading.Event(), threading.Event(), threading.Event()
        self.outcome: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(quota, turn_s), daemon=True)
        self._thread.start()

    def _run(self, quota: Quota, turn_s: float | None) -> None:
        try:
            with quota.request(self.stop, 60.0, turn_s):
                self.begun.set()
                self.end.wait(30)
        except (Cancelled, NotOurTurn, SourceThrottled) as error:
            self.outcome = error

    def finish(self) -> BaseException | None:
        self.end.set()
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.outcome


def a_quota(share: OriginShare | None = None, clock: Clock | None = None) -> Quota:
    quota = Quota(HUB, clock) if clock is not None else Quota(HUB)
    quota.allow(share)
    return quota


def test_where_nobody_governs_any_number_may_be_under_way() -> None:
    quota = a_quota()
    asking = [Asking(quota) for _ in range(8)]
    assert all(each.begun.wait(30) for each in asking)
    assert quota.report(0) == OriginReport(HUB, requests=8, wanted=8, granted=None)
    assert [each.finish() for each in asking] == [None] * 8
    assert quota.report(0).requests == 0


def test_no_more_are_under_way_than_the_share_and_one_begins_when_another_ends() -> None:
    quota = a_quota(OriginShare(2))
    first, second = Asking(quota), Asking(quota)
    assert first.begun.wait(30)
    assert second.begun.wait(30)
    third = Asking(quota)
    eventually(lambda: quota.report(0).wanted == 3, every_s=0.01)
    assert quota.report(0).requests == 2
    assert not third.begun.is_set()
    first.finish()
    assert third.begun.wait(30)
    assert quota.report(0).requests == 2
    second.finish()
    third.finish()


def test_a_larger_share_is_used_at_once_and_a_smaller_one_as_requests_end() -> None:
    quota = a_quota(OriginShare(0))
    asking = [Asking(quota) for _ in range(2)]
    eventually(lambda: quota.report(0).wanted == 2, every_s=0.01)
    hindrance = quota.hindrance()
    assert hindrance is not None
    assert hindrance[0].reason == "WaitingForOrigin"
    quota.allow(OriginShare(2))
    assert all(each.begun.wait(30) for each in asking)
    quota.allow(OriginShare(1))
    late = Asking(quota)
    asking[0].finish()
    eventually(lambda: quota.report(0).requests == 1, every_s=0.01)
    assert not late.begun.is_set()
    asking[1].finish()
    assert late.begun.wait(30)
    late.finish()


def test_who_can_be_waited_for_no_longer_than_a_while_does_not_wait_for_a_turn_longer_than_that() -> None:
    clock = Clock()
    quota = a_quota(OriginShare(1), clock)
    with quota.request(NEVER, 60.0):
        waiting = Asking(quota, turn_s=5.0)
        eventually(lambda: quota.report(0).wanted == 2, every_s=0.01)
        clock.now += 5.0
        assert isinstance(waiting.finish(), NotOurTurn)
    quota.allow(OriginShare(0))
    with pytest.raises(NotOurTurn), quota.request(NEVER, 60.0, turn_s=5.0):
        pass
    assert quota.report(0).wanted == 0


def test_who_waits_ends_soon_after_he_is_told_to() -> None:
    quota = a_quota(OriginShare(0))
    asking = Asking(quota)
    asking.stop.set()
    assert isinstance(asking.finish(), Cancelled)
    assert quota.report(0).wanted == 0


def test_a_pause_is_waited_for_and_one_that_is_too_long_is_an_error() -> None:
    clock = Clock()
    quota = a_quota(OriginShare(4), clock)
    quota.quiet(50)
    asking = Asking(quota)
    eventually(lambda: quota.report(0).wanted == 1, every_s=0.01)
    assert not asking.begun.is_set()
    clock.now += 51
    assert asking.begun.wait(30)
    asking.finish()
    quota.quiet(90)
    with pytest.raises(SourceThrottled, match="of which 90s are left") as raised, quota.request(NEVER, 60.0):
        pass
    assert raised.value.retry_after_s == 90


def test_a_pause_that_is_told_again_is_not_prolonged() -> None:
    clock = Clock()
    quota = a_quota(OriginShare(1, pause="first", pause_s=10), clock)
    clock.now += 4
    quota.allow(OriginShare(2, pause="first", pause_s=10))
    assert quota.pause_s == 6
    clock.now += 6
    quota.allow(OriginShare(2, pause="first", pause_s=10))
    assert quota.pause_s == 0
    quota.allow(OriginShare(2, pause="second", pause_s=5))
    assert quota.pause_s == 5


@pytest.mark.parametrize(
    ("said", "heeded"), [(1e16, MAX_PAUSE_S), (float("inf"), MAX_PAUSE_S), (-5.0, 0.0), (float("nan"), 0.0)]
)
def test_no_pause_is_longer_than_an_hour_whoever_speaks_of_it(said: float, heeded: float) -> None:
    clock = Clock()
    assert a_quota(OriginShare(1, pause="told", pause_s=said), clock).pause_s == heeded
    quota = a_quota(OriginShare(1), clock)
    quota.quiet(said)
    assert (quota.pause_s, quota.report(0).pause_s) == (heeded, heeded)


def test_only_the_pause_that_the_origin_asked_for_is_reported() -> None:
    clock = Clock()
    quota = a_quota(OriginShare(1, pause="told", pause_s=30), clock)
    assert quota.report(0).pause_s == 0
    quota.quiet(7)
    assert quota.report(0).pause_s == 7
    assert quota.pause_s == 30


def test_bytes_go_at_the_rate_of_the_share() -> None:
    clock = Clock()
    quota = a_quota(OriginShare(1, bytes_per_s=100.0), clock)
    assert quota.arrived(50) == 0.5
    assert quota.arrived(50) == 1.0
    quota.allow(OriginShare(1))
    assert quota.arrived(1 << 30) == 0.0


def test_an_origin_that_a_governed_node_was_not_told_of_is_not_read() -> None:
    quotas = Quotas()
    quotas.want("a fill", frozenset({HUB, STORE}), 4)
    assert quotas.allowance([HUB, STORE]) is None
    quotas.allow({HUB: OriginShare(3)})
    assert [(each.origin, each.wanted, each.granted) for each in quotas.report()] == [(HUB, 4, 3), (STORE, 4, 0)]
    assert (quotas.allowance([HUB]), quotas.allowance([HUB, STORE])) == (3, 0)
    quotas.allow(None)
    assert quotas.allowance([HUB, STORE]) is None


def test_what_fills_want_adds_up_and_an_origin_that_nobody_reads_is_forgotten() -> None:
    quotas = Quotas()
    quotas.want("one", frozenset({HUB}), 8)
    quotas.want("other", frozenset({HUB}), 2)
    quotas.want("one", frozenset({HUB}), 4)
    assert [each.wanted for each in quotas.report()] == [6]
    quotas.want("one", frozenset(), 0)
    quotas.want("other", frozenset(), 0)
    assert quotas.report() == ()
    quotas.allow({HUB: OriginShare(1)})
    assert quotas.report() == (OriginReport(HUB, granted=1),)


def test_a_pause_of_all_is_one_that_is_left_of_each() -> None:
    clock = Clock()
    quotas = Quotas(clock)
    quotas.of(HUB).quiet(10)
    assert quotas.pause_s([HUB]) == 10
    assert quotas.pause_s([HUB, STORE]) == 0
    quotas.of(STORE).quiet(4)
    assert quotas.pause_s([HUB, STORE]) == 4
    assert quotas.pause_s([]) == 0
