"""`localmodel status` against a development API server, and what it says where there is no answer."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.cli import cluster, main
from coordinator.cli.cluster import Unanswered
from coordinator.dev.trial.builders import a_world
from coordinator.dev.trial.waiting import eventually
from coordinator.kube.http import HttpKube
from coordinator.kube.interface import NODES, Denied, KubeError, NotFound, Object, ResourceType, Unreachable
from coordinator.plan.snapshot import CACHES, LOCAL_NODES, NAMESPACE_CACHES
from coordinator.view.cluster import KINDS
from tests.kit.documents import check_document
from tests.kit.views import SLOW, a_mixed_world, served


@pytest.fixture(scope="module")
def cluster_of_troubles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, HttpKube]]:
    with served(a_mixed_world(), tmp_path_factory.mktemp("home")) as (kubeconfig, kube):
        yield kubeconfig, kube


@pytest.fixture
def kubeconfig(cluster_of_troubles: tuple[Path, HttpKube], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KUBECONFIG", str(cluster_of_troubles[0]))
    return cluster_of_troubles[0]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["status", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.usefixtures("kubeconfig")
def test_all_caches_what_is_wrong_first(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys)

    assert (code, err) == (0, "")
    assert "\x1b" not in out
    names = [line.split()[0] for line in out.splitlines() if re.match(r"\S+  \d/\d", line)]
    assert names == ["team-a/mistral", "llama-70b", "small"]
    assert "0 of 3 caches Ready, 4 of 15 copies" in out


@pytest.mark.usefixtures("kubeconfig")
@pytest.mark.parametrize(
    ("words", "names"),
    [
        ((), ["team-a/mistral", "llama-70b", "small"]),
        (("-n", "team-a"), ["team-a/mistral"]),
        (("mistral",), ["team-a/mistral"]),
        (("mistral", "-n", "team-a"), ["team-a/mistral"]),
        (("team-a/mistral",), ["team-a/mistral"]),
        (("small", SLOW), ["small"]),
    ],
)
def test_which_caches_are_meant(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], names: list[str]) -> None:
    assert run(capsys, *words, "-o", "name")[:2] == (0, "".join(f"{name}\n" for name in names))


@pytest.mark.usefixtures("kubeconfig")
@pytest.mark.parametrize(
    ("words", "schema"),
    [
        (("--json",), "status"),
        (("small", "-o", "json"), "status"),
        (("--why", "llama-70b", "--json"), "why"),
        (("--why", "small", SLOW, "--json"), "why"),
        (("--saved", "--json"), "saved"),
    ],
)
def test_a_document_is_as_its_schema_says(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], schema: str
) -> None:
    code, out, _ = run(capsys, *words)

    assert code == 0
    check_document(schema, json.loads(out))


@pytest.mark.usefixtures("kubeconfig")
def test_the_document_has_what_the_table_shows(capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(run(capsys, "llama-70b", "--json")[1])

    (cache,) = document["caches"]
    slow = [copy["node"] for copy in cache["copies"] if copy["slow"]]
    assert (cache["ready"], cache["reason"], slow) == (False, "InsufficientStorage", [SLOW])
    assert document["totals"]["bytesFromPeers"] == cache["bytesFromPeers"] > 0


@pytest.mark.usefixtures("kubeconfig")
def test_why_is_answered_in_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--why", "llama-70b")

    assert code == 0
    assert out.startswith("llama-70b is not Ready: 0 of 5 nodes hold it")
    assert "    next: raise `storageLimit`" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.usefixtures("kubeconfig")
def test_a_cache_that_is_not_there_names_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "smal", "--json")

    assert (code, err) == (
        1,
        "localmodel status: there is no cache smal: there is llama-70b, small, team-a/mistral\n",
    )
    said = json.loads(out)
    check_document("failure", said)
    assert (said["reason"], said["retryable"]) == ("NoSuchCache", False)


def test_no_cluster_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    code, out, err = run(capsys, "--json")

    assert (code, err.count("\n"), json.loads(out)["reason"]) == (1, 1, "NoClusterConfig")


def test_an_api_server_that_is_away_is_worth_another_try(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(a_world(), tmp_path) as (kubeconfig, _):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    code, out, err = run(capsys, "--json")

    assert (code, json.loads(out)["retryable"]) == (1, True)
    assert "cannot reach the API server" in err


@pytest.mark.usefixtures("kubeconfig")
def test_a_wrong_command_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(capsys, "--why")
    assert ended.value.code == 2
    assert "--why CACHE [NODE]: which cache?" in capsys.readouterr().err


class Guarded:
    """A `Kube` of which some kinds answer with an error."""

    def __init__(self, errors: dict[ResourceType, KubeError]) -> None:
        self.errors = errors
        self.asked: list[tuple[str, str | None]] = []

    def list(self, resource: ResourceType, *, namespace: str | None = None, **_: Any) -> tuple[list[Object], str]:
        self.asked.append((resource.plural, namespace))
        if resource in self.errors:
            raise self.errors[resource]
        return [], "1"


@pytest.mark.parametrize(
    ("errors", "namespace", "reason", "notes"),
    [
        ({}, None, None, 0),
        ({NODES: Denied("no")}, None, None, 1),
        ({NODES: Denied("no"), LOCAL_NODES: Denied("no"), CACHES: Denied("no")}, None, None, 3),
        ({NAMESPACE_CACHES: NotFound("an older KServe")}, None, None, 0),
        ({CACHES: Denied("no"), NAMESPACE_CACHES: Denied("no")}, None, "Denied", 0),
        ({CACHES: NotFound("no"), NAMESPACE_CACHES: NotFound("no")}, None, "NotInstalled", 0),
        ({NAMESPACE_CACHES: Denied("no")}, "team-a", "Denied", 0),
        ({CACHES: Denied("no")}, "team-a", None, 0),
        ({CACHES: Unreachable("away")}, None, "Unreachable", 0),
    ],
)
def test_what_may_not_be_listed_is_said(
    errors: dict[ResourceType, KubeError], namespace: str | None, reason: str | None, notes: int
) -> None:
    kube: Any = Guarded(errors)
    if reason is None:
        assert len(cluster.look(kube, namespace).notes) == notes
        asked = {plural for plural, _ in kube.asked}
        assert asked == {kind.plural for kind in KINDS} - ({CACHES.plural} if namespace else set())
    else:
        with pytest.raises(Unanswered) as refused:
            cluster.look(kube, namespace)
        assert refused.value.reason == reason


@pytest.mark.slow
def test_watching_tells_a_pipe_what_changes(kubeconfig: Path, cluster_of_troubles: tuple[Path, HttpKube]) -> None:
    _, kube = cluster_of_troubles
    command = [sys.executable, "-m", "coordinator.cli", "status", "small", "--watch", "--json"]
    environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        status = kube.get(CACHES, "small")["status"]
        changed = {**status, "bytes": {**status["bytes"], "fromPeers": 99}}
        kube.patch(CACHES, "small", {"status": changed}, subresource="status")
        second = json.loads(process.stdout.readline())
        kube.patch(CACHES, "small", {"status": status}, subresource="status")
        process.terminate()
    assert (first["caches"][0]["bytesFromPeers"], second["caches"][0]["bytesFromPeers"]) == (3 << 30, 99)


@pytest.mark.slow
def test_a_terminal_gets_colour_unless_it_does_not_want_it(kubeconfig: Path) -> None:
    def at_a_terminal(**environment: str) -> str:
        ours, theirs = pty.openpty()
        try:
            command = [sys.executable, "-m", "coordinator.cli", "status"]
            given = {**os.environ, "KUBECONFIG": str(kubeconfig), "COLUMNS": "80", **environment}
            given = {name: value for name, value in given.items() if value}
            with subprocess.Popen(command, env=given, stdout=theirs) as process:
                seen: list[bytes] = []
                os.set_blocking(ours, False)

                def ended() -> bool:
                    try:
                        seen.append(os.read(ours, 65536))
                    except BlockingIOError:
                        return process.poll() is not None
                    return False

                eventually(ended, timeout_s=30)
            return b"".join(seen).decode()
        finally:
            os.close(ours)
            os.close(theirs)

    coloured = at_a_terminal(TERM="xterm-256color", NO_COLOR="")
    plain = at_a_terminal(TERM="xterm-256color", NO_COLOR="1")
    assert "\x1b[31m" in coloured
    assert "\x1b[31m" not in plain
    assert "InsufficientStorage" in plain
