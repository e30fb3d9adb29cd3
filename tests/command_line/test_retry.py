"""`localmodel retry` against a development API server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.api.resources import StatusKey
from coordinator.cli import main
from coordinator.cli.cluster import Unanswered
from coordinator.cli.retry import ask
from coordinator.kube.http import HttpKube
from coordinator.kube.interface import Conflict, Denied, KubeError, NotFound
from coordinator.plan.retries import RETRY, read_retries
from coordinator.plan.snapshot import CACHES, NAMESPACE_CACHES
from tests.kit.documents import check_document
from tests.kit.views import FAST, FULL, GONE, a_mixed_world, served


@pytest.fixture(scope="module")
def troubles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, HttpKube]]:
    with served(a_mixed_world(), tmp_path_factory.mktemp("home")) as (kubeconfig, kube):
        yield kubeconfig, kube


@pytest.fixture
def kube(troubles: tuple[Path, HttpKube], monkeypatch: pytest.MonkeyPatch) -> HttpKube:
    monkeypatch.setenv("KUBECONFIG", str(troubles[0]))
    return troubles[1]


def retries_of(kube: HttpKube, name: str, namespace: str | None = None) -> dict[str, str]:
    kind = NAMESPACE_CACHES if namespace else CACHES
    annotations = kube.get(kind, name, namespace=namespace)["metadata"].get("annotations", {})
    return dict(read_retries(annotations.get(RETRY)))


def test_what_failed_is_asked_for_once_more(kube: HttpKube, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["retry", "llama-70b", FULL]) == 0
    assert capsys.readouterr().out == f"llama-70b on {FULL}: tried again now (InsufficientStorage)\n"
    assert retries_of(kube, "llama-70b").keys() == {FULL}

    assert main(["retry", "llama-70b", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    check_document("retry", document)
    assert document == {"ok": True, "cache": "llama-70b", "asked": True, "nodes": [FULL, GONE]}
    assert retries_of(kube, "llama-70b").keys() == {"*"}


def test_a_namespaced_cache(kube: HttpKube, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["retry", "mistral", "-n", "team-a", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["nodes"]) == 5
    assert retries_of(kube, "mistral", "team-a").keys() == {"*"}


def test_nothing_is_written_where_nothing_waits(kube: HttpKube, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["retry", "small", FAST]) == 0
    assert capsys.readouterr().out == f"small: nothing waits for another try on {FAST}\n"
    assert retries_of(kube, "small") == {}


@pytest.mark.usefixtures("kube")
@pytest.mark.parametrize(("words", "reason"), [(("nope",), "NoSuchCache"), (("small", "nowhere"), "NoSuchNode")])
def test_what_does_not_exist(words: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["retry", *words, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    check_document("failure", document)
    assert document["reason"] == reason


class Busy:
    """A `Kube` whose patches are refused `times` times."""

    def __init__(self, error: KubeError, times: int) -> None:
        self.error, self.left, self.written = error, times, 0

    def get(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {"metadata": {"resourceVersion": "1"}}

    def patch(self, *_: Any, **__: Any) -> None:
        if self.left:
            self.left -= 1
            raise self.error
        self.written += 1


@pytest.mark.parametrize(
    ("error", "times", "reason"),
    [
        (Conflict("changed"), 4, None),
        (Conflict("changed"), 5, "Unreachable"),
        (Denied("rbac"), 1, "Denied"),
        (NotFound("gone"), 1, "NoSuchCache"),
    ],
)
def test_somebody_else_writes_at_the_same_time(error: KubeError, times: int, reason: str | None) -> None:
    kube: Any = Busy(error, times)
    if reason is None:
        ask(kube, StatusKey("llama"), None, "t")
        assert kube.written == 1
    else:
        with pytest.raises(Unanswered) as refused:
            ask(kube, StatusKey("llama"), None, "t")
        assert refused.value.reason == reason
