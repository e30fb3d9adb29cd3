"""The fixtures that tests of this folder share."""

from tests.kit.fixtures import node, origin, resolved, sample

__all__ = ["node", "origin", "resolved", "sample"]
