"""A registry with every way to be logged in to, to pack a model, and to let a token end, from resolving to the disk."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import socket
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from actors.errors import SourceDenied, SourceError, SourceUnsupported
from actors.manifest import ModelSource
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from coordinator import cli

NAME = "team/llama"
IMAGE, INDEX = "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json"
KIT = "application/vnd.kitops.modelkit"
BASIC = "Basic " + base64.b64encode(b"u:p").decode()
LIFE = 30
"""Requests that a token is good for, if it ends at all."""
FILES = {"config.json": b"{}", "weights.bin": bytes(range(256)) * 400}


class Server(http.server.ThreadingHTTPServer):
    """`lines` are what it asks for, `{here}` being itself; `gives` what its token server answers with."""

    daemon_threads = True

    def __init__(self, address: str) -> None:
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, 0), Handler)
        self.place = f"[{address}]:{self.server_port}" if ":" in address else f"{address}:{self.server_port}"
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.lines: list[str] = []
        self.gives: Mapping[str, Any] = {"token": "t"}
        self.token_status = 200
        self.accepted: set[str] = set()
        self.uses: int | None = None
        self.redirects_manifests = False
        self.asked: list[tuple[str, str, dict[str, list[str]]]] = []
        self.seen: list[tuple[str, str]] = []

    def blob(self, content: bytes, media: str, title: str = "", algorithm: str = "sha256") -> dict[str, Any]:
        digest = f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
        self.blobs[digest] = content
        annotations = {"annotations": {"org.opencontainers.image.title": title}} if title else {}
        return {"mediaType": media, "digest": digest, "size": len(content), **annotations}

    def push(self, tag: str, document: Mapping[str, Any]) -> dict[str, Any]:
        content = json.dumps(document).encode()
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.manifests[tag] = self.manifests[digest] = content
        return {"mediaType": document.get("mediaType", IMAGE), "digest": digest, "size": len(content)}

    def artifact(self, tag: str = "v1", algorithm: str = "sha256") -> dict[str, Any]:
        layers = [self.blob(content, "application/octet-stream", name, algorithm) for name, content in FILES.items()]
        config = self.blob(b"{}", "application/vnd.oci.empty.v1+json")
        return self.push(tag, {"schemaVersion": 2, "mediaType": IMAGE, "config": config, "layers": layers})


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def answer(self, status: int, content: bytes = b"", headers: list[tuple[str, str]] | None = None) -> None:
        self.send_response(status)
        for name, value in [*(headers or []), ("Content-Length", str(len(content)))]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.server.asked.append(("POST", self.headers.get("Authorization", ""), form))
        self.answer(self.server.token_status, json.dumps(self.server.gives).encode())

    def do_GET(self) -> None:
        server, sent = self.server, self.headers.get("Authorization", "")
        if self.path.startswith("/token"):
            server.asked.append(("GET", sent, parse_qs(urlsplit(self.path).query)))
            if server.uses is not None:
                token = f"t{len(server.asked)}"
                server.gives, server.accepted, server.uses = {"token": token}, {f"Bearer {token}"}, LIFE
            return self.answer(server.token_status, json.dumps(server.gives).encode())
        server.seen.append((self.path, sent))
        if server.uses is not None:
            server.uses -= 1
        if server.lines and (sent not in server.accepted or (server.uses is not None and server.uses < 0)):
            lines = [("WWW-Authenticate", line.format(here=f"http://{server.place}")) for line in server.lines]
            return self.answer(401, b"{}", lines)
        kind, _, reference = self.path.removeprefix(f"/v2/{NAME}/").partition("/")
        if kind == "manifests" and server.redirects_manifests:
            return self.answer(307, b"", [("Location", f"/v2/{NAME}/moved/{reference}")])
        content = server.blobs.get(reference) if kind == "blobs" else server.manifests.get(reference)
        if content is None:
            return self.answer(404)
        first, _, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
        if not first:
            return self.answer(200, content)
        part = content[int(first) : int(last) + 1]
        span = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        return self.answer(206, part, [("Content-Range", span)])

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class names it
        pass


@contextmanager
def running(address: str = "127.0.0.1") -> Iterator[Server]:
    server = Server(address)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as server:
        yield server


def filled(
    server: Server,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    login: Mapping[str, Any] | None = None,
    tag: str = "v1",
) -> dict[str, bytes]:
    """What `localmodel fill` makes of it."""
    if login is not None:
        monkeypatch.setenv("DOCKER_CONFIG_JSON", json.dumps({"auths": {server.place: login}}))
    target = folder / "model"
    code = cli.main(["fill", "--connections", "2", f"oci://{server.place}/{NAME}:{tag}", str(target)])
    assert code == 0
    paths = [path for path in target.rglob("*") if path.is_file() and ".localmodel" not in path.parts]
    return {path.relative_to(target).as_posix(): path.read_bytes() for path in paths}


LIVES: tuple[Any, ...] = (0, -1, None, "x", "300", 1e400, [])
BEARER = 'Bearer realm="{here}/token",service="reg",scope="repository:team/llama:pull"'
SCOPE = f"repository:{NAME}:pull"


@pytest.mark.parametrize(
    ("lines", "login", "asked"),
    [
        pytest.param([BEARER], None, ("GET", "", {"service": ["reg"], "scope": [SCOPE]}), id="for anybody"),
        pytest.param([BEARER, 'Basic realm="r"'], None, ("GET", "", {"service": ["reg"], "scope": [SCOPE]}), id="two"),
        pytest.param(
            ['Basic realm="r", ' + BEARER], None, ("GET", "", {"service": ["reg"], "scope": [SCOPE]}), id="joined"
        ),
        pytest.param(
            [
                "Negotiate",
                BEARER.upper()
                .replace("{HERE}/TOKEN", "{here}/token")
                .replace("PULL", "pull")
                .replace("TEAM/LLAMA", "team/llama")
                .replace("REPOSITORY", "repository"),
            ],
            None,
            ("GET", "", {"service": ["REG"], "scope": [SCOPE]}),
            id="in capitals",
        ),
        pytest.param(
            [BEARER],
            {"username": "u", "password": "p"},
            ("GET", BASIC, {"service": ["reg"], "scope": [SCOPE]}),
            id="a user",
        ),
        pytest.param(
            [BEARER], {"auth": BASIC.split()[1]}, ("GET", BASIC, {"service": ["reg"], "scope": [SCOPE]}), id="auth"
        ),
        pytest.param(['Bearer realm="{here}/token"'], None, ("GET", "", {"scope": [SCOPE]}), id="no service, no scope"),
        pytest.param(
            ['Bearer realm="{here}/token?account=a&service=old",service="reg"'],
            None,
            ("GET", "", {"account": ["a"], "service": ["reg"], "scope": [SCOPE]}),
            id="a realm with parameters",
        ),
        pytest.param(
            ['Bearer realm="{here}/token",scope="aws"'],
            None,
            ("GET", "", {"scope": [SCOPE, "aws"]}),
            id="a scope of its own",
        ),
        pytest.param(['Bearer realm="/token"'], None, ("GET", "", {"scope": [SCOPE]}), id="a relative realm"),
        pytest.param(
            [BEARER],
            {"identitytoken": "i"},
            (
                "POST",
                "",
                {
                    "grant_type": ["refresh_token"],
                    "refresh_token": ["i"],
                    "client_id": ["localmodel"],
                    "service": ["reg"],
                    "scope": [SCOPE],
                },
            ),
            id="an identity token",
        ),
    ],
)
def test_a_token_is_asked_for_as_docker_asks(
    lines: list[str],
    login: Mapping[str, Any] | None,
    asked: tuple[str, str, dict[str, list[str]]],
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.artifact()
    server.lines, server.accepted = lines, {"Bearer t"}
    assert filled(server, tmp_path, monkeypatch, login) == FILES
    assert server.asked == [asked]


@pytest.mark.parametrize(
    ("gives", "accepted"),
    [
        ({"access_token": "a"}, "Bearer a"),
        ({"token": "t", "access_token": "a"}, "Bearer t"),
        ({"token": "", "access_token": "a"}, "Bearer a"),
        *[({"token": "t", "expires_in": life}, "Bearer t") for life in LIVES],
    ],
)
def test_a_token_is_used_however_it_is_given(
    gives: Mapping[str, Any], accepted: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.artifact()
    server.lines, server.accepted, server.gives = [BEARER], {accepted}, gives
    assert filled(server, tmp_path, monkeypatch) == FILES


@pytest.mark.parametrize("lines", [['Basic realm="r"'], [BEARER, 'Basic realm="r"']], ids=["only", "beside a refusal"])
def test_basic_is_enough(lines: list[str], server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.artifact()
    server.lines, server.accepted, server.token_status = lines, {BASIC}, 403
    assert filled(server, tmp_path, monkeypatch, {"username": "u", "password": "p"}) == FILES


def test_a_token_of_the_registry_is_sent_as_it_is(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.artifact()
    server.lines, server.accepted = [BEARER], {"Bearer mine"}
    assert filled(server, tmp_path, monkeypatch, {"registrytoken": "mine"}) == FILES
    assert not server.asked


@pytest.mark.parametrize(
    ("lines", "gives", "error", "message"),
    [
        (
            ['Basic realm="r"'],
            {},
            SourceDenied,
            r"wants a login \(basic\), and a Secret of the kind .* has none for it",
        ),
        (["Negotiate"], {}, SourceDenied, r"wants a login \(negotiate\)"),
        ([""], {}, SourceDenied, "wants a login"),
        (["Bearer service=x"], {}, SourceDenied, r"wants a login \(bearer\)"),
        ([BEARER], {}, SourceError, "its token server gave no token"),
        ([BEARER], {"token": 3}, SourceError, "its token server gave no token"),
        ([BEARER], [], SourceError, "answered no JSON object"),
        ([BEARER], {"token": "wrong"}, SourceDenied, "answered HTTP 401"),
    ],
)
def test_a_login_that_cannot_work_is_said(
    lines: list[str], gives: Any, error: type[SourceError], message: str, server: Server
) -> None:
    server.artifact()
    server.lines, server.gives = lines, gives
    with pytest.raises(error, match=message):
        resolve(ModelSource(f"oci://{server.place}/{NAME}:v1"), SourceOptions())


@pytest.mark.slow
def test_a_token_that_ends_again_and_again_is_renewed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [server.blob(bytes([number]) * 3000, "application/octet-stream", f"{number}") for number in range(24)]
    server.push("v1", {"mediaType": IMAGE, "layers": layers})
    server.lines, server.uses = [BEARER], LIFE
    assert len(filled(server, tmp_path, monkeypatch)) == 24
    assert len(server.asked) > 2


def a_tar(files: Mapping[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as made:  # type: ignore[call-overload]  # a mode is a string
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("first", "second", "mode"),
    [
        pytest.param(f"{KIT}.model.v1.tar", f"{KIT}.docs.v1.tar", "w", id="a ModelKit"),
        pytest.param(f"{KIT}.model.v1.tar+gzip", f"{KIT}.code.v1.tar+gzip", "w:gz", id="a ModelKit, compressed"),
        pytest.param(
            "application/vnd.cncf.model.weight.v1.tar", "application/vnd.cncf.model.doc.v1.tar", "w", id="a ModelPack"
        ),
    ],
)
def test_a_kit_is_what_its_parts_hold(
    first: str, second: str, mode: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [{"model/w.bin": b"x" * 5000}, {"README.md": b"hello", "models/a": b"1"}]
    layers = [server.blob(a_tar(files, mode), kind) for files, kind in zip(parts, (first, second), strict=True)]
    config = server.blob(b'{"manifestVersion":"1.0.0"}', f"{KIT}.config.v1+json")
    server.push("v1", {"schemaVersion": 2, "mediaType": IMAGE, "config": config, "layers": layers})
    assert filled(server, tmp_path, monkeypatch) == parts[0] | parts[1]


def test_an_image_without_a_model_says_where_it_was_looked_for(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = server.blob(a_tar({"etc/x": b"x"}, "w:gz"), "application/vnd.oci.image.layer.v1.tar+gzip")
    server.push("v1", {"mediaType": IMAGE, "layers": [tar]})
    assert cli.main(["fill", f"oci://{server.place}/{NAME}:v1", str(tmp_path / "m")]) == 1
    assert "it holds nothing below /models/" in capsys.readouterr().err


def test_an_index_of_an_index_leads_to_the_files(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = server.push("inner", {"mediaType": INDEX, "manifests": [server.artifact("one")]})
    server.push("v1", {"mediaType": INDEX, "manifests": [inner]})
    assert filled(server, tmp_path, monkeypatch) == FILES


def test_blobs_may_have_the_other_digest_that_the_format_knows(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.artifact(algorithm="sha512")
    assert filled(server, tmp_path, monkeypatch) == FILES


def test_manifests_may_be_elsewhere_and_the_login_does_not_go_there(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.artifact()
    server.redirects_manifests = True
    assert filled(server, tmp_path, monkeypatch) == FILES


def test_an_old_schema_is_named(server: Server) -> None:
    server.push("v1", {"schemaVersion": 1, "fsLayers": []})
    with pytest.raises(SourceUnsupported, match="docker's first schema"):
        resolve(ModelSource(f"oci://{server.place}/{NAME}:v1"), SourceOptions())


def test_a_registry_on_ipv6_loopback_is_asked_in_plain_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running("::1") as server:
        server.artifact()
        server.lines, server.accepted = [BEARER], {"Bearer t"}
        assert filled(server, tmp_path, monkeypatch, {"auth": BASIC.split()[1]}) == FILES
        assert [sent for _, sent, _ in server.asked] == [BASIC]
