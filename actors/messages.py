"""What the coordinator and a node agent tell each other. Frozen values; whole states, never commands.

    coordinator ──DesiredState──► agent        the whole desired set of one node, every tick
    coordinator ◄──NodeReport──── agent        the whole truth of one node, as it is on its disk

A lost message is repaired by the next one. Times are epoch seconds, sizes are bytes, rates are bytes per second.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

from actors.errors import Failure
from actors.manifest import Manifest, ModelSource, OriginName, Resolved, StorageKey
from actors.manifest import NodeName as NodeName
from actors.transferred import Transferred
from actors.trust import UNRESTRICTED, Trust


class Phase(StrEnum):
    """Where one model is on one node.

    Pending ──► Downloading ──► Verifying ──► Ready
       ▲             │              │
       └── Failed ◄──┴──────────────┘          Failed waits for `retry_at`, then starts again
    any ──► Removing ──► (no longer reported)

    A Ready copy found damaged goes through the same phases again, with `ModelReport.damage`, until it is repaired.
    """

    PENDING = "Pending"
    DOWNLOADING = "Downloading"
    VERIFYING = "Verifying"
    READY = "Ready"
    FAILED = "Failed"
    REMOVING = "Removing"


@dataclass(frozen=True, slots=True)
class DesiredRoot:
    """A folder that holds models, as a node group's PersistentVolume names it, and what of it the group may use.

    Groups can share a folder: then there is one of these for each, and the limit of each holds for its own models
    (`DesiredModel.group`). `storage_limit_bytes` None: no limit.
    """

    path: str
    storage_limit_bytes: int | None = None
    group: str = ""


@dataclass(frozen=True, slots=True)
class Member:
    """One node in one fill. `address` is of its peer port, `host:port`; the decisions do not look at it.

    `owns` is False for a node that joined when the fill was running. `seed`: it held a committed copy when it joined,
    so the chunks are read from it and not from the origin.
    """

    name: NodeName
    incarnation: str = ""
    zone: str | None = None
    address: str = ""
    owns: bool = True
    seed: bool = False


@dataclass(frozen=True)  # no slots: the name is computed once
class Company:
    """The nodes that fill one model together, in chunks of one size. All of them are told the same.

    `fill` names what is filled, and outlives changes among the members; `token` opens their peer ports for it.
    """

    fill: str
    chunk_bytes: int
    members: tuple[Member, ...]
    token: str = field(repr=False)

    @cached_property
    def name(self) -> str:
        """Names this exact company, so that it is sent to an agent once and not with every tick."""
        members = [
            (each.name, each.incarnation, each.zone, each.address, each.owns, each.seed) for each in self.members
        ]
        identity = repr((self.fill, self.chunk_bytes, members, self.token))
        return hashlib.sha256(identity.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Part:
    """That a node takes part in a fill, and as what: the coordinator learns from it which fills are running.

    `company` names the `Company` it goes by.
    """

    fill: str
    company: str
    chunk_bytes: int
    owns: bool


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where one model is or should be: a root, as Kubernetes names it, and a folder in it."""

    root: str
    key: StorageKey


Audience = frozenset[str] | None
"""The namespaces whose caches ask for a model, "" for the cluster's own. None: only caches of the cluster do."""


@dataclass(frozen=True, slots=True)
class DesiredModel:
    """One model that must be on the node.

    `resolved` names an entry of `DesiredState.resolved`, or one the agent reported in `resolved_known`. None: the
    coordinator could not resolve the source (yet); a committed copy of the same `source.selection` is Ready still.
    `expected_digest` (a manifest digest) fails closed: a copy with another digest is never Ready. `company` names an
    entry of `DesiredState.companies`, or one in `companies_known`: who fills the same. None: nobody else does.
    `evictable`: it may make room for others, and one that did waits until it fits beside them. `kept`: a copy that is
    there stays as it is, is repaired and is served to others; one that is not there is not fetched. `retry` names a
    request to try again at once, which is heeded once. `group` names the `DesiredRoot` whose limit it counts against.
    `audience`: whose it is, and so which other copies' files it may consist of.

    `version`: the manifest digest, or where the source knows none the revision, of the one content that is asked for;
    "": any that answers the request. `hold`: while another version is in place, this one is made ready beside it and
    does not take its place. `keep`: how many versions that were replaced stay; None: one, where it takes little room.
    """

    key: StorageKey
    root: str
    source: ModelSource
    resolved: str | None = None
    expected_digest: str | None = None
    priority: int = 0
    company: str | None = None
    evictable: bool = False
    kept: bool = False
    retry: str = ""
    group: str = ""
    audience: Audience = None
    version: str = ""
    hold: bool = False
    keep: int | None = None

    @property
    def place(self) -> Place:
        return Place(self.root, self.key)


@dataclass(frozen=True, slots=True)
class Removal:
    """A committed copy that is to go: nothing else removes one.

    `reason` is CamelCase, for the log. Only within `valid_s` of `at` (epoch seconds), by the agent's clock, and only
    while no pod uses the copy (`DesiredState.used`), unless it is `forced`: what was true of pods when it was decided
    need not be true later. A copy that is wanted goes only where it makes room for the model of `for_key`, in the same
    root, which needs `for_bytes`, and only while that model waits for space.
    """

    root: str
    key: StorageKey
    reason: str
    at: float
    valid_s: float
    forced: bool = False
    for_key: StorageKey | None = None
    for_uri: str = ""
    for_bytes: int = 0

    @property
    def place(self) -> Place:
        return Place(self.root, self.key)


@dataclass(frozen=True, slots=True)
class OriginShare:
    """What one node may ask of one origin, over all models. Holds until another is told: it does not expire.

    `requests` at a time; `bytes_per_s` None: as fast as it goes. `pause` names the pause that the origin asked for, of
    which `pause_s` are left when this is made: a duration, because clocks differ. A pause is heeded once, by its name,
    so that telling it again does not prolong it; what is left of it changes all the time and is no news.
    """

    requests: int
    bytes_per_s: float | None = None
    pause: str = ""
    pause_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class DesiredState:
    """Everything one node should hold. A committed copy that it does not mention is kept, and nothing is done to it.

    `owner` identifies the cluster (the uid of kube-system): an agent deletes only what the same owner committed.
    `roots` is every root any node group gives this node. `remove` is the one thing that is carried out when it arrives
    or not at all. `manifests`: of these committed models the report is to carry the manifest; that of a model of many
    files is large, so it travels only when it is asked for.
    `origins` is this node's share of every origin that it may read: of another it reads nothing. None: nobody governs,
    and it reads as it likes. `trust`: what may be read at all, whatever a location says.
    `used` maps every model that a pod on this node may have open to when the oldest such pod was created (epoch
    seconds, by the agent's clock). A model without an entry is open in no pod; None: not known, so any may be open. It
    comes from a list of the node's pods that is seconds old. So a folder that was moved aside at T may be unlinked iff
    `used` is not None, T is longer ago than a margin for that list's age and for clocks that differ, and the model has
    no entry or one later than T and that margin.
    """

    owner: str
    roots: tuple[DesiredRoot, ...] = ()
    models: tuple[DesiredModel, ...] = ()
    resolved: Mapping[str, Resolved] = field(default_factory=dict)
    companies: Mapping[str, Company] = field(default_factory=dict)
    remove: tuple[Removal, ...] = ()
    manifests: frozenset[StorageKey] = frozenset()
    origins: Mapping[OriginName, OriginShare] | None = None
    trust: Trust = UNRESTRICTED
    used: Mapping[StorageKey, float] | None = None


@dataclass(frozen=True, slots=True)
class Earlier:
    """A committed copy of an earlier request, whole and served until its replacement is committed."""

    selection: str
    revision: str | None = None
    manifest_digest: str | None = None
    bytes_total: int = 0
    finished_at: float | None = None


@dataclass(frozen=True, slots=True)
class ModelReport(Transferred):
    """One model on one node. `bytes_done` counts finished bytes, of any earlier attempt too; `attempt` starts at 1.

    `verified` counts files by how they were checked (`sha256`, `git-sha1`, `md5`, `size`). `resolved` names the
    `Resolved` in use, so that a stale one (`SourceChanged`) can be replaced by the coordinator. `part`: it is filled,
    or served, together with others. The counts of bytes over the network for it are inherited.

    `damage` names the files of a committed copy that are no longer what they were; the copy is not Ready, and the rest
    of the report is about its repair. `repaired` is what the last one put right. `verified_at`: when the whole copy was
    last read from the disk.

    `root` is the folder that it is in, as `DesiredModel.root` names it; "" from an agent that does not say.

    `lacking_bytes`: it waits for space, and fits once so much has gone from its root; not above 0 where it would fit,
    but another goes first. None: it does not wait for space, or emptying the root would not help, or the numbers are
    about to change. `needed_bytes` is what it then takes.

    `earlier`: what is in the folder meanwhile. None: nothing that may be served. `prefetched`: what is asked for lies
    beside it, complete and verified. `beside`: every version there, that one too.
    """

    key: StorageKey
    phase: Phase
    selection: str
    resolved: str | None = None
    bytes_total: int = 0
    bytes_done: int = 0
    rate_bytes_per_s: float = 0.0
    attempt: int = 0
    failure: Failure | None = None
    retry_at: float | None = None
    manifest_digest: str | None = None
    revision: str | None = None
    verified: Mapping[str, int] = field(default_factory=dict)
    started_at: float | None = None
    finished_at: float | None = None
    damage: str | None = None
    verified_at: float | None = None
    repaired: str | None = None
    repaired_at: float | None = None
    part: Part | None = None
    needed_bytes: int = 0
    lacking_bytes: int | None = None
    earlier: Earlier | None = None
    root: str = ""
    prefetched: bool = False
    beside: tuple[Earlier, ...] = ()


@dataclass(frozen=True, slots=True)
class RootReport:
    """One root as the agent sees it. `used_bytes`: committed models; `reserved_bytes`: promised to fills under way.

    `aside_bytes`, which are part of the used ones: old copies that lie aside because a pod may have them open. `junk`:
    what was found there that is not ours, where it is now, and why.
    """

    path: str
    free_bytes: int = 0
    used_bytes: int = 0
    reserved_bytes: int = 0
    failure: Failure | None = None
    aside_bytes: int = 0
    junk: tuple[str, ...] = ()


MAX_PAUSE_S = 3600.0
"""An origin is asked again after this, whatever it, a node or the coordinator says."""


def heeded_s(pause_s: float) -> float:
    """A pause as it is heeded, in [0, MAX_PAUSE_S]; 0 for what is no number."""
    return min(pause_s, MAX_PAUSE_S) if pause_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class OriginReport:
    """One origin as one node reads it. `requests` are under way, `wanted` would be if they might, `granted` may be.

    `pause_s` is what is left of the pause that the origin asked this very node for. A pause that the coordinator told a
    node is not told back: else each would prolong what it heard from the other.
    """

    origin: OriginName
    requests: int = 0
    wanted: int = 0
    granted: int | None = None
    rate_bytes_per_s: float = 0.0
    pause_s: float = 0.0


@dataclass(frozen=True, slots=True)
class NodeReport:
    """Everything one agent knows. `incarnation` is new for every start of the agent process.

    `peer_address`: where other nodes can ask for chunks; None: nowhere, so it fills alone. `link_bytes_per_s`: what its
    network carries, if somebody said so. `manifests`: of the committed models that were asked for. `aside`: the models
    of which a folder was moved aside and is kept, because a pod may have it open; while there are any, the coordinator
    looks at the node's pods from time to time and says in `DesiredState.used` what it found. `at` (epoch seconds): when
    this was made, by the agent's clock; 0 from an agent that does not say.
    """

    node: NodeName
    incarnation: str
    version: str
    pid: int
    models: tuple[ModelReport, ...] = ()
    roots: tuple[RootReport, ...] = ()
    resolved_known: frozenset[str] = frozenset()
    companies_known: frozenset[str] = frozenset()
    peer_address: str | None = None
    link_bytes_per_s: float | None = None
    manifests: Mapping[StorageKey, Manifest] = field(default_factory=dict)
    origins: tuple[OriginReport, ...] = ()
    aside: frozenset[StorageKey] = frozenset()
    at: float = field(default=0.0, compare=False)
