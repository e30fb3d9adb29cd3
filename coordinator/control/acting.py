"""Whether this coordinator may act: it leads, it knows the cluster, and what it knows is what the API server says now.

A watch that was away shows the past for a while. Acting on it would bring back what was deleted meanwhile, so before
the first act, and after each time of rest, the informers are compared with the API server.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from coordinator.control.informers import Informers
from coordinator.control.outage import Outage
from coordinator.kube.interface import NAMESPACES, Kube, KubeError

_log = logging.getLogger(__name__)

LOOK_S = 1.0
WATCHED_ANEW_S = 40.0
"""After this every watch has ended and begun anew, so an informer that still differs is behind by moments only."""


class Acting:
    """Belongs to the controller's loop. `since` is epoch seconds; `owner` is the uid of the namespace kube-system."""

    def __init__(self, informers: Informers, kube: Kube, outage: Outage, turned: Callable[[bool], None]) -> None:
        """`turned` is called when it begins, and when it ends."""
        self.owner = ""
        self.since = 0.0
        self._informers = informers
        self._kube = kube
        self._outage = outage
        self._turned = turned
        self._acts = False
        self._leading_since: float | None = None
        self._look_at = 0.0
        self._waiting = False

    def look(self, leading: bool, now: float) -> bool:
        """Leading, everything listed at least once, and the cluster's identity known."""
        may_act = leading and self._informers.synced
        if not may_act:
            self._leading_since, self._waiting = None, False
        if may_act and not self.owner and now >= self._outage.until:
            try:
                self.owner = self._kube.get(NAMESPACES, "kube-system")["metadata"]["uid"]
            except KubeError as error:
                self._outage.noticed(now, error)
        may_act = may_act and bool(self.owner)
        if may_act and not self._acts and not self._caught_up(now):
            return False
        if may_act != self._acts:
            self._acts, self.since = may_act, now
            _log.info("acting" if may_act else "observing only")
            self._turned(may_act)
        return may_act

    def _caught_up(self, now: float) -> bool:
        """Whether the informers know the cluster as it is."""
        if self._leading_since is None:
            self._leading_since = now
        if now < max(self._outage.until, self._look_at):
            return False
        self._look_at = now + LOOK_S
        try:
            current = self._informers.caught_up()
        except KubeError as error:
            self._outage.noticed(now, error)
            return False
        if current or now >= self._leading_since + WATCHED_ANEW_S:
            return True
        if not self._waiting:
            _log.info("waiting until the informers know what the API server says")
        self._waiting = True
        return False
