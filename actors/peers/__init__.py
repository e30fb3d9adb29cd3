"""Sockets between nodes: a server of chunks, a client for them, and one swarm for each fill. `Exchange`."""

from actors.doors import doors

__getattr__ = doors(__name__, "server", "exchange")
