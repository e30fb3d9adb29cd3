"""The version before stays on the disk, and takes its place again without a byte from anywhere; each is whole."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from actors.agent.agent import NodeAgent
from actors.disk.handles import Folder
from actors.disk.marker import Marker
from actors.disk.versions import Version, surplus
from actors.manifest import Digest, ManifestFile, ModelSource, Resolved, StorageKey, make_manifest
from actors.messages import DesiredState, Phase
from coordinator.dev.origin.sample import REPO
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.agent_process import AgentProcess
from coordinator.dev.trial.versions import CHANGED, at_revision, disk_bytes, moved_bytes
from coordinator.dev.trial.waiting import eventually
from tests.kit import damage
from tests.kit.damage import names
from tests.kit.nodes import KEY, NOTHING, Node, a_removal, model, ordering, same_bytes, until, until_gone, wants
from tests.kit.path_watch import PathWatch

SAMPLE_BYTES = 4 << 20


def turn_to(agent: NodeAgent, resolved: Resolved, goal: DesiredState | None = None) -> float:
    """The node has this version. How many seconds that took."""
    started = time.monotonic()
    agent.reconcile(goal or wants(resolved))

    def there() -> bool:
        found = model(agent.report())
        return found is not None and found.phase is Phase.READY and found.revision == resolved.manifest.revision

    eventually(there, timeout_s=20, every_s=0.005, seen=agent.report)
    return time.monotonic() - started


def kept(node: Node) -> list[str]:
    return names(node.root / ".localmodel/versions")


def served(origin: Origin) -> int:
    return int(origin.stats()["bytes"])


def test_setting_the_revision_back_and_forth_reads_nothing(
    node: Node, origin: Origin, first: Resolved, second: Resolved, sample: Path, newer: Path
) -> None:
    agent = node.agent()
    for resolved in (first, second):
        turn_to(agent, resolved)
    before = served(origin)
    for resolved, expected in ((first, sample), (second, newer), (first, sample)):
        assert turn_to(agent, resolved) < 2
        assert same_bytes(node.folder(), expected)
        assert len(kept(node)) == 1
    found = model(agent.report())
    assert served(origin) == before
    assert found is not None
    assert (found.bytes_from_origin, found.bytes_reused) == (0, SAMPLE_BYTES)
    assert disk_bytes(node.root) < (SAMPLE_BYTES + moved_bytes(newer)) * 1.1
    assert agent.report().roots[0].aside_bytes == moved_bytes(newer)


def test_a_version_is_restored_by_another_agent_too(
    node: Node, origin: Origin, first: Resolved, second: Resolved, sample: Path
) -> None:
    agent = node.agent()
    for resolved in (first, second):
        turn_to(agent, resolved)
    agent.close()
    before = served(origin)
    turn_to(node.agent(), first)
    assert same_bytes(node.folder(), sample)
    assert served(origin) == before


def test_a_pod_reads_the_folder_that_it_has_to_the_end(
    node: Node, first: Resolved, second: Resolved, sample: Path, newer: Path
) -> None:
    agent = node.agent()
    turn_to(agent, first)
    with Folder.at(node.folder()) as old:
        turn_to(agent, second, replace(wants(second), used={KEY: 0.0}))
        with Folder.at(node.folder()) as new:
            turn_to(agent, first, replace(wants(first), used={KEY: 0.0}))
            assert new.read(CHANGED, SAMPLE_BYTES) == (newer / CHANGED).read_bytes()
        assert old.read(CHANGED, SAMPLE_BYTES) == (sample / CHANGED).read_bytes()


SPOILED: dict[str, Callable[[Path], None]] = {
    "a file is missing": lambda folder: damage.gone(folder / CHANGED),
    "a file is shorter": lambda folder: damage.cut(folder / CHANGED),
    "its marker is damaged": lambda folder: damage.flip(folder / ".localmodel/manifest.json"),
    "its marker is gone": lambda folder: damage.gone(folder / ".localmodel/manifest.json"),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_version_that_is_not_whole_is_made_anew(
    node: Node, origin: Origin, first: Resolved, second: Resolved, sample: Path, spoil: Callable[[Path], None]
) -> None:
    agent = node.agent()
    for resolved in (first, second):
        turn_to(agent, resolved)
    agent.close()
    spoil(node.root / ".localmodel/versions" / kept(node)[0])
    before = served(origin)
    turn_to(node.agent(), first)
    assert same_bytes(node.folder(), sample)
    assert served(origin) - before <= (sample / CHANGED).stat().st_size


def test_a_copy_that_was_damaged_when_it_was_replaced_is_not_kept(
    node: Node, first: Resolved, second: Resolved, newer: Path
) -> None:
    agent = node.agent()
    turn_to(agent, first)
    agent.close()
    damage.cut(node.folder() / CHANGED)
    turn_to(node.agent(), second)
    assert same_bytes(node.folder(), newer)
    assert kept(node) == []


def test_versions_go_with_their_model(node: Node, first: Resolved, second: Resolved) -> None:
    agent = node.agent()
    for resolved in (first, second):
        turn_to(agent, resolved)
    agent.reconcile(ordering(NOTHING, a_removal(KEY)))
    until_gone(agent)
    assert kept(node) == []
    eventually(lambda: node.left_behind() == [], timeout_s=10)


def test_versions_are_the_first_to_go_when_space_is_lacking(
    node: Node, first: Resolved, second: Resolved, origin: Origin
) -> None:
    agent = node.agent()
    for resolved in (first, second):
        turn_to(agent, resolved)
    with Origin({"localmodel/other": origin.repos[REPO].at(str(first.manifest.revision)).folder}) as elsewhere:
        other = at_revision(elsewhere, uri="hf://localmodel/other")
        limit = second.manifest.total_bytes + 1000
        theirs = wants(second, limit=limit)
        goal = replace(
            theirs,
            models=(*theirs.models, *wants(other).models),
            resolved={**theirs.resolved, other.name: other},
        )
        agent.reconcile(goal)
        until(agent, Phase.PENDING, reason="InsufficientStorage", key=goal.models[1].key)
    assert kept(node) == []


def test_a_path_never_leads_nowhere_nor_to_a_mix(
    node: Node, first: Resolved, second: Resolved, sample: Path, newer: Path
) -> None:
    """One marker names what all files of an open folder are; the folder by path is always there."""
    agent = node.agent()
    turn_to(agent, first)
    versions = {(sample / CHANGED).read_bytes(): False, (newer / CHANGED).read_bytes(): True}
    with PathWatch(node.folder(), versions) as watch:
        for resolved in (second, first, second, first):
            turn_to(agent, resolved)
    assert watch.seen > 20
    assert watch.wrong == []


@pytest.mark.slow
def test_an_agent_that_is_killed_leaves_one_version_whole(
    tmp_path: Path, node: Node, origin: Origin, first: Resolved, second: Resolved, sample: Path, newer: Path
) -> None:
    agent = node.agent()
    turn_to(agent, first)
    agent.close()
    rng, environment = random.Random(14), {"LOCALMODEL_HOST_ROOT": str(node.host_root), "LOCALMODEL_HEADROOM": "0"}
    folders = {str(first.manifest.revision): sample, str(second.manifest.revision): newer}
    for turn in range(8):
        resolved = (second, first)[turn % 2]
        with AgentProcess("node-1", environment) as process:
            process.reconcile(wants(resolved))
            time.sleep(rng.uniform(0, 0.15))  # where it dies is the point
            process.kill()
        assert any(same_bytes(node.folder(), each) for each in folders.values())
    last = node.agent()
    turn_to(last, second)
    assert same_bytes(node.folder(), newer)
    turn_to(last, first)
    assert same_bytes(node.folder(), sample)
    eventually(lambda: node.left_behind() == [], timeout_s=10)


# --- the parts ---

ONE, TWO = StorageKey("1" * 16), StorageKey("2" * 16)


def a_marker(digest: str) -> Marker:
    files = [ManifestFile("f", 100, Digest(f"sha256:{digest}"))]
    return Marker("owner", make_manifest(ModelSource("hf://a/b", digest), digest, files), {"f": "sha256"})


def a_version(name: str, key: StorageKey, digest: str, own: int = 10) -> Version:
    return Version(name, key, a_marker(digest), own)


SURPLUS: dict[str, tuple[list[Version], dict[StorageKey, Marker], list[str]]] = {
    "the one before stays": ([a_version("a", ONE, "aa")], {ONE: a_marker("bb")}, []),
    "older ones go": (
        [a_version("a", ONE, "aa"), a_version("b", ONE, "cc"), a_version("c", ONE, "dd")],
        {ONE: a_marker("bb")},
        ["b", "c"],
    ),
    "each model has its own": (
        [a_version("a", ONE, "aa"), a_version("b", TWO, "aa")],
        {ONE: a_marker("bb"), TWO: a_marker("cc")},
        [],
    ),
    "one whose model is gone goes": ([a_version("a", ONE, "aa")], {TWO: a_marker("bb")}, ["a"]),
    "one that is the copy goes": ([a_version("a", ONE, "aa")], {ONE: a_marker("aa")}, ["a"]),
    "one that shares half stays": ([a_version("a", ONE, "aa", 50)], {ONE: a_marker("bb")}, []),
    "one that is asked for and not in place stays, whatever it takes": (
        [a_version("a", ONE, "wanted", 100)],
        {ONE: a_marker("bb")},
        [],
    ),
    "one that is asked for counts for none": (
        [a_version("a", ONE, "wanted"), a_version("b", ONE, "aa")],
        {ONE: a_marker("bb")},
        [],
    ),
    "one that is asked for and in place goes": ([a_version("a", ONE, "wanted")], {ONE: a_marker("wanted")}, ["a"]),
    "as many stay as are asked for": (
        [a_version("a", TWO, "aa", 100), a_version("b", TWO, "cc", 100), a_version("c", TWO, "dd")],
        {TWO: a_marker("bb")},
        ["c"],
    ),
    "one that shares less goes": ([a_version("a", ONE, "aa", 51)], {ONE: a_marker("bb")}, ["a"]),
}


@pytest.mark.parametrize(("versions", "present", "expected"), SURPLUS.values(), ids=SURPLUS)
def test_one_version_of_each_model_stays(
    versions: list[Version], present: dict[StorageKey, Marker], expected: list[str]
) -> None:
    found = surplus(versions, present, {TWO: 2}, lambda each: each.marker.manifest.revision == "wanted")
    assert [each.name for each in found] == expected
