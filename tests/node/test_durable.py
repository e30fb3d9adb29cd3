"""Bytes reach the disk, also where Linux' own calls are missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from actors.disk import durable


def files(folder: Path, count: int) -> list[Path]:
    paths = [folder / str(number) for number in range(count)]
    for path in paths:
        path.write_text("content")
    return paths


@pytest.mark.parametrize(("count", "one_by_one"), [(3, 3), (durable.MANY, 0)], ids=["a few", "many"])
def test_a_few_files_are_synced_each_and_many_together(
    count: int, one_by_one: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = files(tmp_path, count)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    durable.sync_files(tmp_path, paths)
    assert len(synced) == one_by_one


def test_without_the_calls_of_linux_every_file_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = files(tmp_path, durable.MANY)
    synced: list[int] = []
    monkeypatch.setattr(durable, "_libc", lambda: None)
    monkeypatch.setattr(os, "fsync", synced.append)
    durable.start_writeback(0, 0, 10)
    durable.sync_files(tmp_path, paths)
    assert len(synced) == durable.MANY


def test_writeback_of_anything_is_harmless(tmp_path: Path) -> None:
    path = files(tmp_path, 1)[0]
    with path.open("rb") as file:
        durable.start_writeback(file.fileno(), 0, 1 << 40)
    durable.start_writeback(-1, 0, 10)
    assert path.read_text() == "content"
