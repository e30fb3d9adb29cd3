"""What the coordinator relies on: the fake and `HttpKube` over a real socket give the same answers.

`HttpKube` against the development API server always, and against a real one when KUBEBUILDER_ASSETS names it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coordinator.api.crds import load
from coordinator.api.resources import LocalModelCache
from coordinator.dev.apiserver.server import ApiServer, write_kubeconfig
from coordinator.dev.fake_kube import FakeKube, names
from coordinator.dev.trial.waiting import eventually
from coordinator.kube import http as kube_module
from coordinator.kube.config import NoClusterConfig, load_config
from coordinator.kube.http import HttpKube
from coordinator.kube.interface import (
    CONFIG_MAPS,
    LEASES,
    Conflict,
    EventType,
    Gone,
    Invalid,
    Kube,
    NotFound,
    Object,
    PatchType,
    Unreachable,
)
from coordinator.plan.snapshot import CACHES
from tests.kit.kube_servers import SERVERS, running


@pytest.fixture(scope="module")
def api_server() -> Iterator[ApiServer]:
    with ApiServer(load()) as server:
        yield server


def connect(server: ApiServer, folder: Path, *, timeout_s: float = 15.0) -> HttpKube:
    write_kubeconfig(folder / "config", server.url)
    return HttpKube(load_config(str(folder / "config")), timeout_s=timeout_s)


@pytest.fixture(scope="module")
def real_config() -> Iterator[str]:
    """A kubeconfig of a real server that serves our kinds."""
    with running("real") as server:
        for crd in load():
            server.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd).ok()
        path = f"/apis/{CACHES.api_version}/{CACHES.plural}"
        eventually(lambda: server.request("GET", path).status == 200, timeout_s=20)
        eventually(lambda: server.request("GET", "/api/v1/namespaces/default").status == 200, timeout_s=20)
        yield str(server.kubeconfig)


@pytest.fixture(params=["fake", *SERVERS])
def kube(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kube]:
    if request.param == "fake":
        yield FakeKube()
        return
    if request.param == "real":
        http = HttpKube(load_config(request.getfixturevalue("real_config")))
    else:
        http = connect(request.getfixturevalue("api_server"), tmp_path)
    yield http
    for resource, namespace in ((CONFIG_MAPS, "default"), (LEASES, "default"), (CACHES, None)):
        for found in http.list(resource, namespace=namespace)[0]:
            name = found["metadata"]["name"]
            http.patch(resource, name, {"metadata": {"finalizers": None}}, namespace=namespace)
            http.delete(resource, name, namespace=namespace)
    http.close()


def config_map(name: str, **data: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def cache(name: str) -> Object:
    spec = {"sourceModelUri": f"hf://org/{name}", "modelSize": "1Gi", "nodeGroups": ["gpu"]}
    return {"apiVersion": CACHES.api_version, "kind": CACHES.kind, "metadata": {"name": name}, "spec": spec}


def put(kube: Kube, name: str, **data: str) -> Object:
    return kube.create(CONFIG_MAPS, config_map(name, **data), namespace="default")


def test_what_was_created_can_be_read(kube: Kube) -> None:
    created = put(kube, "a", colour="red")
    assert created["metadata"]["uid"]
    assert kube.get(CONFIG_MAPS, "a", namespace="default") == created


def test_a_list_names_the_kind_of_every_object(kube: Kube) -> None:
    put(kube, "a")
    put(kube, "b")
    found, version = kube.list(CONFIG_MAPS, namespace="default")
    assert names(found) == ["a", "b"]
    assert {(each["apiVersion"], each["kind"]) for each in found} == {("v1", "ConfigMap")}
    assert int(version) > 0


def test_a_list_can_ask_for_one_name(kube: Kube) -> None:
    put(kube, "a")
    put(kube, "b")
    assert names(kube.list(CONFIG_MAPS, field_selector="metadata.name=b")[0]) == ["b"]


def test_creating_twice_is_a_conflict(kube: Kube) -> None:
    put(kube, "a")
    with pytest.raises(Conflict, match="already exists"):
        put(kube, "a")


ABSENT: dict[str, Callable[[Kube], object]] = {
    "get": lambda kube: kube.get(CONFIG_MAPS, "none", namespace="default"),
    "patch": lambda kube: kube.patch(CONFIG_MAPS, "none", {"data": {"a": "b"}}, namespace="default"),
    "delete": lambda kube: kube.delete(CONFIG_MAPS, "none", namespace="default"),
    "replace": lambda kube: kube.replace(CONFIG_MAPS, "none", config_map("none"), namespace="default"),
}


@pytest.mark.parametrize("verb", ABSENT)
def test_what_does_not_exist_is_not_found(kube: Kube, verb: str) -> None:
    with pytest.raises(NotFound, match="not found"):
        ABSENT[verb](kube)


def test_a_merge_patch_changes_only_what_it_names_and_null_removes(kube: Kube) -> None:
    put(kube, "a", keep="1", change="1", remove="1")
    patched = kube.patch(CONFIG_MAPS, "a", {"data": {"change": "2", "remove": None}}, namespace="default")
    assert patched["data"] == {"keep": "1", "change": "2"}


def test_a_json_patch_is_applied(kube: Kube) -> None:
    put(kube, "a", colour="red")
    operations = [{"op": "replace", "path": "/data/colour", "value": "blue"}]
    patched = kube.patch(CONFIG_MAPS, "a", operations, namespace="default", patch_type=PatchType.JSON)
    assert patched["data"] == {"colour": "blue"}


def test_a_patch_that_carries_an_old_version_is_a_conflict(kube: Kube) -> None:
    old = put(kube, "a")["metadata"]["resourceVersion"]
    kube.patch(CONFIG_MAPS, "a", {"data": {"a": "1"}}, namespace="default")
    with pytest.raises(Conflict):
        kube.patch(CONFIG_MAPS, "a", {"metadata": {"resourceVersion": old}, "data": {"a": "2"}}, namespace="default")
    assert kube.get(CONFIG_MAPS, "a", namespace="default")["data"] == {"a": "1"}


def test_a_replace_that_carries_an_old_version_is_a_conflict(kube: Kube) -> None:
    old = put(kube, "a")
    kube.replace(CONFIG_MAPS, "a", {**old, "data": {"a": "1"}}, namespace="default")
    with pytest.raises(Conflict):
        kube.replace(CONFIG_MAPS, "a", {**old, "data": {"a": "2"}}, namespace="default")


def test_a_patch_that_changes_nothing_makes_no_new_version(kube: Kube) -> None:
    before = put(kube, "a", colour="red")
    after = kube.patch(CONFIG_MAPS, "a", {"data": {"colour": "red"}}, namespace="default")
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


def test_status_and_spec_are_written_apart(kube: Kube) -> None:
    kube.create(CACHES, cache("llama"))
    status = {"copies": {"available": 1, "total": 2}}
    wrong = {"status": status, "spec": {"priority": 7}}
    after = kube.patch(CACHES, "llama", wrong, subresource="status")
    assert after["status"] == status
    assert "priority" not in after["spec"]
    after = kube.patch(CACHES, "llama", {"spec": {"priority": 7}, "status": {"copies": {"available": 9}}})
    assert (after["spec"]["priority"], after["status"], after["metadata"]["generation"]) == (7, status, 2)


def test_an_object_with_a_finalizer_stays_until_it_is_removed(kube: Kube) -> None:
    kube.create(CACHES, cache("llama"))
    kube.patch(CACHES, "llama", {"metadata": {"finalizers": [LocalModelCache.FINALIZER]}})
    kube.delete(CACHES, "llama")
    assert kube.get(CACHES, "llama")["metadata"]["deletionTimestamp"]
    kube.patch(CACHES, "llama", {"metadata": {"finalizers": None}})
    with pytest.raises(NotFound):
        kube.get(CACHES, "llama")


@pytest.mark.parametrize("stale", ["uid", "version"])
def test_a_deletion_of_another_object_than_was_meant_is_a_conflict(kube: Kube, stale: str) -> None:
    first = put(kube, "settings", value="1")["metadata"]
    latest = kube.patch(CONFIG_MAPS, "settings", {"data": {"value": "2"}}, namespace="default")["metadata"]
    meant = {"uid": latest["uid"], "version": latest["resourceVersion"]}
    wrong = "00000000-0000-0000-0000-000000000000" if stale == "uid" else first["resourceVersion"]
    with pytest.raises(Conflict):
        kube.delete(CONFIG_MAPS, "settings", namespace="default", **{**meant, stale: wrong})
    kube.delete(CONFIG_MAPS, "settings", namespace="default", **meant)
    with pytest.raises(NotFound):
        kube.get(CONFIG_MAPS, "settings", namespace="default")


def test_an_object_without_a_name_is_invalid(kube: Kube) -> None:
    with pytest.raises(Invalid, match="name"):
        kube.create(CONFIG_MAPS, {**config_map("x"), "metadata": {}}, namespace="default")


@pytest.mark.slow
def test_a_watch_tells_everything_after_its_version_and_ends_on_time(kube: Kube) -> None:
    put(kube, "before")
    _, version = kube.list(CONFIG_MAPS)
    put(kube, "a")
    kube.patch(CONFIG_MAPS, "a", {"data": {"a": "1"}}, namespace="default")
    kube.delete(CONFIG_MAPS, "a", namespace="default")
    events = [event for event in kube.watch(CONFIG_MAPS, version, timeout_s=1) if event.type is not EventType.BOOKMARK]
    assert [(event.type.value, event.object["metadata"]["name"]) for event in events] == [
        ("ADDED", "a"),
        ("MODIFIED", "a"),
        ("DELETED", "a"),
    ]


def test_a_watch_hears_what_happens_while_it_runs(kube: Kube) -> None:
    _, version = kube.list(CONFIG_MAPS)
    writer = threading.Timer(0.05, put, [kube, "later"])
    writer.start()
    heard = next(event for event in kube.watch(CONFIG_MAPS, version, timeout_s=5) if event.type is EventType.ADDED)
    writer.join()
    assert heard.object["metadata"]["name"] == "later"


def test_the_server_says_its_version(kube: Kube) -> None:
    assert kube.server_version().startswith("v")


def test_leases_keep_their_micro_times(kube: Kube) -> None:
    spec = {"holderIdentity": "a", "renewTime": "2026-01-01T00:00:00.123456Z", "leaseDurationSeconds": 15}
    body = {"apiVersion": LEASES.api_version, "kind": "Lease", "metadata": {"name": "lock"}, "spec": spec}
    assert kube.create(LEASES, body, namespace="default")["spec"] == spec


# the real client only


def test_a_version_that_was_compacted_is_gone(tmp_path: Path) -> None:
    with ApiServer(history=3) as server:
        kube = connect(server, tmp_path)
        for index in range(8):
            put(kube, f"c{index}")
        with pytest.raises(Gone):
            next(kube.watch(CONFIG_MAPS, "1", timeout_s=1))
        kube.close()


def test_a_long_list_is_read_in_pages(api_server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_module, "PAGE_OBJECTS", 2)
    kube = connect(api_server, tmp_path)
    for index in range(5):
        put(kube, f"page{index}")
    assert len(kube.list(CONFIG_MAPS, namespace="default")[0]) == 5
    for index in range(5):
        kube.delete(CONFIG_MAPS, f"page{index}", namespace="default")
    kube.close()


def test_the_api_server_speaks_for_itself(api_server: ApiServer, tmp_path: Path) -> None:
    kube = connect(api_server, tmp_path)
    body = {**cache("bad"), "spec": {"sourceModelUri": "hf://org/bad", "modelSize": "1Gi"}}
    with pytest.raises(Invalid, match=r"spec\.nodeGroups.*Required"):
        kube.create(CACHES, body)
    kube.close()


def test_closing_ends_a_watch_from_another_thread(api_server: ApiServer, tmp_path: Path) -> None:
    kube = connect(api_server, tmp_path)
    _, version = kube.list(CONFIG_MAPS)
    heard = threading.Event()
    ended: list[BaseException | None] = []

    def watch() -> None:
        try:
            for _ in kube.watch(CONFIG_MAPS, version, timeout_s=60):
                heard.set()
            ended.append(None)
        except Unreachable as error:
            ended.append(error)

    thread = threading.Thread(target=watch)
    thread.start()
    put(kube, "wake")
    assert heard.wait(10)
    kube.delete(CONFIG_MAPS, "wake", namespace="default")
    kube.close()
    thread.join(5)
    assert len(ended) == 1
    with pytest.raises(Unreachable, match="closed"):
        kube.server_version()


def test_no_configuration_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(NoClusterConfig, match=r"^no Kubernetes cluster is configured: give --kubeconfig"):
        load_config(environ={"HOME": str(tmp_path)})


def test_a_named_file_that_is_missing_never_falls_through_to_another_cluster(tmp_path: Path) -> None:
    (tmp_path / ".kube").mkdir()
    write_kubeconfig(tmp_path / ".kube" / "config", "http://127.0.0.1:1")
    home = {"HOME": str(tmp_path)}
    assert load_config(environ=home).server == "http://127.0.0.1:1"
    with pytest.raises(NoClusterConfig, match=r"--kubeconfig names .*nowhere"):
        load_config(str(tmp_path / "nowhere"), environ=home)
    with pytest.raises(NoClusterConfig, match=r"\$KUBECONFIG names .*nowhere"):
        load_config(environ={**home, "KUBECONFIG": str(tmp_path / "nowhere")})


def test_a_file_that_is_no_kubeconfig_is_named(tmp_path: Path) -> None:
    (tmp_path / "junk").write_text("{]")
    with pytest.raises(NoClusterConfig, match="from --kubeconfig cannot be used"):
        load_config(str(tmp_path / "junk"), environ={"HOME": str(tmp_path)})
