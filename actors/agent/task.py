"""One model on its way to one node: attempts, one after the other, until the model is committed.

    Pending ──► Downloading ──► Verifying ──► committed: the task is over
       ▲             │              │
       └── Failed ◄──┴──────────────┘

A task decides nothing about when: the agent starts it, cancels it, and hears how an attempt ended.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from actors.agent.attempt import Attempt, Ended, Engine, Examination, Filling, Wish
from actors.agent.diff import Active
from actors.disk.reuse import Donor
from actors.disk.store import Store
from actors.errors import Failure, InsufficientStorage, LocalModelError, StoreError
from actors.fill.fill import Progress
from actors.manifest import Resolved
from actors.messages import Company, DesiredModel, ModelReport, Phase, Place
from actors.scrub.repair import Repair
from actors.transferred import Transferred
from actors.trust import UNRESTRICTED

RETRY_PAUSE_S = 5.0
"""However often somebody asks for another attempt, there is none sooner after the last one."""


class Task:
    """The agent's lock guards it."""

    def __init__(self, place: Place, model: DesiredModel, engine: Engine) -> None:
        self.place = place
        self.model = model
        self.company: Company | None = None
        self.trust = UNRESTRICTED
        self.needed_bytes = 0
        """What it asked for when it was last its turn."""
        self.lacking_bytes: int | None = None
        """By how much that was too much, if anything but waiting can help (see `ModelReport`)."""
        self.linked_bytes = 0
        """What other copies on the disk had of that when it was last its turn: it takes no space."""
        self.reserved_bytes = 0
        self._engine = engine
        self._resolved_name: str | None = None
        self._resolved: Resolved | None = None
        self._repair: Repair | None = None
        self._phase = Phase.PENDING
        self._attempts = 0
        self._failure: Failure | None = None
        self._retry_at: float | None = None
        self._failed_at = 0.0
        self._heeded = model.retry
        """The request to try again that the last attempt came after."""
        self._started_at: float | None = None
        self._thread: threading.Thread | None = None
        self._attempt: Attempt | None = None
        """The one that runs."""
        self._last: Progress | None = None
        self._moved_before = Transferred()

    @property
    def thread(self) -> threading.Thread | None:
        """What runs the present attempt; None between two."""
        return self._thread

    @property
    def allocated(self) -> bool:
        """The space reserved for it is no longer free on the disk."""
        return self._attempt is not None and self._attempt.allocated

    @property
    def lacks_space(self) -> bool:
        """It waits, because there was no room when it was its turn."""
        return self._thread is None and self._failure is not None and self._failure.reason == "InsufficientStorage"

    @property
    def repaired_in_vain(self) -> bool:
        """The last attempt was a repair, and the source no longer gave the bytes that were committed."""
        return self._repair is not None and self._failure is not None and self._failure.reason == "IntegrityError"

    def active(self, now: float) -> Active:
        waiting = self._thread is None
        # A clock that was set back ends the wait: else it could last for as long as the clock was wrong.
        due = waiting and (self._retry_at is None or not self._failed_at <= now < self._waits_until())
        return Active(self.model.source.selection, self._resolved_name, waiting, due)

    def _waits_until(self) -> float:
        """The next attempt; sooner where somebody asks for it, but not than the origin does, and never in a circle."""
        if self._retry_at is None or self.model.retry == self._heeded:
            return self._retry_at or 0.0
        asked_for = self._failure.retry_after_s if self._failure is not None else None
        return min(self._retry_at, self._failed_at + max(RETRY_PAUSE_S, asked_for or 0.0))

    # --- what the agent tells it ---

    def start(
        self,
        name: str,
        resolved: Resolved,
        store: Store,
        owner: str,
        *,
        ended: Callable[[Ended], None],
        repair: Repair | None = None,
        donors: tuple[Donor, ...] = (),
        keep: bool = False,
        hold: bool = False,
    ) -> None:
        """An attempt runs; `ended` is called from its thread. There is room on the disk for it.

        Where the process has no thread for it, the attempt is over at once, and the next one is due after a while.
        """
        self._resolved_name, self._resolved, self._repair = name, resolved, repair
        self._phase = Phase.DOWNLOADING
        self._attempts += 1
        self._started_at = self._engine.clock() if self._started_at is None else self._started_at
        wish = Wish(
            key=self.place.key,
            owner=owner,
            resolved=resolved,
            trust=self.trust,
            company=self.company,
            expected_digest=self.model.expected_digest,
            repair=repair,
            donors=donors,
            keep=keep,
            hold=hold,
            started_at=self._started_at,
            earlier=self._moved_before,
        )
        self.reserved_bytes = wish.part().manifest.peak_bytes - self.linked_bytes
        self._launch(Filling(self._engine, store, wish), ended)

    def examine(self, repair: Repair, store: Store, *, ended: Callable[[Ended], None]) -> None:
        """The files of the repair are read, to see which of them are wrong at all. Takes no space and no network."""
        self._repair, self._phase = repair, Phase.VERIFYING
        self._launch(Examination(self.place.key, store, repair), ended)

    def _launch(self, attempt: Attempt, ended: Callable[[Ended], None]) -> None:
        self._failure, self._retry_at, self._last = None, None, None
        self._heeded = self.model.retry
        self._attempt = attempt
        self._thread = threading.Thread(target=lambda: ended(attempt.run()), name=f"fill-{self.place.key}", daemon=True)
        try:
            self._thread.start()
        except (RuntimeError, MemoryError) as error:
            short = StoreError(f"the agent has no thread for it now: {error}", reason="OutOfThreads")
            self.finish(Ended(error=short))

    def want(self, model: DesiredModel) -> None:
        """This is asked for now: of the same selection, so that what runs goes on."""
        self.model = model
        if isinstance(self._attempt, Filling):
            self._attempt.wish.expected_digest = model.expected_digest
            self._attempt.wish.hold = model.hold

    def wait(self, error: LocalModelError | None = None) -> None:
        """Nothing can start now, because of `error` or for want of its turn; asked again with every step."""
        if error is not None:
            self._failure = error.failure()
            self._phase = Phase.PENDING if isinstance(error, InsufficientStorage) else Phase.FAILED
            self._retry_at = None
        elif self._retry_at is None:
            self._phase, self._failure = Phase.PENDING, None

    def renew(self, name: str, resolved: Resolved) -> None:
        """A running attempt reads on from fresh locations; if the content is another, it ends and starts over.

        Locations that could be read are not given up for such as cannot: the origin may still serve what it does not
        list.
        """
        if self._thread is None or name == self._resolved_name or self._resolved is None:
            return
        if resolved.manifest != self._resolved.manifest:
            self.cancel(keep=True)
            return
        if resolved.unreadable is not None and self._resolved.unreadable is None:
            return
        if resolved.versions != self._resolved.versions:
            self.cancel(keep=True)
            return
        self._resolved_name, self._resolved = name, resolved
        if self._attempt is not None:
            self._attempt.renew(resolved)

    def accompany(self, company: Company | None) -> None:
        """These fill the same, from now on; None: nobody else does."""
        self.company = company
        if self._attempt is not None:
            self._attempt.accompany(company)

    def cancel(self, *, keep: bool) -> None:
        """The attempt ends soon; with `keep` the next one continues it, else nothing is left of it."""
        if self._attempt is not None:
            self._attempt.cancel(keep=keep)

    def finish(self, ended: Ended) -> None:
        """The attempt is over, and nothing runs or is reserved any more."""
        if self._attempt is not None and self._attempt.progress is not None:
            self._last = self._attempt.progress
            self._moved_before += self._last.moved
        self._thread, self._attempt, self.reserved_bytes = None, None, 0
        self._phase = Phase.PENDING
        if ended.error is not None:
            self.wait(ended.error)
            self._failed_at = self._engine.clock()
            self._retry_at = self._failed_at + self._engine.retry.delay_s(ended.error, self._attempts, self._engine.rng)

    # --- what it says ---

    def report(self) -> ModelReport:
        running = self._attempt.progress if self._attempt is not None else None
        progress = running or self._last
        phase, failure, retry_at = self._phase, self._failure, self._retry_at
        manifest = self._resolved.manifest if self._resolved is not None else None
        total = manifest.total_bytes if manifest is not None else 0
        done = self._done_bytes(total, progress)
        moved = self._moved_before
        if running is not None:
            phase = Phase.VERIFYING if done == total else phase
            failure, retry_at = running.trouble, running.retry_at
            moved += running.moved
        fill_name = self.company.fill if self.company is not None else None
        return ModelReport(
            key=self.place.key,
            phase=phase,
            selection=self.model.source.selection,
            resolved=self._resolved_name,
            bytes_total=total,
            bytes_done=done,
            **moved.numbers,
            rate_bytes_per_s=running.rate_bytes_per_s if running is not None else 0.0,
            attempt=self._attempts,
            failure=failure,
            retry_at=retry_at,
            manifest_digest=manifest.digest if manifest is not None else None,
            revision=manifest.revision if manifest is not None else None,
            verified=dict(progress.verified) if progress is not None else {},
            started_at=self._started_at,
            part=self._engine.exchange.part(fill_name) if self._engine.exchange is not None else None,
            needed_bytes=self.needed_bytes,
            lacking_bytes=self.lacking_bytes if self.lacks_space else None,
        )

    def _done_bytes(self, total: int, progress: Progress | None) -> int:
        """How much of the model is there: a repair begins with all but the files that are wrong."""
        sound = total - self._repair.total_bytes if self._repair is not None else 0
        return sound + (progress.done if progress is not None else 0)
