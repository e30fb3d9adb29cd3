"""H1 in full: a model comes into a claim of its namespace, over a real API server's Job and a real process.

A kubelet and the Job controller are played here: the container of the Job is run as a process of its own, with the
folders that the kubelet would have mounted, and the Job gets the status that its controller would write.
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.manifest import storage_key
from coordinator.control import imports
from coordinator.dev.origin.repository import Repository
from coordinator.dev.origin.sample import REPO, write_sample
from coordinator.dev.origin.server import Origin
from coordinator.dev.trial.builders import CacheBuilder, a_namespace_cache
from coordinator.kube.interface import CLAIMS, SECRETS, NotFound
from coordinator.plan.import_job import MODELS, SECRETS_AT
from coordinator.plan.jobs import JOBS, POD_TEMPLATES, TEMPLATE
from coordinator.plan.snapshot import NAMESPACE_CACHES
from tests.kit.conformance import Told
from tests.kit.control_plane import HOME, Cluster, soon
from tests.kit.manifests import K8S, read

pytestmark = pytest.mark.slow

URI, TOKEN = f"hf://{REPO}", "hf_of_the_team"
NOW = "2026-01-01T00:00:00Z"
ENDED = {"startTime": NOW, "uncountedTerminatedPods": {}}


@pytest.fixture
def told(cluster: Cluster) -> Told:
    return Told(cluster)


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[Origin]:
    write_sample(tmp_path / "sample", 1 << 20)
    with Origin({REPO: Repository(REPO, tmp_path / "sample", token=TOKEN)}) as running:
        yield running


@pytest.fixture
def template(cluster: Cluster, origin: Origin, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The base's, told where the origin is, and that it may be read."""
    monkeypatch.setattr(imports, "AGAIN_S", 0.1)
    monkeypatch.setattr(imports, "DONE_AGAIN_S", 0.1)
    (body,) = read(K8S / "base" / "import.yaml")
    (container,) = body["template"]["spec"]["containers"]
    allowed = {"HF_ENDPOINT": origin.hub_endpoint, "LOCALMODEL_ALLOW_ORIGINS": "127.0.0.1"}
    container["env"] = [{"name": name, "value": value} for name, value in allowed.items()]
    cluster.admin.create(POD_TEMPLATES, body, namespace=HOME)
    yield
    cluster.admin.delete(POD_TEMPLATES, TEMPLATE, namespace=HOME)


class Kubelet:
    """Runs the container of a Job in `folder`, where the claim's disk is `folder/disk`."""

    def __init__(self, told: Told, namespace: str, folder: Path) -> None:
        self.told, self.namespace, self.folder = told, namespace, folder
        (folder / "disk").mkdir(parents=True)

    def run(self, job: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        pod = job["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        for volume in pod["volumes"]:
            if "secret" in volume:
                self._mount(volume["secret"])
        words = [self._here(word) for word in [*container["command"][1:], *container["args"]]]
        environment = {name: os.environ[name] for name in ("PATH", "TMPDIR", "HOME") if name in os.environ}
        environment |= {each["name"]: each["value"] for each in container["env"]}
        command = [sys.executable, "-m", "coordinator.cli", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)

    def _mount(self, secret: dict[str, Any]) -> None:
        at = self.folder / "secrets" / secret["secretName"]
        at.mkdir(parents=True, exist_ok=True)
        try:
            data = self.told.kube.get(SECRETS, secret["secretName"], namespace=self.namespace)["data"]
        except NotFound:
            assert secret["optional"]
            return
        keys = {item["key"]: item["path"] for item in secret["items"]} if "items" in secret else {k: k for k in data}
        for key, path in keys.items():
            if key in data:
                (at / path).write_bytes(base64.b64decode(data[key]))

    def _here(self, word: str) -> str:
        word = word.replace(SECRETS_AT, str(self.folder / "secrets"))
        return word.replace(MODELS, str(self.folder / "disk"))


def ready(told: Told, cache: CacheBuilder) -> tuple[str, str]:
    """Its status, and the reason."""
    for condition in told.status(cache).get("conditions", ()):
        if condition["type"] == "Ready":
            return condition["status"], condition["reason"]
    return "", ""


def a_claim_for(told: Told, namespace: str, cache: CacheBuilder) -> CacheBuilder:
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "2Gi"}}}
    told.kube.create(CLAIMS, {"metadata": {"name": "disk"}, "spec": spec}, namespace=namespace)
    del cache.json["spec"]["nodeGroups"]
    return cache.with_spec(pvcRef="disk")


def report(told: Told, namespace: str, name: str, **status: Any) -> None:
    told.kube.patch(JOBS, name, {"status": status}, namespace=namespace, subresource="status")


def met(*types: str) -> list[dict[str, str]]:
    return [{"type": each, "status": "True", "lastTransitionTime": NOW} for each in types]


def gone(told: Told, namespace: str, name: str) -> bool:
    """Whether the Job is. The garbage collector, which lets it go after its pods, is played here."""
    found = told.cluster.find(JOBS, name, namespace)
    if found is not None and found["metadata"].get("deletionTimestamp"):
        told.kube.patch(JOBS, name, {"metadata": {"finalizers": None}}, namespace=namespace)
    return found is None


def test_h1_a_model_is_imported_into_a_claim(cluster: Cluster, told: Told, template: None, tmp_path: Path) -> None:
    team = cluster.namespace("h1-import")
    told.kube.create(SECRETS, {"metadata": {"name": "hub"}, "stringData": {"HF_TOKEN": TOKEN}}, namespace=team)
    cache = a_claim_for(told, team, a_namespace_cache(team, "h1-llama", URI)).with_spec(storage={"key": "hub"})
    told.apply(cache)
    soon(lambda: cluster.find(JOBS, "h1-llama-import", team))
    soon(lambda: ready(told, cache) == ("False", "ImportPending") and told.status(cache)["copies"] == {"total": 1})

    report(told, team, "h1-llama-import", startTime=NOW, active=1, ready=1)
    soon(lambda: ready(told, cache) == ("False", "ImportRunning"))
    kubelet = Kubelet(told, team, tmp_path / "kubelet")
    done = kubelet.run(dict(told.kube.get(JOBS, "h1-llama-import", namespace=team)))
    assert done.returncode == 0, done.stderr
    model = kubelet.folder / "disk" / "models" / storage_key(URI)
    for file in (tmp_path / "sample").rglob("*"):
        if file.is_file():
            assert (model / file.relative_to(tmp_path / "sample")).read_bytes() == file.read_bytes()
    assert [each.name for each in (kubelet.folder / "disk" / "models").iterdir()] == [model.name]

    ended = {**ENDED, "active": 0, "ready": 0, "succeeded": 1, "completionTime": NOW}
    report(told, team, "h1-llama-import", **ended, conditions=met("SuccessCriteriaMet", "Complete"))
    soon(lambda: ready(told, cache) == ("True", "ImportSucceeded"))
    status = told.status(cache)
    assert (status["copies"], status.get("nodeStatus", {})) == ({"available": 1, "total": 1}, {})
    told.delete(cache)
    soon(lambda: gone(told, team, "h1-llama-import"))
    soon(lambda: cluster.is_gone(NAMESPACE_CACHES, "h1-llama", team))
    assert model.is_dir(), "the disk is the namespace's own"


def test_h1_an_import_that_fails_says_so_and_is_tried_again_when_asked(
    cluster: Cluster, told: Told, template: None, tmp_path: Path
) -> None:
    """The Secret that it names is not in its namespace; those of the job namespace are no business of its pod."""
    team = cluster.namespace("h1-failing")
    cache = a_claim_for(told, team, a_namespace_cache(team, "h1-private", URI)).with_spec(storage={"key": "missing"})
    told.apply(cache)
    soon(lambda: cluster.find(JOBS, "h1-private-import", team))
    first = dict(told.kube.get(JOBS, "h1-private-import", namespace=team))
    done = Kubelet(told, team, tmp_path / "kubelet").run(first)
    assert done.returncode == 1
    assert "storage-config does not exist; spec.storage.key wants its key 'missing'" in done.stderr

    report(told, team, "h1-private-import", **ENDED, failed=3, active=0, conditions=met("FailureTarget", "Failed"))
    soon(lambda: ready(told, cache) == ("False", "ImportFailed"))
    assert told.status(cache)["copies"] == {"failed": 1, "total": 1}
    annotations = {"localmodel.kserve.io/retry": '{"*": "now"}'}
    told.kube.patch(NAMESPACE_CACHES, "h1-private", {"metadata": {"annotations": annotations}}, namespace=team)

    def another() -> bool:
        found = cluster.find(JOBS, "h1-private-import", team)
        if found is not None and found["metadata"]["uid"] == first["metadata"]["uid"]:
            gone(told, team, "h1-private-import")
            return False
        return found is not None

    soon(another)


def test_h1_a_source_that_no_operator_allows_is_not_read_by_the_pod_either(
    cluster: Cluster, told: Told, template: None, tmp_path: Path, origin: Origin
) -> None:
    team = cluster.namespace("h1-reach")
    cache = a_claim_for(
        told, team, a_namespace_cache(team, "h1-inside", origin.url.replace("127.0.0.1", "127.0.0.2") + "/x")
    )
    told.apply(cache)
    soon(lambda: cluster.find(JOBS, "h1-inside-import", team))
    job = dict(told.kube.get(JOBS, "h1-inside-import", namespace=team))
    done = Kubelet(told, team, tmp_path / "kubelet").run(job)
    assert done.returncode == 1
    assert "127.0.0.2" in done.stderr, done.stderr
