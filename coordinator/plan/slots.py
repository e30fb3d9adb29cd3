"""Caches that share a folder: which of them decides its content, and what that is to each.

Caches of one URI share one folder on a node, and one copy. A slot says what one of them has of it: all, if it decides
or wants the same, and nothing, if it wants other files than are to be there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from actors.errors import Failure
from actors.messages import Audience
from coordinator.plan.access import could_provide, has_standing, known_digest, rank
from coordinator.plan.node_tier import refused
from coordinator.plan.snapshot import Cache, Snapshot


@dataclass(frozen=True, slots=True)
class Slot:
    """One cache on one node. `owner` is the cache whose request decides the content of the folder they share.

    `root` is None where nothing says which folder a held copy is in. `conflict` says why the owner's copy is not this
    cache's, `orphan` why the cache does not select the node although its copy is there. `counts`: its priority holds
    for the folder, too.
    """

    cache: Cache
    group: str
    root: str | None
    owner: Cache
    entry: Mapping[str, Any]
    conflict: Failure | None = None
    counts: bool = True
    orphan: str | None = None


class Placed(NamedTuple):
    """A cache on the nodes of one placement, before it is known whose request decides."""

    cache: Cache
    group: str
    root: str | None
    orphan: str | None = None

    @property
    def request(self) -> tuple[str, str | None]:
        return self.cache.selection, self.root


def owner_of(snapshot: Snapshot, sharing: list[Placed]) -> Placed:
    """Of those who share a folder, the oldest whose source answers, among those who want what is to be in it.

    `sharing` is ordered by age. Its content is decided by `access.rank`: an older cache whose credentials are
    refused does not keep the others waiting, and an edited one does not take from them what they have.
    """
    if len(sharing) == 1:
        return sharing[0]
    answers = snapshot.resolutions
    first = min(sharing, key=lambda each: rank(each.cache, answers.get(each.cache.key)))
    alike = (each for each in sharing if each.request == first.request)
    return next((each for each in alike if could_provide(each.cache, answers.get(each.cache.key))), first)


def slot_of(snapshot: Snapshot, placed: Placed, owner: Placed) -> Slot:
    """The slot of a cache, where `owner` decides about the folder."""
    cache, resolution = placed.cache, snapshot.resolutions.get(placed.cache.key)
    entry = entry_of(cache, placed.group)
    conflict = _conflict(snapshot, placed, owner) if placed is not owner else None
    if snapshot.follows:
        conflict = refused(cache, placed.group, placed.root) or conflict
    counts = placed is owner or has_standing(cache, resolution)
    return Slot(cache, placed.group, placed.root, owner.cache, entry, conflict, counts, placed.orphan)


def entry_of(cache: Cache, group: str) -> Mapping[str, Any]:
    """The line of a LocalModelNode for a cache that is there for this group."""
    return {**cache.entry, "sourceModelUri": cache.source.uri, "nodeGroup": group}


def _conflict(snapshot: Snapshot, placed: Placed, first: Placed) -> Failure | None:
    """Caches of one URI share one folder, so they must want the same files in the same place."""
    cache, owner = placed.cache, first.cache
    digests = [known_digest(each, snapshot.resolutions.get(each.key)) for each in (cache, owner)]
    same = digests[0] is not None and digests[0] == digests[1]
    differing = [
        name
        for name, mine, theirs in (
            ("revision", cache.source.revision, owner.source.revision),
            ("include", cache.source.include, owner.source.include),
            ("exclude", cache.source.exclude, owner.source.exclude),
        )
        if mine != theirs and not same
    ]
    differing += ["digest"] if cache.digest != owner.digest else []
    differing += ["node group path"] if placed.root != first.root else []
    if differing in ([], ["digest"]):  # what each expects of the same copy is judged for each by itself
        return None
    message = (
        f"{_named(owner, cache)} has the same URI {cache.source.uri} with another {', '.join(differing)}, and one"
        " folder holds one of them: give both the same, or delete one"
    )
    return Failure("SourceConflict", message, retryable=False)


def _named(owner: Cache, reader: Cache) -> str:
    """`owner` as the author of `reader` may know it: not by its name, if it is in another namespace."""
    if owner.ref.namespace in (None, reader.ref.namespace):
        return f"{owner.ref.resource.kind} {owner.key}"
    return "a cache of another namespace"


def priority(sharing: Iterable[Slot]) -> int:
    """Of a folder: the highest of those who share it and have a say in it."""
    return max(slot.cache.priority for slot in sharing if slot.counts)


def audience(sharing: Iterable[Slot]) -> Audience:
    """Of a folder: the namespaces of all who share it. A cache of the cluster does not make public what others have."""
    found = frozenset(slot.cache.ref.namespace or "" for slot in sharing)
    return None if found == {""} else found


def expected_digest(sharing: Iterable[Slot]) -> str | None:
    """The digest that an agent insists on for a folder: none, unless all who have a say in it expect the same."""
    digests = {slot.cache.digest for slot in sharing if slot.counts and slot.conflict is None}
    return digests.pop() if len(digests) == 1 else None
