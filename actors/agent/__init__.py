"""The agent of one node: what it should hold, has, does next, and reports. `NodeAgent` is its door."""

from actors.doors import doors

__getattr__ = doors(__name__, "agent", "settings")
