"""`localmodel inspect`: of a model, a root and a fill under way, and nothing of it is changed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from actors.chunks import Chunk
from actors.disk.ingest import open_ingest
from actors.disk.store import Store
from actors.manifest import ManifestFile, ModelSource, make_manifest, storage_key
from coordinator.cli import main
from tests.kit.documents import check_document

SIZE = 100_000


@pytest.fixture
def model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/w.bin").write_bytes(os.urandom(SIZE))
    (tmp_path / "source/config.json").write_text("{}")
    assert main(["fill", f"file://{tmp_path / 'source'}", str(tmp_path / "model")]) == 0
    capsys.readouterr()
    return tmp_path / "model"


def look(capsys: pytest.CaptureFixture[str], folder: Path) -> tuple[int, dict[str, Any], str]:
    before = listing(folder)
    code = main(["inspect", str(folder), "--json"])
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    check_document("inspect" if "kind" in document else "failure", document)
    assert listing(folder) == before, "it is read-only"
    return code, document, captured.err


def listing(folder: Path) -> list[tuple[str, int, int]]:
    paths = sorted(folder.rglob("*")) if folder.is_dir() else []
    return [(str(path), path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths]


def test_a_model(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, document, err = look(capsys, model)

    assert (code, err, document["ok"], document["kind"]) == (0, "", True, "model")
    assert (document["files"], document["bytes"]) == (2, SIZE + 2)
    assert document["uri"] == f"file://{tmp_path / 'source'}"
    assert main(["inspect", str(model)]) == 0
    assert "  2 files, 97.6Ki, sha256:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "trouble"),
    [
        (lambda model: (model / "w.bin").unlink(), "w.bin is missing"),
        (lambda model: (model / "w.bin").chmod(0o644) or (model / "w.bin").write_bytes(b"x"), "w.bin has 1 bytes, not"),
        (lambda model: (model / "notes.txt").write_text("x"), "notes.txt is no part of the model"),
        (
            lambda model: (
                (model / ".localmodel/manifest.json").chmod(0o644)
                or (model / ".localmodel/manifest.json").write_text("{")
            ),
            "its marker cannot be believed",
        ),
    ],
)
def test_what_is_wrong_with_a_model(damage: Any, trouble: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.chmod(0o755)
    (model / ".localmodel").chmod(0o755)
    damage(model)

    code, document, err = look(capsys, model)

    assert (code, document["ok"]) == (1, False)
    assert trouble in err


def a_root(tmp_path: Path, model: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    Store(root, "agent-1")
    uri = f"file://{tmp_path / 'source'}"
    model.chmod(0o755)
    model.rename(root / "models" / storage_key(uri))
    manifest = make_manifest(ModelSource("hf://a/b"), "c0ffee", [ManifestFile("w.bin", 1 << 20)])
    ingest = open_ingest(root / ".localmodel/ingest" / f"{storage_key('hf://a/b')}.agent-1", manifest, "owner")
    ingest.allocate()
    ingest.journal.record(Chunk(0, 0, 1 << 18))
    ingest.close()
    (root / ".localmodel/trash/0123456789abcdef.1700000000.000.ab").mkdir()
    return root


def test_a_root(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = a_root(tmp_path, model)

    code, document, err = look(capsys, root)

    assert (code, err, document["kind"], document["writer"]) == (0, "", "root", "agent-1")
    assert [each["bytes"] for each in document["models"]] == [SIZE + 2]
    (ingest,) = document["ingests"]
    assert (ingest["uri"], ingest["doneBytes"], ingest["bytes"]) == ("hf://a/b", 1 << 18, 1 << 20)
    assert ingest["incarnation"] == "agent-1"
    assert [each["name"] for each in document["trash"]] == ["0123456789abcdef.1700000000.000.ab"]

    assert main(["inspect", str(root)]) == 0
    out = capsys.readouterr().out
    assert "256Ki of 1Mi (25%) are journaled" in out


def test_an_ingest(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (ingest,) = (a_root(tmp_path, model) / ".localmodel/ingest").iterdir()

    code, document, _ = look(capsys, ingest)

    assert (code, document["kind"], document["doneBytes"]) == (0, "ingest", 1 << 18)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"manifest": {"files": 3}}', b"\xff" * 100, b"[" * 100_000])
def test_an_ingest_of_junk(content: bytes, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (ingest,) = (a_root(tmp_path, model) / ".localmodel/ingest").iterdir()
    (ingest / "manifest.json").write_bytes(content)

    code, document, err = look(capsys, ingest)

    assert (code, document["damaged"]) == (1, "what is filled cannot be read: it begins anew")
    assert "begins anew" in err


def test_a_model_under_another_name_is_said(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = a_root(tmp_path, model)
    (folder,) = (root / "models").iterdir()
    folder.rename(root / "models/0123456789abcdef")

    code, _, err = look(capsys, root)

    assert code == 1
    assert "its folder is not named after its URI" in err


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "Unreadable"),
        (lambda path: path.mkdir(), "NotAModel"),
        (lambda path: path.write_text("x"), "Unreadable"),
        (lambda path: os.mkfifo(path), "Unreadable"),
    ],
    ids=["missing", "empty", "file", "fifo"],
)
def test_what_is_not_of_localmodel(make: Any, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "there")

    code, document, _ = look(capsys, tmp_path / "there")

    assert (code, document["reason"]) == (1, reason)


def test_a_link_where_a_folder_should_be_is_not_followed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = a_root(tmp_path, model)
    (root / "models/feedfeedfeedfeed").symlink_to(tmp_path / "source")

    code, _, err = look(capsys, root)

    assert code == 1
    assert "feedfeedfeedfeed: it cannot be looked into" in err
