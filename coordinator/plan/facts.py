"""What one plan is made from: the snapshot, and what follows from it before anything is decided.

snapshot ──contested, place──► members ──offline sources──► sources ──fold──► what every node is to every cache
                                                              └────► use, forsaken
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from actors.manifest import Manifest, StorageKey
from actors.messages import NodeName
from coordinator.api.resources import StatusKey
from coordinator.plan.access import forsaken, veiled, with_contested
from coordinator.plan.consumers import Consumers, consumers
from coordinator.plan.fold import Fold, Turn, fold
from coordinator.plan.offline_sources import known_from_copies
from coordinator.plan.placement import Members, place
from coordinator.plan.snapshot import Snapshot
from coordinator.plan.sources import source_state
from coordinator.plan.tally import SourceState
from coordinator.plan.usage import Usage, usage


@dataclass(frozen=True, slots=True)
class Facts:
    """`snapshot` with caches marked as contested, and with what copies say of sources that do not answer.

    `sources` has an entry for every cache that is not being deleted. `forsaken` are the models that only caches want
    which may not have them. `asked`: of which models each node is to send the manifest; `manifests` are those in use
    for want of an answer, by cache. `now` is epoch seconds.
    """

    snapshot: Snapshot
    members: Members
    sources: Mapping[StatusKey, SourceState]
    folded: Fold
    use: Usage
    now: float
    forsaken: frozenset[StorageKey] = frozenset()
    asked: Mapping[NodeName, frozenset[StorageKey]] = field(default_factory=dict)
    manifests: Mapping[StatusKey, Manifest] = field(default_factory=dict)
    consumers: Consumers = field(default_factory=Consumers)


def gather(snapshot: Snapshot, now: float, turn: Turn | None = None) -> Facts:
    """Everything that deciding needs to know. `turn`: as in `fold`."""
    snapshot = replace(snapshot, caches=with_contested(snapshot))
    members = place(snapshot)
    copies = known_from_copies(snapshot, members)
    snapshot = replace(snapshot, resolutions=copies.resolutions)
    asked = {
        cache.key: source_state(cache, snapshot.resolutions.get(cache.key))
        for cache in snapshot.caches.values()
        if cache.deleted_at is None
    }
    sources = veiled(snapshot.caches.values(), asked)
    return Facts(
        snapshot=snapshot,
        members=members,
        sources=sources,
        folded=fold(snapshot, members, sources, turn, now),
        use=usage(snapshot, now),
        now=now,
        forsaken=forsaken(snapshot.caches.values(), snapshot.resolutions),
        asked=copies.asked,
        manifests=copies.manifests,
        consumers=consumers(snapshot),
    )
