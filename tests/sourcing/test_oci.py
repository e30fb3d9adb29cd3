"""Models in a registry: by digest, with and without a login, as files and as images, from resolving to the disk."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import pickle
import random
import re
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from actors.disk.store import open_ingest
from actors.errors import SourceDenied, SourceError, SourceNotFound, SourceUnsupported
from actors.fill.fill import Fill, verified_how
from actors.fill.origin_reader import FillSettings
from actors.fill.unpack import unpack
from actors.manifest import Manifest, ModelSource, Resolved
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from actors.transport import redirects as reach
from actors.transport.answers import PRIVATE_REDIRECTS

NAME = "team/llama"
WEIGHTS = random.Random(1).randbytes(300_000)
IMAGE, INDEX = "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json"
TAR = "application/vnd.oci.image.layer.v1.tar"
TITLE = "org.opencontainers.image.title"
LOGIN = base64.b64encode(b"reader:s3cret").decode()


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class Registry:
    """A registry of one repository. With `token` blobs and manifests take it, and a login gives it."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.token: str | None = None
        self.realm: str | None = None
        self.elsewhere = False
        self.seen: list[tuple[str, str]] = []
        registry = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                sent = self.headers.get("Authorization", "")
                registry.seen.append((self.path, sent))
                self.answer(*registry.answer(self.path, sent, self.headers.get("Range", "")))

            def answer(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class names it
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.host = f"127.0.0.1:{self.port}"

    def answer(self, path: str, sent: str, wanted: str) -> tuple[int, dict[str, str], bytes]:
        if path.startswith("/token?"):
            allowed = sent == f"Basic {LOGIN}" and f"scope=repository%3A{NAME.replace('/', '%2F')}%3Apull" in path
            return (200, {}, json.dumps({"token": self.token}).encode()) if allowed else (401, {}, b"")
        kind, _, reference = path.removeprefix(f"/v2/{NAME}/").partition("/")
        if kind == "cdn":
            return self.part(self.blobs[reference.partition("?")[0]], wanted)
        if self.token is not None and sent != f"Bearer {self.token}":
            realm = self.realm or f"http://{self.host}/token"
            return 401, {"WWW-Authenticate": f'Bearer realm="{realm}",service="registry"'}, b""
        if kind == "manifests" and reference in self.manifests:
            content = self.manifests[reference]
            return 200, {"Docker-Content-Digest": digest_of(content)}, content
        if kind == "blobs" and self.elsewhere:
            target = f"http://localhost:{self.port}/v2/{NAME}/cdn/{reference}?Expires=4000000000&Signature=x"
            return 307, {"Location": target}, b""
        if kind == "blobs" and reference in self.blobs:
            return self.part(self.blobs[reference], wanted)
        return 404, {}, b""

    def part(self, content: bytes, wanted: str) -> tuple[int, dict[str, str], bytes]:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        if match is None:
            return 200, {}, content
        start, stop = int(match[1]), min(int(match[2]) + 1, len(content))
        return 206, {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}, content[start:stop]

    def push(self, tag: str, document: Mapping[str, Any]) -> str:
        content = json.dumps(document).encode()
        self.manifests[tag] = self.manifests[digest_of(content)] = content
        return digest_of(content)

    def layer(self, content: bytes, kind: str, title: str | None = None) -> dict[str, Any]:
        self.blobs[digest_of(content)] = content
        annotations = {"annotations": {TITLE: title}} if title else {}
        return {"mediaType": kind, "digest": digest_of(content), "size": len(content), **annotations}

    def artifact(self, tag: str, files: Mapping[str, bytes]) -> str:
        layers = [self.layer(content, TAR, title) for title, content in files.items()]
        return self.push(tag, {"mediaType": IMAGE, "layers": layers})

    def image(self, tag: str, *layers: bytes) -> str:
        return self.push(tag, {"mediaType": IMAGE, "layers": [self.layer(each, f"{TAR}+gzip") for each in layers]})


def layer(files: Mapping[str, bytes | tarfile.TarInfo]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as made:
        for name, content in files.items():
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
            made.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return buffer.getvalue()


def link(name: str, target: str = "/etc/passwd", kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@contextmanager
def running_registry() -> Iterator[Registry]:
    registry = Registry()
    thread = threading.Thread(target=registry.server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield registry
    finally:
        registry.server.shutdown()
        registry.server.server_close()
        thread.join()


@pytest.fixture
def registry() -> Iterator[Registry]:
    with running_registry() as registry:
        yield registry


def resolved(registry: Registry, what: str = ":v1", env: Mapping[str, str] | None = None, **fields: Any) -> Resolved:
    source = ModelSource(f"oci://{registry.host}/{NAME}{what}", **fields)
    return resolve(source, SourceOptions(env or {}))


def filled(found: Resolved, folder: Path) -> tuple[dict[str, bytes], Manifest]:
    """What a fill puts on the disk."""
    ingest = open_ingest(folder / "ingest", found.manifest, "c")
    ingest.allocate()
    manifest = Fill(ingest, found, FillSettings(connections=2, chunk_bytes=64 << 10)).run()
    if manifest.packed:
        verified = verified_how(found.manifest)
        manifest, verified = unpack(ingest, manifest, verified, room_bytes=1 << 40, check=lambda: None)
        assert set(verified.values()) == {"sha256"}
    ingest.close()
    paths = [path for path in ingest.data.rglob("*") if path.is_file()]
    return {path.relative_to(ingest.data).as_posix(): path.read_bytes() for path in paths}, manifest


FILES = {"config.json": b"{}", "weights/model.safetensors": WEIGHTS}


def test_an_artifact_is_its_files_by_their_digests(registry: Registry, tmp_path: Path) -> None:
    revision = registry.artifact("v1", FILES)
    found = resolved(registry)
    assert found.manifest.revision == revision
    assert {file.path: file.digest for file in found.manifest.files} == {
        path: digest_of(content) for path, content in FILES.items()
    }
    assert found.manifest.digest is not None
    assert found.expires_at is None
    assert filled(found, tmp_path)[0] == FILES
    assert not any(sent for _, sent in registry.seen)
    assert [file.path for file in resolved(registry, include=("*.json",)).manifest.files] == ["config.json"]


def test_an_image_is_what_its_layers_hold_below_models(registry: Registry, tmp_path: Path) -> None:
    registry.image(
        "v1",
        layer({"etc/passwd": link("etc/passwd"), "models/config.json": b"old", "models/gone.bin": b"x"}),
        layer({"models/old/a": b"a", "models/old/b": b"b", "./models/1/weights.bin": WEIGHTS}),
        layer(
            {
                "models/config.json": b"new",
                "models/.wh.gone.bin": b"",
                "models/old/.wh..wh..opq": b"",
                "models/old/c": b"c",
            }
        ),
    )
    found = resolved(registry)
    assert (found.manifest.packed, found.manifest.digest) == (True, None)
    files, manifest = filled(found, tmp_path)
    assert files == {"config.json": b"new", "old/c": b"c", "1/weights.bin": WEIGHTS}
    assert {file.path for file in manifest.files} == files.keys()


def test_links_of_an_image_are_followed_below_models_and_the_rest_of_it_is_not_looked_at(
    registry: Registry, tmp_path: Path
) -> None:
    registry.image(
        "v1",
        layer({"dev/null": link("dev/null", "", tarfile.CHRTYPE), "models/v1/a": b"1", "models/b": b"old"}),
        layer(
            {
                "models/hard": link("models/hard", "models/v1/a", tarfile.LNKTYPE),
                "models/v2/absolute": link("models/v2/absolute", "/models/v1"),
                "models/top": link("models/top", "v1/a"),
                "models/b": link("models/b", "/models/hard"),
            }
        ),
        layer({"models/.wh.top": b""}),
    )
    assert filled(resolved(registry), tmp_path)[0] == dict.fromkeys(["v1/a", "hard", "v2/absolute/a", "b"], b"1")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"models/link": link("models/link")}, "'models/link' .* not below /models/"),
        ({"models/../evil": b"x"}, "unsafe file name"),
        ({"other/file": b"x"}, "nothing that include/exclude select"),
    ],
    ids=["a link", "a path that leaves", "no model"],
)
def test_an_image_that_could_do_harm_is_refused(
    members: dict[str, bytes | tarfile.TarInfo], message: str, registry: Registry, tmp_path: Path
) -> None:
    registry.image("v1", layer(members))
    with pytest.raises(SourceUnsupported, match=message) as caught:
        filled(resolved(registry), tmp_path)
    assert caught.value.reason == "ArchiveRefused"


def test_a_tag_is_pinned_and_a_digest_wins(registry: Registry) -> None:
    first = registry.artifact("v1", FILES)
    second = registry.artifact("v1", {"config.json": b"[]"})
    source = ModelSource(f"oci://{registry.host}/{NAME}:v1")
    assert resolve(source, SourceOptions()).manifest.revision == second
    assert resolve(source, SourceOptions(), pinned_revision=first).manifest.total_bytes == len(WEIGHTS) + 2
    assert resolved(registry, f"@{first}").manifest.revision == first
    assert resolved(registry, "", revision="v1").manifest.revision == second


def test_of_an_index_the_image_for_linux_is_taken(registry: Registry) -> None:
    wanted, other = registry.artifact("a", FILES), registry.artifact("b", {"x": b"y"})
    entries = [
        {"digest": other, "platform": {"os": "unknown", "architecture": "unknown"}},
        {"digest": other, "platform": {"os": "linux", "architecture": "arm64"}},
        {"digest": wanted, "platform": {"os": "linux", "architecture": "amd64"}},
    ]
    revision = registry.push("v1", {"mediaType": INDEX, "manifests": entries})
    found = resolved(registry)
    assert (found.manifest.revision, len(found.manifest.files)) == (revision, 2)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["from the registry", "from where it redirects to"])
def test_with_a_login_the_token_reads_and_goes_nowhere_else(
    elsewhere: bool, registry: Registry, tmp_path: Path
) -> None:
    registry.token, registry.elsewhere = "t0ken", elsewhere
    registry.artifact("v1", FILES)
    env = {"DOCKER_CONFIG_JSON": json.dumps({"auths": {registry.host: {"auth": LOGIN}}})}
    found = resolved(registry, env=env)
    assert found.expires_at is not None
    assert LOGIN.encode() not in pickle.dumps(found)
    assert (b"t0ken" in pickle.dumps(found)) is not elsewhere
    assert filled(found, tmp_path)[0] == FILES
    assert not [path for path, sent in registry.seen if "/cdn/" in path and sent]

    registry.token = "another"
    renewed = resolved(registry, env=env)
    assert (renewed.name == found.name) is elsewhere, "agents hear of another token"


def test_a_registry_on_the_internet_may_not_send_us_to_this_host(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.token, registry.elsewhere = "t0ken", True
    registry.artifact("v1", FILES)
    env = {"DOCKER_CONFIG_JSON": json.dumps({"auths": {registry.host: {"auth": LOGIN}}})}
    known = reach.reach_of_url
    public = f"//{registry.host}/"
    monkeypatch.setattr(reach, "reach_of_url", lambda url: reach.Reach.INTERNET if public in url else known(url))
    with pytest.raises(SourceDenied, match="less public than where it comes from"):
        resolved(registry, env=env)
    assert resolved(registry, env=env | {PRIVATE_REDIRECTS: "1"}).manifest.files


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        (":none", SourceNotFound, "HTTP 404"),
        (f"@sha256:{'0' * 64}", SourceNotFound, "HTTP 404"),
        (":zstd", SourceUnsupported, "layer 0 is of the kind .*zstd"),
        (":mixed", SourceUnsupported, "some of its layers name a file"),
        (":folder", SourceUnsupported, "cannot be unpacked"),
        (":unsafe", SourceError, "unsafe file name"),
        (":nothing", SourceNotFound, "holds no files"),
        (":lie", SourceError, "came with the digest"),
        (":page", SourceError, "cannot be understood"),
        (":list", SourceError, "cannot be understood"),
        (":index", SourceError, "cannot be understood: KeyError: 'digest'"),
        (":UPPER:x", SourceUnsupported, "not of the form"),
    ],
)
def test_what_a_registry_cannot_give_is_said(
    what: str, error: type[SourceError], message: str, registry: Registry
) -> None:
    registry.push("zstd", {"layers": [registry.layer(b"x", f"{TAR}+zstd")]})
    registry.push("mixed", {"layers": [registry.layer(b"x", TAR), registry.layer(b"y", TAR, "y")]})
    folder = registry.layer(b"x", f"{TAR}+gzip", "weights")
    folder["annotations"]["io.deis.oras.content.unpack"] = "true"
    registry.push("folder", {"layers": [folder]})
    registry.artifact("unsafe", {"../evil": b"x"})
    registry.push("nothing", {"layers": []})
    registry.manifests |= {"page": b"<html>", "list": b"[]", "index": b'{"manifests": [{}]}'}
    if what == ":lie":
        digest = registry.artifact("v1", FILES)
        registry.manifests[digest] = b"{}"
        what = f"@{digest}"
    with pytest.raises(error, match=message):
        resolved(registry, what)


def test_a_registry_that_wants_a_login_is_named(registry: Registry) -> None:
    registry.token = "t0ken"
    registry.artifact("v1", FILES)
    with pytest.raises(SourceDenied, match="HTTP 401"):
        resolved(registry)
    registry.realm = "file:///etc/passwd"
    with pytest.raises(SourceDenied, match="only http and https"):
        resolved(registry)
