"""A thread that serves outlives whatever its work raises, and a process that is short of threads for a moment."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from actors import service
from actors.service import Service
from coordinator.dev.trial.waiting import eventually


@pytest.fixture
def stopping() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize(
    "error",
    [RuntimeError("can't start new thread"), MemoryError(), KeyError("x"), OSError(24, "Too many open files")],
    ids=["no thread", "no memory", "a bug", "no descriptor"],
)
def test_what_a_service_raises_does_not_end_it(
    error: Exception, stopping: threading.Event, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service, "FIRST_PAUSE_S", 0.01)
    calls: list[int] = []

    def run() -> None:
        calls.append(threading.get_ident())
        if len(calls) < 4:
            raise error
        stopping.wait()

    served = Service("thing", run, stopping)
    assert served.start()
    eventually(lambda: len(calls) == 4, every_s=0.01, seen=lambda: calls)
    assert (served.alive, len(set(calls))) == (True, 1)
    assert [record.__dict__["service"] for record in caplog.records] == ["thing"] * 3
    stopping.set()
    assert served.join(5)


def test_the_pause_grows_with_every_failure_and_is_cut_short_by_the_end(
    stopping: threading.Event, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(service, "LONGEST_PAUSE_S", 0.008)

    def run() -> None:
        raise ValueError("always")

    served = Service("thing", run, stopping)
    served.start()
    eventually(lambda: len(caplog.records) >= 6, every_s=0.01)
    assert [record.__dict__["pause_s"] for record in caplog.records[:6]] == [0.001, 0.002, 0.004, 0.008, 0.008, 0.008]
    stopping.set()
    assert served.join(5)


def test_a_service_that_cannot_be_started_is_started_later(
    stopping: threading.Event, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def run() -> None:
        stopping.wait()

    served = Service("thing", run, stopping)
    with monkeypatch.context() as short:
        short.setattr(threading.Thread, "start", refuse)
        assert not served.start()
    assert ("a service cannot be started now" in caplog.text, served.alive, served.join(0)) == (True, False, True)
    assert served.start()
    assert served.start(), "starting what runs is no second thread"
    stopping.set()
    assert served.join(5)


def test_a_service_that_was_told_to_stop_is_not_started(stopping: threading.Event) -> None:
    stopping.set()
    assert not Service("thing", lambda: None, stopping).start()
