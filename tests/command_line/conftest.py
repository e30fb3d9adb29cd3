"""The fixtures that tests of this folder share."""

from tests.kit.fixtures import sample

__all__ = ["sample"]
