"""While the API server cannot be reached it is left alone, for twice as long each time, and that is said once."""

from __future__ import annotations

import logging

from coordinator.kube.interface import KubeError

_log = logging.getLogger(__name__)

MAX_PAUSE_S = 30.0


class Outage:
    """Belongs to the controller's loop. `until`: when the API server may be asked again (epoch seconds)."""

    def __init__(self) -> None:
        self.until = 0.0
        self._pause_s = 0.0

    def noticed(self, now: float, error: KubeError) -> None:
        """A request was not answered. Of several that were under way the first counts."""
        if now < self.until:
            return
        if not self._pause_s:
            _log.warning("the API server cannot be written to", extra={"error": str(error)})
        self._pause_s = min(MAX_PAUSE_S, max(1.0, 2 * self._pause_s))
        self.until = now + max(self._pause_s, error.retry_after_s or 0.0)

    def over(self) -> None:
        """A request was answered."""
        self._pause_s = 0.0
