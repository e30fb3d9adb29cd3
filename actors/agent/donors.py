"""Which copies on a node's disk a model may take files from: its own earlier one, and those that its readers may read.

A digest is what a source says, and whoever chooses the source can say any. So what is another's is not handed out for
the digest alone: a copy of a model that only some namespaces asked for is used for models of those namespaces.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from actors.agent.state import State
from actors.disk.reuse import Donor
from actors.messages import Audience, DesiredModel, Place


def may_take(mine: Audience, theirs: Audience) -> bool:
    """Whether everybody who reads my model could read theirs."""
    return theirs is None or (mine is not None and mine <= theirs)


def donors(state: State, model: DesiredModel) -> Iterator[Donor]:
    """The copies in the model's root that it may take files from, its own first. The agent's lock is held."""
    goal, root = state.goal, state.roots[model.root]
    store, owner = root.store, goal.desired.owner if goal.desired is not None else ""
    if store is None:
        return
    for key in sorted(root.present, key=lambda each: each != model.key):
        place, marker = Place(model.root, key), root.present[key]
        other = goal.models.get(place)
        if marker.owner != owner or other is None or not may_take(model.audience, other.audience):
            continue
        yield Donor(str(store.model(key)), marker.manifest, partial(store.opened, key), frozenset(root.damage(key)))
    for version in root.beside.versions:
        if version.key == model.key and version.marker.owner == owner:
            yield Donor(version.name, version.marker.manifest, partial(store.opened_version, version.name))
