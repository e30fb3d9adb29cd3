"""Which folder of its node a claim is: the path of the local or hostPath PersistentVolume that it is bound to.

A claim's name need not say what is behind it: people make volumes of their own over a model's folder, and a cache that
it was named after may be gone. What a claim of a running pod is bound to does not change while the pod exists, so it is
asked for once per pod. Belongs to the thread that looks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from coordinator.kube.interface import CLAIMS, VOLUMES, Kube, NotFound
from coordinator.kube.parts import mapping_of
from coordinator.plan.pods import Pod

Known = Mapping[tuple[str, str], str]
"""The folder behind each claim of each pod: (uid of the pod, claim). "" where it is not one of the node."""


def followed(kube: Kube, pods: Iterable[Pod], known: Known) -> tuple[tuple[Pod, ...], Known]:
    """The pods with what they mount by way of their claims, and what is `known` of those that are there now.

    Raises KubeError where that cannot be told.
    """
    seen: dict[tuple[str, str], str] = {}
    asked: dict[tuple[str, str], str | None] = {}
    found = []
    for pod in pods:
        paths: dict[str, str] = {}
        for claim in {claim for claim, _ in pod.mounts}:
            name, path = (pod.uid, claim), known.get((pod.uid, claim))
            if path is None:
                if (pod.namespace, claim) not in asked:
                    asked[pod.namespace, claim] = _folder(kube, pod.namespace, claim)
                path = asked[pod.namespace, claim]
            if path is not None and pod.uid:
                seen[name] = path
            if path:
                paths[claim] = path
        found.append(pod.over(paths))
    return tuple(found), seen


def _folder(kube: Kube, namespace: str, claim: str) -> str | None:
    """None: the claim is not bound, so no container has it yet."""
    try:
        volume = mapping_of(kube.get(CLAIMS, claim, namespace=namespace).get("spec")).get("volumeName")
        if not isinstance(volume, str) or not volume:
            return None
        spec = mapping_of(kube.get(VOLUMES, volume).get("spec"))
    except NotFound:
        return None
    path = mapping_of(spec.get("local")).get("path") or mapping_of(spec.get("hostPath")).get("path")
    return path if isinstance(path, str) else ""
