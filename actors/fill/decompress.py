"""The tar within a compressed tar: read forwards, a bounded piece at a time, in bounded memory.

By how it begins, as GNU tar does it: what is called .tar.gz was often unpacked on its way, or never packed.

1f 8b              gzip, in one or several members; what comes after the last is no part of it
"BZh"              bzip2, the same
fd "7zXZ"          xz, the same; with a dictionary of up to MAX_DICTIONARY_BYTES, which is twice that of `xz -9`
anything else      as it is
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


def decompressed(file: IO[bytes]) -> IO[bytes]:
    """Closing it leaves `file` open. Reads raise EOFError for what is cut off, and gzip's, bz2's and lzma's errors."""
    start = file.read(6)
    file.seek(0)
    if start.startswith(b"\x1f\x8b"):
        return _Gzip(fileobj=file)  # type: ignore[return-value]  # it is one for all that is done with it
    if start.startswith(b"BZh"):
        return bz2.open(file)
    if start == b"\xfd7zXZ\0":
        return io.BufferedReader(_Xz(file))  # type: ignore[type-var]  # of `readinto`, see there
    return file


class _Gzip(gzip.GzipFile):
    """Ends where gzip does, which takes no notice of what comes after a whole member. `followed`: something came."""

    followed = False

    def read(self, size: int | None = -1) -> bytes:
        try:
            return super().read(size)
        except gzip.BadGzipFile as error:
            if self.tell() and str(error).startswith("Not a gzipped file"):
                self.followed = True
                return b""
            raise


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
