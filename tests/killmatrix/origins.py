"""Origins that go away, answer nonsense, or too much, or too slowly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from coordinator.dev.origin.faults import Fault as OriginFault
from tests.killmatrix.nodes import NAMES, SIZE, WEIGHTS, Nodes
from tests.killmatrix.trial import MIB, Fault

CDN = f"/_cdn/*{WEIGHTS}"
READS = 8
"""Chunks that all owners read at a time: what is answered wrongly to each of them is asked for once more."""


@contextmanager
def gone_for_a_while(nodes: Nodes) -> Iterator[None]:
    nodes.close_origin()
    nodes.run_for(nodes.rng.uniform(1, 4))
    nodes.reopen_origin()
    yield


@contextmanager
def gone_for_long(nodes: Nodes) -> Iterator[None]:
    nodes.close_origin()
    yield
    nodes.reopen_origin()


@contextmanager
def gone_after_the_copy(nodes: Nodes) -> Iterator[None]:
    """A node that lost everything fills from the others, without the origin."""
    nodes.close_origin()
    nodes.kill("node-2")
    nodes.erase("node-2")
    nodes.restart("node-2")
    nodes.until_ready()
    yield
    nodes.reopen_origin()


def while_it_lasts(**fault: object) -> Callable[[Nodes], AbstractContextManager[None]]:
    """Every request for the weights, from now on until the fault is taken away."""

    @contextmanager
    def strikes(nodes: Nodes) -> Iterator[None]:
        nodes.faults(OriginFault(**{"path": CDN, **fault}))  # type: ignore[arg-type]  # fields by name
        yield
        nodes.faults()

    return strikes


def times(count: int, **fault: object) -> Callable[[Nodes], AbstractContextManager[None]]:
    """So many requests for the weights."""

    @contextmanager
    def strikes(nodes: Nodes) -> Iterator[None]:
        nodes.faults(OriginFault(**{"path": CDN, "times": count, **fault}))  # type: ignore[arg-type]  # fields by name
        yield

    return strikes


def _row(name: str, strikes: Callable[[Nodes], AbstractContextManager[None]], **more: object) -> Fault[Nodes]:
    return Fault("origin", name, strikes, **more)  # type: ignore[arg-type]  # fields by name


EARLY = (0.1, 0.4)
FAULTS: list[Fault[Nodes]] = [
    _row("the origin is gone for some seconds", gone_for_a_while, twice_mib=READS, short=True),
    _row("the origin is gone", gone_for_long, at=EARLY, reason="SourceUnreachable", twice_mib=READS),
    _row("the origin is gone when a node lost its disk", gone_after_the_copy, at=(1.0, 1.0), short=True),
    _row("500, ten times", times(10, status=500), at=EARLY),
    _row("500 for long", while_it_lasts(status=500), at=EARLY, reason="SourceError"),
    _row("503 that names two seconds, ten times", times(10, status=503, retry_after="2"), at=EARLY),
    _row("429 that names a second, twelve times", times(12, status=429, retry_after="1"), at=EARLY, short=True),
    _row("429 that names nothing, ten times", times(10, status=429), at=EARLY),
    _row("401 for long", while_it_lasts(status=401), at=EARLY, reason="SourceExpired"),
    _row("404 for long", while_it_lasts(status=404), at=EARLY, reason="SourceNotFound"),
    _row("links expire, six times", times(6, status=403), at=EARLY, twice_mib=READS),
    _row("connections are cut in the middle, twenty times", times(20, drop_after_bytes=100_000), at=EARLY, twice_mib=8),
    _row("silence in the middle, four times", times(4, stall_after_bytes=50_000), at=EARLY, twice_mib=READS),
    _row("silence before the answer, four times", times(4, latency_s=30), at=EARLY, twice_mib=READS),
    _row("a trickle, four times", times(4, trickle_bytes_per_s=100), at=EARLY, twice_mib=READS, short=True),
    _row("answers that are too short, ten times", times(10, truncate_bytes=1000), at=EARLY, twice_mib=10),
    _row("answers that are too long, ten times", times(10, extra_bytes=1000), at=EARLY, twice_mib=10),
    _row("an answer that does not end, four times", times(4, extra_bytes=64 << 20), at=EARLY, twice_mib=4 * 64),
    _row("another range, six times", times(6, content_range=f"bytes 0-9/{SIZE}"), at=EARLY, twice_mib=6),
    _row(
        "wrong bytes, once",
        times(1, corrupt_bytes=1),
        at=EARLY,
        twice_mib=len(NAMES) * (SIZE // 4 // MIB + 1),  # of the file, by each node: its digest does not say which chunk
        short=True,
    ),
    _row(
        "wrong bytes always",
        while_it_lasts(corrupt_bytes=1),
        at=EARLY,
        reason="IntegrityError",
        recovers=False,  # within a minute: what was wrong twice is tried at the slowest pace
        twice_mib=4 * SIZE // MIB,
    ),
    _row(
        "redirects in a circle",
        while_it_lasts(status=302, location="?again"),
        at=EARLY,
        reason="RedirectLoop",
        twice_mib=SIZE // MIB,  # all have given up, and begin again before they have heard of each other
    ),
]
