"""A namespaced cache with `spec.pvcRef`: what keeps the claim that it names from holding the model. Pure.

The reasons are later KServe's. The claim has to be there, a filesystem that many nodes may write, large enough, and
free of the same model for another cache: of those with one destination the oldest owns it. What fills it: `imports`.
"""

from __future__ import annotations

from actors.sizes import parse_bytes, say_bytes
from coordinator.plan.snapshot import Cache, Problem, Snapshot


def claim_problem(snapshot: Snapshot, cache: Cache) -> Problem | None:
    """None for a cache of node groups, while claims are not known, and where the claim may hold the model."""
    if cache.pvc_ref is None or snapshot.claims is None or cache.problem is not None:
        return None
    namespace = cache.ref.namespace or ""
    named = f"PersistentVolumeClaim {namespace}/{cache.pvc_ref}"
    claim = snapshot.claims.get((namespace, cache.pvc_ref))
    if claim is None or claim.deleting:
        return Problem("PVCNotFound", f"{named} not found")
    if claim.volume_mode != "Filesystem":
        return Problem("UnsupportedVolumeMode", f"{named} has volumeMode {claim.volume_mode}: it must be Filesystem")
    if "ReadWriteMany" not in claim.modes:
        modes = ", ".join(sorted(claim.modes)) or "none"
        return Problem("UnsupportedAccessMode", f"{named} has accessModes {modes}: ReadWriteMany is needed")
    capacity = _bytes(claim.capacity)
    if capacity is not None and cache.size_bytes is not None and capacity < cache.size_bytes:
        sizes = f"{say_bytes(capacity)}, and spec.modelSize is {say_bytes(cache.size_bytes)}"
        return Problem("InsufficientCapacity", f"{named} has {sizes}")
    owner = min((each for each in snapshot.caches.values() if shares_claim(each, cache)), key=precedence)
    if owner is not cache:
        return Problem("DestinationConflict", held_by(cache, owner))
    return None


def held_by(cache: Cache, owner: Cache) -> str:
    """That another cache has the model in this claim, in KServe's words."""
    return f'destination pvc "{cache.pvc_ref}" already holds model "{cache.source.uri}" via cache {owner.key}'


def shares_claim(each: Cache, cache: Cache) -> bool:
    """Whether both are to have one model in one claim."""
    return (each.ref.namespace, each.pvc_ref, each.storage_key) == (
        cache.ref.namespace,
        cache.pvc_ref,
        cache.storage_key,
    )


def precedence(cache: Cache) -> tuple[float, str, str]:
    """Sorts the owner of a destination first."""
    return cache.created, cache.ref.name, cache.ref.uid


def _bytes(quantity: str) -> int | None:
    try:
        return parse_bytes(quantity)
    except ValueError:
        return None
