"""Child processes of the laptop cluster: started with a log file, awaited until ready, stopped exactly, by pid.

A child gets a session of its own, so that Ctrl-C in the terminal reaches only the parent, which then stops its
children in order. Should the parent be killed outright, the kernel takes the children down with it (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1


class ChildFailed(Exception):
    """A child ended, or did not become ready in time. The message carries the end of its log."""


class Child:
    """One running command. `log` receives its standard output and error."""

    def __init__(self, name: str, command: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=dict(env) if env is not None else None,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  one prctl call, nothing that takes a lock
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def await_ready(self, ready: Callable[[], bool], *, timeout_s: float) -> None:
        """Returns once `ready()` holds. Raises ChildFailed if the child ends first or `timeout_s` passes."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            if not self.running:
                raise ChildFailed(f"{self.name} ended with exit code {self._process.returncode}:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise ChildFailed(f"{self.name} was not ready after {timeout_s:.0f} s:\n{self.log_tail()}")
            time.sleep(0.05)

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of the log, for an error message."""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - 16384))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def stop(self, *, grace_s: float = 10.0) -> int:
        """The exit code. SIGTERM first; SIGKILL to the child's whole session after `grace_s`."""
        self.signal(signal.SIGTERM)
        try:
            return self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()

    def kill(self) -> None:
        """SIGKILL to the child's whole session, without asking."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
