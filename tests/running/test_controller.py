"""The loop around the plan: who may act, what happens to a write, and how many there are."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar, cast

import pytest

from actors.manifest import OriginName
from actors.mesh.limits import DEAD_S
from actors.messages import DesiredState, NodeName, OriginReport, OriginShare, Phase
from actors.sources.options import SourceOptions
from coordinator.api.resources import RESOURCES, StatusKey
from coordinator.control.controller import WATCHED_ANEW_S, Controller
from coordinator.control.informers import Informers
from coordinator.control.metrics import Metrics
from coordinator.dev.fake_kube import FakeKube
from coordinator.dev.trial.builders import (
    GIB,
    NOW,
    OWNER,
    NodeBuilder,
    World,
    a_cache,
    a_group,
    a_namespace_cache,
    a_node,
    a_report,
    a_world,
    an_agent,
)
from coordinator.fleet.interface import AgentView
from coordinator.fleet.interface import Fleet as FleetSeam
from coordinator.kube.interface import (
    CLAIMS,
    NAMESPACES,
    PODS,
    VOLUMES,
    Conflict,
    Denied,
    Invalid,
    Kube,
    KubeError,
    NotFound,
    Object,
    Unreachable,
)
from coordinator.plan.origin_budget import Budget, Budgets
from coordinator.plan.plan import Verb, Want, Write
from coordinator.plan.pods import read_pod
from coordinator.plan.reading import read_cache, read_local_node, read_namespace_cache, read_node, read_node_group
from coordinator.plan.rollout import SETTLE_S
from coordinator.plan.snapshot import Credentials, Ref, Resolution, resource_type
from tests.kit.delegating_kube import Call, DelegatingKube
from tests.kit.rolling import Fleet

T = TypeVar("T")
KINDS = {model.KIND: resource_type(model) for model in RESOURCES}


@dataclass
class Listed(Generic[T]):
    """An informer that is never behind, or as far behind as it is told."""

    world: World
    kind: str
    read: Callable[[Object], T]
    synced: bool = True
    failure: str | None = None
    frozen: Mapping[tuple[str | None, str], T] | None = None
    current: bool = True

    def items(self) -> Mapping[tuple[str | None, str], T]:
        if self.frozen is not None:
            return self.frozen
        found = [deepcopy(builder.json) for builder in self.world.objects if builder.json["kind"] == self.kind]
        return {(raw["metadata"].get("namespace"), raw["metadata"]["name"]): self.read(raw) for raw in found}

    def caught_up(self) -> bool:
        return self.current

    def freeze(self) -> None:
        self.frozen = self.items()

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def join(self, timeout_s: float) -> bool:
        return True


class WorldKube(DelegatingKube):
    """The part of an API server that the controller writes to. `fails` is raised instead of the next answers."""

    def __init__(self, world: World) -> None:
        super().__init__(FakeKube())
        self.world = world
        self.writes: list[tuple[str, str]] = []
        self.asked = 0
        self.fails: list[KubeError] = []
        self.prunes: frozenset[str] = frozenset()

    def through(self, call: Call) -> Any:
        if call.verb == "list":
            assert call.resource == PODS
            found = [deepcopy(each.json) for each in self.world.objects if each.json["kind"] == "Pod"]
            of_node = [raw for raw in found if call.field_selector == f"spec.nodeName={raw['spec'].get('nodeName')}"]
            return of_node, "1"
        if call.verb == "get":
            if call.resource in (CLAIMS, VOLUMES):  # of a pod that says by name what it uses
                raise NotFound(f"{call.resource.plural} {call.name} not found")
            assert call.resource == NAMESPACES
            return {"metadata": {"name": call.name, "uid": OWNER}}
        ref, body = Ref(call.resource, call.name, call.namespace), call.body or {}
        assert isinstance(body, Mapping)
        match call.verb, call.subresource:
            case "create", None:
                return self._write(Verb.CREATE, ref, body)
            case "patch", None:
                return self._write(Verb.PATCH, ref, body)
            case "patch", "status":
                kept = {key: value for key, value in body["status"].items() if key not in self.prunes}
                return self._write(Verb.PATCH_STATUS, ref, {**body, "status": kept})
            case "delete", None:
                return self._write(Verb.DELETE, ref, {})
        raise AssertionError(f"the controller does not {call.verb} {call.resource.plural}")

    def _write(self, verb: Verb, ref: Ref, body: Object) -> Object:
        self.asked += 1
        if self.fails:
            raise self.fails.pop(0)
        found = self.world.find(ref.resource.kind, ref.name, ref.namespace)
        if found is None and verb is not Verb.CREATE:
            raise NotFound(f"no {ref.name}")
        if found is not None:
            version = body.get("metadata", {}).get("resourceVersion")
            if verb is Verb.CREATE or version not in (None, found["metadata"]["resourceVersion"]):
                raise Conflict(f"{ref.name} has changed")
        self.writes.append((verb.value, ref.name))
        self.world.carry_out(Write(verb, ref, body))
        written = self.world.find(ref.resource.kind, ref.name, ref.namespace) or {}
        if verb is Verb.PATCH_STATUS:
            for name in self.prunes & written.get("status", {}).keys():
                del written["status"][name]
        return deepcopy(written)


class WorldFleet:
    """Reports what the world says."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.desired: Mapping[NodeName, DesiredState] | None = None

    def sync(self, desired: Mapping[NodeName, DesiredState]) -> None:
        self.desired = desired

    def views(self) -> Mapping[NodeName, AgentView]:
        return {NodeName(name): view for name, view in self.world.agents.items()}

    def close(self, *, stop_agents: bool) -> None: ...


@dataclass
class WorldResolver:
    """Knows what the world has resolved."""

    world: World
    wants: Mapping[StatusKey, Want] = field(default_factory=dict)

    def want(self, wants: Mapping[StatusKey, Want], load_options: Callable[[Credentials], SourceOptions]) -> None:
        self.wants = wants

    def resolutions(self) -> Mapping[StatusKey, Resolution]:
        return {StatusKey(key): value for key, value in self.world.resolutions.items()}


@dataclass
class Told:
    events: list[tuple[str, str, str]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def event(self, ref: Ref, type_: str, reason: str, message: str) -> None:
        self.messages.append(message)
        self.events.append((ref.name, type_, reason))


class AtOnce(Executor):
    """Runs where it is submitted."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class Later(Executor):
    """Runs nothing until told."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], Any]] = []

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        self.waiting.append(lambda: fn(*args, **kwargs))
        return Future()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.run()

    def run(self) -> None:
        while self.waiting:
            self.waiting.pop(0)()


class Rig:
    """A controller over a world, with a clock that is moved by hand."""

    def __init__(
        self, world: World, executor: Executor | None = None, fleet: FleetSeam | None = None, **options: Any
    ) -> None:
        self.world = world
        self.now = NOW
        self.leading = True
        self.kube = WorldKube(world)
        self.fleet = WorldFleet(world)
        self.resolver = WorldResolver(world)
        self.told = Told()
        self.informers = Informers(
            caches=Listed(world, "LocalModelCache", read_cache),
            namespace_caches=Listed(world, "LocalModelNamespaceCache", read_namespace_cache),
            groups=Listed(world, "LocalModelNodeGroup", read_node_group),
            nodes=Listed(world, "Node", read_node),
            local_nodes=Listed(world, "LocalModelNode", read_local_node),
            pods=Listed(world, "Pod", read_pod),
        )
        self.metrics = Metrics("0")
        self.controller = Controller(
            self.informers,
            cast(Kube, self.kube),
            fleet or self.fleet,
            self.resolver,
            self.told,
            self.metrics,
            leading=lambda: self.leading,
            load_options=lambda credentials: SourceOptions(),
            executor=executor or AtOnce(),
            clock=lambda: self.now,
            **options,
        )

    def tick(self, count: int = 1, step_s: float = 1.0) -> None:
        for _ in range(count):
            self.controller.tick()
            self.now += step_s

    def writes(self) -> list[tuple[str, str]]:
        """Since the last call."""
        made, self.kube.writes = self.kube.writes, []
        return made


def test_what_was_told_of_an_origin_is_remembered_and_a_pause_is_counted_once() -> None:
    cache = a_cache()
    world = a_world(cache, a_group(), a_node("n1"), a_node("n2")).resolved(cache)
    world.agents = {"n1": an_agent("n1"), "n2": an_agent("n2")}
    rig = Rig(world, budgets=Budgets(Budget(8)))

    def told() -> dict[str, OriginShare]:
        assert rig.fleet.desired is not None
        return {name: share for name, state in rig.fleet.desired.items() for share in (state.origins or {}).values()}

    def pauses() -> list[str]:
        lines = rig.metrics.render().decode().splitlines()
        return [line for line in lines if line.startswith("localmodel_origin_pauses_total{")]

    rig.tick()
    assert told() == {"n1": OriginShare(4), "n2": OriginShare(4)}
    del world.agents["n2"]
    rig.tick()
    assert told()["n1"] == OriginShare(4), "which is not changed before it was heard"

    rig.now += DEAD_S
    view = an_agent("n1", a_report(cache, Phase.DOWNLOADING))
    assert view.report is not None
    asked = OriginReport(OriginName("https://origin.test"), granted=4, wanted=8, pause_s=20.0)
    world.agents["n1"] = AgentView(replace(view.report, origins=(asked,)), rig.now)
    rig.tick(3)
    assert told()["n1"].requests == 8, "all of it, now that the other has been silent for so long"
    assert told()["n1"].pause_s == 18.0
    assert pauses() == ['localmodel_origin_pauses_total{origin="https://origin.test"} 1.0']


def test_a_cache_becomes_ready_in_front_of_the_controller() -> None:
    cache = a_cache().without_finalizer()
    world = a_world(cache, a_group(), a_node("n1"), a_node("n2"))
    rig = Rig(world)
    rig.tick(2)
    assert list(rig.resolver.wants) == ["llama"]
    world.resolved(cache)
    for phase in (Phase.DOWNLOADING, Phase.READY):
        for node in ("n1", "n2"):
            world.reporting(node, a_report(cache, phase))
        rig.tick(2)
    (ready,) = [c for c in cache.json["status"]["conditions"] if c["type"] == "Ready"]
    assert (ready["status"], ready["reason"]) == ("True", "AllNodesReady")
    assert ("llama", "Normal", "Ready") in rig.told.events
    assert rig.resolver.wants == {}
    rig.tick(2)
    rig.writes()
    rig.tick(50)
    assert rig.writes() == []


def test_which_node_may_take_a_new_version_is_remembered_and_nobody_is_let_at_first() -> None:
    fleet = Fleet(a_cache().with_spec(revision="1", rollout={"maxUnavailable": 1, "paused": True}), 3)
    fleet.until(1)
    fleet.cache.with_spec(revision="2")
    for _ in range(5):
        fleet.tick()
    fleet.cache.with_spec(rollout={"maxUnavailable": 1})
    rig = Rig(fleet.world)

    def let() -> list[str]:
        desired = rig.fleet.desired or {}
        return [name for name, state in desired.items() if not all(model.hold for model in state.models)]

    rig.tick(int(SETTLE_S))
    assert let() == []
    rig.tick()
    assert let() == ["n1"]
    (node,) = (each for each in fleet.world.objects if each.json["kind"] == "Node" and each.name == "n1")
    assert isinstance(node, NodeBuilder)
    node.not_ready()
    rig.tick(3)
    assert let() == ["n1"], "it may be on its way still"


def test_where_kserves_controller_decides_no_job_of_an_import_is_looked_for() -> None:
    """An API server that is asked for one fails the test."""
    cache = a_namespace_cache("team").with_spec(pvcRef="disk")
    del cache.json["spec"]["nodeGroups"]
    rig = Rig(a_world(cache, a_group(), a_node("n1")), follows=True)
    rig.tick(3)
    assert rig.writes() == []


def test_nobody_acts_on_a_world_that_may_be_an_old_one() -> None:
    """A copy that an old list of caches does not have would be removed."""
    rig = Rig(a_world(a_cache(), a_group(), a_node("n1")))
    caches = cast(Listed[Any], rig.informers.caches)

    def told() -> list[str]:
        desired, rig.fleet.desired = rig.fleet.desired, None
        return list(desired) if desired is not None else []

    caches.current = False
    rig.tick(3)
    assert (told(), rig.writes()) == ([], [])
    caches.current = True
    rig.tick()
    assert told() == ["n1"]
    caches.current = False
    rig.tick()
    assert told() == ["n1"], "only before the first act"

    rig.leading = False
    rig.tick()
    rig.leading = True
    rig.tick(int(WATCHED_ANEW_S))
    assert told() == []
    rig.tick(2)
    assert told() == ["n1"], "every watch has begun anew since"


def test_a_lead_that_is_lost_while_a_plan_is_made_tells_nobody_anything() -> None:
    rig = Rig(a_world(a_cache(), a_group(), a_node("n1")))
    lasting = iter([True, False])
    rig.controller._leading = lambda: next(lasting, False)
    rig.tick()
    assert (rig.fleet.desired, rig.writes()) == (None, [])


def test_agents_get_their_desired_state_although_nothing_can_be_written() -> None:
    rig = Rig(a_world(a_cache(), a_group(), a_node("n1")))
    rig.kube.fails = [Unreachable("down")] * 9
    rig.tick()
    assert rig.fleet.desired is not None
    assert [model.source.uri for model in rig.fleet.desired[NodeName("n1")].models] == ["hf://models/llama"]


def test_only_a_leader_acts() -> None:
    rig = Rig(a_world(a_cache(), a_group(), a_node("n1")))
    rig.leading = False
    rig.tick(3)
    assert (rig.fleet.desired, rig.writes()) == (None, [])
    rig.leading = True
    rig.tick()
    assert rig.fleet.desired is not None
    assert b"localmodel_cache_nodes{" in rig.metrics.render()
    rig.leading = False
    rig.tick()
    assert rig.resolver.wants == {}
    assert b"localmodel_cache_nodes{" not in rig.metrics.render()


def test_a_write_that_was_waiting_when_leadership_ended_is_not_sent() -> None:
    executor = Later()
    rig = Rig(a_world(a_cache(), a_group(), a_node("n1")), executor)
    rig.tick()
    rig.leading = False
    executor.run()
    assert rig.writes() == []


def test_nothing_is_done_before_every_kind_was_listed() -> None:
    rig = Rig(a_world(a_cache(), a_group(), a_node("n1")))
    rig.informers.nodes.synced = False  # type: ignore[misc]  # the fake's is a field
    rig.tick(3)
    assert (rig.fleet.desired, rig.writes()) == (None, [])


def test_a_tick_does_not_wait_for_a_write_and_does_not_send_it_twice() -> None:
    executor = Later()
    rig = Rig(a_world(a_cache(), a_group(), a_node("n1")), executor)
    rig.tick(30)
    assert len(executor.waiting) == 2
    executor.run()
    assert sorted(rig.writes()) == [("create", "n1"), ("patch status", "llama")]


def test_an_informer_that_lags_behind_does_not_make_writes_repeat() -> None:
    rig = Rig(a_world(a_cache(), a_group(), a_node("n1")))
    for kind in (rig.informers.caches, rig.informers.local_nodes):
        assert isinstance(kind, Listed)
        kind.freeze()
    rig.tick(9)
    assert sorted(rig.writes()) == [("create", "n1"), ("patch status", "llama")]
    assert rig.kube.asked == 2


def test_a_conflict_is_planned_again_from_what_is_there_then() -> None:
    cache = a_cache()
    rig = Rig(a_world(cache, a_group()))
    rig.kube.fails = [Conflict("somebody was faster")]
    rig.tick()
    cache.with_metadata(resourceVersion="9").with_status(nodeStatus={"gone": "NodeDownloaded"})
    rig.tick()
    assert cache.json["status"]["nodeStatus"] == {}


def test_an_outage_is_logged_once_and_writes_are_tried_with_patience(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(a_world(a_cache(), a_group(), a_node("n1")))
    rig.kube.fails = [Unreachable("connection refused") for _ in range(12)]
    with caplog.at_level(logging.WARNING):
        rig.tick(120)
    assert [record.message for record in caplog.records] == ["the API server cannot be written to"]
    assert rig.kube.fails == []
    assert ("create", "n1") in rig.writes()


def test_a_refused_write_is_tried_again_ever_more_rarely_and_speaks_through_an_event() -> None:
    cache = a_cache().with_spec(modelSize="huge")
    rig = Rig(a_world(cache, a_group()))
    rig.kube.fails = [Invalid("spec.modelSize: Invalid value", status=422) for _ in range(100)]
    rig.tick(60)
    assert 3 <= 100 - len(rig.kube.fails) <= 5
    assert ("llama", "Warning", "InvalidObject") in rig.told.events


def test_a_denied_write_does_not_stop_the_others() -> None:
    rig = Rig(a_world(a_cache(), a_group(), a_node("n1")))
    rig.kube.fails = [Denied("RBAC")]
    rig.tick()
    assert rig.writes() == [("patch status", "llama")]
    rig.tick(6)
    assert ("create", "n1") in rig.writes()


def test_an_event_is_sent_only_when_its_write_succeeded() -> None:
    cache = a_cache()
    world = a_world(cache, a_group(), a_node("n1")).reporting("n1", a_report(cache))
    rig = Rig(world)
    rig.kube.fails = [Unreachable("down")] * 2
    rig.tick()
    assert rig.told.events == []
    rig.tick(5)
    assert [event for event in rig.told.events if event[2] == "Ready"] == [("llama", "Normal", "Ready")]


def test_progress_is_written_at_most_once_per_interval_and_news_at_once() -> None:
    cache = a_cache()
    world = a_world(cache, a_group(), a_node("n1")).resolved(cache)
    rig = Rig(world, progress_interval_s=3.0)

    def downloading(done: int) -> None:
        world.reporting("n1", a_report(cache, Phase.DOWNLOADING, done=done, rate_bytes_per_s=1e6))
        rig.tick(1, step_s=0.5)

    downloading(1)
    for _ in range(10):
        rig.tick()
    rig.writes()
    for step in range(24):
        downloading(step * GIB // 24)
    per_object = {name: rig.kube.writes.count(("patch status", name)) for name in ("llama", "n1")}
    assert per_object == {"llama": 4, "n1": 4}
    rig.writes()
    world.reporting("n1", a_report(cache))
    rig.tick(1, step_s=0.1)
    assert sorted(rig.writes())[-2:] == [("patch status", "llama"), ("patch status", "n1")]


@pytest.mark.slow
def test_writes_per_second_are_bounded_and_everybody_gets_a_turn() -> None:
    cache = a_cache()
    nodes = [f"n{number:02}" for number in range(40)]
    world = a_world(cache, a_group(), *(a_node(name) for name in nodes)).resolved(cache)
    rig = Rig(world, writes_per_s=20.0, progress_interval_s=2.0)
    sent = []
    for second in range(60):
        for name in nodes:
            world.agents[name] = an_agent(
                name, a_report(cache, Phase.DOWNLOADING, done=second + 1, rate_bytes_per_s=1e6)
            )
        rig.tick()
        sent.append(rig.writes())
    assert max(map(len, sent)) <= 20
    assert max(map(len, sent[30:])) <= 5
    assert {name for made in sent[30:] for _, name in made} >= {*nodes, "llama"}


def test_what_was_under_way_at_the_end_is_finished_and_said() -> None:
    cache = a_cache()
    rig = Rig(a_world(cache, a_group(), a_node("n1")).reporting("n1", a_report(cache)), Later())
    rig.controller.tick()
    rig.controller.close()
    assert ("llama", "Normal", "Ready") in rig.told.events


def test_the_loop_survives_what_should_not_happen(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(a_world(a_cache(), a_group(), a_node("n1")))
    stop, broken = threading.Event(), threading.Event()

    def views() -> Mapping[NodeName, AgentView]:
        if not broken.is_set():
            broken.set()
            raise RuntimeError("a bug")
        stop.set()
        return {}

    rig.fleet.views = views  # type: ignore[method-assign]  # the fault under test
    rig.controller.run(stop, tick_s=0.01)
    assert "tick failed" in [record.message for record in caplog.records]
    assert rig.fleet.desired is not None
