"""TLS that checks, with a certificate authority of one's own; proxies as the environment names them. Real sockets."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import close_session

from actors.errors import SourceDenied, SourceError, SourceUnsupported
from actors.fill.range_reader import RangeReader, RangesIgnored
from actors.manifest import Location, ModelSource
from actors.peers.tls import TlsFiles
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from actors.transport.connections import tls_context
from coordinator.dev.certificates import Authority
from coordinator.dev.origin.server import Origin
from tests.kit.s3_server import s3
from tests.kit.tls import TlsFront
from tests.sourcing.test_oci import FILES, NAME, filled, running_registry

CONTENT = bytes(range(256)) * 4
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


class Server(ThreadingHTTPServer):
    """Answers ranges of CONTENT; as a proxy, what a proxy is asked. Remembers what it was asked.

    `redirects` lead from what is asked for to elsewhere; `names` are hosts that a proxy finds at a port on loopback.
    """

    daemon_threads = True

    def __init__(self, certificates: TlsFiles | None = None, status: int = 206, content_range: str | None = "") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str, str | None]] = []
        self.status, self.content_range = status, content_range
        self.redirects: dict[str, str] = {}
        self.names: dict[str, int] = {}
        if certificates is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificates.certificate, certificates.key)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self.thread.start()

    def url(self, scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that does not trust the certificate goes away


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class names it
        pass

    def do_GET(self) -> None:
        self.server.asked.append(("GET", self.path, self.headers.get("Proxy-Authorization")))
        if (target := self.server.redirects.get(self.path)) is not None:
            self.send_response(302)
            self.send_header("Location", target)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start, stop = (int(each) for each in self.headers["Range"].removeprefix("bytes=").split("-"))
        body = CONTENT[start : stop + 1]
        self.send_response(self.server.status)
        if self.server.content_range is not None:
            named = self.server.content_range or f"bytes {start}-{stop}/{len(CONTENT)}"
            self.send_header("Content-Range", named)
        else:
            body = CONTENT
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def do_CONNECT(self) -> None:
        self.server.asked.append(("CONNECT", self.path, self.headers.get("Proxy-Authorization")))
        host, _, port = self.path.partition(":")
        known = {"127.0.0.1": int(port), **self.server.names}
        if host not in known:
            self.send_error(502)
            return
        with socket.create_connection(("127.0.0.1", known[host])) as behind:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=_pass_on, args=(behind, self.connection))
            back.start()
            _pass_on(self.connection, behind)
            back.join()
        self.close_connection = True


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return Authority(tmp_path_factory.mktemp("certificates") / "authority").issue("server")


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, *map(str.upper, PROXIES), "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


@contextlib.contextmanager
def a_server(
    certificates: TlsFiles | None = None, status: int = 206, content_range: str | None = ""
) -> Iterator[Server]:
    server = Server(certificates, status, content_range)
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        server.thread.join()


def read(url: str, start: int = 10, stop: int = 500) -> bytes:
    reader = RangeReader(stall_timeout_s=10)
    try:
        return b"".join(bytes(block) for block in reader.blocks(Location(url), {}, len(CONTENT), start, stop))
    finally:
        reader.close()


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"])
def test_an_authority_of_ones_own_is_trusted_when_it_is_named(
    variable: str, certificates: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_server(certificates) as server:
        with pytest.raises(SourceError, match="certificate"):
            read(server.url("https"))
        monkeypatch.setenv(variable, str(certificates.authority))
        assert read(server.url("https")) == CONTENT[10:500]


def test_a_bundle_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    with pytest.raises(SourceUnsupported, match=r"REQUESTS_CA_BUNDLE=.*none\.pem holds no certificates"):
        read("https://127.0.0.1:1/file")


def test_the_context_is_shared_until_its_certificates_change(
    certificates: TlsFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes((certificates.authority).read_bytes())
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    first = tls_context()
    assert tls_context() is first
    os.utime(bundle, ns=(1, 1))
    assert tls_context() is not first


def test_an_http_proxy_is_asked_for_the_whole_url(monkeypatch: pytest.MonkeyPatch) -> None:
    with a_server() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url().replace("://", "://me:p%40ss@"))
        assert read("http://models.example/file?signed=1") == CONTENT[10:500]
    assert proxy.asked == [("GET", "http://models.example/file?signed=1", "Basic bWU6cEBzcw==")]


def test_https_goes_through_a_tunnel_and_the_origin_is_checked(
    certificates: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_server(certificates) as server, a_server() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url())
        with pytest.raises(SourceError, match="certificate"):
            read(server.url("https"))
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
        assert read(server.url("https")) == CONTENT[10:500]
    assert {each[:2] for each in proxy.asked} == {("CONNECT", f"127.0.0.1:{server.server_port}")}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"])
def test_the_hub_and_web_servers_are_asked_with_the_same_trust(
    variable: str, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with Origin({"a/b": tmp_path / "model"}) as origin, TlsFront(origin.url, authority.good()) as front:
        asked = ModelSource("hf://a/b"), ModelSource(f"{front.url}/files/a/b/config.json")
        options = SourceOptions({"HF_ENDPOINT": front.url})
        for source in asked:
            with pytest.raises(SourceError, match=r"(?i)certificate.*verify|certificate that is not accepted"):
                resolve(source, options)
        monkeypatch.setenv(variable, str(authority.file))
        assert [resolve(source, options).manifest.total_bytes for source in asked] == [2, 2]
    close_session()


@pytest.mark.slow
def test_a_registry_is_asked_through_the_proxy_and_with_the_same_trust(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_registry() as registry, a_server() as proxy:
        registry.artifact("v1", FILES)
        with TlsFront(f"http://{registry.host}", authority.elsewhere()) as front:
            proxy.names["elsewhere.example"] = int(front.url.rpartition(":")[2])
            monkeypatch.setenv("ALL_PROXY", proxy.url())
            source = ModelSource(f"oci://elsewhere.example/{NAME}:v1")
            with pytest.raises(SourceError, match="certificate that is not accepted"):
                resolve(source, SourceOptions())
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.file))
            assert filled(resolve(source, SourceOptions()), tmp_path)[0] == FILES
    assert {each[:2] for each in proxy.asked} == {("CONNECT", "elsewhere.example:443")}


def test_a_web_server_is_asked_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with a_server() as proxy:
        proxy.redirects["http://models.invalid/m.bin"] = "http://mirror.invalid/m.bin"
        monkeypatch.setenv("ALL_PROXY", proxy.url().replace("://", "://me:secret@"))
        found = resolve(ModelSource("http://models.invalid/m.bin"), SourceOptions())
        assert found.manifest.total_bytes == len(CONTENT)
        monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
        with pytest.raises(SourceUnsupported, match="only http:// proxies"):
            resolve(ModelSource("http://models.invalid/m.bin"), SourceOptions())
    assert proxy.asked == [
        ("GET", "http://models.invalid/m.bin", "Basic bWU6c2VjcmV0"),
        ("GET", "http://mirror.invalid/m.bin", "Basic bWU6c2VjcmV0"),
    ]


@pytest.mark.parametrize(
    ("url", "target", "followed"),
    [
        pytest.param("http://models.invalid/m", "http://mirror.invalid/m", True, id="within the internet"),
        pytest.param("http://models.invalid/m", "http://10.0.0.7/m", False, id="from the internet to a network"),
        pytest.param("http://models.invalid/m", "https://10.0.0.7/m", False, id="the same by a tunnel"),
        pytest.param("http://models.invalid/m", "http://169.254.169.254/m", False, id="from the internet to a host"),
        pytest.param("http://10.0.0.5/m", "http://10.0.0.7/m", True, id="within a network"),
        pytest.param("http://10.0.0.5/m", "http://models.invalid/m", True, id="from a network to the internet"),
        pytest.param("http://10.0.0.5/m", "http://localhost/m", False, id="from a network to a host"),
    ],
)
def test_behind_a_proxy_a_redirect_is_judged_by_where_it_leads_and_not_by_where_the_proxy_is(
    url: str, target: str, followed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_server() as proxy:
        proxy.redirects[url] = target
        for scheme in ("HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(scheme, proxy.url())
        if followed:
            assert read(url) == CONTENT[10:500]
        else:
            with pytest.raises(
                SourceDenied, match=r"less public than where it comes from|clouds keep credentials at such"
            ):
                read(url)
    assert [each[1] for each in proxy.asked] == [url, target] if followed else [url]


def test_what_no_proxy_names_is_reached_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    with a_server() as server, a_server() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url())
        monkeypatch.setenv("NO_PROXY", "example.org,127.0.0.1")
        assert read(server.url() + "/file") == CONTENT[10:500]
    assert (len(server.asked), proxy.asked) == (1, [])


NO_PROXIES = ["*", "127.0.0.0/8", "localhost, 127.0.0.1:{port}", "[::1],127.0.0.1", "10.0.0.0/8 127.0.0.1/32"]


@pytest.mark.slow
@pytest.mark.parametrize("entries", NO_PROXIES)
@pytest.mark.parametrize("what", ["hub", "bucket", "registry", "web"])
def test_no_proxy_is_read_alike_by_everything_that_connects(
    what: str, entries: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closing = contextlib.ExitStack()
    with closing, a_server() as proxy:
        for scheme in ("HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(scheme, proxy.url())
        env: dict[str, str] = {}
        if what == "hub":
            (tmp_path / "config.json").write_text("{}")
            origin = closing.enter_context(Origin({"o/r": tmp_path}))
            url, uri, env = origin.hub_endpoint, "hf://o/r", {"HF_ENDPOINT": origin.hub_endpoint}
            closing.callback(close_session)
        elif what == "bucket":
            server = closing.enter_context(s3({"m/a": b"1"}))
            url, uri, env = server.url, "s3://bucket/m", server.env
        elif what == "registry":
            registry = closing.enter_context(running_registry())
            registry.artifact("v1", FILES)
            url, uri = f"http://{registry.host}", f"oci://{registry.host}/{NAME}:v1"
        else:
            web = closing.enter_context(a_server())
            url, uri = web.url(), f"{web.url()}/file"
        monkeypatch.setenv("NO_PROXY", entries.format(port=url.rpartition(":")[2]))
        assert resolve(ModelSource(uri), SourceOptions(env)).manifest.files
        assert proxy.asked == []


def test_the_hub_is_asked_through_the_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    with Origin({"o/r": tmp_path}) as origin, a_server() as proxy:
        proxy.redirects[f"{origin.hub_endpoint}/api/models/o/r"] = f"{origin.hub_endpoint}/api/models/o/r"
        monkeypatch.setenv("HTTP_PROXY", proxy.url().replace("://", "://me:secret@"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1:1,[::1]")
        with pytest.raises(SourceError):
            resolve(ModelSource("hf://o/r"), SourceOptions({"HF_ENDPOINT": origin.hub_endpoint}))
        close_session()
    assert proxy.asked[0] == ("GET", f"{origin.hub_endpoint}/api/models/o/r", "Basic bWU6c2VjcmV0")


def test_a_proxy_that_speaks_another_protocol_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    with pytest.raises(SourceUnsupported, match="only http:// proxies"):
        read("http://models.example/file")


@pytest.mark.parametrize(
    ("content_range", "expected"),
    [
        ("", None),
        (f"bytes 0-489/{len(CONTENT)}", SourceError),
        ("bytes 10-499/77", SourceError),
        (None, RangesIgnored),
    ],
    ids=["the right range", "the range of another place", "of a file of another size", "none: the whole file"],
)
def test_a_200_counts_as_a_part_only_if_it_says_which(
    content_range: str | None, expected: type[SourceError] | None
) -> None:
    with a_server(status=200, content_range=content_range) as server:
        if expected is None:
            assert read(server.url() + "/file") == CONTENT[10:500]
            return
        with pytest.raises(SourceError) as error:
            read(server.url() + "/file")
        assert isinstance(error.value, expected)
