"""Reads KServe's ConfigMap again and again: KServe's own controller does it each time it reconciles.

One object by name, so no watch and no permission to list. What it says is logged when it changes, and so is that there
is none.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace

from coordinator.kube.interface import CONFIG_MAPS, Denied, Kube, KubeError, NotFound, Object
from coordinator.plan.kserve_config import CONFIG_MAP, KServeConfig, read_config
from coordinator.plan.snapshot import Snapshot

_log = logging.getLogger(__name__)

AGAIN_S = 2.0


class ConfigReader:
    """`current` may be asked from any thread; `look` and `see` belong to the controller's.

    `job_namespace` is the operator's own, which no ConfigMap changes. `changed` is called from another thread.
    """

    def __init__(self, kube: Kube, namespace: str, job_namespace: str | None = None) -> None:
        self.changed: Callable[[], None] = lambda: None
        self._kube = kube
        self._namespace = namespace
        self._job_namespace = job_namespace
        self._lock = threading.Lock()
        self._current: KServeConfig | None = None
        self._asked_at = float("-inf")
        self._asking = False
        self._failure = ""

    @property
    def current(self) -> KServeConfig:
        """What it said last; the defaults until it was first read."""
        return self._current or read_config(None, KServeConfig(), self._job_namespace)

    def see(self, snapshot: Snapshot) -> Snapshot:
        """The same with what it says; until it was read, without what depends on it."""
        if self._current is None:
            snapshot = replace(snapshot, volumes=None, imports=None)
        return replace(snapshot, kserve=self.current)

    def look(self, executor: Executor, now: float) -> None:
        """It is read in another thread, if it was not for a while."""
        with self._lock:
            due = not self._asking and not 0 <= now - self._asked_at < AGAIN_S
            if due:
                self._asking, self._asked_at = True, now
        if due:
            executor.submit(self.read)

    def read(self) -> None:
        """What cannot be read is as it was before, and what may not be read as if it were not there. Never raises."""
        try:
            raw: Object | None = self._kube.get(CONFIG_MAPS, CONFIG_MAP, namespace=self._namespace)
            self._failure = ""
        except NotFound:
            raw, self._failure = None, ""
        except KubeError as error:
            self._failed(str(error))
            if self._current is not None or not isinstance(error, Denied):
                return
            raw = None
        finally:
            with self._lock:
                self._asking = False
        config = read_config(raw, self.current, self._job_namespace)
        before, self._current = self._current, config
        if config != before:
            self._tell(config)
            self.changed()

    def _failed(self, why: str) -> None:
        if why != self._failure:
            fields = {"config_map": f"{self._namespace}/{CONFIG_MAP}", "error": why}
            _log.warning("cannot read KServe's configuration; what it said before holds", extra=fields)
        self._failure = why

    def _tell(self, config: KServeConfig) -> None:
        fields = {
            "config_map": f"{self._namespace}/{CONFIG_MAP}",
            "job_namespace": config.job_namespace,
            "disable_volume_management": config.disable_volume_management,
        }
        if not config.found:
            _log.info("KServe's configuration is not there: defaults are used", extra=fields)
        elif config.problems:
            problems = "; ".join(config.problems)
            _log.warning("part of KServe's configuration cannot be used", extra={**fields, "error": problems})
        else:
            _log.info("KServe's configuration was read", extra=fields)
