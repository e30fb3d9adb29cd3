"""Ready, Progressing and Degraded: what `kubectl wait` waits for and `kubectl describe` explains.

    Ready         True   every member node holds the model, and there is at least one; also while some hold it as the
                         spec asked for it before (reason EarlierRevision)
                  False  reason: the most important thing that keeps it from being so
    Progressing   True   something is under way, or will be tried again by itself
                  False  done, or waiting for a person
    Degraded      True   something needs attention, even where the model is Ready
                  False  nothing does

Each is an ordered list of rules, and the first that has something to say decides. "Most important" is one order for all
three: what is wrong with the request, then with its node groups, then the failure that can only be helped by a person,
then the one that most nodes have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from coordinator.plan.conditions import Verdict, name_nodes
from coordinator.plan.rollout import Step
from coordinator.plan.snapshot import Cache, Problem
from coordinator.plan.tally import Tally
from coordinator.plan.troubles import Trouble, worst_trouble
from coordinator.plan.wording import as_before, from_peers, no_nodes, orphans_of, problems_of, under_way, wanted


def verdicts(
    tally: Tally,
    problems: Sequence[Problem],
    duplicate: Cache | None,
    step: Step | None = None,
    refresh: Mapping[str, Any] | None = None,
) -> tuple[Verdict, Verdict, Verdict]:
    """Ready, Progressing and Degraded of a cache that is not being deleted.

    `problems` are those of its spec and its node groups; `duplicate` is an older cluster cache of the same URI.
    `step` is what its rollout does now, `refresh` what was last said of a newer version.
    """
    case = Case(tally, problems, duplicate, worst_trouble(tally), step, refresh or {})
    return _first("Ready", READY, case), _first("Progressing", PROGRESSING, case), _first("Degraded", DEGRADED, case)


@dataclass(frozen=True, slots=True)
class Case:
    """What a rule looks at."""

    tally: Tally
    problems: Sequence[Problem]
    duplicate: Cache | None
    trouble: Trouble | None
    step: Step | None = None
    refresh: Mapping[str, Any] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Every node holds the model, and nothing is wrong with the request."""
        tally = self.tally
        return not self.problems and tally.total != len(tally.orphans) and tally.available == tally.total


class Finding(NamedTuple):
    """A verdict, of whichever condition."""

    status: bool
    reason: str
    message: str


Rule = Callable[[Case], Finding | None]


def _first(type_: str, rules: Sequence[Rule], case: Case) -> Verdict:
    found = next(found for rule in rules if (found := rule(case)) is not None)
    return Verdict(type_, found.status, found.reason, found.message)


# --- what is wrong with the request: the same for all three, but for what it does to the condition ---


def _bad_request(case: Case) -> Finding | None:
    problems = case.problems
    return Finding(False, problems[0].reason, problems_of(case.tally, problems)) if problems else None


def _no_nodes(case: Case) -> Finding | None:
    tally = case.tally
    return Finding(False, "NoMatchingNodes", no_nodes(tally)) if tally.total == len(tally.orphans) else None


# --- Ready ---


def _all_hold_it(case: Case) -> Finding | None:
    tally = case.tally
    if not case.complete:
        return None
    held = f"{tally.available}/{tally.total} nodes hold the model"
    if tally.earlier:
        return Finding(True, "EarlierRevision", f"{held}, {as_before(tally)}")
    return Finding(True, "AllNodesReady", held)


def _failing(case: Case) -> Finding | None:
    trouble = case.trouble
    return Finding(False, trouble.reason, trouble.message) if trouble and not trouble.waiting else None


def _downloading(case: Case) -> Finding | None:
    return Finding(False, "Downloading", under_way(case.tally)) if case.tally.downloading else None


def _delayed(case: Case) -> Finding | None:
    return Finding(False, case.trouble.reason, case.trouble.message) if case.trouble else None


def _resolving(case: Case) -> Finding | None:
    tally = case.tally
    if tally.source.resolved is not None:
        return None
    return Finding(False, "Resolving", f"reading what {tally.cache.source.uri} consists of")


def _starting(case: Case) -> Finding:
    tally = case.tally
    return Finding(False, "Pending", f"{tally.available}/{tally.total} nodes, waiting for the others to start")


READY: tuple[Rule, ...] = (
    _bad_request,
    _no_nodes,
    _all_hold_it,
    _failing,
    _downloading,
    _delayed,
    _resolving,
    _starting,
)

# --- Progressing ---


def _done(case: Case) -> Finding | None:
    found = _all_hold_it(case)
    return found._replace(status=False) if found is not None and not case.tally.earlier else None


def _moving(case: Case) -> Finding | None:
    found = _downloading(case)
    return found._replace(status=True) if found is not None else None


def _hopeless(case: Case) -> Finding | None:
    trouble = case.trouble
    return _failing(case) if trouble and not trouble.retryable else None


def _tried_again(case: Case) -> Finding | None:
    trouble = case.trouble
    return Finding(True, "Waiting" if trouble.waiting else "Retrying", trouble.message) if trouble else None


def _updating(case: Case) -> Finding | None:
    tally = case.tally
    if not case.complete:
        return None
    return Finding(True, "Updating", f"{wanted(tally)} is fetched; {as_before(tally)}")


def _rolling_out(case: Case) -> Finding | None:
    """How a rollout goes on, and what it waits for."""
    tally, step = case.tally, case.step
    if step is None or not tally.earlier or tally.prefetched + step.done < tally.available - step.behind:
        return None
    state = f"{step.done}/{tally.total} nodes serve {wanted(tally)}, {step.prefetched} have it ready beside the old one"
    if step.is_over and step.paused:
        return Finding(False, "RolloutPaused", f"{state}: set spec.rollout.paused to false to go on")
    if step.is_over:
        return Finding(False, "RolloutPartitioned", f"{state}: spec.rollout.partition names other groups")
    if step.let:
        return Finding(True, "CuttingOver", f"{state}; {name_nodes(step.let)} take it now, {step.limit} at a time")
    if step.behind == 0 and step.unavailable:
        where = f"{name_nodes(step.unavailable)}, and spec.rollout.maxUnavailable allows {step.limit}"
        return Finding(True, "WaitingForNodes", f"{state}; the model is unavailable on {where}")
    return None


def _about_to_move(case: Case) -> Finding:
    return (_resolving(case) or _starting(case))._replace(status=True)


PROGRESSING: tuple[Rule, ...] = (
    _done,
    _moving,
    _hopeless,
    _tried_again,
    _rolling_out,
    _updating,
    _bad_request,
    _no_nodes,
    _about_to_move,
)

# --- Degraded ---


def _attention(rule: Rule) -> Rule:
    """The same as something that needs attention."""

    def raised(case: Case) -> Finding | None:
        found = rule(case)
        return found._replace(status=True) if found is not None else None

    return raised


def _filling_from_peers(case: Case) -> Finding | None:
    source = case.tally.source
    return Finding(True, "FillingFromPeers", from_peers(source, source.unreadable)) if source.unreadable else None


def _not_refreshed(case: Case) -> Finding | None:
    refresh = case.refresh
    if not refresh.get("reason"):
        return None
    held = "what is there is served on"
    return Finding(True, refresh["reason"], f"no newer version: {refresh.get('message', '')}; {held}")


def _duplicated(case: Case) -> Finding | None:
    duplicate = case.duplicate
    if duplicate is None:
        return None
    message = f"LocalModelCache {duplicate.ref.name} has the same StorageURI {duplicate.source.uri}"
    return Finding(True, "DuplicateSource", message)


def _orphaned(case: Case) -> Finding | None:
    return Finding(True, "Orphaned", orphans_of(case.tally)) if case.tally.orphans else None


def _astray(case: Case) -> Finding | None:
    strays = case.tally.strays
    if not strays:
        return None
    where = name_nodes(name for name, _ in strays)
    message = f"an earlier copy on {where} stays for now in {strays[0][1]}, where the node group's path was"
    return Finding(True, "Orphaned", message)


def _as_expected(case: Case) -> Finding:
    return Finding(False, "AsExpected", "")


DEGRADED: tuple[Rule, ...] = (
    _attention(_bad_request),
    _attention(_no_nodes),
    _attention(_failing),
    _filling_from_peers,
    _not_refreshed,
    _duplicated,
    _orphaned,
    _astray,
    _as_expected,
)
