"""Logs as zap's production encoder writes them: one JSON object per line on standard error.

    {"level":"info","ts":"2026-11-23T08:44:40Z","logger":"coordinator.kube.informer","msg":"recovered","resource":"nodes"}

The message is constant, so that it can be searched for; what varies goes into fields: `log.info("msg", extra={…})`.
No line shows a secret (`actors.redaction`).
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any

from actors.redaction import redacted, stack_of
from actors.times import rfc3339

OURS = ("coordinator", "actors")
"""Loggers that follow --zap-log-level; all others speak from warning upwards."""

LEVELS: Mapping[str, int] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "panic": logging.CRITICAL,
}
ENCODERS = ("json", "console")


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What the --zap-* flags say, resolved. `level` and `stacktrace_level` are Python's numbers."""

    level: int = logging.INFO
    encoder: str = "json"
    stacktrace_level: int = logging.ERROR
    time_encoding: str = "rfc3339"


def parse_level(text: str) -> int:
    """Python's number for a zap level: a name, or a verbosity ≥ 1 (1 is debug, more is more). Raises ValueError."""
    if text.lower() in LEVELS:
        return LEVELS[text.lower()]
    if text.isdecimal() and int(text) > 0:
        return max(1, logging.DEBUG - (int(text) - 1))
    raise ValueError(f"{text!r} is none of {', '.join(LEVELS)} or a number above 0")


def configure(settings: LogSettings, stream: IO[str] | None = None) -> None:
    """Everything logged in this process goes to `stream` (standard error) as `settings` say. Replaces earlier calls."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(Formatter(settings))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.WARNING, settings.level))
    for name in OURS:
        logging.getLogger(name).setLevel(settings.level)
    logging.captureWarnings(True)


def guard_output() -> None:
    """What the interpreter prints of exceptions that nobody caught, in any thread, is redacted from now on."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
        else:
            sys.stderr.write(stack_of(error))

    def in_thread(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is not None and not isinstance(arguments.exc_value, SystemExit):
            name = arguments.thread.name if arguments.thread is not None else "?"
            sys.stderr.write(f"Exception in thread {name}:\n{stack_of(arguments.exc_value)}")

    sys.excepthook = hook
    threading.excepthook = in_thread


class Formatter(logging.Formatter):
    """Formats a record with all its `extra` fields. Never raises for a value that JSON does not know."""

    def __init__(self, settings: LogSettings) -> None:
        super().__init__()
        self._settings = settings
        self._time = TIME_ENCODINGS[settings.time_encoding]

    def format(self, record: logging.LogRecord) -> str:
        fields = {key: value for key, value in record.__dict__.items() if key not in _STANDARD and key[0] != "_"}
        trace = ""
        if record.exc_info and record.exc_info[1]:
            error = record.exc_info[1]
            fields.setdefault("error", f"{type(error).__name__}: {error}")
            if record.levelno >= self._settings.stacktrace_level:
                trace = stack_of(error).rstrip()
        fields = {key: _redacted(value) for key, value in fields.items()}
        level, ts, message = _level_name(record.levelno), self._time(record.created), redacted(record.getMessage())
        if self._settings.encoder == "console":
            parts = [str(ts), level.upper(), record.name, message, *([_dump(fields)] if fields else [])]
            return "\t".join(parts) + (f"\n{trace}" if trace else "")
        line = {"level": level, "ts": ts, "logger": record.name, "msg": message, **fields}
        return _dump({**line, "stacktrace": trace} if trace else line)


TIME_ENCODINGS: Mapping[str, Callable[[float], float | int | str]] = {
    "epoch": lambda seconds: seconds,
    "millis": lambda seconds: seconds * 1e3,
    "nano": lambda seconds: int(seconds * 1e9),
    "iso8601": lambda seconds: rfc3339(seconds, "milliseconds"),
    "rfc3339": lambda seconds: rfc3339(seconds, "seconds"),
    "rfc3339nano": lambda seconds: rfc3339(seconds, "microseconds"),
}
"""zap's names. Python's clock ends at microseconds."""

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def _level_name(level: int) -> str:
    return next((name for name, number in reversed(tuple(LEVELS.items())) if level >= number), "debug")


def _redacted(value: object) -> object:
    """What a field says, without secrets; what is no text becomes one only where JSON does not know it."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _redacted(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_redacted(each) for each in value]
    return redacted(str(value))


def _dump(value: Mapping[str, Any]) -> str:
    return json.dumps(value, default=str)
