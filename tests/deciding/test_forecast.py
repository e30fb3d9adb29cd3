"""What would happen: against an oracle that tries everything, on generated worlds, and by name."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, replace
from typing import Any

import pytest

from actors.manifest import storage_key
from actors.messages import Phase, RootReport
from actors.times import rfc3339
from coordinator.dev.trial.builders import GIB, NOW, World, a_cache, a_group, a_node, a_report, a_world
from coordinator.plan.applied import NotApplicable, applied, by_kind, snapshot_of
from coordinator.plan.forecast import HEADROOM_BYTES, Assumed, Forecast, Verdict, forecast
from coordinator.view.forecasts import lines

IDLE_S = 3600.0


def foreseen(world: World, *manifests: Any, evict: bool = False, pods: bool = True, **assumed: Any) -> Forecast:
    before = by_kind(each.json for each in world.objects)
    if pods:
        before.setdefault("Pod", [])
    after = applied(before, [each.json if hasattr(each, "json") else each for each in manifests], NOW)
    return forecast(snapshot_of(before, after, NOW, IDLE_S if evict else None), NOW, Assumed(**assumed))


# --- an oracle ---


@dataclass(frozen=True)
class Copy:
    name: str
    size: int
    priority: int
    unused_s: float | None
    pinned: bool

    @property
    def uri(self) -> str:
        return f"hf://a/{self.name}"


@dataclass(frozen=True)
class Disk:
    free: int
    copies: tuple[Copy, ...]

    @property
    def used(self) -> int:
        return sum(copy.size for copy in self.copies)


def generated(seed: int) -> tuple[World, int, dict[str, Disk], list[Copy], bool]:
    """A world of one to three nodes, what is on their disks, and what is to be applied."""
    rng = random.Random(seed)
    evict = seed % 2 == 0
    limit = rng.randint(4, 24) * GIB
    known = [
        Copy(
            f"old-{number}",
            rng.randint(1, 6) * GIB,
            rng.randint(-1, 2),
            rng.choice([None, 60.0, 7200.0, 9000.0 + number]),
            rng.random() < 0.15,
        )
        for number in range(rng.randint(0, 6))
    ]
    new = [
        Copy(f"new-{number}", rng.randint(1, 10) * GIB, rng.randint(-1, 2), None, False)
        for number in range(1 if evict else rng.randint(1, 3))
    ]
    disks = {}
    for node in range(rng.randint(1, 3)):
        disks[f"n{node}"] = Disk(rng.randint(0, 16) * GIB, tuple(copy for copy in known if rng.random() < 0.7))
    world = a_world()
    for copy in known:
        groups = [f"of-{name}" for name, disk in disks.items() if copy in disk.copies]
        if groups:
            cache = a_cache(copy.name, copy.uri).in_group(*groups)
            world.add(cache.with_spec(modelSize=copy.size, priority=copy.priority, pinned=copy.pinned))
    for name in disks:
        world.add(a_group(f"of-{name}").labelled("own", name).with_spec(storageLimit=limit))
    for name, disk in disks.items():
        world.add(a_node(name).labelled(own=name))
        reports = [
            replace(a_report(a_cache(copy.name, copy.uri), total=copy.size), finished_at=NOW - 20_000)
            for copy in disk.copies
        ]
        world.reporting(name, *reports, roots=(RootReport("/models", disk.free, disk.used),))
    world.settle()
    for copy in known:
        cache_object = world.find("LocalModelCache", copy.name)
        if cache_object is None:
            continue
        if copy.unused_s is not None:
            cache_object.setdefault("status", {})["unusedSince"] = rfc3339(NOW - copy.unused_s)
        else:
            cache_object.setdefault("status", {})["inferenceServices"] = [{"name": "x", "namespace": "y"}]
    return world, limit, disks, new, evict


def wanted(new: list[Copy], disks: dict[str, Disk]) -> list[Any]:
    groups = [f"of-{name}" for name in disks]
    return [
        a_cache(copy.name, copy.uri).in_group(*groups).with_spec(modelSize=copy.size, priority=copy.priority)
        for copy in new
    ]


def the_oracle(disk: Disk, limit: int, new: list[Copy], evict: bool) -> dict[str, tuple[str, frozenset[str]]]:
    """By new model: whether it fits, and what goes for it, tried out from the numbers alone."""
    found: dict[str, tuple[str, frozenset[str]]] = {}
    promised = 0
    refused: list[tuple[Copy, bool]] = []
    for copy in sorted(new, key=lambda each: (-each.priority, storage_key(each.uri))):
        by_limit = disk.used + promised + copy.size - limit
        by_disk = copy.size - (disk.free - HEADROOM_BYTES - promised)
        chance = copy.size <= min(limit, disk.free - HEADROOM_BYTES + disk.used)
        behind = any(each.priority > copy.priority and could for each, could in refused)
        if max(by_limit, by_disk) <= 0 and not behind:
            promised += copy.size
            found[copy.name] = "fits", frozenset()
            continue
        refused.append((copy, chance))
        going = brute_force(disk, copy, max(by_limit, by_disk)) if evict and chance else None
        found[copy.name] = ("evicts", going) if going else ("no room", frozenset())
    return found


def brute_force(disk: Disk, new: Copy, lacking: int) -> frozenset[str] | None:
    """All subsets of the first that are enough: the one that spares the last ones."""
    may_go = sorted(
        (
            copy
            for copy in disk.copies
            if copy.unused_s is not None
            and copy.unused_s >= IDLE_S
            and not copy.pinned
            and copy.priority <= new.priority
        ),
        key=lambda copy: (copy.priority, -min(copy.unused_s or 0.0, 20_000), storage_key(copy.uri)),
    )
    for length in range(1, len(may_go) + 1):
        prefix = may_go[:length]
        enough = [
            chosen
            for chosen in itertools.product((False, True), repeat=length)
            if sum(copy.size for copy, goes in zip(prefix, chosen, strict=True) if goes) >= lacking
        ]
        if enough:
            best = min(enough, key=lambda chosen: chosen[::-1])
            return frozenset(copy.name for copy, goes in zip(prefix, best, strict=True) if goes)
    return None


@pytest.mark.slow
def test_fits_and_evictions_are_those_of_a_brute_force_oracle_on_500_worlds() -> None:
    outcomes: dict[str, int] = {}
    for seed in range(500):
        world, limit, disks, new, evict = generated(seed)
        manifests = wanted(new, disks)
        found = foreseen(world, *manifests, evict=evict)
        for node, disk in disks.items():
            expected = the_oracle(disk, limit, new, evict)
            for copy in new:
                (item,) = [each for each in found.items if (each.node, each.caches) == (node, (copy.name,))]
                of_node = [each for each in found.evictions if each.node == node]
                going = frozenset(str(each.caches[0]) for each in of_node if each.for_caches == (copy.name,))
                verdict = {Verdict.FETCHED: "fits", Verdict.MAKES_ROOM: "evicts"}.get(item.verdict, "no room")
                assert (verdict, going) == expected[copy.name], f"seed {seed}, {node}, {copy}"
                outcomes[verdict] = outcomes.get(verdict, 0) + 1
    assert min(outcomes["fits"], outcomes["evicts"], outcomes["no room"]) > 40, outcomes


# --- by name ---


def a_full_world(nodes: int = 3, zones: int = 1, holding: int = 0) -> World:
    """`llama` on the first nodes, and room on all."""
    llama = a_cache("llama").with_spec(modelSize="10Gi")
    world = a_world(a_group(), llama).resolved(llama, 10 * GIB)
    for number in range(nodes):
        label = {"topology.kubernetes.io/zone": f"z{number % zones}"}
        world.add(a_node(f"n{number}").labelled(**label))
        reports = [a_report(llama, total=10 * GIB)] if number < holding else []
        world.reporting(f"n{number}", *reports, roots=(RootReport("/models", 80 * GIB, 10 * GIB * len(reports)),))
    world.settle()
    return world


def test_a_new_model_is_read_once_and_shared() -> None:
    found = foreseen(a_full_world(4, zones=2), a_cache("new").with_spec(modelSize="8Gi"))
    fetched = [item for item in found.items if item.caches == ("new",)]

    assert {item.verdict for item in fetched} == {Verdict.FETCHED}
    # llama is fetched, too: nobody holds it yet
    assert (found.moving.origin_bytes, found.moving.peer_bytes) == (18 * GIB, 3 * 18 * GIB)
    assert found.moving.zone_bytes == 18 * GIB
    assert found.harmless


def test_nodes_that_hold_it_give_it_to_the_others() -> None:
    found = foreseen(a_full_world(4, zones=2, holding=1))

    assert (found.moving.origin_bytes, found.moving.peer_bytes, found.moving.zone_bytes) == (0, 30 * GIB, 10 * GIB)


def test_a_new_revision_is_fetched_beside_the_old_copy() -> None:
    world = a_full_world(2, holding=2)
    found = foreseen(world, a_cache("llama").with_spec(modelSize="10Gi", revision="v2"))

    assert {item.verdict for item in found.items} == {Verdict.REFETCHED}
    assert found.harmless


def test_the_same_again_changes_nothing() -> None:
    found = foreseen(a_full_world(2, holding=2), a_cache("llama").with_spec(modelSize="10Gi"))

    assert {item.verdict for item in found.items} == {Verdict.KEPT}
    assert (found.moving.origin_bytes, found.moving.peer_bytes, dict(found.moving.seconds)) == (0, 0, {})
    assert found.moment(1.0) is None


def test_a_cache_that_leaves_a_group_loses_its_copies() -> None:
    world = a_full_world(2, holding=2).add(a_group("cpu"))
    found = foreseen(world, a_cache("llama").in_group("cpu").with_spec(modelSize="10Gi"))

    assert [(gone.node, gone.reason) for gone in found.lost] == [
        ("n0", "NodeGroupsChanged"),
        ("n1", "NodeGroupsChanged"),
    ]
    assert not found.harmless


def test_a_node_whose_disk_nobody_reported_is_not_known() -> None:
    world = a_world(a_group(), a_node("n1"))
    (item,) = foreseen(world, a_cache("new")).items

    assert (item.verdict, item.why) == (Verdict.UNKNOWN, "nobody has reported the disk of n1")


def test_what_is_under_way_is_not_asked_about_again() -> None:
    world = a_full_world(1)
    world.reporting(
        "n0",
        a_report(a_cache("llama"), Phase.DOWNLOADING, total=10 * GIB, done=GIB),
        roots=(RootReport("/models", 80 * GIB, 0, 10 * GIB),),
    ).settle()
    (item,) = foreseen(world).items

    assert item.verdict is Verdict.ARRIVING


def test_time_is_of_the_slower_of_link_and_origin() -> None:
    world = a_full_world(3)
    slow = foreseen(world, link_bytes_per_s=float(GIB), origin_bytes_per_s=float(GIB // 4))
    fast = foreseen(world, link_bytes_per_s=float(GIB), origin_bytes_per_s=float(4 * GIB))

    assert (slow.moment(0), slow.moment(1)) == (40.0, 40.0)
    assert (fast.moment(0), fast.moment(1)) == (10.0, 10.0)


def test_links_are_those_that_were_measured() -> None:
    world = a_full_world(3, holding=1)
    found = foreseen(world)

    assert dict(found.moving.links) == {"n0": pytest.approx(10 * GIB / 50)}
    assert found.moment(1) == pytest.approx(50.0)


def test_a_fill_of_a_second_says_nothing_of_a_link() -> None:
    world = a_full_world(2, holding=1)
    report = world.agents["n0"].report
    assert report is not None
    quick = replace(report.models[0], started_at=NOW - 11, finished_at=NOW - 10)
    world.reporting("n0", quick, roots=report.roots).settle()

    assert dict(foreseen(world).moving.links) == {}


def test_without_pods_nothing_is_evicted_since_anything_may_be_open() -> None:
    for seed in range(0, 60, 2):
        world, _, disks, new, _ = generated(seed)
        manifests = wanted(new, disks)
        assert foreseen(world, *manifests, evict=True, pods=False).evictions == ()


def test_nothing_of_the_world_is_changed() -> None:
    world = a_full_world(2, holding=1)
    before = repr([each.json for each in world.objects])
    foreseen(world, a_cache("llama").with_spec(revision="v2"), a_cache("new"))

    assert repr([each.json for each in world.objects]) == before


@pytest.mark.parametrize(
    ("manifest", "why"),
    [
        ({"kind": "Deployment", "metadata": {"name": "x"}}, "Deployment cannot be planned"),
        ({"kind": "LocalModelCache"}, "without metadata.name"),
        ("text", "it has no kind"),
        ({"metadata": {}}, "it has no kind"),
        (a_cache("llama", "hf://another/model").json, "sourceModelUri is immutable"),
    ],
)
def test_what_cannot_be_applied_is_said(manifest: Any, why: str) -> None:
    with pytest.raises(NotApplicable, match=why):
        foreseen(a_full_world(), manifest)


def test_the_lines_say_what_is_wrong_first_and_what_was_assumed() -> None:
    world = a_full_world(2, holding=1)
    text = list(lines(foreseen(world, a_cache("huge").with_spec(modelSize="900Gi")), Assumed()))

    assert text[0].startswith("huge on n0: does not fit: needs 900Gi in /models, 100Gi allowed for group gpu")
    assert "llama on n1: fetched (10Gi, 80Gi free)" in text
    assert text[-1] == "2 does not fit, 1 fetched, 1 kept; 0 evicted, 0 removed; nothing was written"
    assert any(line.startswith("assumed: links as measured in earlier fills of 1 nodes") for line in text)
