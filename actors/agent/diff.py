"""What a node agent does next, decided from what should be, what is there, and what is under way. Pure."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass

from actors.disk.marker import Marker
from actors.messages import DesiredModel, DesiredState, Place


@dataclass(frozen=True, slots=True)
class Active:
    """Something under way at a place. `waiting`: nothing runs; it may start again if it is `due`."""

    selection: str
    resolved: str | None = None
    waiting: bool = False
    due: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    place: Place
    model: DesiredModel


@dataclass(frozen=True, slots=True)
class Cancel:
    place: Place


Action = Start | Cancel


def diff(
    desired: DesiredState,
    present: Mapping[Place, Marker],
    active: Mapping[Place, Active],
    damaged: Container[Place] = frozenset(),
    prefetched: Container[Place] = frozenset(),
) -> list[Action]:
    """Every step that is due; starts come last, the most important first. None of what is under way is started again.

    A copy that is not asked for is left alone: only an order removes it (`DesiredState.remove`). One that is asked for
    differently stays until its replacement is committed, and one that is damaged until it is repaired. `prefetched`:
    where what is asked for lies beside the copy that is there.
    """
    wanted = {model.place: model for model in desired.models}
    held = {
        place
        for place, model in wanted.items()
        if place in present and place not in damaged
        if model.kept or satisfies(present[place], model) or (model.hold and place in prefetched)
    }
    cancels = [
        Cancel(place)
        for place, task in sorted(active.items(), key=lambda item: item[0])
        if _must_end(task, wanted.get(place), held=place in held, damaged=place in damaged)
    ]
    starts = [
        Start(place, model)
        for place, model in sorted(wanted.items(), key=lambda item: (-item[1].priority, item[0]))
        if place not in held and _may_start(model, active.get(place))
        if not model.kept or (place in damaged and satisfies(present[place], model))
    ]
    return [*cancels, *starts]


def _must_end(task: Active, model: DesiredModel | None, *, held: bool, damaged: bool) -> bool:
    """Whether it fills what is not, or no longer, asked for."""
    if model is None or model.source.selection != task.selection:
        return True
    return (task.waiting and held) or (model.kept and not damaged)


def satisfies(marker: Marker, model: DesiredModel) -> bool:
    """Whether a copy is what is asked for. A newer resolution of the same request alone does not make it stale."""
    manifest = marker.manifest
    if manifest.source.selection != model.source.selection or model.expected_digest not in (None, manifest.digest):
        return False
    return not model.version or model.version in (manifest.digest, manifest.revision)


def _may_start(model: DesiredModel, task: Active | None) -> bool:
    """Not while it runs. After a failure when its time has come, or at once with a fresh resolution."""
    if task is None:
        return True
    if task.selection != model.source.selection or not task.waiting:
        return False
    return task.due or (model.resolved is not None and model.resolved != task.resolved)
