"""Committed copies are read again: what is damaged is found, named and repaired."""

from actors.doors import doors

__getattr__ = doors(__name__, "scrubber")
