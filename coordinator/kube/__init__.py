"""The seam to Kubernetes: `interface` is what the rest knows, `http` the real one."""

from actors.doors import doors

__getattr__ = doors(__name__, "interface", "config", "http")
