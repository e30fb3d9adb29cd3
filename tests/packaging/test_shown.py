"""Every command that a page shows is one, with the flags that it is shown with."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from coordinator import cli

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "k8s/README.md", "benchmarks/README.md")),
    ]
)
_PIECE = re.compile(r"^```[a-z]*\n(.*?)^```|`([^`\n]+)`", re.MULTILINE | re.DOTALL)
_STARTS = (
    "localmodel [a-z]",
    "localmodel --",
    "kubectl localmodel [a-z]",
    "python3? -m (?:benchmarks|coordinator)",
    "make [a-z]",
)
_LINE = re.compile(rf"(?:^|(?<!-n)[\s(;&|/])({'|'.join(_STARTS)})")
_PLACEHOLDER = re.compile(r"[A-Z…]|\.\.\.")


def shown() -> Iterator[tuple[str, str]]:
    """Each command, on one line, with the page that shows it."""
    for page in PAGES:
        for fenced, inline in _PIECE.findall(page.read_text()):
            text = re.sub(r"\\\n\s*", " ", fenced or inline)
            for line in text.splitlines():
                bare = re.sub(r"^\s*\$ ", "", line)
                found = _LINE.search(bare)
                # in a block a command begins its line; other lines are what it printed
                if found is not None and (inline or found.start() == 0 or line.lstrip().startswith("$ ")):
                    yield str(page.relative_to(ROOT)), bare[found.start(1) :]


SHOWN = sorted(set(shown()))


def words_of(command: str) -> list[str]:
    """As far as the next command of the line, and without comments."""
    text = re.split(r"\s(?:#|\||&&|;|>|<)(?:\s|$)|[;|]", command)[0]
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


@cache
def flags_of(command: str) -> frozenset[str]:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    cli._COMMANDS[command][1](parser)
    return frozenset(option for action in parser._actions for option in action.option_strings)


@cache
def help_of(module: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


TARGETS = frozenset(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def given(words: list[str]) -> list[str]:
    """The flags among the words."""
    return [word.partition("=")[0] for word in words if re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", word)]


def test_commands_are_found() -> None:
    kinds = {command.split()[0] for _, command in SHOWN}
    assert kinds >= {"localmodel", "python", "make"}
    assert len(SHOWN) > 80


@pytest.mark.parametrize(("page", "command"), [each for each in SHOWN if each[1].startswith(("localmodel", "kubectl"))])
def test_every_localmodel_command_exists_with_its_flags(page: str, command: str) -> None:
    words = words_of(command)[1 if command.startswith("localmodel") else 2 :]
    if not words or words[0] in ("--help", "--version"):
        return
    assert words[0] in cli._COMMANDS, f"{page}: {command}"
    assert set(given(words[1:])) <= flags_of(words[0]), f"{page}: {command}"


@pytest.mark.parametrize(("page", "command"), [each for each in SHOWN if each[1].startswith("make ")])
def test_every_target_of_make_exists(page: str, command: str) -> None:
    assert words_of(command)[1] in TARGETS, f"{page}: {command}"


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command"), [each for each in SHOWN if each[1].startswith("python")])
def test_every_benchmark_exists_with_its_flags(page: str, command: str) -> None:
    words = words_of(command)
    module = words[2].rstrip(".,:…")
    if _PLACEHOLDER.search(module):
        return
    text = help_of(module)
    for flag in given(words[3:]):
        assert re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", text), f"{page}: {command}"
