"""The disk of a node: what is on it, and in which order that gets there. `Store` is one root; it knows no network."""

from actors.doors import doors

__getattr__ = doors(__name__, "store", "marker")
