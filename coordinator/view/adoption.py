"""What becomes of the models that KServe has on its nodes, once this project takes over: said beforehand. Pure.

    adopt    the node has it: files are checked against the source, what is right is kept, and what is not is fetched
    fetch    the node does not have it
    refuse   it cannot be: the source, its credentials, the cache, the node group or the disk says why

Of a node whose disk was looked at that counts, by names and sizes; of another what KServe says. The agents then look at
every byte.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from actors.errors import Failure
from actors.messages import NodeName
from actors.sizes import say_bytes
from coordinator.api.resources import ModelStatus, StatusKey
from coordinator.plan.admission import Known
from coordinator.plan.admission_warnings import LABEL_LENGTH
from coordinator.plan.snapshot import Cache, NodeGroup
from coordinator.view.disks import Disks, Lying, Match


class Outcome(StrEnum):
    ADOPT = "adopt"
    FETCH = "fetch"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Row:
    """One cache on one node."""

    node: str
    cache: str
    outcome: Outcome
    why: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a source. `files` are sizes by path, None of an archive. `failure` None: it can be read.

    `undigested`: of how many files it names no digest. `anonymous`: KServe reads it without the credentials that the
    cache names, because they are not there.
    """

    size_bytes: int | None = None
    files: Mapping[str, int] | None = None
    failure: Failure | None = None
    anonymous: bool = False
    undigested: int = 0


def rows(known: Known, answers: Mapping[StatusKey, Answer], disks: Disks | None = None, owner: str = "") -> list[Row]:
    """By node, then by cache. A cache without a node is not among them. `answers` may lack any: nobody has asked.

    `owner` is what markers of this cluster have.
    """
    found = []
    for node in sorted(known.nodes.values(), key=lambda each: each.name):
        for cache in sorted(known.caches.values(), key=lambda each: each.key):
            group = _group_of(cache, known, node.name)
            if group is not None and cache.deleted_at is None:
                answer, disk = answers.get(cache.key), (disks or {}).get(node.name)
                judged = _refused(cache, group, answer)
                if judged is None and disk is not None:
                    judged = _on_disk(disk.get(cache.storage_key), answer, owner)
                found.append(Row(node.name, cache.key, *(judged or _as_kserve_says(cache, known, node.name, answer))))
    return found


def _refused(cache: Cache, group: NodeGroup, answer: Answer | None) -> tuple[Outcome, str] | None:
    problem = cache.problem or group.problem
    if problem is not None:
        return Outcome.REFUSE, f"{problem.reason}: {problem.message}"
    failure = answer.failure if answer is not None else None
    if failure is not None and not failure.retryable:
        return Outcome.REFUSE, f"{failure.reason}: {failure.message}"
    return None


def _on_disk(lying: Lying | None, answer: Answer | None, owner: str) -> tuple[Outcome, str]:
    size = answer.size_bytes if answer is not None else None
    all_of_it = f"; {say_bytes(size, up=True)}" if size is not None else ""
    if lying is None or lying.files == {}:
        return Outcome.FETCH, f"its folder is not there, or empty{all_of_it}"
    if lying.owner is not None:
        if lying.owner == owner:
            return Outcome.ADOPT, "a node agent of this cluster has filled it"
        return Outcome.REFUSE, f"PathOccupied: its folder has the marker of another owner, {lying.owner}"
    if answer is not None and answer.undigested:
        return Outcome.FETCH, _unbelieved(answer)
    if lying.files is None:
        return Outcome.ADOPT, "its folder has more files than are named, or nobody could look into it"
    model = answer.files if answer is not None else None
    if model is None:
        return (
            Outcome.ADOPT,
            f"its folder has {len(lying.files)} files, and its source did not say which it should have",
        )
    match = Match.of(lying.files, model)
    if not lying.files.keys() & model.keys():
        return Outcome.FETCH, f"none of the {len(lying.files)} files in its folder are of the model{all_of_it}"
    return Outcome.ADOPT, str(match)


def _as_kserve_says(cache: Cache, known: Known, node: NodeName, answer: Answer | None) -> tuple[Outcome, str]:
    failure = answer.failure if answer is not None else None
    local = known.local_nodes.get(node)
    status = local.status if local is not None else {}
    details = (each for each in status.get("models") or () if each.get("name") == cache.key)
    if (detail := next(details, None)) is not None:
        reason = f" ({detail['reason']})" if detail.get("reason") else ""
        ready = detail.get("phase") == "Ready"
        said = "holds it" if ready else f"says {detail.get('phase')}{reason}"
        return Outcome.ADOPT if ready else Outcome.FETCH, f"a node agent of this cluster {said}"
    has = (status.get("modelStatus") or {}).get(cache.key) == ModelStatus.DOWNLOADED
    if has and answer is not None and answer.undigested:
        return Outcome.FETCH, _unbelieved(answer)
    unsure = "its source was not asked" if answer is None else ""
    unsure = f"its source does not answer now ({failure.reason})" if failure is not None else unsure
    if has:
        return Outcome.ADOPT, "; ".join(filter(None, ("KServe has downloaded it", unsure)))
    size = answer.size_bytes if answer is not None else None
    return Outcome.FETCH, say_bytes(size, up=True) if size is not None else unsure


def _unbelieved(answer: Answer) -> str:
    files = "one file" if answer.undigested == 1 else f"{answer.undigested} files"
    return f"{say_bytes(answer.size_bytes or 0, up=True)}: the source has no digest of {files}, to check what is there"


def notes(known: Known, answers: Mapping[StatusKey, Answer]) -> Iterator[str]:
    """What else a person should know before the switch."""
    for key in sorted(key for key, answer in answers.items() if answer.anonymous):
        yield (
            f"{key}: KServe downloads it without credentials, because those that it names are not there; here it is "
            "refused until they are, or are not named any more"
        )
    for cache in sorted(known.caches.values(), key=lambda each: each.key):
        if len(cache.ref.name) > LABEL_LENGTH:
            yield f"{cache.key}: its name is longer than {LABEL_LENGTH} characters, so no InferenceService can use it"
        if cache.deleted_at is None and not any(_group_of(cache, known, node) for node in known.nodes):
            yield f"{cache.key}: no node group that it names selects a node"
    for local in sorted(known.local_nodes.values(), key=lambda each: each.ref.name):
        if local.ref.name not in known.nodes:
            yield f"LocalModelNode {local.ref.name}: there is no such node; the object is deleted"
            continue
        gone = sorted(local.listed.keys() - known.caches.keys())
        if gone:
            yield f"LocalModelNode {local.ref.name} lists {', '.join(gone)}, which no longer exist; the entries go"


def summary(found: Iterable[Row]) -> str:
    """Such as `5 adopted, 1 fetched, 2 refused`."""
    counted = Counter(row.outcome for row in found)
    return ", ".join(f"{counted[outcome]} {outcome.value.removesuffix('e')}ed" for outcome in Outcome)


def _group_of(cache: Cache, known: Known, node: NodeName) -> NodeGroup | None:
    """The first group of the cache that selects the node; of one that selects nobody it cannot be said."""
    labels = known.nodes[node].labels
    for name in cache.node_groups:
        group = known.groups.get(name)
        if group is not None and group.selector is not None and group.selector.matches(node, labels):
            return group
    return None
