"""Tenants who share a private repository, and specs that are edited under copies, on a laptop cluster."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from coordinator.dev.laptop.cluster import JOB_NAMESPACE, NODE_GROUP, LaptopCluster, LaptopOptions
from coordinator.dev.origin.repository import Repository
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.waiting import eventually
from coordinator.kube.interface import NAMESPACES, SECRETS, SERVICE_ACCOUNTS
from coordinator.plan.snapshot import CACHES, NAMESPACE_CACHES
from tests.kit.laptop import Laptop

pytestmark = pytest.mark.e2e

MIB = 1 << 20
TOKENS = {"team-a": "hf_wrong", "team-b": "hf_good", "team-c": "hf_good"}


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Repository]:
    folder = tmp_path_factory.mktemp("repositories")
    found = {}
    for name in ("one", "two", "public"):
        (folder / name).mkdir()
        (folder / name / "w.safetensors").write_bytes(os.urandom(MIB))
        private = name != "public"
        token = "hf_good" if private else None
        found[f"b/{name}"] = Repository(f"b/{name}", folder / name, token=token, private=private)
    return found


@pytest.fixture(scope="module")
def origin(repositories: dict[str, Repository]) -> Iterator[Origin]:
    with Origin(repositories) as running:
        yield running


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory, origin: Origin) -> Iterator[Laptop]:
    folder = tmp_path_factory.mktemp("laptop")
    with LaptopCluster(folder, LaptopOptions(nodes=1, sample_bytes=0)) as cluster:
        laptop = Laptop(cluster)
        for tenant, token in TOKENS.items():
            laptop.kube.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": tenant}})
            credentials(laptop, tenant, {"HF_TOKEN": token, "HF_ENDPOINT": origin.url})
        credentials(laptop, "reader", {"HF_ENDPOINT": origin.url})
        yield laptop


def credentials(laptop: Laptop, name: str, data: Mapping[str, str]) -> None:
    metadata = {"name": name, "namespace": JOB_NAMESPACE}
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    laptop.kube.create(
        SECRETS, {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": encoded}, namespace=JOB_NAMESPACE
    )
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata, "secrets": [{"name": name}]}
    laptop.kube.create(SERVICE_ACCOUNTS, account, namespace=JOB_NAMESPACE)


class Tenant:
    """One namespace with one cache at a time."""

    def __init__(self, laptop: Laptop, name: str) -> None:
        self.laptop, self.name = laptop, name

    def wants(self, cache: str, uri: str, **spec: Any) -> None:
        spec |= {
            "sourceModelUri": uri,
            "modelSize": "10Mi",
            "nodeGroups": [NODE_GROUP],
            "serviceAccountName": self.name,
        }
        body = {
            "apiVersion": "serving.kserve.io/v1alpha1",
            "kind": "LocalModelNamespaceCache",
            "metadata": {"name": cache, "namespace": self.name},
            "spec": spec,
        }
        self.laptop.kube.create(NAMESPACE_CACHES, body, namespace=self.name)

    def status(self, cache: str) -> dict[str, Any]:
        found = self.laptop.kube.get(NAMESPACE_CACHES, cache, namespace=self.name)
        status: dict[str, Any] = found.get("status", {})
        return status

    def ready(self, cache: str) -> tuple[str, str]:
        found = [each for each in self.status(cache).get("conditions", []) if each["type"] == "Ready"]
        return (found[0]["status"], found[0]["reason"]) if found else ("", "")

    def until(self, cache: str, fact: Callable[[str, str], bool]) -> None:
        eventually(lambda: fact(*self.ready(cache)), timeout_s=45, seen=lambda: self.status(cache))


def is_ready(status: str, reason: str) -> bool:
    return (status, reason) == ("True", "AllNodesReady")


def is_refused(status: str, reason: str) -> bool:
    return status == "False" and reason in ("SourceNotFound", "SourceDenied")


def test_who_is_refused_is_not_ready_beside_who_is_not(laptop: Laptop) -> None:
    a, b, c = (Tenant(laptop, name) for name in ("team-a", "team-b", "team-c"))
    b.wants("p", "hf://b/one")
    b.until("p", is_ready)
    a.wants("p", "hf://b/one")
    a.until("p", is_refused)
    assert not {"bytes", "revision", "manifestDigest", "size"} & a.status("p").keys()
    c.wants("p", "hf://b/one")
    c.until("p", is_ready)
    assert c.status("p")["manifestDigest"] == b.status("p")["manifestDigest"]

    laptop.kube.delete(NAMESPACE_CACHES, "p", namespace="team-b")
    eventually(
        lambda: {each["metadata"]["namespace"] for each in laptop.kube.list(NAMESPACE_CACHES)[0]} == {a.name, c.name}
    )
    assert is_ready(*c.ready("p"))
    assert laptop.folder(laptop.cluster.nodes[0], "hf://b/one").exists()


def test_an_older_cache_that_is_refused_does_not_block_a_newer_one(laptop: Laptop) -> None:
    a, b = Tenant(laptop, "team-a"), Tenant(laptop, "team-b")
    a.wants("q", "hf://b/two")
    a.until("q", is_refused)
    b.wants("q", "hf://b/two")
    b.until("q", is_ready)
    assert is_refused(*a.ready("q"))


def test_a_proof_outlives_the_coordinator_and_its_origin(laptop: Laptop, origin: Origin) -> None:
    b = Tenant(laptop, "team-b")
    b.until("q", is_ready)
    credentials_of_b = {"data": {"HF_ENDPOINT": base64.b64encode(b"http://127.0.0.1:9").decode()}}
    laptop.kube.patch(SECRETS, "team-b", credentials_of_b, namespace=JOB_NAMESPACE)
    laptop.cluster.children.pop("coordinator").stop()
    laptop.cluster.start_coordinator()
    Tenant(laptop, "team-c").wants("q", "hf://b/two")
    Tenant(laptop, "team-c").until("q", is_ready)  # so it acts, and its own source answers
    assert is_ready(*b.ready("q"))
    restored = {"data": {"HF_ENDPOINT": base64.b64encode(origin.url.encode()).decode()}}
    laptop.kube.patch(SECRETS, "team-b", restored, namespace=JOB_NAMESPACE)


def test_a_revision_with_a_typo_and_one_that_is_the_same_commit_leave_the_copy_as_it_is(
    laptop: Laptop, origin: Origin, repositories: dict[str, Repository], tmp_path: Path
) -> None:
    laptop.apply("public", "hf://b/public", serviceAccountName="reader")
    before = laptop.until_ready("public")
    folder = laptop.folder(laptop.cluster.nodes[0], "hf://b/public")
    inode = folder.stat().st_ino

    laptop.kube.patch(CACHES, "public", {"spec": {"revision": "typo"}})
    laptop.until_reason("public", "RevisionNotFound", kind="Degraded")
    status = laptop.status("public")
    for name in ("revision", "manifestDigest", "nodeStatus", "copies", "available", "progress"):
        assert status[name] == before[name]
    assert laptop.condition("public")["status"] == "True"

    read = origin.stats()["bytes"]
    laptop.kube.patch(CACHES, "public", {"spec": {"revision": "main"}})
    laptop.until_reason("public", "AllNodesReady")
    assert (origin.stats()["bytes"], folder.stat().st_ino) == (read, inode)

    (tmp_path / "w.safetensors").write_bytes(os.urandom(2 * MIB))
    commit = repositories["b/public"].push(tmp_path)
    laptop.kube.patch(CACHES, "public", {"spec": {"revision": commit}})
    eventually(lambda: laptop.status("public").get("revision") == commit, seen=lambda: laptop.explain("public"))
    laptop.until_reason("public", "AllNodesReady")
    assert (folder / "w.safetensors").read_bytes() == (tmp_path / "w.safetensors").read_bytes()
