"""Log lines, as a log pipeline made for zap reads them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from coordinator.logs import LogSettings, configure


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in ("coordinator", "actors"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    logging.captureWarnings(False)


def logged(settings: LogSettings | None = None) -> io.StringIO:
    stream = io.StringIO()
    configure(settings or LogSettings(), stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


LOG = logging.getLogger("coordinator.test")


def test_a_line_is_one_json_object_with_its_fields() -> None:
    stream = logged()
    LOG.info("synced", extra={"resource": "nodes", "count": 3})
    (line,) = lines(stream)
    ts = line.pop("ts")
    assert line == {"level": "info", "logger": "coordinator.test", "msg": "synced", "resource": "nodes", "count": 3}
    assert len(ts) == len("2026-01-01T00:00:00Z")
    assert ts.endswith("Z")


def test_a_line_break_or_an_odd_value_never_breaks_the_line() -> None:
    stream = logged()
    LOG.warning("odd", extra={"text": "a\nb\u2028\ud800", "object": object()})
    (line,) = lines(stream)
    assert (line["level"], line["text"]) == ("warn", "a\nb\u2028\ud800")


def test_an_exception_is_a_field_and_a_stack_trace() -> None:
    stream = logged()
    try:
        raise ValueError("no")
    except ValueError:
        LOG.exception("tick failed")
    (line,) = lines(stream)
    assert (line["level"], line["error"]) == ("error", "ValueError: no")
    assert "test_logs.py" in line["stacktrace"]


def test_stack_traces_start_at_their_level() -> None:
    stream = logged(LogSettings(stacktrace_level=logging.CRITICAL))
    LOG.error("failed", exc_info=ValueError("no"))
    assert "stacktrace" not in lines(stream)[0]


def test_levels_are_ours_and_others_speak_from_warning() -> None:
    stream = logged(LogSettings(level=logging.DEBUG))
    LOG.debug("ours")
    logging.getLogger("urllib3").info("theirs")
    logging.getLogger("urllib3").warning("theirs, but urgent")
    assert [line["msg"] for line in lines(stream)] == ["ours", "theirs, but urgent"]


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("epoch", 1.25),
        ("millis", 1250.0),
        ("nano", 1250000000),
        ("iso8601", "1970-01-01T00:00:01.250Z"),
        ("rfc3339", "1970-01-01T00:00:01Z"),
        ("rfc3339nano", "1970-01-01T00:00:01.250000Z"),
    ],
)
def test_times_are_in_zaps_encodings(encoding: str, expected: object) -> None:
    stream = logged(LogSettings(time_encoding=encoding))
    record = logging.makeLogRecord({"name": "x", "levelno": logging.ERROR, "msg": "m", "created": 1.25})
    logging.getLogger().handle(record)
    assert lines(stream)[0]["ts"] == expected


def test_the_console_encoder_is_for_eyes() -> None:
    stream = logged(LogSettings(encoder="console"))
    LOG.info("synced", extra={"resource": "nodes"})
    assert stream.getvalue().split("\t")[1:] == ["INFO", "coordinator.test", "synced", '{"resource": "nodes"}\n']
