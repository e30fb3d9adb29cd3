"""An answer that must keep coming: a server that sends a byte now and then is as stalled as one that sends none.

A socket's timeout only bounds the wait for the next byte. A server that trickles never meets it, and a reader that
wants a block waits for hours. So the waiting is added up where it happens, below the buffer, heads and bodies alike;
the time that we ourselves take for what has come is not held against the server.

Bytes that have come are handed on within `PROMPT_S`, however large the reader's buffer is: of a slow answer little is
lost with the process.
"""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from actors.transport.connections import FinalResponse

PROMPT_S = 1.0
"""For so long at most a large buffer is filled before its reader hears of it."""


@dataclass(frozen=True, slots=True)
class MinSpeed:
    """At least `bytes_per_s`, measured over every `window_s` of waiting. 0: any speed will do."""

    bytes_per_s: float
    window_s: float


class TooSlow(TimeoutError):
    """Too little came in a window. The message says how much."""


class WatchedResponse(FinalResponse):
    """An answer that raises TooSlow from whatever reads of it."""

    def __init__(self, sock: socket.socket, *args: object, least: MinSpeed, **kwargs: object) -> None:
        super().__init__(sock, *args, **kwargs)  # type: ignore[arg-type]  # passed on as http.client gives them
        self.fp = _PromptReader(_WatchedSocket(self.fp.detach(), sock.recv_into, least))

    def begin(self) -> None:
        super().begin()
        if isinstance(self.fp, _PromptReader):
            self.fp.prompt = not self.chunked  # http.client takes a chunk that comes in parts for one that is cut off


class _PromptReader(io.BufferedReader):
    """`readinto` returns what one read of the socket below brought, where `prompt`; else only what it was asked for."""

    prompt = False

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # as HTTPResponse calls it
        return self.readinto1(buffer) if self.prompt else super().readinto(buffer)


class _WatchedSocket(io.RawIOBase):
    def __init__(
        self,
        raw: io.RawIOBase,
        receive: Callable[[memoryview], int],
        least: MinSpeed,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`receive` reads from the socket that `raw` keeps open."""
        self._raw = raw
        self._receive = receive
        self._least = least
        self._clock = clock
        self._waited_s = -1.0  # the wait for the first byte is the timeout's to bound
        self._came = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # as BufferedReader calls it
        """A large buffer is filled, for `PROMPT_S` at most: over TLS each record of 16 KiB comes by itself."""
        filled, size, view = 0, len(buffer), memoryview(buffer)
        fills = size > io.DEFAULT_BUFFER_SIZE
        now = self._clock()
        prompt_by = now + PROMPT_S
        while filled < size:
            count = self._receive(view[filled:])
            began, now = now, self._clock()
            self._watch(now - began, count)
            filled += count
            if not count or not fills or now >= prompt_by:
                break
        return filled

    def _watch(self, waited_s: float, came: int) -> None:
        if self._waited_s < 0:
            self._waited_s = 0.0
            return
        self._waited_s += waited_s
        self._came += came
        if self._waited_s >= self._least.window_s:
            if came and self._came < self._least.bytes_per_s * self._waited_s:
                raise TooSlow(f"sent {self._came} bytes in {self._waited_s:.1f} s")
            self._waited_s, self._came = 0.0, 0

    def close(self) -> None:
        self._raw.close()
        super().close()
