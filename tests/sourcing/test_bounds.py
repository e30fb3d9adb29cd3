"""Origins without end: whatever one answers, a resolution ends, with a reason, in bounded memory and time."""

from __future__ import annotations

import asyncio
import gzip
import http.server
import io
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem
from huggingface_hub import close_session

from actors.errors import SourceError
from actors.manifest import ModelSource
from actors.sources.bounds import (
    MAX_DOCUMENT_BYTES,
    MAX_VALUES,
    Bounds,
    Limits,
    ListingTooLarge,
    ListingTooSlow,
    bounded,
    current,
    decoded,
    limits_of,
)
from actors.sources.listings import watched
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from actors.transport.guard import carried

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]
FEW_ATTEMPTS = 2
"""Of s3fs, which by itself makes five, with pauses of two seconds in all."""
QUICK = Limits(seconds=0.75, seconds_per_file=0.0)


@pytest.fixture(autouse=True)
def _closed_connections() -> Iterator[None]:
    yield
    close_session()


@contextmanager
def server(answer: Answer) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            try:
                answer(self)
            except OSError:
                self.close_connection = True

        do_HEAD = do_GET  # noqa: N815  # as the server calls it

        def log_message(self, *_: object) -> None: ...

    class Quiet(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None: ...

    running = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"127.0.0.1:{running.server_port}"
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


def sends(body: bytes, kind: str = "application/json", **headers: str) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", kind)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return answer


def trickles(request: http.server.BaseHTTPRequestHandler) -> None:
    """A byte now and then, each well within the time that one read may take."""
    request.send_response(200)
    request.send_header("Content-Type", "application/json")
    request.end_headers()
    for _ in range(200):
        request.wfile.write(b" ")
        request.wfile.flush()
        time.sleep(0.05)


def trickles_headers(request: http.server.BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(200):
        request.wfile.write(b"X-%d: y\r\n" % number)
        request.wfile.flush()
        time.sleep(0.05)


def endless(request: http.server.BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Type", "application/json")
    request.end_headers()
    while True:
        request.wfile.write(b" " * (1 << 20))


def redirects(request: http.server.BaseHTTPRequestHandler) -> None:
    request.send_response(302)
    request.send_header("Location", request.path + "x")
    request.send_header("Content-Length", "0")
    request.end_headers()


def page(keys: int, truncated: bool, token: str, start: int = 0) -> bytes:
    entries = "".join(
        f"<Contents><Key>k/{start + n:09}</Key><Size>5</Size><ETag>&quot;d41d8cd98f00b204e9800998ecf8427e&quot;</ETag>"
        "<LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
        for n in range(keys)
    )
    following = f"<NextContinuationToken>{token}</NextContinuationToken>" if truncated else ""
    return (
        f'<?xml version="1.0"?><ListBucketResult><Name>b</Name><IsTruncated>{str(truncated).lower()}</IsTruncated>'
        f"{following}{entries}</ListBucketResult>"
    ).encode()


def s3_endless(keys: int, token: Callable[[int], str]) -> Answer:
    count = itertools.count()

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        number = next(count)
        sends(page(keys, True, token(number), number * keys), "application/xml")(request)

    return answer


def asked(kind: str, place: str) -> tuple[str, dict[str, str]]:
    """The URI of a model at that server, and what it takes to ask there."""
    match kind:
        case "hf":
            return "hf://owner/name", {"HF_ENDPOINT": f"http://{place}"}
        case "s3":
            keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "word", "AWS_DEFAULT_REGION": "us-east-1"}
            return "s3://bucket/k", {"AWS_ENDPOINT_URL": f"http://{place}", **keys}
        case "oci":
            return f"oci://{place}/owner/name:v1", {}
        case "http":
            return f"http://{place}/model.bin", {}
        case "hdfs":
            host, _, port = place.partition(":")
            return "hdfs:///models/k", {"STORAGE_OPTIONS": json.dumps({"host": host, "port": int(port)})}
    raise AssertionError(kind)


def failure(kind: str, place: str, limits: Limits | None = None, timeout_s: float = 5.0) -> SourceError:
    uri, env = asked(kind, place)
    with pytest.raises(SourceError) as caught:
        resolve(ModelSource(uri), SourceOptions(env, timeout_s), limits=limits)
    return caught.value


# Time


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hf", "s3", "oci", "hdfs"])
@pytest.mark.parametrize("answer", [trickles, trickles_headers], ids=["a body", "headers"])
def test_an_origin_that_trickles_is_given_up_when_the_time_is_over(kind: str, answer: Answer) -> None:
    with server(answer) as place:
        began = time.monotonic()
        error = failure(kind, place, QUICK)
        assert time.monotonic() - began < 5
    assert (error.reason, error.retryable) == ("ListingTooSlow", True)
    assert "within 1 s" in str(error)


@pytest.mark.slow
def test_a_web_server_that_trickles_its_headers_is_given_up_too() -> None:
    with server(trickles_headers) as place:
        assert failure("http", place, QUICK).reason == "ListingTooSlow"


@pytest.mark.slow
def test_a_server_that_never_speaks_ends_with_the_resolution_and_leaves_no_thread() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        for kind in ("hf", "oci", "http", "hdfs", "s3"):
            began = time.monotonic()
            assert failure(kind, place, QUICK, timeout_s=60).reason == "ListingTooSlow", kind
            assert time.monotonic() - began < 5, kind
    assert not [thread for thread in threading.enumerate() if thread.name == "bounds"]


def test_the_time_grows_with_what_has_been_listed() -> None:
    now = [0.0]
    bounds = Bounds(Limits(seconds=10, seconds_per_file=0.1), "it", lambda: now[0])
    bounds.files(100)
    now[0] = 19.9
    bounds.check()
    now[0] = 20.0
    with pytest.raises(ListingTooSlow, match="it could not be listed within 20 s"):
        bounds.check()


# Bytes


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hf", "s3", "oci", "hdfs"])
def test_a_document_without_end_is_not_taken_into_memory(kind: str) -> None:
    with server(endless) as place:
        error = failure(kind, place)
    assert error.reason == "ListingTooLarge"
    assert f"more than {4 if kind == 'oci' else 32}Mi in one document" in str(error)


@cache
def bomb(encoding: str, size: int) -> bytes:
    if encoding == "gzip":
        out = io.BytesIO()
        with gzip.GzipFile(fileobj=out, mode="wb", compresslevel=1) as packed:
            for _ in range(size >> 20):
                packed.write(b" " * (1 << 20))
            packed.write(b"{}")
        return out.getvalue()
    packing = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS if encoding == "deflate" else -zlib.MAX_WBITS)
    return b"".join([*(packing.compress(b" " * (1 << 20)) for _ in range(size >> 20)), packing.flush()])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hf", "s3", "oci", "hdfs"])
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "raw deflate", "gzip, gzip", "br", "zstd"])
def test_a_compressed_answer_is_bounded_by_what_comes_out_of_it(kind: str, encoding: str) -> None:
    body = bomb("gzip" if "gzip" in encoding else encoding, 64 << 20)
    with server(sends(body, Content_Encoding=encoding.removeprefix("raw "))) as place:
        error = failure(kind, place)
    assert error.reason in ("ListingTooLarge", "InvalidAnswer", "InvalidManifest", "SourceError"), str(error)
    if kind == "hf" and encoding in ("gzip", "deflate", "raw deflate"):
        assert error.reason == "ListingTooLarge"


def test_a_document_of_many_tiny_values_is_refused_before_it_is_parsed() -> None:
    body = b"[" + b"{}," * (MAX_VALUES // 2 + 10) + b"{}]"
    assert len(body) < MAX_DOCUMENT_BYTES
    with server(sends(body)) as place:
        assert failure("hf", place).reason == "ListingTooLarge"


@pytest.mark.parametrize("kind", ["hf", "oci", "hdfs"])
def test_a_document_that_is_nested_without_end_is_an_answer_that_nobody_understands(kind: str) -> None:
    with server(sends(b"[" * 200_000 + b"]" * 200_000)) as place:
        assert failure(kind, place).reason in ("InvalidAnswer", "InvalidManifest", "SourceError")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "identity", "", "x-gzip"])
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_what_is_decoded_is_what_was_encoded(encoding: str, size: int) -> None:
    text = bytes(range(256)) * 300
    coders: dict[str, Callable[[bytes], bytes]] = {"deflate": zlib.compress, "identity": bytes, "": bytes}
    packed = coders.get(encoding, gzip.compress)(text)
    blocks = [packed[at : at + size] for at in range(0, len(packed), size)]
    assert b"".join(decoded(blocks, encoding)) == text


@pytest.mark.parametrize("cut", [1, 10, -1])
def test_a_compressed_answer_that_breaks_off_is_no_answer(cut: int) -> None:
    with pytest.raises(SourceError, match=r"breaks off|cannot be decompressed"):
        list(decoded([gzip.compress(b"text" * 1000)[:cut]], "gzip"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hf", "s3", "oci", "hdfs"])
def test_no_encoding_is_asked_for_that_is_not_read_in_bounded_pieces(kind: str) -> None:
    found: list[str | None] = []

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        found.append(request.headers.get("Accept-Encoding"))
        sends(b"{}")(request)

    with server(answer) as place:
        failure(kind, place)
    assert {encoding.strip() for each in found for encoding in (each or "").split(",")} <= {
        "gzip",
        "deflate",
        "identity",
    }


@pytest.mark.slow
def test_all_that_comes_counts_whoever_reads_it() -> None:
    def gives(request: http.server.BaseHTTPRequestHandler) -> None:
        sends(page(1000, True, str(time.monotonic_ns())), "application/xml")(request)

    with server(gives) as place:
        error = failure("s3", place, Limits(received_bytes=1 << 20, files=10**9, pages=10**9))
    assert (error.reason, error.retryable) == ("ListingTooLarge", False)
    assert "more than 1Mi when it is listed" in str(error)


# Files, pages, depth, redirects


@pytest.mark.slow
def test_an_endless_listing_ends_at_the_number_of_files_that_a_model_may_have() -> None:
    with server(s3_endless(1000, str)) as place:
        error = failure("s3", place, Limits(files=2500))
    assert (error.reason, error.retryable) == ("ListingTooLarge", False)
    assert "s3://bucket/k lists more than 2500 files" in str(error)
    assert "LOCALMODEL_MAX_FILES" in str(error)


@pytest.mark.slow
def test_an_endless_listing_of_nothing_ends_at_the_number_of_pages() -> None:
    with server(s3_endless(0, str)) as place:
        error = failure("s3", place, Limits(pages=20))
    assert (error.reason, "in more than 20 pages" in str(error)) == ("ListingTooLarge", True)


@pytest.mark.slow
def test_a_listing_that_goes_in_a_circle_is_left() -> None:
    with server(s3_endless(3, lambda number: "ab"[number % 2])) as place:
        error = failure("s3", place)
    assert (error.reason, error.retryable) == ("InvalidAnswer", True)
    assert "page 3 leads back" in str(error)


def test_a_folder_of_more_files_than_a_model_may_have_is_refused_by_its_number(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / str(number)).touch()
    with pytest.raises(ListingTooLarge, match="more than 10 files"):
        resolve(ModelSource(tmp_path.as_uri()), SourceOptions(), limits=Limits(files=10))
    assert len(resolve(ModelSource(tmp_path.as_uri()), SourceOptions()).manifest.files) == 12


def test_folders_within_folders_end_somewhere(tmp_path: Path) -> None:
    deepest = tmp_path.joinpath(*("d" for _ in range(110)))
    deepest.mkdir(parents=True)
    (deepest / "file").touch()
    with pytest.raises(SourceError, match="more than 100 folders deep"):
        resolve(ModelSource(tmp_path.as_uri()), SourceOptions())


def test_folders_of_any_filesystem_end_somewhere() -> None:
    class Down(AbstractFileSystem):  # type: ignore[misc]  # has no types
        def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
            return [{"name": f"{path}/d", "type": "directory", "size": 0}]

    filesystem = Down(skip_instance_cache=True)
    with (
        bounded("it", Limits()) as bounds,
        watched(filesystem, "root", bounds),
        pytest.raises(ListingTooLarge, match="more than 100 folders within each other"),
    ):
        filesystem.find("root", detail=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hf", "http", "oci", "s3", "hdfs"])
def test_redirects_without_end_are_not_followed_without_end(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    count = itertools.count()
    if kind == "s3":
        monkeypatch.setattr("s3fs.S3FileSystem.retries", FEW_ATTEMPTS)

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        next(count)
        redirects(request)

    with server(answer) as place:
        failure(kind, place)
    assert next(count) < 80


@pytest.mark.slow
def test_a_library_that_sleeps_before_it_tries_again_is_not_waited_for() -> None:
    class Sleeps(AsyncFileSystem):  # type: ignore[misc]  # has no types
        async def _find(self, path: str, **_: Any) -> dict[str, Any]:
            await asyncio.sleep(60)
            return {}

    filesystem = Sleeps(skip_instance_cache=True)
    began = time.monotonic()
    with pytest.raises(ListingTooSlow), bounded("it", QUICK) as bounds, watched(filesystem, "root", bounds):
        filesystem.find("root", detail=True)
    assert time.monotonic() - began < 5


# What is bounded by whom


def test_a_thread_of_a_pool_is_bounded_with_its_resolution() -> None:
    with bounded("it", Limits()) as bounds:
        found: list[Any] = []
        ask = carried(lambda: found.append(current()))
        for function in (ask, lambda: found.append(current())):
            thread = threading.Thread(target=function)
            thread.start()
            thread.join()
    assert found[0] is bounds
    assert found[1] is not bounds


def test_what_is_not_resolved_is_not_bounded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with bounded("it", Limits()) as bounds:
            bounds.end(ListingTooSlow("over"))
            with pytest.raises(OSError, match="over"):
                socket.create_connection(listening.getsockname())
        socket.create_connection(listening.getsockname()).close()


@pytest.mark.parametrize(
    ("text", "files"),
    [("250000", 250_000), ("", 100_000), ("0", 100_000), ("-1", 100_000), ("1e9", 100_000), ("٣", 100_000)],
)
def test_an_operator_can_allow_more_files(text: str, files: int) -> None:
    assert limits_of({"LOCALMODEL_MAX_FILES": text}).files == files


# Memory, as a process of its own has it

PROGRAM = """
import json, sys
from actors.manifest import ModelSource
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
import actors.sources.huggingface
def peak():
    return next(int(line.split()[1]) >> 10 for line in open('/proc/self/status') if line.startswith('VmHWM'))
before = peak()
try:
    said = len(resolve(ModelSource(sys.argv[1]), SourceOptions(json.loads(sys.argv[2]), 30)).manifest.files)
except Exception as error:
    said = getattr(error, 'reason', repr(error))
print(json.dumps([said, peak() - before]))
"""


def measured(kind: str, place: str, files: int = 100_000) -> tuple[Any, int]:
    """What came of it, and the MiB that it took at most, where so many files are allowed."""
    uri, env = asked(kind, place)
    command = [sys.executable, "-c", PROGRAM, uri, json.dumps(env)]
    allowed = {**os.environ, "LOCALMODEL_MAX_FILES": str(files)}
    done = subprocess.run(command, capture_output=True, check=True, timeout=120, env=allowed)
    said, mib = json.loads(done.stdout)
    return said, mib


@pytest.mark.slow
def test_a_bomb_takes_little_memory() -> None:
    with server(sends(bomb("gzip", 512 << 20), Content_Encoding="gzip")) as place:
        said, mib = measured("hf", place)
    assert said == "ListingTooLarge"
    assert mib < 150


def tree_of(count: int) -> Answer:
    """A repository of so many files, a thousand to a page, as the hub lists it."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        if "/tree/" not in request.path:
            described = {"id": "owner/name", "sha": "0" * 40, "gated": False, "siblings": []}
            sends(json.dumps(described).encode())(request)
            return
        start = int(request.path.partition("cursor=")[2] or 0)
        entries = [
            {"type": "file", "path": f"folder-{n % 100:03}/a-longer-name-of-a-file-{n:06}.bin", "size": n}
            | {"oid": f"{n:040x}", "lfs": {"oid": f"{n:064x}", "size": n, "pointerSize": 134}}
            for n in range(start, min(start + 1000, count))
        ]
        following = f"{request.path.partition('&cursor=')[0]}&cursor={start + 1000}"
        link = {"Link": f'<{following}>; rel="next"'} if start + 1000 < count else {}
        sends(json.dumps(entries).encode(), **link)(request)

    return answer


@pytest.mark.slow
@pytest.mark.parametrize("files", [100_000, 101_000])
def test_a_repository_of_as_many_files_as_may_be_takes_bounded_memory(files: int) -> None:
    with server(tree_of(files)) as place:
        said, mib = measured("hf", place)
    assert said == (files if files <= 100_000 else "ListingTooLarge")
    assert mib < 250, mib


@pytest.mark.slow
def test_an_endless_bucket_takes_memory_for_as_many_files_as_may_be() -> None:
    with server(s3_endless(1000, str)) as place:
        said, mib = measured("s3", place, 10_000)
    assert said == "ListingTooLarge"
    assert mib < 100, mib


LONG = 4 << 20
"""Of one name: a few of them in each of many pages are more memory than files."""


def long_names_on_the_hub(request: http.server.BaseHTTPRequestHandler) -> None:
    if "/tree/" not in request.path:
        tree_of(0)(request)
        return
    number = int(request.path.partition("cursor=")[2] or 0)
    entry = {"type": "file", "path": f"{number}{'a' * LONG}", "size": 1, "oid": "0" * 40}
    following = f"{request.path.partition('&cursor=')[0]}&cursor={number + 1}"
    body = gzip.compress(json.dumps([entry]).encode(), 1)
    sends(body, Content_Encoding="gzip", Link=f'<{following}>; rel="next"')(request)


def long_fields_in_a_bucket() -> Answer:
    count = itertools.count()

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        number = next(count)
        body = page(1, True, str(number), number).replace(b"<ETag>", b"<ETag>" + b"e" * LONG)
        sends(body, "application/xml")(request)

    return answer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "answer"),
    [("hf", long_names_on_the_hub), ("s3", long_fields_in_a_bucket())],
    ids=["names in a repository", "fields in a bucket"],
)
def test_what_a_listing_says_of_few_files_is_bounded_in_all(kind: str, answer: Answer) -> None:
    with server(answer) as place:
        said, mib = measured(kind, place)
    assert said == "ListingTooLarge"
    assert mib < 450, mib


RANGE = """
import json, sys
from actors.sources.resolve import read_range
def peak():
    return next(int(line.split()[1]) >> 10 for line in open('/proc/self/status') if line.startswith('VmHWM'))
try:
    said = len(read_range(sys.argv[1], json.loads(sys.argv[2]), 0, 1 << 20))
except Exception as error:
    said = str(error)
print(json.dumps([said, peak()]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["s3", "hdfs"])
def test_a_range_that_is_answered_without_end_takes_little_memory(kind: str) -> None:
    with server(endless) as place:
        host, _, port = place.partition(":")
        uri, storage = {
            "s3": ("s3://bucket/k", {"anon": True, "endpoint_url": f"http://{place}"}),
            "hdfs": ("webhdfs:///k", {"host": host, "port": int(port)}),
        }[kind]
        command = [sys.executable, "-c", RANGE, uri, json.dumps(storage)]
        done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    said, mib = json.loads(done.stdout)
    assert "more than" in said
    assert mib < 250, mib


def test_a_page_is_known_again_by_a_link_of_any_length() -> None:
    with bounded("it", Limits()) as bounds:
        bounds.page("a" * LONG)
        bounds.page("b")
        with pytest.raises(SourceError, match="circle"):
            bounds.page("a" * LONG)


@pytest.mark.parametrize("sha", ["a" * 50_000, "../../x", "\x1b[2J", "", 5, ["x"], "a/b"])
def test_a_commit_that_is_none_is_refused(sha: object) -> None:
    """It stands in the URL of every file, and in the status of the cache."""
    with server(sends(json.dumps({"id": "owner/name", "sha": sha, "gated": False, "siblings": []}).encode())) as place:
        assert failure("hf", place).reason == "InvalidAnswer"
