"""The writes of LocalModelNodes (made, listed, their status, deleted) and of node groups: how full they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from actors.messages import NodeName, Phase
from actors.sizes import format_bytes, parse_bytes
from coordinator.plan.announcements import agent_events, eviction_events, limit_events, repair_events
from coordinator.plan.desired import draining
from coordinator.plan.facts import Facts
from coordinator.plan.limits import limit_mode
from coordinator.plan.node_tier import as_listed
from coordinator.plan.orphans import traces
from coordinator.plan.patches import GROUP_STATUS, KSERVE_FIELDS_OF_GROUPS, NODE_STATUS, is_material, status_patch
from coordinator.plan.placement import Placement
from coordinator.plan.snapshot import LOCAL_NODES, NODE_GROUPS, LocalNode, Node, NodeGroup, Ref, Snapshot
from coordinator.plan.status import SETTLE, local_node_status
from coordinator.plan.writes import Verb, Write, patched


def node_writes(facts: Facts) -> Iterator[Write]:
    """At most one for each LocalModelNode: what it lists is written first, and its status afterwards."""
    snapshot, members, folded = facts.snapshot, facts.members, facts.folded
    for name, placement in members.placements.items():
        node, local = snapshot.nodes[name], snapshot.local_nodes.get(name)
        if ("local_nodes", name) in snapshot.left_out:
            continue
        if local is None:
            yield _created(node, placement)
        else:
            entries = [*placement.entries, *traces(snapshot, name)]
            yield from _updated(snapshot, node, local, entries, folded.nodes.get(name))
    for name, local in snapshot.local_nodes.items():
        gone = snapshot.nodes.get(name)
        if ("nodes", name) in snapshot.left_out:
            continue
        if gone is None:  # the garbage collector does the same where KServe's LocalModelNodes have an owner
            yield Write(Verb.DELETE, local.ref, {})
        elif name not in members.placements and draining(snapshot, name):
            view = snapshot.agent(name)
            empty = view.failure is None and view.report is not None and not view.report.models
            status = {} if empty and not local.models else local_node_status({}, [], view, local)
            yield from _updated(snapshot, gone, local, traces(snapshot, name), status)


def node_statuses(facts: Facts) -> Iterator[Write]:
    """The status of each LocalModelNode, and nothing else: KServe's controller makes it, and lists what it likes."""
    snapshot = facts.snapshot
    for name in facts.members.placements:
        local = snapshot.local_nodes.get(name)
        if local is not None and ("local_nodes", name) not in snapshot.left_out:
            status = facts.folded.nodes.get(name)
            yield from _status(snapshot, name, local, as_listed(status, local) if status is not None else None)


def _created(node: Node, placement: Placement) -> Write:
    ref = Ref(LOCAL_NODES, node.name)
    body = {
        "apiVersion": LOCAL_NODES.api_version,
        "kind": LOCAL_NODES.kind,
        "metadata": {"name": node.name, "ownerReferences": [_owner(node)]},
        "spec": {"localModels": placement.entries},
    }
    return Write(Verb.CREATE, ref, body)


def _updated(
    snapshot: Snapshot, node: Node, local: LocalNode, entries: list[Mapping[str, Any]], status: Mapping[str, Any] | None
) -> Iterator[Write]:
    owned = any(owner.get("uid") == node.uid for owner in local.owners)
    if not owned or list(local.models) != entries:
        others = [owner for owner in local.owners if owner.get("kind") != "Node"]
        metadata = {} if owned else {"ownerReferences": [*others, _owner(node)]}
        yield Write(Verb.PATCH, local.ref, patched(local.ref, metadata, spec={"localModels": entries}))
        return
    yield from _status(snapshot, node.name, local, status)


def _status(snapshot: Snapshot, node: NodeName, local: LocalNode, status: Mapping[str, Any] | None) -> Iterator[Write]:
    if status is None:
        return
    patch = status_patch(local.status, status, NODE_STATUS, extensions=LOCAL_NODES.plural not in snapshot.pruned)
    if patch:
        events = agent_events(local.ref, local.status, status) if "agent" in patch and status else []
        if "models" in patch:
            events = [*events, *repair_events(local.ref, local.status, status)]
            events += eviction_events(node, snapshot.caches, local.status, status)
        material = is_material(local.status, patch)
        yield Write(Verb.PATCH_STATUS, local.ref, patched(local.ref, status=patch), material, tuple(events))


def _owner(node: Node) -> Mapping[str, str]:
    return {"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.uid}


# --- node groups ---


def group_writes(facts: Facts) -> Iterator[Write]:
    """How full every group is, over the members that report, and what its limit means. As in KServe no subresource."""
    snapshot = facts.snapshot
    for name, nodes in facts.members.groups.items():
        group, mode = snapshot.groups[name], limit_mode(snapshot, snapshot.groups[name])
        rooms = [room for node in nodes if (room := _room(facts, node, group)) is not None]
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


def _room(facts: Facts, node: NodeName, group: NodeGroup) -> _Room | None:
    """None: the node does not report the group's folder, or cannot use it."""
    report = facts.snapshot.report(node)
    root = next((each for each in report.roots if each.path == group.root), None) if report is not None else None
    if report is None or root is None or root.failure is not None:
        return None
    placement = facts.members.placements[node]
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
