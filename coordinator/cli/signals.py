"""SIGINT, SIGTERM and SIGHUP, for a command that ends in good order."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from actors.errors import Cancelled


@contextlib.contextmanager
def ending_on_signals() -> Iterator[None]:
    """SIGTERM, and SIGHUP unless somebody has it ignored, end what is done here as SIGINT does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled(stop):
        yield


@contextlib.contextmanager
def interruptible(cancel: Callable[[], None]) -> Iterator[None]:
    """The same signals call `cancel`, which ends the work in good order."""

    def stop(number: int, frame: FrameType | None) -> None:
        try:
            threading.Thread(target=cancel).start()  # not here: the lock it takes may be held by this very thread
        except RuntimeError as error:  # there is no thread to be had
            raise Cancelled from error

    with _handled(stop):
        yield


@contextlib.contextmanager
def _handled(stop: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ends = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as `nohup` leaves it
        ends.append(signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in ends}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
