"""The `localmodel` command. Each subcommand brings its own arguments and returns an exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from coordinator.cli import output


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code. A subcommand is imported when it is run, so that `--help` does not wait for Ray."""
    output.prepare()
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    if name not in _COMMANDS:
        _no_command(arguments)
    from coordinator.logs import guard_output  # here, because `--help` has nothing to redact

    guard_output()
    summary, prepare = _COMMANDS[name]
    parser = argparse.ArgumentParser(prog=f"{_prog()} {name}", description=summary, allow_abbrev=False)
    try:
        handler = prepare(parser)
        return handler(parser.parse_args(arguments[1:]))
    except KeyboardInterrupt:
        return 130


def _prog() -> str:
    """As it was called: kubectl finds its plugins by the name of their file."""
    return "kubectl localmodel" if sys.argv[0].endswith("kubectl-localmodel") else "localmodel"


def manager(argv: Sequence[str] | None = None) -> int:
    """The exit code of `/manager`, the entry point of the image: flags alone are those of `run`, as of KServe's."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return main(arguments if arguments and arguments[0] in _COMMANDS else ["run", *arguments])


Handler = Callable[[argparse.Namespace], int]


def _of(arguments: str, command: str) -> Callable[[argparse.ArgumentParser], Handler]:
    """Adds the arguments to a parser, and returns the command, which is imported when it is called.

    Both are `module:function`, so that a wrong argument, `--help` and this table import little.
    """

    def prepare(parser: argparse.ArgumentParser) -> Handler:
        try:
            _load(arguments)(parser)
        except ModuleNotFoundError as error:
            parser.error(f"this needs {error.name}: pip install 'localmodel[dev]'")
        return lambda args: int(_load(command)(args))

    return prepare


def _load(place: str) -> Callable[..., Any]:
    from importlib import import_module

    module, _, name = place.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found


def parsers() -> dict[str, tuple[str, argparse.ArgumentParser]]:
    """Of every command whose packages are installed, with its summary."""
    found: dict[str, tuple[str, argparse.ArgumentParser]] = {}
    for name, (summary, prepare) in _COMMANDS.items():
        parser = argparse.ArgumentParser(prog=f"localmodel {name}", exit_on_error=False)
        with contextlib.suppress(SystemExit, ImportError), contextlib.redirect_stderr(io.StringIO()):
            prepare(parser)
        found[name] = summary, parser
    return found


_CLI = "coordinator.cli"
_DEV = "coordinator.dev.laptop.command"
_COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], Handler]]] = {
    "dev": (
        "A whole cluster on this machine, with a sample model.",
        _of(f"{_DEV}:add_arguments", f"{_DEV}:run"),
    ),
    "run": (
        "The coordinator, in or beside a Kubernetes cluster.",
        _of(f"{_CLI}.settings:add_arguments", f"{_CLI}.run:run"),
    ),
    "ray-node": (
        "A Ray node that waits for its cluster, and joins again when it was lost.",
        _of(f"{_CLI}.ray_node:add_arguments", f"{_CLI}.ray_node:run"),
    ),
    "fill": (
        "Download and verify one model into a folder, without Kubernetes or Ray.",
        _of(f"{_CLI}.arguments:add_fill_arguments", f"{_CLI}.fill:fill"),
    ),
    "import": (
        "What the Job runs that fills a PersistentVolumeClaim with the model of a cache.",
        _of(f"{_CLI}.claim_import:add_import_arguments", f"{_CLI}.claim_import:import_model"),
    ),
    "status": (
        "How far every cache is on every node, what is wrong, and why.",
        _of(f"{_CLI}.status:add_status_arguments", f"{_CLI}.status:status"),
    ),
    "retry": (
        "Try again now what failed, and not when its wait is over.",
        _of(f"{_CLI}.retry:add_retry_arguments", f"{_CLI}.retry:retry"),
    ),
    "doctor": (
        "Is everything there that the model cache needs? One line each: ok, or what to do.",
        _of(f"{_CLI}.doctor:add_doctor_arguments", f"{_CLI}.doctor:doctor"),
    ),
    "adopt": (
        "What a switch from KServe's LocalModel will do to every copy, before it is made.",
        _of(f"{_CLI}.adopt:add_adopt_arguments", f"{_CLI}.adopt:adopt"),
    ),
    "plan": (
        "What would happen if these were applied: what fits, moves, goes, and how long it takes.",
        _of(f"{_CLI}.plan:add_plan_arguments", f"{_CLI}.plan:plan"),
    ),
    "inspect": (
        "What lies in a root, a model or a fill under way; read-only.",
        _of(f"{_CLI}.inspect:add_inspect_arguments", f"{_CLI}.inspect:inspect_folder"),
    ),
    "completion": (
        "Print what makes a shell complete this command.",
        _of(f"{_CLI}.completion:add_completion_arguments", f"{_CLI}.completion:complete"),
    ),
    "verify": (
        "Check every byte of a folder that `fill` or a node agent wrote.",
        _of(f"{_CLI}.verify:add_verify_arguments", f"{_CLI}.verify:verify"),
    ),
}


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        from importlib.metadata import version  # here, because it takes as long to import as all else of `--help`

        output.say(f"localmodel {version('localmodel')}")
        parser.exit()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Says the fault, and what lists the commands: the usage names none. Ends with 2."""
        output.tell(f"{self.prog}: {message}; `{self.prog} --help` lists the commands")
        self.exit(2)


def _no_command(arguments: list[str]) -> NoReturn:
    """--help, --version, or what is wrong."""
    parser = _Parser(
        prog=_prog(),
        description="Machine-learning models on the local disks of Kubernetes nodes.",
        epilog=f"`{_prog()} COMMAND --help` says more.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version, and end")
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, (summary, _) in _COMMANDS.items():
        commands.add_parser(name, help=summary)
    name = arguments[0] if arguments else ""
    if name and not name.startswith("-"):
        parser.error(f"there is no command {output.printable(name[:40])}{_nearest(name)}")
    parser.parse_args(arguments)
    parser.error("no command was given")


def _nearest(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, _COMMANDS, n=1)
    return f", but {near[0]}" if near else ""
