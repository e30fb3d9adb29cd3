"""Nobody has all workers: whoever hangs holds its own share, and no more."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from actors.manifest import Location, Manifest, ManifestFile, ModelSource, Resolved
from actors.sources.resolve import SourceOptions
from coordinator.api.resources import StatusKey
from coordinator.control.resolver import Resolver
from coordinator.control.turns import Turns
from coordinator.plan.plan import Want
from coordinator.plan.snapshot import Credentials


def taken(turns: Turns[str], count: int) -> list[str]:
    return [turn.job for _ in range(count) if (turn := turns.take()) is not None]


def turns(workers: int = 8) -> Turns[str]:
    return Turns(workers, lambda: 0.0)


def test_first_come_first_served() -> None:
    made = turns()
    for name in "abc":
        made.offer(name, name, name, 0)
    assert taken(made, 3) == ["a", "b", "c"]


def test_what_has_failed_waits_behind_what_has_not() -> None:
    made = turns()
    for name, failures in (("often", 50), ("once", 1), ("new", 0), ("newer", 0)):
        made.offer(name, name, name, failures)
    assert taken(made, 4) == ["new", "newer", "once", "often"]


def test_one_place_has_half_of_the_workers() -> None:
    made = turns()
    for number in range(100):
        made.offer(f"hangs-{number}", f"team-{number}", "hangs.example", 0)
    made.offer("well", "other", "well.example", 0)
    assert taken(made, 5) == ["hangs-0", "hangs-1", "hangs-2", "hangs-3", "well"]


def test_one_namespace_has_a_quarter_of_the_workers() -> None:
    made = turns()
    for number in range(100):
        made.offer(f"hangs-{number}", "team", f"{number}.example", 0)
    made.offer("well", "other", "well.example", 0)
    assert taken(made, 3) == ["hangs-0", "hangs-1", "well"]


def test_the_cluster_leaves_some_to_namespaces() -> None:
    made = turns()
    for number in range(100):
        made.offer(f"hangs-{number}", "", f"{number}.example", 0)
    made.offer("well", "team", "well.example", 0)
    assert taken(made, 7)[-1] == "well"


def test_a_share_that_comes_back_is_given_again() -> None:
    made = turns()
    for number in range(3):
        made.offer(str(number), "team", number, 0)
    first, second = made.take(), made.take()
    assert first is not None
    assert second is not None
    made.done(first)
    assert taken(made, 1) == ["2"]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_few_workers_serve_everybody_all_the_same(workers: int) -> None:
    made = turns(workers)
    for number in range(3):
        made.offer(str(number), "team", "one.example", 0)
        turn = made.take()
        assert turn is not None
        made.done(turn)


def test_what_is_overdue_is_lost_once_and_keeps_its_share() -> None:
    now = [0.0]
    made: Turns[str] = Turns(4, lambda: now[0])
    for name in ("a", "b", "c"):
        made.offer(name, "team", name, 0)
    first = made.take()
    now[0] = 10.0
    assert [turn.job for turn in made.overdue(9.0, 1)] == ["a"]
    assert made.overdue(9.0, 1) == []
    assert first is not None
    assert first.lost
    made.done(first)
    assert taken(made, 1) == ["b"]


# The resolver with it

GOOD = ModelSource("https://well.example/good.bin")


class World:
    """`hang` never answers until it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.hanging: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.resolver = Resolver(self._resolve, workers=8, overdue_s=0.5)

    def _resolve(self, source: ModelSource, options: SourceOptions, *, pinned_revision: str | None = None) -> Resolved:
        if source != GOOD:
            self.hanging.put(source.uri)
            self.let_go.wait(30)
        return Resolved(Manifest(source, None, (ManifestFile("f", 1),)), (Location("https://h/f"),))

    def await_good(self, wants: dict[StatusKey, Want]) -> float:
        """Seconds until the good one is resolved."""
        began = time.monotonic()
        while time.monotonic() < began + 10:
            self.resolver.want(wants, lambda credentials: SourceOptions())
            if self.resolver.resolutions()[StatusKey("well/good")].resolved is not None:
                return time.monotonic() - began
            time.sleep(0.01)
        raise AssertionError("the good one was never resolved")


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.let_go.set()
    made.resolver.close(timeout_s=5)


@pytest.mark.parametrize(
    ("key", "uri"),
    [
        pytest.param(lambda n: f"evil/c{n}", lambda n: f"https://h{n}.example/f", id="of one namespace"),
        pytest.param(lambda n: f"ns{n}/c", lambda n: f"https://hangs.example/f{n}", id="of one host"),
        pytest.param(lambda n: f"c{n}", lambda n: f"s3://bucket{n}/f", id="of one store, cluster-wide"),
        pytest.param(lambda n: f"c{n}", lambda n: f"oci://h{n}.example/n", id="of the cluster"),
    ],
)
def test_a_hundred_that_hang_do_not_keep_another_waiting(
    world: World, key: Callable[[int], str], uri: Callable[[int], str]
) -> None:
    world.resolver._overdue_s = 60.0
    evil = {StatusKey(key(n)): Want(ModelSource(uri(n)), Credentials()) for n in range(100)}
    world.resolver.want(evil, lambda credentials: SourceOptions())
    world.hanging.get(timeout=5)
    assert world.await_good(evil | {StatusKey("well/good"): Want(GOOD, Credentials())}) < 5


@pytest.mark.slow
def test_a_thread_that_never_comes_back_is_replaced_and_its_want_has_failed(world: World) -> None:
    key = StatusKey("evil/c")
    wants = {key: Want(ModelSource("https://hangs.example/f"), Credentials())}
    options = SourceOptions()
    deadline = time.monotonic() + 10
    failure = None
    while failure is None and time.monotonic() < deadline:
        world.resolver.want(wants, lambda credentials: options)
        failure = world.resolver.resolutions()[key].failure
        time.sleep(0.05)
    assert failure is not None
    assert (failure.reason, failure.retryable) == ("ListingTooSlow", True)
    assert "https://hangs.example/f could not be listed within" in failure.message
    assert len([t for t in threading.enumerate() if t.name.startswith("resolver-")]) >= 8
    assert world.await_good({StatusKey("well/good"): Want(GOOD, Credentials())}) < 5
    world.let_go.set()
    world.resolver.want(wants, lambda credentials: options)
