"""One model on its way to one node: attempts, each in a thread of its own, until the model is committed.

    Pending ──► Downloading ──► Verifying ──► committed: the task is over
       ▲             │              │
       └── Failed ◄──┴──────────────┘

A task decides nothing about when: the agent starts it, cancels it, and hears how an attempt ended.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

from actors.diff import Active, Place, check_digest
from actors.errors import Failure, InsufficientStorage, LocalModelError, StoreError
from actors.exchange import Exchange
from actors.files import Cancelled
from actors.fill import Fill, Progress, verified_how
from actors.manifest import Resolved
from actors.messages import Company, DesiredModel, ModelReport, Phase
from actors.retry import RateLimit, RetryPolicy
from actors.settings import AgentSettings
from actors.store import Ingest, Marker, Store

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt ended: committed as `marker`, failed with `error`, or, with neither, cancelled."""

    marker: Marker | None = None
    error: LocalModelError | None = None


class Task:
    """The agent's lock guards everything but what its thread does with the disk and the network."""

    def __init__(
        self,
        place: Place,
        model: DesiredModel,
        settings: AgentSettings,
        clock: Callable[[], float],
        exchange: Exchange | None = None,
    ) -> None:
        self.place = place
        self.model = model
        self.company: Company | None = None
        self.reserved_bytes = 0
        self.allocated = False
        """What is reserved is no longer free on the disk."""
        self._settings = settings
        self._clock = clock
        self._exchange = exchange
        self._resolved_name: str | None = None
        self._resolved: Resolved | None = None
        self._phase = Phase.PENDING
        self._attempt = 0
        self._failure: Failure | None = None
        self._retry_at: float | None = None
        self._started_at: float | None = None
        self._thread: threading.Thread | None = None
        self._fill: Fill | None = None
        self._last: Progress | None = None
        self._from_origin_before = 0
        self._from_peers_before = 0
        self._from_other_zones_before = 0
        self._cancelled = threading.Event()
        self._keep = True

    @property
    def thread(self) -> threading.Thread | None:
        """What runs the present attempt; None between two."""
        return self._thread

    def active(self, now: float) -> Active:
        waiting = self._thread is None
        due = waiting and (self._retry_at is None or now >= self._retry_at)
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
    ) -> None:
        """An attempt runs; `ended` is called from its thread. There is room on the disk."""
        self._resolved_name, self._resolved = name, resolved
        self._failure, self._retry_at = None, None
        self._phase = Phase.DOWNLOADING
        self._attempt += 1
        self._started_at = self._clock() if self._started_at is None else self._started_at
        self._fill, self._last, self._keep = None, None, True
        self._cancelled.clear()
        self.reserved_bytes, self.allocated = resolved.manifest.total_bytes, False

        def run() -> None:
            ended(self._run(store, resolved, owner, limit, rng))

        self._thread = threading.Thread(target=run, name=f"fill-{self.place.key}", daemon=True)
        self._thread.start()

    def wait(self, error: LocalModelError | None = None) -> None:
        """Nothing can start now, because of `error` or for want of its turn; asked again with every step."""
        if error is not None:
            self._failure = error.failure()
            self._phase = Phase.PENDING if isinstance(error, InsufficientStorage) else Phase.FAILED
            self._retry_at = None
        elif self._retry_at is None:
            self._phase, self._failure = Phase.PENDING, None

    def renew(self, name: str, resolved: Resolved) -> None:
        """A running attempt reads on from fresh locations; if the content is another, it ends and starts over."""
        if self._thread is None or name == self._resolved_name or self._resolved is None:
            return
        if resolved.manifest != self._resolved.manifest:
            self.cancel(keep=True)
            return
        self._resolved_name, self._resolved = name, resolved
        if self._fill is not None:
            self._fill.renew(resolved)

    def accompany(self, company: Company | None) -> None:
        """These fill the same, from now on; None: nobody else does."""
        self.company = company
        if self._fill is not None:
            self._fill.accompany(company)

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
            self._from_origin_before += self._last.from_origin
            self._from_peers_before += self._last.from_peers
            self._from_other_zones_before += self._last.from_other_zones
        self._thread, self._fill, self.reserved_bytes = None, None, 0
        self._phase = Phase.PENDING
        if ended.error is not None:
            self.wait(ended.error)
            self._retry_at = self._clock() + retry.delay_s(ended.error, self._attempt, rng)

    # --- the attempt's own thread ---

    def _run(self, store: Store, resolved: Resolved, owner: str, limit: RateLimit, rng: random.Random) -> Ended:
        ingest: Ingest | None = None
        try:
            ingest = store.ingest(self.place.key, resolved.manifest, owner)
            ingest.allocate()
            self.allocated = True
            marker = self._fill_and_commit(ingest, resolved, store, owner, limit, rng)
            return Ended(marker=marker)
        except Cancelled:
            if not self._keep:
                self._discard(ingest)
            return Ended()
        except LocalModelError as error:
            _log.warning("fill failed", extra={"key": self.place.key, "reason": error.reason, "error": str(error)})
            if isinstance(error, InsufficientStorage):
                self._discard(ingest)
            return Ended(error=error)
        except Exception as error:  # noqa: BLE001  a bug must end as a status that somebody reads, not as a silent thread
            _log.exception("fill broke", extra={"key": self.place.key})
            broke = StoreError(f"the agent failed: {type(error).__name__}: {error}", reason="InternalError")
            return Ended(error=broke)
        finally:
            if ingest is not None:
                ingest.close()

    def _fill_and_commit(
        self, ingest: Ingest, resolved: Resolved, store: Store, owner: str, limit: RateLimit, rng: random.Random
    ) -> Marker:
        fill = Fill(
            ingest,
            resolved,
            self._settings.fill,
            exchange=self._exchange,
            company=self.company,
            limit=limit,
            check=store.check_fence,
            clock=self._clock,
            rng=rng,
        )
        self._fill = fill
        fill.renew(self._resolved or resolved)  # it may have been renewed before it could be told
        fill.accompany(self.company)
        if self._cancelled.is_set():
            raise Cancelled
        manifest = fill.run()
        check_digest(manifest.digest, self.model.expected_digest)
        marker = Marker(
            owner=owner,
            manifest=manifest,
            verified=verified_how(ingest.manifest),
            started_at=self._started_at,
            finished_at=self._clock(),
            bytes_from_origin=self._from_origin_before + fill.progress().from_origin,
            bytes_from_peers=self._from_peers_before + fill.progress().from_peers,
        )
        if self._cancelled.is_set():
            raise Cancelled
        store.commit(self.place.key, ingest, marker)
        return marker

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
        if self._fill is not None and progress is not None:
            phase = Phase.VERIFYING if progress.done == total else phase
            failure, retry_at = progress.trouble, progress.retry_at
        moved = [self._from_origin_before, self._from_peers_before, self._from_other_zones_before]
        if self._fill is not None and progress is not None:
            now = [progress.from_origin, progress.from_peers, progress.from_other_zones]
            moved = [before + since for before, since in zip(moved, now, strict=True)]
        from_origin, from_peers, from_other_zones = moved
        fill_name = self.company.fill if self.company is not None else None
        part, wrong = self._exchange.part(fill_name) if self._exchange is not None else (None, {})
        return ModelReport(
            key=self.place.key,
            phase=phase,
            selection=self.model.source.selection,
            resolved=self._resolved_name,
            bytes_total=total,
            bytes_done=progress.done if progress is not None else 0,
            bytes_from_origin=from_origin,
            bytes_from_peers=from_peers,
            bytes_from_other_zones=from_other_zones,
            rate_bytes_per_s=progress.rate_bytes_per_s if self._fill is not None and progress is not None else 0.0,
            attempt=self._attempt,
            failure=failure,
            retry_at=retry_at,
            manifest_digest=manifest.digest if manifest is not None else None,
            revision=manifest.revision if manifest is not None else None,
            verified=dict(progress.verified) if progress is not None else {},
            started_at=self._started_at,
            part=part,
            wrong_peers=wrong,
        )
