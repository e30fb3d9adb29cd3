"""Conditions as they stand in a status, and those of a cache that is being deleted.

`lastTransitionTime` moves only with `status`. Which verdict there is on a cache that is not being deleted: `verdicts`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from actors.messages import NodeName
from actors.redaction import redacted
from actors.times import rfc3339
from coordinator.plan.pods import Pod
from coordinator.plan.snapshot import DELETE_IN_USE, Cache

NAMED_NODES = 3
"""How many nodes a message names before it counts the rest."""

WAITING = frozenset(
    {
        "AgentOutdated",
        "AgentRestarting",
        "AgentStarting",
        "Evicted",
        "NodeCordoned",
        "NodeDraining",
        "NodeNotReady",
        "Unproven",
        "WaitingForOrigin",
    }
)
"""Reasons that explain a delay and are not worth attention by themselves."""


Users = Mapping[NodeName, Sequence[Pod]]


class Verdict(NamedTuple):
    """A condition without its times."""

    type: str
    status: bool
    reason: str
    message: str


def deleting(
    cache: Cache, waiting: Sequence[NodeName], until: float | None, users: Users, unknown: str | None
) -> tuple[Verdict, Verdict, Verdict]:
    """The conditions of a cache whose copies are being removed. `waiting`: nodes with no agent to confirm it.

    `users` are the pods that still use a copy, by node; `unknown` says why nobody can tell whether any does.
    """
    reason, message = _held_up(cache, users, unknown)
    warn = reason == "PodsUnknown"
    if waiting:
        silent = f"waiting for the node agent on {name_nodes(waiting)} to remove its copy"
        if until is not None:
            silent += f"; not waiting longer than {rfc3339(until)}"
        message = silent if reason == "Deleting" else f"{message}; {silent}"
    degraded = "AgentUnavailable" if waiting else reason if warn else "AsExpected"
    return (
        Verdict("Ready", False, reason, message),
        Verdict("Progressing", True, reason, message),
        Verdict("Degraded", bool(waiting) or warn, degraded, message if waiting or warn else ""),
    )


def _held_up(cache: Cache, users: Users, unknown: str | None) -> tuple[str, str]:
    """What the removal of the copies waits for, as reason and message."""
    at_once = f", or at once with the annotation {DELETE_IN_USE}=true"
    if users:
        pods, foreign = name_pods(cache.ref.namespace, users)
        verb = "uses" if len(pods) == 1 and not foreign else "use"
        message = f"{name_nodes(pods)} {verb} the copy on {name_nodes(users)}; it is removed when no pod does"
        return "InUse", message + (at_once if not foreign and not cache.delete_in_use else "")
    if unknown is not None:
        message = f"cannot list the pods that may use the copies: {unknown}; they are removed when that is possible"
        return "PodsUnknown", message + (at_once if cache.ref.namespace is None else "")
    return "Deleting", "copies are being removed"


def name_pods(namespace: str | None, users: Users) -> tuple[list[str], bool]:
    """The pods as whoever reads an object of this namespace may know them, and whether there are others."""
    all_pods = {pod for of_node in users.values() for pod in of_node}
    own = {pod for pod in all_pods if namespace in (None, pod.namespace)}
    named = sorted(f"{pod.namespace}/{pod.name}" for pod in own)
    foreign = len(own) < len(all_pods)
    return [*named, *(["pods of other namespaces"] if foreign else [])], foreign


def conditions(cache: Cache, wanted: Iterable[Verdict], now: float) -> list[Mapping[str, Any]]:
    """`wanted` as metav1.Conditions. Conditions of other types that are already in the object are kept."""
    current = cache.status.get("conditions")
    known = (
        {c["type"]: c for c in current if isinstance(c, Mapping) and "type" in c} if isinstance(current, list) else {}
    )
    result: list[Mapping[str, Any]] = []
    for verdict in wanted:
        before, status = known.pop(verdict.type, {}), "True" if verdict.status else "False"
        since = before.get("lastTransitionTime") if before.get("status") == status else None
        result.append(
            {
                "type": verdict.type,
                "status": status,
                "reason": verdict.reason,
                "message": redacted(verdict.message),
                "lastTransitionTime": since or rfc3339(now),
                "observedGeneration": cache.generation,
            }
        )
    return result + list(known.values())


def name_nodes(nodes: Iterable[str]) -> str:
    """`n1, n2, n3 and 4 more`."""
    ordered = sorted(nodes)
    shown = ", ".join(ordered[:NAMED_NODES])
    return shown if len(ordered) <= NAMED_NODES else f"{shown} and {len(ordered) - NAMED_NODES} more"
