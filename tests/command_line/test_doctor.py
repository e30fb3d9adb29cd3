"""`localmodel doctor` against a development API server."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.cli import main
from coordinator.cli.doctor import LEADER_LOCK
from coordinator.dev.trial.builders import a_world
from coordinator.kube.leader import LOCK_NAME
from tests.kit.documents import check_document
from tests.kit.views import FULL, a_mixed_world, served


@pytest.fixture(scope="module")
def troubles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with served(a_mixed_world(), tmp_path_factory.mktemp("home")) as (kubeconfig, _):
        yield kubeconfig


def test_every_line_is_ok_or_what_to_do(troubles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--kubeconfig", str(troubles)])
    lines = capsys.readouterr().out.splitlines()

    assert code == 1
    assert {line[:4] for line in lines} <= {"ok  ", "!!  ", "??  "}
    assert any(line.startswith("ok  definitions") for line in lines)
    (tight,) = [line for line in lines if line.startswith("!!  free space") and FULL in line]
    assert tight.endswith("raise `storageLimit`, remove a model, or turn eviction on")


def test_the_document_is_as_its_schema_says(troubles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--kubeconfig", str(troubles), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)

    check_document("doctor", document)
    assert document["ok"] is False


def test_an_api_server_that_is_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(a_world(), tmp_path) as (kubeconfig, _):
        pass
    assert main(["doctor", "--kubeconfig", str(kubeconfig), "--json"]) == 1
    captured = capsys.readouterr()

    check_document("failure", json.loads(captured.out))
    assert captured.err.startswith("!!  API server: cannot reach the API server")


def test_ray_itself_is_asked(troubles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Dashboard(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"version": "4", "ray_version": "2.50.0"}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        main(["doctor", "--kubeconfig", str(troubles), "--ray-address", url])
        there = capsys.readouterr().out
        server.shutdown()
    main(["doctor", "--kubeconfig", str(troubles), "--ray-address", url])
    gone = capsys.readouterr().out

    assert f"ok  Ray           Ray 2.50.0 answers at {url}" in there
    assert f"!!  Ray           {url}: no Ray dashboard answers" in gone


def test_the_lease_is_the_one_of_the_coordinator() -> None:
    assert LEADER_LOCK == LOCK_NAME
