"""The arguments of `fill`, and the types of arguments that several commands have.

A type turns a text into a value, or raises ArgumentTypeError with what is wrong with it. Apart from the commands, so
that a wrong argument and `--help` do not wait for what a command works with.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from actors.numbers import decimal

if TYPE_CHECKING:
    from pathlib import Path

T = TypeVar("T")
CONNECTIONS = 32
"""Of `actors.fill.origin_reader.FillSettings`, which takes long to import."""
MAX_CONNECTIONS = 1024
TEN_YEARS_S = 10 * 365 * 86400.0
_DIGEST = re.compile(r"sha256:[0-9a-fA-F]{64}")
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def add_fill_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("uri", metavar="URI", help="hf://owner/name[:revision], s3://…, gs://…, https://…, file:///…")
    parser.add_argument(
        "directory", metavar="DIR", type=_absolute, help="where the model is to be; must not exist, or be empty"
    )
    parser.add_argument("--revision", help="of a Hugging Face repository: a branch, tag or commit")
    parser.add_argument("--include", action="append", default=[], metavar="GLOB", help="only these files; repeatable")
    parser.add_argument("--exclude", action="append", default=[], metavar="GLOB", help="not these files; repeatable")
    parser.add_argument(
        "--digest", metavar="sha256:HEX", type=_digest, help="the manifest digest it must have, as an earlier fill said"
    )
    parser.add_argument(
        "--connections",
        type=_connections,
        default=CONNECTIONS,
        metavar="N",
        help=f"at most so many (default: {CONNECTIONS})",
    )
    parser.add_argument(
        "--verify", action="store_true", help="read every byte of a model that is there, and fetch anew what is damaged"
    )
    parser.add_argument("--json", action="store_true", help="the last line of standard output says what was done")
    parser.epilog = "ends with 0 if DIR holds the model, 1 if not, 2 for a wrong command, 130 when it was interrupted"


def understood(parse: Callable[[str], T]) -> Callable[[str], T]:
    """`parse` for argparse: what it says of a text that it refuses is what the user reads."""

    def type_(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return type_


def folder(text: str) -> Path:
    """The path that an argument names. Raises ArgumentTypeError for an empty one."""
    from pathlib import Path

    if not text:
        raise argparse.ArgumentTypeError("is empty: name a folder")
    return Path(text)


def seconds(text: str, below: float = TEN_YEARS_S, *, zero: bool = False) -> float:
    """Above 0, or 0 where that means something."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < below and not (zero and value == 0):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number of seconds above 0")
    return value


def duration(text: str) -> float:
    """Seconds above 0, from what Go calls a duration: `15s`, `1m30s`, `1.5h`, `500ms`."""
    parts = _DURATION.findall(text[:40])
    value = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    if "".join(map("".join, parts)) != text or not 0 < value < TEN_YEARS_S:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a time above 0 with its unit, such as 15s or 1m30s")
    return value


def size(text: str) -> int:
    from actors.sizes import parse_bytes

    return understood(parse_bytes)(text)


def _absolute(text: str) -> Path:
    try:
        path = folder(text)
        return type(path)(os.path.abspath(path))  # noqa: PTH100  links in it are the user's
    except FileNotFoundError as error:
        raise argparse.ArgumentTypeError("is relative to a folder that is no longer there") from error


def _digest(text: str) -> str:
    if _DIGEST.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not sha256: and 64 hexadecimal digits")
    return text.lower()


def _connections(text: str) -> int:
    value = decimal(text)
    if value is None or not 1 <= value <= MAX_CONNECTIONS:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number from 1 to {MAX_CONNECTIONS}")
    return value
