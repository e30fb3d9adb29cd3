"""Chunks that were here and are taken back, because the file that they make up is wrong. Pure.

withdrawn ──► read again from the origin, put back ──► the file is right: settled, and their readers are known
"""

from __future__ import annotations

from collections.abc import Iterable

from actors.mesh import bitmap
from actors.mesh.actions import Origin
from actors.messages import NodeName


class Withdrawn:
    """By chunk, whose bytes they were. Without a digest nobody vouched for them: they were on the disk before."""

    def __init__(self) -> None:
        self._doubted: dict[int, Origin] = {}

    @property
    def chunks(self) -> int:
        """A bitmap of them."""
        return bitmap.bitmap(self._doubted)

    def add(self, chunk: int, origin: Origin) -> None:
        self._doubted[chunk] = origin

    def rejects(self, chunk: int, origin: Origin) -> bool:
        """This copy is one that was taken back."""
        return self._doubted.get(chunk) == origin

    def settle(self, chunks: Iterable[int], right: dict[int, Origin]) -> dict[int, NodeName]:
        """None of these is in doubt any more. By chunk, the reader whose bytes are not those that are right."""
        blamed: dict[int, NodeName] = {}
        for chunk in chunks:
            doubted, now_right = self._doubted.pop(chunk, None), right.get(chunk)
            if doubted is None or now_right is None or not doubted.digest:
                continue
            if doubted.digest != now_right.digest:
                blamed[chunk] = doubted.reader
        return blamed
