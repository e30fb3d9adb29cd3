"""Small files of ours beside the models: one per model, in a folder of `<root>/.localmodel`.

What lies there and cannot be one (a link, a fifo, a folder, too large a file, a name that is no name) is set aside by
whoever opens the folder, and never read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from actors.disk.documents import MOST_BYTES
from actors.disk.filesystem import disk_errors
from actors.disk.handles import Folder
from actors.errors import LocalModelError
from actors.manifest import StorageKey

_log = logging.getLogger(__name__)


class Notes:
    """`opened` opens the folder; `set_aside(name, why)` moves a file of it out of the way."""

    def __init__(self, opened: Callable[[], Folder], set_aside: Callable[[Folder, str, str], None]) -> None:
        self._opened = opened
        self._set_aside = set_aside

    def read(self, key: StorageKey) -> bytes | None:
        """None: there is none that can be read."""
        name = f"{key}.json"
        with suppress(OSError, LocalModelError), self._opened() as folder:
            if folder.status(name) is None:
                return None
            try:
                return folder.read(name, MOST_BYTES)
            except OSError as error:
                self._set_aside(folder, name, str(error.strerror))
        return None

    def write(self, key: StorageKey, content: bytes, *, sync: bool = False) -> None:
        """Raises StoreError."""
        with self._changing("writing", key) as folder:
            try:
                folder.write(f"{key}.json", content, sync=sync)
            except IsADirectoryError as error:
                self._set_aside(folder, f"{key}.json", str(error.strerror))
                folder.write(f"{key}.json", content, sync=sync)

    def forget(self, key: StorageKey) -> None:
        """Raises StoreError."""
        with self._changing("removing", key) as folder:
            folder.remove(f"{key}.json")

    def reject(self, key: StorageKey, why: str) -> None:
        """A note that makes no sense is set aside, or stays where the disk refuses, to be rejected again."""
        with suppress(OSError, LocalModelError), self._opened() as folder:
            self._set_aside(folder, f"{key}.json", why)

    def keys(self) -> list[StorageKey]:
        """The models with a note. Raises StoreError."""
        with disk_errors("reading the notes on models"), self._opened() as folder:
            return [StorageKey(name.removesuffix(".json")) for name in folder.names() if name.endswith(".json")]

    @contextmanager
    def _changing(self, doing: str, key: StorageKey) -> Iterator[Folder]:
        with disk_errors(f"{doing} a note on {key}"), self._opened() as folder:
            yield folder
