"""The writes of LocalModelNodes (made, listed, their status, deleted) and of node groups: how full they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from actors.messages import NodeName, NodeReport, Phase
from actors.sizes import format_bytes, parse_bytes
from actors.times import rfc3339
from coordinator.api.resources import StatusKey
from coordinator.fleet.interface import AgentView
from coordinator.plan.announcements import agent_events, eviction_events, limit_events, repair_events
from coordinator.plan.desired import draining
from coordinator.plan.facts import Facts
from coordinator.plan.limits import limit_mode
from coordinator.plan.node_tier import as_listed
from coordinator.plan.orphans import lists_others, orphaned_since, traces
from coordinator.plan.patches import GROUP_STATUS, KSERVE_FIELDS_OF_GROUPS, NODE_STATUS, is_material, status_patch
from coordinator.plan.placement import Placement
from coordinator.plan.rows import Lane, words
from coordinator.plan.snapshot import LOCAL_NODES, NODE_GROUPS, LocalNode, Node, NodeGroup, Ref, Snapshot
from coordinator.plan.status import SETTLE, agent_detail, local_node_status, model_detail
from coordinator.plan.tally import Cell
from coordinator.plan.writes import Verb, Write, patched


def node_writes(facts: Facts) -> Iterator[Write]:
    """At most one for each LocalModelNode: what it lists is written first, and its status afterwards."""
    snapshot, members, call = facts.snapshot, facts.members, facts.memory.call
    names = facts.memory.same("names", frozenset(snapshot.caches))
    for name, placement in members.placements.items():
        node, local = snapshot.nodes[name], snapshot.local_nodes.get(name)
        if snapshot.left_out and ("local_nodes", name) in snapshot.left_out:
            continue
        if local is None:
            yield _created(node, placement)
        elif call(("strangers", name), lists_others, local, names):
            yield from _updated(facts, node, local, [*placement.entries, *traces(snapshot, name)])
        elif not call(("listed", name), _is_listed, node, local, placement.entries):
            yield from _listed(node, local, placement.entries)
        elif name in facts.folded.due:
            yield from _status(facts, node, local)
    for name, local in snapshot.local_nodes.items():
        if name in members.placements:
            continue
        gone = snapshot.nodes.get(name)
        if ("nodes", name) in snapshot.left_out:
            continue
        if gone is None:  # the garbage collector does the same where KServe's LocalModelNodes have an owner
            yield Write(Verb.DELETE, local.ref, {})
        elif draining(snapshot, name):
            yield from _updated(facts, gone, local, traces(snapshot, name))


def node_statuses(facts: Facts) -> Iterator[Write]:
    """The status of each LocalModelNode, and nothing else: KServe's controller makes it, and lists what it likes."""
    snapshot = facts.snapshot
    for name in facts.members.placements:
        local = snapshot.local_nodes.get(name)
        if local is not None and name in facts.folded.due and ("local_nodes", name) not in snapshot.left_out:
            yield from _status(facts, snapshot.nodes[name], local)


def _created(node: Node, placement: Placement) -> Write:
    ref = Ref(LOCAL_NODES, node.name)
    body = {
        "apiVersion": LOCAL_NODES.api_version,
        "kind": LOCAL_NODES.kind,
        "metadata": {"name": node.name, "ownerReferences": [_owner(node)]},
        "spec": {"localModels": placement.entries},
    }
    return Write(Verb.CREATE, ref, body)


def _updated(facts: Facts, node: Node, local: LocalNode, entries: list[Mapping[str, Any]]) -> Iterator[Write]:
    if not _is_listed(node, local, entries):
        yield from _listed(node, local, entries)
    elif node.name in facts.folded.due or node.name not in facts.members.placements:
        yield from _status(facts, node, local)


def _is_listed(node: Node, local: LocalNode, entries: Sequence[Mapping[str, Any]]) -> bool:
    return _is_owned(node, local) and list(local.models) == entries


def _is_owned(node: Node, local: LocalNode) -> bool:
    return any(owner.get("uid") == node.uid for owner in local.owners)


def _listed(node: Node, local: LocalNode, entries: list[Mapping[str, Any]]) -> Iterator[Write]:
    others = [owner for owner in local.owners if owner.get("kind") != "Node"]
    metadata = {} if _is_owned(node, local) else {"ownerReferences": [*others, _owner(node)]}
    yield Write(Verb.PATCH, local.ref, patched(local.ref, metadata, spec={"localModels": entries}))


@dataclass(frozen=True, slots=True)
class _Change:
    """The whole status of a LocalModelNode, and the patch that makes it so."""

    wanted: Mapping[str, Any]
    patch: Mapping[str, Any]


def _status(facts: Facts, node: Node, local: LocalNode) -> Iterator[Write]:
    snapshot, folded, name = facts.snapshot, facts.folded, node.name
    extensions = LOCAL_NODES.plural not in snapshot.pruned
    change: _Change | None
    row = folded.rows.get(name)
    if row is None:
        change = _change(_drained(snapshot, name, local), local, extensions, follows=False)
    elif folded.settling and agent_detail(folded.views[name], local, settling=True) is local.status.get("agent"):
        return  # what the last coordinator knew of its models still stands, too
    elif row.of.orphans or row.behind:  # of these it is said when they go
        details = [
            model_detail(lane.key, cell) | _times_of_orphan(facts, lane, local, lane.key in row.behind)
            for lane, cell in zip(row.of.lanes, row.cells, strict=True)
        ]
        said = words(row.of.keys, row.says)
        status = local_node_status(said, details, folded.views[name], local, settling=folded.settling)
        change = _change(status, local, extensions, snapshot.follows)
    else:
        view, call = folded.views[name], facts.memory.call
        label, of = ("node status", name), (row.of.keys, row.cells)
        change = call(label, _plain_change, *of, view, local, folded.settling, extensions, snapshot.follows)
    if change is not None:
        wanted, patch = change.wanted, change.patch
        events = agent_events(local.ref, local.status, wanted) if "agent" in patch and wanted else []
        if "models" in patch:
            events = [*events, *repair_events(local.ref, local.status, wanted)]
            events += eviction_events(name, snapshot.caches, local.status, wanted)
        material = is_material(local.status, patch)
        yield Write(Verb.PATCH_STATUS, local.ref, patched(local.ref, status=patch), material, tuple(events))


def _drained(snapshot: Snapshot, name: NodeName, local: LocalNode) -> Mapping[str, Any]:
    """That of a node in no group: nothing, once its agent reports that nothing is left."""
    view = snapshot.agent(name)
    empty = view.failure is None and view.report is not None and not view.report.models
    return {} if empty and not local.models else local_node_status({}, [], view, local)


def _plain_change(
    keys: Sequence[StatusKey],
    cells: Sequence[Cell],
    view: AgentView,
    local: LocalNode,
    settling: bool,
    extensions: bool,
    follows: bool,
) -> _Change | None:
    details = [model_detail(key, cell) for key, cell in zip(keys, cells, strict=True)]
    said = words(keys, [word for word, _, _, _ in cells])
    return _change(local_node_status(said, details, view, local, settling=settling), local, extensions, follows)


def _change(status: Mapping[str, Any], local: LocalNode, extensions: bool, follows: bool) -> _Change | None:
    """`follows`: as in Snapshot."""
    status = as_listed(status, local) if follows else status
    patch = status_patch(local.status, status, NODE_STATUS, extensions=extensions)
    return _Change(status, patch) if patch else None


def _times_of_orphan(facts: Facts, lane: Lane, local: LocalNode, beside: bool) -> dict[str, Any]:
    slot, grace_s = lane.slot, facts.snapshot.orphan_grace_s
    if slot.orphan is None and not beside:
        return {}
    since = orphaned_since(local, slot.cache.key, facts.now)
    times = {"orphanedSince": rfc3339(since)}
    if grace_s is not None and not slot.cache.pinned:
        times["removalTime"] = rfc3339(since + grace_s)
    return times


def _owner(node: Node) -> Mapping[str, str]:
    return {"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.uid}


# --- node groups ---


def group_writes(facts: Facts) -> Iterator[Write]:
    """How full every group is, over the members that report, and what its limit means. As in KServe no subresource."""
    snapshot = facts.snapshot
    for name, nodes in facts.members.groups.items():
        group, mode = snapshot.groups[name], limit_mode(snapshot, snapshot.groups[name])
        call, view_of = facts.memory.call, snapshot.agent
        found = (
            call(("room", name, node), _room, node, view_of(node).report, facts.members.placements[node], group)
            for node in nodes
        )
        rooms = [room for room in found if room is not None]
        if not rooms:
            continue
        limit = group.limit_bytes if group.limit_bytes is not None else 1 << 62
        over = [room.node for room in rooms if room.used > limit]
        available = sum(max(0, min(room.free, limit - room.used) - room.reserved) for room in rooms)
        status = {
            "used": _settled_quantity(sum(room.used for room in rooms), group.status.get("used")),
            "available": _settled_quantity(available, group.status.get("available")),
            "storageLimitMode": mode.value,
            "nodesOverLimit": len(over) or None,
        }
        extensions = NODE_GROUPS.plural not in snapshot.pruned
        patch = status_patch(group.status, status, GROUP_STATUS, KSERVE_FIELDS_OF_GROUPS, extensions=extensions)
        if patch:
            events = limit_events(group, over) if "nodesOverLimit" in patch else []
            yield Write(Verb.PATCH, group.ref, patched(group.ref, status=patch), material=False, events=tuple(events))


class _Room(NamedTuple):
    """Of one group on one node, in bytes. `free` and `reserved` are of the whole disk."""

    node: NodeName
    used: int
    free: int
    reserved: int


def _room(node: NodeName, report: NodeReport | None, placement: Placement, group: NodeGroup) -> _Room | None:
    """None: the node does not report the group's folder, or cannot use it."""
    root = next((each for each in report.roots if each.path == group.root), None) if report is not None else None
    if report is None or root is None or root.failure is not None:
        return None
    used = root.used_bytes
    if sum(share.path == group.root for share in placement.roots) > 1:
        mine = {slot.cache.storage_key for slot in placement.slots if slot.group == group.ref.name}
        used = sum(each.bytes_total for each in report.models if each.phase is Phase.READY and each.key in mine)
    return _Room(node, used, root.free_bytes, root.reserved_bytes)


def _settled_quantity(count: int, written: object) -> object:
    """`written` while it says about the same; else `count` for people."""
    text = format_bytes(count)
    try:
        value = parse_bytes(written) if isinstance(written, int | str) else None
    except ValueError:
        value = None
    if value is None or bool(value) != bool(count):
        return text
    return written if text == written or abs(value - count) <= SETTLE * max(value, count) else text
