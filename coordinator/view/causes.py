"""Why a cache is not Ready, or a node is slow: a chain of causes in sentences, each with what to do about it.

    llama is not Ready: 3 of 4 nodes hold it.
      n17 has no copy yet: … (InsufficientStorage; attempt 3; next try in 2m10s)
        The root /models of n17: 97Gi are used and 0 free of the 100Gi that group gpu allows.
      Next: raise `storageLimit`, remove a model, or turn eviction on.

A cause that lies deeper stands below what it explains. Nodes that have the same trouble are one cause.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from actors.messages import NodeName
from actors.sizes import format_bytes, say_bytes
from coordinator.api.resources import StatusKey
from coordinator.kube.quantity import format_duration
from coordinator.plan.conditions import name_nodes
from coordinator.plan.snapshot import Cache
from coordinator.view.cluster import ClusterView, condition
from coordinator.view.next_steps import NEXT_STEPS
from coordinator.view.rows import CacheRow, CopyRow, Rank, rows

RETRY = "`localmodel retry {name}` tries again at once"
_PASSES = frozenset({"Nothing.", "Wait for it."})


@dataclass(frozen=True, slots=True)
class Cause:
    """One sentence or two. `depth` 0: what was asked about; each level explains the one above."""

    depth: int
    text: str
    reason: str | None = None
    next_step: str | None = None


def causes(view: ClusterView, key: StatusKey, node: NodeName | None = None) -> list[Cause]:
    """At least one. `node` is one of those that hold the cache, or should."""
    cache = view.caches[key]
    (row,) = rows(view, [key])
    if node is None:
        return [*_of_cache(view, cache, row)]
    copy = next((each for each in row.copies if each.node == node), None)
    if copy is None:
        return [*_not_a_member(view, cache, node)]
    return [*_of_node(view, cache, row, copy)]


def _of_cache(view: ClusterView, cache: Cache, row: CacheRow) -> Iterator[Cause]:
    yield Cause(0, _headline(row), row.reason)
    if unseen := _unseen(cache, row):
        yield unseen
        return
    if row.deleting:
        yield _explained(1, row.message or "its copies are being removed", row.reason)
    known = {copy.reason for copy in row.copies} | _states(row)
    for kind in ("Ready", "Degraded"):
        said = condition(cache, kind)
        bad = said.get("status") == ("False" if kind == "Ready" else "True")
        if bad and not row.deleting and said.get("reason") not in known:
            yield _explained(1, said.get("message") or "", said.get("reason"))
            known.add(said.get("reason"))
    yield from _groups_without_nodes(view, cache, row)
    yield from _troubles(view, cache, row)
    yield from _slow(row)


def _headline(row: CacheRow) -> str:
    size = f", {format_bytes(row.size)} each" if row.size else ""
    held = f"{row.available} of {row.nodes} nodes hold it{size}"
    if row.deleting:
        return f"{row.key} is being deleted: {held}."
    if row.ready is None:
        return f"{row.key} has no status yet."
    if not row.ready:
        left = f"; {_pace(row)}" if row.rate else ""
        return f"{row.key} is not Ready: {held}{left}."
    return f"{row.key} is Ready: {held}."


def _pace(row: CacheRow) -> str:
    """`1.2Gi/s, 2m10s left`."""
    return f"{format_bytes(row.rate)}/s" + (f", {row.eta} left" if row.eta else "")


def _states(row: CacheRow) -> set[str | None]:
    """Reasons that the headline or the nodes say already."""
    return {"Downloading", "Pending", "Deleting", *(("AsExpected",) if row.ready else ())}


def _unseen(cache: Cache, row: CacheRow) -> Cause | None:
    """The coordinator has not looked at what the spec says now."""
    observed = cache.status.get("observedGeneration")
    step = "look whether the coordinator runs and what its log says: `localmodel doctor`"
    if row.ready is None and observed is None:
        return Cause(1, "No coordinator has written anything about it.", next_step=step)
    if observed is not None and observed < cache.generation:
        text = f"The spec was edited since (generation {cache.generation}, status is of {observed})."
        return Cause(1, text, next_step=step)
    return None


def _explained(depth: int, message: str, reason: str | None) -> Cause:
    return Cause(depth, _sentence(message, reason), reason, next_step(reason))


def next_step(reason: str | None) -> str | None:
    """What a person does; None where it passes by itself or the message says it."""
    step = NEXT_STEPS.get(reason or "")
    return None if step in _PASSES else step


def _sentence(message: str, reason: str | None) -> str:
    text = message.strip().rstrip(".")
    if not text:
        return f"{reason}." if reason else ""
    return f"{text[0].upper()}{text[1:]}{f' ({reason})' if reason else ''}."


def _groups_without_nodes(view: ClusterView, cache: Cache, row: CacheRow) -> Iterator[Cause]:
    if row.nodes or view.nodes is None:
        return
    for name in cache.node_groups:
        group = view.groups.get(name)
        if group is None or group.selector is None or group.problem is not None:
            continue
        near = sorted(node for node, each in view.nodes.items() if group.selector.matches(each.name, each.labels))
        if near:
            text = f"Group {name} selects {name_nodes(near)}, which the coordinator has not taken up yet."
        else:
            text = f"Group {name} selects none of the {len(view.nodes)} nodes by its nodeAffinity."
        yield Cause(2, text, next_step=None if near else "`localmodel doctor` compares labels and groups")


def _troubles(view: ClusterView, cache: Cache, row: CacheRow) -> Iterator[Cause]:
    """Nodes by their reason, what is worst first."""
    by_reason: dict[tuple[Rank, str], list[CopyRow]] = defaultdict(list)
    for copy in row.copies:
        if copy.reason is not None and copy.rank is not Rank.DONE:
            by_reason[copy.rank, copy.reason].append(copy)
    for (_, reason), copies in sorted(by_reason.items(), key=lambda item: item[0]):
        first = copies[0]
        where = name_nodes(copy.node for copy in copies)
        yield Cause(1, _trouble(where, copies, view.at), reason, _what_to_do(cache, copies))
        yield from _deeper(view, cache, first, 2)


def _trouble(where: str, copies: Sequence[CopyRow], at: float) -> str:
    first = copies[0]
    verb = "has" if len(copies) == 1 else "have"
    state = {
        "Failed": f"{verb} no copy",
        "Damaged": f"{verb} a damaged copy",
        "Ready": f"{verb} a copy",
    }.get(first.phase, f"{verb} no copy yet")
    return f"{where} {state}: {_said(first, at)}."


def _said(copy: CopyRow, at: float) -> str:
    beside = [copy.reason or ""]
    if copy.attempt > 1:
        beside.append(f"attempt {copy.attempt}")
    if copy.retry_at is not None:
        left = copy.retry_at - at
        beside.append(f"next try in {format_duration(left)}" if left > 0 else "the next try is due")
    said = (copy.message or "").strip().rstrip(".")
    return f"{said} ({'; '.join(beside)})" if said else "; ".join(beside)


def _what_to_do(cache: Cache, copies: Sequence[CopyRow], node: NodeName | None = None) -> str | None:
    """What helps with this reason, and how to try it at once. `node`: there alone."""
    steps = [step.rstrip(".")] if (step := next_step(copies[0].reason)) else []
    if any(copy.retry_at is not None for copy in copies):
        steps.append(RETRY.format(name=_as_argument(cache) + (f" {node}" if node else "")))
    return "; ".join(steps) or None


def _as_argument(cache: Cache) -> str:
    return f"{cache.ref.name} -n {cache.ref.namespace}" if cache.ref.namespace else cache.ref.name


def _deeper(view: ClusterView, cache: Cache, copy: CopyRow, depth: int) -> Iterator[Cause]:
    """The agent, the node and the disk below a copy, as far as they are not well."""
    name = copy.node
    local = view.local_nodes.get(name)
    if name in view.not_ready:
        said = view.not_ready[name].rstrip(".")
        about = (
            "Its Ready condition says" if copy.reason == "NodeNotReady" else f"The Kubernetes node {name} is not Ready"
        )
        text = f"{about}: {said}."
        yield Cause(depth, text, "NodeNotReady", f"`kubectl describe node {name}`")
    elif view.nodes is not None and name not in view.nodes:
        yield Cause(depth, f"There is no Kubernetes node {name} any more.")
    agent = (local.status.get("agent") if local else None) or {}
    if local is None and copy.rank is not Rank.DONE:
        yield Cause(depth, f"There is no LocalModelNode {name}.", next_step="`localmodel doctor`")
    elif agent.get("ready") is False and agent.get("reason") != copy.reason:
        said = agent.get("message") or "it does not answer"
        yield Cause(depth, f"Its node agent is not ready: {_sentence(said, agent.get('reason'))}", agent.get("reason"))
    for root in (local.status.get("roots") if local else None) or ():
        if root.get("reason"):
            text = f"Its root {root['path']}: {_sentence(root.get('message') or '', root['reason'])}"
            yield Cause(depth, text, root["reason"], next_step(root["reason"]))
        elif copy.reason in ("InsufficientStorage", "Evicted"):
            yield Cause(depth, _space(view, cache, root))


def _space(view: ClusterView, cache: Cache, root: object) -> str:
    detail = root if isinstance(root, dict) else {}
    groups = [view.groups[name] for name in cache.node_groups if name in view.groups]
    limit = next((group for group in groups if group.root == detail.get("path")), None)
    text = f"On its root {detail.get('path')} models take {say_bytes(detail.get('used') or 0)}"
    if detail.get("reserved"):
        text += f", fills under way are promised {say_bytes(detail['reserved'])}"
    text += f", and {say_bytes(detail.get('free') or 0)} are free"
    if detail.get("aside"):
        text += f"; {say_bytes(detail['aside'])} of it are old copies that pods may have open"
    if limit is not None and limit.limit_bytes is not None:
        text += f"; group {limit.ref.name} allows {say_bytes(limit.limit_bytes)} on each node"
    return f"{text}."


def _slow(row: CacheRow) -> Iterator[Cause]:
    for copy in row.copies:
        if copy.slow_beside is not None:
            yield Cause(1, _slowness(copy), next_step=f"`localmodel status --why {row.key} {copy.node}`")


def _slowness(copy: CopyRow) -> str:
    left = f", {copy.eta} left" if copy.eta else ""
    return (
        f"{copy.node} is slow: {format_bytes(copy.rate)}/s where the middle of the nodes has"
        f" {format_bytes(copy.slow_beside or 0)}/s{left}."
    )


def _not_a_member(view: ClusterView, cache: Cache, node: NodeName) -> Iterator[Cause]:
    groups = ", ".join(cache.node_groups)
    yield Cause(0, f"{node} holds no copy of {cache.key} and is not to.")
    if view.nodes is not None and node not in view.nodes:
        yield Cause(1, f"There is no Kubernetes node {node}.", next_step="`kubectl get nodes`")
        return
    yield Cause(
        1,
        f"No group of the cache ({groups}) selects {node}.",
        next_step=f"compare `kubectl get node {node} --show-labels` with the nodeAffinity of the groups",
    )


def _of_node(view: ClusterView, cache: Cache, row: CacheRow, copy: CopyRow) -> Iterator[Cause]:
    if copy.phase == "Ready":
        yield Cause(0, f"{copy.node} holds {cache.key}{_taken(copy)}.", copy.reason)
    elif copy.share is not None and copy.phase in ("Downloading", "Verifying"):
        rate = f", {format_bytes(copy.rate)}/s" if copy.rate else ", nothing arrives at the moment"
        left = f", {copy.eta} left" if copy.eta else ""
        far = f"{int(100 * copy.share)}% of {format_bytes(copy.total or 0)}{rate}{left}"
        yield Cause(0, f"{copy.node} is filling {cache.key}: {far}{_taken(copy)}.", copy.reason)
    else:
        yield Cause(0, f"{copy.node} does not hold {cache.key} ({copy.phase}).", copy.reason)
    if unseen := _unseen(cache, row):
        yield unseen
    if copy.slow_beside is not None:
        yield Cause(1, _slowness(copy))
        if not copy.peers and row.peers:
            text = "It takes nothing from other nodes, which give each other the rest."
            yield Cause(2, text, next_step="`localmodel doctor` asks whether its peer port is reached")
        elif copy.other_zones * 2 > copy.peers > 0:
            yield Cause(2, f"{format_bytes(copy.other_zones)} of {format_bytes(copy.peers)} came from other zones.")
    if copy.reason is not None:
        said = _said(copy, view.at)
        yield Cause(1, f"{said[:1].upper()}{said[1:]}.", copy.reason, _what_to_do(cache, [copy], copy.node))
    yield from _deeper(view, cache, copy, 2 if copy.reason is not None else 1)


def _taken(copy: CopyRow) -> str:
    if not copy.origin and not copy.peers:
        return ""
    return f"; {say_bytes(copy.origin)} from the origin and {say_bytes(copy.peers)} from other nodes"
