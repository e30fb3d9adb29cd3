"""Asking peers: one request at a time over connections that are kept for the next.

An answer of a peer is a value; a peer that cannot be reached, or breaks off, raises OSError. An answer's body belongs
to the caller: a connection is kept only if all of it was read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from actors.mesh.membership import Member
from actors.messages import NodeName
from actors.peers.gossip import FRAMES_PER_S, MAX_FRAME_BYTES, SIGN_OF_LIFE_S, Frame, read_frame
from actors.peers.tls import Tls
from actors.peers.wire import NODE, UNLESS, Closed, Head, ProtocolError, Wire, connect
from actors.rates import RateLimit

KEPT_PER_PEER = 4
CONNECT_TIMEOUT_S = 2.0
BURST_S = 0.5
"""Frames of so much time may come at once."""


@dataclass(slots=True)
class Reply:
    """`status` is HTTP's. The body has `left` bytes still to be read."""

    status: int
    head: Head
    left: int
    _wire: Wire

    def read_into(self, view: memoryview) -> int:
        """Some of the body; 0 at its end."""
        if not self.left:
            return 0
        count = self._wire.read_into(view[: self.left])
        self.left -= count
        return count

    def frame(self, most_bytes: int) -> Frame:
        """Of a body that never ends."""
        self.left = 1
        return read_frame(self._wire, most_bytes)

    def patience(self, timeout_s: float) -> None:
        self._wire.patience(timeout_s)

    def read(self, limit: int) -> bytes:
        """All of a short body."""
        if self.left > limit:
            raise ProtocolError(f"{self.left} bytes where at most {limit} make sense")
        body = self._wire.read(self.left)
        self.left = 0
        return body


class Asker:
    """The connections of one node in one fill. Any thread; each request is one thread's."""

    def __init__(
        self,
        me: NodeName,
        fill: str,
        tokens: Callable[[], Sequence[str]],
        silence_s: float,
        tls: Tls | None = None,
    ) -> None:
        """A peer that sends no byte for `silence_s` is given up. `tokens`: the next is tried where one is refused."""
        self._me = me
        self._fill = fill
        self._tokens = tokens
        self._silence_s = silence_s
        self._open_wire = tls.client if tls is not None else Wire
        self._lock = threading.Lock()
        self._idle: dict[str, list[Wire]] = {}
        self._used: set[Wire] = set()
        self._closed = threading.Event()

    @contextmanager
    def ask(
        self,
        peer: Member,
        method: str,
        what: str,
        *,
        timeout_s: float | None = None,
        unless: Iterable[bytes] = (),
    ) -> Iterator[Reply]:
        """The head of the answer has come. `timeout_s`: how long it may take, if not `silence_s`.

        The answer to a request for a chunk that has one of the digests `unless` is 304.
        """
        first = f"{method} /fills/{self._fill}/{what} HTTP/1.1"
        fields: dict[str, str] = {NODE: self._me}
        if known := [f'"{digest.hex()}"' for digest in unless]:
            fields[UNLESS] = ", ".join(known)
        *earlier, last = self._tokens()
        for token in earlier:
            with self._ask(peer, first, fields, token, timeout_s or self._silence_s) as reply:
                if reply.status != 403:
                    yield reply
                    return
        with self._ask(peer, first, fields, last, timeout_s or self._silence_s) as reply:
            yield reply

    @contextmanager
    def _ask(
        self, peer: Member, first: str, fields: Mapping[str, str], token: str, timeout_s: float
    ) -> Iterator[Reply]:
        wire, head = self._request(peer.address, first, {**fields, "Authorization": f"Bearer {token}"}, timeout_s)
        reply: Reply | None = None
        try:
            reply = Reply(_status(head), head, head.length, wire)
            yield reply
        finally:
            self._give_back(peer.address, wire, kept=reply is not None and not reply.left)

    def listen(self, peer: Member, chunks: int = 8 * MAX_FRAME_BYTES) -> Iterator[Frame]:
        """Its news of so many chunks, as they come but no faster than `FRAMES_PER_S`, until it says no more.

        Raises OSError when even signs of life are missing.
        """
        with self.ask(peer, "GET", "news") as reply:
            reply.patience(3 * SIGN_OF_LIFE_S)
            ahead = RateLimit(FRAMES_PER_S)
            while reply.status == 200:
                yield reply.frame((chunks + 7) // 8)
                if (pause_s := ahead.spend(1)) > BURST_S:
                    self._closed.wait(pause_s)

    def close(self) -> None:
        """No connection is left; requests under way break off."""
        with self._lock:
            self._closed.set()
            used = list(self._used)
            idle = [wire for wires in self._idle.values() for wire in wires]
            self._idle.clear()
        for wire in used:
            wire.cut()
        for wire in idle:
            wire.close()

    def _request(self, address: str, first: str, fields: Mapping[str, str], timeout_s: float) -> tuple[Wire, Head]:
        """A kept connection that the peer has closed meanwhile is replaced."""
        while True:
            wire, kept = self._take(address)
            try:
                wire.patience(timeout_s)
                wire.send_head(first, fields)
                head = wire.read_head()
                wire.patience(self._silence_s)
            except OSError as error:
                self._give_back(address, wire, kept=False)
                if kept and isinstance(error, Closed | ConnectionError) and not self._closed.is_set():
                    continue
                raise
            return wire, head

    def _take(self, address: str) -> tuple[Wire, bool]:
        with self._lock:
            if self._closed.is_set():
                raise Closed("the fill is over")
            idle = self._idle.get(address)
            wire = idle.pop() if idle else None
            if wire is not None:
                self._used.add(wire)
                return wire, True
        wire = connect(address, CONNECT_TIMEOUT_S, self._open_wire)
        with self._lock:
            if self._closed.is_set():
                wire.close()
                raise Closed("the fill is over")
            self._used.add(wire)
        return wire, False

    def _give_back(self, address: str, wire: Wire, *, kept: bool) -> None:
        with self._lock:
            self._used.discard(wire)
            idle = self._idle.setdefault(address, [])
            if kept and not self._closed.is_set() and len(idle) < KEPT_PER_PEER:
                idle.append(wire)
                return
        wire.close()


def _status(head: Head) -> int:
    parts = head.first.split(" ", 2)
    if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdecimal():
        raise ProtocolError(f"not an answer: {head.first[:80]!r}")
    return int(parts[1])
