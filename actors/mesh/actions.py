"""What a mesh decides, and what it is told, as values.

next()   →  ReadOrigin | AskPeer | Steal | Wait | Done        what the node does now
asked()  →  Answer                                            what it tells a peer that asks for a chunk
failed() ←  Outcome                                           why a read or a request brought no chunk
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from actors.messages import NodeName


@dataclass(frozen=True, slots=True)
class ReadOrigin:
    """Read the chunk from the origin; end with `landed` or `failed`."""

    chunk: int


@dataclass(frozen=True, slots=True)
class AskPeer:
    """Ask the peer for the chunk; end with `landed`, `failed` or `redirected`."""

    chunk: int
    peer: NodeName


@dataclass(frozen=True, slots=True)
class Steal:
    """Ask an owner for a chunk that it has not begun to read; end with `stolen`."""

    owner: NodeName


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before this time, unless the mesh is told something first. Infinite: until it is told something."""

    until: float


@dataclass(frozen=True, slots=True)
class Done:
    """Every chunk is here. Peers may still ask."""


Action = ReadOrigin | AskPeer | Steal | Wait | Done


class Answer(Enum):
    """To a request for a chunk."""

    DATA = auto()
    """Send it; a sending slot is taken until `served`."""
    BUSY = auto()
    """It is here or on its way, but every sending slot is taken, or enough others wait for it; or it is read next."""
    NOT_YET = auto()
    """It is not here, nor on its way."""
    HOLD = auto()
    """It is on its way: keep the request until a `Release` names it, or for `Pace.silence_s`; then `unhold` answers."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """This node owns the chunk and let `peer` read it: ask there."""

    peer: NodeName


@dataclass(frozen=True, slots=True)
class Release:
    """A held request is to be answered now. With DATA a sending slot is taken until `served`."""

    peer: NodeName
    chunk: int
    answer: Answer


class Outcome(Enum):
    """Why no chunk came."""

    BUSY = auto()
    NOT_YET = auto()
    UNREACHABLE = auto()
    """Refused, reset, or no byte for `Pace.silence_s`: the peer may be dead."""
    CORRUPT = auto()
    """The bytes do not have the digest they were announced with."""
    STALE = auto()
    """The peer has only a copy that `rejects` turned down."""
    ORIGIN = auto()
    """The origin failed, or was not asked; when the next try may be, the caller says with `retry_at`."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the bytes of a chunk come from in the end: who read it, and the digest it made. Travels with every copy."""

    reader: NodeName
    digest: bytes
