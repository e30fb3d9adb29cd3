"""What runs on the hosts of `benchmarks.fanout`, in our own interpreter; each talks to it over one connection.

origin  the sample, and a tracker    ──► Resolved, then for every word: how many bytes of payload it has sent
agent   a NodeAgent                  ──► "ready", then for every DesiredState, or None: NodeReport
aria2   aria2c with a torrent        ──► "ready", then for "go": "done"
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.fanout.torrent import PORT, Tracker

ORIGIN_PORT, TRACKER_PORT, PEER_PORT = 8000, 8001, 8002


def origin(harness: Connection[Any, Any], address: str, sample: str) -> None:
    from actors.manifest import ModelSource
    from actors.sources.options import SourceOptions
    from actors.sources.resolve import resolve
    from coordinator.dev.origin.sample import REPO
    from coordinator.dev.origin.server import Origin

    Tracker.peers = {}
    tracker = ThreadingHTTPServer((address, TRACKER_PORT), Tracker)
    threading.Thread(target=tracker.serve_forever, daemon=True).start()
    with Origin({REPO: Path(sample)}, host=address, port=ORIGIN_PORT) as running:
        options = SourceOptions({"HF_ENDPOINT": running.hub_endpoint})
        harness.send(resolve(ModelSource(f"hf://{REPO}"), options))
        while True:
            harness.recv()
            harness.send(running.stats()["bytes"])


def agent(harness: Connection[Any, Any], name: str, peer_host: str, link_bytes_per_s: str) -> None:
    """With the defaults of a node agent, but for a disk that is small, and in memory."""
    from actors.agent.agent import NodeAgent
    from actors.agent.settings import AgentSettings
    from actors.messages import NodeName

    Path("models").mkdir()
    settings = AgentSettings(
        host_root=Path.cwd(),
        headroom_bytes=0,
        peer_host=peer_host or None,
        peer_port=PEER_PORT,
        link_bytes_per_s=float(link_bytes_per_s) or None,
    )
    running = NodeAgent(NodeName(name), settings)
    harness.send("ready")
    while True:
        desired = harness.recv()
        harness.send(running.report() if desired is None else running.reconcile(desired))


def aria2(harness: Connection[Any, Any], address: str, torrent: str) -> None:
    """Tuned: many peers, none of them choked; the web seed over a few connections."""
    os.mkfifo("done")
    hook = Path("hook")
    hook.write_text(f"#!/bin/sh\necho > {Path.cwd()}/done\n")
    hook.chmod(0o755)
    options = {
        "interface": address,
        "listen-port": PORT,
        "enable-dht": "false",
        "bt-max-peers": 0,
        "bt-request-peer-speed-limit": "1000M",
        "bt-tracker-interval": 2,
        "bt-min-crypto-level": "plain",
        "max-connection-per-server": 4,
        "split": 4,
        "min-split-size": "1M",
        "file-allocation": "falloc",
        "disk-cache": "32M",
        "seed-ratio": "0.0",
        "on-bt-download-complete": hook.absolute(),
        "dir": Path.cwd() / "model",
        "quiet": "true",
    }
    harness.send("ready")
    harness.recv()
    with subprocess.Popen(["aria2c", *(f"--{name}={value}" for name, value in options.items()), torrent]):
        Path("done").read_text()
        harness.send("done")
        harness.recv()


def main() -> None:
    what, *arguments, descriptor = sys.argv[1:]
    with contextlib.suppress(EOFError):
        roles: dict[str, Callable[..., None]] = {"origin": origin, "agent": agent, "aria2": aria2}
        roles[what](Connection(int(descriptor)), *arguments)


if __name__ == "__main__":
    main()
