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
from actors.retry import RateLimit, RetryPolicy
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
        throttled: Callable[[float], None] = lambda pause_s: None,
        renew: Callable[[], Resolved] | None = None,
    ) -> None:
        """`quotas` are those of the node; None: this fill has the origins to itself.

        `throttled` hears of every pause that the origin asks for. `renew` resolves the same again where locations have
        expired; None: that is somebody else's to do, and an expired location ends the fill.
        """
        self.resolved = resolved
        self.settings = settings
        self.throttled = throttled
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
    ) -> None:
        """The chunk is written and journaled; of one that fails or is slow, what has come of it.

        Not `resumes`: the server sends nothing but the whole, so that every try begins at the beginning. `each` is
        given every block in order. Raises RangesIgnored and the SourceError family; Cancelled soon after `stop` is set;
        NotOurTurn as `Quota.request` does.
        """
        file = self._files.manifest.files[chunk.file]
        position = recorded = chunk.start
        failures, came = 0, self._files.done
        try:
            while position < chunk.stop:
                origin = self.resolved.locations[chunk.file].origin
                quota = self._quotas.of(origin) if origin is not None else None
                trouble: SourceError | None = None
                with self._turn(quota, stop, turn_s):
                    began, began_at, resolved = position, time.monotonic(), self.resolved
                    if resolved.unreadable is not None:
                        raise SourceError(resolved.unreadable.message, reason=resolved.unreadable.reason)
                    location = resolved.locations[chunk.file]
                    try:
                        for block in reader.blocks(location, resolved.storage_options, file.size, position, chunk.stop):
                            self._files.write(chunk.file, position, block)
                            if position == began:
                                self._traffic.answered(time.monotonic() - began_at)
                            self._files.wrote(chunk.file, position, position + len(block))
                            self._traffic.origin(len(block), requests=position == chunk.start)
                            each(block)
                            position += len(block)
                            if resumes and self._is_slow(chunk, position - began, time.monotonic() - began_at):
                                self._files.record(Chunk(chunk.file, recorded, position))
                                recorded = position
                            self.spend(len(block), stop, quota.arrived(len(block)) if quota is not None else 0.0)
                    except RangesIgnored:
                        raise
                    except SourceError as error:
                        if stop.is_set():
                            raise Cancelled from error
                        trouble = error
                        if quota is not None and error.retry_after_s is not None:
                            quota.quiet(error.retry_after_s)  # all fills of all nodes are meant, not only this chunk
                if trouble is not None:
                    others = isinstance(trouble, Crowded) and self._files.done > came
                    failures = 1 if (resumes and position > began) or others else failures + 1
                    came = self._files.done
                    if not resumes:
                        position = chunk.start
                    self._endure(trouble, failures, stop, resolved)
        finally:
            if position > recorded:
                self._files.record(Chunk(chunk.file, recorded, position))

    @staticmethod
    def _is_slow(chunk: Chunk, came: int, seconds: float) -> bool:
        """Whether the chunk takes so long that what has come of it is worth a line of its own."""
        return seconds >= LATENCY_S and seconds * chunk.size >= SLOW_CHUNK_S * came

    def spend(self, count: int, stop: threading.Event, least_s: float = 0.0) -> None:
        """So many bytes have come: returns when the next may, but not within `least_s`."""
        pause_s = max(least_s, self._limit.spend(count))
        if stop.wait(pause_s) if pause_s else stop.is_set():
            raise Cancelled

    def _endure(self, error: SourceError, failures: int, stop: threading.Event, read: Resolved) -> None:
        """Returns when the chunk may be tried again; raises `error` when that is not for this attempt to do.

        `read` is where it was tried.
        """
        if read is not self.resolved:
            return
        settings = self.settings
        if self._renew is not None and _is_expired(error, read):
            if failures > RENEWALS_IN_VAIN:
                raise _denied(error)
            try:
                self._renew_locations(read, self._renew)
            except SourceError as failed:
                if not failed.retryable or isinstance(failed, SourceChanged):
                    raise
                error = failed  # the origin is in trouble: it is asked again like for anything else
            else:
                if failures > 1 and stop.wait(settings.retry.first_s):
                    raise Cancelled
                return
        if not error.retryable or _is_changed(error, read) or failures >= settings.tries:
            raise error.refusal if isinstance(error, Crowded) else error
        delay_s = settings.retry.delay_s(error, failures, self._rng)
        if delay_s > self._patience_s:
            raise error
        self._traffic.troubled(error.failure(), delay_s)
        if isinstance(error, SourceThrottled):
            self.throttled(delay_s)
        if stop.wait(delay_s):
            raise Cancelled

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
