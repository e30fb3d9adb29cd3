"""One laptop cluster, driven as a person drives it: caches that work, and caches that cannot."""

from __future__ import annotations

import hashlib
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.manifest import storage_key
from coordinator.api.resources import GROUP
from coordinator.control.webhook_identity import CONFIGURATIONS, WEBHOOKS
from coordinator.dev.laptop.cluster import (
    CUSTOM_RESOURCE_DEFINITIONS,
    NODE_GROUP,
    SAMPLE_URI,
    LaptopCluster,
    LaptopOptions,
    laptop_node,
    node_group,
)
from coordinator.dev.laptop.webhooks import webhook_configuration
from coordinator.dev.trial.waiting import eventually
from coordinator.kube.interface import EVENTS, NODES, Denied, Invalid, NotFound
from coordinator.plan.fill_groups import ZONE_LABEL
from coordinator.plan.services import INFERENCE_SERVICES
from coordinator.plan.snapshot import CACHES, LOCAL_NODES, NODE_GROUPS
from tests.kit.kserve import lenient_crd
from tests.kit.laptop import KUBECTL, Laptop

pytestmark = pytest.mark.e2e

needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="no kubectl on PATH")


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    with LaptopCluster(tmp_path_factory.mktemp("laptop"), LaptopOptions(nodes=2, sample_bytes=24 * 1024**2)) as cluster:
        yield Laptop(cluster)


@pytest.fixture(autouse=True)
def clean(laptop: Laptop) -> Iterator[None]:
    """Every test starts and ends without caches and faults."""
    yield
    laptop.clear()


def test_apply_fills_every_node_with_verified_files_and_delete_empties_them(laptop: Laptop) -> None:
    before = laptop.cluster.origin_stats()["bytes"]
    laptop.apply("sample", SAMPLE_URI)
    status = laptop.until_ready("sample")
    total = status["bytes"]["total"]
    assert laptop.cluster.origin_stats()["bytes"] - before <= 1.01 * total, "two nodes read the origin once"
    assert status["bytes"]["fromOrigin"] + status["bytes"]["fromPeers"] == 2 * total

    assert status["copies"] == {"available": 2, "total": 2, "failed": 0} or status["copies"] == {
        "available": 2,
        "total": 2,
    }
    assert status["nodeStatus"] == {"node-1": "NodeDownloaded", "node-2": "NodeDownloaded"}
    assert status["available"] == "2/2"
    assert status["progress"] == "100%"
    assert status["manifestDigest"].startswith("sha256:")
    contents = []
    for node in laptop.cluster.nodes:
        folder = laptop.folder(node, SAMPLE_URI)
        files = sorted(path for path in folder.rglob("*") if path.is_file() and ".localmodel" not in path.parts)
        contents.append(
            {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        )
        assert sum(path.stat().st_size for path in files) == status["bytes"]["total"]
        assert not any(path.stat().st_mode & 0o222 for path in files), "committed files are read-only"
    assert contents[0] == contents[1]

    laptop.delete("sample")
    for node in laptop.cluster.nodes:
        assert not laptop.folder(node, SAMPLE_URI).exists()
        eventually(lambda node=node: not laptop.kube.get(LOCAL_NODES, node)["spec"]["localModels"])  # type: ignore[misc]  # a default argument binds the loop variable


def test_every_byte_is_accounted_for_and_the_origins_own_count_agrees(laptop: Laptop) -> None:
    for number, node in enumerate(laptop.cluster.nodes):
        laptop.kube.patch(NODES, node, {"metadata": {"labels": {ZONE_LABEL: f"zone-{number}"}}})
    before = laptop.cluster.origin_stats()["bytes"]
    planned = laptop.foresee("sample", SAMPLE_URI, laptop.cluster.options.sample_bytes)
    laptop.apply("sample", SAMPLE_URI)
    moved = laptop.until_ready("sample")["bytes"]
    assert sorted(each["node"] for each in planned["copies"] if each["verdict"] == "FETCHED") == laptop.cluster.nodes
    for name in ("fromOrigin", "fromPeers", "fromOtherZones"):
        assert planned[f"bytes{name[0].upper()}{name[1:]}"] == moved[name]
    served = laptop.cluster.origin_stats()["bytes"] - before
    assert moved["fromOrigin"] == served
    assert moved["amplification"] == f"{served / moved['total']:.2f}"
    assert moved["fromOtherZones"] == moved["fromPeers"] > 0, "the two nodes are in two zones"

    def per_node() -> list[dict[str, int]]:
        details = [laptop.detail(node, "sample") for node in laptop.cluster.nodes]
        places = ("fromOrigin", "fromPeers", "fromOtherZones")
        return [{each: detail.get(f"bytes{each[0].upper()}{each[1:]}", 0) for each in places} for detail in details]

    eventually(lambda: all(sum(list(node.values())[:2]) == moved["total"] for node in per_node()), seen=per_node)
    for place in ("fromOrigin", "fromPeers", "fromOtherZones"):
        assert sum(node[place] for node in per_node()) == moved[place]

    with urllib.request.urlopen(laptop.cluster.metrics_url, timeout=10) as response:
        metrics = response.read().decode()
    for name, value in {
        'localmodel_cache_read_bytes{location="origin",name="sample",namespace=""}': served,
        'localmodel_cache_cross_zone_bytes{name="sample",namespace=""}': moved["fromOtherZones"],
        'localmodel_cache_origin_amplification{name="sample",namespace=""}': served / moved["total"],
    }.items():
        (line,) = [line for line in metrics.splitlines() if line.startswith(f"{name} ")]
        assert float(line.rpartition(" ")[2]) == value


def test_the_events_tell_the_story(laptop: Laptop) -> None:
    laptop.apply("sample", SAMPLE_URI)
    laptop.until_ready("sample")

    def reasons() -> set[str]:
        events = laptop.kube.list(EVENTS)[0]
        return {each["reason"] for each in events if each["involvedObject"]["name"] == "sample"}

    eventually(lambda: "Ready" in reasons(), seen=reasons)


@needs_kubectl
def test_a_wrong_cache_is_refused_or_warned_of_as_kubectl_applies_it(laptop: Laptop) -> None:
    laptop.apply("first", SAMPLE_URI)
    manifest = laptop.kube.get(CACHES, "first")
    second = {key: manifest[key] for key in ("apiVersion", "kind", "spec")} | {"metadata": {"name": "second"}}
    done = laptop.kubectl("apply", "-f", "-", stdin=json.dumps(second), check=False)
    assert done.returncode == 1
    assert (
        'admission webhook "localmodelcache.kserve-webhook-server.validator" denied the request: '
        f"LocalModelCache first has the same StorageURI {SAMPLE_URI}"
    ) in done.stderr
    wrong = {**second, "spec": {**manifest["spec"], "sourceModelUri": "sftp://host/m", "nodeGroups": ["none"]}}
    done = laptop.kubectl("apply", "-f", "-", stdin=json.dumps(wrong))
    assert "Warning: spec.sourceModelUri: no reader for sftp:// is allowed" in done.stderr
    assert "Warning: spec.nodeGroups: LocalModelNodeGroup none not found" in done.stderr


def test_a_uri_that_ends_in_a_slash_is_served_under_both_names_until_the_other_is_wanted(laptop: Laptop) -> None:
    """KServe's agent names the folder by the URI as it is written, later KServe's pods by the URI without the slash."""
    written, trimmed = f"{SAMPLE_URI}/", SAMPLE_URI
    before = laptop.cluster.origin_stats()["bytes"]
    laptop.apply("slash", written)
    status = laptop.until_ready("slash")
    assert status["path"].endswith(f"/models/{storage_key(written)}")
    for node in laptop.cluster.nodes:
        assert inodes(laptop.folder(node, trimmed)) == inodes(laptop.folder(node, written)) != {}
    assert (status["bytes"]["cached"], status["copies"]) == (2 * status["bytes"]["total"], {"available": 2, "total": 2})

    laptop.apply("plain", trimmed)  # a model of its own by now, of the same files
    laptop.until_ready("plain")
    assert laptop.cluster.origin_stats()["bytes"] - before <= 1.01 * status["bytes"]["total"]
    laptop.delete("slash")
    for node in laptop.cluster.nodes:
        assert not laptop.folder(node, written).exists()
        assert inodes(laptop.folder(node, trimmed)) != {}, "the folder is another cache's"
    laptop.delete("plain")
    laptop.apply("slash", written)
    laptop.until_ready("slash")
    laptop.delete("slash")
    for node in laptop.cluster.nodes:
        assert not laptop.folder(node, written).exists()
        eventually(lambda node=node: not laptop.folder(node, trimmed).exists())  # type: ignore[misc]  # bound at once


def inodes(folder: Path) -> dict[str, int]:
    """Of the files that a model is made of."""
    files = (path for path in folder.rglob("*") if path.is_file() and ".localmodel" not in path.parts)
    return {str(path.relative_to(folder)): path.stat().st_ino for path in files}


def test_two_caches_with_one_uri_share_the_bytes_and_the_second_says_so(laptop: Laptop) -> None:
    """As it happens while no webhook answers."""
    laptop.apply("first", SAMPLE_URI)
    laptop.until_ready("first")
    port = laptop.cluster.ports["webhook"]
    laptop.kube.delete(WEBHOOKS, CONFIGURATIONS[0])
    try:
        eventually(lambda: created(laptop, "second"))
    finally:
        laptop.kube.create(WEBHOOKS, webhook_configuration(port))

    condition = laptop.until_reason("second", "DuplicateSource", kind="Degraded")
    assert condition["message"] == f"LocalModelCache first has the same StorageURI {SAMPLE_URI}"
    laptop.until_ready("second")
    laptop.delete("second")
    laptop.until_ready("first")
    for node in laptop.cluster.nodes:
        assert laptop.folder(node, SAMPLE_URI).exists(), "deleting one of two must not take the other's files"


def created(laptop: Laptop, name: str) -> bool:
    try:
        laptop.apply(name, SAMPLE_URI)
    except Denied:  # the API server has not seen yet that there is no webhook any more
        return False
    return True


def test_a_missing_node_group_is_named_and_healed_when_it_appears(laptop: Laptop) -> None:
    laptop.apply("lost", SAMPLE_URI, nodeGroups=["nowhere"])
    condition = laptop.until_reason("lost", "NodeGroupNotFound")
    assert "nowhere" in condition["message"]

    laptop.kube.create(NODE_GROUPS, node_group("10G", "nowhere"))
    try:
        laptop.until_ready("lost")
    finally:
        laptop.kube.delete(NODE_GROUPS, "nowhere")
    laptop.delete("lost")


def test_a_group_without_a_path_is_named(laptop: Laptop) -> None:
    group = node_group("10G", "pathless")
    del group["spec"]["persistentVolumeSpec"]["local"]
    group["spec"]["persistentVolumeSpec"]["nfs"] = {"server": "nas", "path": "/x"}
    laptop.kube.create(NODE_GROUPS, group)
    try:
        laptop.apply("llama", SAMPLE_URI, nodeGroups=["pathless"])
        condition = laptop.until_reason("llama", "NodeGroupInvalid")
        assert "local.path" in condition["message"]
    finally:
        laptop.kube.delete(NODE_GROUPS, "pathless")


def test_a_group_without_node_affinity_is_named(laptop: Laptop) -> None:
    group = node_group("10G", "anywhere")
    del group["spec"]["persistentVolumeSpec"]["nodeAffinity"]
    laptop.kube.create(NODE_GROUPS, group)
    try:
        laptop.apply("llama", SAMPLE_URI, nodeGroups=["anywhere"])
        condition = laptop.until_reason("llama", "NoNodeAffinity")
        assert "anywhere" in condition["message"]
    finally:
        laptop.kube.delete(NODE_GROUPS, "anywhere")


def test_a_group_whose_path_the_agent_has_not_mounted_is_a_path_mismatch(laptop: Laptop) -> None:
    laptop.kube.create(NODE_GROUPS, node_group("10G", "elsewhere", path="/mnt/nvme"))
    try:
        laptop.apply("llama", SAMPLE_URI, nodeGroups=["elsewhere"])
        condition = laptop.until_reason("llama", "PathMismatch")
        assert "/mnt/nvme" in condition["message"]
    finally:
        laptop.kube.delete(NODE_GROUPS, "elsewhere")


@pytest.mark.parametrize("length", [63, 253])
def test_long_names_work(laptop: Laptop, length: int) -> None:
    name = ("m" * 50 + ".") * 5
    name = name[: length - 1] + "x"
    laptop.apply(name, SAMPLE_URI)
    laptop.until_ready(name)


@pytest.mark.parametrize(
    ("uri", "reason", "says"),
    [
        ("http://127.0.0.1:9/model.bin", "SourceUnreachable", "127.0.0.1:9"),
        ("hf://localmodel/nothing-here", "SourceNotFound", "localmodel/nothing-here"),
    ],
)
def test_a_source_that_cannot_work_says_why(laptop: Laptop, uri: str, reason: str, says: str) -> None:
    laptop.apply("broken", uri)
    condition = laptop.until_reason("broken", reason)
    assert says in condition["message"]
    eventually(
        lambda: laptop.status("broken").get("copies", {}).get("failed") == 2, seen=lambda: laptop.explain("broken")
    )
    detail = eventually(lambda: laptop.detail("node-1", "broken"))
    assert detail["reason"] == reason
    assert "retryTime" in detail


@pytest.mark.parametrize(("code", "reason"), [(401, "SourceDenied"), (403, "SourceDenied"), (404, "SourceNotFound")])
def test_an_origin_that_refuses_is_retried_and_recovers(laptop: Laptop, code: int, reason: str) -> None:
    laptop.faults({"path": "*", "status": code})
    laptop.apply("refused", SAMPLE_URI)
    condition = laptop.until_reason("refused", reason)
    assert condition["message"]


def test_wrong_bytes_of_the_right_length_are_never_committed(laptop: Laptop) -> None:
    laptop.faults({"path": "*.safetensors", "corrupt_bytes": 8})
    laptop.apply("corrupt", SAMPLE_URI)
    condition = laptop.until_reason("corrupt", "IntegrityError")
    assert ".safetensors" in condition["message"]
    assert not any(laptop.folder(node, SAMPLE_URI).exists() for node in laptop.cluster.nodes)


def test_an_unexpected_digest_fails_closed(laptop: Laptop) -> None:
    laptop.apply("pinned", SAMPLE_URI, digest="sha256:" + "0" * 64)
    laptop.until_reason("pinned", "DigestMismatch")
    assert not any(laptop.folder(node, SAMPLE_URI).exists() for node in laptop.cluster.nodes)


def test_junk_written_past_the_schema_is_reported_and_harms_nobody(laptop: Laptop) -> None:
    name = f"localmodelcaches.{GROUP}"
    strict = laptop.kube.get(CUSTOM_RESOURCE_DEFINITIONS, name)
    loose = json.loads(json.dumps(strict))
    loose["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = {
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": True,
    }
    junk = {
        "apiVersion": f"{GROUP}/v1alpha1",
        "kind": "LocalModelCache",
        "metadata": {"name": "junk"},
        "spec": {"nodeGroups": 7},
    }
    laptop.kube.replace(CUSTOM_RESOURCE_DEFINITIONS, name, loose)

    def created() -> bool:
        try:
            laptop.kube.create(CACHES, junk)
        except Invalid:  # the loose schema is not in force yet
            return False
        return True

    try:
        eventually(created)
    finally:
        fresh = json.loads(json.dumps(laptop.kube.get(CUSTOM_RESOURCE_DEFINITIONS, name)))
        fresh["spec"]["versions"] = strict["spec"]["versions"]
        laptop.kube.replace(CUSTOM_RESOURCE_DEFINITIONS, name, fresh)

    def told() -> bool:
        events = laptop.kube.list(EVENTS)[0]
        return any(each["reason"] == "InvalidObject" and each["involvedObject"]["name"] == "junk" for each in events)

    eventually(told)
    laptop.apply("sane", SAMPLE_URI)
    laptop.until_ready("sane")


def test_a_node_that_joins_is_filled_and_one_that_leaves_is_forgotten(laptop: Laptop) -> None:
    laptop.apply("sample", SAMPLE_URI)
    laptop.until_ready("sample")
    laptop.kube.delete(NODES, "node-2")
    eventually(
        lambda: laptop.status("sample")["nodeStatus"] == {"node-1": "NodeDownloaded"},
        seen=lambda: laptop.explain("sample"),
    )
    with pytest.raises(NotFound):
        eventually(lambda: laptop.kube.get(LOCAL_NODES, "node-2") is None, timeout_s=10)

    laptop.kube.create(NODES, laptop_node("node-2"))
    laptop.kube.patch(NODES, "node-2", {"status": laptop_node("node-2")["status"]}, subresource="status")
    eventually(
        lambda: laptop.status("sample")["nodeStatus"].get("node-2") == "NodeDownloaded",
        seen=lambda: laptop.explain("sample"),
    )


def test_a_node_that_stops_being_ready_keeps_what_it_holds(laptop: Laptop) -> None:
    laptop.apply("sample", SAMPLE_URI)
    laptop.until_ready("sample")
    laptop.kube.patch(
        NODES, "node-2", {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}, subresource="status"
    )
    laptop.apply("late", f"http://127.0.0.1:{laptop.cluster.ports['origin']}/files/nothing.bin")
    eventually(
        lambda: laptop.status("late").get("nodeStatus", {}).get("node-2") == "NodeNotReady",
        seen=lambda: laptop.explain("late"),
    )
    assert laptop.status("sample")["nodeStatus"]["node-2"] == "NodeDownloaded"
    laptop.kube.patch(NODES, "node-2", {"status": laptop_node("node-2")["status"]}, subresource="status")


@needs_kubectl
def test_kubectl_shows_what_is_going_on(laptop: Laptop) -> None:
    manifest = json.dumps(
        {
            "apiVersion": f"{GROUP}/v1alpha1",
            "kind": "LocalModelCache",
            "metadata": {"name": "sample"},
            "spec": {"sourceModelUri": SAMPLE_URI, "modelSize": "24Mi", "nodeGroups": [NODE_GROUP]},
        }
    )
    assert "created" in laptop.kubectl("apply", "-f", "-", stdin=manifest).stdout
    laptop.kubectl("wait", "--for=condition=Ready", "lmc/sample", "--timeout=60s")
    heading, row = laptop.kubectl("get", "lmc").stdout.splitlines()
    assert heading.split() == ["NAME", "READY", "AVAILABLE", "PROGRESS", "ETA", "REASON", "AGE"]
    assert row.split()[:4] == ["sample", "True", "2/2", "100%"]
    described = laptop.kubectl("describe", "lmc", "sample").stdout
    assert "AllNodesReady" in described
    assert "Events:" in described
    changed = manifest.replace(SAMPLE_URI, "hf://other/model")
    refused = laptop.kubectl("apply", "-f", "-", stdin=changed, check=False)
    assert refused.returncode == 1
    assert "StorageUri is immutable" in refused.stderr
    assert "deleted" in laptop.kubectl("delete", "lmc", "sample").stdout


@needs_kubectl
def test_the_readme_and_the_samples_name_only_what_exists(laptop: Laptop) -> None:
    laptop.kubectl("create", "namespace", "team-a")
    samples = Path(__file__).parents[2] / "k8s" / "samples"
    crd = lenient_crd(INFERENCE_SERVICES)  # a kind of KServe, of one sample
    laptop.kubectl("apply", "-f", "-", stdin=json.dumps(crd))
    laptop.kubectl("wait", "--for=condition=Established", f"crd/{crd['metadata']['name']}")
    laptop.kubectl("apply", "-f", str(samples / "nodegroup.yaml"))  # the webhook asks for it
    for path in sorted(samples.glob("*.yaml")):
        laptop.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", str(path))
    laptop.kubectl("delete", "-f", str(samples / "nodegroup.yaml"))
