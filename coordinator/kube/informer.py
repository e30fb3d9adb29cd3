"""A local, parsed copy of every object of one kind, kept current by list and watch.

        ┌───────── anything unexpected: back off ◄─────────┐
        ▼                                                  │
      list ──► watch ──► event, event, bookmark … ──► the announced end
                 ▲                                         │
                 └────────── from the last version ◄───────┘

Only a watch that ran for its whole announced time is resumed. After anything else (410, a reset, silence, an early end)
the kind is listed again: an API server that came back without its data must not be believed to know our version.

A kind that need not exist (`optional`) and is not served has no objects; it is looked for again every ABSENT_S.

An object that `parse` refuses is poison: it is reported once per version, its last good version stays, and the watch
moves on. `Store` is the pure part; `Informer` is the thread around it.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Generic, TypeVar

from actors.retry import Backoff
from actors.service import Service
from coordinator.kube.interface import (
    EventType,
    Gone,
    Kube,
    KubeError,
    NotFound,
    Object,
    ResourceType,
    Unreachable,
    WatchEvent,
)

_log = logging.getLogger(__name__)

T = TypeVar("T")
Key = tuple[str | None, str]
"""(namespace or None, name)"""

WATCH_TIMEOUT_S = 30.0
"""How long one watch lasts. Short, because a server that hangs is noticed at its end; a new one costs one request."""

ABSENT_S = 5.0
"""How often a kind that is not served is asked for again: its CustomResourceDefinition may be applied at any time."""

FULL_TERM = 0.9
"""The share of its announced time after which a watch may end: servers round, and clocks differ."""


@dataclass(frozen=True, slots=True)
class Poison:
    """An object that could not be parsed, and why."""

    object: Object
    error: Exception


@dataclass(slots=True)
class _Entry(Generic[T]):
    """`uid` and `version` were last seen; `value` is of the last version that could be parsed, None if none could."""

    uid: str
    version: str
    value: T | None


class Store(Generic[T]):
    """The objects of one kind, as far as they are known. One writer; `items` may be called from any thread."""

    def __init__(self, parse: Callable[[Object], T]) -> None:
        self._parse = parse
        self._entries: dict[Key, _Entry[T]] = {}
        self._snapshot: Mapping[Key, T] = MappingProxyType({})
        self._stale = False
        self._lock = threading.Lock()
        self.resource_version = ""

    def items(self) -> Mapping[Key, T]:
        """An immutable snapshot; the same one until something changes."""
        with self._lock:
            if self._stale:
                good = {key: entry.value for key, entry in self._entries.items() if entry.value is not None}
                self._snapshot = MappingProxyType(good)
                self._stale = False
            return self._snapshot

    def versions(self) -> dict[Key, tuple[str, str]]:
        """Of everything that is known to exist, poison included: (uid, resourceVersion)."""
        with self._lock:
            return {key: (entry.uid, entry.version) for key, entry in self._entries.items()}

    def replace(self, objects: Iterable[Object], resource_version: str) -> list[Poison]:
        """Exactly these objects exist. Returns those that are poison in a version not seen before."""
        with self._lock:
            gone, poison = set(self._entries), []
            for found in objects:
                gone.discard(_key(found))
                poison += self._upsert(found)
            for key in gone:
                self._delete(key)
            self.resource_version = resource_version
        return poison

    def apply(self, event: WatchEvent) -> list[Poison]:
        """The state after `event`. Returns its object if that is poison. The version advances in every case."""
        with self._lock:
            poison: list[Poison] = []
            if event.type is EventType.DELETED:
                self._delete(_key(event.object))
            elif event.type is not EventType.BOOKMARK:
                poison = self._upsert(event.object)
            self.resource_version = _meta(event.object, "resourceVersion") or self.resource_version
        return poison

    def _upsert(self, found: Object) -> list[Poison]:
        key, uid, version = _key(found), _meta(found, "uid"), _meta(found, "resourceVersion")
        known = self._entries.get(key)
        if known is not None and (known.uid, known.version) == (uid, version):
            return []
        try:
            value = self._parse(found)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one object is that object's problem
            last = known.value if known is not None and known.uid == uid else None
            self._entries[key] = _Entry(uid, version, last)
            self._stale = self._stale or known is not None
            return [Poison(found, error)]
        self._entries[key] = _Entry(uid, version, value)
        self._stale = True
        return []

    def _delete(self, key: Key) -> None:
        if self._entries.pop(key, None) is not None:
            self._stale = True


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a watch lasts, a pause after a failure at most, and one before a kind that is absent is sought again."""

    watch_timeout_s: float = WATCH_TIMEOUT_S
    max_backoff_s: float = 30.0
    absent_s: float = ABSENT_S
    clock: Callable[[], float] = time.monotonic
    rng: random.Random = field(default_factory=random.Random)


class Informer(Generic[T]):
    """Keeps a `Store` current from `start` to `stop`, whatever the API server does. One thread.

    `changed` is called after anything may have changed, `poisoned` once per version of an object that cannot be parsed;
    both from the informer's thread, and neither may block for long.
    """

    def __init__(
        self,
        kube: Kube,
        resource: ResourceType,
        parse: Callable[[Object], T],
        *,
        changed: Callable[[], None],
        poisoned: Callable[[Object, Exception], None],
        restarted: Callable[[], None] = lambda: None,
        optional: bool = False,
        patience: Patience | None = None,
    ) -> None:
        patience = patience or Patience()
        self.resource = resource
        self._absent_s = patience.absent_s if optional else None
        self._absent = False
        self._kube = kube
        self._store = Store(parse)
        self._changed = changed
        self._poisoned = poisoned
        self._clock = patience.clock
        self._backoff = Backoff(patience.rng, max_s=patience.max_backoff_s)
        self._watch_timeout_s = patience.watch_timeout_s
        self._restarted = restarted
        self._synced = False
        self._failure: str | None = None
        self._stopping = threading.Event()
        self._service = Service(f"informer-{resource.plural}", self._run, self._stopping)

    def start(self) -> None:
        """Raises RuntimeError if the process has no thread for it: then it cannot do its work, and is started anew."""
        if not self._service.start():
            raise RuntimeError(f"no thread to watch {self.resource.plural} with")

    def stop(self) -> None:
        """Asks the thread to end. It does at the next event, or at once when the `Kube` is closed too."""
        self._stopping.set()

    def join(self, timeout_s: float) -> bool:
        """Whether the thread has ended."""
        return self._service.join(timeout_s)

    @property
    def synced(self) -> bool:
        """The kind was listed at least once. Stays true in an outage: what is known then is old, not wrong."""
        return self._synced

    @property
    def failure(self) -> str | None:
        """Why the copy cannot be kept current at this moment, for people; None while it is."""
        return self._failure

    def caught_up(self) -> bool:
        """Whether the copy is what the API server says at this moment. One list; raises KubeError.

        A watch that hangs looks like one with no news. A coordinator that begins to act cannot wait for its end, and
        must not act on a world in which something is missing: what no desired state lists is removed.
        """
        objects, _ = self._kube.list(self.resource)
        listed = {_key(each): (_meta(each, "uid"), _meta(each, "resourceVersion")) for each in objects}
        return listed == self._store.versions()

    def items(self) -> Mapping[Key, T]:
        """Every parsed object by (namespace or None, name); the same mapping until something changes."""
        return self._store.items()

    def _run(self) -> None:
        listed = False
        while not self._stopping.is_set():
            try:
                if not listed and not self._list():
                    continue
                listed = False
                self._watch()
                listed = True
            except KubeError as error:
                self._failed(error)
            except Exception as error:  # noqa: BLE001 - a bug in a callback must not end the only source of truth
                _log.exception("informer failed", extra={"resource": self.resource.plural})
                self._failed(KubeError(f"{type(error).__name__}: {error}"))

    def _list(self) -> bool:
        """Whether the kind is there to be watched; if not, some time has passed."""
        try:
            objects, version = self._kube.list(self.resource)
        except NotFound:
            if self._absent_s is None:
                raise
            self._is_absent(self._absent_s)
            return False
        if self._absent:
            self._absent = False
            _log.info("a kind is served by now", extra={"resource": self.resource.plural})
        self._report(self._store.replace(objects, version))
        self._synced = True
        self._healthy()
        self._changed()
        return True

    def _is_absent(self, wait_s: float) -> None:
        """There are no objects of a kind that is not served. Said once; asked again after a while."""
        self._store.replace((), "")
        self._synced = True
        self._healthy()
        self._backoff.reset()
        if not self._absent:
            self._absent = True
            _log.info("a kind is not served, and looked for again", extra={"resource": self.resource.plural})
            self._changed()
        self._stopping.wait(wait_s)

    def _watch(self) -> None:
        """Returns when the watch has run its time. Raises KubeError for every other end."""
        started = self._clock()
        version = self._store.resource_version
        for event in self._kube.watch(self.resource, version, timeout_s=self._watch_timeout_s):
            self._backoff.reset()
            self._report(self._store.apply(event))
            if event.type is not EventType.BOOKMARK:
                self._changed()
            if self._stopping.is_set():
                return
        lasted_s = self._clock() - started
        if lasted_s < FULL_TERM * self._watch_timeout_s:
            raise Unreachable(f"the API server ended a watch after {lasted_s:.1f} s")
        self._backoff.reset()

    def _report(self, poison: Iterable[Poison]) -> None:
        for each in poison:
            fields = {"resource": self.resource.plural, "object": "/".join(filter(None, _key(each.object)))}
            _log.error("skipping an object that cannot be read", extra={**fields, "error": str(each.error)})
            self._poisoned(each.object, each.error)

    def _healthy(self) -> None:
        if self._failure is not None:
            self._failure = None
            _log.info("informer recovered", extra={"resource": self.resource.plural})

    def _failed(self, error: KubeError) -> None:
        """Says so once per outage, and waits. Gone is no outage: the list that follows is routine."""
        if self._stopping.is_set():
            return
        self._restarted()
        delay_s = max(self._backoff.next_s(), min(error.retry_after_s or 0.0, 60.0))
        message = str(error)
        if isinstance(error, NotFound):
            message = f"the API server has no {self.resource.plural}.{self.resource.group}: are the CRDs applied?"
        if not isinstance(error, Gone):
            if self._failure is None:
                fields = {"resource": self.resource.plural, "error": message, "retry_after_s": round(delay_s, 1)}
                _log.warning("cannot list and watch", extra=fields)
            self._failure = message
        self._stopping.wait(delay_s)


def _meta(found: Object, name: str) -> str:
    metadata = found.get("metadata")
    value = metadata.get(name) if isinstance(metadata, Mapping) else None
    return value if isinstance(value, str) else ""


def _key(found: Object) -> Key:
    return _meta(found, "namespace") or None, _meta(found, "name")
