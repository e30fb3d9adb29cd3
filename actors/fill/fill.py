"""One attempt to fill one ingest: every chunk fetched once, every file hashed in order while it arrives.

    Files     what is there, and whether it is right         the same for both
    Alone     every chunk from the origin                    one node, or nobody known who fills the same
    Together  chunks from the origin and from peers          several nodes; see `actors.mesh.mesh`

Which of the two is at work may change on the way: the one ends its transfers, and the other goes on with what is there.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from actors.chunks import Grid
from actors.digest import how_verified
from actors.disk.bases import Bases
from actors.disk.ingest import Ingest
from actors.errors import Cancelled, Failure, StoreError
from actors.fill.files import Files
from actors.fill.meter import Traffic
from actors.fill.origin_quota import Quotas
from actors.fill.origin_reader import Fetcher, FillSettings
from actors.fill.range_reader import RangesIgnored, Redirects
from actors.fill.solo import Alone
from actors.manifest import Manifest, Resolved
from actors.mesh import bitmap
from actors.messages import Company
from actors.rates import RateLimit
from actors.transferred import Transferred

if TYPE_CHECKING:
    from actors.peers.exchange import Exchange


@dataclass(frozen=True, slots=True)
class Progress:
    """`done`: bytes on the disk; `hashed`: those of them that were hashed; `trouble`: why nothing comes just now."""

    done: int
    hashed: int
    moved: Transferred
    rate_bytes_per_s: float
    verified: Counter[str]
    trouble: Failure | None = None
    retry_at: float | None = None


@dataclass(frozen=True, slots=True)
class Shared:
    """What the fills of one node share. `clock` gives epoch seconds."""

    exchange: Exchange | None = None
    limit: RateLimit = field(default_factory=lambda: RateLimit(None))
    quotas: Quotas | None = None
    clock: Callable[[], float] = time.time
    rng: random.Random = field(default_factory=random.Random)


class Driver(Protocol):
    """Decides which chunk is next and from where, and carries it out."""

    def run(self) -> None:
        """Returns when every file is sealed, or soon after `cancel`."""

    def cancel(self) -> None: ...


class Fill:
    """Runs once. `run` belongs to one thread; everything else may be called by any."""

    def __init__(
        self,
        ingest: Ingest,
        resolved: Resolved,
        settings: FillSettings,
        shared: Shared | None = None,
        *,
        company: Company | None = None,
        check: Callable[[], None] = lambda: None,
        renew: Callable[[], Resolved] | None = None,
        bases: Bases | None = None,
    ) -> None:
        """`check` is called before every chunk, and ends the fill by raising: the fence. `renew`: see `Fetcher`.

        Without `shared` this fill has the node to itself. With an exchange in it the fill is done together with the
        `company`, once there is one; chunks that the `bases` have are then copied from there. Those it closes.
        """
        shared = shared or Shared()
        self._ingest = ingest
        self._files = Files(ingest, bases)
        self._traffic = Traffic(shared.clock, ingest.reused_bytes)
        self._redirects = Redirects(shared.clock)
        self._check = check
        self._rng = shared.rng
        self._fetcher = Fetcher(
            self._files,
            resolved,
            settings,
            self._traffic,
            limit=shared.limit,
            rng=self._rng,
            quotas=shared.quotas,
            renew=renew,
        )
        self._exchange = shared.exchange
        self._company = company
        self._lock = threading.Lock()
        self._stopped = False
        self._driver: Driver | None = None

    @property
    def manifest(self) -> Manifest:
        return self._files.manifest

    def run(self) -> Manifest:
        """The manifest with the digest of every file, once all are verified and on the disk.

        Raises Cancelled, or the first LocalModelError that could not be helped; the ingest can be continued after both.
        """
        try:
            while self._files.unsealed:
                driver = self._begin()
                if self._stopped:
                    raise Cancelled
                try:
                    driver.run()
                except RangesIgnored:  # there is nothing to share out
                    self._exchange = None
        finally:
            self._fetcher.want(0)
            self._files.close()
        if self._stopped:
            raise Cancelled
        return self._files.seal()

    def cancel(self) -> None:
        """`run` ends soon; transfers that wait for the network are cut."""
        with self._lock:
            self._stopped = True
            if self._driver is not None:
                self._driver.cancel()

    def accompany(self, company: Company | None) -> None:
        """From now on it is filled together with these, or alone. The exchange hears by itself who they are."""
        with self._lock:
            before, self._company = self._company, company
            same = company is before or (company is not None and before is not None and company.fill == before.fill)
            if not same and self._driver is not None:
                self._driver.cancel()

    def renew(self, resolved: Resolved) -> None:
        """From the next request on read from these locations. The manifest must be the same."""
        self._fetcher.resolved = resolved

    @property
    def connections(self) -> int:
        """How many are at work at the origin; 0 where others decide that, too."""
        return self._driver.connections if isinstance(self._driver, Alone) else 0

    def of_files(self) -> list[int]:
        """Bytes on the disk of every file, in the order of the manifest."""
        return self._files.each_done()

    @property
    def moved(self) -> Transferred:
        """Moved over the network so far."""
        return self._traffic.moved

    def progress(self) -> Progress:
        traffic, (trouble, retry_at) = self._traffic, self._traffic.trouble or (None, None)
        return Progress(
            self._files.done,
            self._files.hashed,
            traffic.moved,
            traffic.rate_bytes_per_s,
            self._files.verified,
            trouble,
            retry_at,
        )

    def _begin(self) -> Driver:
        """The driver from now on. One that was replaced before it ran is cancelled, and returns at once."""
        with self._lock:
            company, exchange = self._company, self._exchange
            if company is None or exchange is None or exchange.address is None:
                self._driver = Alone(self._files, self._fetcher, self._traffic, self._redirects, self._check)
                return self._driver
        from actors.fill.cooperative import Together  # here, because who fills alone would wait for it

        grid = Grid(self.manifest.files, company.chunk_bytes)
        gaps = [self._files.gaps(chunk) for chunk in grid.chunks]
        have = bitmap.bitmap(number for number, missing in enumerate(gaps) if not missing)
        begun = 0
        if self._driver is None:  # else others may be reading by now what this node had begun
            whole = ([chunk] for chunk in grid.chunks)
            begun = ~have & bitmap.bitmap(n for n, each in enumerate(whole) if gaps[n] != each)
        try:
            with self._ingest.opened() as data:
                swarm = exchange.open(company, self.manifest, data.here, have, begun)
        except OSError as error:
            raise StoreError(f"opening {self._ingest.data}: {error.strerror}") from error
        shared = (self._files, self._fetcher, self._traffic, self._redirects, self._check)
        driver = Together(*shared, swarm, exchange.asker(swarm), self._rng)
        with self._lock:
            self._driver = driver
            if self._company is None or self._company.fill != company.fill:
                driver.cancel()
        return driver


def verified_how(manifest: Manifest) -> dict[str, str]:
    """By path, how a fill of this manifest, as the origin gave it, is checked."""
    return {file.path: how_verified(file) for file in manifest.files}
