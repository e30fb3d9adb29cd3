"""A plan with the memory of the plans before it is the plan from scratch, whatever has happened in between."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from random import Random
from typing import Any

import pytest

from actors.errors import Failure
from actors.manifest import OriginName, StorageKey, storage_key
from actors.messages import (
    Company,
    Earlier,
    ModelReport,
    NodeName,
    NodeReport,
    OriginReport,
    Part,
    Phase,
    RootReport,
)
from coordinator.api.resources import RESOURCES, StatusKey
from coordinator.dev.trial.builders import (
    GIB,
    NOW,
    OWNER,
    Builder,
    CacheBuilder,
    World,
    a_cache,
    a_group,
    a_namespace_cache,
    a_node,
    a_pod,
    a_resolution,
    a_service,
)
from coordinator.fleet.interface import AgentView, following
from coordinator.plan.bindings import read_claim, read_volume
from coordinator.plan.fold import Turn
from coordinator.plan.kserve_config import KServeConfig
from coordinator.plan.memory import Memory
from coordinator.plan.plan import Plan, plan
from coordinator.plan.pods import Look, read_pod
from coordinator.plan.reading import read_cache, read_local_node, read_namespace_cache, read_node, read_node_group
from coordinator.plan.services import read_service
from coordinator.plan.snapshot import Resolution, Snapshot
from coordinator.plan.tally import Tally

URIS = ("hf://models/a", "hf://models/b@v1", "s3://bucket/c")
GROUPS, ROOTS = ("gpu", "cpu", "old"), ("/models", "/fast")
PHASES = (Phase.READY, Phase.READY, Phase.READY, Phase.DOWNLOADING, Phase.FAILED, Phase.PENDING, Phase.VERIFYING)
FAILURES = (
    Failure("SourceDenied", "the origin answers 403 for c0ffee", retryable=False),
    Failure("SourceUnreachable", "the origin does not answer"),
    Failure("InsufficientStorage", "2Gi are needed, and 1Gi is free"),
    Failure("Evicted", "made room at 12:00 for hf://models/a, which needs 1Gi; waits"),
)
SILENCES = tuple(Failure(reason, reason) for reason in ("AgentUnavailable", "AgentStarting", "NoRayNode"))
STEPS_S = (0.0, 0.3, 1.0, 7.0, 16.0, 40.0, 400.0, 4000.0, 90000.0)

_READERS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "LocalModelCache": read_cache,
    "LocalModelNamespaceCache": read_namespace_cache,
    "LocalModelNodeGroup": read_node_group,
    "Node": read_node,
    "LocalModelNode": read_local_node,
    "Pod": read_pod,
    "InferenceService": read_service,
    "PersistentVolume": read_volume,
    "PersistentVolumeClaim": read_claim,
}


@dataclass
class History:
    """A cluster to which things happen. Like informers, it reads each version of an object once.

    What an agent reports is, as from the real fleet, the same objects as before where it is the same.
    """

    rng: Random
    world: World = field(default_factory=World)
    now: float = NOW
    happened: Counter[str] = field(default_factory=Counter)
    companies: Mapping[str, Company] = field(default_factory=dict)
    governed: Any = field(default_factory=dict)
    manifests: Any = field(default_factory=dict)
    made: int = 0
    acting_since: float = NOW
    looks: dict[NodeName, Look] = field(default_factory=dict)
    read: dict[str, Any] = field(default_factory=dict)
    kserve: KServeConfig = field(default_factory=KServeConfig)
    storage_limit: str = "auto"
    mark_nodes: bool = False

    def __post_init__(self) -> None:
        self.world.add(a_group("gpu"), a_group("cpu").at("/fast"))
        self.world.evict_idle_s = 60.0
        for _ in range(4):
            self.node_comes()
            self.cache_comes()

    # --- what there is ---

    def of(self, *kinds: str) -> list[Builder]:
        return [each for each in self.world.objects if each.json["kind"] in kinds]

    def caches(self) -> list[CacheBuilder]:
        return [each for each in self.world.objects if isinstance(each, CacheBuilder)]

    def snapshot(self) -> Snapshot:
        found: dict[str, dict[str, Any]] = {kind: {} for kind in _READERS}
        read: dict[str, Any] = {}
        for builder in self.world.objects:
            text = json.dumps(builder.json)
            kind, metadata = builder.json["kind"], builder.json["metadata"]
            read[text] = self.read[text] if text in self.read else _READERS[kind](json.loads(text))
            if read[text] is not None:
                found[kind]["/".join(filter(None, (metadata.get("namespace"), metadata["name"])))] = read[text]
        self.read = read
        return Snapshot(
            owner=OWNER,
            caches={each.key: each for kind in list(found)[:2] for each in found[kind].values()},
            groups=found["LocalModelNodeGroup"],
            nodes={NodeName(name): each for name, each in found["Node"].items()},
            local_nodes={NodeName(name): each for name, each in found["LocalModelNode"].items()},
            agents={NodeName(name): view for name, view in self.world.agents.items()},
            resolutions={StatusKey(key): each for key, each in self.world.resolutions.items()},
            pruned=frozenset() if self.world.extensions else frozenset(model.PLURAL for model in RESOURCES),
            companies=self.companies,
            manifests=self.manifests,
            governed=self.governed,
            secret=b"secret",
            acting_since=self.acting_since,
            evict_idle_s=self.world.evict_idle_s,
            pods=list(found["Pod"].values()) if self.world.pods_known else None,
            looks=self.looks,
            looked_at=frozenset(name for name, look in self.looks.items() if self.now - look.at < 5),
            orphan_grace_s=self.world.orphan_grace_s,
            services=list(found["InferenceService"].values()),
            volumes=found["PersistentVolume"],
            claims={each.key: each for each in found["PersistentVolumeClaim"].values()},
            kserve=self.kserve,
            storage_limit=self.storage_limit,
            mark_nodes=self.mark_nodes,
        )

    # --- what happens ---

    def step(self) -> None:
        """One thing, or nothing, happens; time passes."""
        name = self.rng.choice(sorted(_EVENTS))
        _EVENTS[name](self)
        self.happened[name] += 1
        if self.rng.random() < 0.6:
            self.now += self.rng.choice(STEPS_S)

    def changed(self, builder: Builder) -> None:
        version = int(builder.json["metadata"]["resourceVersion"])
        builder.with_metadata(resourceVersion=str(version + 1))

    def any_of(self, *kinds: str) -> Builder | None:
        found = self.of(*kinds)
        return self.rng.choice(found) if found else None

    def nothing(self) -> None: ...

    def node_comes(self) -> None:
        self.made += 1
        node = a_node(f"n{self.made:02}").in_pool(self.rng.choice(GROUPS[:2]))
        if self.rng.random() < 0.3:
            node.labelled(**{"topology.kubernetes.io/zone": self.rng.choice("ab")})
        self.world.add(node)
        self.report(node.name)

    def node_changes(self) -> None:
        if node := self.any_of("Node"):
            change = self.rng.choice(("ready", "pool", "cordon"))
            if change == "ready":
                ready = node.json["status"]["conditions"][0]["status"] == "True"
                node.with_status(conditions=[{"type": "Ready", "status": "False" if ready else "True"}])
            elif change == "pool":
                node.json["metadata"]["labels"]["pool"] = self.rng.choice(GROUPS)
            else:
                node.with_spec(unschedulable=not node.json.get("spec", {}).get("unschedulable", False))
            self.changed(node)

    def node_goes(self) -> None:
        if len(self.of("Node")) > 2 and (node := self.any_of("Node")):
            self.world.objects.remove(node)
            if self.rng.random() < 0.7:
                self.world.agents.pop(node.name, None)

    def node_is_another(self) -> None:
        """A machine of the same name takes its place."""
        if node := self.any_of("Node"):
            self.made += 1
            node.with_metadata(uid=f"uid-{self.made}")
            self.changed(node)

    def node_list_is_edited(self) -> None:
        """Somebody else writes into a LocalModelNode."""
        if local := self.any_of("LocalModelNode"):
            entries = local.json["spec"].setdefault("localModels", [])
            if entries and self.rng.random() < 0.5:
                entries.pop(self.rng.randrange(len(entries)))
            else:
                uri = self.rng.choice(URIS)
                entries.append({"modelName": self.rng.choice(("c05", "x")), "sourceModelUri": uri, "nodeGroup": "gpu"})
            if self.rng.random() < 0.3:
                local.json.setdefault("status", {})["modelStatus"] = {"x": "ModelDownloaded"}
            self.changed(local)

    def cache_status_is_edited(self) -> None:
        """Somebody else writes into a status, or a write of ours is seen late."""
        if cache := self.any_of("LocalModelCache", "LocalModelNamespaceCache"):
            status = cache.json.setdefault("status", {})
            name = self.rng.choice(
                ("nodeStatus", "revision", "selection", "conditions", "manifestDigest", "unusedSince")
            )
            status.pop(name, None)
            if self.rng.random() < 0.3:
                nodes = [node.name for node in self.of("Node")]
                status["nodeStatus"] = {node: self.rng.choice(("NodeDownloaded", "NodeNotReady")) for node in nodes}
            self.changed(cache)

    def cache_comes(self) -> None:
        self.made += 1
        uri, name = self.rng.choice(URIS), f"c{self.made:02}"
        cache = a_cache(name, uri) if self.rng.random() < 0.6 else a_namespace_cache(self.rng.choice("tu"), name, uri)
        cache.in_group(*self.rng.sample(GROUPS, self.rng.choice((1, 1, 2))))
        cache.created(f"2026-01-01T00:00:{self.made % 60:02}Z")
        if self.rng.random() < 0.2:
            cache.with_spec(serviceAccountName="reader")
        self.world.add(cache)
        self.resolve(cache)

    def cache_changes(self) -> None:
        if cache := self.any_of("LocalModelCache", "LocalModelNamespaceCache"):
            spec: dict[str, Any] = self.rng.choice(
                (
                    {"nodeGroups": self.rng.sample(GROUPS, 1)},
                    {"revision": self.rng.choice(("main", "v2"))},
                    {"priority": self.rng.randrange(3)},
                    {"pinned": self.rng.random() < 0.5},
                    {"digest": "sha256:" + self.rng.choice("ab") * 64},
                    {"modelSize": self.rng.choice(("1Gi", "3Gi"))},
                )
            )
            cache.with_spec(**spec)
            cache.with_metadata(generation=cache.json["metadata"]["generation"] + 1)
            if self.rng.random() < 0.3:
                retry = json.dumps({self.rng.choice(("*", "n01")): str(self.now)})
                cache.with_metadata(annotations={"localmodel.kserve.io/retry": retry})
            self.changed(cache)

    def cache_goes(self) -> None:
        if cache := self.any_of("LocalModelCache", "LocalModelNamespaceCache"):
            if self.rng.random() < 0.7:
                cache.with_metadata(deletionTimestamp="2023-11-14T22:13:20Z")
                self.changed(cache)
            else:  # somebody took its finalizer away
                self.world.objects.remove(cache)

    def group_changes(self) -> None:
        found = self.of("LocalModelNodeGroup")
        if len(found) < 3 and self.rng.random() < 0.5:
            missing = sorted(set(GROUPS) - {each.name for each in found})
            self.world.add(a_group(missing[0]).at(self.rng.choice(ROOTS)))
            return
        group = self.rng.choice(found)
        change = self.rng.choice(("limit", "path", "selector", "goes", "broken"))
        if change == "goes" and len(found) > 1:
            self.world.objects.remove(group)
        elif change == "limit":
            group.with_spec(storageLimit=self.rng.choice(("1Gi", "100Gi")))
        else:
            spec = dict(group.json["spec"]["persistentVolumeSpec"])
            term = {"key": "pool", "operator": "In", "values": self.rng.sample(GROUPS, 2)}
            affinity = {"required": {"nodeSelectorTerms": [{"matchExpressions": [term]}]}}
            spec |= {"local": {"path": self.rng.choice(ROOTS)}} if change == "path" else {"nodeAffinity": affinity}
            if change == "broken":
                spec.pop("nodeAffinity")
            group.with_spec(persistentVolumeSpec=spec)
        self.changed(group)

    def agent_reports(self) -> None:
        if node := self.any_of("Node"):
            self.report(node.name)

    def agent_says_the_same(self) -> None:
        """A new report, of which all that matters is what it was."""
        known = [(name, view) for name, view in self.world.agents.items() if view.report is not None]
        if known:
            name, view = self.rng.choice(known)
            assert view.report is not None
            self.world.agents[name] = AgentView(replace(view.report, at=self.now), self.now)

    def agent_starts_anew(self) -> None:
        """Another process finds the same on the disk."""
        known = [(name, view) for name, view in self.world.agents.items() if view.report is not None]
        if known:
            name, view = self.rng.choice(known)
            assert view.report is not None
            self.made += 1
            self.world.agents[name] = AgentView(replace(view.report, incarnation=f"i{self.made}"), self.now)

    def agent_learns(self) -> None:
        """It has been told of sources and fills since."""
        known = [(name, view) for name, view in self.world.agents.items() if view.report is not None]
        if known:
            name, view = self.rng.choice(known)
            assert view.report is not None
            resolved = [each.resolved.name for each in self.world.resolutions.values() if each.resolved is not None]
            told = frozenset(each for each in resolved if self.rng.random() < 0.5)
            filling = frozenset(each.name for each in self.companies.values() if self.rng.random() < 0.5)
            report = replace(view.report, resolved_known=told, companies_known=filling, at=self.now)
            self.world.agents[name] = AgentView(report, self.now)

    def agent_has_other_disks(self) -> None:
        known = [(name, view) for name, view in self.world.agents.items() if view.report is not None]
        if known:
            name, view = self.rng.choice(known)
            assert view.report is not None
            self.world.agents[name] = AgentView(replace(view.report, roots=self.roots()), self.now)

    def agent_moves_on(self) -> None:
        """One model of one node is a little further, or is done."""
        known = [(name, view) for name, view in self.world.agents.items() if view.report and view.report.models]
        if known:
            name, view = self.rng.choice(known)
            assert view.report is not None
            models = list(view.report.models)
            number = self.rng.randrange(len(models))
            models[number] = self.model(models[number].key, models[number].selection)
            self.world.agents[name] = AgentView(replace(view.report, models=tuple(models)), self.now)

    def agent_is_silent(self) -> None:
        if self.world.agents:
            name = self.rng.choice(sorted(self.world.agents))
            view = self.world.agents[name]
            self.world.agents[name] = replace(view, failure=self.rng.choice(SILENCES))
            if self.rng.random() < 0.3:
                self.world.agents[name] = AgentView(failure=self.rng.choice(SILENCES))

    def source_answers(self) -> None:
        if caches := self.caches():
            self.resolve(self.rng.choice(caches))

    def source_fails_again(self) -> None:
        """The same failure, once more."""
        failing = [key for key, each in self.world.resolutions.items() if each.failure is not None]
        if failing:
            key = self.rng.choice(failing)
            before = self.world.resolutions[key]
            change: dict[str, Any] = self.rng.choice(
                (
                    {"retry_at": self.now + 60},
                    {"attempt": before.attempt + 1},
                    {"failing_since": self.now - 5},
                    {"failure": self.rng.choice(FAILURES[:2])},
                )
            )
            self.world.resolutions[key] = replace(before, **change)

    def pod_comes_or_goes(self) -> None:
        pods = self.of("Pod")
        if pods and self.rng.random() < 0.5:
            self.world.objects.remove(self.rng.choice(pods))
        elif caches := self.caches():
            self.made += 1
            pod = a_pod(f"p{self.made}").claiming(f"{self.rng.choice(caches).name}-gpu")
            if node := self.any_of("Node"):
                pod.on(node.name)
            if self.rng.random() < 0.5:
                pod.mounting(f"/models/models/{storage_key(self.rng.choice(URIS))}")
            self.world.add(pod)
        self.world.pods_known = self.rng.random() < 0.8

    def pods_are_looked_at(self) -> None:
        pods = [pod for pod in map(read_pod, (each.json for each in self.of("Pod"))) if pod is not None]
        for node in self.of("Node"):
            name = NodeName(node.name)
            if self.rng.random() < 0.7:
                self.looks[name] = Look(self.now, tuple(pod for pod in pods if pod.node == name))
            elif self.rng.random() < 0.3:
                self.looks[name] = Look(self.now, failure="forbidden")

    def service_comes_or_goes(self) -> None:
        services = self.of("InferenceService")
        if services and self.rng.random() < 0.5:
            self.world.objects.remove(self.rng.choice(services))
        elif caches := self.caches():
            self.made += 1
            cache = self.rng.choice(caches)
            self.world.add(a_service(f"s{self.made}", cache.namespace or "t").using(cache.name, cache.namespace))

    def operator_chooses(self) -> None:
        self.world.extensions = self.rng.random() < 0.7
        self.world.orphan_grace_s = self.rng.choice((None, 100.0, 86400.0))
        self.world.evict_idle_s = self.rng.choice((None, 0.0, 60.0))
        self.kserve = KServeConfig(found=self.rng.random() < 0.5)
        self.mark_nodes = self.rng.random() < 0.5
        self.storage_limit = self.rng.choice(("auto", "warn", "enforce"))

    def coordinator_begins(self) -> None:
        """The memory stays, as in a process that leads again."""
        self.acting_since = self.now
        self.companies, self.governed = {}, {}

    # --- what agents and sources say ---

    def resolve(self, cache: CacheBuilder) -> None:
        chance = self.rng.random()
        if chance < 0.15:
            self.world.resolutions.pop(cache.key, None)
        elif chance < 0.45:
            before = self.world.resolutions.get(cache.key)
            resolved = before.resolved if before is not None and chance < 0.25 else None
            failure = self.rng.choice(FAILURES[:2])
            self.world.resolutions[cache.key] = Resolution(resolved, failure, self.now + 30, 1, self.now)
        else:
            sizes = self.rng.choice(((GIB,), (GIB, GIB)))
            revision = self.rng.choice(("c0ffee", "bad"))
            self.world.resolutions[cache.key] = a_resolution(cache.source, *sizes, revision=revision)

    def report(self, name: str) -> None:
        keys = {storage_key(uri): uri for uri in self.rng.sample(URIS, self.rng.randrange(len(URIS) + 1))}
        selections = {each.uri: each.source.selection for each in self.caches()}
        models = tuple(self.model(key, selections.get(uri, uri)) for key, uri in keys.items())
        known = [each.resolved.name for each in self.world.resolutions.values() if each.resolved is not None]
        report = NodeReport(
            node=NodeName(name),
            incarnation=self.rng.choice(("one", "two")),
            version="1",
            pid=1,
            models=models,
            roots=self.roots(),
            resolved_known=frozenset(self.rng.sample(known, self.rng.randrange(len(known) + 1))),
            companies_known=frozenset(each.name for each in self.companies.values() if self.rng.random() < 0.5),
            peer_address=f"{name}:9090" if self.rng.random() < 0.9 else None,
            origins=(
                OriginReport(OriginName("https://origin.test:443"), 1, 2, 1, 1e6, self.rng.choice((0.0, 0.0, 9.0))),
            ),
            aside=frozenset(keys) if self.rng.random() < 0.1 else frozenset(),
            at=self.now,
        )
        self.world.agents[name] = AgentView(report, self.now)

    def roots(self) -> tuple[RootReport, ...]:
        rng = self.rng
        return tuple(
            RootReport(
                path,
                free_bytes=rng.choice((0, GIB, 100 * GIB)),
                used_bytes=rng.choice((0, GIB)),
                failure=Failure("PathMismatch", path) if rng.random() < 0.1 else None,
            )
            for path in ROOTS
            if rng.random() < 0.9
        )

    def model(self, key: StorageKey, selection: str) -> ModelReport:
        rng, phase = self.rng, self.rng.choice(PHASES)
        ready = phase is Phase.READY
        fill = next(iter(self.companies.values()), None)
        return ModelReport(
            key=key,
            phase=phase,
            selection=selection if rng.random() < 0.85 else "another",
            resolved=rng.choice((None, "gone")),
            bytes_total=GIB,
            bytes_done=GIB if ready else rng.randrange(GIB),
            bytes_from_origin=rng.randrange(GIB),
            wrong_peers={NodeName("n01"): rng.randrange(3)} if rng.random() < 0.1 else {},
            rate_bytes_per_s=0.0 if ready else rng.choice((0.0, 1e6, 3.3e7)),
            attempt=rng.randrange(3),
            failure=rng.choice(FAILURES) if phase in (Phase.FAILED, Phase.PENDING) and rng.random() < 0.8 else None,
            retry_at=self.now + 20 if phase is Phase.FAILED else None,
            manifest_digest=rng.choice((None, "sha256:" + "a" * 64)) if ready else None,
            revision=rng.choice(("c0ffee", "bad")) if ready else None,
            started_at=self.now - 60,
            finished_at=self.now - rng.randrange(50) if ready else None,
            damage="1 file" if rng.random() < 0.05 else None,
            part=Part(fill.fill, fill.name, fill.chunk_bytes, rng.random() < 0.5) if fill and not ready else None,
            lacking_bytes=rng.choice((None, GIB)) if phase is Phase.PENDING else None,
            needed_bytes=GIB,
            earlier=Earlier("before", "old", None, GIB, NOW) if rng.random() < 0.1 else None,
            root=rng.choice(("", *ROOTS)),
        )

    def carry_out(self, made: Plan) -> None:
        self.companies, self.manifests, self.governed = made.companies, made.manifests, made.shares.by_origin
        for write in made.writes:
            if self.rng.random() < 0.6:
                self.world.carry_out(write)


_NOT_EVENTS = frozenset(
    {"of", "caches", "snapshot", "step", "changed", "any_of", "resolve", "report", "roots", "model", "carry_out"}
)
_EVENTS: Mapping[str, Callable[[History], None]] = {
    name: each
    for name, each in vars(History).items()
    if callable(each) and not name.startswith("_") and name not in _NOT_EVENTS
}


def seen(made: Plan) -> dict[str, Any]:
    """The plan as values that can be compared: caches are those of one snapshot, but may be marked copies of them."""
    found = {each.name: getattr(made, each.name) for each in fields(made)}
    found["tallies"] = {key: (each.cache.contested, _without_cache(each)) for key, each in made.tallies.items()}
    return found


def _without_cache(tally: Tally) -> dict[str, Any]:
    return {each.name: getattr(tally, each.name) for each in fields(tally) if each.name != "cache"}


def the_same(remembered: Plan, scratch: Plan) -> None:
    one, other = seen(remembered), seen(scratch)
    for name in one:
        assert one[name] == other[name], name


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_a_plan_with_a_memory_is_the_plan_from_scratch(seed: int) -> None:
    history, memory = History(Random(seed)), Memory()
    said = Counter[str]()
    for number in range(100):
        history.step()
        snapshot = history.snapshot()
        nodes = sorted(snapshot.nodes)
        turn = None if number % 3 else Turn(frozenset(history.rng.sample(nodes, len(nodes) // 2)), news=2)
        remembered = plan(snapshot, history.now, turn, memory)
        the_same(remembered, plan(snapshot, history.now, turn))
        said.update(event.reason for write in remembered.writes for event in write.events)
        history.carry_out(remembered)
    assert len(history.happened) > 10
    assert len(said) > 5


def test_a_result_is_kept_while_every_input_is_the_same_object() -> None:
    memory, asked = Memory(), list[tuple[str, ...]]()

    def joined(*words: str) -> str:
        asked.append(words)
        return "".join(words)

    one, other = "".join(["a", "b"]), "".join(["a", "b"])  # equal, and two objects
    for words in ((one,), (one,), (other,), (other, one)):
        memory.turn()
        assert memory.call("label", joined, *words) == "".join(words)
    assert asked == [(one,), (other,), (other, one)]
    memory.turn()
    memory.turn()
    memory.call("label", joined, other, one)
    assert len(asked) == 4, "what a plan did not ask for is forgotten"


def test_a_report_is_made_of_what_the_one_before_said_the_same() -> None:
    history = History(Random(1))
    ready, moving = (history.model(storage_key(uri), uri) for uri in URIS[:2])
    before = NodeReport(NodeName("n1"), "one", "1", 1, (ready, moving), (RootReport("/models", 1),), at=NOW)
    same = replace(before, models=(replace(ready), replace(moving)), roots=(RootReport("/models", 1),), at=NOW + 1)
    kept = following(same, before)
    assert kept.models is before.models
    assert kept.roots is before.roots
    assert kept.at == NOW + 1
    further = following(replace(same, models=(replace(ready), replace(moving, bytes_done=7))), before)
    assert further.models[0] is ready
    assert further.models[1].bytes_done == 7
    assert following(replace(same, models=(replace(moving),)), before).models == (moving,)
    assert following(same, None) is same
