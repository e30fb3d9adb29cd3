"""What the commands for people print, whatever standard output and standard error are: a pipe that nobody reads any
more, a full disk, closed, or of an encoding that does not know every character.

What a command has done does not depend on it: nobody reading is no failure. What could not be written to standard
output for another reason is one, for whoever asked for it.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a small command would wait for it
    from pathlib import Path

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def prepare() -> None:
    """The three standard streams can be written to, and are no file or socket that is opened later."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number, which is this one
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115  # a descriptor
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115  # a descriptor
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """One line on standard output. Exits with 1 if it cannot be written though somebody waits for it."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _drop(sys.stdout)
    except OSError as error:
        _drop(sys.stdout)
        tell(f"localmodel: standard output cannot be written: {error.strerror}")
        sys.exit(1)


def tell(text: str) -> None:
    """One line on standard error, if it can be written."""
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except OSError:
        _drop(sys.stderr)


def print_json(document: Mapping[str, Any]) -> None:
    say(json.dumps(document))


def print_failure(reason: str, message: str, *, retryable: bool, **more: Any) -> None:
    """The one object of `--json` when there is nothing else to say: docs/json.md, *When a command fails*."""
    said = printable(message)
    print_json({"ok": False, "reason": reason, "message": said, "error": said, "retryable": retryable, **more})


def printable(text: str | Path) -> str:
    """On one line, and nothing that a terminal obeys: names, and what servers say, need not be text."""
    return _decoded(str(text))


def _decoded(text: str) -> str:
    text = text.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _drop(stream: io.TextIOBase | Any) -> None:
    """The rest of its buffer, and all that comes, goes nowhere: the interpreter would complain at its end."""
    with suppress(OSError, ValueError):
        void = os.open(os.devnull, os.O_WRONLY)
        os.dup2(void, stream.fileno())
        os.close(void)
