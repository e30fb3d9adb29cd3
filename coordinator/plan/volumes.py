"""The writes that make the PersistentVolumes and claims of caches as they should be. Pure.

Which should exist is in `volume_pairs`: specs are those of the node group, as they stand there, and the claim names its
volume. Download volumes are there as soon as the group is, before any node; serving volumes for each namespace with a
consumer (`consumers`).

What exists and fits is left alone, whoever made it, and marked as the cache's (`bindings`). Objects that are marked and
no longer wanted go: the claim first, when no pod mounts it, then the volume, when the claim is gone. The same way goes
what cannot be used any more: a volume whose claim was deleted (Released), a claim without its volume (Lost), a volume
of a folder or of nodes that the group no longer has. An object of such a name that is not ours is said to be in the
way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from coordinator.kube.interface import CLAIMS, VOLUMES
from coordinator.plan.bindings import MANAGED_BY, Claim, ClaimName, Mark, Role, Volume, volume_path
from coordinator.plan.consumers import Consumers
from coordinator.plan.facts import Facts
from coordinator.plan.ref import Ref
from coordinator.plan.snapshot import CACHES, NAMESPACE_CACHES, NodeGroup, Snapshot
from coordinator.plan.volume_pairs import Pair, wanted_pairs
from coordinator.plan.writes import Verb, Write, patched

_OURS = frozenset({CACHES.kind, NAMESPACE_CACHES.kind})
_SPENT = frozenset({"Released", "Failed"})
"""Phases of a volume whose claim is gone: it is bound to no other."""


def volume_writes(facts: Facts) -> Iterator[Write]:
    """What makes volumes and claims as they should be; nothing while it is not known what there is."""
    snapshot, found = facts.snapshot, facts.consumers
    if snapshot.volumes is None or snapshot.claims is None:
        return
    pairs = wanted_pairs(snapshot, found)
    by_volume, by_claim = _grouped(pairs)
    for name, sharing in by_volume.items():
        yield from _of_volume(snapshot, name, sharing)
    for key, sharing in by_claim.items():
        yield from _of_claim(snapshot, key, sharing)
    yield from _unwanted(snapshot, found, by_volume.keys(), by_claim.keys())


def _grouped(pairs: Iterable[Pair]) -> tuple[dict[str, list[Pair]], dict[ClaimName, list[Pair]]]:
    by_volume: dict[str, list[Pair]] = {}
    by_claim: dict[ClaimName, list[Pair]] = {}
    for pair in pairs:
        by_volume.setdefault(pair.volume, []).append(pair)
        by_claim.setdefault(pair.claim, []).append(pair)
    return by_volume, by_claim


# --- what is wanted ---


def _of_volume(snapshot: Snapshot, name: str, sharing: Sequence[Pair]) -> Iterator[Write]:
    pair, known = sharing[0], (snapshot.volumes or {}).get(name)
    if known is None:
        body = {"spec": dict(pair.group.volume_spec)}
        yield Write(
            Verb.CREATE, Ref(VOLUMES, name), _object(VOLUMES.kind, name, None, sharing, VOLUMES.namespaced) | body
        )
    elif known.deleting or obstacle(snapshot, pair) is not None:
        return
    elif _is_spent(snapshot, known):
        yield Write(Verb.DELETE, known.ref, {})
    elif _is_outdated(known, pair.group):
        yield from _retire(snapshot, known, pair.claim)
    else:
        yield from _marked(known, sharing)


def _of_claim(snapshot: Snapshot, key: ClaimName, sharing: Sequence[Pair]) -> Iterator[Write]:
    pair, known = sharing[0], (snapshot.claims or {}).get(key)
    volume = (snapshot.volumes or {}).get(pair.volume)
    if obstacle(snapshot, pair) is not None:
        return
    if known is None:
        if volume is None or not (volume.deleting or _is_spent(snapshot, volume) or _is_outdated(volume, pair.group)):
            spec = {**pair.group.claim_spec, "volumeName": pair.volume}
            body = {**_object(CLAIMS.kind, key[1], key[0], sharing, CLAIMS.namespaced), "spec": spec}
            yield Write(Verb.CREATE, Ref(CLAIMS, key[1], key[0]), body)
    elif known.deleting or (volume is not None and _is_outdated(volume, pair.group)):
        return
    elif known.phase == "Lost" or known.volume not in ("", pair.volume):
        yield Write(Verb.DELETE, known.ref, {}, unmounted=True)
    else:
        yield from _marked(known, sharing)


def obstacle(snapshot: Snapshot, pair: Pair) -> str | None:
    """What has the name of the volume or of the claim and is not the cache's, for people; None: nothing has."""
    volume, claim = (snapshot.volumes or {}).get(pair.volume), (snapshot.claims or {}).get(pair.claim)
    if volume is not None and not _is_the_groups(volume, pair):
        return f"PersistentVolume {pair.volume} is somebody else's: delete it, or rename the cache"
    if claim is not None and claim.mark is None and not _owned(claim) and claim.volume != pair.volume:
        named = f"PersistentVolumeClaim {'/'.join(pair.claim)}"
        return f"{named} is somebody else's, bound to {claim.volume or 'no volume yet'}: delete it, or rename the cache"
    return None


def _is_the_groups(volume: Volume, pair: Pair) -> bool:
    if volume.mark is not None or _owned(volume):
        return True
    controlled = any(owner.get("controller") for owner in volume.owners)
    bound_elsewhere = volume.claim not in (None, pair.claim)
    return not controlled and not bound_elsewhere and volume.path == volume_path(pair.group.volume_spec)


def _owned(found: Volume | Claim) -> bool:
    return any(owner.get("kind") in _OURS for owner in found.owners)


def _is_spent(snapshot: Snapshot, volume: Volume) -> bool:
    """Its claim is gone, or was made anew: Kubernetes binds it to no other."""
    claim = (snapshot.claims or {}).get(volume.claim) if volume.claim is not None else None
    return volume.phase in _SPENT and (claim is None or claim.ref.uid != volume.claim_uid)


def _is_outdated(volume: Volume, group: NodeGroup) -> bool:
    """The group has another folder or other nodes by now. Neither can be changed in a volume."""
    spec = group.volume_spec
    wanted = spec.get("nodeAffinity")
    affinity = wanted if isinstance(wanted, Mapping) else {}
    return group.problem is None and (volume.path, volume.affinity) != (volume_path(spec), affinity)


def _retire(snapshot: Snapshot, volume: Volume, expected: ClaimName) -> Iterator[Write]:
    """The claim goes when no pod mounts it, and the volume after it."""
    claim = _claim_to(snapshot, volume, expected)
    if claim is None:
        yield Write(Verb.DELETE, volume.ref, {})
    elif not claim.deleting:
        yield Write(Verb.DELETE, claim.ref, {}, unmounted=True)


def _claim_to(snapshot: Snapshot, volume: Volume, expected: ClaimName | None = None) -> Claim | None:
    claims = snapshot.claims or {}
    named = (claims.get(key) for key in (volume.claim, expected) if key is not None)
    return next((claim for claim in named if claim is not None and claim.volume in ("", volume.ref.name)), None)


# --- whose it is ---


def _object(kind: str, name: str, namespace: str | None, sharing: Sequence[Pair], namespaced: bool) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "labels": dict(MANAGED_BY), "annotations": sharing[0].mark.annotations()}
    if namespace is not None:
        metadata["namespace"] = namespace
    if owners := _owners(sharing, namespace if namespaced else None):
        metadata["ownerReferences"] = owners
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata}


def _owners(sharing: Sequence[Pair], namespace: str | None) -> list[dict[str, Any]]:
    """The caches with which it goes. None where one of them cannot own it: then its mark alone says whose it is."""
    caches = list({pair.cache.key: pair.cache for pair in sharing}.values())
    if any(cache.ref.namespace not in (None, namespace) for cache in caches):
        return []
    return [
        {
            "apiVersion": cache.ref.resource.api_version,
            "kind": cache.ref.resource.kind,
            "name": cache.ref.name,
            "uid": cache.ref.uid,
            **({"controller": True, "blockOwnerDeletion": True} if cache is caches[0] else {}),
        }
        for cache in caches
    ]


def _marked(known: Volume | Claim, sharing: Sequence[Pair]) -> Iterator[Write]:
    """Owners and mark as they would be if it were made now."""
    owners = _owners(sharing, known.ref.namespace)
    foreign = [owner for owner in known.owners if owner.get("kind") not in _OURS]
    ours = [owner for owner in known.owners if owner.get("kind") in _OURS]
    metadata: dict[str, Any] = {}
    if {owner.get("uid") for owner in ours} != {owner["uid"] for owner in owners}:
        metadata["ownerReferences"] = [*foreign, *owners] or None
    if known.mark != sharing[0].mark:
        metadata |= {"labels": dict(MANAGED_BY), "annotations": sharing[0].mark.annotations()}
    if metadata:
        yield Write(Verb.PATCH, known.ref, patched(known.ref, metadata))


# --- what is not wanted any more ---


def _unwanted(
    snapshot: Snapshot, found: Consumers, volumes: Iterable[str], claims: Iterable[ClaimName]
) -> Iterator[Write]:
    wanted_volumes, wanted_claims = frozenset(volumes), frozenset(claims)
    named = {claim.volume for claim in (snapshot.claims or {}).values()}
    for claim in (snapshot.claims or {}).values():
        if claim.mark is None or claim.deleting or claim.key in wanted_claims:
            continue
        if not _stays(snapshot, found, claim.mark, claim.ref.namespace):
            yield Write(Verb.DELETE, claim.ref, {}, unmounted=True)
    for volume in (snapshot.volumes or {}).values():
        if volume.mark is None or volume.deleting or volume.ref.name in wanted_volumes:
            continue
        namespace = volume.claim[0] if volume.claim is not None else None
        if volume.ref.name not in named and not _stays(snapshot, found, volume.mark, namespace):
            yield Write(Verb.DELETE, volume.ref, {})


def _stays(snapshot: Snapshot, found: Consumers, mark: Mark, namespace: str | None) -> bool:
    """Whether it stays although it is not wanted: nobody can say that it is not, or somebody may still need it."""
    cache = snapshot.caches.get(mark.cache)
    if cache is None:
        return ("caches", mark.cache) in snapshot.left_out
    if cache.problem is not None or (mark.group in cache.node_groups and mark.group not in snapshot.groups):
        return True
    if mark.role is Role.DOWNLOAD:
        return False
    if cache.deleted_at is not None or not found.known or snapshot.kserve.disable_volume_management:
        return True
    return namespace in found.kept.get(cache.key, ())
