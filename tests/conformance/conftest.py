"""A coordinator beside an API server, for each server that the specs are held against.

The development one always, and a real one where KUBEBUILDER_ASSETS names it. KServe's kinds are there, and nobody acts
on objects but the coordinator.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from coordinator.api import crds
from coordinator.plan.snapshot import CACHES
from tests.kit.control_plane import Cluster, coordinating, soon
from tests.kit.kserve import consumer_crds
from tests.kit.kube_servers import SERVERS, KubeServer, running

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@pytest.fixture(scope="package", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[KubeServer]:
    """Serves our kinds and KServe's."""
    with running(request.param) as server:
        for crd in (*crds.load(), *consumer_crds()):
            server.request("POST", CRDS, crd).ok()
        soon(lambda: server.request("GET", f"/apis/{CACHES.api_version}/{CACHES.plural}").status == 200)
        soon(lambda: server.request("GET", "/api/v1/namespaces/default").status == 200)
        soon(lambda: server.request("GET", "/api/v1/namespaces/kube-system").status == 200)
        yield server


@pytest.fixture(scope="package")
def cluster(server: KubeServer) -> Iterator[Cluster]:
    with coordinating(server.kubeconfig) as cluster:
        yield cluster
