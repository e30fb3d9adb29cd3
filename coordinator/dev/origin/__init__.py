"""The sample origin: a hub and a web server that count what they serve, and fail when asked to."""

from actors.doors import doors

__getattr__ = doors(__name__, "server", "repository", "sample", "faults")
