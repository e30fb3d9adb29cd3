"""One model on its way to one node: attempts, each in a thread of its own, until the model is committed.

    Pending ──► Downloading ──► Verifying ──► committed: the task is over
       ▲             │              │
       └── Failed ◄──┴──────────────┘

A task decides nothing about when: the agent starts it, cancels it, and hears how an attempt ended.
"""

from __future__ import annotations

import logging
import mmap
import random
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from actors.agent.diff import Active
from actors.agent.settings import AgentSettings
from actors.disk.filesystem import disk_errors
from actors.disk.ingest import Ingest
from actors.disk.marker import Marker
from actors.disk.store import Store
from actors.errors import Cancelled, Failure, InsufficientStorage, LocalModelError, StoreError
from actors.fill.fill import Fill, Progress, verified_how
from actors.fill.origin_quota import Quotas
from actors.fill.unpack import unpack
from actors.manifest import Resolved, check_digest
from actors.messages import Company, DesiredModel, ModelReport, Phase, Place
from actors.moved import Moved
from actors.peers.exchange import Exchange
from actors.retry import RateLimit, RetryPolicy
from actors.scrub.repair import Repair
from actors.scrub.scrubber import BLOCK_BYTES
from actors.trust import UNRESTRICTED

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt ended: committed as `marker`, failed with `error`, or, with neither, cancelled.

    With `repair` set the attempt was one of these files of the committed copy; `wrong` are those that were only read,
    and are not what they were.
    """

    marker: Marker | None = None
    error: LocalModelError | None = None
    repair: Repair | None = None
    wrong: Mapping[str, str] = field(default_factory=dict)


class Task:
    """The agent's lock guards everything but what its thread does with the disk and the network."""

    def __init__(
        self,
        place: Place,
        model: DesiredModel,
        settings: AgentSettings,
        clock: Callable[[], float],
        exchange: Exchange | None = None,
        quotas: Quotas | None = None,
    ) -> None:
        self.place = place
        self.model = model
        self.company: Company | None = None
        self.trust = UNRESTRICTED
        self.needed_bytes = 0
        """What it asked for when it was last its turn."""
        self.lacking_bytes: int | None = None
        """By how much that was too much, if anything but waiting can help (see `ModelReport`)."""
        self.reserved_bytes = 0
        self.allocated = False
        """What is reserved is no longer free on the disk."""
        self._settings = settings
        self._clock = clock
        self._exchange = exchange
        self._quotas = quotas
        self._resolved_name: str | None = None
        self._resolved: Resolved | None = None
        self._repair: Repair | None = None
        self._phase = Phase.PENDING
        self._attempt = 0
        self._failure: Failure | None = None
        self._retry_at: float | None = None
        self._failed_at = 0.0
        self._started_at: float | None = None
        self._thread: threading.Thread | None = None
        self._fill: Fill | None = None
        self._last: Progress | None = None
        self._moved_before = Moved()
        self._cancelled = threading.Event()
        self._keep = True
        self._unpacking = False
        """What an archive holds does not fit: the archive itself need not be fetched again."""

    @property
    def thread(self) -> threading.Thread | None:
        """What runs the present attempt; None between two."""
        return self._thread

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
        due = waiting and (self._retry_at is None or not self._failed_at <= now < self._retry_at)
        return Active(self.model.source.selection, self._resolved_name, waiting, due)

    # --- what the agent tells it ---

    def start(
        self,
        name: str,
        resolved: Resolved,
        store: Store,
        owner: str,
        *,
        limit: RateLimit,
        rng: random.Random,
        ended: Callable[[Ended], None],
        repair: Repair | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        """An attempt runs; `ended` is called from its thread. There is room on the disk for it.

        Where the process has no thread for it, the attempt is over at once, and the next one is due as `retry` says.
        """
        retry = retry or RetryPolicy(self._settings.backoff_first_s, self._settings.backoff_max_s)
        self._resolved_name, self._resolved, self._repair = name, resolved, repair
        self._failure, self._retry_at = None, None
        self._phase = Phase.DOWNLOADING
        self._attempt += 1
        self._started_at = self._clock() if self._started_at is None else self._started_at
        self._fill, self._last, self._keep, self._unpacking = None, None, True, False
        self._cancelled.clear()
        self.reserved_bytes, self.allocated = self._wanted(resolved).manifest.peak_bytes, False

        def run() -> None:
            ended(self._run(store, resolved, owner, limit, rng))

        self._launch(run, retry, rng)

    def examine(
        self, repair: Repair, store: Store, *, ended: Callable[[Ended], None], retry: RetryPolicy, rng: random.Random
    ) -> None:
        """The files of the repair are read, to see which of them are wrong at all. Takes no space and no network."""
        self._repair, self._fill, self._last, self._keep = repair, None, None, True
        self._failure, self._retry_at, self._phase = None, None, Phase.VERIFYING
        self._cancelled.clear()

        def run() -> None:
            ended(self._examined(repair, store))

        self._launch(run, retry, rng)

    def _launch(self, run: Callable[[], None], retry: RetryPolicy, rng: random.Random) -> None:
        self._thread = threading.Thread(target=run, name=f"fill-{self.place.key}", daemon=True)
        try:
            self._thread.start()
        except (RuntimeError, MemoryError) as error:
            short = StoreError(f"the agent has no thread for it now: {error}", reason="OutOfThreads")
            self.finish(Ended(error=short), retry, rng)

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
        if self._fill is not None:
            self._fill.renew(self._wanted(resolved))

    def _wanted(self, resolved: Resolved) -> Resolved:
        """The part of it that this attempt is about."""
        return resolved if self._repair is None else self._repair.narrowed(resolved)

    def accompany(self, company: Company | None) -> None:
        """These fill the same, from now on; None: nobody else does."""
        self.company = company
        if self._fill is not None and self._resolved is not None:
            self._fill.accompany(self._company_in(self._resolved))

    def _company_in(self, resolved: Resolved) -> Company | None:
        """Nobody shares a repair, which is of parts, nor an archive, which is gone once it is unpacked."""
        return None if self._repair is not None or resolved.manifest.packed else self.company

    def cancel(self, *, keep: bool) -> None:
        """The attempt ends soon; with `keep` the next one continues it, else nothing is left of it."""
        self._keep = keep
        self._cancelled.set()
        if self._fill is not None:
            self._fill.cancel()

    def finish(self, ended: Ended, retry: RetryPolicy, rng: random.Random) -> None:
        """The attempt is over, and nothing runs or is reserved any more."""
        if self._fill is not None:
            self._last = self._fill.progress()
            self._moved_before += self._last.moved
        self._thread, self._fill, self.reserved_bytes = None, None, 0
        self._phase = Phase.PENDING
        if ended.error is not None:
            self.wait(ended.error)
            self._failed_at = self._clock()
            self._retry_at = self._failed_at + retry.delay_s(ended.error, self._attempt, rng)

    # --- the attempt's own thread ---

    def _examined(self, repair: Repair, store: Store) -> Ended:
        try:
            buffer = mmap.mmap(-1, BLOCK_BYTES)
            with disk_errors("reading what may be damaged"), store.opened(self.place.key) as folder:
                found = repair.examined(folder, buffer, self._check_cancelled)
            return Ended(marker=repair.marker, repair=repair, wrong=found)
        except Cancelled:
            return Ended()
        except LocalModelError as error:
            return Ended(error=error)
        except Exception as error:  # noqa: BLE001  as below
            _log.exception("examining broke", extra={"key": self.place.key})
            return Ended(error=StoreError(f"the agent failed: {type(error).__name__}: {error}", reason="InternalError"))

    def _run(self, store: Store, resolved: Resolved, owner: str, limit: RateLimit, rng: random.Random) -> Ended:
        ingest: Ingest | None = None
        try:
            wanted = self._wanted(resolved)
            ingest = store.ingest(self.place.key, wanted.manifest, owner, wanted.versions)
            ingest.allocate()
            self.allocated = True
            if self._repair is not None:
                with disk_errors("reading what is damaged"), store.opened(self.place.key) as folder:
                    self._repair.keep_good(ingest, folder, self._check_cancelled)
            marker = self._fill_and_commit(ingest, resolved, store, owner, limit, rng)
            return Ended(marker=marker, repair=self._repair)
        except Cancelled:
            if not self._keep:
                self._discard(ingest)
            return Ended()
        except LocalModelError as error:
            _log.warning("fill failed", extra={"key": self.place.key, "reason": error.reason, "error": str(error)})
            if isinstance(error, InsufficientStorage) and not self._unpacking:
                self._discard(ingest)
            return Ended(error=error)
        except Exception as error:  # noqa: BLE001  a bug must end as a status that somebody reads, not as a silent thread
            _log.exception("fill broke", extra={"key": self.place.key})
            broke = StoreError(f"the agent failed: {type(error).__name__}: {error}", reason="InternalError")
            return Ended(error=broke)
        finally:
            if ingest is not None:
                with suppress(OSError):  # as NFS gives it for what was written long ago
                    ingest.close()

    def _fill_and_commit(
        self, ingest: Ingest, resolved: Resolved, store: Store, owner: str, limit: RateLimit, rng: random.Random
    ) -> Marker:
        fill = Fill(
            ingest,
            self._wanted(resolved),
            replace(self._settings.fill, trust=self.trust),
            exchange=self._exchange,
            company=self._company_in(resolved),
            limit=limit,
            quotas=self._quotas,
            check=store.check_fence,
            clock=self._clock,
            rng=rng,
        )
        self._fill = fill
        fill.renew(self._wanted(self._resolved or resolved))  # it may have been renewed before it could be told
        fill.accompany(self._company_in(resolved))
        self._check_cancelled()
        manifest, verified = fill.run(), verified_how(ingest.manifest)
        if self._repair is not None:
            self._check_cancelled()
            store.mend(self.place.key, ingest, owner)
            return self._repair.marker
        if manifest.packed:
            self._unpacking = True
            room_bytes = store.free_bytes() - self._settings.headroom_bytes
            manifest, verified = unpack(
                ingest, manifest, verified, room_bytes=room_bytes, check=lambda: self._go_on(store)
            )
        check_digest(manifest.digest, self.model.expected_digest)
        marker = Marker(
            owner=owner,
            manifest=manifest,
            verified=verified,
            started_at=self._started_at,
            finished_at=self._clock(),
            moved=self._moved_before + fill.progress().moved,
        )
        self._check_cancelled()
        store.commit(self.place.key, ingest, marker)
        return marker

    def _go_on(self, store: Store) -> None:
        store.check_fence()
        self._check_cancelled()

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled

    def _discard(self, ingest: Ingest | None) -> None:
        if ingest is not None:
            try:
                ingest.discard()
            except StoreError as error:
                _log.warning("cannot clean up", extra={"key": self.place.key, "error": str(error)})

    # --- what it says ---

    def report(self) -> ModelReport:
        progress = self._fill.progress() if self._fill is not None else self._last
        phase, failure, retry_at = self._phase, self._failure, self._retry_at
        manifest = self._resolved.manifest if self._resolved is not None else None
        total = manifest.total_bytes if manifest is not None else 0
        sound = total - self._repair.total_bytes if self._repair is not None else 0
        done = sound + (progress.done if progress is not None else 0)
        if self._fill is not None and progress is not None:
            phase = Phase.VERIFYING if done == total else phase
            failure, retry_at = progress.trouble, progress.retry_at
        moved = self._moved_before
        if self._fill is not None and progress is not None:
            moved += progress.moved
        fill_name = self.company.fill if self.company is not None else None
        return ModelReport(
            key=self.place.key,
            phase=phase,
            selection=self.model.source.selection,
            resolved=self._resolved_name,
            bytes_total=total,
            bytes_done=done,
            bytes_from_origin=moved.from_origin,
            bytes_from_peers=moved.from_peers,
            bytes_from_other_zones=moved.from_other_zones,
            rate_bytes_per_s=progress.rate_bytes_per_s if self._fill is not None and progress is not None else 0.0,
            attempt=self._attempt,
            failure=failure,
            retry_at=retry_at,
            manifest_digest=manifest.digest if manifest is not None else None,
            revision=manifest.revision if manifest is not None else None,
            verified=dict(progress.verified) if progress is not None else {},
            started_at=self._started_at,
            part=self._exchange.part(fill_name) if self._exchange is not None else None,
            wrong_peers=moved.wrong_peers,
            wrong_readers=moved.wrong_readers,
            needed_bytes=self.needed_bytes,
            lacking_bytes=self.lacking_bytes if self.lacks_space else None,
        )
