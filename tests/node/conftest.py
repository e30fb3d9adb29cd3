"""The fixtures that tests of this folder share."""

from tests.kit.fixtures import first, newer, node, origin, resolved, sample, second

__all__ = ["first", "newer", "node", "origin", "resolved", "sample", "second"]
