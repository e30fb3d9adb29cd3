"""BitTorrent for `benchmarks.fanout`: a torrent of a folder, a tracker, and a node that runs libtorrent.

Only the standard library and, in the node, libtorrent: `python -m venv .venv-libtorrent` is enough to run it.
"""

from __future__ import annotations

import hashlib
import socket
import struct
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

PORT = 6881


def make_torrent(folder: Path, name: str, piece_bytes: int, web_seed: str, tracker: str) -> bytes:
    """The web seed has the folder's files below its URL, under the torrent's name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [{"length": path.stat().st_size, "path": list(path.relative_to(folder).parts)} for path in paths]
    pieces = b"".join(hashlib.sha1(piece).digest() for piece in _pieces(paths, piece_bytes))
    info = {"files": files, "name": name, "piece length": piece_bytes, "pieces": pieces}
    return bencode({"announce": tracker, "info": info, "url-list": [web_seed]})


def _pieces(paths: list[Path], piece_bytes: int) -> Iterator[bytes]:
    rest = b""
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(piece_bytes - len(rest)):
                rest += block
                if len(rest) == piece_bytes:
                    yield rest
                    rest = b""
    if rest:
        yield rest


def bencode(value: Any) -> bytes:
    match value:
        case int():
            return b"i%de" % value
        case bytes():
            return b"%d:%b" % (len(value), value)
        case str():
            return bencode(value.encode())
        case list():
            return b"l" + b"".join(bencode(each) for each in value) + b"e"
        case dict():
            return b"d" + b"".join(bencode(name) + bencode(value[name]) for name in sorted(value)) + b"e"
    raise TypeError(type(value))


class Tracker(BaseHTTPRequestHandler):
    """Tells everybody of everybody who has asked before. One torrent."""

    peers: dict[tuple[str, int], None]

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        here = (self.client_address[0], int(query["port"][0]))
        others = [peer for peer in self.peers if peer != here]
        self.peers[here] = None
        compact = b"".join(socket.inet_aton(host) + struct.pack(">H", port) for host, port in others)
        body = bencode({"interval": 10, "min interval": 2, "peers": compact})
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class names it
        pass


def run_libtorrent(address: str, torrent: Path, folder: Path, harness: Connection[Any, Any]) -> None:
    """Tuned: many slots, TCP only, no encryption, one connection to the web seed, pieces in random order."""
    import libtorrent  # type: ignore[import-not-found,unused-ignore]  # in a venv of its own

    session = libtorrent.session(
        {
            "listen_interfaces": f"{address}:{PORT}",
            "enable_dht": False,
            "enable_lsd": False,
            "enable_upnp": False,
            "enable_natpmp": False,
            "enable_incoming_utp": False,
            "enable_outgoing_utp": False,
            "out_enc_policy": 2,
            "in_enc_policy": 2,
            "unchoke_slots_limit": 64,
            "connection_speed": 100,
            "max_out_request_queue": 2000,
            "request_queue_time": 2,
            "urlseed_pipeline_size": 2,
            "send_buffer_watermark": 4 << 20,
            "send_buffer_low_watermark": 1 << 20,
            "max_queued_disk_bytes": 16 << 20,
            "hashing_threads": 1,
            "aio_threads": 2,
            "announce_to_all_trackers": True,
            "min_reconnect_time": 1,
            "piece_timeout": 5,
            "alert_mask": 0,
        }
    )
    harness.send("ready")
    harness.recv()
    parameters = libtorrent.add_torrent_params()
    parameters.ti = libtorrent.torrent_info(str(torrent))
    parameters.save_path = str(folder)
    handle = session.add_torrent(parameters)
    while not handle.status().is_seeding:
        time.sleep(0.05)
    harness.send("done")
    harness.recv()


if __name__ == "__main__":
    run_libtorrent(sys.argv[1], Path(sys.argv[2]), Path.cwd(), Connection(int(sys.argv[3])))
