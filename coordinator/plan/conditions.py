"""Ready, Progressing and Degraded: what `kubectl wait` waits for and `kubectl describe` explains.

    Ready         True   every member node holds the model, and there is at least one; also while some hold it as the
                         spec asked for it before (reason EarlierRevision)
                  False  reason: the most important thing that keeps it from being so
    Progressing   True   something is under way, or will be tried again by itself
                  False  done, or waiting for a person
    Degraded      True   something needs attention, even where the model is Ready
                  False  nothing does

"Most important" is one order for all three: what is wrong with the request, then with its node groups, then the failure
that can only be helped by a person, then the one that most nodes have. `lastTransitionTime` moves only with `status`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from actors.errors import Failure
from actors.messages import NodeName
from actors.redaction import redacted
from actors.times import rfc3339
from coordinator.kube.quantity import format_bytes, format_duration
from coordinator.plan.pods import Pod
from coordinator.plan.snapshot import DELETE_IN_USE, Cache, Problem
from coordinator.plan.tally import SourceState, Tally

NAMED_NODES = 3
"""How many nodes a message names before it counts the rest."""

WAITING = frozenset(
    {
        "AgentOutdated",
        "AgentRestarting",
        "AgentStarting",
        "Evicted",
        "NodeCordoned",
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


def verdicts(tally: Tally, problems: Sequence[Problem], duplicate: Cache | None) -> tuple[Verdict, Verdict, Verdict]:
    """Ready, Progressing and Degraded of a cache that is not being deleted.

    `problems` are those of its spec and its node groups; `duplicate` is an older cluster cache of the same URI.
    """
    trouble = _trouble(tally)
    ready = _ready(tally, problems, trouble)
    return ready, _progressing(tally, ready, trouble), _degraded(tally, problems, trouble, duplicate)


def deleting(
    cache: Cache, waiting: Sequence[NodeName], until: float | None, users: Users, unknown: str | None
) -> tuple[Verdict, Verdict, Verdict]:
    """The conditions of a cache whose copies are being removed. `waiting`: nodes with no agent to confirm it.

    `users` are the pods that still use a copy, by node; `unknown` says why nobody can tell whether any does.
    """
    reason, message, warn = "Deleting", "copies are being removed", False
    if users:
        pods, foreign = name_pods(cache.ref.namespace, users)
        verb = "uses" if len(pods) == 1 and not foreign else "use"
        reason = "InUse"
        message = f"{name_nodes(pods)} {verb} the copy on {name_nodes(users)}; it is removed when no pod does"
        if not foreign and not cache.delete_in_use:
            message += f", or at once with the annotation {DELETE_IN_USE}=true"
    elif unknown is not None:
        reason, warn = "PodsUnknown", True
        message = f"cannot list the pods that may use the copies: {unknown}; they are removed when that is possible"
        if cache.ref.namespace is None:
            message += f", or at once with the annotation {DELETE_IN_USE}=true"
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


class _Trouble(NamedTuple):
    reason: str
    message: str
    retryable: bool
    waiting: bool


def _trouble(tally: Tally) -> _Trouble | None:
    """The failure to talk about: one that needs a person first, then the most frequent; mere delays last."""
    by_reason: dict[str, list[tuple[NodeName, Failure, float | None]]] = defaultdict(list)
    for trouble in tally.troubles:
        by_reason[trouble[1].reason].append(trouble)
    if not by_reason:
        return None

    def importance(reason: str) -> tuple[bool, bool, int, str]:
        group = by_reason[reason]
        return reason not in WAITING, not all(failure.retryable for _, failure, _ in group), len(group), reason

    reason = max(by_reason, key=importance)
    group = sorted(by_reason[reason], key=lambda trouble: trouble[0])
    node, failure, retry_at = group[0]
    retry_at = min((at for _, _, at in group if at is not None), default=retry_at)
    if failure is tally.source.failure:
        message = failure.message
    elif len(group) == tally.total == 1:
        message = f"{node}: {failure.message}"
    else:
        message = f"{len(group)}/{tally.total} nodes ({name_nodes(n for n, _, _ in group)}): {failure.message}"
    if retry_at is not None and not failure.final:
        message += f"; next try {rfc3339(retry_at)}"
    return _Trouble(reason, message, failure.retryable, reason in WAITING)


def _ready(tally: Tally, problems: Sequence[Problem], trouble: _Trouble | None) -> Verdict:
    if problems:
        return Verdict("Ready", False, problems[0].reason, _problems(tally, problems))
    if tally.total == len(tally.orphans):
        return Verdict("Ready", False, "NoMatchingNodes", _no_nodes(tally))
    if tally.available == tally.total:
        held = f"{tally.available}/{tally.total} nodes hold the model"
        if tally.earlier:
            return Verdict("Ready", True, "EarlierRevision", f"{held}, {_as_before(tally)}")
        return Verdict("Ready", True, "AllNodesReady", held)
    if trouble and not trouble.waiting:
        return Verdict("Ready", False, trouble.reason, trouble.message)
    if tally.downloading:
        return Verdict("Ready", False, "Downloading", _under_way(tally))
    if trouble:
        return Verdict("Ready", False, trouble.reason, trouble.message)
    if tally.source.resolved is None:
        return Verdict("Ready", False, "Resolving", f"reading what {tally.cache.source.uri} consists of")
    return Verdict("Ready", False, "Pending", f"{tally.available}/{tally.total} nodes, waiting for the others to start")


def _progressing(tally: Tally, ready: Verdict, trouble: _Trouble | None) -> Verdict:
    if ready.status and not tally.earlier:
        return Verdict("Progressing", False, ready.reason, ready.message)
    if tally.downloading:
        return Verdict("Progressing", True, "Downloading", _under_way(tally))
    if trouble and not trouble.waiting and not trouble.retryable:
        return Verdict("Progressing", False, trouble.reason, trouble.message)
    if trouble:
        return Verdict("Progressing", True, "Waiting" if trouble.waiting else "Retrying", trouble.message)
    if ready.status:
        return Verdict("Progressing", True, "Updating", f"{_wanted(tally)} is fetched; {_as_before(tally)}")
    under_way = ready.reason in ("Resolving", "Pending")
    return Verdict("Progressing", under_way, ready.reason, ready.message)


def _degraded(tally: Tally, problems: Sequence[Problem], trouble: _Trouble | None, duplicate: Cache | None) -> Verdict:
    if problems:
        return Verdict("Degraded", True, problems[0].reason, _problems(tally, problems))
    if tally.total == len(tally.orphans):
        return Verdict("Degraded", True, "NoMatchingNodes", _no_nodes(tally))
    if trouble and not trouble.waiting:
        return Verdict("Degraded", True, trouble.reason, trouble.message)
    if tally.source.unreadable is not None:
        return Verdict("Degraded", True, "FillingFromPeers", _from_peers(tally.source, tally.source.unreadable))
    if duplicate is not None:
        message = f"LocalModelCache {duplicate.ref.name} has the same StorageURI {duplicate.source.uri}"
        return Verdict("Degraded", True, "DuplicateSource", message)
    if tally.orphans:
        return Verdict("Degraded", True, "Orphaned", _orphans(tally))
    if tally.strays:
        where = name_nodes(name for name, _ in tally.strays)
        message = f"an earlier copy on {where} stays for now in {tally.strays[0][1]}, where the node group's path was"
        return Verdict("Degraded", True, "Orphaned", message)
    return Verdict("Degraded", False, "AsExpected", "")


def _as_before(tally: Tally) -> str:
    """`2 of them as spec asked for it before (c0ffee), which is served until … is there`."""
    written = tally.cache.status
    name = written.get("revision") or written.get("manifestDigest")
    return (
        f"{tally.earlier} of them as spec asked for it before{f' ({name})' if name else ''},"
        f" which is served until {_wanted(tally)} is there"
    )


def _wanted(tally: Tally) -> str:
    """What spec asks for now, as short as it can be said."""
    revision = tally.cache.source.revision
    return f"revision {revision}" if revision else "what spec asks for now"


def _no_nodes(tally: Tally) -> str:
    groups = ", ".join(tally.cache.node_groups)
    message = f"no node matches the node affinity of LocalModelNodeGroup {groups}"
    step = ": look at its nodeAffinity and at the nodes' labels"
    return message + (f"; {_orphans(tally)}" if tally.orphans else step)


def _problems(tally: Tally, problems: Sequence[Problem]) -> str:
    message = "; ".join(problem.message for problem in problems)
    if not tally.orphans:
        missing = any(problem.reason == "NodeGroupNotFound" for problem in problems)
        return message + (": correct spec.nodeGroups, or create it" if missing else "")
    return f"{message}; {_copies(tally)} for now, and nothing is fetched again once this is put right"


def _orphans(tally: Tally) -> str:
    """How many, where, why, and what to do. When they go stands on each node: it differs."""
    return f"{_copies(tally)} for now: {tally.orphans[0][1]}"


def _copies(tally: Tally) -> str:
    count, where = len(tally.orphans), name_nodes(name for name, _ in tally.orphans)
    return f"{count} cop{'y' if count == 1 else 'ies'} on {where} {'stays' if count == 1 else 'stay'}"


def _under_way(tally: Tally) -> str:
    size = tally.size_bytes
    text = f"{tally.available}/{tally.total} nodes"
    if size:
        share = 100 * tally.bytes_cached // (size * tally.total)
        text += f", {min(share, 100)}% of {tally.total} × {format_bytes(size)}"
    if tally.rate >= 1:
        text += f", {format_bytes(int(tally.rate))}/s"
    if tally.seconds_left is not None:
        text += f", {format_duration(tally.seconds_left)} left"
    if tally.source.unreadable is not None:
        text += f"; {_from_peers(tally.source, tally.source.unreadable)}"
    return text


def _from_peers(source: SourceState, unreadable: Failure) -> str:
    """Why the origin is not read, what happens instead, and when it is asked again."""
    since = f" since {rfc3339(source.failing_since)}" if source.failing_since is not None else ""
    text = f"origin unavailable{since}, filling {source.revision or source.manifest_digest} from peers that hold it"
    text += f" ({unreadable.reason}: {unreadable.message}"
    return text + (f"; next try {rfc3339(source.retry_at)})" if source.retry_at is not None else ")")
