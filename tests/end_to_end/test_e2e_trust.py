"""What an author may do, against a whole cluster: what is refused, who says so, and that nobody was asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from coordinator.dev.laptop.cluster import NODE_GROUP, LaptopCluster, LaptopOptions
from coordinator.dev.trial.waiting import eventually
from coordinator.kube.interface import NAMESPACES
from coordinator.plan.snapshot import NAMESPACE_CACHES
from tests.kit.laptop import Laptop
from tests.kit.witness import Answer, Witness

pytestmark = [pytest.mark.ray, pytest.mark.e2e]

TOKEN = "hf_of-the-coordinator"
FILE: Answer = (200, {"Content-Type": "application/octet-stream"}, b"weights")


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    """Only 127.0.0.1 is allowed, as on every laptop."""
    options = LaptopOptions(nodes=1, sample_bytes=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        with LaptopCluster(tmp_path_factory.mktemp("t"), options) as cluster:
            yield Laptop(cluster)


@pytest.fixture
def inside() -> Iterator[Witness]:
    """What only the network of the cluster can see."""
    with Witness("127.0.0.3", lambda path: FILE) as witness:
        yield witness
        assert witness.asked == []


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("reference://f.bin::http://127.0.0.1:1/refs.json", "InvalidURI"),
        ("carrier-pigeon://coop/model", "SchemeNotAllowed"),
        ("file:///etc/passwd", "SchemeNotAllowed"),
    ],
)
def test_a_source_of_a_kind_that_is_not_allowed_is_named_and_not_tried(laptop: Laptop, uri: str, reason: str) -> None:
    name = uri.partition(":")[0]
    laptop.apply(name, uri)
    condition = laptop.until_reason(name, reason)
    assert condition["message"].startswith("spec.sourceModelUri: ")
    assert "next try" not in condition["message"]
    laptop.delete(name)


def test_an_address_inside_is_not_asked(laptop: Laptop, inside: Witness) -> None:
    laptop.apply("inside", f"{inside.url}/m.bin")
    message = laptop.until_reason("inside", "OriginNotAllowed")["message"]
    assert "127.0.0.3" in message
    assert "--allow-origins" in message
    laptop.delete("inside")


def test_a_node_is_led_nowhere_that_the_coordinator_was_not(laptop: Laptop, inside: Witness) -> None:
    """The origin shows the coordinator one thing, and the nodes another."""

    def answer(path: str) -> Answer:
        agent = origin.asked[-1][2].get("user-agent", "")
        return (302, {"Location": f"{inside.url}/secret"}, b"") if agent == "localmodel" else FILE

    with Witness("127.0.0.1", answer) as origin:
        laptop.apply("led", f"{origin.url}/m.bin")
        eventually(
            lambda: laptop.detail("node-1", "led").get("reason") == "OriginNotAllowed",
            timeout_s=30,
            seen=lambda: laptop.explain("led"),
        )
        laptop.delete("led")


@pytest.mark.parametrize("namespaced", [True, False])
def test_the_coordinators_token_goes_to_no_endpoint_that_a_cache_names(laptop: Laptop, namespaced: bool) -> None:
    with Witness("127.0.0.1") as evil:
        storage = {"parameters": {"type": "hf", "endpoint_url": evil.url}}
        spec: dict[str, Any] = {"sourceModelUri": "hf://a/b", "modelSize": "1Mi", "nodeGroups": [NODE_GROUP]}
        if namespaced:
            laptop.kube.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "tenant"}})
            laptop.kube.create(
                NAMESPACE_CACHES,
                {
                    "apiVersion": "serving.kserve.io/v1alpha1",
                    "kind": "LocalModelNamespaceCache",
                    "metadata": {"name": "theirs", "namespace": "tenant"},
                    "spec": {**spec, "storage": storage},
                },
                namespace="tenant",
            )
        else:
            laptop.apply("theirs", "hf://a/b", storage=storage)
        eventually(lambda: evil.asked, timeout_s=30, seen=lambda: evil.asked)
        assert evil.authorizations == set()
        assert TOKEN not in json.dumps(evil.asked)
        if namespaced:
            laptop.kube.delete(NAMESPACE_CACHES, "theirs", namespace="tenant")
