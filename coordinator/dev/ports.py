"""Ports for servers that are told their port before they start."""

from __future__ import annotations

import random
import socket

_FROM, _TO = 20000, 32768
"""Above the ports of Ray's workers (10002 to 19999), below those that the kernel gives to clients (32768 to 60999)."""


def free_ports(count: int) -> list[int]:
    """Different ports of this machine that nobody listens on now.

    They are drawn at random, so that two clusters that start at once hardly meet, and no client's connection takes one
    before its server is up, as it may take one that the kernel has given out and got back.
    """
    found: list[int] = []
    for port in random.sample(range(_FROM, _TO), _TO - _FROM):
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
