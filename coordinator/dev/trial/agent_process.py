"""Node agents as plain processes, without Ray: for tests that kill them, and for benchmarks that put each into a
network namespace of its own.

    environment = {"LOCALMODEL_HOST_ROOT": …, "LOCALMODEL_PEER_HOST": …}
    with AgentProcess("node-1", environment, prefix=["ip", "netns", "exec", "node-1"]) as agent:
        report = agent.reconcile(desired)

`python -m coordinator.dev.trial.agent_process NAME` is the other end: whole states in, whole reports out, pickled, on
its standard input and output. It ends when its input does.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Self, cast

from actors.messages import DesiredState, NodeName, NodeReport


class AgentProcess:
    """`environment` is what `AgentSettings.from_env` reads; `prefix` is put before the command."""

    def __init__(self, node: str, environment: Mapping[str, str], *, prefix: Sequence[str] = ()) -> None:
        command = [*prefix, sys.executable, "-m", "coordinator.dev.trial.agent_process", node]
        self.node = NodeName(node)
        self._process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def reconcile(self, desired: DesiredState | None) -> NodeReport:
        """From now on this is the goal; None: as it was. Raises OSError or EOFError if the process is gone."""
        stdin, stdout = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)
        pickle.dump(desired, stdin)
        stdin.flush()
        return cast(NodeReport, pickle.load(stdout))

    def kill(self) -> None:
        """Gone without a word."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # what was to be said to one that was killed
                    pipe.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def main() -> int:
    from actors.agent.agent import NodeAgent
    from actors.agent.settings import AgentSettings

    agent = NodeAgent(NodeName(sys.argv[1]), AgentSettings.from_env(os.environ))
    try:
        while True:
            desired = pickle.load(sys.stdin.buffer)
            report = agent.report() if desired is None else agent.reconcile(desired)
            pickle.dump(report, sys.stdout.buffer)
            sys.stdout.buffer.flush()
    except EOFError:
        agent.close(5)
    return 0


if __name__ == "__main__":
    sys.exit(main())
