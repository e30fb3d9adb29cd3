"""What would happen if the cluster were so: who fits, what makes room, what moves, and how long it takes. Pure.

    snapshot (objects as they would be) ──plan──► desired state of every node
                                                     │ the agent's own arithmetic (`actors.agent.capacity`)
                                                     ▼
                                     kept, fetched, refetched, or no room ──plan once more──► what is evicted

The same `plan` that the controller runs. Agents are made from what LocalModelNodes say of them (`agents_of`), so that a
dump of objects is enough.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from actors.agent.capacity import Limit, Room, Waiting
from actors.errors import InsufficientStorage
from actors.manifest import StorageKey
from actors.messages import DesiredModel, DesiredState, ModelReport, NodeName, NodeReport, Phase, RootReport
from actors.times import seconds_of
from coordinator.api.resources import StatusKey
from coordinator.fleet.interface import AgentView
from coordinator.plan.eviction import Eviction
from coordinator.plan.movement import Fetch, Movement, movement, origin_of
from coordinator.plan.orphans import group_problem
from coordinator.plan.plan import plan
from coordinator.plan.removals import Leaving
from coordinator.plan.snapshot import Cache, LocalNode, Snapshot

HEADROOM_BYTES = 1 << 30
"""What agents keep free on every disk unless LOCALMODEL_HEADROOM says otherwise."""


BEGIN_S = 1.0
"""From `apply` to the first byte and from the last to Ready: what a tick, the source's list and a commit take."""


class Verdict(StrEnum):
    KEPT = "kept"
    ARRIVING = "arriving"
    FETCHED = "fetched"
    REFETCHED = "refetched"
    MAKES_ROOM = "fits once others are evicted"
    NO_ROOM = "does not fit"
    UNKNOWN = "not known"


@dataclass(frozen=True, slots=True)
class Item:
    """One model on one node. `caches` want it; `why` has the numbers where there is no room. `coming_bytes` are those
    that have still to arrive of what is under way."""

    node: NodeName
    root: str
    key: StorageKey
    caches: tuple[StatusKey, ...]
    verdict: Verdict
    needed_bytes: int
    free_bytes: int
    why: str = ""
    coming_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Forecast:
    """`lost`: copies that go because nobody wants them any more. `unplaced`: why no node is to hold these caches."""

    items: tuple[Item, ...]
    evictions: tuple[Eviction, ...]
    lost: tuple[Leaving, ...]
    moving: Movement
    unplaced: Mapping[StatusKey, str] = field(default_factory=dict)

    @property
    def harmless(self) -> bool:
        """Everything fits, and no copy is lost or evicted."""
        bad = (Verdict.NO_ROOM, Verdict.MAKES_ROOM, Verdict.UNKNOWN)
        return not self.evictions and not self.lost and all(item.verdict not in bad for item in self.items)

    def ready_in(self, share: float) -> float | None:
        """Seconds from `kubectl apply` until this share of the nodes that fetch is Ready; None: none fetches."""
        moved = self.moment(share)
        return None if moved is None else BEGIN_S + moved

    def moment(self, share: float) -> float | None:
        """When this share of the nodes has the last byte, from the first on; None: none fetches."""
        ordered = sorted(self.moving.seconds.values())
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


@dataclass(frozen=True, slots=True)
class Assumed:
    """What objects do not say. Rates are bytes per second, used where nothing was measured."""

    headroom_bytes: int = HEADROOM_BYTES
    link_bytes_per_s: float = 1.25e9
    origin_bytes_per_s: float | None = None


def agents_of(
    local_nodes: Mapping[NodeName, LocalNode], before: Mapping[StatusKey, Cache], now: float
) -> dict[NodeName, AgentView]:
    """What the agents would report, from what was last written of them. `before`: the caches as they stand now."""
    return {
        name: AgentView(
            NodeReport(
                node=name,
                incarnation="written",
                version="",
                pid=0,
                models=tuple(_reports(local, before)),
                roots=tuple(roots_of(local)),
            ),
            now,
        )
        for name, local in local_nodes.items()
        if local.status.get("roots")
    }


def roots_of(local: LocalNode) -> Iterable[RootReport]:
    """The roots that a node last said it could use."""
    for root in local.status.get("roots") or ():
        if not root.get("reason"):
            free, used, reserved = (root.get(name) or 0 for name in ("free", "used", "reserved"))
            yield RootReport(root["path"], free, used, reserved)


def _reports(local: LocalNode, before: Mapping[StatusKey, Cache]) -> Iterable[ModelReport]:
    found: dict[StorageKey, ModelReport] = {}
    for detail in local.status.get("models") or ():
        cache = before.get(detail["name"])
        phase = {"Ready": Phase.READY, "Downloading": Phase.DOWNLOADING, "Verifying": Phase.DOWNLOADING}.get(
            detail.get("phase") or ""
        )
        if cache is None or phase is None or cache.storage_key in found:
            continue
        total = detail.get("bytesTotal") or 0
        found[cache.storage_key] = ModelReport(
            key=cache.storage_key,
            phase=phase,
            selection=str(cache.status.get("selection") or cache.selection),
            bytes_total=total,
            bytes_done=total if phase is Phase.READY else detail.get("bytesDone") or 0,
            finished_at=seconds_of(detail.get("finishedAt")),
            manifest_digest=detail.get("digest"),
            revision=detail.get("revision"),
        )
    return found.values()


def forecast(after: Snapshot, now: float, assumed: Assumed = Assumed()) -> Forecast:
    """`after` has its agents (`agents_of`)."""
    made = plan(after, now)
    items: list[Item] = []
    views = dict(after.agents)
    for name, desired in sorted(made.desired.items()):
        of_node, waiting = _on_node(after, name, desired, assumed)
        items += of_node
        view = after.agents.get(name)
        if view is not None and view.report is not None and waiting:
            others = [each for each in view.report.models if each.key not in {one.key for one in waiting}]
            views[name] = replace(view, report=replace(view.report, models=(*others, *waiting)))
    going = plan(replace(after, agents=views), now).evictions
    items = [_helped(item, going) for item in items]
    moving = movement(after, _fetches(after, items), assumed.link_bytes_per_s, assumed.origin_bytes_per_s)
    return Forecast(tuple(items), tuple(going), made.removals, moving, _unplaced(after, items))


def _unplaced(after: Snapshot, items: Iterable[Item]) -> dict[StatusKey, str]:
    placed = {key for item in items for key in item.caches}
    return {
        key: _why_unplaced(after, cache)
        for key, cache in sorted(after.caches.items())
        if key not in placed and cache.deleted_at is None and cache.pvc_ref is None
    }


def _why_unplaced(after: Snapshot, cache: Cache) -> str:
    if cache.problem is not None:
        return cache.problem.message
    problems = [problem.message for name in cache.node_groups if (problem := group_problem(after, name)) is not None]
    return "; ".join(problems) or f"its groups ({', '.join(cache.node_groups)}) select no node"


def _fetches(after: Snapshot, items: Iterable[Item]) -> Iterable[Fetch]:
    fetches: dict[StorageKey, Fetch] = defaultdict(Fetch)
    for item in items:
        if item.verdict in (Verdict.FETCHED, Verdict.REFETCHED, Verdict.MAKES_ROOM):
            fetches[item.key].size = max(fetches[item.key].size, item.needed_bytes)
            fetches[item.key].nodes.append(item.node)
        elif item.verdict is Verdict.KEPT:
            fetches[item.key].seeds.append(item.node)
        elif item.verdict is Verdict.ARRIVING:
            fetches[item.key].size = max(fetches[item.key].size, item.needed_bytes)
            fetches[item.key].arriving[item.node] = item.coming_bytes
        fetches[item.key].origin = origin_of(after.caches[item.caches[0]].source.uri) if item.caches else ""
    return fetches.values()


def _helped(item: Item, going: Sequence[Eviction]) -> Item:
    helps = any(each.node == item.node and each.for_key == item.key and each.root == item.root for each in going)
    return replace(item, verdict=Verdict.MAKES_ROOM) if helps else item


def _on_node(
    after: Snapshot, name: NodeName, desired: DesiredState, assumed: Assumed
) -> tuple[list[Item], list[ModelReport]]:
    """Each model in the order in which the agent starts it, and reports of those that would wait for space."""
    report = after.report(name)
    reports = {} if report is None else {each.key: each for each in report.models}
    roots = {} if report is None else {root.path: root for root in report.roots}
    wanting = _caches_by_key(after, name)
    items: list[Item] = []
    waiting: list[ModelReport] = []
    promised: dict[tuple[str, str], int] = defaultdict(int)
    queue: list[Waiting] = []
    for model in sorted(desired.models, key=lambda each: (-each.priority, each.place)):
        held = reports.get(model.key)
        needed = _needed(after, wanting[model.key], model)
        root = roots.get(model.root)
        item = Item(
            node=name,
            root=model.root,
            key=model.key,
            caches=tuple(cache.key for cache in wanting[model.key]),
            verdict=Verdict.KEPT,
            needed_bytes=needed,
            free_bytes=root.free_bytes if root is not None else 0,
        )
        current = held is not None and held.selection == model.source.selection
        if model.kept and held is None:
            continue
        if held is not None and (current or model.kept):
            done = held.phase is Phase.READY
            coming = max(0, (held.bytes_total or needed) - held.bytes_done)
            items.append(item if done else replace(item, verdict=Verdict.ARRIVING, coming_bytes=coming))
            continue
        if root is None:
            items.append(replace(item, verdict=Verdict.UNKNOWN, why=f"nobody has reported the disk of {name}"))
            continue
        room = _room(model, desired, root, reports, promised, assumed)
        try:
            room.check(needed)
            room.check_turn(model.priority, queue)
        except InsufficientStorage as error:
            items.append(replace(item, verdict=Verdict.NO_ROOM, why=str(error)))
            queue.append(Waiting(model.source.uri, model.priority, needed))
            if room.has_a_chance(needed) and held is None:
                waiting.append(
                    ModelReport(
                        key=model.key,
                        phase=Phase.PENDING,
                        selection=model.source.selection,
                        bytes_total=needed,
                        failure=error.failure(),
                        needed_bytes=needed,
                        lacking_bytes=room.lacking_bytes(needed),
                    )
                )
            continue
        promised[model.root, model.group] += needed
        items.append(replace(item, verdict=Verdict.REFETCHED if held is not None else Verdict.FETCHED))
    return items, waiting


def _room(
    model: DesiredModel,
    desired: DesiredState,
    root: RootReport,
    reports: Mapping[StorageKey, ModelReport],
    promised: Mapping[tuple[str, str], int],
    assumed: Assumed,
) -> Room:
    """As an agent that has fetched nothing of it yet sees the root (see `Admission`)."""
    limits = {each.group: each.storage_limit_bytes for each in desired.roots if each.path == model.root}
    elsewhere = {each.key for each in desired.models if each.root == model.root and each.group != model.group}
    ready = {key: each for key, each in reports.items() if each.phase is Phase.READY}
    others = sum(each.bytes_total for key, each in ready.items() if key in elsewhere)
    mine = sum(count for (path, group), count in promised.items() if (path, group) == (model.root, model.group))
    new = sum(count for (path, _), count in promised.items() if path == model.root)
    return Room(
        root=model.root,
        free_bytes=root.free_bytes,
        headroom_bytes=assumed.headroom_bytes,
        used_bytes=root.used_bytes,
        reserved_bytes=root.reserved_bytes + new,
        unallocated_bytes=new,
        limit=Limit(
            limits.get(model.group),
            used_bytes=max(0, root.used_bytes - others),
            reserved_bytes=root.reserved_bytes + mine,
            group=model.group,
        ),
    )


def _caches_by_key(after: Snapshot, name: NodeName) -> Mapping[StorageKey, list[Cache]]:
    found: dict[StorageKey, list[Cache]] = defaultdict(list)
    for cache in sorted(after.caches.values(), key=lambda each: each.age_order):
        if cache.deleted_at is None and name in _members(after, cache):
            found[cache.storage_key].append(cache)
    return found


def _members(after: Snapshot, cache: Cache) -> set[NodeName]:
    """Nodes that a group of the cache selects, or whose LocalModelNode lists it."""
    selectors = [after.groups[name].selector for name in cache.node_groups if name in after.groups]
    return {
        node.name
        for node in after.nodes.values()
        if any(selector is not None and selector.matches(node.name, node.labels) for selector in selectors)
        or ((local := after.local_nodes.get(node.name)) is not None and cache.key in local.listed)
    }


def _needed(after: Snapshot, caches: Sequence[Cache], model: DesiredModel) -> int:
    """As it was measured, if the same was measured before; else as somebody who wants it says."""
    for cache in caches:
        known = (cache.status.get("bytes") or {}).get("total")
        if known and cache.status.get("selection") == model.source.selection:
            return int(known)
    return max((cache.size_bytes or 0 for cache in caches), default=0)
