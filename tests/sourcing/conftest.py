"""The fixtures that tests of this folder share."""

from tests.kit.fixtures import node, origin, sample

__all__ = ["node", "origin", "sample"]
