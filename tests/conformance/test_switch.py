"""From KServe to this project and back, as docs/migration.md says, with objects as KServe makes them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from actors.manifest import storage_key
from coordinator.api import crds
from coordinator.cli import main
from coordinator.control.neighbours import AGENT, CONTROLLER, DAEMON_SETS, DEPLOYMENTS, Neighbours
from coordinator.dev.apiserver.server import ApiServer, write_kubeconfig
from coordinator.dev.trial.builders import CacheBuilder, a_cache, a_local_node, a_namespace_cache, a_node
from coordinator.kube.config import load_config
from coordinator.kube.http import HttpKube
from coordinator.kube.interface import CLAIMS, NAMESPACES, NODES, VOLUMES, Object
from coordinator.plan.snapshot import CACHES, LOCAL_NODES, NAMESPACE_CACHES, NODE_GROUPS
from tests.kit.conformance import a_whole_group
from tests.kit.control_plane import HOME, JOBS, KSERVE, coordinating, soon
from tests.kit.kserve import as_sent, consumer_crds

TEAM = "team-a"
LLAMA = a_cache("llama", "hf://models/llama").in_group("gpu")
PRIVATE = a_cache("private", "hf://models/private").in_group("gpu").with_spec(serviceAccountName="gone")
MINE = a_namespace_cache(TEAM, "mine", "hf://models/mine").in_group("gpu")


class Person:
    """Whoever administers the cluster; also what KServe's processes have done."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self.kube = HttpKube(load_config(str(kubeconfig)))

    def kserve_has_run(self) -> None:
        """Two nodes, of which one holds everything; KServe's finalizers, statuses and volumes."""
        kube = self.kube
        for name in (KSERVE, JOBS, HOME, TEAM):
            kube.create(NAMESPACES, {"metadata": {"name": name}})
        kube.create(NODE_GROUPS, as_sent(a_whole_group("gpu")))
        for name in ("n1", "n2"):
            kube.create(NODES, as_sent(a_node(name)))
        for cache in (LLAMA, PRIVATE, MINE):
            resource = NAMESPACE_CACHES if cache.namespace else CACHES
            body = as_sent(cache)
            finalizers = cache.json["metadata"]["finalizers"]
            made = kube.create(
                resource,
                {**body, "metadata": {**body["metadata"], "finalizers": finalizers}},
                namespace=cache.namespace,
            )
            status = {"nodeStatus": {"n1": "NodeDownloaded", "n2": "NodeDownloadPending"}}
            status["copies"] = {"available": 1, "total": 2}  # type: ignore[dict-item]  # KServe leaves zeroes out
            kube.patch(resource, cache.name, {"status": status}, namespace=cache.namespace, subresource="status")
            self._volumes(cache, made)
        for name, models in (("n1", (LLAMA, PRIVATE, MINE)), ("n2", ())):
            node = a_local_node(name).listing(LLAMA, PRIVATE, MINE)
            kube.create(LOCAL_NODES, as_sent(node))
            status = {"modelStatus": {cache.key: "ModelDownloaded" for cache in models}}
            kube.patch(LOCAL_NODES, name, {"status": status}, subresource="status")
        template = {
            "spec": {"containers": [{"name": "manager", "image": "kserve/kserve-localmodel-controller:v0.20.0"}]}
        }
        labels = {"control-plane": CONTROLLER}
        spec = {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, **template},
        }
        kube.create(DEPLOYMENTS, {"metadata": {"name": CONTROLLER}, "spec": spec}, namespace=KSERVE)
        agents = {"metadata": {"name": AGENT}, "spec": {}, "status": {"desiredNumberScheduled": 2}}
        kube.create(DAEMON_SETS, agents, namespace=KSERVE)

    def _volumes(self, cache: CacheBuilder, made: Object) -> None:
        """Those for downloads."""
        group = as_sent(a_whole_group("gpu"))["spec"]
        claim = f"{cache.name}-gpu" + (f"-{cache.namespace}-download" if cache.namespace else "")
        volume = claim if cache.namespace else f"{claim}-download"
        owner = {
            "apiVersion": CACHES.api_version,
            "kind": CACHES.kind,
            "name": cache.name,
            "uid": made["metadata"]["uid"],
        }
        owners = {} if cache.namespace else {"ownerReferences": [{**owner, "controller": True}]}
        self.kube.create(VOLUMES, {"metadata": {"name": volume, **owners}, "spec": group["persistentVolumeSpec"]})
        spec = {**group["persistentVolumeClaimSpec"], "volumeName": volume}
        self.kube.create(CLAIMS, {"metadata": {"name": claim, **owners}, "spec": spec}, namespace=JOBS)

    def scale_down(self) -> None:
        self.kube.patch(DEPLOYMENTS, CONTROLLER, {"spec": {"replicas": 0}}, namespace=KSERVE)
        self.kube.delete(DAEMON_SETS, AGENT, namespace=KSERVE)

    def get(self, cache: CacheBuilder) -> Object:
        resource = NAMESPACE_CACHES if cache.namespace else CACHES
        return self.kube.get(resource, cache.name, namespace=cache.namespace)

    def is_ready(self, cache: CacheBuilder) -> bool:
        conditions = (self.get(cache).get("status") or {}).get("conditions", ())
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def versions(self) -> list[str]:
        objects = [*self.kube.list(CACHES)[0], *self.kube.list(NAMESPACE_CACHES)[0], *self.kube.list(LOCAL_NODES)[0]]
        return [each["metadata"]["resourceVersion"] for each in objects]


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Person]:
    with ApiServer([*crds.load(), *consumer_crds()]) as server:
        write_kubeconfig(tmp_path / "kubeconfig", server.url)
        person = Person(tmp_path / "kubeconfig")
        person.kserve_has_run()
        yield person
        person.kube.close()


def test_adopt_says_beforehand_what_becomes_of_every_copy(person: Person, capsys: pytest.CaptureFixture[str]) -> None:
    before = person.versions()
    arguments = ["adopt", "--kubeconfig", str(person.kubeconfig), "--dry-run"]
    assert main([*arguments, "--offline"]) == 0
    lines = [line.split(maxsplit=3)[:3] for line in capsys.readouterr().out.splitlines()]
    assert lines[:-1] == [
        ["n1", "llama", "adopt"],
        ["n1", "private", "adopt"],
        ["n1", "team-a/mine", "adopt"],
        ["n2", "llama", "fetch"],
        ["n2", "private", "fetch"],
        ["n2", "team-a/mine", "fetch"],
    ]
    assert lines[-1] == ["3", "adopted,", "3"]
    assert person.versions() == before


def test_adopt_names_caches_that_only_kserve_downloads_without_credentials(
    person: Person, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # a hub that does not answer now
    assert main(["adopt", "--kubeconfig", str(person.kubeconfig), "--dry-run"]) == 1
    said = capsys.readouterr().out
    assert (
        "n1  private      refuse  CredentialsMissing: ServiceAccount kserve-localmodel-jobs/gone does not exist" in said
    )
    assert "note: private: KServe downloads it without credentials" in said
    assert "n1  llama        adopt   KServe has downloaded it; its source does not answer now" in said
    assert said.splitlines()[-1] == "2 adopted, 2 fetched, 2 refused"


def test_adopt_goes_by_the_disks_that_were_looked_at(
    person: Person, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """n1 has half of what KServe says, as `localmodel inspect` finds it; n2 was not looked at."""
    root, disks = tmp_path / "models", tmp_path / "disks"
    held = root / "models" / storage_key(LLAMA.uri)
    (held / ".cache" / "huggingface").mkdir(parents=True)
    (held / "config.json").write_text("{}")
    (held / "link").symlink_to("/etc/passwd")
    disks.mkdir()
    assert main(["inspect", str(root), "--json"]) == 1
    (disks / "n1.json").write_text(capsys.readouterr().out)
    arguments = ["adopt", "--kubeconfig", str(person.kubeconfig), "--dry-run", "--offline", "--disks", str(disks)]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "n1  llama        adopt   its folder has 1 files" in said
    assert "n1  private      fetch   its folder is not there, or empty" in said
    (disks / "n2.json").write_text("junk")
    assert main(arguments) == 1
    assert "n2.json: it holds no document" in capsys.readouterr().err


def test_adopt_without_dry_run_says_who_adopts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["adopt"])
    assert exit_.value.code == 2
    assert "--dry-run is needed" in capsys.readouterr().err


@pytest.mark.slow
def test_a_switch_and_a_switch_back(person: Person) -> None:
    kube = person.kube
    neighbours = Neighbours(kube, KSERVE, HOME)
    neighbours.look()
    before = person.versions()
    asked: list[str | None] = []

    def may_act() -> bool:
        asked.append(neighbours.standing)
        return neighbours.standing is None

    with coordinating(person.kubeconfig, may_act=may_act) as cluster:
        soon(lambda: cluster.admission.ready)
        turns = len(asked)
        soon(lambda: len(asked) > turns + 20)  # it leads, knows everything, and is due again and again
        assert all("kubectl -n kserve scale deployment" in (each or "") for each in asked)
        assert person.versions() == before, "nothing is written beside KServe's controller"

        person.scale_down()
        neighbours.look()
        for cache in (LLAMA, MINE):
            soon(partial(person.is_ready, cache))

    # KServe's controller and agents find what they had, and what they would have made.
    for cache in (LLAMA, PRIVATE, MINE):
        found: Any = person.get(cache)
        assert found["metadata"]["finalizers"] == cache.json["metadata"]["finalizers"]
        assert found["spec"] == cache.json["spec"]
    for cache in (LLAMA, MINE):
        assert person.get(cache)["status"]["nodeStatus"] == {"n1": "NodeDownloaded", "n2": "NodeDownloaded"}
    for name in ("n1", "n2"):
        node: Any = kube.get(LOCAL_NODES, name)
        listed = {each["modelName"]: each for each in node["spec"]["localModels"]}
        assert listed["llama"] == {"modelName": "llama", "sourceModelUri": "hf://models/llama", "nodeGroup": "gpu"}
        assert listed["mine"]["namespace"] == TEAM
        assert (
            node["status"]["modelStatus"]["llama"] == node["status"]["modelStatus"]["team-a/mine"] == "ModelDownloaded"
        )
        assert "finalizers" not in node["metadata"]
    for claim, volume in (("llama-gpu", "llama-gpu-download"), (f"mine-gpu-{TEAM}-download",) * 2):
        assert kube.get(CLAIMS, claim, namespace=JOBS)["spec"]["volumeName"] == volume
        assert "finalizers" not in kube.get(VOLUMES, volume)["metadata"]

    # Its controller ends a deletion as it always does: the entries, then its finalizer.
    kube.delete(CACHES, "llama")
    for name in ("n1", "n2"):
        left = [each for each in kube.get(LOCAL_NODES, name)["spec"]["localModels"] if each["modelName"] != "llama"]
        kube.patch(LOCAL_NODES, name, {"spec": {"localModels": left}})
    kube.patch(CACHES, "llama", {"metadata": {"finalizers": None}})
    assert "llama" not in {each["metadata"]["name"] for each in kube.list(CACHES)[0]}
