"""Whether KServe's own LocalModel controller or node agent runs here: two that write the same objects undo each other.

    Deployment kserve-localmodel-controller-manager    ┐ of KServe, not ours under its name, and not scaled to zero
    DaemonSet kserve-localmodelnode-agent              ┘
    Lease kserve-local-model-manager-leader-lock       held in KServe's namespace, by somebody who renews it

Where the controller is to stay (`--beside-kserve=nodes`), only its node agent counts. While one does, nothing is
written and no agent is told anything; it is looked for again, so that scaling it down is all that a switch takes.
Objects are got by name, and what may not be read is taken to be absent.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from actors.service import Service
from actors.times import seconds_of
from coordinator.kube.interface import LEASES, Kube, KubeError, NotFound, Object, ResourceType

DEPLOYMENTS = ResourceType("apps", "v1", "deployments", "Deployment", namespaced=True)
DAEMON_SETS = ResourceType("apps", "v1", "daemonsets", "DaemonSet", namespaced=True)
CONTROLLER = "kserve-localmodel-controller-manager"
AGENT = "kserve-localmodelnode-agent"
LOCKS = ("kserve-local-model-manager-leader-lock", "kserve-local-model-node-manager-leader-lock")
PART_OF, OURS = "app.kubernetes.io/part-of", "localmodel"
"""The label of every object of this project, which may have KServe's names (k8s/overlays/kserve)."""
LOOK_EVERY_S, FIRST_LOOK_S = 10.0, 1.0
UNKNOWN = "it is not known yet whether KServe's own LocalModel runs: the API server does not answer"

_log = logging.getLogger(__name__)


class Neighbours:
    """`standing` says what runs and what to do; None: nothing does, or nobody has been told to look."""

    def __init__(
        self,
        kube: Kube,
        kserve: str,
        home: str,
        *,
        changed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
        controller_stays: bool = False,
    ) -> None:
        """`kserve` is KServe's namespace, `home` this coordinator's. `controller_stays`: only its agents matter."""
        self._kube = kube
        self._namespace = kserve
        self._home = home
        self.changed = changed
        self._clock = clock
        self._controller_stays = controller_stays
        self._stopping = threading.Event()
        self._service = Service("neighbours", self._run, self._stopping)
        self.standing: str | None = None

    def start(self) -> None:
        """Has looked once when it returns. Until a look has been answered, it is as if somebody ran."""
        self.standing = UNKNOWN
        self.look()
        self._service.start()

    def stop(self) -> None:
        self._stopping.set()
        self._service.join(1.0)

    def _run(self) -> None:
        while not self._stopping.wait(FIRST_LOOK_S if self.standing == UNKNOWN else LOOK_EVERY_S):
            self.look()

    def look(self) -> None:
        """Never raises: what cannot be asked is as it was."""
        try:
            found = self._find()
        except KubeError as error:
            _log.debug("cannot tell whether KServe's controller runs", extra={"error": str(error)})
            return
        before, self.standing = self.standing, found
        if found == before:
            return
        if found is not None:
            _log.error("not acting beside KServe's own LocalModel", extra={"error": found})
        elif before != UNKNOWN:
            _log.info("KServe's own LocalModel does not run any more")
        self.changed()

    def _find(self) -> str | None:
        namespace = self._namespace
        deployment = None if self._controller_stays else self._get(DEPLOYMENTS, CONTROLLER)
        daemon_set = self._get(DAEMON_SETS, AGENT)
        steps = []
        if deployment is not None and not _is_ours(deployment) and _number(deployment, "spec", "replicas", 1) > 0:
            steps.append(f"kubectl -n {namespace} scale deployment {CONTROLLER} --replicas=0")
        pods = _number(daemon_set or {}, "status", "desiredNumberScheduled", 0)
        if daemon_set is not None and not _is_ours(daemon_set) and pods > 0:
            steps.append(f"kubectl -n {namespace} delete daemonset {AGENT}")
        if steps:
            which = " and ".join(
                name for name, there in (("controller", deployment), ("node agent", daemon_set)) if there
            )
            return f"KServe's LocalModel {which} runs in namespace {namespace}; scale it down: {'; '.join(steps)}"
        if namespace != self._home:
            for name in LOCKS[1:] if self._controller_stays else LOCKS:
                holder = self._holder(name)
                if holder is not None:
                    return (
                        f"Lease {namespace}/{name} is held by {holder}: a LocalModel controller or agent runs there; "
                        "scale it down, or delete the Lease if it is gone"
                    )
        return None

    def _holder(self, name: str) -> str | None:
        spec: Mapping[str, Any] = (self._get(LEASES, name) or {}).get("spec") or {}
        holder, renewed, lasts = (spec.get(key) for key in ("holderIdentity", "renewTime", "leaseDurationSeconds"))
        at = seconds_of(renewed)
        if not isinstance(holder, str) or not holder or at is None or not isinstance(lasts, int):
            return None
        return holder if at + lasts > self._clock() else None

    def _get(self, resource: ResourceType, name: str) -> Object | None:
        try:
            return self._kube.get(resource, name, namespace=self._namespace)
        except NotFound:
            return None
        except KubeError as error:
            if error.status in (401, 403):
                return None
            raise


def _is_ours(found: Object) -> bool:
    return ((found.get("metadata") or {}).get("labels") or {}).get(PART_OF) == OURS


def _number(found: Object, part: str, name: str, absent: int) -> int:
    value = (found.get(part) or {}).get(name, absent)
    return value if isinstance(value, int) else absent
