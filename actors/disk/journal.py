"""Which bytes of a fill are on the disk, in a file that survives the process: one JSON line per finished chunk.

    [0,0,16777216]        bytes 0 up to 16777216 of file 0 were written
    [0,0,-1]              file 0 starts over: its bytes were wrong

A chunk that takes long is told in parts, each a line of the same form, while it arrives: see `fill.origin_reader`.
Lines are appended in one write each, after the bytes they speak of. A line that was cut off, or is none, ends the
journal. After a power cut a line may be there and its bytes not: that is found when the file is hashed, and it is
fetched again.
"""

from __future__ import annotations

import json
import os
import re
import threading
from contextlib import suppress
from pathlib import Path
from typing import Self

from actors.chunks import Chunk, Ranges

_FORGET = -1
_LINE = re.compile(rb"\[(\d{1,19}),(\d{1,19}),(\d{1,19}|-1)\]\n")
_LONGEST_LINE = 80


class Journal:
    """An open journal. `record` and `forget` may be called by any thread. Raises OSError as the disk does."""

    def __init__(self, path: Path, done: dict[int, Ranges], length: int) -> None:
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        os.ftruncate(self._file, length)  # what was cut off must not be continued
        self.done = done
        """What it said when it was opened, by file index."""

    @classmethod
    def open(cls, path: Path, sizes: list[int]) -> Self:
        """Continues the journal at `path`, or starts one, for files of these sizes."""
        done, length = read(path, sizes)
        return cls(path, done, length)

    def record(self, chunk: Chunk) -> None:
        self._append([chunk.file, chunk.start, chunk.stop])

    def forget(self, file: int) -> None:
        """All of `file` is to be fetched again."""
        self._append([file, 0, _FORGET])

    def close(self) -> None:
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file = -1

    def _append(self, entry: list[int]) -> None:
        with self._lock:
            if self._file >= 0:
                os.write(self._file, json.dumps(entry, separators=(",", ":")).encode() + b"\n")


def read(path: Path, sizes: list[int]) -> tuple[dict[int, Ranges], int]:
    """The ranges that are done, by file index, and the journal's length. Never raises for its contents."""
    done: dict[int, Ranges] = {}
    length = 0
    with suppress(FileNotFoundError), path.open("rb") as lines:
        while (match := _LINE.fullmatch(line := lines.readline(_LONGEST_LINE))) is not None:
            file, start, stop = map(int, match.groups())
            if file >= len(sizes) or stop > sizes[file] or (stop != _FORGET and start > stop):
                break
            if stop == _FORGET:
                done.pop(file, None)
            else:
                done.setdefault(file, Ranges()).add(start, stop)
            length += len(line)
    return done, length
