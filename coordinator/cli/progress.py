"""How far a fill or a verification is, on standard error: bars at a terminal, else a line every few seconds.

    filling    ━━━━━━━━━━━━━━   41%  6.1Gi of 15Gi  1.2Gi/s  8s left  32 connections, huggingface.co
      model-00001-of-00004.safetensors  ━━━━━━━━   98%
      model-00002-of-00004.safetensors  ━━━        34%

Where there is no terminal the first line comes after `LINE_S`, so a short one says nothing.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from actors.sizes import format_bytes
from coordinator.cli.output import printable, tell
from coordinator.kube.quantity import format_duration, format_percent

LINE_S = 5.0
DRAW_S = 0.2
SHOWN_FILES = 5


@dataclass(frozen=True, slots=True)
class Sample:
    """`doing` is a word, or the reason why nothing comes. `files` are those under way: name, bytes done, size."""

    doing: str
    done: int
    total: int
    rate: float = 0.0
    beside: str = ""
    files: tuple[tuple[str, int, int], ...] = ()


def sentence(now: Sample) -> str:
    """One sample in a line: `filling: 41% of 15Gi, 1.2Gi/s, 8s left, 32 connections, huggingface.co`."""
    parts = [f"{now.doing}: {format_percent(now.done, now.total)} of {format_bytes(now.total)}"]
    if now.rate >= 1:
        parts.append(f"{format_bytes(int(now.rate))}/s")
        parts.append(f"{format_duration((now.total - now.done) / now.rate)} left")
    return ", ".join([*parts, *([now.beside] if now.beside else [])])


@contextlib.contextmanager
def shown(sample: Callable[[], Sample]) -> Iterator[None]:
    """While inside, `sample` is asked and shown by a thread; without one to be had, nothing is."""
    finished = threading.Event()
    terminal = sys.stderr.isatty()
    work = _bars if terminal else _lines
    watcher = threading.Thread(target=work, args=(sample, finished), name="progress", daemon=True)
    with contextlib.suppress(RuntimeError):
        watcher.start()
    try:
        yield
    finally:
        finished.set()
        if watcher.ident is not None:
            watcher.join()


def _lines(sample: Callable[[], Sample], finished: threading.Event) -> None:
    while not finished.wait(LINE_S):
        tell(f"localmodel: {printable(sentence(sample()))}")


def _bars(sample: Callable[[], Sample], finished: threading.Event) -> None:
    from rich.console import Console  # here, because a pipe needs none of it
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[said]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        whole = bars.add_task("", total=None, said="")
        of_files = [bars.add_task("", visible=False, said="") for _ in range(SHOWN_FILES)]
        while not finished.wait(DRAW_S):
            now = sample()
            bars.update(whole, total=now.total, completed=now.done, description=now.doing, said=_said(now))
            for number, task in enumerate(of_files):
                if number < len(now.files):
                    path, done, size = now.files[number]
                    name, far = f"  {printable(path)}", format_percent(done, size)
                    bars.update(task, visible=True, total=size, completed=done, description=name, said=far)
                else:
                    bars.update(task, visible=False)


def _said(now: Sample) -> str:
    return sentence(now).partition(": ")[2]


class Rate:
    """Bytes per second over the last samples."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()

    def of(self, done: int) -> float:
        return done / max(1e-3, self._clock() - self._began)
