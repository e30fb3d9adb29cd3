"""The election: one acts, whatever happens to requests, clocks and processes."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from coordinator.dev.apiserver.server import ApiServer, write_kubeconfig
from coordinator.dev.fake_kube import FakeKube
from coordinator.dev.trial.waiting import eventually
from coordinator.kube.config import load_config
from coordinator.kube.http import HttpKube
from coordinator.kube.interface import LEASES, Conflict, Kube, Unreachable
from coordinator.kube.leader import LOCK_NAME, Leader, Rival, Timing, claim
from tests.kit.delegating_kube import Call, DelegatingKube
from tests.kit.proxy import Proxy

START = datetime(2026, 1, 1, tzinfo=UTC)


class Time:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s

    def now(self) -> datetime:
        return START + timedelta(seconds=self.s)


class Unsteady(DelegatingKube):
    """A view of a shared server where a call may be lost on the way there, or its answer on the way back."""

    def __init__(self, shared: FakeKube, time: Time) -> None:
        super().__init__(shared)
        self.time = time
        self.lose_request_s: float | None = None
        self.lose_answer_s: float | None = None

    def through(self, call: Call) -> Any:
        assert call.verb != "patch", "the election does not patch: a merge would hide a lost race"
        if self.lose_request_s is not None:
            self.time.s += self.lose_request_s
            raise Unreachable("timed out")
        answer = super().through(call)
        if self.lose_answer_s is not None:
            self.time.s += self.lose_answer_s
            raise Unreachable("timed out")
        return answer


def a_leader(kube: Kube, time: Time, name: str) -> Leader:
    return Leader(kube, name, "kserve", clock=time, now=time.now, timing=Timing(rng=random.Random(0)))


def lease_of(kube: Kube) -> Mapping[str, Any]:
    spec: Mapping[str, Any] = kube.get(LEASES, LOCK_NAME, namespace="kserve")["spec"]
    return spec


def test_the_first_to_ask_leads_and_the_second_waits() -> None:
    kube, time = FakeKube(), Time()
    first, second = a_leader(kube, time, "first"), a_leader(kube, time, "second")
    first.step()
    second.step()
    assert (first.leading, second.leading) == (True, False)
    assert lease_of(kube) == {
        "holderIdentity": "first",
        "leaseDurationSeconds": 15,
        "acquireTime": "2026-01-01T00:00:00.000000Z",
        "renewTime": "2026-01-01T00:00:00.000000Z",
        "leaseTransitions": 0,
    }


def test_a_leader_that_renews_keeps_the_lead_and_when_it_took_it() -> None:
    kube, time = FakeKube(), Time()
    first, second = a_leader(kube, time, "first"), a_leader(kube, time, "second")
    for _ in range(30):
        first.step()
        second.step()
        time.s += 2
    assert (first.leading, second.leading) == (True, False)
    assert lease_of(kube)["acquireTime"] == "2026-01-01T00:00:00.000000Z"
    assert lease_of(kube)["renewTime"] == "2026-01-01T00:00:58.000000Z"


def test_a_leader_that_cannot_renew_stops_five_seconds_before_anybody_else_may_start() -> None:
    kube, time = FakeKube(), Time()
    first, second = a_leader(kube, time, "first"), a_leader(kube, time, "second")
    first.step()
    second.step()
    seen = {}
    for time.s in (9.9, 10.0, 15.0, 15.1):
        if time.s >= 15:
            second.step()
        seen[time.s] = (first.leading, second.leading)
    assert seen == {9.9: (True, False), 10.0: (False, False), 15.0: (False, False), 15.1: (False, True)}
    assert (lease_of(kube)["holderIdentity"], lease_of(kube)["leaseTransitions"]) == ("second", 1)


def test_the_deadline_counts_from_before_the_request_was_sent() -> None:
    time = Time()
    kube = Unsteady(FakeKube(), time)
    leader = a_leader(kube, time, "first")
    leader.step()
    time.s, kube.lose_answer_s = 8.0, 5.0
    leader.step()  # the renewal arrived, but nobody here knows
    assert (time.s, leader.leading, leader.failure) == (13.0, False, "timed out")


def test_an_answer_that_was_lost_is_looked_up_and_the_lead_goes_on() -> None:
    time = Time()
    kube = Unsteady(FakeKube(), time)
    leader = a_leader(kube, time, "first")
    leader.step()
    kube.lose_answer_s = 1.0
    leader.step()
    kube.lose_answer_s = None
    leader.step()
    assert (leader.leading, leader.failure) == (True, None)


def test_released_means_that_the_next_leads_at_once() -> None:
    kube, time = FakeKube(), Time()
    first, second = a_leader(kube, time, "first"), a_leader(kube, time, "second")
    first.step()
    second.step()
    first.release()
    assert not first.leading
    assert lease_of(kube)["holderIdentity"] == ""
    second.step()
    assert second.leading


def test_release_without_the_lead_leaves_the_lease_alone() -> None:
    kube, time = FakeKube(), Time()
    first, second = a_leader(kube, time, "first"), a_leader(kube, time, "second")
    first.step()
    second.step()
    second.release()
    assert lease_of(kube)["holderIdentity"] == "first"


def test_a_lost_race_is_not_a_failure() -> None:
    kube, time = FakeKube(), Time()
    first = a_leader(kube, time, "first")
    first.step()
    kube.patch(LEASES, LOCK_NAME, {"spec": {"holderIdentity": "thief"}}, namespace="kserve")
    first.step()
    first.step()
    assert (first.leading, first.failure) == (False, None)
    assert lease_of(kube)["holderIdentity"] == "thief"


def test_changes_are_told_once_each() -> None:
    kube, time = FakeKube(), Time()
    told: list[bool] = []
    leader = Leader(kube, "a", "kserve", clock=time, now=time.now, changed=told.append)
    leader.step()
    leader.step()
    kube.fail(Unreachable("away"))
    time.s = 11
    leader.step()
    leader.step()
    kube.fail(None)
    leader.step()
    leader.release()
    assert told == [True, False, True, False]


@pytest.mark.parametrize("error", [Unreachable("refused"), Conflict("late"), RuntimeError("a bug"), OSError("socket")])
def test_no_exception_ends_the_election(error: Exception) -> None:
    kube, time = FakeKube(), Time()
    leader = a_leader(kube, time, "a")
    kube.failing = error  # type: ignore[assignment]  # what the seam rules out
    leader.step()
    kube.fail(None)
    leader.step()
    assert leader.leading


RIVALS: dict[str, tuple[Mapping[str, Any], float, bool]] = {
    "is ours": ({"holderIdentity": "me", "leaseDurationSeconds": 15}, 0.0, True),
    "was released": ({"holderIdentity": "", "leaseDurationSeconds": 1}, 0.0, True),
    "never had a holder": ({}, 0.0, True),
    "was just seen": ({"holderIdentity": "you", "leaseDurationSeconds": 15}, 0.0, False),
    "has not run out": ({"holderIdentity": "you", "leaseDurationSeconds": 15}, 15.0, False),
    "has run out": ({"holderIdentity": "you", "leaseDurationSeconds": 15}, 15.1, True),
    "lasts longer than ours": ({"holderIdentity": "you", "leaseDurationSeconds": 60}, 30.0, False),
    "says no duration, and ours has passed": ({"holderIdentity": "you"}, 15.1, True),
    "says nonsense, and ours has not passed": ({"holderIdentity": "you", "leaseDurationSeconds": "x"}, 14.0, False),
}


@pytest.mark.parametrize("case", RIVALS)
def test_a_lease_may_be_taken_when_it(case: str) -> None:
    spec, unchanged_s, expected = RIVALS[case]
    rival = Rival()
    rival.may_take({"spec": spec}, "me", 15.0, 100.0)
    assert rival.may_take({"spec": spec}, "me", 15.0, 100.0 + unchanged_s) is expected


def test_a_lease_says_no_less_than_it_lasts() -> None:
    assert [claim(None, "me", lasts_s, START)["leaseDurationSeconds"] for lasts_s in (0.5, 1.4, 15.0)] == [1, 2, 15]


def test_a_wall_clock_that_is_hours_off_does_not_matter() -> None:
    kube, time = FakeKube(), Time()
    first = Leader(kube, "first", "kserve", clock=time, now=lambda: START - timedelta(hours=5))
    second = Leader(kube, "second", "kserve", clock=time, now=lambda: START + timedelta(hours=5))
    for _ in range(20):
        first.step()
        second.step()
        time.s += 2
    assert (first.leading, second.leading) == (True, False)


def test_taking_over_counts_a_transition_and_a_fresh_acquire_time() -> None:
    theirs = {"spec": {"holderIdentity": "you", "leaseTransitions": 4, "acquireTime": "2025-01-01T00:00:00.000000Z"}}
    spec = claim(theirs, "me", 15.0, START)
    assert (spec["leaseTransitions"], spec["acquireTime"]) == (5, "2026-01-01T00:00:00.000000Z")


@pytest.mark.parametrize("seed", range(20))
def test_never_two_at_once_whatever_is_lost(seed: int) -> None:
    rng, shared, time = random.Random(seed), FakeKube(), Time()
    views = [Unsteady(shared, time) for _ in range(3)]
    leaders = [a_leader(view, time, f"leader-{index}") for index, view in enumerate(views)]
    led: set[str] = set()
    for _ in range(400):
        index = rng.randrange(3)
        view, leader = views[index], leaders[index]
        fate = rng.random()
        view.lose_request_s = rng.uniform(0, 5) if fate < 0.2 else None
        view.lose_answer_s = rng.uniform(0, 5) if 0.2 <= fate < 0.4 else None
        leader.step()
        for _ in range(4):
            time.s += rng.uniform(0, 1.5)
            leading = [each.identity for each in leaders if each.leading]
            assert len(leading) <= 1
            led.update(leading)
    assert len(led) > 1


def connect(url: str, folder: Path, name: str, timeout_s: float) -> HttpKube:
    write_kubeconfig(folder / name, url)
    return HttpKube(load_config(str(folder / name)), timeout_s=timeout_s)


@pytest.mark.slow
def test_over_real_sockets_a_leader_whose_api_hangs_stops_before_the_other_starts(tmp_path: Path) -> None:
    timing = Timing(lease_s=2.0, renew_deadline_s=1.0, retry_s=0.1)
    with ApiServer() as server, Proxy(int(server.url.rpartition(":")[2])) as proxy:
        kubes = [connect(proxy.url, tmp_path, "a", 0.5), connect(server.url, tmp_path, "b", 0.5)]
        first, second = (Leader(kube, name, "default", timing=timing) for kube, name in zip(kubes, "ab", strict=True))
        first.start()
        eventually(lambda: first.leading, timeout_s=10, every_s=0.01)
        second.start()
        eventually(lambda: not second.leading and second.failure is None, timeout_s=10, every_s=0.01)
        proxy.freeze()
        both: list[tuple[bool, bool]] = []

        def taken_over() -> bool:
            both.append((first.leading, second.leading))
            return second.leading

        eventually(taken_over, timeout_s=15, every_s=0.01)
        assert (True, True) not in both
        assert (False, False) in both
        proxy.thaw()
        eventually(lambda: first.failure is None, timeout_s=10, every_s=0.01)
        assert (first.leading, second.leading) == (False, True)
        second.release()
        eventually(lambda: first.leading, timeout_s=10, every_s=0.01)
        first.release()
        for kube in kubes:
            kube.close()
