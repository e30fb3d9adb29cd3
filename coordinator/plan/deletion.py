"""The writes of a cache that is being deleted: how far it is, and in the end its finalizer goes.

    a node lists the copy, or its agent reports it      HOLDS     waited for
    its agent does not answer, the node is Ready        SILENT    waited for, UNREACHABLE_GRACE_S at most
    any other                                           GONE

The Job of an import goes first, and its pod before it. The finalizer goes once no node holds the copy. A node that is
not Ready, or that has been silent for too long, blocks nothing: its copy is ordered away when its agent is back,
because nothing is left that it was for (see `removals`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum

from actors.messages import NodeName
from coordinator.api.resources import NodeStatus
from coordinator.plan.announcements import Announcement
from coordinator.plan.conditions import Verdict, conditions, deleting
from coordinator.plan.facts import Facts
from coordinator.plan.imports import is_held_by_job, job_left
from coordinator.plan.patches import is_material, status_patch
from coordinator.plan.removals import Leaving
from coordinator.plan.snapshot import Cache
from coordinator.plan.writes import Verb, Write, patched

UNREACHABLE_GRACE_S = 600.0
"""How long the deletion of a cache waits for an agent that does not answer on a node that is Ready."""


class Standing(Enum):
    """What a node is to a cache that is being deleted."""

    HOLDS = "holds"
    SILENT = "silent"
    GONE = "gone"


def deletion_writes(facts: Facts, cache: Cache, leaving: Sequence[Leaving]) -> Iterator[Write]:
    """The release of the finalizer, or the status of the deletion where that has changed."""
    if is_held_by_job(facts.snapshot, cache):
        job = job_left(facts.snapshot, cache)
        if job is not None and not job.deleting:
            yield Write(Verb.DELETE, job.ref, {}, foreground=True)
        return
    words = _words(cache)
    standings = {name: standing(facts, cache, name, words.get(name)) for name in facts.snapshot.nodes}
    holding, silent = (
        [name for name, each in standings.items() if each is which] for which in (Standing.HOLDS, Standing.SILENT)
    )
    until = (cache.deleted_at or facts.now) + UNREACHABLE_GRACE_S
    if not holding and (not silent or facts.now >= until):
        yield _released(cache, len(silent))
        return
    left = {name: words[name] for name in sorted({*holding, *silent}) if name in words}
    yield from _status(facts, cache, left, _verdicts(facts, cache, leaving, silent, until))


def _words(cache: Cache) -> dict[NodeName, str]:
    """What its status says of each node."""
    written = cache.status.get("nodeStatus") or {}
    return {name: word for name, word in written.items() if isinstance(word, str)}


def standing(facts: Facts, cache: Cache, name: NodeName, word: str | None) -> Standing:
    """`word`: what the status of the cache says of the node."""
    snapshot = facts.snapshot
    local, view, placement = snapshot.local_nodes.get(name), snapshot.agent(name), facts.members.placements.get(name)
    if local is not None and cache.key in local.listed:
        return Standing.HOLDS
    if placement is not None and cache.storage_key in placement.keys - facts.forsaken:
        return Standing.GONE  # another cache of the same URI keeps the folder
    if view.failure is None:
        return Standing.HOLDS if cache.storage_key in view.models else Standing.GONE
    if not snapshot.nodes[name].ready:
        return Standing.GONE
    if view.report is not None:  # the last thing that was heard
        return Standing.SILENT if cache.storage_key in view.models else Standing.GONE
    believed = word in (NodeStatus.DOWNLOADED, NodeStatus.DOWNLOADING, NodeStatus.ERROR)
    return Standing.SILENT if believed else Standing.GONE


def _released(cache: Cache, silent: int) -> Write:
    rest = [finalizer for finalizer in cache.finalizers if finalizer != cache.finalizer]
    message = "no node lists it any more" + (f"; {silent} could not be asked" if silent else "")
    done = Announcement(cache.ref, bool(silent), "Deleted", message)
    return Write(Verb.PATCH, cache.ref, patched(cache.ref, {"finalizers": rest or None}), events=(done,))


def _verdicts(
    facts: Facts, cache: Cache, leaving: Sequence[Leaving], silent: list[NodeName], until: float
) -> tuple[Verdict, Verdict, Verdict]:
    going = [each for each in leaving if each.key == cache.storage_key and not each.forced]
    users = {each.node: each.users for each in going if each.users}
    looks = (facts.snapshot.looks.get(each.node) for each in going)
    unknown = next((look.failure for look in looks if look is not None and look.failure is not None), None)
    return deleting(cache, silent, until if silent else None, users, unknown)


def _status(
    facts: Facts, cache: Cache, left: Mapping[NodeName, str], judged: tuple[Verdict, Verdict, Verdict]
) -> Iterator[Write]:
    """`left`: the nodes that are waited for, with what was last written of them."""
    available = sum(word == NodeStatus.DOWNLOADED for word in left.values())
    failed = sum(word == NodeStatus.ERROR for word in left.values())
    copies = {"available": available, "failed": failed, "total": len(left)}
    wanted = {
        "nodeStatus": left,
        "copies": {name: count for name, count in copies.items() if count},
        "conditions": conditions(cache, judged, facts.now),
        "available": f"{available}/{len(left)}",
    }
    extensions = cache.ref.resource.plural not in facts.snapshot.pruned
    patch = status_patch(cache.status, wanted, wanted, extensions=extensions)
    if patch:
        material = is_material(cache.status, patch)
        yield Write(Verb.PATCH_STATUS, cache.ref, patched(cache.ref, status=patch), material, _warnings(cache, judged))


def _warnings(cache: Cache, judged: tuple[Verdict, Verdict, Verdict]) -> tuple[Announcement, ...]:
    """Said when the deletion begins to wait for something else."""
    known = {c.get("type"): c.get("reason") for c in cache.status.get("conditions") or ()}
    ready, _, degraded = judged
    held_up = (each for each in (ready, degraded) if each.reason not in ("Deleting", "AsExpected"))
    if any(known.get(each.type) != each.reason for each in held_up):
        return (Announcement(cache.ref, True, ready.reason, ready.message),)
    return ()
