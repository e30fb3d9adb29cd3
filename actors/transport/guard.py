"""Connections only to addresses that are allowed, whichever library makes them.

    with guarded(origins):      in this thread, and in the tasks and `carried` calls that it starts,
        …                       connect(2) fails with `Refused` for an address that `origins` refuses

The address is judged in the moment in which the kernel is to connect to it, by an audit hook of the interpreter
(https://peps.python.org/pep-0578/): a name that resolves to another address when it is used than when it was looked at,
a redirect, and a client with a resolver of its own all come by here. Connections outside of `guarded`, such as those to
the Kubernetes API, Ray and peers, are not looked at.

A proxy that this process's environment names is asked whatever its address: whoever set it up answers for where it
leads. Then `check_name` judges the name, as far as it resolves here.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextvars import ContextVar, copy_context
from typing import Any, TypeVar
from urllib.parse import urlsplit

from actors.addresses import Address, Origins

LOOKED_UP_FOR_S = 5.0
T = TypeVar("T")

_HINT = ": such are asked only where whoever runs the coordinator allows them (--allow-origins)"


class Refused(OSError):
    """No connection was made: its address is not one that origins may have."""

    def __init__(self, host: str, port: object, kind: str, reason: str = "OriginNotAllowed") -> None:
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        super().__init__(f"it leads to {place}, {kind}{_HINT if reason == 'OriginNotAllowed' else ''}")
        self.reason = reason


class _Watch:
    def __init__(self, origins: Origins, inwards: Callable[[str], str | None], around: _Watch | None) -> None:
        self.origins = origins
        self._inwards = inwards
        self._around = around
        self.refused: Refused | None = None
        """Of the last connection, if it was refused."""

    def check(self, address: object) -> None:
        if not isinstance(address, tuple) or len(address) < 2:  # a Unix socket
            return
        host, port = str(address[0]), address[1]
        refused: Refused | None = None
        if (kind := self.origins.refusal(host, port, _addresses)) is not None:
            refused = Refused(host, port, kind)
        elif (kind := self._inwards(host)) is not None:
            refused = Refused(host, port, kind, "RedirectRefused")
        if refused is not None and _is_proxy(host, port):
            refused = None
        self._note(refused)
        if refused is not None:
            raise refused

    def _note(self, refused: Refused | None) -> None:
        self.refused = refused
        if self._around is not None:
            self._around._note(refused)


_watching: ContextVar[_Watch | None] = ContextVar("guarded", default=None)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and (watch := _watching.get()) is not None:
        watch.check(arguments[1])


sys.addaudithook(_audit)


def _nothing(address: str) -> str | None:
    return None


@contextlib.contextmanager
def guarded(origins: Origins, inwards: Callable[[str], str | None] = _nothing) -> Iterator[None]:
    """Connections inside are made only where `origins` allows. A guard inside of a guard replaces it.

    `inwards` says what is wrong with an address that is allowed, but to which nobody may lead us from here.
    """
    token = _watching.set(_Watch(origins, inwards, _watching.get()))
    try:
        yield
    finally:
        _watching.reset(token)


@contextlib.contextmanager
def with_identity() -> Iterator[None]:
    """Also where a cloud says who this process is. For stores that the operator names, asked as the operator."""
    watch = _watching.get()
    token = _watching.set(_Watch(watch.origins.with_identity(), _nothing, watch) if watch is not None else None)
    try:
        yield
    finally:
        _watching.reset(token)


def carried(function: Callable[..., T]) -> Callable[..., T]:
    """The same for the threads of a pool: they do not inherit what a thread is guarded by."""
    context = copy_context()
    return lambda *arguments: context.copy().run(function, *arguments)


def check_name(url: str) -> None:
    """Raises Refused if the host of `url`, asked through a proxy, has an address that is not allowed."""
    watch, parts = _watching.get(), urlsplit(url)
    if watch is None or watch.origins.anywhere or not parts.hostname:
        return
    port = parts.port or (80 if parts.scheme == "http" else 443)
    for address in _addresses(parts.hostname):
        kind = watch.origins.refusal(str(address), port, _addresses)
        if kind is not None:
            raise Refused(str(address), port, kind)


def refusal_in(error: BaseException) -> Refused | None:
    """The refusal that `error` stands for, or was raised because of."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if isinstance(each, Refused):
            return each
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            reason = getattr(each, "reason", None)  # of urllib
            waiting += [each.__cause__, each.__context__, reason if isinstance(reason, BaseException) else None]
    watch = _watching.get()
    return watch.refused if watch is not None else None


_known: dict[str, tuple[float, frozenset[Address]]] = {}


def _addresses(host: str) -> frozenset[Address]:
    """What a name, or an address in whatever notation, is now; nothing if it does not resolve."""
    known = _known.get(host)
    if known is not None and time.monotonic() < known[0] + LOOKED_UP_FOR_S:
        return known[1]
    try:
        found = {str(each[4][0]).partition("%")[0] for each in socket.getaddrinfo(host, None)}
    except (OSError, ValueError):
        found = set()
    addresses = frozenset(map(ipaddress.ip_address, found))
    if len(_known) > 256:
        _known.clear()
    _known[host] = time.monotonic(), addresses
    return addresses


def _is_proxy(host: str, port: object) -> bool:
    for named in urllib.request.getproxies().values():
        with contextlib.suppress(ValueError):
            parts = urlsplit(named if "://" in named else f"http://{named}")
            if parts.hostname and (parts.port or 80) == port:
                address = ipaddress.ip_address(host.partition("%")[0])
                if address in _addresses(parts.hostname):
                    return True
    return False
