"""Sentences of a cache's conditions: how many nodes, how much, since when, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

from actors.errors import Failure
from actors.sizes import format_bytes
from actors.times import rfc3339
from coordinator.kube.quantity import format_duration
from coordinator.plan.conditions import name_nodes
from coordinator.plan.snapshot import Problem
from coordinator.plan.tally import SourceState, Tally


def as_before(tally: Tally) -> str:
    """`2 of them as spec asked for it before (c0ffee), which is served until … is there`."""
    written = tally.cache.status
    name = written.get("revision") or written.get("manifestDigest")
    return (
        f"{tally.earlier} of them as spec asked for it before{f' ({name})' if name else ''},"
        f" which is served until {wanted(tally)} is there"
    )


def wanted(tally: Tally) -> str:
    """What spec asks for now, as short as it can be said."""
    revision = tally.cache.source.revision
    return f"revision {revision}" if revision else "what spec asks for now"


def no_nodes(tally: Tally) -> str:
    groups = ", ".join(tally.cache.node_groups)
    message = f"no node matches the node affinity of LocalModelNodeGroup {groups}"
    step = ": look at its nodeAffinity and at the nodes' labels"
    return message + (f"; {orphans_of(tally)}" if tally.orphans else step)


def problems_of(tally: Tally, problems: Sequence[Problem]) -> str:
    message = "; ".join(problem.message for problem in problems)
    if not tally.orphans:
        missing = any(problem.reason == "NodeGroupNotFound" for problem in problems)
        return message + (": correct spec.nodeGroups, or create it" if missing else "")
    return f"{message}; {copies(tally)} for now, and nothing is fetched again once this is put right"


def orphans_of(tally: Tally) -> str:
    """How many, where, why, and what to do. When they go stands on each node: it differs."""
    return f"{copies(tally)} for now: {tally.orphans[0][1]}"


def copies(tally: Tally) -> str:
    count, where = len(tally.orphans), name_nodes(name for name, _ in tally.orphans)
    return f"{count} cop{'y' if count == 1 else 'ies'} on {where} {'stays' if count == 1 else 'stay'}"


def under_way(tally: Tally) -> str:
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
        text += f"; {from_peers(tally.source, tally.source.unreadable)}"
    return text


def from_peers(source: SourceState, unreadable: Failure) -> str:
    """Why the origin is not read, what happens instead, and when it is asked again."""
    since = f" since {rfc3339(source.failing_since)}" if source.failing_since is not None else ""
    text = f"origin unavailable{since}, filling {source.revision or source.manifest_digest} from peers that hold it"
    text += f" ({unreadable.reason}: {unreadable.message}"
    return text + (f"; next try {rfc3339(source.retry_at)})" if source.retry_at is not None else ")")
