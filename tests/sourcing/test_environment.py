"""What is wrong with the environment is said by the name of the variable, and never blamed on the origin."""

from __future__ import annotations

import errno
import ssl
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from actors.disk.filesystem import disk_errors
from actors.errors import LocalModelError, SourceDenied, SourceUnsupported, StoreError
from actors.manifest import ModelSource
from actors.sources.docker_config import login_for
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from actors.transport.connections import tls_context
from tests.command_line.test_fill import run

KEY = "hf_abcdefghijkl"
DEAD = "http://127.0.0.1:1"


@pytest.mark.parametrize("around", ["{}\n", "{}\r\n", "\ufeff{}", " {}\u00a0", "\u200b{}\u2028"])
def test_what_nobody_sees_around_a_key_is_no_part_of_it(around: str) -> None:
    assert SourceOptions({"HF_TOKEN": around.format(KEY)}).get("HF_TOKEN") == KEY


@pytest.mark.parametrize("name", ["HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"])
@pytest.mark.parametrize("value", ['"{}"', "'{}'", "`{}`", "Bearer {}", "{}é", "hf\u200b_{}"])
def test_a_key_with_something_that_no_key_has_is_refused_by_name(value: str, name: str) -> None:
    with pytest.raises(SourceDenied, match=f"{name} in the credentials has the character") as caught:
        SourceOptions({name: value.format(KEY)}).get(name)
    assert (caught.value.reason, KEY in str(caught.value)) == ("CredentialsInvalid", False)


def test_a_password_may_have_any_character() -> None:
    entry = {"username": "ü", "password": "p' \"é"}
    login = login_for({"auths": {"registry": entry}}, "registry", "x")
    assert login is not None
    assert (login.user, login.password) == ("ü", "p' \"é")


def test_a_docker_configuration_without_logins_is_one() -> None:
    assert login_for({"auths": None}, "registry", "x") is None


@pytest.mark.parametrize(
    "value", ["127.0.0.1:8080", '"http://127.0.0.1"', "::", "https://", "ftp://host", "http://h:x"]
)
@pytest.mark.parametrize(("name", "uri"), [("HF_ENDPOINT", "hf://a/b"), ("AWS_ENDPOINT_URL", "s3://bucket/m")])
def test_an_endpoint_that_is_no_url_is_refused_by_name(name: str, uri: str, value: str) -> None:
    with pytest.raises(SourceDenied, match=f"{name} is .*, which is no URL") as caught:
        resolve(ModelSource(uri), SourceOptions({name: value}))
    assert caught.value.reason == "CredentialsInvalid"


def test_a_password_in_an_endpoint_is_not_shown() -> None:
    with pytest.raises(SourceDenied) as caught:
        SourceOptions({"HF_ENDPOINT": "ftp://user:hunter2@host"}).check_endpoint("HF_ENDPOINT")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["s3", "s3a", "gs", "gcs"])
def test_a_bucket_has_a_name(scheme: str) -> None:
    with pytest.raises(SourceUnsupported, match=f"write {scheme}://BUCKET/PREFIX") as caught:
        resolve(ModelSource(f"{scheme}:///model"), SourceOptions())
    assert caught.value.reason == "InvalidURI"


@pytest.mark.parametrize("uri", ["http://origin.test/m.bin", "hf://a/b"])
@pytest.mark.parametrize(
    ("proxy", "reason", "said"),
    [
        ("http://user:hunter2@127.0.0.1:1", "SourceUnreachable", "by way of the proxy 127.0.0.1:1: "),
        ("http://127.0.0.1:abc", "InvalidProxy", "the proxy for http is 127.0.0.1:abc: "),
        ("socks5://127.0.0.1:1", "InvalidProxy", "only http:// proxies can be used"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named(
    proxy: str, reason: str, said: str, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(LocalModelError) as caught:
        resolve(ModelSource(uri), SourceOptions({"HF_ENDPOINT": "http://origin.test"}))
    assert (caught.value.reason, said in str(caught.value), "hunter2" in str(caught.value)) == (reason, True, False)


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"])
@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_certificates_that_cannot_be_read_are_named(
    content: str | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv(name, str(path))
    with pytest.raises(SourceUnsupported, match=f"{name}={path} holds no certificates") as caught:
        tls_context()
    assert caught.value.reason == "InvalidCABundle"


def test_the_certificates_of_the_system_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", ssl.get_default_verify_paths().openssl_cafile)
    assert tls_context().verify_mode is ssl.CERT_REQUIRED


@pytest.mark.slow
def test_an_answer_that_is_no_list_names_who_gave_it() -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "13")
            self.end_headers()
            self.wfile.write(b"<html></html>")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        env = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        with pytest.raises(LocalModelError, match=f"{url}/bucket") as caught:
            resolve(ModelSource("s3://bucket/m"), SourceOptions(env))
        assert caught.value.reason == "InvalidAnswer"
        server.shutdown()
        thread.join()


def test_a_file_that_is_too_large_for_the_disk_or_the_process_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def limited(*_: int) -> None:
        raise OSError(errno.EFBIG, "File too large")

    with (
        pytest.raises(StoreError, match="use another filesystem, or raise the limit") as caught,
        disk_errors("writing"),
    ):
        limited()
    assert caught.value.reason == "FileTooLarge"
    (tmp_path / "source").mkdir()
    (tmp_path / "source/w.bin").write_bytes(b"x" * 100_000)
    monkeypatch.setattr("actors.disk.filesystem.os.posix_fallocate", limited)
    code, _, err = run(capsys, "fill", f"file://{tmp_path / 'source'}", tmp_path / "model")
    assert (code, "`ulimit -f`" in err, [path.name for path in tmp_path.iterdir()]) == (1, True, ["source"])
