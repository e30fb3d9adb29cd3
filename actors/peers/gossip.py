"""What nodes tell each other unasked while they fill together: frames of bytes on a connection that lasts.

    DELTA   these chunks have landed since the last frame      WHOLE   these are all chunks that are here
    QUIET   the origin asked the sender for a pause of so many milliseconds

An empty DELTA is a sign of life. Bitmaps travel in the byte order in which Python writes whole numbers, big end first.
A frame longer than its content can be is no frame. What the receiver makes of one is for `actors.mesh.mesh` to say.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from actors.peers.wire import ProtocolError, Wire

MAX_FRAME_BYTES = 64 << 10
"""A bitmap of half a million chunks."""
MAX_NUMBER_BYTES = 8
SIGN_OF_LIFE_S = 1.0
FRAMES_PER_S = 200.0
"""A sender that tells more often is read no faster: an owner reads a chunk in 5 ms at the fastest."""

_HEADER = struct.Struct(">BI")


class Kind(IntEnum):
    DELTA = 1
    WHOLE = 2
    QUIET = 3


@dataclass(frozen=True, slots=True)
class Frame:
    """`value` is a bitmap, or milliseconds."""

    kind: Kind
    value: int = 0

    def encode(self) -> bytes:
        content = self.value.to_bytes((self.value.bit_length() + 7) // 8, "big")
        return _HEADER.pack(self.kind, len(content)) + content


def read_frame(wire: Wire, most_bytes: int = MAX_FRAME_BYTES) -> Frame:
    """The next one, with a bitmap of `most_bytes` at most.

    Raises OSError at the end of the connection, when none comes for too long, and for what is no frame.
    """
    kind, length = _HEADER.unpack(wire.read(_HEADER.size))
    if kind not in set(Kind) or length > (MAX_NUMBER_BYTES if kind == Kind.QUIET else most_bytes):
        raise ProtocolError(f"not a frame: kind {kind}, {length} bytes")
    return Frame(Kind(kind), int.from_bytes(wire.read(length), "big"))
