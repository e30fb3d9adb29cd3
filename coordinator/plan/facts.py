"""What one plan is made from: the snapshot, and what follows from it before anything is decided.

snapshot ──contested, place──► members ──offline sources──► sources ──fold──► what every node is to every cache
                                                              └────► use, forsaken
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter

from actors.manifest import Manifest, StorageKey
from actors.messages import NodeName
from coordinator.api.resources import StatusKey
from coordinator.plan.access import forsaken, veiled, with_contested
from coordinator.plan.consumers import Consumers, consumers
from coordinator.plan.content import ANY
from coordinator.plan.fold import Fold, Turn, fold
from coordinator.plan.memory import Memory
from coordinator.plan.offline_sources import known_from_copies
from coordinator.plan.placement import Members, place
from coordinator.plan.snapshot import Resolution, Snapshot
from coordinator.plan.sources import source_state
from coordinator.plan.tally import SourceState
from coordinator.plan.usage import Usage, usage
from coordinator.plan.versions import content, is_refreshed

_FIELDS_OF = attrgetter(*(each.name for each in fields(Resolution)))


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
    memory: Memory = field(default_factory=Memory)


def gather(snapshot: Snapshot, now: float, turn: Turn | None = None, memory: Memory | None = None) -> Facts:
    """Everything that deciding needs to know. `turn`: as in `fold`."""
    memory = memory or Memory()
    answers = {
        key: memory.call(("resolution", key), Resolution, *_FIELDS_OF(each))
        for key, each in snapshot.resolutions.items()
    }
    snapshot = replace(snapshot, caches=with_contested(snapshot, memory), resolutions=answers)
    members = place(snapshot, memory)
    contents = {
        key: memory.same(("content", key), content(cache, snapshot.resolutions.get(key), now))
        for key, cache in snapshot.caches.items()
        if is_refreshed(cache)
    }
    copies = known_from_copies(snapshot, members, memory)
    snapshot = replace(snapshot, resolutions=copies.resolutions)
    asked = {
        key: memory.call(("source", key), source_state, cache, snapshot.resolutions.get(key), contents.get(key, ANY))
        for key, cache in snapshot.caches.items()
        if cache.deleted_at is None
    }
    sources = veiled(snapshot.caches.values(), asked, memory)
    return Facts(
        snapshot=snapshot,
        members=members,
        sources=sources,
        folded=fold(snapshot, members, sources, turn, now, memory),
        use=usage(snapshot, now),
        now=now,
        forsaken=memory.same("forsaken", forsaken(snapshot.caches.values(), snapshot.resolutions)),
        asked=copies.asked,
        manifests=copies.manifests,
        consumers=consumers(snapshot),
        memory=memory,
    )
