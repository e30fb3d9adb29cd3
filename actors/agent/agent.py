"""The node agent: makes what is on this node's disks what it should be, and says how far it is.

    scan disk ────► present ┐
    DesiredState ───────────┼─► diff ──► start │ cancel        pure, milliseconds
    tasks ────────► active  ┘

`reconcile` sets the goal and returns what is true now; it waits for no transfer. One housekeeping thread pursues the
goal between two calls: it starts what is due, gives a slot that became free to the next, unlinks what was removed. So
an agent that nobody talks to any more still finishes what it was asked for.

A scrubber reads what is committed again. A damaged copy is started once more: as a repair, while the copy stays.

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
from collections.abc import Callable
from importlib.metadata import version as distribution_version

from actors.agent import reports
from actors.agent.admission import Admission, check_expected
from actors.agent.adoption import make_way, recognise
from actors.agent.attempt import Ended, Engine
from actors.agent.diff import Action, Active, Cancel, Start, diff
from actors.agent.donors import donors
from actors.agent.removals import obey
from actors.agent.roots import Roots
from actors.agent.settings import AgentSettings
from actors.agent.sharing import share
from actors.agent.state import Goal, State
from actors.agent.task import Task
from actors.disk.reuse import linkable_bytes, offers
from actors.errors import InsufficientStorage, LocalModelError
from actors.fill.origin_quota import Quotas
from actors.messages import DesiredModel, DesiredState, NodeName, NodeReport, Place
from actors.peers.exchange import Exchange
from actors.rates import RateLimit
from actors.retry import RetryPolicy
from actors.scrub.scrubber import Scrubber
from actors.service import Service
from actors.sources.options import remember_options
from actors.trust import Trust

__all__ = ["AgentSettings", "NodeAgent"]

HOUSEKEEPING_S = 1.0
RESCAN_S = 60.0
"""How often the disk is looked at for what somebody else did to it."""

_log = logging.getLogger(__name__)


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
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._woken = threading.Event()
        rng = rng or random.Random()
        self._exchange = Exchange(
            node, settings.peer_host, settings.peer_port, settings.link_bytes_per_s, rng, settings.peer_tls
        )
        self._quotas = Quotas(steady)
        self._engine = Engine(
            settings,
            clock,
            rng,
            RetryPolicy(settings.backoff_first_s, settings.backoff_max_s),
            RateLimit(settings.rate_limit_bytes_per_s),
            self._exchange,
            self._quotas,
        )
        self._scrubber = Scrubber(
            bytes_per_s=settings.scrub_bytes_per_s,
            interval_s=settings.scrub_interval_s,
            chunk_bytes=settings.chunk_bytes,
            clock=clock,
            found=self._woken.set,
        )
        self._state = State(Roots(settings, self._incarnation, self._scrubber, clock))
        self._admission = Admission(self._state, settings.headroom_bytes)
        self._housekeeper = Service("housekeeping", self._keep_house, self._closed)
        self._housekeeper.start()

    def reconcile(self, desired: DesiredState) -> NodeReport:
        """From now on this is the goal. Returns within milliseconds."""
        self._housekeeper.start()  # does nothing for one that runs
        self._scrubber.keep()
        with self._lock:
            for each in desired.resolved.values():
                remember_options(each)
            self._state.goal.take(desired)
            self._quotas.allow(desired.origins)
            self._state.roots.reopen()
            for store in self._state.roots.stores():
                store.used = desired.used
            obey(self._state, desired, self._exchange, self._clock())
            self._step()
            for store in self._state.roots.stores():
                store.used_at = self._clock()
            if self._state.removing:
                self._woken.set()
            return self.report()

    def report(self) -> NodeReport:
        """The node as it is now."""
        with self._lock:
            state = self._state
            return NodeReport(
                node=self._node,
                incarnation=self._incarnation,
                version=self._version,
                pid=os.getpid(),
                models=tuple(reports.with_versions(state, reports.models(state, self._exchange))),
                roots=tuple(reports.roots(state)),
                resolved_known=frozenset(state.goal.resolved),
                companies_known=frozenset(state.goal.companies),
                peer_address=self._exchange.address,
                link_bytes_per_s=self._settings.link_bytes_per_s,
                manifests=reports.manifests(state),
                origins=self._quotas.report(),
                aside=frozenset(each.key for root in state.roots.values() for each in root.aside()),
                at=self._clock(),
            )

    def close(self, timeout_s: float = 10.0) -> None:
        """Nothing runs any more, or `timeout_s` have passed. Fills under way can be continued."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            self._closed.set()
            tasks = self._state.tasks.values()
            threads = [task.thread for task in tasks if task.thread is not None]
            for task in tasks:
                task.cancel(keep=True)
        self._woken.set()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._housekeeper.join(max(0.0, deadline - time.monotonic()))
        self._scrubber.close(max(0.0, deadline - time.monotonic()))
        self._exchange.close()

    # --- the goal, pursued ---

    def _step(self) -> None:
        """Everything that is due has begun. Waits for no transfer."""
        desired = self._state.goal.desired
        if desired is None or self._closed.is_set():
            return
        self._refresh(desired)
        for action in self._due(desired):
            match action:
                case Cancel(place):
                    self._cancel(place)
                case Start(place, model):
                    self._start(place, model, desired)
        self._state.goal.forget_unused()
        share(self._state, self._exchange)

    def _refresh(self, desired: DesiredState) -> None:
        """Tasks, roots and copies that are known already go by what is asked for now."""
        state, goal = self._state, self._state.goal
        for place, model in goal.models.items():
            task = state.tasks.get(place)
            if task is not None and task.model.source.selection == model.source.selection:
                _renew(task, model, goal, desired.trust)
        for root in state.roots.values():
            models = {place.key: model for place, model in goal.models.items() if place.root == root.name}
            root.readmit({key for key, model in models.items() if model.evictable})
            root.beside.expect({key: (model, goal.source_of(model)) for key, model in models.items()})
        for place, model in goal.models.items():
            task, resolved = state.tasks.get(place), goal.source_of(model)
            busy = task is not None and task.thread is not None
            if place.root in state.roots and resolved is not None and not busy:
                recognise(state.roots[place.root], model, resolved, desired.owner)

    def _due(self, desired: DesiredState) -> list[Action]:
        state, now = self._state, self._clock()
        present = dict(state.roots.present())
        active = {place: task.active(now) for place, task in state.tasks.items()}
        active |= {place: Active(marker.manifest.source.selection) for place, marker in state.removing.items()}
        damaged = {place for place in present if state.roots.damage(place)}
        return diff(desired, present, active, damaged, dict(state.prefetched()))

    def _start(self, place: Place, model: DesiredModel, desired: DesiredState) -> None:
        """The model is being filled, or its task says what it waits for."""
        state, goal = self._state, self._state.goal
        task = state.tasks.setdefault(place, Task(place, model, self._engine))
        task.trust, task.lacking_bytes = desired.trust, None
        company, resolved, evicted = goal.company_of(model), goal.source_of(model), state.roots.evicted(place)
        task.accompany(company)
        try:
            root = state.roots.known(place.root)
            store = root.usable()
            make_way(root, place.key, resolved, desired.owner, self._clock())
            check_expected(root.present.get(place.key), model, resolved)
            free = sum(each.thread is not None for each in state.tasks.values()) < self._settings.concurrent_models
            in_vain = task.repaired_in_vain
            unread = root.repair(place.key, task.model.source, None, in_vain=in_vain)
            if unread is not None and free:
                task.examine(unread, store, ended=self._when_ended(task))
                return
            if unread is None and not model.hold and root.restore(model, resolved, desired.owner):
                del state.tasks[place]
                return
            unknown = company is None and model.company is not None
            if unknown or resolved is None or model.resolved is None or not free:
                task.wait(evicted.error() if evicted is not None else None)
                return
            repair = root.repair(place.key, task.model.source, resolved, in_vain=in_vain)
            source = resolved if repair is None else repair.narrowed(resolved)
            at_hand = tuple(donors(state, model))
            linked_bytes = linkable_bytes(source.manifest, offers(source.manifest, at_hand))
            self._admission.check_room(task, resolved, repair, linked_bytes)
        except LocalModelError as error:
            if isinstance(error, InsufficientStorage):
                root.beside.drop(root.beside.dispensable())  # they are the first to go
            task.wait(evicted.error() if evicted is not None and isinstance(error, InsufficientStorage) else error)
            return
        task.start(
            model.resolved,
            resolved,
            store,
            desired.owner,
            ended=self._when_ended(task),
            repair=repair,
            donors=at_hand,
            keep=place.key in root.present and not root.damage(place.key),
            hold=model.hold,
        )

    def _when_ended(self, task: Task) -> Callable[[Ended], None]:
        return lambda outcome: self._ended(task, outcome)

    def _ended(self, task: Task, outcome: Ended) -> None:
        place = task.place
        if outcome.repair is not None and outcome.marker is not None:
            self._scrubber.mended(place, outcome.repair.paths - outcome.wrong.keys())
            self._scrubber.blame(place, outcome.repair.marker, outcome.wrong)
        with self._lock:
            task.finish(outcome)
            if outcome.beside:
                self._state.roots[place.root].beside.look()
            elif outcome.marker is not None and outcome.repair is None:
                self._state.roots[place.root].committed(place.key, outcome.marker)
            if outcome.marker is not None or not self._state.is_wanted(task):
                del self._state.tasks[place]
        self._woken.set()

    def _cancel(self, place: Place) -> None:
        """The fill of this place ends, and nothing is left of it; its thread says when."""
        task = self._state.tasks.get(place)
        if task is None:
            return
        if task.thread is not None:
            task.cancel(keep=False)
        else:
            del self._state.tasks[place]
            self._state.leftovers = True
            self._woken.set()

    # --- housekeeping, in its own thread ---

    def _keep_house(self) -> None:
        rescan_at = time.monotonic() + RESCAN_S
        while not self._closed.is_set():
            try:
                self._sweep()
                if time.monotonic() >= rescan_at:
                    rescan_at = time.monotonic() + RESCAN_S
                    for root in self._state.roots.values():
                        root.rescan(self._lock)
                with self._lock:
                    self._step()
            except LocalModelError as error:
                _log.warning("housekeeping failed", extra={"reason": error.reason, "error": str(error)})
            self._woken.wait(HOUSEKEEPING_S)
            self._woken.clear()

    def _sweep(self) -> None:
        """Copies that nobody wants any more are unlinked. Unlinking takes its time, and holds no lock."""
        with self._lock:
            leaving = dict(self._state.removing)
            self._state.abandon_leftovers()
            stores = list(self._state.roots.stores())
        for store in stores:
            store.empty_trash()
        with self._lock:
            for place in leaving:
                self._state.removing.pop(place, None)


def _renew(task: Task, model: DesiredModel, goal: Goal, trust: Trust) -> None:
    """The task goes by what is asked for now, of the same files."""
    resolved = goal.source_of(model)
    task.want(model)
    if task.thread is not None and task.trust != trust:
        task.cancel(keep=True)  # it goes on by what holds now
    if model.company is None or model.company in goal.companies:
        task.accompany(goal.company_of(model))
    if resolved is not None and model.resolved is not None:
        task.renew(model.resolved, resolved)
