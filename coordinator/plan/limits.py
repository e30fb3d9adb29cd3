"""Whether a node group's `spec.storageLimit` is enforced or only watched. Pure.

    localmodel.kserve.io/storage-limit: enforce | warn     on the group; the first word
    --storage-limit enforce | warn                         for every group without it
    --storage-limit auto                                   warn where KServe is installed, else enforce

KServe never reads `storageLimit`: groups of clusters that use it hold more than theirs says, and would get no model
any more on the day of the switch. A limit is that of the group's own models, on each of its nodes; groups that share a
folder do not count each other's.
"""

from __future__ import annotations

from enum import StrEnum

from coordinator.plan.snapshot import NodeGroup, Snapshot

ANNOTATION = "localmodel.kserve.io/storage-limit"


class LimitMode(StrEnum):
    """As status says it."""

    ENFORCE = "Enforce"
    WARN = "Warn"


def limit_mode(snapshot: Snapshot, group: NodeGroup) -> LimitMode:
    """The group's own word, or the operator's, or what suits the cluster."""
    for word in (group.annotations.get(ANNOTATION, ""), snapshot.storage_limit):
        for mode in LimitMode:
            if word.lower() == mode.lower():
                return mode
    return LimitMode.WARN if snapshot.kserve.found else LimitMode.ENFORCE


def enforces(snapshot: Snapshot, group: NodeGroup) -> bool:
    return limit_mode(snapshot, group) is LimitMode.ENFORCE
