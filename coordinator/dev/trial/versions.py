"""A repository in several versions, served by a hub, and what a disk really holds of them: for tests and benchmarks."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from actors.manifest import ModelSource, Resolved
from actors.sources.options import SourceOptions
from actors.sources.resolve import resolve
from coordinator.dev.origin.sample import REPO
from coordinator.dev.origin.server import Origin

CHANGED = "model-00002-of-00004.safetensors"
ADDED = "adapter.safetensors"
ADDED_BYTES = 200_000

URI = f"hf://{REPO}"


def next_version(sample: Path, folder: Path, *, changed_part: float = 0.05) -> Path:
    """`folder` holds the sample after a fine-tune: a part of one shard of four differs, and there is a file more."""
    shutil.copytree(sample, folder)
    shard = folder / CHANGED
    size = shard.stat().st_size
    for at in range(size // 2, size // 2 + max(1, int(size * changed_part)), 4096):
        flip(shard, at)
    (folder / ADDED).write_bytes(bytes(range(200)) * (ADDED_BYTES // 200))
    return folder


def moved_bytes(folder: Path) -> int:
    """The size of what `next_version` has changed and added."""
    return (folder / CHANGED).stat().st_size + ADDED_BYTES


def changed_chunk_bytes(sample: Path, newer: Path, chunk_bytes: int) -> int:
    """The size of those chunks of what `next_version` has changed and added that the sample has not."""
    total = ADDED_BYTES
    with (sample / CHANGED).open("rb") as before, (newer / CHANGED).open("rb") as after:
        while chunk := after.read(chunk_bytes):
            total += 0 if before.read(chunk_bytes) == chunk else len(chunk)
    return total


def at_revision(origin: Origin, revision: str | None = None, uri: str = URI) -> Resolved:
    """What a node is told of that commit; None: of what `main` is."""
    return resolve(ModelSource(uri, revision), SourceOptions({"HF_ENDPOINT": origin.hub_endpoint}))


def commit_of(origin: Origin, repo: str = REPO) -> str:
    return origin.repos[repo].main.commit


def disk_bytes(*folders: Path) -> int:
    """The disk space that all files below take; one that has several names is counted once."""
    blocks: dict[tuple[int, int], int] = {}
    for folder in folders:
        for above, _, files in os.walk(folder):
            for name in files:
                with suppress(FileNotFoundError):  # an agent may be at work
                    status = os.lstat(os.path.join(above, name))  # noqa: PTH118  # a Path for each takes its time
                    blocks[status.st_dev, status.st_ino] = status.st_blocks
    return 512 * sum(blocks.values())


def flip(path: Path, at: int = 0) -> None:
    """One bit is another."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))
