"""A chunk from the origin into its file, with as much patience as its errors deserve.

The journal hears of a chunk when it is complete, and of one that takes long also meanwhile, block by block: a process
that is killed loses what each of its connections had in a buffer, however slow they are and however large the chunks.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from actors.chunks import Chunk
from actors.errors import Cancelled, SourceChanged, SourceDenied, SourceError, SourceExpired, SourceThrottled
from actors.fill.files import Files
from actors.fill.meter import Traffic
from actors.fill.origin_quota import Quota, Quotas
from actors.fill.range_reader import Crowded, RangeReader, RangesIgnored, Redirects
from actors.manifest import Resolved
from actors.rates import RateLimit
from actors.retry import RetryPolicy
from actors.transport.answers import EXPIRED, redact
from actors.trust import UNRESTRICTED, Trust

SLOW_CHUNK_S = 2.0
"""A chunk that takes longer, at the pace at which it comes, is journaled in parts: a line is as cheap as that."""
LATENCY_S = 0.1
"""Not before so much time has passed: an answer that is late to begin is not slow yet."""


@dataclass(frozen=True, slots=True)
class FillSettings:
    """How one model is filled. A chunk is tried `tries` times in a row without a byte of progress: of its own, or, of a
    server that seems to allow only so many connections, of any.

    `connections` is the most there may be, `chunk_bytes` the largest piece that one request brings.
    """

    connections: int = 32
    chunk_bytes: int = 16 << 20
    stall_timeout_s: float = 30.0
    min_speed_bytes_per_s: float = 1024.0
    private_redirects: bool = False
    trust: Trust = UNRESTRICTED
    tries: int = 5
    retry: RetryPolicy = field(default_factory=lambda: RetryPolicy(0.5, 30.0))
    patience_s: float = 60.0
    """An origin that asks for a longer pause ends the attempt."""


RENEWALS_IN_VAIN = 2
"""A chunk of which not a byte came from so many fresh locations in a row is denied, not expired."""


@dataclass(slots=True)
class _Reading:
    """One chunk that is being fetched: as far as `position`, and journaled as far as `recorded`."""

    reader: RangeReader
    chunk: Chunk
    stop: threading.Event
    resumes: bool
    turn_s: float | None
    each: Callable[[memoryview], object]
    resolved: Resolved
    """From where it was tried last."""
    position: int
    recorded: int


class Fetcher:
    """What the threads of a fill share to read the origin. `resolved` may be replaced at any time."""

    def __init__(
        self,
        files: Files,
        resolved: Resolved,
        settings: FillSettings,
        traffic: Traffic,
        *,
        limit: RateLimit,
        rng: random.Random,
        quotas: Quotas | None = None,
        renew: Callable[[], Resolved] | None = None,
    ) -> None:
        """`quotas` are those of the node; None: this fill has the origins to itself.

        `renew` resolves the same again where locations have expired; None: that is somebody else's to do, and an
        expired location ends the fill.
        """
        self.resolved = resolved
        self.settings = settings
        self._files = files
        self._traffic = traffic
        self._limit = limit
        self._rng = rng
        self._quotas = quotas or Quotas()
        self._renew = renew
        self._renewing = threading.Lock()

    def reader(self, redirects: Redirects) -> RangeReader:
        """For one thread."""
        return RangeReader(
            stall_timeout_s=self.settings.stall_timeout_s,
            min_bytes_per_s=self.settings.min_speed_bytes_per_s,
            private_redirects=self.settings.private_redirects,
            redirects=redirects,
            trust=self.settings.trust,
        )

    def want(self, requests: int) -> int | None:
        """So many are worth having under way now, of which as many as are returned may be. None: any number."""
        origins = self.resolved.origins
        self._quotas.want(self, origins, requests)
        return self._quotas.allowance(origins)

    @property
    def pause_s(self) -> float:
        """For how long no origin may be asked."""
        return self._quotas.pause_s(self.resolved.origins)

    def fetch(
        self,
        reader: RangeReader,
        chunk: Chunk,
        stop: threading.Event,
        *,
        resumes: bool = True,
        turn_s: float | None = None,
        each: Callable[[memoryview], object] = lambda block: None,
        throttled: Callable[[float], None] = lambda pause_s: None,
    ) -> None:
        """The chunk is written and journaled; of one that fails or is slow, what has come of it.

        Not `resumes`: the server sends nothing but the whole, so that every try begins at the beginning. `each` is
        given every block in order; `throttled` hears of every pause that the origin asks for. Raises RangesIgnored and
        the SourceError family; Cancelled soon after `stop` is set; NotOurTurn as `Quota.request` does.
        """
        reading = _Reading(reader, chunk, stop, resumes, turn_s, each, self.resolved, chunk.start, chunk.start)
        failures, came = 0, self._files.done
        try:
            while reading.position < chunk.stop:
                began = reading.position
                trouble = self._attempt(reading)
                if trouble is None:
                    continue
                others = isinstance(trouble, Crowded) and self._files.done > came
                failures = 1 if (resumes and reading.position > began) or others else failures + 1
                came = self._files.done
                if not resumes:
                    reading.position = chunk.start
                self._endure(trouble, failures, reading, throttled)
        finally:
            self._record(reading)

    def _attempt(self, reading: _Reading) -> SourceError | None:
        """One request for what is missing of the chunk: as far as it came, and why no further.

        Raises what no further try can help, and Cancelled.
        """
        origin = self.resolved.locations[reading.chunk.file].origin
        quota = self._quotas.of(origin) if origin is not None else None
        with self._turn(quota, reading.stop, reading.turn_s):
            reading.resolved = self.resolved
            if reading.resolved.unreadable is not None:
                raise SourceError(reading.resolved.unreadable.message, reason=reading.resolved.unreadable.reason)
            try:
                self._read(reading, quota)
            except RangesIgnored:
                raise
            except SourceError as error:
                if reading.stop.is_set():
                    raise Cancelled from error
                if quota is not None and error.retry_after_s is not None:
                    quota.quiet(error.retry_after_s)  # all fills of all nodes are meant, not only this chunk
                return error
        return None

    def _read(self, reading: _Reading, quota: Quota | None) -> None:
        """The rest of the chunk is written, and counted, as it comes."""
        chunk, resolved = reading.chunk, reading.resolved
        size, location = self._files.manifest.files[chunk.file].size, resolved.locations[chunk.file]
        began, began_at = reading.position, time.monotonic()
        for block in reading.reader.blocks(location, resolved.storage_options, size, began, chunk.stop):
            position = reading.position
            self._files.write(chunk.file, position, block)
            if position == began:
                self._traffic.answered(time.monotonic() - began_at)
            self._files.wrote(chunk.file, position, position + len(block))
            self._traffic.origin(len(block), requests=position == chunk.start)
            reading.each(block)
            reading.position += len(block)
            if reading.resumes and self._is_slow(chunk, reading.position - began, time.monotonic() - began_at):
                self._record(reading)
            self.spend(len(block), reading.stop, quota.arrived(len(block)) if quota is not None else 0.0)

    def _record(self, reading: _Reading) -> None:
        """The bytes of the chunk that have come are journaled."""
        if reading.position > reading.recorded:
            self._files.record(Chunk(reading.chunk.file, reading.recorded, reading.position))
            reading.recorded = reading.position

    @staticmethod
    def _is_slow(chunk: Chunk, came: int, seconds: float) -> bool:
        """Whether the chunk takes so long that what has come of it is worth a line of its own."""
        return seconds >= LATENCY_S and seconds * chunk.size >= SLOW_CHUNK_S * came

    def spend(self, count: int, stop: threading.Event, least_s: float = 0.0) -> None:
        """So many bytes have come: returns when the next may, but not within `least_s`."""
        pause_s = max(least_s, self._limit.spend(count))
        if stop.wait(pause_s) if pause_s else stop.is_set():
            raise Cancelled

    def _endure(self, error: SourceError, failures: int, reading: _Reading, throttled: Callable[[float], None]) -> None:
        """Returns when the chunk may be tried again; raises `error` when that is not for this attempt to do."""
        read, settings = reading.resolved, self.settings
        if read is not self.resolved:
            return
        if self._renew is not None and _is_expired(error, read):
            trouble = self._renewed(error, failures, read, self._renew)
            if trouble is None:
                if failures > 1 and reading.stop.wait(settings.retry.first_s):
                    raise Cancelled
                return
            error = trouble  # the origin is in trouble: it is asked again like for anything else
        if not error.retryable or _is_changed(error, read) or failures >= settings.tries:
            raise error.refusal if isinstance(error, Crowded) else error
        delay_s = settings.retry.delay_s(error, failures, self._rng)
        if delay_s > self._patience_s:
            raise error
        self._traffic.troubled(error.failure(), delay_s)
        if isinstance(error, SourceThrottled):
            throttled(delay_s)
        if reading.stop.wait(delay_s):
            raise Cancelled

    def _renewed(
        self, error: SourceError, failures: int, read: Resolved, renew: Callable[[], Resolved]
    ) -> SourceError | None:
        """None: there are fresh locations. Else why there are none, if trying again may help."""
        if failures > RENEWALS_IN_VAIN:
            raise _denied(error)
        try:
            self._renew_locations(read, renew)
        except SourceError as failed:
            if not failed.retryable or isinstance(failed, SourceChanged):
                raise
            return failed
        return None

    def _renew_locations(self, read: Resolved, renew: Callable[[], Resolved]) -> None:
        """The locations are others than those that were `read`. Raises SourceChanged if the files are others, too."""
        with self._renewing:
            if self.resolved is read:
                fresh = renew()
                if fresh.manifest != read.manifest or fresh.versions != read.versions:
                    uri = redact(read.manifest.source.uri)
                    raise SourceChanged(f"{uri} consists of other files than when it was listed")
                self.resolved = fresh

    def _turn(self, quota: Quota | None, stop: threading.Event, turn_s: float | None) -> AbstractContextManager[None]:
        if quota is None:
            return nullcontext()
        hindrance = quota.hindrance()
        if hindrance is not None and self._traffic.trouble is None:  # what the origin answered says more
            self._traffic.troubled(*hindrance)
        return quota.request(stop, self._patience_s, turn_s)

    @property
    def _patience_s(self) -> float:
        return max(self.settings.patience_s, self.settings.retry.max_s)


def _is_changed(error: SourceError, read: Resolved) -> bool:
    """Whether asking the same location again is in vain. One that signs afresh for everybody who asks may do better."""
    if isinstance(error, SourceExpired):
        return read.expires_at is not None
    return isinstance(error, SourceChanged)


def _is_expired(error: SourceError, read: Resolved) -> bool:
    """Whether fresh locations may be all that it takes: registries and stores rarely say that a token has ended."""
    error = error.refusal if isinstance(error, Crowded) else error
    return isinstance(error, SourceExpired) or (
        type(error) is SourceDenied and error.reason == "SourceDenied" and read.expires_at is not None
    )


def _denied(error: SourceError) -> SourceDenied:
    error = error.refusal if isinstance(error, Crowded) else error
    said = str(error).removesuffix(EXPIRED)
    return SourceDenied(f"{said}. So were fresh locations: a policy does not allow it to what they are asked with")
