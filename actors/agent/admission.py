"""Whether a model may be filled now: its digest can be the expected one, and there is room for it beside the others.

The arithmetic of space is in `agent.capacity`. Here is what goes into it: what was promised to whom.
"""

from __future__ import annotations

from dataclasses import dataclass

from actors.agent.capacity import Limit, Room, Waiting
from actors.agent.evictions import Entry
from actors.agent.state import State
from actors.agent.task import Task
from actors.disk.marker import Marker
from actors.disk.store import Store
from actors.errors import InsufficientStorage
from actors.manifest import Resolved, check_digest
from actors.messages import DesiredModel
from actors.scrub.repair import Repair


def check_expected(copy: Marker | None, model: DesiredModel, resolved: Resolved | None) -> None:
    """Raises IntegrityError when it is known before the first byte that the digest cannot be the expected one."""
    if resolved is not None:
        check_digest(resolved.manifest.digest, model.expected_digest)
    elif copy is not None and copy.manifest.source.selection == model.source.selection:
        check_digest(copy.manifest.digest, model.expected_digest)


@dataclass(frozen=True, slots=True)
class Admission:
    """Decides for one node. `headroom_bytes` stay free on every root."""

    state: State
    headroom_bytes: int

    def check_room(self, task: Task, resolved: Resolved, repair: Repair | None, linked_bytes: int = 0) -> None:
        """Raises InsufficientStorage, with the numbers, if it does not fit beside what was promised to others.

        `linked_bytes` of it take no space: other copies have them. The task notes what it needs and lacks.
        """
        store = self.state.roots[task.place.root].usable()
        others = [each for each in self.state.tasks_in(task.place.root) if each is not task]
        ahead = [
            Waiting(each.model.source.uri, each.model.priority, each.needed_bytes)
            for each in others
            if each.lacks_space
        ]
        room, manifest = self._room(task, store, others), resolved.manifest
        held = store.ingested_bytes(task.place.key)
        if repair is not None:
            task.needed_bytes, task.linked_bytes = repair.total_bytes - linked_bytes, linked_bytes
            room.check(task.needed_bytes, held_bytes=held, repair=True)
            room.check_turn(task.model.priority, ahead)
            return
        task.needed_bytes, task.linked_bytes = manifest.total_bytes - linked_bytes, linked_bytes
        peak = manifest.peak_bytes - linked_bytes
        evicted = self.state.roots.evicted(task.place)
        if evicted is not None:
            room = room.promise(*self._owed_bytes(task, evicted, room))
        try:
            room.check(task.needed_bytes, peak_bytes=peak, held_bytes=held)
            room.check_turn(task.model.priority, ahead)
        except InsufficientStorage:
            settled = not self.state.leftovers and store.trash_is_empty()
            if evicted is None and settled and room.has_a_chance(task.needed_bytes):
                task.lacking_bytes = room.lacking_bytes(task.needed_bytes, peak_bytes=peak, held_bytes=held)
            raise

    def _room(self, task: Task, store: Store, others: list[Task]) -> Room:
        name, group = task.place.root, task.model.group
        root = self.state.roots[name]
        used_bytes = root.used_bytes()
        desired = self.state.goal.desired
        roots = desired.roots if desired is not None else ()
        shares = {each.group: each.storage_limit_bytes for each in roots if each.path == name}
        elsewhere = {
            place.key for place, model in self.state.goal.models.items() if place.root == name and model.group != group
        }
        return Room(
            root=name,
            free_bytes=store.free_bytes(),
            headroom_bytes=self.headroom_bytes,
            reserved_bytes=sum(each.reserved_bytes for each in others),
            unallocated_bytes=sum(each.reserved_bytes for each in others if not each.allocated),
            used_bytes=used_bytes,
            limit=Limit(
                shares.get(group),
                used_bytes=used_bytes - root.committed_bytes(elsewhere),
                reserved_bytes=sum(each.reserved_bytes for each in others if each.model.group == group),
                group=group,
            ),
        )

    def _owed_bytes(self, task: Task, evicted: Entry, room: Room) -> tuple[int, int]:
        """What an evicted model must leave to others that are as important and not here yet: to all, to its group's."""
        owed, of_group, goal, roots = 0, 0, self.state.goal, self.state.roots
        for place, model in goal.models.items():
            if model.root != room.root or place == task.place or roots.copy(place) or roots.evicted(place):
                continue
            other, resolved = self.state.tasks.get(place), goal.source_of(model)
            if model.priority < task.model.priority or (other is not None and other.thread is not None):
                continue
            needed = max(
                other.needed_bytes if other is not None else 0,
                resolved.manifest.total_bytes if resolved is not None else 0,
                evicted.for_bytes if model.key == evicted.for_key else 0,
            )
            if room.has_a_chance(needed):
                owed += needed
                of_group += needed if model.group == task.model.group else 0
        return owed, of_group
