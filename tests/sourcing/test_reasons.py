"""One fault, one reason: whichever client met it, and however its library words it."""

from __future__ import annotations

import http.server
import json
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from huggingface_hub import close_session

from actors.errors import SourceError
from actors.manifest import ModelSource
from actors.sources.bounds import Limits
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from coordinator.dev.certificates import Authority
from tests.kit.tls import TlsFront
from tests.sourcing.test_bounds import FEW_ATTEMPTS, Answer, asked, sends, server

SOURCES = ("hf", "s3", "oci", "http", "hdfs")


@pytest.fixture(autouse=True)
def _closed_connections() -> Iterator[None]:
    yield
    close_session()


def status(code: int, **headers: str) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(code)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


def silent(request: http.server.BaseHTTPRequestHandler) -> None:
    time.sleep(1.5)
    request.close_connection = True


def hangs_up(request: http.server.BaseHTTPRequestHandler) -> None:
    request.close_connection = True


def truncated(request: http.server.BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b'{"id": ')
    request.close_connection = True


def not_http(request: http.server.BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    request.close_connection = True


@contextmanager
def origin(fault: str, tmp_path: Path) -> Iterator[tuple[str, bool]]:
    """The place of one with that fault, and whether it is asked by TLS."""
    answers: dict[str, Answer] = {
        **{str(code): status(code) for code in (401, 403, 404, 500, 502, 503)},
        "429": status(429, Retry_After="7"),
        "silent": silent,
        "hangs up": hangs_up,
        "truncated": truncated,
        "not http": not_http,
        "garbage": sends(b"<!doctype html><html><title>Sign in</title>"),
        "a number": sends(b"5"),
    }
    with ExitStack() as stack:
        match fault:
            case "refused":
                with socket.create_server(("127.0.0.1", 0)) as closed:
                    place = f"127.0.0.1:{closed.getsockname()[1]}"
                yield place, False
            case "unknown host":
                yield "nobody.invalid:80", False
            case "untrusted":
                place = stack.enter_context(server(status(200)))
                front = stack.enter_context(TlsFront(f"http://{place}", Authority(tmp_path / "ca").good()))
                yield front.url.removeprefix("https://"), True
            case _:
                yield stack.enter_context(server(answers[fault])), False


def reason_of(kind: str, place: str, *, tls: bool = False) -> SourceError:
    uri, env = asked(kind, place)
    if tls:
        uri = uri.replace("http://", "https://")
        env = {name: value.replace("http://", "https://") for name, value in env.items()}
        if kind == "hdfs":
            env["STORAGE_OPTIONS"] = json.dumps({**json.loads(env["STORAGE_OPTIONS"]), "use_https": True})
    with pytest.raises(SourceError) as caught:
        resolve(ModelSource(uri), SourceOptions(env, 1.0), limits=Limits(seconds=60))
    return caught.value


REASONS = {
    "401": {"SourceDenied"},
    "403": {"SourceDenied"},
    "404": {"SourceNotFound"},
    "429": {"SourceThrottled"},
    "503": {"SourceThrottled"},
    "500": {"SourceError"},
    "502": {"SourceError"},
    "refused": {"SourceUnreachable"},
    "unknown host": {"SourceUnreachable"},
    "hangs up": {"SourceUnreachable"},
    "untrusted": {"SourceUntrusted"},
    "silent": {"SourceStalled"},
    "truncated": {"SourceUnreachable"},
    "garbage": {"InvalidAnswer"},
    "a number": {"InvalidAnswer"},
    "not http": {"InvalidAnswer"},
}
"""What is served as a file, whatever it is, is no listing: a web server's garbage is the file."""


NO_FAULTS = {
    ("http", "garbage"),
    ("http", "a number"),
    ("http", "truncated"),
    ("oci", "untrusted"),  # a registry on this machine is asked without TLS
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "fault"), [(kind, fault) for kind in SOURCES for fault in REASONS if (kind, fault) not in NO_FAULTS]
)
def test_a_fault_has_one_reason_over_all_sources(
    kind: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "s3":
        monkeypatch.setattr("s3fs.S3FileSystem.retries", FEW_ATTEMPTS)
    with origin(fault, tmp_path) as (place, tls):
        error = reason_of(kind, place, tls=tls)

    assert error.reason in REASONS[fault], str(error)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("model", "InvalidURI"),
        ("hf://", "InvalidURI"),
        ("hf://only-a-name", "InvalidURI"),
        ("oci://registry", "InvalidURI"),
        ("https://host/", "InvalidURI"),
        ("https://user:word@host/f", "InvalidURI"),
        ("s3://a::http://b", "InvalidURI"),
        ("gs://bucket/model", "PackageMissing"),
        ("az://container/model", "PackageMissing"),
    ],
)
def test_what_will_not_change_by_itself_says_so(uri: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, package, None)  # also where it is installed
    with pytest.raises(SourceError) as caught:
        resolve(ModelSource(uri), SourceOptions({"AZURE_STORAGE_ACCOUNT_NAME": "account"}, 1.0))
    failure = caught.value.failure()
    assert (failure.reason, failure.final, failure.retryable) == (reason, True, False)
    if reason == "PackageMissing":
        assert "pip install 'localmodel[" in failure.message
