"""What is on the disk of a node, and in which order it gets there. `Store` is one root; it knows no network."""

from actors.doors import doors

__getattr__ = doors(__name__, "store", "marker")
