"""The peer port: chunks of fills, for nodes that hold the fill's token. Nothing else is on it.

    connection ──► head ──► a fill that is known? ──► its token? ──► chunk │ news │ work      see `actors.peers.wire`

A thread per connection; bytes go from the page cache to the socket with `sendfile`. The names in a request are numbers
and words that are looked up, never parts of a path.

A client that reaches the port can keep it busy, but not from others: there is a number of connections in all and for
each address, those that ask for nothing give way to new ones, and everything that is sent or waited for has its time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from actors.mesh.actions import Answer, Elsewhere, Origin
from actors.messages import NodeName
from actors.peers.tls import Tls
from actors.peers.wire import DIGEST, NODE, READER, UNLESS, Closed, Head, Wire, address, time_for
from actors.service import Service

MAX_CONNECTIONS = 256
MAX_PER_ADDRESS = 128
FIRST_HEAD_S = 10.0
"""For a new connection to ask for something."""
IDLE_S = 60.0
"""How long a connection is kept without a request, once a token has been accepted on it."""
ANSWER_S = 60.0
"""For the head of an answer: a request may be held, and a chunk may have to be hashed first."""
STUCK_S = 10.0
"""A peer that takes no byte for so long is given up."""
TIDY_S = 1.0
"""How often it is looked for what takes too long."""
RAY_PORTS = range(10002, 20000)
"""Ray gives these to its workers (`--min-worker-port`): a port of ours among them would be taken away."""

_log = logging.getLogger(__name__)

_STATUS = {
    200: "OK",
    204: "No Content",
    304: "Not Modified",
    307: "Temporary Redirect",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    425: "Too Early",
    503: "Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class Sending:
    """A chunk to be sent: so many bytes of an open file. Its receiver closes it and says `served`."""

    descriptor: int
    start: int
    size: int
    origin: Origin


class Served(Protocol):
    """One fill, as those who ask see it. Every call but `told` returns within seconds."""

    def admits(self, token: str) -> bool: ...

    def asked(self, peer: NodeName, chunk: int, buffer: bytearray) -> Sending | Answer | Elsewhere: ...

    def served(self, peer: NodeName, chunk: int, *, ok: bool) -> None: ...

    def named(self, peer: NodeName, chunk: int) -> None:
        """In place of `served`: the digest was all that the peer needed."""

    def asked_for_work(self, peer: NodeName) -> int | None: ...

    def told(self) -> Iterator[bytes]:
        """Frames, each when it is due; ends with the fill."""


@dataclass(slots=True, eq=False)
class _Visit:
    """One connection. It is cut when it is still at the same thing at `until`; `idle_since` is set between requests."""

    wire: Wire
    host: str
    until: float
    idle_since: float | None
    known: bool = False
    """A token has been accepted on it."""

    def waits(self) -> None:
        """For a head."""
        self.idle_since = time.monotonic()
        self.until = self.idle_since + (IDLE_S if self.known else FIRST_HEAD_S)

    def works(self, seconds: float) -> None:
        """For so long at most."""
        self.idle_since, self.until = None, time.monotonic() + seconds


class PeerServer:
    """Listens from construction until `close`. `fills` is what is served, and its owner's to change."""

    def __init__(self, host: str, port: int, fills: Mapping[str, Served], tls: Tls | None = None) -> None:
        """`port` 0: a free one that Ray does not use. Raises OSError for an address that cannot be had."""
        self._fills = fills
        self._open_wire = tls.server if tls is not None else Wire
        self._listener = _listen(host, port)
        self.address = address(host, self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._visits: set[_Visit] = set()
        self._closed = threading.Event()
        self._service = Service("peers", self._accept, self._closed)
        self._service.start()

    def keep(self) -> None:
        """It listens, also if there was no thread to be had for that before."""
        self._service.start()

    def close(self) -> None:
        """Nothing is served any more; requests under way are cut."""
        with self._lock:
            self._closed.set()
            visits = list(self._visits)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._service.join()
        self._listener.close()
        for visit in visits:
            visit.wire.cut()

    def _accept(self) -> None:
        self._listener.settimeout(TIDY_S)
        tidied_at = time.monotonic()
        while not self._closed.is_set():
            try:
                connection, (host, *_) = self._listener.accept()
                self._welcome(connection, host)
            except TimeoutError:
                pass
            except OSError as error:
                if not self._closed.wait(0.1):  # out of descriptors, perhaps: they come back
                    _log.warning("cannot accept a peer", extra={"error": str(error)})
            if (now := time.monotonic()) >= tidied_at + TIDY_S:
                tidied_at = now
                self._tidy(now)

    def _welcome(self, connection: socket.socket, host: str) -> None:
        """Its requests are answered from now on, if there is room for it."""
        with self._lock:
            beside = [visit for visit in self._visits if visit.host == host]
            room = self._has_room(self._visits, MAX_CONNECTIONS) and self._has_room(beside, MAX_PER_ADDRESS)
            if self._closed.is_set() or not room:
                connection.close()
                return
            try:
                wire = self._open_wire(connection, FIRST_HEAD_S)
            except OSError as error:
                _log.debug("a peer was lost", extra={"error": str(error)})
                connection.close()
                return
            visit = _Visit(wire, host, time.monotonic() + FIRST_HEAD_S, time.monotonic())
            self._visits.add(visit)
        try:
            threading.Thread(target=self._serve, args=(visit,), name="peer", daemon=True).start()
        except (RuntimeError, MemoryError) as error:  # short of threads: this peer asks again, or asks another
            _log.warning("cannot serve a peer now", extra={"host": host, "error": str(error)})
            with self._lock:
                self._visits.discard(visit)
            wire.close()

    def _has_room(self, visits: Collection[_Visit], most: int) -> bool:
        """One more fits among these: whoever has asked for nothing for longest goes."""
        if len(visits) < most:
            return True
        idle = [(visit.idle_since, visit) for visit in visits if visit.idle_since is not None]
        if not idle:
            return False
        _, longest = min(idle, key=lambda each: each[0])
        self._visits.discard(longest)
        longest.wire.cut()
        return True

    def _tidy(self, now: float) -> None:
        """Connections that took too long are cut: the kernel lets one that takes a byte now and then go on for ever."""
        with self._lock:
            late = [visit for visit in self._visits if visit.until <= now]
        for visit in late:
            visit.wire.cut()

    def _serve(self, visit: _Visit) -> None:
        wire, buffer = visit.wire, bytearray()
        try:
            wire.greet()
            while True:
                visit.waits()
                wire.patience(IDLE_S)
                head = wire.read_head()
                visit.works(ANSWER_S)
                wire.patience(STUCK_S)
                if not self._answer(visit, head, buffer):
                    break
        except Closed:
            pass
        except OSError as error:
            _log.debug("a peer was lost", extra={"error": str(error)})
        except Exception:  # noqa: BLE001  one request that breaks us must not take the others along
            _log.exception("a peer's request broke")
        finally:
            with self._lock:
                self._visits.discard(visit)
            wire.close()

    def _answer(self, visit: _Visit, head: Head, buffer: bytearray) -> bool:
        """Whether the connection can be used again."""
        wire = visit.wire
        method, _, rest = head.first.partition(" ")
        target, _, version = rest.partition(" ")
        parts = target.split("/")
        if not version.startswith("HTTP/1.") or head.length or "transfer-encoding" in head.fields:
            return _say(wire, 400, last=True)
        if len(parts) not in (4, 5) or parts[:2] != ["", "fills"]:
            return _say(wire, 404)
        fill = self._fills.get(parts[2])
        if fill is None:
            return _say(wire, 404)
        scheme, _, token = head.fields.get("authorization", "").partition(" ")
        if scheme != "Bearer":
            return _say(wire, 401, {"WWW-Authenticate": "Bearer"}, last=True)
        if not fill.admits(token):
            return _say(wire, 403)
        visit.known = True
        peer = NodeName(head.fields.get(NODE.lower(), ""))
        match method, parts[3:]:
            case "GET", ["chunks", number] if number.isdecimal() and len(number) < 10:
                return _send_chunk(visit, fill, peer, int(number), buffer, head.fields.get(UNLESS.lower(), ""))
            case "GET", ["news"]:
                _say(wire, 200, {"Connection": "close"}, length=None)
                for frame in fill.told():
                    visit.works(time_for(len(frame)))
                    wire.send(frame)
                return False
            case "POST", ["work"]:
                chunk = fill.asked_for_work(peer)
                if chunk is None:
                    return _say(wire, 204)
                body = str(chunk).encode()
                _say(wire, 200, length=len(body))
                wire.send(body)
                return True
        return _say(wire, 404)


def _send_chunk(visit: _Visit, fill: Served, peer: NodeName, chunk: int, buffer: bytearray, unless: str) -> bool:
    """The answer; without its bytes if the peer has them, by one of the digests in `unless`."""
    wire, answer = visit.wire, fill.asked(peer, chunk, buffer)
    if isinstance(answer, Elsewhere):
        return _say(wire, 307, {READER: answer.peer})
    if isinstance(answer, Answer):
        return _say(wire, 503 if answer is Answer.BUSY else 425)
    fields = {READER: answer.origin.reader, DIGEST: answer.origin.digest.hex()}
    if f'"{fields[DIGEST]}"' in unless:
        os.close(answer.descriptor)
        fill.named(peer, chunk)
        return _say(wire, 304, fields)
    sent = 0
    try:
        visit.works(time_for(answer.size))
        _say(wire, 200, fields, length=answer.size)
        sent = wire.send_file(answer.descriptor, answer.start, answer.size)
    finally:
        os.close(answer.descriptor)
        fill.served(peer, chunk, ok=sent == answer.size)
    return sent == answer.size


def _say(
    wire: Wire, status: int, fields: Mapping[str, str] | None = None, *, length: int | None = 0, last: bool = False
) -> bool:
    """Whether the connection can be used again. `length` None: it ends with the connection."""
    own: dict[str, object] = {} if length is None else {"Content-Length": length}
    if last:
        own["Connection"] = "close"
    wire.send_head(f"HTTP/1.1 {status} {_STATUS[status]}", {**own, **(fields or {})}, more=bool(length))
    return not last


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    kept: list[socket.socket] = []
    try:
        while True:
            listener = socket.create_server((host, port), family=family, backlog=512)
            if port or listener.getsockname()[1] not in RAY_PORTS:
                return listener
            kept.append(listener)  # or the kernel would give it again
    finally:
        for each in kept:
            each.close()
