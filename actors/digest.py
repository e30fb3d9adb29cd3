"""The digests and checksums that origins give of a file, computed piece by piece.

    sha256     of the content                             LFS files of the hub, S3 objects uploaded with a checksum
    sha512     of the content                             blobs of a registry whose pusher chose it
    git-sha1   of `blob <size>\\0` and the content         small files of the hub: git's own name for them
    md5        of the content                             S3 objects uploaded in one part, Google's, Azure's
    md5-N      of the md5s of every N bytes of it         S3 objects uploaded in parts: `<hex>-<number of parts>`

    crc64nvme  of the content                             S3's own, of nearly every object since the end of 2024
    crc32c     of the content                             Google's; S3 objects whose uploader chose it
    crc32      of the content                             S3 objects whose uploader chose it

git-sha1 and md5 catch damage, not malice. They are what the origin vouches for, so they are what is compared. The CRCs
are made up at will; they are compared where there is nothing else, beside the sha256 that the file is then known by.

Chunks that go from node to node have a BLAKE3 (`chunk_hash`), which no origin names: docs/decisions/blake3.md.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from typing import Protocol

from blake3 import blake3

from actors.errors import SourceUnsupported
from actors.manifest import Digest, ManifestFile

CHECKSUMS = {"crc64nvme": 8, "crc32c": 4, "crc32": 4}
"""Their sizes in bytes; the strongest first."""

BLOCK_BYTES = 1 << 20
_PARTS = re.compile(r"md5-([1-9]\d*)")


class Hash(Protocol):
    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


class ChunkHash(Protocol):
    def update(self, data: bytes | bytearray | memoryview, /) -> object: ...

    def digest(self) -> bytes: ...


def chunk_hash() -> ChunkHash:
    """A hash that, fed with a chunk in order, gives the digest that the chunk has between nodes."""
    return blake3()


def digest_of(descriptor: int, start: int, stop: int, buffer: bytearray) -> bytes:
    """The digest that these bytes of an open file have between nodes. `buffer` is used, and made if it is empty.

    Raises OSError, also for a file that ends before `stop`.
    """
    if not buffer:
        buffer.extend(bytes(BLOCK_BYTES))
    view, digest = memoryview(buffer), chunk_hash()
    while start < stop:
        count = os.preadv(descriptor, [view[: stop - start]], start)
        if not count:
            raise OSError("the file became shorter")
        digest.update(view[:count])
        start += count
    return digest.digest()


class Digester:
    """The digest of one file of `size` bytes, from its bytes in order; and whether it has `checksum`."""

    def __init__(self, algorithm: str, size: int, checksum: Digest | None = None) -> None:
        """Raises SourceUnsupported for an algorithm that no origin of ours uses."""
        self.algorithm = algorithm
        self._hash = _new(algorithm, size)
        self._checksum = checksum
        self._beside = _new(algorithm_of(checksum), size) if checksum is not None else None
        self.position = 0
        """How many bytes have been fed."""

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Large pieces are hashed without holding the interpreter lock."""
        self._hash.update(data)
        if self._beside is not None:
            self._beside.update(data)
        self.position += len(data)

    def digest(self) -> Digest:
        return Digest(f"{self.algorithm}:{self._hash.hexdigest()}")

    def mismatch(self, expected: Digest | None) -> str | None:
        """How the bytes differ from what the source vouches for; None: they do not."""
        if expected is not None and expected != self.digest():
            return f"expected {expected}, got {self.digest()}"
        if self._checksum is None or self._beside is None:
            return None
        found = f"{algorithm_of(self._checksum)}:{self._beside.hexdigest()}"
        return None if found == self._checksum else f"expected {self._checksum}, got {found}"


def algorithm_of(digest: Digest | None) -> str:
    """How a file that is expected to have `digest` is hashed; sha256 when the origin gave none."""
    return "sha256" if digest is None else digest.partition(":")[0]


def how_verified(file: ManifestFile) -> str:
    """By which of the things that its source says of it a file is checked."""
    return "size" if file.vouched is None else algorithm_of(file.vouched)


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


class _Checksum:
    """A CRC, big-endian as S3 and Google write it. `add` gives that of more bytes from that of those before."""

    def __init__(self, add: Callable[[bytes | bytearray | memoryview, int], int], size: int) -> None:
        self._add = add
        self._size = size
        self._value = 0

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        self._value = self._add(data, self._value)

    def hexdigest(self) -> str:
        return self._value.to_bytes(self._size, "big").hex()


def _checksum(algorithm: str) -> _Checksum:
    try:
        from awscrt import checksums  # here, because it takes 50 ms and 7 MB that most fills need not
    except ImportError as error:
        raise SourceUnsupported(
            f"{algorithm}, by which the source vouches for its files, cannot be checked without a package that is not "
            f"installed: pip install awscrt",
            reason="PackageMissing",
        ) from error
    return _Checksum(getattr(checksums, algorithm), CHECKSUMS[algorithm])


def _new(algorithm: str, size: int) -> Hash:
    if algorithm in CHECKSUMS:
        return _checksum(algorithm)
    if match := _PARTS.fullmatch(algorithm):
        return _Parts(int(match[1]))
    match algorithm:
        case "sha256":
            return hashlib.sha256()
        case "sha512":
            return hashlib.sha512()
        case "git-sha1":
            return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        case "md5":
            return hashlib.md5(usedforsecurity=False)
    raise SourceUnsupported(f"cannot check a digest of the kind {algorithm!r}", reason="InvalidManifest")
