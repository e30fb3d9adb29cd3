"""A reader that opens a model by its path over and over, as pods that start do."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from actors.disk.handles import Folder
from coordinator.dev.trial.versions import ADDED, CHANGED

LARGEST = 64 << 20


class PathWatch:
    """Opens the model's folder by its path over and over, and notes what is not one whole version."""

    def __init__(self, folder: Path, versions: Mapping[bytes, bool]) -> None:
        """By the content of the file that changed, whether the version has the file that was added."""
        self.seen, self.wrong = 0, list[str]()
        self._folder, self._versions = folder, versions
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.is_set():
            try:
                with Folder.at(self._folder) as folder:
                    added = folder.status(ADDED) is not None
                    if self._versions.get(folder.read(CHANGED, LARGEST)) is not added:
                        self.wrong.append("a mix")
            except OSError as error:
                self.wrong.append(str(error))
            self.seen += 1
