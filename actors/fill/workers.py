"""The threads of one fill, each with a connection to the origin of its own: the same for a node alone and for several.

start ──► work(reader, number) ──► returns: there is nothing left to do
                              └──► raises: the first error is kept, and everything is cancelled; `join` raises it
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from actors.errors import Cancelled
from actors.fill.origin_reader import Fetcher
from actors.fill.range_reader import RangeReader, Redirects

_log = logging.getLogger(__name__)


class Workers:
    """`start` and `join` are for one thread at a time, everything else for any."""

    def __init__(
        self,
        fetcher: Fetcher,
        redirects: Redirects,
        work: Callable[[RangeReader, int], None],
        cancel: Callable[[], None],
    ) -> None:
        """`work` is what each does, numbered from 0. `cancel` is called when one fails; it calls `stop`."""
        self._fetcher = fetcher
        self._redirects = redirects
        self._work = work
        self._cancel = cancel
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._readers: list[RangeReader] = []
        self._short = False  # of threads
        self._error: BaseException | None = None
        self.stopped = threading.Event()
        """Nothing is begun any more, and what waits for the network is cut."""

    def __len__(self) -> int:
        return len(self._threads)

    def start(self, count: int) -> Exception | None:
        """So many run, if there are threads to be had; if not, why not: what runs goes on, and it is tried again."""
        for number in range(len(self._threads), count):
            thread = threading.Thread(target=self._run, args=(number,), name=f"fill-{number}", daemon=True)
            if (error := started(thread)) is not None:
                if not self._short:
                    _log.warning("cannot start a thread now", extra={"which": thread.name, "error": str(error)})
                self._short = True
                return error
            self._short = False
            self._threads.append(thread)
        return None

    def stop(self) -> None:
        """All end soon."""
        self.stopped.set()
        with self._lock:
            readers = list(self._readers)
        for reader in readers:
            reader.abort()

    def fail(self, error: BaseException) -> None:
        """Everything is cancelled because of this, unless it was before."""
        with self._lock:
            cancelled = self.stopped.is_set() or isinstance(error, Cancelled)
            if self._error is None and not cancelled:
                self._error = error
        self._cancel()

    def join(self) -> None:
        """Returns when all have ended. Raises the first error that cannot be helped."""
        for thread in self._threads:
            thread.join()
        if self._error is not None:
            raise self._error

    def _run(self, number: int) -> None:
        reader = self._fetcher.reader(self._redirects)
        with self._lock:
            self._readers.append(reader)
        try:
            self._work(reader, number)
        except BaseException as error:  # noqa: BLE001  it is raised again, by `join`
            self.fail(error)
        finally:
            reader.close()


def started(thread: threading.Thread) -> Exception | None:
    """None if the thread runs; why it does not while the process can have no more."""
    try:
        thread.start()
    except (RuntimeError, MemoryError) as error:
        return error
    return None
