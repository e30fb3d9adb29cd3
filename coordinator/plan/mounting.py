"""How a pod gets at a model, for people: `status.path` and `status.claims`. Pure.

    path     the folder on every node that holds the model, for a hostPath volume
    claims   per namespace and node group, a PersistentVolumeClaim and the subPath of the model in it

The path stands there once a node holds the model. A claim does as soon as it is made: a pod may mount it before.
"""

from __future__ import annotations

from typing import Any

from coordinator.plan.consumers import Consumers
from coordinator.plan.facts import Facts
from coordinator.plan.snapshot import Cache, Snapshot
from coordinator.plan.tally import Tally
from coordinator.plan.volume_pairs import Pair, serving_pair
from coordinator.plan.volumes import obstacle


def mount_status(facts: Facts, tally: Tally) -> dict[str, Any]:
    """A value of None means that the field is absent."""
    cache, snapshot = tally.cache, facts.snapshot
    roots = (group.root for name in cache.node_groups if (group := snapshot.groups.get(name)) is not None)
    root = next((root for root in roots if root is not None), None)
    path = f"{root.rstrip('/')}/{sub_path(cache)}" if root is not None and tally.available else None
    return {"path": path, "claims": _claims(snapshot, facts.consumers, cache)}


def sub_path(cache: Cache) -> str:
    """Where the model is in every volume of its node groups."""
    return f"models/{cache.storage_key}"


def _claims(snapshot: Snapshot, found: Consumers, cache: Cache) -> Any:
    if snapshot.claims is None or not found.known:
        return cache.status.get("claims")
    entries = []
    for namespace, name in sorted(found.wanted.get(cache.key, ())):
        group = snapshot.groups.get(name)
        if group is not None:
            entries += _entry(snapshot, serving_pair(cache, group, namespace))
    return entries or None


def _entry(snapshot: Snapshot, pair: Pair) -> list[dict[str, str]]:
    namespace, name = pair.claim
    entry = {"namespace": namespace, "name": name, "nodeGroup": pair.group.ref.name, "subPath": sub_path(pair.cache)}
    claim, why = (snapshot.claims or {}).get(pair.claim), obstacle(snapshot, pair)
    if why is None and claim is not None and claim.mark is not None and claim.mark.group != pair.group.ref.name:
        why = f"the name is taken by the claim of LocalModelNodeGroup {claim.mark.group}: rename the cache or the group"
    if why is not None:
        return [{**entry, "message": why}]
    return [{**entry, "phase": claim.phase or "Pending"}] if claim is not None and not claim.deleting else []
