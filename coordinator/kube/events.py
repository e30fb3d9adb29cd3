"""Kubernetes Events, as `kubectl describe` shows them: said once, counted after that, and never in anybody's way.

`event` puts a value in a bounded queue and returns; a thread writes. An Event that is said again within the hour
becomes a higher `count` on the Event that exists; an object that talks too much is cut short, like with client-go: a
burst of 25, then one in five minutes. An Event that cannot be delivered for a while is dropped: Events are news, the
truth is in status.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from actors.redaction import redacted
from actors.retry import Backoff
from actors.service import Service
from actors.times import rfc3339
from coordinator.kube.interface import EVENTS, Conflict, Kube, KubeError, NotFound, ResourceType, Unreachable

_log = logging.getLogger(__name__)

BURST = 25
REFILL_S = 300.0
MAX_QUEUED = 1000
MAX_REMEMBERED = 4096
FORGET_S = 3600.0
"""The API server keeps Events for an hour."""
MAX_MESSAGE = 1024
MAX_ATTEMPTS = 8


class Ref(Protocol):
    """The object an Event is about. `coordinator.plan.snapshot.Ref` is one."""

    @property
    def resource(self) -> ResourceType: ...
    @property
    def name(self) -> str: ...
    @property
    def namespace(self) -> str | None: ...
    @property
    def uid(self) -> str: ...


@dataclass(frozen=True, slots=True)
class _News:
    ref: Ref
    type: str
    reason: str
    message: str
    at: datetime
    suffix: str
    """Makes the name of the Event unique, and a second attempt to create it recognisable."""

    @property
    def about(self) -> tuple[str, ...]:
        return (self.ref.resource.plural, self.ref.namespace or "", self.ref.name, self.ref.uid)

    @property
    def key(self) -> tuple[str, ...]:
        return (*self.about, self.type, self.reason, self.message)


@dataclass(slots=True)
class _Told:
    """An Event that was written: its name, how often it was said, and when last (seconds of the recorder's clock)."""

    name: str
    count: int
    at_s: float


class Quota:
    """A token bucket for each object; the objects heard of longest ago are forgotten first."""

    def __init__(self, burst: int = BURST, refill_s: float = REFILL_S) -> None:
        self._burst = burst
        self._refill_s = refill_s
        self._buckets: OrderedDict[tuple[str, ...], tuple[float, float]] = OrderedDict()

    def take(self, about: tuple[str, ...], now: float) -> bool:
        """Whether one more Event about this object may be written at `now` (seconds)."""
        tokens, since = self._buckets.pop(about, (float(self._burst), now))
        tokens = min(float(self._burst), tokens + (now - since) / self._refill_s)
        allowed = tokens >= 1.0
        self._buckets[about] = (tokens - 1.0 if allowed else tokens, now)
        while len(self._buckets) > MAX_REMEMBERED:
            self._buckets.popitem(last=False)
        return allowed


class Recorder:
    """Writes Events from one thread, from construction to `close`."""

    def __init__(
        self,
        kube: Kube,
        *,
        component: str = "localmodel",
        instance: str = "",
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        rng: random.Random | None = None,
    ) -> None:
        self._kube = kube
        self._component = component
        self._instance = instance
        self._clock = clock
        self._now = now
        self._backoff = Backoff(rng or random.Random(), max_s=10.0)
        self._quota = Quota()
        self._told: OrderedDict[tuple[str, ...], _Told] = OrderedDict()
        self._queue: queue.Queue[_News | None] = queue.Queue(MAX_QUEUED)
        self._closing = threading.Event()
        self._stopped = threading.Event()
        self._service = Service("events", self._run, self._stopped)
        self._service.start()

    def event(self, ref: Ref, type_: str, reason: str, message: str) -> None:
        """`type_` is Normal or Warning. Never blocks, never raises; a full queue drops."""
        if self._closing.is_set():
            return
        self._service.start()  # does nothing for one that runs
        try:
            text = _shorten(redacted(message))
            self._queue.put_nowait(_News(ref, type_, reason, text, self._now(), uuid.uuid4().hex[:16]))
        except queue.Full:
            _log.debug("dropped an event: the queue is full", extra={"reason": reason, "object": ref.name})

    def close(self, timeout_s: float = 5.0) -> bool:
        """Writes what is queued. Whether all of it was dealt with in time."""
        self._closing.set()
        try:
            self._queue.put(None, timeout=timeout_s)
        except queue.Full:
            return False
        ended = self._service.join(timeout_s)
        self._stopped.set()
        return ended

    def _run(self) -> None:
        while (news := self._queue.get()) is not None:
            try:
                self._deliver(news)
            except Exception:  # noqa: BLE001 - losing one Event must not lose those after it
                _log.exception("cannot record an event", extra={"reason": news.reason, "object": news.ref.name})

    def _deliver(self, news: _News) -> None:
        """Tries again while the API server is away, for a minute or so; once only when closing."""
        self._backoff.reset()
        if not self._quota.take(news.about, self._clock()):
            return
        for _ in range(MAX_ATTEMPTS):
            try:
                self._write(news)
            except Unreachable as error:
                if self._closing.wait(max(self._backoff.next_s(), min(error.retry_after_s or 0.0, 10.0))):
                    return
            except KubeError as error:
                fields = {"reason": news.reason, "object": news.ref.name, "error": str(error)}
                level = logging.DEBUG if _is_going(news.ref, error) else logging.WARNING
                _log.log(level, "the API server refused an event", extra=fields)
                return
            else:
                return

    def _write(self, news: _News) -> None:
        now, namespace = self._clock(), news.ref.namespace or "default"
        told = self._told.get(news.key)
        if told is not None and now - told.at_s < FORGET_S:
            patch = {"count": told.count + 1, "lastTimestamp": rfc3339(news.at.timestamp())}
            try:
                self._kube.patch(EVENTS, told.name, patch, namespace=namespace)
            except NotFound:  # it expired
                pass
            else:
                self._remember(news, _Told(told.name, told.count + 1, now))
                return
        body = self._body(news, namespace)
        with suppress(Conflict):  # an earlier attempt that seemed to fail had arrived
            self._kube.create(EVENTS, body, namespace=namespace)
        self._remember(news, _Told(body["metadata"]["name"], 1, now))

    def _body(self, news: _News, namespace: str) -> dict[str, Any]:
        """A core/v1 Event. Those about cluster-scoped objects live in the namespace `default`, where kubectl looks."""
        ref, at = news.ref, rfc3339(news.at.timestamp())
        involved = {
            "apiVersion": ref.resource.api_version,
            "kind": ref.resource.kind,
            "name": ref.name,
            **({"namespace": ref.namespace} if ref.namespace else {}),
            **({"uid": ref.uid} if ref.uid else {}),
        }
        return {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"name": f"{ref.name[:236].rstrip('.-')}.{news.suffix}", "namespace": namespace},
            "involvedObject": involved,
            "type": news.type,
            "reason": news.reason,
            "message": news.message,
            "source": {"component": self._component},
            "reportingComponent": self._component,
            "reportingInstance": self._instance,
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
        }

    def _remember(self, news: _News, told: _Told) -> None:
        self._told[news.key] = told
        while len(self._told) > MAX_REMEMBERED:
            self._told.popitem(last=False)


def _shorten(message: str) -> str:
    return message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…"


def _is_going(ref: Ref, error: KubeError) -> bool:
    """Whether the object's namespace is being deleted, or gone, which nobody needs to be warned of."""
    return ref.namespace is not None and (isinstance(error, NotFound) or "is being terminated" in str(error))
