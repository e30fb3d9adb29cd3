"""`python -m coordinator.dev.apiserver`: the development API server as a process, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from coordinator.dev.apiserver.server import HISTORY, ApiServer, load_crds, write_kubeconfig


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m coordinator.dev.apiserver",
        description="A development Kubernetes API server. No authentication: for laptops and tests, on loopback only.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--crds", type=Path, help="folder of CustomResourceDefinitions to serve from the start")
    parser.add_argument("--kubeconfig", type=Path, help="where to write a kubeconfig for this server")
    parser.add_argument("--data", type=Path, help="journal of all objects; without it they end with the process")
    parser.add_argument("--history", type=int, default=HISTORY, help="changes kept for watches")
    parser.add_argument(
        "--service",
        action="append",
        default=[],
        metavar="NAMESPACE/NAME=HOST:PORT",
        help="where the admission webhooks of a Service are; may be repeated",
    )
    arguments = parser.parse_args(argv)
    stop = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)  # before the thread starts, which inherits the mask
    crds = load_crds(arguments.crds) if arguments.crds else []
    try:
        server = ApiServer(
            crds,
            host=arguments.host,
            port=arguments.port,
            history=arguments.history,
            data=arguments.data,
            services=dict(each.partition("=")[::2] for each in arguments.service),
        ).start()
    except (OSError, ValueError) as error:
        print(f"cannot start: {error}", file=sys.stderr)  # noqa: T201  # a command's answer
        return 1
    if arguments.kubeconfig:
        write_kubeconfig(arguments.kubeconfig, server.url)
    print(f"development Kubernetes API server (laptops and tests only) on {server.url}", flush=True)  # noqa: T201  # ditto
    signal.sigwait(stop)
    server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
