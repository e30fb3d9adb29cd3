"""A network in virtual time: an event queue, and links that share their rate among flows.

Rates are bytes per second. There is no round trip, no ramp and no loss within a flow; those who ask wait for a round
trip of their own.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Any


class Clock:
    """Events in the order of their time."""

    __slots__ = ("_events", "_serial", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = 0

    def after(self, delay_s: float, act: Callable[..., None], *args: Any) -> None:
        self._serial += 1
        heapq.heappush(self._events, (self.now + delay_s, self._serial, act, args))

    def run(self, until: Callable[[], bool], limit_s: float) -> None:
        events = self._events
        while events and not until():
            self.now, _, act, args = heapq.heappop(events)
            if self.now > limit_s:
                break
            act(*args)


class Flow:
    """One chunk on its way over two links, in segments. `done` is called with the last; never, once it is cut."""

    __slots__ = ("done", "down", "left", "open", "segment", "sending", "up", "waiting")

    def __init__(self, up: Link, down: Link, size: int, segment: int, done: Callable[[], None]) -> None:
        self.up, self.down, self.left, self.segment, self.done = up, down, size, segment, done
        self.sending = size  # not yet through the uplink
        self.waiting = 0  # segments at the downlink
        self.open = True
        up.push(self)


class Link:
    """One direction of a network card, or the origin's: one segment of each flow in turn. A segment has left the uplink
    before it stands at the downlink; a flow has at most two of them there, so a slow receiver does not fill it."""

    __slots__ = ("_busy", "_clock", "_finish", "_queue", "bytes", "is_up", "rate")

    def __init__(self, clock: Clock, rate: float, is_up: bool) -> None:
        self._clock = clock
        self.rate = rate
        self._queue: deque[Flow] = deque()
        self._busy = False
        self.bytes = 0
        self.is_up = is_up
        self._finish = self._sent if is_up else self._received

    def push(self, flow: Flow) -> None:
        if self._busy:
            self._queue.append(flow)
        else:
            self._busy = True
            self._serve(flow)

    def _serve(self, flow: Flow) -> None:
        left = flow.sending if self.is_up else flow.left
        size = flow.segment if flow.segment < left else left
        self._clock.after(size / self.rate, self._finish, flow, size)

    def _next(self) -> None:
        queue = self._queue
        while queue:
            flow = queue.popleft()
            if flow.open:
                self._serve(flow)
                return
        self._busy = False

    def _sent(self, flow: Flow, size: int) -> None:
        self._next()
        if flow.open:
            self.bytes += size
            flow.sending -= size
            flow.waiting += 1
            flow.down.push(flow)
            if flow.sending and flow.waiting < 2:
                self.push(flow)

    def _received(self, flow: Flow, size: int) -> None:
        self._next()
        if flow.open:
            self.bytes += size
            flow.left -= size
            flow.waiting -= 1
            if flow.sending and flow.waiting == 1:
                flow.up.push(flow)
            if not flow.left:
                flow.open = False
                flow.done()
