"""What the coordinator observed, as values: the whole input of `plan`.

Kubernetes object ──reading──► Cache, NodeGroup, Node, LocalNode     once, when an informer receives it
all of them + agents + resolutions  ──►  Snapshot                    every tick
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

from actors.errors import Failure
from actors.manifest import Manifest, ModelSource, OriginName, Resolved, StorageKey
from actors.messages import Company, NodeName, NodeReport
from coordinator.api.resources import (
    GROUP,
    VERSION,
    LocalModelCache,
    LocalModelNamespaceCache,
    LocalModelNode,
    LocalModelNodeGroup,
    Resource,
    StatusKey,
)
from coordinator.fleet.interface import AgentView
from coordinator.kube.interface import NODES, ResourceType
from coordinator.kube.node_selector import NodeSelector
from coordinator.plan.bindings import Claim, ClaimName, Volume
from coordinator.plan.jobs import Imports
from coordinator.plan.kserve_config import KServeConfig
from coordinator.plan.origin_budget import Budgets
from coordinator.plan.pods import Look, Pod
from coordinator.plan.ref import Ref as Ref
from coordinator.plan.services import Service

ORPHAN_GRACE_S = 7 * 86400.0
DELETE_IN_USE = "localmodel.kserve.io/delete-in-use"
"""Annotation of a cache; "true": when it is deleted, its copies go also from under pods that use them."""
REFRESH = "localmodel.kserve.io/refresh"
"""Annotation of a cache: whenever its value is another, the source is asked for a newer version."""
APART = "@"
"""No name has it: see `node_tier`."""
CLAIMS_IN = "localmodel.kserve.io/claims"
"""Annotation of a cache: namespaces, by comma, that get a claim to each of its node groups also without a service."""


def resource_type(model: type[Resource]) -> ResourceType:
    return ResourceType(GROUP, VERSION, model.PLURAL, model.KIND, model.NAMESPACED)


CACHES = resource_type(LocalModelCache)
NAMESPACE_CACHES = resource_type(LocalModelNamespaceCache)
NODE_GROUPS = resource_type(LocalModelNodeGroup)
LOCAL_NODES = resource_type(LocalModelNode)


STARTING = AgentView(failure=Failure("AgentStarting", "the node agent has not reported yet"))
"""Of a node that nothing is known of yet."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why an object cannot be used as it stands. CamelCase reason; the message names the field."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class EnvEntry:
    """A variable that an operator sets for sources: its value, or where a Secret of the job namespace has it."""

    name: str
    value: str = field(default="", repr=False)
    secret: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Which credentials a cache names; what they contain is read when the source is resolved.

    `container` is what a ClusterStorageContainer of the operator's adds for its URI.
    """

    service_account: str | None = None
    storage_key: str | None = None
    parameters: tuple[tuple[str, str], ...] = ()
    namespaced: bool = False
    """Of a cache in a namespace, whose author the coordinator does not speak for."""
    namespace: str | None = None
    container: tuple[EnvEntry, ...] = ()

    @property
    def name(self) -> str:
        """Tells these from others in the same namespace, and nothing else of them."""
        *named, _, container = astuple(self)
        return hashlib.sha256(repr((*named, *container)).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Policy:
    """`spec.rollout`. `most`: nodes at once, or with `share` percent of them. `groups` None: all."""

    most: int = 25
    share: bool = True
    groups: frozenset[str] | None = None
    paused: bool = False

    def limit(self, nodes: int) -> int:
        """Of so many nodes, how many may be unavailable at once: at least 1."""
        return max(1, nodes * self.most // 100 if self.share else self.most)


@dataclass(frozen=True, slots=True, eq=False)
class Cache:
    """A LocalModelCache or LocalModelNamespaceCache. `status` is as it stands in the object.

    `entry` is its line in `LocalModelNode.spec.localModels`, without the node group. `created` is epoch seconds, and so
    is `unused_since`, as it was last written. `served`: its status lists services that use it. `claims_in` are the
    namespaces that get claims to it although no service there uses it. `pvc_ref` is the claim of its namespace that is
    to hold the model, instead of nodes.
    `delete_in_use`: its deletion does not wait for pods. `retries`: who is to try again at once (see `retries`).
    `contested`: others of its URI ask with credentials of their own, so that a copy need not be what the coordinator's
    own would have been given (see `access`). `refresh_s`: how often its source is asked for a newer version, and
    `refresh_request` the annotation that asks for one. `rollout` None: a new version goes as far as it can at once.
    `readable`: it says what its URI is, if only that it is empty.
    """

    ref: Ref
    key: StatusKey
    source: ModelSource
    storage_key: StorageKey
    node_groups: tuple[str, ...]
    entry: Mapping[str, Any]
    status: Mapping[str, Any]
    finalizer: str
    finalizers: tuple[str, ...] = ()
    generation: int = 0
    created: float = 0.0
    deleted_at: float | None = None
    size_bytes: int | None = None
    digest: str | None = None
    priority: int = 0
    pinned: bool = False
    delete_in_use: bool = False
    served: bool = False
    unused_since: float | None = None
    credentials: Credentials = Credentials()
    selection: str = ""
    problem: Problem | None = None
    contested: bool = False
    readable: bool = True
    claims_in: frozenset[str] = frozenset()
    retries: Mapping[str, str] = field(default_factory=dict)
    pvc_ref: str | None = None
    refresh_s: float | None = None
    refresh_request: str = ""
    rollout: Policy | None = None
    keep_versions: int | None = None

    @property
    def age_order(self) -> tuple[float, str]:
        """Sorts the oldest first; the oldest of those with one URI owns the folder."""
        return self.created, self.key


@dataclass(frozen=True, slots=True, eq=False)
class NodeGroup:
    """A LocalModelNodeGroup. `root` and `selector` are None where `problem` says why.

    `volume_spec` and `claim_spec` are as they stand in it: every volume of the group is made from them.
    """

    ref: Ref
    root: str | None
    selector: NodeSelector | None
    limit_bytes: int | None
    status: Mapping[str, Any]
    problem: Problem | None = None
    volume_spec: Mapping[str, Any] = field(default_factory=dict)
    claim_spec: Mapping[str, Any] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A Kubernetes node. `cordoned`: no new pod is scheduled to it; it may be being drained.

    `conditions` are as they stand in it; None: nothing that can be written back. `version` is its resourceVersion.
    `heard`: its kubelet reports. `leaving` is the taint by which an autoscaler or a person takes it away; "": none.
    """

    name: NodeName
    uid: str
    labels: Mapping[str, str]
    ready: bool
    cordoned: bool = False
    conditions: tuple[Mapping[str, Any], ...] | None = None
    version: str = ""
    heard: bool = True
    leaving: str = ""

    @property
    def ref(self) -> Ref:
        return Ref(NODES, self.name, None, self.uid, self.version)


@dataclass(frozen=True, slots=True, eq=False)
class LocalNode:
    """A LocalModelNode. `models` and `status` are as they stand in the object.

    `orders` are its lines as caches, where what it lists is decided by KServe's controller (see `node_tier`).
    """

    ref: Ref
    owners: tuple[Mapping[str, Any], ...]
    models: tuple[Mapping[str, Any], ...]
    status: Mapping[str, Any]
    listed: Mapping[StatusKey, Mapping[str, Any]]
    orders: Mapping[StatusKey, Cache] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Resolution:
    """What the resolver knows of one source. `retry_at` (epoch seconds) is set while `failure` is.

    `failing_since` (epoch seconds): when the first of the failures in a row ended. `refresh` names the question for a
    newer version that is answered, by `resolved` or, in vain, by `refresh_failure`.
    """

    resolved: Resolved | None = None
    failure: Failure | None = None
    retry_at: float | None = None
    attempt: int = 0
    failing_since: float | None = None
    refresh: str = ""
    refresh_failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Governed:
    """What nodes were told of one origin: how many requests at a time, where it is any, and until when to be quiet.

    `quiet_until` is epoch seconds by the coordinator's clock; 0: nobody is.
    """

    shares: Mapping[NodeName, int]
    quiet_until: float = 0.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole world at one moment. `owner` is the uid of the namespace kube-system.

    `pruned` are the kinds (plurals) of which the API server prunes the status fields that KServe's own CRDs do not
    have. `companies`
    are those of the last plan, by fill, and `manifests` its manifests, by cache; `secret` is what the companies' tokens
    are made from; `acting_since` is when this coordinator began to act (epoch seconds). `budgets` are how much all
    nodes together may ask of an origin; `governed` is what the last plan made of them.

    `evict_idle_s` is how long nobody must have used what may be evicted; None: nothing is. `evict_dry_run`: nothing is
    either, and it is only said what would be. `pods` are those that have
    not ended; None: they are not watched, or cannot be at the moment. `looks` are the last lists of the pods of single
    nodes; those of the nodes in `looked_at` are of the last seconds, whatever the watch says.

    `left_out` are objects, by the name of their mapping here and their key in it, that exist and cannot be planned for.

    `orphan_grace_s` is how long a copy is kept that nobody wants any more but nobody deleted; None: for ever.

    `cutting_over` are the nodes that the last plan let take a new version, by cache.

    `imports` is None until it is known what there is for imports into claims.
    `services`, `volumes` and `claims` are None where they are not watched, or cannot be yet: then nothing that depends
    on them is written. `kserve` is what KServe itself is configured with.
    `storage_limit` is what becomes of limits of groups that do not say it themselves: see `plan.limits`.
    `mark_nodes`: Nodes say what they hold, see `plan.node_marks`.
    `follows`: KServe's controller decides what every node holds, and only that is carried out: see `plan.node_tier`.
    """

    owner: str
    caches: Mapping[StatusKey, Cache] = field(default_factory=dict)
    groups: Mapping[str, NodeGroup] = field(default_factory=dict)
    nodes: Mapping[NodeName, Node] = field(default_factory=dict)
    local_nodes: Mapping[NodeName, LocalNode] = field(default_factory=dict)
    agents: Mapping[NodeName, AgentView] = field(default_factory=dict)
    resolutions: Mapping[StatusKey, Resolution] = field(default_factory=dict)
    pruned: frozenset[str] = frozenset()
    companies: Mapping[str, Company] = field(default_factory=dict)
    manifests: Mapping[StatusKey, Manifest] = field(default_factory=dict)
    secret: bytes = field(default=b"", repr=False)
    acting_since: float = 0.0
    evict_idle_s: float | None = None
    evict_dry_run: bool = False
    pods: Collection[Pod] | None = None
    looks: Mapping[NodeName, Look] = field(default_factory=dict)
    looked_at: frozenset[NodeName] = frozenset()
    orphan_grace_s: float | None = ORPHAN_GRACE_S
    storage_limit: str = "auto"
    left_out: frozenset[tuple[str, str]] = frozenset()
    budgets: Budgets = field(default_factory=Budgets)
    governed: Mapping[OriginName, Governed] = field(default_factory=dict)
    cutting_over: Mapping[StatusKey, frozenset[NodeName]] = field(default_factory=dict)
    services: Collection[Service] | None = None
    volumes: Mapping[str, Volume] | None = None
    claims: Mapping[ClaimName, Claim] | None = None
    kserve: KServeConfig = field(default_factory=KServeConfig)
    mark_nodes: bool = False
    follows: bool = False
    imports: Imports | None = None

    def agent(self, name: NodeName) -> AgentView:
        """The state of the node's agent: that it starts, where nothing has been heard of it."""
        return self.agents.get(name, STARTING)

    def report(self, name: NodeName) -> NodeReport | None:
        """The last report of the node's agent."""
        return self.agent(name).report
