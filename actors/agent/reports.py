"""What a node agent says: of every copy and every model on its way, of its roots, of what it was asked about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

from actors.agent.diff import satisfies
from actors.agent.roots import Root
from actors.agent.state import State
from actors.disk.marker import Marker
from actors.errors import StoreError
from actors.manifest import Manifest, StorageKey
from actors.messages import DesiredModel, Earlier, ModelReport, Phase, Place, RootReport
from actors.peers.exchange import Exchange
from actors.scrub.record import Record, describe

NAMED_JUNK = 20
"""How many things that are not ours a report names."""


def models(state: State, exchange: Exchange) -> Iterator[ModelReport]:
    """Copies that leave come first, then unwanted ones: the last word on a key is of the copy that is wanted."""
    for place, marker in state.removing.items():
        yield replace(of_copy(place.key, marker, Phase.REMOVING), root=place.root)
    yield from _copies(state, exchange)
    for place, task in state.tasks.items():
        damage, copy = state.roots.damage(place), state.roots.copy(place)
        if damage and copy is not None and copy.manifest.source == task.model.source:
            yield replace(of_repair(task.report(), copy, damage), root=place.root)
        else:  # a first fill, or another request, which replaces the copy whatever state that is in
            yield replace(task.report(), earlier=_earlier(state, place, task.model), root=place.root)
    yield from _prefetched(state)


def with_versions(state: State, reports: Iterator[ModelReport]) -> Iterator[ModelReport]:
    """The same, each with the versions that lie beside the copy."""
    beside: dict[tuple[str, StorageKey], list[Earlier]] = {}
    for root in state.roots.values():
        for version in root.beside.versions:
            beside.setdefault((root.name, version.key), []).append(_version(version.marker))
    for report in reports:
        found = beside.get((report.root, report.key))
        yield report if found is None else replace(report, beside=tuple(found))


def roots(state: State) -> Iterator[RootReport]:
    """Every root of the settings, and what is wrong with each that the coordinator names and that is none of them."""
    for root in state.roots.values():
        yield _root(root, sum(task.reserved_bytes for task in state.tasks_in(root.name)))
    for each in state.goal.desired.roots if state.goal.desired is not None else ():
        if each.path not in state.roots:
            yield RootReport(each.path, failure=state.roots.mismatch(each.path))


def manifests(state: State) -> dict[StorageKey, Manifest]:
    """Of the committed models that the coordinator asks about."""
    asked = state.goal.desired.manifests if state.goal.desired is not None else frozenset()
    if not asked:
        return {}
    return {place.key: marker.manifest for place, marker in state.roots.present() if place.key in asked}


def _copies(state: State, exchange: Exchange) -> Iterator[ModelReport]:
    goal = state.goal
    for place, marker in sorted(state.roots.present(), key=lambda item: item[0] in goal.models):
        model = goal.models.get(place)
        if model is None and goal.desired is not None and marker.owner != goal.desired.owner:
            continue
        if place not in state.tasks and (model is None or model.kept or satisfies(marker, model)):
            said = of_copy(place.key, marker, Phase.READY, state.roots[place.root].record(place.key))
            yield replace(said, part=exchange.part(goal.fill_at(place)), root=place.root)


def _prefetched(state: State) -> Iterator[ModelReport]:
    for place, marker in state.prefetched():
        model, copy = state.goal.models[place], state.roots.copy(place)
        if place in state.tasks or (copy is not None and satisfies(copy, model)):
            continue
        said = replace(of_copy(place.key, marker, Phase.PENDING), selection=model.source.selection)
        yield replace(said, earlier=_earlier(state, place, model), root=place.root, prefetched=True)


def _earlier(state: State, place: Place, model: DesiredModel) -> Earlier | None:
    """The copy that is served until what is asked for now is committed. One of this request with a wrong digest is not.

    Of another request it is another version, whose digest was right when it was committed.
    """
    marker = state.roots.copy(place)
    if marker is None or state.roots.damage(place):
        return None
    same = marker.manifest.source.selection == model.source.selection
    if same and model.expected_digest not in (None, marker.manifest.digest):
        return None
    return _version(marker)


def _version(marker: Marker) -> Earlier:
    manifest = marker.manifest
    size, digest = manifest.total_bytes, manifest.digest
    return Earlier(manifest.source.selection, manifest.revision, digest, size, marker.finished_at)


def _root(root: Root, reserved_bytes: int) -> RootReport:
    free, failure = 0, root.failure
    try:
        free = root.store.free_bytes() if root.store is not None else 0
    except StoreError as error:
        failure = error.failure()
    junk = [f"{path}: {why}" for path, why in sorted((root.store.junk if root.store else {}).items())]
    used, aside = root.used_bytes(), root.aside_bytes()
    return RootReport(root.name, free, used, reserved_bytes, failure, aside, tuple(junk[:NAMED_JUNK]))


def of_copy(key: StorageKey, marker: Marker, phase: Phase, record: Record | None = None) -> ModelReport:
    """Nothing is under way at it. A damaged one is Failed."""
    manifest = marker.manifest
    report = ModelReport(
        key=key,
        phase=phase,
        selection=manifest.source.selection,
        bytes_total=manifest.total_bytes,
        bytes_done=manifest.total_bytes,
        **marker.moved.numbers,
        manifest_digest=manifest.digest,
        revision=manifest.revision,
        verified=Counter(marker.verified.values()),
        started_at=marker.started_at,
        finished_at=marker.finished_at,
    )
    if record is None:
        return report
    report = replace(report, verified_at=record.verified_at, repaired=record.repaired, repaired_at=record.repaired_at)
    return of_repair(replace(report, phase=Phase.FAILED), marker, record.damage) if record.damage else report


def of_repair(report: ModelReport, marker: Marker, damage: Mapping[str, str]) -> ModelReport:
    """The report, with the damage of this copy and how far its repair is."""
    report = replace(report, damage=describe(damage))
    if report.attempt:
        return report
    total = marker.manifest.total_bytes
    lost = sum(file.size for file in marker.manifest.files if file.path in damage)
    return replace(report, bytes_total=total, bytes_done=total - lost)
