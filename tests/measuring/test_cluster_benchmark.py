"""`python -m benchmarks.cluster`: our way on a laptop cluster, a Job per node on a development API server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from coordinator.api import crds
from coordinator.dev.apiserver.server import ApiServer, write_kubeconfig
from coordinator.dev.laptop.cluster import NODE_GROUP, SAMPLE_URI, LaptopCluster, LaptopOptions, laptop_node, node_group
from coordinator.dev.trial.waiting import eventually, output_of
from coordinator.kube.config import load_config
from coordinator.kube.http import HttpKube
from coordinator.kube.interface import NODES, PODS, Object, ResourceType
from coordinator.plan.snapshot import CACHES, NODE_GROUPS

ROOT = Path(__file__).resolve().parents[2]
JOBS = ResourceType("batch", "v1", "jobs", "Job", namespaced=True)
MIB = 1 << 20


def cluster(kubeconfig: Path, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cluster", *arguments, "--kubeconfig", str(kubeconfig)],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def rows(said: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, HttpKube]]:
    """Two nodes in a group, one beside it; nobody runs Jobs."""
    with ApiServer(crds=crds.load()) as serving:
        kubeconfig = tmp_path / "kubeconfig"
        write_kubeconfig(kubeconfig, serving.url)
        kube = HttpKube(load_config(str(kubeconfig)))
        for name in ("node-1", "node-2"):
            kube.create(NODES, laptop_node(name))
        kube.create(NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "beside"}, "spec": {}})
        kube.create(NODE_GROUPS, node_group("1Gi"))
        yield kubeconfig, kube
        kube.close()


@contextmanager
def kubelet(kube: HttpKube, ends: Mapping[str, Any]) -> Iterator[dict[str, Object]]:
    """Every Job gets a pod and ends with the condition `ends`. Yields the Jobs that there were, by node."""
    seen: dict[str, Object] = {}
    over = threading.Event()

    def run() -> None:
        while not over.wait(0.05):
            for job in kube.list(JOBS)[0]:
                if "conditions" not in job.get("status", {}):
                    end(job)

    def end(job: Object) -> None:
        spec = job["spec"]["template"]
        affinity = spec["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        (node,) = affinity["nodeSelectorTerms"][0]["matchFields"][0]["values"]
        name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
        metadata = {"name": f"{name}-pod", "labels": spec["metadata"]["labels"]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {**spec["spec"], "nodeName": node}}
        kube.create(PODS, pod, namespace=namespace)
        kube.patch(JOBS, name, {"status": {"conditions": [ends]}}, namespace=namespace, subresource="status")
        seen[node] = job

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


THEIRS = ("hf://team/model", "--group", NODE_GROUP, "--jobs-only", "--image", "downloader:1", "--model-size", "8Mi")


@pytest.mark.slow
def test_each_node_of_the_group_gets_a_job_with_the_image_and_all_is_removed(
    server: tuple[Path, HttpKube], tmp_path: Path
) -> None:
    kubeconfig, kube = server

    with kubelet(kube, {"type": "Complete", "status": "True"}) as jobs:
        done = cluster(kubeconfig, *THEIRS, "--env-from-secret", "hub", "--html", str(tmp_path / "page.html"))

    assert done.returncode == 0, done.stderr
    assert jobs.keys() == {"node-1", "node-2"}
    for job in jobs.values():
        assert job["spec"]["backoffLimit"] == 0
        pod = job["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == "downloader:1"
        assert container["args"] == ["hf://team/model", "/mnt/models"]
        assert container["envFrom"] == [{"secretRef": {"name": "hub"}}]
        assert "command" not in container
        assert pod["volumes"] == [{"name": "models", "emptyDir": {}}]
    (row,) = rows(done.stdout)
    assert row["who"] == "a Job per node"
    assert row["nodes"].keys() == {"node-1", "node-2"}
    assert row["seconds"] == max(row["nodes"].values())
    assert row["origin"] is None, "nobody counted it"
    assert "a Job per node" in (tmp_path / "page.html").read_text()
    assert kube.list(JOBS)[0] == []
    pods, _ = kube.list(PODS)
    assert all(each["metadata"].get("deletionTimestamp") for each in pods), "a kubelet removes what is being deleted"


@pytest.mark.slow
def test_command_arguments_volume_and_nodes_are_those_that_were_chosen(server: tuple[Path, HttpKube]) -> None:
    kubeconfig, kube = server
    chosen = ["--node", "beside", "--node", "node-1", "--command", "sh -c", "--arguments", "'get {uri} into {dir}'"]

    with kubelet(kube, {"type": "Complete", "status": "True"}) as jobs:
        done = cluster(kubeconfig, *THEIRS, *chosen, "--volume", '{"hostPath": {"path": "/scratch"}}')

    assert done.returncode == 0, done.stderr
    assert jobs.keys() == {"beside", "node-1"}
    for job in jobs.values():
        (container,) = job["spec"]["template"]["spec"]["containers"]
        assert container["command"] == ["sh", "-c"]
        assert container["args"] == ["get hf://team/model into /mnt/models"]
        assert job["spec"]["template"]["spec"]["volumes"] == [{"name": "models", "hostPath": {"path": "/scratch"}}]


@pytest.mark.slow
def test_a_job_that_fails_is_named_with_its_reason_and_all_is_removed(server: tuple[Path, HttpKube]) -> None:
    kubeconfig, kube = server

    with kubelet(kube, {"type": "Failed", "status": "True", "message": "the disk is full"}):
        done = cluster(kubeconfig, *THEIRS)

    assert done.returncode == 1
    assert "failed: the disk is full" in done.stderr
    assert kube.list(JOBS)[0] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["hf://a/b", "--group", "gone", "--jobs-only", "--image", "x"], 1, "there is no LocalModelNodeGroup gone"),
        ([*THEIRS, "--timeout", "0.5"], 1, "not complete within 0.5 s: the Jobs on node-1, node-2"),
        (["hf://a/b", "--group", NODE_GROUP, "--timeout", "0.5"], 1, "is the coordinator running?"),
        (["hf://a/b", "--group", NODE_GROUP, "--jobs-only"], 2, "--jobs-only needs --image"),
        (["hf://a/b", "--group", NODE_GROUP, "--model-size", "big"], 2, "'big' is not a quantity"),
    ],
)
def test_what_cannot_be_measured_is_said_and_nothing_stays(
    server: tuple[Path, HttpKube], arguments: list[str], code: int, said: str
) -> None:
    kubeconfig, kube = server

    done = cluster(kubeconfig, *arguments)

    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert kube.list(JOBS)[0] == []
    assert kube.list(CACHES)[0] == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_whoever_interrupts_it_finds_no_cache_left(
    server: tuple[Path, HttpKube], number: signal.Signals, code: int
) -> None:
    kubeconfig, kube = server
    command = [sys.executable, "-m", "benchmarks.cluster", "hf://a/b", "--group", NODE_GROUP]
    process = subprocess.Popen(
        [*command, "--kubeconfig", str(kubeconfig)], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    eventually(lambda: kube.list(CACHES)[0])

    process.send_signal(number)
    _, error = output_of(process, 30)

    assert process.returncode == code, error
    assert "Traceback" not in error
    assert kube.list(CACHES)[0] == []


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_said_in_a_sentence(tmp_path: Path) -> None:
    write_kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:9")

    done = cluster(tmp_path / "kubeconfig", "hf://a/b", "--group", NODE_GROUP)

    assert done.returncode == 2
    assert done.stderr.startswith("cluster: ")


@pytest.mark.e2e
def test_cold_nodes_are_measured_from_apply_to_ready_and_left_cold(tmp_path: Path) -> None:
    with LaptopCluster(tmp_path / "laptop", LaptopOptions(nodes=3, sample_bytes=16 * MIB)) as laptop:
        kube = laptop.kube()
        for _ in range(2):  # the second starts as cold as the first
            done = cluster(laptop.kubeconfig, SAMPLE_URI, "--group", NODE_GROUP)
            assert done.returncode == 0, done.stderr
            (row,) = rows(done.stdout)
            assert row["nodes"].keys() == set(laptop.nodes)
            assert row["bytes"] == 16 * MIB
            assert row["origin"] == 1.0
            assert row["seconds"] >= max(row["nodes"].values())
            assert kube.list(CACHES)[0] == []

        laptop.create_cache("mine", SAMPLE_URI)
        refused = cluster(laptop.kubeconfig, SAMPLE_URI, "--group", NODE_GROUP)
        assert refused.returncode == 1
        assert "cache mine has" in refused.stderr
        assert [each["metadata"]["name"] for each in kube.list(CACHES)[0]] == ["mine"]
        kube.close()
