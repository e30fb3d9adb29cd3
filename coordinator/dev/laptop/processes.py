"""Child processes of the laptop cluster: started with a log file, awaited until ready, stopped exactly, by pid.

A child gets a session of its own, so that Ctrl-C in the terminal reaches only the parent, which then stops its
children in order. Should the parent be killed outright, the kernel takes the children down with it (PR_SET_PDEATHSIG);
one that is spoken to sees its input end instead, and tidies up.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PR_SET_PDEATHSIG = 1


class ChildFailed(Exception):
    """A child ended, or did not become ready in time. The message carries the end of its log."""


class Child:
    """One running command. `log` receives its standard error, and its output too unless it is `spoken` to.

    A `spoken` child takes lines on its standard input and answers each with a line: `tell`, `answer`.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        spoken: bool = False,
    ) -> None:
        self.name = name
        self.log = log
        self._unread = b""
        with log.open("ab") as sink:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE if spoken else subprocess.DEVNULL,
                stdout=subprocess.PIPE if spoken else sink,
                stderr=sink,
                env=dict(env) if env is not None else None,
                start_new_session=True,
                preexec_fn=None if spoken else _die_with_parent,  # one prctl call, nothing that takes a lock
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
            self.check()
            if time.monotonic() > deadline:
                raise ChildFailed(f"{self.name} was not ready after {timeout_s:.0f} s:\n{self.log_tail()}")
            time.sleep(0.05)

    def check(self) -> None:
        """Raises ChildFailed if it has ended."""
        if not self.running:
            raise ChildFailed(f"{self.name} ended with exit code {self._process.returncode}:\n{self.log_tail()}")

    def tell(self, line: str) -> None:
        """Sends a line to a `spoken` child; `answer` has its reply, in order."""
        stdin = self._process.stdin
        if stdin is None:
            raise ChildFailed(f"{self.name} is not spoken to")
        try:
            stdin.write(line.encode() + b"\n")
            stdin.flush()
        except OSError as error:
            raise ChildFailed(f"{self.name} has ended:\n{self.log_tail()}") from error

    def answer(self, *, timeout_s: float = 120.0, meanwhile: Callable[[], object] = lambda: None) -> str:
        """The next line of a `spoken` child; `meanwhile` is called ten times a second, and may raise.

        Raises ChildFailed if it ends instead, or says nothing for `timeout_s`.
        """
        stdout = self._process.stdout
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            meanwhile()
            if stdout is None or select.select([stdout], [], [], 0.1)[0]:
                block = os.read(stdout.fileno(), 65536) if stdout is not None else b""
                if not block:
                    raise ChildFailed(f"{self.name} ended with exit code {self._process.wait()}:\n{self.log_tail()}")
                self._unread += block
            elif time.monotonic() > deadline:
                raise ChildFailed(f"{self.name} said nothing for {timeout_s:.0f} s:\n{self.log_tail()}")
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

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
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_s)
        self.kill()
        return self._process.wait()

    def kill(self) -> None:
        """SIGKILL to the child's whole session, without asking. Nothing of it is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
