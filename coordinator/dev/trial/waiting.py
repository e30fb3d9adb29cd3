"""Waiting for the world in end-to-end tests: poll a fact until it holds, fail with what was last seen."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(
    fact: Callable[[], T], *, timeout_s: float = 30.0, every_s: float = 0.1, seen: Callable[[], object] = lambda: None
) -> T:
    """The first truthy value of `fact()`. AssertionError with `seen()` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = fact()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(
                f"not within {timeout_s:.0f} s: {getattr(fact, '__name__', fact)}; last seen: {seen()}"
            )
        time.sleep(every_s)


def output_of(process: subprocess.Popen[str], timeout_s: float) -> tuple[str, str]:
    """What it has said once it ends. subprocess.TimeoutExpired if it does not: it is killed first."""
    try:
        return process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
