"""All that one agent does with its peers: one port, and its part in every fill that others take part in.

company of a model ──► being filled here   the fill opens a swarm, and works with it
                   └─► committed here      a seed: a swarm that only hands out
no company any more ──► its swarm is closed
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Iterable
from pathlib import Path

from actors.chunks import Grid
from actors.manifest import Manifest
from actors.mesh import bitmap
from actors.mesh.limits import LINK_BYTES_PER_S, Pace, choose_slots
from actors.messages import Company, NodeName, Part
from actors.peers.client import Asker
from actors.peers.server import PeerServer
from actors.peers.swarm import Swarm
from actors.peers.tls import Tls, TlsFiles

_log = logging.getLogger(__name__)


class Exchange:
    """Any thread may call anything."""

    def __init__(
        self,
        node: NodeName,
        host: str | None,
        port: int,
        link_bytes_per_s: float | None,
        rng: random.Random,
        tls_files: TlsFiles | None = None,
    ) -> None:
        """Without a host nothing listens, and nothing is done together. A port that cannot be had is logged."""
        self._tls = Tls(tls_files) if tls_files is not None else None
        self._node = node
        self._link_bytes_per_s = link_bytes_per_s or LINK_BYTES_PER_S
        self._rng = rng
        self._lock = threading.Lock()
        self._swarms: dict[str, Swarm] = {}
        self._server: PeerServer | None = None
        if host:
            try:
                self._server = PeerServer(host, port, self._swarms, self._tls)
            except OSError as error:
                _log.error("no peer port: this node fills alone", extra={"host": host, "error": str(error)})

    @property
    def address(self) -> str | None:
        """Of the peer port; None also while there is no certificate to open it with."""
        usable = self._tls is None or self._tls.usable
        return self._server.address if self._server and usable else None

    def open(self, company: Company, manifest: Manifest, folder: Path, have: int, begun: int = 0) -> Swarm:
        """This node's part in the fill; in place of the one it had. Raises OSError if there is no such folder.

        `have` and `begun` are bitmaps of the chunks that are there, and there in part.
        """
        pace = Pace(slots=choose_slots(company.chunk_bytes, self._link_bytes_per_s))
        rng = random.Random(self._rng.random())
        swarm = Swarm(self._node, company, manifest, folder, pace, have=have, begun=begun, rng=rng)
        with self._lock:
            before = self._swarms.get(company.fill)
            self._swarms[company.fill] = swarm
        if before is not None:
            before.close()
        return swarm

    def asker(self, swarm: Swarm) -> Asker:
        """The asking end of that part: connections to the other members."""
        return Asker(swarm.me, swarm.company.fill, lambda: swarm.tokens, swarm.pace.silence_s, self._tls)

    def seed(self, company: Company, manifest: Manifest, folder: Path) -> None:
        """A committed copy is there for others. Does nothing if it is already."""
        if company.fill not in self._swarms:
            try:
                have = bitmap.full(len(Grid(manifest.files, company.chunk_bytes)))
                self.open(company, manifest, folder, have)
            except OSError as error:
                _log.warning("cannot serve a model", extra={"folder": str(folder), "error": str(error)})

    def keep(self, companies: Iterable[Company]) -> None:
        """From now on these are the companies; the others are left."""
        if self._server is not None:
            self._server.keep()
        wanted = {company.fill: company for company in companies}
        with self._lock:
            swarms = dict(self._swarms)
            for fill in swarms.keys() - wanted.keys():
                del self._swarms[fill]
        for fill, swarm in swarms.items():
            if fill in wanted:
                swarm.join(wanted[fill])
            else:
                swarm.close()

    def leave(self, fill: str) -> None:
        """Nothing of the fill is handed out any more, and nothing of it is open."""
        with self._lock:
            swarm = self._swarms.pop(fill, None)
        if swarm is not None:
            swarm.close()

    def part(self, fill: str | None) -> Part | None:
        """What this node does in a fill."""
        swarm = self._swarms.get(fill or "")
        return swarm.part if swarm is not None else None

    def close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
        self.keep(())
