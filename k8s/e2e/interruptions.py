"""What fetches a model is taken away in the middle: the model is whole then, and the origin was read about once."""

from __future__ import annotations

from collections.abc import Callable

from k8s.e2e import origin
from k8s.e2e.cluster import Cluster, Failed
from k8s.e2e.install import AGENTS, HOME, Images, rolled_out
from k8s.e2e.models import cache, read_everywhere, ready, status
from k8s.e2e.origin import SLOW_URI
from k8s.e2e.stand_in import SLOW_BYTES, SLOW_PORT

CACHE = "e2e-interrupted"
MIDDLE = (0.15, 0.85)
"""Of the bytes of a copy: on the average of the nodes, so much is there when the fill is interrupted."""
MOST_TIMES = 1.5
AT_ONCE = ("--force", "--grace-period=0", "--wait=true")


def interrupted(cluster: Cluster, images: Images, interrupt: Callable[[Cluster], str]) -> str:
    """A cache whose fill is interrupted. It is deleted at the end, so that the next one begins with empty disks."""
    before = origin.bytes_read(cluster, SLOW_PORT)
    cluster.apply(cache(CACHE, SLOW_URI))
    try:
        cluster.until("the model is fetched in part", lambda: _share(cluster) > MIDDLE[0] or _share(cluster))
        share = _share(cluster)
        if share > MIDDLE[1]:
            raise Failed(f"{share:.0%} was there already: the origin is too fast to interrupt a fill")
        said = interrupt(cluster)
        ready(cluster, CACHE)
        times = (origin.bytes_read(cluster, SLOW_PORT) - before) / SLOW_BYTES
        if times > MOST_TIMES:
            raise Failed(f"{said} at {share:.0%}; the origin was read {times:.2f} times")
        read = read_everywhere(cluster, images, CACHE, SLOW_URI)
        return f"{said} at {share:.0%}; the origin was read {times:.2f} times; {read}"
    finally:
        cluster.until(f"{CACHE} is deleted", lambda: _deleted(cluster))


def agent_lost(cluster: Cluster) -> str:
    """The pod of one node is killed."""
    (pod, *_) = _pods(cluster, "app.kubernetes.io/component=agent")
    cluster.delete("-n", HOME, "pod", pod, *AT_ONCE)
    return f"{pod} killed"


def agents_rolled(cluster: Cluster) -> str:
    """Every node's pod is replaced, one after the other."""
    cluster.kubectl("-n", HOME, "rollout", "restart", AGENTS)
    rolled_out(cluster, AGENTS)
    return "agents rolled"


def coordinator_lost(cluster: Cluster) -> str:
    pods = _pods(cluster, "app.kubernetes.io/component=coordinator")
    cluster.delete("-n", HOME, "pod", *pods, *AT_ONCE)
    return f"{', '.join(pods)} killed"


def head_lost(cluster: Cluster) -> str:
    (pod,) = _pods(cluster, "ray.io/node-type=head")
    cluster.delete("-n", HOME, "pod", pod, *AT_ONCE)
    return f"{pod} killed"


def ray_cluster_made_again(cluster: Cluster) -> str:
    """The RayCluster is deleted, with its head and its token, and applied again."""
    made = cluster.find("-n", HOME, "raycluster", "localmodel")
    keep = {key: made["metadata"][key] for key in ("name", "namespace", "labels") if key in made["metadata"]}
    cluster.delete("-n", HOME, "raycluster", "localmodel")
    cluster.apply({**{key: made[key] for key in ("apiVersion", "kind", "spec")}, "metadata": keep})
    return "RayCluster made again"


NAMED: dict[str, Callable[[Cluster], str]] = {
    "agent lost": agent_lost,
    "agents rolled": agents_rolled,
    "coordinator lost": coordinator_lost,
    "head lost": head_lost,
    "cluster made again": ray_cluster_made_again,
}


def _deleted(cluster: Cluster) -> object:
    """True once it is. A write waits for the webhooks, and with them for a coordinator that is started again."""
    try:
        cluster.delete("localmodelcache", CACHE)
    except Failed as error:
        return str(error)
    return True


def _share(cluster: Cluster) -> float:
    """Of the bytes of all copies that are there."""
    found = status(cluster, CACHE)
    nodes = len(found.get("nodeStatus") or ())
    return float((found.get("bytes") or {}).get("cached", 0)) / (nodes * SLOW_BYTES) if nodes else 0.0


def _pods(cluster: Cluster, selector: str) -> list[str]:
    return [each["metadata"]["name"] for each in cluster.items("-n", HOME, "pods", "-l", selector)]
