"""What decides, pure: a snapshot of the world goes in, a plan comes out."""

from actors.doors import doors

__getattr__ = doors(__name__, "plan", "snapshot", "reading")
