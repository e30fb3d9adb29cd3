"""A coordinator beside an API server, for each server that the specs are held against.

The development one always, and a real one where KUBEBUILDER_ASSETS names it. KServe's kinds are there, and nobody acts
on objects but the coordinator.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kit.conformance import serving
from tests.kit.control_plane import Cluster, coordinating
from tests.kit.fixtures import node, sample
from tests.kit.kube_servers import SERVERS, KubeServer

__all__ = ["cluster", "node", "sample", "server"]


@pytest.fixture(scope="package", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[KubeServer]:
    with serving(request.param) as server:
        yield server


@pytest.fixture(scope="package")
def cluster(server: KubeServer) -> Iterator[Cluster]:
    with coordinating(server.kubeconfig) as cluster:
        yield cluster
