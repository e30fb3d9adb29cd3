"""The resolver in time: when it asks, when it waits, what it shows meanwhile. Time is a number the tests set."""

from __future__ import annotations

import itertools
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from actors.errors import Failure, SourceDenied, SourceError, SourceNotFound, SourceThrottled, SourceUnsupported
from actors.manifest import Location, Manifest, ManifestFile, ModelSource, Resolved
from actors.sources.resolve import SourceOptions
from coordinator.api.resources import StatusKey
from coordinator.control.resolver import (
    ASKED_PAUSE_S,
    CREDENTIALS_LOOK_S,
    REJECTED_AT_ONCE,
    REJECTED_PAUSE_S,
    SHARED_FOR_S,
    Resolver,
    retry_delay_s,
)
from coordinator.dev.origin.repository import Repository
from coordinator.dev.origin.sample import write_sample
from coordinator.dev.origin.server import Origin
from coordinator.plan.plan import Want
from coordinator.plan.snapshot import Credentials, Resolution

LLAMA, OTHER = StatusKey("llama"), StatusKey("team/llama")
SOURCE = ModelSource("hf://owner/llama")


class Even(random.Random):
    """No jitter."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


class World:
    """A resolver, its clock, and the source it asks: `answer` makes the next answers, `loaded` the credentials."""

    def __init__(self) -> None:
        self.now = 0.0
        self.answer: Callable[[str | None], Resolved] = lambda pinned: resolved()
        self.loaded: Callable[[Credentials], SourceOptions] = lambda credentials: SourceOptions()
        self.asked: list[ModelSource] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self._ended: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._looked: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.resolver = Resolver(self._resolve, workers=2, clock=lambda: self.now, rng=Even())
        self.resolver.changed = lambda: self._ended.put(None)

    def _resolve(self, source: ModelSource, options: SourceOptions, *, pinned_revision: str | None = None) -> Resolved:
        self.asked.append(source)
        assert self.may_answer.wait(5)
        return self.answer(pinned_revision)

    def _load(self, credentials: Credentials) -> SourceOptions:
        self._looked.put(None)
        return self.loaded(credentials)

    def want(self, *wants: Want, at: float | None = None, ends: int = 0) -> Mapping[StatusKey, Resolution]:
        """Tick until `ends` attempts have come to an end, at least once. `wants` are of LLAMA, then of OTHER."""
        self.now = self.now if at is None else at
        wanted = dict(zip((LLAMA, OTHER), wants, strict=False))
        self.resolver.want(wanted, self._load)
        deadline = time.monotonic() + 5
        while ends:
            try:
                self._ended.get(timeout=0.05)
                ends -= 1
            except queue.Empty:
                assert time.monotonic() < deadline, "no attempt came to an end"
                self.resolver.want(wanted, self._load)
        return self.resolver.resolutions()

    def end(self) -> Resolution:
        self._ended.get(timeout=5)
        return self.resolver.resolutions()[LLAMA]

    def await_look(self) -> None:
        """The credentials have been read once more."""
        self._looked.get(timeout=5)


@pytest.fixture
def world() -> Iterator[World]:
    before = {*threading.enumerate()}
    made = World()
    yield made
    made.may_answer.set()
    made.resolver.close(timeout_s=5)
    assert not [each for each in {*threading.enumerate()} - before if each.name.startswith("resolver-")]


def resolved(version: str = "v1", *, commit: str = "c1", expires_at: float | None = None) -> Resolved:
    manifest = Manifest(SOURCE, commit, (ManifestFile("config.json", 2),))
    return Resolved(manifest, (Location(f"https://hub/config.json?{version}"),), expires_at)


def want(**fields: object) -> Want:
    return Want(**({"source": SOURCE, "credentials": Credentials()} | fields))  # type: ignore[arg-type]  # shorter tests


def failing(error: Exception) -> Callable[[str | None], Resolved]:
    def answer(pinned: str | None) -> Resolved:
        raise error

    return answer


def test_a_wanted_source_is_resolved_in_the_background(world: World) -> None:
    world.may_answer.clear()
    assert world.want(want()) == {LLAMA: Resolution()}
    assert world.want(want()) == {LLAMA: Resolution()}
    world.may_answer.set()
    assert world.end() == Resolution(resolved())
    assert world.want(want(), at=1e9) == {LLAMA: Resolution(resolved())}
    assert len(world.asked) == 1


def test_what_is_no_longer_wanted_is_forgotten(world: World) -> None:
    world.want(want(), ends=1)
    assert world.want() == {}
    world.want(want(), at=SHARED_FOR_S, ends=1)
    assert len(world.asked) == 2


def test_an_answer_to_a_want_that_has_gone_is_dropped(world: World) -> None:
    world.may_answer.clear()
    world.want(want())
    assert world.want() == {}
    world.may_answer.set()
    world._ended.get(timeout=5)
    assert world.resolver.resolutions() == {}


def test_a_failure_is_retried_with_growing_patience_until_it_succeeds(world: World) -> None:
    world.answer = failing(SourceError("connection reset"))
    failure = Failure("SourceError", "connection reset")
    assert world.want(want(), at=0, ends=1) == {
        LLAMA: Resolution(None, failure, retry_at=2, attempt=1, failing_since=0)
    }
    assert world.want(want(), at=1.9) == {LLAMA: Resolution(None, failure, retry_at=2, attempt=1, failing_since=0)}
    assert world.want(want(), at=2, ends=1) == {
        LLAMA: Resolution(None, failure, retry_at=6, attempt=2, failing_since=0)
    }
    assert world.want(want(), at=6, ends=1) == {
        LLAMA: Resolution(None, failure, retry_at=14, attempt=3, failing_since=0)
    }
    world.answer = lambda pinned: resolved()
    assert world.want(want(), at=14, ends=1) == {LLAMA: Resolution(resolved())}


@pytest.mark.parametrize(
    ("failure", "attempt", "least", "most"),
    [
        pytest.param(None, 1, 1.6, 2.4, id="the first retry is soon"),
        pytest.param(Failure("X", ""), 4, 12.8, 19.2, id="then it doubles"),
        pytest.param(Failure("X", ""), 1000, 240, 360, id="up to some minutes"),
        pytest.param(Failure("X", "", retryable=False), 1, 240, 360, id="what is permanent waits long at once"),
        pytest.param(Failure("X", "", retry_after_s=77), 1, 77, 77, id="the origin's own time is kept"),
        pytest.param(Failure("X", "", retry_after_s=1), 4, 12.8, 19.2, id="but does not shorten"),
    ],
)
def test_how_long_a_retry_waits(failure: Failure | None, attempt: int, least: float, most: float) -> None:
    delays = [retry_delay_s(failure, attempt, random.Random(seed)) for seed in range(50)]
    assert least <= min(delays)
    assert max(delays) <= most
    assert (least == most) == (len(set(delays)) == 1)


@pytest.mark.parametrize("reason", ["InvalidURI", "PackageMissing", "SchemeNotAllowed"])
def test_nobody_is_told_to_wait_for_what_will_not_change(world: World, reason: str) -> None:
    world.answer = failing(SourceUnsupported("no", reason=reason))
    (resolution,) = world.want(want(), ends=1).values()
    assert (resolution.failure, resolution.retry_at) == (Failure(reason, "no", retryable=False), None)
    assert world.want(want(), at=200).keys() == {LLAMA}
    assert len(world.asked) == 1


def test_the_time_a_throttling_origin_names_is_honoured(world: World) -> None:
    world.answer = failing(SourceThrottled("too many requests", retry_after_s=100))
    assert world.want(want(), at=0, ends=1)[LLAMA].retry_at == 100


def test_a_clock_that_is_set_back_does_not_stretch_a_wait(world: World) -> None:
    world.answer = failing(SourceError("connection reset"))
    world.want(want(), at=86_400, ends=1)
    world.answer = lambda pinned: resolved()
    assert world.want(want(), at=0, ends=1) == {LLAMA: Resolution(resolved())}


def test_a_permanent_failure_is_not_asked_again_while_credentials_stay_the_same(world: World) -> None:
    world.answer = failing(SourceDenied("gated"))
    denied = Resolution(
        None, Failure("SourceDenied", "gated", retryable=False), retry_at=300, attempt=1, failing_since=0
    )
    assert world.want(want(), at=0, ends=1) == {LLAMA: denied}
    world.await_look()
    assert world.want(want(), at=CREDENTIALS_LOOK_S) == {LLAMA: denied}
    world.await_look()
    world.want(want(), at=299.9)
    assert len(world.asked) == 1
    assert world.want(want(), at=300, ends=1)[LLAMA].attempt == 2


def test_credentials_that_change_end_the_wait_after_a_permanent_failure(world: World) -> None:
    world.answer = failing(SourceDenied("gated"))
    world.want(want(), at=0, ends=1)
    world.answer = lambda pinned: resolved()
    world.loaded = lambda credentials: SourceOptions({"HF_TOKEN": "new"})
    assert world.want(want(), at=CREDENTIALS_LOOK_S, ends=1) == {LLAMA: Resolution(resolved())}


def test_missing_credentials_are_a_failure_and_the_source_is_not_asked_without_them(world: World) -> None:
    def missing(credentials: Credentials) -> SourceOptions:
        raise SourceDenied("Secret ns/token does not exist", reason="CredentialsMissing")

    world.loaded = missing
    failure = Failure("CredentialsMissing", "Secret ns/token does not exist", retryable=False)
    expected = {LLAMA: Resolution(None, failure, retry_at=300, attempt=1, failing_since=0)}
    assert world.want(want(), at=0, ends=1) == expected
    world.await_look()
    assert world.want(want(), at=CREDENTIALS_LOOK_S) == expected
    world.await_look()
    assert world.asked == []
    world.loaded = lambda credentials: SourceOptions({"HF_TOKEN": "new"})
    assert world.want(want(), at=2 * CREDENTIALS_LOOK_S, ends=1) == {LLAMA: Resolution(resolved())}


def test_a_resolution_is_renewed_before_it_expires(world: World) -> None:
    world.answer = lambda pinned: resolved("v1", expires_at=1000)
    world.want(want(), at=0, ends=1)
    world.answer = lambda pinned: resolved("v2", expires_at=2000)
    assert world.want(want(), at=749)[LLAMA].resolved == resolved("v1", expires_at=1000)
    assert world.want(want(), at=750, ends=1) == {LLAMA: Resolution(resolved("v2", expires_at=2000))}


def test_when_renewing_fails_the_last_good_one_is_kept_until_it_expires(world: World) -> None:
    world.answer = lambda pinned: resolved(expires_at=1000)
    world.want(want(), at=0, ends=1)
    world.answer = failing(SourceNotFound("gone"))
    failure = Failure("SourceNotFound", "gone", retryable=False)
    kept = Resolution(resolved(expires_at=1000), failure, retry_at=1050, attempt=1, failing_since=750)
    assert world.want(want(), at=750, ends=1) == {LLAMA: kept}
    assert world.want(want(), at=999.9)[LLAMA].resolved is not None
    assert world.want(want(), at=1000)[LLAMA] == Resolution(None, failure, retry_at=1050, attempt=1, failing_since=750)


def test_what_an_agent_rejects_is_resolved_anew_and_shown_until_then(world: World) -> None:
    first = world.want(want(), ends=1)[LLAMA].resolved
    assert first is not None
    world.answer = lambda pinned: resolved("v2")
    world.may_answer.clear()
    rejecting = want(reject=frozenset({first.name}))
    assert world.want(rejecting) == {LLAMA: Resolution(first)}
    world.may_answer.set()
    assert world.end() == Resolution(resolved("v2"))
    world.want(rejecting)
    assert len(world.asked) == 2


def test_an_answer_that_is_still_the_rejected_one_is_not_asked_for_in_a_loop(world: World) -> None:
    rejecting = want(reject=frozenset({resolved().name}))
    assert world.want(rejecting, at=0, ends=1) == {LLAMA: Resolution(resolved(), None, retry_at=2, attempt=1)}
    world.want(rejecting, at=1)
    assert world.want(rejecting, at=2, ends=1)[LLAMA].retry_at == 6
    assert len(world.asked) == 2


def test_links_that_are_rejected_again_and_again_at_once_are_not_renewed_in_a_loop(world: World) -> None:
    numbers = itertools.count()
    world.answer = lambda pinned: resolved(f"v{next(numbers)}")
    known = world.want(want(), at=0, ends=1)[LLAMA].resolved
    for number in range(1, REJECTED_AT_ONCE + 1):
        assert known is not None
        known = world.want(want(reject=frozenset({known.name})), at=number, ends=1)[LLAMA].resolved
    assert known is not None
    rejecting = want(reject=frozenset({known.name}))
    world.want(rejecting, at=REJECTED_AT_ONCE + 1)
    world.want(rejecting, at=REJECTED_AT_ONCE + REJECTED_PAUSE_S - 1)
    assert len(world.asked) == REJECTED_AT_ONCE + 1
    known = world.want(rejecting, at=REJECTED_AT_ONCE + REJECTED_PAUSE_S, ends=1)[LLAMA].resolved
    assert known is not None
    assert len(world.asked) == REJECTED_AT_ONCE + 2

    after = 1000.0  # it was good for long
    known = world.want(want(reject=frozenset({known.name})), at=after, ends=1)[LLAMA].resolved
    assert known is not None
    world.want(want(reject=frozenset({known.name})), at=after + 1, ends=1)
    assert len(world.asked) == REJECTED_AT_ONCE + 4


def test_two_caches_with_one_source_and_the_same_credentials_ask_once(world: World) -> None:
    world.may_answer.clear()
    world.want(want(), want())
    world.may_answer.set()
    for _ in range(2):
        world._ended.get(timeout=5)
    assert world.resolver.resolutions() == {LLAMA: Resolution(resolved()), OTHER: Resolution(resolved())}
    assert len(world.asked) == 1


def test_two_caches_with_one_source_and_other_credentials_ask_for_themselves(world: World) -> None:
    world.loaded = lambda credentials: SourceOptions({"HF_TOKEN": credentials.service_account or ""})
    world.want(want(), want(credentials=Credentials("other")), ends=2)
    assert len(world.asked) == 2


def test_another_source_starts_from_nothing(world: World) -> None:
    world.want(want(), ends=1)
    world.may_answer.clear()
    assert world.want(want(source=ModelSource("hf://owner/llama", "v2"))) == {LLAMA: Resolution()}


def test_other_credentials_end_a_wait_but_keep_what_is_known(world: World) -> None:
    world.want(want(), ends=1)
    assert world.want(want(credentials=Credentials("other"))) == {LLAMA: Resolution(resolved())}
    world.answer = failing(SourceDenied("gated"))
    world.want(want(source=ModelSource("hf://a/b")), ends=1)
    world.answer = lambda pinned: resolved()
    after = world.want(want(source=ModelSource("hf://a/b"), credentials=Credentials("right")), ends=1)
    assert after == {LLAMA: Resolution(resolved())}


def test_pinning_the_commit_that_was_found_is_not_a_new_question_but_another_commit_is(world: World) -> None:
    world.answer = lambda pinned: resolved(commit=pinned or "c1")
    world.want(want(), ends=1)
    assert world.want(want(pinned_revision="c1")) == {LLAMA: Resolution(resolved(commit="c1"))}
    assert len(world.asked) == 1
    assert world.want(want(pinned_revision="c0"), ends=1) == {LLAMA: Resolution(resolved(commit="c0"))}


def test_a_bug_in_a_reader_is_a_failure_and_the_worker_lives_on(world: World) -> None:
    world.answer = failing(ZeroDivisionError("oops"))
    for attempt, at in ((1, 0), (2, 2), (3, 6)):
        resolution = world.want(want(), at=at, ends=1)[LLAMA]
        assert (resolution.attempt, resolution.failure) == (
            attempt,
            Failure("ResolveFailed", "ZeroDivisionError: oops"),
        )


def test_with_a_real_hub_a_token_that_arrives_later_opens_a_gated_repository(tmp_path: Path) -> None:
    write_sample(tmp_path / "sample", 100_000)
    ended: queue.SimpleQueue[None] = queue.SimpleQueue()
    now = [0.0]
    with Origin({"a/gated": Repository("a/gated", tmp_path / "sample", token="t")}) as origin:
        env = {"HF_ENDPOINT": origin.hub_endpoint}
        resolver = Resolver(clock=lambda: now[0])
        resolver.changed = lambda: ended.put(None)
        wants = {LLAMA: want(source=ModelSource("hf://a/gated"))}
        try:
            resolver.want(wants, lambda _: SourceOptions(env))
            ended.get(timeout=5)
            failure = resolver.resolutions()[LLAMA].failure
            assert failure is not None
            assert failure.reason == "SourceDenied"
            now[0] = CREDENTIALS_LOOK_S
            resolver.want(wants, lambda _: SourceOptions(env | {"HF_TOKEN": "t"}))
            ended.get(timeout=5)
            found = resolver.resolutions()[LLAMA].resolved
            assert found is not None
            assert found.manifest.total_bytes == 100_000
        finally:
            resolver.close(timeout_s=5)


# --- asked by a person ---


def test_a_request_ends_the_wait_once(world: World) -> None:
    world.answer = failing(SourceNotFound("no such repository"))
    state = world.want(want(), ends=1)[LLAMA]
    assert (state.attempt, len(world.asked)) == (1, 1)

    world.want(want(retry="one"), at=ASKED_PAUSE_S - 1)  # not in a circle, however often somebody asks
    assert len(world.asked) == 1
    state = world.want(want(retry="one"), at=ASKED_PAUSE_S, ends=1)[LLAMA]
    assert (state.attempt, len(world.asked)) == (2, 2)
    world.want(want(retry="one"), at=ASKED_PAUSE_S * 3)
    assert len(world.asked) == 2
    world.want(want(retry="two"), at=ASKED_PAUSE_S * 3, ends=1)
    assert len(world.asked) == 3


def test_a_request_does_not_come_before_the_time_that_the_origin_asked_for(world: World) -> None:
    world.answer = failing(SourceThrottled("busy", retry_after_s=60.0))
    world.want(want(), ends=1)

    world.want(want(retry="one"), at=59)
    assert len(world.asked) == 1
    world.want(want(retry="one"), at=60, ends=1)
    assert len(world.asked) == 2


def test_a_request_that_is_older_than_the_first_attempt_asks_no_second(world: World) -> None:
    world.answer = failing(SourceNotFound("no such repository"))
    world.want(want(retry="old"), ends=1)

    world.want(want(retry="old"), at=ASKED_PAUSE_S * 2)
    assert len(world.asked) == 1


# --- a question for a newer version ---


def moved(pinned: str | None) -> Resolved:
    """The branch is at c2; c1 is still there."""
    return resolved(commit="c2" if pinned is None else pinned)


def test_a_question_for_a_newer_version_is_asked_once_and_not_of_the_pinned_commit(world: World) -> None:
    assert commit(world.want(want(pinned_revision="c1"), ends=1)) == "c1"
    world.answer = moved
    found = world.want(want(pinned_revision="c1", refresh="q1"), ends=1)
    assert (commit(found), found[LLAMA].refresh, found[LLAMA].refresh_failure) == ("c2", "q1", None)
    for _ in range(3):
        world.want(want(pinned_revision="c1", refresh="q1"))
    assert len(world.asked) == 2
    assert commit(world.want(want(pinned_revision="c2"))) == "c2"
    assert len(world.asked) == 2


def test_a_question_for_a_newer_version_in_vain_changes_nothing_that_is_known(world: World) -> None:
    world.want(want(pinned_revision="c1"), ends=1)
    world.answer = failing(SourceNotFound("the branch is gone", reason="RevisionNotFound"))
    found = world.want(want(pinned_revision="c1", refresh="q1"), ends=1)[LLAMA]
    assert found.resolved == resolved()
    assert (found.failure, found.refresh) == (None, "q1")
    assert found.refresh_failure is not None
    assert found.refresh_failure.reason == "RevisionNotFound"
    world.want(want(pinned_revision="c1", refresh="q1"))
    assert len(world.asked) == 2


def test_another_resolver_asks_for_the_pinned_commit_where_the_branch_is_gone(world: World) -> None:
    def answer(pinned: str | None) -> Resolved:
        if pinned is None:
            raise SourceNotFound("the branch is gone", reason="RevisionNotFound")
        return resolved(commit=pinned)

    world.answer = answer
    found = world.want(want(pinned_revision="c1", refresh="q1"), ends=1)
    assert commit(found) == "c1"
    assert found[LLAMA].refresh_failure is not None


def test_what_a_branch_moved_to_and_is_not_to_be_had_is_not_kept(world: World) -> None:
    """As where `spec.digest` is of another: the commit that was pinned is asked for again."""
    world.want(want(pinned_revision="c1"), ends=1)
    world.answer = moved
    assert commit(world.want(want(pinned_revision="c1", refresh="q1"), ends=1)) == "c2"
    assert commit(world.want(want(pinned_revision="c1"), at=SHARED_FOR_S, ends=1)) == "c1"


def test_a_newer_version_is_not_asked_for_without_credentials(world: World) -> None:
    def load(credentials: Credentials) -> SourceOptions:
        raise SourceDenied("no Secret", reason="CredentialsNotFound")

    world.loaded = load
    found = world.want(want(pinned_revision="c1", refresh="q1"), ends=1)[LLAMA]
    assert (found.resolved, world.asked) == (None, [])
    assert found.refresh_failure is not None
    assert found.failure == found.refresh_failure


def commit(found: Mapping[StatusKey, Resolution]) -> str | None:
    answer = found[LLAMA].resolved
    return answer.manifest.revision if answer is not None else None
