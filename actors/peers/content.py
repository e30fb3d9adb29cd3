"""The chunks of one model on the disk, to be sent to peers. Its folder is held open, whatever it is renamed to."""

from __future__ import annotations

import weakref
from pathlib import Path

from actors.chunks import Grid
from actors.digest import digest_of as digest_of
from actors.disk.handles import Folder
from actors.manifest import Manifest


class Content:
    """Any thread. Raises OSError where the model was removed, or the disk is failing."""

    def __init__(self, manifest: Manifest, chunk_bytes: int, folder: Path) -> None:
        self.grid = Grid(manifest.files, chunk_bytes)
        self._manifest = manifest
        self._folder = Folder.at(folder)
        weakref.finalize(self, self._folder.close)  # not sooner: a thread that sends from it holds on to us

    def open(self, chunk: int) -> int:
        """A descriptor of the file that the chunk is in; the caller closes it."""
        return self._folder.open(self._manifest.files[self.grid.chunks[chunk].file].path)

    def digest(self, chunk: int, descriptor: int, buffer: bytearray) -> bytes:
        place = self.grid.chunks[chunk]
        return digest_of(descriptor, place.start, place.stop, buffer)
