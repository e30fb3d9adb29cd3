"""One fill of one model: its files on their way from origins and peers to a verified ingest. `Fill` is its door."""

from actors.doors import doors

__getattr__ = doors(__name__, "fill")
