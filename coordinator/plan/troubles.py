"""Of all that is wrong on the nodes of a cache, the one failure to talk about."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from actors.errors import Failure
from actors.messages import NodeName
from actors.times import rfc3339
from coordinator.plan.conditions import WAITING, name_nodes
from coordinator.plan.tally import Tally


class Trouble(NamedTuple):
    """The failure to talk about. `waiting`: it explains a delay, and is none by itself."""

    reason: str
    message: str
    retryable: bool
    waiting: bool


def worst_trouble(tally: Tally) -> Trouble | None:
    """The failure to talk about: one that needs a person first, then the most frequent; mere delays last."""
    by_reason: dict[str, list[tuple[NodeName, Failure, float | None]]] = defaultdict(list)
    for trouble in tally.troubles:
        by_reason[trouble[1].reason].append(trouble)
    if not by_reason:
        return None

    def importance(reason: str) -> tuple[bool, bool, int, str]:
        group = by_reason[reason]
        return reason not in WAITING, not all(failure.retryable for _, failure, _ in group), len(group), reason

    reason = max(by_reason, key=importance)
    group = sorted(by_reason[reason], key=lambda trouble: trouble[0])
    node, failure, retry_at = group[0]
    retry_at = min((at for _, _, at in group if at is not None), default=retry_at)
    if failure is tally.source.failure:
        message = failure.message
    elif len(group) == tally.total == 1:
        message = f"{node}: {failure.message}"
    else:
        message = f"{len(group)}/{tally.total} nodes ({name_nodes(n for n, _, _ in group)}): {failure.message}"
    if retry_at is not None and not failure.final:
        message += f"; next try {rfc3339(retry_at)}"
    return Trouble(reason, message, failure.retryable, reason in WAITING)
