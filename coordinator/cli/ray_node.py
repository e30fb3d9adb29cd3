"""`localmodel ray-node`: a Ray node that stays while its cluster comes and goes.

    wait for the head ─► ray start --block ─► it ended ─► a pause ─► wait for the head …     SIGTERM ─► Ray drains ─► 0

`ray start` ends when the head is not there, is slow, or was replaced. A kubelet then starts the container again after a
back-off of up to five minutes, for which the node has no agent. So the waiting is done here, where it takes seconds.

`/readyz` answers 200 while the raylet does. `/healthz` answers 503 only once a raylet that had answered has been silent
for `SILENT_S` although it runs; then the kubelet starts the container again. A head that is away is no reason for that.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import resource
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from types import FrameType

from actors.retry import Backoff
from coordinator import logs
from coordinator.cli import health

_log = logging.getLogger(__name__)
_ray_log = logging.getLogger(f"{__name__}.ray")

SILENT_S = 120.0
"""Longest silence of a raylet that has answered before. A busy one answers late; a stopped one never."""

WELL_S = 60.0
"""A Ray node that lived for so long did join: the pause after it is the shortest again."""

RAYS_DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
"""How long Ray itself waits for actors to end. Agents never end by themselves, so it always waits that long."""

DESCRIPTORS = 65536
CONNECT_TIMEOUT_S = 3.0
AGENT_URL = "http://127.0.0.1:52365/api/local_raylet_healthz"
"""Where Ray's own agent process answers for its raylet; needs `ray[default]`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--address", help="host:port of the Ray head; else $RAY_ADDRESS")
    parser.add_argument("--health-probe-addr", default=":8082", metavar="ADDR", help="/healthz and /readyz; 0: nowhere")
    parser.add_argument("--drain-seconds", default=30.0, type=float, metavar="S", help="how long Ray may take to leave")
    parser.add_argument("ray", nargs="*", metavar="-- FLAG", help="more flags of `ray start`, after `--`")


def run(args: argparse.Namespace) -> int:
    """Blocks until SIGTERM or SIGINT. 0: told to stop; 1: an address is taken; 2: no usable address of a head."""
    logs.configure(logs.LogSettings())
    _allow_many_descriptors()
    address = args.address or os.environ.get("RAY_ADDRESS", "")
    try:
        head = parse_head(address)
    except ValueError as error:
        _log.error("unable to start", extra={"error": f"--address, $RAY_ADDRESS: {error}"})
        return 2
    stop = threading.Event()
    os.environ.setdefault(RAYS_DRAIN, str(max(1, min(10, int(args.drain_seconds / 2)))))
    command = ["ray", "start", f"--address={address}", "--block", "--log-color=false", *args.ray]
    node = RayNode(command, head, stop)

    def end(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    try:
        server = health.Server(
            args.health_probe_addr,
            {
                "/healthz": lambda: health.run_checks({"raylet": node.hung}),
                "/readyz": lambda: health.run_checks({"raylet": node.unready}),
            },
        )
    except (OSError, ValueError) as error:
        _log.error("unable to start", extra={"error": str(error)})
        return 1
    try:
        node.serve(args.drain_seconds)
    finally:
        server.close()
    return 0


def _allow_many_descriptors() -> None:
    """Ray opens many, and inherits the soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def parse_head(address: str) -> tuple[str, int]:
    """(host, port). Raises ValueError for anything else, `auto` among it: there is nobody else to join."""
    try:
        parsed = health.parse_address(address)
    except ValueError:
        parsed = None
    if parsed is None or not parsed[0] or not parsed[1]:
        raise ValueError(f"{address!r} is not host:port of a Ray head")
    return parsed


def reachable(head: tuple[str, int]) -> str | None:
    """None when something listens there, else why not."""
    try:
        socket.create_connection(head, timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return str(error)
    return None


def answers(url: str = AGENT_URL) -> bool:
    """Whether the raylet of this node says that it is well."""
    try:
        with urllib.request.urlopen(url, timeout=CONNECT_TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


class RayNode:
    """One `ray start` after another, until `stop` is set."""

    def __init__(
        self,
        command: Sequence[str],
        head: tuple[str, int],
        stop: threading.Event,
        *,
        answers: Callable[[], bool] = answers,
        clock: Callable[[], float] = time.monotonic,
        backoff: Backoff | None = None,
    ) -> None:
        self._command = list(command)
        self._head = head
        self._stop = stop
        self._answers = answers
        self._clock = clock
        self._backoff = backoff or Backoff(random.Random(), first_s=1.0, max_s=15.0)
        self._child: subprocess.Popen[str] | None = None
        self._answered: float | None = None  # when the raylet of the present child last did

    def serve(self, drain_s: float) -> None:
        while self._await_head():
            began = self._clock()
            code = self._run_ray(drain_s)
            if self._stop.is_set():
                return
            if self._clock() - began >= WELL_S:
                self._backoff.reset()
            pause_s = self._backoff.next_s()
            _log.warning(
                "the Ray node ended and is started again", extra={"exit_code": code, "pause_s": round(pause_s, 1)}
            )
            self._stop.wait(pause_s)

    def unready(self) -> str | None:
        """None while the raylet answers, else why not."""
        if self._child is None:
            return f"waits for the Ray head {self._head[0]}:{self._head[1]}"
        if not self._answers():
            return "the raylet does not answer"
        self._answered = self._clock()
        return None

    def hung(self) -> str | None:
        """None, unless a raylet that had answered has been silent for too long although its process is there."""
        if self.unready() is None or self._child is None or self._answered is None:
            return None
        silent_s = self._clock() - self._answered
        return f"the raylet has not answered for {silent_s:.0f} s" if silent_s > SILENT_S else None

    def _await_head(self) -> bool:
        """True once the head listens; False when told to stop."""
        said = False
        while not self._stop.is_set():
            reason = reachable(self._head)
            if reason is None:
                if said:
                    _log.info("the Ray head is there", extra={"head": ":".join(map(str, self._head))})
                return True
            if not said:
                _log.info("waiting for the Ray head", extra={"head": ":".join(map(str, self._head)), "reason": reason})
                said = True
            self._stop.wait(1.0)
        return False

    def _run_ray(self, drain_s: float) -> int:
        """The exit code of one `ray start`, which is asked to end when `stop` is set, and made to after `drain_s`."""
        child = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        reader = threading.Thread(target=_pass_on, args=(child.stdout or (),), daemon=True)
        reader.start()
        self._answered, self._child = None, child
        try:
            while child.poll() is None and not self._stop.wait(0.2):
                _bury_orphans(child.pid)
            if child.poll() is None:
                child.terminate()
                try:
                    child.wait(drain_s)
                except subprocess.TimeoutExpired:
                    _log.warning("Ray did not leave in time and is killed", extra={"drain_s": drain_s})
            return child.wait() if child.poll() is not None else -signal.SIGKILL
        finally:
            self._child = None
            _kill_session(child.pid)
            child.wait()
            reader.join(1.0)


def _bury_orphans(ours: int) -> None:
    """As process 1 of a container we inherit workers whose raylet died; without this each stays in the table."""
    while os.getpid() == 1:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid == ours:
            return
        os.waitpid(ended.si_pid, 0)


def _kill_session(pid: int) -> None:
    """Nothing of a Ray node is left for the next to stumble over."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _pass_on(lines: Iterable[str]) -> None:
    """Ray's own output, a log line each."""
    for line in lines:
        if line.strip():
            _ray_log.info(line.rstrip())
