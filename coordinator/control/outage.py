"""While the API server cannot be reached it is left alone, for twice as long each time, and that is said once."""

from __future__ import annotations

import logging

from actors.retry import doubled
from coordinator.kube.interface import KubeError

_log = logging.getLogger(__name__)

FIRST_PAUSE_S, MAX_PAUSE_S = 1.0, 30.0


class Outage:
    """Belongs to the controller's loop. `until`: when the API server may be asked again (epoch seconds)."""

    def __init__(self) -> None:
        self.until = 0.0
        self._failures = 0

    def noticed(self, now: float, error: KubeError) -> None:
        """A request was not answered. Of several that were under way the first counts."""
        if now < self.until:
            return
        if not self._failures:
            _log.warning("the API server cannot be written to", extra={"error": str(error)})
        self._failures += 1
        self.until = now + max(doubled(FIRST_PAUSE_S, MAX_PAUSE_S, self._failures), error.retry_after_s or 0.0)

    def over(self) -> None:
        """A request was answered."""
        self._failures = 0
