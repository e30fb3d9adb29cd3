"""The informer: what its store holds after which events, and that no API server, however broken, can stop it."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from actors.retry import Backoff
from coordinator.dev.apiserver.server import ApiServer, write_kubeconfig
from coordinator.dev.fake_kube import FakeKube
from coordinator.dev.laptop.cluster import CUSTOM_RESOURCE_DEFINITIONS
from coordinator.dev.trial.builders import a_service
from coordinator.dev.trial.waiting import eventually
from coordinator.kube import http as kube_module
from coordinator.kube.config import load_config
from coordinator.kube.http import HttpKube
from coordinator.kube.informer import Informer, Key, Patience, Store
from coordinator.kube.interface import (
    CONFIG_MAPS,
    EventType,
    Kube,
    NotFound,
    Object,
    ResourceType,
    Unreachable,
    WatchEvent,
)
from coordinator.plan.services import INFERENCE_SERVICES
from tests.kit.kserve import as_sent, lenient_crd
from tests.kit.proxy import Proxy


def an_object(name: str, version: int, value: str = "", *, uid: str = "") -> Object:
    metadata = {"name": name, "namespace": "default", "uid": uid or f"uid-{name}", "resourceVersion": str(version)}
    return {"metadata": metadata, "data": {"value": value}}


def value_of(found: Object) -> str:
    """What the tests parse; "poison" cannot be."""
    value = str(found["data"]["value"])
    if value == "poison":
        raise ValueError("poisoned")
    return value


def event(type_: EventType, found: Object) -> WatchEvent:
    return WatchEvent(type_, found)


ADDED, MODIFIED, DELETED, BOOKMARK = EventType.ADDED, EventType.MODIFIED, EventType.DELETED, EventType.BOOKMARK
LISTED = [an_object("a", 1, "one"), an_object("b", 2, "two")]

EVENTS: dict[str, tuple[list[WatchEvent], dict[str, str], str, list[str]]] = {
    "nothing happened": ([], {"a": "one", "b": "two"}, "2", []),
    "an object came": ([event(ADDED, an_object("c", 3, "three"))], {"a": "one", "b": "two", "c": "three"}, "3", []),
    "an object changed": ([event(MODIFIED, an_object("a", 3, "uno"))], {"a": "uno", "b": "two"}, "3", []),
    "an object went": ([event(DELETED, an_object("a", 3, "one"))], {"b": "two"}, "3", []),
    "an unknown object went": ([event(DELETED, an_object("x", 3))], {"a": "one", "b": "two"}, "3", []),
    "a bookmark moves the version only": ([event(BOOKMARK, an_object("", 9))], {"a": "one", "b": "two"}, "9", []),
    "poison keeps the last good version, and the version moves on": (
        [event(MODIFIED, an_object("a", 3, "poison"))],
        {"a": "one", "b": "two"},
        "3",
        ["a@3"],
    ),
    "poison that was never good is left out": (
        [event(ADDED, an_object("c", 3, "poison"))],
        {"a": "one", "b": "two"},
        "3",
        ["c@3"],
    ),
    "the same poison twice is reported once": (
        [event(MODIFIED, an_object("a", 3, "poison"))] * 2,
        {"a": "one", "b": "two"},
        "3",
        ["a@3"],
    ),
    "poison in another version is reported again": (
        [event(MODIFIED, an_object("a", 3, "poison")), event(MODIFIED, an_object("a", 4, "poison"))],
        {"a": "one", "b": "two"},
        "4",
        ["a@3", "a@4"],
    ),
    "poison is cured by a good version": (
        [event(MODIFIED, an_object("a", 3, "poison")), event(MODIFIED, an_object("a", 4, "uno"))],
        {"a": "uno", "b": "two"},
        "4",
        ["a@3"],
    ),
    "poison can be deleted": (
        [event(MODIFIED, an_object("a", 3, "poison")), event(DELETED, an_object("a", 4, "poison"))],
        {"b": "two"},
        "4",
        ["a@3"],
    ),
    "the last good version of an object that was made anew is another object's": (
        [event(MODIFIED, an_object("a", 3, "poison", uid="second"))],
        {"b": "two"},
        "3",
        ["a@3"],
    ),
    "junk without metadata is poison": (
        [event(ADDED, {"metadata": None, "data": {"value": "poison"}})],
        {"a": "one", "b": "two"},
        "2",
        ["@"],
    ),
}


def by_name(items: object) -> dict[str, str]:
    assert hasattr(items, "items")
    return {name: value for (_, name), value in items.items()}


def label(found: Object) -> str:
    metadata = found["metadata"] or {}
    return f"{metadata.get('name', '')}@{metadata.get('resourceVersion', '')}"


def test_a_kind_that_need_not_be_served_has_no_objects_until_it_is_and_none_when_it_is_no_longer(
    tmp_path: Path,
) -> None:
    crd = lenient_crd(INFERENCE_SERVICES)
    with ApiServer() as server, client_of(server, tmp_path) as kube:
        changes = threading.Event()
        informer = Informer(
            kube,
            INFERENCE_SERVICES,
            lambda found: str(found["metadata"]["name"]),
            changed=changes.set,
            poisoned=lambda found, error: None,
            optional=True,
            patience=Patience(watch_timeout_s=1.0, absent_s=0.05),
        )
        informer.start()
        eventually(lambda: informer.synced)
        assert (informer.items(), informer.failure) == ({}, None)

        kube.create(CUSTOM_RESOURCE_DEFINITIONS, crd)
        eventually(lambda: is_served(kube, INFERENCE_SERVICES))
        kube.create(INFERENCE_SERVICES, as_sent(a_service("chat")), namespace="default")
        eventually(lambda: informer.items() == {("default", "chat"): "chat"})
        assert informer.failure is None

        kube.delete(CUSTOM_RESOURCE_DEFINITIONS, crd["metadata"]["name"])
        eventually(lambda: informer.items() == {}, seen=informer.items)
        kube.create(CUSTOM_RESOURCE_DEFINITIONS, crd)
        eventually(lambda: is_served(kube, INFERENCE_SERVICES))
        kube.create(INFERENCE_SERVICES, as_sent(a_service("again")), namespace="default")
        eventually(lambda: informer.items() == {("default", "again"): "again"})
        informer.stop()
        kube.close()
        assert informer.join(5.0)


@contextmanager
def client_of(server: ApiServer, folder: Path) -> Iterator[HttpKube]:
    write_kubeconfig(folder / "config", server.url)
    kube = HttpKube(load_config(str(folder / "config")))
    try:
        yield kube
    finally:
        kube.close()


def is_served(kube: Kube, resource: ResourceType) -> bool:
    try:
        kube.list(resource)
    except NotFound:
        return False
    return True


@pytest.mark.parametrize("case", EVENTS)
def test_the_store_after(case: str) -> None:
    events, expected, version, poison = EVENTS[case]
    store = Store(value_of)
    store.replace(LISTED, "2")
    reported = [label(each.object) for happened in events for each in store.apply(happened)]
    assert (by_name(store.items()), store.resource_version, reported) == (expected, version, poison)


def test_a_list_removes_what_it_does_not_name() -> None:
    store = Store(value_of)
    store.replace(LISTED, "2")
    store.replace([an_object("b", 5, "zwei")], "5")
    assert (by_name(store.items()), store.resource_version) == ({"b": "zwei"}, "5")


def test_a_list_with_the_same_versions_changes_nothing() -> None:
    store = Store(value_of)
    store.replace(LISTED, "2")
    before = store.items()
    store.replace(LISTED, "7")
    assert store.items() is before


def test_a_list_of_another_life_of_the_server_is_believed() -> None:
    store = Store(value_of)
    store.replace(LISTED, "2")
    store.replace([an_object("a", 1, "new", uid="other")], "1")
    assert by_name(store.items()) == {"a": "new"}


def test_poison_in_a_list_is_reported_once_and_keeps_the_last_good_version() -> None:
    store = Store(value_of)
    store.replace(LISTED, "2")
    poisoned = [an_object("a", 3, "poison"), LISTED[1]]
    assert [len(store.replace(poisoned, "3")) for _ in range(3)] == [1, 0, 0]
    assert by_name(store.items()) == {"a": "one", "b": "two"}


def test_a_snapshot_is_the_same_object_until_something_changes_and_never_changes_itself() -> None:
    store = Store(value_of)
    store.replace(LISTED, "2")
    before = store.items()
    assert store.items() is before
    store.apply(event(DELETED, an_object("a", 3)))
    assert store.items() is not before
    assert by_name(before) == {"a": "one", "b": "two"}


def test_delays_grow_to_their_bound_stay_apart_and_start_over() -> None:
    backoff = Backoff(random.Random(1), first_s=1, max_s=8)
    delays = [backoff.next_s() for _ in range(6)]
    assert all(low / 2 <= delay <= low for delay, low in zip(delays, [1, 2, 4, 8, 8, 8], strict=True))
    assert len(set(delays)) == 6
    backoff.reset()
    assert backoff.next_s() <= 1


# with a thread


class Seen:
    """What an informer's callbacks were told."""

    def __init__(self) -> None:
        self.changes = 0
        self.poison: list[str] = []

    def changed(self) -> None:
        self.changes += 1

    def poisoned(self, found: Object, error: Exception) -> None:
        self.poison.append(f"{found['metadata']['name']}: {error}")


@contextmanager
def informing(kube: FakeKube | HttpKube, seen: Seen, *, watch_timeout_s: float = 30.0) -> Iterator[Informer[str]]:
    """An informer of ConfigMaps that tries again quickly; stopped and joined after."""
    informer = Informer(
        kube,
        CONFIG_MAPS,
        value_of,
        changed=seen.changed,
        poisoned=seen.poisoned,
        patience=Patience(watch_timeout_s, max_backoff_s=0.05, rng=random.Random(0)),
    )
    informer.start()
    try:
        yield informer
    finally:
        informer.stop()
        kube.close()
        assert informer.join(10)


def holds(informer: Informer[str], **expected: str) -> Callable[[], bool]:
    return lambda: by_name(informer.items()) == expected


def soon(fact: Callable[[], object], seen: Callable[[], object] = lambda: None) -> None:
    eventually(fact, timeout_s=15, every_s=0.01, seen=seen)


def put(kube: Kube, name: str, value: str) -> None:
    try:
        kube.patch(CONFIG_MAPS, name, {"data": {"value": value}}, namespace="default")
    except NotFound:
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"value": value}}
        kube.create(CONFIG_MAPS, body, namespace="default")


def test_it_lists_then_follows() -> None:
    kube, seen = FakeKube(), Seen()
    put(kube, "a", "one")
    with informing(kube, seen) as informer:
        soon(lambda: informer.synced)
        assert informer.items() == {("default", "a"): "one"}
        put(kube, "b", "two")
        kube.delete(CONFIG_MAPS, "a", namespace="default")
        soon(holds(informer, b="two"))
        assert seen.changes == 3


def test_it_lists_again_when_its_version_is_gone() -> None:
    kube, seen = FakeKube(), Seen()
    put(kube, "a", "one")
    with informing(kube, seen) as informer:
        soon(holds(informer, a="one"))
        kube.fail(Unreachable("away"))
        soon(lambda: informer.failure)
        kube.fail(None)
        put(kube, "a", "two")
        kube.compact()
        soon(holds(informer, a="two"))
        soon(lambda: informer.failure is None)
        assert informer.synced


def test_it_resumes_from_its_version_when_a_watch_ends_on_time() -> None:
    kube, seen = FakeKube(), Seen()
    put(kube, "a", "one")
    with informing(kube, seen, watch_timeout_s=0.05) as informer:
        soon(holds(informer, a="one"))
        listed = seen.changes
        for value in ("two", "three", "four"):
            put(kube, "a", value)
            soon(holds(informer, a=value))
        assert (informer.failure, seen.changes - listed) == (None, 3)


def test_poison_is_told_once_and_does_not_stop_the_rest() -> None:
    kube, seen = FakeKube(), Seen()
    put(kube, "a", "one")
    with informing(kube, seen) as informer:
        soon(holds(informer, a="one"))
        put(kube, "a", "poison")
        put(kube, "b", "two")
        soon(holds(informer, a="one", b="two"))
        kube.fail(Unreachable("away"))
        soon(lambda: informer.failure)
        kube.fail(None)
        soon(lambda: informer.failure is None)
        assert seen.poison == ["a: poisoned"]


def test_a_missing_kind_is_said_and_waited_for() -> None:
    kube, seen = FakeKube(), Seen()
    kube.fail(NotFound("404 page not found", status=404))
    with informing(kube, seen) as informer:
        soon(lambda: informer.failure)
        assert "has no configmaps" in str(informer.failure)
        assert not informer.synced
        kube.fail(None)
        soon(lambda: informer.synced and informer.failure is None)


def test_a_callback_that_raises_does_not_end_it() -> None:
    kube, seen = FakeKube(), Seen()

    def poisoned(found: Object, error: Exception) -> None:
        raise RuntimeError("a bug elsewhere")

    seen.poisoned = poisoned  # type: ignore[method-assign]  # the bug
    put(kube, "a", "poison")
    with informing(kube, seen) as informer:
        put(kube, "b", "two")
        soon(holds(informer, b="two"))


# over real sockets


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_module, "WATCH_GRACE_S", 0.2)


def connect(url: str, folder: Path, *, timeout_s: float = 5.0) -> HttpKube:
    write_kubeconfig(folder / "config", url)
    return HttpKube(load_config(str(folder / "config")), timeout_s=timeout_s)


@pytest.mark.slow
def test_it_survives_an_api_server_that_hangs(tmp_path: Path) -> None:
    seen = Seen()
    with ApiServer() as server, Proxy(int(server.url.rpartition(":")[2])) as proxy:
        direct = connect(server.url, tmp_path)
        put(direct, "a", "one")
        with informing(connect(proxy.url, tmp_path, timeout_s=0.3), seen, watch_timeout_s=1.0) as informer:
            soon(holds(informer, a="one"))
            proxy.freeze()
            put(direct, "a", "two")
            soon(lambda: informer.failure)
            assert (by_name(informer.items()), informer.synced) == ({"a": "one"}, True)
            proxy.thaw()
            soon(holds(informer, a="two"))
            soon(lambda: informer.failure is None)
        direct.close()


@pytest.mark.slow
def test_it_has_caught_up_once_it_knows_every_version_that_the_server_lists(tmp_path: Path) -> None:
    with ApiServer() as server, Proxy(int(server.url.rpartition(":")[2])) as proxy:
        direct = connect(server.url, tmp_path)
        put(direct, "a", "one")
        with informing(connect(proxy.url, tmp_path, timeout_s=1.0), Seen()) as informer:
            soon(holds(informer, a="one"))
            soon(informer.caught_up)
            proxy.freeze()
            put(direct, "a", "two")
            with pytest.raises(Unreachable):
                informer.caught_up()
            assert informer.failure is None, "a watch that hangs looks like one with no news"
            proxy.thaw()
            direct.delete(CONFIG_MAPS, "a", namespace="default")
            put(direct, "b", "one")
            soon(holds(informer, b="one"))
            assert informer.caught_up()
        direct.close()


def test_it_survives_connections_that_are_cut(tmp_path: Path) -> None:
    seen = Seen()
    with ApiServer() as server, Proxy(int(server.url.rpartition(":")[2])) as proxy:
        direct = connect(server.url, tmp_path)
        with informing(connect(proxy.url, tmp_path), seen) as informer:
            soon(lambda: informer.synced)
            for value in ("one", "two", "three"):
                proxy.cut()
                put(direct, "a", value)
                soon(holds(informer, a=value))
            assert informer.synced
        direct.close()


@pytest.mark.parametrize("keeps_data", [True, False], ids=["with its data", "without its data"])
def test_it_survives_an_api_server_that_restarts(tmp_path: Path, keeps_data: bool) -> None:
    seen, journal = Seen(), tmp_path / "journal" if keeps_data else None
    first = ApiServer(data=journal).start()
    kube = connect(first.url, tmp_path)
    for name in ("a", "b", "c"):
        put(kube, name, "one")
    with informing(kube, seen) as informer:
        soon(holds(informer, a="one", b="one", c="one"))
        first.stop()
        soon(lambda: informer.failure)
        with ApiServer(data=journal, port=int(first.url.rpartition(":")[2])) as second:
            writer = connect(second.url, tmp_path)
            put(writer, "d", "two")
            left = {"a": "one", "b": "one", "c": "one"} if keeps_data else {}
            soon(holds(informer, **left, d="two"), seen=lambda: (informer.items(), informer.failure))
            assert informer.failure is None
            writer.close()
        informer.stop()


@contextmanager
def answering(reply: bytes) -> Iterator[str]:
    """A server that says `reply` to everybody and hangs up; the empty reply hangs instead."""
    listener = socket.create_server(("127.0.0.1", 0))
    accepted: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            accepted.append(client)
            if reply:
                client.recv(65536)
                client.sendall(reply)
                client.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        listener.close()
        for each in accepted:
            each.close()


def answer(body: bytes, *, status: str = "200 OK", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), size, body)


BROKEN = {
    "nothing at all": (b"", "timed out"),
    "not HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "cannot reach"),
    "HTML": (answer(b"<html>login</html>"), "not a JSON object"),
    "JSON that is not an object": (answer(b"[1, 2]"), "not a JSON object"),
    "an object that is not a list": (answer(b'{"kind": "Banana"}'), "not a list"),
    "items that are not objects": (answer(b'{"metadata": {}, "items": [1]}'), "not a list"),
    "half an answer": (answer(b'{"metadata"', length=500), "ended in the middle of an answer"),
    "a redirect to nowhere": (answer(b"", status="302 Found"), "302"),
    "an internal error": (answer(b"boom", status="500 Internal Server Error"), "boom"),
    "a request to slow down": (answer(b"later", status="429 Too Many Requests"), "later"),
    "a lack of permission": (answer(b'{"message": "configmaps is forbidden"}', status="403 Forbidden"), "forbidden"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_it_keeps_trying_a_server_that_answers(case: str, tmp_path: Path) -> None:
    reply, expected = BROKEN[case]
    seen = Seen()
    with answering(reply) as url, informing(connect(url, tmp_path, timeout_s=0.2), seen) as informer:
        soon(lambda: informer.failure)
        assert expected in str(informer.failure)
        assert not informer.synced


def test_a_refused_connection_says_whom_it_could_not_reach(tmp_path: Path) -> None:
    kube = connect("http://127.0.0.1:1", tmp_path)
    with pytest.raises(Unreachable, match=r"^cannot reach the API server at http://127.0.0.1:1: connection refused$"):
        kube.server_version()
    kube.close()


def test_keys_are_namespace_and_name() -> None:
    store = Store(value_of)
    cluster_scoped = {"metadata": {"name": "n", "uid": "u", "resourceVersion": "1"}, "data": {"value": "v"}}
    store.replace([cluster_scoped, LISTED[0]], "1")
    expected: dict[Key, str] = {(None, "n"): "v", ("default", "a"): "one"}
    assert store.items() == expected
