"""Ports for servers that are told their port before they start."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_FROM, _TO = 20000, 32768
"""Above the ports of Ray's workers (10002 to 19999), below those that Linux gives to clients by default."""

_OF_CLIENTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""https://docs.kernel.org/networking/ip-sysctl.html: the first and the last port that clients are given."""


def free_ports(count: int) -> list[int]:
    """Different ports of this machine that nobody listens on now.

    They are drawn at random, so that two clusters that start at once hardly meet, and no client's connection takes one
    before its server is up, as it may take one that the kernel has given out and got back.
    """
    found: list[int] = []
    candidates = server_ports(ports_of_clients())
    for port in random.sample(candidates, len(candidates)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: what has ended is free
            try:
                probe.bind(("", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"of the ports {_FROM} to {_TO - 1} only {len(found)} are free, and {count} are needed")


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    return free_ports(1)[0]


def server_ports(clients: range) -> list[int]:
    """The ports to draw from: without those of `clients`, unless too few are left for two clusters to differ."""
    ports = range(_FROM, _TO)
    apart = [port for port in ports if port not in clients]
    return apart if len(apart) >= 1000 else list(ports)


def ports_of_clients(path: Path = _OF_CLIENTS) -> range:
    """The ports that the kernel gives to clients; empty where it does not say."""
    try:
        first, last = (int(word) for word in path.read_text().split())
    except (OSError, ValueError):
        return range(0)
    return range(first, last + 1)
