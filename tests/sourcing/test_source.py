"""Sources as they are out there: a hub, web servers with their habits, buckets, folders; and what refusals become."""

from __future__ import annotations

import base64
import errno
import hashlib
import http.server
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from email.utils import formatdate
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from huggingface_hub import close_session, constants

from actors.disk.store import read_marker
from actors.errors import (
    SourceChanged,
    SourceDenied,
    SourceError,
    SourceExpired,
    SourceNotFound,
    SourceThrottled,
    SourceUnsupported,
)
from actors.fill.range_reader import RangeReader
from actors.manifest import Location, Manifest, ManifestFile, ModelSource, Resolved
from actors.schemes import Schemes
from actors.sources import huggingface as hub
from actors.sources.object_stores import dialect_of, in_role
from actors.sources.resolve import SourceOptions, _translated, read_range, resolve
from actors.sources.selection import select
from actors.transport import redirects as reach
from actors.transport.answers import expires_at, redact, retry_after_s, translate_status
from actors.transport.redirects import Reach
from actors.trust import Trust
from coordinator import cli
from coordinator.dev.certificates import Authority
from coordinator.dev.origin.faults import Fault
from coordinator.dev.origin.repository import Repository
from coordinator.dev.origin.sample import REPO
from coordinator.dev.origin.server import Origin
from tests.kit.tls import TlsFront

TOKEN = "hf_secret-token"
SAMPLE_BYTES = 200_000
SIGNED = "https://bucket.s3.amazonaws.com/model.bin?X-Amz-Date=20261123T080000Z&X-Amz-Expires=3600&X-Amz-Signature=abc"


@pytest.fixture(autouse=True)
def _closed_connections() -> Iterator[None]:
    yield
    close_session()


@pytest.fixture
def origin(sample: Path) -> Iterator[Origin]:
    repos: dict[str, Path | Repository] = {
        REPO: sample,
        "a/gated": Repository("a/gated", sample, token=TOKEN),
        "a/private": Repository("a/private", sample, token=TOKEN, private=True),
    }
    with Origin(repos) as running:
        yield running


def options(origin: Origin, token: str | None = None) -> SourceOptions:
    env = {"HF_ENDPOINT": origin.hub_endpoint} | ({"HF_TOKEN": token} if token else {})
    return SourceOptions(env, timeout_s=2.0)


def contents(resolved: Resolved) -> dict[str, bytes]:
    """Every file, read as an agent would: with nothing but what `resolved` carries."""
    read = {}
    for file, location in zip(resolved.manifest.files, resolved.locations, strict=True):
        if location.content is not None:
            read[file.path] = location.content
        elif location.url.startswith("http"):
            with urllib.request.urlopen(urllib.request.Request(location.url, headers=dict(location.headers))) as answer:
                read[file.path] = answer.read()
        else:
            read[file.path] = read_range(location.url, resolved.storage_options, 0, file.size)
    return read


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What an origin's answers mean


@pytest.mark.parametrize(
    ("status", "url", "error"),
    [
        pytest.param(401, "https://h/f", SourceDenied, id="401 wants credentials"),
        pytest.param(403, "https://h/f", SourceDenied, id="403 wants other credentials"),
        pytest.param(403, SIGNED, SourceExpired, id="403 for a signed URL means that it expired"),
        pytest.param(400, SIGNED, SourceExpired, id="400 for a signed URL means that its session expired"),
        pytest.param(400, "https://h/f", SourceError, id="400 is an answer like any other"),
        pytest.param(404, "https://h/f", SourceNotFound, id="404 is not there"),
        pytest.param(410, "https://h/f", SourceNotFound, id="410 is not there any more"),
        pytest.param(412, "https://h/f", SourceChanged, id="412 is another version"),
        pytest.param(416, "https://h/f", SourceChanged, id="416 is a shorter version"),
        pytest.param(429, "https://h/f", SourceThrottled, id="429 is too fast"),
        pytest.param(503, "https://h/f", SourceThrottled, id="503 is too fast"),
        pytest.param(500, "https://h/f", SourceError, id="500 can be tried again"),
    ],
)
def test_a_status_means(status: int, url: str, error: type[SourceError]) -> None:
    translated = translate_status(status, url, {"Retry-After": "7"})
    assert type(translated) is error
    assert translated.retry_after_s == (7 if error is SourceThrottled else None)
    assert f"HTTP {status}" in str(translated)
    assert "X-Amz" not in str(translated)


SENT = "Mon, 23 Nov 2026 08:00:00 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        pytest.param({}, None, id="nothing said"),
        pytest.param({"retry-after": "120"}, 120, id="seconds, in any case of the header"),
        pytest.param({"Retry-After": "99999999"}, 3600, id="a very long time is cut"),
        pytest.param({"Retry-After": "soon"}, None, id="nonsense"),
        pytest.param({"Retry-After": "Mon, 23 Nov 2026 08:01:30 GMT", "Date": SENT}, 90, id="a date, by their clock"),
        pytest.param({"Retry-After": "Mon, 23 Nov 2026 07:00:00 GMT", "Date": SENT}, 0, id="a date that has passed"),
        pytest.param({"Retry-After": formatdate(1030, usegmt=True)}, 30, id="a date, by our clock"),
        pytest.param({"RateLimit": '"resolvers";r=0;t=137'}, 137, id="the hub's rate limit window"),
        pytest.param({"RateLimit": '"api";r=0;t=137', "Retry-After": "5"}, 5, id="Retry-After wins"),
    ],
)
def test_retry_after(headers: Mapping[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, now=1000) == seconds


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:password@host:8443/a/b?X-Amz-Signature=abc#part", "https://host:8443/a/b"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("http://[::1", "<malformed URL>"),
    ],
)
def test_what_a_message_shows_of_a_url(url: str, shown: str) -> None:
    assert redact(url) == shown


@pytest.mark.parametrize(
    ("url", "at"),
    [
        pytest.param(SIGNED, 1795424400, id="AWS: date and lifetime"),
        pytest.param(SIGNED.replace("Amz", "Goog"), 1795424400, id="GCS: the same"),
        pytest.param(
            "https://cdn/f?Expires=1795424400&Signature=x&Key-Pair-Id=y", 1795424400, id="CloudFront: an epoch"
        ),
        pytest.param("https://blob/f?se=2026-11-23T09%3A00%3A00Z&sig=x", 1795424400, id="Azure: a date"),
        pytest.param("https://host/f?se=x", None, id="an unrelated parameter"),
        pytest.param("https://host/f?Expires=never", None, id="nonsense"),
        pytest.param("https://host/f", None, id="not signed"),
    ],
)
def test_until_when_a_signed_url_is_good(url: str, at: float | None) -> None:
    assert expires_at(url) == at


NAMES = ["README.md", "config.json", "model.safetensors", "onnx/model.onnx", "original/weights.pth"]


@pytest.mark.parametrize(
    ("include", "exclude", "left"),
    [
        pytest.param((), (), NAMES, id="everything"),
        pytest.param(("*.json", "*.safetensors"), (), ["config.json", "model.safetensors"], id="included by suffix"),
        pytest.param((), ("original/", "*.onnx"), NAMES[:3], id="a folder and a suffix excluded"),
        pytest.param(("*model*",), ("onnx/*",), ["model.safetensors"], id="excluded wins, * matches slashes"),
    ],
)
def test_which_files_are_wanted(include: tuple[str, ...], exclude: tuple[str, ...], left: list[str]) -> None:
    source = ModelSource("hf://a/b", None, include, exclude)
    assert [file.path for file in select(source, [ManifestFile(name, 1) for name in NAMES])] == left


def test_what_a_fill_wrote_beside_a_copy_is_no_part_of_the_next() -> None:
    names = [".localmodel/manifest.json", "a", "b/.localmodel/c", ".localmodels", ".localmodel"]
    listed = [ManifestFile(name, 1) for name in names]
    kept = select(ModelSource("s3://b/m"), listed)
    assert [file.path for file in kept] == ["a", "b/.localmodel/c", ".localmodels"]


def test_a_folder_that_was_filled_is_the_source_of_the_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "config.json").write_text("{}")
    for source, target in (("first", "second"), ("second", "third")):
        assert cli.main(["fill", f"file://{tmp_path / source}", str(tmp_path / target)]) == 0
    assert cli.main(["verify", str(tmp_path / "third")]) == 0
    marker = read_marker(tmp_path / "third")
    assert marker is not None
    assert [file.path for file in marker.manifest.files] == ["config.json"]


def test_wanting_none_of_the_files_is_an_error() -> None:
    with pytest.raises(SourceNotFound, match="none of its 1 files is selected"):
        select(ModelSource("hf://a/b", None, ("*.gguf",)), [ManifestFile("config.json", 1)])


# Options


def test_options_take_only_known_names_from_the_environment_and_never_print_them() -> None:
    environ = {"HF_TOKEN": TOKEN, "PATH": "/bin", "host.example-headers": "{}", "AWS_DEFAULT_REGION": ""}
    taken = SourceOptions.from_environ(environ)
    assert dict(taken.env) == {"HF_TOKEN": TOKEN, "host.example-headers": "{}"}
    assert TOKEN not in repr(taken)


def test_what_agents_must_have_to_read_a_source_is_not_printed() -> None:
    location = Location("https://host.example/f", headers={"Authorization": TOKEN}, content=TOKEN.encode())
    manifest = Manifest(ModelSource("https://host.example/f"), None, (ManifestFile("f", 1),))
    assert TOKEN not in repr(Resolved(manifest, (location,), storage_options={"key": TOKEN}))


def test_the_fingerprint_of_options_depends_on_nothing_but_their_content() -> None:
    one, same, other = ({"a": "1", "b": "2"}, {"b": "2", "a": "1"}, {"a": "1", "b": "3"})
    assert SourceOptions(one).fingerprint == SourceOptions(same).fingerprint != SourceOptions(other).fingerprint


@pytest.mark.parametrize(
    ("value", "expected"), [("0", False), ("False", False), ("no", False), ("1", True), ("True", True), ("", True)]
)
def test_a_flag_is_read_as_kserve_writes_it(value: str, expected: bool) -> None:
    assert SourceOptions({"S3_VERIFY_SSL": value}).flag("S3_VERIFY_SSL", default=True) is expected


def test_broken_json_in_a_secret_is_named_but_not_shown() -> None:
    with pytest.raises(SourceDenied, match="STORAGE_OPTIONS") as caught:
        SourceOptions({"STORAGE_OPTIONS": "{secret"}).mapping("STORAGE_OPTIONS")
    assert "secret" not in str(caught.value)
    assert caught.value.reason == "CredentialsInvalid"


# The hub


@pytest.mark.parametrize("token", [None, TOKEN])
def test_a_public_repository_is_pinned_verified_and_read_without_credentials(
    origin: Origin, sample: Path, token: str | None
) -> None:
    resolved = resolve(ModelSource(f"hf://{REPO}"), options(origin, token))
    files = files_below(sample)
    assert contents(resolved) == files
    assert resolved.manifest.revision == origin.repos[REPO].main.commit
    assert resolved.manifest.digest is not None
    assert resolved.expires_at is None
    assert TOKEN.encode() not in pickle.dumps(resolved)
    digests = {file.path: file.digest for file in resolved.manifest.files}
    shard = "model-00001-of-00004.safetensors"
    blob = b"blob %d\0" % len(files["config.json"]) + files["config.json"]
    assert digests[shard] == f"sha256:{hashlib.sha256(files[shard]).hexdigest()}"
    assert digests["config.json"] == f"git-sha1:{hashlib.sha1(blob).hexdigest()}"


def test_listing_a_repository_takes_its_description_and_one_page_of_its_tree(origin: Origin) -> None:
    resolve(ModelSource(f"hf://{REPO}"), options(origin))
    assert origin.stats()["requests"] == 2


@pytest.mark.parametrize("spelling", ["hf://{repo}:{commit}", "hf://{repo}@{commit}", "hf://{repo}/"])
def test_a_revision_can_be_named_in_the_uri_or_the_spec(sample: Path, tmp_path: Path, spelling: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    with Origin({REPO: sample}) as origin:
        first = origin.repos[REPO].main.commit
        origin.repos[REPO].push(tmp_path)
        source = ModelSource(spelling.format(repo=REPO, commit=first), None if first in spelling else first)
        resolved = resolve(source, options(origin))
        assert (resolved.manifest.revision, resolved.manifest.total_bytes) == (first, SAMPLE_BYTES)


def test_the_pinned_commit_wins_over_a_branch_that_moved(sample: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with Origin({REPO: sample}) as origin:
        source = ModelSource(f"hf://{REPO}:main")
        pinned = resolve(source, options(origin)).manifest.revision
        moved = origin.repos[REPO].push(tmp_path)
        assert resolve(source, options(origin)).manifest.revision == moved
        assert resolve(source, options(origin), pinned_revision=pinned).manifest.revision == pinned


@pytest.mark.parametrize("repo", ["a/gated", "a/private"])
def test_a_repository_that_takes_a_token_is_read_without_the_token(origin: Origin, sample: Path, repo: str) -> None:
    before = time.time()
    resolved = resolve(ModelSource(f"hf://{repo}"), options(origin, TOKEN))
    assert contents(resolved) == files_below(sample)
    assert TOKEN.encode() not in pickle.dumps(resolved)
    assert resolved.expires_at is not None
    assert before + 3500 < resolved.expires_at < before + 3700
    carried = [file.path for file, location in _located(resolved) if location.content is not None]
    assert not [path for path in carried if path.endswith(".safetensors")]


def _located(resolved: Resolved) -> list[tuple[ManifestFile, Location]]:
    return list(zip(resolved.manifest.files, resolved.locations, strict=True))


@pytest.mark.parametrize(
    ("uri", "token", "error", "message"),
    [
        pytest.param("hf://a/gated", None, SourceDenied, "/a/gated is gated", id="gated, no token"),
        pytest.param("hf://a/gated", "wrong", SourceDenied, "not been granted access", id="gated, another's token"),
        pytest.param("hf://a/private", None, SourceNotFound, "HF_TOKEN is not set", id="private, no token"),
        pytest.param(
            "hf://a/private", "wrong", SourceNotFound, "HF_TOKEN has no access", id="private, another's token"
        ),
        pytest.param("hf://no/such", None, SourceNotFound, "no repository", id="no such repository"),
        pytest.param(f"hf://{REPO}:v9", None, SourceNotFound, "no revision 'v9'", id="no such revision"),
        pytest.param("hf://gpt2", None, SourceUnsupported, "hf://owner/repo", id="no owner"),
        pytest.param("hf://a/b/c", None, SourceUnsupported, "spec.include", id="a folder"),
        pytest.param("hf://a/--b..c", None, SourceUnsupported, "cannot be a repository's name", id="not a name"),
    ],
)
def test_the_hub_refuses(origin: Origin, uri: str, token: str | None, error: type[SourceError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        resolve(ModelSource(uri), options(origin, token))
    assert type(caught.value) is error
    assert not caught.value.retryable


def test_two_different_revisions_are_not_guessed_between(origin: Origin) -> None:
    with pytest.raises(SourceUnsupported, match=r"names the revision 'v1', but spec\.revision says 'v2'"):
        resolve(ModelSource(f"hf://{REPO}:v1", "v2"), options(origin))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "error", "wait_s"),
    [
        pytest.param(Fault(status=429, retry_after="7"), SourceThrottled, 7, id="throttled with a time"),
        pytest.param(Fault(status=503), SourceThrottled, None, id="overloaded"),
        pytest.param(Fault(status=500), SourceError, None, id="broken"),
        pytest.param(Fault(latency_s=5), SourceError, None, id="silent"),
    ],
)
def test_a_hub_in_trouble_can_be_tried_again(
    origin: Origin, fault: Fault, error: type[SourceError], wait_s: float | None
) -> None:
    origin.faults.set(fault)
    with pytest.raises(error) as caught:
        resolve(ModelSource(f"hf://{REPO}"), replace(options(origin), timeout_s=0.3))
    assert type(caught.value) is error
    assert (caught.value.retryable, caught.value.retry_after_s) == (True, wait_s)


def test_an_unreachable_hub_can_be_tried_again(sample: Path) -> None:
    with Origin({REPO: sample}) as origin:
        endpoint = origin.url
    with pytest.raises(SourceError, match="could not be reached") as caught:
        resolve(ModelSource(f"hf://{REPO}"), SourceOptions({"HF_ENDPOINT": endpoint}))
    assert caught.value.retryable


def test_a_small_file_that_is_cut_short_is_not_passed_on(origin: Origin) -> None:
    origin.faults.set(Fault(path="*/config.json", truncate_bytes=1, method="GET"))
    with pytest.raises(SourceError, match=r"config\.json is listed with 173 bytes, but sent 172"):
        resolve(ModelSource("hf://a/gated"), options(origin, TOKEN))


def test_what_can_neither_be_signed_nor_carried_is_refused(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "MAX_CARRIED_BYTES", 1000)
    with pytest.raises(SourceDenied, match=r"tokenizer\.json.*spec\.exclude") as caught:
        resolve(ModelSource("hf://a/gated"), options(origin, TOKEN))
    assert caught.value.reason == "NotSignable"
    assert origin.stats()["bytes"] == 0
    without = ModelSource("hf://a/gated", exclude=("tokenizer.json", "*.index.json"))
    assert "config.json" in contents(resolve(without, options(origin, TOKEN)))


def test_a_listing_that_leaves_its_folder_is_refused(origin: Origin) -> None:
    snapshot = origin.repos[REPO].main
    snapshot.files["../evil"] = replace(snapshot.files["config.json"], path="../evil")
    with pytest.raises(SourceError, match="unsafe file name"):
        resolve(ModelSource(f"hf://{REPO}"), options(origin))


def test_resolving_writes_nothing_to_the_librarys_cache(origin: Origin) -> None:
    before = sorted(Path(constants.HF_HOME).rglob("*"))
    resolve(ModelSource("hf://a/gated"), options(origin, TOKEN))
    assert sorted(Path(constants.HF_HOME).rglob("*")) == before


# The web


class Scripted:
    """A web server with habits: `answers` by path, as (status, headers, body). Remembers the headers it was sent."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.received: dict[str, dict[str, str]] = {}
        scripted = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def do_GET(self) -> None:
                scripted.received[self.path] = dict(self.headers.items())
                status, headers, body = scripted.answers[self.path]
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class names it
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"


@pytest.fixture
def web() -> Iterator[Scripted]:
    scripted = Scripted()
    thread = threading.Thread(target=scripted.server.serve_forever, args=(0.05,))
    thread.start()
    yield scripted
    scripted.server.shutdown()
    scripted.server.server_close()
    thread.join()


def test_a_web_file_is_named_sized_and_tagged(origin: Origin, sample: Path) -> None:
    url = f"{origin.url}/files/{REPO}/config.json"
    resolved = resolve(ModelSource(url), SourceOptions())
    size = (sample / "config.json").stat().st_size
    assert resolved.manifest.files == (ManifestFile("config.json", size),)
    assert resolved.locations[0].url == url
    assert resolved.locations[0].etag


def test_an_empty_web_file_is_a_file(origin: Origin) -> None:
    resolved = resolve(ModelSource(f"{origin.url}/files/{REPO}/special_tokens.empty"), SourceOptions())
    assert resolved.manifest.files == (ManifestFile("special_tokens.empty", 0),)


def test_a_file_of_the_hub_by_its_url_keeps_the_hubs_digest(origin: Origin, sample: Path) -> None:
    shard = "model-00002-of-00004.safetensors"
    resolved = resolve(ModelSource(f"{origin.url}/{REPO}/resolve/main/{shard}"), SourceOptions())
    digest = hashlib.sha256((sample / shard).read_bytes()).hexdigest()
    assert resolved.manifest.files == (ManifestFile(shard, (sample / shard).stat().st_size, f"sha256:{digest}"),)  # type: ignore[arg-type]  # a digest
    assert resolved.locations[0].url.endswith(f"/resolve/main/{shard}")


SHA256 = hashlib.sha256(b"weights").digest()
ORDINARY = {"Content-Length": "7", "Content-Type": "application/octet-stream"}


@pytest.mark.parametrize(
    ("headers", "digest", "etag"),
    [
        pytest.param({"ETag": '"v1"'}, None, '"v1"', id="a strong ETag pins the version but is no digest"),
        pytest.param({"ETag": 'W/"v1"'}, None, None, id="a weak ETag does not even pin it"),
        pytest.param(
            {"Repr-Digest": f"sha-256=:{base64.b64encode(SHA256).decode()}:"},
            f"sha256:{SHA256.hex()}",
            None,
            id="RFC 9530",
        ),
        pytest.param(
            {"Digest": f"SHA-256={base64.b64encode(SHA256).decode()}"}, f"sha256:{SHA256.hex()}", None, id="RFC 3230"
        ),
        pytest.param({"Repr-Digest": "sha-256=:short:"}, None, None, id="a broken digest is none"),
        pytest.param({"Repr-Digest": "md5=:AAAAAAAAAAAAAAAAAAAAAA==:"}, None, None, id="another algorithm"),
    ],
)
def test_what_a_server_without_ranges_says_of_its_file(
    web: Scripted, headers: dict[str, str], digest: str | None, etag: str | None
) -> None:
    web.answers["/model%20v1.bin"] = (200, ORDINARY | headers, b"weights")
    resolved = resolve(ModelSource(f"{web.url}/model%20v1.bin"), SourceOptions())
    (file,), (location,) = resolved.manifest.files, resolved.locations
    assert (file.path, file.size, file.digest, location.etag) == ("model v1.bin", 7, digest, etag)


def test_headers_for_a_host_are_sent_and_given_on_but_do_not_follow_a_redirect(web: Scripted) -> None:
    web.answers["/model.bin"] = (302, {"Location": f"http://localhost:{web.port}/moved", "Content-Length": "0"}, b"")
    web.answers["/moved"] = (200, ORDINARY, b"weights")
    headers = {"Authorization": "Bearer s3cret"}
    resolved = resolve(ModelSource(f"{web.url}/model.bin"), SourceOptions({"127.0.0.1-headers": json.dumps(headers)}))
    assert resolved.locations[0].headers == headers
    assert web.received["/model.bin"]["Authorization"] == "Bearer s3cret"
    assert "Authorization" not in web.received["/moved"]
    assert web.received["/moved"]["Range"] == "bytes=0-0"

    reader = RangeReader(stall_timeout_s=5)
    for _ in range(2):  # by the redirect, and then by where it is remembered to lead
        web.received.clear()
        assert b"".join(map(bytes, reader.blocks(resolved.locations[0], {}, 7, 0, 7))) == b"weights"
        assert "Authorization" not in web.received["/moved"]
    reader.close()


def test_a_url_that_expires_says_when(web: Scripted) -> None:
    path = "/model.bin?Expires=1795424400&Signature=abc"
    web.answers[path] = (200, ORDINARY, b"weights")
    assert resolve(ModelSource(web.url + path), SourceOptions()).expires_at == 1795424400


@pytest.mark.parametrize(
    ("path", "answer", "error", "message"),
    [
        pytest.param("/m.bin", (404, {}, b""), SourceNotFound, "HTTP 404", id="absent"),
        pytest.param("/m.bin", (403, {}, b""), SourceDenied, "HTTP 403", id="forbidden"),
        pytest.param("/m.bin", (429, {"Retry-After": "3"}, b""), SourceThrottled, "again in 3s", id="throttled"),
        pytest.param(
            "/m.bin",
            (200, ORDINARY | {"Content-Type": "text/html"}, b"<html/>"),
            SourceNotFound,
            "web page",
            id="a page",
        ),
        pytest.param(
            "/m.bin", (302, {"Location": "/m.bin"}, b""), SourceNotFound, "in a circle", id="going in circles"
        ),
        pytest.param(
            "/m.bin", (302, {"Location": "file:///etc/passwd"}, b""), SourceDenied, "only http", id="going to a file"
        ),
        pytest.param("/m.bin", (302, {"Location": "ftp://h/f"}, b""), SourceDenied, "only http", id="going to ftp"),
        pytest.param("/folder/", None, SourceUnsupported, "does not name a file", id="a folder"),
    ],
)
def test_the_web_refuses(
    web: Scripted, path: str, answer: tuple[int, dict[str, str], bytes] | None, error: type[SourceError], message: str
) -> None:
    if answer is not None:
        web.answers[path] = answer
    with pytest.raises(error, match=message) as caught:
        resolve(ModelSource(web.url + path), SourceOptions())
    assert type(caught.value) is error


def test_a_redirect_to_a_less_public_address_is_refused_unless_allowed(
    web: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "reach_of", lambda host: Reach.INTERNET if host == "127.0.0.1" else Reach.HOST)
    web.answers["/m.bin"] = (302, {"Location": f"http://127.0.0.2:{web.port}/secret"}, b"")
    with pytest.raises(SourceDenied, match="less public") as caught:
        resolve(ModelSource(f"{web.url}/m.bin"), SourceOptions())
    assert caught.value.reason == "RedirectRefused"
    web.answers["/m.bin"] = (302, {"Location": f"http://localhost:{web.port}/mirror", "Content-Length": "0"}, b"")
    web.answers["/mirror"] = (200, ORDINARY, b"weights")
    allowed = SourceOptions({"LOCALMODEL_PRIVATE_REDIRECTS": "1"})
    assert resolve(ModelSource(f"{web.url}/m.bin"), allowed).manifest.total_bytes == 7


def test_a_password_in_the_url_is_refused_and_not_shown() -> None:
    with pytest.raises(SourceUnsupported, match="carries a password") as caught:
        resolve(ModelSource("https://user:s3cret@host/model.bin"), SourceOptions())
    assert "s3cret" not in str(caught.value)


def test_an_unreachable_web_server_can_be_tried_again(web: Scripted) -> None:
    with pytest.raises(SourceError, match="could not be reached") as caught:
        resolve(ModelSource("http://127.0.0.1:1/model.bin?X-Amz-Signature=s3cret"), SourceOptions())
    assert caught.value.retryable
    assert "s3cret" not in str(caught.value)


# Folders, and whatever fsspec knows


def test_a_folder_is_listed_with_sizes_and_read_in_ranges(sample: Path) -> None:
    resolved = resolve(ModelSource(f"file://{sample}"), SourceOptions())
    assert contents(resolved) == files_below(sample)
    assert {file.digest for file in resolved.manifest.files} == {None}
    selected = resolve(ModelSource(f"file://{sample}/", None, ("original/",)), SourceOptions())
    assert list(contents(selected)) == ["original/params.json"]


def test_one_file_is_a_model_too(sample: Path, tmp_path: Path) -> None:
    (tmp_path / "linked.json").symlink_to(sample / "config.json")
    resolved = resolve(ModelSource(f"file://{tmp_path}/linked.json"), SourceOptions())
    assert contents(resolved) == {"linked.json": (sample / "config.json").read_bytes()}


@pytest.mark.parametrize(
    ("uri", "error", "message"),
    [
        pytest.param("file:///no/such/folder", SourceNotFound, "does not exist", id="no such folder"),
        pytest.param("foo://bucket/model", SourceUnsupported, "no reader for foo://", id="unknown scheme"),
        pytest.param("gs://bucket/model", SourceUnsupported, r"localmodel\[gcs\]", id="a package is missing"),
        pytest.param("az://bucket/model", SourceUnsupported, r"localmodel\[azure\]", id="so is this"),
        pytest.param("oci://registry", SourceUnsupported, "oci://registry/name", id="no image"),
        pytest.param("pvc://claim/model", SourceUnsupported, "no reader for pvc://", id="a volume"),
        pytest.param("/models/llama", SourceUnsupported, "has no scheme", id="a bare path"),
        pytest.param("simplecache::s3://bucket/model", SourceUnsupported, "chains", id="chained filesystems"),
        pytest.param("hf://", SourceUnsupported, "has no scheme", id="nothing behind the scheme"),
    ],
)
def test_a_source_that_cannot_be_read(uri: str, error: type[SourceError], message: str) -> None:
    with pytest.raises(error, match=message):
        resolve(ModelSource(uri), SourceOptions())


def test_a_filesystem_that_can_sign_gives_urls_and_keeps_its_options() -> None:
    class Signing(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
        protocol = "signing"

        def __init__(self, account: str, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.account = account

        @classmethod
        def _strip_protocol(cls, path: str) -> Any:
            return super()._strip_protocol(path.removeprefix("signing:/"))

        def sign(self, path: str, expiration: float = 100, **kwargs: Any) -> str:
            return f"https://{self.account}{path}?Expires={int(1_000_000 + expiration)}&Signature=x"

    fsspec.register_implementation("signing", Signing, clobber=True)
    MemoryFileSystem().pipe({"/m/a.bin": b"abc", "/m/b/c.bin": b""})
    resolved = resolve(
        ModelSource("signing://m"),
        SourceOptions({"STORAGE_OPTIONS": '{"account": "store"}'}, trust=Trust(Schemes(frozenset({"signing"})))),
    )
    assert [location.url.partition("?")[0] for location in resolved.locations] == [
        "https://store/m/a.bin",
        "https://store/m/b/c.bin",
    ]
    assert (resolved.expires_at, resolved.storage_options) == (1_003_600, {})


def test_a_filesystem_that_cannot_sign_is_read_with_the_options_it_was_listed_with() -> None:
    MemoryFileSystem().pipe({"/n/a.bin": b"abc"})
    trust = Trust(Schemes(frozenset({"memory"})))
    options = SourceOptions({"STORAGE_OPTIONS": '{"some": "option"}'}, trust=trust)
    resolved = resolve(ModelSource("memory://n"), options)
    assert read_range(resolved.locations[0].url, resolved.storage_options, 0, 3, trust) == b"abc"
    assert resolved.storage_options == {"some": "option"}


def test_a_range_is_exact_or_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    url = f"file://{tmp_path}/file"
    assert read_range(url, {}, 2, 5) == b"234"
    with pytest.raises(SourceChanged, match="ends at byte 10, before 12"):
        read_range(url, {}, 8, 12)
    with pytest.raises(SourceNotFound):
        read_range(url + "x", {}, 0, 1)


# Buckets


class Bucket(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A store that lists whatever begins like the prefix, as object stores do, and cannot sign."""

    protocol = ("gs", "abfs")
    objects: ClassVar[dict[str, bytes]] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.partition("://")[2] or path

    def find(self, path: str, detail: bool = False, **kwargs: Any) -> Any:
        found = {name: len(content) for name, content in self.objects.items() if name.startswith(path)}
        return {name: {"name": name, "size": size, "type": "file"} for name, size in found.items()}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        return self.objects[path][start:end]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What is in the bucket of `gs://` and `abfs://`; nothing of it is public."""
    for protocol in Bucket.protocol:
        monkeypatch.setitem(import_module("fsspec.registry")._registry, protocol, Bucket)
    Bucket.objects = {"b/model/a.bin": b"abc", "b/model/c/d.bin": b"", "b/model2/evil": b"x", "b/model.old": b"y"}
    monkeypatch.setattr("actors.sources.web.is_public", lambda url, options: False)
    return Bucket.objects


@pytest.mark.parametrize("uri", ["gs://b/model", "gs://b/model/", "abfs://b/model"])
def test_a_prefix_is_a_folder_whatever_the_store_thinks(bucket: dict[str, bytes], uri: str) -> None:
    resolved = resolve(ModelSource(uri), SourceOptions())
    assert contents(resolved) == {"a.bin": b"abc", "c/d.bin": b""}


def test_a_public_bucket_of_google_becomes_plain_urls(
    bucket: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket["b/model/with space#.bin"] = b"z"
    monkeypatch.setattr("actors.sources.web.is_public", lambda url, options: url.endswith("/b/model/a.bin"))
    resolved = resolve(ModelSource("gs://b/model"), SourceOptions())
    assert [location.url for location in resolved.locations] == [
        "https://storage.googleapis.com/b/model/a.bin",
        "https://storage.googleapis.com/b/model/c/d.bin",
        "https://storage.googleapis.com/b/model/with%20space%23.bin",
    ]
    assert (resolved.expires_at, resolved.storage_options) == (None, {})


def test_a_container_in_azure_is_listed_where_no_file_is(
    bucket: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(source: ModelSource, options: SourceOptions) -> Resolved:
        raise SourceNotFound("HTTP 404")

    uri = "https://acct.blob.core.windows.net/b/model"
    monkeypatch.setattr("actors.sources.web.resolve_file", absent)
    assert contents(resolve(ModelSource(uri), SourceOptions())) == {"a.bin": b"abc", "c/d.bin": b""}

    def unreachable(source: ModelSource, options: SourceOptions) -> Resolved:
        raise SourceError("HTTP 500")

    monkeypatch.setattr("actors.sources.web.resolve_file", unreachable)
    with pytest.raises(SourceError, match="HTTP 500"):
        resolve(ModelSource(uri), SourceOptions())


STS = """<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>
<AccessKeyId>ROLEKEY</AccessKeyId><SecretAccessKey>rolesecret</SecretAccessKey><SessionToken>roletoken</SessionToken>
<Expiration>2030-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"""
KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}
ROLE = {"AWS_ROLE_ARN": "arn:aws:iam::1:role/reader"}


def test_a_role_is_assumed_with_the_keys(web: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", web.url)
    web.answers["/"] = (200, {"Content-Type": "text/xml", "Content-Length": str(len(STS))}, STS.encode())
    options = dialect_of("s3://b/m", SourceOptions(KEYS | ROLE)).storage_options
    assert (options["key"], options["secret"], options["token"]) == ("ROLEKEY", "rolesecret", "roletoken")
    assert "Credential=id/" in web.received["/"]["Authorization"]


@pytest.mark.slow
def test_a_role_that_is_refused_is_named(web: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", web.url)
    body = b"<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>"
    web.answers["/"] = (403, {"Content-Length": str(len(body))}, body)
    with pytest.raises(SourceDenied, match=r"role/reader cannot be assumed: .*AccessDenied"):
        resolve(ModelSource("s3://b/m"), SourceOptions(KEYS | ROLE))


def test_without_keys_a_role_is_left_to_boto_and_its_token_file() -> None:
    assert in_role(SourceOptions(ROLE)).env == ROLE


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        pytest.param(OSError(errno.EBUSY, "SlowDown"), SourceThrottled, id="S3's SlowDown and 503"),
        pytest.param(OSError(errno.EINVAL, "InvalidRange"), SourceChanged, id="S3's InvalidRange"),
        pytest.param(PermissionError("AccessDenied"), SourceDenied, id="a refusal"),
        pytest.param(OSError("Forbidden: b/m\nno storage.objects.list"), SourceDenied, id="Google's refusal"),
        pytest.param(type("ClientAuthenticationError", (Exception,), {})("x"), SourceDenied, id="Azure's refusal"),
        pytest.param(FileNotFoundError("NoSuchKey"), SourceNotFound, id="an absence"),
        pytest.param(TimeoutError(), SourceError, id="silence"),
        pytest.param(RuntimeError("whatever"), SourceError, id="anything else"),
        pytest.param(SourceThrottled("ours"), SourceThrottled, id="our own error, as it is"),
    ],
)
def test_what_a_filesystem_raises_means(raised: Exception, error: type[SourceError]) -> None:
    with pytest.raises(error) as caught, _translated("s3://bucket/key?X-Amz-Signature=s3cret"):
        raise raised
    assert type(caught.value) is error
    assert "s3cret" not in str(caught.value)


KEY, SECRET = "localmodelkey", "localmodelsecret"


@contextmanager
def s3_server(folder: Path, *arguments: str) -> Iterator[str]:
    rclone = shutil.which("rclone", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert rclone, "the extra `test` brings it"
    command = [rclone, "serve", "s3", "--config", "", "--addr", "127.0.0.1:0", *arguments, str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = next(line for line in process.stderr if "Starting s3 server" in line)
            yield line.partition("[")[2].partition("]")[0].rstrip("/")
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def buckets(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Path:
    folder = tmp_path_factory.mktemp("buckets")
    shutil.copytree(sample, folder / "bucket" / "models" / "sample")
    (folder / "bucket" / "models" / "sample2").mkdir()
    (folder / "bucket" / "models" / "sample2" / "evil.bin").write_bytes(b"not asked for")
    return folder


@pytest.fixture(scope="module")
def s3_env(buckets: Path) -> Iterator[dict[str, str]]:
    with s3_server(buckets, "--auth-key", f"{KEY},{SECRET}") as endpoint:
        yield {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@pytest.mark.e2e
@pytest.mark.parametrize("uri", ["s3://bucket/models/sample", "s3://bucket/models/sample/"])
def test_a_prefix_is_exactly_a_folder_and_becomes_signed_urls(s3_env: dict[str, str], sample: Path, uri: str) -> None:
    before = time.time()
    resolved = resolve(ModelSource(uri), SourceOptions(s3_env))
    files = files_below(sample)
    assert contents(resolved) == files
    digests = {file.path: file.digest for file in resolved.manifest.files}
    assert digests == {path: f"md5:{hashlib.md5(data).hexdigest()}" for path, data in files.items()}
    assert resolved.expires_at is not None
    assert before + 3500 < resolved.expires_at < before + 3700
    assert (SECRET.encode() in pickle.dumps(resolved), resolved.storage_options) == (False, {})


@pytest.mark.e2e
def test_names_of_every_kind_are_read_from_a_bucket(tmp_path: Path) -> None:
    files = {"w ü#1?%20+&.bin": b"odd" * 1000, "a/b c/$x=y;'!~.json": b"{}", "a/empty": b""}
    for name, content in files.items():
        (tmp_path / "bucket" / "m" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "bucket" / "m" / name).write_bytes(content)
    with s3_server(tmp_path, "--auth-key", f"{KEY},{SECRET}") as endpoint:
        env = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
        resolved = resolve(ModelSource("s3://bucket/m"), SourceOptions(env | {"AWS_DEFAULT_REGION": "us-east-1"}))
        reader = RangeReader(stall_timeout_s=5)
        read = {
            file.path: b"".join(map(bytes, reader.blocks(location, {}, file.size, 0, file.size)))
            for file, location in zip(resolved.manifest.files, resolved.locations, strict=True)
            if file.size
        }
        reader.close()
    assert read | {"a/empty": b""} == files


@pytest.mark.e2e
def test_a_bucket_behind_a_private_authority_is_read_with_its_bundle(
    buckets: Path, sample: Path, tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "authority")
    env = {"awsAnonymousCredential": "True", "AWS_DEFAULT_REGION": "us-east-1"}
    with s3_server(buckets) as endpoint, TlsFront(endpoint, authority.good()) as front:
        env |= {"AWS_ENDPOINT_URL": front.url}
        with pytest.raises(SourceError, match=r"(?i)certificate"):
            resolve(ModelSource("s3://bucket/models/sample"), SourceOptions(env))
        trusting = SourceOptions(env | {"AWS_CA_BUNDLE": str(authority.file)})
        resolved = resolve(ModelSource("s3://bucket/models/sample"), trusting)
        assert contents(resolved) == files_below(sample)


@pytest.mark.e2e
@pytest.mark.parametrize("bundle", ["REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"])
def test_a_bundle_in_the_environment_lists_a_bucket_and_reads_it_in_ranges(
    bundle: str, buckets: Path, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path / "authority")
    for name in ("REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(bundle, str(authority.file))
    with s3_server(buckets) as endpoint, TlsFront(endpoint, authority.good()) as front:
        env = {"awsAnonymousCredential": "True", "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": front.url}
        options = SourceOptions({**env, **SourceOptions.from_environ().env})
        resolved = resolve(ModelSource("s3://bucket/models/sample/config.json"), options)
        assert not resolved.storage_options
        (file,), (location,) = resolved.manifest.files, resolved.locations
        assert location.url.startswith(front.url)
        reader = RangeReader(stall_timeout_s=5)
        read = b"".join(map(bytes, reader.blocks(location, {}, file.size, 0, file.size)))
        reader.close()
    assert read == (sample / "config.json").read_bytes()


@pytest.mark.e2e
def test_one_object_is_a_model_too(s3_env: dict[str, str], sample: Path) -> None:
    resolved = resolve(ModelSource("s3://bucket/models/sample/config.json"), SourceOptions(s3_env))
    assert contents(resolved) == {"config.json": (sample / "config.json").read_bytes()}


@pytest.mark.e2e
@pytest.mark.parametrize(
    "uri", ["s3://bucket/models/sample", "s3://bucket/models/sample/config.json"], ids=["a prefix", "one object"]
)
def test_without_certificate_checks_agents_read_with_s3fs_themselves(
    s3_env: dict[str, str], sample: Path, uri: str
) -> None:
    resolved = resolve(ModelSource(uri), SourceOptions(s3_env | {"S3_VERIFY_SSL": "0"}))
    assert contents(resolved).items() <= files_below(sample).items()
    assert {location.url.partition(":")[0] for location in resolved.locations} == {"s3"}


@pytest.mark.e2e
def test_a_public_bucket_becomes_plain_urls(buckets: Path, sample: Path) -> None:
    with s3_server(buckets) as endpoint:
        env = {"AWS_ENDPOINT_URL": endpoint, "awsAnonymousCredential": "True"}
        resolved = resolve(ModelSource("s3://bucket/models/sample"), SourceOptions(env))
        assert contents(resolved) == files_below(sample)
    assert not [location.url for location in resolved.locations if "?" in location.url]
    assert resolved.expires_at is None


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("uri", "change", "error", "message"),
    [
        pytest.param("s3://bucket/models/sampl", {}, SourceNotFound, "holds no files", id="half a folder's name"),
        pytest.param("s3://nowhere/model", {}, SourceNotFound, "does not exist", id="no such bucket"),
        pytest.param(
            "s3://bucket/models/sample",
            {"AWS_SECRET_ACCESS_KEY": "wrong"},
            SourceDenied,
            "signature",
            id="a wrong secret",
        ),
        pytest.param(
            "s3://bucket/models/sample",
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
            SourceDenied,
            "wants credentials",
            id="no credentials",
        ),
    ],
)
def test_a_bucket_refuses(
    s3_env: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    uri: str,
    change: dict[str, str],
    error: type[SourceError],
    message: str,
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(error, match=message):
        resolve(ModelSource(uri), SourceOptions(s3_env | change))


@pytest.mark.slow
def test_an_unreachable_bucket_can_be_tried_again() -> None:
    env = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    with pytest.raises(SourceError, match="could not be reached") as caught:
        resolve(ModelSource("s3://bucket/model"), SourceOptions(env))
    assert caught.value.retryable


@pytest.mark.slow
def test_hundreds_of_globs_on_as_many_files_as_may_be_take_seconds() -> None:
    files = [ManifestFile(f"folder/{number:06}-with-a-longer-name.bin", 1) for number in range(100_000)]
    globs = tuple(f"*{number}-x" for number in range(500))
    began = time.process_time()
    with pytest.raises(SourceNotFound, match="none of its 100000 files"):
        select(ModelSource("s3://b/m", None, globs), files)
    assert len(select(ModelSource("s3://b/m", None, (), globs), files)) == 100_000
    assert time.process_time() - began < 60
