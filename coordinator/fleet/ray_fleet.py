"""The node agents as Ray actors: one per Kubernetes node, named, detached, pinned by label, polled. Only here is Ray.

    sync(desired) ──► slots, one per node          one thread does everything that talks to Ray
    views()  ◄────── the latest of every slot

        Absent ──► Joining ──► Serving ──► Draining ──► Absent, or forgotten
          ▲           │                       ▲
          │           └──► Outdated ──────────┤         Outdated: of another version, waits for its turn
          └── died for good                   └── no longer wanted

A call carries a node's whole desired state and brings back its whole report, so a lost one costs nothing. At most one
call per node is under way; a node that does not answer is not sent a second one. Ray restarts an actor that died
(`max_restarts=-1`); one that is dead for good is made anew, with patience. Actors outlive the coordinator: the next one
finds them by name, and replaces those of another version, few at a time.

Without GCS fault tolerance Ray ends the driver's process when the head is lost, from C++, uncatchable: the coordinator
is then simply restarted. With it, calls fail here and are made again.
"""

from __future__ import annotations

import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from importlib.metadata import version as distribution_version
from typing import Any, Protocol

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError, RayTaskError

from actors.errors import Failure
from actors.messages import DesiredState, NodeName, NodeReport, Phase
from actors.retry import Backoff
from actors.service import Service
from actors.times import rfc3339
from actors.trust import STRICT, Trust
from coordinator.fleet import absence
from coordinator.fleet.absence import OFTEN_S, OUTDATED, RESTART_S, STARTING, no_ray, no_ray_node, raised
from coordinator.fleet.interface import NODE_LABEL, AgentView, following, node_label

NAMESPACE = "localmodel"
POLL_S = 0.5
"""How often an agent is asked while something is under way on its node."""
IDLE_POLL_S = 2.0
RAY_NODES_S = 1.0
CALL_TIMEOUT_S = 10.0
DRAIN_TIMEOUT_S = 20.0
LEAVE_TIMEOUT_S = 5.0
REPLACED_AT_ONCE = 4
MOST_PATIENCE_S = 5.0
"""After so long, at most, Ray is tried again when it cannot be used."""
GENERATION = 2
"""Raised when a class that travels between coordinator and agents has other fields, or another module: an agent that an
earlier coordinator of the same version has started is replaced, too. Nothing but the text of `version` is asked of one
of another generation."""

_log = logging.getLogger(__name__)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Agent(Protocol):
    """What lives inside an actor. `actors.agent.agent.NodeAgent`, but for tests of the fleet itself."""

    def reconcile(self, desired: DesiredState) -> NodeReport: ...

    def close(self, timeout_s: float) -> None: ...


def start_agent(node: NodeName) -> Agent:
    """The agent of `node`, configured by the environment of the Ray node it runs on, where this is called."""
    from actors.agent.agent import AgentSettings, NodeAgent
    from coordinator.logs import Formatter, LogSettings, guard_output

    guard_output()
    if logging.lastResort is not None:  # what writes the warnings of a process that has set up no logging
        logging.lastResort.setFormatter(Formatter(LogSettings()))
    return NodeAgent(node, AgentSettings.from_env(os.environ))


class _AgentActor:
    """The shell around an agent. `ctl` calls return within milliseconds; what may take long is in `io`."""

    def __init__(self, node: NodeName, version: str, factory: Callable[[NodeName], Agent]) -> None:
        self._version = version
        self._agent = factory(node)

    @ray.method(concurrency_group="ctl")  # type: ignore[untyped-decorator]  # Ray has no types
    def version(self) -> str:
        """A plain string, so that a coordinator of any version understands it."""
        return self._version

    @ray.method(concurrency_group="ctl")  # type: ignore[untyped-decorator]  # Ray has no types
    def reconcile(self, desired: DesiredState) -> NodeReport:
        return self._agent.reconcile(desired)

    @ray.method(concurrency_group="io")  # type: ignore[untyped-decorator]  # ditto
    def drain(self, timeout_s: float) -> None:
        self._agent.close(timeout_s)


class _Stage(Enum):
    ABSENT = "absent"
    JOINING = "joining"
    SERVING = "serving"
    OUTDATED = "outdated"
    DRAINING = "draining"


@dataclass(slots=True)
class _Slot:
    """One node's actor, as the polling thread knows it. Monotonic seconds; `call` is under way since `called_at`.

    `lost_at`: since when it has not answered though it did before, `lost_since` the same for people. `ended`: when
    another was found in its place. `clock` is epoch seconds, for people.
    """

    node: NodeName
    backoff: Backoff
    clock: Callable[[], float]
    stage: _Stage = _Stage.ABSENT
    handle: Any = None
    call: Any = None
    called_at: float = 0.0
    not_before: float = 0.0
    sent: DesiredState | None = None
    view: AgentView = field(default_factory=lambda: AgentView(failure=STARTING))
    lost_at: float | None = None
    lost_since: str = ""
    ended: list[float] = field(default_factory=list)

    def ask(self, call: Any, now: float) -> None:
        self.call, self.called_at = call, now

    def fail(self, failure: Failure) -> None:
        self.view = replace(self.view, failure=failure)

    def made(self, handle: Any, now: float) -> None:
        self.handle, self.stage, self.sent = handle, _Stage.JOINING, None
        self.fail(STARTING if self.lost_at is None else self.away(now))

    def answered(self, answer: Any, version: str, now: float) -> None:
        """`version` is that of agents of ours."""
        match self.stage:
            case _Stage.JOINING if answer != version:
                self.stage = _Stage.OUTDATED
                self.fail(OUTDATED)
            case _Stage.JOINING:
                self.stage, self.not_before = _Stage.SERVING, now
            case _Stage.DRAINING:
                self.dismiss()
            case _:
                self.backoff.reset()
                self.lost_at = None
                before = self.view.report
                if before is not None and before.incarnation != answer.incarnation:
                    self.ended = [at for at in self.ended if now - at < OFTEN_S] + [now]
                self.view = AgentView(following(answer, before), self.clock())
                self.not_before = self.called_at + (POLL_S if _moving(answer) else IDLE_POLL_S)

    def broken(self, error: RayError, now: float) -> None:
        """The call ended in an error: of the agent's own, because the actor is restarting, or because it is gone."""
        if self.stage is _Stage.DRAINING:
            self.dismiss()
            return
        self.not_before = now + self.backoff.next_s()
        line = _in_a_line(error)
        level = logging.INFO if self.lost_at is None else logging.DEBUG
        _log.log(level, "an agent does not answer", extra={"node": self.node, "error": line, "stage": self.stage.value})
        self.lose(now)
        if isinstance(error, RayTaskError):
            cause = error.cause if isinstance(error.cause, BaseException) else error
            self.fail(raised(f"{type(cause).__name__}: {_in_a_line(cause)}", starting=False))
            _log.warning("agent failed", extra={"node": self.node, "error": str(error)[-2000:]})
        elif isinstance(error, RayActorError) and not isinstance(error, ActorUnavailableError):
            unborn = "creation task" in str(error)
            self.fail(raised(line, starting=True) if unborn else self.away(now))
            self.handle, self.stage = None, _Stage.ABSENT
        else:
            self.fail(self.away(now))
        if self.stage is _Stage.JOINING:  # ask again for its version: it may be another process by now
            self.handle, self.stage = None, _Stage.ABSENT

    def silent(self, now: float) -> None:
        """A call is overdue. It stays under way: Ray fails it once it knows that the node is gone."""
        if self.stage is _Stage.DRAINING:
            self.dismiss()
        elif self.stage is _Stage.SERVING or self.view.failure is not STARTING:
            self.lose(self.called_at)
            self.fail(self.away(now))

    def lose(self, at: float) -> None:
        """It does not answer any more, since `at` (monotonic seconds)."""
        if self.lost_at is None:
            self.lost_at = at
            self.lost_since = rfc3339(self.clock() - (time.monotonic() - at))

    def away(self, now: float, *, ray_node: bool = True) -> Failure:
        """Why it does not answer. `ray_node`: its Kubernetes node has one; for a minute without, a pod is replaced."""
        lost_for_s = None if self.lost_at is None else now - self.lost_at
        if not ray_node and (lost_for_s is None or lost_for_s >= RESTART_S):
            return no_ray_node(self.node)
        return absence.away(lost_for_s or 0.0, self.lost_since, self.ended, now)

    def dismiss(self) -> None:
        """The actor is drained, or as good as: end it. The slot starts over if its node is still wanted."""
        ray.kill(self.handle)
        self.handle, self.call, self.stage = None, None, _Stage.ABSENT


class RayFleet:
    """Connects by itself, again and again if it must. Agents are told what `trust` lets them read with all else.

    Asks nothing of the agents while not `leading`, nor afterwards before it is told anew what they should hold.
    `changed` is called, from its thread, when a view has changed.
    """

    def __init__(
        self,
        address: str,
        *,
        trust: Trust = STRICT,
        version: str | None = None,
        factory: Callable[[NodeName], Agent] = start_agent,
        leading: Callable[[], bool] = lambda: True,
        changed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self._address = address
        self._trust = trust
        self._version = version or f"{distribution_version('localmodel')}/{GENERATION}"
        self._factory = factory
        self._leading = leading
        self.changed = changed
        self._clock = clock
        self._rng = rng or random.Random()
        self._given: Mapping[NodeName, DesiredState] = {}
        self._desired: Mapping[NodeName, DesiredState] = {}
        self._told = False
        self._views: Mapping[NodeName, AgentView] = {}
        self._slots: dict[NodeName, _Slot] = {}
        self._ray_nodes = _RayNodes()
        self._woken = threading.Event()
        self._closing = threading.Event()
        self._stop_agents = False
        ray_log = logging.getLogger("ray")  # has a handler of its own, which would write past the process's
        ray_log.handlers, ray_log.propagate = [], True
        self._service = Service("fleet", self._run, self._closing)
        self._service.start()

    def sync(self, desired: Mapping[NodeName, DesiredState]) -> None:
        self._desired = {node: self._trusted(node, state) for node, state in desired.items()}
        self._given = desired
        self._told = True
        self._service.start()  # does nothing for one that runs
        self._woken.set()

    def _trusted(self, node: NodeName, state: DesiredState) -> DesiredState:
        """With what may be read; the same object as before for the same state."""
        if self._given.get(node) is state and node in self._desired:
            return self._desired[node]
        return replace(state, trust=self._trust)

    def views(self) -> Mapping[NodeName, AgentView]:
        views = self._views
        return {node: views.get(node, _UNKNOWN) for node in self._desired}

    def close(self, *, stop_agents: bool) -> None:
        self._stop_agents = stop_agents
        self._closing.set()
        self._woken.set()
        self._service.join(DRAIN_TIMEOUT_S + CALL_TIMEOUT_S if stop_agents else LEAVE_TIMEOUT_S)

    # --- the polling thread ---

    def _run(self) -> None:
        patience, said = Backoff(self._rng, first_s=1.0, max_s=MOST_PATIENCE_S), ""
        while not self._closing.is_set():
            try:
                self._connect()
                if not self._leading():
                    self._rest()
                elif self._told:
                    self._turn(time.monotonic())
                if said:
                    _log.info("Ray can be used again", extra={"address": self._address})
                patience.reset()
                wait_s, said = self._pause_s(time.monotonic()), ""
            except Exception as error:  # noqa: BLE001  Ray raises whatever it likes; the fleet outlives it
                line = _in_a_line(error)
                if line != said:
                    _log.warning("Ray cannot be used", extra={"address": self._address, "error": line})
                said, failure = line, no_ray(self._address)
                self._publish(
                    {node: replace(self._views.get(node, _UNKNOWN), failure=failure) for node in self._desired}
                )
                self._closing.wait(patience.next_s())  # a tick is no reason to ask again
                continue
            self._woken.wait(wait_s)
            self._woken.clear()
        self._disconnect()

    def _connect(self) -> None:
        if ray.is_initialized():
            self._ray_nodes.start()  # does nothing for one that runs
            return
        host = self._address.rpartition(":")[0]
        if not _log.isEnabledFor(logging.DEBUG):
            logging.getLogger("ray").setLevel(logging.ERROR)  # it speaks of its own insides at INFO and WARNING
        own = {"_node_ip_address": host} if host.startswith("127.") else {}  # else Ray looks for its node on another
        ray.init(address=self._address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False, **own)
        self._slots = {}
        self._ray_nodes.start()

    def _disconnect(self) -> None:
        self._ray_nodes.stop()
        if not ray.is_initialized():
            return
        if self._stop_agents:
            handles = [slot.handle for slot in self._slots.values() if slot.handle is not None]
            drained = [handle.drain.remote(DRAIN_TIMEOUT_S) for handle in handles]
            if drained:
                ray.wait(drained, num_returns=len(drained), timeout=DRAIN_TIMEOUT_S, fetch_local=False)
            for handle in handles:
                ray.kill(handle)
        ray.shutdown()

    def _rest(self) -> None:
        """Another may lead: what agents were to do, and what they said, is out of date when this one leads again."""
        if not self._told:
            return
        self._told = False
        for slot in self._slots.values():
            slot.view, slot.sent = AgentView(failure=STARTING), None
        self._publish({})

    def _turn(self, now: float) -> None:
        """One look at every slot: take what was answered, ask what is due."""
        desired = self._desired
        for node in desired:
            if node not in self._slots:
                self._slots[node] = _Slot(node, Backoff(self._rng, first_s=0.5, max_s=60.0), self._clock)
        self._take_answers(now)
        for slot in list(self._slots.values()):
            if slot.node not in desired and slot.handle is None:
                del self._slots[slot.node]
            elif slot.node not in desired:
                self._drain(slot, now)
            elif slot.stage is _Stage.ABSENT and now >= slot.not_before:
                self._create(slot, now)
            elif slot.stage is _Stage.OUTDATED and self._draining < REPLACED_AT_ONCE:
                self._drain(slot, now)
            elif slot.stage is _Stage.SERVING and slot.call is None and self._is_due(slot, desired[slot.node], now):
                slot.sent = desired[slot.node]
                slot.ask(slot.handle.reconcile.remote(slot.sent), now)
        self._publish({node: self._slots[node].view for node in desired})

    @property
    def _draining(self) -> int:
        return sum(slot.stage is _Stage.DRAINING for slot in self._slots.values())

    def _is_due(self, slot: _Slot, desired: DesiredState, now: float) -> bool:
        """At once when there is news for a healthy agent, else at its pace."""
        news = slot.view.failure is None and desired != slot.sent
        return news or now >= slot.not_before

    def _create(self, slot: _Slot, now: float) -> None:
        """Finds the node's actor by name, or makes it. Nothing waits for it to be there."""
        present = self._ray_nodes.labels
        if present is None:
            return
        label = next((value for value in (node_label(slot.node), slot.node) if value in present), None)
        if label is None:
            slot.fail(slot.away(now, ray_node=False))
            return
        actor = ray.remote(concurrency_groups={"ctl": 2, "io": 1})(_AgentActor).options(
            name=f"localmodel-agent-{node_label(slot.node)}",
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            label_selector={NODE_LABEL: label},
        )
        slot.made(actor.remote(slot.node, self._version, self._factory), now)
        slot.ask(slot.handle.version.remote(), now)

    def _drain(self, slot: _Slot, now: float) -> None:
        if slot.stage is not _Stage.DRAINING:
            slot.stage = _Stage.DRAINING
            slot.ask(slot.handle.drain.remote(DRAIN_TIMEOUT_S), now)

    def _take_answers(self, now: float) -> None:
        calls = {slot.call: slot for slot in self._slots.values() if slot.call is not None}
        ready = ray.wait(list(calls), num_returns=len(calls), timeout=0, fetch_local=False)[0] if calls else []
        for call in ready:
            slot = calls.pop(call)
            slot.call = None
            try:
                slot.answered(ray.get(call, timeout=CALL_TIMEOUT_S), self._version, now)
            except RayError as error:
                slot.broken(error, now)
        for slot in calls.values():
            if now - slot.called_at > (DRAIN_TIMEOUT_S if slot.stage is _Stage.DRAINING else CALL_TIMEOUT_S):
                slot.silent(now)

    def _pause_s(self, now: float) -> float:
        """Until something is due. Returns early, through Ray, when a call is answered."""
        calls = [slot.call for slot in self._slots.values() if slot.call is not None]
        if calls:
            ray.wait(calls, num_returns=1, timeout=0.1, fetch_local=False)
            return 0.0
        due = [slot.not_before for slot in self._slots.values() if slot.stage is _Stage.SERVING]
        return min(POLL_S, max(0.01, min(due, default=now + POLL_S) - now))

    def _publish(self, views: Mapping[NodeName, AgentView]) -> None:
        if views != self._views:
            self._views = views
            self.changed()


class _RayNodes:
    """The labels of live Ray nodes, asked in a thread of its own: the question can block for many seconds."""

    def __init__(self) -> None:
        self.labels: frozenset[str] | None = None
        """None until asked for the first time."""
        self._stopped = threading.Event()
        self._service = Service("ray-nodes", self._run, self._stopped)

    def start(self) -> None:
        self._service.start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                nodes = ray.nodes()
            except Exception:  # noqa: BLE001  not connected, or Ray is restarting: what was known stays
                nodes = None
            if nodes is not None:
                self.labels = frozenset(
                    node["Labels"][NODE_LABEL]
                    for node in nodes
                    if node["Alive"] and NODE_LABEL in node.get("Labels", {})
                )
            self._stopped.wait(RAY_NODES_S)


_UNKNOWN = AgentView(failure=STARTING)


def _moving(report: NodeReport) -> bool:
    """Whether anything on the node is going to change by itself soon."""
    return any(model.phase not in (Phase.READY, Phase.FAILED) for model in report.models)


def _in_a_line(error: BaseException) -> str:
    """Ray's messages are pages. Of one about a constructor the last line says what happened, else the first."""
    lines = [line.strip() for line in _COLOUR.sub("", str(error)).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1 if "creation task" in lines[0] else 0][:300]
