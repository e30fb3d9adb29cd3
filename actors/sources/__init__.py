"""What a URI is: the files of a model with sizes, digests and locations. `resolve` is its door."""

from actors.doors import doors

__getattr__ = doors(__name__, "resolve")
