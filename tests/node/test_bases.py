"""Files of other copies that may have parts of a changed one: which are looked at, and what is done with them."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from actors.chunks import Chunk
from actors.disk.bases import MOST_BASES, MOST_MISSES, Bases, bases
from actors.disk.handles import Folder
from actors.disk.ingest import LATE_FILE_BYTES
from actors.disk.reuse import Donor, Offer, copy_range
from actors.manifest import Digest, Manifest, ManifestFile, ModelSource, make_manifest

SIZE = 1 << 20
CHUNK = 64 << 10
CONTENT = os.urandom(SIZE)


def a_file(path: str, size: int = SIZE, name: str = "a") -> ManifestFile:
    return ManifestFile(path, size, Digest(f"sha256:{name}"))


def a_manifest(*files: ManifestFile, uri: str = "hf://a/b") -> Manifest:
    return make_manifest(ModelSource(uri), "r", files)


def a_donor(name: str, *files: ManifestFile, damaged: tuple[str, ...] = ()) -> Donor:
    return Donor(name, a_manifest(*files), lambda: Folder.at(Path("/nowhere")), frozenset(damaged))


WANTED = a_manifest(a_file("x/w.bin"))

BASES: dict[str, tuple[Manifest, list[Donor], set[int], list[str]]] = {
    "the file at its path": (WANTED, [a_donor("d", a_file("x/w.bin", 5), a_file("y/w.bin"))], set(), ["d/x/w.bin"]),
    "else those of its name": (
        WANTED,
        [a_donor("d", a_file("y/w.bin", 5), a_file("z/w.bin", 6), a_file("v.bin"))],
        set(),
        ["d/y/w.bin", "d/z/w.bin"],
    ),
    "else those of its size": (WANTED, [a_donor("d", a_file("v.bin"), a_file("u.bin", 5))], set(), ["d/v.bin"]),
    "nothing that is like it in nothing": (WANTED, [a_donor("d", a_file("v.bin", 5))], set(), []),
    "of each copy, in their order": (
        WANTED,
        [a_donor("d", a_file("v.bin")), a_donor("e", a_file("x/w.bin"))],
        set(),
        ["d/v.bin", "e/x/w.bin"],
    ),
    "a few": (
        WANTED,
        [a_donor("d", *(a_file(f"{number}.bin") for number in range(9)))],
        set(),
        [f"d/{number}.bin" for number in range(MOST_BASES)],
    ),
    "none that is damaged": (WANTED, [a_donor("d", a_file("x/w.bin"), damaged=("x/w.bin",))], set(), []),
    "none for a file that is there": (WANTED, [a_donor("d", a_file("x/w.bin"))], {0}, []),
    "none for a small file": (
        a_manifest(a_file("w", LATE_FILE_BYTES)),
        [a_donor("d", a_file("w", LATE_FILE_BYTES))],
        set(),
        [],
    ),
    "none for an archive": (
        a_manifest(a_file("m.tar"), uri="https://a/m.tar"),
        [a_donor("d", a_file("m.tar"))],
        set(),
        [],
    ),
}


@pytest.mark.parametrize(("wanted", "donors", "whole", "expected"), BASES.values(), ids=BASES)
def test_a_changed_file_is_compared_with(
    wanted: Manifest, donors: list[Donor], whole: set[int], expected: list[str]
) -> None:
    found = bases(wanted, donors, whole).get(0, ())
    assert [f"{offer.donor.name}/{offer.path}" for offer in found] == expected


@pytest.fixture
def old(tmp_path: Path) -> Path:
    (tmp_path / "old").mkdir()
    path = tmp_path / "old/w.bin"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def held(old: Path) -> Iterator[Bases]:
    donor = Donor("old", a_manifest(a_file("w.bin")), lambda: Folder.at(old.parent))
    found = Bases(a_manifest(a_file("w.bin")), {0: (Offer(donor, "w.bin"),)})
    yield found
    found.close()


def longer(old: Path, by: int) -> Bases:
    """The bases that the same file is for one that is `by` bytes longer."""
    donor = Donor("old", a_manifest(a_file("w.bin")), lambda: Folder.at(old.parent))
    return Bases(a_manifest(a_file("w.bin", SIZE + by)), {0: (Offer(donor, "w.bin"),)})


def chunk(number: int) -> Chunk:
    return Chunk(0, number * CHUNK, (number + 1) * CHUNK)


def test_the_digest_of_what_a_base_has_at_the_place_of_a_chunk_is_known(held: Bases) -> None:
    for _ in range(2):
        (digest,) = held.of(chunk(3), bytearray(5000))
        assert digest == blake3(CONTENT[3 * CHUNK : 4 * CHUNK]).digest()
    assert held.of(chunk(16), bytearray(5000)) == {}, "it ends before"
    assert held.of(Chunk(1, 0, 5), bytearray(5000)) == {}, "nothing is like that file"


@pytest.mark.parametrize("by", [40, -40, 3 * CHUNK])
def test_what_a_base_has_as_far_from_its_end_is_known_where_the_wanted_file_is_longer_or_shorter(
    by: int, old: Path
) -> None:
    held = longer(old, by)
    found = held.of(chunk(5), bytearray(5000))
    start = 5 * CHUNK - by
    expected = (CONTENT[5 * CHUNK : 6 * CHUNK], CONTENT[start : start + CHUNK])
    assert set(found) == {blake3(each).digest() for each in expected}
    assert {base.place(chunk(5)) for base in found.values()} == {5 * CHUNK, start}
    held.close()


def test_what_would_begin_before_a_base_has_no_place_there(old: Path) -> None:
    held = longer(old, 40)
    assert [base.from_end for base in held.of(chunk(0), bytearray(5000)).values()] == [False]
    last = Chunk(0, SIZE - 10, SIZE + 40)
    assert [base.from_end for base in held.of(last, bytearray(5000)).values()] == [True]
    held.close()


def test_a_base_with_nothing_in_common_is_left_alone_after_a_few_chunks(held: Bases) -> None:
    for number in range(MOST_MISSES):
        offered = held.of(chunk(number % 16), bytearray(CHUNK))
        assert offered
        held.compared(offered, next(iter(offered)) if number == 3 else b"another")
    for number in range(4):
        held.compared(held.of(chunk(number), bytearray(CHUNK)), b"another")
    assert not held.of(chunk(15), bytearray(CHUNK))


@pytest.mark.parametrize("spoil", ["gone", "a link", "a fifo"])
def test_what_took_the_place_of_a_base_is_passed_over(spoil: str, old: Path, held: Bases) -> None:
    old.unlink()
    if spoil == "a link":
        (old.parent / "elsewhere").write_bytes(CONTENT)
        old.symlink_to("elsewhere")
    elif spoil == "a fifo":
        os.mkfifo(old)
    assert held.of(chunk(15), bytearray(CHUNK)) == {}


def test_a_base_that_becomes_shorter_is_used_no_more(old: Path, held: Bases) -> None:
    assert held.of(chunk(0), bytearray(CHUNK))
    os.truncate(old, CHUNK)
    assert held.of(chunk(5), bytearray(CHUNK)) == {}
    assert held.of(chunk(0), bytearray(CHUNK)) == {}


@pytest.mark.parametrize("has_copy_file_range", [True, False])
def test_a_range_is_copied_to_its_place(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_copy_file_range: bool
) -> None:
    def refused(*_: object) -> int:
        raise OSError(95, "Operation not supported")

    if not has_copy_file_range:
        monkeypatch.setattr(os, "copy_file_range", refused)
    new = tmp_path / "new"
    new.write_bytes(bytes(SIZE))
    with old.open("rb") as taken, new.open("r+b") as made:
        assert copy_range(taken.fileno(), CHUNK - 7, made.fileno(), CHUNK, 2 * CHUNK)
        assert not copy_range(taken.fileno(), SIZE - 10, made.fileno(), SIZE - 10, 20)
    expected = bytes(CHUNK) + CONTENT[CHUNK - 7 : 3 * CHUNK - 7] + bytes(SIZE - 3 * CHUNK - 10) + CONTENT[-10:]
    assert new.read_bytes() == expected


class Kernel:
    """FIDEDUPERANGE as a filesystem with reflinks answers it; with `error` as another does."""

    def __init__(self, error: int = 0, status: int = 0) -> None:
        self.error, self.status = error, status
        self.shared: list[tuple[int, int]] = []
        self.compared = 0

    def ioctl(self, taken: int, _request: int, content: bytes) -> bytes:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        self.compared += 1
        start, size, *_, made, position, _, _, _ = struct.unpack("=QQHHIqQQiI", content)
        same = os.pread(taken, size, start) == os.pread(made, size, position)
        if same and not self.status:
            self.shared.append((position, size))
        status = self.status or (0 if same else 1)
        return struct.pack("=QQHHIqQQiI", start, size, 1, 0, 0, made, position, size if same else 0, status, 0)


def shares(monkeypatch: pytest.MonkeyPatch, kernel: Kernel, held: Bases, new: Path) -> list[tuple[int, int]]:
    monkeypatch.setattr("fcntl.ioctl", kernel.ioctl)
    monkeypatch.setattr("actors.disk.bases.PIECE_BYTES", CHUNK)
    with new.open("r+b") as made:
        held.share(0, made.fileno())
    return kernel.shared


def test_a_complete_file_shares_what_is_the_same_where_the_disk_can(
    held: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "new"
    new.write_bytes(CONTENT[: 3 * CHUNK] + bytes(CHUNK) + CONTENT[4 * CHUNK :])
    expected = [(number * CHUNK, CHUNK) for number in range(16) if number != 3]
    assert shares(monkeypatch, Kernel(), held, new) == expected


@pytest.mark.parametrize(
    "kernel",
    [Kernel(errno.EOPNOTSUPP), Kernel(errno.EINVAL), Kernel(status=-errno.EINVAL)],
    ids=["none", "ioctl", "one"],
)
def test_a_disk_that_cannot_share_leaves_files_as_they_are(
    kernel: Kernel, held: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = tmp_path / "new"
    new.write_bytes(CONTENT)
    assert shares(monkeypatch, kernel, held, new) == []
    assert kernel.compared <= 2, "each way to look at a base is given up at once"
    assert new.read_bytes() == CONTENT


def test_a_file_that_has_nothing_in_common_is_not_compared_to_its_end(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old.write_bytes(CONTENT * 4)
    new = tmp_path / "new"
    new.write_bytes(bytes(4 * SIZE))
    donor = Donor("old", a_manifest(a_file("w.bin")), lambda: Folder.at(old.parent))
    held, kernel = Bases(a_manifest(a_file("w.bin", 4 * SIZE)), {0: (Offer(donor, "w.bin"),)}), Kernel()
    assert shares(monkeypatch, kernel, held, new) == []
    assert kernel.compared == MOST_MISSES
    held.close()
