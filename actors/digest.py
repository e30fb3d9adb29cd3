"""The digests that origins give of a file, computed piece by piece.

    sha256     of the content                             LFS files of the hub, S3 objects uploaded with a checksum
    git-sha1   of `blob <size>\\0` and the content         small files of the hub: git's own name for them
    md5        of the content                             S3 objects uploaded in one part, Google's, Azure's
    md5-N      of the md5s of every N bytes of it         S3 objects uploaded in parts: `<hex>-<number of parts>`

git-sha1 and md5 catch damage, not malice. They are what the origin vouches for, so they are what is compared.
"""

from __future__ import annotations

import hashlib
import re
from typing import Protocol

from actors.errors import SourceUnsupported
from actors.manifest import Digest

_PARTS = re.compile(r"md5-([1-9]\d*)")


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


class _Parts:
    """S3's ETag of an object that was uploaded in parts of `part_bytes`."""

    def __init__(self, part_bytes: int) -> None:
        self._part_bytes = part_bytes
        self._finished: list[bytes] = []
        self._part, self._left = hashlib.md5(usedforsecurity=False), part_bytes

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        rest = memoryview(data)
        while rest:
            piece, rest = rest[: self._left], rest[self._left :]
            self._part.update(piece)
            self._left -= len(piece)
            if not self._left:
                self._finish()

    def hexdigest(self) -> str:
        if self._left < self._part_bytes:
            self._finish()
        whole = hashlib.md5(b"".join(self._finished), usedforsecurity=False)
        return f"{whole.hexdigest()}-{len(self._finished)}"

    def _finish(self) -> None:
        self._finished.append(self._part.digest())
        self._part, self._left = hashlib.md5(usedforsecurity=False), self._part_bytes


def _new(algorithm: str, size: int) -> Hash:
    if match := _PARTS.fullmatch(algorithm):
        return _Parts(int(match[1]))
    match algorithm:
        case "sha256":
            return hashlib.sha256()
        case "git-sha1":
            return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        case "md5":
            return hashlib.md5(usedforsecurity=False)
    raise SourceUnsupported(f"cannot check a digest of the kind {algorithm!r}", reason="InvalidManifest")
