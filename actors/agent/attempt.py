"""One attempt at one model, in a thread of its own: it ends with a committed copy, failed or cancelled, and says which.

Examination     reads files that may be damaged
Filling         fetches the model, or what is damaged of it
"""

from __future__ import annotations

import logging
import mmap
import random
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from actors.agent.settings import AgentSettings
from actors.disk.bases import Bases, bases
from actors.disk.filesystem import disk_errors
from actors.disk.ingest import Ingest
from actors.disk.marker import Marker
from actors.disk.reuse import Donor, offers, take
from actors.disk.store import Store
from actors.errors import Cancelled, InsufficientStorage, LocalModelError, StoreError
from actors.fill.fill import Fill, Progress, Shared
from actors.fill.finish import Ending
from actors.fill.origin_quota import Quotas
from actors.manifest import Manifest, Resolved, StorageKey, check_digest
from actors.messages import Company
from actors.peers.exchange import Exchange
from actors.rates import RateLimit
from actors.retry import RetryPolicy
from actors.scrub.repair import Repair
from actors.scrub.scrubber import BLOCK_BYTES
from actors.signatures import check_signature
from actors.transferred import Transferred
from actors.trust import Trust

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt ended: committed as `marker`, failed with `error`, or, with neither, cancelled.

    With `repair` set the attempt was one of these files of the committed copy; `wrong` are those that were only read,
    and are not what they were. `beside`: what was committed lies beside the copy, which stays in place.
    """

    marker: Marker | None = None
    error: LocalModelError | None = None
    repair: Repair | None = None
    wrong: Mapping[str, str] = field(default_factory=dict)
    beside: bool = False


@dataclass(frozen=True, slots=True)
class Engine:
    """What all attempts of one node share. `retry` is between attempts at a model, `limit` of the whole node."""

    settings: AgentSettings
    clock: Callable[[], float]
    rng: random.Random
    retry: RetryPolicy
    limit: RateLimit
    exchange: Exchange | None = None
    quotas: Quotas | None = None


@dataclass(slots=True)
class Wish:
    """What an attempt is for. The agent changes it while the attempt runs: `resolved` only to fresh locations.

    `repair`: only these files of the committed copy. `donors`: copies whose files may be used. `keep`: what is
    replaced stays a version; with `hold` it stays in place, and what is filled becomes the version. `earlier`: what
    earlier attempts have cost.
    """

    key: StorageKey
    owner: str
    resolved: Resolved
    trust: Trust
    company: Company | None = None
    expected_digest: str | None = None
    repair: Repair | None = None
    donors: tuple[Donor, ...] = ()
    keep: bool = False
    hold: bool = False
    started_at: float | None = None
    earlier: Transferred = field(default_factory=Transferred)

    def part(self) -> Resolved:
        """The part of the source that is filled."""
        return self.resolved if self.repair is None else self.repair.narrowed(self.resolved)

    def together(self) -> Company | None:
        """Nobody shares a repair, which is of parts, nor an archive, which is gone once it is unpacked."""
        return None if self.repair is not None or self.resolved.manifest.packed else self.company


class Attempt:
    """The agent's lock guards everything but what `run` does with the disk and the network."""

    allocated = False
    """The space reserved for it is no longer free on the disk."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._keep = True

    @property
    def progress(self) -> Progress | None:
        """None while nothing can come."""
        return None

    def run(self) -> Ended:
        """In a thread of its own. Never raises."""
        raise NotImplementedError

    def renew(self, resolved: Resolved) -> None:
        """It reads on from these locations. The manifest must be the same."""

    def accompany(self, company: Company | None) -> None:
        """These fill the same, from now on; None: nobody else does."""

    def cancel(self, *, keep: bool) -> None:
        """It ends soon; with `keep` the next one continues it, else nothing is left of it."""
        self._keep = keep
        self._cancelled.set()

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled


class Examination(Attempt):
    """The files of a repair are read, to see which of them are wrong at all. Takes no space and no network."""

    def __init__(self, key: StorageKey, store: Store, repair: Repair) -> None:
        super().__init__()
        self._key = key
        self._store = store
        self._repair = repair

    def run(self) -> Ended:
        """The outcome, with the files that are wrong and how."""
        try:
            buffer = mmap.mmap(-1, BLOCK_BYTES)
            with disk_errors("reading what may be damaged"), self._store.opened(self._key) as folder:
                found = self._repair.examined(folder, buffer, self._check_cancelled)
            return Ended(marker=self._repair.marker, repair=self._repair, wrong=found)
        except Cancelled:
            return Ended()
        except LocalModelError as error:
            return Ended(error=error)
        except Exception as error:  # noqa: BLE001  a bug must end as a status that somebody reads, not as a silent thread
            _log.exception("examining broke", extra={"key": self._key})
            return Ended(error=_broken(error))


class Filling(Attempt):
    """The model is filled and committed, or the damaged files of its copy are repaired."""

    def __init__(self, engine: Engine, store: Store, wish: Wish) -> None:
        super().__init__()
        self.wish = wish
        self._engine = engine
        self._store = store
        self._fill: Fill | None = None
        self._before = Transferred()
        """Moved by earlier processes for the same ingest."""
        self._unpacking = False
        """What an archive holds does not fit: the archive itself need not be fetched again."""

    @property
    def progress(self) -> Progress | None:
        if self._fill is None:
            return None
        progress = self._fill.progress()
        return replace(progress, moved=self._before + progress.moved)

    def renew(self, resolved: Resolved) -> None:
        self.wish.resolved = resolved
        if self._fill is not None:
            self._fill.renew(self.wish.part())

    def accompany(self, company: Company | None) -> None:
        self.wish.company = company
        if self._fill is not None:
            self._fill.accompany(self.wish.together())

    def cancel(self, *, keep: bool) -> None:
        super().cancel(keep=keep)
        if self._fill is not None:  # whose transfers wait for the network
            self._fill.cancel()

    # --- its own thread ---

    def run(self) -> Ended:
        """The model is committed, or why not. The bytes of a failed attempt stay for the next one."""
        ingest: Ingest | None = None
        try:
            part = self.wish.part()
            ingest = self._store.ingest(self.wish.key, part.manifest, self.wish.owner, part.versions)
            take(ingest, offers(part.manifest, self.wish.donors), self._check_cancelled)
            ingest.allocate()
            self.allocated = True
            marker, beside = self._committed(ingest)
            return Ended(marker=marker, repair=self.wish.repair, beside=beside)
        except Cancelled:
            if not self._keep:
                self._discard(ingest)
            return Ended()
        except LocalModelError as error:
            _log.warning("fill failed", extra={"key": self.wish.key, "reason": error.reason, "error": str(error)})
            if isinstance(error, InsufficientStorage) and not self._unpacking:
                self._discard(ingest)
            return Ended(error=error)
        except Exception as error:  # noqa: BLE001  a bug must end as a status that somebody reads
            _log.exception("fill broke", extra={"key": self.wish.key})
            return Ended(error=_broken(error))
        finally:
            if ingest is not None:
                with suppress(OSError):  # as NFS gives it for what was written long ago
                    ingest.close()

    def _committed(self, ingest: Ingest) -> tuple[Marker, bool]:
        """The marker of the copy, and whether that lies beside the one in place."""
        repair = self.wish.repair
        if repair is not None:
            with disk_errors("reading what is damaged"), self._store.opened(self.wish.key) as folder:
                repair.keep_good(ingest, folder, self._check_cancelled)
        elif self.wish.earlier == Transferred():  # else this process knows by itself
            self._before = ingest.noted_cost()
        fill = self._begin(ingest)
        before = self.wish.earlier + self._before
        ingest.cost = lambda: before + fill.moved
        try:
            filled = fill.run()
        finally:
            ingest.note_cost()
        if repair is not None:
            self._check_cancelled()
            self._store.mend(self.wish.key, ingest, self.wish.owner)
            return repair.marker, False
        ending = Ending(
            owner=self.wish.owner,
            started_at=self.wish.started_at,
            clock=self._engine.clock,
            room_bytes=self._room_for_unpacking,
            expected=self._check_digest,
            check=self._go_on,
            signed=self._check_signature,
        )
        marker = ending.marker(ingest, filled, before + fill.moved)
        self._check_cancelled()
        if beside := self.wish.hold and self.wish.keep:
            self._store.prefetch(self.wish.key, ingest, marker)
        else:
            self._store.commit(self.wish.key, ingest, marker, keep=self.wish.keep)
        return marker, beside

    def _begin(self, ingest: Ingest) -> Fill:
        engine = self._engine
        fill = Fill(
            ingest,
            self.wish.part(),
            replace(engine.settings.fill, trust=self.wish.trust),
            Shared(engine.exchange, engine.limit, engine.quotas, engine.clock, engine.rng),
            company=self.wish.together(),
            check=self._store.check_fence,
            bases=Bases(ingest.manifest, bases(ingest.manifest, self.wish.donors, ingest.whole)),
        )
        self._fill = fill
        fill.renew(self.wish.part())  # the wish may have changed before the fill could be told
        fill.accompany(self.wish.together())
        self._check_cancelled()
        return fill

    def _room_for_unpacking(self) -> int:
        self._unpacking = True
        return self._store.free_bytes() - self._engine.settings.headroom_bytes

    def _check_digest(self, manifest: Manifest) -> None:
        check_digest(manifest.digest, self.wish.expected_digest)

    def _check_signature(self, ingest: Ingest, manifest: Manifest) -> None:
        check_signature(ingest.data, manifest, self._engine.settings.signature_check)

    def _go_on(self) -> None:
        self._store.check_fence()
        self._check_cancelled()

    def _discard(self, ingest: Ingest | None) -> None:
        if ingest is not None:
            try:
                ingest.discard()
            except StoreError as error:
                _log.warning("cannot clean up", extra={"key": self.wish.key, "error": str(error)})


def _broken(error: Exception) -> StoreError:
    return StoreError(f"the agent failed: {type(error).__name__}: {error}", reason="InternalError")
