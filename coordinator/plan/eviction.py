"""Which copies make room for models that wait for space. Pure: `--eviction=dry-run` prints it, `lru` carries it out.

    may go     nobody uses its cache, and has not for the idle time, during which the copy was there
               no cache in its folder is pinned, and no pod mounts the node's whole folder, or was seen to use the copy
             when the node was last looked at
               no node is downloading its cache, perhaps from this copy
    for whom   a model on the same disk, at least as important, that does not fit and would fit by it
    in order   of priority, then the longest unused first; none that is not needed for it

An evicted model is told so by its node agent: it waits, makes nobody else go, and is downloaded again when it fits
beside what it made room for. So two models never take turns.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from actors.manifest import StorageKey
from actors.messages import DesiredRoot, ModelReport, NodeName, Phase, Removal
from actors.sizes import say_bytes
from actors.times import rfc3339
from coordinator.api.resources import StatusKey
from coordinator.plan.facts import Facts
from coordinator.plan.fold import Fold
from coordinator.plan.slots import Slot, priority
from coordinator.plan.snapshot import Snapshot
from coordinator.plan.usage import Usage, users_on

ORDER_S = 5.0
"""How long after the decision an agent may carry it out."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Whether copies are evicted that nobody has used for `idle_s`, or only said which would be."""

    idle_s: float
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Copy:
    """A committed model. `unused_since` (epoch seconds) None: it stays."""

    key: StorageKey
    size_bytes: int
    priority: int = 0
    unused_since: float | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A model that waits for space, `lacking_bytes` as its agent reports it."""

    key: StorageKey
    needed_bytes: int
    lacking_bytes: int
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Eviction:
    """One copy that makes room for one model. `caches` lose it; `for_caches` want the other."""

    node: NodeName
    root: str
    key: StorageKey
    caches: tuple[StatusKey, ...]
    size_bytes: int
    unused_since: float
    for_key: StorageKey
    for_caches: tuple[StatusKey, ...]
    for_uri: str
    for_bytes: int

    @property
    def reason(self) -> str:
        """A sentence for people, the same for as long as the eviction is."""
        return (
            f"{self.node}: {', '.join(self.caches)} ({say_bytes(self.size_bytes)}), unused since"
            f" {rfc3339(self.unused_since)}, makes room for {', '.join(self.for_caches)}, which needs"
            f" {say_bytes(self.for_bytes, up=True)}"
        )

    def said_to(self, namespace: str | None) -> str:
        """`reason`, as whoever reads an object of this namespace may know it."""
        if namespace is None:
            return self.reason
        here, there = (
            tuple(key for key in keys if key.rpartition("/")[0] == namespace) for keys in (self.caches, self.for_caches)
        )
        if there:
            return replace(self, caches=here, for_caches=there).reason
        return (
            f"{self.node}: {', '.join(here)} ({say_bytes(self.size_bytes)}), unused since"
            f" {rfc3339(self.unused_since)}, makes room for another model"
        )

    def order(self, now: float) -> Removal:
        """`now` by the agent's clock."""
        return Removal(
            self.root,
            self.key,
            "Evicted",
            now,
            ORDER_S,
            for_key=self.for_key,
            for_uri=self.for_uri,
            for_bytes=self.for_bytes,
        )


def choose(copies: Iterable[Copy], waiting: Iterable[Waiting], idle_before: float) -> list[tuple[Copy, Waiting]]:
    """What must go on one disk, and for whom, so that as much as possible of what waits will fit.

    Those that wait come in the order in which the agent starts them. If the first cannot be helped, nobody less
    important is: it would have to wait behind the first all the same.
    """
    left = sorted(
        (copy for copy in copies if copy.unused_since is not None and copy.unused_since <= idle_before),
        key=lambda copy: (copy.priority, copy.unused_since, copy.key),
    )
    chosen: list[tuple[Copy, Waiting]] = []
    spare_bytes = 0  # what those before leave over, or take
    hopeless: int | None = None
    for each in sorted(waiting, key=lambda one: (-one.priority, one.key)):
        if hopeless is not None and each.priority < hopeless:
            break
        lacking_bytes = each.lacking_bytes - spare_bytes
        going = _fewest([copy for copy in left if copy.priority <= each.priority], lacking_bytes)
        if going is None:
            hopeless = each.priority
            continue
        chosen += [(copy, each) for copy in going]
        left = [copy for copy in left if copy not in going]
        spare_bytes += sum(copy.size_bytes for copy in going) - each.needed_bytes
    return chosen


def _fewest(copies: Sequence[Copy], lacking_bytes: int) -> list[Copy] | None:
    """The first of `copies` that free so much, without those that turn out not to be needed. None: not even all do."""
    going: list[Copy] = []
    freed_bytes = 0
    for copy in copies:
        if freed_bytes >= lacking_bytes:
            break
        going.append(copy)
        freed_bytes += copy.size_bytes
    if freed_bytes < lacking_bytes:
        return None
    for copy in reversed(going):
        if freed_bytes - copy.size_bytes >= lacking_bytes:
            going.remove(copy)
            freed_bytes -= copy.size_bytes
    return going


def may_go(slots: Iterable[Slot], unused: Container[StatusKey]) -> bool:
    """Whether a folder that these share may be evicted, once it has been unused for long enough."""
    return all(not slot.cache.pinned and slot.cache.problem is None and slot.cache.key in unused for slot in slots)


def evictions(facts: Facts) -> tuple[Eviction, ...]:
    """Everything that would have to go now, on every node. Nothing where the policy is off or pods are not known."""
    snapshot = facts.snapshot
    if snapshot.evict_idle_s is None or not facts.use.known:
        return ()
    idle_before = facts.now - snapshot.evict_idle_s
    found: list[Eviction] = []
    for name, placement in sorted(facts.members.placements.items(), key=lambda item: item[0]):
        view = snapshot.agent(name)
        models = view.report.models if view.report is not None else ()
        if view.failure is None and facts.memory.call(("waits", name), _waits, models):
            open_here = users_on(snapshot, name) or {}
            for root in placement.roots:
                found += _on_disk(facts, name, root, open_here, idle_before)
    return tuple(found)


def _waits(models: Iterable[ModelReport]) -> bool:
    """Whether any of them waits for space."""
    return any(model.lacking_bytes is not None for model in models)


def orders_of(snapshot: Snapshot, going: Iterable[Eviction], now: float) -> dict[NodeName, tuple[Removal, ...]]:
    """What may be carried out: on nodes whose pods were listed just now, which is later than any watch."""
    orders: dict[NodeName, tuple[Removal, ...]] = {}
    for each in going:
        if each.node in snapshot.looked_at:
            at = snapshot.agents[each.node].by_its_clock(now)
            orders[each.node] = (*orders.get(each.node, ()), each.order(at))
    return orders


def _on_disk(
    facts: Facts, node: NodeName, share: DesiredRoot, open_here: Container[StorageKey], idle_before: float
) -> Iterator[Eviction]:
    """Among the models of one group, whose limit it is. `open_here` are those that pods on the node may have open."""
    root, group = share.path, share.group
    sharing: dict[StorageKey, list[Slot]] = {}
    for slot in facts.members.placements[node].slots:
        sharing.setdefault(slot.cache.storage_key, []).append(slot)
    mounted = facts.use.covers(node, root)
    reports = facts.snapshot.agent(node).models
    copies, waiting = [], []
    for key, slots in sharing.items():
        report, first = reports.get(key), next(slot for slot in slots if slot.owner is slot.cache)
        if report is None or (first.root, first.group) != (root, group) or report.selection != first.owner.selection:
            continue
        important = priority(slots)
        if report.phase is Phase.READY and report.damage is None:
            busy = mounted or key in open_here or _is_downloading(facts.folded, slots)
            since = None if busy or not may_go(slots, facts.use.since) else _unused_since(slots, report, facts.use)
            copies.append(Copy(key, report.bytes_total, important, since))
        elif report.lacking_bytes is not None:
            waiting.append(Waiting(key, report.needed_bytes, report.lacking_bytes, important))
    for copy, each in choose(copies, waiting, idle_before):
        yield _eviction(node, root, sharing, copy, each)


def _is_downloading(folded: Fold, slots: Iterable[Slot]) -> bool:
    """Some node may be reading this copy, to have one itself."""
    return any(folded.caches[slot.cache.key].downloading for slot in slots)


def _eviction(
    node: NodeName, root: str, sharing: Mapping[StorageKey, Sequence[Slot]], copy: Copy, waiting: Waiting
) -> Eviction:
    return Eviction(
        node=node,
        root=root,
        key=copy.key,
        caches=tuple(slot.cache.key for slot in sharing[copy.key]),
        size_bytes=copy.size_bytes,
        unused_since=copy.unused_since or 0.0,
        for_key=waiting.key,
        for_caches=tuple(slot.cache.key for slot in sharing[waiting.key]),
        for_uri=sharing[waiting.key][0].cache.source.uri,
        for_bytes=waiting.needed_bytes,
    )


def _unused_since(slots: Sequence[Slot], report: ModelReport, use: Usage) -> float | None:
    """A copy is not unused for longer than it is there."""
    if report.finished_at is None:
        return None
    return max(report.finished_at, *(use.since[slot.cache.key] for slot in slots))
