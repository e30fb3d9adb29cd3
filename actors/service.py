"""Threads that serve for as long as their process does: what goes wrong in one is logged, and it goes on.

    start ──► run ──► returns: the thread is over
               │ ▲
        raises │ │ after a pause, doubled with every failure in a row
               └─┘

A process may be short of threads, memory or descriptors for a moment (a pod's pid limit, a full table). An exception of
a service then, or a bug in it, must not leave a process that looks alive and does one thing less.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from actors.retry import doubled

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 30.0
WELL_S = 60.0
"""A service that has run for so long is well: its next failure is the first again."""

_log = logging.getLogger(__name__)


class Service:
    """One thread. `start` may be called by any, and again: a thread that could not be started, or ended, is started."""

    def __init__(self, name: str, run: Callable[[], None], stopping: threading.Event) -> None:
        """`run` is the whole loop: it returns once `stopping` is set, and is called again when it raises before."""
        self._name = name
        self._run = run
        self._stopping = stopping
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> bool:
        """Whether it runs now. Never raises: the caller, or the next one, tries again."""
        with self._lock:
            if self.alive or self._stopping.is_set():
                return self.alive
            thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            try:
                thread.start()
            except (RuntimeError, MemoryError) as error:
                _log.error("a service cannot be started now", extra={"service": self._name, "error": str(error)})
                return False
            self._thread = thread
            return True

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def join(self, timeout_s: float | None = None) -> bool:
        """Whether it has ended, after `timeout_s` at most; at once if it never began."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
        return not self.alive

    def _serve(self) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            try:
                self._run()
            except Exception:  # noqa: BLE001  a service goes on, whatever it failed with
                if time.monotonic() - began >= WELL_S:
                    failures = 0
                failures += 1
                pause_s = doubled(FIRST_PAUSE_S, LONGEST_PAUSE_S, failures)
                _log.exception("a service failed and goes on", extra={"service": self._name, "pause_s": pause_s})
            else:
                return
            if self._stopping.wait(pause_s):
                return
