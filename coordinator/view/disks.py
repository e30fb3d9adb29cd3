"""Folders of models on the disks of nodes, as `localmodel inspect --json` has them. Pure.

A folder without a marker is KServe's, or a person's: its files are compared with the model's by name and size alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actors.manifest import StorageKey
from actors.messages import NodeName
from actors.sizes import say_bytes


@dataclass(frozen=True, slots=True)
class Lying:
    """The folder of a model. `owner` of its marker, None where it has none that can be believed.

    `files` are sizes by path; None: there are too many, or nobody could look into it.
    """

    owner: str | None = None
    files: Mapping[str, int] | None = None


Disk = Mapping[StorageKey, Lying]
Disks = Mapping[NodeName, Disk]
"""By node; a node that nobody looked at is missing."""


def read_disk(text: str) -> Disk:
    """A root for each line that is an object, as the command prints it. Raises ValueError for anything else."""
    found: dict[StorageKey, Lying] = {}
    roots = 0
    for line in text.splitlines():
        if not line.startswith("{"):
            continue
        document = json.loads(line)
        if not isinstance(document, dict) or document.get("kind") != "root":
            raise ValueError(
                "it is not of a root: run `localmodel inspect --json` on the folder that has `models` in it"
            )
        roots += 1
        for model in document.get("models", ()):
            found[StorageKey(model["key"])] = _lying(model)
    if not roots:
        raise ValueError("it holds no document of `localmodel inspect --json`")
    return found


def _lying(model: Mapping[str, Any]) -> Lying:
    if "uri" in model:
        return Lying(owner=str(model.get("owner", "")))
    files = model.get("found")
    return Lying(files={str(path): int(size) for path, size in files.items()} if isinstance(files, dict) else None)


@dataclass(frozen=True, slots=True)
class Match:
    """How a folder compares with a model: how many of its files are there in their size, and what is not."""

    right: int
    total: int
    missing_bytes: int
    strays: int

    @classmethod
    def of(cls, lying: Mapping[str, int], model: Mapping[str, int]) -> Match:
        right = [path for path, size in model.items() if lying.get(path) == size]
        missing = sum(size for path, size in model.items() if lying.get(path) != size)
        return cls(len(right), len(model), missing, len(lying.keys() - model.keys()))

    def __str__(self) -> str:
        said = f"{self.right} of {self.total} files have their size"
        if self.missing_bytes or self.right < self.total:
            said += f", {say_bytes(self.missing_bytes, up=True)} is fetched"
        return said + (f"; {self.strays} other files are set aside" if self.strays else "")
