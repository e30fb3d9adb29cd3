"""Marks on a Node for the models it holds: a label per copy, and one condition. Only with `--mark-nodes`.

    caches.localmodel.kserve.io/llama: ready                  a LocalModelCache
    team-a.caches.localmodel.kserve.io/llama: earlier         a LocalModelNamespaceCache of team-a
    condition localmodel.kserve.io/ModelsReady                whether every LocalModelCache that belongs here is here

A label is there while a pod that is scheduled by it finds a copy: `ready` as the spec asks for it, `earlier` the one
before. It is gone as soon as the copy is damaged, is to be removed, or its cache is. The condition is on every member
of a node group. Caches of namespaces have no say in it: no tenant's cache keeps a node from being used. Every label
below these prefixes is ours, so what an earlier coordinator left is removed, too.

Written as the rest: labels first, the condition in the next plan.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from actors.times import rfc3339
from coordinator.api.resources import GROUP, NodeStatus, StatusKey
from coordinator.plan.conditions import Verdict, name_nodes
from coordinator.plan.facts import Facts
from coordinator.plan.placement import Placement
from coordinator.plan.slots import Slot
from coordinator.plan.snapshot import Node, Ref
from coordinator.plan.tally import is_earlier
from coordinator.plan.writes import Verb, Write, patched

DOMAIN = f"caches.localmodel.{GROUP.removeprefix('serving.')}"
CONDITION = f"localmodel.{GROUP.removeprefix('serving.')}/ModelsReady"
READY, EARLIER = "ready", "earlier"
MAX_LABELS = 100
"""Of one Node: each is in every list of nodes that a scheduler or a person reads. The oldest caches have them."""
MAX_OF_NAMESPACE = 20
"""Of those, for the caches of one namespace: they do not crowd out each other's."""
_NAME = 63
_HASH = 10


def label_of(ref: Ref) -> str:
    """The key of a cache's label. A name over 63 characters ends in a hash, after a `_` that no cache's name has."""
    prefix = DOMAIN if ref.namespace is None else f"{ref.namespace}.{DOMAIN}"
    name = ref.name
    if len(name) > _NAME:
        name = f"{name[: _NAME - _HASH - 1]}_{hashlib.sha256(name.encode()).hexdigest()[:_HASH]}"
    return f"{prefix}/{name}"


def is_ours(label: str) -> bool:
    prefix, slash, _ = label.partition("/")
    return bool(slash) and (prefix == DOMAIN or prefix.endswith(f".{DOMAIN}"))


def mark_writes(facts: Facts) -> Iterator[Write]:
    """At most one for each Node: its labels where they differ, else its condition where that does."""
    snapshot = facts.snapshot
    if not snapshot.mark_nodes:
        return
    ordered = {id(each): _ordered(each) for each in facts.members.by_placement}
    for name, node in snapshot.nodes.items():
        if ("nodes", name) in snapshot.left_out:
            continue
        placement = facts.members.placements.get(name)
        slots = [] if placement is None else ordered[id(placement)]
        held = {label: value for label, value in node.labels.items() if is_ours(label)}
        wanted = _labels(facts, node, slots)
        if held != wanted:
            gone = dict.fromkeys(held.keys() - wanted.keys())
            yield Write(Verb.PATCH, node.ref, patched(node.ref, {"labels": {**wanted, **gone}}))
        elif node.conditions is not None:
            member = placement is not None and bool(placement.groups)
            yield from _condition_write(node, _verdict(facts, node, slots) if member else None, facts.now)


def _ordered(placement: Placement) -> list[tuple[str, Slot]]:
    """The slots by their labels, caches of the cluster and the oldest first: none loses its label to a new one."""
    slots = sorted(placement.slots, key=lambda slot: (slot.cache.ref.namespace is not None, slot.cache.age_order))
    return [(label_of(slot.cache.ref), slot) for slot in slots]


def _labels(facts: Facts, node: Node, slots: list[tuple[str, Slot]]) -> dict[str, str]:
    labels: dict[str, str] = {}
    of_namespace: dict[str, int] = {}
    reports = facts.snapshot.agent(node.name).models
    for label, slot in slots:
        namespace = slot.cache.ref.namespace
        if not _is_here(facts, slot.cache.key, node):
            continue
        if namespace is not None:
            if of_namespace.get(namespace, 0) == MAX_OF_NAMESPACE:
                continue
            of_namespace[namespace] = of_namespace.get(namespace, 0) + 1
        report = reports.get(slot.cache.storage_key)
        earlier = is_earlier(report) or (report is None and node.labels.get(label) == EARLIER)
        labels[label] = EARLIER if earlier else READY
        if len(labels) == MAX_LABELS:
            break
    return labels


def _is_here(facts: Facts, cache: StatusKey, node: Node) -> bool:
    tally = facts.folded.caches.get(cache)
    return tally is not None and tally.node_status.get(node.name) is NodeStatus.DOWNLOADED


def _verdict(facts: Facts, node: Node, slots: list[tuple[str, Slot]]) -> Verdict:
    wanted = [slot.cache.key for _, slot in slots if slot.cache.ref.namespace is None]
    missing = [key for key in wanted if not _is_here(facts, key, node)]
    if missing:
        message = f"{len(wanted) - len(missing)} of {len(wanted)} models are here; not yet: {name_nodes(missing)}"
        return Verdict(CONDITION, False, "ModelsMissing", message)
    message = f"{len(wanted)} of {len(wanted)} models are here" if wanted else "no LocalModelCache belongs here"
    return Verdict(CONDITION, True, "ModelsHere", message)


def _condition_write(node: Node, verdict: Verdict | None, now: float) -> Iterator[Write]:
    """None: the Node is to have none. The list is written as a whole, at the version that it was read from."""
    known = [each for each in node.conditions or () if each.get("type") != CONDITION]
    before: Mapping[str, Any] = next((each for each in node.conditions or () if each.get("type") == CONDITION), {})
    if verdict is None:
        if before:
            yield Write(Verb.PATCH_STATUS, node.ref, patched(node.ref, status={"conditions": known}))
        return
    said = {"status": str(verdict.status), "reason": verdict.reason, "message": verdict.message}
    if all(before.get(name) == value for name, value in said.items()):
        return
    turned = before.get("status") != said["status"]
    times = {
        "lastHeartbeatTime": rfc3339(now),
        "lastTransitionTime": rfc3339(now) if turned else before.get("lastTransitionTime") or rfc3339(now),
    }
    conditions = [*known, {"type": CONDITION, **said, **times}]
    yield Write(Verb.PATCH_STATUS, node.ref, patched(node.ref, status={"conditions": conditions}), material=turned)
