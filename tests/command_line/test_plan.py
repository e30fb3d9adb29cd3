"""`localmodel plan` on a dump, and against a development API server that counts what is written."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from coordinator.cli import main
from coordinator.dev.trial.builders import a_cache
from tests.kit.documents import check_document
from tests.kit.views import a_mixed_world, served


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    objects = [each.json for each in a_mixed_world().objects]
    (tmp_path / "dump.yaml").write_text(yaml.safe_dump({"kind": "List", "items": json.loads(json.dumps(objects))}))
    return tmp_path / "dump.yaml"


def a_manifest(folder: Path, size: str) -> Path:
    path = folder / f"{size}.yaml"
    path.write_text(yaml.safe_dump(a_cache("new").with_spec(modelSize=size).json))
    return path


@pytest.mark.parametrize(("size", "code"), [("1Gi", 0), ("50Gi", 3)])
def test_a_dump_is_enough(size: str, code: int, dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "-f", str(a_manifest(tmp_path, size)), "--cluster", str(dump), "--json"]
    main(words)
    document = json.loads(capsys.readouterr().out)

    check_document("plan", document)
    verdicts = {each["verdict"] for each in document["copies"] if each["caches"] == ["new"]}
    assert ("NO_ROOM" in verdicts) == (code == 3)


def test_a_live_cluster_is_asked_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(a_mixed_world(), tmp_path) as (kubeconfig, kube):
        versions = {version for _, version in _versions(kube)}
        words = ["plan", "-f", str(a_manifest(tmp_path, "50Gi")), "--kubeconfig", str(kubeconfig)]
        assert main(words) == 3
        assert {version for _, version in _versions(kube)} == versions
    out = capsys.readouterr().out
    assert "does not fit: needs 50Gi in /models" in out
    assert "nothing was written" in out


def _versions(kube: Any) -> list[tuple[str, str]]:
    from coordinator.plan.applied import KINDS

    return [
        (each["metadata"]["name"], each["metadata"]["resourceVersion"])
        for kind in KINDS.values()
        for each in kube.list(kind)[0]
    ]


def test_standard_input_is_a_file(
    dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(a_manifest(tmp_path, "50Gi").read_text()))
    assert main(["plan", "-f", "-", "--cluster", str(dump)]) == 3
    assert "new on " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot be read"),
        ("a: [", "neither YAML nor JSON"),
        ("just text", "it has no kind"),
        ("[" * 9999, "YAML"),
    ],
)
def test_a_file_that_cannot_be_understood(
    content: str | None, why: str, dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.yaml"
    if content is not None:
        path.write_text(content)
    assert main(["plan", "-f", str(path), "--cluster", str(dump), "--json"]) == 1
    captured = capsys.readouterr()
    check_document("failure", json.loads(captured.out))
    assert why in captured.err


def test_a_cache_that_no_node_is_to_hold_is_said(
    dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "nowhere.yaml"
    path.write_text(yaml.safe_dump(a_cache("stray").in_group("nosuch").with_spec(modelSize="1Gi").json))
    words = ["plan", "-f", str(path), "--cluster", str(dump)]
    main(words)
    assert "stray on no node: LocalModelNodeGroup nosuch not found" in capsys.readouterr().out
    main([*words, "--json"])
    document = json.loads(capsys.readouterr().out)
    check_document("plan", document)
    assert {"cache": "stray", "why": "LocalModelNodeGroup nosuch not found"} in document["unplaced"]


@pytest.mark.parametrize("content", ["", "---\n---\n", "# nothing yet\n"])
def test_a_file_without_an_object_is_no_plan(
    content: str, dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text(content)
    assert main(["plan", "-f", str(path), "--cluster", str(dump)]) == 1
    assert f"no object in {path}" in capsys.readouterr().err
