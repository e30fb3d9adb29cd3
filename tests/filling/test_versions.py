"""A file without a digest is one version of what its source had, from its first byte to its last."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from actors.chunks import Chunk
from actors.disk.ingest import open_ingest
from actors.manifest import Location, ManifestFile, ModelSource, Resolved, make_manifest
from actors.sources.options import SourceOptions
from actors.sources.resolve import read_range, resolve
from coordinator.cli.fill import OWNER
from tests.command_line.test_fill import run

SIZE = 3 << 20
OLD, NEW = b"o" * SIZE, b"n" * SIZE


class Origin(http.server.ThreadingHTTPServer):
    daemon_threads = True
    content = OLD
    headers: dict[str, str]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/w.bin"
        self.headers = {}


class Handler(http.server.BaseHTTPRequestHandler):
    server: Origin

    def do_GET(self) -> None:
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        part = self.server.content[int(first) : int(last or SIZE) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{SIZE}")
        self.send_header("Content-Length", str(len(part)))
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it
        pass


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def begun(uri: str, staging: Path) -> None:
    """The first MiB of the one file is there, as a fill leaves it that is killed."""
    resolved = resolve(ModelSource(uri), SourceOptions())
    with closing(open_ingest(staging / "ingest", resolved.manifest, OWNER, resolved.versions)) as ingest:
        ingest.allocate()
        descriptor = ingest.open_file(0)
        os.pwrite(descriptor, OLD[: 1 << 20], 0)
        os.close(descriptor)
        ingest.journal.record(Chunk(0, 0, 1 << 20))


VERSIONS = {
    "an ETag": ({"ETag": '"1"'}, {"ETag": '"2"'}),
    "a date": (
        {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"},
        {"Last-Modified": "Fri, 02 Jan 2026 00:00:00 GMT"},
    ),
    "a weak ETag and a date": (
        {"ETag": 'W/"1"', "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"},
        {"ETag": 'W/"1"', "Last-Modified": "Fri, 02 Jan 2026 00:00:00 GMT"},
    ),
    "an ETag that is no longer said": ({"ETag": '"1"'}, {}),
}


@pytest.mark.parametrize(("before", "after"), VERSIONS.values(), ids=VERSIONS.keys())
def test_a_fill_that_goes_on_with_another_version_on_the_web_starts_over(
    before: dict[str, str], after: dict[str, str], origin: Origin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    origin.headers = before
    begun(origin.url, tmp_path / ".model.localmodel")
    origin.content, origin.headers = NEW, after
    assert run(capsys, "fill", origin.url, tmp_path / "model")[0] == 0
    assert (tmp_path / "model/w.bin").read_bytes() == NEW


def test_a_fill_that_goes_on_with_the_same_version_reads_on(
    origin: Origin, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    origin.headers = {"ETag": '"1"'}
    begun(origin.url, tmp_path / ".model.localmodel")
    origin.content = NEW  # which nobody says, so that it can be seen what was read
    assert run(capsys, "fill", origin.url, tmp_path / "model")[0] == 0
    assert (tmp_path / "model/w.bin").read_bytes() == OLD[: 1 << 20] + NEW[1 << 20 :]


def test_a_fill_that_goes_on_with_another_version_of_a_local_file_starts_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for content, date in ((OLD, 1), (NEW, 2)):
        (source / "w.bin").write_bytes(content)
        os.utime(source / "w.bin", (date, date))
        if content is OLD:
            begun(f"file://{source}", tmp_path / ".model.localmodel")
    assert run(capsys, "fill", f"file://{source}", tmp_path / "model")[0] == 0
    assert (tmp_path / "model/w.bin").read_bytes() == NEW


def test_an_end_between_the_two_records_leaves_nothing_of_the_other_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is of another version is forgotten before it is said of which one the ingest is now."""
    manifest = make_manifest(ModelSource("https://host/w.bin"), None, [ManifestFile("w.bin", SIZE)])

    def opened(version: str) -> bool:
        with closing(open_ingest(tmp_path / "ingest", manifest, OWNER, {"w.bin": version})) as ingest:
            return bool(ingest.journal.done)

    with closing(open_ingest(tmp_path / "ingest", manifest, OWNER, {"w.bin": "1"})) as ingest:
        ingest.journal.record(Chunk(0, 0, SIZE))
    assert opened("1")
    with monkeypatch.context() as once:
        once.setattr("actors.disk.handles.Folder.write", lambda *_, **__: (_ for _ in ()).throw(OSError(5, "cut")))
        with pytest.raises(Exception, match="cut"):
            opened("2")
    assert not opened("1")


@pytest.mark.parametrize(
    ("grows", "said"),
    [(True, "has 3145729 bytes, it had 3145728 when it was listed"), (False, "changed while it was read")],
    ids=["to another size", "in place"],
)
def test_a_local_file_that_changes_while_it_is_read_is_said(
    grows: bool, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "source/w.bin"
    path.parent.mkdir()
    listed = count(1)

    def changing(source: ModelSource, options: SourceOptions, **more: Any) -> Resolved:
        path.write_bytes(OLD)
        os.utime(path, (0, 0))
        return resolve(source, options, **more)

    def read(*arguments: Any) -> bytes:
        block = read_range(*arguments)
        path.write_bytes(NEW + b"n" * grows)
        os.utime(path, (0, next(listed)))
        return block

    monkeypatch.setattr("coordinator.cli.fill.resolve", changing)
    monkeypatch.setattr("actors.fill.range_reader.read_range", read)
    code, _, err = run(capsys, "fill", f"file://{path.parent}", tmp_path / "model")
    assert (code, said in err, "somebody writes to it: wait until that is done" in err) == (1, True, True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_fresh_locations_of_another_version_are_another_source() -> None:
    manifest = make_manifest(ModelSource("https://host/w.bin"), None, [ManifestFile("w.bin", SIZE)])
    one = Resolved(manifest, (Location("https://host/w.bin", etag='"1"', version="a date"),))
    assert one.versions == {"w.bin": '"1"'}
    assert replace(one, locations=(Location("https://host/w.bin", version="a date"),)).versions == {"w.bin": "a date"}
    vouched = make_manifest(manifest.source, None, [ManifestFile("w.bin", SIZE, "sha256:" + "0" * 64)])  # type: ignore[arg-type]  # a text will do
    assert Resolved(vouched, one.locations).versions == {}
