"""The fixtures that tests of this folder share."""

from tests.kit.fixtures import origin, resolved, sample

__all__ = ["origin", "resolved", "sample"]
