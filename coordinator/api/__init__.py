"""The resources as pydantic models, and the CustomResourceDefinitions that are made from them."""

from actors.doors import doors

__getattr__ = doors(__name__, "resources")
