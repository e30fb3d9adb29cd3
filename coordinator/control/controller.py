"""The loop: observe → plan → apply, level-triggered, and nothing else.

    informers ─┐                     ┌─► fleet.sync(desired)        what every agent should hold
    agents ────┼─► Snapshot ─► Plan ─┼─► resolver.want(wants)       what must be known of the sources
    resolver ──┘                     ├─► writes, paced              finalizers, LocalModelNodes, status, Events
    looks at pods ─┘                 ├─► looks                      at the pods of nodes where something is to go
                                     └─► remover, evictor           what goes is announced

A tick never waits for anything: writes go through a small thread pool and their outcome is looked at in the next tick.
While the API server is away the agents keep their desired state, and their reports keep coming in. Only a leader acts;
everybody observes.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol, TypedDict, Unpack

from actors.manifest import Manifest, OriginName
from actors.messages import Company, NodeName
from actors.sources.options import SourceOptions
from coordinator.api.resources import StatusKey
from coordinator.collector import paused
from coordinator.control.acting import WATCHED_ANEW_S as WATCHED_ANEW_S
from coordinator.control.acting import Acting
from coordinator.control.eviction_guard import Evictor
from coordinator.control.imports import ImportReader
from coordinator.control.informers import Informers
from coordinator.control.kserve_config import ConfigReader
from coordinator.control.looks import Looks
from coordinator.control.metrics import CacheSample, Metrics, NodeSample
from coordinator.control.outage import Outage
from coordinator.control.outcomes import Outcomes
from coordinator.control.pruning import Pruning
from coordinator.control.quarantine import Quarantine
from coordinator.control.remover import Remover
from coordinator.control.story import Story
from coordinator.control.write_pacing import Pace
from coordinator.control.writer import Writer
from coordinator.fleet.interface import Fleet
from coordinator.kube.interface import Kube
from coordinator.plan.announcements import Announcement
from coordinator.plan.eviction import Policy
from coordinator.plan.memory import Memory
from coordinator.plan.node_tier import followed
from coordinator.plan.origin_budget import Budgets
from coordinator.plan.plan import Plan, Want, Write, plan
from coordinator.plan.snapshot import ORPHAN_GRACE_S, Credentials, Governed, Ref, Resolution, Snapshot
from coordinator.plan.tally import Tally

_log = logging.getLogger(__name__)

STANDSTILL_S = 60.0
"""How long the loop may fail, or take for one turn, before the coordinator is no longer ready."""
DEBOUNCE_S = 0.05
"""Changes come in bursts (one `kubectl apply` is several); they are planned for together."""


class Resolver(Protocol):
    def want(self, wants: Mapping[StatusKey, Want], load_options: Callable[[Credentials], SourceOptions]) -> None: ...

    def resolutions(self) -> Mapping[StatusKey, Resolution]: ...


class Recorder(Protocol):
    def event(self, ref: Ref, type_: str, reason: str, message: str) -> None:
        """Never blocks, never raises."""


class Choices(TypedDict, total=False):
    """What an operator, or a test, may choose.

    `budgets`: how much all nodes together may ask of an origin. `eviction` needs `informers.pods`. `orphan_grace_s`:
    as in Snapshot, and so `mark_nodes`. `home` is the namespace whose pods are not users of models but ours.
    `writes_per_s` and `progress_interval_s`: as in Pace. `executor` sends the writes and looks at pods. `kserve` None:
    its defaults hold. `follows`: KServe's controller decides what nodes hold (see `plan.node_tier`); `informers`
    must, too.
    """

    budgets: Budgets | None
    eviction: Policy | None
    orphan_grace_s: float | None
    storage_limit: str
    mark_nodes: bool
    home: str
    writes_per_s: float
    progress_interval_s: float
    executor: Executor | None
    kserve: ConfigReader | None
    clock: Callable[[], float]
    follows: bool


class Controller:
    """Turns snapshots into desired states and writes. `tick` and `run` belong to one thread."""

    def __init__(
        self,
        informers: Informers,
        kube: Kube,
        fleet: Fleet,
        resolver: Resolver,
        recorder: Recorder,
        metrics: Metrics,
        *,
        leading: Callable[[], bool],
        load_options: Callable[[Credentials], SourceOptions],
        **chosen: Unpack[Choices],
    ) -> None:
        self._informers = informers
        self._kserve = chosen.get("kserve")
        self._fleet = fleet
        self._resolver = resolver
        self._recorder = recorder
        self._metrics = metrics
        self._leading = leading
        self._load_options = load_options
        self._clock = chosen.get("clock", time.time)
        self._budgets = chosen.get("budgets") or Budgets()
        self._orphan_grace_s = chosen.get("orphan_grace_s", ORPHAN_GRACE_S)
        self._storage_limit = chosen.get("storage_limit", "auto")
        self._mark_nodes = chosen.get("mark_nodes", False)
        self._follows = chosen.get("follows", False)
        self._executor = chosen.get("executor") or ThreadPoolExecutor(max_workers=8, thread_name_prefix="write")
        self._story = Story()
        self._outcomes = Outcomes(metrics)
        self._remover = Remover(self._announce)
        self._pruning = Pruning(self._announce)
        self._quarantine = Quarantine(self._announce, metrics)
        self._imports = ImportReader(kube, self._executor, chosen.get("home", ""), self.wake)
        self._looks = Looks(kube, self._executor, self._clock, self.wake, chosen.get("home", ""))
        eviction = chosen.get("eviction")
        self._evictor: Evictor | None = None
        if eviction is not None and informers.pods is not None:
            self._evictor = Evictor(eviction, informers.pods, self._announce)
        self._pace = Pace(chosen.get("writes_per_s", 100.0), chosen.get("progress_interval_s", 3.0))
        outage = Outage()
        self._writer = Writer(kube, self._executor, self._pace, self._pruning, outage, leading, self._announce)
        self._acting = Acting(informers, kube, outage, self._turned)
        self._memory = Memory()
        self._companies: Mapping[str, Company] = {}
        self._manifests: Mapping[StatusKey, Manifest] = {}
        self._governed: Mapping[OriginName, Governed] = {}
        self._cutting_over: Mapping[StatusKey, frozenset[NodeName]] = {}
        self._secret = secrets.token_bytes(32)
        self._woken = threading.Event()
        self._good_at = time.monotonic()
        self._failure = ""

    def wake(self) -> None:
        """Something changed. May be called from any thread, as often as one likes."""
        self._woken.set()

    def poisoned(self, ref: Ref, error: Exception) -> None:
        """Says on the object itself that it cannot be read. For `Informers.over`."""
        self._announce([Announcement(ref, True, "InvalidObject", str(error))])

    def run(self, stop: threading.Event, *, tick_s: float = 1.0) -> None:
        """Ticks until `stop` is set: soon after a wake, at least every `tick_s`, and for half of the time at most.

        A `wake` after `stop` ends it at once. Writes under way are waited for.
        """
        while not stop.is_set():
            self._woken.wait(tick_s)
            if stop.wait(DEBOUNCE_S):
                break
            self._woken.clear()
            started = time.monotonic()
            try:
                self.tick()
            except Exception as error:  # noqa: BLE001 - a bug must not end the loop; the next tick starts from scratch
                _log.exception("tick failed")
                self._metrics.tick_failed()
                self._failure = type(error).__name__
            else:
                self._good_at, self._failure = time.monotonic(), ""
                self._metrics.tick_succeeded(time.time())
            seconds = time.monotonic() - started
            self._metrics.tick(seconds)
            stop.wait(seconds)
        self.close()

    def standstill(self) -> str | None:
        """Why nothing has been planned for `STANDSTILL_S`; None: something has. For /readyz, from any thread."""
        silent_s = time.monotonic() - self._good_at
        if silent_s < STANDSTILL_S:
            return None
        why = f"it fails with {self._failure}" if self._failure else "it does not end"
        return f"the last turn of the loop that succeeded was {silent_s:.0f} s ago: {why}; see the log"

    def close(self) -> None:
        """Waits for the writes under way, and says what came of them; nothing more is sent."""
        self._writer.close(self._clock())

    def tick(self) -> Plan | None:
        """One turn. Returns the plan it acted on, None if it may not or cannot act."""
        now = self._clock()
        self._writer.settle(now)
        if not self._acting.look(self._leading(), now):
            return None
        snapshot = self._quarantine.clean(self._snapshot(now))
        planned = self._plan(snapshot, now)
        self._companies, self._manifests = planned.companies, planned.manifests
        self._cutting_over = planned.cutting_over
        self._notice_pauses(planned.shares.by_origin, now)
        self._governed = planned.shares.by_origin
        if not self._leading():  # while it was made
            return None
        self._fleet.sync(planned.desired)
        self._story.planned(snapshot, planned)
        self._outcomes.observe(snapshot, now)
        self._resolver.want(planned.wants, self._load_options)
        self._looks.want(planned.looks, now)
        self._remover.act(snapshot, planned.removals, planned.desired)
        if self._evictor is not None:
            self._evictor.act(snapshot, planned.evictions)
        writes = self._pruning.with_probes(planned.writes, lambda: self._in_full(snapshot, now), now)
        self._writer.send(writes, now)
        self._pace.keep(_refs(snapshot), now)
        self._writer.settle(now)
        self._metrics.show(
            [_sample(tally) for tally in planned.tallies.values()],
            _agents(snapshot),
            planned.shares.usage,
            _disks(snapshot),
        )
        return planned

    def _plan(self, snapshot: Snapshot, now: float) -> Plan:
        """Raises what the plan raises, until it is known which object makes it, and that one is left out."""
        turn = self._pace.turn(snapshot.local_nodes, now)

        def attempt(world: Snapshot) -> Plan:
            with paused():
                return plan(world, now, turn, self._memory)

        try:
            planned = attempt(snapshot)
        except Exception as error:
            if not self._quarantine.failed(snapshot, attempt, error):
                raise
            _log.exception("a plan failed")
            planned = attempt(self._quarantine.clean(snapshot))
        self._quarantine.succeeded()
        return planned

    def _in_full(self, snapshot: Snapshot, now: float) -> Iterable[Write]:
        return self._plan(replace(snapshot, pruned=frozenset()), now).writes

    def _turned(self, acting: bool) -> None:
        """It begins to act, or ends: what was told to agents by then is another coordinator's."""
        self._companies, self._governed, self._cutting_over = {}, {}, {}
        self._story.begin()
        self._outcomes.begin()
        if not acting:
            self._resolver.want({}, self._load_options)
            self._metrics.show([], {})  # they are for whoever acts to show

    def _snapshot(self, now: float) -> Snapshot:
        caches = [*self._informers.caches.items().values(), *self._informers.namespace_caches.items().values()]
        snapshot = Snapshot(
            owner=self._acting.owner,
            caches={cache.key: cache for cache in caches},
            groups={name: group for (_, name), group in self._informers.groups.items().items()},
            nodes={NodeName(name): node for (_, name), node in self._informers.nodes.items().items()},
            local_nodes={NodeName(name): node for (_, name), node in self._informers.local_nodes.items().items()},
            agents=self._fleet.views(),
            resolutions=self._resolver.resolutions(),
            pruned=self._pruning.kinds,
            companies=self._companies,
            manifests=self._manifests,
            secret=self._secret,
            acting_since=self._acting.since,
            budgets=self._budgets,
            governed=self._governed,
            cutting_over=self._cutting_over,
            orphan_grace_s=self._orphan_grace_s,
            storage_limit=self._storage_limit,
            mark_nodes=self._mark_nodes,
        )
        snapshot = self._looks.see(self._informers.see(snapshot), now)
        if not self._follows:
            snapshot = self._imports.see(snapshot, now)
        if self._kserve is not None:
            self._kserve.look(self._executor, now)
            snapshot = self._kserve.see(snapshot)
        if self._follows:
            snapshot = followed(snapshot)
        return self._evictor.see(snapshot) if self._evictor is not None else snapshot

    def _notice_pauses(self, governed: Mapping[OriginName, Governed], now: float) -> None:
        """Counts and logs what an origin has asked for since the last plan."""
        for origin, told in governed.items():
            before = self._governed.get(origin)
            if told.quiet_until > now and (before is None or told.quiet_until != before.quiet_until):
                self._metrics.paused(origin)
                pause_s = round(told.quiet_until - now, 1)
                _log.warning("an origin asked for a pause", extra={"origin": origin, "pause_s": pause_s})

    def _announce(self, events: Iterable[Announcement]) -> None:
        for event in events:
            self._story.announced(event)
            self._recorder.event(event.ref, "Warning" if event.warning else "Normal", event.reason, event.message)
            if event.warning:
                self._metrics.failed(event.reason)


def _sample(tally: Tally) -> CacheSample:
    ref = tally.cache.ref
    return CacheSample(
        name=ref.name,
        namespace=ref.namespace or "",
        nodes={word.value: count for word, count in tally.words.items()},
        bytes_total=tally.size_bytes,
        bytes_cached=tally.bytes_cached,
        rate_bytes_per_s=tally.rate,
        moved=tally.moved,
    )


def _agents(snapshot: Snapshot) -> dict[str, int]:
    return dict(Counter(view.failure.reason if view.failure else "Ready" for view in snapshot.agents.values()))


def _disks(snapshot: Snapshot) -> list[NodeSample]:
    return [
        NodeSample(
            name,
            models=sum(root.used_bytes for root in view.report.roots),
            reserved=sum(root.reserved_bytes for root in view.report.roots),
            free=sum(root.free_bytes for root in view.report.roots),
        )
        for name, view in snapshot.agents.items()
        if view.report is not None
    ]


def _refs(snapshot: Snapshot) -> Iterable[Ref]:
    yield from (cache.ref for cache in snapshot.caches.values())
    yield from (group.ref for group in snapshot.groups.values())
    yield from (local.ref for local in snapshot.local_nodes.values())
    if snapshot.mark_nodes:
        yield from (node.ref for node in snapshot.nodes.values())
