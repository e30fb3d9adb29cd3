"""The fixtures that tests of this folder share."""

from tests.kit.fixtures import newer, origin, resolved, sample

__all__ = ["newer", "origin", "resolved", "sample"]
