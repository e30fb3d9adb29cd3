"""Committed models are read again: what is damaged is named, out of service, and put right from the origin."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from actors.agent import agent as agent_module
from actors.digest import Digester
from actors.disk.store import Marker
from actors.manifest import Manifest, ManifestFile, ModelSource, Resolved, storage_key
from actors.messages import ModelReport, Phase
from actors.scrub import scrubber
from actors.scrub.record import ChunkSums, Record, describe, differing, next_file
from actors.scrub.scrubber import be_idle, blocks, examine
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from coordinator.dev.origin.faults import Fault
from coordinator.dev.origin.sample import REPO, write_sample
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.waiting import eventually
from tests.kit.nodes import FAST, KEY, URI, Node, model, same_bytes, until, wants

MIB = 1 << 20
SAMPLE_BYTES = 4 * MIB
CHUNK = 256 << 10
SHARD = "model-00002-of-00004.safetensors"
ALWAYS = {"scrub_interval_s": 0.01, "scrub_bytes_per_s": float(1 << 30)}
NEVER = {"scrub_bytes_per_s": None}

# --- when, and what next ---

A_DAY = 86400.0
NOW = 10 * A_DAY


def a_marker(*paths: str, size: int = 4) -> Marker:
    files = tuple(ManifestFile(path, size) for path in paths)
    return Marker("owner", Manifest(ModelSource("hf://a/b"), None, files), dict.fromkeys(paths, "sha256"))


def a_record(**fields: object) -> Record:
    return replace(Record.fresh(a_marker("a", "b", "c"), 2), **fields)  # type: ignore[arg-type]  # by name


DECISIONS: dict[str, tuple[dict[str, Record], tuple[str, int] | None]] = {
    "nothing is there": ({}, None),
    "a copy that was never read is read": ({"new": a_record()}, ("new", 0)),
    "what was read less than a day ago is left alone": ({"fresh": a_record(verified_at=NOW - A_DAY + 1)}, None),
    "what was read a day ago is read again": ({"old": a_record(verified_at=NOW - A_DAY)}, ("old", 0)),
    "the oldest comes first": (
        {"old": a_record(verified_at=NOW - 2 * A_DAY), "older": a_record(verified_at=NOW - 3 * A_DAY)},
        ("older", 0),
    ),
    "what was never read comes before the oldest": (
        {"old": a_record(verified_at=0.0), "new": a_record()},
        ("new", 0),
    ),
    "a pass that has begun is ended before another begins": (
        {"new": a_record(), "begun": a_record(verified_at=NOW - 2 * A_DAY, next_file=2)},
        ("begun", 2),
    ),
    "a damaged file is passed over": ({"new": a_record(damage={"a": "is missing"})}, ("new", 1)),
    "a copy of which everything is damaged waits for its repair": (
        {"lost": a_record(damage=dict.fromkeys("abc", "is missing"))},
        None,
    ),
    "a time in the future says nothing": ({"odd": a_record(verified_at=NOW + 1)}, ("odd", 0)),
}


@pytest.mark.parametrize("case", DECISIONS)
def test_what_is_read_next(case: str) -> None:
    records, expected = DECISIONS[case]
    copies = {place: (a_marker("a", "b", "c"), record) for place, record in records.items()}
    assert next_file(copies, NOW, A_DAY) == expected


def test_a_new_copy_is_left_to_the_pods_that_waited_for_it_before_it_is_read() -> None:
    copies = {"new": (replace(a_marker("a"), finished_at=NOW), Record.fresh(a_marker("a"), 2))}
    assert [next_file(copies, NOW + passed, A_DAY) for passed in (0, 299, 300)] == [None, None, ("new", 0)]
    assert next_file(copies, NOW + 1, interval_s=1.0) == ("new", 0), "no longer than between two passes"
    assert next_file(copies, NOW - 1, A_DAY) == ("new", 0), "a time in the future is not believed"


def test_a_pass_ends_with_the_last_file_and_the_next_begins_a_day_later() -> None:
    marker = a_marker("a", "b")
    record = Record.fresh(marker, 2)
    read = []
    for now in (301.0, 302.0, 303.0, A_DAY + 301, A_DAY + 302, A_DAY + 303):
        turn = next_file({"x": (marker, record)}, now, A_DAY)
        read.append(turn and turn[1])
        if turn is not None:
            record.noted(marker, turn[1], None, [7, 7], now)
    assert read == [0, 1, None, None, 0, 1]
    assert (record.verified_at, record.sums) == (A_DAY + 303, {"a": [7, 7], "b": [7, 7]})


def test_a_damage_stays_until_it_is_mended_and_keeps_the_checksums() -> None:
    marker = a_marker("a", "b")
    record = Record.fresh(marker, 2)
    record.noted(marker, 0, None, [1, 2], 1.0)
    record.noted(marker, 1, "is missing", [], 2.0)
    record.noted(marker, 0, "differs", [], 3.0)
    assert (record.damage, record.sums) == ({"a": "differs", "b": "is missing"}, {"a": [1, 2]})
    record.mended(["a"], 4.0)
    assert (record.damage, record.repaired, record.repaired_at) == ({"b": "is missing"}, "a differs", 4.0)


def test_a_record_is_that_of_one_copy_and_survives_junk() -> None:
    marker = a_marker("a", "b", "c")
    record = a_record(verified_at=1.0, next_file=1, sums={"a": [1]}, damage={"b": "is missing"})
    assert Record.from_json(record.to_json(), marker) == record
    assert Record.from_json(record.to_json(), replace(marker, finished_at=5.0)) is None, "of an earlier copy"
    for junk in (b"", b"[]", b"{}", record.to_json()[:-1], record.to_json().replace(b'"b"', b'"elsewhere"')):
        assert Record.from_json(junk, marker) is None


def test_checksums_do_not_depend_on_how_the_bytes_come() -> None:
    content, rng, expected = os.urandom(10_000), random.Random(1), ChunkSums(1000)
    expected.update(memoryview(content))
    for _ in range(20):
        sums, position = ChunkSums(1000), 0
        while position < len(content):
            step = rng.randint(1, 3000)
            sums.update(memoryview(content)[position : position + step])
            position += step
        assert sums.sums == expected.sums
    assert len(expected.sums) == 10


def test_a_damage_is_described_in_few_words() -> None:
    assert differing(None, [1, 2], 10, 15) == "is not what it was"
    assert differing([1, 2], [1, 2], 10, 15) == "is not what it was"
    assert differing([1, 2], [1, 3], 10, 15) == "differs within bytes 10-14"
    assert differing([0] * 9, [1] * 9, 10, 90) == "differs within bytes 0-9, 10-19, 20-29 and 6 more chunks"
    assert describe({"b": "is missing", "a": "is missing"}) == "a is missing; b is missing"
    assert describe(dict.fromkeys("abcde", "x")) == "a x; b x; c x; and 2 more files"


# --- reading ---


def a_file(path: Path, content: bytes) -> ManifestFile:
    path.write_bytes(content)
    digester = Digester("sha256", len(content))
    digester.update(content)
    return ManifestFile(path.name, len(content), digester.digest())


@pytest.mark.parametrize("size", [0, 1, 4096, MIB, MIB + 1, 3 * MIB + 17])
def test_a_file_is_read_whole_whatever_its_size(size: int, tmp_path: Path) -> None:
    content, buffer = os.urandom(size), mmap.mmap(-1, MIB)
    file = a_file(tmp_path / "file", content)
    assert b"".join(bytes(block) for block in blocks(tmp_path / "file", buffer)) == content
    wrong, sums = examine(tmp_path / "file", file, None, CHUNK, buffer)
    assert (wrong, len(sums)) == (None, -(-size // CHUNK))


def cached_pages(path: Path) -> int:
    """How much of a file is in the page cache, as mincore(2) says."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        pages = ctypes.create_string_buffer(-(-len(mapped) // mmap.PAGESIZE))
        start = ctypes.c_char.from_buffer(mapped)
        try:
            assert ctypes.CDLL(None).mincore(ctypes.byref(start), ctypes.c_size_t(len(mapped)), pages) == 0
        finally:
            del start
        return sum(page[0] & 1 for page in pages)


def test_reading_leaves_nothing_in_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(4 * MIB))
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached_pages(path):
        pytest.skip("this filesystem is nothing but page cache")
    assert sum(len(block) for block in blocks(path, mmap.mmap(-1, MIB))) == 4 * MIB
    assert cached_pages(path) == 0


def test_a_disk_that_cannot_read_is_to_blame_and_a_process_without_descriptors_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = a_file(tmp_path / "file", b"x" * 100)
    for number, blamed in ((errno.EIO, True), (errno.EMFILE, False)):

        def failing(*_: object, number: int = number) -> int:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patched:
            patched.setattr("actors.scrub.scrubber.os.preadv", failing)
            if blamed:
                wrong, _ = examine(tmp_path / "file", file, None, CHUNK, mmap.mmap(-1, MIB))
                assert wrong == "cannot be read at byte 0: Input/output error"
            else:
                with pytest.raises(OSError, match="Too many open files"):
                    examine(tmp_path / "file", file, None, CHUNK, mmap.mmap(-1, MIB))


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of the system call")
def test_the_scrubbing_thread_gets_the_disk_last() -> None:
    found: list[int] = []

    def look() -> None:
        be_idle()
        found.append(ctypes.CDLL(None).syscall(252, 1, 0))  # ioprio_get

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [3 << 13]


# --- a node ---


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrubber, "IDLE_S", 0.02)


def until_verified(node: Node) -> ModelReport:
    return _until(node, lambda report: report.phase is Phase.READY and report.verified_at is not None)


def until_damaged(node: Node) -> ModelReport:
    return _until(node, lambda report: report.damage is not None)


def until_repaired(node: Node) -> ModelReport:
    return _until(node, lambda report: report.phase is Phase.READY and report.repaired is not None)


def _until(node: Node, fact: Callable[[ModelReport], bool], key: str = KEY) -> ModelReport:
    agent = node.agents[-1]

    def reached() -> ModelReport | None:
        found = model(agent.report(), key)
        return found if found is not None and fact(found) else None

    found = eventually(reached, every_s=0.005, seen=agent.report)
    assert found is not None
    return found


def flip(path: Path, *positions: int) -> None:
    with path.open("r+b") as file:
        for position in positions:
            file.seek(position)
            byte = file.read(1)
            file.seek(position)
            file.write(bytes([byte[0] ^ 1]))


def writable(folder: Path) -> Path:
    """As root nothing stops anybody; others need the permission first."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


@pytest.mark.slow
def test_a_flipped_byte_is_found_and_only_its_chunk_is_fetched_again(
    node: Node, origin: Origin, resolved: Resolved, sample: Path
) -> None:
    agent = node.agent(**ALWAYS)
    agent.reconcile(wants(resolved))
    until_verified(node)
    before, folder = origin.stats()["bytes"], node.folder().stat().st_ino
    origin.faults.set(Fault(latency_s=0.3))

    flip(writable(node.folder()) / SHARD, 2 * CHUNK + 5)
    damaged = until_damaged(node)
    assert damaged.phase is not Phase.READY
    assert damaged.damage == f"{SHARD} differs within bytes {2 * CHUNK}-{3 * CHUNK - 1}"
    assert (node.folder() / SHARD).exists(), "what a pod has mounted stays"

    repaired = until_repaired(node)
    assert repaired.repaired == damaged.damage
    assert repaired.repaired_at is not None
    assert origin.stats()["bytes"] - before == CHUNK
    assert same_bytes(node.folder(), sample)
    assert node.folder().stat().st_ino == folder, "the folder is the one that pods have mounted"
    assert (node.folder() / SHARD).stat().st_mode & 0o777 == 0o444
    assert node.left_behind() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("break_it", "named", "fetched"),
    [
        (lambda path: path.unlink(), f"{SHARD} is missing", None),
        (lambda path: os.truncate(path, 2 * CHUNK), f"{SHARD} has {2 * CHUNK} bytes, not ", -2 * CHUNK),
        (lambda path: path.write_bytes(path.read_bytes() + b"more"), f"{SHARD} has ", 0),
        (lambda path: (path.unlink(), path.mkdir()), f"{SHARD} is no longer a regular file", None),
        (lambda path: (path.unlink(), path.symlink_to("/etc/passwd")), f"{SHARD} is no longer a regular file", None),
        (lambda path: flip(path, 0, 2 * CHUNK), f"{SHARD} differs within bytes 0-", 2 * CHUNK),
    ],
    ids=["missing", "shorter", "grown", "a folder in its place", "a link in its place", "two spots"],
)
def test_whatever_happens_to_a_file_it_is_named_and_no_more_is_fetched_than_is_lost(
    break_it: Callable[[Path], object],
    named: str,
    fetched: int | None,
    node: Node,
    origin: Origin,
    resolved: Resolved,
    sample: Path,
) -> None:
    size = (sample / SHARD).stat().st_size
    lost = size if fetched is None else size + fetched if fetched < 0 else fetched
    agent = node.agent(**ALWAYS)
    agent.reconcile(wants(resolved))
    until_verified(node)
    agent.close()
    before = origin.stats()["bytes"]
    break_it(writable(node.folder()) / SHARD)
    node.agent(**ALWAYS).reconcile(wants(resolved))
    repaired = until_repaired(node)
    assert named in (repaired.repaired or "")
    assert origin.stats()["bytes"] - before == lost
    assert same_bytes(node.folder(), sample)


@pytest.mark.slow
def test_a_file_that_was_damaged_before_it_was_ever_read_is_fetched_whole(
    node: Node, origin: Origin, resolved: Resolved, sample: Path
) -> None:
    first = node.agent(**NEVER)
    first.reconcile(wants(resolved))
    until(first, Phase.READY)
    first.close()
    before = origin.stats()["bytes"]
    flip(writable(node.folder()) / SHARD, 5)
    node.agent(**ALWAYS).reconcile(wants(resolved))
    assert until_repaired(node).repaired == f"{SHARD} is not what it was"
    assert origin.stats()["bytes"] - before == (sample / SHARD).stat().st_size
    assert same_bytes(node.folder(), sample)


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "RESCAN_S", 0.02)
    monkeypatch.setattr(agent_module, "HOUSEKEEPING_S", 0.02)


@pytest.mark.usefixtures("restless")
def test_a_lost_file_is_seen_also_where_nothing_is_read(node: Node, origin: Origin, resolved: Resolved) -> None:
    agent = node.agent(**NEVER)
    agent.reconcile(wants(resolved))
    until(agent, Phase.READY)
    before = origin.stats()["bytes"]
    (writable(node.folder()) / "config.json").unlink()
    assert until_repaired(node).repaired == "config.json is missing"
    assert origin.stats()["bytes"] - before == (node.folder() / "config.json").stat().st_size


def test_folders_that_are_gone_come_back_with_their_files(node: Node, tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    for name in ("a/b/one.json", "a/b/two.json", "a/three.json", "c/four.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    with Origin({"a/deep": folder}) as origin:
        resolved = resolve(ModelSource("hf://a/deep"), SourceOptions({"HF_ENDPOINT": origin.hub_endpoint}))
        key = storage_key("hf://a/deep")
        first = node.agent(**NEVER)
        first.reconcile(wants(resolved))
        until(first, Phase.READY, key=key)
        first.close()
        copy = writable(node.folder("hf://a/deep"))
        shutil.rmtree(copy / "a/b")
        (copy / "a/b").write_text("a file in the way")
        shutil.rmtree(copy / "c")
        node.agent(**NEVER).reconcile(wants(resolved))
        repaired = _until(node, lambda report: report.phase is Phase.READY, key)
    assert repaired.repaired == "a/b/one.json is missing; a/b/two.json is missing; c/four.json is missing"
    assert same_bytes(copy, folder)
    assert {path.stat().st_mode & 0o777 for path in (copy, copy / "a/b", copy / "c")} == {0o755}


@pytest.mark.slow
@pytest.mark.usefixtures("restless")
def test_a_copy_that_was_taken_away_is_filled_again(
    node: Node, resolved: Resolved, sample: Path, tmp_path: Path
) -> None:
    agent = node.agent(**ALWAYS)
    agent.reconcile(wants(resolved))
    first = until_verified(node)
    node.folder().chmod(0o755)
    node.folder().rename(tmp_path / "taken")
    again = _until(node, lambda report: report.finished_at not in (None, first.finished_at))
    assert again.damage is None
    assert same_bytes(node.folder(), sample)


@pytest.mark.slow
def test_while_the_origin_is_down_the_damage_stays_reported_and_the_repair_is_tried_again(
    node: Node, origin: Origin, resolved: Resolved, sample: Path
) -> None:
    agent = node.agent(chunk_tries=1, **ALWAYS)
    agent.reconcile(wants(resolved))
    until_verified(node)
    origin.faults.set(Fault(status=503))
    flip(writable(node.folder()) / SHARD, 5)
    failed = _until(node, lambda report: report.attempt >= 2 and report.phase is Phase.FAILED)
    assert failed.damage == f"{SHARD} differs within bytes 0-{CHUNK - 1}"
    assert failed.failure is not None
    assert failed.retry_at is not None
    agent.close()

    restarted = node.agent(**NEVER)
    found = model(restarted.report())
    assert found is not None
    assert (found.phase, found.damage) == (Phase.FAILED, failed.damage), "it is not forgotten"
    origin.faults.clear()
    restarted.reconcile(wants(resolved))
    until_repaired(node)
    assert same_bytes(node.folder(), sample)


@pytest.mark.slow
def test_a_damaged_copy_waits_for_its_source_to_be_resolved(node: Node, resolved: Resolved, sample: Path) -> None:
    agent = node.agent(**ALWAYS)
    agent.reconcile(wants(resolved))
    until_verified(node)
    agent.reconcile(wants(resolved, resolved=None))
    flip(writable(node.folder()) / SHARD, 5)
    until_damaged(node)
    agent.reconcile(wants(resolved, resolved=None))
    assert until_damaged(node).phase is Phase.PENDING
    agent.reconcile(wants(resolved))
    until_repaired(node)
    assert same_bytes(node.folder(), sample)


@pytest.mark.slow
def test_a_copy_whose_source_has_other_files_by_now_is_filled_anew(
    node: Node, origin: Origin, resolved: Resolved, sample: Path, tmp_path: Path
) -> None:
    agent = node.agent(**ALWAYS)
    agent.reconcile(wants(resolved))
    first = until_verified(node)
    write_sample(tmp_path / "later", 5 * MIB)
    origin.repos[REPO].push(tmp_path / "later")
    later = resolve(ModelSource(URI), SourceOptions({"HF_ENDPOINT": origin.hub_endpoint}))
    agent.reconcile(wants(later))
    assert (model(agent.report()) or first).manifest_digest == first.manifest_digest, (
        "a newer one does not make it stale"
    )
    flip(writable(node.folder()) / SHARD, 5)
    _until(node, lambda report: report.phase is Phase.READY and report.manifest_digest == later.manifest.digest)
    assert same_bytes(node.folder(), tmp_path / "later")


@pytest.mark.slow
def test_a_source_without_digests_that_gives_other_bytes_by_now_is_filled_anew(node: Node, tmp_path: Path) -> None:
    weights = tmp_path / "files/weights.bin"
    weights.parent.mkdir()
    weights.write_bytes(b"a" * 3 * CHUNK)
    with Origin(files=weights.parent) as origin:
        source = ModelSource(f"{origin.url}/files/weights.bin")
        key = storage_key(source.uri)
        agent = node.agent(**ALWAYS)
        agent.reconcile(wants(resolve(source, SourceOptions())))
        _until(node, lambda report: report.verified_at is not None, key)
        weights.write_bytes(b"b" * 3 * CHUNK)
        agent.reconcile(wants(resolve(source, SourceOptions())))
        flip(writable(node.folder(source.uri)) / "weights.bin", 5)
        in_vain = _until(node, lambda report: report.failure is not None, key)
        assert in_vain.damage == f"weights.bin differs within bytes 0-{CHUNK - 1}"
        _until(node, lambda report: report.phase is Phase.READY and report.damage is None, key)
    assert (node.folder(source.uri) / "weights.bin").read_bytes() == b"b" * 3 * CHUNK


def test_what_was_read_is_remembered_over_a_restart(node: Node, resolved: Resolved) -> None:
    first = node.agent(**ALWAYS)
    first.reconcile(wants(resolved))
    until_verified(node)
    first.close()
    verified = until_verified(node)
    second = node.agent(**{**ALWAYS, "scrub_interval_s": 1000.0})
    assert (model(second.report()) or verified).verified_at == verified.verified_at
    second.reconcile(wants(resolved, root="/models"))
    assert until_verified(node).verified_at == verified.verified_at


def test_a_pass_goes_on_in_the_middle_after_a_restart(node: Node, resolved: Resolved) -> None:
    first = node.agent(scrub_bytes_per_s=2e6, scrub_interval_s=0.01)
    first.reconcile(wants(resolved))
    until(first, Phase.READY)
    record = node.root / ".localmodel/scrub" / f"{KEY}.json"

    def begun() -> bool:
        known = first._scrubber._copies
        return any(copy.record.next_file > 3 for copy in known.values())

    eventually(begun, every_s=0.005)
    first.close()
    content = record.read_bytes()
    assert b'"next_file":0' not in content
    assert b'"verified_at":null' in content


@pytest.mark.slow
def test_the_pace_is_kept(node: Node, resolved: Resolved) -> None:
    agent = node.agent(scrub_bytes_per_s=4e6, scrub_interval_s=0.01)
    agent.reconcile(wants(resolved))
    ready = until(agent, Phase.READY)
    verified = until_verified(node)
    assert ready.finished_at is not None
    assert verified.verified_at is not None
    assert verified.verified_at - ready.finished_at >= 4 * MIB / 4e6 * 0.9


def test_nothing_is_read_when_it_is_switched_off(node: Node, resolved: Resolved) -> None:
    agent = node.agent(**NEVER)
    agent.reconcile(wants(resolved))
    until(agent, Phase.READY)
    assert not any(thread.name == "scrub" for thread in threading.enumerate())
    assert FAST["chunk_bytes"] == CHUNK
