"""A world of Kubernetes objects, agents and sources, each built in one line, and the plan for it.

`a_world()` collects builders (`coordinator.dev.trial.objects`, whose names are found here, too) and agents into a
`Snapshot`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

from actors.errors import Failure
from actors.manifest import Location, ManifestFile, ModelSource, Resolved, StorageKey, make_manifest, storage_key
from actors.messages import ModelReport, NodeName, NodeReport, Phase, RootReport
from actors.schemes import Schemes
from coordinator.api.resources import RESOURCES, StatusKey
from coordinator.dev.trial.objects import Builder as Builder
from coordinator.dev.trial.objects import CacheBuilder as CacheBuilder
from coordinator.dev.trial.objects import GroupBuilder as GroupBuilder
from coordinator.dev.trial.objects import LocalNodeBuilder as LocalNodeBuilder
from coordinator.dev.trial.objects import NodeBuilder as NodeBuilder
from coordinator.dev.trial.objects import PodBuilder as PodBuilder
from coordinator.dev.trial.objects import ServiceBuilder as ServiceBuilder
from coordinator.dev.trial.objects import a_cache as a_cache
from coordinator.dev.trial.objects import a_group as a_group
from coordinator.dev.trial.objects import a_local_node as a_local_node
from coordinator.dev.trial.objects import a_namespace_cache as a_namespace_cache
from coordinator.dev.trial.objects import a_node as a_node
from coordinator.dev.trial.objects import a_pod as a_pod
from coordinator.dev.trial.objects import a_service as a_service
from coordinator.fleet.interface import AgentView
from coordinator.plan.bindings import read_claim, read_volume
from coordinator.plan.import_job import job_name
from coordinator.plan.jobs import Imports, read_job, read_template
from coordinator.plan.kserve_config import KServeConfig
from coordinator.plan.node_tier import followed
from coordinator.plan.plan import Plan, Verb, Write, plan
from coordinator.plan.pods import Look, read_pod
from coordinator.plan.reading import read_cache, read_local_node, read_namespace_cache, read_node, read_node_group
from coordinator.plan.services import read_service
from coordinator.plan.snapshot import ORPHAN_GRACE_S, Resolution, Snapshot

NOW = 1_700_000_000.0
OWNER = "kube-system-uid"
GIB = 1 << 30


def a_resolution(
    source: ModelSource | str,
    *sizes: int,
    names: Sequence[str] = (),
    revision: str | None = "c0ffee",
    expires_at: float | None = None,
    **fields: Any,
) -> Resolution:
    """A resolved source of files of these sizes (default: one of 1 GiB), named `0.bin`, … or as `names` say."""
    source = ModelSource(source) if isinstance(source, str) else source
    sizes = sizes or (GIB,)
    paths = names or [f"{index}.bin" for index in range(len(sizes))]
    files = [ManifestFile(path, size) for path, size in zip(paths, sizes, strict=True)]
    locations = tuple(Location(f"https://origin.test/{file.path}") for file in files)
    return Resolution(Resolved(make_manifest(source, revision, files), locations, expires_at, **fields))


def a_report(
    cache: CacheBuilder | ModelSource,
    phase: Phase = Phase.READY,
    *,
    done: int | None = None,
    total: int = GIB,
    **fields: Any,
) -> ModelReport:
    """One model as an agent reports it; all bytes are done unless `done` says otherwise."""
    source = cache if isinstance(cache, ModelSource) else cache.source
    done = (total if phase is Phase.READY else 0) if done is None else done
    if phase is Phase.READY:
        fields = {"revision": "c0ffee", "started_at": NOW - 60, "finished_at": NOW - 10, **fields}
    return ModelReport(
        key=storage_key(source.uri),
        phase=phase,
        selection=source.selection,
        bytes_total=total,
        bytes_done=done,
        **{"bytes_from_origin": done, **fields},
    )


def an_agent(
    node: str, *models: ModelReport, known: frozenset[str] = frozenset(), roots: tuple[RootReport, ...] | None = None
) -> AgentView:
    """A healthy agent with these models under the root `/models`."""
    if roots is None:
        roots = (RootReport("/models", 500 * GIB, sum(m.bytes_done for m in models if m.phase is Phase.READY)),)
    return AgentView(NodeReport(NodeName(node), "incarnation-1", "0.1.0", 1, models, roots, known), NOW)


def a_silent_agent(reason: str = "AgentUnavailable", last: AgentView | None = None) -> AgentView:
    """An agent that does not answer, with what it reported `last`, if anything."""
    failure = Failure(reason, f"the node agent is silent ({reason})")
    return replace(last, failure=failure) if last else AgentView(failure=failure)


@dataclass
class World:
    """What an API server, a fleet and a resolver would hold. `apply` does to it what they would do with a plan."""

    objects: list[Builder] = field(default_factory=list)
    agents: dict[str, AgentView] = field(default_factory=dict)
    resolutions: dict[str, Resolution] = field(default_factory=dict)
    extensions: bool = True
    evict_idle_s: float | None = None
    pods_known: bool = True
    looked_at: frozenset[NodeName] = frozenset()
    look_failures: dict[NodeName, Look] = field(default_factory=dict)
    orphan_grace_s: float | None = ORPHAN_GRACE_S
    mark_nodes: bool = False
    volumes_known: bool = False
    imports_known: bool = False
    services_known: bool = True
    kserve: KServeConfig = field(default_factory=KServeConfig)
    follows: bool = False

    def add(self, *objects: Builder) -> Self:
        self.objects += objects
        return self

    def reporting(self, node: str, *models: ModelReport, **fields: Any) -> Self:
        self.agents[node] = an_agent(node, *models, **fields)
        return self

    def resolved(self, cache: CacheBuilder, *sizes: int, **fields: Any) -> Self:
        self.resolutions[cache.key] = a_resolution(cache.source, *sizes, **fields)
        return self

    def unresolved(self, cache: CacheBuilder, failure: Failure, retry_at: float | None = None) -> Self:
        self.resolutions[cache.key] = Resolution(failure=failure, retry_at=retry_at, attempt=1)
        return self

    def find(self, kind: str, name: str, namespace: str | None = None) -> dict[str, Any] | None:
        for builder in self.objects:
            metadata = builder.json["metadata"]
            if (builder.json["kind"], metadata["name"], metadata.get("namespace")) == (kind, name, namespace):
                return builder.json
        return None

    def snapshot(self) -> Snapshot:
        def of(kind: str) -> list[dict[str, Any]]:
            return [deepcopy(builder.json) for builder in self.objects if builder.json["kind"] == kind]

        caches = [read_cache(raw) for raw in of("LocalModelCache")]
        pods = [pod for pod in map(read_pod, of("Pod")) if pod is not None]
        caches += [read_namespace_cache(raw) for raw in of("LocalModelNamespaceCache")]
        read_local = partial(read_local_node, follows=Schemes()) if self.follows else read_local_node
        snapshot = Snapshot(
            owner=OWNER,
            caches={cache.key: cache for cache in caches},
            groups={group.ref.name: group for group in map(read_node_group, of("LocalModelNodeGroup"))},
            nodes={node.name: node for node in map(read_node, of("Node"))},
            local_nodes={NodeName(node.ref.name): node for node in map(read_local, of("LocalModelNode"))},
            agents={NodeName(name): view for name, view in self.agents.items()},
            resolutions={StatusKey(key): value for key, value in self.resolutions.items()},
            pruned=frozenset() if self.extensions else frozenset(model.PLURAL for model in RESOURCES),
            evict_idle_s=self.evict_idle_s,
            pods=pods if self.pods_known else None,
            looks={name: Look(NOW, tuple(pod for pod in pods if pod.node == name)) for name in self.looked_at}
            | self.look_failures,
            looked_at=self.looked_at,
            orphan_grace_s=self.orphan_grace_s,
            mark_nodes=self.mark_nodes,
            **(self._bindings() if self.volumes_known else {}),
        )
        return followed(snapshot) if self.follows else snapshot

    def _bindings(self) -> dict[str, Any]:
        """What an API server with KServe's kinds knows of services, volumes and claims."""
        raw = [deepcopy(builder.json) for builder in self.objects]
        services = [
            read_service(each, llm=each["kind"].startswith("LLM"))
            for each in raw
            if each["kind"].endswith("InferenceService")
        ]
        volumes = [read_volume(each) for each in raw if each["kind"] == "PersistentVolume"]
        claims = [read_claim(each) for each in raw if each["kind"] == "PersistentVolumeClaim"]
        return {
            "services": [each for each in services if each is not None] if self.services_known else None,
            "volumes": {each.ref.name: each for each in volumes},
            "claims": {each.key: each for each in claims},
            "imports": self._imports(raw) if self.imports_known else None,
            "kserve": self.kserve,
        }

    def _imports(self, raw: Sequence[dict[str, Any]]) -> Imports:
        template = next((each for each in raw if each["kind"] == "PodTemplate"), None)
        jobs = [read_job(each) for each in raw if each["kind"] == "Job"]
        final = [each for each in raw if each["metadata"].get("deletionTimestamp") and each["kind"].endswith("Cache")]
        return Imports(
            read_template(template),
            {(job.ref.namespace or "", job.ref.name): job for job in jobs},
            frozenset(job_name(read_namespace_cache(each)) for each in final),
        )

    def plan(self, now: float = NOW) -> Plan:
        return plan(self.snapshot(), now)

    def step(self, now: float = NOW) -> Plan:
        """One plan, with its writes carried out."""
        made = self.plan(now)
        for write in made.writes:
            self.carry_out(write)
        return made

    def settle(self, now: float = NOW, steps: int = 6) -> Plan:
        """Steps until a plan writes nothing, and returns that plan. Fails if it never does."""
        for _ in range(steps):
            made = self.step(now)
            if not made.writes:
                return made
        raise AssertionError(f"still writing after {steps} plans: {made.writes}")

    def carry_out(self, write: Write) -> None:
        ref = write.ref
        if write.verb is Verb.CREATE:
            created = Builder(ref.resource.kind, ref.name)
            created.json |= deepcopy(dict(write.body))
            created.json["metadata"] |= {"resourceVersion": "1", "uid": f"uid-{ref.name}"}
            self.objects.append(created)
            return
        target = self.find(ref.resource.kind, ref.name, ref.namespace)
        assert target is not None, f"no {ref}"
        if write.verb is Verb.DELETE:
            self.objects = [builder for builder in self.objects if builder.json is not target]
            return
        body = deepcopy(dict(write.body))
        version = target["metadata"]["resourceVersion"]
        assert body["metadata"].pop("resourceVersion") == version
        merge(target, body)
        target["metadata"]["resourceVersion"] = str(int(version) + 1)
        if target["metadata"].get("deletionTimestamp") and not target["metadata"].get("finalizers"):
            self.objects = [builder for builder in self.objects if builder.json is not target]


def a_world(*objects: Builder) -> World:
    return World().add(*objects)


def merge(target: dict[str, Any], patch: Mapping[str, Any]) -> None:
    """RFC 7396, in place."""
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        elif isinstance(value, Mapping):
            inner = target.get(name)
            if not isinstance(inner, dict):
                inner = target[name] = {}
            merge(inner, value)
        else:
            target[name] = value


def key_of(cache: CacheBuilder) -> StorageKey:
    return storage_key(cache.uri)
