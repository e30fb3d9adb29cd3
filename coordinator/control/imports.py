"""Looks at what imports into claims need: the operator's PodTemplate, and the Job of every cache with a `pvcRef`.

Each is got by name, in a thread, and only while there is such a cache: no Jobs of others are listed or watched, and a
cluster without one is not asked at all. An object that may not be read is taken to be absent.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import replace

from coordinator.kube.interface import Denied, Kube, KubeError, NotFound, Object, ResourceType
from coordinator.plan.bindings import ClaimName
from coordinator.plan.import_job import job_name
from coordinator.plan.jobs import JOBS, POD_TEMPLATES, TEMPLATE, Imports, Job, read_job, read_template
from coordinator.plan.snapshot import Snapshot

_log = logging.getLogger(__name__)

AGAIN_S = 2.0
DONE_AGAIN_S = 30.0
"""Of a Job that has succeeded: it changes only when somebody deletes it."""


class ImportReader:
    """`look` and `see` belong to the controller's thread."""

    def __init__(self, kube: Kube, executor: Executor, home: str, changed: Callable[[], None]) -> None:
        """`home` is the coordinator's namespace; `changed` is called from another thread."""
        self._kube = kube
        self._executor = executor
        self._home = home
        self._changed = changed
        self._lock = threading.Lock()
        self._current: Imports | None = None
        self._seen: dict[ClaimName, float] = {}
        self._asked_at = float("-inf")
        self._asking = False

    def see(self, snapshot: Snapshot, now: float) -> Snapshot:
        """The same with what is known of them; they are looked at again in another thread, if they were not lately."""
        caches = [cache for cache in snapshot.caches.values() if cache.pvc_ref is not None]
        if not caches:
            self._current = None
            return snapshot
        names = {job_name(cache): cache.deleted_at is not None for cache in caches}
        with self._lock:
            due = not self._asking and not 0 <= now - self._asked_at < AGAIN_S
            if due:
                self._asking, self._asked_at = True, now
        if due:
            self._executor.submit(self._read, names, now)
        return replace(snapshot, imports=self._current)

    def _read(self, names: Mapping[ClaimName, bool], now: float) -> None:
        """`names` say of which the cache is being deleted. An answer that fails changes nothing. Never raises."""
        try:
            before = self._current
            template = read_template(self._get(POD_TEMPLATES, (self._home, TEMPLATE)))
            known = before.jobs if before is not None else {}
            found = {
                name: self._job(name, known.get(name) if not going else None, now) for name, going in names.items()
            }
            jobs = {name: job for name, job in found.items() if job is not None}
            self._current = Imports(template, jobs, frozenset(name for name, going in names.items() if going))
        except KubeError as error:
            _log.debug("cannot look at the Jobs of imports", extra={"error": str(error)})
            return
        finally:
            with self._lock:
                self._asking = False
        if before is None or before.template != template or _essence(before) != _essence(self._current):
            self._changed()

    def _job(self, name: ClaimName, before: Job | None, now: float) -> Job | None:
        if before is not None and before.finished and 0 <= now - self._seen.get(name, 0.0) < DONE_AGAIN_S:
            return before
        self._seen[name] = now
        raw = self._get(JOBS, name)
        return read_job(raw) if raw is not None else None

    def _get(self, resource: ResourceType, of: ClaimName) -> Object | None:
        namespace, name = of
        try:
            return self._kube.get(resource, name, namespace=namespace)
        except (NotFound, Denied):
            return None


def _essence(imports: Imports) -> object:
    jobs = {name: (job.ref.uid, job.finished, job.ready, job.deleting) for name, job in imports.jobs.items()}
    return jobs, imports.final
