"""What the servers of one fill have shown so far, and what is under way at them: shared by its readers.

ranges     whether a URL is read in ranges: True once an answer was one, False once a plain request gave the whole
           although a range was refused; until then nobody knows
crowded    whether a refusal may mean that there are too many connections: others are at work, or have been, and
           were served. Some servers say so with 403, some by closing the connection
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit


class Servers:
    """Any thread may call anything."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ranges: dict[str, bool] = {}
        self._under_way: Counter[str] = Counter()
        self._served: set[str] = set()

    def ranges(self, url: str) -> bool | None:
        return self._ranges.get(url)

    def learned(self, url: str, *, ranges: bool) -> None:
        self._ranges[url] = ranges

    def served(self, url: str) -> None:
        """It gave what it was asked for."""
        self._served.add(urlsplit(url).netloc)

    def crowded(self, url: str) -> bool:
        """Asked by one whose own request is under way."""
        place = urlsplit(url).netloc
        return place in self._served or self._under_way[place] > 1

    @contextmanager
    def request(self, url: str) -> Iterator[None]:
        """One more is under way."""
        place = urlsplit(url).netloc
        with self._lock:
            self._under_way[place] += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way[place] -= 1
