"""A fleet without agents: nodes that hold versions and do what they are told, when a test delivers it to them.

A desired state is delivered late, or never; a report is as old as the last delivery. So a plan sees what a coordinator
sees of agents that are slow, silent, or starting anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from actors.manifest import Digest, Location, ManifestFile, ModelSource, Resolved, make_manifest, storage_key
from actors.messages import DesiredModel, DesiredState, Earlier, ModelReport, NodeName, Phase
from coordinator.api.resources import StatusKey
from coordinator.dev.trial.builders import GIB, NOW, CacheBuilder, World, a_group, a_node, a_silent_agent, a_world
from coordinator.plan.plan import Plan, plan
from coordinator.plan.snapshot import Resolution


def a_version(source: ModelSource, number: int) -> Resolved:
    """Of one file that has another digest in every version."""
    digest = Digest(f"sha256:{number:064x}")
    manifest = make_manifest(source, f"{number:040x}", [ManifestFile("w.bin", GIB, digest)])
    return Resolved(manifest, (Location(f"https://hub/{number}/w.bin"),))


@dataclass
class Disk:
    """One node. `fetches`: how many deliveries a version takes until it is there."""

    source: ModelSource
    fetches: int = 0
    place: Earlier | None = None
    beside: list[Earlier] = field(default_factory=list)
    left: dict[str, int] = field(default_factory=dict)
    served: list[str] = field(default_factory=list)

    def take(self, model: DesiredModel, wanted: Earlier | None) -> ModelReport:
        """It does what it can now, and says what is there."""
        version = wanted or next(iter(versions_of(self, model)), None)
        if version is None:
            return self._report(model)
        if self.place is not None and self.place.manifest_digest == version.manifest_digest:
            self.place = replace(self.place, selection=version.selection)
            return self._report(model)
        known = next((each for each in self.beside if each.manifest_digest == version.manifest_digest), None)
        if known is None and not self._fetched(version):
            return self._report(model)
        if model.hold and self.place is not None:
            if known is None:
                self.beside.insert(0, version)
            return self._report(model, prefetched=True)
        self.beside = [each for each in self.beside if each is not known]
        if self.place is not None:
            self.beside.insert(0, self.place)
        self.place, self.beside = version, self.beside[: 1 if model.keep is None else model.keep]
        return self._report(model)

    def _fetched(self, version: Earlier) -> bool:
        name = version.manifest_digest or ""
        self.left[name] = self.left.get(name, self.fetches) - 1
        return self.left[name] < 0

    def _report(self, model: DesiredModel, *, prefetched: bool = False) -> ModelReport:
        place, key, selection = self.place, storage_key(self.source.uri), model.source.selection
        beside = tuple(self.beside)
        fits = place is not None and place.selection == selection and model.version in ("", place.manifest_digest)
        if place is not None and fits:
            self.served.append(place.revision or "")
            return ModelReport(
                key, Phase.READY, selection, bytes_total=GIB, bytes_done=GIB, beside=beside, root="/models",
                manifest_digest=place.manifest_digest, revision=place.revision, started_at=NOW, finished_at=NOW,
            )  # fmt: skip
        coming = self.beside[0] if prefetched else None
        phase = Phase.PENDING if prefetched else Phase.DOWNLOADING
        return ModelReport(
            key, phase, selection, earlier=place, beside=beside, prefetched=prefetched, root="/models",
            manifest_digest=coming.manifest_digest if coming else None, revision=coming.revision if coming else None,
        )  # fmt: skip


def versions_of(disk: Disk, model: DesiredModel) -> Iterator[Earlier]:
    """The versions that answer the request, as far as is known without the source."""
    for each in (disk.place, *disk.beside):
        if each is not None and each.selection == model.source.selection:
            yield each


class Fleet:
    """`coordinator` plans, remembers what a controller would, and may be killed."""

    def __init__(
        self, cache: CacheBuilder, nodes: int, *, fetches: int = 0, groups: tuple[str, ...] = ("gpu",)
    ) -> None:
        self.cache = cache
        names = [NodeName(f"n{index + 1}") for index in range(nodes)]
        of_pool = {name: groups[index % len(groups)] for index, name in enumerate(names)}
        self.world: World = a_world(cache, *map(a_group, groups), *(a_node(n).in_pool(of_pool[n]) for n in names))
        cache.in_group(*groups)
        self.disks = {name: Disk(cache.source, fetches) for name in names}
        self.sent: dict[NodeName, DesiredState] = {}
        self.silent = set[NodeName]()
        self.now, self.acting_since = NOW, 0.0
        self.cutting_over: dict[StatusKey, frozenset[NodeName]] = {}
        self.latest, self.most_let = 1, 0
        self.last: Plan | None = None
        self.broken: Resolution | None = None

    def resolve(self, refresh: str = "", *, pinned: str | None = None) -> None:
        """The source answers what it has now, or the commit that is asked for."""
        if self.broken is not None:
            self.world.resolutions[self.cache.key] = self.broken
            return
        number = int(pinned, 16) if pinned and not refresh else self.latest
        revision = self.cache.source.revision
        if revision is not None and revision.isdecimal():
            number = int(revision)
        resolved = a_version(self.cache.source, number)
        self.world.resolutions[self.cache.key] = Resolution(resolved, refresh=refresh)

    def tick(self, *delivered: NodeName) -> Plan:
        """One plan: its writes are made, its questions answered, and these nodes (default: all) hear it."""
        snapshot = replace(
            self.world.snapshot(), cutting_over=self.cutting_over, acting_since=self.acting_since, secret=b"rolling"
        )
        made = self.last = plan(snapshot, self.now)
        self.cutting_over = dict(made.cutting_over)
        for write in made.writes:
            self.world.carry_out(write)
        if (want := made.wants.get(self.cache.key)) is not None:
            self.resolve(want.refresh, pinned=want.pinned_revision)
        self.sent |= made.desired
        self.most_let = max(self.most_let, len(self.let()))
        for name in delivered or self.disks:
            self.deliver(name)
        self.now += 1.0
        return made

    def deliver(self, name: NodeName) -> None:
        """The node hears what was said last, and its answer is heard."""
        if name in self.silent:
            last = self.world.agents.get(name)
            self.world.agents[name] = a_silent_agent(last=last)
            return
        state, disk = self.sent.get(name), self.disks[name]
        if state is None:
            self.world.reporting(name)
            return
        reports = [disk.take(model, self._content(model)) for model in state.models]
        self.world.reporting(name, *reports)

    def _content(self, model: DesiredModel) -> Earlier | None:
        resolved = self.world.resolutions.get(self.cache.key)
        if model.resolved is None or resolved is None or resolved.resolved is None:
            return None
        manifest = resolved.resolved.manifest
        if manifest.source.selection != model.source.selection or resolved.resolved.name != model.resolved:
            return None
        return Earlier(manifest.source.selection, manifest.revision, manifest.digest, GIB, NOW)

    def restart(self) -> None:
        """Another coordinator acts, which knows nothing of what this one has told."""
        self.cutting_over, self.acting_since = {}, self.now
        self.world.resolutions.clear()

    def until(self, revision: int, ticks: int = 60) -> int:
        """Ticks until every node that is heard serves it; how many."""
        name = f"{revision:040x}"
        for count in range(ticks):
            if all(disk.place is not None and disk.place.revision == name for disk in self.disks.values()):
                return count
            self.tick()
        raise AssertionError(f"not after {ticks} ticks: {self.status.get('versions')}, {self.status['conditions']}")

    @property
    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.cache.json.get("status", {})
        return status

    def serving(self) -> dict[str, int]:
        """By the number of the version, how many nodes have it in place."""
        found: dict[str, int] = {}
        for disk in self.disks.values():
            if disk.place is not None:
                number = str(int(disk.place.revision or "0", 16))
                found[number] = found.get(number, 0) + 1
        return found

    def let(self) -> set[NodeName]:
        """The nodes that were last told that they may leave what they serve, and have not yet."""
        found = set()
        for name, state in self.sent.items():
            for model in state.models:
                place, wanted = self.disks[name].place, self._content(model)
                if not model.hold and place is not None and wanted and wanted.manifest_digest != place.manifest_digest:
                    found.add(name)
        return found
