"""A chunk from a peer into its file, if it is the one that was read from the origin.

    a base on the disk has bytes at its place ──► their digest goes along ──► the peer's is the same: copied from there
                                                                         └─► or another: the peer sends its own

A chunk counts once its bytes have the digest that its reader made of them. Bytes that were there before are never
written over, because they may have been hashed already.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from actors.chunks import Chunk
from actors.digest import chunk_hash
from actors.disk.bases import Base
from actors.errors import Cancelled, StoreError
from actors.fill.files import Files
from actors.fill.meter import Traffic
from actors.fill.origin_reader import Fetcher
from actors.mesh.actions import Elsewhere, Origin, Outcome
from actors.mesh.membership import Member
from actors.messages import NodeName
from actors.peers.client import Asker, Reply
from actors.peers.swarm import Swarm
from actors.peers.wire import DIGEST, READER, SLOWEST_BYTES_PER_S

ARRIVING_S = 1.0
"""How often the swarm hears of a chunk that comes slowly."""
_OUTCOMES = {503: Outcome.BUSY, 401: Outcome.BUSY, 403: Outcome.BUSY, 404: Outcome.NOT_YET, 425: Outcome.NOT_YET}
"""By status. A token that is not accepted is one that the peer has not heard of yet."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Copied:
    """The chunk was copied from a base: the peer only named its digest."""

    origin: Origin


class PeerReader:
    """Any thread, with a buffer of its own. Every call raises Cancelled soon after `stop` is set."""

    def __init__(
        self, files: Files, fetcher: Fetcher, traffic: Traffic, swarm: Swarm, asker: Asker, stop: threading.Event
    ) -> None:
        self._files = files
        self._fetcher = fetcher
        self._traffic = traffic
        self._swarm = swarm
        self._asker = asker
        self._stop = stop

    def ask(self, number: int, name: NodeName, buffer: bytearray) -> Origin | Copied | Elsewhere | Outcome:
        """Where the bytes come from that are in the file now; or who reads the chunk; or why there are none."""
        peer = self._swarm.membership.members.get(name)
        if peer is None:
            return Outcome.UNREACHABLE
        patience_s = self._swarm.pace.silence_s + 1.0  # it may hold the request for as long as `silence_s`
        chunk = self._swarm.grid.chunks[number]
        held = self._files.bases.of(chunk, buffer) if self._files.gaps(chunk) == [chunk] else {}
        try:
            with self._asker.ask(peer, "GET", f"chunks/{number}", timeout_s=patience_s, unless=held) as reply:
                if reply.status == 307:
                    return Elsewhere(NodeName(reply.head.fields.get(READER.lower(), "")))
                if reply.status == 304:
                    return self._copy(reply, number, held, buffer)
                if reply.status != 200:
                    return _OUTCOMES.get(reply.status, Outcome.UNREACHABLE)
                came = self._receive(reply, number, peer, buffer, held)
        except OSError as error:
            if self._stop.is_set():
                raise Cancelled from error
            return Outcome.UNREACHABLE
        if came is Outcome.CORRUPT:
            self._traffic.wrong_peer(name)
            _log.warning("a peer sent wrong bytes", extra={"peer": name, "chunk": number})
        return came

    def ask_for_work(self, owner: NodeName) -> tuple[int | None, bool]:
        """A chunk that the owner lets us read, if any, and whether the owner was reached."""
        peer = self._swarm.membership.members.get(owner)
        if peer is None:
            return None, False
        try:
            with self._asker.ask(peer, "POST", "work") as reply:
                text = reply.read(16)
                return int(text) if reply.status == 200 and text.isdigit() else None, True
        except OSError as error:
            if self._stop.is_set():
                raise Cancelled from error
            return None, False

    def _copy(self, reply: Reply, number: int, held: Mapping[bytes, Base], buffer: bytearray) -> Copied | Outcome:
        """The chunk is copied from a base and has the digest that the peer names; or why it is not good."""
        chunk, origin = self._swarm.grid.chunks[number], _origin(reply)
        base = held.get(origin.digest) if origin is not None else None
        if origin is None or base is None:
            return Outcome.UNREACHABLE
        if self._swarm.rejects(number, origin):
            return Outcome.STALE
        if not self._is_copied(chunk, base, origin.digest, buffer):
            self._files.bases.drop(base)
            return Outcome.BUSY  # the peer is asked once more, for the bytes
        self._files.bases.compared(held, origin.digest)
        self._files.wrote(chunk.file, chunk.start, chunk.stop)
        self._files.record(chunk)
        self._traffic.reused(chunk.size)
        return Copied(origin)

    def _is_copied(self, chunk: Chunk, base: Base, digest: bytes, buffer: bytearray) -> bool:
        """The chunk is in its file. A disk that cannot read the base may still take the peer's bytes."""
        try:
            return self._files.copy(chunk, base) and self._files.chunk_digest(chunk, buffer) == digest
        except StoreError as error:
            _log.warning("cannot copy from another copy", extra={"copy": base.offer.donor.name, "error": str(error)})
            return False

    def _receive(
        self, reply: Reply, number: int, peer: Member, buffer: bytearray, held: Mapping[bytes, Base]
    ) -> Origin | Outcome:
        """The chunk is written and has the digest it came with; or why it is not good."""
        chunk = self._swarm.grid.chunks[number]
        origin = _origin(reply)
        if origin is None or reply.left != chunk.size:
            return Outcome.CORRUPT
        stale, gaps = self._swarm.rejects(number, origin), self._files.gaps(chunk)
        digest = self._body(reply, number, peer, [] if stale else gaps, buffer)
        if digest is None:
            return Outcome.UNREACHABLE
        if stale:  # all of it was read, so that its sender is rid of it
            return Outcome.STALE
        if digest != origin.digest:
            return Outcome.CORRUPT
        self._files.bases.compared(held, digest)
        for gap in gaps:
            self._files.wrote(gap.file, gap.start, gap.stop)
        self._files.record(chunk)
        if gaps != [chunk]:  # what was there before decides what the peers get from us
            made = self._files.chunk_digest(chunk, buffer)
            return origin if made == origin.digest else Origin(self._swarm.me, made)
        return origin

    def _body(self, reply: Reply, number: int, peer: Member, gaps: list[Chunk], buffer: bytearray) -> bytes | None:
        """The digest of what the peer sends, of which `gaps` are written. None: it takes too long."""
        chunk, digest, view = self._swarm.grid.chunks[number], chunk_hash(), memoryview(buffer)
        far = self._is_far(peer)
        position = told = chunk.start
        began = told_at = time.monotonic()
        while count := reply.read_into(view):
            block = view[:count]
            digest.update(block)
            for gap in gaps:
                start, stop = max(gap.start, position), min(gap.stop, position + count)
                if start < stop:
                    self._files.write(chunk.file, start, block[start - position : stop - position])
            position += count
            self._traffic.peer(count, far=far)
            self._fetcher.spend(count, self._stop)
            now = time.monotonic()
            if now < told_at + ARRIVING_S:
                continue
            is_slow = position - chunk.start < SLOWEST_BYTES_PER_S * (now - began)
            if is_slow and now > began + self._swarm.pace.takeover_s:
                return None
            if not self._swarm.arriving(number, (position - told) / chunk.size):
                return None
            told_at, told = now, position
        return digest.digest()

    def _is_far(self, peer: Member) -> bool:
        """The peer is in another zone than this node."""
        here = self._swarm.membership.members.get(self._swarm.me)
        return here is not None and peer.zone != here.zone and None not in (peer.zone, here.zone)


def _origin(reply: Reply) -> Origin | None:
    """The member whose bytes these are, as the peer says."""
    fields = reply.head.fields
    try:
        return Origin(NodeName(fields[READER.lower()]), bytes.fromhex(fields[DIGEST.lower()]))
    except (KeyError, ValueError):
        return None
