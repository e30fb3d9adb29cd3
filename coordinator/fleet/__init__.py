"""The seam to the node agents: `interface` is what the rest knows, `ray_fleet` the one on Ray."""

from actors.doors import doors

__getattr__ = doors(__name__, "interface", "ray_fleet")
