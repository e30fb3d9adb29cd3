"""KServe's specs of its controllers that are about volumes, claims and consumers, each by its upstream name.

    C1–C5   localmodelcache              N1–N6   localmodelnamespacecache           L1, L2   LLMInferenceService
    G2, G9, G10, K1   what upstream does not test and its users rely on

Upstream's tests of C1 and N1 play KServe's node agent; here a node has an agent of ours (docs/compatibility.md).
"""

from __future__ import annotations

from functools import partial

import pytest

from coordinator.dev.trial.builders import a_cache, a_namespace_cache, a_node, a_pod, a_service
from coordinator.kube.interface import CLAIMS, NODES, PODS, VOLUMES, Invalid
from coordinator.plan.snapshot import CACHES, LOCAL_NODES, NAMESPACE_CACHES
from coordinator.plan.storage_containers import STORAGE_CONTAINERS
from tests.kit.conformance import Told, a_whole_group
from tests.kit.control_plane import JOBS, Cluster, soon

pytestmark = pytest.mark.slow


@pytest.fixture
def told(cluster: Cluster) -> Told:
    return Told(cluster)


def entry(cluster: Cluster, node: str, name: str) -> dict[str, str]:
    local = cluster.find(LOCAL_NODES, node) or {"spec": {"localModels": []}}
    return next((dict(each) for each in local["spec"]["localModels"] if each["modelName"] == name), {})


def test_c1_creates_pv_pvc_localmodelnode_and_updates_status(cluster: Cluster, told: Told) -> None:
    told.groups("c1-gpu1", "c1-gpu2")
    iris = a_cache("c1-iris", "s3://mybucket/mymodel").in_group("c1-gpu1", "c1-gpu2")
    told.apply(iris)
    soon(lambda: told.status(iris).get("copies") == {})
    for group in ("c1-gpu1", "c1-gpu2"):
        soon(partial(told.is_bound_by_name, f"c1-iris-{group}", JOBS, f"c1-iris-{group}-download"))
    uid = (cluster.find(CACHES, "c1-iris") or {})["metadata"]["uid"]
    for made in (told.volume("c1-iris-c1-gpu1-download"), told.claim("c1-iris-c1-gpu1")):
        (owner,) = (made or {})["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == ("LocalModelCache", uid, True)
    volume = (told.volume("c1-iris-c1-gpu1-download") or {})["spec"]
    assert volume["local"] == {"path": "/models"}
    assert volume["nodeAffinity"] == a_whole_group("c1-gpu1").volume["nodeAffinity"]

    for number in (1, 2):
        cluster.create(NODES, a_node(f"c1-node-{number}").in_pool(f"c1-gpu{number}"))
    for number in (1, 2):
        wanted = {"modelName": "c1-iris", "sourceModelUri": "s3://mybucket/mymodel", "nodeGroup": f"c1-gpu{number}"}
        soon(lambda number=number, wanted=wanted: entry(cluster, f"c1-node-{number}", "c1-iris") == wanted)  # type: ignore[misc]  # bound at once
    soon(lambda: told.status(iris)["copies"] == {"available": 2, "total": 2})
    assert told.status(iris)["nodeStatus"] == {f"c1-node-{number}": "NodeDownloaded" for number in (1, 2)}
    told.delete(iris)
    soon(lambda: cluster.is_gone(CACHES, "c1-iris"))
    soon(lambda: told.claim("c1-iris-c1-gpu1") is None and told.volume("c1-iris-c1-gpu1-download") is None)


def test_c2_creates_pvs_and_pvcs_for_inference_services(cluster: Cluster, told: Told) -> None:
    told.groups("c2-gpu1", "c2-gpu2")
    iris = a_cache("c2-iris", "s3://mybucket/c2").in_group("c2-gpu1", "c2-gpu2")
    told.apply(iris)
    told.apply(a_service("c2-a").using("c2-iris"))
    told.apply(a_service("c2-b").using("c2-iris").in_group("c2-gpu2"))
    for group in ("c2-gpu1", "c2-gpu2"):
        soon(partial(told.is_bound_by_name, f"c2-iris-{group}", "default", f"c2-iris-{group}-default"))
    soon(lambda: told.names(iris) == ["default/c2-a", "default/c2-b"])


def test_c3_tracks_llm_inference_services(cluster: Cluster, told: Told) -> None:
    told.groups("c3-gpu1")
    iris = a_cache("c3-iris", "s3://mybucket/c3").in_group("c3-gpu1")
    told.apply(iris)
    told.apply(a_service("c3-llm", llm=True).using("c3-iris"))
    soon(lambda: told.names(iris, "llmInferenceServices") == ["default/c3-llm"])
    soon(partial(told.is_bound_by_name, "c3-iris-c3-gpu1", "default", "c3-iris-c3-gpu1-default"))


def test_c4_neither_makes_nor_deletes_serving_volumes_when_told_not_to(cluster: Cluster, told: Told) -> None:
    told.groups("c4-gpu1")
    iris = a_cache("c4-iris", "s3://mybucket/c4").in_group("c4-gpu1")
    jobs = cluster.namespace("c4-jobs")
    told.configured({"disableVolumeManagement": True, "jobNamespace": jobs})
    told.apply(iris)
    soon(partial(told.is_bound_by_name, "c4-iris-c4-gpu1", jobs, "c4-iris-c4-gpu1-download"))  # C4b: it was read
    group = a_whole_group("c4-gpu1").json["spec"]
    uid = (cluster.find(CACHES, "c4-iris") or {})["metadata"]["uid"]
    owner = {"apiVersion": CACHES.api_version, "kind": "LocalModelCache", "name": "c4-iris", "uid": uid}
    metadata = {"name": "c4-iris-c4-gpu1", "ownerReferences": [owner | {"controller": True}]}
    name = "c4-iris-c4-gpu1-default"
    told.kube.create(VOLUMES, {"metadata": {**metadata, "name": name}, "spec": group["persistentVolumeSpec"]})
    spec = {**group["persistentVolumeClaimSpec"], "volumeName": name}
    told.kube.create(CLAIMS, {"metadata": metadata, "spec": spec}, namespace="default")
    before = [told.kube.get(VOLUMES, name), told.kube.get(CLAIMS, "c4-iris-c4-gpu1", namespace="default")]

    for served in ("default", cluster.namespace("c4-other")):
        told.apply(a_service("c4-chat", served).using("c4-iris"))
    soon(lambda: len(told.names(iris)) == 2)
    told.delete(a_service("c4-chat").using("c4-iris"))
    soon(lambda: told.names(iris) == ["c4-other/c4-chat"])
    settled = a_cache("c4-settled", "s3://mybucket/c4-settled").in_group("c4-gpu1")
    told.apply(settled)
    soon(partial(told.is_bound_by_name, "c4-settled-c4-gpu1", jobs, "c4-settled-c4-gpu1-download"))
    after = [told.kube.get(VOLUMES, name), told.kube.get(CLAIMS, "c4-iris-c4-gpu1", namespace="default")]
    assert after == before
    assert told.claim("c4-iris-c4-gpu1", "c4-other") is None

    told.configured(None)  # read live: what is wanted is made by now
    soon(partial(told.is_bound_by_name, "c4-iris-c4-gpu1", "c4-other", "c4-iris-c4-gpu1-c4-other"))


def test_c5_two_nodes_two_caches_of_one_uri(cluster: Cluster, told: Told) -> None:
    told.groups("c5-gpu1")
    for node in ("c5-node-1", "c5-node-2"):
        cluster.create(NODES, a_node(node).in_pool("c5-gpu1"))
    first, second = (a_cache(name, "s3://mybucket/c5").in_group("c5-gpu1") for name in ("c5-a", "c5-b"))
    told.apply(first)
    told.apply(second)

    def listed(node: str) -> list[str]:
        local = cluster.find(LOCAL_NODES, node) or {"spec": {"localModels": []}}
        return [each["modelName"] for each in local["spec"]["localModels"]]

    for node in ("c5-node-1", "c5-node-2"):
        soon(lambda node=node: sorted(listed(node)) == ["c5-a", "c5-b"])  # type: ignore[misc]  # bound at once
    told.delete(first)
    soon(lambda: cluster.is_gone(CACHES, "c5-a") and listed("c5-node-1") == listed("c5-node-2") == ["c5-b"])
    told.delete(second)
    soon(lambda: cluster.is_gone(CACHES, "c5-b"))
    assert listed("c5-node-1") == []


def test_n1_n5_a11_download_volumes_of_a_namespaced_cache(cluster: Cluster, told: Told) -> None:
    told.groups("n1-gpu1")
    team = cluster.namespace("n1-team")
    iris = a_namespace_cache(team, "n1-iris", "s3://mybucket/n1").in_group("n1-gpu1")
    told.apply(iris)
    name = f"n1-iris-n1-gpu1-{team}-download"
    soon(lambda: told.status(iris).get("copies") == {})
    soon(partial(told.is_bound_by_name, name, JOBS, name))
    assert "ownerReferences" not in (told.volume(name) or {})["metadata"]
    found = cluster.find(NAMESPACE_CACHES, "n1-iris", team) or {}
    assert found["metadata"]["finalizers"] == ["localmodelnamespacecache.kserve.io/finalizer"]

    cluster.create(NODES, a_node("n1-node").in_pool("n1-gpu1"))
    wanted = {"modelName": "n1-iris", "sourceModelUri": "s3://mybucket/n1", "nodeGroup": "n1-gpu1", "namespace": team}
    soon(lambda: entry(cluster, "n1-node", "n1-iris") == wanted)
    soon(lambda: told.status(iris)["copies"] == {"available": 1, "total": 1})


def test_n2_serves_services_of_its_own_namespace_only(cluster: Cluster, told: Told) -> None:
    told.groups("n2-gpu1")
    team, other = cluster.namespace("n2-team"), cluster.namespace("n2-other")
    iris = a_namespace_cache(team, "n2-iris", "s3://mybucket/n2").in_group("n2-gpu1")
    told.apply(iris)
    told.apply(a_service("forged", other).using("n2-iris", team))
    told.apply(a_service("own", team).using("n2-iris", team))
    soon(partial(told.is_bound_by_name, "n2-iris-n2-gpu1", team, f"n2-iris-n2-gpu1-{team}"))
    soon(lambda: told.names(iris) == [f"{team}/own"])
    assert told.claim("n2-iris-n2-gpu1", other) is None


def test_n3_the_finalizer_cleans_up(cluster: Cluster, told: Told) -> None:
    told.groups("n3-gpu1")
    team = cluster.namespace("n3-team")
    iris = a_namespace_cache(team, "n3-iris", "s3://mybucket/n3").in_group("n3-gpu1")
    told.apply(iris)
    download, serving = f"n3-iris-n3-gpu1-{team}-download", f"n3-iris-n3-gpu1-{team}"
    told.apply(a_service("n3-chat", team).using("n3-iris", team))
    soon(lambda: told.claim(download) and told.claim("n3-iris-n3-gpu1", team))
    told.delete(iris)
    soon(lambda: cluster.is_gone(NAMESPACE_CACHES, "n3-iris", team))
    soon(lambda: told.claim(download) is None and told.volume(download) is None)
    soon(lambda: told.claim("n3-iris-n3-gpu1", team) is None and told.volume(serving) is None)


def test_n4_cluster_and_namespaced_model_side_by_side(cluster: Cluster, told: Told) -> None:
    told.groups("n4-gpu1")
    team = cluster.namespace("n4-team")
    cluster.create(NODES, a_node("n4-node").in_pool("n4-gpu1"))
    told.apply(a_cache("n4-iris", "s3://mybucket/n4").in_group("n4-gpu1"))
    told.apply(a_namespace_cache(team, "n4-iris", "s3://mybucket/n4").in_group("n4-gpu1"))

    def listed() -> set[str | None]:
        local = cluster.find(LOCAL_NODES, "n4-node") or {"spec": {"localModels": []}}
        return {each.get("namespace") for each in local["spec"]["localModels"] if each["modelName"] == "n4-iris"}

    soon(lambda: listed() == {None, team})


def test_n6_g10_the_last_service_goes_and_one_comes_back(cluster: Cluster, told: Told) -> None:
    told.groups("n6-gpu1")
    team = cluster.namespace("n6-team")
    iris = a_namespace_cache(team, "n6-iris", "s3://mybucket/n6").in_group("n6-gpu1")
    chat = a_service("n6-chat", team).using("n6-iris", team)
    told.apply(iris)
    told.apply(chat)
    claim, volume = "n6-iris-n6-gpu1", f"n6-iris-n6-gpu1-{team}"
    soon(partial(told.is_bound_by_name, claim, team, volume))
    soon(lambda: told.names(iris) == [f"{team}/n6-chat"])
    first = (told.volume(volume) or {})["metadata"]["uid"]
    told.delete(chat)
    soon(lambda: told.names(iris) == [])
    soon(lambda: told.claim(claim, team) is None and told.volume(volume) is None)
    told.apply(chat)
    soon(partial(told.is_bound_by_name, claim, team, volume))
    assert (told.volume(volume) or {})["metadata"]["uid"] != first


def test_g2_volumes_of_a_group_that_leaves_the_cache_go(cluster: Cluster, told: Told) -> None:
    told.groups("g2-a", "g2-b")
    iris = a_cache("g2-iris", "s3://mybucket/g2").in_group("g2-a", "g2-b")
    told.apply(iris)
    told.apply(a_service("g2-chat").using("g2-iris"))
    soon(lambda: told.claim("g2-iris-g2-a") and told.claim("g2-iris-g2-b") and told.claim("g2-iris-g2-a", "default"))
    told.kube.patch(CACHES, "g2-iris", {"spec": {"nodeGroups": ["g2-b"]}})
    soon(lambda: told.claim("g2-iris-g2-a") is None and told.volume("g2-iris-g2-a-download") is None)
    soon(lambda: told.claim("g2-iris-g2-a", "default") is None and told.volume("g2-iris-g2-a-default") is None)
    soon(partial(told.is_bound_by_name, "g2-iris-g2-b", "default", "g2-iris-g2-b-default"))
    assert told.claim("g2-iris-g2-b") is not None


def test_g9_a_service_that_names_a_group_the_cache_lacks_is_listed_and_tears_nothing_away(
    cluster: Cluster, told: Told
) -> None:
    told.groups("g9-gpu1")
    iris = a_cache("g9-iris", "s3://mybucket/g9").in_group("g9-gpu1")
    chat = a_service("g9-chat").using("g9-iris")
    told.apply(iris)
    told.apply(chat)
    soon(partial(told.is_bound_by_name, "g9-iris-g9-gpu1", "default", "g9-iris-g9-gpu1-default"))
    told.apply(a_service("g9-odd").using("g9-iris").in_group("tpu"))
    soon(lambda: told.names(iris) == ["default/g9-chat", "default/g9-odd"])
    told.delete(chat)
    soon(lambda: told.names(iris) == ["default/g9-odd"])
    assert told.is_bound_by_name("g9-iris-g9-gpu1", "default", "g9-iris-g9-gpu1-default")


def test_a_claim_is_never_deleted_from_under_a_pod(cluster: Cluster, told: Told) -> None:
    told.groups("used-gpu1")
    iris, chat = a_cache("used-iris").in_group("used-gpu1"), a_service("used-chat").using("used-iris")
    told.apply(iris)
    told.apply(chat)
    soon(partial(told.is_bound_by_name, "used-iris-used-gpu1", "default", "used-iris-used-gpu1-default"))
    cluster.create(PODS, a_pod("used-pod").claiming("used-iris-used-gpu1"), "default")
    told.delete(chat)
    soon(lambda: told.names(iris) == [])
    settled = a_cache("used-settled").in_group("used-gpu1")
    told.apply(settled)  # and is acted upon, so what was to go before had its turn
    soon(partial(told.is_bound_by_name, "used-settled-used-gpu1", JOBS, "used-settled-used-gpu1-download"))
    claim = told.kube.get(CLAIMS, "used-iris-used-gpu1", namespace="default")
    assert "deletionTimestamp" not in claim["metadata"]
    told.kube.patch(PODS, "used-pod", {"status": {"phase": "Succeeded"}}, namespace="default", subresource="status")
    soon(lambda: told.claim("used-iris-used-gpu1", "default") is None)
    soon(lambda: told.volume("used-iris-used-gpu1-default") is None)


def test_k1_the_job_namespace_is_read_while_the_coordinator_runs(cluster: Cluster, told: Told) -> None:
    told.groups("k1-gpu1")
    told.apply(a_cache("k1-iris", "s3://mybucket/k1").in_group("k1-gpu1"))
    soon(lambda: told.claim("k1-iris-k1-gpu1"))
    jobs = cluster.namespace("k1-jobs")
    told.configured({"jobNamespace": jobs})
    soon(lambda: told.claim("k1-iris-k1-gpu1", jobs) and told.claim("k1-iris-k1-gpu1") is None)
    told.configured(None)
    soon(lambda: told.claim("k1-iris-k1-gpu1") and told.claim("k1-iris-k1-gpu1", jobs) is None)


def test_h1_a_claim_of_the_namespace_instead_of_node_groups(cluster: Cluster, told: Told) -> None:
    team = cluster.namespace("h1-team")
    cache = a_namespace_cache(team, "h1-shared", "hf://models/h1")
    del cache.json["spec"]["nodeGroups"]
    told.apply(cache.with_spec(pvcRef="h1-disk"))
    both = a_namespace_cache(team, "h1-both").with_spec(pvcRef="h1-disk")
    neither = a_namespace_cache(team, "h1-neither")
    del neither.json["spec"]["nodeGroups"]
    for bad, message in ((both, "mutually exclusive"), (neither, "one of nodeGroups or pvcRef must be set")):
        with pytest.raises(Invalid, match=message):
            told.apply(bad)
    for change in ({"pvcRef": "other"}, {"pvcRef": None, "nodeGroups": ["gpu"]}):
        with pytest.raises(Invalid, match="pvcRef is immutable"):
            told.kube.patch(NAMESPACE_CACHES, "h1-shared", {"spec": change}, namespace=team)

    def reason() -> str:
        ready = [each for each in told.status(cache).get("conditions", ()) if each["type"] == "Ready"]
        return ready[0]["reason"] if ready else ""

    soon(lambda: reason() == "PVCNotFound")
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}}
    told.kube.create(CLAIMS, {"metadata": {"name": "h1-disk"}, "spec": spec}, namespace=team)
    soon(lambda: reason() == "UnsupportedAccessMode")


def test_k4_a_storage_container_for_download_jobs_says_how_sources_are_asked(cluster: Cluster, told: Told) -> None:
    told.groups("k4-gpu1")
    cluster.create(NODES, a_node("k4-node").in_pool("k4-gpu1"))
    env = [{"name": "HF_ENDPOINT", "value": "https://mirror.example"}]
    container = {"name": "storage-initializer", "image": "theirs", "env": env}
    formats = [{"prefix": "hf://k4/"}]
    spec = {"container": container, "supportedUriFormats": formats, "workloadType": "localModelDownloadJob"}
    kind = {"apiVersion": STORAGE_CONTAINERS.api_version, "kind": STORAGE_CONTAINERS.kind}
    body = {**kind, "metadata": {"name": "k4"}, "spec": spec}
    told.kube.create(STORAGE_CONTAINERS, body)
    told.apply(a_cache("k4-model", "hf://k4/model").in_group("k4-gpu1"))
    soon(lambda: cluster.ready(CACHES, "k4-model"))
    soon(lambda: cluster.asked_with["hf://k4/model"].env.get("HF_ENDPOINT") == "https://mirror.example")
    told.kube.delete(STORAGE_CONTAINERS, "k4")
