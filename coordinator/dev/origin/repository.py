"""A model repository as the Hugging Face Hub would describe it: commits, file listings, git and LFS digests.

    Repository ── main ──► Snapshot (one commit: a folder, its files, their digests)
               └─ older commits stay readable, as on the hub

A commit's name is derived from its content, so that it is the same in every run. Knows nothing of HTTP.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

LFS_SUFFIXES = frozenset({".bin", ".safetensors", ".gguf", ".onnx", ".pt", ".pth", ".h5", ".msgpack", ".ot", ".npz"})
LFS_BYTES = 10_000_000
"""What the hub keeps in LFS: known weight formats, and anything from this size on."""


class UnknownRevision(Exception):
    """The repository has no such branch or commit."""


@dataclass(frozen=True, slots=True)
class RepoFile:
    """`blob_id` is what git would call it; `sha256` is None unless the file is in LFS."""

    path: str
    size: int
    blob_id: str
    sha256: str | None

    @property
    def etag(self) -> str:
        return f'"{self.sha256 or self.blob_id}"'

    def lfs(self, digest_name: str) -> dict[str, Any]:
        """The `lfs` field of a listing, or nothing. The two listings name the digest differently."""
        return {"lfs": {digest_name: self.sha256, "size": self.size, "pointerSize": 134}} if self.sha256 else {}


class Snapshot:
    """One commit: every file of `folder`, hashed once, here. The folder must not change while it is served."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        self.files = {file.path: file for file in (_describe(path, folder) for path in found)}
        listing = [[file.path, file.size, file.blob_id] for file in self.files.values()]
        self.commit = _sha1(json.dumps(listing).encode()).hexdigest()

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files.values())

    def siblings(self, *, blobs: bool) -> list[dict[str, Any]]:
        """`siblings` of `GET /api/models/{repo}`; sizes and digests with `?blobs=true`."""
        if not blobs:
            return [{"rfilename": path} for path in self.files]
        return [
            {"rfilename": file.path, "size": file.size, "blobId": file.blob_id, **file.lfs("sha256")}
            for file in self.files.values()
        ]

    def tree(self, *, recursive: bool) -> list[dict[str, Any]]:
        """The answer of `GET /api/models/{repo}/tree/{revision}`."""
        entries = [
            {"type": "file", "path": file.path, "size": file.size, "oid": file.blob_id, **file.lfs("oid")}
            for file in self.files.values()
        ]
        folders = sorted({str(parent) for path in self.files for parent in PurePosixPath(path).parents} - {"."})
        entries += [
            {"type": "directory", "path": path, "size": 0, "oid": _sha1(path.encode()).hexdigest()} for path in folders
        ]
        return entries if recursive else [entry for entry in entries if "/" not in str(entry["path"])]


class Repository:
    """A repository whose `main` is `folder`.

    With a `token` it is gated: its description is public, its files take the token. `private`: not even that.
    """

    def __init__(self, name: str, folder: Path, *, token: str | None = None, private: bool = False) -> None:
        self.name = name
        self.token = token
        self.private = private
        self.main = Snapshot(folder)
        self._commits = {self.main.commit: self.main}

    def push(self, folder: Path) -> str:
        """`main` is now the content of another folder; the commit it was before stays readable. The new commit."""
        self.main = Snapshot(folder)
        self._commits[self.main.commit] = self.main
        return self.main.commit

    def at(self, revision: str) -> Snapshot:
        """Raises UnknownRevision for anything but `main` and the commits it has been at."""
        if revision in ("main", "HEAD"):
            return self.main
        try:
            return self._commits[revision]
        except KeyError:
            raise UnknownRevision(revision) from None

    def info(self, snapshot: Snapshot, *, blobs: bool) -> dict[str, Any]:
        """The answer of `GET /api/models/{repo}`."""
        return {
            "id": self.name,
            "modelId": self.name,
            "author": self.name.partition("/")[0],
            "sha": snapshot.commit,
            "private": self.private,
            "gated": "manual" if self.token and not self.private else False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": snapshot.siblings(blobs=blobs),
        }


def _describe(path: Path, folder: Path) -> RepoFile:
    size = path.stat().st_size
    blob = _sha1(b"blob %d\0" % size)
    sha256 = hashlib.sha256()
    in_lfs = path.suffix in LFS_SUFFIXES or size >= LFS_BYTES
    for block in _blocks(path):
        (sha256 if in_lfs else blob).update(block)
    if in_lfs:  # git keeps only a pointer, and its blob id is the pointer's
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256.hexdigest()}\nsize {size}\n".encode()
        blob = _sha1(b"blob %d\0" % len(pointer) + pointer)
    name = path.relative_to(folder).as_posix()
    return RepoFile(name, size, blob.hexdigest(), sha256.hexdigest() if in_lfs else None)


def _sha1(data: bytes) -> hashlib._Hash:
    return hashlib.sha1(data, usedforsecurity=False)  # git's choice


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            yield block
