"""One of several replicas acts: the holder of a Lease, and only for as long as it is certain.

    sent ─── renew deadline 10 s ───► stops acting        others wait ─── 15 s after they saw a change ───► take over
      └─ counted from before the request was sent                     └─ on their own clock, which started later

`leading` is computed from the clock, so it turns False on time even while a request hangs or the process was suspended.
Nobody's wall clock is ever compared with anybody else's. The client's own election knows neither of these.

A lead that is lost is sought again: an API server that was away, or another replica that led meanwhile, is no reason to
end. A process that asks `leading` before each act stops at once.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from actors.service import Service
from actors.times import rfc3339
from coordinator.kube.interface import LEASES, Conflict, Kube, KubeError, NotFound, Object

_log = logging.getLogger(__name__)

LOCK_NAME = "kserve-local-model-manager-leader-lock"
"""KServe's, so that its controller and this one never act at the same time."""
JITTER = 1.2
"""The longest wait between two attempts, in retry periods."""


def monotonic() -> float:
    """Seconds that also pass while the machine sleeps, unlike `time.monotonic`."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds, as in client-go. The deadline leaves `lease_s - renew_deadline_s` for what is already under way."""

    lease_s: float = 15.0
    renew_deadline_s: float = 10.0
    retry_s: float = 2.0
    rng: random.Random = field(default_factory=random.Random, compare=False)

    @property
    def request_timeout_s(self) -> float:
        """Of a request for the Lease: under half of the deadline, so that a hung one can be made again in time."""
        return self.renew_deadline_s * 0.4


def claim(lease: Object | None, identity: str, lease_s: float, at: datetime) -> dict[str, Any]:
    """The Lease's next spec if `identity` takes or renews it now."""
    spec: Mapping[str, Any] = (lease or {}).get("spec") or {}
    renewing = spec.get("holderIdentity") == identity
    transitions = spec.get("leaseTransitions")
    transitions = transitions if isinstance(transitions, int) else 0
    stamp = rfc3339(at.timestamp(), "microseconds")
    return {
        "holderIdentity": identity,
        "leaseDurationSeconds": max(1, math.ceil(lease_s)),
        "acquireTime": spec.get("acquireTime") or stamp if renewing else stamp,
        "renewTime": stamp,
        "leaseTransitions": transitions if renewing or lease is None else transitions + 1,
    }


class Rival:
    """Tells when somebody else's Lease has run out, by when it was last seen to change."""

    def __init__(self) -> None:
        self._seen: Mapping[str, Any] | None = None
        self._changed_at = 0.0

    def may_take(self, lease: Object, identity: str, lease_s: float, now: float) -> bool:
        """Whether `identity` may claim `lease` now: it is ours, released, or unchanged for its whole duration."""
        spec = lease.get("spec") or {}
        if spec != self._seen:
            self._seen, self._changed_at = spec, now
        if spec.get("holderIdentity") in (None, "", identity):
            return True
        duration_s = spec.get("leaseDurationSeconds")
        duration_s = duration_s if isinstance(duration_s, int) and duration_s > 0 else lease_s
        return now - self._changed_at > duration_s


class Leader:
    """Seeks the Lease from `start` to `release`. One thread.

    `kube` should be its own, with the timeout that its timing names. `changed` is called from the thread when it
    notices that `leading` has become True or False; to act or not is decided by `leading` itself.
    """

    def __init__(
        self,
        kube: Kube,
        identity: str,
        namespace: str,
        name: str = LOCK_NAME,
        *,
        changed: Callable[[bool], None] = lambda leading: None,
        timing: Timing | None = None,
        clock: Callable[[], float] = monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.identity = identity
        self._kube = kube
        self._namespace = namespace
        self._name = name
        self._changed = changed
        self._timing = timing or Timing()
        self._clock = clock
        self._now = now
        self._rival = Rival()
        self._lease: Object | None = None
        self._renewed_at: float | None = None
        self._said = False
        self._holder: object = None
        self._failure: str | None = None
        self._stopping = threading.Event()
        self._service = Service("leader", self._run, self._stopping)

    @property
    def leading(self) -> bool:
        """Whether this replica may act at this moment."""
        renewed_at = self._renewed_at
        return renewed_at is not None and self._clock() - renewed_at < self._timing.renew_deadline_s

    @property
    def failure(self) -> str | None:
        """Why the Lease cannot be read or written; None while it can, whoever holds it."""
        return self._failure

    def start(self) -> None:
        """Raises RuntimeError if the process has no thread for it: then it cannot do its work, and is started anew."""
        if not self._service.start():
            raise RuntimeError("no thread to hold the leader lease with")

    def release(self, timeout_s: float = 10.0) -> None:
        """Gives the Lease back so that another takes over at once. Call it after the last act."""
        self._stopping.set()
        self._service.join(timeout_s)
        held, self._renewed_at = self.leading, None
        if held and self._lease is not None and not self._service.alive:
            spec = {**claim(self._lease, self.identity, 1, self._now()), "holderIdentity": ""}
            try:
                self._write(self._lease, spec)
                _log.info("released the leader lease")
            except KubeError as error:
                _log.warning("cannot release the leader lease; it will expire", extra={"error": str(error)})
        self._notice()

    def step(self) -> None:
        """One attempt to take or renew the Lease. Never raises."""
        try:
            self._attempt()
            self._failure = None
        except Conflict:
            self._lease = None  # somebody else was faster: look again before the next attempt
        except KubeError as error:
            self._lease = None  # the write may have arrived, or not
            self._fail(str(error))
        except Exception as error:  # noqa: BLE001 - an election that ends would leave nobody leading
            self._lease = None
            _log.exception("leader election failed")
            self._fail(f"{type(error).__name__}: {error}")
        self._notice()

    def _attempt(self) -> None:
        if self._lease is None or not self.leading:
            try:
                self._lease = self._kube.get(LEASES, self._name, namespace=self._namespace)
            except NotFound:
                self._lease = None
            if self._lease is not None and not self._rival.may_take(
                self._lease, self.identity, self._timing.lease_s, self._clock()
            ):
                self._renewed_at = None
                self._follow(self._lease)
                return
        sent_at = self._clock()
        self._lease = self._write(self._lease, claim(self._lease, self.identity, self._timing.lease_s, self._now()))
        if not self._stopping.is_set():  # a request that hung until after `release` must not bring the lead back
            self._renewed_at = sent_at

    def _write(self, lease: Object | None, spec: Mapping[str, Any]) -> Object:
        if lease is None:
            metadata = {"name": self._name, "namespace": self._namespace}
            body = {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": metadata, "spec": spec}
            return self._kube.create(LEASES, body, namespace=self._namespace)
        return self._kube.replace(LEASES, self._name, {**lease, "spec": spec}, namespace=self._namespace)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.step()
            self._stopping.wait(self._timing.retry_s * self._timing.rng.uniform(0.8, JITTER))

    def _fail(self, message: str) -> None:
        if self._failure is None:
            _log.warning("cannot hold the leader lease", extra={"error": message})
        self._failure = message

    def _follow(self, lease: Object) -> None:
        """Says who leads, once for each."""
        holder = (lease.get("spec") or {}).get("holderIdentity")
        if holder != self._holder:
            self._holder = holder
            _log.info("another replica leads", extra={"identity": self.identity, "holder": holder})

    def _notice(self) -> None:
        leading = self.leading
        if leading == self._said:
            return
        self._said = leading
        if leading:
            self._holder = None
            _log.info("leading", extra={"identity": self.identity})
        elif self._stopping.is_set():
            _log.info("not leading", extra={"identity": self.identity})
        else:
            why = self._failure or "another replica holds it"
            _log.warning("the leader lease is lost; it is sought again", extra={"identity": self.identity, "why": why})
        self._changed(leading)
