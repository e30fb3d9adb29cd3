"""What a person sees of `localmodel dev`: lines that stay and, on a terminal, a block below them that is drawn anew.

    starting a development API server …      line, line, line: as they come, never drawn again
    NODE    PHASE        BYTES               block: replaced by the next one, kept by `keep`
    node-1  Downloading  577Mi / 1Gi

A block is erased by what it takes up *now*: after the window became narrower its lines are wrapped. Where there is no
terminal, or a dumb one, blocks are not drawn and `progress` says in lines how far things are. An output that nobody
reads any more is left alone from then on, and `gone` is called once.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.text import Text

PLAIN_COLUMNS = 160
"""The width of tables in a file."""
PROGRESS_EVERY_S = 5.0


class Screen:
    """Not thread-safe. `stream` may be closed."""

    def __init__(
        self,
        stream: TextIO | None,
        *,
        gone: Callable[[], None] = lambda: None,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._gone = gone
        self._clock = clock
        self._shown: list[int] = []
        self._progress, self._progress_at = "", -PROGRESS_EVERY_S
        terminal = stream is not None and not stream.closed and stream.isatty()
        self.live = terminal and environ.get("TERM", "dumb") not in ("dumb", "unknown")
        width = None if terminal or environ.get("COLUMNS", "").isdecimal() else PLAIN_COLUMNS
        self._console = Console(
            file=stream, width=width, force_terminal=self.live, highlight=False, markup=False, emoji=False
        )
        with contextlib.suppress(AttributeError, ValueError):  # an encoding that lacks a character shows another
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # tried, not known

    @property
    def columns(self) -> int:
        return self._console.width

    def line(self, text: str = "", style: str = "") -> None:
        """As it is, however long."""
        self._draw(Text(text, style), soft_wrap=True)

    def keep(self, block: RenderableType) -> None:
        """Stays, in the place of the block that is shown."""
        self._draw(block)

    def show(self, block: RenderableType) -> None:
        """In the place of the last one, as much of it as the terminal has room for."""
        if not self.live:
            return
        lines = self._rendered(block).splitlines()
        room = max(1, self._console.height - 1)
        if len(lines) > room:
            lines = [*lines[: room - 1], f"… and {len(lines) - room + 1} more lines"]
        text = self._erased() + "".join(f"{line}\n" for line in lines)
        self._shown = [cell_len(Text.from_ansi(line).plain) for line in lines]
        self._write(text)

    def progress(self, text: str) -> None:
        """A line for those who do not see blocks: when it says something new, and not all the time."""
        if self.live or text == self._progress or self._clock() - self._progress_at < PROGRESS_EVERY_S:
            return
        self._progress, self._progress_at = text, self._clock()
        self.line(text)

    def _draw(self, block: RenderableType, *, soft_wrap: bool = False) -> None:
        """In the place of the block that is shown, to stay."""
        text = self._erased() + self._rendered(block, soft_wrap=soft_wrap)
        self._shown = []
        self._write(text)

    def _rendered(self, block: RenderableType, *, soft_wrap: bool = False) -> str:
        with self._console.capture() as capture:
            self._console.print(block, soft_wrap=soft_wrap)
        text = capture.get()
        return text if self.live else "".join(f"{line.rstrip()}\n" for line in text.splitlines())

    def _erased(self) -> str:
        """What takes the block away."""
        rows = rows_taken(self._shown, self.columns)
        return f"\x1b[{rows}A\r\x1b[J" if rows else ""

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # a pipe without a reader, a terminal that was closed, a full disk
            self._leave()

    def _leave(self) -> None:
        """Nothing is written any more, not even at the end of the process."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # type: ignore[union-attr]  # `_write` has seen to it
            os.close(nowhere)
        self._stream = None
        self._gone()


def rows_taken(lengths: list[int], columns: int) -> int:
    """How many rows lines of these lengths take up in a window so wide, which wraps them."""
    return sum(max(1, -(-length // max(1, columns))) for length in lengths)
