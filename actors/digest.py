"""The digests that origins give of a file, computed piece by piece.

    sha256     of the content                             LFS files of the hub, S3 objects uploaded with a checksum
    git-sha1   of `blob <size>\\0` and the content         small files of the hub: git's own name for them
    md5        of the content                             S3 objects uploaded in one part

git-sha1 and md5 catch damage, not malice. They are what the origin vouches for, so they are what is compared.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

from actors.errors import SourceUnsupported
from actors.manifest import Digest


class Hash(Protocol):
    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


class Digester:
    """The digest of one file of `size` bytes, from its bytes in order."""

    def __init__(self, algorithm: str, size: int) -> None:
        """Raises SourceUnsupported for an algorithm that no origin of ours uses."""
        self.algorithm = algorithm
        self._hash = _new(algorithm, size)
        self.position = 0
        """How many bytes have been fed."""

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Large pieces are hashed without holding the interpreter lock."""
        self._hash.update(data)
        self.position += len(data)

    def digest(self) -> Digest:
        return Digest(f"{self.algorithm}:{self._hash.hexdigest()}")


def algorithm_of(digest: Digest | None) -> str:
    """How a file that is expected to have `digest` is hashed; sha256 when the origin gave none."""
    return "sha256" if digest is None else digest.partition(":")[0]


def _new(algorithm: str, size: int) -> Hash:
    match algorithm:
        case "sha256":
            return hashlib.sha256()
        case "git-sha1":
            return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        case "md5":
            return hashlib.md5(usedforsecurity=False)
    raise SourceUnsupported(f"cannot check a digest of the kind {algorithm!r}", reason="InvalidManifest")
