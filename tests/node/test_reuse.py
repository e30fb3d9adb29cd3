"""A new version of a model, or another model, takes from the disk what other copies have of it; the rest is fetched."""

from __future__ import annotations

import fcntl
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from actors.disk import reuse
from actors.disk.handles import Folder
from actors.disk.ingest import Ingest, open_ingest
from actors.disk.marker import read_marker
from actors.disk.reuse import Donor, linkable_bytes, offers, take
from actors.errors import Cancelled
from actors.manifest import Digest, Manifest, ManifestFile, ModelSource, Resolved, make_manifest, storage_key
from actors.messages import Audience, DesiredState, ModelReport, Phase
from coordinator.dev.origin.sample import REPO
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.versions import ADDED, CHANGED, at_revision, commit_of, disk_bytes, moved_bytes
from coordinator.dev.trial.waiting import eventually
from tests.kit import damage
from tests.kit.nodes import KEY, Node, model, same_bytes, together, until, wants

SAMPLE_BYTES = 4 << 20
OTHER = "hf://localmodel/other"
OTHER_KEY = storage_key(OTHER)
UNCHANGED = "model-00003-of-00004.safetensors"


@pytest.fixture
def holding(node: Node, resolved: Resolved) -> Node:
    """A node that holds the first version; nothing is under way."""
    agent = node.agent()
    agent.reconcile(wants(resolved))
    until(agent, Phase.READY)
    agent.close()
    return node


@pytest.fixture
def second(holding: Node, origin: Origin, newer: Path) -> Resolved:
    """The version that comes after what the node holds."""
    return at_revision(origin, origin.repos[REPO].push(newer))


def served(origin: Origin) -> int:
    return int(origin.stats()["bytes"])


def ready_with(node: Node, goal: DesiredState, revision: str | None, key: str = KEY) -> int:
    """An agent brings the copy to this revision. The bytes that it says it has not had to fetch."""
    agent = node.agent()
    agent.reconcile(goal)

    def there() -> ModelReport | None:
        found = model(agent.report(), key)
        return found if found is not None and found.phase is Phase.READY and found.revision == revision else None

    found = eventually(there, timeout_s=20, every_s=0.01, seen=agent.report)
    agent.close()
    assert found is not None
    return found.bytes_reused


def test_a_new_version_costs_what_changed_of_the_origin_and_of_the_disk(
    holding: Node, origin: Origin, second: Resolved, newer: Path
) -> None:
    before, on_disk = served(origin), disk_bytes(holding.root)
    old = (holding.folder() / UNCHANGED).stat().st_ino
    reading = os.open(holding.folder(), os.O_RDONLY | os.O_DIRECTORY)
    seen, peak, over = [], [0], threading.Event()

    def watch() -> None:
        """Everything that a pod could see by path, and how much the disk holds meanwhile."""
        while not over.is_set():
            try:
                shard = (holding.folder() / CHANGED).read_bytes()
                seen.append((len(shard), shard == (newer / CHANGED).read_bytes()))
            except FileNotFoundError:
                seen.append((0, False))
            peak[0] = max(peak[0], disk_bytes(holding.root / "models", holding.root / ".localmodel"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        keeping = replace(wants(second), used={KEY: 0.0})  # a pod has the old folder
        reused = ready_with(holding, keeping, second.manifest.revision)
    finally:
        over.set()
        watcher.join()

    changed = moved_bytes(newer)
    assert same_bytes(holding.folder(), newer)
    assert served(origin) - before == changed
    assert reused == second.manifest.total_bytes - changed
    assert (holding.folder() / UNCHANGED).stat().st_ino == old, "it is the very file"
    assert (holding.folder() / UNCHANGED).stat().st_mode & 0o777 == 0o444
    assert peak[0] - on_disk <= changed * 1.02 + (64 << 10), "folders, the journal and the marker come on top"
    assert {size for size, _ in seen if size} == {(newer / CHANGED).stat().st_size}
    descriptor = os.open(CHANGED, os.O_RDONLY, dir_fd=reading)
    with open(descriptor, "rb") as file:  # noqa: PTH123  # a descriptor
        assert file.read() != (newer / CHANGED).read_bytes(), "who has the old folder reads the old version"
    os.close(reading)


def test_another_cache_of_the_same_content_fetches_nothing(holding: Node, resolved: Resolved, sample: Path) -> None:
    with Origin({"localmodel/other": sample}) as origin:
        goal = together(wants(resolved), wants(at_revision(origin, uri=OTHER)))
        reused = ready_with(holding, goal, commit_of(origin, "localmodel/other"), OTHER_KEY)
        assert served(origin) == 0
    assert reused == SAMPLE_BYTES
    assert same_bytes(holding.folder(OTHER), sample)
    assert disk_bytes(holding.folder(), holding.folder(OTHER)) < SAMPLE_BYTES * 1.1


AUDIENCES: dict[str, tuple[Audience, Audience, bool]] = {
    "a namespace takes from the cluster": (frozenset({"a"}), None, True),
    "a namespace takes from itself": (frozenset({"a"}), frozenset({"a"}), True),
    "a namespace takes from a copy that it shares": (frozenset({"a"}), frozenset({"a", "b"}), True),
    "a namespace takes nothing from another": (frozenset({"a"}), frozenset({"b"}), False),
    "what others read takes nothing from what they do not": (frozenset({"a", "b"}), frozenset({"a"}), False),
    "the cluster takes nothing from a namespace": (None, frozenset({"a"}), False),
    "a cache of the cluster beside it makes nothing public": (None, frozenset({"", "a"}), False),
}


@pytest.mark.parametrize(("mine", "theirs", "taken"), AUDIENCES.values(), ids=AUDIENCES)
def test_what_a_source_calls_by_the_digest_of_another_tenants_file_is_not_handed_out(
    holding: Node, resolved: Resolved, sample: Path, mine: Audience, theirs: Audience, *, taken: bool
) -> None:
    with Origin({"localmodel/other": sample}) as origin:
        other = at_revision(origin, uri=OTHER)
        goal = together(wants(resolved, audience=theirs), wants(other, audience=mine))
        reused = ready_with(holding, goal, other.manifest.revision, OTHER_KEY)
        assert served(origin) == (0 if taken else SAMPLE_BYTES)
    assert reused == (SAMPLE_BYTES if taken else 0)


def test_a_rotten_file_of_the_old_copy_is_fetched_and_left_as_it_is(
    holding: Node, origin: Origin, second: Resolved, newer: Path
) -> None:
    rotten = holding.folder() / UNCHANGED
    damage.flip(rotten, 5000)
    rotten.chmod(0o444)
    content, before = rotten.read_bytes(), served(origin)
    reading = rotten.open("rb")
    ready_with(holding, replace(wants(second), used={KEY: 0.0}), second.manifest.revision)
    assert same_bytes(holding.folder(), newer)
    assert served(origin) - before == moved_bytes(newer) + len(content)
    with reading:
        assert reading.read() == content, "nothing was written into the old copy"


def test_a_file_that_the_scrubber_blames_is_not_used(
    holding: Node, origin: Origin, second: Resolved, newer: Path
) -> None:
    rotten, before = holding.folder() / UNCHANGED, served(origin)
    damage.cut(rotten)
    rotten.chmod(0o444)
    size = (newer / UNCHANGED).stat().st_size
    ready_with(holding, wants(second), second.manifest.revision)
    assert same_bytes(holding.folder(), newer)
    assert served(origin) - before == moved_bytes(newer) + size


def test_a_damaged_file_is_repaired_from_another_copy(node: Node, resolved: Resolved, sample: Path) -> None:
    with Origin({"localmodel/other": sample}) as origin:
        other = at_revision(origin, uri=OTHER)
        goal = together(wants(resolved), wants(other))
        agent = node.agent()
        agent.reconcile(goal)
        until(agent, Phase.READY)
        until(agent, Phase.READY, key=OTHER_KEY)
        agent.close()
        damage.gone(node.folder(OTHER) / UNCHANGED)
        before = served(origin)
        agent = node.agent()
        agent.reconcile(goal)
        eventually(lambda: same_bytes(node.folder(OTHER), sample), timeout_s=20)
        until(agent, Phase.READY, key=OTHER_KEY)
        assert served(origin) == before


def test_a_new_version_fits_where_what_changed_fits(
    holding: Node, origin: Origin, second: Resolved, newer: Path
) -> None:
    on_disk = SAMPLE_BYTES
    limit = on_disk + moved_bytes(newer) + (300 << 10)
    ready_with(holding, wants(second, limit=limit), second.manifest.revision)
    assert same_bytes(holding.folder(), newer)


def test_what_does_not_fit_says_how_little_is_lacking(
    holding: Node, origin: Origin, second: Resolved, newer: Path
) -> None:
    before = served(origin)
    agent = holding.agent()
    agent.reconcile(wants(second, limit=SAMPLE_BYTES + 1000))
    waiting = until(agent, Phase.PENDING, reason="InsufficientStorage")
    assert moved_bytes(newer) <= waiting.needed_bytes < moved_bytes(newer) + (300 << 10)
    assert served(origin) == before


def test_an_agent_that_died_after_the_links_goes_on_from_them(
    holding: Node, origin: Origin, second: Resolved, newer: Path
) -> None:
    before = served(origin)
    store_folder = holding.root / ".localmodel/ingest" / f"{KEY}.earlier"
    marker = read_marker(holding.folder())
    assert marker is not None
    donor = Donor("old", marker.manifest, lambda: Folder.at(holding.folder()))
    ingest = open_ingest(store_folder, second.manifest, "cluster-1", second.versions)
    take(ingest, offers(second.manifest, [donor]), lambda: None)
    (store_folder / "data" / CHANGED).hardlink_to(holding.folder() / CHANGED)  # linked, and not journalled
    (store_folder / "data" / ADDED).hardlink_to(holding.folder() / "config.json")
    ingest.close()
    old = (holding.folder() / CHANGED).read_bytes()
    reading = (holding.folder() / CHANGED).open("rb")
    ready_with(holding, wants(second), second.manifest.revision)
    assert same_bytes(holding.folder(), newer)
    assert served(origin) - before == moved_bytes(newer)
    with reading:
        assert reading.read() == old


# --- the parts ---


def a_file(path: str, name: str, size: int = 100) -> ManifestFile:
    return ManifestFile(path, size, Digest(f"sha256:{name}"))


def a_manifest(*files: ManifestFile, uri: str = "hf://a/b") -> Manifest:
    return make_manifest(ModelSource(uri), "r", files)


def a_donor(name: str, *files: ManifestFile, damaged: tuple[str, ...] = ()) -> Donor:
    return Donor(name, a_manifest(*files), lambda: Folder.at(Path("/nowhere")), frozenset(damaged))


OFFERS: dict[str, tuple[Manifest, list[Donor], dict[int, list[str]]]] = {
    "the same file": (a_manifest(a_file("f", "a")), [a_donor("d", a_file("f", "a"))], {0: ["d/f"]}),
    "under another name": (a_manifest(a_file("f", "a")), [a_donor("d", a_file("x/y", "a"))], {0: ["d/x/y"]}),
    "another digest": (a_manifest(a_file("f", "a")), [a_donor("d", a_file("f", "b"))], {}),
    "another size": (a_manifest(a_file("f", "a", 1)), [a_donor("d", a_file("f", "a", 2))], {}),
    "no digest": (a_manifest(ManifestFile("f", 1)), [a_donor("d", ManifestFile("f", 1))], {}),
    "an empty file": (a_manifest(a_file("f", "a", 0)), [a_donor("d", a_file("f", "a", 0))], {}),
    "a damaged file": (a_manifest(a_file("f", "a")), [a_donor("d", a_file("f", "a"), damaged=("f",))], {}),
    "a damaged file that is there twice": (
        a_manifest(a_file("f", "a")),
        [a_donor("d", a_file("f", "a"), a_file("g", "a"), damaged=("f",))],
        {0: ["d/g"]},
    ),
    "two donors, in their order": (
        a_manifest(a_file("f", "a")),
        [a_donor("d", a_file("f", "a")), a_donor("e", a_file("f", "a"))],
        {0: ["d/f", "e/f"]},
    ),
    "wanted twice": (
        a_manifest(a_file("f", "a"), a_file("g", "a")),
        [a_donor("d", a_file("x", "a"))],
        {0: ["d/x"], 1: ["d/x"]},
    ),
    "an archive, which is unpacked": (
        a_manifest(a_file("m.tar", "a"), uri="https://a/m.tar"),
        [a_donor("d", a_file("m.tar", "a"))],
        {},
    ),
}


@pytest.mark.parametrize(("wanted", "donors", "expected"), OFFERS.values(), ids=OFFERS)
def test_a_file_is_offered_by_content(wanted: Manifest, donors: list[Donor], expected: dict[int, list[str]]) -> None:
    found = offers(wanted, donors)
    assert {index: [f"{each.donor.name}/{each.path}" for each in of] for index, of in found.items()} == expected


CONTENT = os.urandom(100_000)


@pytest.fixture
def donor(tmp_path: Path) -> Donor:
    folder = tmp_path / "old"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/w.bin").write_bytes(CONTENT)
    (folder / "sub/w.bin").chmod(0o444)
    return Donor("old", a_manifest(a_file("sub/w.bin", "a", len(CONTENT))), lambda: Folder.at(folder))


@pytest.fixture
def ingest(tmp_path: Path) -> Iterator[Ingest]:
    opened = open_ingest(tmp_path / "ingest", a_manifest(a_file("new/w.bin", "a", len(CONTENT))), "owner")
    yield opened
    opened.close()


def taken(ingest: Ingest, donor: Donor) -> Path:
    take(ingest, offers(ingest.manifest, [donor]), lambda: None)
    return ingest.data / "new/w.bin"


def test_a_file_that_nobody_may_write_to_is_linked(tmp_path: Path, donor: Donor, ingest: Ingest) -> None:
    assert linkable_bytes(ingest.manifest, offers(ingest.manifest, [donor])) == len(CONTENT)
    assert taken(ingest, donor).samefile(tmp_path / "old/sub/w.bin")
    assert ingest.reused_bytes == len(CONTENT)


def test_nothing_is_written_through_a_link(donor: Donor, ingest: Ingest) -> None:
    taken(ingest, donor)
    ingest.allocate()
    descriptor = ingest.open_file(0)
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(descriptor, b"x", 0)
    finally:
        os.close(descriptor)


def test_a_file_that_others_may_write_to_is_copied(tmp_path: Path, donor: Donor, ingest: Ingest) -> None:
    old = tmp_path / "old/sub/w.bin"
    old.chmod(0o644)
    assert linkable_bytes(ingest.manifest, offers(ingest.manifest, [donor])) == 0
    path = taken(ingest, donor)
    assert not path.samefile(old)
    assert path.read_bytes() == CONTENT


def test_a_copy_is_made_where_the_filesystem_has_neither_links_nor_clones(
    donor: Donor, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    monkeypatch.setattr(fcntl, "ioctl", refused)
    path = taken(ingest, donor)
    assert path.read_bytes() == CONTENT
    assert path.stat().st_nlink == 1


def test_an_interrupted_copy_leaves_nothing(
    donor: Donor, ingest: Ingest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "old/sub/w.bin").chmod(0o644)
    monkeypatch.setattr(reuse, "_cloned", lambda *_: False)

    def check() -> None:
        if (ingest.data / "new/w.bin").exists():
            raise Cancelled

    with pytest.raises(Cancelled):
        take(ingest, offers(ingest.manifest, [donor]), check)
    assert list((ingest.data / "new").iterdir()) == []
    assert ingest.reused_bytes == 0


def made_link(path: Path) -> None:
    path.unlink()
    (path.parent / "elsewhere").write_bytes(CONTENT)
    path.symlink_to("elsewhere")


def made_folder_link(path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved"))
    path.parent.symlink_to("moved")


def made_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o444)


def shortened(path: Path) -> None:
    damage.cut(path)
    path.chmod(0o444)


WRONG = {"a link": made_link, "a link on the way": made_folder_link, "a fifo": made_fifo, "shorter": shortened}


@pytest.mark.parametrize("spoil", [*WRONG.values(), damage.gone], ids=[*WRONG, "gone"])
def test_what_took_the_place_of_a_file_is_passed_over(
    tmp_path: Path, donor: Donor, ingest: Ingest, spoil: damage.Damage
) -> None:
    spoil(tmp_path / "old/sub/w.bin")
    assert linkable_bytes(ingest.manifest, offers(ingest.manifest, [donor])) == 0
    path = taken(ingest, donor)
    assert not path.exists()
    assert ingest.reused_bytes == 0
    ingest.allocate()
    assert stat.S_ISREG(path.lstat().st_mode)
