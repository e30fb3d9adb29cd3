"""A fill that is interrupted on a real cluster: what passes, what fails, and that nothing of it stays."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from k8s.e2e import interruptions, origin
from k8s.e2e.cluster import Cluster, Failed
from k8s.e2e.install import Images
from k8s.e2e.interruptions import CACHE, interrupted
from k8s.e2e.stand_in import SLOW_BYTES, SLOW_FILE, SLOW_PORT

IMAGES = Images("", "")
DIGEST = {SLOW_FILE: "d1"}


class Scripted:
    """A cluster with two nodes, on which a fill goes on by `shares`; the origin is read `read` times."""

    def __init__(self, shares: list[float], read: float = 1.0, found: dict[str, str] = DIGEST) -> None:
        self.shares, self.read, self.found = shares, read, found
        self.calls: list[tuple[str, ...]] = []
        self.bytes = 0
        self.refusals = 0

    def apply(self, *manifests: Any) -> None:
        self.calls += [("apply", each["metadata"]["name"]) for each in manifests]
        self.bytes = int(self.read * SLOW_BYTES) if self.shares else 0

    def delete(self, *arguments: str) -> None:
        self.calls.append(("delete", *arguments))
        if self.refusals and "localmodelcache" in arguments:
            self.refusals -= 1
            raise Failed("failed calling webhook")

    def until(self, what: str, seen: Any) -> None:
        for _ in range(20):
            if seen() is True:
                return
        raise Failed(f"not in time: {what}")

    def find(self, *arguments: str) -> Any:
        if "pod" in arguments:
            return {"status": {"phase": "Succeeded"}}
        share = self.shares.pop(0) if len(self.shares) > 1 else self.shares[0]
        nodes = {"n1": "NodeDownloaded", "n2": "NodeDownloaded"}
        return {"status": {"nodeStatus": nodes, "bytes": {"cached": int(share * 2 * SLOW_BYTES)}}}

    def condition(self, *arguments: str) -> dict[str, str]:
        return {"status": "True"}

    def kubectl(self, *arguments: str) -> str:
        if arguments[:2] == ("get", "--raw"):
            assert f"origin:{SLOW_PORT}" in arguments[2]
            return json.dumps({"bytes": self.bytes})
        return json.dumps(self.found)


@pytest.fixture(autouse=True)
def expected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "expected", lambda uri: DIGEST)


def run(cluster: Scripted) -> str:
    return interrupted(cast(Cluster, cluster), IMAGES, lambda _: "n1 killed")


def test_a_fill_that_is_interrupted_in_the_middle_and_ends_well_passes() -> None:
    cluster = Scripted([0.0, 0.1, 0.4, 0.4, 1.0], read=1.1)
    assert (
        run(cluster)
        == "n1 killed at 40%; the origin was read 1.10 times; 1 files, every byte as at the origin, on 2 nodes"
    )


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        (Scripted([0.0, 0.9]), "90% was there already"),
        (Scripted([0.5], read=1.6), "the origin was read 1.60 times"),
        (Scripted([0.5], found={SLOW_FILE: "d2"}), "1 of 1 files are missing or wrong"),
        (Scripted([0.0]), "not in time: the model is fetched in part"),
    ],
)
def test_what_does_not_end_well_fails_and_the_cache_goes(cluster: Scripted, said: str) -> None:
    with pytest.raises(Failed, match=said):
        run(cluster)
    assert cluster.calls[-1] == ("delete", "localmodelcache", CACHE)


def test_a_deletion_that_no_webhook_answers_is_tried_again() -> None:
    cluster = Scripted([0.5])
    cluster.refusals = 2
    assert "1.00 times" in run(cluster)
    assert cluster.calls[-3:] == [("delete", "localmodelcache", CACHE)] * 3


def test_the_ray_cluster_is_made_again_as_it_was_without_what_the_server_adds() -> None:
    class WithRayCluster(Scripted):
        def find(self, *arguments: str) -> Any:
            metadata = {"name": "localmodel", "namespace": "localmodel", "uid": "u", "resourceVersion": "7"}
            return {
                "apiVersion": "ray.io/v1",
                "kind": "RayCluster",
                "metadata": metadata,
                "spec": {"a": 1},
                "status": {},
            }

        def apply(self, *manifests: Any) -> None:
            self.applied = manifests

    cluster = WithRayCluster([])
    interruptions.ray_cluster_made_again(cast(Cluster, cluster))
    assert cluster.calls == [("delete", "-n", "localmodel", "raycluster", "localmodel")]
    (again,) = cluster.applied
    assert again == {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "spec": {"a": 1},
        "metadata": {"name": "localmodel", "namespace": "localmodel"},
    }
