"""The fold: what every agent reports becomes what every cache is.

    Phase        Pending               Downloading, Verifying   Ready            Failed
    NodeStatus   NodeDownloadPending   NodeDownloading          NodeDownloaded   NodeDownloadError

A damaged copy is NodeDownloadError, and NodeDownloading while it is repaired, both with the reason `Damaged`.

Status is rebuilt from the reports each time. It is read back in two cases only, where nobody can be asked: an agent
that is silent, and a node that is NotReady. What a single node is to a single cache is judged in `cells`.

The last fold is where the next begins: rows of nodes, and tallies of caches, of which nothing is new are kept (`rows`).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from actors.manifest import StorageKey
from actors.messages import ModelReport, NodeName, NodeReport, RootReport
from coordinator.api.resources import NodeStatus, StatusKey
from coordinator.fleet.interface import AgentView
from coordinator.plan.access import Access, asks_itself
from coordinator.plan.cells import Request
from coordinator.plan.cells import explained as explained
from coordinator.plan.columns import Changes, Counted, count
from coordinator.plan.memory import Memory
from coordinator.plan.placement import Members, Placement
from coordinator.plan.rows import FINAL as FINAL
from coordinator.plan.rows import Lane, Lanes, Row, Shift, row_of, words
from coordinator.plan.slots import Slot
from coordinator.plan.snapshot import Cache, LocalNode, Snapshot
from coordinator.plan.status import agent_detail
from coordinator.plan.tally import SourceState, Tally

SETTLING_S = 15.0
"""For so long a coordinator that begins to act does not say of agents that it has not heard yet that they start."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What there is budget to write: progress of these nodes, and news of this many others."""

    progress: Container[NodeName]
    news: int


@dataclass(frozen=True, slots=True)
class Fold:
    """`caches`: a tally for every cache not deleted. `views`: the agents, with the Kubernetes node as the reason where
    it is. `due`: the nodes whose status is written now if anything is new in it; of the others there is nothing to
    write, or no budget for it.

    `missing` names what each node lacks, by the caches that decide the content; `failed` holds the reports of failures
    among them. `foreign`: copies that none of those who want the model may take for their own. `settling`: this
    coordinator has just begun to act.
    """

    caches: Mapping[StatusKey, Tally]
    rows: Mapping[NodeName, Row]
    views: Mapping[NodeName, AgentView]
    due: frozenset[NodeName]
    missing: Mapping[NodeName, Sequence[Cache]]
    failed: Sequence[tuple[Cache, ModelReport]]
    foreign: Mapping[NodeName, frozenset[StorageKey]]
    settling: bool = False


@dataclass(frozen=True, slots=True)
class _Last:
    """The rows and tallies that the next fold begins with."""

    rows: Mapping[NodeName, Row] = field(default_factory=dict)
    counted: Counted = field(default_factory=Counted)


def fold(
    snapshot: Snapshot,
    members: Members,
    sources: Mapping[StatusKey, SourceState],
    turn: Turn | None = None,
    now: float = 0.0,
    memory: Memory | None = None,
) -> Fold:
    """Every report, once. `sources` has an entry for every cache that is not being deleted; `turn` None: no budget."""
    memory = memory or Memory()
    last = memory.last("fold", _Last())
    lanes = _lanes(snapshot, members, sources, memory)
    order = sorted(members.placements)
    views = {name: _view(name, snapshot, memory) for name in order}
    rows, changes = _rows(snapshot, members, lanes, views, last.rows)
    counted = count(snapshot.caches, sources, rows, last.counted, changes)
    memory.keep("fold", _Last(rows, counted))
    settling = now < snapshot.acting_since + SETTLING_S
    nothing: tuple[Cache, ...] = ()
    return Fold(
        caches=counted.tallies,
        rows=rows,
        views=views,
        due=frozenset(_due(snapshot, rows, views, turn, settling, memory)),
        missing={name: row.missing if row.lacking else nothing for name, row in rows.items()},
        failed=[failure for row in rows.values() if row.failed for failure in row.failures],
        foreign={name: row.foreign for name, row in rows.items() if row.foreign},
        settling=settling,
    )


def _view(name: NodeName, snapshot: Snapshot, memory: Memory) -> AgentView:
    """The agent as far as it is told in a status: the same object while an agent that is well says the same."""
    view = snapshot.agent(name)
    report, failure = view.report, view.failure
    if report is not None and failure is None:
        of = memory.same(("process of", name), (name, report.incarnation, report.version, report.pid))
        view = memory.call(("heard", name), _heard, of, report.models, report.roots)
    return memory.call(("view", name), explained, view, snapshot.nodes[name])


def _heard(
    of: tuple[NodeName, str, str, int], models: tuple[ModelReport, ...], roots: tuple[RootReport, ...]
) -> AgentView:
    return AgentView(NodeReport(*of, models, roots))


def _lanes(
    snapshot: Snapshot, members: Members, sources: Mapping[StatusKey, SourceState], memory: Memory
) -> dict[Placement, Lanes]:
    uris: dict[str, set[str]] = {}
    for cache in snapshot.caches.values():
        if cache.ref.namespace is not None:
            uris.setdefault(cache.ref.namespace, set()).add(cache.source.uri)
    known = {namespace: memory.same(("uris", namespace), frozenset(each)) for namespace, each in uris.items()}
    sources = memory.alike("sources", sources)
    readers = memory.alike("readers", known)
    return {
        placement: memory.following(("lanes", *placement.of), _lanes_of, placement, sources, readers)
        for placement in members.by_placement
    }


def _lanes_of(
    before: Lanes | None,
    placement: Placement,
    sources: Mapping[StatusKey, SourceState],
    uris: Mapping[str, Container[str]],
) -> Lanes:
    """Those of a placement; what has not changed is the lane of before."""
    known = {lane.key: lane for lane in before.lanes} if before is not None else {}
    lanes = [_lane(slot, sources, uris, known.get(slot.cache.key)) for slot in placement.slots]
    found = Lanes(lanes, [root.path for root in placement.roots])
    if before is not None and before.keys == found.keys:
        if (before.lanes, before.paths) == (found.lanes, found.paths):
            return before
        found.keys = before.keys
    return found


def _lane(
    slot: Slot, sources: Mapping[StatusKey, SourceState], uris: Mapping[str, Container[str]], known: Lane | None
) -> Lane:
    cache, own = slot.cache, sources[slot.cache.key]
    shares = not asks_itself(cache) and own.resolved is None and own.failure is None
    source = sources[slot.owner.key] if shares else own
    content = sources[slot.owner.key].content
    readable = None if cache.ref.namespace is None else uris[cache.ref.namespace]
    if (
        known is not None
        and known.own is own
        and known.request.source is source
        and known.uris is readable
        and known.request.content == content
        and known.slot == slot
    ):
        return known
    return Lane(slot, own, Request(slot, source, Access.of(cache, own), content), readable)


def _rows(
    snapshot: Snapshot,
    members: Members,
    lanes: Mapping[Placement, Lanes],
    views: Mapping[NodeName, AgentView],
    before: Mapping[NodeName, Row],
) -> tuple[dict[NodeName, Row], Changes]:
    """Every row, and the cells in them that have changed."""
    rows: dict[NodeName, Row] = {}
    changes = Changes()
    shifts: dict[tuple[Lanes, Lanes], Shift] = {}
    for name, view in views.items():
        of, node, was = lanes[members.placements[name]], snapshot.nodes[name], before.get(name)
        if was is None:
            rows[name] = row_of(of, node, view)
            continue
        if was.of is not of and (was.of, of) not in shifts:
            shifts[was.of, of] = Shift(was.of, of)
        shift = shifts.get((was.of, of))
        if not was.is_of(node, view):
            row = rows[name] = row_of(of, node, view).like(was)
            if shift is None:
                changes.compare(was, was.cells, row, range(len(of.lanes)))
            else:
                changes.compare(was, shift.cells(was), row, shift.kept)
        elif shift is None:
            rows[name] = was
        else:
            row = rows[name] = shift.moved(was, view)
            if row.behind or was.behind or row.barred or was.barred or was.of.paths != of.paths:
                changes.compare(was, shift.cells(was), row, shift.kept)
    return rows, changes


# --- what of it is written ---


def _due(
    snapshot: Snapshot,
    rows: Mapping[NodeName, Row],
    views: Mapping[NodeName, AgentView],
    turn: Turn | None,
    settling: bool,
    memory: Memory,
) -> Iterator[NodeName]:
    """Nodes with news come in the order of their names, as long as there is budget."""
    news = turn.news if turn else len(rows)
    for name, row in rows.items():
        local = snapshot.local_nodes.get(name)
        if not memory.call(("said", name), _is_said, row.of.keys, row.says, views[name], local, settling):
            if news > 0:
                yield name
            news -= 1
        elif turn is None or name in turn.progress:
            yield name


def _is_said(
    keys: Sequence[StatusKey], says: Sequence[NodeStatus], view: AgentView, local: LocalNode | None, settling: bool
) -> bool:
    """Whether the status that was last written has the node's models and its agent as they are."""
    written = local.status if local is not None else {}
    agent = agent_detail(view, local, settling=settling)
    return words(keys, says) == written.get("modelStatus") and agent == written.get("agent")
