"""The pods that mount a claim at this moment: asked just before the claim would be deleted, and answered by the API
server.

A pod that has not ended counts, also one that no node runs yet. On a real cluster the finalizer
`kubernetes.io/pvc-protection` covers the moment between this look and the deletion; but a claim that goes into
`Terminating` can be mounted by no new pod, so it is better not to begin.
"""

from __future__ import annotations

from coordinator.kube.interface import PODS, Kube
from coordinator.plan.pods import read_pod


def mounting(kube: Kube, namespace: str, claim: str) -> list[str]:
    """The names of the pods. Raises KubeError where they cannot be listed."""
    found, _ = kube.list(PODS, namespace=namespace)
    pods = (read_pod(each) for each in found)
    return sorted(pod.name for pod in pods if pod is not None and claim in pod.claims)
