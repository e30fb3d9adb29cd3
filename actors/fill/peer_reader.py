"""A chunk from a peer into its file, if it is the one that was read from the origin.

A chunk counts once its bytes have the digest that its reader made of them. Bytes that were there before are never
written over, because they may have been hashed already.
"""

from __future__ import annotations

import logging
import threading
import time

from actors.chunks import Chunk
from actors.digest import chunk_hash
from actors.errors import Cancelled
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

    def ask(self, number: int, name: NodeName, buffer: bytearray) -> Origin | Elsewhere | Outcome:
        """Where the bytes come from that are in the file now; or who reads the chunk; or why there are none."""
        peer = self._swarm.membership.members.get(name)
        if peer is None:
            return Outcome.UNREACHABLE
        patience_s = self._swarm.pace.silence_s + 1.0  # it may hold the request for as long as `silence_s`
        try:
            with self._asker.ask(peer, "GET", f"chunks/{number}", timeout_s=patience_s) as reply:
                if reply.status == 307:
                    return Elsewhere(NodeName(reply.head.fields.get(READER.lower(), "")))
                if reply.status != 200:
                    return _OUTCOMES.get(reply.status, Outcome.UNREACHABLE)
                came = self._receive(reply, number, peer, buffer)
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

    def _receive(self, reply: Reply, number: int, peer: Member, buffer: bytearray) -> Origin | Outcome:
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
