"""Ray's own object broadcast, for `benchmarks.fanout`: one node reads, and puts objects that the others get.

    head: reads 16Mi from the origin ──► ray.put ──► refs ──► an actor on every other node: ray.get, write

Each host is a Ray node of its own. The origin is read once by construction. Nothing is verified.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from socket import create_connection
from typing import Any

OBJECT_BYTES = 16 << 20
WINDOW = 16
"""Objects alive at a time. With many more the stores fill up, and spill."""
PORT = 6379


def main() -> None:
    """Arguments: how many nodes, the head's address, this node's, the URLs of the files, the harness's descriptor."""
    nodes, head, address, *urls, descriptor = sys.argv[1:]
    harness: Connection[Any, Any] = Connection(int(descriptor))
    while address != head and not _listens(head):
        time.sleep(0.2)
    where = [f"--address={head}:{PORT}"]
    if address == head:
        where = ["--head", f"--port={PORT}", "--include-dashboard=false"]
    store = f"--object-store-memory={3 * WINDOW * OBJECT_BYTES}"
    options = [f"--node-ip-address={address}", "--num-cpus=1", store]
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    ray = str(Path(sys.executable).parent / "ray")
    subprocess.run([ray, "start", *where, *options, f"--temp-dir={Path.cwd()}/ray"], check=True)
    if address == head:
        _broadcast(harness, int(nodes), head, urls)
    else:
        harness.send("ready")
        harness.recv()
    harness.recv()  # never comes: the host is switched off


def _listens(host: str) -> bool:
    try:
        create_connection((host, PORT), 1).close()
    except OSError:
        return False
    return True


class Receiver:
    """Writes what it is given, on the node it lives on."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115, PTH123  for the actor's life

    def write(self, piece: bytes) -> None:
        self._file.write(piece)


def _broadcast(harness: Connection[Any, Any], nodes: int, head: str, urls: list[str]) -> None:
    """Says `ready`, waits for a word, and says of every address when all has been written there."""
    import ray

    ray.init(address=f"{head}:{PORT}", _node_ip_address=head, log_to_driver=False)
    while len(ray.nodes()) < nodes:
        time.sleep(0.2)
    remote = ray.remote(num_cpus=0)(Receiver)
    receivers = {}
    for address in {each["NodeManagerAddress"] for each in ray.nodes()} - {head}:
        pinned = remote.options(resources={f"node:{address}": 0.001})
        receivers[address] = pinned.remote(f"{Path.cwd()}/model")
    ray.get([receiver.__ray_ready__.remote() for receiver in receivers.values()])
    harness.send("ready")
    harness.recv()
    alive: deque[dict[Any, str]] = deque()
    with Path("model").open("wb", buffering=0) as file:
        for piece in _pieces(urls):
            shared = ray.put(piece)
            alive.append({receiver.write.remote(shared): address for address, receiver in receivers.items()})
            del shared
            file.write(piece)
            if len(alive) > WINDOW:
                done = list(alive.popleft())
                ray.wait(done, num_returns=len(done))
    harness.send(("done", head))
    last = alive[-1]
    while last:
        (done, *_), _ = ray.wait(list(last))
        harness.send(("done", last.pop(done)))


def _pieces(urls: list[str]) -> Iterator[bytes]:
    for url in urls:
        with urllib.request.urlopen(url) as response:
            while piece := response.read(OBJECT_BYTES):
                yield piece


if __name__ == "__main__":
    main()
