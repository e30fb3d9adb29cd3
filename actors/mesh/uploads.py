"""What a node answers a peer that asks for a chunk: how many it sends at a time, who waits for one on its way. Pure.

A request for a chunk that is here is answered with it, or with "busy". One for a chunk that is on its way here is held,
and answered the moment the chunk lands; but only few for each, or the first to have a chunk would send it to everybody.

No peer gets the last slot if it has all others, and one that takes what it asked for too slowly gets nothing else, and
its slots go to others after a while.
"""

from __future__ import annotations

from actors.mesh.actions import Answer, Release
from actors.mesh.limits import Pace, Width
from actors.messages import NodeName

LATE_S = 10.0
"""A chunk that has been on its way for so long no longer counts as one that is sent."""


class Serving:
    """The sending side of a mesh. Every DATA takes a slot until `sent`."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self.strangers = pace.strangers
        """Chunks sent at a time to members that are no neighbours."""
        self.shared = False
        """More than one peer may ask."""
        self._width = Width(pace.slots, pace.aim_s)
        self._sending: dict[tuple[NodeName, int], tuple[float, bool]] = {}
        self._away = 0
        self._held: dict[int, list[tuple[NodeName, bool]]] = {}
        self._holding = 0

    def asked(self, peer: NodeName, chunk: int, now: float, *, here: bool, coming: bool, stranger: bool) -> Answer:
        if here:
            return self._begin(peer, chunk, now, stranger=stranger)
        if not coming:
            return Answer.NOT_YET
        if len(self._held.get(chunk, [])) >= self._pace.holds or self._holding >= self._pace.slots:
            return Answer.BUSY
        self._held.setdefault(chunk, []).append((peer, stranger))
        self._holding += 1
        return Answer.HOLD

    def sent(self, peer: NodeName, chunk: int, now: float, *, ok: bool) -> None:
        """A chunk went out; not `ok`: or failed to, or was not needed, so that it says nothing of the link."""
        sending = self._sending.pop((peer, chunk), None)
        if sending is not None:
            began, stranger = sending
            self._away -= stranger
            if ok:
                self._width.took(now - began)

    def arrived(self, chunk: int, now: float) -> list[Release]:
        """Those who wait for the chunk get it, as far as there are slots."""
        waiting = self._held.pop(chunk, [])
        self._holding -= len(waiting)
        return [Release(peer, chunk, self._begin(peer, chunk, now, stranger=stranger)) for peer, stranger in waiting]

    def lost(self, chunk: int) -> list[Release]:
        """The chunk is no longer on its way: those who wait for it are told so."""
        waiting = self._held.pop(chunk, [])
        self._holding -= len(waiting)
        return [Release(peer, chunk, Answer.NOT_YET) for peer, _ in waiting]

    def unhold(self, peer: NodeName, chunk: int) -> None:
        """`peer` waits no longer."""
        waiting = self._held.get(chunk, [])
        for entry in waiting:
            if entry[0] == peer:
                waiting.remove(entry)
                self._holding -= 1
                break

    @property
    def is_consistent(self) -> bool:
        """The counts are of what there is, and within their limits. Always so: see `actors.mesh.invariants`."""
        holds = [len(waiting) for waiting in self._held.values()]
        return (
            self._holding == sum(holds) <= self._pace.slots
            and max(holds, default=0) <= self._pace.holds
            and self._away == sum(stranger for _, stranger in self._sending.values()) <= self.strangers
        )

    def _begin(self, peer: NodeName, chunk: int, now: float, *, stranger: bool) -> Answer:
        if (peer, chunk) in self._sending:  # it asks again while the last copy is on its way
            return Answer.BUSY
        if stranger and self._away >= self.strangers:
            return Answer.BUSY
        if len(self._sending) >= int(self._width) - self.shared and not self._makes_room(peer, now):
            return Answer.BUSY
        self._sending[peer, chunk] = (now, stranger)
        self._away += stranger
        return Answer.DATA

    def _makes_room(self, peer: NodeName, now: float) -> bool:
        """There is a slot for `peer` although most are taken: what is late does not count, and not all are its own."""
        late = [to for (to, _), (began, _) in self._sending.items() if now >= began + LATE_S]
        taken = len(self._sending) - len(late)
        if peer in late or taken >= int(self._width):
            return False
        return taken < int(self._width) - self.shared or any(to != peer for to, _ in self._sending)
