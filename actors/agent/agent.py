"""The node agent: makes what is on this node's disks what it should be, and says how far it is.

    scan disk ────► present ┐
    DesiredState ───────────┼─► diff ──► start │ cancel        pure, milliseconds
    tasks ────────► active  ┘

`reconcile` sets the goal and returns what is true now; it waits for no transfer. One housekeeping thread pursues the
goal between two calls: it starts what is due, gives a slot that became free to the next, unlinks what was removed. So
an agent that nobody talks to any more still finishes what it was asked for.

A scrubber reads what is committed again. What it finds damaged is started once more: as a repair, while the copy stays.

A committed copy is removed by an order alone, never because nobody mentions it. An order is not a goal: it is carried
out when it arrives, or never. A copy that is evicted stays wanted: its task waits until it fits beside what it made
room for.

All truth is on the disk: an agent that starts finds it there.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import version as distribution_version

from actors.agent.capacity import Room, Waiting
from actors.agent.diff import Active, Cancel, Start, diff, satisfies
from actors.agent.evictions import Entry, Ledger
from actors.agent.reports import of_copy, of_repair
from actors.agent.settings import AgentSettings
from actors.agent.task import Ended, Task
from actors.disk.store import Aside, Marker, Standing, Store, disk_errors, path_occupied
from actors.errors import Failure, InsufficientStorage, LocalModelError, StoreError
from actors.fill.fill import verified_how
from actors.fill.origin_quota import Quotas
from actors.manifest import Manifest, Resolved, StorageKey, check_digest
from actors.messages import (
    Company,
    DesiredModel,
    DesiredState,
    Earlier,
    ModelReport,
    NodeName,
    NodeReport,
    Phase,
    Place,
    Removal,
    RootReport,
)
from actors.peers.exchange import Exchange
from actors.retry import RateLimit, RetryPolicy
from actors.scrub.record import is_same_copy
from actors.scrub.repair import Repair
from actors.scrub.scrubber import Scrubber
from actors.service import Service
from actors.transport.answers import remember_options

__all__ = ["AgentSettings", "NodeAgent"]

HOUSEKEEPING_S = 1.0
RESCAN_S = 60.0
"""How often the disk is looked at for what somebody else did to it."""
UNREAD = "may not be what it was: its model's marker was damaged"
"""Of a file that has to be read again before the copy counts."""
NAMED_JUNK = 20
"""How many things that are not ours a report names."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Root:
    """One of the settings' roots. Without a store, `failure` says why."""

    store: Store | None = None
    failure: Failure | None = None
    present: dict[StorageKey, Marker] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)


class NodeAgent:
    """Any thread may call anything. `clock` gives epoch seconds, `steady` seconds that nobody sets."""

    def __init__(
        self,
        node: NodeName,
        settings: AgentSettings,
        *,
        incarnation: str | None = None,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        """Looks at the disks before it returns: what is committed is reported from the first report on."""
        self._node = node
        self._settings = settings
        self._incarnation = incarnation or uuid.uuid4().hex[:12]
        self._version = distribution_version("localmodel")
        self._clock = clock
        self._rng = rng or random.Random()
        self._retry = RetryPolicy(settings.backoff_first_s, settings.backoff_max_s)
        self._limit = RateLimit(settings.rate_limit_bytes_per_s)
        self._quotas = Quotas(steady)
        self._lock = threading.RLock()
        self._desired: DesiredState | None = None
        self._resolved: dict[str, Resolved] = {}
        self._companies: dict[str, Company] = {}
        self._tasks: dict[Place, Task] = {}
        self._removing: dict[Place, Marker] = {}
        self._leftovers = True
        self._exchange = Exchange(
            node, settings.peer_host, settings.peer_port, settings.link_bytes_per_s, self._rng, settings.peer_tls
        )
        self._closed = threading.Event()
        self._woken = threading.Event()
        self._scrubber = Scrubber(
            bytes_per_s=settings.scrub_bytes_per_s,
            interval_s=settings.scrub_interval_s,
            chunk_bytes=settings.chunk_bytes,
            clock=clock,
            found=self._woken.set,
        )
        self._roots = {name: self._open(name) for name in settings.roots}
        self._housekeeper = Service("housekeeping", self._keep_house, self._closed)
        self._housekeeper.start()

    def reconcile(self, desired: DesiredState) -> NodeReport:
        """From now on this is the goal. Returns within milliseconds."""
        self._housekeeper.start()  # does nothing for one that runs
        self._scrubber.keep()
        with self._lock:
            self._desired = replace(desired, remove=())
            for each in desired.resolved.values():
                remember_options(each)
            self._resolved |= desired.resolved
            self._companies |= desired.companies
            self._quotas.allow(desired.origins)
            for name, root in self._roots.items():
                if root.store is None:
                    root = self._roots[name] = self._open(name)
                if root.store is not None:
                    root.store.used = desired.used
            self._obey(desired)
            self._step()
            for root in self._roots.values():
                if root.store is not None:
                    root.store.used_at = self._clock()
            return self.report()

    def report(self) -> NodeReport:
        """What is true now."""
        with self._lock:
            return NodeReport(
                node=self._node,
                incarnation=self._incarnation,
                version=self._version,
                pid=os.getpid(),
                models=tuple(self._model_reports()),
                roots=tuple(self._root_reports()),
                resolved_known=frozenset(self._resolved),
                companies_known=frozenset(self._companies),
                peer_address=self._exchange.address,
                link_bytes_per_s=self._settings.link_bytes_per_s,
                manifests=self._manifests(),
                origins=self._quotas.report(),
                aside=frozenset(each.key for name in self._roots for each in self._aside(name)),
                at=self._clock(),
            )

    def close(self, timeout_s: float = 10.0) -> None:
        """Nothing runs any more, or `timeout_s` have passed. What was being filled can be continued."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            self._closed.set()
            threads = [task.thread for task in self._tasks.values() if task.thread is not None]
            for task in self._tasks.values():
                task.cancel(keep=True)
        self._woken.set()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._housekeeper.join(max(0.0, deadline - time.monotonic()))
        self._scrubber.close(max(0.0, deadline - time.monotonic()))
        self._exchange.close()

    # --- the goal, pursued ---

    def _step(self) -> None:
        desired, now = self._desired, self._clock()
        if desired is None or self._closed.is_set():
            return
        for model in desired.models:
            task, resolved = self._tasks.get(model.place), self._resolved.get(model.resolved or "")
            if task is not None and task.model.source.selection == model.source.selection:
                task.model = model
                if task.thread is not None and task.trust != desired.trust:
                    task.cancel(keep=True)  # it goes on by what holds now
                if model.company is None or model.company in self._companies:
                    task.accompany(self._companies.get(model.company or ""))
                if resolved is not None and model.resolved is not None:
                    task.renew(model.resolved, resolved)
        self._readmit(desired)
        self._recognise(desired)
        present = dict(self._present())
        active = {place: task.active(now) for place, task in self._tasks.items()}
        active |= {place: Active(marker.manifest.source.selection) for place, marker in self._removing.items()}
        for action in diff(desired, present, active, {place for place in present if self._scrubber.damage(place)}):
            match action:
                case Cancel(place):
                    self._cancel(place)
                case Start(place, model):
                    self._start(place, model, desired)
        self._keep_company(desired)
        used = {model.resolved for model in desired.models}
        self._resolved = {name: each for name, each in self._resolved.items() if name in used}

    def _recognise(self, desired: DesiredState) -> None:
        """A copy of another request that comes to the same files is the copy of this one, and nothing is fetched."""
        for model in desired.models:
            root, resolved = self._roots.get(model.root), self._resolved.get(model.resolved or "")
            marker = root.present.get(model.key) if root is not None else None
            if root is None or root.store is None or marker is None or resolved is None:
                continue
            if marker.owner != desired.owner or marker.manifest.source == model.source:
                continue
            task = self._tasks.get(model.place)
            busy = task is not None and task.thread is not None
            if busy or not marker.manifest.is_same_content(resolved.manifest):
                continue
            manifest = replace(marker.manifest, source=model.source, revision=resolved.manifest.revision)
            named = replace(marker, manifest=manifest)
            try:
                root.store.rename(model.key, named)
            except StoreError as error:
                _log.warning("cannot name a copy anew", extra={"key": model.key, "error": str(error)})
                continue
            root.present[model.key] = named
            self._scrubber.watch(model.place, named, root.store)
            _log.info("a copy is what is asked for now", extra={"key": model.key, "revision": manifest.revision})

    def _keep_company(self, desired: DesiredState) -> None:
        """What others fill is handed out to them, from what is committed here or being filled."""
        used = {model.company for model in desired.models}
        self._companies = {name: each for name, each in self._companies.items() if name in used}
        self._exchange.keep(self._companies.values())
        for model in desired.models:
            company, root = self._companies.get(model.company or ""), self._roots.get(model.root)
            marker = root.present.get(model.key) if root is not None else None
            if company is None or marker is None or root is None or root.store is None:
                continue
            if satisfies(marker, model) and model.place not in self._tasks:
                try:
                    with root.store.opened(model.key) as folder:
                        self._exchange.seed(company, marker.manifest, folder.here)
                except OSError as error:
                    _log.warning("cannot serve a model", extra={"key": model.key, "error": str(error)})

    def _start(self, place: Place, model: DesiredModel, desired: DesiredState) -> None:
        """The model is being filled, or its task says what it waits for."""
        task = self._tasks.get(place)
        if task is None:
            task = self._tasks[place] = Task(place, model, self._settings, self._clock, self._exchange, self._quotas)
        task.trust = desired.trust
        company = self._companies.get(model.company or "")
        task.accompany(company)
        resolved = self._resolved.get(model.resolved or "")
        evicted = self._evicted(place)
        task.lacking_bytes = None
        try:
            store = self._store(place.root)
            self._make_way(place, resolved, store, desired.owner)
            self._check_digest(place, model, resolved)
            running = sum(each.thread is not None for each in self._tasks.values())
            unread = self._repair(task, None)
            if unread is not None and running < self._settings.concurrent_models:
                task.examine(unread, store, ended=self._when_ended(task), retry=self._retry, rng=self._rng)
                return
            unknown = resolved is None or (company is None and model.company is not None)
            if unknown or resolved is None or model.resolved is None or running >= self._settings.concurrent_models:
                task.wait(evicted.error() if evicted is not None else None)
                return
            repair = self._repair(task, resolved)
            self._check_room(task, resolved, repair, store, desired)
        except LocalModelError as error:
            task.wait(evicted.error() if evicted is not None and isinstance(error, InsufficientStorage) else error)
            return

        name, owner, ended = model.resolved, desired.owner, self._when_ended(task)
        task.start(name, resolved, store, owner, limit=self._limit, rng=self._rng, ended=ended, repair=repair)

    def _when_ended(self, task: Task) -> Callable[[Ended], None]:
        return lambda outcome: self._ended(task, outcome)

    def _make_way(self, place: Place, resolved: Resolved | None, store: Store, owner: str) -> None:
        """What stands in the model's place is ours, or nothing, or is adopted: to be read before it counts.

        Raises StoreError (PathOccupied) for what is neither.
        """
        standing = store.standing(place.key, owner)
        present = self._roots[place.root].present
        self._blame_unread(place.root, store, present)
        if standing is Standing.FOREIGN:
            raise path_occupied(store.model(place.key))
        if standing not in (Standing.DAMAGED, Standing.UNMARKED) or resolved is None:
            return
        manifest = resolved.manifest
        known = manifest.digest is not None
        if standing is Standing.UNMARKED and not (known and store.fits(place.key, manifest)):
            raise path_occupied(store.model(place.key))
        if not known:
            return  # filled anew; then what is there moves aside
        marker = Marker(owner, manifest, verified_how(manifest), finished_at=self._clock())
        self._adopt(place, marker, store, present)
        _log.info("adopting what is there", extra={"key": place.key, "root": place.root, "was": standing.name.lower()})

    def _blame_unread(self, name: str, store: Store, present: dict[StorageKey, Marker]) -> None:
        """Copies of which the marker was damaged are not Ready before every byte of them was read."""
        while store.unread:
            key, marker = store.unread.popitem()
            self._adopt(Place(name, key), marker, store, present)

    def _adopt(self, place: Place, marker: Marker, store: Store, present: dict[StorageKey, Marker]) -> None:
        """What stands there is this copy; first it is remembered that its files have to be read before it counts."""
        present[place.key] = marker
        self._scrubber.watch(place, marker, store)
        self._scrubber.blame(place, marker, dict.fromkeys((file.path for file in marker.manifest.files), UNREAD))
        try:
            store.adopt(place.key, marker)
        except StoreError as error:
            _log.warning("cannot write a marker", extra={"key": place.key, "error": str(error)})

    def _repair(self, task: Task, resolved: Resolved | None) -> Repair | None:
        """What to put right in the committed copy. None: nothing, or nothing that this source still has.

        Without `resolved`, what has to be read first: it may be right.
        """
        marker, damage = self._roots[task.place.root].present.get(task.place.key), self._scrubber.damage(task.place)
        record = self._scrubber.record(task.place)
        if marker is None or record is None or not damage or marker.manifest.source != task.model.source:
            return None
        if resolved is None:
            damage = {path: wrong for path, wrong in damage.items() if wrong == UNREAD}
        sums = {path: record.sums[path] for path in damage if path in record.sums}
        repair = Repair(marker, frozenset(damage), sums, record.chunk_bytes)
        if resolved is None:
            return repair if damage else None
        changed = task.repaired_in_vain and not repair.vouched(resolved.manifest)
        return repair if repair.possible(resolved.manifest) and not changed else None

    def _check_digest(self, place: Place, model: DesiredModel, resolved: Resolved | None) -> None:
        """Raises IntegrityError when it is known before the first byte that the digest cannot be the expected one."""
        marker = self._roots[place.root].present.get(place.key)
        if resolved is not None:
            check_digest(resolved.manifest.digest, model.expected_digest)
        elif marker is not None and marker.manifest.source.selection == model.source.selection:
            check_digest(marker.manifest.digest, model.expected_digest)

    def _check_room(
        self, task: Task, resolved: Resolved, repair: Repair | None, store: Store, desired: DesiredState
    ) -> None:
        """Raises InsufficientStorage, with the numbers, if it does not fit beside what was promised to others."""
        root = task.place.root
        others = [each for each in self._tasks.values() if each is not task and each.place.root == root]
        limits = next((each for each in desired.roots if each.path == root), None)
        room = Room(
            root=root,
            free_bytes=store.free_bytes(),
            headroom_bytes=self._settings.headroom_bytes,
            used_bytes=self._used_bytes(root),
            reserved_bytes=sum(each.reserved_bytes for each in others),
            unallocated_bytes=sum(each.reserved_bytes for each in others if not each.allocated),
            limit_bytes=limits.storage_limit_bytes if limits is not None else None,
            group=limits.group if limits is not None else "",
        )
        manifest, held = resolved.manifest, store.ingested_bytes(task.place.key)
        waiting = (each for each in others if each.lacks_space)
        ahead = [Waiting(each.model.source.uri, each.model.priority, each.needed_bytes) for each in waiting]
        if repair is not None:
            task.needed_bytes = repair.total_bytes
            room.check(task.needed_bytes, held_bytes=held, repair=True)
            room.check_turn(task.model.priority, ahead)
            return
        task.needed_bytes, peak = manifest.total_bytes, manifest.peak_bytes
        evicted = self._evicted(task.place)
        if evicted is not None:
            room = room.promise(self._owed_bytes(task, evicted, room, desired))
        try:
            room.check(task.needed_bytes, peak_bytes=peak, held_bytes=held)
            room.check_turn(task.model.priority, ahead)
        except InsufficientStorage:
            settled = not self._leftovers and store.trash_is_empty()
            if evicted is None and settled and room.has_a_chance(task.needed_bytes):
                task.lacking_bytes = room.lacking_bytes(task.needed_bytes, peak_bytes=peak, held_bytes=held)
            raise

    # --- orders ---

    def _obey(self, desired: DesiredState) -> None:
        """What was ordered to go has gone, where all that the order counts on still holds."""
        leaving = {place.root for place in self._removing}  # what that gives back may be enough
        models = {model.place: model for model in desired.models}
        for order in desired.remove:
            place, root = order.place, self._roots.get(order.root)
            marker = root.present.get(order.key) if root is not None else None
            if root is None or marker is None or marker.owner != desired.owner or place in self._tasks:
                continue
            if order.for_key is not None:
                if order.root in leaving or not self._makes_room(order, models.get(place)):
                    continue
            elif place in models:
                continue
            used = not order.forced and (desired.used is None or order.key in desired.used)
            age_s, fields = self._clock() - order.at, {"key": order.key, "root": order.root, "reason": order.reason}
            if used:
                _log.warning("a copy is not removed: a pod may use it", extra=fields)
            elif abs(age_s) > order.valid_s:
                fields |= {"age_s": str(round(age_s, 1)), "valid_s": str(order.valid_s)}
                _log.warning("a removal is not of now: do the clocks agree?", extra=fields)
            else:
                self._carry_out(order, root, marker, desired.owner)

    def _makes_room(self, order: Removal, model: DesiredModel | None) -> bool:
        """Whether the copy may be evicted, and the model that it makes room for still waits for space."""
        waiting = self._tasks.get(Place(order.root, order.for_key)) if order.for_key is not None else None
        return model is not None and model.evictable and waiting is not None and waiting.lacks_space

    def _carry_out(self, order: Removal, root: _Root, marker: Marker, owner: str) -> None:
        place, size_bytes = order.place, marker.manifest.total_bytes
        fill = self._company_of(place)
        fields = {"key": order.key, "root": order.root, "reason": order.reason, "bytes": size_bytes}
        fields |= {"uri": marker.manifest.source.uri} | ({"for": order.for_uri} if order.for_uri else {})
        _log.info("removing a copy", extra=fields)
        if order.for_key is not None:
            entry = Entry(self._clock(), size_bytes, order.for_key, order.for_uri, order.for_bytes)
            root.ledger.add(order.key, entry)
        self._remove(place, owner)
        if order.key in root.present:  # the disk refused
            root.ledger.forget(order.key)
            return
        if fill is not None:
            self._exchange.leave(fill)
        _log.info("removed a copy", extra=fields)

    def _readmit(self, desired: DesiredState) -> None:
        """What may not be evicted any more, or is not wanted, is no longer held back."""
        evictable = {model.place for model in desired.models if model.evictable}
        for name, root in self._roots.items():
            for key in root.ledger.known:
                if Place(name, key) not in evictable:
                    root.ledger.forget(key)

    def _evicted(self, place: Place) -> Entry | None:
        root = self._roots.get(place.root)
        return root.ledger.get(place.key) if root is not None else None

    def _owed_bytes(self, task: Task, evicted: Entry, room: Room, desired: DesiredState) -> int:
        """What an evicted model must leave to others that are as important and not here yet."""
        owed, present = 0, self._roots[task.place.root].present
        for model in desired.models:
            place = model.place
            if model.root != room.root or place == task.place or model.key in present or self._evicted(place):
                continue
            other, resolved = self._tasks.get(place), self._resolved.get(model.resolved or "")
            if model.priority < task.model.priority or (other is not None and other.thread is not None):
                continue
            needed = max(
                other.needed_bytes if other is not None else 0,
                resolved.manifest.total_bytes if resolved is not None else 0,
                evicted.for_bytes if model.key == evicted.for_key else 0,
            )
            owed += needed if room.has_a_chance(needed) else 0
        return owed

    def _ended(self, task: Task, outcome: Ended) -> None:
        if outcome.repair is not None and outcome.marker is not None:
            self._scrubber.mended(task.place, outcome.repair.paths - outcome.wrong.keys())
            self._scrubber.blame(task.place, outcome.repair.marker, outcome.wrong)
        with self._lock:
            task.finish(outcome, self._retry, self._rng)
            wanted = self._is_wanted(task)
            root = self._roots[task.place.root]
            if outcome.marker is not None and outcome.repair is None and root.store is not None:
                root.present[task.place.key] = outcome.marker
                root.ledger.forget(task.place.key)
                self._scrubber.watch(task.place, outcome.marker, root.store)
            if outcome.marker is not None or not wanted:
                del self._tasks[task.place]
        self._woken.set()

    def _is_wanted(self, task: Task) -> bool:
        models = self._desired.models if self._desired is not None else ()
        return any(
            model.place == task.place and model.source.selection == task.model.source.selection for model in models
        )

    def _cancel(self, place: Place) -> None:
        """What is being filled ends, and nothing is left of it; its thread says when."""
        task = self._tasks.get(place)
        if task is None:
            return
        if task.thread is not None:
            task.cancel(keep=False)
        else:
            del self._tasks[place]
            self._leftovers = True
            self._woken.set()

    def _remove(self, place: Place, owner: str) -> None:
        try:
            self._store(place.root).remove(place.key, owner)
            self._scrubber.forget(place)
        except StoreError as error:
            _log.warning("cannot remove a model", extra={"key": place.key, "error": str(error)})
            return
        self._removing[place] = self._roots[place.root].present.pop(place.key)
        self._woken.set()

    # --- roots ---

    def _open(self, name: str) -> _Root:
        path = self._settings.path(name)
        try:
            with disk_errors(f"looking at {path}"):
                mounted = path.is_dir()
            if not mounted:
                raise StoreError(
                    f"{name} is no folder where the agent looks for it ({path}): is the disk mounted into the agent?",
                    reason="PathMismatch",
                )
            store = Store(path, self._incarnation, self._clock, self._settings.aside_margin_s)
            present, ledger = store.committed(), Ledger(store.evicted_notes)
            for key in ledger.known & present.keys():  # the agent ended before the copy went
                ledger.forget(key)
            for key, marker in present.items():
                self._scrubber.watch(Place(name, key), marker, store)
                self._scrubber.blame(Place(name, key), marker, store.misfits(key, marker.manifest))
            self._blame_unread(name, store, present)
            return _Root(store, present=present, ledger=ledger)
        except LocalModelError as error:
            return _Root(failure=error.failure())
        except Exception as error:  # noqa: BLE001  one disk must not keep the agent from the others
            _log.exception("a root cannot be opened", extra={"root": name})
            return _Root(failure=Failure("InternalError", f"{name} cannot be opened: {type(error).__name__}: {error}"))

    def _store(self, root: str) -> Store:
        """Raises StoreError for a root that is not one of ours, or cannot be used."""
        if root not in self._roots:
            raise StoreError(_mismatch(root, self._settings).message, reason="PathMismatch")
        store, failure = self._roots[root].store, self._roots[root].failure
        if store is None:
            raise StoreError(failure.message if failure else "", reason=failure.reason if failure else None)
        return store

    def _present(self) -> Iterator[tuple[Place, Marker]]:
        for name, root in self._roots.items():
            for key, marker in root.present.items():
                yield Place(name, key), marker

    def _used_bytes(self, root: str) -> int:
        present = sum(marker.manifest.total_bytes for marker in self._roots[root].present.values())
        return present + self._aside_bytes(root)

    def _aside(self, root: str) -> list[Aside]:
        store = self._roots[root].store
        try:
            return store.aside() if store is not None else []
        except StoreError:  # which is said of the root
            return []

    def _aside_bytes(self, root: str) -> int:
        return sum(each.size_bytes for each in self._aside(root))

    # --- what it says ---

    def _model_reports(self) -> Iterator[ModelReport]:
        """What is leaving comes first, then what nobody wants, so that by key the last word is what is wanted."""
        for place, marker in self._removing.items():
            yield replace(of_copy(place.key, marker, Phase.REMOVING), root=place.root)
        models = self._desired.models if self._desired is not None else ()
        wanted = {model.place: model for model in models}
        for place, marker in sorted(self._present(), key=lambda item: item[0] in wanted):
            model = wanted.get(place)
            if model is None and self._desired is not None and marker.owner != self._desired.owner:
                continue
            if place not in self._tasks and (model is None or model.kept or satisfies(marker, model)):
                said = of_copy(place.key, marker, Phase.READY, self._scrubber.record(place))
                yield replace(said, part=self._exchange.part(self._company_of(place)), root=place.root)
        for place, task in self._tasks.items():
            damage = self._scrubber.damage(place)
            copy = self._roots[place.root].present.get(place.key) if damage else None
            if copy is not None and copy.manifest.source == task.model.source:
                yield replace(of_repair(task.report(), copy, damage), root=place.root)
            else:  # a first fill, or another request, which replaces the copy whatever state that is in
                yield replace(task.report(), earlier=self._earlier(place, task.model), root=place.root)

    def _earlier(self, place: Place, model: DesiredModel) -> Earlier | None:
        """The copy that is served until what is asked for now is committed. One of a wrong digest is not."""
        marker = self._roots[place.root].present.get(place.key) if place.root in self._roots else None
        if marker is None or self._scrubber.damage(place):
            return None
        if model.expected_digest not in (None, marker.manifest.digest):
            return None
        manifest = marker.manifest
        size, digest = manifest.total_bytes, manifest.digest
        return Earlier(manifest.source.selection, manifest.revision, digest, size, marker.finished_at)

    def _manifests(self) -> dict[StorageKey, Manifest]:
        """Of the committed models that the coordinator asks about."""
        asked = self._desired.manifests if self._desired is not None else frozenset()
        return {place.key: marker.manifest for place, marker in self._present() if place.key in asked} if asked else {}

    def _company_of(self, place: Place) -> str | None:
        models = self._desired.models if self._desired is not None else ()
        names = (model.company for model in models if model.place == place)
        company = self._companies.get(next(names, None) or "")
        return company.fill if company is not None else None

    def _root_reports(self) -> Iterator[RootReport]:
        for name, root in self._roots.items():
            reserved = sum(task.reserved_bytes for task in self._tasks.values() if task.place.root == name)
            free, failure = 0, root.failure
            try:
                free = root.store.free_bytes() if root.store is not None else 0
            except StoreError as error:
                failure = error.failure()
            junk = [f"{path}: {why}" for path, why in sorted((root.store.junk if root.store else {}).items())]
            used, aside = self._used_bytes(name), self._aside_bytes(name)
            yield RootReport(name, free, used, reserved, failure, aside, tuple(junk[:NAMED_JUNK]))
        for each in self._desired.roots if self._desired is not None else ():
            if each.path not in self._roots:
                yield RootReport(each.path, failure=_mismatch(each.path, self._settings))

    # --- housekeeping, in its own thread ---

    def _keep_house(self) -> None:
        rescan_at = time.monotonic() + RESCAN_S
        while not self._closed.is_set():
            try:
                self._sweep()
                if time.monotonic() >= rescan_at:
                    rescan_at = time.monotonic() + RESCAN_S
                    self._rescan()
                with self._lock:
                    self._step()
            except LocalModelError as error:
                _log.warning("housekeeping failed", extra={"reason": error.reason, "error": str(error)})
            self._woken.wait(HOUSEKEEPING_S)
            self._woken.clear()

    def _sweep(self) -> None:
        """What nobody wants any more is unlinked. Unlinking takes its time, and holds no lock."""
        with self._lock:
            stores = {name: root.store for name, root in self._roots.items() if root.store is not None}
            leaving = dict(self._removing)
            if self._leftovers and self._desired is not None:
                wanted = {model.place for model in self._desired.models}
                wanted = wanted - dict(self._present()).keys() | self._tasks.keys()
                for name, store in stores.items():
                    for key in store.ingests(self._desired.owner):
                        if Place(name, key) not in wanted:
                            store.abandon(key)
                self._leftovers = False
        for store in stores.values():
            store.empty_trash()
        with self._lock:
            for place in leaving:
                self._removing.pop(place, None)

    def _rescan(self) -> None:
        """What somebody else took away is no longer present, and what he broke is damaged."""
        with self._lock:
            present = [(place, marker, self._roots[place.root].store) for place, marker in self._present()]
        for place, marker, store in present:
            if store is None:
                continue
            try:
                found = store.look(place.key)
            except StoreError as error:  # a disk that stumbles (ESTALE of NFS, EIO) has not lost the model
                _log.warning("cannot look at a model", extra={"key": place.key, "error": str(error)})
                continue
            if found is not None and is_same_copy(found, marker):
                self._scrubber.blame(place, marker, store.misfits(place.key, marker.manifest))
                with self._lock:
                    self._blame_unread(place.root, store, self._roots[place.root].present)
                continue
            with self._lock:
                copies = self._roots[place.root].present
                if copies.get(place.key) is not marker:
                    continue
                _log.warning("a committed model was taken away", extra={"key": place.key, "root": place.root})
                del copies[place.key]
                self._scrubber.forget(place)
                if found is not None:  # and another put in its place
                    copies[place.key] = found
                    self._scrubber.watch(place, found, store)


def _mismatch(root: str, settings: AgentSettings) -> Failure:
    ours = ", ".join(settings.roots)
    return Failure(
        "PathMismatch",
        f"the node group's volume is at {root}, but the agent on this node holds models in {ours} (LOCALMODEL_ROOTS)",
    )
