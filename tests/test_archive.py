"""Archives: what they hold is published, verified and bounded; what could do harm is refused whole."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import stat
import subprocess
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors import archive
from actors.agent import AgentSettings, NodeAgent
from actors.archive import unpack
from actors.errors import InsufficientStorage, IntegrityError, SourceUnsupported
from actors.manifest import Manifest, ManifestFile, ModelSource, StorageKey, storage_key
from actors.messages import DesiredModel, DesiredRoot, DesiredState, ModelReport, NodeName, Phase
from actors.origin import SourceOptions
from actors.source import resolve
from actors.store import open_ingest, read_marker
from coordinator import cli
from coordinator.dev.faults import Fault
from coordinator.dev.origin import Origin
from tests.waiting import eventually

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


def zip_link() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        entry = zipfile.ZipInfo("link")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        made.writestr(entry, "/etc/passwd")
    return buffer.getvalue()


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


@pytest.mark.parametrize(
    ("name", "make"),
    [
        pytest.param("m.tar", tar, id="tar"),
        pytest.param("m.tar.gz", lambda files: tar(files, "w:gz"), id="tar.gz"),
        pytest.param("m.tgz", lambda files: tar(files, "w:gz", "./"), id="tgz, as `tar czf m.tgz .` makes it"),
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
    "tar: absolute": ("m.tar", tar({"/etc/evil": b"x"}), "unsafe file name '/etc/evil'"),
    "tar: our own folder": ("m.tar", tar({".localmodel/manifest.json": b"{}"}), "unsafe file name"),
    "tar: a symbolic link": ("m.tar", special(tarfile.SYMTYPE, "/etc/passwd"), "a link or a device"),
    "tar: a hard link": ("m.tar", special(tarfile.LNKTYPE, "/etc/passwd"), "a link or a device"),
    "tar: a device": ("m.tar", special(tarfile.CHRTYPE), "a link or a device"),
    "tar: a pipe": ("m.tar", special(tarfile.FIFOTYPE), "a link or a device"),
    "tar: a file twice": ("m.tar", tar({"a": b"1"})[:1024] + tar({"a": b"2"}), "it holds 'a' twice"),
    "tar: a file as a folder": ("m.tar", tar({"a": b"1", "a/b": b"2"}), "it holds 'a/b' twice, or as a file"),
    "tar: a bomb": ("m.tar.gz", tar({"a": bytes(70 << 20)}, "w:gz"), "100 times its size"),
    "tar: a bomb of headers": ("m.tar", bomb_of_headers(), "a header in it is larger"),
    "tar: nothing": ("m.tar", tar({}), "it holds nothing but"),
    "tar: only another archive": ("m.tar", tar({"m.zip": b"x"}), "it holds nothing but another archive"),
    "zip: above the folder": ("m.zip", zipped({"a/../../evil": b"x"}), "unsafe file name"),
    "zip: backslashes": ("m.zip", zipped({"..\\evil": b"x"}), "unsafe file name"),
    "zip: a symbolic link": ("m.zip", zip_link(), "'link' in it is a link or a device"),
    "zip: a bomb": ("m.zip", zipped({"a": bytes(70 << 20)}), "100 times its size"),
    "zip: another method": ("m.zip", zipped({"a": b"x"}, zipfile.ZIP_BZIP2), "in another way than deflate"),
}


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
    "tar: cut between two files": ("m.tar", tar(FILES)[: 512 * 2]),
    "tar: a broken header": ("m.tar", damaged(tar(FILES), 1024)),
    "tar: no tar at all": ("m.tar", b"<html>" * 1000),
    "tar.gz: cut": ("m.tar.gz", tar(FILES, "w:gz")[:-20]),
    "tar.gz: a wrong byte": ("m.tar.gz", damaged(gzip.compress(tar(FILES), 0), 200_000)),
    "tar.gz: not compressed": ("m.tar.gz", tar(FILES)),
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
    with pytest.raises(InsufficientStorage, match="needs 300002 bytes and more, there is room for 200000"):
        Unpacked(tmp_path, "m.tar", tar(FILES), room_bytes=200_000)
    assert not (tmp_path / "ingest" / "unpacked").exists()
    assert (tmp_path / "ingest" / "data" / "m.tar").exists(), "it need not be fetched again"


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
        ("https://h/m.safetensors", ["m.safetensors"], False),
    ],
)
def test_what_counts_as_an_archive(uri: str, paths: list[str], packed: bool) -> None:
    manifest = Manifest(ModelSource(uri), None, tuple(ManifestFile(path, 1) for path in paths))
    assert manifest.packed is packed
