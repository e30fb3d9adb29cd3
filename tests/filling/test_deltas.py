"""Several real node agents that hold one version of a model and fill the next: of a changed file, chunks that are on a
node's disk already come from there.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from actors.manifest import Resolved
from actors.messages import Audience, DesiredState, Member, ModelReport
from coordinator.dev.origin.sample import REPO
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.versions import CHANGED, at_revision, changed_chunk_bytes, flip, moved_bytes
from coordinator.dev.trial.waiting import eventually
from tests.filling.test_together import Impostor
from tests.kit.nodes import same_bytes
from tests.kit.peers import MIB, Peer, a_company, all_ready, running, wants

pytestmark = pytest.mark.slow

SAMPLE_BYTES = 16 * MIB
CHUNK = 256 << 10
URI = f"hf://{REPO}"
OTHER = "hf://localmodel/other"


@pytest.fixture
def second(origin: Origin, resolved: Resolved, newer: Path) -> Resolved:
    """The version after `resolved`."""
    return at_revision(origin, origin.repos[REPO].push(newer))


@pytest.fixture
def peers(tmp_path: Path, resolved: Resolved) -> Iterator[list[Peer]]:
    """Three nodes that hold the first version."""
    found = [Peer(tmp_path / f"node-{number}", f"node-{number}") for number in range(3)]
    with running(*found):
        company = replace(a_company([peer.member() for peer in found]), fill="fill-0")
        tell(found, wants(resolved, company, URI))
        all_ready(found, URI)
        yield found


def tell(peers: list[Peer], goal: DesiredState) -> None:
    for peer in peers:
        peer.agent.reconcile(goal)


def revised(peers: list[Peer], resolved: Resolved, members: list[Member] | None = None) -> list[ModelReport]:
    """The reports, once these hold this version."""
    company = a_company(members or [peer.member() for peer in peers])
    tell(peers, wants(resolved, company, URI))
    return arrived(peers, resolved, URI)


def arrived(peers: list[Peer], resolved: Resolved, uri: str) -> list[ModelReport]:
    def there() -> list[ModelReport] | None:
        found = all_ready(peers, uri)
        return found if all(each.revision == resolved.manifest.revision for each in found) else None

    found = eventually(there, timeout_s=30, every_s=0.02)
    assert found is not None
    return found


def test_of_a_changed_file_a_node_takes_only_the_chunks_that_it_has_not(
    peers: list[Peer], origin: Origin, second: Resolved, sample: Path, newer: Path
) -> None:
    before = int(origin.stats()["bytes"])
    reports = revised(peers, second)
    assert all(same_bytes(peer.folder(URI), newer) for peer in peers)
    assert int(origin.stats()["bytes"]) - before == moved_bytes(newer), "each changed file once"
    moved = changed_chunk_bytes(sample, newer, CHUNK)
    assert sum(report.bytes_from_peers for report in reports) <= (len(peers) - 1) * moved
    for report in reports:
        assert report.bytes_from_origin + report.bytes_from_peers + report.bytes_reused == report.bytes_total


def test_of_a_copy_that_is_there_already_a_node_takes_only_the_chunks_that_it_has_not(
    peers: list[Peer], origin: Origin, resolved: Resolved, sample: Path, tmp_path: Path
) -> None:
    """Nodes turn one after the other, and all behind the header of one file has moved."""
    longer = shutil.copytree(sample, tmp_path / "longer")
    content = (sample / CHANGED).read_bytes()
    (longer / CHANGED).write_bytes(content[:1000] + b"forty bytes more in what comes before it." + content[1000:])
    second = at_revision(origin, origin.repos[REPO].push(longer))
    first, *others = peers
    tell([first], wants(second, None, URI))
    arrived([first], second, URI)
    before = int(origin.stats()["bytes"])
    members = [first.member(owns=False, seed=True), *(peer.member() for peer in others)]
    tell(peers, wants(second, a_company(members), URI))
    reports = arrived(others, second, URI)
    assert all(same_bytes(peer.folder(URI), longer) for peer in peers)
    assert int(origin.stats()["bytes"]) == before
    assert [report.bytes_from_peers for report in reports] == [CHUNK] * len(others), "the first chunk of the file"


def test_an_old_copy_that_rots_is_left_as_it_is_and_its_chunks_come_from_peers(
    peers: list[Peer], origin: Origin, second: Resolved, newer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has rotted in a place before, and all do between two reads of the same chunk."""
    rotten = peers[0].folder(URI) / CHANGED
    flip(rotten, 100)
    rotten.chmod(0o444)
    content = rotten.read_bytes()
    copied = Counter[int]()

    def copy(taken: int, start: int, made: int, position: int, size: int) -> bool:
        copied[position] += 1
        return os.pwrite(made, bytes(size), position) == size

    monkeypatch.setattr("actors.fill.files.copy_range", copy)
    before = int(origin.stats()["bytes"])
    with rotten.open("rb") as reading:
        reports = revised(peers, second)
        assert reading.read() == content
    assert all(same_bytes(peer.folder(URI), newer) for peer in peers)
    assert copied
    assert int(origin.stats()["bytes"]) - before == moved_bytes(newer), "no file had to be read again"
    assert {name for report in reports for name in report.wrong_peers} == set()


def test_a_member_that_names_the_digests_of_old_bytes_is_found_out_by_the_file(
    peers: list[Peer], second: Resolved, sample: Path, newer: Path, tmp_path: Path
) -> None:
    """So that each node copies what it has."""
    stale = shutil.copytree(newer, tmp_path / "stale")
    shutil.copyfile(sample / CHANGED, stale / CHANGED)
    liar = Impostor(stale, second)
    try:
        reports = revised(peers, second, [*(peer.member() for peer in peers), liar.member])
    finally:
        liar.close()
    assert all(same_bytes(peer.folder(URI), newer) for peer in peers)
    assert {name for report in reports for name in report.wrong_readers} == {liar.name}


TENANTS: dict[str, tuple[Audience, Audience, bool]] = {
    "a namespace takes from the cluster": (frozenset({"a"}), None, True),
    "a namespace takes nothing from another": (frozenset({"a"}), frozenset({"b"}), False),
}


@pytest.mark.parametrize(("mine", "theirs", "taken"), TENANTS.values(), ids=TENANTS)
def test_chunks_are_taken_from_copies_that_the_same_tenants_may_read_alone(
    peers: list[Peer], resolved: Resolved, newer: Path, mine: Audience, theirs: Audience, *, taken: bool
) -> None:
    """Where they may not, nothing that anybody can count tells that the node holds the same bytes."""
    with Origin({"localmodel/other": newer}) as origin:
        other = at_revision(origin, uri=OTHER)
        company = a_company([peer.member() for peer in peers])
        held, wanted = wants(resolved, None, URI), wants(other, company, OTHER)
        models = [replace(model, audience=theirs) for model in held.models]
        models += [replace(model, audience=mine) for model in wanted.models]
        tell(peers, replace(wanted, models=tuple(models), resolved={**held.resolved, **wanted.resolved}))
        reports = all_ready(peers, OTHER)
        assert all(same_bytes(peer.folder(OTHER), newer) for peer in peers)
    unchanged = SAMPLE_BYTES - (newer / CHANGED).stat().st_size
    for report in reports:
        assert (report.bytes_reused > unchanged) if taken else report.bytes_reused == 0
        moved = report.bytes_from_origin + report.bytes_from_peers
        assert moved + report.bytes_reused == report.bytes_total
    if not taken:
        assert sum(report.bytes_from_peers for report in reports) == (len(peers) - 1) * reports[0].bytes_total
