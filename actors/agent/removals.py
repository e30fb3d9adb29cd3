"""Orders to remove a committed copy: each is carried out when it arrives, or never.

The coordinator looked at Kubernetes some seconds ago. Here everything that the order counts on is looked at once more:

    the copy is there, and ours, and nothing is under way at it
    it is not wanted; or it may be evicted, and what it is to make room for still waits for space
    no pod uses it, unless the order is forced
    the order is of now
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from actors.agent.evictions import Entry
from actors.agent.roots import Root
from actors.agent.state import State
from actors.disk.marker import Marker
from actors.messages import DesiredState, Place, Removal
from actors.peers.exchange import Exchange

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an order is not carried out. `message` None: nobody need hear of it, the next order is of what holds now."""

    message: str | None = None
    fields: dict[str, str] = field(default_factory=dict)


def obey(state: State, desired: DesiredState, exchange: Exchange, now: float) -> None:
    """Copies that were ordered to go have gone, where all that the order counts on still holds."""
    leaving = {place.root for place in state.removing}  # what that gives back may be enough
    for order in desired.remove:
        refusal = refused(order, state, desired, now, settling=order.root in leaving)
        if refusal is None:
            _carry_out(order, state, desired.owner, exchange, now)
        elif refusal.message is not None:
            _log.warning(refusal.message, extra=_fields(order) | refusal.fields)


def refused(order: Removal, state: State, desired: DesiredState, now: float, *, settling: bool) -> Refusal | None:
    """Why the order is not carried out; None: it is. `settling`: its root is about to get room anyway."""
    marker = state.roots.copy(order.place)
    if marker is None or marker.owner != desired.owner or order.place in state.tasks:
        return Refusal()
    if order.for_key is None and order.place in state.goal.models:
        return Refusal()
    if order.for_key is not None and (settling or not _makes_room(order, state)):
        return Refusal()
    if not order.forced and (desired.used is None or order.key in desired.used):
        return Refusal("a copy is not removed: a pod may use it")
    age_s = now - order.at
    if abs(age_s) > order.valid_s:
        fields = {"age_s": str(round(age_s, 1)), "valid_s": str(order.valid_s)}
        return Refusal("a removal is not of now: do the clocks agree?", fields)
    return None


def _makes_room(order: Removal, state: State) -> bool:
    """Whether the copy may be evicted, and the model that it makes room for still waits for space."""
    model = state.goal.models.get(order.place)
    waiting = state.tasks.get(Place(order.root, order.for_key)) if order.for_key is not None else None
    return model is not None and model.evictable and waiting is not None and waiting.lacks_space


def _carry_out(order: Removal, state: State, owner: str, exchange: Exchange, now: float) -> None:
    root = state.roots[order.root]
    marker = root.present[order.key]
    fill = state.goal.fill_at(order.place)
    fields = _fields(order) | {"bytes": marker.manifest.total_bytes, "uri": marker.manifest.source.uri}
    fields |= {"for": order.for_uri} if order.for_uri else {}
    _log.info("removing a copy", extra=fields)
    _remember(order, root, marker, now)
    removed = root.remove(order.key, owner)
    if removed is None:
        root.ledger.forget(order.key)
        return
    state.removing[order.place] = removed
    if fill is not None:
        exchange.leave(fill)
    _log.info("removed a copy", extra=fields)


def _remember(order: Removal, root: Root, marker: Marker, now: float) -> None:
    """Before the copy goes: one that makes room for another does not come straight back."""
    if order.for_key is not None:
        size_bytes = marker.manifest.total_bytes
        root.ledger.add(order.key, Entry(now, size_bytes, order.for_key, order.for_uri, order.for_bytes))


def _fields(order: Removal) -> dict[str, object]:
    return {"key": order.key, "root": order.root, "reason": order.reason}
