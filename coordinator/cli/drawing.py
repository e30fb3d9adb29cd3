"""Tables and sentences of `coordinator.view` on an output: as wide as its terminal, or as they are where it is none."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TextIO, TypeVar

from rich.console import Group, RenderableType
from rich.text import Text

from coordinator.cli.output import printable
from coordinator.dev.laptop.screen import Screen
from coordinator.view.causes import Cause
from coordinator.view.rows import CacheRow, CopyRow
from coordinator.view.savings import Saving
from coordinator.view.tables import cause_lines, progress_line, savings_table, status_lines, status_table

WRAP_COLUMNS = 80
"""Of sentences in a pipe or a file."""

T = TypeVar("T", CacheRow, CopyRow)


class Drawing:
    """`gone`: nobody reads it any more."""

    def __init__(self, stream: TextIO, environ: Mapping[str, str] = os.environ) -> None:
        self.gone = False
        self._terminal = stream.isatty()
        self._ascii = not _can_show(stream, "█▏·")
        self._screen = Screen(stream, gone=self._is_gone, environ=environ)

    def keep_status(self, rows: Sequence[CacheRow], notes: Sequence[str], *, every_copy: bool, wide: bool) -> None:
        self._screen.keep(self._status(rows, notes, every_copy=every_copy, wide=wide))

    def show_status(self, rows: Sequence[CacheRow], notes: Sequence[str], *, every_copy: bool, wide: bool) -> None:
        """In the place of the last one; a line now and then where nothing can be drawn anew."""
        self._screen.show(self._status(rows, notes, every_copy=every_copy, wide=wide))
        self._screen.progress(printable(progress_line(rows)))

    def keep_causes(self, causes: Sequence[Cause], notes: Sequence[str]) -> None:
        lines = [*cause_lines(causes, self._columns), *(f"note: {note}" for note in notes)]
        for line in lines:
            self._screen.line(printable(line))

    def keep_savings(self, each: Sequence[Saving], whole: Saving) -> None:
        self._screen.keep(savings_table(each, whole))

    @property
    def _columns(self) -> int:
        return self._screen.columns if self._terminal else min(WRAP_COLUMNS, self._screen.columns)

    def _status(
        self, rows: Sequence[CacheRow], notes: Sequence[str], *, every_copy: bool, wide: bool
    ) -> RenderableType:
        rows = [*map(_printable, rows)]
        table = status_table(rows, self._columns, every_copy=every_copy or wide, wide=wide, ascii_only=self._ascii)
        lines = status_lines(rows, notes, self._columns)
        return Group(*([table, Text()] if rows else []), *(Text(printable(line)) for line in lines))

    def _is_gone(self) -> None:
        self.gone = True


def _printable(row: CacheRow) -> CacheRow:
    """Anybody who may write a status may have written what a terminal obeys."""
    return _clean(replace(row, copies=tuple(map(_clean, row.copies))))


def _clean(row: T) -> T:
    texts: dict[str, Any] = {name: getattr(row, name) for name in row.__slots__}
    cleaned: dict[str, Any] = {name: printable(text) for name, text in texts.items() if type(text) is str}
    return replace(row, **cleaned)


def _can_show(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
