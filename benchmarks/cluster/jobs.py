"""KServe's way: a Job on each node, which runs a downloader image of the user's choice into a volume of its own.

metadata.labels   localmodel.kserve.io/benchmark: NAME           by which they are found again, and removed
spec.template     affinity: metadata.name In [NODE]               the scheduler still decides, and so does kubelet
                  volumes: emptyDir, or what --volume says        mounted at /mnt/models
                  containers: IMAGE URI /mnt/models               as KServe calls its storage initializer
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.cluster.caches import POLL_S, Unmeasured
from coordinator.kube.interface import NODES, PODS, Kube, NotFound, Object, ResourceType
from coordinator.kube.node_selector import compile_selector
from coordinator.plan.snapshot import NODE_GROUPS

JOBS = ResourceType("batch", "v1", "jobs", "Job", namespaced=True)
LABEL = "localmodel.kserve.io/benchmark"
MOUNT = "/mnt/models"


@dataclass(frozen=True, slots=True)
class Downloader:
    """`command`: empty takes the image's own. In `arguments` {uri} and {dir} are put in."""

    image: str
    uri: str
    namespace: str
    command: Sequence[str] = ()
    arguments: Sequence[str] = ("{uri}", "{dir}")
    volume: Mapping[str, Any] = field(default_factory=lambda: {"emptyDir": {}})
    env_from_secret: str | None = None

    def job(self, name: str, number: int, node: str) -> Object:
        """The Job of one node. It fails at once, rather than try again: a try too many is no measurement."""
        labels = {LABEL: name}
        here = {"key": "metadata.name", "operator": "In", "values": [node]}
        affinity = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": [here]}]}}
        arguments = [each.format(uri=self.uri, dir=MOUNT) for each in self.arguments]
        container: dict[str, Any] = {"name": "downloader", "image": self.image, "args": arguments}
        container["volumeMounts"] = [{"name": "models", "mountPath": MOUNT}]
        if self.command:
            container["command"] = list(self.command)
        if self.env_from_secret:
            container["envFrom"] = [{"secretRef": {"name": self.env_from_secret}}]
        pod = {
            "restartPolicy": "Never",
            "affinity": {"nodeAffinity": affinity},
            "tolerations": [{"operator": "Exists"}],
            "containers": [container],
            "volumes": [{"name": "models", **self.volume}],
        }
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": f"{name}-{number}", "namespace": self.namespace, "labels": labels},
            "spec": {"backoffLimit": 0, "template": {"metadata": {"labels": labels}, "spec": pod}},
        }


def nodes_of(kube: Kube, groups: Sequence[str]) -> list[str]:
    """The nodes that the groups' volumes select. Raises Unmeasured for a group that there is not."""
    nodes, _ = kube.list(NODES)
    found = set()
    for group in groups:
        try:
            volume = kube.get(NODE_GROUPS, group)["spec"]["persistentVolumeSpec"]
        except NotFound as error:
            raise Unmeasured(f"there is no LocalModelNodeGroup {group}: kubectl get lmng") from error
        selector = compile_selector((volume.get("nodeAffinity") or {}).get("required") or {})
        for each in (node["metadata"] for node in nodes):
            if selector.matches(each["name"], each.get("labels") or {}):
                found.add(each["name"])
    if not found:
        raise Unmeasured(f"no node belongs to {', '.join(groups)}: kubectl get nodes --show-labels")
    return sorted(found)


def fill(
    kube: Kube, name: str, downloader: Downloader, nodes: Sequence[str], timeout_s: float, say: Callable[[str], None]
) -> dict[str, float]:
    """Creates a Job on each node and returns, by node, after how many seconds it was seen to be complete.

    Raises Unmeasured when one fails, or is not complete in time.
    """
    by_job = {f"{name}-{number}": node for number, node in enumerate(nodes)}
    done: dict[str, float] = {}
    began = time.monotonic()
    for number, node in enumerate(nodes):
        kube.create(JOBS, downloader.job(name, number, node), namespace=downloader.namespace)
    while True:
        now = time.monotonic() - began
        for job in _labelled(kube, JOBS, downloader.namespace, name):
            node = by_job[job["metadata"]["name"]]
            for condition in job.get("status", {}).get("conditions") or ():
                if condition["type"] == "Failed" and condition["status"] == "True":
                    why = condition.get("message") or condition.get("reason") or "it does not say why"
                    log = f"kubectl logs -n {downloader.namespace} job/{job['metadata']['name']} (with --keep)"
                    raise Unmeasured(f"the Job on {node} failed: {why}; {log}")
                if condition["type"] == "Complete" and condition["status"] == "True" and node not in done:
                    done[node] = now
                    say(f"{now:6.1f}s  {len(done)}/{len(nodes)} Jobs are complete")
        if len(done) == len(nodes):
            return done
        if now > timeout_s:
            left = ", ".join(sorted(set(nodes) - done.keys()))
            look = f"kubectl get pods -n {downloader.namespace}"
            raise Unmeasured(f"not complete within {timeout_s:g} s: the Jobs on {left}; {look}")
        time.sleep(POLL_S)


def remove(kube: Kube, name: str, namespace: str) -> None:
    """The Jobs are gone, and their pods, which a Job that is deleted through the API leaves behind."""
    for kind in (JOBS, PODS):
        for each in _labelled(kube, kind, namespace, name):
            try:
                kube.delete(kind, each["metadata"]["name"], namespace=namespace)
            except NotFound:
                continue


def _labelled(kube: Kube, kind: ResourceType, namespace: str, name: str) -> list[Object]:
    found, _ = kube.list(kind, namespace=namespace)
    return [each for each in found if (each["metadata"].get("labels") or {}).get(LABEL) == name]
