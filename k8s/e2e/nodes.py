"""Nodes are drained and agents rolled, and what they hold is never fetched again."""

from __future__ import annotations

from k8s.e2e import origin
from k8s.e2e.cluster import Cluster, Failed
from k8s.e2e.install import AGENTS, HOME, rolled_out
from k8s.e2e.models import HUB_CACHE, ready
from k8s.e2e.stand_in import MODEL_BYTES


def drain(cluster: Cluster) -> str:
    """A node is drained and comes back: the cache stays Ready, and the origin is not read."""
    (node, *_) = (cluster.find("localmodelcache", HUB_CACHE) or {})["status"]["nodeStatus"]
    before = origin.bytes_read(cluster)
    flags = ("--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=300s")
    try:
        cluster.kubectl("drain", node, *flags, timeout_s=310)
        cluster.kubectl(
            "-n", origin.NAMESPACE, "rollout", "status", "deployment/origin", "--timeout=300s", timeout_s=310
        )
        ready(cluster, HUB_CACHE)
    finally:
        cluster.kubectl("uncordon", node)
    ready(cluster, HUB_CACHE)
    return f"{node}; {_unread(cluster, before)}"


def upgrade(cluster: Cluster) -> str:
    """Agents get a new template, node by node, and the coordinator another pod; the cache is Ready throughout."""
    before = origin.bytes_read(cluster)
    since = cluster.condition("localmodelcache", HUB_CACHE).get("lastTransitionTime")
    for what in (AGENTS, "deployment/localmodel-coordinator"):
        cluster.kubectl("-n", HOME, "rollout", "restart", what)
        rolled_out(cluster, what)
    ready(cluster, HUB_CACHE)
    if cluster.condition("localmodelcache", HUB_CACHE).get("lastTransitionTime") != since:
        raise Failed(f"{HUB_CACHE} was not Ready for a while")
    return _unread(cluster, before)


def _unread(cluster: Cluster, before: int) -> str:
    """`before` may be of another pod of the origin, whose count was higher."""
    read = origin.bytes_read(cluster)
    read = read - before if read >= before else read
    if read > MODEL_BYTES // 10:
        raise Failed(f"{read} bytes were read again from the origin")
    return f"{read} bytes were read again"
