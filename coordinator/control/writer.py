"""Sends what a plan writes, in threads and within a budget; what came of it is looked at by the loop.

A Conflict or NotFound means that the snapshot was old, and the next plan is made from a newer one. What the API server
refuses is tried again with growing patience. What it did not answer has not happened, and all writes pause for a while.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor

from coordinator.control.mounts import mounting
from coordinator.control.outage import Outage
from coordinator.control.pruning import Pruning
from coordinator.control.write_pacing import Pace
from coordinator.kube.interface import Conflict, Invalid, Kube, KubeError, NotFound, Object, Unreachable
from coordinator.plan.announcements import Announcement
from coordinator.plan.writes import Verb, Write

_log = logging.getLogger(__name__)


class Writer:
    """`send` and `settle` belong to the controller's loop."""

    def __init__(
        self,
        kube: Kube,
        executor: Executor,
        pace: Pace,
        pruning: Pruning,
        outage: Outage,
        leading: Callable[[], bool],
        announce: Callable[[Iterable[Announcement]], None],
    ) -> None:
        """Nothing is sent while not `leading`, also what was given to `executor` before."""
        self._kube = kube
        self._executor = executor
        self._pace = pace
        self._pruning = pruning
        self._outage = outage
        self._leading = leading
        self._announce = announce
        self._outcomes: deque[tuple[Write, Object | None, KubeError | None]] = deque()

    def send(self, writes: Sequence[Write], now: float) -> None:
        """As many of them as there is budget for."""
        for write in [] if now < self._outage.until else self._pace.admit(writes, now):
            self._executor.submit(self._send, write)

    def settle(self, now: float) -> None:
        """Looks at the writes that were answered since; their Events are sent."""
        while self._outcomes:
            write, answer, error = self._outcomes.popleft()
            match error:
                case None:
                    self._pace.finished(write.ref)
                    self._outage.over()
                    if answer is None or not self._pruning.notice(write, answer, now) or not write.probe:
                        self._announce(write.events)
                case Conflict():
                    self._pace.finished(write.ref)
                case NotFound() if write.verb is not Verb.CREATE:  # a namespace that is missing stays so for a while
                    self._pace.finished(write.ref)
                case Unreachable():
                    self._pace.forget(write.ref)
                    self._outage.noticed(now, error)
                case _:
                    delay = self._pace.refused(write.ref, now)
                    if isinstance(error, Invalid):  # an object that was written past its schema has no other voice
                        self._announce(event for event in write.events if event.warning)
                    fields = {**_fields(write), "error": str(error), "retry_after_s": delay}
                    _log.warning("the API server refused a write", extra=fields)

    def close(self, now: float) -> None:
        """Waits for the writes under way, and says what came of them; nothing more is sent."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        self.settle(now)

    # --- in a writer thread ---

    def _send(self, write: Write) -> None:
        if not self._leading():
            self._outcomes.append((write, None, Conflict("no longer leading")))
            return
        try:
            self._outcomes.append((write, self._request(write), None))
        except KubeError as error:
            self._outcomes.append((write, None, error))
        except Exception as error:  # noqa: BLE001 - the seam promises KubeError only; anything else must not wedge it
            _log.exception("write failed", extra=_fields(write))
            self._outcomes.append((write, None, KubeError(str(error))))

    def _request(self, write: Write) -> Object | None:
        ref, kube = write.ref, self._kube
        match write.verb:
            case Verb.CREATE:
                return kube.create(ref.resource, write.body, namespace=ref.namespace)
            case Verb.DELETE:
                if write.unmounted and (pods := mounting(kube, ref.namespace or "", ref.name)):
                    raise Conflict(f"{', '.join(pods[:3])} of {ref.namespace} mount the claim {ref.name}")
                kube.delete(
                    ref.resource,
                    ref.name,
                    namespace=ref.namespace,
                    uid=ref.uid,
                    version=ref.version,
                    foreground=write.foreground,
                )
                return None
            case _:
                subresource = "status" if write.verb is Verb.PATCH_STATUS else None
                return kube.patch(ref.resource, ref.name, write.body, namespace=ref.namespace, subresource=subresource)


def _fields(write: Write) -> dict[str, str | None]:
    ref = write.ref
    return {"verb": write.verb.value, "kind": ref.resource.kind, "namespace": ref.namespace, "object": ref.name}
