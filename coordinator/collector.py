"""Python's garbage collector, which does not run while a plan is made.

A plan makes many objects and keeps most of them until it is done. The collector, which begins by how many are new,
looks at them again and again and finds no garbage.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """The collector, of the whole process, does not run by itself; afterwards it is on or off as it was."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
