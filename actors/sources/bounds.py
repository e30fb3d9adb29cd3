"""What one resolution of a source may take: time, bytes, files, pages, and memory that follows from them.

    with bounded(limits):      in this thread, and in the tasks and `actors.transport.guard.carried` calls,
        …                      the first bound that is crossed ends it: what waits on a socket wakes up with an error

An origin is asked by five libraries, none of which bounds an answer. So what they have in common is watched: sockets.
An audit hook of the interpreter (https://peps.python.org/pep-0578/) sees each connection that is made inside; when the
time is over, or too much has come, all of them are shut down and no further one is made. The bytes that the kernel has
received are looked at a few times a second; a single document is bounded exactly where it is read (`decoded`).

Why these numbers: the hub asks for fewer than 100,000 files in a repository, and larger models have far fewer
(https://huggingface.co/docs/hub/repositories-recommendations); a resolution of so many takes the bytes and the time
below several times over. An operator can allow more files (LOCALMODEL_MAX_FILES).
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from actors.errors import SourceError, SourceUnsupported
from actors.redaction import redacted
from actors.sizes import say_bytes

if TYPE_CHECKING:
    from concurrent.futures import Future

MAX_FILES = 100_000
MOST_FILES = 500_000
"""Nobody can allow more: see `actors.disk.documents`."""
MAX_DOCUMENT_BYTES = 32 << 20
"""Of one answer, as it is after decompression: the names, sizes and digests of 100,000 files take about 30 MB."""
MAX_VALUES = 2_000_000
"""In one JSON document: a value of three bytes takes up to a hundred in memory."""
MAX_PAGES = 5_000

_BYTES_PER_FILE = 1600
"""What listings say of a file, generously."""
_LOOK_S = 0.2
_TCP_INFO_BYTES_RECEIVED = 128  # `tcpi_bytes_received` in `struct tcp_info`; linux/tcp.h, since 4.1
_BLOCK_BYTES = 64 << 10
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """`seconds` from the first question to the last answer, and `seconds_per_file` for each one listed: of some sources
    each is asked about, eight at a time. `received_bytes` over all connections; `document_bytes` in all documents
    together, as they are after decompression: names in them may be as long as an origin likes, and are kept.
    """

    seconds: float = 120.0
    seconds_per_file: float = 0.01
    files: int = MAX_FILES
    pages: int = MAX_PAGES
    received_bytes: int = 512 << 20
    document_bytes: int = 160 << 20

    @property
    def longest_s(self) -> float:
        """After this nothing goes on, whatever was listed."""
        return self.seconds + self.seconds_per_file * self.files


class ListingTooLarge(SourceUnsupported):
    """More than one resolution may take. Asking again changes nothing."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="ListingTooLarge")


class ListingTooSlow(SourceError):
    """It did not end in time."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="ListingTooSlow")


class _Ended(OSError):
    """A connection that was not made, because the resolution it is for has ended."""


class Bounds:
    """The rest of the limits. Any thread."""

    def __init__(self, limits: Limits, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self.broken: SourceError | None = None
        """The bound that was crossed first."""
        self._what = what
        self._clock = clock
        self._began = clock()
        self._lock = threading.Lock()
        self._sockets: dict[int, int] = {}  # inode by descriptor: a descriptor is used again, an inode is not
        self._received: dict[int, int] = {}  # by inode
        self._waiting: set[Future[Any]] = set()
        self._files = 0
        self._pages = 0
        self._document_bytes = 0
        self._next: set[int] = set()
        """Their hashes: a link may be as long as a document."""

    # --- for readers: each raises what is broken ---

    def check(self) -> None:
        limit_s = self.limits.seconds + self.limits.seconds_per_file * self._files
        if self.broken is None and self._clock() >= self._began + limit_s:
            self.end(ListingTooSlow(f"{self._what} could not be listed within {limit_s:.0f} s: it answers too slowly"))
        if self.broken is not None:
            raise self.broken

    def files(self, more: int) -> None:
        """So many further entries were listed."""
        with self._lock:
            self._files += more
            listed = self._files
        if listed > self.limits.files:
            self._too_large(
                f"lists more than {self.limits.files} files, the most that one model may have (whoever runs localmodel "
                "can allow more with LOCALMODEL_MAX_FILES): name a folder of it"
            )
        self.check()

    def holds(self, count: int) -> None:
        """A model has so many files. Files that were listed one by one were counted before."""
        self.files(max(0, count - self._files))

    def page(self, following: object = None) -> None:
        """A page was read, and `following` names the next one. Raises SourceError for one that was there before."""
        with self._lock:
            self._pages += 1
            pages, again = self._pages, following is not None and hash(following) in self._next
            self._next.add(hash(following))
        if again:
            raise SourceError(
                f"{self._what}: the listing goes in a circle, page {pages} leads back to an earlier one",
                reason="InvalidAnswer",
            )
        if pages > self.limits.pages:
            self._too_large(f"is listed in more than {self.limits.pages} pages")
        self.check()

    def document(self, more: int, count: int, limit: int = MAX_DOCUMENT_BYTES) -> None:
        """So many further bytes of a document were read, which has come to `count`."""
        if count > limit:
            self._too_large(f"answers with more than {say_bytes(limit)} in one document")
        with self._lock:
            self._document_bytes += more
            read = self._document_bytes
        if read > self.limits.document_bytes:
            self._too_large(f"answers with more than {say_bytes(self.limits.document_bytes)} in all documents together")
        self.check()

    def values(self, count: int) -> None:
        if count > MAX_VALUES:
            self._too_large(f"answers with more than {MAX_VALUES} values in one document")

    def too_deep(self, limit: int) -> None:
        self._too_large(f"has more than {limit} folders within each other")

    def _too_large(self, how: str) -> None:
        self.end(ListingTooLarge(f"{self._what} {how}"))
        raise self.broken or AssertionError

    # --- for the watch ---

    def end(self, error: SourceError) -> None:
        """Everything that waits for an answer stops waiting."""
        with self._lock:
            if self.broken is None:
                self.broken = error
            sockets, waiting = list(self._sockets.items()), list(self._waiting)
        for future in waiting:
            future.cancel()
        for descriptor, inode in sockets:
            with _same(descriptor, inode) as connection:
                if connection is not None:
                    with contextlib.suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)

    def result_of(self, future: Future[T]) -> T:
        """What comes of a task in another thread, which is cancelled at the end: it may be asleep before it retries."""
        with self._lock:
            self._waiting.add(future)
        try:
            if self.broken is not None:
                future.cancel()
            return future.result()
        finally:
            with self._lock:
                self._waiting.discard(future)

    def connects(self, connection: socket.socket) -> None:
        """Called before a connection is made. Raises OSError when it is too late for one."""
        if self.broken is not None:
            raise _Ended(str(self.broken))
        with contextlib.suppress(OSError, ValueError):
            descriptor = connection.fileno()
            with self._lock:
                self._sockets[descriptor] = os.fstat(descriptor).st_ino

    def look(self) -> None:
        """Ends it if the time is over, or too much has come."""
        with self._lock:
            sockets = list(self._sockets.items())
        for descriptor, inode in sockets:
            with _same(descriptor, inode) as connection:
                if connection is not None:
                    self._received[inode] = _received(connection)
        if sum(self._received.values()) > self.limits.received_bytes:
            self.end(
                ListingTooLarge(
                    f"{self._what} answers with more than {say_bytes(self.limits.received_bytes)} when it is listed"
                )
            )
        with contextlib.suppress(SourceError):
            self.check()


_current: ContextVar[Bounds | None] = ContextVar("bounds", default=None)


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if event == "socket.connect" and (bounds := _current.get()) is not None and isinstance(arguments[0], socket.socket):
        bounds.connects(arguments[0])


sys.addaudithook(_audit)


@contextlib.contextmanager
def bounded(what: str, limits: Limits | None = None) -> Iterator[Bounds]:
    """Requests inside for `what` keep to the limits. Raises the limit that was broken instead of what came of it."""
    bounds = Bounds(limits or limits_of(os.environ), what)
    token, ended = _current.set(bounds), threading.Event()

    def watch() -> None:
        while not ended.wait(_LOOK_S):
            bounds.look()

    watcher = threading.Thread(target=watch, name="bounds", daemon=True)
    try:
        try:
            watcher.start()
        except RuntimeError as error:
            raise SourceError(f"{what}: there is no thread to watch over it: {error}", reason="OutOfThreads") from error
        yield bounds
    except Exception as error:
        if bounds.broken is not None and error is not bounds.broken:
            raise bounds.broken from error
        raise
    finally:
        ended.set()
        _current.reset(token)
        if watcher.ident is not None:
            watcher.join()


def current() -> Bounds:
    """Those of whoever asks; their own for each call where nobody set any."""
    return _current.get() or Bounds(limits_of(os.environ), "the source")


def limits_of(env: os._Environ[str] | dict[str, str]) -> Limits:
    text = env.get("LOCALMODEL_MAX_FILES", "").strip()
    if text.isascii() and text.isdecimal() and 0 < int(text[:12]) <= 100_000_000:
        files, least = min(int(text), MOST_FILES), Limits()
        return Limits(
            files=files,
            pages=max(MAX_PAGES, files // 20),
            document_bytes=max(least.document_bytes, files * _BYTES_PER_FILE),
        )
    return Limits()


# --- documents ---


def decoded(blocks: Iterable[bytes], encoding: str = "", limit: int = MAX_DOCUMENT_BYTES) -> Iterator[bytes]:
    """The same without its Content-Encoding, a bounded piece at a time. Raises ListingTooLarge, SourceError."""
    bounds, count, values = current(), 0, 0
    for block in _inflated(blocks, encoding.strip().lower()):
        count += len(block)
        bounds.document(len(block), count, limit)
        values += block.count(b",") + block.count(b"[") + block.count(b"{")
        bounds.values(values)
        yield block


def _inflated(blocks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    if encoding in ("", "identity"):
        yield from blocks
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise SourceError(
            f"the answer is encoded as {redacted(encoding)[:40]!r}, which was not asked for", reason="InvalidAnswer"
        )
    inflating = zlib.decompressobj(zlib.MAX_WBITS | (32 if encoding != "deflate" else 0))
    try:
        for number, block in enumerate(blocks):
            if encoding == "deflate" and number == 0 and block[:1] and block[0] & 0x0F != 8:
                inflating = zlib.decompressobj(-zlib.MAX_WBITS)  # some leave out the header
            rest = block
            while rest and not inflating.eof:
                yield inflating.decompress(rest, _BLOCK_BYTES)
                rest = inflating.unconsumed_tail
        while not inflating.eof and (more := inflating.decompress(inflating.unconsumed_tail, _BLOCK_BYTES)):
            yield more
    except zlib.error as error:
        raise SourceError(f"the answer cannot be decompressed: {error}", reason="InvalidAnswer") from error
    if not inflating.eof:
        raise SourceError("the answer breaks off within its compression", reason="InvalidAnswer")


# --- sockets ---


@contextlib.contextmanager
def _same(descriptor: int, inode: int) -> Iterator[socket.socket | None]:
    """A duplicate of the descriptor, if it still is what it was."""
    try:
        duplicate = os.dup(descriptor)
    except OSError:
        yield None
        return
    try:
        connection = socket.socket(fileno=duplicate) if os.fstat(duplicate).st_ino == inode else None
    except OSError:
        connection = None
    try:
        yield connection
    finally:
        if connection is not None:
            connection.close()
        else:
            os.close(duplicate)


def _received(connection: socket.socket) -> int:
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES_RECEIVED + 8)
        return int(struct.unpack_from("=Q", info, _TCP_INFO_BYTES_RECEIVED)[0])
    except (OSError, struct.error):  # not TCP, or a kernel that does not say
        return 0
