"""The `localmodel` command. Each subcommand brings its own arguments and returns an exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code. Subcommands are imported when they are run, so that `--help` does not wait for Ray."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="localmodel",
        description="Machine-learning models on the local disks of Kubernetes nodes.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"localmodel {version('localmodel')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next((each for each in arguments if not each.startswith("-")), None)
    for name, (summary, add) in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        if name == chosen:
            add(command)
    args = parser.parse_args(arguments)
    try:
        return int(args.handler(args))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1


def _add_run(parser: argparse.ArgumentParser) -> None:
    from coordinator import process, settings

    settings.add_arguments(parser)
    parser.set_defaults(handler=process.run)


def _add_dev(parser: argparse.ArgumentParser) -> None:
    try:
        from coordinator.dev import command
    except ModuleNotFoundError as error:
        parser.set_defaults(handler=lambda _: _missing_extra(error))
        return
    command.add_arguments(parser)
    parser.set_defaults(handler=command.run)


def _add_fill(parser: argparse.ArgumentParser) -> None:
    from coordinator import fill

    fill.add_fill_arguments(parser)
    parser.set_defaults(handler=fill.fill)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    from coordinator import fill

    fill.add_verify_arguments(parser)
    parser.set_defaults(handler=fill.verify)


def _missing_extra(error: ModuleNotFoundError) -> int:
    sys.stderr.write(f"localmodel dev needs {error.name}: pip install 'localmodel[dev]'\n")
    return 1


_COMMANDS = {
    "dev": ("a whole cluster on this machine, with a sample model", _add_dev),
    "run": ("the coordinator, in or beside a Kubernetes cluster", _add_run),
    "fill": ("download and verify one model into a folder, without Kubernetes or Ray", _add_fill),
    "verify": ("check every byte of a folder that `fill` or a node agent wrote", _add_verify),
}

if __name__ == "__main__":
    sys.exit(main())
