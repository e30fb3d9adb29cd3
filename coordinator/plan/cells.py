"""What one node is to one cache: an ordered list of rules, of which the first that has something to say decides.

    unproven      the cache has not been shown to have a right to what the node holds
    orphaned      the cache does not select the node, but its copy is there
    earlier       what the spec asked for before is there, and is served until there is a newer
    in_conflict   another cache decides what is in the folder, and wants something else
    held          the copy is there
    unheard       nobody can be asked
    damaged, under_way, failed, held_up            what the agent says
    unreadable    what is known of the source
    waiting

A rule that cannot apply to a cache, whatever a node reports, is not asked: this is the inner part of a loop over nodes
× caches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from actors.errors import Failure
from actors.messages import ModelReport, Phase
from coordinator.api.resources import NodeStatus
from coordinator.fleet.interface import AgentView
from coordinator.plan.access import Access, of_report
from coordinator.plan.content import ANY, Content
from coordinator.plan.slots import Slot
from coordinator.plan.snapshot import Node
from coordinator.plan.sources import mismatch
from coordinator.plan.tally import Cell, SourceState

NODE_NOT_READY = Failure("NodeNotReady", "the Kubernetes node is not ready")
NO_REASON = Failure("DownloadFailed", "the node agent gave no reason")


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One cache on the nodes of one placement: what is the same for all of them.

    `source` is where the model comes from, which may be the source of the cache that decides about the folder.
    `content`: which of the contents that the request may come to is asked for.
    """

    slot: Slot
    source: SourceState
    access: Access
    content: Content = ANY
    rules: tuple[_Rule, ...] = field(init=False)
    plain: bool = field(init=False)
    """A copy of what is asked for now is the cache's, and nothing can be said against it."""

    def __post_init__(self) -> None:
        idle = set[_Rule]()
        slot = self.slot
        plain = not self.access.asks and slot.orphan is None and slot.conflict is None and slot.cache.digest is None
        object.__setattr__(self, "plain", plain and not self.content.name)
        if not self.access.asks:
            idle.add(_unproven)
        if self.slot.orphan is None:
            idle.add(_orphaned)
        if self.slot.conflict is None:
            idle.add(_in_conflict)
        object.__setattr__(self, "rules", tuple(rule for rule in RULES if rule not in idle))

    def is_current(self, report: ModelReport) -> bool:
        """Whether it is about what is asked for now."""
        if not self.access.is_current(report):
            return False
        return report.phase is not Phase.READY or self.content.is_of(report)


def judge(request: Request, view: AgentView, report: ModelReport | None, held: bool) -> Cell:
    """`held`: the last written status had the model Downloaded there."""
    if (  # as `_held` says, and no rule before it could object: in a large cluster nearly every copy is like this
        request.plain
        and report is not None
        and report.phase is Phase.READY
        and report.earlier is None
        and report.selection == request.slot.cache.selection
    ):
        return NodeStatus.DOWNLOADED, view.failure, None, report
    current = report if report is not None and request.is_current(report) else None
    for rule in request.rules:
        cell = rule(request, view, report, current, held)
        if cell is not None:
            return cell
    return NodeStatus.PENDING, None, None, current


_Rule = Callable[[Request, AgentView, ModelReport | None, ModelReport | None, bool], Cell | None]
"""`report` and `current`: all that the agent reports of the model, and the same where it is what is asked for now. What
else there is, is an earlier request's copy, about to be replaced. `held`: as in `judge`."""


def _unproven(
    request: Request, view: AgentView, report: ModelReport | None, current: ModelReport | None, held: bool
) -> Cell | None:
    access = request.access
    if access.granted and (report is None or _is_open(access, report)):
        return None
    return _barred(access, view)


def _orphaned(
    request: Request, view: AgentView, report: ModelReport | None, current: ModelReport | None, held: bool
) -> Cell | None:
    if request.slot.orphan is None or (report is not None and report.damage is not None):
        return None
    return NodeStatus.DOWNLOADED, Failure("Orphaned", request.slot.orphan), None, current


def _earlier(
    request: Request, view: AgentView, report: ModelReport | None, current: ModelReport | None, held: bool
) -> Cell | None:
    """The earlier copy is there and is served; why the one that is asked for now is not there."""
    slot, source = request.slot, request.source
    if report is None or (current is not None and slot.conflict is None and not report.earlier):
        return None
    earlier = request.access.served(report)
    if earlier is None:
        return None
    if current is None:  # what is under way, if anything, is for somebody else
        report = of_earlier(report)
    failure, retry_at = slot.conflict or view.failure or report.failure, None
    if failure is report.failure:
        retry_at = report.retry_at
    if failure is None and report.phase not in (Phase.DOWNLOADING, Phase.VERIFYING):
        failure, retry_at = source.failure, source.retry_at
    return NodeStatus.DOWNLOADED, failure, retry_at, replace(report, earlier=earlier)


def _in_conflict(
    request: Request, view: AgentView, report: ModelReport | None, current: ModelReport | None, held: bool
) -> Cell | None:
    conflict = request.slot.conflict
    return (NodeStatus.ERROR, conflict, None, None) if conflict is not None else None


def _held(
    request: Request, view: AgentView, report: ModelReport | None, current: ModelReport | None, held: bool
) -> Cell | None:
    if current is None or current.phase is not Phase.READY:
        return None
    cache = request.slot.cache
    if cache.digest and current.manifest_digest and current.manifest_digest != cache.digest:
        return NodeStatus.ERROR, mismatch(cache, f"the copy has {current.manifest_digest}"), None, current
    return NodeStatus.DOWNLOADED, view.failure, None, current


def _unheard(
    request: Request, view: AgentView, report: ModelReport | None, current: ModelReport | None, held: bool
) -> Cell | None:
    """The copy that was there still is."""
    if view.failure is None:
        return None
    word = NodeStatus.DOWNLOADED if held and current is None else NodeStatus.PENDING
    return word, view.failure, None, current


def _damaged(
    request: Request, view: AgentView, report: ModelReport | None, current: ModelReport | None, held: bool
) -> Cell | None:
    """Out of service until it is repaired, and `Damaged` whatever holds the repair up."""
    if current is None or current.damage is None:
        return None
    source = request.source
    under_way = current.phase in (Phase.DOWNLOADING, Phase.VERIFYING)
    cause = current.failure or (None if under_way else source.failure)
    state = "being repaired" if under_way else "not repaired yet"
    message = f"{current.damage}; {state}" + (f": {cause.message}" if cause else "")
    retry_at = current.retry_at if current.failure else source.retry_at
    word = NodeStatus.DOWNLOADING if under_way else NodeStatus.ERROR
    return word, Failure("Damaged", message), retry_at, current


def _under_way(
    request: Request, view: AgentView, report: ModelReport | None, current: ModelReport | None, held: bool
) -> Cell | None:
    if current is None or (current.phase is not Phase.DOWNLOADING and current.phase is not Phase.VERIFYING):
        return None
    return NodeStatus.DOWNLOADING, current.failure, current.retry_at, current


def _failed(
    request: Request, view: AgentView, report: ModelReport | None, current: ModelReport | None, held: bool
) -> Cell | None:
    if current is None or current.phase is not Phase.FAILED:
        return None
    return NodeStatus.ERROR, current.failure or NO_REASON, current.retry_at, current


def _held_up(
    request: Request, view: AgentView, report: ModelReport | None, current: ModelReport | None, held: bool
) -> Cell | None:
    if current is None or current.phase is not Phase.PENDING or current.failure is None:
        return None
    return NodeStatus.PENDING, current.failure, current.retry_at, current


def _unreadable(
    request: Request, view: AgentView, report: ModelReport | None, current: ModelReport | None, held: bool
) -> Cell | None:
    source = request.source
    return (NodeStatus.ERROR, source.failure, source.retry_at, current) if source.failure is not None else None


RULES: tuple[_Rule, ...] = (
    _unproven,
    _orphaned,
    _earlier,
    _in_conflict,
    _held,
    _unheard,
    _damaged,
    _under_way,
    _failed,
    _held_up,
    _unreadable,
)


def _is_open(access: Access, report: ModelReport) -> bool:
    """Whether the cache may be told of it: of its own, and of what nothing is known of yet."""
    if not access.asks or access.permits(report):
        return True
    if report.earlier is not None and access.permits(report.earlier):
        return True
    unknown = report.phase is not Phase.READY and report.manifest_digest is None and report.revision is None
    return unknown and report.selection == access.cache.selection


_UNPROVEN = Failure(
    "Unproven",
    "the node holds a copy that a cache with credentials of its own may have brought from elsewhere; it is this cache's"
    " once its own source has been read and has the same",
)


def _barred(access: Access, view: AgentView) -> Cell:
    """This cache has not been shown to have a right to anything that the node holds or fetches."""
    cache, source = access.cache, access.source
    if source.failure is not None:
        return NodeStatus.ERROR, source.failure, source.retry_at, None
    if not source.answered:
        return NodeStatus.PENDING, view.failure or (_UNPROVEN if cache.contested else None), None, None
    found = source.revision or source.manifest_digest or "other files"
    message = (
        f"the node holds other content of {cache.source.uri} for another cache; for this one the source has {found}."
        " One folder holds one of them: this one is fetched once no other cache wants what is there"
    )
    return NodeStatus.ERROR, Failure("SourceConflict", message, retryable=False), None, None


def of_earlier(report: ModelReport) -> ModelReport:
    """Nothing but the copy that is there."""
    kept = report.earlier or of_report(report)
    return ModelReport(
        key=report.key,
        phase=Phase.PENDING,
        selection=report.selection,
        started_at=report.started_at if report.phase is Phase.READY else None,
        finished_at=kept.finished_at,
        beside=report.beside,
        **(report.numbers if report.phase is Phase.READY else {}),
    )


def overlay_not_ready(cell: Cell, view: AgentView, before: str) -> Cell:
    """The same on a node that Kubernetes calls NotReady. `before`: this node's entry in the cache's status.

    As KServe: only a node without an entry becomes NodeNotReady; the others keep theirs while nobody reports. A copy
    that was Downloaded and is not any more (the request has changed) is Pending.
    """
    word, failure, retry_at, report = cell
    if word is NodeStatus.DOWNLOADED:
        return cell
    if before in ("", NodeStatus.NOT_READY):
        return NodeStatus.NOT_READY, NODE_NOT_READY, None, report
    if view.failure is None:
        return cell
    word = NodeStatus.PENDING if before == NodeStatus.DOWNLOADED else _WORDS.get(before, NodeStatus.PENDING)
    return word, failure, retry_at, report


_WORDS = {word.value: word for word in NodeStatus}


def explained(view: AgentView, node: Node) -> AgentView:
    """The same with the Kubernetes node as the reason, where it is."""
    failure = view.failure
    if failure is None or failure.reason in ("AgentError", "RayUnavailable"):
        return view
    if node.leaving:
        message = f"node {node.name} is being taken away (taint {node.leaving}): its agent ends with it"
        return replace(view, failure=Failure("NodeDraining", message))
    if not node.ready:
        why = (
            "its kubelet reports a problem"
            if node.heard
            else "its kubelet no longer reports; if the machine is gone, delete the Node"
        )
        message = f"node {node.name} is not ready: {why} (kubectl describe node {node.name})"
        return replace(view, failure=Failure("NodeNotReady", message))
    if node.cordoned and failure.reason == "NoRayNode":
        message = (
            f"node {node.name} is cordoned and has no Ray worker: a DaemonSet's pod comes there all the same, so it is"
            f" starting, was deleted, or does not tolerate a taint; kubectl uncordon {node.name} when the work is done"
        )
        return replace(view, failure=Failure("NodeCordoned", message))
    return view


def beside(cell: Cell, earlier: str, root: str) -> Cell:
    """The same of a node that has a copy in the folder of an earlier path, too."""
    word, failure, retry_at, report = cell
    stays = f"a copy stays in {earlier} for now, where the node group's path was before it was {root}"
    if failure is None:
        return word, Failure("Orphaned", stays) if word is NodeStatus.DOWNLOADED else None, retry_at, report
    stays += "; it is used again, and nothing is fetched, if that is put right"
    return word, replace(failure, message=f"{failure.message}; {stays}"), retry_at, report
