"""The import of a model into a claim (`spec.pvcRef`): how far it is, and what is written for it. Pure.

    no claim, or not a fit one ──► the reasons of `shared_claim`; nothing is made
    no PodTemplate             ──► ImportNotSupported
    no Job                     ──► ImportPending; it is made
    a Job of somebody else     ──► ImportJobConflict; it is left alone
    a Job that has not succeeded, made for another spec or claim ──► it goes, and is made anew
    ImportPending ──► ImportRunning ──► ImportSucceeded | ImportFailed

Reasons are later KServe's. A Job that succeeded stays whatever the spec says since, unless the claim is another by now.
It counts as the one copy. The model stays in the claim when the cache is deleted: it is the namespace's own disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from coordinator.plan.conditions import Verdict
from coordinator.plan.import_job import CLAIM_UID, SELECTION, SPEC_HASH, STORAGE_KEY, job_name, job_of, made_for
from coordinator.plan.jobs import JOBS, TEMPLATE, Job
from coordinator.plan.mounting import sub_path
from coordinator.plan.ref import Ref
from coordinator.plan.shared_claim import claim_problem
from coordinator.plan.snapshot import Cache, Problem, Snapshot
from coordinator.plan.writes import Verb, Write


@dataclass(frozen=True, slots=True)
class Standing:
    """How far the import of one cache is. `available` and `failed` are of its one copy."""

    reason: str
    message: str
    available: bool = False
    failed: bool = False
    progressing: bool = False

    @property
    def verdicts(self) -> tuple[Verdict, Verdict, Verdict]:
        """Ready, Progressing and Degraded."""
        wrong = not self.available and not self.progressing
        said = self.reason, self.message
        degraded = Verdict("Degraded", True, *said) if wrong else Verdict("Degraded", False, "AsExpected", "")
        return Verdict("Ready", self.available, *said), Verdict("Progressing", self.progressing, *said), degraded

    def status(self, cache: Cache) -> dict[str, Any]:
        """The fields of the status of the cache that it decides; a value of None means that the field is absent."""
        counts = {"available": self.available, "failed": self.failed, "total": True}
        claim = {"namespace": cache.ref.namespace, "name": cache.pvc_ref, "subPath": sub_path(cache)}
        return {
            "copies": {name: 1 for name, there in counts.items() if there},
            "available": f"{int(self.available)}/1",
            "claims": [claim] if self.available else None,
        }


def standing(snapshot: Snapshot, cache: Cache) -> Standing | None:
    """None for a cache of node groups, and while it is not known what there is."""
    if cache.pvc_ref is None or cache.problem is not None or snapshot.imports is None or snapshot.claims is None:
        return None
    problem = claim_problem(snapshot, cache) or _unsupported(snapshot, cache)
    if problem is not None:
        return Standing(problem.reason, problem.message)
    return _of_job(snapshot, cache, snapshot.imports.jobs.get(job_name(cache)))


def _unsupported(snapshot: Snapshot, cache: Cache) -> Problem | None:
    if snapshot.imports is None or snapshot.imports.template is None:
        return Problem(
            "ImportNotSupported",
            f"nothing imports models into claims here: there is no PodTemplate {TEMPLATE} beside the coordinator;"
            " apply k8s/components/imports, or use spec.nodeGroups",
        )
    if cache.credentials.service_account is not None:
        return Problem(
            "ImportCredentialError",
            "an import reads Secrets of its namespace that spec.storage.key names, and no ServiceAccount's: use"
            " spec.storage.key instead of spec.serviceAccountName",
        )
    return None


def _of_job(snapshot: Snapshot, cache: Cache, job: Job | None) -> Standing:
    named = "/".join(job_name(cache))
    if job is not None and job.owner != cache.ref.uid:
        message = f"Job {named} is somebody else's: delete it, or rename the cache"
        return Standing("ImportJobConflict", message)
    if job is None or job.deleting or _is_outdated(snapshot, cache, job):
        return Standing("ImportPending", f"Job {named} is about to be made", progressing=True)
    into = f"PersistentVolumeClaim {cache.ref.namespace}/{cache.pvc_ref}"
    match job.finished:
        case True:
            before = "" if job.annotations.get(SELECTION) == cache.selection else ", as it was asked for before"
            return Standing("ImportSucceeded", f"{into} holds the model in {sub_path(cache)}{before}", available=True)
        case False:
            why = f"Job {named} failed: {job.message or 'its pod says why'}"
            message = f"{why}; `kubectl -n {cache.ref.namespace} logs job/{job.ref.name}`, then `localmodel retry`"
            return Standing("ImportFailed", message, failed=True)
        case None if job.ready:
            return Standing("ImportRunning", f"Job {named} fills {into}", progressing=True)
        case None:
            return Standing("ImportPending", f"Job {named} waits for its pod", progressing=True)


def import_writes(snapshot: Snapshot) -> Iterator[Write]:
    """The Jobs that are missing, and the deletion of those that are for something else."""
    imports, claims = snapshot.imports, snapshot.claims
    if imports is None or claims is None or imports.template is None:
        return
    for cache in snapshot.caches.values():
        if cache.pvc_ref is None or cache.deleted_at is not None or cache.finalizer not in cache.finalizers:
            continue
        if cache.problem is not None or claim_problem(snapshot, cache) or _unsupported(snapshot, cache):
            continue
        job, claim = imports.jobs.get(job_name(cache)), claims[cache.ref.namespace or "", cache.pvc_ref]
        if job is None:
            body = job_of(cache, claim, imports.template, snapshot.kserve.storage_secret)
            namespace, name = job_name(cache)
            yield Write(Verb.CREATE, Ref(JOBS, name, namespace), body)
        elif job.owner == cache.ref.uid and not job.deleting and _is_outdated(snapshot, cache, job):
            yield Write(Verb.DELETE, job.ref, {}, foreground=True)


def is_held_by_job(snapshot: Snapshot, cache: Cache) -> bool:
    """Whether the Job of a cache that is being deleted is, or may be, there."""
    if cache.pvc_ref is None:
        return False
    if snapshot.imports is None or job_name(cache) not in snapshot.imports.final:
        return True
    return job_left(snapshot, cache) is not None


def job_left(snapshot: Snapshot, cache: Cache) -> Job | None:
    """The Job of a cache that is being deleted, where it is known."""
    job = snapshot.imports.jobs.get(job_name(cache)) if snapshot.imports is not None and cache.pvc_ref else None
    return job if job is not None and job.owner == cache.ref.uid else None


def _is_outdated(snapshot: Snapshot, cache: Cache, job: Job) -> bool:
    """It is for another claim or model, or for another spec and not done."""
    wanted, found = _wanted(snapshot, cache), job.annotations
    same_place = all(found.get(name) == wanted[name] for name in (CLAIM_UID, STORAGE_KEY))
    return not same_place or (not job.finished and found.get(SPEC_HASH) != wanted[SPEC_HASH])


def _wanted(snapshot: Snapshot, cache: Cache) -> dict[str, str]:
    """The annotations that its Job would get now. The claim is there, and so is the template."""
    claim = (snapshot.claims or {})[cache.ref.namespace or "", cache.pvc_ref or ""]
    template = (snapshot.imports.template if snapshot.imports is not None else None) or {}
    return made_for(cache, claim, template, snapshot.kserve.storage_secret)
