"""KServe's specs of its node agent (A1–A12), and the halves of C1 and N1 that play it, with the node tier alone.

Each test is KServe's controller: it writes LocalModelNode.spec and reads LocalModelNode.status. Jobs do not exist here,
so what they are for is looked at (docs/compatibility.md).
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from actors.manifest import storage_key
from actors.messages import NodeName
from coordinator.dev.trial.builders import a_cache, a_local_node, a_namespace_cache, a_node
from coordinator.kube.interface import NODES, SECRETS, SERVICE_ACCOUNTS
from coordinator.plan.snapshot import CACHES, LOCAL_NODES, NAMESPACE_CACHES, NODE_GROUPS
from tests.kit.conformance import a_whole_group, serving
from tests.kit.control_plane import JOBS, Cluster, coordinating, soon
from tests.kit.kserve import as_sent
from tests.kit.kube_servers import SERVERS

pytestmark = pytest.mark.slow

URI = "s3://mybucket/mymodel"


@pytest.fixture(scope="module", params=SERVERS)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Beside a server of its own: the coordinator of the other specs decides itself."""
    with serving(request.param) as server, coordinating(server.kubeconfig, follows=True) as cluster:
        yield cluster


class Controller:
    """KServe's, as far as one node is concerned."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.kube = cluster.admin
        self.node = NodeName(f"{name}-node")
        self.group = f"{name}-group"
        cluster.create(NODE_GROUPS, a_whole_group(self.group))
        cluster.create(NODES, a_node(self.node).in_pool(self.group))

    def lists(self, *entries: Mapping[str, Any]) -> None:
        """As KServe writes it: the whole array, by a merge patch without a resourceVersion."""
        spec = {"localModels": [{"nodeGroup": self.group, **each} for each in entries]}
        if self.cluster.find(LOCAL_NODES, self.node) is None:
            body = {**as_sent(a_local_node(self.node)), "spec": spec}
            self.kube.create(LOCAL_NODES, body)
        else:
            self.kube.patch(LOCAL_NODES, self.node, {"spec": spec})

    @property
    def status(self) -> Mapping[str, str]:
        found = (self.cluster.find(LOCAL_NODES, self.node) or {}).get("status", {})
        words: Mapping[str, str] = found.get("modelStatus", {})
        return words

    def sees(self, **words: str) -> bool:
        return self.status == words

    @property
    def held(self) -> set[str]:
        return set(self.cluster.agents.held.get(self.node, ()))


def entry(name: str, uri: str = URI, **fields: Any) -> dict[str, Any]:
    return {"modelName": name, "sourceModelUri": uri, **fields}


def test_a1_what_is_listed_is_downloaded_and_its_status_goes_with_it(cluster: Cluster) -> None:
    kserve = Controller(cluster, "a1")
    kserve.lists(entry("iris"))
    soon(lambda: kserve.sees(iris="ModelDownloaded"))
    kserve.lists()
    soon(lambda: kserve.status == {} and kserve.held == set())


def test_a2_the_folder_is_the_storage_key(cluster: Cluster) -> None:
    kserve = Controller(cluster, "a2")
    kserve.lists(entry("iris", "s3://mybucket/a2"))
    soon(lambda: kserve.held == {storage_key("s3://mybucket/a2")})


def test_a3_a_copy_that_vanishes_is_fetched_again(cluster: Cluster) -> None:
    kserve = Controller(cluster, "a3")
    kserve.lists(entry("iris", "s3://mybucket/a3"))
    soon(lambda: kserve.sees(iris="ModelDownloaded"))
    cluster.agents.held[kserve.node].clear()
    kserve.kube.patch(LOCAL_NODES, kserve.node, {"metadata": {"annotations": {"foo": "bar"}}})
    soon(lambda: kserve.held == {storage_key("s3://mybucket/a3")} and kserve.sees(iris="ModelDownloaded"))


def test_a4_a_copy_of_ours_that_is_no_longer_listed_is_removed(cluster: Cluster) -> None:
    kserve = Controller(cluster, "a4")
    kserve.lists(entry("kept", "s3://mybucket/a4-kept"), entry("orphan", "s3://mybucket/a4-orphan"))
    soon(lambda: kserve.sees(kept="ModelDownloaded", orphan="ModelDownloaded"))
    kserve.lists(entry("kept", "s3://mybucket/a4-kept"))
    soon(lambda: kserve.held == {storage_key("s3://mybucket/a4-kept")} and kserve.sees(kept="ModelDownloaded"))
    soon(lambda: cluster.was_said(kserve.node, "Removed", 1))


def test_a5_what_is_under_way_ends_with_its_entry(cluster: Cluster) -> None:
    kserve = Controller(cluster, "a5")
    cluster.agents.no_room_for = "s3://mybucket/a5"
    kserve.lists(entry("iris", "s3://mybucket/a5"))
    soon(lambda: kserve.sees(iris="ModelDownloadPending"))
    assert [model.source.uri for model in cluster.agents.desired[kserve.node].models] == ["s3://mybucket/a5"]
    kserve.lists()
    soon(lambda: cluster.agents.desired[kserve.node].models == () and kserve.status == {})
    cluster.agents.no_room_for = ""


def test_a6_the_secrets_of_a_service_account_are_used(cluster: Cluster) -> None:
    kserve = Controller(cluster, "a6")
    kserve.kube.create(SECRETS, _secret("a6-token", "HF_TOKEN", "hf_a6"), namespace=JOBS)
    account = {"metadata": {"name": "a6-account"}, "secrets": [{"name": "a6-token"}]}
    kserve.kube.create(SERVICE_ACCOUNTS, account, namespace=JOBS)
    kserve.lists(entry("iris", "hf://models/a6", serviceAccountName="a6-account"))
    soon(lambda: kserve.sees(iris="ModelDownloaded"))
    assert cluster.asked_with["hf://models/a6"].get("HF_TOKEN") == "hf_a6"


def test_a7_the_key_of_the_storage_secret_is_used(cluster: Cluster) -> None:
    """As long as it is there: KServe starts a download without it, too (docs/compatibility.md)."""
    kserve = Controller(cluster, "a7")
    entry_of = entry("iris", "s3://mybucket/a7", storage={"key": "a7-key"})
    kserve.lists(entry_of)
    soon(lambda: kserve.sees(iris="ModelDownloadError"))
    said = (cluster.find(LOCAL_NODES, kserve.node) or {})["status"]["models"][0]
    assert said["reason"] == "CredentialsMissing"
    config = {"type": "s3", "access_key_id": "AKIAA7", "secret_access_key": "secret-a7"}
    kserve.kube.create(SECRETS, _secret("storage-config", "a7-key", json.dumps(config)), namespace=JOBS)
    kserve.lists(entry_of, entry("again", "s3://mybucket/a7-again", storage={"key": "a7-key"}))
    soon(lambda: kserve.status.get("again") == "ModelDownloaded")
    assert cluster.asked_with["s3://mybucket/a7-again"].get("AWS_ACCESS_KEY_ID") == "AKIAA7"


def test_a8_a_model_of_a_namespace_is_read_with_secrets_of_the_job_namespace(cluster: Cluster) -> None:
    """As the Job in the job namespace reads it; the Job and its label do not exist (docs/compatibility.md)."""
    kserve = Controller(cluster, "a8")
    kserve.kube.create(SECRETS, _secret("a8-token", "HF_TOKEN", "hf_a8"), namespace=JOBS)
    account = {"metadata": {"name": "a8-account"}, "secrets": [{"name": "a8-token"}]}
    kserve.kube.create(SERVICE_ACCOUNTS, account, namespace=JOBS)
    kserve.lists(entry("iris", "hf://models/a8", namespace="team-a", serviceAccountName="a8-account"))
    soon(lambda: kserve.status == {"team-a/iris": "ModelDownloaded"})
    assert cluster.asked_with["hf://models/a8"].get("HF_TOKEN") == "hf_a8"


def _secret(name: str, key: str, value: str) -> Mapping[str, Any]:
    return {"metadata": {"name": name}, "data": {key: b64encode(value.encode()).decode()}}


def test_a9_a12_entries_of_namespaces_have_status_keys_of_their_own(cluster: Cluster) -> None:
    kserve = Controller(cluster, "a9")
    kserve.lists(entry("iris", "s3://mybucket/a9"), entry("iris", "s3://mybucket/a9", namespace="team-a"))
    soon(lambda: kserve.status == {"iris": "ModelDownloaded", "team-a/iris": "ModelDownloaded"})
    kserve.lists(entry("iris", "s3://mybucket/a9", namespace="team-a"))
    soon(lambda: kserve.status == {"team-a/iris": "ModelDownloaded"})


def test_a10_of_overlapping_groups_the_entry_says_which(cluster: Cluster) -> None:
    kserve = Controller(cluster, "a10")
    other = a_whole_group("a10-other", "/other").labelled("pool", kserve.group)
    cluster.create(NODE_GROUPS, other)
    kserve.lists(entry("iris", "s3://mybucket/a10", nodeGroup="a10-other"))
    soon(lambda: kserve.sees(iris="ModelDownloaded"))
    assert [model.root for model in cluster.agents.desired[kserve.node].models] == ["/other"]


def test_c1_n1_of_a_cache_only_the_status_of_nodes_is_written(cluster: Cluster) -> None:
    """Everything else is KServe's controller's: finalizers, status, entries, volumes; and its own fields survive."""
    kserve = Controller(cluster, "c1a")
    cluster.namespace("c1a-team")
    iris = a_cache("c1a-iris", "s3://mybucket/c1a").in_group(kserve.group)
    mine = a_namespace_cache("c1a-team", "ns-iris", "s3://mybucket/n1a").in_group(kserve.group)
    cluster.create(CACHES, iris)
    cluster.create(NAMESPACE_CACHES, mine, "c1a-team")
    marked = as_sent(a_local_node(kserve.node).with_metadata(labels={"team": "infra"}))
    kserve.kube.create(LOCAL_NODES, marked)
    kserve.lists(entry("c1a-iris", iris.uri), entry("ns-iris", mine.uri, namespace="c1a-team"))
    soon(lambda: kserve.status == {"c1a-iris": "ModelDownloaded", "c1a-team/ns-iris": "ModelDownloaded"})

    written = {(kind.plural, tuple(sorted(set(body) - {"metadata"}))) for kind, body in cluster.recorded.patches}
    assert written == {("localmodelnodes", ("status",))}
    changed = {request for request in cluster.recorded.requests if request.verb in ("create", "patch", "delete")}
    assert {request.resource for request in changed} <= {"localmodelnodes/status", "leases", "events"}
    local = kserve.kube.get(LOCAL_NODES, kserve.node)
    assert local["metadata"]["labels"] == {"team": "infra"}
    assert "ownerReferences" not in local["metadata"]
    for resource, name, namespace in ((CACHES, "c1a-iris", None), (NAMESPACE_CACHES, "ns-iris", "c1a-team")):
        found = kserve.kube.get(resource, name, namespace=namespace)
        assert "finalizers" not in found["metadata"]
        assert "status" not in found
