"""The tar within a compressed tar, by its name: read forwards, a bounded piece at a time, in bounded memory.

.tar                  as it is
.tar.gz .tgz          gzip, in one or several members
.tar.bz2 .tbz2 .tbz   bzip2, the same
.tar.xz .txz          xz, the same; with a dictionary of up to MAX_DICTIONARY_BYTES, which is twice that of `xz -9`
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
from typing import IO

MAX_DICTIONARY_BYTES = 128 << 20
_READ_BYTES = 64 << 10


def decompressed(file: IO[bytes], name: str) -> IO[bytes]:
    """Closing it leaves `file` open. Reads raise EOFError for what is cut off, and gzip's, bz2's and lzma's errors."""
    if name.endswith("gz"):
        return gzip.open(file)  # type: ignore[return-value]  # it is one for all that is done with it
    if name.endswith((".bz2", ".tbz2", ".tbz")):
        return bz2.open(file)
    if name.endswith((".xz", ".txz")):
        return io.BufferedReader(_Xz(file))  # type: ignore[type-var]  # of `readinto`, see there
    return file


class _Xz(io.RawIOBase):
    """`lzma.open` knows no bound on memory."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_DICTIONARY_BYTES)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Forwards only."""
        left = offset - (self._position if whence == os.SEEK_SET else 0)
        if whence == os.SEEK_END or left < 0:
            raise io.UnsupportedOperation("seeking backwards in what is compressed")
        while left and (piece := self._piece(min(left, 1 << 20))):
            left -= len(piece)
        return self._position

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]  # as BufferedReader calls it
        piece = self._piece(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def _piece(self, most: int) -> bytes:
        while True:
            data = b""
            if self._decompressor.eof:
                data = self._next_stream()
                if not data:
                    return b""
            elif self._decompressor.needs_input:
                data = self._stream.read(_READ_BYTES)
                if not data:
                    raise EOFError("the xz stream ends before its end mark")
            if piece := self._decompressor.decompress(data, most):
                self._position += len(piece)
                return piece

    def _next_stream(self) -> bytes:
        """The beginning of another stream; nothing if only padding comes."""
        data = self._decompressor.unused_data.lstrip(b"\0")
        while not data:
            block = self._stream.read(_READ_BYTES)
            if not block:
                return b""
            data = block.lstrip(b"\0")
        self._decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_DICTIONARY_BYTES)
        return data
