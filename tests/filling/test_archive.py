"""Archives: what they hold is published, verified and bounded; what could do harm is refused whole."""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import io
import lzma
import os
import random
import stat
import subprocess
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors.agent.agent import AgentSettings, NodeAgent
from actors.disk.store import open_ingest, read_marker
from actors.errors import InsufficientStorage, IntegrityError, SourceUnsupported
from actors.fill import unpack as archive
from actors.fill.unpack import unpack
from actors.manifest import Manifest, ManifestFile, ModelSource, StorageKey, storage_key
from actors.messages import DesiredModel, DesiredRoot, DesiredState, ModelReport, NodeName, Phase
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from coordinator import cli
from coordinator.dev.origin.faults import Fault
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.waiting import eventually

FILES = {
    "config.json": b"{}",
    "empty": b"",
    "model/weights.bin": random.Random(1).randbytes(300_000),
    "model/deep/er/ünïcode name.txt": b"x" * 512,
}
ROOM = 1 << 40
Make = Callable[[dict[str, bytes]], bytes]


def tar(files: dict[str, bytes], mode: str = "w", prefix: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as made:  # type: ignore[call-overload]  # a mode is a string
        for name, content in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def tar_of(member: tarfile.TarInfo, content: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as made:
        made.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def special(kind: bytes, target: str = "") -> bytes:
    member = tarfile.TarInfo("special")
    member.type, member.linkname = kind, target
    return tar_of(member)


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return buffer.getvalue()


def linked(files: dict[str, bytes], links: dict[str, str], after: dict[str, bytes] | None = None) -> bytes:
    """A tar of files, then of symbolic links, then of more files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as made:
        for some in (files, after or {}):
            for name, content in some.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                made.addfile(member, io.BytesIO(content))
            for name, target in links.items() if some is files else ():
                member = tarfile.TarInfo(name)
                member.type, member.linkname = tarfile.SYMTYPE, target
                made.addfile(member)
    return buffer.getvalue()


def zip_link(target: str, kind: int = stat.S_IFLNK, files: dict[str, bytes] | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        entry = zipfile.ZipInfo("link")
        entry.external_attr = (kind | 0o777) << 16
        made.writestr(entry, target)
        for name, content in (files or {}).items():
            made.writestr(name, content)
    return buffer.getvalue()


def encrypted() -> bytes:
    made = bytearray(zipped({"x": b"y"}))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        made[made.index(mark) + offset] |= 1
    return bytes(made)


def part() -> bytes:
    """The last one of a zip in several: its directory says that the file is in another."""
    made = bytearray(zipped({"x": b"y"}))
    made[made.index(b"PK\x01\x02") + 34] = 1
    return bytes(made)


class Unpacked:
    """The archive `content`, as a fill leaves it, and what came of unpacking it."""

    def __init__(
        self, folder: Path, name: str, content: bytes, *, room_bytes: int = ROOM, include: tuple[str, ...] = ()
    ) -> None:
        source = ModelSource(f"https://origin/{name}", include=include)
        packed = Manifest(source, None, (ManifestFile(name, len(content)),))
        assert packed.packed
        self.ingest = open_ingest(folder / "ingest", packed, "cluster-1")
        self.ingest.allocate()
        (self.ingest.data / name).write_bytes(content)
        self.manifest, self.verified = unpack(
            self.ingest, packed, {name: "md5"}, room_bytes=room_bytes, check=lambda: None
        )

    def files(self) -> dict[str, bytes]:
        data = self.ingest.data
        return {path.relative_to(data).as_posix(): path.read_bytes() for path in data.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make"),
    [
        pytest.param("m.tar", tar, id="tar"),
        pytest.param("m.tar.gz", lambda files: tar(files, "w:gz"), id="tar.gz"),
        pytest.param("m.tgz", lambda files: tar(files, "w:gz", "./"), id="tgz, as `tar czf m.tgz .` makes it"),
        pytest.param("m.tar.bz2", lambda files: tar(files, "w:bz2"), id="tar.bz2"),
        pytest.param("m.tbz", lambda files: tar(files, "w:bz2"), id="tbz"),
        pytest.param("m.tar.xz", lambda files: tar(files, "w:xz"), id="tar.xz"),
        pytest.param("m.txz", lambda files: lzma.compress(tar(files), preset=9), id="txz"),
        pytest.param("m.zip", zipped, id="zip"),
        pytest.param("m.zip", lambda files: zipped(files, zipfile.ZIP_STORED), id="zip, not compressed"),
    ],
)
def test_what_an_archive_holds_takes_its_place(name: str, make: Make, tmp_path: Path) -> None:
    unpacked = Unpacked(tmp_path, name, make(FILES))
    assert unpacked.files() == FILES
    assert {file.path: (file.size, file.digest) for file in unpacked.manifest.files} == {
        path: (len(content), f"sha256:{hashlib.sha256(content).hexdigest()}") for path, content in FILES.items()
    }
    assert unpacked.manifest.digest is not None
    assert unpacked.verified == dict.fromkeys(FILES, "md5")


def test_an_archive_that_gnu_tar_made_is_read(tmp_path: Path) -> None:
    for path, content in FILES.items():
        (tmp_path / "in" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / path).write_bytes(content)
    made = subprocess.run(["tar", "-C", tmp_path / "in", "-cz", "."], capture_output=True, check=True).stdout
    assert Unpacked(tmp_path, "m.tgz", made).files() == FILES


def hard_linked() -> bytes:
    buffer = io.BytesIO(tar({"v1/config.json": b"{}"}))
    with tarfile.open(fileobj=buffer, mode="a") as made:
        for name, target in {
            "again.json": "v1/config.json",
            "third.json": "./again.json",
            "/4.json": "/again.json",
        }.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.LNKTYPE, target
            made.addfile(member)
    return buffer.getvalue()


def unended(files: dict[str, bytes]) -> bytes:
    whole = tar(files)
    return whole[: sum(512 + -(-len(content) // 512) * 512 for content in files.values())]


def labelled() -> bytes:
    """As `tar -V` makes it."""
    label = tarfile.TarInfo("backup")
    label.type = b"V"
    return label.tobuf() + tar({"a": b"1"})


def sparse(folder: Path, *options: str) -> bytes:
    with (folder / "s.bin").open("wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"data")
    return subprocess.run(["tar", "-C", folder, "-Sc", *options, "s.bin"], capture_output=True, check=True).stdout


def streamed(files: dict[str, bytes]) -> bytes:
    """A zip that was written into a pipe: sizes come after the content, in zip64."""

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.got = io.BytesIO()

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]  # what zipfile writes
            return self.got.write(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in files.items():
            with made.open(name, "w", force_zip64=True) as entry:
                entry.write(content)
    return pipe.got.getvalue()


ONE = {"a": b"1", "d/b": b"2" * 1000}
ACCEPTED: dict[str, tuple[str, bytes, dict[str, bytes]]] = {
    "a member twice: the last one wins": ("m.tar", tar({"a": b"1"})[:1024] + tar({"./a": b"22"}), {"a": b"22"}),
    "an entry of a zip twice": ("m.zip", zipped({"a": b"1", "/a": b"22"}), {"a": b"22"}),
    "a file in place of a link": ("m.tar", linked({"b": b"1"}, {"a": "b"}, {"a": b"2"}), {"a": b"2", "b": b"1"}),
    "absolute names": ("m.tar", tar({"/models/a": b"1", "//b": b"2"}), {"models/a": b"1", "b": b"2"}),
    "names with empty parts": ("m.tar", tar({"./d//b": b"1", "d/./c": b"2"}), {"d/b": b"1", "d/c": b"2"}),
    "hard links": (
        "m.tar",
        hard_linked(),
        dict.fromkeys(["v1/config.json", "again.json", "third.json", "4.json"], b"{}"),
    ),
    "no end mark": ("m.tar", unended(ONE), ONE),
    "no end mark, compressed": ("m.tgz", gzip.compress(unended(ONE)), ONE),
    "one block of the end mark": ("m.tar", unended(ONE) + bytes(512), ONE),
    "zeros behind gzip": ("m.tar.gz", gzip.compress(tar(ONE)) + bytes(700), ONE),
    "something else behind gzip": ("m.tar.gz", gzip.compress(tar(ONE)) + b"junk" * 200, ONE),
    "no gzip, whatever its name says": ("m.tar.gz", tar(ONE), ONE),
    "no bzip2, whatever its name says": ("m.tar.bz2", tar(ONE), ONE),
    "gzip, whatever its name says": ("m.tar", gzip.compress(tar(ONE)), ONE),
    "xz, whatever its name says": ("m.tgz", lzma.compress(tar(ONE)), ONE),
    "several members of gzip": ("m.tar.gz", gzip.compress(tar(ONE)[:700]) + gzip.compress(tar(ONE)[700:]), ONE),
    "several streams of xz": ("m.txz", lzma.compress(tar(ONE)[:700]) + bytes(8) + lzma.compress(tar(ONE)[700:]), ONE),
    "several streams of bzip2": ("m.tbz2", bz2.compress(tar(ONE)[:700]) + bz2.compress(tar(ONE)[700:]), ONE),
    "zeros behind xz": ("m.tar.xz", lzma.compress(tar(ONE)) + bytes(512), ONE),
    "long names of pax": ("m.tar", tar({f"{'x' * 200}/{'y' * 200}": b"1"}), {f"{'x' * 200}/{'y' * 200}": b"1"}),
    "a volume's label": ("m.tar", labelled(), {"a": b"1"}),
    "what we wrote beside a copy": ("m.tar", tar({"a": b"1", ".localmodel/manifest.json": b"{}"}), {"a": b"1"}),
    "a link": ("m.tar", linked({"v/a": b"1"}, {"w/b": "../v/a"}), {"v/a": b"1", "w/b": b"1"}),
    "a link to what comes later": ("m.tar", linked({}, {"b": "a"}, {"a": b"1"}), {"a": b"1", "b": b"1"}),
    "a link to a link": ("m.tar", linked({"a": b"1"}, {"b": "c", "c": "./a"}), dict.fromkeys("abc", b"1")),
    "a link to a folder": ("m.tar", linked(ONE, {"e": "d"}), {**ONE, "e/b": ONE["d/b"]}),
    "a link to a folder with a link in it": (
        "m.tar",
        linked(ONE, {"e": "d", "d/c": "../a"}),
        {**ONE, "d/c": b"1", "e/b": ONE["d/b"], "e/c": b"1"},
    ),
    "a file behind a link": (
        "m.tar",
        linked(ONE, {"e": "d"}, {"e/f": b"3"}),
        {**ONE, "d/f": b"3", "e/b": ONE["d/b"], "e/f": b"3"},
    ),
    "a link of a zip": ("m.zip", zip_link("d/a", files={"d/a": b"1"}), {"link": b"1", "d/a": b"1"}),
    "backslashes of a zip": ("m.zip", zipped({"d\\b": b"1", "e\\": b""}), {"d/b": b"1"}),
    "a zip that was streamed": ("m.zip", streamed(ONE), ONE),
    "a zip behind something else": ("m.zip", b"#!/bin/sh\n" + zipped(ONE), ONE),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_tar_and_unzip_accept_is_accepted(case: str, tmp_path: Path) -> None:
    name, content, files = ACCEPTED[case]
    unpacked = Unpacked(tmp_path, name, content)
    assert unpacked.files() == files
    assert not any(path.is_symlink() for path in unpacked.ingest.data.rglob("*"))
    assert {file.path: file.digest for file in unpacked.manifest.files} == {
        path: f"sha256:{hashlib.sha256(content).hexdigest()}" for path, content in files.items()
    }


@pytest.mark.parametrize("options", [("--format=gnu",), ("--format=pax", "--sparse-version=1.0")])
def test_a_sparse_file_of_gnu_tar_is_whole(options: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    content = sparse(tmp_path / "in", *options)
    assert len(content) < 1 << 19
    assert Unpacked(tmp_path, "m.tar", content).files() == {"s.bin": (tmp_path / "in" / "s.bin").read_bytes()}


def test_links_take_no_room(tmp_path: Path) -> None:
    content = linked({"a": bytes(5000)}, {str(number): "a" for number in range(10)})
    assert len(Unpacked(tmp_path, "m.tar", content, room_bytes=6000).files()) == 11


def test_a_folder_that_becomes_a_link_while_it_is_unpacked_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside").mkdir()
    fsync = os.fsync

    def planted(descriptor: int) -> None:
        fsync(descriptor)
        for folder in tmp_path.rglob("unpacked/sub"):
            folder.rename(folder.with_name("away"))
            folder.symlink_to(tmp_path / "outside")

    monkeypatch.setattr(os, "fsync", planted)
    with pytest.raises(SourceUnsupported, match="as a file and as a folder"):
        Unpacked(tmp_path, "m.tar", tar({"sub/a": b"1", "sub/b": b"2"}))
    assert list((tmp_path / "outside").iterdir()) == []


def test_where_the_disk_knows_no_hard_links_they_are_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert Unpacked(tmp_path, "m.tar", hard_linked()).files()["again.json"] == b"{}"
    with pytest.raises(InsufficientStorage):
        Unpacked(tmp_path / "small", "m.tar", linked({"a": bytes(5000)}, {"b": "a"}), room_bytes=6000)


def test_a_link_to_what_is_left_out_is_refused_by_name_and_one_that_is_left_out_is_not(tmp_path: Path) -> None:
    content = linked({"a": b"1", "b": b"2"}, {"c": "a"})
    assert Unpacked(tmp_path / "1", "m.tar", content, include=("b",)).files() == {"b": b"2"}
    with pytest.raises(SourceUnsupported, match=r"'c' in it is a link to 'a', which .* include/exclude leave out"):
        Unpacked(tmp_path / "2", "m.tar", content, include=("c",))


def test_globs_select_what_is_unpacked(tmp_path: Path) -> None:
    assert Unpacked(tmp_path, "m.tar", tar(FILES), include=("*.json", "model/w*")).files().keys() == {
        "config.json",
        "model/weights.bin",
    }


def damaged(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :]


def bomb_of_headers() -> bytes:
    """A header that says that its name has a gigabyte."""
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    return member.tobuf() + bytes(10_240)


def grown(entry_says: int) -> bytes:
    """A zip whose entry holds more than it says."""
    made = bytearray(zipped({"x": b"y" * 5000}))
    directory = made.rindex(b"PK\x01\x02")
    made[directory + 24 : directory + 28] = entry_says.to_bytes(4, "little")
    return bytes(made)


REFUSED = {
    "tar: above the folder": ("m.tar", tar({"../evil": b"x"}), "unsafe file name '../evil'"),
    "tar: no name": ("m.tar", tar({"/": b"x"}), "unsafe file name '/'"),
    "tar: a name with a NUL": ("m.tar", tar({"a": b"x", "b\\c": b"x"}), "unsafe file name"),
    "tar: a name that no disk takes": ("m.tar", tar({"a" * 256: b"x"}), "longer than a disk takes"),
    "tar: our own folder only": ("m.tar", tar({".localmodel/manifest.json": b"{}"}), "it holds nothing but"),
    "tar: a link to an absolute path": ("m.tar", special(tarfile.SYMTYPE, "/etc/passwd"), "'special' .* outside of it"),
    "tar: a link that leads out": ("m.tar", special(tarfile.SYMTYPE, "../x"), "'special' .* leads out of it"),
    "tar: a link to nothing": ("m.tar", special(tarfile.SYMTYPE, "x"), "'special' .* link to 'x', which it does not"),
    "tar: a link to itself": ("m.tar", special(tarfile.SYMTYPE, "special"), "'special' .* in a circle"),
    "tar: a link to its own folder": ("m.tar", linked({"a/b": b"1"}, {"a/c": "."}), "'a/c' .* folder that it is in"),
    "tar: links to each other's folders": (
        "m.tar",
        linked({"a/f": b"1", "b/f": b"1"}, {"a/x": "../b", "b/y": "../a"}),
        "folder that it is in",
    ),
    "tar: folders of links that double": (
        "m.tar",
        linked({"30/f": b"1"}, {f"{n}/{name}": f"../{n + 1}" for n in range(30) for name in "xy"}),
        "more than 100000 files",
    ),
    "tar: a file below a link that leads out": ("m.tar", linked({}, {"a": ".."}, {"a/b": b"1"}), "leads out of it"),
    "tar: a hard link to nothing": (
        "m.tar",
        special(tarfile.LNKTYPE, "/etc/passwd"),
        "'special' .* 'etc/passwd', which",
    ),
    "tar: a hard link that leads out": ("m.tar", special(tarfile.LNKTYPE, "../x"), "unsafe file name '../x'"),
    "tar: a device": ("m.tar", special(tarfile.CHRTYPE), "'special' in it is a device"),
    "tar: a pipe": ("m.tar", special(tarfile.FIFOTYPE), "'special' in it is a pipe"),
    "tar: the rest of another volume": ("m.tar", special(b"M"), "'special' .* begins in another volume"),
    "tar: a file as a folder": ("m.tar", tar({"a": b"1", "a/b": b"2"}), "it holds 'a/b' as a file and as a folder"),
    "tar: a folder as a file": ("m.tar", tar({"a/b": b"1", "a": b"2"}), "it holds 'a' as a file and as a folder"),
    "tar: a folder as a link": ("m.tar", linked({"a/b": b"1", "c": b"2"}, {"a": "c"}), "as a file and as a folder"),
    "tar: a bomb": ("m.tar.gz", tar({"a": bytes(70 << 20)}, "w:gz"), "100 times its size"),
    "tar: a bomb of xz": ("m.tar.xz", tar({"a": bytes(70 << 20)}, "w:xz"), "100 times its size"),
    "tar: a bomb of headers": ("m.tar", bomb_of_headers(), "a header in it is larger"),
    "tar: nothing": ("m.tar", tar({}), "it holds nothing but"),
    "tar: only another archive": ("m.tar", tar({"m.zip": b"x"}), "it holds nothing but another archive"),
    "zip: above the folder": ("m.zip", zipped({"a/../../evil": b"x"}), "unsafe file name"),
    "zip: backslashes": ("m.zip", zipped({"..\\evil": b"x"}), "unsafe file name"),
    "zip: a symbolic link": ("m.zip", zip_link("/etc/passwd"), "'link' .* outside of it"),
    "zip: a device": ("m.zip", zip_link("", stat.S_IFCHR), "neither a file nor a link"),
    "zip: encrypted": ("m.zip", encrypted(), "'x' in it is encrypted"),
    "zip: a part": ("m.zip", part(), "it is one of several parts: join them"),
    "zip: a bomb": ("m.zip", zipped({"a": bytes(70 << 20)}), "100 times its size"),
    "zip: another method": ("m.zip", zipped({"a": b"x"}, zipfile.ZIP_BZIP2), "'a' in it is compressed with bzip2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_an_archive_that_could_do_harm_is_refused_whole(case: str, tmp_path: Path) -> None:
    name, content, message = REFUSED[case]
    with pytest.raises(SourceUnsupported, match=f"{name} is not unpacked: .*{message}") as caught:
        Unpacked(tmp_path, name, content)
    assert caught.value.reason == "ArchiveRefused"
    assert not (tmp_path / "ingest" / "unpacked").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ingest"], "nothing got out"


DAMAGED = {
    "tar: cut in a file": ("m.tar", tar(FILES)[:100_000]),
    "tar: cut in a header": ("m.tar", tar(FILES)[: 512 * 2 + 100]),
    "tar: a broken header": ("m.tar", damaged(tar(FILES), 1024)),
    "tar: no tar at all": ("m.tar", b"<html>" * 1000),
    "tar.gz: cut": ("m.tar.gz", tar(FILES, "w:gz")[:-20]),
    "tar.gz: a wrong byte": ("m.tar.gz", damaged(gzip.compress(tar(FILES), 0), 200_000)),
    "tar.gz: a second part that is none": ("m.tar.gz", gzip.compress(tar(ONE)[:1024]) + b"junk" * 200),
    "tar.xz: cut": ("m.tar.xz", tar(FILES, "w:xz")[:-20]),
    "tar.xz: a wrong byte": ("m.tar.xz", damaged(tar(FILES, "w:xz"), 200_000)),
    "tar.bz2: cut": ("m.tar.bz2", tar(FILES, "w:bz2")[:-20]),
    "tar.xz: another dictionary than is good for us": (
        "m.tar.xz",
        lzma.compress(tar(FILES), filters=[{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 512 << 20}]),
    ),
    "tar: empty": ("m.tar", b""),
    "zip: cut": ("m.zip", zipped(FILES)[:-30]),
    "zip: a wrong byte": ("m.zip", damaged(zipped(FILES, zipfile.ZIP_STORED), 100_000)),
    "zip: more than it says": ("m.zip", grown(10)),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_archive_is_never_published_and_asked_for_again(case: str, tmp_path: Path) -> None:
    name, content = DAMAGED[case]
    with pytest.raises(IntegrityError, match=f"{name} cannot be unpacked: ") as caught:
        Unpacked(tmp_path, name, content)
    assert caught.value.reason == "ArchiveDamaged"
    assert (tmp_path / "ingest" / "journal").read_text().splitlines()[-1] == "[0,0,-1]"


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_FILES", 3)
    with pytest.raises(SourceUnsupported, match="more than 3 files"):
        Unpacked(tmp_path, "m.tar", tar(FILES))


def test_what_does_not_fit_is_said_before_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(InsufficientStorage, match="needs 293Ki and more, there is room for 195Ki"):
        Unpacked(tmp_path, "m.tar", tar(FILES), room_bytes=200_000)
    assert not (tmp_path / "ingest" / "unpacked").exists()
    assert (tmp_path / "ingest" / "data" / "m.tar").exists(), "it need not be fetched again"


@pytest.mark.slow
def test_a_large_file_and_many_small_ones_take_little_memory(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "m.tar", "w") as made, Path("/dev/urandom").open("rb") as noise:
        for number in range(300):
            made.addfile(tarfile.TarInfo(f"{number}.json"))
        member = tarfile.TarInfo("weights")
        member.size = 64 << 20
        made.addfile(member, noise)
    packed = Manifest(ModelSource("file:///m.tar"), None, (ManifestFile("m.tar", (tmp_path / "m.tar").stat().st_size),))
    ingest = open_ingest(tmp_path / "ingest", packed, "cluster-1")
    (tmp_path / "m.tar").rename(ingest.data / "m.tar")
    tracemalloc.start()
    try:
        unpack(ingest, packed, {"m.tar": "size"}, room_bytes=ROOM, check=lambda: None)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


# From the origin to the disk of a node


class Node:
    def __init__(self, tmp_path: Path, origin: Origin, name: str) -> None:
        self.resolved = resolve(ModelSource(f"{origin.url}/files/{name}"), SourceOptions())
        self.key: StorageKey = storage_key(self.resolved.manifest.source.uri)
        self.root = tmp_path / "host" / "models"
        self.root.mkdir(parents=True)
        settings = AgentSettings(
            host_root=tmp_path / "host", headroom_bytes=0, chunk_bytes=64 << 10, backoff_first_s=0.1, backoff_max_s=0.2
        )
        self.agent = NodeAgent(NodeName("n"), settings, rng=random.Random(1))

    def until(self, phase: Phase, expected_digest: str | None = None) -> ModelReport:
        name, source = self.resolved.name, self.resolved.manifest.source
        model = DesiredModel(self.key, "/models", source, name, expected_digest)
        desired = DesiredState("c", (DesiredRoot("/models"),), (model,), {name: self.resolved})

        def look() -> ModelReport | None:
            return next((each for each in self.agent.reconcile(desired).models if each.phase is phase), None)

        report = eventually(look, every_s=0.01, seen=self.agent.report)
        assert report is not None
        return report


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    return shelf


@pytest.fixture
def origin(shelf: Path) -> Iterator[Origin]:
    with Origin(files=shelf) as origin:
        yield origin


@pytest.mark.slow
def test_an_archive_on_the_web_becomes_a_model_on_a_node(shelf: Path, origin: Origin, tmp_path: Path) -> None:
    (shelf / "m.tar.gz").write_bytes(tar(FILES, "w:gz"))
    origin.faults.set(Fault(drop_after_bytes=30_000, times=3))
    node = Node(tmp_path, origin, "m.tar.gz")
    try:
        assert node.resolved.manifest.digest is None
        ready = node.until(Phase.READY)
        folder = node.root / "models" / node.key
        assert {path: (folder / path).read_bytes() for path in FILES} == FILES
        assert not (folder / "m.tar.gz").exists()
        assert ready.bytes_total == sum(map(len, FILES.values()))
        assert ready.verified == {"size": 4}
        marker = read_marker(folder)
        assert marker is not None
        assert ready.manifest_digest == marker.manifest.digest

        assert node.until(Phase.READY, ready.manifest_digest).attempt == 0, "spec.digest is the one that status shows"
        failed = node.until(Phase.FAILED, "sha256:00")
        assert failed.failure is not None
        assert failed.failure.reason == "DigestMismatch"
    finally:
        node.agent.close()


@pytest.mark.slow
def test_a_refused_archive_is_read_again_once_it_was_replaced(shelf: Path, origin: Origin, tmp_path: Path) -> None:
    (shelf / "m.tar").write_bytes(tar({"../evil": b"x"}))
    node = Node(tmp_path, origin, "m.tar")
    try:
        failed = node.until(Phase.FAILED)
        assert failed.failure is not None
        assert failed.failure.reason == "ArchiveRefused"
        assert failed.retry_at is not None
        (shelf / "m.tar").write_bytes(tar(FILES))
        eventually(lambda: (node.until(Phase.FAILED).failure or failed.failure).reason == "SourceChanged")  # type: ignore[union-attr]  # a failure
        node.resolved = resolve(node.resolved.manifest.source, SourceOptions())  # as the coordinator does then
        node.until(Phase.READY)
    finally:
        node.agent.close()


def test_by_hand_an_archive_is_unpacked_and_verified(
    shelf: Path, origin: Origin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (shelf / "m.zip").write_bytes(zipped(FILES))
    target = tmp_path / "model"
    assert cli.main(["fill", f"{origin.url}/files/m.zip", str(target), "--exclude", "empty"]) == 0
    assert {path.name for path in target.iterdir()} == {".localmodel", "config.json", "model"}
    assert cli.main(["verify", str(target)]) == 0
    (target / "config.json").chmod(0o644)
    (target / "config.json").write_text("[]")
    assert cli.main(["verify", str(target)]) == 1
    assert "damaged: config.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("uri", "paths", "packed"),
    [
        ("https://h/m.tar.gz", ["m.tar.gz"], True),
        ("s3://b/m.zip", ["m.zip"], True),
        ("s3://b/models", ["only.tgz"], True),
        ("s3://b/models", ["a.tgz", "b.tgz"], False),
        ("hf://a/archives", ["only.zip"], False),
        ("https://h/m.tar.xz", ["m.tar.xz"], True),
        ("https://h/m.tar.zst", ["m.tar.zst"], False),
        ("https://h/m.safetensors", ["m.safetensors"], False),
    ],
)
def test_what_counts_as_an_archive(uri: str, paths: list[str], packed: bool) -> None:
    manifest = Manifest(ModelSource(uri), None, tuple(ManifestFile(path, 1) for path in paths))
    assert manifest.packed is packed
