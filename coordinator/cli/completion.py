"""`localmodel completion bash|zsh|fish`: a script that makes the shell complete commands, flags, choices and caches.

Made from the parsers themselves, so that it names what this version has:

    source <(localmodel completion bash)
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from coordinator.cli.output import say

SHELLS = ("bash", "zsh", "fish")
_OF_CACHES = frozenset({"status", "retry"})
"""Commands whose argument is a cache of the cluster."""
Parsers = Mapping[str, tuple[str, argparse.ArgumentParser]]


@dataclass(frozen=True, slots=True)
class Flag:
    """`choices` None: it takes none, or anything. `value`: it takes one."""

    names: tuple[str, ...]
    text: str
    value: bool
    choices: tuple[str, ...]


def add_completion_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))


def complete(args: argparse.Namespace) -> int:
    from coordinator.cli import parsers  # here, because that module has this command in its table

    return completion(args, parsers())


def completion(args: argparse.Namespace, parsers: Parsers) -> int:
    say(script(args.shell, parsers))
    return 0


def script(shell: str, parsers: Parsers) -> str:
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](parsers)


def flags_of(parser: argparse.ArgumentParser) -> Iterator[Flag]:
    """Those that `--help` shows."""
    for action in parser._actions:
        if action.option_strings and action.help is not argparse.SUPPRESS:
            choices = tuple(str(each) for each in action.choices or ())
            text = re.sub(r"\s+", " ", (action.help or "").replace("%%", "%")).split(";")[0]
            yield Flag(tuple(action.option_strings), text, action.nargs not in (0, "?"), choices)


def choices_of(parser: argparse.ArgumentParser) -> tuple[str, ...]:
    """What the first argument of the command may be, where that is a short list."""
    for action in parser._actions:
        if not action.option_strings:
            return tuple(str(each) for each in action.choices or ())
    return ()


def _bash(parsers: Parsers) -> str:
    cases = []
    for name, (_, parser) in parsers.items():
        flags = list(flags_of(parser))
        words = " ".join(each for flag in flags for each in flag.names)
        of_values = "".join(
            f"""
      {"|".join(flag.names)}) COMPREPLY=($(compgen -W "{" ".join(flag.choices)}" -- "$word")); return ;;"""
            for flag in flags
            if flag.choices
        )
        values = "".join(f"{'|'.join(flag.names)}|" for flag in flags if flag.value and not flag.choices).rstrip("|")
        files = (
            f"""
      {values}) COMPREPLY=($(compgen -f -- "$word")); return ;;"""
            if values
            else ""
        )
        rest = _bash_arguments(name, parser)
        cases.append(f"""    {name})
      case $before in{of_values}{files}
      esac
      if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "{words}" -- "$word")); else {rest}; fi ;;""")
    return f"""_localmodel() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}}
  if [[ $COMP_CWORD == 1 ]]; then
    COMPREPLY=($(compgen -W "{" ".join(parsers)} --help --version" -- "$word")); return
  fi
  case ${{COMP_WORDS[1]}} in
{chr(10).join(cases)}
  esac
}}
complete -o filenames -F _localmodel localmodel"""


def _bash_arguments(name: str, parser: argparse.ArgumentParser) -> str:
    choices = choices_of(parser)
    if choices:
        return f"""COMPREPLY=($(compgen -W "{" ".join(choices)}" -- "$word"))"""
    if name in _OF_CACHES:
        return 'COMPREPLY=($(compgen -W "$(localmodel status -o name 2>/dev/null)" -- "$word"))'
    return 'COMPREPLY=($(compgen -f -- "$word"))'


def _zsh(parsers: Parsers) -> str:
    commands = "\n".join(f"    {_quoted(f'{name}:{summary}')}" for name, (summary, _) in parsers.items())
    cases = []
    for name, (_, parser) in parsers.items():
        lines = [_quoted(spec) for flag in flags_of(parser) for spec in _zsh_specs(flag)]
        lines.append(_quoted(f"*:argument:{_zsh_argument(name, parser)}"))
        cases.append(f"    {name}) _arguments {' '.join(lines)} ;;")
    return f"""#compdef localmodel
_localmodel_caches() {{ compadd -- ${{(f)"$(localmodel status -o name 2>/dev/null)"}} }}
_localmodel() {{
  local -a commands=(
{commands}
  )
  if (( CURRENT == 2 )); then _describe command commands; return; fi
  local name=$words[2]
  shift words; (( CURRENT-- ))
  case $name in
{chr(10).join(cases)}
  esac
}}
compdef _localmodel localmodel"""


def _zsh_specs(flag: Flag) -> Iterator[str]:
    text = re.sub(r"[\[\]:]", " ", flag.text)
    for name in flag.names:
        value = ""
        if flag.choices:
            value = f":value:({' '.join(flag.choices)})"
        elif flag.value:
            value = ":value:_files"
        yield f"{name}[{text}]{value}"


def _zsh_argument(name: str, parser: argparse.ArgumentParser) -> str:
    choices = choices_of(parser)
    if choices:
        return f"({' '.join(choices)})"
    return "_localmodel_caches" if name in _OF_CACHES else "_files"


def _fish(parsers: Parsers) -> str:
    names = " ".join(parsers)
    lines = ["complete -c localmodel -f"]
    for name, (summary, parser) in parsers.items():
        first = f"not __fish_seen_subcommand_from {names}"
        lines.append(f"complete -c localmodel -n {_quoted(first)} -a {name} -d {_quoted(summary)}")
        within = f"-n {_quoted(f'__fish_seen_subcommand_from {name}')}"
        lines += [f"complete -c localmodel {within} {_fish_flag(flag)}" for flag in flags_of(parser)]
        choices = choices_of(parser)
        if choices:
            lines.append(f"complete -c localmodel {within} -a {_quoted(' '.join(choices))}")
        elif name in _OF_CACHES:
            lines.append(f"complete -c localmodel {within} -a '(localmodel status -o name 2>/dev/null)'")
        else:
            lines.append(f"complete -c localmodel {within} -F")
    return "\n".join(lines)


def _fish_flag(flag: Flag) -> str:
    words = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in flag.names]
    if flag.choices:
        words.append(f"-x -a {_quoted(' '.join(flag.choices))}")
    elif flag.value:
        words.append("-r -F")
    return " ".join([*words, f"-d {_quoted(flag.text)}"])


def _quoted(text: str) -> str:
    """For any of the shells: nothing within is looked at."""
    return "'" + text.replace("'", "'\\''") + "'"
