"""Keeps every wanted source resolved: in threads, again before it expires, again with patience when it fails.

                  want ──► due? ──► worker: credentials, then actors.sources.resolve.resolve
                    ▲                  │
      not before    │   failed         │ resolved
      `retry_at`    └──────────────────┴──────► until 3/4 of its life, or an agent rejects it

Level-triggered: `want` takes the whole set at every tick, and only there something starts. Nothing here is truth: a
coordinator that restarts resolves again, to the same commit, because the caller gives it as `pinned_revision`.
A failure that only a person can end is asked about slowly, but credentials that change end the wait.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol
from urllib.parse import urlsplit

from actors.errors import Failure, LocalModelError
from actors.manifest import ModelSource, Resolved
from actors.retry import doubled
from actors.service import Service
from actors.sources import resolve as source
from actors.sources.bounds import limits_of
from actors.sources.resolve import SourceOptions
from coordinator.api.resources import StatusKey
from coordinator.control.turns import Turn, Turns
from coordinator.plan.plan import Want
from coordinator.plan.snapshot import Credentials, Resolution

FIRST_RETRY_S = 2.0
SLOWEST_RETRY_S = 300.0
JITTER = 0.2
ASKED_PAUSE_S = 5.0
"""However often somebody asks for another attempt, there is none sooner after the last one."""
CREDENTIALS_LOOK_S = 20.0
"""While a permanent failure waits, its credentials are read this often."""
REFRESH_AT = 0.75
"""The share of a resolution's life after which it is renewed."""
REJECTED_AT_ONCE = 5
REJECTED_PAUSE_S = 10.0
"""After so many resolutions in a row that served nobody for long, the next is made no sooner than after this."""
SHARED_FOR_S = 60.0
"""Two caches that want the same with the same credentials within this time cause one question."""

OVERDUE_S = 60.0
"""A resolution bounds itself (`sources.bounds`). One that is not back so long after is given up: its thread hangs."""
MOST_LOST = 8
"""So many threads that hang are replaced."""

LoadOptions = Callable[[Credentials], SourceOptions]
"""Runs in a worker, so that it may ask Kubernetes. Raises LocalModelError."""


class Resolve(Protocol):
    """`actors.sources.resolve.resolve`."""

    def __call__(
        self, source: ModelSource, options: SourceOptions, *, pinned_revision: str | None = None
    ) -> Resolved: ...


class Resolver:
    """Any thread may call anything. `changed` is called, from a worker, whenever an attempt has ended.

    `asked` hears of every question put to a source: `ok`, or the reason why it has no answer.
    """

    def __init__(
        self,
        resolve: Resolve = source.resolve,
        *,
        workers: int = 8,
        asked: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
        overdue_s: float | None = None,
    ) -> None:
        """`overdue_s`: how long an attempt may take before its thread is given up."""
        self.changed: Callable[[], None] = lambda: None
        self._resolve = resolve
        self._asked = asked
        self._clock = clock
        self._rng = rng or random.Random()
        self._lock = threading.Lock()
        self._entries: dict[StatusKey, _Entry] = {}
        self._answers: dict[tuple[ModelSource, str | None, str], _Answer] = {}
        self._overdue_s = limits_of(os.environ).longest_s + OVERDUE_S if overdue_s is None else overdue_s
        self._turns: Turns[_Job] = Turns(workers, time.monotonic)
        self._closing = threading.Event()
        # Daemons, because a source may take its whole timeout to answer and must not hold up the end of the process.
        self._workers = [Service(f"resolver-{number}", self._work, self._closing) for number in range(workers)]

    def want(self, wants: Mapping[StatusKey, Want], load_options: LoadOptions) -> None:
        """From now on exactly these are kept resolved; what is due is started. Never blocks. Call it every tick."""
        for worker in self._workers:
            worker.start()  # does nothing for one that runs
        now = self._clock()
        self._give_up_overdue(now)
        with self._lock:
            self._entries = {key: _successor(self._entries.get(key), want) for key, want in wants.items()}
            for key, entry in self._entries.items():
                if entry.due(now):
                    entry.in_flight = True
                    author = key.rpartition("/")[0]
                    job = _Job(entry, entry.want, load_options)
                    self._turns.offer(job, author, _place(entry.want), entry.attempt)
            self._answers = {name: answer for name, answer in self._answers.items() if answer.kept(now)}

    def resolutions(self) -> Mapping[StatusKey, Resolution]:
        """The latest of everything in the last `want`; an expired `Resolved` is not part of it.

        Both fields may be set: renewing failed, the last one is still good. `attempt` counts attempts since something
        useful came back; `retry_at` is when the next may start.
        """
        now = self._clock()
        with self._lock:
            return {key: entry.resolution(now) for key, entry in self._entries.items()}

    def close(self, timeout_s: float = 0.0) -> None:
        """Nothing more is started. Waits up to `timeout_s` for what is under way."""
        self._closing.set()
        self._turns.close()
        deadline = time.monotonic() + timeout_s
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))

    def _work(self) -> None:
        while (turn := self._turns.take()) is not None:
            try:
                asked = self._attempt(turn)
            finally:
                self._turns.done(turn)
            if asked:
                self.changed()
            if turn.lost:  # another has taken its place
                return

    def _give_up_overdue(self, now: float) -> None:
        """What hangs has failed; another thread does the work of its own."""
        for turn in self._turns.overdue(self._overdue_s, MOST_LOST):
            job = turn.job
            uri = source.redact(job.want.source.uri)
            message = f"{uri} could not be listed within {self._overdue_s:.0f} s: whoever reads it does not come back"
            with self._lock:
                if job.question is not None:
                    self._answers.pop(job.question, None)
                job.entry.finish(Failure("ListingTooSlow", message), job.fingerprint, now, self._rng)
            number = len(self._workers)
            self._workers.append(Service(f"resolver-{number}", self._work, self._closing))
            self._workers[-1].start()
            self._asked("ListingTooSlow")

    def _attempt(self, turn: Turn[_Job]) -> bool:
        """Whether the source was asked: not if only a person can help, and the credentials are what they were."""
        entry, want, load_options = turn.job.entry, turn.job.want, turn.job.load_options
        outcome: Resolved | Failure | None = None
        options = SourceOptions()
        try:
            options = load_options(want.credentials)
            fingerprint = options.fingerprint
        except Exception as error:  # noqa: BLE001  # as below
            outcome = _failure(error)
            fingerprint = str(outcome)
        turn.job.fingerprint = fingerprint
        with self._lock:
            if entry.waits(self._clock()) and entry.fingerprint == fingerprint:
                entry.looked(self._clock())
                return False
            entry.heeded = want.retry
        try:
            if want.refresh not in ("", entry.refreshed):
                newer = outcome or self._newer(turn.job, options)
                if self._refreshed(turn, newer):
                    return True
                outcome = outcome or (newer if isinstance(newer, Resolved) else None)
            outcome = outcome or self._ask(turn.job, options)
        except Exception as error:  # noqa: BLE001  # a bug in the reader of one source must not end the worker for all
            outcome = _failure(error)
        with self._lock:
            if turn.lost:
                return False
            entry.in_flight = False  # whatever happens below: what is never asked again would never be resolved
            entry.finish(outcome, fingerprint, self._clock(), self._rng)
        self._asked(outcome.reason if isinstance(outcome, Failure) else "ok")
        return True

    def _refreshed(self, turn: Turn[_Job], newer: Resolved | Failure) -> bool:
        """Whether nothing else is to be asked: a question for a newer version, in vain, changes nothing."""
        entry, failure = turn.job.entry, newer if isinstance(newer, Failure) else None
        with self._lock:
            entry.refreshed, entry.refresh_failure = turn.job.want.refresh, failure
            if failure is None or entry.resolved is None or turn.lost:
                return False
            entry.in_flight = False
        self._asked(failure.reason)
        return True

    def _newer(self, job: _Job, options: SourceOptions) -> Resolved | Failure:
        """The answer of the source for now, whatever commit it had; or why it has none, which changes nothing."""
        try:
            return self._ask(replace(job, want=replace(job.want, pinned_revision=None)), options)
        except Exception as error:  # noqa: BLE001  # a bug in a reader is a failure of this one question
            return _failure(error)

    def _ask(self, job: _Job, options: SourceOptions) -> Resolved:
        """A fresh answer, or the one that somebody else with the same question has just been given."""
        want = job.want
        newer = want.refresh if want.pinned_revision is None else ""
        job.question = name = (want.source, want.pinned_revision, options.fingerprint + newer)
        with self._lock:
            answer = self._answers.setdefault(name, _Answer())
        with answer.lock:
            known = answer.resolved
            if known is None or not answer.fresh(self._clock()) or known.name in want.reject:
                known = self._resolve(want.source, options, pinned_revision=want.pinned_revision)
                answer.resolved, answer.at = known, self._clock()
            return known


@dataclass(slots=True)
class _Job:
    """One attempt. `question` and `fingerprint` are known once it has begun."""

    entry: _Entry
    want: Want
    load_options: LoadOptions
    fingerprint: str = ""
    question: tuple[ModelSource, str | None, str] | None = None


@dataclass(slots=True)
class _Answer:
    """The answer to one question, for whoever asks the same. `lock` is held while it is asked."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    resolved: Resolved | None = None
    at: float = 0.0

    def kept(self, now: float) -> bool:
        return self.lock.locked() or now < self.at + SHARED_FOR_S

    def fresh(self, now: float) -> bool:
        return now < self.at + SHARED_FOR_S and not _to_be_renewed(self.resolved, self.at, now)


@dataclass(slots=True)
class _Entry:
    """One want and what came of it. Guarded by the resolver's lock. `fingerprint` is of the last attempt's options."""

    want: Want
    resolved: Resolved | None = None
    resolved_at: float = 0.0
    failure: Failure | None = None
    fingerprint: str = ""
    attempt: int = 0
    failed_at: float = 0.0
    failing_since: float | None = None
    retry_at: float | None = None
    look_at: float | None = None
    in_flight: bool = False
    refreshed: str = ""
    """The last question for a newer version that was asked."""
    refresh_failure: Failure | None = None
    heeded: str = ""
    """The request to ask again that the last attempt came after."""
    rejected_soon: int = 0
    """So many resolutions in a row were rejected almost at once: it may be that what they are signed with is denied."""

    @property
    def rejected(self) -> bool:
        return self.resolved is not None and self.resolved.name in self.want.reject

    def due(self, now: float) -> bool:
        if self.in_flight:
            return False
        if self.waits(now):
            return self.look_at is not None and now >= self.look_at
        if self.resolved is None or self.failure is not None or self.want.refresh not in ("", self.refreshed):
            return True
        if self.rejected:
            pause_s = REJECTED_PAUSE_S if self.rejected_soon >= REJECTED_AT_ONCE else 0.0
            return not self.resolved_at <= now < self.resolved_at + pause_s
        return _to_be_renewed(self.resolved, self.resolved_at, now)

    def waits(self, now: float) -> bool:
        """Not on after the clock was set back: the wait could last for as long as the clock had been wrong."""
        if self.retry_at is None:
            return False
        until = self.retry_at
        if self.want.retry != self.heeded:
            asked_for = self.failure.retry_after_s if self.failure is not None else None
            until = min(until, self.failed_at + max(ASKED_PAUSE_S, asked_for or 0.0))
        return self.failed_at <= now < until

    def looked(self, now: float) -> None:
        """The credentials are what they were."""
        self.in_flight = False
        self.look_at = now + CREDENTIALS_LOOK_S

    def finish(self, outcome: Resolved | Failure, fingerprint: str, now: float, rng: random.Random) -> None:
        """A failure, or an answer that is no better than what was rejected, makes the next attempt wait."""
        self.in_flight, self.fingerprint = False, fingerprint
        if isinstance(outcome, Failure):
            self.failure = outcome
            self.failing_since = now if self.failing_since is None else self.failing_since
        else:
            soon = self.rejected and now - self.resolved_at < 2 * REJECTED_PAUSE_S
            self.rejected_soon = self.rejected_soon + 1 if soon else 0
            self.resolved, self.resolved_at, self.failure, self.failing_since = outcome, now, None, None
            if outcome.name not in self.want.reject and (outcome.expires_at is None or outcome.expires_at > now):
                self.attempt, self.retry_at, self.look_at = 0, None, None
                return
        self.attempt += 1
        self.failed_at = now
        self.retry_at = now + retry_delay_s(self.failure, self.attempt, rng)
        self.look_at = now + CREDENTIALS_LOOK_S if self.failure and not self.failure.retryable else None

    def resolution(self, now: float) -> Resolution:
        resolved = self.resolved
        expired = resolved is not None and resolved.expires_at is not None and resolved.expires_at <= now
        # It is looked at again all the same, at the slowest pace; but nobody should wait for that.
        retry_at = None if self.failure is not None and self.failure.final else self.retry_at
        return Resolution(
            None if expired else resolved,
            self.failure,
            retry_at,
            self.attempt,
            self.failing_since,
            self.refreshed,
            self.refresh_failure,
        )


def _to_be_renewed(resolved: Resolved | None, at: float, now: float) -> bool:
    """Whether most of the life that it had `at` its resolution is over."""
    expires_at = resolved.expires_at if resolved is not None else None
    return expires_at is not None and now >= at + REFRESH_AT * (expires_at - at)


def _place(want: Want) -> tuple[object, ...]:
    """The origin that is asked, as far as it is known before credentials are read: they name a store's endpoint."""
    try:
        parts = urlsplit(want.source.uri)
    except ValueError:
        return ("",)
    if parts.scheme in ("http", "https", "oci"):
        return (parts.hostname, parts.netloc.rpartition(":")[2])
    return parts.scheme, want.credentials


def _failure(error: Exception) -> Failure:
    if isinstance(error, LocalModelError):
        return error.failure()
    return Failure("ResolveFailed", f"{type(error).__name__}: {error}")


def retry_delay_s(failure: Failure | None, attempt: int, rng: random.Random) -> float:
    """Seconds until the next attempt: doubling from FIRST_RETRY_S, jittered; the slowest if trying again cannot help.

    Never less than the origin asked for. `attempt` starts at 1.
    """
    permanent = failure is not None and not failure.retryable
    delay = SLOWEST_RETRY_S if permanent else doubled(FIRST_RETRY_S, SLOWEST_RETRY_S, attempt)
    asked_for = failure.retry_after_s if failure is not None else None
    return max(delay * rng.uniform(1 - JITTER, 1 + JITTER), asked_for or 0.0)


def _successor(entry: _Entry | None, want: Want) -> _Entry:
    """The entry for `want`: the old one as long as it still answers the same question."""
    if entry is None or entry.want.source != want.source or not _same_revision(entry, want):
        return _Entry(want)
    if entry.want.credentials != want.credentials:
        return _Entry(want, entry.resolved, entry.resolved_at)
    entry.want = want
    return entry


def _same_revision(entry: _Entry, want: Want) -> bool:
    """Whether the entry is at the wanted commit. Pinning the commit that was found is not a new question."""
    answered_newer = entry.refreshed and not want.refresh and entry.resolved is not None
    if want.pinned_revision is None or (want.pinned_revision == entry.want.pinned_revision and not answered_newer):
        return True
    return entry.resolved is not None and entry.resolved.manifest.revision == want.pinned_revision
