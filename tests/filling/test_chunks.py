"""Which bytes are there, which are missing, and how what is missing is cut."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.chunks import Chunk, Ranges, plan_chunks
from actors.digest import Digester, algorithm_of
from actors.disk.journal import Journal, read
from actors.errors import SourceError, SourceExpired, SourceThrottled, SourceUnsupported
from actors.manifest import Digest, ManifestFile
from actors.rates import RateLimit, RateMeter
from actors.retry import RetryPolicy

Spans = list[tuple[int, int]]
SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=20)


def test_ranges_join_where_they_touch_and_stay_apart_where_they_do_not() -> None:
    cases: dict[str, tuple[Spans, Spans]] = {
        "nothing": ([], []),
        "an empty range adds nothing": ([(3, 3)], []),
        "touching ones become one": ([(0, 2), (2, 4)], [(0, 4)]),
        "overlapping ones become one": ([(0, 3), (2, 4)], [(0, 4)]),
        "one that covers others swallows them": ([(1, 2), (4, 5), (0, 9)], [(0, 9)]),
        "apart stays apart, in order": ([(6, 8), (0, 2)], [(0, 2), (6, 8)]),
        "the gap between is filled": ([(0, 2), (4, 6), (2, 4)], [(0, 6)]),
    }
    assert {name: list(Ranges(spans)) for name, (spans, _) in cases.items()} == {
        name: expected for name, (_, expected) in cases.items()
    }


@pytest.mark.slow
@given(SPANS, st.integers(0, 60))
def test_ranges_are_the_set_of_their_positions(spans: Spans, size: int) -> None:
    ranges, positions = Ranges(), set[int]()
    for start, stop in spans:
        new = set(range(start, stop)) - positions
        assert ranges.add(start, stop) == len(new)
        positions |= new
    assert {each for start, stop in ranges for each in range(start, stop)} == positions
    assert ranges.total == len(positions)
    assert ranges.frontier == next(each for each in range(100) if each not in positions)
    missing = [each for start, stop in ranges.gaps(size) for each in range(start, stop)]
    assert missing == [each for each in range(size) if each not in positions]


@pytest.mark.slow
@given(st.lists(st.integers(0, 50), max_size=5), st.integers(1, 20), SPANS)
def test_a_plan_covers_what_is_missing_exactly_once(sizes: list[int], chunk_bytes: int, spans: Spans) -> None:
    files = [ManifestFile(f"{n}", size) for n, size in enumerate(sizes)]
    done = {0: Ranges((start, stop) for start, stop in spans if sizes and stop <= sizes[0])}
    chunks = list(plan_chunks(files, chunk_bytes, done))

    covered = [(chunk.file, each) for chunk in chunks for each in range(chunk.start, chunk.stop)]
    held = {(0, each) for start, stop in done[0] for each in range(start, stop)}
    assert covered == [(n, each) for n, size in enumerate(sizes) for each in range(size) if (n, each) not in held]
    assert all(0 < chunk.size <= chunk_bytes for chunk in chunks)
    assert all(chunk.start // chunk_bytes == (chunk.stop - 1) // chunk_bytes for chunk in chunks), (
        "cut at the same places"
    )


DIGESTS = {
    "sha256": "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
    "git-sha1": "git-sha1:b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0",  # printf hello | git hash-object --stdin
    "md5": "md5:5d41402abc4b2a76b9719d911017c592",
}


@pytest.mark.parametrize("algorithm", DIGESTS)
def test_a_digest_does_not_depend_on_how_the_bytes_come(algorithm: str) -> None:
    digester = Digester(algorithm, 5)
    for piece in (b"h", bytearray(b"el"), memoryview(b"lo")):
        digester.update(piece)
    assert digester.digest() == DIGESTS[algorithm]
    assert digester.position == 5
    assert algorithm_of(Digest(DIGESTS[algorithm])) == algorithm


def test_without_a_digest_of_the_origin_sha256_is_computed_and_an_unknown_one_is_refused() -> None:
    assert algorithm_of(None) == "sha256"
    with pytest.raises(SourceUnsupported, match="whirlpool"):
        Digester("whirlpool", 5)


def test_a_journal_gives_back_what_was_recorded(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    journal = Journal.open(path, [100, 100])
    for chunk in (Chunk(0, 0, 10), Chunk(1, 50, 100), Chunk(0, 10, 20)):
        journal.record(chunk)
    journal.forget(1)
    journal.record(Chunk(1, 0, 7))
    journal.close()

    done, _ = read(path, [100, 100])
    assert {file: list(ranges) for file, ranges in done.items()} == {0: [(0, 20)], 1: [(0, 7)]}


@pytest.mark.parametrize(
    "tail",
    [
        b"[1,0,",
        b"[1,0,5]",
        b"\0\0\0\0",
        b"nonsense\n",
        b"[7,0,5]\n",
        b"[0,0,101]\n",
        b'["0",0,5]\n',
        b"[0,0]\n",
        b"\xff\n",
        b"[0,0.5,7.5]\n",
        b"[0,NaN,7]\n",
        b"[0,0,%d]\n" % 10**30,
        b"[-1,0,5]\n",
        b"[" * 10**5 + b"\n",
    ],
    ids=[
        "cut",
        "without its end",
        "zeros",
        "no JSON",
        "unknown file",
        "too long",
        "no number",
        "too short",
        "no text",
        "fractions",
        "not a number",
        "a huge number",
        "a negative number",
        "a depth that no parser stands",
    ],
)
def test_a_journal_ends_where_it_stops_making_sense_and_goes_on_from_there(
    tail: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    path.write_bytes(b"[0,0,10]\n" + tail)
    journal = Journal.open(path, [100, 100])
    assert {file: list(ranges) for file, ranges in journal.done.items()} == {0: [(0, 10)]}
    journal.record(Chunk(0, 10, 30))
    journal.close()
    assert path.read_bytes() == b"[0,0,10]\n[0,10,30]\n"


def test_patience_grows_and_respects_what_the_origin_asks_for() -> None:
    policy, rng = RetryPolicy(1.0, 60.0), random.Random(1)
    for failures, ceiling in ((1, 1.0), (2, 2.0), (4, 8.0), (50, 60.0)):
        assert ceiling / 2 <= policy.delay_s(SourceError("x"), failures, rng) <= ceiling
    assert policy.delay_s(SourceThrottled("x", retry_after_s=120.0), 1, rng) == 120.0
    assert policy.delay_s(SourceExpired("x"), 1, rng) <= 2.0, "the hub's locations stay the same, and sign other links"
    assert policy.delay_s(SourceUnsupported("x"), 1, rng) >= 30.0, (
        "what trying cannot help is tried at the slowest pace"
    )


def test_a_budget_of_bytes_is_shared_and_not_saved_up() -> None:
    now = [0.0]
    limit = RateLimit(100.0, clock=lambda: now[0])
    assert [limit.spend(50), limit.spend(50)] == [0.5, 1.0]
    now[0] = 60.0
    assert limit.spend(50) == 0.5
    assert RateLimit(None).spend(1 << 40) == 0.0


def test_the_speed_is_that_of_the_last_seconds() -> None:
    now = [100.0]
    meter = RateMeter(clock=lambda: now[0])
    for _ in range(20):
        now[0] += 1.0
        meter.add(50)
    assert meter.rate() == pytest.approx(50.0, rel=0.15)
    now[0] += 30.0
    assert meter.rate() == 0.0


def test_the_first_bytes_alone_are_no_rate() -> None:
    now = [100.0]
    meter = RateMeter(clock=lambda: now[0])
    now[0] += 5.0  # nothing came yet
    meter.add(50)
    assert meter.rate() == 0.0
    now[0] += 2.0
    meter.add(50)
    assert meter.rate() == pytest.approx(50.0)
